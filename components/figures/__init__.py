"""Pure functions from what was measured to plotly figures. No gradio here."""
