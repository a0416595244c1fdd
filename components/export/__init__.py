"""Going home with a merge: download and push to the Hub."""
