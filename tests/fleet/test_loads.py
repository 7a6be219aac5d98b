"""Facts about which runner gets the next chain."""

from rollcast.fleet.loads import Loads


def loads(*runners):
    made = Loads()
    for runner in runners:
        made.join(runner)
    return made


def test_the_runner_with_the_fewest_chains_gets_the_next():
    """Of several, the one that joined first."""
    given = loads("a", "b")
    assert [given.take() for _ in range(4)] == ["a", "b", "a", "b"]
    given.give_back("b")
    given.give_back("b")
    assert [given.take() for _ in range(3)] == ["b", "b", "a"]


def test_a_runner_that_has_left_gets_nothing():
    """Nor do its chains count any more when they are over."""
    given = loads("a", "b")
    given.take()
    given.leave("a")
    given.give_back("a")
    assert given.take() == "b"
    assert "a" not in given
    assert len(given) == 1


def test_without_runners_nobody_gets_it():
    """None says so."""
    assert Loads().take() is None


def test_a_runner_that_joins_later_is_filled_up_first():
    """Since it has none."""
    given = loads("a")
    for _ in range(3):
        given.take()
    given.join("b")
    assert [given.take() for _ in range(3)] == ["b", "b", "b"]
