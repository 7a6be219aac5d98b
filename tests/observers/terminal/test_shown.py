"""Who is shown on an output, counted as it changes."""

import pytest

from rollcast.terminal.shown import Board, VisibleChain


@pytest.fixture
def board():
    return Board()


def chain(name="chain_0", run="r", tokens=0):
    """A chain as a console shows it."""
    return VisibleChain(run, name, "", without_ids=tokens)


def ended(shown, reason="answered"):
    """The chain, which has ended."""
    shown.view.state, shown.view.finish_reason = "ended", reason
    return shown


def test_one_chain_is_alone_until_there_is_another(board):
    """Or until its run says that there will be more."""
    board.run_opened("r", 1.0, 0)
    board.chain_opened(chain(), again=False)
    assert board.alone
    board.run_expects("r", 2)
    assert not board.alone


def test_a_chain_that_two_consoles_show_is_one(board):
    """It is alone, it runs once, and the tokens of the one that knows more count."""
    for tokens in (3, 5):
        board.run_opened("r", 1.0, 0)
        board.chain_opened(shown := chain(tokens=tokens), again=False)
        board.changed[shown] = None
    assert (board.alone, board.running_count(), board.count_tokens()) == (True, 1, 5)


def test_the_first_end_that_is_seen_counts(board):
    """A console that is behind neither counts the chain again nor has it run again."""
    first, second = chain(), chain()
    board.run_opened("r", 1.0, 0)
    board.run_opened("r", 1.0, 0)
    board.chain_opened(first, again=False)
    board.chain_ended(ended(first, "error"))
    board.chain_opened(second, again=False)
    board.chain_ended(ended(second, "error"))
    assert (board.running_count(), board.ended, board.failed, board.chains) == (0, 1, 1, 1)


def test_a_chain_that_goes_on_after_its_end_runs_again(board):
    """Ids come again in events made by hand."""
    board.run_opened("r", 1.0, 0)
    board.chain_opened(first := chain(), again=False)
    board.chain_ended(ended(first))
    board.chain_opened(chain(), again=True)
    assert (board.running_count(), board.ended, board.chains) == (1, 0, 1)


def test_a_run_counts_until_the_last_console_closes_it(board):
    """Then nothing of it is left."""
    shown = [chain(tokens=4), chain()]
    for one in shown:
        board.run_opened("r", 1.0, 3)
        board.chain_opened(one, again=False)
        board.changed[one] = None
    board.run_closed("r")
    assert (board.expected, board.running_count(), board.count_tokens()) == (3, 1, 4)
    board.run_closed("r")
    assert (board.expected, board.chains, board.running_count(), board.tokens, board.alone) == (0, 0, 0, 0, True)  # fmt: skip


def test_runs_without_chains_are_not_several(board):
    """A training's own run shows nothing beside its rollouts."""
    for run in ("a", "b"):
        board.run_opened(run, 1.0, 0)
    board.chain_opened(chain(run="a"), again=False)
    assert not board.several_runs
    board.run_expects("b", 1)
    assert board.several_runs


def test_the_time_counts_from_the_earliest_run_that_has_chains(board):
    """Runs that closed, and those that have shown none, do not count."""
    for i, run in enumerate("abc"):
        board.run_opened(run, float(i), 0)
    assert board.opened_at is None
    for run in "cb":
        board.chain_opened(chain(run=run), again=False)
    assert board.opened_at == 1.0
    board.run_closed("b")
    assert board.opened_at == 2.0


def test_rows_go_by_the_chains_numbers(board):
    """Of equal ones, the run that was opened first comes first."""
    for run in ("a", "b"):
        board.run_opened(run, 1.0, 0)
    for run, name in (("b", "chain_1"), ("b", "chain_0"), ("a", "chain_10"), ("a", "chain_1")):
        board.chain_opened(chain(name, run), again=False)
    found = [(shown.run_id, shown.chain_id) for shown in board.running(3)]
    assert found == [("b", "chain_0"), ("a", "chain_1"), ("b", "chain_1")]


def test_runs_that_close_behind_one_that_stays_leave_nothing(board):
    """A watcher that stays for days sees thousands of runs."""
    board.run_opened("first", 0.0, 0)
    board.chain_opened(chain(run="first"), again=False)
    for i in range(1000):
        board.run_opened(f"r{i}", float(i), 0)
        board.chain_opened(chain(run=f"r{i}"), again=False)
        board.run_closed(f"r{i}")
    assert len(board._openings) < 50
    assert board.opened_at == 0.0
