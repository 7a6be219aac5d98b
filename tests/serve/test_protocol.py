"""The session as a state machine: no socket, no clock but the test's."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast.errors import DecodeError
from rollcast.records import EventFilter
from rollcast.serve.access import Grant, authorize
from rollcast.serve.protocol import (
    Ack,
    Batch,
    Cancel,
    CancelRun,
    ChangeSpeed,
    Close,
    CloseCode,
    CloseSubscription,
    Done,
    ErrorFrame,
    FilterFrame,
    Greet,
    Hello,
    Interest,
    OpenSubscription,
    Ping,
    Pong,
    Publish,
    Query,
    Rows,
    RunInfo,
    RunQuery,
    Seek,
    SeekReplay,
    Send,
    Session,
    Speed,
    Stop,
    StopQuery,
    Subscribe,
    Subscribed,
    TakeAnswer,
    TakeEvents,
    Unsubscribe,
    Update,
    Welcome,
    decode_client_frame,
    decode_server_frame,
    encode_frame,
    rows_frame,
)
from rollcast.serve.schema import frames_schema
from rollcast.serve.settings import Limits, ServerSettings, Token

LIMITS = Limits(message_bytes=2000, messages_per_s=10, subscriptions=2, queries=3, rows=500)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Play:
    """A session, its clock, and frames as a client would write them."""

    def __init__(self, tokens=(), scopes=("read",), token=None, limits=LIMITS, **options):
        self.clock = Clock()
        self.session = Session(
            lambda given: authorize(tokens, scopes, given, self.clock()),
            limits,
            hello_s=5,
            heartbeat_s=20,
            clock=self.clock,
            epoch=self.clock,
            token=token,
            **options,
        )

    def say(self, frame):
        message = frame if isinstance(frame, str | bytes) else encode_frame(frame).decode()
        return self.session.receive(message)

    def greeted(self):
        (greeting,) = self.say(Hello())
        assert isinstance(greeting, Greet)
        return self

    def wait(self, seconds):
        self.clock.now += seconds
        return self.session.tick()


def code(actions):
    (close,) = actions
    assert isinstance(close, Close)
    return close.code


def test_a_session_from_hello_to_unsubscribe():
    """Hello is greeted, subscriptions open, change and close, a ping is answered."""
    play = Play().greeted()
    wanted = {"chains": ["chain_0"], "types": ["tool_observation"]}
    (opened,) = play.say(json.dumps({"type": "subscribe", "id": "a", "filter": wanted, "since": "start"}))
    assert opened == OpenSubscription("a", EventFilter(chains="chain_0", types="tool_observation"), "start")
    (changed,) = play.say(Update("a"))
    assert changed == OpenSubscription("a", EventFilter(), None)
    assert play.say(Ping()) == [Send(Pong())]
    assert play.say(Pong()) == []
    assert play.say(Unsubscribe("a")) == [CloseSubscription("a"), Send(Done("a"))]
    assert not play.session.subscriptions


def test_who_says_no_hello_is_closed():
    """In time, and not before."""
    play = Play()
    assert play.wait(4.9) == []
    assert play.session.wait_s == pytest.approx(0.1)
    assert code(play.wait(0.2)) is CloseCode.NO_HELLO
    assert play.session.closed
    assert play.say(Hello()) == []


def test_hello_comes_first_and_once():
    """Another frame before it, or a second one, closes."""
    assert code(Play().say(Subscribe("a"))) is CloseCode.NO_HELLO
    assert code(Play().greeted().say(Hello())) is CloseCode.BAD_FRAME
    assert Play().say(Ping()) == [Send(Pong())]


def test_another_version_is_refused():
    """By its number."""
    assert code(Play().say(Hello(version=2))) is CloseCode.VERSION


TOKENS = (
    Token("watch"),
    Token("rule", ("read", "control")),
    Token("old", expires_at=500.0),
    Token("send", ("publish",)),
)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, CloseCode.BAD_TOKEN),
        ("", CloseCode.BAD_TOKEN),
        ("watc", CloseCode.BAD_TOKEN),
        ("watch ", CloseCode.BAD_TOKEN),
        ("ŵatch", CloseCode.BAD_TOKEN),
        ("old", CloseCode.TOKEN_EXPIRED),
    ],
)
def test_a_token_that_does_not_fit_closes(token, expected):
    """Missing, wrong and expired ones."""
    hello = json.dumps({"type": "hello", "token": token})
    assert code(Play(TOKENS).say(hello)) is expected


def test_a_tokens_scopes_are_granted():
    """And the token of the request's header serves where hello has none."""
    assert Play(TOKENS).say(Hello("rule")) == [Greet(Grant(("read", "control")))]
    assert Play(TOKENS, token="watch").say(Hello()) == [Greet(Grant(("read",)))]


def test_a_token_that_expires_closes_the_session():
    """While it is quiet and while it talks, with the code to come back."""
    tokens = (Token("brief", expires_at=1030.0),)
    quiet = Play(tokens)
    quiet.say(Hello("brief"))
    quiet.clock.now += 15
    quiet.say(Ping())
    assert quiet.session.wait_s == pytest.approx(15)
    assert code(quiet.wait(15)) is CloseCode.TOKEN_EXPIRED
    talking = Play(tokens)
    talking.say(Hello("brief"))
    talking.clock.now += 31
    assert code(talking.say(Ping())) is CloseCode.TOKEN_EXPIRED


def test_cancel_needs_the_control_scope():
    """Without it the session goes on."""
    (refused,) = Play(TOKENS, token="watch").greeted().say(Cancel("run", "chain_0", "c"))
    assert refused.frame.code == 403
    assert refused.frame.id == "c"
    assert Play(TOKENS, token="rule").greeted().say(Cancel("run", "chain_0", "c")) == [
        CancelRun("run", "chain_0", "c")
    ]


def test_the_silent_are_asked_and_then_closed():
    """A word in between starts the time anew."""
    play = Play().greeted()
    assert play.wait(20) == [Send(Ping())]
    assert play.session.wait_s == pytest.approx(20)
    assert play.wait(10) == []
    assert play.say(Pong()) == []
    assert play.wait(19) == []
    assert play.wait(1) == [Send(Ping())]
    assert code(play.wait(20)) is CloseCode.NO_PONG


def test_a_server_that_stood_still_takes_nobody_for_silent():
    """One that is asked late has as long to answer as any other, and an answer that was read late came in time."""
    play = Play().greeted()
    assert play.wait(100) == [Send(Ping())]
    assert play.session.wait_s == pytest.approx(20)
    assert play.wait(19) == []
    play.clock.now += 100
    assert play.say(Pong()) == []
    assert play.wait(19) == []
    assert play.wait(1) == [Send(Ping())]
    assert code(play.wait(20)) is CloseCode.NO_PONG


def test_a_hello_that_is_read_late_came_in_time():
    """This process stood still; and if something of it is there, the rest has as long again, but only once."""
    play = Play()
    play.clock.now += 100
    assert not any(isinstance(action, Close) for action in play.say(Hello()))
    assert play.session.grant is not None
    drips = Play()
    drips.clock.now += 100
    drips.session.moved()
    assert drips.session.wait_s == pytest.approx(5)
    assert drips.wait(4) == []
    drips.session.moved()
    assert code(drips.wait(1)) is CloseCode.NO_HELLO


def test_too_many_messages_close():
    """Twice the rate in a burst, the rate for ever."""
    play = Play().greeted()
    for _ in range(19):
        assert play.say(Ping()) == [Send(Pong())]
    assert code(play.say(Ping())) is CloseCode.LIMIT
    steady = Play().greeted()
    for _ in range(200):
        steady.clock.now += 0.1
        assert steady.say(Ping()) == [Send(Pong())]


def test_silence_saves_up_no_more_than_a_burst():
    """Twice as many as a second's, however long nothing was said."""
    play = Play().greeted()
    for _ in range(20):
        play.wait(15)
        play.say(Pong())
    play.wait(1)
    for _ in range(20):
        assert play.say(Ping()) == [Send(Pong())]
    assert code(play.say(Ping())) is CloseCode.LIMIT


def test_the_token_of_hello_goes_before_that_of_the_request():
    """A page's own header may be a proxy's."""
    for said, header, scopes in (("rule", "watch", True), (None, "rule", True), ("watch", "rule", False)):
        play = Play(TOKENS, token=header)
        (greeting,) = play.say(Hello(said))
        assert ("control" in greeting.grant.scopes) is scopes


def test_oversized_binary_and_malformed_messages_close():
    """Each with its code."""
    assert code(Play().greeted().say(encode_frame(Subscribe("a" * 3000)).decode())) is CloseCode.LIMIT
    assert code(Play().greeted().say(encode_frame(Subscribe("é" * 990)).decode())) is CloseCode.LIMIT
    assert code(Play().greeted().say(encode_frame(Ping()))) is CloseCode.BAD_FRAME
    for message in (
        "",
        "{",
        "[]",
        "null",
        '{"type":7}',
        '{"type":"subscribe"}',
        "[" * 1900,
        '{"type":"\udc80"}',
    ):
        assert code(Play().greeted().say(message)) is CloseCode.BAD_FRAME


@pytest.mark.parametrize("id", ["7", None, "x" * 129, 7, ["x"]])
def test_a_frame_of_an_unknown_type_is_answered_and_the_session_goes_on(id):
    """By an error that names it, with the frame's id if it has one."""
    play = Play().greeted()
    (answer,) = play.say(json.dumps({"type": "shout\n" * 100, "id": id, "more": [1, {"x": None}]}))
    assert answer.frame.code == 400
    assert answer.frame.id == ("7" if id == "7" else None)
    assert answer.frame.message.startswith("there is no frame of type 'shout\\x0ashout")
    assert len(answer.frame.message) < 400
    assert play.say(Ping()) == [Send(Pong())]


def test_unknown_fields_of_a_frame_are_ignored():
    """A later client may say more."""
    (greeting,) = Play().say('{"type":"hello","role":"page","features":["parts","smells"],"mood":"good"}')
    assert greeting == Greet(Grant(("read",)), None, "page", ("parts", "smells"))
    (opened,) = Play().greeted().say('{"type":"subscribe","id":"a","speed":2}')
    assert opened == OpenSubscription("a", EventFilter(), "live")


def test_limits_are_those_of_the_role_from_hello_on():
    """What a producer may send, a viewer may not; a role that is not known is a viewer."""
    allowed = ServerSettings(
        limits=LIMITS, page_limits=Limits(message_bytes=3000), producer_limits=Limits(message_bytes=9000)
    ).limits_of
    for role, scopes, most in (
        ("viewer", ("read",), 2000),
        ("page", ("read",), 3000),
        ("producer", ("read",), 2000),  # its token does not say so
        ("producer", ("publish",), 9000),
        ("oracle", ("publish",), 2000),
    ):
        play = Play(scopes=scopes, limits_of=allowed)
        play.say(Hello(role=role))
        assert not play.session.closed
        ping = '{"type":"ping"}'
        assert play.say(ping + " " * (most - len(ping))) == [Send(Pong())]
        assert code(play.say(ping + " " * (most - len(ping) + 1))) is CloseCode.LIMIT


def test_a_client_whose_bytes_move_is_not_silent():
    """A slow link that takes long for a message is no dead one: only when nothing moves is it asked, and then closed."""
    play = Play().greeted()
    for _ in range(10):
        play.clock.now += 20
        play.session.moved()
        assert play.session.tick() == []
    assert play.wait(20) == [Send(Ping())]
    play.clock.now += 20
    play.session.moved()
    assert play.session.tick() == []
    assert code(play.wait(40)) is CloseCode.NO_PONG


def test_subscriptions_are_limited_and_their_mistakes_answered():
    """One too many closes; a known id, an unknown id and an unknown type are errors after which it goes on."""
    play = Play().greeted()
    play.say(Subscribe("a"))
    assert [a.frame.code for a in play.say(Subscribe("a"))] == [409]
    assert [a.frame.code for a in play.say(Update("b"))] == [404]
    assert [a.frame.code for a in play.say(Unsubscribe("b"))] == [404]
    (bad,) = play.say('{"type":"subscribe","id":"b","filter":{"types":["shout"]}}')
    assert "there is no event type 'shout'" in bad.frame.message
    assert bad.frame.id == "b"
    play.say(Subscribe("b"))
    assert code(play.say(Subscribe("c"))) is CloseCode.LIMIT


@pytest.mark.parametrize("kind", ["subscribe", "update"])
def test_a_filter_with_an_unknown_field_is_refused_and_the_session_goes_on(kind):
    """It would show more than was asked for, so nothing is shown; a client of a later version may ask in another way."""
    play = Play().greeted()
    play.say(Subscribe("open"))
    (answer,) = play.say(
        json.dumps({"type": kind, "id": "open", "filter": {"runs": ["r"], "sour\nces": ["x"]}})
    )
    assert (answer.frame.code, answer.frame.id) == (400, "open")
    assert "a filter has no field 'sour\\x0aces' here" in answer.frame.message
    assert play.say(Ping()) == [Send(Pong())]


@pytest.mark.parametrize(
    "filter", [{"runs": 7}, {"runs": 7, "ids": []}, {"runs": ["x" * 257], "ids": []}, [], "ids"]
)
def test_a_filter_that_is_wrong_in_another_way_is_no_frame(filter):
    """Whatever else it has."""
    frame = {"type": "subscribe", "id": "a", "filter": filter}
    assert code(Play().greeted().say(json.dumps(frame))) is CloseCode.BAD_FRAME


def test_a_frame_of_an_unknown_type_before_hello_is_answered_too():
    """A later client may have something to say first; it still has to say hello in time."""
    play = Play()
    (answer,) = play.say('{"type":"greetings","id":"7"}')
    assert (answer.frame.code, answer.frame.id) == (400, "7")
    assert code(play.wait(5)) is CloseCode.NO_HELLO


@pytest.mark.parametrize(("said", "meant"), [(2, 2.0), (0, 0.0), ("max", float("inf"))])
def test_a_replay_is_asked_for_by_its_speed(said, meant):
    """From the start or a cursor; what is live has no speed. It may be changed, and another place may be sought."""
    play = Play().greeted()
    (opened,) = play.say(json.dumps({"type": "subscribe", "id": "a", "since": "start", "speed": said}))
    assert opened == OpenSubscription("a", EventFilter(), "start", meant)
    assert play.say(json.dumps({"type": "speed", "id": "a", "speed": said})) == [ChangeSpeed("a", meant)]
    assert play.say(Seek("a", time=5.0)) == [SeekReplay("a", None, 5.0)]
    assert play.say(Seek("a", cursor="x.1")) == [SeekReplay("a", "x.1", None)]


@pytest.mark.parametrize("speed", [-1, "fast", 1e7, [1], True])
def test_a_speed_that_is_none_is_no_frame(speed):
    """Only a number from 0 upward, or max."""
    play = Play().greeted()
    assert code(play.say(json.dumps({"type": "subscribe", "id": "a", "speed": speed}))) is CloseCode.BAD_FRAME


def test_replays_need_the_scope_that_reads():
    """As every subscription does."""
    play = Play(scopes=("control",)).greeted()
    for frame in (Seek("a", time=1.0), Speed("a", 1.0)):
        assert error(play.say(frame))[:2] == (403, "a")


def query(what="runs", id="q", **about):
    return encode_frame(Query(id=id, what=what, **about)).decode()


def error(actions):
    """The code, the id and the message of the one answer, which is an error."""
    (answer,) = actions
    return answer.frame.code, answer.frame.id, answer.frame.message


def test_a_query_is_run_once_and_finished():
    """Its id is taken until then; `limit` is at most what the role may have."""
    play = Play().greeted()
    (action,) = play.say(query(limit=7))
    assert (action.query.what, action.limit) == ("runs", 7)
    assert error(play.say(query()))[:2] == (409, "q")
    assert error(play.say(encode_frame(Subscribe("q")).decode()))[:2] == (409, "q")
    play.session.finished("q")
    (action,) = play.say(query(limit=10**6))
    assert action.limit == LIMITS.rows


def test_a_query_may_be_stopped():
    """`done` is the answer; one that is complete is no longer there."""
    play = Play().greeted()
    play.say(query("chains", watch=True))
    stop, done = play.say(encode_frame(Stop("q")).decode())
    assert (stop, done.frame) == (StopQuery("q"), Done("q"))
    assert error(play.say(encode_frame(Stop("q")).decode()))[:2] == (404, "q")
    assert play.session.queries == set()


def test_more_queries_than_may_run_are_refused_and_close_nothing():
    """Each answer has the id of its query."""
    play = Play().greeted()
    for number in range(LIMITS.queries):
        play.say(query(id=str(number)))
    assert error(play.say(query(id="more")))[:2] == (429, "more")
    play.session.finished("0")
    (action,) = play.say(query(id="more"))
    assert isinstance(action, RunQuery)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ({"what": "everything"}, "answers runs, chains, chain, steps"),
        ({"what": "chain"}, "give chain"),
        ({"what": "runs", "chain": "c"}, "takes no chain"),
        ({"what": "runs", "watch": True}, "only `chains` does"),
        ({"what": "steps", "sort": "x"}, "only `chains` does"),
        ({"what": 7}, "this is not a frame"),
        ({}, "this is not a frame"),
        ({"what": "runs", "limit": 0}, "this is not a frame"),
        ({"what": "runs", "limit": "x"}, "this is not a frame"),
        ({"what": "chains", "filter": {"reward": {"min": 1}}}, "this is not a frame"),
        ({"what": "chains", "filter": []}, "this is not a frame"),
        ({"what": "runs", "after": "x" * 9000}, "this is not a frame"),
    ],
)
def test_a_wrong_query_is_answered_and_closes_nothing(frame, says):
    """By its id, with what was found and what was expected."""
    play = Play(limits=Limits(message_bytes=20_000)).greeted()
    number, of, message = error(play.say(json.dumps({"type": "query", "id": "q"} | frame)))
    assert (number, of) == (400, "q")
    assert says in message
    assert not play.session.closed
    assert not play.session.queries


def test_a_query_without_an_id_is_no_frame():
    """Nothing could be answered."""
    play = Play().greeted()
    assert code(play.say('{"type":"query","what":"runs"}')) is CloseCode.BAD_FRAME


def test_rows_that_are_json_already_make_the_frame_that_the_schema_has():
    """What `rows_frame` writes is read as `Rows`."""
    rows = b'{"chain_id":"c","x":[1,{"rows":[]}]},{"y":2}'
    for total, following, changed in ((None, None, False), (7, 'a"b', False), (None, None, True)):
        frame = decode_server_frame(rows_frame('i"d\u2028', rows, total, following, changed=changed))
        assert frame == Rows('i"d\u2028', json.loads(b"[" + rows + b"]"), total, following, changed)
    assert decode_server_frame(rows_frame("x", b"")) == Rows("x", [])


PRODUCER = Hello("send", role="producer", source="w", epoch="e", host="there", time=7.0)
EVENTS = [msgspec.Raw(b"{}")]


def producer(**options):
    """A producer's session at a hub."""
    play = Play(TOKENS, hub=True, **options)
    (greeting,) = play.say(PRODUCER)
    assert greeting.producer == msgspec.structs.replace(PRODUCER, token=None)
    return play


def test_a_producer_publishes_and_answers():
    """What it sends is taken as it is, its events unread."""
    play = producer()
    assert play.say(Publish(1, EVENTS)) == [TakeEvents(Publish(1, EVENTS))]
    assert play.say(Publish(4, [], "v", "f", last=True)) == [TakeEvents(Publish(4, [], "v", "f", last=True))]
    assert play.say(Done("c")) == [TakeAnswer(Done("c"))]
    assert play.say(ErrorFrame(404, "no", "c")) == [TakeAnswer(ErrorFrame(404, "no", "c"))]
    assert play.say(Ping()) == [Send(Pong())]


@pytest.mark.parametrize(
    ("wrong", "closes", "says"),
    [
        ({"token": "watch"}, CloseCode.FORBIDDEN, "the publish scope; this one may only read"),
        ({"token": "x"}, CloseCode.BAD_TOKEN, "wrong"),
        ({"source": ""}, CloseCode.BAD_FRAME, "has no source"),
        ({"epoch": " "}, CloseCode.BAD_FRAME, "has no epoch"),
        ({"source": "a\x1b[2J"}, CloseCode.BAD_FRAME, "can be printed"),
        ({"version": 2}, CloseCode.VERSION, "version 2"),
    ],
)
def test_a_producer_that_may_not_publish_is_closed(wrong, closes, says):
    """For good, in a sentence."""
    (close,) = Play(TOKENS, hub=True).say(msgspec.structs.replace(PRODUCER, **wrong))
    assert close.code is closes
    assert says in close.message


@pytest.mark.parametrize("frame", [Subscribe("a"), Query(id="a", what="runs"), Cancel("r", id="a")])
def test_a_producer_asks_for_nothing(frame):
    """Whatever its token allows."""
    play = Play(TOKENS, hub=True)
    play.say(PRODUCER)
    (answer,) = play.say(frame)
    assert (answer.frame.code, answer.frame.id) == (403, "a")


@pytest.mark.parametrize(
    "frame",
    [
        Publish(1, []),
        Publish(1, EVENTS, source="v"),
        Publish(1, EVENTS, epoch="f"),
        Publish(1, EVENTS, last=True),
    ],
)
def test_a_publish_that_is_wrong_is_answered(frame):
    """And the session goes on."""
    play = producer()
    (answer,) = play.say(frame)
    assert answer.frame.code == 400
    assert play.say(Publish(1, EVENTS)) == [TakeEvents(Publish(1, EVENTS))]


@pytest.mark.parametrize("hub", [True, False])
def test_a_viewer_publishes_nothing(hub):
    """Not at a hub, and a server that is none says so to producers, too."""
    play = Play(TOKENS, hub=hub)
    play.say(PRODUCER if not hub else Hello("send"))
    assert play.session.producer is None
    (answer,) = play.say(Publish(1, EVENTS))
    assert answer.frame.code == 400
    assert ("only a producer" if hub else "`rollcast hub` starts one") in answer.frame.message


NAMES = st.sampled_from(["a", "b", "c"])
SPEEDS = st.just("max") | st.floats(0, 1e6)
FRAMES = st.one_of(
    st.builds(Hello, st.sampled_from([None, "watch", "rule", "old", "x"])),
    st.builds(
        Hello,
        st.sampled_from([None, "send", "rule"]),
        role=st.just("producer"),
        source=st.sampled_from(["", "w", "\x1b"]),
        epoch=st.sampled_from(["", "e"]),
    ),
    st.builds(
        Publish,
        st.integers(0, 9),
        st.lists(st.sampled_from([msgspec.Raw(b"{}"), msgspec.Raw(b"7")]), max_size=2),
        source=st.sampled_from(["", "v"]),
        epoch=st.sampled_from(["", "f"]),
        last=st.booleans(),
    ),
    st.builds(Done, NAMES),
    st.builds(ErrorFrame, st.integers(400, 5000), NAMES, NAMES),
    st.builds(Subscribe, NAMES, since=st.sampled_from(["live", "start", "x.3"])),
    st.builds(Update, NAMES),
    st.builds(Unsubscribe, NAMES),
    st.builds(Subscribe, NAMES, since=st.sampled_from(["start", "x.3"]), speed=SPEEDS),
    st.builds(Seek, NAMES, st.none() | st.just("x.3"), st.none() | st.floats(0, 2e9)),
    st.builds(Speed, NAMES, SPEEDS),
    st.builds(Cancel, NAMES, st.none() | NAMES, st.none() | NAMES),
    st.builds(
        Query,
        id=NAMES,
        what=st.sampled_from(["runs", "chains", "chain", "steps", "x"]),
        chain=st.none() | NAMES,
        limit=st.none() | st.integers(-1, 5000),
        filter=st.dictionaries(NAMES, st.integers() | NAMES, max_size=2),
        watch=st.booleans(),
    ),
    st.builds(Stop, NAMES),
    st.builds(Ping),
    st.builds(Pong),
).map(lambda frame: encode_frame(frame).decode())
JUNK = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x),
    ).map(json.dumps),
)


@st.composite
def mutated(draw):
    """A frame with a few characters changed, dropped or doubled."""
    text = draw(FRAMES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.sampled_from(["", '"', "{", "}", ",", "\\", "0", "é", "\x00", text]))
            + text[at + draw(st.integers(0, 2)) :]
        )
    return text


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(FRAMES | mutated() | JUNK, st.floats(0, 30)), max_size=40),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_the_rules_hold(messages, locked, hub):
    """Nothing raises; nothing is done before hello or after the close; scopes, ids and the clock are kept."""
    play = Play(TOKENS if locked else (), hub=hub)
    greeted = closed = False
    opened, asked = set(), set()
    for message, pause in messages:
        for action in [*play.wait(pause), *play.say(message)]:
            assert not closed
            match action:
                case Greet():
                    assert not greeted
                    greeted = True
                case OpenSubscription(id, _, since):
                    assert greeted
                    assert (since is None) == (id in opened)
                    opened.add(id)
                    assert len(opened) <= LIMITS.subscriptions
                case CloseSubscription(id):
                    opened.remove(id)
                case SeekReplay(id, cursor, at):
                    assert id in opened
                    assert (cursor is None) != (at is None)
                case ChangeSpeed(id, speed):
                    assert id in opened
                    assert speed >= 0
                case CancelRun():
                    assert "control" in play.session.grant.scopes
                case RunQuery(query, limit):
                    assert "read" in play.session.grant.scopes
                    assert query.id not in asked
                    assert 1 <= limit <= LIMITS.rows
                    asked.add(query.id)
                    assert len(asked) <= LIMITS.queries
                case StopQuery(id):
                    asked.remove(id)
                case TakeEvents(frame):
                    assert "publish" in play.session.grant.scopes
                    assert play.session.producer.source == "w"
                    assert bool(frame.source) == bool(frame.epoch)
                case TakeAnswer():
                    assert play.session.producer is not None
                case Close(close_code, message_out):
                    assert 4000 <= close_code <= 4999
                    assert message_out
                    closed = True
                case Send(frame):
                    unknown = isinstance(frame, ErrorFrame) and frame.code == 400
                    assert greeted or isinstance(frame, Pong) or unknown  # a frame of an unknown type
        assert opened == play.session.subscriptions
        assert asked == play.session.queries
        assert play.session.closed == closed
        assert play.session.wait_s >= 0


def test_ten_thousand_fuzzed_messages_do_no_harm():
    """Bytes flipped, cut, doubled in frames that were good; always a list of actions, never an exception."""
    import random

    rng = random.Random(20260101)
    good = [
        encode_frame(f)
        for f in (Hello("rule"), Subscribe("a"), Update("a"), Unsubscribe("a"), Cancel("r", "c"), Ping())
    ]
    play = Play(TOKENS, token="rule")
    counts = {"closed": 0, "went on": 0}
    for _ in range(20_000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.choice(
                [b"", b'"', b"{", b"\\u0000", b"\xff", bytes([rng.randrange(256)]), bytes(data[:20])]
            )
        play.clock.now += 0.5
        message = bytes(data) if rng.random() < 0.02 else data.decode("utf-8", "surrogateescape")
        assert isinstance(play.say(message), list)
        counts["closed" if play.session.closed else "went on"] += 1
        if play.session.closed:
            play = Play(TOKENS, token="rule")
    assert min(counts.values()) > 1000


def test_the_schema_on_file_is_current():
    """`python -m rollcast.serve.schema` renews it."""
    import rollcast.serve.schema as package

    path = Path(package.__file__).with_name("frames.schema.json")
    assert json.loads(path.read_text()) == frames_schema()


SERVER_FRAMES = [
    Welcome(1, [RunInfo("r", None, "running", 4)], 20.0, Limits(), ["read"]),
    Welcome(1, [], 20.0, Limits(), [], ["parts"], 7),
    Subscribed("a", recovered=True, cursor=None),
    Batch("a", "x.1", []),
    Done("a", "r", "c"),
    ErrorFrame(4500, "no"),
    Welcome(1, [], 20.0, Limits(), ["publish"], ["hub"], acked=3),
    Ack(3),
    Ack(3, "v", "f"),
    Interest(2, [FilterFrame(chains=["c"])], 60.0),
    Cancel("r", id="1"),
    Ping(),
    Pong(),
]
CLIENT_FRAMES = [
    Hello("t", "me"),
    Hello(role="page", features=["parts"]),
    Subscribe("a"),
    Update("a"),
    Unsubscribe("a"),
    Subscribe("a", since="start", speed="max"),
    Subscribe("a", since="x.1", speed=0.5),
    Seek("a", cursor="x.1"),
    Seek("a", time=1.7e9),
    Speed("a", 0.0),
    Speed("a", "max"),
    Cancel("r"),
    Hello(role="producer", source="w", epoch="e", host="there", time=1.7e9),
    Publish(1, [msgspec.Raw(b'{"event_type":"error"}')]),
    Publish(1, [], "v", "f", last=True),
    Ping(),
    Pong(),
]


@pytest.mark.parametrize("frame", [*SERVER_FRAMES, *CLIENT_FRAMES], ids=lambda f: type(f).__name__)
def test_every_frame_fits_the_schema_and_comes_back(frame):
    """Encoded, decoded, the same."""
    side = "ClientFrame" if frame in CLIENT_FRAMES else "ServerFrame"
    decode = decode_client_frame if side == "ClientFrame" else decode_server_frame
    data = encode_frame(frame)
    assert decode(data) == frame
    schema = frames_schema()
    jsonschema.validate(json.loads(data), {**schema, "anyOf": [{"$ref": f"#/$defs/{side}"}]})


def test_the_schema_knows_an_events_payload():
    """A chunk without its text does not fit."""
    schema = {**frames_schema(), "anyOf": [{"$ref": "#/$defs/ServerFrame"}]}
    event = {"event_type": "llm_generation_chunk", "chain_id": "chain_0", "timestamp": 1.0, "data": {}}
    batch = {"type": "batch", "id": "a", "cursor": "x.1", "events": [event]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(batch, schema)
    event["data"] = {"content": "x", "offset": 0}
    jsonschema.validate(batch, schema)


def test_what_a_server_sends_is_checked_too():
    """Not a frame: a DecodeError."""
    with pytest.raises(DecodeError, match="not a frame"):
        decode_server_frame(msgspec.json.encode({"type": "hello"}))
