"""Why a parameter that was moved left the map as it was: a plain sentence where it is known to be true, else nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from components.figures.fate import MAPS, NOBODY, PRESENCE
from components.preview import views
from components.preview.views import Choice
from merging import METHODS
from merging.methods.combine import Combined, Elected
from merging.reports.report import Preview

SEEN = 5e-4
"""A share that moves by less looks the same."""
SIZES = {"weight", "lambda", "normalize"}
"""What sets how large a change is merged."""
FATES = [key for key in MAPS if key not in (PRESENCE, NOBODY, "rounded")]
"""The maps that tell what was chosen, not how large it is merged."""


def unmoved_html(before: Preview | None, after: Preview, names: Sequence[str], choice: Choice) -> str:
    """The sentence as HTML; `before` is what was drawn."""
    said = unmoved(before, after, names, choice) if before is not None else ""
    return f'<p class="pv-line pv-unmoved" role="status">{said}</p>' if said else ""


def unmoved(before: Preview, after: Preview, names: Sequence[str], choice: Choice) -> str:
    """Why the chosen map is the same though a weight, λ or `normalize` changed; empty where it is not, or not known."""
    if before.method != after.method or before.effective.keys() != after.effective.keys():
        return ""
    if {len(fate.along) for fate in before.tensors.values()} != {len(names)}:  # other experts
        return ""
    merged = [(before.effective[name], after.effective[name]) for name in after.tensors]
    changed = {name for old, new in merged for name in new if old.get(name) != new[name]}
    if not changed or not changed <= SIZES or choice.number not in MAPS:
        return ""
    if not _same(before, after, names, choice):
        return ""
    what = " and ".join(sorted(changed))
    if changed == {"weight"} and _averaged_alike(after, merged, len(names)):
        return (
            "Nothing changes with weight here: the merge averages, and every expert has the same share of the average as "
            "before. Weights that differ from each other move it."
        )
    if choice.number not in FATES or not after.elementwise or not _positive(merged, len(names)):
        return ""
    if changed == {"lambda"}:
        return "This map does not depend on lambda, which scales all that is kept alike: look at Presence."
    method = METHODS[after.method]
    if issubclass(method, Elected) and all(new["elect_on"] == "delta" for _, new in merged):
        return (
            f"This map does not depend on {what}: the vote counts the experts' changes as they are, and weights only say "
            "how those who won it are put together. Presence shows that."
        )
    return ""


def _same(before: Preview, after: Preview, names: Sequence[str], choice: Choice) -> bool:
    """Whether two previews look the same on the chosen map."""
    one, other = (list(_numbers(preview, names, choice)) for preview in (before, after))
    return len(one) == len(other) and all(
        a == b or (a is not None and b is not None and abs(a - b) < SEEN)
        for a, b in zip(one, other, strict=True)
    )


def _numbers(preview: Preview, names: Sequence[str], choice: Choice) -> Iterable[float | None]:
    for panel in views.panels(preview, names, choice):
        for row in panel.grid.values:
            yield from row


def _averaged_alike(after: Preview, merged: list[tuple[dict[str, Any], ...]], experts: int) -> bool:
    """Whether the method divides by the sum of the weights, and no expert's share of it changed."""
    if not issubclass(METHODS[after.method], Combined):
        return False
    if not all(new["normalize"] for _, new in merged) or not _positive(merged, experts):
        return False
    return all(
        abs(a / sum(old) - b / sum(new)) < 1e-9
        for old, new in ((_weights(one, experts), _weights(other, experts)) for one, other in merged)
        for a, b in zip(old, new, strict=True)
    )


def _positive(merged: list[tuple[dict[str, Any], ...]], experts: int) -> bool:
    """Whether all weights and λ are above 0, before and after."""
    return all(
        given.get("lambda", 1) > 0 and min(_weights(given, experts)) > 0 for both in merged for given in both
    )


def _weights(given: dict[str, Any], experts: int) -> list[float]:
    weight = given.get("weight", 1.0)
    return list(weight) if isinstance(weight, list | tuple) else [weight] * experts
