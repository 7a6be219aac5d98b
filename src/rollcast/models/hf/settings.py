"""Chooses how much a model may take at once: by default from the memory that is free."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from rollcast.errors import InputError

__all__ = ["Limits", "choose_device", "choose_limits"]

_GIB = 1 << 30

# Of what is free when the backend is made. Weights that come, activations and a trainer beside it need the rest.
_SHARE_OF_GPU = 0.5
_SHARE_OF_RAM = 0.25

_UNKNOWN_RAM = 4 * _GIB


class Limits(NamedTuple):
    """How much a batch may take.

    Attributes:
        max_batch: rows that read or decode at once.
        prompt_tokens: prompt tokens that a step reads while others decode; up to four times as many if few do.
        cache_tokens: tokens whose keys and values are held, padding included.
        context: the most tokens in a sequence.
    """

    max_batch: int
    prompt_tokens: int
    cache_tokens: int
    context: int


def choose_device(device: str | None) -> torch.device:
    """The named device; by default the GPU if there is one.

    Raises:
        InputError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); expected cpu, cuda or cuda:N"
        ) from error
    return chosen


def choose_limits(
    device: torch.device,
    token_bytes: int,
    context: int,
    *,
    max_batch: int | None,
    prompt_tokens: int | None,
    cache_bytes: int | None,
) -> Limits:
    """The limits that the user gave; those that are None are chosen by the device's memory.

    Args:
        device: where the model is.
        token_bytes: the size of a token's keys and values.
        context: the model's context.
        max_batch: as the user gave it.
        prompt_tokens: as the user gave it.
        cache_bytes: as the user gave it.

    Raises:
        InputError: one of them is not a whole number from 1 upward.
    """
    asked = {"max_batch": max_batch, "prompt_tokens": prompt_tokens, "cache_bytes": cache_bytes}
    for name, value in asked.items():
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} is {value!r}; expected a whole number from 1 upward")
    large = device.type != "cpu"
    cache_tokens = (cache_bytes or _free_bytes(device)) // token_bytes
    if cache_tokens < 2:
        raise InputError(
            f"cache_bytes is {cache_bytes}; expected room for some tokens of {token_bytes} bytes each: several megabytes"
        )
    return Limits(
        max_batch=max_batch or (128 if large else 32),
        prompt_tokens=prompt_tokens or (2048 if large else 512),
        cache_tokens=cache_tokens,
        context=min(context, cache_tokens),
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _SHARE_OF_GPU)
    return int(_free_ram() * _SHARE_OF_RAM)


def _free_ram() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return _UNKNOWN_RAM
