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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WAIT_S = 240.0  # for a training on a busy machine
VIEW_S = 30.0
COLOURS = 128  # of a picture's palette
EXACT = 24  # of them: the most frequent ones
WIDE, TALL, PHONE = (1440, 900), (1440, 1100), (360, 740)

Theme = Literal["light", "dark"]


class View(NamedTuple):
    """A view to draw.

    Attributes:
        name: that of its pictures.
        place: its address behind `#`, with `{run}` for the run's id.
        sign: a selector of what must be on screen before the picture is taken.
        size: the window's, in pixels; the phone has its own.
        act: what to press or to point at first.
    """

    name: str
    place: str
    sign: str
    size: tuple[int, int] = WIDE
    act: Callable[[Page], None] | None = None


def _focus_a_token(page: Page) -> None:
    """Show the details of the first token in the second turn that the model was not sure of."""
    page.locator("[data-turn]").nth(1).focus()
    probability = page.locator(".token-facts dt:text-is('probability') + dd")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        if probability.inner_text() != "1":
            return


class Stage(NamedTuple):
    """A program that serves the page, and the views that are drawn of it.

    Attributes:
        command: the arguments for Python.
        until: a pattern; the views are drawn once the program has printed it.
        late: whether it starts only after the views of the others are drawn, since it shows the records that they leave.
    """

    command: tuple[str, ...]
    until: str
    views: tuple[View, ...]
    late: bool = False


_TRAIN = "-m rollcast train --task guess --steps 14 --seed 0 --record tokens --out out --serve 127.0.0.1:0 --keep-serving"
STAGES = (
    Stage(
        (str(ROOT / "examples" / "find_the_hung_chain.py"), "--serve", "0"),
        "in a browser",
        (
            View("hung-overview", "/run/{run}/overview", ".look"),
            View("hung-group", "/run/{run}/group/group_0", ".look-sign"),
        ),
    ),
    Stage(
        (str(ROOT / "examples" / "find_the_chain_that_hacked_its_reward.py"), "--serve", "0"),
        r"chain_9 1\.0",
        (
            View("hacked-overview", "/run/{run}/overview", ".look"),
            View("hacked-group", "/run/{run}/group/group_0", ".look-sign"),
            View("hacked-chain", "/run/{run}/chain/chain_5", ".looks-about"),
        ),
    ),
    Stage(
        tuple(_TRAIN.split()),
        r"\ndone: ",
        (
            View("overview", "/run/{run}/overview", ".curve polyline"),
            View("group", "/run/{run}/group/{group}?step=14", ".column .call-line"),
            View("tokens", "/run/{run}/group/{group}/tokens?step=14", ".column .tokens"),
            View("parts", "/run/{run}/group/{group}/parts?step=14", ".tree a"),
            View("chain", "/run/{run}/chain/{chain}?step=14", "[data-turn]", TALL, _focus_a_token),
            View("chains", "/run/{run}/chains?step=14", "main a[href*='/chain/']"),
            View("events", "/run/{run}/events", ".event-row"),
            View("replay", "/run/{run}/overview?at=15&paused=1", ".cell"),
        ),
    ),
    Stage(
        ("-m", "rollcast", "open", "rollcast-runs", "--no-browser"),
        "in a browser",
        (View("runs", "/runs", "tbody tr"),),
        late=True,
    ),
)


@contextmanager
def running(*command: str, folder: Path) -> Iterator[Output]:
    """Run a program with this Python in a folder of its own while the block runs."""
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
        """Wait until the pattern was printed; returns its first match."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{pattern!r} was not printed within {seconds:.0f} s, but:\n{self.text}")
            time.sleep(0.1)
        return found


class Camera:
    """Draws views of one server.

    Attributes:
        failed: a sentence for each view that could not be drawn.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self.failed: list[str] = []
        self._browser = browser
        self._url = url

    def places(self) -> dict[str, str]:
        """The run that a page without one in its address shows, its group whose chains differ most, and that group's worst chain."""
        with self._page(WIDE, "light") as page:
            self._open(page, "")
            group = _seen(page, "main a[data-row][href*='/group/']").get_attribute("href") or ""
            self._open(page, group)
            chain = _seen(page, "a[data-column] >> nth=-1").get_attribute("href") or ""
        return {
            name: found[1]
            for name in ("run", "group", "chain")
            if (found := re.search(rf"/{name}/([^/?]+)", group + chain)) is not None
        }

    def draw(self, views: Sequence[View]) -> None:
        """Draw the views, each in both themes and on a phone."""
        places = self.places() if any("{" in view.place for view in views) else {}
        for view in views:
            try:
                self._draw(view, view.place.format(**places))
            except PlaywrightError as error:
                self.failed.append(f"{view.name}: {error.message.splitlines()[0]}")

    def _draw(self, view: View, place: str) -> None:
        with self._page(view.size, "light") as page:
            self._open(page, place)
            shots: tuple[tuple[str, Theme, tuple[int, int]], ...] = (
                ("", "light", view.size),
                ("-dark", "dark", view.size),
                ("-phone", "light", PHONE),
            )
            for ending, theme, size in shots:
                page.set_viewport_size({"width": size[0], "height": size[1]})
                page.emulate_media(color_scheme=theme)
                _seen(page, view.sign)
                _until_still(page)
                if view.act is not None and not ending:
                    view.act(page)
                page.mouse.move(0, 0)
                page.evaluate("scrollTo(0, 0)")
                page.wait_for_timeout(200)
                path = IMAGES / f"page-{view.name}{ending}.png"
                _save(page.screenshot(), path)
                print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB", flush=True)

    def _open(self, page: Page, place: str) -> None:
        """Open the link, which may have a token behind its `#`, and then go to the place."""
        if not page.url.startswith("http"):
            page.goto(self._url)
            _seen(page, "main h1")
        page.evaluate("place => { location.hash = place; }", place)

    @contextmanager
    def _page(self, size: tuple[int, int], theme: Theme) -> Iterator[Page]:
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def _seen(page: Page, selector: str) -> Locator:
    """Wait for the first such element."""
    found = page.locator(selector).first
    found.wait_for(state="attached", timeout=VIEW_S * 1000)
    return found


def _until_still(page: Page) -> None:
    """Wait until the screen has not changed for half a second, but no longer than five seconds."""
    before, same = "", 0
    for _ in range(20):
        now = page.locator("main").inner_text()
        same = same + 1 if now == before else 0
        if same >= 2:
            return
        before = now
        page.wait_for_timeout(250)


def _save(png: bytes, path: Path) -> None:
    """Write the picture with a palette, which makes it a third as large."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, of_pixel, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    palette = _palette(colours[np.argsort(-counts)].astype(np.int64))
    distances = ((colours[:, None, :].astype(np.int64) - palette[None, :, :]) ** 2).sum(axis=2)
    indices = distances.argmin(axis=1).astype(np.uint8)[of_pixel].reshape(picture.height, picture.width)
    few = Image.fromarray(indices, mode="P")
    few.putpalette(palette.astype(np.uint8).tobytes())
    few.save(path, optimize=True)


def _palette(by_frequency: np.ndarray) -> np.ndarray:
    """At most `COLOURS` distinct colours: the frequent ones exactly, and also rare ones, such as that of a small mark."""
    for least in (1, 8, 12, 16, 24, 32):
        chosen = by_frequency[:1]
        for colour in by_frequency[1:]:
            if len(chosen) > COLOURS:
                break
            if len(chosen) < EXACT or ((chosen - colour) ** 2).sum(axis=1).min() >= least**2:
                chosen = np.vstack([chosen, colour])
        if len(chosen) <= COLOURS:
            return chosen
    return chosen[:COLOURS]


def main() -> int:
    """Make the pictures; the exit code."""
    parser = argparse.ArgumentParser(description="Makes the pictures of the page in docs/images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the views to draw; all if none is named")
    wanted = parser.parse_args().names
    known = [view.name for stage in STAGES for view in stage.views]
    if unknown := set(wanted) - set(known):
        parser.error(f"there is no view {min(unknown)!r}; expected some of: {', '.join(known)}")
    if (chromium := shutil.which("chromium")) is None:
        parser.error("found no chromium; install it: apt-get install chromium")
    failed: list[str] = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder, ExitStack() as programs:
        # Chromium's own sandbox does not work in a container; pages are loaded only from loopback.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stages = [stage for stage in STAGES if not wanted or any(view.name in wanted for view in stage.views)]
        if any(stage.late for stage in stages):
            stages = list(STAGES)

        def begin(stage: Stage) -> Output:
            return programs.enter_context(running(*stage.command, folder=Path(folder)))

        # All start at once: a training takes a while, and so does a chain until it counts as quiet.
        begun = {stage: begin(stage) for stage in stages if not stage.late}
        for stage in stages:
            output = begun[stage] if stage in begun else begin(stage)
            url = output.wait_for(r"in a browser: (http\S+)")[1]
            output.wait_for(stage.until)
            camera = Camera(browser, url)
            camera.draw([view for view in stage.views if not wanted or view.name in wanted])
            failed += camera.failed
        browser.close()
    for sentence in failed:
        print(f"not drawn: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
