"""Tab 2, Inspect: the maps of a family, a cell from near, and the reports behind them."""
