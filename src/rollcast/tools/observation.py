"""Turns a tool's result into text for the model, which is always a bounded string that can be encoded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rollcast.errors import ToolError
from rollcast.text import bounded, one_line, well_formed
from rollcast.tools.image import IMAGE_LIMIT, Image, as_image

__all__ = ["CannotShow", "Output", "as_text", "failure_text"]


class CannotShow(Exception):
    """A value cannot be shown as text; the message tells the model why."""


def as_text(value: Any, on_image: Callable[[Image], None] = lambda _: None) -> str:
    """Return a string as it is, an image as a note, bytes as UTF-8, anything else as JSON (also pydantic models).

    Args:
        value: a tool's result.
        on_image: called with each image that the value is or contains.

    Raises:
        CannotShow: it cannot be written as JSON, contains itself, or its own code for JSON fails.
    """
    if isinstance(value, str):
        return well_formed(str.__str__(value))  # a subclass may have a `__str__` that fails
    image = _image(value)
    if image is not None:
        on_image(image)
        return str(image)
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise CannotShow(f"the result is {len(value)} bytes that are not UTF-8 text") from None
    from pydantic_core import to_jsonable_python  # noqa: PLC0415  (only results that are not text need it)

    def fallback(inner: Any) -> Any:
        image = _image(inner)
        if image is None:
            return _plain(inner)
        on_image(image)
        return str(image)

    try:
        plain = to_jsonable_python(value, inf_nan_mode="constants", fallback=fallback)
        return well_formed(json.dumps(plain, ensure_ascii=False))
    except CannotShow:
        raise
    except Exception as error:  # noqa: BLE001  (the value's own code runs here and may raise anything)
        raise CannotShow(f"the result cannot be shown: {one_line(_exception_text(error))}") from None


def _image(value: Any) -> Image | None:
    try:
        return as_image(value)
    except Exception as error:  # noqa: BLE001  (the value's own `save` may raise anything)
        raise CannotShow(f"the image cannot be saved: {one_line(_exception_text(error))}") from None


def _plain(value: Any) -> Any:
    for name in ("tolist", "to_list", "to_pylist", "to_dict"):  # NumPy and torch, Polars, Arrow, pandas
        if callable(getattr(type(value), name, None)):
            return getattr(value, name)()
    if isinstance(value, Mapping):
        return dict(value)
    raise CannotShow(
        f"the result is or contains a value of type {type(value).__name__}, which is neither text nor JSON"
    )


def failure_text(error: BaseException) -> str:
    """`error: …` with the text of a ToolError, or the type and text of any other exception."""
    text = well_formed(_exception_text(error))
    if isinstance(error, ToolError):
        return text if text.startswith("error: ") else f"error: {text}"
    kind = type(error).__name__
    if isinstance(error, BaseExceptionGroup):  # its own text tells only how many there are
        text = f"{one_line(text, 120)}: {failure_text(error.exceptions[0]).removeprefix('error: ')}"
    return f"error: {kind}: {one_line(text)}" if text.strip() else f"error: {kind}"


def _exception_text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001  (an exception's own `__str__` may raise anything)
        return ""


class Output:
    """A tool's output so far; it passes on each new piece while the call is awaited.

    Worker threads may add to it: then `deliver` hops to the event loop.
    """

    def __init__(self, limit: int, deliver: Callable[[str], object] | None) -> None:
        self.limit = limit
        self.deliver = deliver
        self.pieces: list[str] = []
        self.images: list[Image] = []
        self.failure: BaseException | None = None  # what the tool's own code raised, not a ToolError
        self.kept = 0
        self.length = 0
        self.open = True
        self.lock = threading.Lock()

    def add(self, text: str) -> None:
        """Add a piece; what goes beyond the limit is counted and not kept."""
        with self.lock:
            piece = text[: self.limit - self.kept]
            self.length += len(text)
            if not (piece and self.open):
                return
            self.kept += len(piece)
            self.pieces.append(piece)
        if self.deliver is not None:
            self.deliver(piece)

    def add_value(self, value: Any) -> None:
        """Add a piece of any type, with its images."""
        self.add(as_text(value, self.keep))

    def keep(self, image: Image) -> None:
        """Add an image.

        Raises:
            CannotShow: the images of this call would be too large.
        """
        with self.lock:
            size = len(image.data) + sum(len(kept.data) for kept in self.images)
            if size > IMAGE_LIMIT:
                raise CannotShow(f"the images are {size} bytes together, above the limit of {IMAGE_LIMIT}")
            if self.open:
                self.images.append(image)

    def close(self) -> None:
        """Stop passing pieces on: the call is not awaited any more."""
        with self.lock:
            self.open = False

    @property
    def text(self) -> str:
        """The whole output, bounded."""
        with self.lock:
            return bounded("".join(self.pieces), self.limit, self.length)

    def after(self, message: str) -> str:
        """The message of a failure, followed by the output before it."""
        head = f"{message}; output so far: "
        with self.lock:
            if not self.pieces or len(head) >= self.limit:
                return bounded(message, self.limit)
            return head + bounded("".join(self.pieces), self.limit - len(head), self.length)
