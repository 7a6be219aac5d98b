"""However a program ends, it ends, and leaves no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from .conftest import OPTIONS

PROGRAM = """
import asyncio, sys
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.vllm import AsyncVLLMBackend

def main():
    backend = AsyncVLLMBackend({model!r}, **{options!r})

    async def generate():
        request = GenerationRequest("one", [{{"role": "user", "content": "Hello."}}], [], Sampling(max_tokens={tokens}))
        while True:
            async for _ in backend.generate(request):
                print("token", flush=True)
            if {tokens} < 10:
                break

    asyncio.run(generate())

{guard}
    main()
"""


def start(tmp_path, model, *, tokens=4, guard='if __name__ == "__main__":'):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(model=str(model), options=OPTIONS, tokens=tokens, guard=guard))
    source = Path(__file__).parents[4] / "src"
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_token(program):
    for line in program.stdout:
        if line == "token\n":
            return
    raise AssertionError(program.stderr.read())


def nothing_is_left(program, children):
    """Every process that it started has ended."""
    _, alive = psutil.wait_procs(children, timeout=30)
    return not alive


def test_a_backend_that_nobody_closed(tmp_path, model):
    """The program ends by itself, with next to nothing on its output but its own."""
    program = start(tmp_path, model)
    wait_for_a_token(program)
    children = psutil.Process(program.pid).children(recursive=True)
    assert children
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert nothing_is_left(program, children)
    assert set(output.split()) <= {"token"}
    # torch and vLLM complain about Triton before anybody can configure their logs.
    assert not [line for line in errors.splitlines() if "Triton" not in line]


def test_an_interrupt_while_tokens_come(tmp_path, model):
    """As Ctrl-C does, it reaches every process of the terminal at once."""
    program = start(tmp_path, model, tokens=500)
    wait_for_a_token(program)
    children = psutil.Process(program.pid).children(recursive=True)
    os.killpg(program.pid, signal.SIGINT)
    program.communicate(timeout=60)
    assert program.returncode != 0
    assert nothing_is_left(program, children)


def test_a_program_that_is_killed(tmp_path, model):
    """The engine's process notices that nobody is there any more."""
    program = start(tmp_path, model, tokens=500)
    wait_for_a_token(program)
    children = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.communicate(timeout=60)
    assert nothing_is_left(program, children)


def test_a_script_without_a_guard_is_told(tmp_path, model):
    """The engine's process imports the script, which must not begin again."""
    program = start(tmp_path, model, guard="if True:")
    _, errors = program.communicate(timeout=120)
    assert program.returncode != 0
    assert "__main__" in errors
