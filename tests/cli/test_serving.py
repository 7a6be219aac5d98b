"""What the commands take for a server of their own."""

import os
import socket
import stat

import pytest

from rollcast.archive.index import list_records
from rollcast.cli.kept_token import TOKEN_FILE, MadeToken, made_token
from rollcast.cli.page_links import forward_lines, link_lines, page_link
from rollcast.cli.recording import Recording
from rollcast.cli.serving import Serving, server_at
from rollcast.cli.train.folder import SETTINGS_FILE, keep_settings
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.errors import InputError
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer


def test_nothing_is_served_unless_asked_for():
    """A token in the environment alone is no reason."""
    assert server_at(Serving()) is None
    assert server_at(Serving(token="secret")) is None


def test_a_token_has_all_scopes_of_the_command():
    """It watches and cancels; without one, everybody on this machine watches."""
    (token,) = server_at(Serving("0", "secret")).settings.tokens
    assert token.scopes == ("read", "control")
    open_to_all = server_at(Serving("0")).settings
    assert (open_to_all.tokens, open_to_all.anonymous_scopes) == ((), ("read",))


def test_origins_and_names_reach_the_server():
    """As they will come in headers."""
    settings = server_at(
        Serving("0", origins=("https://Lab.example/",), host_names=("Lab.example",))
    ).settings
    assert (settings.origins, settings.hosts) == (("https://lab.example",), ("lab.example",))


def test_a_link_to_every_address_has_the_name_that_was_given():
    """A certificate is made for a name, and not for `localhost`."""
    assert server_at(Serving("0.0.0.0:8765", "t", host_names=("gpu-7.lab",))).url == "ws://gpu-7.lab:8765"
    assert server_at(Serving("0.0.0.0:8765", "t")).url == "ws://localhost:8765"


@pytest.mark.parametrize(
    "where",
    ["", "x", "localhost:", "user:sekrit@localhost:1", "ws://user:sekrit@localhost:1", "localhost:1/?token=sekrit",
     "ws://localhost:1"],
)  # fmt: skip
def test_what_is_not_a_place_to_listen_is_one_sentence(where):
    """Without what is secret in it."""
    with pytest.raises(
        InputError, match=r"--serve is .*; expected PORT or HOST:PORT, such as 8765"
    ) as caught:
        server_at(Serving(where, "t"))
    assert "sekrit" not in str(caught.value)


def test_a_file_may_say_it_too(tmp_path):
    """`--config` of a training: several origins are a list; a token that is wrong is not repeated."""
    file = tmp_path / "train.toml"
    file.write_text(
        'serve = "0"\norigin = ["https://lab.example"]\nhost-name = ["lab.example"]\ntoken = "t"\n'
    )
    serving = merged({}, str(file)).serving
    assert serving == Serving("0", "t", origins=("https://lab.example",), host_names=("lab.example",))
    file.write_text('origin = "https://lab.example"\n')
    with pytest.raises(
        InputError, match=r"origin is 'https://lab.example'; expected a list of texts in quotes"
    ):
        merged({}, str(file))
    for value in ("76543", '"76543\\u0000"'):
        file.write_text(f"token = {value}\n")
        with pytest.raises(InputError, match="token is wrong; expected text") as caught:
            merged({}, str(file))
        assert "76543" not in str(caught.value)


def test_what_belongs_to_a_session_is_not_kept_with_the_weights(tmp_path):
    """Least of all its secrets: another session may be served elsewhere, or not at all."""
    keep_settings(
        TrainSettings(
            serve="0",
            token="sekrit",
            tls_cert="c.pem",
            tls_key="k.pem",
            origin=["https://lab.example"],
            host_name=["lab"],
        ),
        tmp_path,
    )
    kept = (tmp_path / SETTINGS_FILE).read_text()
    assert not any(word in kept for word in ("sekrit", "serve", "tls", "origin", "host"))


# -- the page's token and its links ----------------------------------------------------------------------------------------


def test_a_made_token_adds_control_and_reading_stays_open(tmp_path):
    """`--serve 0` without a token: everybody on this machine watches, and the link with the token cancels."""
    serving = Serving("0").with_made_token(Recording(directory=str(tmp_path)))
    server = server_at(serving)
    assert server._entrance.authorize(None).scopes == ("read",)
    assert server._entrance.authorize("another").scopes == ("read",)
    assert server._entrance.authorize(serving.made.value).scopes == ("read", "control")
    assert serving.made.value not in repr(serving)


def test_a_token_that_was_given_is_the_only_one(tmp_path):
    """None is made beside it, and nothing is kept."""
    recording = Recording(directory=str(tmp_path))
    assert Serving("0", "secret").with_made_token(recording).made is None
    assert Serving(None).with_made_token(recording).made is None
    assert server_at(Serving("0", "secret"))._entrance.authorize(None) == "wrong"
    assert list(tmp_path.iterdir()) == []


def test_a_made_token_is_kept_for_its_owner_alone_and_used_again(tmp_path):
    """In the record directory, which is made if it is not there."""
    directory = tmp_path / "records"
    first = made_token(directory)
    first.keep()
    assert stat.S_IMODE((directory / TOKEN_FILE).stat().st_mode) == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [".gitignore", TOKEN_FILE]
    again = made_token(directory)
    assert again == MadeToken(first.value)
    again.keep()
    assert made_token(directory).value == first.value
    assert list_records(directory) == []
    assert len(first.value) >= 24
    assert made_token(tmp_path / "others").value != first.value != made_token(None).value


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606])
def test_a_token_that_others_can_read_or_change_is_replaced(tmp_path, mode):
    """By a new one, with the right mode."""
    kept = made_token(tmp_path)
    kept.keep()
    (tmp_path / TOKEN_FILE).chmod(mode)
    fresh = made_token(tmp_path)
    assert fresh.value != kept.value
    fresh.keep()
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert made_token(tmp_path).value == fresh.value


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 40, b"x" * 500, b"a b" * 20, b"../../etc/passwd" * 3]
)
def test_a_file_without_a_token_is_replaced(tmp_path, content):
    """As one that was cut off."""
    path = tmp_path / TOKEN_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    made = made_token(tmp_path)
    made.keep()
    assert path.read_text() == made.value + "\n"


def test_a_link_or_a_pipe_in_its_place_is_not_followed(tmp_path):
    """Somebody else may have put it there: its target stays as it is, and nothing waits."""
    target = tmp_path / "target"
    target.write_text("a" * 30)
    target.chmod(0o600)
    path = tmp_path / TOKEN_FILE
    path.symlink_to(target)
    made = made_token(tmp_path)
    assert made.value != "a" * 30
    made.keep()
    assert target.read_text() == "a" * 30
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path, 0o600)
    made_token(tmp_path).keep()
    assert path.is_file()


def test_a_token_that_cannot_be_kept_is_said(tmp_path, capsys):
    """The page works; its links end with the command."""
    file = tmp_path / "file"
    file.write_text("")
    made_token(file / "records").keep()
    said = capsys.readouterr().err
    assert said.startswith("rollcast: the token of the page cannot be kept in ")
    assert said.endswith("Not a directory; its links end with this command\n")


class Served:
    """What links are made of."""

    def __init__(self, name="localhost", host="localhost", port=8765, hosts=()):
        self.url, self.host, self.port = f"ws://{name}:{port}", host, port
        self.page_url, self.settings = f"http://{name}:{port}/", ServerSettings(hosts=hosts)


@pytest.fixture
def at_a_desktop(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)


def test_two_links_are_printed(at_a_desktop):
    """One to watch, and one that may cancel too."""
    assert link_lines(Served(), "t-1") == [
        "in a browser: http://localhost:8765/",
        "  with cancel: http://localhost:8765/#token=t-1",
    ]


def test_a_token_that_was_given_is_not_repeated(at_a_desktop):
    """A terminal's log would keep it."""
    assert link_lines(Served(), None) == [
        "in a browser: http://localhost:8765/#token=…, with the token for the dots"
    ]


def test_how_to_forward_the_port_is_told_to_those_who_are_elsewhere(monkeypatch, at_a_desktop):
    """Over SSH, or on a machine without a display; not if the server is reached without."""
    assert forward_lines(Served()) == []
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    expected = [f"from your machine: ssh -L 8765:localhost:8765 {socket.gethostname()}"]
    assert forward_lines(Served()) == expected
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert link_lines(Served(), "t")[-1:] == expected
    assert forward_lines(Served("gpu-7", "0.0.0.0", hosts=("gpu-7",))) == []
    monkeypatch.setattr("sys.platform", "darwin")
    assert forward_lines(Served()) == []


def test_the_address_for_other_machines_is_told(at_a_desktop):
    """If the server listens on all of this one's addresses, and nobody said by what name others know it."""
    expected = [f"from other machines: http://{socket.gethostname()}:8765/, with the same token"]
    assert link_lines(Served(host="0.0.0.0"), "t")[2:] == expected
    assert forward_lines(Served("192.0.2.7", "192.0.2.7")) == []


def test_a_token_is_quoted_in_a_link(at_a_desktop):
    """A token of one's own may have any printable character."""
    assert page_link(Served(), "a#b&c%") == "http://localhost:8765/#token=a%23b%26c%25"


def test_a_network_server_with_optional_tokens_is_open_and_must_say_so():
    """Tokens that only add a scope protect nothing from being read."""
    settings = ServerSettings(tokens=(Token("t", ("control",)),), tokens_required=False)
    with pytest.raises(InputError, match="can be reached from the network"):
        WebSocketStreamingServer("0.0.0.0", 0, settings=settings)
