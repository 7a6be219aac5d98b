"""Replays in a browser: what the page shows of a moment of a record, and how one gets there; gaps, and what was missed."""

import re
import time

import pytest

from page.browser import audit, needs_chromium, see, there_are, they_say, until
from page.staged_records import APART_S, guessing, in_a_thread, made, recorded
from page.staged_runs import StagedRuns
from rollcast.archive import ArchiveObserver
from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve import ServerSettings, WebSocketStreamingServer

pytestmark = needs_chromium


@pytest.fixture
def opened(tmp_path):
    """Serves records, as `rollcast open` does; gives the address of the page."""
    servers = []

    def serve(path):
        settings = ServerSettings(close_s=0.5)
        server = in_a_thread(lambda: WebSocketStreamingServer("127.0.0.1", 0, record=path, settings=settings))
        in_a_thread(server.start_thread)
        servers.append(server)
        return f"http://127.0.0.1:{server.port}/"

    yield serve
    for server in servers:
        in_a_thread(server.stop_thread)


def place_of(events, kind, chain="", step=None):
    """When the event comes, in seconds from the run's start."""
    found = next(
        at
        for at, e in enumerate(events)
        if (e.event_type, e.chain_id) == (kind, chain) and step in (None, e.step)
    )
    return found * APART_S


def address_of(page):
    return page.evaluate("location.hash")


def test_the_wall_the_group_and_the_chain_are_as_they_were(opened, tab, tmp_path):
    """At a moment in the middle nothing of what came later is shown, and everything that came before is."""
    path, events = recorded(tmp_path / "r", chains=3)
    url = opened(path)
    at = place_of(events, "llm_generation_chunk", "chain_1", 2) + 1  # chain_1 writes its second guess
    page = tab().open(f"{url}#/run/guessing?at={at}&paused=1")
    see(page, ".status", f"Replaying {int(at // 60)}:{at % 60:04.1f}")
    see(page, ".question .cell.generating")
    cells = "[...document.querySelectorAll('.question .cell')].map((cell) => cell.className).join()"
    until(page, f"{cells} === 'cell waiting,cell generating,cell waiting'")
    see(page, ".figure", "3 of 3 running")
    see(page, ".question").click()
    see(page, ".column .say", "guess")
    until(page, "document.querySelectorAll('.column .call-line').length === 4")
    assert page.locator(".column", has_text="Found it").count() == 0
    they_say(page.locator(".reward"), ["…", "…", "…"])
    see(page, "[data-column]", "chain_0").click()
    see(page, ".transcript .call", "guess(number=12)")
    see(page, ".transcript", "Waiting to generate")
    see(page, ".who", "2 tokens")  # of the turns before the moment, too
    assert "at=" in address_of(page)
    assert page.locator(".tokens", has_text="Found it").count() == 0
    there_are(1, page.locator("dd", has_text="not yet"))


def test_the_slider_seeks_and_back_returns(opened, tab, tmp_path):
    """By its keys; the address has the place, and *back* goes to the one before."""
    path, events = recorded(tmp_path / "r")
    at = place_of(events, "chain_end", "chain_0") + 1
    page = tab().open(f"{opened(path)}#/run/guessing/group/group_0?at=5&paused=1")
    see(page, ".replay-bar output", "0:05.0 / ")
    slider = page.get_by_role("slider", name="Time of the run")
    slider.evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input', {bubbles: true})); slider.dispatchEvent(new Event('change', {bubbles: true})); }",
        at,
    )
    see(page, ".column .reward", "1.00")
    assert f"at={at:g}" in address_of(page)
    they_say(page.locator(".reward"), ["1.00", "…"])
    page.go_back()
    see(page, ".replay-bar output", "0:05.0 / ")
    until(page, "[...document.querySelectorAll('.reward')].every((each) => each.textContent === '…')")
    slider.focus()
    page.keyboard.press("ArrowRight")
    see(page, ".replay-bar output", "0:05.1 / ")
    page.locator("main").focus()
    page.keyboard.press("]")
    see(page, ".replay-bar output", "0:10.1 / ")
    page.keyboard.press("[")
    see(page, ".replay-bar output", "0:05.1 / ")


def test_a_replay_plays_pauses_and_comes_to_its_end(opened, tab, tmp_path):
    """Faster at a greater speed; at the end it stops, and can be seen again."""
    path, events = recorded(tmp_path / "r")
    page = tab().open(f"{opened(path)}#/run/guessing/group/group_0?at=0&speed=4")
    see(page, ".replay-bar button", "Pause")
    see(page, ".column .call-line")
    page.keyboard.press("p")
    see(page, ".replay-bar button", "Play")
    assert "paused=1" in address_of(page)
    shown = page.locator(".replay-bar output").inner_text()
    page.wait_for_timeout(400)
    assert page.locator(".replay-bar output").inner_text() == shown
    page.get_by_role("button", name="max").click()
    until(page, "location.hash.includes('speed=max')")
    page.keyboard.press("p")
    see(page, ".replay-bar button", "Again")
    see(page, ".column.best .reward", "1.00")
    they_say(page.locator(".reward"), ["1.00", "0.50"])
    end = (len(events) - 1) * APART_S
    see(page, ".replay-bar output", f"{int(end // 60)}:{end % 60:04.1f} / {int(end // 60)}:{end % 60:04.1f}")
    page.get_by_role("button", name="1×").click()
    see(page, ".replay-bar button", "Again").click()
    see(page, ".replay-bar button", "Pause")
    until(page, "location.hash.includes('at=0&') && !location.hash.includes('paused')")
    until(page, "![...document.querySelectorAll('.reward')].some((each) => each.textContent === '1.00')")


def test_tokens_pass_from_the_snapshot_on(opened, tab, tmp_path):
    """A generation that was open at the place goes on where it was, in one text node, with the ids of its first tokens."""
    path, events = recorded(tmp_path / "r")
    at = place_of(events, "llm_generation_chunk", "chain_0", 3) + 1
    page = tab().open(f"{opened(path)}#/run/guessing/chain/chain_0?at={at}&speed=4&paused=1")
    see(page, ".tokens", "Found")
    assert page.locator(".tokens", has_text="Found it").count() == 0
    page.keyboard.press("p")
    see(page, ".tokens", "Found it, says 0.")
    see(page, ".who", "4 tokens")


def test_events_are_those_that_have_passed(opened, tab, tmp_path):
    """The list begins at the place and grows as the replay goes on."""
    path, events = recorded(tmp_path / "r")
    at = place_of(events, "reward", "chain_0") - 1
    page = tab().open(f"{opened(path)}#/run/guessing/events?at={at}&speed=16&paused=1")
    see(page, ".replay-bar")
    assert page.locator(".event-row").count() == 0
    page.keyboard.press("p")
    see(page, ".event-row", "run_end")
    assert page.locator(".event-row").first.inner_text().split()[1] == "reward"


class RecordedStage(StagedRuns):
    """A stage whose runs leave a record at `path`."""

    def __init__(self, path, level="tokens"):
        self._record = (path, level)
        super().__init__()

    async def _open(self, *given):
        await super()._open(*given)
        path, level = self._record
        self.record = ArchiveObserver(path, level=level, masker=False)
        self.manager.add_observer(self.record)

    def relay(self, events):
        async def relayed():
            for event in events:
                self.manager.relay(event)
            await self.manager.drain()
            await self.record.recorded()

        self.call(relayed())

    def relay_past_the_server(self, events, gap):
        """The record is given these events, and the server the gap in their place."""
        broadcaster = self.server._broadcaster
        take, lost = broadcaster.take, {event.seq for event in events}
        broadcaster.take = lambda given: take([each for each in given if each.seq not in lost])
        self.relay(events)
        broadcaster.take = take

        async def told():
            take([gap])

        self.call(told())


@pytest.fixture
def recorded_stage(tmp_path):
    """Makes stages whose runs leave a record."""
    stages = []

    def make(**options):
        stages.append(RecordedStage(tmp_path / "live", **options))
        return stages[-1]

    yield make
    for each in stages:
        each.close()


def test_a_run_that_goes_on_is_rewound_and_returned_to(recorded_stage, tab):
    """The past is shown, then what happens now, with what came meanwhile."""
    stage = recorded_stage()
    events = made(guessing(start=time.time() - 3600))
    cut = next(at for at, e in enumerate(events) if e.event_type == "reward")
    stage.relay(events[:cut])
    page = tab().open(f"{stage.url}#/run/guessing/group/group_0")
    see(page, ".column .say", "Found it, says 0.")
    see(page, ".status", "Live")
    page.keyboard.press("v")
    see(page, ".status", "Replaying")
    page.evaluate("location.hash = '#/run/guessing/group/group_0?at=31&paused=1'")
    until(page, "document.querySelectorAll('.column .call-line').length === 2")
    assert page.locator(".column", has_text="Found it").count() == 0
    stage.relay(events[cut:])
    page.keyboard.press("v")
    see(page, ".column.best .reward", "1.00")
    until(page, "document.querySelector('.replay-bar') === null")
    until(
        page,
        "[...document.querySelectorAll('.column .say')].filter((e) => e.textContent.includes('Found')).length === 2",
    )
    assert "at=" not in address_of(page)


def test_a_chain_that_is_joined_late_has_its_earlier_turns_from_the_record(recorded_stage, tab):
    """With their tokens, although it goes on."""
    stage = recorded_stage()
    events = made(guessing(start=time.time() - 3600))
    stage.relay(events[: next(at for at, e in enumerate(events) if e.event_type == "reward")])
    page = tab().open(f"{stage.url}#/run/guessing/chain/chain_0")
    see(page, ".tokens", "guess 8.")
    see(page, ".tokens", "guess 12.")
    until(
        page,
        "[...document.querySelectorAll('.who span')].filter((e) => e.textContent === '2 tokens').length === 2",
    )


@pytest.mark.parametrize("level", ["tokens", None])
def test_a_gap_stands_where_it_is_and_is_loaded_from_the_record(recorded_stage, stage, tab, level):
    """Between the turns; without a record it says what is missing and that there is nothing to load it from."""
    play = stage if level is None else recorded_stage(level=level)
    events = made(guessing(start=time.time() - 3600, chains=1))
    second = next(at for at, e in enumerate(events) if e.event_type == "llm_generation_start" and e.step == 2)
    third = next(at for at, e in enumerate(events) if e.event_type == "llm_generation_start" and e.step == 3)
    end = next(at for at, e in enumerate(events) if e.event_type == "reward")

    def relay(some):
        async def relayed():
            for event in some:
                play.manager.relay(event)

        play.call(relayed())

    relay(events[:1])
    page = tab().open(f"{play.url}#/run/guessing/chain/chain_0")
    see(page, ".empty")
    see(page, ".status", "Live")
    until(page, "document.querySelector('.foot b').textContent.includes('1 chain')")
    while play.server.statistics().subscriptions < 2:  # those of the runs and of the chain
        page.wait_for_timeout(20)
    relay(events[1:second])
    see(page, ".transcript .call", "guess(number=8)")
    lost = events[second:third]
    gap = StreamEvent(
        StreamEventType.GAP,
        "",
        events[third - 1].timestamp,
        {
            "from_seq": lost[0].seq,
            "to_seq": lost[-1].seq,
            "dropped": {"llm_generation_chunk": 2},
            "reason": "it was told to be",
        },
        seq=lost[-1].seq,
        run_id="guessing",
    )
    if level is None:
        relay([gap])
    else:
        play.relay_past_the_server(lost, gap)
    relay(events[third:end])
    see(page, ".tokens", "Found it, says 0.")
    blocks = [" ".join(text.split()) for text in page.locator(".transcript .block").all_inner_texts()]
    at = next(i for i, text in enumerate(blocks) if "2 × llm_generation_chunk missing here" in text)
    assert "guess(number=8)" in blocks[at - 1]
    assert "Found it" in blocks[at + 1]
    if level is None:
        assert "there is no record to read them from" in blocks[at]
        assert page.get_by_role("button", name="Load").count() == 0
        return
    page.get_by_role("button", name="Load").click()
    see(page, ".transcript .call", "guess(number=12)")
    see(page, ".tokens", "guess 12.")
    there_are(0, page.locator(".block.gap"))
    see(page, ".tokens", "Found it, says 0.")


def test_a_gap_in_the_list_of_events_is_loaded_from_the_record(recorded_stage, tab):
    """What is missing comes in the gap's place, between what came before and behind it."""
    stage = recorded_stage()
    events = made(guessing(start=time.time() - 3600, chains=1))
    kinds = [event.event_type for event in events]
    lost = events[kinds.index("tool_call_start") : kinds.index("tool_call_end")]
    stage.relay(events[: kinds.index("tool_call_start")])
    page = tab().open(f"{stage.url}#/run/guessing/events")
    see(page, ".status", "Live")
    while stage.server.statistics().subscriptions < 2:  # those of the runs and of the list
        page.wait_for_timeout(20)
    gap = {
        "from_seq": lost[0].seq,
        "to_seq": lost[-1].seq,
        "dropped": {},
        "reason": "it was told to be",
    }
    at = lost[-1]
    stage.relay_past_the_server(
        lost, StreamEvent(StreamEventType.GAP, "", at.timestamp, gap, seq=at.seq, run_id="guessing")
    )
    see(page, ".event-row", "events are missing")
    assert page.locator(".event-row", has_text="tool_observation").count() == 0
    page.get_by_role("button", name="Load").click()
    see(page, ".event-row", "guess → higher")
    there_are(0, page.locator(".event-row .type", has_text=re.compile("^gap$")))
    shown = page.locator(".event-row .type").all_inner_texts()
    assert [kind for kind in shown if kind.startswith("tool")] == ["tool_call_start", "tool_observation"]
    stage.relay(events[kinds.index("tool_call_end") :])
    see(page, ".event-row", "run_end")
    assert "Replaying" not in page.locator(".status").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_nothing_in_a_replay(opened, tab, tmp_path, theme, width):
    """In the bar, on a phone and on a desk."""
    path, events = recorded(tmp_path / "r")
    at = place_of(events, "chain_end", "chain_0") + 1
    page = tab(width=width, theme=theme).open(f"{opened(path)}#/run/guessing?at={at}&paused=1")
    see(page, ".question .cell.generating, .question .cell.waiting")
    audit(page, "overview of a replay")
    see(page, ".question").click()
    see(page, ".columns .call-line")
    audit(page, "group of a replay")


# -- a folder of records -----------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path):
    """A folder of three records; one of them is damaged."""
    for number, name in enumerate(("early", "late")):
        recorded(
            tmp_path / name,
            run_id=f"run-{name}",
            name=name,
            chains=2 + number,
            start=1_790_000_000.0 + 1e5 * number,
        )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    return tmp_path


def test_a_folder_lists_its_records_and_each_can_be_read(records, opened, tab):
    """The newest first, with figures; a damaged one says so and leads nowhere."""
    page = tab().open(opened(records))
    see(page, "h1", "Runs")
    see(page, ".runs tbody tr", "broken")
    see(page, "p", "3 records in this folder")
    see(page, ".runs tbody tr", "0.61")
    see(page, ".runs tbody tr", "0.75")
    shown = [text.split("\t") for text in page.locator(".runs tbody tr").all_inner_texts()]
    found = {row[0].split()[0]: row for row in shown}
    assert found["late"][1] == "completed"
    assert found["late"][5:] == ["3", "0", "0.61"]
    assert found["early"][5:] == ["2", "0", "0.75"]
    assert "damaged" in found["broken"][1]
    there_are(2, page.locator(".runs a"))
    see(page, ".runs a", "early").click()
    see(page, ".question .mean", "0.75")
    see(page, ".question").click()
    see(page, ".column.best .reward", "1.00")
    page.keyboard.press("v")
    see(page, ".status", "Replaying 0:0")
    page.keyboard.press("v")
    page.keyboard.press("r")
    see(page, ".runs a", "late").click()
    see(page, ".question .mean", "0.61")
    see(page, ".question").click()
    see(page, ".column .call-line", "guess(12)")
    there_are(4, page.locator(".column"))  # with that of the turns' numbers


def test_a_link_leads_into_a_record_of_the_folder(records, opened, tab):
    """To a chain of it, to a moment of it; and what is in no record is said."""
    url = opened(records)
    page = tab().open(f"{url}#/run/run-early/chain/chain_1")
    see(page, ".transcript .call", "guess(number=12)")
    see(page, ".tokens", "Found it, says 1.")
    page = tab().open(f"{url}#/run/run-late/group/group_0?at=31&paused=1")
    see(page, ".column .call-line", "guess(8)")
    see(page, ".status", "Replaying 0:31.0")
    assert page.locator(".column", has_text="Found it").count() == 0
    page = tab().open(f"{url}#/run/gone")
    see(page, ".notice", "has the run 'gone'")


def test_axe_finds_nothing_in_the_list_of_records(records, opened, tab):
    """On a phone and on a desk."""
    url = opened(records)
    for width, theme in ((360, "dark"), (1440, "light")):
        page = tab(width=width, theme=theme).open(url)
        see(page, ".runs a", "early")
        audit(page, "records")
