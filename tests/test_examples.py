"""Each example runs as a program of its own and prints what it promises."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rollcast

ROOT = Path(__file__).parents[1]
OF_TRL = {"attach_trl", "train_with_trl"}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What must be found in each example's output. The embedded model's words are not pinned: training it anew changes them.
PRINTS = {
    "attach_trl": [
        r"chain_7: reward [01]\.0, '.+'\n",
        r"step 2: reward [01]\.\d\d\n",
    ],
    "callback": [r"chain_0 turn 1 '.+'", r"chain_1 turn 1 '.+'"],
    "custom_observer": [r"calculator \(success\): \d+ calls, median \d+\.\d\d ms"],
    "custom_tool_and_reward": [
        r"group_0 Compute 449 \+ 89\.\n  chain_0: reward \d\.\d, ",
        r"-> 538\n",
        r"-> error: this calculator cannot multiply\n",
        r"mean reward 0\.\d+",
    ],
    "find_the_chain_that_hacked_its_reward": [
        r"^1 of 9 chains with a reward of 1 or more gave an answer without the reference, such as “The answer is 7\.” instead of “391”\n",
        r"chain_4 1\.0 calculator The answer is 391\.\nchain_5 1\.0 write_file The answer is 7\.\n",
    ],
    "find_the_hung_chain": [
        r"^chain_5 is waiting for the tool “open_page” and has sent nothing for \d+ s; the median call of this run took \d+ ms\n",
        r"chain_4 answered\nchain_5 cancelled\nchain_6 answered\n",
    ],
    "gymnasium_env": [
        r'chain_0 │ I guess 7\nchain_0 │ → step\(\{"action": 7\}\)\nchain_0 │ ← higher',
        r"chain_0 │ ★ reward 0\.7",
        r"chain_0 terminal_tool 0\.7 \['I guess 7', 'I guess 11', 'I guess 13'\]\n",
    ],
    "jsonl_log": [r"^\d+ events\n", r"chain_0 [01]\.0 '.+'", r"chain_2 [01]\.0 '.+'"],
    "langgraph_agent": [
        r"chain_1 │ I will compute it\.\n",
        r'chain_2 │ → multiply\(\{"a": 12, "b": 34\}\)\n',
        r"chain_1 │ ← 408",
        r"chain_2 │ The answer is 408\n",
        r"chain_1 │ ■ answered · 2 steps · 4 tokens",
        r"chain_0 │ ■ answered · 0 steps",
    ],
    "openai_loop": [
        r"chain_0 │ Let me see\.\n",
        r"chain_1 │ → calculator\(\{\"expression\": \"12 \* 34\"\}\)\n",
        r"chain_1 │ ← 408",
        r"chain_0 │ ■ answered · 2 steps · 6 tokens",
        r"chain_0 answered 1\.0 The answer is 408\.\nchain_1 answered 1\.0 The answer is 408\.\n$",
    ],
    "on_ray": [
        r"chain_0 on \S+-\d+: \S.*\n",
        r"chain_3 on \S+-\d+: \S.*\n",
        r"mean reward [01]\.\d\d, the same as without Ray\n$",
    ],
    "own_backend": [r"user: What is 6 \* 7\?", r"tool: 42\nassistant: The answer is 42\.\nreward 1\.0\n$"],
    "own_loop": [
        r"chain_0 │ 17 \+ 25 makes 42\.\n",
        r"chain_1 │ ← correct",
        r"chain_0 answered 1\.0 4 tokens\nchain_1 answered 1\.0 4 tokens\n$",
    ],
    "ten_lines": [r"chain_3 │ ▸ What is 12 \* 34\?", r"★ reward [01]\.0", r"chain_3 answered [01]\.0 .+\n$"],
    "train_with_trl": [
        r"step 1: reward [01]\.\d\d, loss [+-]\d\.\d+\n",
        r"step 3: reward [01]\.\d\d, loss ",
        r"trained for 3 steps\n$",
    ],
    "two_processes": [
        r"^left run_start \nleft chain_end chain_[01]\nleft chain_end chain_[01]\nleft run_end \nright run_start \n",
        r"\[\('left', 10\), \('right', 10\)\]\n$",
    ],
    "watch_one_chain": [
        r"^chain_5 │ ▸ Calculate 4 \* 521\.\n",
        r"chain_5 │ ■ ",
        r"8 chains ran, mean reward \d\.\d+\n$",
    ],
}
SLOW = {
    "find_the_hung_chain",
    "on_ray",
}  # a chain must be quiet for twelve seconds; a cluster takes as long to start


def test_every_example_is_run():
    """An example without an expectation here would not be."""
    assert {path.stem for path in EXAMPLES} == set(PRINTS)


class ChatCompletions(BaseHTTPRequestHandler):
    """A server of the chat completions API, whose model asks the calculator for 12 * 34 and says what it hears."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        assert body["stream"]
        assert body["tools"][0]["function"]["name"] == "calculator"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        last = body["messages"][-1]
        if last["role"] == "tool":
            deltas, reason = (
                [{"content": piece} for piece in ("The answer", " is ", last["content"], ".")],
                "stop",
            )
        else:
            asked = {
                "id": f"id_{id(body)}",
                "type": "function",
                "function": {"name": "calculator", "arguments": ""},
            }
            pieces = ('{"expression": ', '"12 * ', '34"}')
            deltas = [{"content": "Let me "}, {"content": "see."}, {"tool_calls": [{"index": 0, **asked}]}]
            deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
            reason = "tool_calls"
        self.say(body["model"], {"role": "assistant", "content": ""})
        for delta in deltas:
            self.say(body["model"], delta)
        self.say(body["model"], {}, reason)
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, model, delta, finish_reason=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        about = {"id": "0", "object": "chat.completion.chunk", "created": 0, "model": model}
        self.wfile.write(f"data: {json.dumps({**about, 'choices': [choice]})}\n\n".encode())

    def log_message(self, *about):
        """Say nothing."""


@contextlib.contextmanager
def served():
    """The base URL of such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatCompletions)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example(path, tmp_path):
    """It ends well, warns of nothing and prints what it promises. No example looks further than this machine."""
    if path.stem == "on_ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    with contextlib.ExitStack() as stack:
        base_url = stack.enter_context(served()) if path.stem == "openai_loop" else ""
        done = run_example(path, tmp_path, base_url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for pattern in PRINTS[path.stem]:
        assert re.search(pattern, done.stdout), f"{pattern!r} is not in:\n{done.stdout}"
    assert list(tmp_path.iterdir()) == []


def run_example(path, tmp_path, base_url):
    environment = os.environ | {
        "PYTHONPATH": str(Path(rollcast.__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
        # TRL 1.16 uses names that transformers 5.23 is about to give up.
        "PYTHONWARNINGS": "error,ignore::FutureWarning" if path.stem in OF_TRL else "error",
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
        "NO_PROXY": "127.0.0.1",
        "LANGSMITH_TRACING": "false",
    }
    return subprocess.run(
        [sys.executable, path],
        capture_output=True,
        encoding="utf-8",
        timeout=500,
        cwd=tmp_path,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_on_a_screen(path):
    """At most sixty lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_nobody_else_is_watched():
    """`watch_one_chain` prints lines of one chain only."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/watch_one_chain.py"],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert {line.split()[0] for line in done.stdout.splitlines() if "│" in line} == {"chain_5"}
