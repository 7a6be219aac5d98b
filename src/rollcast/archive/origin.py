"""Where a run comes from: the git commit of its folder, and the versions of the libraries that it runs with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["git_commit", "library_versions"]

_LIBRARIES = ("numpy", "torch", "transformers", "trl", "verl", "vllm", "openai")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_LINKS = 5  # from one name of a commit to another


def library_versions() -> dict[str, str]:
    """Of those that are loaded now."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return {name: str(version) for name, version in found.items() if version is not None}


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in a folder; None if it is in no repository, or its commit cannot be read.

    The files are read without git, which may be missing, wait for a lock or refuse another user's folder: see
    gitrepository-layout(5). A repository with `reftable` has no such files.
    """
    try:
        repository = next(
            (path / ".git" for path in (folder, *folder.parents) if (path / ".git").exists()), None
        )
        if repository is None:
            return None
        if repository.is_file():  # of a worktree or a submodule
            repository = repository.parent / _text(repository).removeprefix("gitdir:").strip()
        common = repository / "commondir"
        shared = repository / _text(common) if common.is_file() else repository
        name = "HEAD"
        for _ in range(_LINKS):
            found = _named(name, repository, shared)
            if _COMMIT.fullmatch(found):
                return found
            name = found.removeprefix("ref:").strip()
    except (OSError, ValueError):
        pass
    return None


def _named(name: str, repository: Path, shared: Path) -> str:
    """What a name of a commit stands for.

    Raises:
        OSError: there is no such name.
    """
    for place in (repository, shared):
        if (place / name).is_file():
            return _text(place / name)
    for line in _text(shared / "packed-refs").splitlines():
        commit, _, of = line.partition(" ")
        if of == name:
            return commit
    raise FileNotFoundError(name)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
