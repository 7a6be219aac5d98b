"""The commands, their options and their help.

What a command does is imported when it is called: the help and the completion of a shell load nothing but this.
"""

from __future__ import annotations

from pathlib import Path

import click

from rollcast.cli import options
from rollcast.cli.commands import Commands
from rollcast.version import __version__

__all__ = ["app"]

app = Commands(
    name="rollcast",
    help="Run tool-using LLM agents as many parallel chains, and watch every token, tool call and reward live.",
    no_args_is_help=True,
)
click.version_option(__version__, message="rollcast %(version)s")(app)


def _exit_with(code: int) -> None:
    """Exit with a command's code if it is not 0."""
    if code:
        raise click.exceptions.Exit(code)


def _records_in(directory: str | None) -> Path:
    """The directory of records: the one that was given, or the default."""
    from rollcast.archive.index import record_directory

    return record_directory(directory)


@app.add_grouped
def run(
    agent: options.AgentArg = None,
    model: options.ModelOption = None,
    backend: options.BackendOption = None,
    backend_option: options.BackendOptionsOption = None,
    task: options.TaskOption = "arithmetic",
    rows: options.RowsOption = None,
    prompt: options.PromptOption = None,
    questions: options.QuestionsOption = 2,
    chains: options.ChainsOption = 4,
    max_steps: options.MaxStepsOption = None,
    max_concurrent: options.MaxConcurrentOption = None,
    ray: options.RayOption = None,
    runners: options.RunnersOption = None,
    seed: options.SeedOption = None,
    temperature: options.TemperatureOption = None,
    pace: options.PaceOption = None,
    json: options.JsonOption = None,
    record: options.RecordOption = None,
    no_record: options.NoRecordOption = False,
    record_dir: options.RecordInOption = None,
    record_lossless: options.RecordLosslessOption = False,
    record_budget: options.RecordBudgetOption = None,
    name: options.NameOption = None,
    tag: options.TagOption = None,
    serve: options.ServeOption = None,
    token: options.TokenOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    origin: options.OriginOption = None,
    host_name: options.HostNameOption = None,
    alert: options.AlertOption = None,
    keep_serving: options.KeepServingOption = False,
    chain: options.ChainOption = None,
    type: options.TypeOption = None,
    no_color: options.NoColorOption = False,
    no_timestamps: options.NoTimestampsOption = False,
) -> None:
    """Run an agent and watch its chains.

    Without an agent or a model of yours, the model is the embedded one (rollcast/tiny, 0.46 million parameters, no download, no
    GPU). It knows only the questions of the shipped tasks: it is there to watch and to train, not to talk to.
    """
    given = locals()
    from rollcast.cli.run import RunOptions, run_command

    _exit_with(run_command(RunOptions.of(given)))


@app.add_grouped
def train(
    task: options.TrainTaskOption = None,
    agent: options.AgentOption = None,
    model: options.TrainModelOption = None,
    trainer: options.TrainerOption = None,
    steps: options.StepsOption = None,
    minutes: options.MinutesOption = None,
    group: options.GroupOption = None,
    questions: options.TrainQuestionsOption = None,
    lr: options.LrOption = None,
    seed: options.TrainSeedOption = None,
    eval_every: options.EvalEveryOption = None,
    ray: options.RayOption = None,
    runners: options.RunnersOption = None,
    out: options.OutOption = None,
    resume: options.ResumeOption = False,
    show: options.ShowOption = None,
    serve: options.TrainServeOption = None,
    token: options.TokenOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    origin: options.OriginOption = None,
    host_name: options.HostNameOption = None,
    alert: options.AlertOption = None,
    keep_serving: options.KeepServingOption = False,
    json: options.JsonOption = None,
    record: options.RecordOption = None,
    no_record: options.NoRecordOption = False,
    record_dir: options.RecordInOption = None,
    record_lossless: options.RecordLosslessOption = False,
    record_budget: options.RecordBudgetOption = None,
    name: options.NameOption = None,
    tag: options.TagOption = None,
    tensorboard: options.TensorboardOption = None,
    config: options.ConfigOption = None,
    no_color: options.NoColorOption = False,
) -> None:
    """Train an agent on a task with GRPO, and watch it learn.

    Without options, the embedded model learns arithmetic for a minute, on two cores and without torch.
    """
    # A switch that is off, and a list without items, were not given: a file of options may have them.
    line = {name: None if value is False or value == [] else value for name, value in locals().items()}
    del line["config"]
    from rollcast.cli.train.command import train_command

    _exit_with(train_command(line, config))


@app.add
def watch(
    url: options.UrlArg,
    since: options.SinceOption = None,
    speed: options.WatchSpeedOption = None,
    token: options.WatchTokenOption = None,
    tls_ca: options.TlsCaOption = None,
    alert: options.AlertOption = None,
    chain: options.ChainOption = None,
    type: options.TypeOption = None,
    source: options.SourceOption = None,
    no_color: options.NoColorOption = False,
    no_timestamps: options.NoTimestampsOption = False,
) -> None:
    """Watch the chains of another program: of `rollcast run --serve`, or of any WebSocketStreamingServer.

    It runs until Ctrl-C, and reconnects when the connection drops.
    """
    from rollcast.cli.watch import WatchOptions, watch_command

    chosen = WatchOptions(
        url=url,
        since=since,
        speed=speed,
        token=token,
        tls_ca=tls_ca,
        alert=alert,
        show_chains=chain or None,
        show_types=type or None,
        show_sources=source or None,
        color=False if no_color else None,
        timestamps=not no_timestamps,
    )
    _exit_with(watch_command(chosen))


@app.add
def hub(
    port: options.HubPortOption = 8765,
    host: options.HubHostOption = "localhost",
    token: options.HubTokenOption = None,
    publish_token: options.PublishTokenOption = None,
    record_dir: options.RecordInOption = None,
    no_record: options.NoRecordOption = False,
    show: options.HubShowOption = 0,
    tls_cert: options.HubTlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    origin: options.HubOriginOption = None,
    host_name: options.HubNameOption = None,
    no_color: options.NoColorOption = False,
) -> None:
    """Watch many processes in one place: those that have ROLLCAST_HUB in their environment.

    It runs until Ctrl-C, and records what comes. Started again with the same record directory, it goes on where it was.
    """
    from rollcast.cli.hub import HubOptions, hub_command
    from rollcast.cli.recording import Recording

    chosen = HubOptions(
        port=port,
        host=host,
        token=token,
        publish_token=publish_token,
        recording=Recording(off=no_record, directory=record_dir, lossless=not no_record),
        show=show,
        tls_cert=tls_cert,
        tls_key=tls_key,
        origins=tuple(origin or ()),
        host_names=tuple(host_name or ()),
        color=False if no_color else None,
    )
    _exit_with(hub_command(chosen))


@app.add_grouped
def proxy(
    upstream: options.UpstreamOption,
    port: options.ProxyPortOption = 8001,
    host: options.ProxyHostOption = "localhost",
    listen_token: options.ListenTokenOption = None,
    upstream_key: options.UpstreamKeyOption = None,
    reward_token: options.RewardTokenOption = None,
    session_header: options.SessionHeaderOption = "X-Session-ID",
    idle: options.IdleOption = 600.0,
    drain: options.DrainOption = 60.0,
    allow_control: options.AllowControlOption = False,
    probe: options.ProbeOption = False,
    stream_tools: options.StreamToolsOption = False,
    no_logprobs: options.NoLogprobsOption = False,
    show: options.ProxyShowOption = 0,
    record: options.ProxyRecordOption = None,
    record_dir: options.RecordInOption = None,
    name: options.NameOption = None,
    tag: options.TagOption = None,
    serve: options.ProxyServeOption = None,
    token: options.TokenOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    origin: options.OriginOption = None,
    host_name: options.HostNameOption = None,
    no_color: options.NoColorOption = False,
) -> None:
    """Pass on what agents or trainers ask an engine that speaks OpenAI, and watch it token by token.

    Change one URL: give callers the proxy's in place of the engine's. What nobody watches is copied, and never opened. It runs until
    Ctrl-C.
    """
    given = locals()
    from rollcast.cli.proxy import ProxyOptions, proxy_command

    _exit_with(proxy_command(ProxyOptions.of(given)))


@app.add
def runs(
    record_dir: options.RecordDirOption = None,
    json: options.RunsJsonOption = False,
) -> None:
    """List the records of runs, the newest first."""
    from rollcast.cli.runs import runs_command

    _exit_with(runs_command(_records_in(record_dir), json=json))


@app.add
def open_(
    record: options.OpenArg = None,
    port: options.PortOption = 0,
    token: options.OpenTokenOption = None,
    no_browser: options.NoBrowserOption = False,
    record_dir: options.RecordDirOption = None,
) -> None:
    """Show recorded runs in a page in the browser: one, or all of a folder. One that goes on is followed.

    It runs until Ctrl-C.
    """
    from rollcast.cli.open_record import OpenOptions, open_command

    chosen = OpenOptions(record, port, token, browser=not no_browser)
    _exit_with(open_command(_records_in(record_dir), chosen))


@app.add
def show(
    record: options.RecordArg,
    step: options.ShowStepOption = None,
    worst: options.WorstOption = False,
    best: options.BestOption = False,
    failed: options.FailedOption = False,
    group: options.ShowGroupOption = None,
    chain: options.ShowChainOption = None,
    tokens: options.TokensOption = False,
    record_dir: options.RecordDirOption = None,
    no_color: options.NoColorOption = False,
) -> None:
    """Show what a recorded run came to: its groups, or one chain from its question to its reward.

    Of a training it shows the last step that has chains, unless another is named.
    """
    from rollcast.cli.show import ShowOptions, show_command

    chosen = ShowOptions(
        record=record,
        step=step,
        worst=worst,
        best=best,
        failed=failed,
        group=group,
        chain=chain,
        tokens=tokens,
        color=False if no_color else None,
    )
    _exit_with(show_command(_records_in(record_dir), chosen))


@app.add
def stats(
    record: options.RecordArg,
    json: options.StatsJsonOption = False,
    record_dir: options.RecordDirOption = None,
    no_color: options.NoColorOption = False,
) -> None:
    """Show the figures of a recorded run: tools, errors, tokens, slow chains, and lengths by training step."""
    from rollcast.cli.stats import stats_command

    _exit_with(stats_command(_records_in(record_dir), record, json=json, color=False if no_color else None))


@app.add
def replay(
    record: options.RecordArg,
    speed: options.ReplaySpeedOption = "1",
    step: options.ReplayStepOption = None,
    chain: options.ChainOption = None,
    group: options.ReplayGroupOption = None,
    type: options.TypeOption = None,
    follow: options.FollowOption = False,
    json: options.JsonOption = None,
    record_dir: options.RecordDirOption = None,
    no_color: options.NoColorOption = False,
    no_timestamps: options.NoTimestampsOption = False,
) -> None:
    """Show a recorded run as it was seen live."""
    from rollcast.cli.replay import ReplayOptions, replay_command

    chosen = ReplayOptions(
        record=record,
        speed=speed,
        step=step,
        chains=chain or None,
        groups=group or None,
        types=type or None,
        follow=follow,
        json=json,
        color=False if no_color else None,
        timestamps=not no_timestamps,
    )
    _exit_with(replay_command(_records_in(record_dir), chosen))


@app.add
def export(
    record: options.RecordArg,
    to: options.ExportToOption,
    step: options.ExportStepOption = None,
    chain: options.ExportChainOption = None,
    group: options.ExportGroupOption = None,
    record_dir: options.RecordDirOption = None,
) -> None:
    """Write a record, or part of it, to the standard output in a format that others read."""
    from rollcast.cli.export import ExportOptions, export_command

    chosen = ExportOptions(record=record, to=to, step=step, chains=chain or None, groups=group or None)
    _exit_with(export_command(_records_in(record_dir), chosen))


@app.add
def recover(
    record: options.RecordArg,
    record_dir: options.RecordDirOption = None,
    force: options.ForceOption = False,
) -> None:
    """Make a record whole whose writer died.

    Every whole line stays, and what is torn is named. It changes nothing more if it is done twice.
    """
    from rollcast.cli.recover import recover_command

    _exit_with(recover_command(_records_in(record_dir), record, force=force))
