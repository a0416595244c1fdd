"""How importance is measured, on few examples, and kept as an artefact (APL); `merging.importance` is the way in."""
