"""Facts about tools that give images."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.errors import InputError
from rollcast.tools import Image, image, tool


def png(width=640, height=480, size=45):
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return head + b"\0" * (size - len(head))


class PillowLike:
    """As Pillow's images are: a size, and a `save` that writes a file."""

    size = (3, 2)

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def save(self, file, format):
        assert format == "PNG"
        if self.error:
            raise self.error
        file.write(png(3, 2))


JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc4\0\3\0\xff\xc0\0\x11\x08\1\xe0\2\x80\3\1\x22\0"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (png(), "[image/png 640x480, 45 bytes]"),
        (JPEG, f"[image/jpeg 640x480, {len(JPEG)} bytes]"),
        (b"GIF89a\x80\2\xe0\1;", "[image/gif 640x480, 11 bytes]"),
        (b"RIFF....WEBPVP8X" + b"\0" * 8 + b"\x7f\2\0\xdf\1\0", "[image/webp 640x480, 30 bytes]"),
        (
            b"RIFF....WEBPVP8L" + b"\0" * 5 + struct.pack("<I", 639 | 479 << 14),
            "[image/webp 640x480, 25 bytes]",
        ),
        (b"RIFF....WEBPVP8 " + b"\0" * 10 + b"\x80\2\xe0\1", "[image/webp 640x480, 30 bytes]"),
        (b"\x89PNG\r\n\x1a\n", "[image/png, 8 bytes]"),
        (b"\xff\xd8\xff", "[image/jpeg, 3 bytes]"),
    ],
)
def test_the_first_bytes_say_what_it_is(data, text):
    """Kind and size of each format; a cut header has no size."""
    assert str(Image(data)) == text


@given(
    st.sampled_from([png(), JPEG, b"GIF89a", b"RIFF....WEBPVP8L", b"RIFF....WEBPVP8 "]),
    st.binary(max_size=60),
)
def test_any_bytes_are_safe(head, tail):
    """However broken the file: one short line."""
    for cut in (len(head), len(head) // 2, 12):
        data = head[:cut] + tail
        try:
            text = str(Image(data))
        except InputError:
            continue
        assert text.startswith("[image/")
        assert text.endswith(f" {len(data)} bytes]")
        assert len(text) < 60


def test_other_bytes_are_no_image():
    """They are refused in a sentence."""
    with pytest.raises(
        InputError, match="made of 3 bytes that are not an image; expected a PNG, JPEG, GIF or WebP"
    ):
        Image(b"abc")


@pytest.mark.parametrize(
    "value", [Image(png(3, 2)), png(3, 2), bytearray(png(3, 2)), PillowLike()], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("kind", ["sync", "async", "inline"])
async def test_an_image_is_a_note_and_a_part(value, kind):
    """The observation is text; the result has the image, and parts for a model that sees."""

    def draw():
        return value

    async def paint():
        return value

    made = tool(paint) if kind == "async" else tool(draw, inline=kind == "inline")
    result = await made.invoke({})
    assert (result.observation, result.status) == ("[image/png 3x2, 45 bytes]", "success")
    url = "data:image/png;base64," + base64.b64encode(png(3, 2)).decode()
    assert result.parts == [
        {"type": "text", "text": "[image/png 3x2, 45 bytes]"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


async def test_images_in_a_value_are_found():
    """In lists and dicts, their notes stand in the JSON."""

    @tool
    def draw():
        return {"plots": [Image(png(1, 1)), PillowLike()], "n": 2}

    result = await draw.invoke({})
    assert json.loads(result.observation) == {
        "plots": ["[image/png 1x1, 45 bytes]", "[image/png 3x2, 45 bytes]"],
        "n": 2,
    }
    assert [kept.size for kept in result.images] == [(1, 1), (3, 2)]


async def test_a_generator_may_yield_images():
    """Among its pieces."""

    @tool
    async def draw():
        yield "first "
        yield Image(png(1, 1))

    pieces: list[str] = []
    result = await draw.invoke({}, None, pieces.append)
    assert pieces == ["first ", "[image/png 1x1, 45 bytes]"]
    assert len(result.images) == 1


async def test_images_are_bounded(monkeypatch):
    """A call whose images are too large together is an error, and keeps those that fit."""
    monkeypatch.setattr("rollcast.tools.observation.IMAGE_LIMIT", 100)

    @tool
    def flood():
        while True:
            yield png()

    result = await flood.invoke({})
    assert result.status == "error"
    assert result.observation.startswith(
        "error: the images are 135 bytes together, above the limit of 100; output so far: ["
    )
    assert len(result.images) == 2
    assert image.IMAGE_LIMIT == 20 * 2**20


async def test_an_image_that_cannot_be_saved_is_an_error():
    """Whatever its own `save` raises."""

    @tool
    def draw():
        return PillowLike(OSError("cannot write\nmode"))

    result = await draw.invoke({})
    assert (result.observation, result.status) == (
        "error: the image cannot be saved: cannot write mode",
        "error",
    )
    assert result.images == ()
