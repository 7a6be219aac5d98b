"""A function that is attached: a chain a call."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import json
import sys
import threading
import traceback
import weakref

import pytest

import rollcast
from attaching.defects import DEFECTS, also
from rollcast import InputError, current_chain
from rollcast.attaching import function as adapter
from rollcast.attaching.deferred import DeferredChain


@pytest.fixture
def attach(seen):
    """Attaches a function to the manager of `seen`."""
    return functools.partial(rollcast.attach, manager=seen.manager_of_it)


def test_a_call_is_a_chain(attach, seen):
    """The arguments are its message, and the result is its final response."""

    @attach
    def add(a, b=2, *rest, **named):
        return {"sum": a + b}

    assert add(1, 3, 5, scale=2) == {"sum": 4}
    seen.settle().check(late=True)
    (start,) = seen.starts()
    shown = json.loads(start["messages"][0]["content"])
    assert shown == {"a": 1, "b": 3, "argument 2": 5, "scale": 2}
    assert seen.ends() == [("answered", '{"sum":4}')]
    assert seen.of("run_start")[0].data["agent"] == "add"


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hello", [{"role": "user", "content": "hello"}]),
        (
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        ),
        (
            [{"role": "nobody", "content": 3}],
            [{"role": "user", "content": '{"x":[{"role":"nobody","content":3}]}'}],
        ),
        ({"q": object}, [{"role": "user", "content": '{"x":{"q":"<class object>"}}'}]),
    ],
)
def test_what_the_message_is(attach, seen, given, messages):
    """Text is shown as it is, a conversation as the chain's own messages, and anything else as JSON."""
    attach(lambda x: None)(given)
    assert seen.settle().starts()[0]["messages"] == messages


def test_self_is_not_shown(attach, seen):
    """A method's object may be large, and changes."""

    class Agent:
        @attach
        def answer(self, question):
            return self

    agent = Agent()
    assert agent.answer("why?") is agent
    assert seen.settle().starts()[0]["messages"] == [{"role": "user", "content": "why?"}]


def test_what_the_host_changes_later_is_shown_as_it_was(attach, seen):
    """Arguments and results are read when they are given."""

    @attach
    def clear(items):
        items.clear()
        return items

    result = clear(given := [1, 2])
    given.append(3)
    assert result is given
    seen.settle()
    assert json.loads(seen.starts()[0]["messages"][0]["content"]) == {"items": [1, 2]}
    assert seen.ends() == [("answered", "[]")]


def test_an_exception_goes_through_unchanged(attach, seen):
    """It is the same object, with the same traceback from the function on, and no other exception beside it."""

    def fails(city):
        raise LookupError(f"no city {city}")

    def caught(function):
        try:
            function("Ys")
        except LookupError as error:
            return error
        raise AssertionError("it raised nothing")

    plain, watched = caught(fails), caught(attach(fails))
    assert type(watched) is type(plain)
    assert watched.args == plain.args
    assert (watched.__cause__, watched.__context__) == (None, None)
    frames = [
        [(f.name, f.lineno) for f in traceback.extract_tb(error.__traceback__) if f.name == "fails"]
        for error in (plain, watched)
    ]
    assert frames[0] == frames[1]
    seen.settle().check(late=True)
    (error,) = seen.of("error")
    assert error.data["error"].startswith("no city Ys (test_function.py:")
    assert error.data["error_type"] == "LookupError"
    assert error.data["where"] == "agent"
    assert seen.ends()[0][0] == "error"


def test_an_exception_is_not_kept_alive(attach, seen):
    """Whoever catches it may free what its frames hold, such as the memory of a device."""

    class Tensor:
        pass

    held = []

    @attach
    def fails():
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise MemoryError

    stop = threading.Event()
    fails.attachment.watch.tell(stop.wait)
    with contextlib.suppress(MemoryError):
        fails()
    gc.collect()
    assert held[0]() is None
    stop.set()


def test_ctrl_c_is_a_cancelled_chain(attach, seen):
    """Such as cancellation, it is nobody's failure."""

    @attach
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen.settle().ends()[0][0] == "cancelled"
    assert not seen.of("error")


def test_nested_calls_name_their_parent(attach, seen):
    """Also if another function is called, and if both run on a thread that has the context."""

    @attach
    def inner(n):
        return n

    @attach
    def outer():
        inner(1)
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(inner, 2))
        thread.start()
        thread.join()
        return inner

    outer()
    seen.settle().check(late=True)
    first, *nested = seen.of("chain_start")
    assert [event.data.get("parent_chain_id") for event in (first, *nested)] == [
        None,
        first.chain_id,
        first.chain_id,
    ]
    assert {event.run_id for event in nested} == {first.run_id}


def test_a_nested_call_waits_for_its_parent(attach, seen):
    """Each function has a thread of ours; the one of the inner function may be sooner, and then waits."""

    @attach
    def inner():
        return 1

    @attach
    def outer():
        return inner()

    late = threading.Event()
    outer.attachment.watch.tell(late.wait)
    assert outer() == 1
    assert not inner.attachment.watch.flush(0.1)
    late.set()
    first, second = seen.settle().of("chain_start")
    assert second.data["parent_chain_id"] == first.chain_id


def test_threads_have_chains_of_their_own(attach, seen):
    """Calls at the same time are told apart."""
    together = threading.Barrier(4)

    @attach
    def meet(n):
        together.wait()
        return n

    threads = [threading.Thread(target=meet, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen.settle().check(late=True)
    assert sorted(response for _, response in seen.ends()) == ["0", "1", "2", "3"]
    assert len({event.chain_id for event in seen.of("chain_start")}) == 4


def test_inside_a_function_there_is_a_current_chain(attach, seen):
    """What the function reports of generations, tools and rewards is its chain's."""

    @attach
    def agent(question):
        chain = current_chain()
        with chain.generation(sampling={"temperature": 1.0}) as generation:
            generation.chunk("Let me ", reasoning="hm")
            generation.chunk("look.")
            generation.end("tool_call", completion_tokens=7, prompt_tokens=3)
        with chain.tool_call("search", {"q": question}) as call:
            call.observation("found")
        chain.message({"role": "user", "content": "go on"}, from_outside=True)
        chain.step_reward(0.5)
        chain.reward(1.0, {"right": True})
        return "done"

    assert agent("cats") == "done"
    seen.settle().check(late=True)
    (end,) = seen.of("llm_generation_end")
    assert (end.data["content"], end.data["completion_tokens"], end.data["reasoning"]) == (
        "Let me look.",
        7,
        "hm",
    )
    assert seen.of("tool_observation")[0].data["observation"] == "found"
    assert [event.data["reward"] for event in seen.of("reward")] == [0.5, 1.0]
    assert seen.ends() == [("answered", "done")]


def test_after_a_function_the_current_chain_is_the_one_before(attach):
    """Nothing is left behind in the caller's context."""

    @attach
    def inside():
        return current_chain()

    before = current_chain()
    chain = inside()
    assert isinstance(chain, DeferredChain)
    assert current_chain() is before


def test_reports_in_a_wrong_order_are_left_out_and_said(attach, seen, caplog):
    """They are the user's mistake: nothing is raised, and the function is watched on."""

    @attach
    def agent():
        with current_chain().tool_call("search", {"q": 1}) as call:
            call.observation("too early")
        return 1

    assert agent() == 1
    seen.settle().check(late=True)
    assert "before any generation" in caplog.text
    assert agent.attachment.attached
    assert seen.ends() == [("answered", "1")]


async def test_a_coroutine_function(attach, seen):
    """It stays one, and tasks at the same time are told apart."""

    @attach
    async def answer(n):
        await asyncio.sleep(0)
        chain = current_chain()
        await asyncio.sleep(0)
        assert current_chain() is chain
        return n

    assert inspect.iscoroutinefunction(answer)
    assert await asyncio.gather(*(answer(n) for n in range(5))) == list(range(5))
    await asyncio.to_thread(seen.settle)
    assert sorted(response for _, response in seen.ends()) == ["0", "1", "2", "3", "4"]


async def test_a_cancelled_task_is_a_cancelled_chain(attach, seen):
    """Cancellation goes through."""
    begun = asyncio.Event()

    @attach
    async def waits():
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(seen.settle)
    assert seen.ends()[0][0] == "cancelled"


def test_a_generator_function(attach, seen):
    """It takes what is sent and thrown, returns what it returned, and its caller's chain is its own between two items."""

    def echo():
        got = yield "begin"
        while got is not None:
            try:
                got = yield f"got {got}"
            except KeyError as error:
                got = f"caught {error}"
        return "end"

    def used(function):
        generator, outside = function(), []
        out = [next(generator)]
        outside.append(type(current_chain()).__name__)
        out += [generator.send(1), generator.throw(KeyError("k")), generator.send("x")]
        try:
            next(generator)
        except StopIteration as stop:
            out.append(stop.value)
        return out, outside

    watched = attach(echo)
    assert inspect.isgeneratorfunction(watched)
    assert used(watched) == used(echo)
    assert seen.settle().ends() == [("answered", "end")]


def test_a_generator_that_is_left_early(attach, seen):
    """Its own `finally` runs, and the chain is cancelled."""
    closed = []

    @attach
    def counts():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    generator = counts()
    assert next(generator) == 0
    generator.close()
    assert closed == [True]
    assert seen.settle().ends()[0][0] == "cancelled"


async def test_an_async_generator_function(attach, seen):
    """What it yields is its response, if it is text."""
    closed = []

    @attach
    async def tokens(n):
        try:
            for i in range(n):
                got = yield f"t{i} "
                assert got in (None, "sent")
        finally:
            closed.append(n)

    assert inspect.isasyncgenfunction(tokens)
    assert [token async for token in tokens(3)] == ["t0 ", "t1 ", "t2 "]
    early = tokens(5)
    assert await anext(early) == "t0 "
    assert await early.asend("sent") == "t1 "
    await early.aclose()
    assert closed == [3, 5]
    await asyncio.to_thread(seen.settle)
    assert seen.ends() == [("answered", "t0 t1 t2 "), ("cancelled", "")]


def test_the_function_keeps_its_face(attach):
    """Name, docstring, signature and module are those of the function."""

    @attach
    def add(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Adds.", __name__)
    assert str(inspect.signature(add)) == "(a: int, b: int = 2) -> int"
    assert add.host == "function"


def test_what_else_can_be_called(attach, seen):
    """Partials, methods of objects, functions written in C; and any object that is called, by name."""

    class Callable:
        def __call__(self, x):
            return x

    assert attach(functools.partial(pow, 2))(3) == 8
    assert attach("a-b".split)("-") == ["a", "b"]
    assert attach(len)([1, 2]) == 2
    assert rollcast.attach.function(Callable(), manager=seen.manager_of_it)(5) == 5
    assert {response for _, response in seen.settle().ends()} == {"8", '["a","b"]', "2", "5"}


@pytest.mark.parametrize("wrong", [int, 3, "text", None.__class__])
def test_what_is_no_function_is_refused(wrong):
    """By name, the sentence says what is expected."""
    with pytest.raises(InputError, match="expected a function"):
        rollcast.attach.function(wrong)


def test_a_decorator_with_options(seen):
    """Without a function it returns the decorator."""

    @rollcast.attach.function(manager=seen.manager_of_it, name="planner")
    def plan():
        return 1

    assert plan() == 1
    assert seen.settle().of("run_start")[0].data["agent"] == "planner"
    with pytest.raises(InputError, match="its only one is 'name'"):
        rollcast.attach.function(plan, nmae="x")


def test_detached_it_is_called_as_before(attach, seen):
    """The chain of a call that is going on ends with `unknown`."""

    @attach
    def detaches():
        detaches.detach()
        return 1

    assert detaches() == 1
    assert detaches() == 1
    seen.settle().check(late=True)
    assert seen.ends() == [("unknown", "")]
    assert seen.of("run_end")[0].data["status"] == "completed"


def agent(question, fail=False):
    """Uses everything that an attached function can use."""
    chain = current_chain()
    with chain.generation() as generation:
        generation.chunk("Let me look.")
    with chain.tool_call("search", {"q": question}) as call:
        call.observation("found")
    chain.reward(1.0)
    if fail:
        raise LookupError("lost")
    return {"answer": question}


@pytest.mark.parametrize("defect", [*DEFECTS, *also(adapter, "_shown", "copied", "_conversations")], ids=str)
def test_a_fault_of_ours_changes_no_result(defect, seen):
    """Whatever of ours raises, hangs or returns something wrong, the function gives what it gives."""
    with defect.injected():
        watched = rollcast.attach(agent, manager=seen.manager_of_it)
        for _ in range(3):
            assert watched("cats") == {"answer": "cats"}
        with pytest.raises(LookupError, match=r"^lost$"):
            watched("dogs", fail=True)
        watched.detach(0.2)
    assert watched("cats") == {"answer": "cats"}


def test_a_recursion_that_reaches_the_limit_stays_the_host_s(attach, seen):
    """The host's own errors come out of a recursion at the limit, and the function is watched afterwards."""
    reached = []

    @attach
    def down(depth):
        if depth == 0:
            reached.append(True)
            raise ValueError("the bottom")
        return down(depth - 1)

    came = []
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 150)
        for depth in range(40, 80):
            reached.clear()
            try:
                down(depth)
            except (ValueError, RecursionError) as error:
                came.append((type(error), bool(reached)))
    finally:
        sys.setrecursionlimit(limit)
    assert set(came) == {(ValueError, True), (RecursionError, False)}
    assert down.attachment.attached
    with pytest.raises(ValueError, match="the bottom"):
        down(0)
    seen.settle()
    assert seen.ends()[-1][0] == "error"


def test_arguments_that_are_named_like_secrets_are_masked(attach, seen):
    """Nobody who watches is sent a password or a key that the function was given under such a name."""

    @attach
    def ask(question, api_key, settings):
        return api_key

    given = {"password": "correct horse", "max_tokens": 3}
    assert ask("why", "correct horse", given) == given["password"]
    seen.settle()
    (start,) = seen.starts()
    assert json.loads(start["messages"][0]["content"]) == {
        "question": "why",
        "api_key": "[masked:name]",
        "settings": {"password": "[masked:name]", "max_tokens": 3},
    }
