"""What version of a host is installed, and whether its adapter was written for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed", "note_version"]

logger = logging.getLogger("rollcast.attach")

_told: set[str] = set()


def installed(package: str) -> str | None:
    """The version of the package that is installed, such as `1.16.0`; None if that is not known."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def note_version(package: str, called: str, written_for: Sequence[str]) -> bool:
    """Look whether an adapter was written for the version that is installed; if not, say so, once.

    Args:
        package: the distribution, such as `trl`.
        called: what people call it, such as `TRL`.
        written_for: beginnings of versions, the latest last: `("1.15", "1.16")`.

    Returns:
        Whether it was. If not, the adapter attaches as far as it goes.
    """
    found = installed(package)
    if found is not None and any(found == each or found.startswith(f"{each}.") for each in written_for):
        return True
    if package not in _told:
        _told.add(package)
        logger.warning(
            "attach was written for %s %s; this is %s: it is attached as far as that goes",
            called,
            written_for[-1],
            "of an unknown version" if found is None else found,
        )
    return False
