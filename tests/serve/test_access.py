"""Who may enter."""

import pytest

from rollcast.errors import FilterError, InputError
from rollcast.records import EventFilter
from rollcast.serve.access import bearer_token, filter_of_query, host_allowed, is_loopback, origin_allowed
from rollcast.serve.server import WebSocketStreamingServer
from rollcast.serve.settings import ServerSettings, Token


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_needs_no_token(host):
    """Only this machine reaches it."""
    assert is_loopback(host)
    WebSocketStreamingServer(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.0.7", "trainer", "localhost.evil.example"])
def test_the_network_needs_a_token_or_a_word(host):
    """The sentence says which."""
    with pytest.raises(InputError, match=r"no token is asked for; give token=…, listen on localhost, or set"):
        WebSocketStreamingServer(host)
    WebSocketStreamingServer(host, token="secret")
    WebSocketStreamingServer(host, settings=ServerSettings(tokens=(Token("secret"),)))
    WebSocketStreamingServer(host, settings=ServerSettings(insecure=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokens": (Token(""),)}, "a token of the server is empty"),
        ({"tokens": (Token("a b"),)}, "has spaces"),
        ({"tokens": "secret"}, "tokens of the server is one string"),
        ({"hosts": "lab"}, "hosts of the server is one string"),
        ({"tokens": ("secret",)}, "tokens"),
        ({"tokens": None}, "tokens"),
        ({"tokens": (Token(b"secret"),)}, "value"),
        ({"heartbeat_s": 0}, "heartbeat_s"),
        ({"heartbeat_s": float("inf")}, "heartbeat_s"),
        ({"batch_s": float("nan")}, "batch_s"),
        ({"history_bytes": -1}, "history_bytes"),
        ({"tokens": (Token("a", ("write",)),)}, "write"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    """When the server is made, not when it starts."""
    with pytest.raises(InputError, match=says):
        WebSocketStreamingServer(settings=ServerSettings(**settings))


@pytest.mark.parametrize("token", ["", " ", "a\n", "é", b"secret", 5])
def test_a_token_that_no_header_could_carry_is_refused(token):
    """Rather than a server that nobody, or anybody, can enter."""
    with pytest.raises(InputError, match=r"a token of the server|settings are wrong"):
        WebSocketStreamingServer(token=token)


def test_a_host_is_a_string():
    """None is not taken for every address."""
    with pytest.raises(InputError, match="host is None; expected a name or an address"):
        WebSocketStreamingServer(None, token="secret")


@pytest.mark.parametrize("port", [-1, 65536, "8765"])
def test_a_wrong_port_is_named(port):
    """With what was expected."""
    with pytest.raises(InputError, match=f"port is {port!r}; expected a number from 0 to 65535"):
        WebSocketStreamingServer(port=port)


def test_a_token_is_not_in_its_repr():
    """Logs have reprs."""
    assert "secret" not in repr(Token("secret"))
    assert "secret" not in repr(ServerSettings(tokens=(Token("secret"),)))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8765", True),
        ("LOCALHOST.:8765", True),
        ("127.0.0.1:8765", True),
        ("[::1]:8765", True),
        ("192.168.0.7", True),
        ("trainer:8765", True),
        ("lab.example", True),
        ("evil.example:8765", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        (None, False),
        ("[::1", False),
        ("user@evil.example", False),
    ],
)
def test_a_host_that_is_not_ours_is_refused(host, allowed):
    """A name that somebody made to point here (DNS rebinding)."""
    assert host_allowed(host, "trainer", ["lab.example"], any_name=False) is allowed


def test_behind_a_token_any_name_will_do():
    """Where the server listens on the network and its names are not known."""
    assert host_allowed("gpu-7.cluster", "0.0.0.0", [], any_name=True)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:8765", True),
        ("https://lab.example", True),
        ("http://localhost:3000", False),
        ("http://[::1", False),
        ("http://localhost:8765@evil.example", False),
        ("http://evil.example@localhost:8765", False),
        ("https://evil.example", False),
        ("null", False),
        ("file://", False),
        ("ftp://localhost:8765", False),
        ("", False),
    ],
)
def test_pages_of_other_origins_are_refused(origin, allowed):
    """Programs send none."""
    assert origin_allowed(origin, "localhost:8765", ["https://lab.example"]) is allowed


def test_bearer_tokens():
    """RFC 6750; the scheme in any case."""
    assert bearer_token("Bearer abc") == "abc"
    assert bearer_token("bearer  abc ") == "abc"
    for header in (None, "", "Bearer", "Basic abc", "abc"):
        assert bearer_token(header) is None


def test_a_url_narrows_the_plain_feed():
    """Each field as often as wanted."""
    assert filter_of_query("") == EventFilter()
    assert filter_of_query(
        "chain=chain_0&chain=chain_1&type=tool_observation&group=group_0&run=r"
    ) == EventFilter("r", ["chain_0", "chain_1"], "group_0", "tool_observation")


def test_a_url_that_says_something_else_is_refused():
    """Unknown fields and types; a token is refused before, at every path."""
    with pytest.raises(FilterError, match="has no field 'chains'; its fields are chain, group, run, type"):
        filter_of_query("chains=chain_0")
    with pytest.raises(FilterError, match="no event type"):
        filter_of_query("type=shout")
    with pytest.raises(FilterError, match="has no field 'token'"):
        filter_of_query("token=secret")
