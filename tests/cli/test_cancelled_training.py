"""What a training does when somebody cancels its rollout, or the training itself, over the network."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest

from rollcast.archive import Archive
from rollcast.errors import RefusedError
from rollcast.serve import WebSocketStreamingClient

pytestmark = pytest.mark.slow


def served(log):
    """The address and the token that the command printed."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = re.search(r"http://(localhost:\d+)/#token=(\S+)", log.read_text())
        if found:
            return found[1], found[2]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("what", ["rollout", "training"])
async def test_it_ends_with_one_sentence_and_a_whole_record(tmp_path, what):
    """Exit code 0, no traceback, a checkpoint to go on from, and a record in which every run has its end."""
    command = [
        sys.executable, "-m", "rollcast", "train", "--task", "guess", "--steps", "500", "--serve", "0",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = os.environ | {"ROLLCAST_RECORDS": str(tmp_path / "records")}
    log = tmp_path / "said"
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=tmp_path) as process,  # noqa: ASYNC220  (a process is begun in a moment)
    ):
        try:
            place, token = served(log)
            async with WebSocketStreamingClient(f"ws://{place}", token=token, since="live") as client:
                async for event in client:
                    if event.event_type == "train_step" and event.data["train_step"] >= 2:
                        training = event.run_id
                        break
                async for event in client:
                    if event.event_type == "run_start" and event.data.get("split") == "train":
                        run = event.run_id
                        with contextlib.suppress(RefusedError):  # it may be over before this is read
                            await client.cancel(run if what == "rollout" else training)
                            if what == "training":
                                break
                    elif (event.event_type, event.data.get("status")) == ("run_end", "cancelled"):
                        break
            assert process.wait(300) == 0
        finally:
            process.kill()
    text = log.read_text()
    assert "Traceback" not in text
    sentence = {
        "rollout": r"a watcher cancelled the rollout of step \d+, and the training ends with it",
        "training": r"a watcher cancelled the training, which ends after the step it was in",
    }[what]
    assert len(re.findall(sentence, " ".join(text.split()))) == 1, text
    assert "train --resume" in text
    (record,) = [path for path in (tmp_path / "records").iterdir() if path.is_dir()]
    archive = Archive.open(record)
    ends = {}
    began = set()
    for event in archive.events():
        if event.event_type == "run_start":
            began.add(event.run_id)
        elif event.event_type == "run_end":
            ends[event.run_id] = event.data["status"]
    assert set(ends) == began
    assert ends[training] == "cancelled"
    assert (ends[run] == "cancelled") == (what == "rollout")
    assert archive.state == "ended"
