"""Facts about how an agent gets to another process."""

import contextlib
import pickle
import subprocess
import sys
import threading

import cloudpickle
import pytest

from rollcast import BaseAgent, InputError, tool
from rollcast.cli.pace import Paced
from rollcast.fleet.crossing import PackedAgent, pack_agent, pack_value, what_cannot_cross
from rollcast.models.engine_backend import EngineBackend
from rollcast.testing import ScriptedBackend

lock = threading.Lock()


@tool
def double(x: int) -> int:
    """Double it."""
    return 2 * x


def agent(*tools, **settings):
    return BaseAgent("m", tools, ScriptedBackend("done"), name="Counter", **settings)


@contextlib.contextmanager
def code_goes_along():
    """Functions of this module go with their code, as those of a script do."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(here)


class Held:
    """A class with an attribute."""

    def __init__(self, inner):
        self.inner = inner

    def get(self):
        """Return it."""
        return self.inner


class Slotted:
    """A class with a slot."""

    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


def test_an_agent_that_is_named_is_not_pickled():
    """Each process imports it."""
    assert pack_agent(agent(), "module:agent", cloudpickle.dumps) == PackedAgent("Counter", "module:agent")


def test_an_agent_that_is_not_named_is_pickled():
    """It arrives with its tools."""
    packed = pack_agent(agent(double), None, cloudpickle.dumps)
    assert pickle.loads(packed.pickled).tools["double"].description == "Double it."


def test_the_attribute_that_cannot_cross_is_named():
    """The sentence has the way to it, its type, and what to do."""
    own = agent()
    own.store = {"cache": [1, lock]}
    with pytest.raises(InputError) as caught:
        pack_agent(own, None, cloudpickle.dumps)
    assert str(caught.value) == (
        "agent Counter cannot be sent to other processes: its store['cache'][1], of type lock, cannot be pickled (cannot "
        "pickle '_thread.lock' object); make it where it is used, or write the agent in a module and name it as module:name, "
        "so that each runner makes its own"
    )


def test_the_variable_of_a_tool_is_named():
    """A tool that closes over something that cannot be pickled."""
    own = threading.Lock()

    @tool
    def guarded(x: int) -> int:
        """Guard it."""
        with own:
            return x

    with pytest.raises(InputError, match=r"its tools\['guarded'\]\.function, its variable own, of type lock"):
        pack_agent(agent(guarded), None, cloudpickle.dumps)


def test_a_backend_that_holds_a_model_is_named_as_a_whole():
    """It says itself why it cannot be pickled."""

    class Loaded(ScriptedBackend):
        __reduce__ = EngineBackend.__reduce__

    with pytest.raises(InputError, match=r"its backend, of type Loaded, .* holds a loaded model"):
        pack_agent(BaseAgent("m", backend=Loaded("done")), None, cloudpickle.dumps)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": (0, lock)}, "['a'][1]"),
        (Held(lock), ".inner"),
        (Slotted([lock]), ".inner[0]"),
        (Held(Held({"deep": lock})), ".inner.inner['deep']"),
        (lambda: lock.locked(), ", the global lock"),
        (lambda _=lock: None, ", its default 0"),
        (Held(lock).get, ".__self__.inner"),
    ],
)
def test_the_innermost_part_is_found(value, place):
    """Wherever it is."""
    with code_goes_along():
        found = what_cannot_cross(value, cloudpickle.dumps)
    assert found is not None
    assert found[0].endswith(place)


def test_what_refers_to_itself_is_searched_once():
    """A circle does not keep the search from ending."""
    value = Held(None)
    value.inner = [value, lock]
    assert what_cannot_cross(value, cloudpickle.dumps)[1] is lock


def test_a_model_that_was_slowed_down_crosses():
    """As `--pace` does; it is slowed down there."""
    there = pickle.loads(pickle.dumps(Paced(ScriptedBackend("done"), 4)))
    assert isinstance(there, Paced)
    assert (there.name, there._pause_s) == ("scripted", 0.25)


def test_what_can_cross_has_no_such_part():
    """Nothing is found."""
    assert what_cannot_cross(agent(double), cloudpickle.dumps) is None


def test_what_refuses_only_as_a_whole_is_named_as_a_whole():
    """All its parts can be pickled."""

    class Proud:
        def __reduce__(self):
            raise TypeError("not me.\nReally.")

    with pytest.raises(
        InputError, match=r"the row .* its value, of type Proud, cannot be pickled \(not me\); leave"
    ):
        pack_value(Proud(), "the row", cloudpickle.dumps, "leave it out")


def test_a_tool_of_a_module_that_goes_by_value_takes_its_code_along():
    """So the other process need not have the module."""
    with code_goes_along():
        data = cloudpickle.dumps(double)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).function(21))"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.split() == [b"42"]
