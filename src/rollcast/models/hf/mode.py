"""Puts a model that may belong to a trainer into the mode for sampling, and back."""

from __future__ import annotations

from torch.nn import Module

__all__ = ["SamplingMode"]


class SamplingMode:
    """Turns dropout and gradient checkpointing off while something runs; afterwards every module is as it was."""

    def __init__(self, model: Module) -> None:
        self._model = model
        self._training: list[Module] | None = None

    def enter(self) -> None:
        """Call it before each step: a trainer may have called `train()` since."""
        if self._training is not None and not self._model.training:
            return
        training = [module for module in self._model.modules() if module.training]
        self._training = [*(self._training or ()), *training]
        if training:
            self._model.eval()

    def leave(self) -> None:
        """Call it when nothing runs any more."""
        for module in self._training or ():
            module.training = True
        self._training = None
