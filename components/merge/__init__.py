"""Tab 3, Merge: the form, its YAML, the job, and the card of what came of it."""
