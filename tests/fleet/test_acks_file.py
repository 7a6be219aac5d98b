"""The file in which a hub keeps how far producers were acknowledged."""

import pytest

from rollcast.errors import InputError
from rollcast.fleet.acks_file import AcksFile


def test_the_next_hub_reads_what_the_last_one_noted(tmp_path):
    """The last line of a process counts, and a torn one does not."""
    acks = AcksFile(tmp_path)
    acks.note([(("w", "e1"), 3), (("v", "e7"), 1)])
    acks.note([(("w", "e1"), 9)])
    acks.close()
    with acks.path.open("ab") as file:
        file.write(b'["w","e1",1')
    again = AcksFile(tmp_path)
    assert again.acked == {("v", "e7"): 1, ("w", "e1"): 9}
    assert list(again.acked) == [("v", "e7"), ("w", "e1")]  # the latest last
    again.close()
    assert again.path.read_text() == '["v","e7",1]\n["w","e1",9]\n'


def test_two_hubs_do_not_share_a_folder(tmp_path):
    """The sentence says what to do."""
    acks = AcksFile(tmp_path)
    with pytest.raises(InputError, match=r"another hub records in .*--record-dir"):
        AcksFile(tmp_path)
    acks.close()
    AcksFile(tmp_path).close()


def test_a_folder_that_cannot_be_written(tmp_path):
    """It is bad input."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        AcksFile(tmp_path / "file" / "records")
