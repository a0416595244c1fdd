"""Models of the Hub on the page: search, token, what was looked up, downloads."""
