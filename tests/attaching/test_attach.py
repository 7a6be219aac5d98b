"""`rollcast.attach` itself: what it recognises, what it refuses, and what its handle does."""

import gc
import logging
import socket
import sys
import types
import weakref

import pytest

import rollcast
from rollcast import InputError, StreamingManager
from rollcast.archive import ArchiveObserver
from rollcast.attaching import front, hosts, process
from rollcast.attaching.attachment import Attachment
from rollcast.attaching.hosts import Host, host_of
from rollcast.attaching.versions import note_version


def made(module, name, *bases):
    """An object of a class with this name, as if it came from that module."""
    return type(name, bases or (object,), {"__module__": module})()


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (made("trl.trainer.grpo_trainer", "GRPOTrainer"), "trl"),
        (made("my_code", "MyTrainer", type(made("trl.trainer.grpo_trainer", "GRPOTrainer"))), "trl"),
        (made("openai._client", "OpenAI"), "openai"),
        (made("openai.lib.azure", "AsyncAzureOpenAI", type(made("openai._client", "AsyncOpenAI"))), "openai"),
        (
            made("langgraph.pregel", "Pregel", type(made("langchain_core.runnables.base", "Runnable"))),
            "langchain",
        ),
        (made("vllm.entrypoints.llm", "LLM"), "vllm"),
        (lambda: None, "function"),
        (made("trlx", "GRPOTrainer"), None),
        (made("trl.trainer", "SFTTrainer"), None),
        (3, None),
    ],
)
def test_what_is_recognised(x, name):
    """It is the names of its classes that tell, and of no host anything is imported."""
    loaded = set(sys.modules)
    host = host_of(x)
    assert (None if host is None else host.name) == name
    assert set(sys.modules) == loaded


def test_recognising_calls_nothing_of_the_object():
    """An object may raise whatever it is asked for."""

    class Hostile:
        def __getattribute__(self, name):
            raise AssertionError(f"was asked for {name}")

    assert host_of(Hostile()) is None


@pytest.mark.parametrize("x", [None, 3, "model", made("anthropic", "Anthropic"), dict, object()])
def test_what_cannot_be_attached_is_refused_with_what_can(x):
    """One sentence has both."""
    with pytest.raises(
        InputError, match=r"^attach got .*; what can be attached is a GRPOTrainer of TRL, .*, or a function$"
    ):
        rollcast.attach(x)


def with_method(module, *bases):
    """A class with a method, as if it came from that module."""

    def train(self):
        return "trained"

    return type("Made", bases, {"__module__": module, "train": train})


TRAINER = type(made("trl.trainer.grpo_trainer", "GRPOTrainer"))
RUNNABLE = type(made("langchain_core.runnables.base", "Runnable"))


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (
            with_method("trl.trainer.rloo_trainer", TRAINER)().train,
            "GRPOTrainer of TRL: attach the whole, with rollcast.attach.trl",
        ),
        (
            with_method("langgraph.pregel.main", RUNNABLE)().train,
            "LangGraph: attach the whole, with rollcast.attach.langchain",
        ),
    ],
)
def test_a_method_of_a_host_is_refused(method, what):
    """Somebody who attaches `trainer.train` means the trainer."""
    with pytest.raises(InputError, match=what):
        rollcast.attach(method)


def test_a_method_of_ones_own_is_a_function(seen):
    """A subclass of a host may have methods of its own: they are functions like any other."""
    mine = with_method("my_code", TRAINER)()
    assert rollcast.attach(mine.train, manager=seen.manager_of_it)() == "trained"


def test_a_class_is_refused_with_what_to_do():
    """Its object is meant."""
    with pytest.raises(InputError, match="attach got the class dict; make one and attach that; what can"):
        rollcast.attach(dict)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"record": "all"}, "record is 'all'; expected 'auto', 'turns', 'tokens', 'summary', or None"),
        ({"record": 3}, "record is 3; expected"),
        ({"show": -1}, "show is -1; expected how many chains to show, from 0 to 64"),
        ({"show": True}, "show is True; expected"),
        ({"serve": "8765"}, "serve is '8765'; expected a port"),
        ({"serve": 70000}, "port is 70000; expected a number from 0 to 65535"),
        ({"manager": 3}, "manager is int; expected a rollcast.StreamingManager"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    """Nothing is attached then."""
    with pytest.raises(InputError, match=sentence):
        rollcast.attach(lambda: None, **options)
    assert not [each for each in front.all_attachments() if each.attached]


def test_a_port_in_use_is_refused():
    """The sentence names it."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        with pytest.raises(InputError, match=str(taken.getsockname()[1])):
            rollcast.attach(lambda: None, serve=taken.getsockname()[1], record=None)


class Client:
    """Something to attach."""

    def call(self, x):
        return x + 1


def stand_in(monkeypatch, **functions):
    """Make `Client` a host, with these functions as its adapter."""
    name = "stand_in_adapter"
    adapter = types.ModuleType(name)
    vars(adapter).update(functions)
    monkeypatch.setitem(sys.modules, name, adapter)
    host = Host("stand_in", name, "a client of the tests", ((__name__, "Client"),))
    monkeypatch.setattr(hosts, "HOSTS", (host, *hosts.HOSTS))


def hook_calls(x, attachment):
    """An adapter: each call is a chain."""
    before = x.call

    def call(value):
        attachment.watch.tell(lambda: attachment.run.chain().start().end("answered", str(value)))
        return before(value)

    attachment.hook(x, "call", call)


def test_a_hook_is_taken_out_again(monkeypatch, seen):
    """After `detach` the object is as it was."""
    stand_in(monkeypatch, attach=hook_calls)
    client = Client()
    with_it = rollcast.attach(client, manager=seen.manager_of_it)
    assert isinstance(with_it, Attachment)
    assert client.call(1) == 2
    assert with_it.streaming_manager is seen.manager_of_it
    with_it.detach()
    assert vars(client) == {}
    assert seen.ends() == [("answered", "1")]
    assert seen.types()[-1] == "run_end"
    with_it.detach()
    assert repr(with_it) == "<rollcast.attach.stand_in, detached>"


def test_attached_twice_is_the_first_handle(monkeypatch, seen, caplog):
    """It is said once."""
    stand_in(monkeypatch, attach=hook_calls)
    client = Client()
    first = rollcast.attach(client, manager=seen.manager_of_it)
    assert rollcast.attach(client, manager=seen.manager_of_it) is first
    assert rollcast.attach(client) is first
    assert rollcast.attach(first) is first
    assert caplog.text.count("attached already") == 1
    client.call(1)
    assert len(seen.settle().ends()) == 1


def test_a_function_that_is_attached_twice_has_one_chain_a_call(seen, caplog):
    """Whether it is the function or what took its place that is attached again."""

    def add(a):
        return a

    first = rollcast.attach(add, manager=seen.manager_of_it)
    assert rollcast.attach(add, manager=seen.manager_of_it) is first
    assert rollcast.attach(first, manager=seen.manager_of_it) is first
    first(1)
    assert len(seen.settle().ends()) == 1
    assert caplog.text.count("attached already") == 1


def test_it_may_be_attached_again_after_detach(monkeypatch, seen):
    """Then it is a new run."""
    stand_in(monkeypatch, attach=hook_calls)
    client = Client()
    rollcast.attach(client, manager=seen.manager_of_it).detach()
    again = rollcast.attach(client, manager=seen.manager_of_it)
    client.call(1)
    again.detach()
    assert seen.ends() == [("answered", "1")]


def test_what_is_gone_is_not_kept(monkeypatch, seen, until):
    """A client that nobody has any more ends its run, and is freed."""
    import asyncio

    stand_in(monkeypatch, attach=hook_calls)
    client = Client()
    rollcast.attach(client, manager=seen.manager_of_it)
    client.call(1)
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    asyncio.run(until(lambda: "run_end" in seen.types()))
    assert seen.ends() == [("answered", "1")]


def test_an_adapter_that_fails_attaches_nothing_and_raises_nothing(monkeypatch, seen, caplog):
    """It is our fault, and the host goes on."""

    def attach(x, attachment):
        attachment.hook(x, "call", None)
        raise ZeroDivisionError

    stand_in(monkeypatch, attach=attach)
    client = Client()
    handle = rollcast.attach(client, manager=seen.manager_of_it)
    assert client.call(1) == 2
    handle.watch.flush(10)
    assert "steps aside from stand_in" in caplog.text
    assert not handle.attached


def test_what_an_adapter_refuses_is_raised(monkeypatch, seen):
    """A wrong option is the user's to mend."""

    def attach(x, attachment):
        raise InputError("this option is wrong")

    stand_in(monkeypatch, attach=attach)
    with pytest.raises(InputError, match="this option is wrong"):
        rollcast.attach(Client(), manager=seen.manager_of_it)


def test_a_hook_that_cannot_be_taken_out_does_not_keep_the_others(monkeypatch, seen, caplog):
    """Each is taken out that can be."""
    undone = []

    def attach(x, attachment):
        attachment.on_detach(lambda: undone.append(True))
        attachment.on_detach(lambda: 1 / 0)

    stand_in(monkeypatch, attach=attach)
    rollcast.attach(Client(), manager=seen.manager_of_it).detach()
    assert undone == [True]
    assert "a hook could not be taken out of stand_in: ZeroDivisionError" in caplog.text


def test_all_attachments_share_one_manager():
    """And one record."""
    first, second = rollcast.attach(lambda: 1), rollcast.attach(lambda: 2)
    assert first.streaming_manager is second.streaming_manager
    (record,) = [each for each in first.streaming_manager.observers if isinstance(each, ArchiveObserver)]
    first(), second()
    first.detach()
    assert record.manager is not None, "another is attached still"
    second.detach()
    assert record.ended
    assert record.totals.chains == 2


def test_a_record_goes_on_if_something_is_attached_again(capfd):
    """It is named once."""
    paths = set()
    for _ in range(3):
        handle = rollcast.attach(lambda: 1)
        handle()
        (record,) = [each for each in handle.streaming_manager.observers if isinstance(each, ArchiveObserver)]
        paths.add(record.path)
        handle.detach()
    assert len(paths) == 1
    assert record.totals.chains == 3
    assert capfd.readouterr().err.count("recorded: ") == 1


def test_a_manager_of_ones_own_gets_nothing_unasked():
    """A level that is named asks for a record."""
    manager = StreamingManager(publish=False)
    rollcast.attach(lambda: 1, manager=manager)
    assert manager.observers == []
    rollcast.attach(lambda: 2, manager=manager, record="turns")
    assert [each.level for each in manager.observers] == ["turns"]
    front.detach_all()
    manager.close()


def test_another_level_beside_a_record_is_said(caplog):
    """All that share a manager are in one record."""
    rollcast.attach(lambda: 1)
    rollcast.attach(lambda: 2, record="tokens")
    rollcast.attach(lambda: 3, record=None)
    assert caplog.text.count("is recorded at the level auto") == 2
    assert "manager=rollcast.StreamingManager()" in caplog.text


def test_without_a_record_none_is_made(tmp_path, capfd):
    """And no line is printed."""
    handle = rollcast.attach(lambda: 1, record=None)
    handle()
    handle.detach()
    assert not (tmp_path / "records").exists()
    assert capfd.readouterr().err == ""


def test_what_was_never_called_leaves_no_record(tmp_path, capfd):
    """A record begins with the first call."""
    rollcast.attach(lambda: 1).detach()
    assert not (tmp_path / "records").exists()
    assert capfd.readouterr().err == ""


def test_show_draws_so_many_chains(capfd):
    """On the standard output, like the commands."""
    shown = rollcast.attach(lambda x: f"answer {x}", show=2, record=None)
    for n in range(4):
        shown(str(n))
    shown.detach()
    out = capfd.readouterr().out
    assert "answer 0" in out
    assert "answer 1" in out
    assert "answer 2" not in out


def test_show_of_more_chains_than_there_are_is_no_mistake(caplog, capfd):
    """How many there will be is not known."""
    shown = rollcast.attach(lambda x: x, show=8, record=None)
    shown("1")
    shown.detach()
    assert "names chain_" not in caplog.text
    assert "chain_0" in capfd.readouterr().out


def test_serve_says_where(capfd):
    """The page is there until the process ends."""
    handle = rollcast.attach(lambda: 1, serve=0, record=None)
    server = process._shared._server
    assert f"in a browser: http://localhost:{server.port}/" in capfd.readouterr().err
    rollcast.attach(lambda: 2, serve=server.port)
    assert process._shared._server is server
    handle()


def test_a_version_that_is_not_known_is_said_once(caplog):
    """The adapter goes as far as it can."""
    caplog.set_level(logging.WARNING)
    assert note_version("pytest", "pytest", (pytest.__version__.partition(".")[0],))
    assert not note_version("msgspec", "msgspec", ("0.1", "999.0"))
    assert not note_version("msgspec", "msgspec", ("0.1", "999.0"))
    assert not note_version("no-such-package", "Nothing", ("1.0",))
    assert caplog.text.count("attach was written for msgspec 999.0; this is 0") == 1
    assert "this is of an unknown version" in caplog.text
