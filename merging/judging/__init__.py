"""How well merges do: suites and scores with intervals, searches and grids over recipes, the history of runs."""
