"""Families that stay in memory between merges, for sliders, searches and the chat."""
