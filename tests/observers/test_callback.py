import pytest

from rollcast.errors import InputError
from rollcast.observers import CallbackStreamObserver
from rollcast.records import EventFilter


async def test_a_function_of_one_parameter_gets_the_text(events):
    """Each chunk's new text, in order."""
    got = []
    observer = CallbackStreamObserver(got.append)
    await observer.on_batch([events.chunk("chain_0", "Hel"), events.chunk("chain_0", "lo")])
    assert got == ["Hel", "lo"]


async def test_an_async_function_is_awaited(events):
    """Its coroutine runs to the end before the next event."""
    got = []

    async def callback(text):
        got.append(text)

    await CallbackStreamObserver(callback).on_batch([events.chunk("chain_0", "a")])
    assert got == ["a"]


async def test_a_function_of_two_parameters_gets_the_event_too(events):
    """`(text, event)`."""
    got = []
    event = events.chunk("chain_0", "a")
    await CallbackStreamObserver(lambda text, event: got.append((text, event))).on_batch([event])
    assert got == [("a", event)]


async def test_a_second_parameter_with_a_default_is_left_alone(events):
    """The idiom that binds a variable in a lambda is no request for the event, unless it is called so."""
    got = []
    await CallbackStreamObserver(lambda text, to=got: to.append(text)).on_batch(
        [events.chunk("chain_0", "a")]
    )
    await CallbackStreamObserver(lambda text, event=None: got.append(event.chain_id)).on_batch(
        [events.chunk("chain_1", "a")]
    )
    assert got == ["a", "chain_1"]


async def test_variadic_functions_such_as_print_get_the_text_alone(events, capsys):
    """`print` prints the text."""
    await CallbackStreamObserver(print).on_batch([events.chunk("chain_0", "hello")])
    assert capsys.readouterr().out == "hello\n"


def test_only_chunks_are_asked_for_unless_types_are_named():
    """A type named by either argument replaces the default."""
    assert CallbackStreamObserver(print).filter == EventFilter(types="llm_generation_chunk")
    assert CallbackStreamObserver(print, chain_filter="chain_1").filter == EventFilter(
        chains="chain_1", types="llm_generation_chunk"
    )
    assert CallbackStreamObserver(print, types="error").filter == EventFilter(types="error")
    named = EventFilter(types="reward")
    assert CallbackStreamObserver(print, chain_filter=named).filter == named


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("no function", "must be callable, found str"),
        (lambda: None, "cannot be called with"),
        (lambda a, b, c: None, "cannot be called with"),
        (lambda text, *, must: None, "cannot be called with"),
    ],
)
def test_what_cannot_be_called_is_refused_in_one_sentence(callback, said):
    """When it is made, before a chain runs."""
    with pytest.raises(InputError, match=said):
        CallbackStreamObserver(callback)


async def test_what_the_function_raises_goes_through(events):
    """The manager isolates it; the observer does not hide it."""

    def callback(text):
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="boom"):
        await CallbackStreamObserver(callback).on_batch([events.chunk("chain_0", "boom")])


async def test_the_text_of_other_types_is_theirs(events):
    """An observation's output, an error's sentence, nothing of the rest."""
    got = []
    observer = CallbackStreamObserver(got.append, types=["tool_observation", "error", "chain_end"])
    error = events("error", "chain_0", error="it broke", error_type="X", where="backend")
    await observer.on_batch([events.observation("chain_0", "42"), error, events.end("chain_0")])
    assert got == ["42", "it broke", ""]
