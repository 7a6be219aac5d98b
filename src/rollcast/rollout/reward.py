"""`@reward` turns a function into a reward, which scores a finished chain; the function gets what its parameters name.

Two common rewards are here: `exact_match` and `numeric_match`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Self, overload

from rollcast.aio import why_left
from rollcast.errors import RewardDefinitionError, RewardError
from rollcast.failures import text_and_place, text_of
from rollcast.records.jsonable import plain_scalar
from rollcast.records.trajectory import Trajectory
from rollcast.rollout.context import ChainContext
from rollcast.rollout.quantity import LARGEST, is_finite, kind_of, last_quantity, reference_quantity
from rollcast.tools.copying import reduced
from rollcast.tools.execution import CancelledItself, OutOfTime, StoppedItself, in_task, in_thread, is_async

__all__ = ["Reward", "as_reward", "exact_match", "numeric_match", "reward"]

DEFAULT_TIMEOUT_S = 300.0
TOLERANCE = 1e-6  # numeric_match's default
GIVEN = ("final_response", "trajectory", "ctx")
"""What a reward's parameters may name beside the fields of a row."""


@dataclass(frozen=True, eq=False)
class Reward:
    """Scores a finished chain. It can still be called as the plain function. `reward` makes it.

    Attributes:
        function: sync or async.
        name: its name in messages.
        timeout: seconds, or None to wait for ever.
        inline: True if a sync function runs in the event loop instead of a thread.
        check: called with the fields of each row before any chain starts; a ValueError refuses the row.
    """

    function: Callable[..., Any]
    name: str
    timeout: float | None = DEFAULT_TIMEOUT_S
    inline: bool = False
    check: Callable[[Mapping[str, Any]], object] | None = None
    required: frozenset[str] = field(init=False)
    optional: frozenset[str] = field(init=False)
    takes_all: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise RewardDefinitionError(
                f"reward {self.name!r} has timeout={self.timeout!r}; expected seconds above 0, or None for no limit"
            )
        parameters = _parameters(self.function, self.name)
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        required = frozenset(p.name for p in named if p.default is p.empty)
        object.__setattr__(self, "required", required)
        object.__setattr__(self, "optional", frozenset(p.name for p in named) - required)
        object.__setattr__(self, "takes_all", len(named) < len(parameters))
        object.__setattr__(self, "__doc__", self.function.__doc__)
        object.__setattr__(self, "__wrapped__", self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Reward({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "function"}
        return reduced(self, self.function, _made, settings)

    def __copy__(self) -> Self:
        return self  # it is immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        function = copy.deepcopy(self.function, memo)
        return self if function is self.function else replace(self, function=function)

    def check_fields(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows that lack a field that the reward needs, before any chain starts.

        Args:
            rows: the fields of each row, without its messages.

        Raises:
            RewardDefinitionError: a row lacks a needed field, a field is hidden by one of `GIVEN`, or `check` refuses a row.
        """
        for name in sorted(self.required.difference(GIVEN)):
            lacking = [i for i, row in enumerate(rows) if name not in row]
            if len(lacking) == len(rows):
                known = ", ".join(sorted({str(field) for row in rows for field in row})) or "none"
                raise RewardDefinitionError(
                    f"reward {self.name!r} asks for {name!r}, which no row has (fields of the rows: {known}); add the "
                    "field to the rows, or give the parameter a default"
                )
            if lacking:
                raise RewardDefinitionError(
                    f"reward {self.name!r} asks for {name!r}, which row {lacking[0]} lacks ({len(lacking)} of "
                    f"{len(rows)} rows do); add it there, or give the parameter a default"
                )
        for name in sorted((self.required | self.optional).intersection(GIVEN)):
            clash = next((i for i, row in enumerate(rows) if name in row), None)
            if clash is not None:
                raise RewardDefinitionError(
                    f"reward {self.name!r} asks for {name!r}, which it gets from the rollout, but row {clash} has a "
                    "field of that name; rename the field"
                )
        for i, row in enumerate(rows if self.check is not None else ()):
            assert self.check is not None
            try:
                self.check(row)
            except ValueError as error:
                raise RewardDefinitionError(
                    f"reward {self.name!r} cannot use row {i}: {text_of(error)}"
                ) from error
            except Exception as error:  # a user's function may raise anything
                raise RewardDefinitionError(
                    f"the check of reward {self.name!r} failed for row {i}: {type(error).__name__}: "
                    f"{text_and_place(error)}; expected nothing, or a ValueError for a row that cannot be used"
                ) from error

    async def score(self, trajectory: Trajectory, ctx: ChainContext) -> tuple[float, dict[str, Any]]:
        """Return the chain's reward and its metrics, which are all finite numbers.

        A sync function runs in a thread (unless `inline`), an async one in the event loop.

        Raises:
            RewardError: the function raised, took too long, or returned neither a finite number nor a dict with one as
                `reward`.
        """
        where = f"reward {self.name!r} of {trajectory.chain_id}"
        work = functools.partial(self.function, **self._arguments(trajectory, ctx, where))
        try:
            if is_async(self.function):
                value = await in_task(work(), where, self.timeout)
            elif self.inline:
                value = work()
            else:
                value = await in_thread(work, f"rollcast-reward-{self.name}", self.timeout)
        except OutOfTime:
            raise RewardError(f"{where} did not return within {self.timeout:g} s") from None
        except CancelledItself:
            raise RewardError(f"{where} was cancelled from within") from None
        except StoppedItself as stopped:
            error = stopped.__cause__ or stopped
            raise RewardError(f"{where} raised {type(error).__name__}: {_text(error)}") from error
        except BaseException as error:  # a user's function may raise anything
            if why_left(error) == "cancelled":
                raise
            raise RewardError(f"{where} raised {type(error).__name__}: {_text(error)}") from error
        return _number_and_metrics(value, where)

    def _arguments(self, trajectory: Trajectory, ctx: ChainContext, where: str) -> dict[str, Any]:
        given = {"final_response": trajectory.final_response, "trajectory": trajectory, "ctx": ctx}
        available = trajectory.row | given
        missing = self.required - available.keys()
        if missing:
            raise RewardError(f"{where} asks for {min(missing)!r}, which its row lacks")
        if self.takes_all:
            hidden = set(GIVEN) - self.required - self.optional
            hidden |= {
                name for name in available if not issubclass(type(name), str)
            }  # these cannot be given by name
            return {name: value for name, value in available.items() if name not in hidden}
        return {name: available[name] for name in (self.required | self.optional) & available.keys()}


def _made(function: Callable[..., Any], settings: dict[str, Any]) -> Reward:
    """Make the reward again, in another process."""
    return Reward(function, **settings)


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise RewardDefinitionError(
            f"reward {name!r} has no signature that can be read; wrap it in a function that names what it needs"
        ) from None
    for p in parameters:
        if p.kind in {p.VAR_POSITIONAL, p.POSITIONAL_ONLY}:
            raise RewardDefinitionError(
                f"reward {name!r} has the parameter {p.name!r}, which cannot be given by name; name what it needs: "
                "final_response, trajectory, ctx, or fields of the rows"
            )
    return parameters


def _number_and_metrics(value: Any, where: str) -> tuple[float, dict[str, Any]]:
    if not isinstance(value, Mapping):
        return _number(value, f"{where} returned"), {}
    if "reward" not in value:
        keys = ", ".join(map(repr, value))[:200] or "none"
        raise RewardError(
            f"{where} returned a dict without 'reward' (its keys: {keys}); expected one beside the metrics"
        )
    metrics = {
        str(name): _metric(metric, f"{where} returned the metric {str(name)!r} as")
        for name, metric in value.items()
        if name != "reward"
    }
    return _number(value["reward"], f"{where} returned as 'reward'"), metrics


def _metric(value: Any, what: str) -> float | int | bool:
    if isinstance(value, bool):
        return value
    number = _number(value, what)
    return int(value) if isinstance(value, int) and abs(value) < 1 << 63 else number


def _number(value: Any, what: str) -> float:
    value = plain_scalar(value)
    if inspect.iscoroutine(value):
        value.close()
        raise RewardError(f"{what} a coroutine; define it with `async def`")
    if hasattr(type(value), "__float__"):  # NumPy's and torch's scalars too; text has none
        try:
            number = float(value)
        except OverflowError:
            raise RewardError(f"{what} a number too large for a float; expected a finite one") from None
        except (TypeError, ValueError, RuntimeError):  # an array of several
            raise RewardError(f"{what} {type(value).__name__}; expected one finite number") from None
        if math.isfinite(number):
            return number
        raise RewardError(f"{what} {number}; expected a finite number")
    found = "None" if value is None else type(value).__name__
    raise RewardError(f"{what} {found}; expected a finite number")


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:300]
    except Exception:  # noqa: BLE001  (an exception's own `__str__` may raise anything)
        return "(its text cannot be shown)"


@overload
def reward(
    function: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    inline: bool = False,
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> Reward: ...


@overload
def reward(
    *,
    name: str | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    inline: bool = False,
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> Callable[[Callable[..., Any]], Reward]: ...


def reward(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    inline: bool = False,
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> Reward | Callable[[Callable[..., Any]], Reward]:
    """Make a reward from a function: `@reward` or `@reward(timeout=10)`.

    Its parameters name what it needs: `final_response` (str), `trajectory`, `ctx` (the ChainContext), or fields of the
    row. It returns a number, or a dict with `reward` whose other numbers are metrics.

    Args:
        function: sync or async.
        name: its name in messages; by default the function's own.
        timeout: seconds, or None for no limit.
        inline: run a sync function in the event loop. It saves the hop to a thread (0.25 ms when it was measured), but
            no timeout can interrupt it and everything waits for it: only for what takes microseconds.
        check: called with the fields of each row before any chain starts; a ValueError refuses the row, and so the run.

    Raises:
        RewardDefinitionError: a parameter cannot be given by name.
    """
    if function is None:
        return functools.partial(reward, name=name, timeout=timeout, inline=inline, check=check)
    if isinstance(function, type) or not callable(function):
        raise RewardDefinitionError(f"{function!r} is not a function; a reward is one that returns a number")
    known = name or str(getattr(function, "__name__", type(function).__name__))
    return Reward(function, known, timeout, inline, check)


def as_reward(value: Reward | Callable[..., Any]) -> Reward:
    """Return a reward as it is, or make one from a plain function.

    Raises:
        RewardDefinitionError: it is not a function, or a parameter cannot be given by name.
    """
    return value if isinstance(value, Reward) else reward(value)


def _text_reference(value: Any) -> str:
    """The reference as text that a response can equal exactly.

    Raises:
        ValueError: it is neither text nor a finite number.
    """
    plain = plain_scalar(value)
    if isinstance(plain, bool) or not isinstance(plain, str | int | float | Decimal | Fraction):
        raise ValueError(f"is {kind_of(plain)}; expected text or a number")  # noqa: TRY004  (the row is wrong, not the call)
    if isinstance(plain, float | Decimal) and not is_finite(plain):
        raise ValueError(f"is {plain}; expected text or a finite number")
    if isinstance(plain, int) and abs(plain) >= LARGEST:
        raise ValueError(f"has {plain.bit_length()} bits; expected a number of at most 4,000 digits, or text")
    return str(value if isinstance(value, float) else plain).strip()


def _answer_is_text(row: Mapping[str, Any]) -> None:
    try:
        _text_reference(row["answer"])
    except ValueError as error:
        raise ValueError(f"the answer {error}") from None


def _answer_is_quantity(row: Mapping[str, Any]) -> None:
    try:
        reference_quantity(row["answer"])
    except ValueError as error:
        raise ValueError(f"the answer {error}") from None


@reward(inline=True, check=_answer_is_text)
def exact_match(final_response: str, answer: Any) -> float:
    """1.0 if the response equals the row's `answer`, ignoring surrounding whitespace; else 0.0.

    The answer is text or a number; None, a bool, a list and the like are refused before the run.
    """
    return float(final_response.strip() == _text_reference(answer))


@reward(inline=True, check=_answer_is_quantity)
def numeric_match(final_response: str, answer: Any, tolerance: float | None = TOLERANCE) -> float:
    """1.0 if the last quantity in the response is the row's `answer`; else 0.0.

    `The answer is -7.`, `$1,234.50`, `6e3`, `1/2`, `50%`, `3:2` and `(1, 2)` are understood, in the response and as the
    answer, which must be one quantity and nothing else: what cannot be read is refused before the run. Whole numbers
    have to be equal; if either is not whole, `tolerance` is allowed, relative or absolute, which a field of the row of
    that name may set. docs/rewards.md has the table.
    """
    want = reference_quantity(answer)
    said = last_quantity(final_response)
    return float(said is not None and said.equals(want, TOLERANCE if tolerance is None else float(tolerance)))
