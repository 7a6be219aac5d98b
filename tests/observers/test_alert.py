"""Alerts: to an address, to a command, few of them, and never at the cost of the run."""

import asyncio
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ports import kept_port
from rollcast import InputError, StreamingManager
from rollcast.errors import AlertError
from rollcast.observers import AlertObserver, alert_sender, alert_target
from rollcast.observers.alert_sender import Alert, AlertSender
from rollcast.observers.alert_target import CommandTarget, UrlTarget
from rollcast.records import StreamEvent, StreamEventType


def states(condition):
    """Wait until it holds; fails after a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_thread_stays():
    """Whatever a target does, its threads end."""
    yield
    states(lambda: not [t.name for t in threading.enumerate() if t.name.startswith("rollcast-alert")])


class Server:
    """An HTTP server on a free port. `answers` has a status and headers for each request; the last is used again."""

    def __init__(self, *answers):
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = answers[min(len(outer.requests), len(answers) - 1)]
                outer.requests.append((self.path, dict(self.headers), body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value.replace("HERE", outer.url))
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server():
    servers = []

    def make(*answers):
        servers.append(Server(*(answers or ((200, {}),))))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


def request_on(connection):
    """The whole request, or what came of it before the client gave up. If some stayed unread, closing would take back the answer."""
    request = b""
    with suppress(OSError):
        while not request.endswith(b"{}") and (data := connection.recv(65536)):
            request += data
    return request


@contextmanager
def raw_server(answer):
    """A server that does with a connection whatever it likes, until the connection or the test ends."""
    ends = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with listening.accept()[0] as connection:
                request_on(connection)
                answer(connection, ends)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
        finally:
            ends.set()
            thread.join()


# -- what a target is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--alert is empty; expected an address such as https://example.com/hook, or a command"),
        ("  ", "--alert is empty"),
        (
            "ftp://example.com/x",
            "--alert is an address that begins with ftp://; expected https:// or http://",
        ),
        ("https://", "--alert is not a valid address; expected one such as https://example.com/hook"),
        ("https://example.com:port/x", "--alert is not a valid address"),
        ("http://exa mple.com/x", "--alert is not a valid address"),
        ("http://example.com/\r\nX: y", "--alert is not a valid address"),
        ("https://user:secret@example.com/x", "--alert has a user or a password before its host"),
        ("no-such-program-anywhere --flag", "there is no program 'no-such-program-anywhere'"),
        ("say 'unfinished", "--alert is a command that cannot be split into words: No closing quotation"),
        ("''", "--alert is not a command"),
        ("/", "there is no program '/'"),
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(text, sentence):
    """Before anything runs, without the secrets in it."""
    with pytest.raises(InputError) as refused:
        alert_target.alert_target(text, "--alert")
    assert sentence in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_how_many_a_minute_is_a_whole_number():
    """From 1 upward."""
    with pytest.raises(InputError, match="per_minute is 0"):
        AlertObserver("true", per_minute=0)


def test_a_target_is_shown_without_its_secrets():
    """The path of a webhook and the arguments of a command may be secret."""
    assert (
        alert_target.alert_target("HTTPS://Example.com:8443/services/T0/secret?k=secret").shown
        == "https://Example.com:8443/…"
    )
    assert alert_target.alert_target("env TOKEN=secret true").shown == "env"


# -- an address ---------------------------------------------------------------------------------------------------------------


def failure(target, body=b"{}"):
    with pytest.raises(AlertError) as failed:
        target.send(body)
    return failed.value


def test_an_alert_is_posted_as_json(server):
    """With its length and type, and to the path and query that were given."""
    web = server()
    UrlTarget(web.url + "/hook/a?b=c").send(b'{"text": "x"}')
    ((path, headers, body),) = web.requests
    assert (path, body) == ("/hook/a?b=c", b'{"text": "x"}')
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("rollcast/")


@pytest.mark.parametrize(
    ("status", "retry"), [(500, True), (503, True), (429, True), (404, False), (302, False), (304, False)]
)
def test_another_answer_is_a_failure(server, status, retry):
    """With its number; what may pass is tried again later. A redirect that would drop the alert's body is one, too."""
    web = server((status, {"Location": "/other"}))
    failed = failure(UrlTarget(web.url))
    assert (str(failed), failed.retry) == (f"it answered {status}", retry)
    assert len(web.requests) == 1


def test_redirects_that_keep_a_post_are_followed(server):
    """Three of them, on the same host."""
    web = server(
        (307, {"Location": "/b"}), (308, {"Location": "HERE/c"}), (307, {"Location": "d"}), (204, {})
    )
    UrlTarget(web.url + "/a").send(b"{}")
    assert [path for path, _, _ in web.requests] == ["/a", "/b", "/c", "/d"]
    assert {body for _, _, body in web.requests} == {b"{}"}


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/again", "it redirected more than 3 times"),
        (
            "http://localhost:1/x",
            "it redirected to another host, which is not followed; give that address instead",
        ),
        ("file:///etc/passwd", "it redirected to another host"),
    ],
)
def test_other_redirects_are_not_followed(server, location, reason):
    """Without end, to another host, or to a file."""
    web = server((307, {"Location": location}))
    assert reason in str(failure(UrlTarget(web.url)))
    assert len(web.requests) <= 4


def test_https_is_not_left_for_http():
    """Whatever a server asks for."""
    with pytest.raises(AlertError, match="from https to http"):
        alert_target._followed("https://example.com/a", "http://example.com/b")
    assert alert_target._followed("http://example.com/a", "https://example.com/b") == "https://example.com/b"


def drips(connection, ends):
    """The beginning of an answer, byte by byte, for ever."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ends.wait(0.01):
            connection.sendall(b"x")
    except OSError:
        return


def floods(connection, ends):
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not ends.is_set():
            connection.sendall(b"x" * 65536)
    except OSError:
        return


def hangs(connection, ends):
    ends.wait()


@pytest.mark.parametrize("answer", [hangs, drips])
def test_a_server_that_does_not_answer_is_left(monkeypatch, answer):
    """After a time for the whole, even if bytes come all the time."""
    monkeypatch.setattr(alert_target, "URL_S", 0.3)
    with raw_server(answer) as url:
        began = time.monotonic()
        failed = failure(UrlTarget(url))
        assert "it did not answer within 0.3 s" in str(failed)
        assert failed.retry
        assert time.monotonic() - began < 60  # it would never answer


def test_an_endless_answer_is_not_read():
    """Its status is enough."""
    with raw_server(floods) as url:
        assert UrlTarget(url).send(b"{}") is None  # it neither waits for the end nor raises


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 999999\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200]
)
def test_what_is_no_answer_is_a_failure(answer):
    """Nothing, another protocol, a wrong status, too many headers."""

    def serve(connection, ends):
        connection.sendall(answer)

    with raw_server(serve) as url:
        assert "it gave no valid answer" in str(failure(UrlTarget(url)))


def test_where_nobody_listens_is_a_failure():
    """In the system's words, without the address."""
    with kept_port() as port:
        failed = failure(UrlTarget(f"http://127.0.0.1:{port}/secret"))
    assert str(failed) == "Connection refused"
    assert failed.retry


def test_a_certificate_is_checked(certificate):
    """One that nobody trusted signed is refused, and nothing is sent."""
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    got = []

    def serve(listening):
        try:
            with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
                got.append(connection.recv(100))
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        failed = failure(UrlTarget(f"https://localhost:{listening.getsockname()[1]}/"))
        thread.join()
    assert str(failed).startswith("its certificate is not valid: ")
    assert (got, failed.retry) == ([], False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_a_trusted_certificate_is_taken(certificate, monkeypatch):
    """An alert goes over TLS."""
    cert, key = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    got = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def serve(listening):
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            got.append(request_on(connection))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        UrlTarget(f"https://127.0.0.1:{listening.getsockname()[1]}/hook").send(b"{}")
        thread.join()
    assert got[0].startswith(b"POST /hook HTTP/1.1")


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    """It is asked for the whole address."""
    proxy = server()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    UrlTarget("http://alerts.example/hook").send(b"{}")
    ((path, headers, _),) = proxy.requests
    assert (path, headers["Host"]) == ("http://alerts.example/hook", "alerts.example")


# -- a command -----------------------------------------------------------------------------------------------------------------


def python(code):
    return CommandTarget([sys.executable, "-c", code])


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_command_gets_the_alert_twice(tmp_path, monkeypatch):
    """On its standard input and in a variable; no shell takes part, and the token of a server is not passed on."""
    monkeypatch.setenv("ROLLCAST_TOKEN", "secret")
    out = tmp_path / "out"
    code = f"import os, sys; open({str(out)!r}, 'w').write(sys.stdin.read() + os.environ['ROLLCAST_ALERT'] + sys.argv[1] + str('ROLLCAST_TOKEN' in os.environ))"
    CommandTarget([sys.executable, "-c", code, "$(exit 1) `x` *"]).send(b'{"a": 1}')
    assert out.read_text() == '{"a": 1}{"a": 1}$(exit 1) `x` *False'


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "it ended with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "it ended with signal 15"),
    ],
)
def test_a_command_that_fails_is_a_failure(code, reason):
    """With how it ended."""
    failed = failure(python(code))
    assert (str(failed), failed.retry) == (reason, False)


def test_a_command_that_cannot_be_started_is_a_failure(tmp_path):
    """As if it was deleted since."""
    assert "it cannot be started: No such file" in str(failure(CommandTarget([str(tmp_path / "gone")])))


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path, monkeypatch):
    """It ignores being asked, and has a child."""
    monkeypatch.setattr(alert_target, "COMMAND_S", 1.0)
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(600)"
    )
    target = python(code)
    thread = threading.Thread(target=lambda: failures.append(failure(target)))
    failures = []
    thread.start()
    thread.join(120)
    assert str(failures[0]) == "it did not end in time, and was killed"
    for pid in map(int, pids.read_text().split()) if pids.exists() else ():
        states(lambda pid=pid: not is_running(pid))


def test_what_a_command_leaves_behind_is_killed(tmp_path):
    """A child that would go on when the command has ended."""
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid))"
    )
    python(code).send(b"{}")
    states(lambda: not is_running(int(pid.read_text())))
    assert not is_running(int(pid.read_text()))


def test_a_command_that_floods_its_output_or_reads_nothing_holds_up_nothing():
    """Its output goes nowhere, and the alert waits in the pipe: otherwise `send` would raise, or not return."""
    python(
        "import sys\nfor _ in range(200): sys.stdout.write('x' * 65536); sys.stderr.write('x' * 65536)"
    ).send(b"x" * 32_000)
    python("import os; os.close(0)").send(b"x" * 32_000)


def test_a_command_can_be_broken_off(tmp_path):
    """At the end of a program, from another thread; then it runs none until it may again."""
    runs = tmp_path / "runs"
    target = python(f"import time; open({str(runs)!r}, 'w').close(); time.sleep(600)")

    def abort():
        states(runs.exists)
        target.abort()

    other = threading.Thread(target=abort)
    other.start()
    assert "was killed" in str(failure(target))
    assert str(failure(target)) == "it was given up"
    target.resume()
    other.join()


# -- few of them ----------------------------------------------------------------------------------------------------------------


class Target:
    """Keeps what is sent; `fails` has what `send` raises, one after another, and while `closed` is set it waits."""

    shown = "target"
    retries = True

    def __init__(self, *fails):
        self.bodies, self.fails = [], list(fails)
        self.open = threading.Event()
        self.open.set()
        self.aborted = False

    def send(self, body):
        assert self.open.wait(60)
        if self.aborted:
            raise AlertError("aborted")
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        self.bodies.append(json.loads(body))

    def abort(self):
        self.aborted = True
        self.open.set()

    def resume(self):
        self.aborted = False


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def appeared(n):
    return Alert("hint_appeared", f"id{n}", f"hint {n}", {"count": n})


def ended(sender):
    sender.stop().result(60)


def test_alerts_are_sent_in_order():
    """Each with its fields."""
    target = Target()
    sender = AlertSender(target, 6)
    for n in range(3):
        sender.put(appeared(n))
        states(lambda n=n: len(target.bodies) == n + 1)
    ended(sender)
    assert target.bodies[0] == {
        "version": 1, "what": "hint_appeared", "id": "id0", "text": "hint 0", "count": 0, "folded": {}, "also": []
    }  # fmt: skip
    assert (sender.sent, sender.failed) == (3, 0)


def test_in_a_minute_there_are_few_and_the_others_are_counted():
    """What comes too often is in the next alert, and a failed run comes first."""
    target, clock = Target(), Clock()
    sender = AlertSender(target, 2, clock)
    for n in range(2):
        sender.put(appeared(n))
        states(lambda n=n: len(target.bodies) == n + 1)
    for n in range(2, 20):
        sender.put(appeared(n))
    sender.put(Alert("run_failed", "f", "The run failed", {}))
    clock.now = 31.0
    with sender._changed:
        sender._changed.notify_all()
    states(lambda: len(target.bodies) == 3)
    assert (target.bodies[2]["what"], target.bodies[2]["folded"]) == ("run_failed", {"hint_appeared": 18})
    assert target.bodies[2]["also"] == [f"hint {n}" for n in range(2, 12)]
    ended(sender)
    assert len(target.bodies) == 3


def test_however_many_wait_few_are_kept():
    """The rest is counted, and a failed run is never only counted."""
    target = Target()
    target.open.clear()
    sender = AlertSender(target, 1)
    sender.put(appeared(0))
    states(lambda: not sender._waiting)
    for n in range(1, 1000):
        sender.put(appeared(n))
    sender.put(Alert("run_failed", "f", "The run failed", {}))
    for n in range(1000, 1010):
        sender.put(appeared(n))
    assert len(sender._waiting) == alert_sender.MAX_WAITING
    target.open.set()
    ended(sender)
    last = target.bodies[1]
    assert last["what"] == "run_failed"
    assert last["folded"] == {"hint_appeared": 1009}
    assert len(last["also"]) == alert_sender.MAX_ALSO


def test_a_hint_that_goes_before_it_was_sent_is_not_sent():
    """Neither that it appeared nor that it went."""
    target = Target()
    target.open.clear()
    sender = AlertSender(target, 6)
    sender.put(appeared(0))
    states(lambda: not sender._waiting)
    sender.put(appeared(1))
    sender.put(Alert("hint_gone", "id1", "no longer: hint 1", {}))
    sender.put(Alert("hint_gone", "id0", "no longer: hint 0", {}))
    target.open.set()
    ended(sender)
    assert [body["text"] for body in target.bodies] == ["hint 0", "no longer: hint 0"]


def test_what_may_pass_is_tried_three_times(caplog):
    """With one warning; what will not pass is tried once."""
    busy = AlertError("it answered 503", retry=True)
    target = Target(busy, busy, None, AlertError("it answered 404"), busy, busy, busy)
    sender = AlertSender(target, 100)
    with caplog.at_level(logging.WARNING):
        for n in range(4):
            sender.put(appeared(n))
            states(lambda n=n: sender.sent + sender.failed == n + 1)
        ended(sender)
    assert [body["text"] for body in target.bodies] == ["hint 0", "hint 3"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "an alert could not be sent to target: it answered 503. The run goes on, and this is said once"
    )


def test_a_fault_of_a_target_does_not_end_the_others(caplog):
    """Whatever it raises is logged with its traceback."""
    target = Target(ZeroDivisionError("x"))
    sender = AlertSender(target, 6)
    sender.put(appeared(0))
    sender.put(appeared(1))
    states(lambda: sender.sent == 1)
    ended(sender)
    assert "by a fault in Rollcast" in caplog.text


def test_it_can_begin_again_after_its_end():
    """As an observer may be added again."""
    target = Target()
    sender = AlertSender(target, 6)
    for n in range(3):
        sender.put(appeared(n))
        ended(sender)
        ended(sender)
    assert len(target.bodies) == 3


def test_the_largest_alert_fits_into_a_pipe():
    """32 KiB, whatever characters a model or a tool put into its names."""
    sizes = []

    class Sized(Target):
        def send(self, body):
            sizes.append(len(body))

    target = Sized()
    observer = AlertObserver(target, per_minute=1)
    asyncio.run(observer.on_batch(list(failing(40, name="\U0001f600" * 500))))
    asyncio.run(observer.aclose())
    assert 16_000 < max(sizes) < 32_768


# -- the observer -----------------------------------------------------------------------------------------------------------------


def failing(n, *, name="search", run_id="run-0001", status="completed", failed=0, error=None):
    """A run whose tool fails in each call, which lasts half a second; then it runs well, until its end."""
    at = 1_000_000.0

    def event(kind, chain_id="", **data):
        step = 1 if chain_id else None
        return StreamEvent(StreamEventType(kind), chain_id, at, data, step, step, run_id=run_id)

    yield event("run_start", chains=n, groups=1, agent="", model="", backend="", policy_version=0)
    for i in range(n):
        chain_id, call = f"{name}_{i}", {"call_id": "c", "tool_name": name}
        yield event("chain_start", chain_id, messages=[], tools=[], index=0, policy_version=0)
        yield event("tool_call_start", chain_id, **call, arguments={})
        at += 0.5
        yield event(
            "tool_call_end", chain_id, **call, status="error" if i < 20 else "success", duration_s=0.5
        )
        if error is not None:
            yield event("error", chain_id, error=error, error_type="ValueError", where="tool:x")
        end = {"finish_reason": "answered", "final_response": "", "reward": float(i % 2), "metrics": {}}
        yield event("chain_end", chain_id, **end, steps=1, completion_tokens=1, duration_s=0.5)
    yield event(
        "run_end",
        status=status,
        chains=n,
        failed=failed,
        mean_reward=0.5,
        completion_tokens=1,
        duration_s=1.0,
    )


async def alerts(events, **options):
    """What an observer sends of these events, one after another."""
    target = Target()
    observer = AlertObserver(target, per_minute=100, **options)
    for event in events:
        await observer.on_event(event)
        while observer._sender._waiting:
            await asyncio.sleep(0.001)
    await observer.aclose()
    return target.bodies


@pytest.fixture
def blocking_calls_fail():
    """These observers are threaded; here they are driven in the test's own loop."""


async def test_an_alert_says_what_appears_and_what_goes(blocking_calls_fail):
    """With the hint's kind, its chains, and an id by which the two belong together."""
    first, last = await alerts(failing(80))
    assert (first["what"], first["kind"], first["subject"], first["run_id"]) == (
        "hint_appeared", "tool_fails", "search", "run-0001"
    )  # fmt: skip
    assert (
        first["text"]
        == "The tool “search” failed in 12 of 12 calls (search_0, search_1, search_2, search_3 and 8 more)"
    )
    assert (first["count"], first["chains"][:2], first["group_id"]) == (12, ["search_0", "search_1"], None)
    assert first["timestamp"] > 1_000_000
    assert (last["what"], last["id"]) == ("hint_gone", first["id"])
    assert last["text"].startswith("no longer: The tool “search” failed in ")


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"status": "failed"}, "The run failed"),
        (
            {"status": "failed", "failed": 1, "error": "no\nway"},
            "The run failed; 1 of 3 chains failed; the latest error is ValueError: no way",
        ),
        ({"failed": 3}, "All 3 chains of the run failed"),
        ({"failed": 2}, None),
        ({"status": "cancelled"}, None),
    ],
)
async def test_a_run_that_fails_is_told(blocking_calls_fail, about, text):
    """If its status says so, or if all its chains failed; with its latest error."""
    sent = await alerts(failing(3, **about))
    assert [(alert["what"], alert["text"]) for alert in sent] == (
        [] if text is None else [("run_failed", text)]
    )


async def test_texts_are_masked(blocking_calls_fail):
    """Wherever they come from a model, a tool or a row."""
    sent = await alerts(
        failing(80, name="sk-secret", failed=80, error="key sk-secret"),
        mask=lambda text: text.replace("sk-secret", "[masked]"),
    )
    assert len(sent) == 3
    assert "sk-secret" not in json.dumps(sent)
    assert "[masked]" in sent[0]["text"]


async def test_only_some_chains_may_be_looked_at(blocking_calls_fail):
    """Then hints are about them alone; a run that fails is told nevertheless."""
    wanted = AlertObserver(Target(), chain_filter="search_0").filter
    events = [event for event in failing(80, status="failed") if wanted.matches(event)]
    sent = await alerts(events, chain_filter="search_0")
    assert [alert["what"] for alert in sent] == ["run_failed"]


@pytest.mark.parametrize("data", [{}, {"status": None, "chains": "x", "failed": -1}, [], None])
async def test_an_end_of_any_shape_raises_nothing(blocking_calls_fail, data):
    """Events may be made by hand."""
    event = StreamEvent(StreamEventType.RUN_END, "", 1.0, data, run_id="r")
    assert await alerts([event]) == []


async def test_a_target_that_hangs_holds_up_neither_the_run_nor_its_end(monkeypatch, until):
    """The run is over long before; what waits is given up after a time at the end."""
    monkeypatch.setattr("rollcast.observers.alert.CLOSE_S", 0.2)
    target = Target()
    target.open.clear()
    manager = StreamingManager()
    observer = AlertObserver(target)
    manager.add_observer(observer)
    with manager.run(chains=8) as run:
        for n in range(8):
            with run.chain() as chain:
                chain.reward(float(n % 2))
                chain.end("error")
    async with asyncio.timeout(60):
        await manager.drain()
        assert not target.aborted
        await manager.aclose()
    assert target.aborted
    await until(lambda: (observer.sent, observer.failed) == (0, 1))


def test_a_hanging_command_does_not_outlive_its_program(tmp_path):
    """At the end of the interpreter, nobody having closed anything."""
    pid = tmp_path / "pid"
    command = f"{sys.executable} -c \"import os, time; open('{pid}', 'w').write(str(os.getpid())); time.sleep(600)\""
    code = f"""
import time, os
import rollcast.observers.alert as alert
alert.CLOSE_S = 0.5
from rollcast import StreamingManager
from rollcast.observers import AlertObserver
manager = StreamingManager()
manager.add_observer(AlertObserver({command!r}))
with manager.run(chains=1) as run:
    with run.chain() as chain:
        chain.end("error")
manager.drain_sync()
while not os.path.exists({str(pid)!r}): time.sleep(0.01)
while not open({str(pid)!r}).read(): time.sleep(0.01)
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=300,
    )
    states(lambda: not is_running(int(pid.read_text())))
    assert not is_running(int(pid.read_text()))


def test_a_forked_child_sends_nothing():
    """Its parent does."""
    target = Target()
    observer = AlertObserver(target)
    observer._pid += 1
    asyncio.run(observer.on_batch(list(failing(80, status="failed"))))
    asyncio.run(observer.aclose())
    assert target.bodies == []
