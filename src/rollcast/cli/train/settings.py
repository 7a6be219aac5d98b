"""The settings of `rollcast train`, from the command line, a TOML file and the defaults."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from rollcast.cli.recording import Recording
from rollcast.cli.serving import Serving
from rollcast.errors import InputError

__all__ = ["TRAINERS", "TrainSettings", "merged"]

TRAINERS = ("embedded", "trl")

_DEFAULT_MINUTES = 1.0
_SECRET = ("token", "alert")  # an address for alerts often has a secret in it
_HOW_RECORDED = ("record", "record_dir", "record_lossless", "record_budget")
_KINDS = {
    "list": "a list of texts in quotes",
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
}


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `rollcast train`, with `_` for `-` in their names. None: the trainer's own default."""

    task: str = "arithmetic"
    agent: str | None = None
    model: str | None = None
    trainer: str = "embedded"
    steps: int | None = None
    minutes: float | None = None
    group: int | None = None
    questions: int | None = None
    lr: float | None = None
    seed: int | None = None
    eval_every: int | None = None
    ray: str | None = None
    runners: int | None = None
    out: str | None = None
    resume: bool = False
    show: int | None = None
    serve: str | None = None
    token: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    origin: list[str] = []
    host_name: list[str] = []
    alert: str | None = None
    keep_serving: bool = False
    json: str | None = None
    record: str | None = None
    no_record: bool = False
    record_dir: str | None = None
    record_lossless: bool = False
    record_budget: str | None = None
    name: str | None = None
    tag: list[str] = []
    tensorboard: str | None = None
    no_color: bool = False

    def __repr__(self) -> str:
        told = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in _SECRET}
        return f"TrainSettings({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def serving(self) -> Serving:
        """The settings about serving."""
        return Serving(
            self.serve,
            self.token,
            self.tls_cert,
            self.tls_key,
            tuple(self.origin),
            tuple(self.host_name),
            keep=self.keep_serving,
        )

    @property
    def recording(self) -> Recording:
        """The settings about the record."""
        return Recording.of(msgspec.structs.asdict(self))

    @property
    def trainer_options(self) -> dict[str, Any]:
        """The given options, under the trainer's names."""
        names = {
            "steps": "steps",
            "minutes": "minutes",
            "group": "group",
            "questions": "questions",
            "lr": "learning_rate",
            "seed": "seed",
            "eval_every": "eval_every",
        }
        given = {theirs: getattr(self, ours) for ours, theirs in names.items()}
        return {name: value for name, value in given.items() if value is not None}


def merged(line: dict[str, Any], config: str | None) -> TrainSettings:
    """Merge the settings: the command line (None: not given) wins over the file.

    Raises:
        InputError: the file cannot be read or has a key or a value that is wrong, `steps` and `minutes` are both given in one
            place, or `trainer` is unknown.
    """
    given = {name: value for name, value in line.items() if value is not None}
    _refuse_both_ends(given, "--steps and --minutes")
    of_file = {} if config is None else _from_file(config)
    _refuse_both_ends(of_file, f"{config}: steps and minutes")
    settings = TrainSettings(**(_without_contradictions(of_file, given) | given))
    if settings.trainer not in TRAINERS:
        raise InputError(f"trainer is {settings.trainer!r}; expected {' or '.join(TRAINERS)}")
    if settings.ray is not None and settings.trainer == "trl":
        raise InputError(
            "--ray and --trainer trl were both given; Ray spreads the rollouts of the embedded trainer, and TRL's over its own "
            "processes: start it with torchrun or accelerate launch"
        )
    if settings.show is not None and settings.show < 0:
        raise InputError(f"show is {settings.show}; expected how many chains to show, from 0 upward")
    if settings.steps is None and settings.minutes is None:
        settings = msgspec.structs.replace(settings, minutes=_DEFAULT_MINUTES)
    return settings


def _without_contradictions(of_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The file's settings without those that the command line has replaced by other ones."""
    replaced: set[str] = set()
    if "steps" in given or "minutes" in given:
        replaced |= {"steps", "minutes"}
    if given.get("no_record"):
        replaced |= set(_HOW_RECORDED)
    elif any(name in given for name in _HOW_RECORDED):
        replaced.add("no_record")
    return {name: value for name, value in of_file.items() if name not in replaced}


def _refuse_both_ends(given: dict[str, Any], what: str) -> None:
    if "steps" in given and "minutes" in given:
        raise InputError(f"{what} are both given; give one of them")


def _from_file(path: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"--config cannot be read: {error.strerror or error} ({path})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    types = get_type_hints(TrainSettings)
    given: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in types:
            raise InputError(
                f"{path} has the key {key!r}, which is not an option; {_closest(name, list(types))}"
            )
        if name in given:
            raise InputError(f"{path} has {key!r} twice, with - and with _; expected it once")
        if isinstance(value, str) and "\0" in value:
            raise InputError(
                f"{path}: {key} is {_shown(name, value)}; expected text without a null character"
            )
        try:
            given[name] = msgspec.convert(value, types[name])
        except msgspec.ValidationError:
            kind = next(words for kind, words in _KINDS.items() if kind in str(types[name]))
            raise InputError(f"{path}: {key} is {_shown(name, value)}; expected {kind}") from None
    return given


def _shown(name: str, value: object) -> str:
    """The value for a message; a secret is not shown."""
    return "wrong" if name in _SECRET else repr(value)


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0].replace('_', '-')!r}?"
    return f"the options are: {', '.join(known).replace('_', '-')}"
