"""zstd by whichever library is there: the standard library's from Python 3.14, or `zstandard` (the extra `archive`).

Every frame has its content size and a checksum, so that one flipped bit is noticed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from rollcast.errors import ArchiveError, MissingExtraError

__all__ = ["LEVEL", "MAGIC", "available", "beginning", "compress", "decompress", "smallest"]

LEVEL = 3
SMALLEST = 19  # thirty times as slow
# Log-probabilities are digits that nothing predicts. Shorter matches than this cost more in them than they save: 10 % of the size of
# ids and log-probabilities, a quarter of the time, and 4 % of the size of everything else.
MIN_MATCH = 7
MAGIC = b"\x28\xb5\x2f\xfd"  # every frame begins with it

_Transform = Callable[[bytes], bytes]


@cache
def _library() -> tuple[_Transform, _Transform] | None:
    """How to compress and decompress one frame; None if no library is installed."""
    if sys.version_info >= (3, 14):
        return _of_the_standard_library(importlib.import_module("compression.zstd"))
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        return None

    options = zstandard.ZstdCompressionParameters(
        compression_level=LEVEL, min_match=MIN_MATCH, write_checksum=True, write_content_size=True
    )

    def pack(data: bytes) -> bytes:
        # One for each frame: they may not be used by two threads at once, and two records may be written in one process.
        return bytes(zstandard.ZstdCompressor(compression_params=options).compress(data))

    def unpack(frame: bytes) -> bytes:
        return bytes(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False))

    return pack, unpack


def _of_the_standard_library(zstd: Any) -> tuple[_Transform, _Transform]:
    of = zstd.CompressionParameter
    options = {of.compression_level: LEVEL, of.min_match: MIN_MATCH, of.checksum_flag: 1}
    unpack: _Transform = zstd.decompress
    return lambda data: zstd.compress(data, options=options), unpack


def available() -> bool:
    """Whether a zstd library is there."""
    return _library() is not None


def compress(data: bytes) -> bytes:
    """The data as one frame.

    Raises:
        MissingExtraError: no zstd library is installed.
    """
    return _needed()[0](data)


def smallest(data: bytes) -> bytes | None:
    """One frame, as small as it can be made, for what is compressed once and sent often; None if no library is installed."""
    made: bytes
    if sys.version_info >= (3, 14):
        made = importlib.import_module("compression.zstd").compress(data, SMALLEST)
    else:
        try:
            zstandard: Any = importlib.import_module("zstandard")
        except ImportError:
            return None
        made = zstandard.ZstdCompressor(level=SMALLEST).compress(data)
    return made


def decompress(frame: bytes) -> bytes:
    """What one frame holds.

    Raises:
        ArchiveError: it is damaged.
        MissingExtraError: no zstd library is installed.
    """
    unpack = _needed()[1]
    try:
        return unpack(frame)
    except Exception as error:  # noqa: BLE001  (each library has exceptions of its own)
        raise ArchiveError(f"a zstd frame is damaged: {error}") from None


def beginning(data: bytes) -> bytes:
    """Decompress the beginning of a frame as far as these bytes go. No checksum is verified.

    Raises:
        ArchiveError: they do not begin a frame, or are damaged.
        MissingExtraError: no zstd library is installed.
    """
    _needed()
    try:
        if sys.version_info >= (3, 14):
            return bytes(importlib.import_module("compression.zstd").ZstdDecompressor().decompress(data))
        return bytes(importlib.import_module("zstandard").ZstdDecompressor().decompressobj().decompress(data))
    except Exception as error:  # noqa: BLE001  (each library has exceptions of its own)
        raise ArchiveError(f"a zstd frame is damaged: {error}") from None


def _needed() -> tuple[_Transform, _Transform]:
    library = _library()
    if library is None:
        raise MissingExtraError("reading a compressed record", "archive")
    return library
