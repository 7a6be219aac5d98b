"""Runs a causal language model's forward pass over rows at positions of their own, and checks that it can."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rollcast.errors import InputError
from rollcast.models.hf.cache import LayerShape, PrecisionChangedError, ProbeCache, SlotCache

__all__ = ["Forward"]

SERVED_LAYERS = {"full_attention": False, "sliding_attention": True}
"""Kinds of layers whose keys and values are those of single tokens, and whether they look at a window of them."""

_CHECKED_TOKENS = 12

# Autocast may be put around the model, or taken away, while it is being checked.
_LOOKS = 4


class Forward:
    """A model whose masks and positions we make.

    Args:
        model: a decoder with attention; only its forward pass is used.

    Attributes:
        shapes: what each layer keeps for a token.
        vocab_size: the number of rows in the embeddings.
        token_bytes: the size of a token's keys and values in all layers.

    Raises:
        InputError: the model's architecture or attention cannot be served.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.name = type(model).__name__
        if model.config.is_encoder_decoder:
            raise InputError(f"{self.name} has an encoder; expected a causal language model")
        self._windows = self._layer_windows(config)
        self.attention = str(config._attn_implementation)  # noqa: SLF001  (there is no public attribute)
        if self.attention not in {"sdpa", "eager"}:
            raise InputError(
                f"{self.name} computes attention with {self.attention!r}, which cannot take rows at positions of their "
                "own; load it with attn_implementation='sdpa' (or 'eager')"
            )
        self._last_only = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
        self._parameter = next(model.parameters())
        self.vocab_size = len(cast("torch.nn.Embedding", model.get_input_embeddings()).weight)
        self.inspect()

    def inspect(self) -> None:
        """Find out what the layers keep: at first, and after the model was moved to another device, dtype or precision.

        Raises:
            InputError: the model cannot be served.
        """
        self.shapes = self._check()
        self.token_bytes = sum(shape.token_bytes for shape in self.shapes)

    @property
    def device(self) -> torch.device:
        """Where the model is now."""
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """What its parameters are now."""
        return self._parameter.dtype

    def _layer_windows(self, config: Any) -> dict[str, int | None]:
        """How far back each kind of layer looks; None means to the beginning."""
        # GPT-Neo's name for the same comes second; its local layers count back from the last key, not from each query.
        declared = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
        kinds = sorted(set(declared or ()))
        other = [kind for kind in kinds if kind not in SERVED_LAYERS]
        if other or getattr(self.model, "_is_stateful", False):
            raise InputError(
                f"{self.name} has layers of another kind than attention over all or the last tokens "
                f"({', '.join(other) or 'a recurrent state'}); expected a plain transformer such as Llama, Qwen3, Mistral or Gemma"
            )
        window = getattr(config, "sliding_window", None)
        if not kinds:
            return {"": window if getattr(config, "use_sliding_window", True) else None}
        return {kind: window if SERVED_LAYERS[kind] else None for kind in kinds}

    def __call__(
        self,
        cache: SlotCache,
        rows: slice | Tensor,
        index_R: Tensor,
        ids_RC: Tensor,
        positions_RC: Tensor,
        seen: int,
    ) -> Tensor:
        """Compute the logits (R, V) after the last token of each row; write the keys and values into the cache.

        Args:
            cache: the cache that has the rows' slots.
            rows: the slots; a slice is read without a copy.
            index_R: the same as numbers.
            ids_RC: the tokens to feed. A short row repeats its last one, at the same position.
            positions_RC: their positions.
            seen: a number above the highest position.
        """
        cache.aim(rows, index_R, positions_RC, seen)
        output = self.model(
            input_ids=ids_RC,
            attention_mask=self._masks(positions_RC, seen),
            position_ids=positions_RC,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _masks(self, positions_RC: Tensor, seen: int) -> Tensor | dict[str, Tensor]:
        """Masks (R, 1, C, seen) for each kind of layer: no token looks ahead, or back beyond the kind's window."""
        at = positions_RC[:, None, :, None]
        keys = torch.arange(seen, device=at.device)
        causal = keys <= at
        masks = {
            kind: self._as_attention_takes(causal if window is None else causal & (keys > at - window))
            for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _as_attention_takes(self, mask: Tensor) -> Tensor:
        """The mask as the attention takes it: True where a token looks, or for eager attention what is added to its scores."""
        if self.attention == "sdpa":
            return mask
        least = torch.finfo(self.model.dtype).min
        return torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(~mask, least)

    @torch.no_grad()
    def _check(self) -> list[LayerShape]:
        """Run a few tokens the ordinary way and our way, and compare: architectures differ in more than they declare.

        Returns:
            what each layer keeps for a token.
        """
        training = [module for module in self.model.modules() if module.training]
        self.model.train(mode=False)
        try:
            return self._compare_in_one_precision()
        except (InputError, torch.OutOfMemoryError):
            raise
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            # Model code that does not take a mask or a cache from outside raises these.
            raise InputError(
                f"{self.name} does not take masks and caches from outside ({type(error).__name__}: {error}); expected a "
                "plain transformer such as Llama, Qwen3, Mistral or Gemma"
            ) from error
        finally:
            for module in training:
                module.training = True

    def _compare_in_one_precision(self) -> list[LayerShape]:
        for looks_left in reversed(range(_LOOKS)):
            try:
                return self._compare()
            except PrecisionChangedError as error:
                if not looks_left:
                    raise InputError(
                        f"{self.name} computes in another precision from one pass to the next: {error}; use one autocast for "
                        "all passes, or none"
                    ) from error
        raise AssertionError("the last look returns or raises")

    def _compare(self) -> list[LayerShape]:
        vocabulary = self.vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (1, _CHECKED_TOKENS), generator=generator).to(self.device)
        plain = ProbeCache()
        with _dtypes_computed(self.model) as dtypes:
            expected = self._plain_pass(ids, plain)
        cache = SlotCache(plain.shapes)
        cache.resize(3, 2 * _CHECKED_TOKENS, [])
        # A prompt in two parts beside a shorter row, then tokens one by one, in a slot other than the first.
        found = [self._feed(cache, ids, [(0, 5), (0, 3)])[0], self._feed(cache, ids, [(5, 5), (3, 1)])[0]]
        cache.copy(0, 2, 10)
        cache.swap(2, 1, 10)
        found += [self._feed(cache, ids, [(at, 1)], slot=1)[0] for at in range(10, _CHECKED_TOKENS)]
        wanted = expected[[4, 9, *range(10, _CHECKED_TOKENS)]]
        error = (torch.stack(found).float() - wanted).abs().max().item()
        # Half precision rounds differently in other shapes. Under autocast the parameters' dtype does not tell.
        half = any(dtype.itemsize < torch.float32.itemsize for dtype in {self.model.dtype, *dtypes})
        bound = (0.2 if half else 1e-3) * max(wanted.std().item(), 1e-3)
        if not error <= bound:
            raise InputError(
                f"{self.name} gives other logits (by {error:.2g}) when it is fed through a cache with rows at positions of "
                "their own; expected a plain transformer such as Llama, Qwen3, Mistral or Gemma"
            )
        return plain.shapes

    def _plain_pass(self, ids: Tensor, cache: ProbeCache) -> Tensor:
        """Logits (C, V) of an ordinary pass. A failure here has nothing to do with masks and caches from outside."""
        try:
            logits: Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise InputError(
                f"{self.name} cannot run a forward pass: its parts compute in different precisions ({error}); give all of them "
                "one dtype, or put torch.autocast around its forward"
            ) from error
        return logits.float()

    def _feed(self, cache: SlotCache, ids: Tensor, parts: Sequence[tuple[int, int]], slot: int = 0) -> Tensor:
        most = max(count for _, count in parts)
        positions = torch.tensor(
            [[at + min(i, count - 1) for i in range(most)] for at, count in parts], device=ids.device
        )
        rows = slice(slot, slot + len(parts))
        index = torch.arange(rows.start, rows.stop, device=ids.device)
        return self(cache, rows, index, ids[0][positions], positions, int(positions.max()) + 1)


def _takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the forward pass has a parameter of this name, even behind a wrapper that passes its arguments on."""
    outside = inspect.signature(model.forward).parameters
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in outside.values())
    return name in outside or (hands_on and name in inspect.signature(type(model).forward).parameters)


@contextmanager
def _dtypes_computed(model: torch.nn.Module) -> Iterator[set[torch.dtype]]:
    """Collect the floating-point dtypes of the outputs of the model's parts, while the block runs."""
    found: set[torch.dtype] = set()

    def note(_module: torch.nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            found.add(output.dtype)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
