"""Models of the Hub: found, pinned, downloaded, and merged ones pushed. Nothing else calls out."""
