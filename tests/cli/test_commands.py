"""Commands start at once: each loads what it needs, and nothing of agents, models or servers that it does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import rollcast
from rollcast.cli.app import app
from rollcast.cli.commands import Commands

COMMANDS = [
    "run",
    "train",
    "watch",
    "hub",
    "proxy",
    "runs",
    "open",
    "show",
    "stats",
    "replay",
    "export",
    "recover",
]
OF_AGENTS = {
    "numpy",
    "tokenizers",
    "jinja2",
    "pydantic",
    "jsonschema",
    "rollcast.rollout",
    "rollcast.tools",
    "rollcast.models",
}
OF_SERVERS = {"websockets", "rollcast.serve", "ssl"}
OF_STREAMS = {"asyncio", "rollcast.stream", "rollcast.observers"}
READS = OF_AGENTS | OF_SERVERS

LOADED = """
import json, sys
sys.argv = ["rollcast", *json.loads(sys.argv[1])]
from rollcast.cli import main
try:
    main()
finally:
    sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""


def loaded_by(*arguments, directory):
    """The modules that a command has loaded when it ends."""
    environment = {"PYTHONPATH": str(Path(rollcast.__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=environment | {"ROLLCAST_RECORDS": str(directory)},
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        ([], READS | OF_STREAMS | {"rich", "msgspec"}),
        (["--version"], READS | OF_STREAMS | {"rich", "msgspec"}),
        (["--help"], READS | OF_STREAMS | {"rich", "msgspec"}),
        *(([name, "--help"], READS | OF_STREAMS | {"rich", "msgspec"}) for name in COMMANDS),
        (["runs"], READS | OF_STREAMS | {"rich.console", "rollcast.archive.reader"}),
        (["runs", "--json"], READS | OF_STREAMS),
        (["show", "latest"], READS | OF_STREAMS | {"rich.console"}),
        (["stats", "latest"], READS | OF_STREAMS | {"rich.console"}),
        (["recover", "latest"], READS | OF_STREAMS | {"rich.console"}),
        (["export", "latest", "--to", "jsonl"], READS | OF_STREAMS),
        (["replay", "latest", "--speed", "max"], OF_AGENTS | {"websockets", "rollcast.serve"}),
        (["open", "nosuch"], OF_AGENTS | {"websockets"}),
        (["watch", "localhost:x"], OF_AGENTS | {"rollcast.archive"}),
    ],
    ids=lambda given: " ".join(given if isinstance(given, list) else sorted(given)),
)
def test_a_command_loads_what_it_needs(arguments, unneeded, recorded):
    """Its start is what people wait for."""
    assert not loaded_by(*arguments, directory=recorded) & unneeded


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with one record."""
    directory = tmp_path_factory.mktemp("records")
    done = CliRunner().invoke(
        app, ["run", "--questions", "1", "--chains", "1", "--seed", "1", "--record-dir", str(directory)]
    )
    assert done.exit_code == 0, done.output
    return directory


def test_the_help_lists_every_command():
    """In the order in which people need them, each with what it does."""
    printed = CliRunner().invoke(app, ["--help"]).stdout
    listed = [line.split()[0] for line in printed.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == COMMANDS


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(["re"], {"replay", "recover"}), (["replay", "--sp"], {"--speed"}), (["nosuch", "--x"], set())],
)
def test_a_shell_completes_commands_and_options(typed, offered):
    """As click documents it, with `_ROLLCAST_COMPLETE`."""
    words = ["rollcast", *typed]
    environment = {
        "_ROLLCAST_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(typed)),
    }
    out = CliRunner().invoke(app, [], prog_name="rollcast", env=environment)
    assert {line.partition(",")[2] for line in out.stdout.split()} == offered


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["runn"], "No such command 'runn'. Did you mean 'run', 'runs'?"),
        (["qqq"], "No such command 'qqq'."),
        (["run", "--questions", "0"], "Invalid value for '--questions': 0 is not in the range x>=1."),
        (["run", "--questions", "x"], "Invalid value for '--questions': 'x' is not a valid integer."),
        (["open", "--port", "70000"], "70000 is not in the range 0<=x<=65535."),
        (["show"], "Missing argument 'RECORD'."),
        (["export", "latest"], "Missing option '--to'"),
        (["runs", "--nosuch"], "No such option"),
        (["runs", "extra"], "unexpected extra argument"),
    ],
)
def test_a_command_that_cannot_be_understood_is_refused_in_a_sentence(arguments, sentence):
    """With exit code 2."""
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, sentence in done.output) == (2, True), done.output


def test_ctrl_c_ends_a_command_with_the_code_of_the_shell():
    """130, whatever click does about it."""
    assert CliRunner().invoke(commands_that(KeyboardInterrupt()), ["fail"]).exit_code == 130


def test_a_reader_that_has_gone_is_left_to_the_program():
    """Click would end it with 1, and take the output away."""
    done = CliRunner().invoke(commands_that(BrokenPipeError(32, "Broken pipe")), ["fail"])
    assert isinstance(done.exception, BrokenPipeError)


def commands_that(error):
    """A program whose one command fails with this."""
    group = Commands(name="program")

    @group.add
    def fail() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    "package", ["rollcast", "rollcast.archive", "rollcast.observers", "rollcast.records", "rollcast.terminal"]
)
def test_a_lazy_package_has_the_names_that_it_lists(package):
    """`dir()` shows them before they are loaded, each can be had, and no other."""
    code = (
        "import importlib, json, sys; package = importlib.import_module(sys.argv[1]); listed = dir(package);"
        "[getattr(package, name) for name in listed];"
        "print(json.dumps([listed, sorted(package.__all__), hasattr(package, 'nosuch')]))"
    )
    environment = {"PYTHONPATH": str(Path(rollcast.__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code, package],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env=environment,
    )
    listed, public, other = json.loads(done.stdout)
    assert (listed, other) == (public, False)


def test_every_option_is_of_a_type_that_commands_know():
    """Each command can be built, and its options are what its function takes."""
    context = click.Context(app)
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        assert all(
            param.help for param in command.params if isinstance(param, click.Option) and param.name != "help"
        )
