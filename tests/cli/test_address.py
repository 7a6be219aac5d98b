"""What people type for a server."""

import pytest

from rollcast.errors import InputError
from rollcast.serve.address import hub_address, server_address


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("8765", "ws://localhost:8765"),
        ("localhost", "ws://localhost:8765"),
        ("localhost:1234", "ws://localhost:1234"),
        (" localhost:1234 ", "ws://localhost:1234"),
        (":1234", "ws://localhost:1234"),
        ("localhost:1234/", "ws://localhost:1234/"),
        ("gpu-7.cluster:1234/user/me/", "ws://gpu-7.cluster:1234/user/me/"),
        ("192.168.0.7", "ws://192.168.0.7:8765"),
        ("0.0.0.0:1234", "ws://localhost:1234"),
        ("[::]:1234", "ws://localhost:1234"),
        ("::1", "ws://[::1]:8765"),
        ("[::1]", "ws://[::1]:8765"),
        ("[::1]:1234", "ws://[::1]:1234"),
        ("http://localhost:1234", "ws://localhost:1234"),
        ("https://lab.example/user/me/?chain=chain_0", "wss://lab.example/user/me/?chain=chain_0"),
        ("HTTP://[::1]:1234/", "ws://[::1]:1234/"),
        ("ws://localhost:1234", "ws://localhost:1234"),
        ("wss://lab.example", "wss://lab.example"),
        ("ws://user:password@lab.example:1/", "ws://user:password@lab.example:1/"),
    ],
)
def test_what_can_only_mean_one_server_is_understood(given, address):
    """A port, a host, both, or the address that a browser shows."""
    assert server_address(given) == address


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "the address is empty; expected HOST:PORT"),
        ("  ", "the address is empty"),
        ("host:99999", "has the port '99999'; expected a number from 1 to 65535"),
        ("host:0", "has the port '0'"),
        ("host:", "has the port ''"),
        ("host:abc", "has the port 'abc'"),
        ("host:٣", "has the port '٣'"),
        ("99999", "has the port '99999'"),
        ("http://host:99999", "has the port '99999'"),
        ("::1:8765", "in brackets, such as [::1]:8765"),
        ("fe80::1:8765", "in brackets"),
        ("a:b:c", "in brackets"),
        ("[localhost]:1", "brackets around what is not an IPv6 address"),
        ("[::1", "brackets around"),
        ("ftp://host", "its scheme is 'ftp'"),
        ("wss//host", "is not an address of a server"),
        ("ws:/host", "is not an address of a server"),
        ("two words", "is not an address of a server"),
        ("user:password@host:1", "'host:1' is not an address of a server"),
        ("host:1/?token=sekrit", "has a token in it"),
        ("http://host:1/#token=sekrit", "has a token in it"),
        ("http://host:1/?" + "a&" * 300 + "token=sekrit", "has a token in it"),
        ("host:1;token=sekrit", "has a token in it"),
        ("ws://host:1&access_token=sekrit", "has a token in it"),
        ("x" * 300 + ":1 2", "has the port '1 2'"),
    ],
)
def test_what_cannot_be_an_address_is_one_sentence(given, says):
    """With what was expected, and without what is secret."""
    with pytest.raises(InputError) as caught:
        server_address(given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "sekrit" not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["all.jsonl", "runs/all.jsonl", "./all", "~/all.jsonl", "ALL.JSONL", "a.json", "file:///a.jsonl"]
)
def test_a_log_is_told_from_a_server(name):
    """Whether or not it is there: it says what the thing is and what to do."""
    with pytest.raises(
        InputError, match="is the name of a file, and watch follows a server; give its HOST:PORT"
    ):
        server_address(name)


def test_a_file_of_any_name_is_told_from_a_server(tmp_path, monkeypatch):
    """If it is there; a host may have any name otherwise."""
    monkeypatch.chdir(tmp_path)
    assert server_address("events") == "ws://events:8765"
    (tmp_path / "events").touch()
    with pytest.raises(
        InputError, match=r"'events' is a file, and watch follows a server.*followed with tail -f"
    ):
        server_address("events")
    with pytest.raises(InputError, match="is a folder"):
        server_address(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "meant"),
    [("hub", "ws://hub:8765"), ("8765", "ws://localhost:8765"), ("wss://hub:1", "wss://hub:1")],
)
def test_the_address_of_a_hub(given, meant):
    """It is typed like that of a server."""
    assert hub_address(given) == meant


@pytest.mark.parametrize("given", ["", " ", "/opt/hub", "./hub", "ftp://hub", "hub:99999999"])
def test_what_is_no_address_of_a_hub(given):
    """One sentence says so."""
    with pytest.raises(InputError, match="expected"):
        hub_address(given)


def test_the_address_of_a_hub_has_no_token():
    """The sentence says where it belongs, and does not repeat it."""
    with pytest.raises(InputError, match="ROLLCAST_HUB_TOKEN") as caught:
        hub_address("ws://hub?token=shibboleth")
    assert "shibboleth" not in str(caught.value)
