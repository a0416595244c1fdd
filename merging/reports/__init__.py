"""What the maps show: the report, how it is measured (whole or from samples), and how it is kept and told."""
