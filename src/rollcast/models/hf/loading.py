"""Loads a model and its tokenizer from a folder or a name on the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from rollcast.errors import InputError
from rollcast.models.chat import TemplateRenderer
from rollcast.models.checksums import check_folder
from rollcast.models.text import TokenTexts, token_texts

__all__ = ["end_ids", "load_model", "load_tokenizer", "make_renderer", "make_texts"]

# Attention scores of these are bent by a soft cap, which only attention written out computes.
_EAGER = ("attn_logit_softcapping",)


def load_model(
    name: str,
    device: torch.device,
    dtype: str | torch.dtype | None,
    attn_implementation: str | None,
    load_options: Mapping[str, Any],
) -> PreTrainedModel:
    """Load a model from a folder, or by a name on the hub, onto a device, to sample from.

    Raises:
        InputError: there is no such model, its files are not what was saved, or it is not a causal language model.
    """
    _check_is_folder(name)
    check_folder(name)
    try:
        config = AutoConfig.from_pretrained(name, **load_options)
    except Exception as error:  # over a broken file, the libraries raise anything
        raise InputError(_cannot_load(name, error)) from error
    if config.is_encoder_decoder:
        raise InputError(
            f"{name!r} is an encoder-decoder ({config.model_type}); expected a causal language model"
        )
    chosen = _dtype(dtype, device)
    try:
        text = config.get_text_config(decoder=True)
        capped = any(getattr(text, option, None) for option in _EAGER)
        with _bars_on_terminals_only():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                output_loading_info=True,
                dtype=chosen,
                attn_implementation=attn_implementation or ("eager" if capped else "sdpa"),
                **load_options,
            )
    except torch.OutOfMemoryError as error:
        raise InputError(_does_not_fit(name, device)) from error
    except Exception as error:  # as above
        raise InputError(_cannot_load(name, error)) from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise InputError(
            f"{name!r} has no weights for {missing[0]!r} and {len(missing) - 1} more, which would be random numbers; expected "
            "all of the model's, and the config.json that belongs to them"
        )
    try:
        if "device_map" not in load_options:
            torch.nn.Module.to(model, device)
        return model
    except torch.OutOfMemoryError as error:
        raise InputError(_does_not_fit(name, device)) from error


def _does_not_fit(name: str, device: torch.device) -> str:
    return (
        f"{name!r} does not fit into the free memory of {device}; use a smaller model or dtype, or "
        "load_options={'device_map': 'auto'}"
    )


def _check_is_folder(name: str) -> None:
    """Refuse a path that is not a folder, since the hub would complain about its name."""
    looks = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name
    if looks and not Path(name).is_dir():
        raise InputError(
            f"model {name!r} is not a folder; expected one with config.json, *.safetensors and tokenizer.json, or a model's "
            "name on the Hugging Face hub"
        )


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Show progress bars only on a terminal: in a pipe or a log they are noise."""
    quiet = not sys.stderr.isatty() and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    """The dtype to load; by default float32 on a CPU, where half precision is slow, else the checkpoint's."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype != "auto":
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise InputError(f"dtype is {dtype!r}; expected bfloat16, float16, float32 or auto")
        return found
    return "auto"


def _cannot_load(name: str, error: Exception) -> str:
    """The error message. The library's own messages are long, and their first line says what was wrong."""
    if Path(name).is_dir():
        expected = "expected a folder with config.json, *.safetensors and tokenizer.json"
    else:
        expected = (
            "expected a folder, or a model's name on the Hugging Face hub that this machine may download (log in for gated "
            "ones; unset HF_HUB_OFFLINE)"
        )
    return f"model {name!r} cannot be loaded ({(str(error).strip().splitlines() or [type(error).__name__])[0]}); {expected}"


def load_tokenizer(name: str, load_options: Mapping[str, Any]) -> Any:
    """Load a tokenizer from a folder, or by a name on the hub.

    Raises:
        InputError: there is no such tokenizer.
    """
    _check_is_folder(name)
    known = {
        key: load_options[key] for key in ("revision", "trust_remote_code", "token") if key in load_options
    }
    try:
        return AutoTokenizer.from_pretrained(name, **known)
    except Exception as error:  # over a broken file, the libraries raise anything
        raise InputError(_cannot_load(name, error)) from error


def fast(tokenizer: Any) -> Tokenizer:
    """The tokenizer of the `tokenizers` package that does the work.

    Raises:
        InputError: it is a slow tokenizer, which has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InputError(
            f"{type(tokenizer).__name__} is a slow tokenizer; expected one with a tokenizer.json: save it once with "
            "AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
        )
    return backend


def end_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a generation, from every configuration that may name them."""
    found: set[int] = set()
    for owner in (
        model.generation_config,
        model.config,
        model.config.get_text_config(decoder=True),
        tokenizer,
    ):
        ids = getattr(owner, "eos_token_id", None)
        found.update(ids if isinstance(ids, Iterable) else [] if ids is None else [ids])
    return frozenset(found)


def make_renderer(
    tokenizer: Any, ends: frozenset[int], chat_template: str | None, template_kwargs: Mapping[str, Any]
) -> TemplateRenderer:
    """Make a renderer with the tokenizer's chat template, or another.

    Raises:
        InputError: there is no template, or the tokenizer is a slow one.
    """
    if chat_template is not None and not isinstance(chat_template, str):
        raise InputError(
            f"chat_template is {chat_template!r}; expected Jinja, or the name of one of the tokenizer's"
        )
    template = getattr(tokenizer, "chat_template", None)
    if chat_template is not None:
        template = template.get(chat_template, chat_template) if isinstance(template, dict) else chat_template
    if not isinstance(template, str | dict) or not template:
        raise InputError(
            "the tokenizer has no chat template, as base models have none; use an instruct model, or give "
            "chat_template='…' (Jinja)"
        )
    special = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    return TemplateRenderer(fast(tokenizer), template, special, ends, template_kwargs)


def make_texts(tokenizer: Any, vocab_size: int) -> TokenTexts:
    """The texts of the model's tokens.

    Raises:
        InputError: the tokenizer is of an unsupported kind, or not this model's.
    """
    if fast(tokenizer).get_vocab_size() <= len(fast(tokenizer).get_added_tokens_decoder()):
        raise InputError(
            "the tokenizer has no vocabulary, as if tokenizer.json were missing; expected it beside the model, or give "
            "tokenizer='…', a folder or name that has it"
        )
    texts = token_texts(json.loads(fast(tokenizer).to_str()), vocab_size)
    if len(texts.bytes) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(texts.bytes)} tokens and the model's embeddings {vocab_size}; use the model's own "
            "tokenizer, or call model.resize_token_embeddings"
        )
    return texts
