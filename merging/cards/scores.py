"""The scores in a model card: what a merge and its parents gave on the same questions, with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merging.cards.lineage import lineage_of_model, short
from merging.checkpoint import Checkpoint
from merging.errors import MergingError
from merging.judging.history import History, ModelRef
from merging.judging.intervals import Interval
from merging.judging.subjects import SUBJECT

THIS = "this merge"


@dataclass(frozen=True)
class CardScore:
    """One number of one model: a share of correct replies to `n` questions, or with `tokens` a text's perplexity."""

    model: str
    task: str
    value: float
    interval: Interval | None
    n: int
    is_share: bool = True


def card_scores(history: History, owner: str, folder: str | Path) -> list[CardScore]:
    """What the owner has measured on a merge and on its parents: on the tasks that the merge was scored on.

    Raises:
        MergingError: the history cannot be read.
    """
    try:
        made = Checkpoint.open(folder)
    except MergingError:
        return []
    subject = made.metadata.get(SUBJECT, "")
    run = next((one for one in history.list(owner) if one.subject == subject), None)
    if not subject or run is None:
        return []
    models = [(THIS, subject), *_named(run.models, made)]
    subjects = [one for _, one in models]
    totals, texts = history.totals(owner, subjects), history.perplexities(owner, subjects)
    asked = {key: score.suite for (of, key), score in totals.items() if of == subject}
    asked |= {key: f"{text.name}, perplexity" for (of, key), text in texts.items() if of == subject}
    tasks = _apart(asked)
    found = [
        CardScore(name, tasks[key], score.value, score.interval, score.n)
        for name, one in models
        for (of, key), score in totals.items()
        if of == one and key in tasks
    ]
    return found + [
        CardScore(name, tasks[key], text.value, text.interval, text.tokens, is_share=False)
        for name, one in models
        for (of, key), text in texts.items()
        if of == one and key in tasks
    ]


def _apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names by key, each a name of its own: other questions under the same one are `sums (2)`."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for key, name in names.items():
        seen[name] += 1
        found[key] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    return found


def _named(models: Sequence[ModelRef], made: Checkpoint) -> Iterator[tuple[str, str]]:
    """Parents by the names that the merge's own lineage has for them, in whose order a run lists them."""
    parents = lineage_of_model(made).parents
    for number, model in enumerate(models):
        known = short(parents[number].name) if len(parents) == len(models) else short(model.name)
        yield known, model.fingerprint


def score_lines(scores: Sequence[CardScore]) -> list[str]:
    """A section of a card: a row for each model, a column for each task; nothing without scores."""
    if not scores:
        return []
    tasks = list(dict.fromkeys(score.task for score in scores))
    models = list(dict.fromkeys(score.model for score in scores))
    cells = {(score.model, score.task): _cell(score) for score in scores}
    rows = [
        f"| {_plain(model)} | {' | '.join(cells.get((model, task), '–') for task in tasks)} |"
        for model in models
    ]
    counts = {score.task: score.n for score in scores if score.is_share}
    asked = ", ".join(f"{count:,} of {_plain(task)}" for task, count in counts.items())
    said = [
        f"Shares of correct replies with their 95 % interval (Wilson's); questions: {asked}."
        if counts
        else "",
        "Perplexity with the 95 % interval over the text's parts: lower is better."
        if len(counts) < len(tasks)
        else "",
    ]
    return [
        "## Scores",
        "",
        f"| model | {' | '.join(map(_plain, tasks))} |",
        f"|---|{'---|' * len(tasks)}",
        *rows,
        "",
        " ".join([*filter(None, said), "All were asked in the same way, by Mergescope."]),
        "",
    ]


def _cell(score: CardScore) -> str:
    def written(value: float) -> str:
        return f"{100 * value:.1f} %" if score.is_share else f"{value:.4g}"

    if score.interval is None:
        return written(score.value)
    return f"{written(score.value)} ({written(score.interval.low)} to {written(score.interval.high)})"


def _plain(name: str) -> str:
    """A name in a table of markdown, where it may be anything: code, on one line, that ends no cell."""
    return "`" + " ".join(name.replace("`", "'").replace("|", "/").split())[:80] + "`"
