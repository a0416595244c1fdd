"""How long it takes from a moved slider to the picture, in the real app in headless Chromium.

    python -m benchmarks.slider [--moves 25]

A mouse drags the density of TIES over the demo family. Each move is timed from the slider's `input` event to the animation
frame after map and bars were both drawn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.browser.conftest import BROWSERS, served

TARGET = 200
"""Milliseconds within which a picture should follow on the demo family."""
REST = 250
"""Milliseconds between two moves."""
WATCH = """() => {
  window.drawn = [];
  let move = null;
  const finish = (part) => () => {
    if (!move) return;
    move[part] = true;
    if (move.map && move.bars) requestAnimationFrame(() => {
      if (!move) return;
      window.drawn.push(performance.now() - move.start);
      move = null;
    });
  };
  for (const part of ['map', 'bars']) {
    document.querySelector(`#preview-${part} .chart-plot`).on('plotly_afterplot', finish(part));
  }
  document.addEventListener('input', (event) => {
    if (event.target.type === 'range' && !move) move = {start: performance.now()};
  }, true);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=25)
    print_latency(parser.parse_args().moves)


def print_latency(moves: int = 25) -> None:
    """Measure, and print median, extremes and the share within the target; a word where there is no browser."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        print("slider to picture: no Chromium here, not measured")
        return
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        found = sorted(_drag(url, chromium, moves))
    within = sum(one <= TARGET for one in found) / len(found)
    print(
        f"slider to picture, TIES on the demo, {len(found)} moves: median {statistics.median(found):.0f} ms, best "
        f"{found[0]:.0f}, worst {found[-1]:.0f}; {within:.0%} within {TARGET} ms"
    )


def _drag(url: str, chromium: str, moves: int) -> list[float]:
    """Milliseconds of every move."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page: Any = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("tab", name="3 Merge").click()
        page.locator("#preview-map .has-figure").wait_for()
        page.locator("#preview-bars .has-figure").wait_for()
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
        slider = page.locator("#merge-density-1 input[type=range]")
        slider.scroll_into_view_if_needed()
        box, chance = slider.bounding_box(), random.Random(1)
        height = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * float(slider.input_value()), height)
        page.mouse.down()
        for _ in range(moves):
            before = page.evaluate("window.drawn.length")
            page.mouse.move(box["x"] + box["width"] * (0.1 + 0.8 * chance.random()), height)
            page.wait_for_function("before => window.drawn.length > before", arg=before)
            page.wait_for_timeout(REST)
        page.mouse.up()
        found: list[float] = page.evaluate("window.drawn")
        browser.close()
    return found


if __name__ == "__main__":
    main()
