"""Previews that were made, so that nothing is worked out twice, and who is still waiting for one."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache

from components.reports import report_key
from merging import Plan, Progress
from merging.inspection import preview_plan
from merging.report import Preview

MOST_PREVIEWS = 48
AT_ONCE = 64 << 20
"""Bytes of models up to which a preview is made while a slider moves; for more, once it rests."""


class Previews:
    """The latest previews by models and recipe; shared by all visitors, and bounded."""

    def __init__(self, most: int = MOST_PREVIEWS):
        self._most = most
        self._kept: OrderedDict[str, Preview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> Preview | None:
        """A preview that is still kept."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def keep(self, key: str, preview: Preview) -> None:
        """Keep a preview in place of the one that was not asked for longest."""
        with self._lock:
            self._kept[key] = preview
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def at_once(self, plan: Plan, key: str, device: str) -> Preview | None:
        """The preview of a plan over small models; None where it would take longer than a moment.

        Raises:
            MergingError: the merge itself would fail.
        """
        known = self.get(key)
        if known is not None or plan.bytes_to_read > AT_ONCE:
            return known
        *_, last = self.steps(plan, key, device)
        return last if isinstance(last, Preview) else None

    def steps(self, plan: Plan, key: str, device: str) -> Iterator[Progress | Preview]:
        """Make the preview of a plan unless it is kept already; closing the iterator stops the work."""
        known = self.get(key)
        if known is not None:
            yield known
            return
        for event in preview_plan(plan, device=device):
            if isinstance(event, Preview):
                self.keep(key, event)
            yield event


@cache
def shared_previews() -> Previews:
    """The previews that all pages of this process share."""
    return Previews()


def preview_key(plan: Plan) -> str:
    """What a preview depends on: the models' contents and the recipe."""
    recipe = plan.recipe.to_yaml()
    importance = plan.recipe.importance
    if importance is not None:
        state = plan.recipe.locate(importance).stat()
        recipe += f"\0{state.st_size} {state.st_mtime_ns}"
    return hashlib.blake2b(f"{report_key(plan)}\0{recipe}".encode(), digest_size=16).hexdigest()


class Turns:
    """The newest request of every page: an older one sees that it is over, so that rapid moves do not pile up."""

    def __init__(self, most: int = 1024):
        self._most = most
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, page: str) -> Callable[[], bool]:
        """Start a page's newest request; what comes back says whether a newer one has begun since."""
        with self._lock:
            mine = self._newest.get(page, 0) + 1
            self._newest[page] = mine
            self._newest.move_to_end(page)
            while len(self._newest) > self._most:
                self._newest.popitem(last=False)
        return lambda: self._newest.get(page, mine) != mine
