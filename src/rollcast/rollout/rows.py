"""Reads the rows that a run starts from: each is a conversation and the fields that its rewards and tools may use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollcast.errors import InputError, MessagesError
from rollcast.failures import text_of
from rollcast.records import Message, validated_messages
from rollcast.records.jsonable import bounded_json, plain_scalar, plain_scalars

__all__ = ["PromptRow", "as_rows", "count", "derived_seed", "row_with_messages"]

EXPECTED = (
    'expected one conversation [{"role": "user", "content": "…"}], or rows [{"messages": [...], "answer": …}] '
    'or [{"prompt": "…"}], as a list or a dataset'
)


_SYSTEM = ("system", "developer")


class PromptRow(msgspec.Struct, frozen=True):
    """One prompt.

    Attributes:
        messages: the conversation.
        fields: its other fields, with the objects that were given.
        reference: the row's `answer` as events show it, as bounded JSON; None if it has none.
    """

    messages: list[Message]
    fields: dict[str, Any]
    reference: Any = None


def as_rows(start_messages: Any, system_prompt: str | None = None, instructions: str = "") -> list[PromptRow]:
    """Read `start_messages` into rows.

    It is one conversation; or rows `{"messages": […], …fields}` or `{"prompt": messages or text, …fields}` in a list, a
    `datasets.Dataset` or a table of pandas, polars or pyarrow; or one such row.

    Conversations without a system prompt get this one; the instructions are added to the end of every conversation's system
    prompt.

    Raises:
        MessagesError: it has another form, or is empty.
    """
    items = _items(start_messages)
    if not items:
        raise MessagesError(
            'start_messages is empty; give one conversation [{"role": "user", "content": "…"}] or a list of rows'
        )
    are_rows = [
        isinstance(item, Mapping) and not item.keys().isdisjoint(("messages", "prompt")) for item in items
    ]
    if not any(are_rows):
        first = items[0]
        if isinstance(first, Mapping) and "role" not in first and "content" not in first:
            raise MessagesError(
                f"start_messages[0] has neither 'messages' nor 'prompt' (its fields: {_names(first)}); name the "
                "question 'prompt', or make messages of it"
            )
        return [_row({"messages": items}, "start_messages", system_prompt, instructions)]
    if not all(are_rows):
        i = are_rows.index(False)
        raise MessagesError(
            f"start_messages[{i}] has no 'messages', but others have; "
            'give a list of rows {"messages": [...]} or one conversation, not both'
        )
    return [
        _row(
            row_with_messages(item, f"start_messages[{i}]"),
            f"start_messages[{i}]['messages']",
            system_prompt,
            instructions,
        )
        for i, item in enumerate(items)
    ]


def row_with_messages(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the row with its conversation as `messages`, whichever of the two forms it has.

    A `prompt` is text, or messages, as in TRL's rows. Beside `messages` it is a field like any other.

    Raises:
        MessagesError: it has neither, or its prompt is neither text nor messages; `place` names the row.
    """
    row = dict(item)
    if row.get("messages") is not None:
        if row.get("prompt", "") is None:  # a table with both kinds of rows fills it in
            del row["prompt"]
        return row
    prompt = plain_scalar(row.get("prompt"))
    if prompt is None:
        raise MessagesError(
            f'{place} is not a row: expected an object with "messages" or "prompt"; its fields: {_names(row)}'
        )
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], str | list | tuple):
        raise MessagesError(
            f"{place}['prompt'] is a list of {len(prompt)} prompts; expected one for each row: "
            '[{"prompt": …}, {"prompt": …}], as dataset.select(range(2)) gives, and dataset[:2] does not'
        )
    elif not isinstance(prompt, list | tuple) and not hasattr(prompt, "tolist"):
        raise MessagesError(
            f"{place}['prompt'] is {type(prompt).__name__}; expected text, or a list of messages "
            '[{"role": "user", "content": "…"}, …]'
        )
    return {"messages": prompt} | {name: row[name] for name in row if name not in ("messages", "prompt")}


def _items(given: Any) -> Sequence[Any]:
    """The messages or the rows, from whatever holds them."""
    found = f"start_messages is {type(given).__name__}"
    if isinstance(given, str | bytes | bytearray):
        raise MessagesError(f"{found}; {EXPECTED}")
    if isinstance(given, Mapping):
        if "messages" in given or "prompt" in given:
            return [given]
        splits = [name for name, split in given.items() if hasattr(split, "column_names")]
        if splits:
            raise MessagesError(
                f"{found} with the splits {', '.join(map(str, splits))}; give one of them, such as dataset[{splits[0]!r}]"
            )
        raise MessagesError(f"{found}; {EXPECTED}")
    if hasattr(given, "column_names") and not hasattr(given, "__len__"):
        raise MessagesError(f"{found}, which may have no end; give some of its rows: list(dataset.take(100))")
    if isinstance(given, Sequence):
        return given
    try:
        return _rows_of_a_table(given, found)
    except MessagesError:
        raise
    except Exception as error:
        raise MessagesError(
            f"{found}, whose rows cannot be read: {type(error).__name__}: {text_of(error)}; give a list of rows"
        ) from error


def _rows_of_a_table(given: Any, found: str) -> Sequence[Any]:
    if callable(getattr(given, "to_pylist", None)):  # pyarrow
        rows = given.to_pylist()
    elif callable(getattr(given, "to_dicts", None)):  # polars
        rows = given.to_dicts()
    elif hasattr(given, "columns") and callable(getattr(given, "to_dict", None)):  # pandas
        rows = given.to_dict("records")
    elif hasattr(given, "column_names"):  # datasets
        rows = list(given)
        if rows and not isinstance(rows[0], Mapping):  # its format makes tables of rows
            rows = list(given.with_format(None))
    elif callable(getattr(given, "to_dict", None)) and hasattr(
        given, "index"
    ):  # one row of a table of pandas
        rows = [row] if "prompt" in (row := given.to_dict()) or "messages" in row else given.tolist()
    elif callable(getattr(given, "tolist", None)):  # NumPy
        rows = given.tolist()
    else:
        raise MessagesError(f"{found}; {EXPECTED}")
    return rows if isinstance(rows, list) else [rows]


def _row(item: Mapping[str, Any], where: str, system_prompt: str | None, instructions: str) -> PromptRow:
    given = item["messages"]
    if callable(getattr(given, "tolist", None)):  # an array of messages, as parquet files give
        given = given.tolist()
    messages = validated_messages(plain_scalars(given), where)
    if system_prompt is not None and messages[0]["role"] not in _SYSTEM:
        messages.insert(0, {"role": "system", "content": system_prompt})
    if instructions:
        first = messages[0]
        if first["role"] not in _SYSTEM:
            messages.insert(0, {"role": "system", "content": instructions})
        elif isinstance(first["content"], str):
            first["content"] = f"{first['content']}\n\n{instructions}"
        else:
            first["content"] = [*(first["content"] or []), {"type": "text", "text": instructions}]
    fields = {name: value for name, value in item.items() if name != "messages"}
    return PromptRow(messages, fields, bounded_json(fields.get("answer")))


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def count(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return the value if it is a whole number and large enough.

    Raises:
        InputError: it is not; `name` names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name} is {value!r}; expected a whole number from {at_least} upward")
    return value


def derived_seed(*path: int | str) -> int:
    """A seed of 63 bits that depends only on the whole path."""
    digest = hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
