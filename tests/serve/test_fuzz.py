"""Frames that nobody would send, by the hundred thousand: at the state machines, and at a real socket.

What ever found something stands in `FOUND_*`, and is always tried.
"""

import asyncio
import contextlib
import logging
import random
import struct

from rollcast.errors import DecodeError, GrammarError, InputError, RefusedError
from rollcast.records import EventFilter, check_events
from rollcast.serve.access import authorize, bearer_token, filter_of_query, host_allowed, origin_allowed
from rollcast.serve.asking import Asking
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import (
    Cancel,
    ChangeSpeed,
    Close,
    CloseCode,
    Hello,
    Ping,
    Pong,
    Query,
    RunQuery,
    Seek,
    SeekReplay,
    Session,
    Speed,
    Stop,
    StopQuery,
    Subscribe,
    Unsubscribe,
    Update,
    decode_server_frame,
    encode_frame,
)
from rollcast.serve.settings import Limits, Token
from rollcast.testing import capture_events

FRAMES = [
    encode_frame(frame)
    for frame in (
        Hello("rule"),
        Hello("watch", "page", 1),
        Subscribe("a"),
        Subscribe("b", since="start"),
        Subscribe("c", since="0123456789ab.17"),
        Update("a"),
        Unsubscribe("a"),
        Subscribe("e", since="start", speed=2.5),
        Subscribe("f", since="0123456789ab.17", speed="max"),
        Subscribe("g", speed=4, time=1.8e9, snapshots=True),
        Seek("a", cursor="0123456789ab.17.fedcba987654.4"),
        Seek("e", time=1.7e9),
        Speed("a", 0),
        Speed("e", "max"),
        Cancel("r", "c", "x"),
        Query(id="q", what="runs"),
        Query(id="r", what="chains", filter={"state": ["running"]}, sort="-reward", limit=5, watch=True),
        Query(id="s", what="chain", chain="chain_0", run="r", after="x.7"),
        Query(id="t", what="chain", chain="chain_0", recorded=True),
        Stop("q"),
        Ping(),
        Pong(),
    )
] + [
    b'{"type":"subscribe","id":"d","filter":{"runs":["r"],"chains":["c"],"groups":null,"types":["reward"]}}',
    b'{"type":"update","id":"d","filter":{"types":["llm_generation_chunk","chain_end"]}}',
]
ANSWERS = [
    (
        b'{"type":"welcome","version":1,"runs":[{"run_id":"r","parent_run_id":null,"status":"running","chains":2}],'
        b'"heartbeat_s":20.0,"limits":{},"scopes":["read"]}'
    ),
    b'{"type":"subscribed","id":"1","recovered":true,"cursor":"h.1"}',
    b'{"type":"subscribed","id":"1","recovered":false,"cursor":null}',
    (
        b'{"type":"batch","id":"1","cursor":"h.2","events":[{"event_type":"llm_generation_chunk","chain_id":"c",'
        b'"timestamp":1.0,"data":{"content":"x","offset":0},"step":1,"depth":1,"seq":4,"run_id":"r"}]}'
    ),
    (
        b'{"type":"batch","id":"1","cursor":"h.3","events":[{"event_type":"gap","chain_id":"","timestamp":1.0,"data":'
        b'{"from_seq":5,"to_seq":9,"dropped":{"reward":2},"reason":"slow"},"seq":9,"run_id":"r"}]}'
    ),
    (
        b'{"type":"batch","id":"1","cursor":"h.3","events":[{"event_type":"run_end","chain_id":"","timestamp":1.0,"data":'
        b'{"status":"completed","chains":1,"failed":0,"mean_reward":null,"completion_tokens":1,"duration_s":1.0},'
        b'"seq":12,"run_id":"r"}]}'
    ),
    b'{"type":"done","id":"x"}',
    b'{"type":"rows","id":"1","rows":[{"run_id":"r","chain_id":"c"}],"total":7,"next":"abc"}',
    b'{"type":"done","id":"1","cursor":"h.1","missing":["what is gone"]}',
    b'{"type":"error","code":4008,"message":"slow"}',
    b'{"type":"error","code":404,"message":"there is no subscription"}',
    b'{"type":"ping"}',
]
PIECES = [
    b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\x00", b"\xff", b"\xc3\xa9", b"null",
    b"true", b"-1", b"1e999", b"99999999999999999999999", b"0.5", b'"id":', b'"type":', b"NaN", b"[" * 2000, b" " * 300,
]  # fmt: skip


def mutated(rng, good):
    """A frame or two with some of their bytes changed, dropped or doubled; sometimes as it was, sometimes none at all."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.06:
        return rng.choice(PIECES) * rng.randrange(1, 3000)
    data = bytearray(rng.choice(good))
    if kind > 0.4:
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) + 1)
            piece = rng.choice(PIECES) if rng.random() < 0.7 else bytes(data[:20])
            data[at : at + rng.randrange(6)] = piece
    if kind > 0.97:
        data += rng.choice(good)
    return bytes(data)


class Play:
    """A session whose clock the test moves."""

    def __init__(self):
        self.now = 1000.0
        tokens = (Token("watch"), Token("rule", ("read", "control")), Token("old", expires_at=1300.0))
        self.session = Session(
            lambda given: authorize(tokens, ("read",), given, self.now),
            Limits(message_bytes=4000, messages_per_s=40, subscriptions=3, queries=2, rows=50),
            hello_s=5,
            heartbeat_s=20,
            clock=lambda: self.now,
            epoch=lambda: self.now,
            token="rule",
        )


def play(seed, frames):
    """One seed's share of frames; returns how many sessions went on and how many were closed."""
    rng = random.Random(seed)
    good = [frame for frame in FRAMES if rng.random() < 0.8] or FRAMES
    closed = 0
    session = None
    for n in range(frames):
        if session is None or session.closed:
            at = Play()
            session = at.session
            if rng.random() < 0.9:
                session.receive('{"type":"hello"}')
        at.now += rng.choice([0, 0, 0.01, 1, 15])
        data = mutated(rng, good)
        message = data if rng.random() < 0.02 else data.decode("utf-8", "surrogateescape")
        try:
            actions = session.receive(message)
            assert isinstance(actions, list)
            assert session.closed == any(isinstance(action, Close) for action in actions)
            assert len(session.subscriptions) <= 3
            assert len(session.queries) <= 2
            assert not session.queries & session.subscriptions
            assert session.closed or session.wait_s >= 0
            for action in actions:
                if isinstance(action, RunQuery):
                    assert 1 <= action.limit <= 50
                    if rng.random() < 0.5:
                        session.finished(action.query.id)
                if isinstance(action, SeekReplay | ChangeSpeed):
                    assert action.id in session.subscriptions
                if isinstance(action, SeekReplay):
                    assert (action.cursor is None) != (action.time is None)
                if isinstance(action, ChangeSpeed):
                    assert action.speed >= 0
                if isinstance(action, StopQuery):
                    assert action.id not in session.queries
                if isinstance(action, Close):
                    assert action.code in CloseCode
                    assert len(action.message) < 4000 + 500  # it may show what came
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {n}: {message[:200]!r} raises {error!r}") from error
        closed += session.closed
    return closed


def test_a_session_takes_a_hundred_thousand_bad_frames():
    """Always actions, never an exception; some close it, with a code and a sentence that is not long."""
    closed = sum(play(seed, 1000) for seed in range(120))
    assert 1000 < closed < 119_000


def test_a_client_takes_whatever_a_server_sends():
    """Thirty thousand frames: events, or one of the errors that it names."""
    outcomes = dict.fromkeys(["taken", "DecodeError", "GrammarError", "RefusedError"], 0)
    for seed in range(300):
        rng = random.Random(seed)
        session = ClientSession(EventFilter(), "start", check=bool(rng.randrange(4)))
        for n in range(100):
            data = mutated(rng, ANSWERS)
            message = data if rng.random() < 0.05 else data.decode("utf-8", "surrogateescape")
            try:
                answers, events = session.receive(decode_server_frame(message))
                assert isinstance(answers, list)
                assert isinstance(events, list)
                outcomes["taken"] += 1
            except (DecodeError, GrammarError, RefusedError) as error:
                outcomes[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, frame {n}: {message[:200]!r} raises {error!r}") from error
    assert min(outcomes.values()) > 100, outcomes


def test_a_query_takes_whatever_a_server_sends():
    """Thirty thousand frames: rows, or one of the errors that it names."""
    outcomes = dict.fromkeys(["taken", "rows", "DecodeError", "RefusedError"], 0)
    welcome = ANSWERS[0].replace(b'"scopes"', b'"features":["queries"],"scopes"')
    for seed in range(300):
        rng = random.Random(seed)
        asking = Asking(Query(id="1", what="chains"))
        for n in range(100):
            data = mutated(rng, [welcome, *ANSWERS])
            message = data if rng.random() < 0.05 else data.decode("utf-8", "surrogateescape")
            try:
                answers, rows = asking.receive_message(message)
                assert isinstance(answers, list)
                outcomes["taken" if rows is None else "rows"] += 1
            except (DecodeError, RefusedError) as error:
                outcomes[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, frame {n}: {message[:200]!r} raises {error!r}") from error
    assert min(outcomes.values()) > 100, outcomes


URLS = [b"chain=chain_0&type=tool_observation", b"run=r&group=g", b"type=%ff%00", b"chain=%5B&chain=&&;="]
NAMES = [
    b"localhost:8765",
    b"127.0.0.1",
    b"[::1]:80",
    b"http://localhost:1",
    b"https://lab.example",
    b"null",
    b"Bearer x",
]
FOUND_PATHS = [b"/[", b"/]?type=x"]  # behind the first slash: what URL parsers refuse
FOUND_NAMES = [
    "http://[",
    "[",
    "http://[::1]x",
    "http://\u2100.example",
    "//[",
    "a" * 10_000,
    "\x00",
    "http://@:x",
]


def test_headers_and_urls_are_judged_and_never_raise_what_is_not_expected():
    """`Host`, `Origin`, `Authorization` and the query, thirty thousand of them."""
    rng = random.Random(20260101)
    names = [mutated(rng, NAMES).decode("latin-1") for _ in range(10_000)]
    for name in [*FOUND_NAMES, *names]:
        assert host_allowed(name, "localhost", ("lab.example",), any_name=False) in (True, False), name
        assert origin_allowed(name, "localhost:8765", ("https://lab.example",)) in (True, False), name
        assert bearer_token(name) is None or bearer_token(name)
    for query in [*FOUND_NAMES, *(mutated(rng, URLS).decode("latin-1") for _ in range(10_000))]:
        with contextlib.suppress(InputError, ValueError):
            assert isinstance(filter_of_query(query), EventFilter)


# -- at a real socket ----------------------------------------------------------------------------------------------------

REQUEST = (
    b"GET /%b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
HEADERS = [
    b"Sec-WebSocket-Protocol: rollcast.v1\r\n",
    b"Sec-WebSocket-Protocol: x, rollcast.v1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    b"",
    b"Origin: http://[\r\n",
    b"Origin: http://127.0.0.1\r\nAuthorization: Bearer rule\r\n",
]
PATHS = [b"", b"?chain=chain_0", b"?type=chain_end", b"?token=x", b"/[", b"healthz", b"metrics"]


def websocket_frame(rng, payload):
    """As RFC 6455, section 5.2, has it, or nearly."""
    wrong = rng.random() < 0.1
    first = (
        rng.randrange(256) if wrong else rng.choice([0x81, 0x81, 0x81, 0x82, 0x01, 0x80, 0x89, 0x8A, 0x88])
    )
    masked = 0 if wrong and rng.random() < 0.3 else 0x80
    length = rng.choice([0, 125, 126, 1 << 17, 1 << 63]) if wrong else len(payload)
    if length < 126:
        head = struct.pack("!BB", first, masked | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, masked | 126, length)
    else:
        head = struct.pack("!BBQ", first, masked | 127, length)
    mask = rng.randbytes(4) if masked else b""
    if masked:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return head + mask + payload


def conversation(seed):
    """A client's request, its frames, and whether it waits for the answer, and for the end."""
    rng = random.Random(seed)
    request = REQUEST % (rng.choice(PATHS) if rng.random() < 0.5 else b"", rng.choice(HEADERS))
    if rng.random() < 0.2:
        request = mutated(rng, [request])
    frames = [websocket_frame(rng, b'{"type":"hello"}')] if rng.random() < 0.9 else []
    frames += [websocket_frame(rng, mutated(rng, FRAMES)) for _ in range(rng.randrange(2, 20))]
    return request, frames, rng.random() < 0.7, rng.random() < 0.7


async def speak(port, seed, limit):
    """Say it; half-close, or just go; returns how many frames it was, and what was answered first."""
    request, frames, listens, waits = conversation(seed)
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = b""
        try:
            writer.write(request)
            if listens and request.endswith(b"\r\n\r\n"):
                answer = await reader.readuntil(b"\r\n")
            writer.write(b"".join(frames))
            await writer.drain()
            if waits:
                writer.write_eof()
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it was closed before it had said all
        finally:
            writer.transport.abort()
    return len(frames), answer[:12]


async def test_thousands_of_bad_frames_at_a_real_socket_hurt_nobody(stage, say, until, read, caplog):
    """A well-behaved client has the whole run meanwhile, nothing is left behind, and nothing fills the log."""
    server = await stage.serve(limits=Limits(message_bytes=4000), hello_s=30, connections=100)
    limit = asyncio.Semaphore(16)
    async with stage.client(since="start") as client:
        with capture_events(stage.manager) as capture, caplog.at_level(logging.WARNING):
            async with stage.manager.run() as run:
                reading = asyncio.create_task(read(client))
                with run.chain(chain_id="c") as chain, chain.generation() as generation:
                    talks = [asyncio.create_task(speak(server.port, seed, limit)) for seed in range(400)]
                    for talk in asyncio.as_completed(talks):
                        await talk
                        generation.chunk("word ")
        told = [talk.result() for talk in talks]
        assert await reading == capture.events
        check_events(capture.events)
        await until(lambda: server.statistics().connections <= 1)
    assert sum(frames for frames, _ in told) > 3000
    answers = {answer for _, answer in told}
    assert {b"HTTP/1.1 101", b"HTTP/1.1 400"} <= answers
    assert answers <= {b"", *(b"HTTP/1.1 %d" % status for status in (101, 200, 400, 403, 404, 405, 426))}
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_what_was_found_at_a_real_socket_is_answered(stage, caplog):
    """Paths and origins that URL parsers refuse: no such page, and 4507, without a word in the log."""
    server = await stage.serve()
    for path, origin, answer in [
        *((path, b"", b"HTTP/1.1 40") for path in FOUND_PATHS),
        (b"", b"Origin: http://[\r\n", b"4507"),
    ]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST % (path, b"Sec-WebSocket-Protocol: rollcast.v1\r\n" + origin))
        assert answer in await reader.read(), path
        writer.close()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
