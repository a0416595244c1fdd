"""The look of the page: one accent, thin borders, no shadows, system fonts, light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from components.chat.models import is_demo
from components.family import Family
from components.server.settings import Settings
from components.shared import MODELS_KEY

CSS = (Path(__file__).parent / "theme.css").read_text(encoding="utf-8")
SCRIPTS = "".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("event_stream.js", "told_fields.js", "number_fields.js")
)
RESTORING = f"""
try {{
  if (localStorage.getItem('{MODELS_KEY}')) {{
    const page = document.documentElement.classList;
    page.add('restoring');
    setTimeout(() => page.remove('restoring'), 5000);
  }}
}} catch {{}}
"""
"""Hides the demo's rows from who has chosen other models before, until those are put in or the server seems asleep."""
HEAD = f'<meta name="color-scheme" content="light dark"><script>{RESTORING}{SCRIPTS}</script>'
HEADER = """
<header class="page-head">
  <div class="brand">
    <svg viewBox="0 0 24 24" width="26" height="26" aria-hidden="true">
      <g>
        <rect x="1" y="1" width="6.5" height="6.5" rx="1.2" opacity=".25"/>
        <rect x="8.75" y="1" width="6.5" height="6.5" rx="1.2" opacity=".6"/>
        <rect x="16.5" y="1" width="6.5" height="6.5" rx="1.2" opacity=".35"/>
        <rect x="1" y="8.75" width="6.5" height="6.5" rx="1.2" opacity=".7"/>
        <rect x="8.75" y="8.75" width="6.5" height="6.5" rx="1.2"/>
        <rect x="16.5" y="8.75" width="6.5" height="6.5" rx="1.2" opacity=".5"/>
        <rect x="1" y="16.5" width="6.5" height="6.5" rx="1.2" opacity=".3"/>
        <rect x="8.75" y="16.5" width="6.5" height="6.5" rx="1.2" opacity=".55"/>
        <rect x="16.5" y="16.5" width="6.5" height="6.5" rx="1.2" opacity=".25"/>
      </g>
    </svg>
    <h1>Mergescope</h1>
    <button type="button" aria-label="Switch between light and dark"></button>
  </div>
  <p class="purpose">Models that were fine-tuned from one base can be merged into a single model. See where they changed
  it and where they fight, merge them, and talk to the result.</p>
  <p class="first">The demo models are tiny: trained on sums, list and string expressions and word games, they know
  nothing else.</p>
{kept}</header>
"""
HEADER_SCRIPT = """
const first = element.querySelector('.first');
const tell = () => { if (first) first.hidden = props.value !== 'demo'; };
watch('value', tell);
tell();
const stored = localStorage.getItem('mergescope-theme');
if (stored) document.body.classList.toggle('dark', stored === 'dark');
element.querySelector('button').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('mergescope-theme', dark ? 'dark' : 'light');
});
new MutationObserver(() => {
  document.querySelectorAll('input.search-input:not([aria-label])')
    .forEach((field) => field.setAttribute('aria-label', field.title));
}).observe(document.body, {childList: true, subtree: true});
"""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
COLOURS = {
    "body_background_fill": "white",
    "body_background_fill_dark": "#0b1120",
    "background_fill_primary": "white",
    "background_fill_primary_dark": "#0b1120",
    "background_fill_secondary": "*neutral_50",
    "background_fill_secondary_dark": "#111a2e",
    "body_text_color": "*neutral_900",
    "body_text_color_dark": "*neutral_100",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_400",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "#25314a",
    "color_accent_soft": "*primary_50",
    "color_accent_soft_dark": "#1e2350",
    "link_text_color": "*primary_700",
    "link_text_color_dark": "*primary_300",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_border_width": "0px",
    "block_label_text_color": "*body_text_color_subdued",
    "block_label_text_color_dark": "*body_text_color_subdued",
    "block_title_text_color": "*body_text_color_subdued",
    "block_title_text_color_dark": "*body_text_color_subdued",
    "block_title_text_size": "*text_sm",
    "block_title_text_weight": "500",
    "panel_background_fill": "transparent",
    "panel_background_fill_dark": "transparent",
    "panel_border_width": "0px",
    "input_background_fill": "white",
    "input_background_fill_dark": "#111a2e",
    "input_border_color": "*neutral_400",
    "input_border_color_dark": "#51617f",
    "input_border_width": "1px",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 2px *primary_300",
    "input_shadow_focus_dark": "0 0 0 2px *primary_700",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_700",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
    "button_secondary_background_fill": "white",
    "button_secondary_background_fill_dark": "#111a2e",
    "button_secondary_background_fill_hover": "*neutral_100",
    "button_secondary_background_fill_hover_dark": "#1a2540",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "#3b4a68",
    "button_secondary_text_color": "*neutral_800",
    "button_secondary_text_color_dark": "*neutral_100",
    "button_border_width": "1px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_transform_hover": "none",
    "button_transform_active": "none",
    "checkbox_background_color_selected": "*primary_600",
    "checkbox_background_color_selected_dark": "*primary_500",
    "checkbox_border_color": "*neutral_500",
    "checkbox_border_color_dark": "*neutral_400",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_dark": "transparent",
    "checkbox_label_background_fill_selected": "*primary_50",
    "checkbox_label_background_fill_selected_dark": "#1e2350",
    "checkbox_label_border_width": "1px",
    "checkbox_label_text_color_selected": "*primary_800",
    "checkbox_label_text_color_selected_dark": "*primary_200",
    "checkbox_label_shadow": "none",
    "table_border_color": "*neutral_200",
    "table_border_color_dark": "#25314a",
    "table_even_background_fill": "white",
    "table_even_background_fill_dark": "#0b1120",
    "table_odd_background_fill": "*neutral_50",
    "table_odd_background_fill_dark": "#0f172a",
    "table_text_color": "*body_text_color",
    "table_text_color_dark": "*body_text_color",
}


def build_header(settings: Settings) -> gr.HTML:
    """What the page is and, while its value is `about(…)` of the demo, what the demo's models cannot do."""
    value = about(settings, Family.demo(settings.demo))
    words = f'  <p class="kept">{kept_words(settings.ttl)}</p>\n' if not settings.single_owner else ""
    return gr.HTML(value, html_template=HEADER.replace("{kept}", words), js_on_load=HEADER_SCRIPT)


def kept_words(ttl: int | None) -> str:
    """What visitors of a shared server should know of how long their things stay, and that nobody else sees them."""
    if ttl is None:
        return "Nobody else sees what you make here; it stays until you delete it."
    named = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    unit, word = next(
        (length, word) for length, word in named if (ttl % length == 0 and ttl > length) or length == 1
    )
    return (
        f"Nobody else sees what you make here. It is deleted {ttl // unit} {word}s after your last visit: download what you "
        "want to keep."
    )


def about(settings: Settings, family: Family) -> str:
    """The header's value for a family: `demo` where all of it is the project's own."""
    return "demo" if is_demo(settings, family) else ""


def build_theme() -> gr.themes.Base:
    """Gradio's plain theme with the project's colours."""
    theme = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )
    return theme.set(**COLOURS)
