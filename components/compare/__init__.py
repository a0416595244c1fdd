"""Scores, every method, grid, tuning and history: merges measured side by side."""
