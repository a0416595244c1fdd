"""Model folders on disk as they come from strangers and as they are written: headers, adapters, refusals."""
