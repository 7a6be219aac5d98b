"""What `rollcast train` is made of: its settings, its record, its panel, its curves, the chains that it shows."""

import asyncio
import dataclasses
import io
import json

import pytest

from rollcast import BaseAgent, InputError
from rollcast.cli.train.curves import draw, plot_rows
from rollcast.cli.train.folder import claimed, folder_for, history_in, keep_settings
from rollcast.cli.train.record import Record, clock_text, sparkline
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.cli.train.shown import ShownChains
from rollcast.cli.train.summary import say_end
from rollcast.cli.train.view import TrainView
from rollcast.terminal.layout import ASCII, UNICODE
from rollcast.testing import ScriptedBackend
from rollcast.train import Evaluation, Progress, TrainResult
from rollcast.train.checkpoint import sole_writer


def evaluation(sampled=0.5, greedy=0.5, held_out=True):
    return Evaluation(sampled, greedy, 128, held_out)


def step(i, reward=0.5, evaluated=None):
    metrics = {
        "mean_reward": reward,
        "success": reward,
        "flat_groups": 5,
        "kept_groups": 11,
        "tokens_per_s": 2310.0,
    }
    return Progress(i, i, float(i), metrics if i else {}, evaluated)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "train.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_the_line_wins_over_the_file(config):
    """And what neither says has its default."""
    file = config('task = "arithmetic"\nsteps = 5\nlr = 1\neval-every = 3\nshow = 0\n')
    settings = merged({"lr": 0.5, "group": None}, file)
    assert (settings.lr, settings.steps, settings.eval_every, settings.show) == (0.5, 5, 3, 0)
    assert settings.trainer == "embedded"
    assert merged({}, None).minutes == 1.0


def test_an_end_on_the_line_replaces_the_other_one_of_the_file(config):
    """Steps and minutes are two ways to say one thing."""
    settings = merged({"minutes": 2.0}, config("steps = 5\n"))
    assert (settings.steps, settings.minutes) == (None, 2.0)


def test_what_the_trainer_gets_has_the_trainers_names():
    """And nothing that was not said."""
    assert merged({"steps": 3, "lr": 0.1, "seed": 4}, None).trainer_options == {
        "steps": 3,
        "learning_rate": 0.1,
        "seed": 4,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step = 5", "has the key 'step', which is not an option; did you mean 'steps'?"),
        ("eval_evry = 5", "did you mean 'eval-every'?"),
        ("zzzz = 5", "the options are: task, agent"),
        ('steps = "ten"', "steps is 'ten'; expected a whole number"),
        ("steps = 1.5", "steps is 1.5; expected a whole number"),
        ('lr = "x"', "lr is 'x'; expected a number"),
        ("task = 3", "task is 3; expected text in quotes"),
        ("resume = 1", "resume is 1; expected true or false"),
        ("steps = 5\nminutes = 1", "steps and minutes are both given"),
        ("eval-every = 5\neval_every = 1", "'eval_every' twice"),
        ("steps =", "is not TOML"),
        ('trainer = "other"', "trainer is 'other'; expected embedded or trl"),
        ("show = -1", "show is -1"),
        ('out = "a\\u0000b"', "expected text without a null character"),
    ],
)
def test_a_wrong_file_is_one_sentence(config, text, says):
    """With the closest name where one is misspelt."""
    with pytest.raises(InputError) as caught:
        merged({}, config(text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told():
    """By its path."""
    with pytest.raises(InputError, match=r"--config cannot be read: .* \(nowhere.toml\)"):
        merged({}, "nowhere.toml")


# -- the folder --------------------------------------------------------------------------------------------------------


def test_without_out_each_training_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Nothing is ever written into an earlier one, nor into that of a training that begins at the same time."""
    monkeypatch.chdir(tmp_path)
    settings = merged({}, None)
    out = folder_for(settings)
    with claimed(settings, out) as first, claimed(settings, out) as second:
        assert (str(first), str(second)) == ("rollcast-train-arithmetic", "rollcast-train-arithmetic-2")
        (first / "step-000000").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["rollcast-train-arithmetic"]


def test_a_folder_where_nothing_came_of_it_is_as_it_was(tmp_path):
    """What was asked for is there from the beginning, and goes where no training follows; so the folder may be had again."""
    settings = TrainSettings(out=str(tmp_path / "o"), group=4)
    with claimed(settings, tmp_path / "o") as out:
        assert merged({}, str(out / "train.toml")).group == 4
        assert folder_for(settings) == out  # as after SIGKILL at this moment
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_training_writes_to_is_refused(tmp_path):
    """While it does; what that one was asked for stays as it is."""
    pytest.importorskip("fcntl", reason="where folders can be locked")
    out = tmp_path / "o"
    with sole_writer(out):
        (out / "train.toml").write_text("steps = 1")
        with pytest.raises(InputError, match="another training is writing to"):
            claimed(TrainSettings(out=str(out)), out).__enter__()
    assert (out / "train.toml").read_text() == "steps = 1"


@pytest.mark.parametrize(("trainer", "kept"), [("trl", "step-000001"), ("embedded", "checkpoint-1")])
def test_a_training_goes_on_with_its_trainer(tmp_path, trainer, kept):
    """The other one would find no checkpoint of its own."""
    (tmp_path / kept).mkdir()
    with pytest.raises(InputError, match="was made with --trainer"):
        folder_for(TrainSettings(out=str(tmp_path), resume=True, trainer=trainer))


def test_a_model_is_kept_as_the_place_where_it_is(tmp_path, monkeypatch):
    """A training may be gone on with from another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    keep_settings(TrainSettings(model="m"), tmp_path)
    assert merged({}, "train.toml").model == str(tmp_path / "m")
    keep_settings(TrainSettings(model="Qwen/Qwen3-0.6B"), tmp_path)
    assert merged({}, "train.toml").model == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("out", "resume", "says"),
    [
        ("full", False, "is not empty; go on with it with --resume"),
        ("file", False, "is a file"),
        ("file/x", False, "is a file, or is in one"),
        ("x" * 300, False, "cannot be used: File name too long"),
        ("", False, "--out is empty"),
        ("new", True, "there is no training in"),
        ("empty", True, "there is no training in"),
        (None, True, "--resume was given without --out"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, out, resume, says):
    """Before anything is trained."""
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file").touch()
    settings = TrainSettings(out=out and str(tmp_path / out), resume=resume)
    with pytest.raises(InputError, match=says):
        folder_for(settings)


def test_what_was_asked_for_is_kept_with_the_training(tmp_path):
    """As a file that --config reads too; what belongs to one session, and the secret, is not in it."""
    settings = merged(
        {"steps": 7, "lr": 0.001, "task": "arithmetic", "token": "secret", "show": 2, "out": "x"}, None
    )
    keep_settings(settings, tmp_path)
    kept = merged({}, str(tmp_path / "train.toml"))
    assert kept == merged({"steps": 7, "lr": 0.001, "task": "arithmetic"}, None)


def test_the_history_of_a_training_is_found_in_its_folder(tmp_path):
    """Of its newest checkpoint; a folder without one, or with another file there, has none."""
    assert history_in(tmp_path) == []
    for i in (1, 2):
        folder = tmp_path / f"step-{i:06d}"
        folder.mkdir()
        history = [{"step": n, "policy_version": n, "seconds": 1.0, "metrics": {}} for n in range(i + 1)]
        (folder / "trainer.json").write_text(json.dumps({"history": history}))
    assert [p.step for p in history_in(tmp_path)] == [0, 1, 2]
    (folder / "trainer.json").write_text("[]")
    assert history_in(tmp_path) == []


# -- the record --------------------------------------------------------------------------------------------------------


def test_the_time_left_follows_from_the_last_steps():
    """By steps, from how long they took; by minutes, from what is used up."""
    record = Record(10, None, 0.0)
    assert record.left_s(0.0) is None
    for i in range(4):
        record.take(step(i), 2.0 * i)
    assert record.left_s(6.0) == pytest.approx(14.0)
    assert record.left_s(7.0) == pytest.approx(13.0)
    assert record.left_s(60.0) == 0.0
    record = Record(None, 1.0, 0.0)
    for i in range(4):
        record.take(step(i), 2.0 * i)
    assert record.left_s(6.0) == pytest.approx(57.0)


def test_a_sparkline_has_the_scale_of_rewards():
    """0 to 1 where the values allow it, else from the least to the greatest; neighbours are averaged."""
    assert sparkline([0, 0.5, 1], 10) == "▁▅█"
    assert sparkline([0.5] * 100, 10) == "▅" * 10
    assert sparkline([-5, 5], 10) == "▁█"
    assert sparkline([3, 3], 10) in {"▄▄", "▅▅"}
    assert sparkline([0, 1], 10, ascii_only=True) == "_@"
    assert sparkline([], 10) == sparkline([1], 0) == ""


def test_times_are_read_as_clocks():
    """Hours where there are any."""
    assert [clock_text(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


# -- the panel ---------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def show(view, progress):
    view.show(progress, view._clock())


def view_on(terminal, steps=60, minutes=None, **options):
    clock = Clock()
    view = TrainView(terminal, Record(steps, minutes, 0.0), "tiny on sums", clock=clock, **options)
    return view, clock


def test_the_panel_says_how_training_goes(make_terminal):
    """Step, time, reward with its sparkline, evaluations from the first to the last, speed, version, flat groups."""
    terminal = make_terminal()
    view, clock = view_on(terminal)
    with view:
        assert "first, how good it is now" in terminal.rows[-3]
        show(view, step(0, evaluated=evaluation(0.55, 0.51)))
        clock.now = 31.0
        for i in range(1, 24):
            show(view, step(i, i / 23, evaluation(0.91, 0.51) if i == 20 else None))
        rows = terminal.rows[-5:]
        assert rows[0].startswith("── train tiny on sums ──")
        assert rows[1][2:].startswith("step 23 of 60 · 0:31 · about ")
        assert rows[2] == "reward      1.00  ▁▂▂▂▃▃▃▃▄▄▄▅▅▅▆▆▆▆▇▇▇██"
        assert rows[3] == "held-out    sampled 0.55 → 0.91 ↑   greedy 0.51 → 0.51 =   after step 20"
        assert rows[4] == "2,310 tokens/s · policy 23 · 5 of 16 groups without variance"


def test_nothing_of_the_panel_is_left(make_terminal):
    """What stays are the evaluations, as lines."""
    terminal = make_terminal()
    view, _ = view_on(terminal)
    with view:
        show(view, step(0, evaluated=evaluation()))
        show(view, step(1))
    assert terminal.rows == ["◆ before training, 128 held-out questions: sampled 0.50, greedy 0.50"]


@pytest.mark.parametrize(("columns", "lines"), [(30, 24), (20, 10), (80, 8), (80, 5), (44, 3), (200, 60)])
def test_the_panel_fits_any_terminal(make_terminal, columns, lines):
    """No row is wrapped, and there is room above it."""
    terminal = make_terminal(columns, lines)
    view, _ = view_on(terminal)
    view.shown = ["chain_0", "chain_1", "chain_2"]
    with view:
        show(view, step(0, evaluated=evaluation()))
        show(view, step(1, evaluated=evaluation()))
        view.say([("a line", "")])
        at = terminal.rows.index("a line")
        below = terminal.rows[at + 1 :]
        assert len(below) <= lines - 1
        assert any("step 1" in row for row in below)
        assert all(len(row) < columns for row in below)
    assert terminal.rows[-1] == "a line"


@pytest.mark.parametrize(
    ("failed", "says"), [(0, ""), (1, "1 chain without a reward"), (3, "3 chains without")]
)
def test_chains_without_a_reward_are_told(make_terminal, failed, says):
    """In the panel and in the lines; they are left out of what is learned."""
    told = dataclasses.replace(step(1), metrics=step(1).metrics | {"failed": float(failed)})
    terminal, lines = make_terminal(), io.StringIO()
    view, _ = view_on(terminal)
    with view:
        view.show(told, 0.0)
        assert any(says in row for row in terminal.rows)
        assert ("without a reward" in "".join(terminal.rows)) == bool(failed)
    plain, _ = view_on(lines)
    plain.show(told, 0.0)
    assert says in lines.getvalue()


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    """The training is over and saved by then: it is no failure."""
    pytest.importorskip("matplotlib")
    record = rising()
    (tmp_path / "curves.png").mkdir()
    result = TrainResult("", record.history, evaluation(), evaluation(), tmp_path, "steps")
    lines = io.StringIO()
    view, _ = view_on(lines)
    say_end(view, "a title", TrainSettings(steps=1), result, tmp_path, picture=True)
    assert "curves.png cannot be written: Is a directory" in lines.getvalue()


def test_a_title_is_not_read_as_a_formula(tmp_path):
    """A model's path may have dollar signs."""
    pytest.importorskip("matplotlib")
    draw(rising(), r"$\nonsense{$ on arithmetic", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


async def test_each_shown_chain_keeps_its_row(make_terminal):
    """Also while it writes nothing, so that the panel stays where it is."""
    terminal = make_terminal()
    view, _ = view_on(terminal)
    agent = BaseAgent(backend=ScriptedBackend("Four."))
    shown = ShownChains(agent.streaming_manager, 2, terminal, color=None)
    view.shown = shown.chains
    async with agent:
        with view:
            before = len(terminal.rows) - terminal.rows.index("chain_0 │")
            await agent.run_async(1, [{"role": "user", "content": "2 + 2?"}], 4, enable_streaming=True)
            assert len(terminal.rows) - terminal.rows.index("chain_0 │") == before
            assert "chain_1 │ Four." in terminal.rows
            assert not any("chain_2" in row for row in terminal.rows)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_the_environment_is_honoured(make_terminal, monkeypatch, environment):
    """A dumb terminal gets lines; without colours the panel stays and has no style."""
    terminal = make_terminal()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    view, _ = view_on(terminal)
    with view:
        show(view, step(0, evaluated=evaluation()))
        show(view, step(1))
    written = terminal.getvalue()
    if "TERM" in environment:
        assert "\x1b" not in written
        assert terminal.rows[-2].startswith("step 1 of 60 · mean reward 0.50")
    else:
        assert "m" not in {sequence[-1:] for sequence in written.split("\x1b[")[1:]}


def test_a_pipe_gets_a_line_a_step_and_one_an_evaluation():
    """Without control codes, however wide."""
    pipe = io.StringIO()
    view, clock = view_on(pipe, steps=None, minutes=1.0)
    with view:
        show(view, step(0, evaluated=evaluation(0.55, 0.51)))
        clock.now = 61.0
        show(view, step(1, 0.25, evaluation(0.75, 1.0, held_out=False)))
        view.show_note("finishing this step")
    assert pipe.getvalue().splitlines() == [
        "◆ before training, 128 held-out questions: sampled 0.55, greedy 0.51",
        "step 1 · mean reward 0.25 · success 0.25 · 2,310 tokens/s · policy 1 · flat groups 5/16 · 1:01",
        "◆ after step 1, 128 questions: sampled 0.75, greedy 1.00",
        "finishing this step",
    ]


def test_an_output_without_the_signs_gets_plain_ones(make_terminal):
    """As the console does."""
    terminal = make_terminal()
    terminal.encoding = "ascii"
    view, _ = view_on(terminal)
    with view:
        show(view, step(0, evaluated=evaluation(0.1, 0.9)))
        show(view, step(1, evaluated=evaluation(0.9, 0.1)))
        assert "\n".join(terminal.rows).isascii()
        assert "sampled 0.10 -> 0.90 up   greedy 0.90 -> 0.10 down" in terminal.rows[-2]


def test_a_title_is_not_obeyed(make_terminal):
    """A folder's name may hold anything."""
    terminal = make_terminal()
    view = TrainView(terminal, Record(1, None, 0.0), "\x1b[2Jon sums")
    with view:
        assert any("\\x1b[2Jon sums" in row for row in terminal.rows)


# -- the chains that are shown -----------------------------------------------------------------------------------------


async def test_the_chunks_of_unwatched_chains_are_never_built(make_terminal):
    """Of eight chains one is shown; of a step that is too soon after it, none."""
    clock = Clock()
    agent = BaseAgent(backend=ScriptedBackend("one two three four"))
    manager = agent.streaming_manager
    shown = ShownChains(manager, 1, make_terminal(), color=None, clock=clock)

    async def rollout():
        before = manager.totals().emitted
        await agent.run_async(1, [{"role": "user", "content": "Count."}], 8, enable_streaming=True)
        return {
            kind: n - before.get(kind, 0)
            for kind, n in manager.totals().emitted.items()
            if n > before.get(kind, 0)
        }

    async with agent:
        first = await rollout()
        assert first["run_start"] == first["chain_start"] == first["llm_generation_end"] == 1
        of_one_chain = first["llm_generation_chunk"]
        clock.now = 1.0
        shown.next_step()
        assert await rollout() == {}
        clock.now = 3.0
        shown.next_step()
        assert (await rollout())["llm_generation_chunk"] == of_one_chain


async def test_where_no_chain_is_shown_nobody_watches():
    """Not even an observer is added."""
    agent = BaseAgent(backend=ScriptedBackend("x"))
    shown = ShownChains(agent.streaming_manager, 0, io.StringIO(), color=None)
    shown.next_step()
    assert agent.streaming_manager.observers == []
    await asyncio.sleep(0)


# -- the curves --------------------------------------------------------------------------------------------------------


def rising():
    record = Record(None, None, 0.0)
    for i in range(41):
        record.take(step(i, i / 40, evaluation(i / 40, 1.0) if i % 10 == 0 else None), None)
    return record


def test_the_curves_are_drawn_as_text():
    """A mark where the value is; the axis goes from 0 to the last step."""
    rows = ["".join(text for text, _ in row) for row in plot_rows(rising(), 50, UNICODE)]
    assert rows[0].startswith(" 1.00 ┤▲")
    assert rows[8].startswith(" 0.00 ┤o")
    assert rows[-2].split() == ["0", "step", "40"]
    assert "mean reward" in rows[-1]
    assert max(map(len, rows)) <= 60
    plain = ["".join(text for text, _ in row) for row in plot_rows(rising(), 50, ASCII)]
    assert "".join(plain).isascii()
    assert plot_rows(Record(None, None, 0.0), 50, UNICODE) == []


def test_the_curves_are_drawn_as_a_picture(tmp_path):
    """A PNG, with matplotlib."""
    pytest.importorskip("matplotlib")
    draw(rising(), "a title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
