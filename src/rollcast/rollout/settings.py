"""How a run goes."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from rollcast.models.backend import Sampling

__all__ = ["ChainPlace", "RunSettings"]


class ChainPlace(NamedTuple):
    """Where a chain stands in a run that several processes share.

    Attributes:
        number: among all chains of the run.
        group: the number of its group among all groups.
        repeat: which of the group it is.
    """

    number: int
    group: int
    repeat: int


class RunSettings(msgspec.Struct, frozen=True):
    """How a run goes, checked.

    Attributes:
        max_steps: generations a chain may have.
        num_chains: repeats of each row.
        sampling: of every generation; its seed is replaced by one of the chain's and step's own.
        max_concurrent_chains: how many run at once; None: all.
        seed: None: drawn, and told in the result.
        streaming: whether observers see the run.
        callback: as `streaming_callback`.
        about: further fields of `run_start`.
        places: where each chain stands, if other processes have chains of the same run; None: they are all here.
    """

    max_steps: int
    num_chains: int = 1
    sampling: Sampling = Sampling()
    max_concurrent_chains: int | None = None
    seed: int | None = None
    streaming: bool = False
    callback: Any = None
    about: dict[str, Any] = {}
    places: tuple[ChainPlace, ...] | None = None

    @property
    def sampling_data(self) -> dict[str, Any]:
        """The sampling as `llm_generation_start` shows it."""
        shown = msgspec.structs.asdict(self.sampling) | {"stop": list(self.sampling.stop)}
        return {name: value for name, value in shown.items() if name != "seed"}

    @property
    def data(self) -> dict[str, Any]:
        """How the run goes, as `run_start` shows it."""
        shown = {
            "max_steps": self.max_steps,
            "num_chains": self.num_chains,
            "max_concurrent_chains": self.max_concurrent_chains,
        }
        return {name: value for name, value in shown.items() if value is not None}
