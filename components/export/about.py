"""What Mergescope is, what it cannot do, and what becomes of what people give it: a few lines each."""

from __future__ import annotations

from components.server.settings import Settings
from components.theme import kept_words
from merging import METHODS


def about_html(settings: Settings) -> str:
    """Methods, limits and privacy, as they are on this server."""
    parts = {"Methods": _methods(), "Limits": _limits(settings), "Privacy": _privacy(settings)}
    body = "".join(f"<section><h3>{name}</h3><p>{text}</p></section>" for name, text in parts.items())
    return f'<div class="ex-about"><h2>About Mergescope</h2><div>{body}</div></div>'


def _methods() -> str:
    return (
        f"{len(METHODS)} merge methods, each after its paper, which its card under Merge names. Recipes are mergekit’s YAML: "
        "what runs there runs here, with every value that is used written out. The same recipe over the same models gives the "
        "same bytes, on any machine with any number of workers."
    )


def _limits(settings: Settings) -> str:
    where = (
        ""
        if settings.local_folders
        else " This server opens the demo models"
        + (", models of the Hub" if settings.hub else "")
        + " and merges made here; on a machine of your own it opens any folder."
    )
    return (
        "Language models in safetensors whose tensors have the same names and shapes, and adapters over them. A good score here "
        "says how a model does on the questions asked, and no more. A merge is bound by the licences of all its parents; the "
        f"model card names them and where they disagree, which is no legal advice.{where}"
    )


def _privacy(settings: Settings) -> str:
    if settings.single_owner:
        return (
            "Everything stays on this machine. The Hub is asked whether it is there and for models that you name, and gets "
            "only what you push; access tokens stay in memory."
        )
    return (
        f"{kept_words(settings.ttl)} Your merges, scores and uploads belong to this browser: without its storage you do not "
        "see them either. Your token stays in memory and is used for you alone. Nothing of yours is sent anywhere but to the "
        "Hub, when you ask."
    )
