"""What a stranger waits for on a Space without a GPU and without an account: the page, its map, a merge, the first answer.

    python -m benchmarks.first_visit [--visits 3] [--save NAME] [--pictures FOLDER]

The app runs as on a Space (SPACE_ID), shared, on the CPU. Each visit is a new browser without a memory; the first comes as
soon as the server answers. Times are from the address typed in; clicks are counted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.browser.conftest import ARGUMENTS, BROWSERS, served

USABLE, ANSWERED, CLICKS = 15.0, 60.0, 6
"""Seconds until the map is drawn and the way on is open, and until the first answer; and clicks for that, at most."""
SPACE = {
    "SPACE_ID": "someone/mergescope",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_TOKEN": "",
    "HF_ENDPOINT": "http://127.0.0.1:9",
}
"""A Space whose Hub does not answer: nothing here waits for it."""
DESK = {"width": 1280, "height": 900}
WINDOWS: dict[str, dict[str, Any]] = {
    "desk": {"viewport": DESK},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}
"""What pictures are taken of, by the end of their names."""


@dataclass
class Visit:
    """One walk: seconds from the address to what was reached, in its order, and the clicks it took."""

    load: float
    """What the machine had to do in the minute before, in processes for each core."""
    seconds: dict[str, float] = field(default_factory=dict)
    clicks: int = 0

    def reached(self, what: str, since: float) -> None:
        self.seconds[what] = round(time.perf_counter() - since, 2)


def walk(page: Any, url: str, pictures: str = "") -> Visit:
    """From the address to the merge's first answer, as a stranger goes: by the buttons that lead on.

    Args:
        pictures: the name of the files to take pictures in, with {} for the tab; empty takes none.
    """
    visit = Visit(round(os.getloadavg()[0] / (os.cpu_count() or 1), 2))

    def click(locator: Any) -> None:
        locator.click()
        visit.clicks += 1

    def picture(of: str) -> None:
        if pictures:
            take_picture(page, Path(pictures.format(of)))

    started = time.perf_counter()
    page.goto(url)
    inspect = page.locator("button:enabled", has_text="Inspect these models")
    inspect.wait_for()
    visit.reached("page", started)
    picture("models")
    click(inspect)
    page.locator("#map .heatmaplayer").first.wait_for()
    merge = page.locator("button:enabled", has_text="Merge these models")
    merge.wait_for()
    visit.reached("map", started)
    picture("inspect")
    click(merge)
    click(page.locator("#merge-default-button:enabled"))
    chat = page.get_by_role("button", name="Chat with it")
    chat.wait_for()
    visit.reached("merged", started)
    picture("merge")
    click(chat)
    click(page.locator("#chat-example-0"))
    page.wait_for_function("document.querySelector('#chat-column-0 .bot')?.innerText.trim()")
    visit.reached("answer", started)
    picture("chat")
    return visit


def take_picture(page: Any, file: Path) -> None:
    """The top of the page once it stands still, in few bytes."""
    from PIL import Image

    page.mouse.move(0, 0)
    page.wait_for_timeout(2500)
    page.evaluate("window.scrollTo(0, 0)")
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    taken.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


@contextmanager
def space() -> Iterator[str]:
    """The address of an app as it runs on a Space without a GPU."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), **SPACE) as url:
        yield url


def visits(count: int, pictures: Path | None = None) -> list[Visit]:
    """So many strangers one after another; after them one for each of `WINDOWS`, with pictures and no clock."""
    from playwright.sync_api import sync_playwright

    strangers = [(WINDOWS["desk"], "")] * count
    if pictures is not None:
        strangers += [(window, f"{pictures}/first-visit-{{}}-{name}.png") for name, window in WINDOWS.items()]
    found = []
    with sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        with space() as url:
            for window, name in strangers:
                page = browser.new_page(reduced_motion="reduce", **window)
                page.set_default_timeout(120_000)
                found.append(walk(page, url, name))
                page.close()
        browser.close()
    return found[:count]


def print_visits(found: Sequence[Visit]) -> None:
    """What was reached after how many seconds by the first visitor, and by the median of those who came later."""
    later = found[1:] or found
    for what in found[0].seconds:
        median = statistics.median(visit.seconds[what] for visit in later)
        print(f"first visit, {what}: {found[0].seconds[what]:.1f} s, later visitors {median:.1f} s")
    usable = statistics.median(visit.seconds["map"] for visit in later)
    answered, clicks = max(visit.seconds["answer"] for visit in found), max(visit.clicks for visit in found)
    for what, came, most in (("usable", usable, USABLE), ("first answer", answered, ANSWERED)):
        print(f"{what} after {came:.1f} s ({'within' if came <= most else 'ABOVE'} the target of {most:g} s)")
    print(f"{clicks} clicks ({'within' if clicks <= CLICKS else 'ABOVE'} the target of {CLICKS})")


def measured_visits(count: int = 3, pictures: Path | None = None) -> list[Visit]:
    """Visits, and what they came to in print; a word and none where there is no browser."""
    if next(filter(None, map(shutil.which, BROWSERS)), None) is None:
        print("first visit: no Chromium here, not measured")
        return []
    found = visits(count, pictures)
    print_visits(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--save", help="write benchmarks/results/NAME.json")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures, of three more visits")
    options = parser.parse_args()
    found = measured_visits(options.visits, options.pictures)
    if options.save and found:
        from benchmarks.run import machine_name  # which prints these visits, too

        content = {"machine": machine_name("cpu"), "visits": [asdict(visit) for visit in found]}
        file = Path(__file__).with_name("results") / f"{options.save}.json"
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
