"""Frames: whole or refused, whoever else compresses meanwhile."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.archive import zstd
from rollcast.errors import ArchiveError, MissingExtraError


@given(st.binary(max_size=5000))
def test_a_frame_holds_what_was_put_in(data):
    """And begins with the four bytes by which frames are found."""
    frame = zstd.compress(data)
    assert frame.startswith(zstd.MAGIC)
    assert zstd.decompress(frame) == data


def test_every_flipped_bit_is_noticed():
    """Wherever it is, the frame is refused, or gives what was put in: a bit of the header that says nothing."""
    data = b"an event a line\n" * 20
    frame = zstd.compress(data)
    for i in range(len(frame) * 8):
        bad = bytearray(frame)
        bad[i // 8] ^= 1 << i % 8
        try:
            assert zstd.decompress(bytes(bad)) == data
        except ArchiveError:
            continue


@pytest.mark.parametrize(
    "what", [b"", b"x", zstd.MAGIC, zstd.compress(b"abc")[:-1], zstd.compress(b"abc") + b"x"]
)
def test_what_is_no_whole_frame_is_refused(what):
    """Torn, followed by something else, or nothing at all."""
    with pytest.raises(ArchiveError, match="damaged"):
        zstd.decompress(what)


def test_threads_do_not_meet():
    """Several records may be written and read in one process at once."""
    blocks = [os.urandom(1000) * 200 for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(zstd.compress, blocks))
        assert list(pool.map(zstd.decompress, frames)) == blocks


def test_without_a_library_the_extra_is_named(monkeypatch):
    """In a sentence that says what to install."""
    monkeypatch.setattr(zstd, "_library", lambda: None)
    assert not zstd.available()
    with pytest.raises(MissingExtraError, match=r"rollcast\[archive\]"):
        zstd.compress(b"")
