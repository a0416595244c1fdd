"""The section on importance (APL): examples, measuring, and what an APL merge uses."""
