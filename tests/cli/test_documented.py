"""The commands of docs/cli.md that show records, typed one after the other as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver
from rollcast.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
SERVES = "open"  # until Ctrl-C; test_open.py calls it


def commands():
    """Those of the block under "Records"."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Records\n")[2]
    (block,) = re.findall(r"```bash\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words[1:] for words in lines if words[1] != SERVES]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The current folder has the record of a training named guess: step 30, of eight chains in two groups."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCAST_RECORDS", raising=False)
    manager = StreamingManager()
    manager.add_observer(
        ArchiveObserver("rollcast-runs/20261128-1532-guess-3f2a", name="guess", masker=False)
    )
    with (
        manager.run(chains=0, groups=0, run_id="training"),
        manager.run(parent_run_id="training", train_step=30, split="train", chains=8, groups=2) as run,
    ):
        for number in range(8):
            with run.chain([{"role": "user", "content": "Guess."}], group_id=f"group_{number // 4}") as chain:
                with chain.generation() as generation:
                    generation.chunk("seven", token_ids=[7], logprobs=[-0.5])
                chain.reward(number / 8)
    manager.close()


def test_the_page_has_commands_for_records():
    """Were the block moved, nothing would be typed below."""
    assert {words[0] for words in commands()} == {"runs", "show", "stats", "replay", "export", "recover"}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_documented_command_works_as_written(words):
    """It ends well, and says something."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
