"""Turns trajectories into better weights: batches, an embedded trainer, and the bridges to TRL, verl and ATIF.

The names here are lazy: `import rollcast.train` loads neither NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.train.batch import BatchStatistics, Sample, TrainBatch, group_advantages, make_batch
    from rollcast.train.config import GRPOConfig
    from rollcast.train.embedded import EmbeddedTrainer
    from rollcast.train.export import to_atif, to_trl, to_verl
    from rollcast.train.loop import Evaluation, Progress, TrainResult, train

__all__ = [
    "BatchStatistics",
    "EmbeddedTrainer",
    "Evaluation",
    "GRPOConfig",
    "Progress",
    "Sample",
    "TrainBatch",
    "TrainResult",
    "group_advantages",
    "make_batch",
    "to_atif",
    "to_trl",
    "to_verl",
    "train",
]

_HOMES = {
    "rollcast.train.batch": "BatchStatistics Sample TrainBatch group_advantages make_batch",
    "rollcast.train.config": "GRPOConfig",
    "rollcast.train.embedded": "EmbeddedTrainer",
    "rollcast.train.export": "to_atif to_trl to_verl",
    "rollcast.train.loop": "Evaluation Progress TrainResult train",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
