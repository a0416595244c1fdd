"""The subcommands of `python -m merging`, one file each; `merging.cli` puts them together."""
