"""Facts about copies and pickles of tools."""

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import cloudpickle
import pytest

from rollcast.tools import Tool, calculator, tool

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def plain(x: int) -> int:
    """Plain."""
    return x


@tool(timeout=5)
def decorated(x: int) -> int:
    """Decorated."""
    return x


renamed = dataclasses.replace(decorated, name="renamed", terminal=True)


class Shop:
    def __init__(self) -> None:
        self.sold = []

    def buy(self, x: int) -> int:
        """Buy."""
        self.sold.append(x)
        return len(self.sold)

    @tool
    @staticmethod
    def price(x: int) -> int:
        """Tell the price."""
        return x


def call(**arguments):
    return arguments


TOOLS = {
    "made": tool(plain, name="other", max_output=50),
    "decorated": decorated,
    "renamed": renamed,
    "static": Shop.price,
    "method": tool(Shop().buy),
    "partial": tool(functools.partial(plain), name="partial"),
    "schema": Tool.from_schema("f", "F.", SCHEMA, call),
    "shipped": calculator,
}


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("kind", TOOLS)
async def test_a_copy_is_the_same_tool(kind, copied):
    """A tool that was pickled or copied is told and called as it was, with its settings."""
    made = TOOLS[kind]
    again = copied(made)
    settings = [f.name for f in dataclasses.fields(Tool) if f.name not in {"function", "arguments"}]
    assert [getattr(again, name) for name in settings] == [getattr(made, name) for name in settings]
    assert again.schema == made.schema
    given = {"expression": "1"} if kind == "shipped" else {"a": 1} if kind == "schema" else {"x": 1}
    assert (await again.invoke(given)).status == "success"


@pytest.mark.parametrize("made", [decorated, Shop.price, calculator], ids=repr)
def test_a_decorated_function_is_pickled_by_its_name(made):
    """What a module has under the function's name is found there again."""
    assert pickle.loads(pickle.dumps(made)) is made
    assert copy.deepcopy(made) is made


async def test_a_deep_copy_of_a_method_has_an_object_of_its_own():
    """The copy's object is a copy, once for all that share it."""
    shop = Shop()
    one, other = copy.deepcopy([tool(shop.buy), shop])
    await one.invoke({"x": 3})
    assert other.sold == [3]
    assert shop.sold == []


def test_a_local_function_is_refused_in_a_sentence():
    """What no other process could find is named, with what to do."""

    @tool
    def local(x: int) -> int:
        return x

    with pytest.raises(
        pickle.PicklingError, match=r"^Tool\('local'\) cannot be pickled: .* define it there"
    ) as told:
        pickle.dumps(local)
    assert "\n" not in str(told.value)
    with pytest.raises(pickle.PicklingError, match=r"^Tool\('f'\) cannot be pickled"):
        pickle.dumps(Tool.from_schema("f", "", SCHEMA, lambda a: a))


async def test_cloudpickle_takes_a_local_function_along():
    """A pickler that takes code along, as Ray's does, takes local functions and lambdas too."""
    by = 2

    @tool
    def local(x: int) -> int:
        """Local."""
        return x * by

    again = pickle.loads(cloudpickle.dumps([local, Tool.from_schema("f", "", SCHEMA, lambda a: a + by)]))
    assert (await again[0].invoke({"x": 2})).observation == "4"
    assert (await again[1].invoke({"a": 2})).observation == "4"


def test_a_script_pickles_its_tools(tmp_path):
    """Tools of `__main__` are found by their names; cloudpickle takes them to a process with another `__main__`."""
    script = tmp_path / "script.py"
    script.write_text(
        "import cloudpickle, pickle, sys\n"
        "from rollcast.tools import tool\n"
        "@tool\n"
        "def f(x: int) -> int:\n"
        "    'F.'\n"
        "    return x\n"
        "assert pickle.loads(pickle.dumps(f)) is f\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(f))\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, check=True)
    assert pickle.loads(out.stdout)(3) == 3
