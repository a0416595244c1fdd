"""What holds for a whole server: settings, strangers, limits, and what outlives a page."""
