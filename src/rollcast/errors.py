"""Every exception that Rollcast raises on purpose.

RollcastError
├── InputError (ValueError)        an argument is wrong; raised before a chain starts
│   ├── FilterError                an EventFilter names something that does not exist
│   ├── MessagesError              start_messages or a row has the wrong shape
│   ├── ToolDefinitionError        a tool cannot be described to a model
│   └── RewardDefinitionError      a reward asks for something that no row has
├── DecodeError (ValueError)       bytes or a dict are not an event
├── GrammarError                   events are in an order that the grammar forbids
├── BackendError                   a model backend failed while generating
│   ├── PromptTooLongError         the prompt does not fit the model's context
│   └── BackendClosedError         the backend was closed, or its engine died
├── ToolError                      for tools to raise: the model reads its text
├── RewardError                    a reward raised, or returned something that is not a finite number
├── RolloutCancelledError          a watcher cancelled a rollout in the middle of a training
├── CheckpointError                a checkpoint cannot be written or read
├── ArchiveError                   a record of a run cannot be found, read or written
│   ├── NewerFormatError           a later version of Rollcast wrote the record
│   └── RecordReaderError          the process that reads records for a server died, or cannot be started
├── AlertError                     an alert could not be sent
├── RefusedError                   a server refused this client, or cannot be reached
├── WorkersError                   the processes that should run chains cannot be started, or died
└── MissingExtraError (ImportError)  an optional dependency is not installed

A message says what was found, what was expected and what to do. The command line prints it alone and exits with 2.
"""

from __future__ import annotations

__all__ = [
    "AlertError",
    "ArchiveError",
    "BackendClosedError",
    "BackendError",
    "CheckpointError",
    "DecodeError",
    "FilterError",
    "GrammarError",
    "InputError",
    "MessagesError",
    "MissingExtraError",
    "NewerFormatError",
    "PromptTooLongError",
    "RecordReaderError",
    "RefusedError",
    "RewardDefinitionError",
    "RewardError",
    "RollcastError",
    "RolloutCancelledError",
    "ToolDefinitionError",
    "ToolError",
    "WorkersError",
]


class RollcastError(Exception):
    """The base class of all exceptions in this module."""


class InputError(RollcastError, ValueError):
    """An argument is wrong."""


class FilterError(InputError):
    """An `EventFilter` names something that does not exist."""


class MessagesError(InputError):
    """`start_messages` or one of its rows has the wrong shape."""


class ToolDefinitionError(InputError):
    """A tool cannot be described to a model."""


class RewardDefinitionError(InputError):
    """A reward asks for something that no row has."""


class DecodeError(RollcastError, ValueError):
    """Bytes or a dict are not an event."""


class GrammarError(RollcastError):
    """Events are in an order that the grammar forbids."""


class BackendError(RollcastError):
    """A model backend failed while generating."""


class PromptTooLongError(BackendError):
    """The prompt does not fit the model's context."""


class BackendClosedError(BackendError):
    """The backend was closed, or its engine died."""


class ToolError(RollcastError):
    """For tools to raise: the model reads its text, without a class name before it."""


class RewardError(RollcastError):
    """A reward raised, or returned something that is not a finite number."""


class RolloutCancelledError(RollcastError):
    """A watcher cancelled a rollout in the middle of a training."""


class CheckpointError(RollcastError):
    """A checkpoint cannot be written or read."""


class ArchiveError(RollcastError):
    """A record of a run cannot be found, read or written."""


class NewerFormatError(ArchiveError):
    """A later version of Rollcast wrote the record.

    Args:
        reason: a sentence with the record's format, the formats that this version reads, and what to do.
        number: the record's format.
    """

    def __init__(self, reason: str, number: int) -> None:
        super().__init__(reason)
        self.number = number


class RecordReaderError(ArchiveError):
    """The process that reads records for a server died, or cannot be started."""


class AlertError(RollcastError):
    """An alert could not be sent.

    Args:
        reason: why.
        retry: whether it may be taken if it is sent again.
    """

    def __init__(self, reason: str, *, retry: bool = False) -> None:
        super().__init__(reason)
        self.retry = retry


class RefusedError(RollcastError):
    """A server refused this client, or cannot be reached."""


class WorkersError(RollcastError):
    """The processes that should run chains cannot be started, or all of them died."""


class MissingExtraError(RollcastError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: the feature that was asked for, as the subject of a sentence.
        extra: the extra of `rollcast` that installs it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed; run: pip install 'rollcast[{extra}]'"
        )
