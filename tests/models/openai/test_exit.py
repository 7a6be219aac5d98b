"""A program that leaves its backend open."""

import subprocess
import sys

PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on Python says that a fork with threads is dangerous
from rollcast import BaseAgent
from rollcast.models.openai import OpenAIBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing import OpenAIServer, ServedAnswer

server = OpenAIServer([
    ServedAnswer(["a"], token_ids=[[5]], logprobs=[[0.0]]),
    ServedAnswer(["3", ""], token_ids=[[27], [2]], logprobs=[[-0.5]] * 2),
]).__enter__()
backend = OpenAIBackend("scripted", base_url=server.url, tokenizer=CHECKPOINT)
agent = BaseAgent("m", backend=backend)
question = [{"role": "user", "content": "hi"}]
for _ in range(2):  # each run has an event loop of its own
    (chain,) = agent.run(1, question)
    assert chain.error is None, chain.error
sys.stdout.flush()
child = os.fork()
if child == 0:
    (chain,) = agent.run(1, question)
    print(chain.error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("end")
"""


def test_it_ends_without_a_word_and_a_forked_child_is_told():
    """Connections and threads end with the interpreter; in a child that was forked there is no thread, and nothing hangs."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    told, end = done.stdout.splitlines()
    assert "was made in the process that this one was forked from" in told
    assert end == "end"
