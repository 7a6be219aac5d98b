"""What the commands take for a server of their own."""

import pytest

from rollcast.cli.serving import Serving, server_at
from rollcast.cli.train.folder import SETTINGS_FILE, keep_settings
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.errors import InputError


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
