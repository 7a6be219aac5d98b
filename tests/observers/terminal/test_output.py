"""The output that consoles on one stream share."""

import io

from rollcast.terminal import output
from rollcast.terminal.output import SharedOutput


def test_a_file_that_got_the_number_of_a_closed_one_has_an_output_of_its_own(monkeypatch):
    """A system gives the number of a deleted file to the next one, while somebody still holds the console of the first."""
    monkeypatch.setattr(output, "_destination", lambda stream: ("file", 1, 7))
    first, second = io.StringIO(), io.StringIO()
    held = SharedOutput.of(first)
    assert SharedOutput.of(second) is held
    first.close()
    with SharedOutput.of(second) as shared:
        shared.put("printed\n")
    assert second.getvalue() == "printed\n"
