"""What the suite found, as a table in a page."""

import re
from pathlib import Path

import pytest

from conformance_subjects import scripted
from rollcast.errors import InputError
from rollcast.models import BaseBackend, Delta
from rollcast.testing.conformance import CHECKS, BackendUnderTest, NotApplicable, run_checks
from rollcast.testing.conformance.__main__ import main
from rollcast.testing.conformance.report import BEGIN, END, read_table, table, update_page

FACTS = ["It | stands.", "It runs."]
COLUMNS = {
    "one": {FACTS[0]: "yes", FACTS[1]: "n/a: it | sits"},
    "two": {FACTS[0]: "n/a: it | sits", FACTS[1]: "yes"},
}
PAGE = f"before\n{BEGIN}\n{END}\nafter\n"


class TextBackend(BaseBackend):
    """Says three words."""

    async def generate(self, request):
        for word in ("one ", "two ", "three"):
            yield Delta(word)
        yield Delta("", finish_reason="stop")


def only(name):
    return [check for check in CHECKS if check.name == name]


def test_a_table_reads_back_as_it_was_written():
    """Bars and repeated reasons, too."""
    page = update_page(PAGE, COLUMNS, FACTS)
    assert read_table(page) == COLUMNS
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert page.count("1. it | sits") == 1


def test_writing_a_column_leaves_the_others():
    """One backend is run at a time."""
    page = update_page(update_page(PAGE, {"one": COLUMNS["one"]}, FACTS), {"two": COLUMNS["two"]}, FACTS)
    assert read_table(page) == COLUMNS
    assert update_page(page, {}, FACTS) == page


def test_a_page_without_a_place_is_refused():
    """Nothing is put where nobody expects it."""
    with pytest.raises(InputError, match="no place for the table"):
        update_page("a page", COLUMNS, FACTS)


def test_a_fact_that_was_not_asked_is_a_question_mark():
    """A check that is new was not passed."""
    assert "| It runs. | ? |" in table({"one": {}}, FACTS)


async def test_a_text_backend_runs_through_the_suite():
    """What is about ids does not apply, and says so; what is about text does."""
    subject = BackendUnderTest(name="text", make=TextBackend, cannot={"sampling": "it always says the same"})
    found = {outcome.check.name: str(outcome) for outcome in await run_checks(subject, CHECKS)}
    assert found["ids-and-logprobs-align"] == "n/a: it takes and gives text, not ids"
    assert found["seeds-differ"] == "n/a: it always says the same"
    assert found["a-dead-engine-hangs-nobody"] == "n/a: `kill` is not given"
    assert found["cancel-ends-it"] == "n/a: no greedy generation goes on for 300 tokens"
    for name in (
        "the-last-delta-has-the-reason",
        "text-comes-in-pieces",
        "many-at-once-get-their-own",
        "an-agent-runs-on-it",
    ):
        assert found[name] == "yes"
    assert not [text for text in found.values() if text.startswith("no")]


async def test_the_scripted_backend_keeps_what_applies_to_it(tmp_path):
    """And nothing fails."""
    found = {outcome.check.name: str(outcome) for outcome in await run_checks(scripted(tmp_path), CHECKS)}
    assert not {name: text for name, text in found.items() if text.startswith("no")}
    assert sum(text == "yes" for text in found.values()) >= 15


async def test_a_check_that_does_not_apply_is_a_skip():
    """It passes for nobody by accident."""
    (check,) = only("ids-and-logprobs-align")
    with pytest.raises(NotApplicable, match="not ids"):
        await check(BackendUnderTest(name="text", make=TextBackend))


async def test_what_hangs_is_told():
    """By the check's name and its limit."""

    class Hanging(TextBackend):
        async def generate(self, request):
            import asyncio

            await asyncio.Event().wait()
            yield Delta("")

    (check,) = only("the-last-delta-has-the-reason")
    with pytest.raises(AssertionError, match=r"did not end within 0\.05 s"):
        await check(BackendUnderTest(name="text", make=Hanging, timeout_s=0.05))


@pytest.mark.parametrize(
    ("cannot", "sentence"),
    [({"fly": "no wings"}, "expected one of: cancel"), ({"seed": ""}, "say why")],
)
def test_what_cannot_be_declared_is_refused(cannot, sentence):
    """A need that no check has, or no reason."""
    with pytest.raises(InputError, match=sentence):
        BackendUnderTest(name="text", make=TextBackend, cannot=cannot)


def test_names_and_facts_are_unique():
    """A table has one row for each check, and a check one name."""
    assert len({check.name for check in CHECKS}) == len({check.fact for check in CHECKS}) == len(CHECKS)
    assert all(re.fullmatch(r"[a-z0-9-]+", str(check)) for check in CHECKS)
    assert [check.fresh for check in CHECKS] == sorted(check.fresh for check in CHECKS)


def test_the_command_writes_a_page(tmp_path, capsys):
    """The column of the subject's name; without a page it is printed."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    name = "conformance_subjects:scripted"
    assert main([name, "--page", str(page)]) == 0
    assert set(read_table(page.read_text())["scripted"]) == {check.fact for check in CHECKS}
    assert main(["nowhere:subject"]) == 2
    assert "expected MODULE:FUNCTION" in capsys.readouterr().err


def test_the_published_table_has_every_fact():
    """And no other."""
    page = (Path(__file__).parents[3] / "docs/backends.md").read_text(encoding="utf-8")
    for column in read_table(page).values():
        assert list(column) == [check.fact for check in CHECKS]
