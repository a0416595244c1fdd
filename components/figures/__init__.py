"""Plotly figures as pure functions of reports; nothing here imports gradio."""
