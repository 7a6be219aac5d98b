"""`rollcast run --backend openai`."""

import pytest
from click.testing import CliRunner

from rollcast.cli.app import app
from rollcast.errors import InputError
from rollcast.models.tiny.backend import CHECKPOINT, TinyBackend
from rollcast.testing import OpenAIServer


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def run(*options):
        given = [
            "run",
            "--backend",
            "openai",
            "--model",
            "tiny",
            "--chains",
            "2",
            "--prompt",
            "What is 12 * 34?",
            "--record-dir",
            str(tmp_path),
        ]
        for option in options:
            given += ["--backend-option", option]
        return CliRunner().invoke(app, given)

    return run


def test_a_run_on_a_server(command, tmp_path):
    """It answers, and the key that was given stands nowhere in the record."""
    with OpenAIServer(TinyBackend(), model="tiny", context=1024, api_key="hush-hush-5127") as server:
        result = command(f"base_url={server.url}", f"tokenizer={CHECKPOINT}", "api_key=hush-hush-5127")
    assert result.exit_code == 0, result.output
    assert "408" in result.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in written)
    assert not [path for path in written if b"hush-hush-5127" in path.read_bytes()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give base_url, such as http"),
        (["base_url=nowhere"], "expected an address such as"),
        (["base_url=http://127.0.0.1:9", "level=both"], "level is 'both'"),
        (["base_url=http://127.0.0.1:9", "bogus=1"], "has no option 'bogus'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(command, options, said):
    """The command prints it and exits with 2, as with every InputError."""
    result = command(*options)
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
