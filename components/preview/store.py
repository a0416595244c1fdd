"""Previews that were made, so that nothing is worked out twice, and what every open page looks at."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from components.family import Family
from components.merge.recipe import check
from components.newest import Newest
from components.preview.views import Choice
from components.server.process import kept
from merging import Plan, Progress, Recipe
from merging.checkpoint import TensorSource
from merging.memory.resident import family_key, source_key
from merging.memory.whatif import Residents, preview, steps
from merging.reports.report import Preview
from merging.sources import open_model

MOST_PREVIEWS = 48
MOST_PAGES = 1024
LOOK = 0.03
"""Seconds between two looks whether a request is over."""
PATIENCE = 60.0
"""Seconds for which a request waits for the one before. One that failed on its way to the page may never be closed."""


@dataclass(frozen=True)
class Asked:
    """A preview that somebody wants: the plan, the base from which changes are measured where the plan itself has none,
    and the key under which it is kept."""

    plan: Plan
    origin: str | None
    key: str

    @property
    def source(self) -> TensorSource | None:
        """The base from which changes are measured, by its header."""
        return open_model(self.origin) if self.origin is not None else None


def asked_for(recipe: Recipe, family: Family) -> Asked | None:
    """The preview of a recipe over a family; None where the recipe cannot run.

    Raises:
        OSError: a model that was there is gone.
    """
    plan = check(recipe).plan
    if plan is None:
        return None
    if plan.base is not None or recipe.base_model is not None:
        return Asked(plan, None, preview_key(plan))
    return Asked(plan, family.base, preview_key(plan, family.base))


class Previews(Newest[Preview]):
    """The latest previews by models and recipe, and the models they are made of; shared by all visitors."""

    def __init__(self, most: int = MOST_PREVIEWS, residents: Residents | None = None):
        super().__init__(most)
        self.residents = residents or Residents()

    def quick(self, asked: Asked) -> bool:
        """Whether a preview takes no more than a moment."""
        return self.get(asked.key) is not None or self.residents.fits(asked.plan)

    def at_once(self, asked: Asked, *, casts: bool) -> Preview | None:
        """The exact preview over models that fit into memory; None where it would take longer than a moment.

        Args:
            casts: whether to measure what every output dtype would lose.

        Raises:
            MergingError: the merge itself would fail.
        """
        key = asked.key if casts else f"{asked.key} without casts"
        known = self.get(asked.key) or self.get(key)
        if known is None and self.quick(asked):
            known = preview(asked.plan, self.residents, origin=asked.source, casts=casts)
            self.keep(key, known)
        return known

    def steps(self, asked: Asked, device: str) -> Iterator[Progress | Preview]:
        """Make a preview unless it is kept already, an estimate first where that takes long; closing the iterator stops
        the work.

        Raises:
            MergingError: the merge itself would fail.
        """
        known = self.get(asked.key)
        if known is not None:
            yield known
            return
        for event in steps(asked.plan, self.residents, device=device, origin=asked.source):
            if isinstance(event, Preview):
                self.keep(shown_key(asked.key, event), event)
            yield event


@kept
def shared_previews() -> Previews:
    """The previews that all pages of this process share."""
    return Previews()


def shown_key(key: str, preview: Preview) -> str:
    """The key under which a preview is found: an estimate has one of its own until the exact picture takes its place."""
    return key if preview.sample is None else f"{key} estimate"


def preview_key(plan: Plan, origin: str | None = None) -> str:
    """What a preview depends on: the models' files and when they changed, the recipe, and what changes are measured
    from."""
    parts = [family_key(plan), plan.names, plan.recipe.to_yaml()]
    if origin is not None:
        parts.append((origin, source_key(open_model(origin))))
    if plan.recipe.importance is not None:
        state = plan.recipe.locate(plan.recipe.importance).stat()
        parts.append((state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Desk:
    """What one page looks at; a moved slider starts from it."""

    recipe: Recipe
    family: Family
    choice: Choice


@dataclass(frozen=True)
class Shown:
    """What one page shows: a preview by its key, what was to be seen of it, and whether a click, or a slider on its way, has
    drawn over it since."""

    key: str
    choice: Choice
    drawn_over: bool = False


@dataclass(frozen=True)
class Moved:
    """The preview that a page's slider called for last, and when."""

    key: str
    at: float


class Pages:
    """What every open page looks at and is shown, by tokens that nobody can guess, and its newest request: an older one
    sees that it is over, so that rapid moves do not pile up."""

    def __init__(self, most: int = MOST_PAGES):
        self._tokens: Newest[str] = Newest(most)
        self._desks: Newest[Desk] = Newest(most)
        self._moved: Newest[Moved] = Newest(most)
        self._shown: Newest[Shown | None] = Newest(most)
        self._turns: Newest[int] = Newest(most)
        self._drawing: Newest[threading.Lock] = Newest(most)
        self._lock = threading.Lock()

    def token(self, page: str) -> str:
        """The token of a page, the same while the page is open."""
        with self._lock:
            known = self._tokens.get(page)
            if known is None:
                known = secrets.token_hex(16)
                self._tokens.keep(page, known)
            return known

    def begin(self, token: str) -> Callable[[], bool]:
        """Begin a page's newest request; what comes back says whether a newer one has begun since."""
        with self._lock:
            mine = (self._turns.get(token) or 0) + 1
            self._turns.keep(token, mine)
        return lambda: self._turns.get(token) not in (None, mine)

    @contextmanager
    def turn(self, token: str, over: Callable[[], bool]) -> Iterator[bool]:
        """Wait until the page's request before, which sees that it is over, has sent all that it drew: only then is it known
        what the page shows, and nothing older comes later. What comes says whether it is this request's turn at all: not if
        a newer one has begun. One that is silent for `PATIENCE` is waited for no longer."""
        with self._lock:
            drawing = self._drawing.get(token) or threading.Lock()
            self._drawing.keep(token, drawing)
        until = time.monotonic() + PATIENCE
        mine = drawing.acquire(timeout=LOOK)
        while not mine and not over():
            if time.monotonic() > until:
                drawing = threading.Lock()
                self._drawing.keep(token, drawing)
                self.show(token, None)
            mine = drawing.acquire(timeout=LOOK)
        try:
            yield mine
        finally:
            if mine:
                drawing.release()

    def show(self, token: str, shown: Shown | None) -> None:
        """Remember what a page shows; None where it shows no preview, or none that is known."""
        with self._lock:
            self._shown.keep(token, shown)

    def draw_over(self, token: str) -> None:
        """Remember that something else than a whole picture changed what a page shows, so that it is drawn anew."""
        with self._lock:
            if (shown := self._shown.get(token)) is not None:
                self._shown.keep(token, replace(shown, drawn_over=True))

    def shown(self, token: str) -> Shown | None:
        """What a page shows; None where it shows no preview, or none that is known."""
        return self._shown.get(token)

    def look(self, token: str, desk: Desk) -> None:
        """Remember what a page looks at."""
        self._desks.keep(token, desk)

    def desk(self, token: object) -> Desk | None:
        """What a page looks at."""
        return self._desks.get(token)

    def choose(self, token: str, choice: Choice) -> None:
        """Remember another choice on what a page looks at."""
        desk = self._desks.get(token)
        if desk is not None:
            self._desks.keep(token, replace(desk, choice=choice))

    def move(self, token: str, key: str) -> None:
        """Remember what a page's slider called for."""
        self._moved.keep(token, Moved(key, time.monotonic()))

    def moving(self, token: str, key: str, rest: float) -> bool:
        """Whether a page's slider called for another preview than this one less than `rest` seconds ago."""
        last = self._moved.get(token)
        return last is not None and last.key != key and time.monotonic() - last.at < rest


@kept
def shared_pages() -> Pages:
    """The open pages of this process."""
    return Pages()
