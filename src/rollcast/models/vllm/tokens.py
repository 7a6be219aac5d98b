"""Finds a model's folder, its tokenizer, and the ids that end a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rollcast.errors import InputError

__all__ = ["end_ids", "model_folder", "read_tokenizer"]

_SMALL_FILES = ("*.json", "*.jinja")


def model_folder(name: str, revision: str | None = None, cache: str | None = None) -> Path:
    """The folder itself, or the one in the hub's cache with the model's small files, which are downloaded if missing.

    Raises:
        InputError: there is no such folder or model.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; expected the folder of a Hugging Face model")
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(
            f"there is no folder {name}; expected the folder of a Hugging Face model, or a name on the hub"
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (comes with vLLM)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=list(_SMALL_FILES))
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"the model {name} is neither a folder nor available from the Hugging Face hub "
            f"({type(error).__name__}); check the name, HF_TOKEN and HF_HUB_OFFLINE"
        ) from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the fast tokenizer in a folder.

    Raises:
        InputError: there is no tokenizer.json, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the tokenizers package raises bare Exception for a broken file
        raise InputError(f"{path} cannot be read ({error}); expected a fast tokenizer") from error


def end_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Every id that ends a turn according to one of the model's configurations.

    Raises:
        InputError: no configuration names one.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _read(folder / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    token = _read(folder / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str) and (index := tokenizer.token_to_id(content)) is not None:
        found.add(index)
    if not found:
        raise InputError(
            f"{folder} names no token that ends a turn; expected eos_token_id in generation_config.json"
        )
    return frozenset(found)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a JSON object") from error
    return value if isinstance(value, dict) else {}
