"""A run's folder, which answers tomorrow what happened (docs/archive.md). `format.py` draws it."""

from rollcast.archive.observer import ArchiveObserver
from rollcast.archive.secrets import Masker

__all__ = ["ArchiveObserver", "Masker"]
