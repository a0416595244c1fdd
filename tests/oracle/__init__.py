"""Mergescope beside the real mergekit, which lives in an environment of its own (`make oracle`)."""
