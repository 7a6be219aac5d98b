"""Reads a Qwen3 checkpoint folder: configuration, safetensors, and the arrays that the forward pass needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from rollcast.errors import InputError
from rollcast.models.checksums import check_folder

__all__ = [
    "LayerParameters",
    "ModelConfig",
    "Parameters",
    "build_parameters",
    "parameter_shapes",
    "read_config",
    "read_safetensors",
    "read_weights",
]

Array = NDArray[np.float32]

# The exponential of either sign of it, times the longest context, is well inside of float32.
_LARGEST_SCORE = 40.0

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


class ModelConfig(msgspec.Struct, frozen=True):
    """The sizes of a Qwen3 model, named as in its `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]


class LayerParameters(NamedTuple):
    """One decoder layer, ready to multiply from the right. D hidden, F feed-forward, A heads, G KV heads, K head size.

    The weights of the two norms before the matrices are folded into them, and the root of the mean's denominator into
    all norms: `x / sqrt(sum(x²) + n eps)` remains. The queries' norm carries the attention's 1 / sqrt(K).

    Attributes:
        bounded: the norms keep all attention scores so small that their exponentials fit without a shift.
    """

    qkv_DE: Array  # E = (A + 2 G) K
    norm_qk: Array  # (A + G, K)
    out_ED: Array  # E = A K
    gate_up_DF: Array  # (D, 2 F)
    down_FD: Array
    bounded: bool


class Parameters(NamedTuple):
    """All weights, float32. V vocabulary, D hidden, T positions, K head size."""

    embed_VD: Array
    unembed_DV: Array  # the last norm folded in
    layers: list[LayerParameters]
    cos_TK: Array
    sin_TK: Array  # the first half negated, so that a rotation is x * cos + swap(x) * sin


def read_config(folder: Path) -> ModelConfig:
    """The sizes in `folder/config.json`.

    Raises:
        InputError: there is no such file, or it describes another architecture.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); expected the folder of a Qwen3 checkpoint"
        ) from error
    if not isinstance(raw, dict) or raw.get("model_type") != "qwen3":
        found = raw.get("model_type") if isinstance(raw, dict) else raw
        raise InputError(
            f"{path} has model_type {found!r}; the tiny backend runs 'qwen3' only; "
            "use the transformers or vllm backend for other models"
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    unsupported = {
        "attention_bias": bool(raw.get("attention_bias")),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(raw.get("use_sliding_window")),
        "rope scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for name, found in unsupported.items():
        if found:
            raise InputError(
                f"{path} asks for {name}, which the tiny backend does not have; use the transformers backend"
            )
    eos = raw.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    filled = {
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **raw,
        "eos_token_ids": ends,
    }
    try:
        return msgspec.convert(filled, ModelConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not a complete Qwen3 configuration: {error}") from error


def read_safetensors(path: Path) -> dict[str, Array]:
    """Read every tensor of a safetensors file, as float32.

    Source: https://github.com/huggingface/safetensors#format

    Raises:
        InputError: the file is missing, cut off, or holds a type that is not a float.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a safetensors file") from error
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        body = memoryview(data)[start:]
        return {name: _tensor(entry, body) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file of floats ({error}); expected BF16, F16, F32 or F64 tensors; "
            "save the checkpoint again"
        ) from error


def _tensor(entry: dict[str, Any], body: memoryview) -> Array:
    begin, end = entry["data_offsets"]
    raw, dtype = body[begin:end], entry["dtype"]
    if dtype == "BF16":
        flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(raw, np.dtype(_DTYPES[dtype]).newbyteorder("<")).astype(np.float32)
    return flat.reshape(entry["shape"])


def read_weights(source: Any) -> dict[str, Any]:
    """Read weights by their Hugging Face names: from a mapping, a safetensors file, or a folder with such files.

    Raises:
        InputError: it is not one of these, or the folder's files are not what was saved.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, str | Path):
        raise InputError(
            f"weights are {type(source).__name__}; expected a mapping of parameter names to arrays, or a path"
        )
    path = Path(source)
    if not path.is_dir():
        return read_safetensors(path)
    check_folder(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path} has no *.safetensors file; expected the folder of a Qwen3 checkpoint")
    return {name: array for file in files for name, array in read_safetensors(file).items()}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a checkpoint of this configuration has, with its shape."""
    hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (heads, hidden),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
            layer + "self_attn.q_norm.weight": (size,),
            layer + "self_attn.k_norm.weight": (size,),
            layer + "self_attn.o_proj.weight": (hidden, heads),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes


def _checked(weights: Mapping[str, Any], config: ModelConfig) -> dict[str, Array]:
    shapes = parameter_shapes(config)
    # Some trainers save a tied head beside the embedding, which is allowed.
    spare = {"lm_head.weight"} if config.tie_word_embeddings else set()
    unknown = sorted(set(weights) - set(shapes) - spare)
    missing = sorted(set(shapes) - set(weights))
    if unknown or missing:
        name, what = (missing[0], "lack") if missing else (unknown[0], "have an unknown")
        raise InputError(
            f"the weights {what} {name} ({len(missing)} missing, {len(unknown)} unknown); "
            f"expected the {len(shapes)} parameters of this Qwen3 model by their Hugging Face names"
        )
    arrays = {}
    for name, shape in shapes.items():
        array = np.asarray(weights[name], dtype=np.float32)
        if array.shape != shape:
            raise InputError(
                f"{name} has shape {array.shape}; expected {shape} from this model's config.json"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name} has values that are not finite; the training that made it diverged")
        arrays[name] = array
    return arrays


def build_parameters(weights: Mapping[str, Any], config: ModelConfig) -> Parameters:
    """Build the arrays of the forward pass; `weights` are not changed.

    Raises:
        InputError: a parameter is missing, unknown, of another shape or not finite; the message names it.
    """
    # Folding may overflow if weights are near float32's limit; then the logits are not finite, which raises an error.
    with np.errstate(over="ignore"):
        return _folded(_checked(weights, config), config)


def _folded(arrays: dict[str, Array], config: ModelConfig) -> Parameters:
    heads = config.num_attention_heads
    root = np.float32(config.hidden_size**0.5)
    layers = []
    for index in range(config.num_hidden_layers):

        def get(name: str, layer: str = f"model.layers.{index}.") -> Array:
            return arrays[f"{layer}{name}.weight"]

        before, after = (root * get(f"{place}_layernorm")[:, None] for place in ("input", "post_attention"))
        qkv = np.concatenate([get(f"self_attn.{kind}_proj") for kind in "qkv"]).T
        norm_q, norm_k = get("self_attn.q_norm"), get("self_attn.k_norm") * np.float32(config.head_dim**0.5)
        # By Cauchy-Schwarz: a normed vector of K numbers has length sqrt(K) before its weights.
        bound = float(np.abs(norm_q).max() * np.abs(norm_k).max())
        gate_up = np.concatenate([get("mlp.gate_proj"), get("mlp.up_proj")]).T
        layers.append(
            LayerParameters(
                qkv_DE=np.ascontiguousarray(before * qkv),
                norm_qk=np.stack([norm_q] * heads + [norm_k] * config.num_key_value_heads),
                out_ED=np.ascontiguousarray(get("self_attn.o_proj").T),
                gate_up_DF=np.ascontiguousarray(after * gate_up),
                down_FD=np.ascontiguousarray(get("mlp.down_proj").T),
                bounded=bound < _LARGEST_SCORE,
            )
        )
    # A copy, since the caller may go on training its own array in place.
    embed = arrays["model.embed_tokens.weight"].copy()
    head = embed if config.tie_word_embeddings else arrays["lm_head.weight"]
    unembed = np.ascontiguousarray(root * arrays["model.norm.weight"][:, None] * head.T)
    cos, sin = _rotations(config)
    return Parameters(embed, unembed, layers, cos, sin)


def _rotations(config: ModelConfig) -> tuple[Array, Array]:
    """Cosines and signed sines of rotary position embedding (https://arxiv.org/abs/2104.09864), each (T, K)."""
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angle = np.outer(np.arange(config.max_position_embeddings), frequency)
    cos = np.concatenate([np.cos(angle), np.cos(angle)], 1)
    sin = np.concatenate([-np.sin(angle), np.sin(angle)], 1)
    return cos.astype(np.float32), sin.astype(np.float32)
