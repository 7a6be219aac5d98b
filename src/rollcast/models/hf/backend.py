"""Hugging Face causal language models as a `Backend`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rollcast.errors import InputError
from rollcast.models.backend import Sampling
from rollcast.models.engine import Engine
from rollcast.models.hf.batch import Batch
from rollcast.models.hf.forward import Forward
from rollcast.models.hf.loading import end_ids, load_model, load_tokenizer, make_renderer, make_texts
from rollcast.models.hf.mode import SamplingMode
from rollcast.models.hf.settings import choose_device, choose_limits
from rollcast.models.hf.slots import Row
from rollcast.models.hf.weights import NewWeights, read_new_weights
from rollcast.models.local import LocalBackend

__all__ = ["TransformersBackend"]


class TransformersBackend(LocalBackend):
    """A causal language model of transformers, sampled token by token for many generations at once.

    All generations decode in one batch, which they join and leave at any token; prompts are read in parts between the
    steps, and what was read or sampled before is not read again. A request's seed gives the same random numbers whatever
    else runs; the logits may differ in their last bits with the shapes that the device computes in.

    A model object is used as it is: it is in eval mode while something runs, and back in its old mode before the last
    token is delivered. A trainer that changes its weights calls `update_weights(None, version)` afterwards.

    Args:
        model: a folder, a name on the Hugging Face hub, or a model object, for instance a trainer's.
        tokenizer: the model's, or a folder or name to load it from; needed with a model object, else found with the model.
        device: `cpu`, `cuda`, `cuda:1`; by default the GPU if there is one.
        dtype: `bfloat16`, `float32` …; by default float32 on a CPU, else what the checkpoint has.
        attn_implementation: `sdpa`, or `eager`, which is the default if attention has a soft cap.
        max_batch: generations at once; by default 128 on a GPU, 32 on a CPU. Later ones wait in order.
        cache_bytes: memory for keys and values; by default half of the GPU's free memory, or a quarter of the free RAM.
        prompt_tokens: prompt tokens that a step reads while others decode; by default 2048 on a GPU, 512 on a CPU.
        context: the most tokens of a prompt and its completion; by default the model's, if `cache_bytes` holds that many.
        keep_cache: whether the memory for keys and values is held while nothing runs; by default not for a model object.
        chat_template: Jinja, instead of the tokenizer's; or the name of one of the tokenizer's, if it has several.
        template_kwargs: variables of the template, such as `{"enable_thinking": False}`.
        load_options: arguments of `from_pretrained`: `revision`, `device_map`, `trust_remote_code` …

    Attributes:
        model: the model that it samples from.
        tokenizer: the model's tokenizer.

    Raises:
        InputError: the model cannot be loaded or served, or an argument is wrong.
    """

    name = "transformers"

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: Any = None,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        max_batch: int | None = None,
        cache_bytes: int | None = None,
        prompt_tokens: int | None = None,
        context: int | None = None,
        keep_cache: bool | None = None,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        load_options: Mapping[str, Any] | None = None,
    ) -> None:
        load_options = _mapping("load_options", load_options)
        template_kwargs = _mapping("template_kwargs", template_kwargs)
        loads = isinstance(model, str | Path)
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(str(tokenizer), load_options)
        if loads:
            self.model_name = str(model)
            if tokenizer is None:
                tokenizer = load_tokenizer(self.model_name, load_options)
            model = load_model(
                self.model_name, choose_device(device), dtype, attn_implementation, load_options
            )
        else:
            _only_with_names(
                device=device,
                dtype=dtype,
                attn_implementation=attn_implementation,
                load_options=load_options or None,
            )
            model = _model_object(model, tokenizer)
            self.model_name = model.name_or_path or type(model).__name__
        assert isinstance(model, PreTrainedModel)
        self.model = model
        self.tokenizer = tokenizer
        self._forward = Forward(model)
        self.vocab_size = self._forward.vocab_size
        texts = make_texts(tokenizer, self.vocab_size)
        ends = end_ids(model, tokenizer)
        self.limits = choose_limits(
            self._forward.device,
            self._forward.token_bytes,
            _context(model, context),
            max_batch=max_batch,
            prompt_tokens=prompt_tokens,
            cache_bytes=cache_bytes,
        )
        self.context = self.limits.context
        self.renderer = make_renderer(tokenizer, ends, chat_template, template_kwargs)
        self._mode = SamplingMode(model)
        self._keep_cache = loads if keep_cache is None else keep_cache
        super().__init__(Engine(self.name, self._make_batch, ends, self._working), texts)

    def _row(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> Row:
        return Row(prompt_ids, sampling)

    def _parameters(self, weights: Any) -> NewWeights:
        return read_new_weights(weights, self.model)

    def _make_batch(self) -> Batch:
        return Batch(self._forward, self.limits, self._mode, keep_cache=self._keep_cache)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Leave the model as it was, even if the engine is closed or dies."""
        try:
            yield
        finally:
            self._mode.leave()


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise InputError(f"{name} is {value!r}; expected a mapping of names to values")
    return dict(value or {})


def _only_with_names(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} was given with a model object; it is for loading: set it on the model instead"
            )


def _model_object(model: Any, tokenizer: Any) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model is {type(model).__name__}; expected a path, a name on the Hugging Face hub, or a PreTrainedModel (if it is "
            "wrapped, give what is inside: model.module, or get_base_model() of an adapter)"
        )
    if tokenizer is None:
        raise InputError(
            "a model object was given without its tokenizer; give tokenizer=AutoTokenizer.from_pretrained(…)"
        )
    return model


def _context(model: PreTrainedModel, asked: int | None) -> int:
    config = model.config.get_text_config(decoder=True)
    longest, short = getattr(config, "max_position_embeddings", None), _short_rope(config)
    if longest is not None and short is not None:
        longest = min(longest, short)
    if asked is None:
        if longest is None:
            raise InputError(f"{type(model).__name__} does not say how long its context is; give context=…")
        return int(longest)
    if type(asked) is not int or asked < 2 or (longest is not None and asked > longest):
        why = (
            "what the model was made for"
            if longest != short
            else (
                "up to which its positions are computed in one way; beyond it, the whole batch would use another (longrope)"
            )
        )
        raise InputError(f"context is {asked!r}; expected 2 to {longest}, {why}")
    return asked


def _short_rope(config: Any) -> int | None:
    """The length up to which LongRoPE has one set of frequencies. Beyond it, every position and row of a batch gets another."""
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") == "longrope":
            found = each.get("original_max_position_embeddings")
            return found or getattr(config, "original_max_position_embeddings", None)
    return None
