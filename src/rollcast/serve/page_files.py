"""The files of the live page (`serve/page/`): read once, compressed once, and found by the end of a request's path.

They are sent without comments and indentation (`page_source.py`), and `main.js` with all modules that it imports (`page_bundle.py`), since a
connection for each of them would take longer than anything else. What `vendor/` has is sent as it is.

`/style.css` is `style.css`, and so is `/user/ada/proxy/8765/style.css`, which a proxy that leaves its prefix in the path asks for. A
path that ends in a slash is `index.html`.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable

from websockets.datastructures import Headers
from websockets.http11 import Response

from rollcast.archive import zstd
from rollcast.serve.page_bundle import joined_modules
from rollcast.serve.page_source import css_without_comments, javascript_without_comments

__all__ = ["CONTENT_SECURITY_POLICY", "MIME_TYPES", "PageFile", "PageFiles", "is_url_path", "read_page_files"]

MIME_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_COMPRESSED = {".png"}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# `default-src` says nothing about these three. A browser enforces both policies.
_NO_FORMS_OR_FRAMES = "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
_HEADERS = (
    ("Cache-Control", "no-cache"),  # a browser asks each time, and is told 304 if nothing has changed
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Content-Security-Policy", _NO_FORMS_OR_FRAMES),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", "Accept-Encoding"),
    ("X-Content-Type-Options", "nosniff"),
)
_THIRD_PARTY = "vendor/"
_MAIN = "main.js"
_URL_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?|/")  # RFC 3986, without empty segments


def is_url_path(path: str) -> bool:
    """Whether this is the path of a URL, without empty segments, `.` and `..`."""
    return _URL_PATH.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))


@dataclass(frozen=True)
class PageFile:
    """One file of the page.

    Attributes:
        name: its path within the page, such as `vendor/preact.js`.
        mime_type: its `Content-Type`.
        data: its bytes.
        compressed: the same with gzip; None if that is not smaller.
        zstd: the same with zstd (RFC 8878); None if that is not smaller than `compressed`, or no library for it is installed. Browsers
            take it on loopback and over https.
        etag: of `data`, without quotes; `compressed` has the same with `-gz`, and `zstd` with `-zst`.
    """

    name: str
    mime_type: str
    data: bytes
    compressed: bytes | None
    zstd: bytes | None
    etag: str

    @classmethod
    def of(cls, name: str, data: bytes) -> PageFile:
        """The file with this content."""
        suffix = _suffix(name)
        smaller = None if suffix in _COMPRESSED else gzip.compress(data, 9, mtime=0)
        if smaller is not None and len(smaller) >= len(data):
            smaller = None
        smallest = None if smaller is None else zstd.smallest(data)
        if smaller is not None and smallest is not None and len(smallest) >= len(smaller):
            smallest = None
        return cls(name, MIME_TYPES[suffix], data, smaller, smallest, hashlib.sha256(data).hexdigest()[:24])

    def response(self, request: Headers) -> Response:
        """The answer to a request with these headers: the file, or 304 if the client has it."""
        body, etag, encoding = self.data, f'"{self.etag}"', None
        if self.zstd is not None and _takes(request, "zstd"):
            body, etag, encoding = self.zstd, f'"{self.etag}-zst"', "zstd"
        elif self.compressed is not None and _takes(request, "gzip"):
            body, etag, encoding = self.compressed, f'"{self.etag}-gz"', "gzip"
        headers = Headers(
            [("Date", formatdate(usegmt=True)), ("Connection", "close"), ("ETag", etag), *_HEADERS]
        )
        if _has(request, etag):
            return Response(HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_MODIFIED.phrase, headers, b"")
        headers["Content-Type"] = self.mime_type
        headers["Content-Length"] = str(len(body))
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, body)


class PageFiles:
    """The files of the page by name.

    Args:
        found: their contents by name.
    """

    def __init__(self, found: dict[str, bytes]) -> None:
        self._files = {
            name: PageFile.of(name, data) for name, data in found.items() if _suffix(name) in MIME_TYPES
        }

    @property
    def names(self) -> list[str]:
        """Of all files."""
        return list(self._files)

    def at(self, path: str) -> PageFile | None:
        """The file at a path, whatever prefix stands before it; None if there is none."""
        if not is_url_path(path):
            return None
        if path.endswith("/"):
            return self._files.get("index.html")
        rest = path
        while rest:
            _, _, rest = rest.partition("/")
            if rest in self._files:
                return self._files[rest]
        return None


@cache
def read_page_files() -> PageFiles:
    """The files that are installed with the package. The first call reads them from the disk."""
    found: dict[str, bytes] = {}
    _collect(files("rollcast.serve") / "page", "", found)
    return PageFiles(as_sent(found))


def as_sent(sources: dict[str, bytes]) -> dict[str, bytes]:
    """The files that are sent for these sources, by name: without comments, and with all modules that `main.js` imports joined to it."""
    sent = dict(sources)
    for name, data in sources.items():
        if name.startswith(_THIRD_PARTY):
            continue
        if name == _MAIN:
            modules = {each: text.decode() for each, text in sources.items() if each.endswith(".js")}
            sent[name] = joined_modules(name, modules, lambda each: each.startswith(_THIRD_PARTY)).encode()
        elif name.endswith(".js"):
            sent[name] = javascript_without_comments(data.decode()).encode()
        elif name.endswith(".css"):
            sent[name] = css_without_comments(data.decode()).encode()
    return sent


def _collect(folder: Traversable, prefix: str, found: dict[str, bytes]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", found)
        elif _suffix(entry.name) in MIME_TYPES:
            found[prefix + entry.name] = entry.read_bytes()


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2]}"


def _takes(request: Headers, wanted: str) -> bool:
    """Whether `Accept-Encoding` allows this coding (RFC 9110, 12.5.3). `*` stands for gzip, which everything that reads HTTP knows."""
    for given in ",".join(request.get_all("Accept-Encoding")).split(","):
        coding, *parameters = (part.strip().lower() for part in given.split(";"))
        if coding == wanted or (coding == "*" and wanted == "gzip"):
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _has(request: Headers, etag: str) -> bool:
    """Whether `If-None-Match` names the ETag; it is compared weakly (RFC 9110, 13.1.2)."""
    given = ",".join(request.get_all("If-None-Match"))
    return any(each.strip().removeprefix("W/") in (etag, "*") for each in given.split(","))
