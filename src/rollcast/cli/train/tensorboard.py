"""Writes scalars for TensorBoard (extra `tensorboard`), without torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rollcast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from rollcast.train import Progress

__all__ = ["Scalars"]


class Scalars:
    """Writes what a training reports to a folder that TensorBoard reads; use it as a context manager.

    Args:
        folder: the folder, as it was typed; it is made if it does not exist.
        begun_in: the folder in which that was typed.

    Raises:
        MissingExtraError: the extra is not installed.
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: str, begun_in: Path) -> None:
        if find_spec("tensorboard") is None:
            raise MissingExtraError("--tensorboard", "tensorboard")
        from tensorboard.summary import Writer  # noqa: PLC0415  (an extra)

        try:
            self._writer: Any = Writer(str(begun_in / folder))
        except OSError as error:
            raise InputError(
                f"--tensorboard: {folder} cannot be written to: {error.strerror or error}; give another folder"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._writer.close()

    def progress(self, progress: Progress) -> None:
        """Write a step: `train/…` for its metrics, `eval/…` for an evaluation after it."""
        step = progress.step
        for name, value in progress.metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        if progress.evaluation is not None:
            self._writer.add_scalar("eval/sampled", progress.evaluation.sampled, step)
            self._writer.add_scalar("eval/greedy", progress.evaluation.greedy, step)
        self._writer.flush()
