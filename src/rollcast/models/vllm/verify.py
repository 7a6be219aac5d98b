"""Verifies that vLLM samples from the weights that it was given.

vLLM fuses, shards, packs and quantises what it loads, so its parameters cannot be compared with a checkpoint's, and on a
CPU the packed ones cannot even be read. What can be compared is the model's output: the log-probabilities of some tokens,
from vLLM and from a plain forward pass of transformers over the same checkpoint.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from rollcast.errors import BackendError

__all__ = ["Probe", "reference_logprobs"]

_LENGTH = 48

# The error that float32 on both sides leaves; for other types it is measured.
_LEAST_ERROR = 2e-4

# A later checkpoint may round a little worse than the first.
_MARGIN = 4.0

# Two implementations that differ by more than this, in nats per token, do not compute the same function.
_USELESS = 1.0


class Probe:
    """Fixed tokens, and how far vLLM's log-probabilities of them may be from the reference's.

    Args:
        vocabulary: number of token ids.
        context: the model's context, in tokens.

    Attributes:
        ids: shape (T,).
        error: mean difference of the two over the tokens when both had the first weights; None before it was measured.
    """

    def __init__(self, vocabulary: int, context: int) -> None:
        chosen = random.Random(0)
        self.ids = [chosen.randrange(vocabulary) for _ in range(min(_LENGTH, context - 1))]
        self.error: float | None = None
        self._known: list[float] = []

    def calibrate(self, found: list[float], expected: list[float]) -> None:
        """Measure the error while both have the weights that vLLM was started with.

        Raises:
            BackendError: it is too large to verify anything.
        """
        error = _difference(found, expected)
        if not error <= _USELESS:
            raise BackendError(
                f"vLLM and transformers differ by {error:.2g} nats per token on the weights that vLLM was started with, so "
                "that new weights cannot be verified; give verify_weights=False if you check them yourself"
            )
        self.error = error
        self._known = expected

    def judge(self, before: list[float], after: list[float], expected: list[float], version: int) -> None:
        """Compare vLLM's log-probabilities after a sync with the reference's.

        Args:
            before: from vLLM, with the old weights.
            after: from vLLM, with the new weights.
            expected: from the reference, with the new weights.
            version: the version of the new weights.

        Raises:
            BackendError: the sync had no effect, or the wrong one.
        """
        assert self.error is not None
        error = _difference(after, expected)
        limit = max(_LEAST_ERROR, _MARGIN * self.error)
        changed = _difference(expected, self._known)
        ignored = before == after and changed > max(_LEAST_ERROR / 10, self.error)
        if error <= limit and not ignored:
            self._known = expected
            return
        did = "did not change" if before == after else "are not those of the checkpoint"
        raise BackendError(
            f"vLLM took the weights of version {version} without an error, but its log-probabilities {did}: they are off by "
            f"{error:.2g} nats per token, expected at most {limit:.2g}. On a CPU this happens with tied embeddings "
            "(its packed output layer keeps the old ones): untie them (tie_word_embeddings=false, with an "
            "lm_head.weight of its own), or make a new backend from the new checkpoint"
        )


def reference_logprobs(folder: Path, dtype: Any, ids: list[int], adapter: str | None = None) -> list[float]:
    """The log-probability of each id but the first, shape (T - 1,), from transformers, in float32 on the CPU.

    Args:
        folder: a checkpoint.
        dtype: the dtype to which the weights are rounded first, as vLLM does.
        ids: shape (T,).
        adapter: the folder of a LoRA adapter to merge.

    Raises:
        BackendError: transformers cannot load the checkpoint, or not all of it.
    """
    import torch  # noqa: PLC0415  (comes with vLLM, and takes seconds)
    import transformers  # noqa: PLC0415

    library: Any = transformers  # partly typed
    logging = library.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        load = library.AutoModelForCausalLM.from_pretrained
        model, report = load(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BackendError(
            f"transformers cannot load the model to verify vLLM's weights ({error}); give verify_weights=False if you "
            "check them yourself"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if report["missing_keys"]:
        names = ", ".join(sorted(map(str, report["missing_keys"]))[:3])
        raise BackendError(
            f"transformers finds no {names} in the checkpoint, so vLLM's weights cannot be verified"
        )
    model = model.float().eval()
    with torch.inference_mode():
        if adapter is not None:
            _merge(model, Path(adapter))
        tokens_1T = torch.tensor([ids])
        logits_TV = model(tokens_1T).logits[0, :-1].float()
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
        found: list[float] = logprobs_TV.gather(-1, tokens_1T[0, 1:, None])[:, 0].tolist()
    return found


def _merge(model: Any, adapter: Path) -> None:
    """Add each `lora_B @ lora_A`, scaled, to its weight."""
    from safetensors.torch import load_file  # noqa: PLC0415  (imports torch)

    configuration = json.loads((adapter / "adapter_config.json").read_bytes())
    rank = configuration["r"]
    scale = configuration["lora_alpha"] / (math.sqrt(rank) if configuration.get("use_rslora") else rank)
    tensors = load_file(adapter / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    merged = 0
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        target = parameters.get(stem.removeprefix("base_model.model.") + ".weight")
        if target is None:
            raise BackendError(f"the LoRA adapter is for {stem}, which the model does not have")
        target += scale * (tensors[f"{stem}.lora_B.weight"].float() @ down.float())
        merged += 1
    if not merged:
        raise BackendError(f"the LoRA adapter {adapter} has no lora_A.weight; expected PEFT's names")


def _difference(left: list[float], right: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(left)
