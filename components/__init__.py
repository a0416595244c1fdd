"""The interface: Gradio tabs over `merging`."""
