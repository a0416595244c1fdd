"""Tab 1, Models: what a visitor names is opened, checked and shown on cards."""
