"""A run's folder, which answers tomorrow what happened (docs/archive.md). `format.py` draws it."""

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
