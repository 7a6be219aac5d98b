"""Makes the pictures of the page in docs/images: `python -m scripts.make_page_pictures [NAME …]`, from the root of the repository.

Each picture is made from a real run: a training on `guess` of 14 steps, and the two examples that docs/find-it.md asks about. Every view
is drawn 1440 pixels wide in the light and in the dark theme (`page-NAME.png`, `page-NAME-dark.png`), and 360 wide
(`page-NAME-phone.png`). With names, only those views are drawn anew. It needs Playwright, Pillow and Debian's Chromium, and
takes about two minutes.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WAIT_S = 120.0
COLOURS = 128  # of a picture's palette
WIDE, TALL, PHONE = (1440, 900), (1440, 1100), (360, 740)


class View(NamedTuple):
    """A view to draw.

    Attributes:
        name: of its pictures.
        place: its address behind `#`, with `{run}` for the run's id.
        sign: a selector of what must be seen before the picture is taken.
        size: of the window, wide; the phone has its own.
        act: what to press or to point at before.
    """

    name: str
    place: str
    sign: str
    size: tuple[int, int] = WIDE
    act: Callable[[Page], None] | None = None


def _focus_a_token(page: Page) -> None:
    """Show the facts of one token: the first that the model was not sure of."""
    page.locator("[data-turn]").nth(1).focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")


OF_TRAINING = (
    View("overview", "/run/{run}/overview", ".curve path"),
    View("group", "/run/{run}/group/{group}?step=14", ".column .call-line"),
    View("tokens", "/run/{run}/group/{group}/tokens?step=14", ".column [data-turn]"),
    View("parts", "/run/{run}/group/{group}/parts?step=14", ".parts a"),
    View("chain", "/run/{run}/chain/{chain}?step=14", "[data-turn]", TALL, _focus_a_token),
    View("chains", "/run/{run}/chains?step=14", "main a"),
    View("events", "/run/{run}/events", ".event"),
    View("runs", "/runs", "tbody tr"),
)
OF_HUNG = (
    View("hung-overview", "/run/{run}/overview", ".look"),
    View("hung-group", "/run/{run}/group/group_0", ".column .call-line"),
)
OF_HACKED = (
    View("hacked-overview", "/run/{run}/overview", ".look"),
    View("hacked-group", "/run/{run}/group/group_0", ".column .call-line"),
    View("hacked-chain", "/run/{run}/chain/chain_5", "[data-turn]"),
)


@contextmanager
def running(*command: str, folder: Path) -> Iterator[Output]:
    """A program of this Python while the block runs, in a folder of its own."""
    process = subprocess.Popen(  # noqa: S603  (this Python, with options of this file)
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    output = Output(process)
    try:
        yield output
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


class Output:
    """What a program prints, read by a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line

    def wait_for(self, pattern: str, seconds: float = WAIT_S) -> re.Match[str]:
        """The first match of the pattern."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{pattern!r} was not printed within {seconds:.0f} s, but:\n{self.text}")
            time.sleep(0.1)
        return found


class Camera:
    """Draws views of one server.

    Args:
        wanted: names of views; empty: all.
    """

    def __init__(self, browser: Browser, url: str, wanted: list[str]) -> None:
        self._browser = browser
        self._url = url
        self._wanted = wanted

    def run_id(self) -> str:
        """The run that a page without one in its address shows."""
        with self._page(WIDE, "light") as page:
            page.goto(self._url)
            link = page.locator("main a[href*='/run/']").first
            link.wait_for(state="attached", timeout=WAIT_S * 1000)
            found = re.search(r"/run/([^/?]+)", link.get_attribute("href") or "")
            assert found is not None
            return found[1]

    def draw(self, views: tuple[View, ...], **names: str) -> None:
        """Draw the views, each in both themes and on a phone."""
        for view in views:
            if self._wanted and view.name not in self._wanted:
                continue
            for ending, theme, size in (
                ("", "light", view.size),
                ("-dark", "dark", view.size),
                ("-phone", "light", PHONE),
            ):
                self._draw(
                    view, view.place.format(**names), IMAGES / f"page-{view.name}{ending}.png", theme, size
                )

    def _draw(self, view: View, place: str, path: Path, theme: Any, size: tuple[int, int]) -> None:
        with self._page(size, theme) as page:
            page.goto(f"{self._url}#{place}")
            page.locator(view.sign).first.wait_for(state="attached", timeout=WAIT_S * 1000)
            _until_still(page)
            if view.act is not None:
                view.act(page)
            page.wait_for_timeout(200)
            _save(page.screenshot(), path)
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB", flush=True)

    @contextmanager
    def _page(self, size: tuple[int, int], theme: Any) -> Iterator[Page]:
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def _until_still(page: Page) -> None:
    """Wait until what is on screen has been the same for half a second, or for five seconds if something always changes."""
    before, same = "", 0
    for _ in range(20):
        now = page.locator("main").inner_text()
        same = same + 1 if now == before else 0
        if same >= 2:
            return
        before = now
        page.wait_for_timeout(250)


def _save(png: bytes, path: Path) -> None:
    """Write the picture with a palette, which is a third of its size."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # Unlike the other methods, this one keeps rare colours, such as those of a sign.
    few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def of_training(browser: Browser, wanted: list[str], folder: Path) -> None:
    """The views of a training that has ended."""
    options = ("--task", "guess", "--steps", "14", "--seed", "0", "--record", "tokens", "--out", "out")
    command = ("-m", "rollcast", "train", *options, "--serve", "127.0.0.1:0", "--keep-serving")
    with running(*command, folder=folder) as output:
        url = output.wait_for(r"in a browser: (http\S+)")[1]
        output.wait_for(r"\ndone: ", 2 * WAIT_S)
        camera = Camera(browser, url, wanted)
        camera.draw(OF_TRAINING, run=camera.run_id(), group="group_0", chain="chain_0")


def of_example(browser: Browser, wanted: list[str], folder: Path, name: str, views: tuple[View, ...]) -> None:
    """The views of an example while it serves."""
    if wanted and not any(view.name in wanted for view in views):
        return
    with running(str(ROOT / "examples" / f"{name}.py"), "--serve", "0", folder=folder) as output:
        url = output.wait_for(r"in a browser: (http\S+)")[1]
        camera = Camera(browser, url, wanted)
        camera.draw(views, run=camera.run_id())


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description="Makes the pictures of the page in docs/images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the views to draw; all if none is named")
    wanted = parser.parse_args().names
    known = [view.name for view in (*OF_TRAINING, *OF_HUNG, *OF_HACKED)]
    if unknown := set(wanted) - set(known):
        parser.error(f"there is no view {min(unknown)!r}; expected some of: {', '.join(known)}")
    if (chromium := shutil.which("chromium")) is None:
        parser.error("found no chromium; install it: apt-get install chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        # A container has no sandbox of its own for it; the pages are loaded from loopback alone.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        of_example(browser, wanted, Path(folder), "find_the_hung_chain", OF_HUNG)
        of_example(browser, wanted, Path(folder), "find_the_chain_that_hacked_its_reward", OF_HACKED)
        if not wanted or any(view.name in wanted for view in OF_TRAINING):
            of_training(browser, wanted, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
