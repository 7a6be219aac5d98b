"""Images that tools return: a line of text for events and text models, parts for models that read images."""

from __future__ import annotations

import base64
import io
from typing import Any

from rollcast.errors import InputError

__all__ = ["IMAGE_LIMIT", "Image", "as_image"]

IMAGE_LIMIT = 20 << 20
"""The most bytes that the images of one tool call may have together."""

_PNG, _JPEG, _GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"GIF87a", b"GIF89a")


class Image:
    """A PNG, JPEG, GIF or WebP. Nothing is decoded: the kind and the size are read from its first bytes.

    Attributes:
        data: the file's bytes.
        mime_type: `image/png` and so on.
        size: width and height in pixels; None if the file does not say.

    Raises:
        InputError: the bytes are not one of these.
    """

    def __init__(self, data: bytes) -> None:
        kind = _kind(data)
        if kind is None:
            raise InputError(
                f"an image was made of {len(data)} bytes that are not an image; expected a PNG, JPEG, GIF or WebP file's"
            )
        self.data = bytes(data)
        self.mime_type = f"image/{kind}"
        self.size = _size(kind, self.data)

    def __str__(self) -> str:
        """Its note in an observation: `[image/png 640x480, 12345 bytes]`."""
        size = "" if self.size is None else f" {self.size[0]}x{self.size[1]}"
        return f"[{self.mime_type}{size}, {len(self.data)} bytes]"

    def __repr__(self) -> str:
        return f"<Image {self}>"

    @property
    def part(self) -> dict[str, Any]:
        """The part of a message in the OpenAI API's form: `{"type": "image_url", …}` with a `data:` URL."""
        url = f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}


def as_image(value: Any) -> Image | None:
    """The image in a tool's result: an `Image`, the bytes of one, or an object that can save itself as one, like Pillow's.

    Exceptions from the value's own `save` pass through.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, bytes | bytearray):
        return None if _kind(value) is None else Image(bytes(value))
    if callable(getattr(type(value), "save", None)) and isinstance(getattr(value, "size", None), tuple):
        file = io.BytesIO()
        value.save(file, format="PNG")
        return Image(file.getvalue())
    return None


def _kind(data: bytes | bytearray) -> str | None:
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(_GIF):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _size(kind: str, data: bytes) -> tuple[int, int] | None:
    """Width and height, if the header is long enough."""
    if kind == "png":
        return _pair(data, 16, 4, "big") if data[12:16] == b"IHDR" else None
    if kind == "gif":
        return _pair(data, 6, 2, "little")
    if kind == "jpeg":
        return _jpeg_size(data)
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and len(data) >= 30:
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        return width, height
    return None


def _pair(data: bytes, at: int, width: int, order: Any) -> tuple[int, int] | None:
    if len(data) < at + 2 * width:
        return None
    middle = at + width
    return int.from_bytes(data[at:middle], order), int.from_bytes(data[middle : middle + width], order)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size from the frame header: the first of the segments SOF0 … SOF15 except DHT, JPG and DAC."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height_width = _pair(data, at + 5, 2, "big")
            return None if height_width is None else (height_width[1], height_width[0])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
