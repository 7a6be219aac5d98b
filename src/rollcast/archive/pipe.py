"""How a process and the child that reads records for it speak over two pipes: MessagePack, each message after its length.

    parent ──Open, More, Stop──▶ child
    parent ◀──Item, End, Failure── child

The parent opens a reading and says how many items it takes. The child sends no more than that, so what waits in the parent is
bounded by what it asked for, and a reading that nobody takes from costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from rollcast.archive.readings import Given, Reading

__all__ = [
    "End",
    "Failure",
    "FromChild",
    "FromParent",
    "Item",
    "More",
    "Open",
    "Stop",
    "framed",
    "from_child",
    "from_parent",
    "read_message",
]

_LENGTH_BYTES = 4
LARGEST = 1 << 30  # bytes of one message; a longer one means that the pipe carries something else


class Open(msgspec.Struct, tag="open", array_like=True):
    """Begin a reading. The parent chooses `id`, and takes `credit` items for now."""

    id: int
    reading: Reading
    credit: int = 1


class More(msgspec.Struct, tag="more", array_like=True):
    """The parent takes so many further items."""

    id: int
    credit: int = 1


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """The parent takes no further items. Nothing is answered."""

    id: int


class Item(msgspec.Struct, tag="item", array_like=True):
    """The next item of a reading."""

    id: int
    given: Given


class End(msgspec.Struct, tag="end", array_like=True):
    """The reading is complete."""

    id: int


class Failure(msgspec.Struct, tag="failure", array_like=True):
    """The reading failed.

    Attributes:
        id: of the reading.
        kind: `record`: the record cannot be read. `input`: the request is wrong. `fault`: the child has a fault.
        message: a sentence; of a fault, the traceback.
    """

    id: int
    kind: Literal["record", "input", "fault"]
    message: str


FromParent = Open | More | Stop
FromChild = Item | End | Failure

_encoder = msgspec.msgpack.Encoder()
from_parent: Callable[[bytes], FromParent] = msgspec.msgpack.Decoder(FromParent).decode
from_child: Callable[[bytes], FromChild] = msgspec.msgpack.Decoder(FromChild).decode


def framed(message: FromParent | FromChild) -> bytes:
    """The message with its length before it."""
    data = _encoder.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES) + data


def read_message(read: Callable[[int], bytes]) -> Any | None:
    """The bytes of the next message; None at the end of the pipe, in the middle of a message too.

    Args:
        read: reads up to so many bytes, and gives fewer only at the end of the pipe.

    Raises:
        ValueError: what comes is no message.
    """
    head = read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head)
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes comes through the pipe; expected at most {LARGEST}")
    data = read(length)
    return data if len(data) == length else None
