"""The pages are true: what they show runs, what they name exists, and their links lead somewhere.

Every ```python block of a page is run, in order, in one namespace, in an empty folder; `await` may stand at the top level.
A ```text output block after one says what it printed, where `...` stands for anything.
"""

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, get_origin, get_type_hints

import click
import pytest
from click.testing import CliRunner

import rollcast
from rollcast.proxy import Proxy
from rollcast.records import PAYLOADS
from rollcast.testing import ScriptedBackend

ROOT = Path(__file__).parents[1]
LOADED = (
    rollcast.BaseAgent,
    Proxy,
)  # before the event loop of a page runs: an import lists folders, which blocks it
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Reference pages whose snippets are single lines, about an agent that is there already.
AGENT_GIVEN = {"docs/console.md", "docs/jsonl.md"}
CHECKPOINT = Path(rollcast.__file__).parent / "models/tiny/checkpoint"
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block: its info string, its text, and the line of the page on which the text begins."""

    info: str
    text: str
    line: int


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def blocks_of(path):
    page = path.read_text(encoding="utf-8")
    return [
        Block(m["info"].strip(), m["body"], page.count("\n", 0, m.start("body")) + 1)
        for m in FENCE.finditer(page)
    ]


def has(path, info):
    return any(block.info == info for block in blocks_of(path))


def run_block(block, path, namespace, runner):
    """Run it; what it printed. Its lines have the page's numbers in a traceback."""
    source = "\n" * (block.line - 1) + block.text
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, page_id(path), "exec", flags=flags, dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(code, namespace))
        else:
            exec(code, namespace)
    return printed.getvalue()


@pytest.mark.parametrize("path", [p for p in PAGES if has(p, "python")], ids=page_id)
def test_what_a_page_shows_runs(path, tmp_path, monkeypatch):
    """And prints what the page says."""
    if page_id(path) == "docs/ray.md":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCAST_RECORDS")  # records go where the page says
    namespace = {"__name__": "page"}
    if page_id(path) == "docs/tiny-model.md":
        shutil.copytree(CHECKPOINT, tmp_path / "my/folder")
    if page_id(path) in AGENT_GIVEN:
        namespace |= vars(rollcast) | {name: getattr(rollcast, name) for name in rollcast.__all__}
        namespace["agent"] = rollcast.BaseAgent(backend=ScriptedBackend())
    printed = None
    with logging_as_it_was(), asyncio.Runner() as runner:
        for block in blocks_of(path):
            if block.info == "python":
                printed = run_block(block, path, namespace, runner)
            elif block.info == "text output":
                place = f"{page_id(path)}:{block.line}"
                assert printed is not None, f"{place} is the output of nothing"
                same = doctest.OutputChecker().check_output(block.text, printed, doctest.ELLIPSIS)
                assert same, f"{place} says\n{block.text}\nand printed was\n{printed}"


@contextlib.contextmanager
def logging_as_it_was():
    """A page may set it up, and the tests after it are to know nothing of that."""
    loggers = [logging.getLogger(), logging.getLogger("rollcast")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    try:
        yield
    finally:
        for logger, (level, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.handlers[:] = handlers


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_fences_have_a_known_language(path):
    """A misspelt one would not be run."""
    known = {"", "python", "text", "text output", "bash", "json", "mermaid", "toml"}
    unknown = [
        f"{page_id(path)}:{block.line}: {block.info!r}"
        for block in blocks_of(path)
        if block.info not in known
    ]
    assert not unknown, unknown


def commands():
    """The lines of every bash block, as (page, words)."""
    for path in PAGES:
        for block in blocks_of(path):
            if block.info == "bash":
                text = block.text.replace("\\\n", " ")
                for line in text.splitlines():
                    words = shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)
                    if words:
                        yield pytest.param(words, id=f"{page_id(path)}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist(words, monkeypatch):
    """`rollcast …` takes these options, `make …` has this target."""
    program, *arguments = words
    if program == "rollcast":
        from rollcast.cli import app as cli

        for command in ("run", "watch", "hub", "proxy"):
            monkeypatch.setattr(f"rollcast.cli.{command}.{command}_command", lambda options: 0)
        monkeypatch.setattr("rollcast.cli.recover.recover_command", lambda directory, word, force: 0)
        monkeypatch.setattr("rollcast.cli.stats.stats_command", lambda directory, word, json, color: 0)
        monkeypatch.setattr("rollcast.cli.open_record.open_command", lambda directory, options: 0)
        for command in ("show", "replay", "export"):
            monkeypatch.setattr(f"rollcast.cli.{command}.{command}_command", lambda directory, options: 0)
        monkeypatch.setattr("rollcast.cli.train.command.train_command", lambda line, config: 0)
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in arguments:
            if "=" not in target:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    else:
        assert program in {"git", "pip", "python", "NO_COLOR=1", "tmux", "jq", "zstd", "duckdb", "curl"}, (
            f"{program} is not known here"
        )


def inline_commands(path):
    """The commands in the running text, as (command, options)."""
    text = FENCE.sub("", path.read_text(encoding="utf-8")).replace("\n", " ")
    for line in re.findall(r"`rollcast ([^`]*)`", text):
        name, *words = line.partition(" | ")[0].split()
        if not name.startswith("-"):
            yield name, [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_in_the_text_exist(path):
    """The command, and each of the options that stand behind it."""
    from rollcast.cli.app import app

    context = click.Context(app)
    commands = {name: app.get_command(context, name) for name in app.list_commands(context)}
    known = {name: {o for p in command.params for o in p.opts} for name, command in commands.items()}
    wrong = [
        f"rollcast {name} {option}"
        for name, options in inline_commands(path)
        for option in ["", *options]
        if name not in known or (option and option not in known[name])
    ]
    assert not wrong, f"{page_id(path)}: {wrong}"


def without_code(page):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page))


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    """Relative links, to pages and to headings."""
    page = without_code(path.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken, f"{page_id(path)}: {broken}"


def test_the_index_lists_every_page():
    """A page that nobody links is not read."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    missing = [
        p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index
    ]
    assert not missing, missing


def tables(path):
    """The rows of the page's tables, as lists of cells."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_events_page_has_the_payloads():
    """Each type has a row with its fields and no other; the optional ones are in italics."""
    rows = {cells[0].strip("`"): cells[1] for cells in tables(ROOT / "docs/events.md") if len(cells) == 3}
    for event_type, payload in PAYLOADS.items():
        hints = get_type_hints(payload, include_extras=True)
        optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
        cell = rows[event_type.value]
        assert set(re.findall(r"(?<!\*)`(\w+)`", cell)) == set(hints) - optional, event_type
        assert set(re.findall(r"\*`(\w+)`\*", cell)) == optional, event_type


def test_the_events_page_has_the_fields():
    """The event's own fields, in their order."""
    page = ROOT / "docs/events.md"
    fields = rollcast.StreamEvent.__struct_fields__
    named = [cells[0].strip("`") for cells in tables(page) if cells[0].strip("`") in fields]
    assert tuple(named) == fields


@pytest.mark.parametrize(("command", "page"), [("run", "cli"), ("train", "train-command"), ("hub", "hub")])
def test_the_command_line_pages_have_every_option(command, page):
    """What `--help` lists, the page explains, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "rollcast", command, "--help"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={"PYTHONPATH": str(Path(rollcast.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"},
    )
    offered = set(re.findall(r"^ +(--[a-z-]+)", done.stdout, flags=re.MULTILINE)) - {"--help"}
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(--[a-z-]+)", text, flags=re.MULTILINE))
    assert explained == offered


def test_the_page_of_the_command_line_has_every_option_of_watch():
    """It is told in a paragraph."""
    from rollcast.cli.app import app

    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    told = text[text.index("## Watching another program") : text.index("## An agent of your own")]
    watch = app.get_command(click.Context(app), "watch")
    options = {name for option in watch.params for name in option.opts}
    missing = [name for name in options if name.startswith("--") and f"`{name}" not in told]
    assert not missing, missing


def test_the_exceptions_are_explained():
    """The page of errors shows the tree that the code has."""
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    from rollcast import errors

    missing = [name for name in errors.__all__ if name not in page]
    assert not missing, missing


def test_the_version_is_one():
    """The changelog begins with the version of the package, which is the one that is built."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (first, *_) = re.findall(r"^## \[?([0-9.]+)\]?", changelog, flags=re.MULTILINE)
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert first == rollcast.__version__ == built


def test_the_readme_is_short():
    """One minute of reading."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_promise_of_security_names_tests_that_are_there():
    """Each row of its tables has one, and a test that was renamed or removed is noticed."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    named = [re.findall(r"`(tests/[^`]+\.py)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 15
    assert all(named), [row for row, tests in zip(rows, named, strict=True) if not tests]
    missing = [
        f"{path}::{name}"
        for path, name in {test for tests in named for test in tests}
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing
