"""The options of the commands, each described once."""

from __future__ import annotations

from typing import Annotated

from rollcast.cli.commands import Argument, Option
from rollcast.tasks import task_names

__all__ = [
    "AgentArg",
    "AgentOption",
    "AlertOption",
    "AllowControlOption",
    "BackendOption",
    "BackendOptionsOption",
    "BestOption",
    "ChainOption",
    "ChainsOption",
    "ConfigOption",
    "DrainOption",
    "EvalEveryOption",
    "ExportChainOption",
    "ExportGroupOption",
    "ExportStepOption",
    "ExportToOption",
    "FailedOption",
    "FollowOption",
    "ForceOption",
    "GroupOption",
    "HostNameOption",
    "HubHostOption",
    "HubNameOption",
    "HubOriginOption",
    "HubPortOption",
    "HubShowOption",
    "HubTlsCertOption",
    "HubTokenOption",
    "IdleOption",
    "JsonOption",
    "KeepServingOption",
    "ListenTokenOption",
    "LrOption",
    "MaxConcurrentOption",
    "MaxStepsOption",
    "MinutesOption",
    "ModelOption",
    "NameOption",
    "NoBrowserOption",
    "NoColorOption",
    "NoLogprobsOption",
    "NoRecordOption",
    "NoTimestampsOption",
    "OpenArg",
    "OpenTokenOption",
    "OriginOption",
    "OutOption",
    "PaceOption",
    "PortOption",
    "ProbeOption",
    "PromptOption",
    "ProxyHostOption",
    "ProxyPortOption",
    "ProxyRecordOption",
    "ProxyServeOption",
    "ProxyShowOption",
    "PublishTokenOption",
    "QuestionsOption",
    "RayOption",
    "RecordArg",
    "RecordBudgetOption",
    "RecordDirOption",
    "RecordInOption",
    "RecordLosslessOption",
    "RecordOption",
    "ReplayGroupOption",
    "ReplaySpeedOption",
    "ReplayStepOption",
    "ResumeOption",
    "RewardTokenOption",
    "RowsOption",
    "RunnersOption",
    "RunsJsonOption",
    "SeedOption",
    "ServeOption",
    "SessionHeaderOption",
    "ShowChainOption",
    "ShowGroupOption",
    "ShowOption",
    "ShowStepOption",
    "SinceOption",
    "SourceOption",
    "StatsJsonOption",
    "StepsOption",
    "StreamToolsOption",
    "TagOption",
    "TaskOption",
    "TemperatureOption",
    "TensorboardOption",
    "TlsCaOption",
    "TlsCertOption",
    "TlsKeyOption",
    "TokenOption",
    "TokensOption",
    "TrainModelOption",
    "TrainQuestionsOption",
    "TrainSeedOption",
    "TrainServeOption",
    "TrainTaskOption",
    "TrainerOption",
    "TypeOption",
    "UpstreamKeyOption",
    "UpstreamOption",
    "UrlArg",
    "WatchTokenOption",
    "WorstOption",
]

# Titles of groups in the help of `run` and `train`.
_OUTPUT = "What is shown"
_RECORD = "The record"
_SERVING = "Watching over the network"

AgentArg = Annotated[
    str | None,
    Argument(
        metavar="[MODULE:AGENT]",
        help="An agent or a task of your own: module:name or path/to/file.py:name. Without it, the embedded model runs.",
    ),
]
TaskOption = Annotated[str, Option(help=f"What to work on: {', '.join(task_names())}.")]
ModelOption = Annotated[
    str | None,
    Option(
        metavar="MODEL",
        help="A model instead of the embedded one, or of your agent's: a folder, or a name on the Hugging Face hub.",
    ),
]
BackendOption = Annotated[
    str | None, Option(metavar="NAME", help="What runs the model: tiny, transformers, async_vllm or openai.")
]
BackendOptionsOption = Annotated[
    list[str] | None,
    Option(
        "--backend-option",
        metavar="NAME=VALUE",
        help="An option of the backend, such as device=cuda or base_url=http://127.0.0.1:8000; the value is JSON or a word. May be given several times.",
    ),
]
RowsOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help='JSON lines, or a JSON array, to work on instead of a task: {"prompt": "…", "answer": …} or {"messages": […]}.',
    ),
]
PromptOption = Annotated[
    list[str] | None,
    Option(help="Your own question instead of the task's; may be given several times."),
]
QuestionsOption = Annotated[int, Option(help="How many of the task's questions.", min=1)]
ChainsOption = Annotated[int, Option(help="Chains for each question.", min=1)]
MaxStepsOption = Annotated[
    int | None, Option(help="Generations that a chain may have. [default: the task's]")
]
MaxConcurrentOption = Annotated[int | None, Option(help="Chains that run at once. [default: all]")]
RayOption = Annotated[
    str | None,
    Option(
        metavar="ADDRESS|local",
        help="Run the chains on the Ray cluster at this address (HOST:PORT of its head, or auto), or on one that is started "
        "here; needs the extra ray.",
    ),
]
RunnersOption = Annotated[
    int | None,
    Option(min=1, help="With --ray: how many runners. [default: as many as the cluster has room for]"),
]
SeedOption = Annotated[
    int | None, Option(help="The same seed gives the same questions and chains. [default: drawn]")
]
TemperatureOption = Annotated[float | None, Option(help="0 is greedy. [default: the task's]")]
PaceOption = Annotated[
    float | None,
    Option(help="Tokens per second and chain, for reading along. [default: no limit]"),
]
JsonOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="Append every event as a JSON line; - is standard output.",
        group=_OUTPUT,
    ),
]
AlertOption = Annotated[
    str | None,
    Option(
        metavar="URL|COMMAND",
        help="POST to this address, or run this command, when something becomes worth a look (docs/hints.md) or a run fails.",
    ),
]
ChainOption = Annotated[
    list[str] | None,
    Option(help="Show this chain only (chain_0 …); may be given several times.", group=_OUTPUT),
]
SourceOption = Annotated[
    list[str] | None,
    Option(
        help="Show what this process emits only (host-rank1 …); may be given several times.", group=_OUTPUT
    ),
]
TypeOption = Annotated[
    list[str] | None,
    Option(
        help="Show this type of event only (tool_call_start …); may be given several times.",
        group=_OUTPUT,
    ),
]
NoColorOption = Annotated[bool, Option("--no-color", help="No colours.", group=_OUTPUT)]
NoTimestampsOption = Annotated[
    bool,
    Option("--no-timestamps", help="Leave out the times before the lines.", group=_OUTPUT),
]
ServeOption = Annotated[
    str | None,
    Option(
        metavar="[HOST:]PORT",
        help="Let `rollcast watch` and any WebSocket client watch the run here; other hosts than localhost need --token.",
        group=_SERVING,
    ),
]
TokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_TOKEN",
        help="The secret that clients must give; better set in the environment, which other users cannot see.",
        group=_SERVING,
    ),
]
WatchTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_TOKEN",
        help="The server's secret; better set in the environment, which other users cannot see.",
    ),
]
TlsCertOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="With --serve: the server's certificate and its chain up to the authority (PEM); clients connect with wss://.",
        group=_SERVING,
    ),
]
TlsKeyOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="The certificate's private key (PEM), if the certificate's file lacks it.",
        group=_SERVING,
    ),
]
OriginOption = Annotated[
    list[str] | None,
    Option(
        metavar="URL",
        help="With --serve: let pages from this origin connect, such as https://lab.example; may be given several times.",
        group=_SERVING,
    ),
]
HostNameOption = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="With --serve: a host name of this server, such as lab.example; may be given several times.",
        group=_SERVING,
    ),
]
TlsCaOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="For wss://: the authority that signed the server's certificate (PEM), if it is a private one.",
    ),
]
KeepServingOption = Annotated[
    bool,
    Option(
        "--keep-serving",
        help="With --serve: go on serving after the end, until Ctrl-C, so that who connects later still sees everything.",
        group=_SERVING,
    ),
]
TrainTaskOption = Annotated[
    str | None,
    Option(metavar="NAME", help=f"What to learn: {', '.join(task_names())}. [default: arithmetic]"),
]
AgentOption = Annotated[
    str | None,
    Option(
        metavar="MODULE:AGENT",
        help="An agent of your own, with tools and a reward: module:name or path/to/file.py:name.",
    ),
]
TrainModelOption = Annotated[
    str | None,
    Option(
        metavar="FOLDER",
        help="Weights to begin with, such as a step-… in the --out of another training. [default: the embedded ones]",
    ),
]
TrainerOption = Annotated[
    str | None,
    Option(metavar="NAME", help="What computes the updates: embedded or trl. [default: embedded]"),
]
StepsOption = Annotated[int | None, Option(help="End after this many steps. Give this or --minutes.")]
MinutesOption = Annotated[float | None, Option(help="End after this many minutes of training. [default: 1]")]
GroupOption = Annotated[
    int | None, Option(help="Chains per question, compared with each other. [default: 8]")
]
TrainQuestionsOption = Annotated[int | None, Option(help="Questions per step. [default: 16]")]
LrOption = Annotated[float | None, Option(help="Learning rate. [default: 0.0006]")]
TrainSeedOption = Annotated[int | None, Option(help="The same seed gives the same weights. [default: 0]")]
EvalEveryOption = Annotated[
    int | None,
    Option(
        help="Steps between evaluations on held-out questions; 0: only at the start and the end. [default: 10]"
    ),
]
OutOption = Annotated[
    str | None,
    Option(
        metavar="DIR",
        help="A folder for the weights, the checkpoints and the curves. [default: a new one, rollcast-train-TASK]",
    ),
]
ResumeOption = Annotated[
    bool, Option("--resume", help="Go on with the training in --out; its options are known.")
]
ShowOption = Annotated[
    int | None,
    Option(
        metavar="N",
        help="How many chains to show token by token; the others cost nothing. [default: 3 on a terminal, else 0]",
        group=_OUTPUT,
    ),
]
TrainServeOption = Annotated[
    str | None,
    Option(
        metavar="[HOST:]PORT",
        help="Let `rollcast watch` and any WebSocket client watch the training here; other hosts than localhost need --token.",
        group=_SERVING,
    ),
]
TensorboardOption = Annotated[
    str | None,
    Option(
        metavar="DIR",
        help="Write scalars for TensorBoard; needs the extra tensorboard.",
        group=_OUTPUT,
    ),
]
ConfigOption = Annotated[
    str | None,
    Option(metavar="FILE", help="A TOML file with these options by name; the command line wins."),
]
UrlArg = Annotated[
    str,
    Argument(
        metavar="URL",
        help="The server: HOST:PORT, or ws://HOST:PORT, wss://HOST:PORT with TLS.",
    ),
]
SinceOption = Annotated[
    str | None,
    Option(
        metavar="live|start",
        help="Start now, or at the oldest event that the server has. [default: live; start with --speed]",
    ),
]
WatchSpeedOption = Annotated[
    str | None,
    Option(
        "--speed",
        metavar="N|max",
        help="Replay the server's record from its start, so many times as fast as it was; max is as fast as possible.",
    ),
]

RecordOption = Annotated[
    str | None,
    Option(
        metavar="LEVEL",
        help="What the record keeps: auto (all but tokens, and those that are shown anyway), turns, tokens or summary. "
        "[default: auto]",
        group=_RECORD,
    ),
]
NoRecordOption = Annotated[bool, Option("--no-record", help="Leave no record.", group=_RECORD)]
RecordInOption = Annotated[
    str | None,
    Option(
        metavar="DIR",
        help="Where the record goes. [env var: ROLLCAST_RECORDS; default: rollcast-runs in the current folder]",
        group=_RECORD,
    ),
]
RecordLosslessOption = Annotated[
    bool,
    Option(
        "--record-lossless",
        help="Wait for the disk if it is slow, so that the record lacks nothing.",
        group=_RECORD,
    ),
]
RecordBudgetOption = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="At the end, take the tokens out of the oldest records until all of them have at most so much: 20GB, 500MB. "
        "[default: no limit]",
        group=_RECORD,
    ),
]
NameOption = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="A name for the run and its record. [default: the task's or the agent's]",
        group=_RECORD,
    ),
]
TagOption = Annotated[
    list[str] | None,
    Option(
        metavar="TAG",
        help="A tag of the run and its record, a word or KEY=VALUE; may be given several times.",
        group=_RECORD,
    ),
]

OpenArg = Annotated[
    str | None,
    Argument(
        metavar="RUN|DIR",
        help="The record: its name or the beginning of it, the name of its run, its folder; or a folder of records for all of "
        "them. By default all of the record directory.",
    ),
]
HubPortOption = Annotated[
    int, Option(min=0, max=65535, help="Where producers and viewers connect; 0: any free port.")
]
HubHostOption = Annotated[
    str,
    Option(
        metavar="HOST", help="The address to listen on; 0.0.0.0: every one, so that other machines reach it."
    ),
]
HubTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_TOKEN",
        help="The secret that lets viewers watch and cancel, and producers publish; better set in the environment. "
        "[default: one that is made, and kept in the record directory]",
    ),
]
PublishTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_HUB_TOKEN",
        help="A secret that only lets producers publish; better set in the environment.",
    ),
]
HubTlsCertOption = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="The certificate and its chain up to the authority (PEM): clients connect with wss://.",
    ),
]
HubOriginOption = Annotated[
    list[str] | None,
    Option(
        metavar="URL",
        help="Let pages from this origin connect, such as https://lab.example; may be given several times.",
    ),
]
HubNameOption = Annotated[
    list[str] | None,
    Option(
        metavar="NAME", help="A host name of this machine, such as lab.example; may be given several times."
    ),
]
HubShowOption = Annotated[
    int, Option(metavar="N", min=0, max=64, help="How many chains of each run to show here, token by token.")
]
PortOption = Annotated[
    int, Option(min=0, max=65535, help="Where the page is served on this machine; 0: any free port.")
]
OpenTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_TOKEN",
        help="The secret that the page must give; without it, one is made and kept beside the records.",
    ),
]
NoBrowserOption = Annotated[bool, Option("--no-browser", help="Print the link, and open no browser.")]

RecordDirOption = Annotated[
    str | None,
    Option(
        metavar="DIR",
        envvar="ROLLCAST_RECORDS",
        help="Where records are. Default: rollcast-runs in the current folder.",
    ),
]

RecordArg = Annotated[
    str,
    Argument(
        metavar="RECORD", help="A record's name or a beginning of it, a task's name, a path, or latest."
    ),
]

RunsJsonOption = Annotated[bool, Option("--json", help="A line of JSON for each record.")]

ForceOption = Annotated[
    bool,
    Option(
        "--force",
        help="Also if its writer is on another host, where nobody can see from here whether it lives.",
    ),
]

ReplaySpeedOption = Annotated[
    str,
    Option("--speed", metavar="N|max", help="How many times as fast as it was; max is as fast as possible."),
]

ReplayGroupOption = Annotated[
    list[str] | None,
    Option("--group", help="Show this group only (group_0 …); may be given several times."),
]

ReplayStepOption = Annotated[
    int | None, Option("--step", metavar="N", help="Show the rollout of this training step only.")
]

FollowOption = Annotated[
    bool, Option("--follow", help="Of a run that goes on: wait for what comes, until it ends.")
]

ShowStepOption = Annotated[
    int | None,
    Option("--step", metavar="N", help="A training step. [default: the last one that has chains]"),
]

WorstOption = Annotated[bool, Option("--worst", help="The chain with the lowest reward.")]

BestOption = Annotated[bool, Option("--best", help="The chain with the highest reward.")]

FailedOption = Annotated[
    bool,
    Option(
        "--failed",
        help="The first chain that failed or has no end because its run died, or else the first whose reward failed.",
    ),
]

ShowGroupOption = Annotated[str | None, Option("--group", help="The chains of this group (group_0 …).")]

ShowChainOption = Annotated[str | None, Option("--chain", help="This chain (chain_0 …).")]

TokensOption = Annotated[
    bool,
    Option("--tokens", help="Each sampled token's id and log-probability, if the record has them."),
]

StatsJsonOption = Annotated[bool, Option("--json", help="One line of JSON.")]

ExportToOption = Annotated[
    str,
    Option(
        "--to",
        metavar="jsonl|markdown|atif",
        help="Events as JSON lines; conversations as Markdown; or a line of ATIF for each chain.",
    ),
]

ExportStepOption = Annotated[
    int | None, Option("--step", metavar="N", help="The rollout of this training step only.")
]

ExportChainOption = Annotated[
    list[str] | None, Option("--chain", help="This chain only (chain_0 …); may be given several times.")
]

ExportGroupOption = Annotated[
    list[str] | None, Option("--group", help="This group only (group_0 …); may be given several times.")
]

UpstreamOption = Annotated[
    str,
    Option(metavar="URL", help="The engine, such as http://localhost:8000, without /v1."),
]
ProxyPortOption = Annotated[
    int, Option("--port", min=0, max=65535, help="Where callers connect; 0: any free port.")
]
ProxyHostOption = Annotated[
    str,
    Option(
        "--host",
        metavar="HOST",
        help="The address to listen on; any other than localhost needs --listen-token.",
    ),
]
ListenTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_LISTEN_TOKEN",
        help="The secret that callers must send as their API key; better set in the environment, which other users cannot see.",
    ),
]
RewardTokenOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_REWARD_TOKEN",
        help="The secret with which a trainer sends rewards and ends; keep it from the agent. Without it none are taken.",
    ),
]
UpstreamKeyOption = Annotated[
    str | None,
    Option(
        envvar="ROLLCAST_UPSTREAM_KEY",
        help="The engine's API key, if it is not what callers send; better set in the environment.",
    ),
]
SessionHeaderOption = Annotated[
    str,
    Option(
        metavar="NAME",
        help="The header that names a caller's session. With Authorization every API key is a session.",
    ),
]
IdleOption = Annotated[
    float, Option(metavar="S", help="Close a chain of which nothing was heard for so many seconds.")
]
DrainOption = Annotated[
    float, Option(metavar="S", help="When it is stopped, wait so many seconds for the open answers.")
]
AllowControlOption = Annotated[
    bool,
    Option(
        "--allow-control",
        help="Also pass on calls that change the engine, such as /pause or /update_weights.",
    ),
]
ProbeOption = Annotated[
    bool, Option("--probe", help="First ask the engine what it gives, with four requests of two tokens.")
]
ProxyShowOption = Annotated[
    int,
    Option(
        "--show", metavar="N", min=0, max=64, help="How many chains to show here at a time, token by token."
    ),
]
ProxyRecordOption = Annotated[
    str | None,
    Option(
        "--record",
        metavar="LEVEL",
        help="Record what passes: auto (all but tokens, and those that are shown anyway), turns, tokens, summary or none. "
        "[default: none]",
    ),
]
StreamToolsOption = Annotated[
    bool,
    Option(
        "--stream-tools",
        help="Also ask for watched chat calls with tools as streams. Engines parse the tool calls of a stream with other code, so the "
        "caller may get others.",
    ),
]
NoLogprobsOption = Annotated[
    bool,
    Option("--no-logprobs", help="Ask for no log-probabilities that the caller did not ask for."),
]
ProxyServeOption = Annotated[
    str | None,
    Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Let `rollcast watch` and the page in a browser watch here; other hosts than localhost need --token.",
        group=_SERVING,
    ),
]
