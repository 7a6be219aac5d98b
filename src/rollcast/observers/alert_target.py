"""Where alerts go: an address that takes a POST, or a command. Each sends one alert, within a time limit, and can be broken off."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

from rollcast.errors import AlertError, InputError
from rollcast.text import plain_line
from rollcast.version import __version__

__all__ = ["AlertTarget", "CommandTarget", "UrlTarget", "alert_target"]

URL_S = 4.0  # for one alert, with all redirects
COMMAND_S = 10.0
REDIRECTS = 3
LOOK_S = 0.02  # between two looks whether a command has ended
VARIABLE = "ROLLCAST_ALERT"
_HIDDEN = ("ROLLCAST_TOKEN",)  # commands do not get these of our variables
_KEEPS_POST = (307, 308)
_TRY_AGAIN = 500  # an answer from here on may be another one a moment later
_TOO_MANY = 429


class AlertTarget(Protocol):
    """Sends alerts. `send` is called on one thread; `abort` may be called from any.

    Attributes:
        shown: its name for messages, without what may be secret.
        retries: whether an alert that failed may be sent again.
    """

    shown: str
    retries: bool

    def send(self, body: bytes) -> None:
        """Send one alert, which is JSON in ASCII.

        Raises:
            AlertError: it was not taken.
        """
        ...

    def abort(self) -> None:
        """Break off what is being sent now, and send nothing until `resume`: `send` raises."""
        ...

    def resume(self) -> None:
        """Send again."""
        ...


def alert_target(target: str, name: str = "the target of alerts") -> AlertTarget:
    """The address or the command that a text means.

    Args:
        target: `https://…` or `http://…`; or a command and its arguments, quoted as for a shell, which is not used.
        name: how messages call it.

    Raises:
        InputError: it is neither, or there is no such program.
    """
    text = target.strip()
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum():
        return UrlTarget(_checked_url(text, scheme.lower(), name))
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{name} is a command that cannot be split into words: {error}") from None
    if not words or not words[0] or "\0" in text:
        raise InputError(
            f"{name} is {'empty' if not text else 'not a command'}; expected an address such as https://example.com/hook, or a "
            "command such as 'notify-send Rollcast'"
        )
    if shutil.which(words[0]) is None:
        raise InputError(
            f"{name} is a command, and there is no program {plain_line(words[0], 60)!r}; expected a program on the PATH or the path "
            "of one, or an address that begins with https://"
        )
    return CommandTarget(words)


def _checked_url(url: str, scheme: str, name: str) -> str:
    """The address, if alerts can be sent there. Its path is never shown, since it is often the secret of a webhook."""
    if scheme not in ("http", "https"):
        raise InputError(
            f"{name} is an address that begins with {plain_line(scheme, 20)}://; expected https:// or http://"
        )
    try:
        parts = urlsplit(url)
        valid = (
            bool(parts.hostname)
            and parts.port != 0
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
        user = parts.username is not None
    except ValueError:
        valid = user = False
    if not valid:
        raise InputError(f"{name} is not a valid address; expected one such as https://example.com/hook")
    if user:
        raise InputError(
            f"{name} has a user or a password before its host, which is not supported; use an address without one, or a command "
            "that signs in, such as curl"
        )
    return url


# -- an address ------------------------------------------------------------------------------------------------------------


class UrlTarget:
    """Sends alerts by POST. A certificate that is not valid is refused, and proxies of the environment are used.

    At most three redirects are followed, only such as keep a POST (307, 308), on the same host, and never from https to http.
    """

    retries = True  # a server may be busy for a moment

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc}/…"
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._late = threading.Event()  # of the alert that is being sent
        self._aborted = False

    def send(self, body: bytes) -> None:
        """Send one alert, within four seconds.

        Raises:
            AlertError: it was not taken.
        """
        self._late = late = threading.Event()
        limit = threading.Timer(URL_S, self._end_late, [late])
        limit.daemon = True
        limit.name = "rollcast-alert-limit"
        limit.start()
        try:
            url = self._url
            for _ in range(REDIRECTS + 1):
                moved_to = self._post(url, body)
                if moved_to is None:
                    return
                url = _followed(url, moved_to)
            raise AlertError(f"it redirected more than {REDIRECTS} times")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._is_broken_off() or isinstance(error, TimeoutError):
                raise AlertError(f"it did not answer within {URL_S:g} s", retry=True) from None
            raise AlertError(_reason(error), retry=not isinstance(error, ssl.SSLError)) from None
        finally:
            limit.cancel()

    def _post(self, url: str, body: bytes) -> str | None:
        """Post to one address; where it redirects to, None if it took the alert."""
        connection, address, headers = _connection(urlsplit(url))
        with self._lock:
            self._connection = connection
        try:
            connection.connect()
            if self._is_broken_off():
                raise TimeoutError
            headers |= {
                "Content-Type": "application/json",
                "User-Agent": f"rollcast/{__version__}",
                "Connection": "close",
            }
            connection.request("POST", address, body, headers)
            # The body may be endless, and is not read.
            with contextlib.closing(connection.getresponse()) as response:
                status, moved_to = response.status, response.getheader("Location")
            if self._is_broken_off():
                raise TimeoutError  # what was cut off may look like a whole answer
        finally:
            with self._lock:
                self._connection = None
            connection.close()
        if 200 <= status < 300:
            return None
        if status in _KEEPS_POST and moved_to:
            return moved_to
        raise AlertError(f"it answered {status}", retry=status >= _TRY_AGAIN or status == _TOO_MANY)

    def abort(self) -> None:
        """Break off what is being sent now, and send nothing until `resume`."""
        self._aborted = True
        self._break_off()

    def resume(self) -> None:
        """Send again."""
        self._aborted = False

    def _is_broken_off(self) -> bool:
        return self._late.is_set() or self._aborted

    def _end_late(self, late: threading.Event) -> None:
        late.set()
        if late is self._late:  # else that alert is over
            self._break_off()

    def _break_off(self) -> None:
        with self._lock:
            sock = None if self._connection is None else self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # The base class's method: that of an SSL socket would drop its state under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _connection(parts: SplitResult) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection that is not open yet, what to ask it for, and headers for a proxy."""
    secure = parts.scheme.lower() == "https"
    host, port = parts.hostname or "", parts.port
    address = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    proxy = _proxy(parts)
    if proxy is None:
        if secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=URL_S, context=context), address, {}
        return http.client.HTTPConnection(host, port, timeout=URL_S), address, {}
    via, via_port = proxy.hostname or "", proxy.port or 80
    if secure:
        context = ssl.create_default_context()
        tunnel = http.client.HTTPSConnection(via, via_port, timeout=URL_S, context=context)
        tunnel.set_tunnel(host, port or 443)
        return tunnel, address, {}
    return http.client.HTTPConnection(via, via_port, timeout=URL_S), parts.geturl(), {"Host": parts.netloc}


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for this address."""
    url = urllib.request.getproxies().get(parts.scheme.lower())
    if not url or urllib.request.proxy_bypass(parts.netloc):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def _followed(url: str, moved_to: str) -> str:
    """Where a redirect leads, if it is to be followed."""
    before, after = urlsplit(url), urlsplit(urljoin(url, moved_to))
    if after.hostname != before.hostname or after.scheme.lower() not in ("http", "https"):
        raise AlertError("it redirected to another host, which is not followed; give that address instead")
    if before.scheme.lower() == "https" and after.scheme.lower() != "https":
        raise AlertError("it redirected from https to http, which is not followed")
    return after.geturl()


def _reason(error: Exception) -> str:
    """Why a request failed, without the address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return plain_line(error.strerror, 120)
    return f"it gave no valid answer ({type(error).__name__})"


# -- a command ---------------------------------------------------------------------------------------------------------------


class CommandTarget:
    """Runs a command for each alert: without a shell, with the JSON on its standard input and in `ROLLCAST_ALERT`.

    What it prints is dropped. It is killed after ten seconds. When it has ended, what it started in its process group and left running
    is killed.
    """

    retries = False  # it may have done half of its work

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self.shown = plain_line(words[0], 60)
        self._aborted = threading.Event()

    def send(self, body: bytes) -> None:
        """Run the command, and wait until it has ended.

        Raises:
            AlertError: it cannot be started, takes longer than ten seconds, or ends with another code than 0.
        """
        if self._aborted.is_set():
            raise AlertError("it was given up")
        environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        try:
            process = subprocess.Popen(  # noqa: S603  (the user's own command)
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, VARIABLE: body.decode("ascii")},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise AlertError(f"it cannot be started: {plain_line(why, 120)}") from None
        try:
            self._feed(process, body)
            ended = self._wait(process)
        finally:
            _kill_all(process)
            process.wait()
        if not ended:
            raise AlertError("it did not end in time, and was killed")
        if process.returncode != 0:
            how = f"code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise AlertError(f"it ended with {how}")

    def _feed(self, process: subprocess.Popen[bytes], body: bytes) -> None:
        """Write the alert, which is smaller than a pipe, so that a command that does not read it holds up nothing."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it does not want it
            process.stdin.write(body)
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end; False: it was still running after its time, or when it was broken off."""
        until = time.monotonic() + COMMAND_S
        while not _has_ended(process):
            if time.monotonic() >= until or self._aborted.wait(LOOK_S):
                return False
        return True

    def abort(self) -> None:
        """Kill the command that is running now, and run none until `resume`."""
        self._aborted.set()

    def resume(self) -> None:
        """Run commands again."""
        self._aborted.clear()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended. Its id stays taken until `wait`, so that it can still be used to kill its process group."""
    if sys.platform == "win32":
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # this program ignores SIGCHLD, so the system has forgotten it
        return True


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and what it started, if anything of it is left."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
