"""The errors that engines fail with."""

from __future__ import annotations

from rollcast.errors import BackendError

__all__ = ["fresh_copy", "not_finite"]


def fresh_copy(failure: BackendError) -> BackendError:
    """A copy to raise: one exception object raised in many tasks would mix their tracebacks."""
    copy = type(failure)(*failure.args)
    copy.__cause__ = failure.__cause__
    return copy


def not_finite(version: int) -> BackendError:
    """The error for a generation to which weights of this version gave a log-probability that is not finite."""
    return BackendError(
        f"the model's logits are not finite with the weights of version {version}; the training that made them "
        "diverged: load others"
    )
