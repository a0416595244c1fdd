"""The preview on the Merge tab: what a recipe would keep, and cells of its map brushed to change it."""
