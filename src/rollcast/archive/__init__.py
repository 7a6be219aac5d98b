"""A run's folder, which answers tomorrow what happened (docs/archive.md). `format.py` draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.archive.format import prompt_hash
    from rollcast.archive.index import RecordEntry, find_record, list_records
    from rollcast.archive.observer import ArchiveObserver
    from rollcast.archive.reader import Archive, ChainRows, EventReader
    from rollcast.archive.recovery import Recovery, recover
    from rollcast.records.secrets import Masker

__all__ = [
    "Archive",
    "ArchiveObserver",
    "ChainRows",
    "EventReader",
    "Masker",
    "RecordEntry",
    "Recovery",
    "find_record",
    "list_records",
    "prompt_hash",
    "recover",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "rollcast.archive.format": "prompt_hash",
        "rollcast.archive.index": "RecordEntry find_record list_records",
        "rollcast.archive.observer": "ArchiveObserver",
        "rollcast.archive.reader": "Archive ChainRows EventReader",
        "rollcast.archive.recovery": "Recovery recover",
        "rollcast.records.secrets": "Masker",
    },
)
