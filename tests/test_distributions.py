"""What `pip install` gets: the wheel and the source distribution, as hatchling builds them."""

import configparser
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
IN_THE_PACKAGE = {
    ".py",
    ".typed",
    ".json",
    ".jinja",
    ".safetensors",
    ".js",
    ".ts",
    ".css",
    ".html",
    ".svg",
    ".txt",
}


@pytest.fixture(scope="module")
def built_wheel(tmp_path_factory):
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return built


@pytest.fixture(scope="module")
def wheel(built_wheel):
    with zipfile.ZipFile(built_wheel) as archive:
        return {name: archive.getinfo(name).file_size for name in archive.namelist()}


@pytest.fixture(scope="module")
def plugins(built_wheel):
    points = configparser.ConfigParser(delimiters="=")
    with zipfile.ZipFile(built_wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        points.read_string(archive.read(name).decode())
    return dict(points["vllm.general_plugins"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("source")))
    with tarfile.open(built) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name.partition("/")[2]: member.size for member in members}


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    """No test, no picture and no list of npm's; its size is that of the embedded model and the code."""
    places = {PurePosixPath(name).parts[0] for name in wheel}
    assert {place.partition("-")[0] for place in places} == {"rollcast", "rollcast_vllm.py"}
    inside = [name for name in wheel if name.startswith("rollcast/")]
    assert {PurePosixPath(name).suffix for name in inside} <= IN_THE_PACKAGE
    assert not [name for name in inside if "node_modules" in name or "package" in PurePosixPath(name).name]
    model = [name for name in inside if name.endswith(".safetensors")]
    assert max(size for name, size in wheel.items() if name not in model) < 128 * 1024


def test_vllm_finds_its_plugin(wheel, plugins):
    """The wheel names the module that vLLM loads in each of its processes, and has it."""
    assert plugins == {"rollcast": "rollcast_vllm:register"}
    assert "rollcast_vllm.py" in wheel


def test_the_wheel_has_every_file_of_the_package(wheel):
    """Also those that are no code: the page, the schemas, the embedded model."""
    package = ROOT / "src" / "rollcast"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"rollcast/{path.relative_to(package).as_posix()}" for path in files} <= wheel.keys()


def test_the_source_has_what_its_tests_need_and_nothing_that_others_made(source):
    """What only a test runs in a browser stays in the repository, and so does what npm and the tools leave behind."""
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "src/rollcast/__init__.py",
        "tests/conftest.py",
    } <= source.keys()
    left = ("node_modules", "tests/page/vendor", "__pycache__", ".venv", "rollcast-runs")
    assert not [name for name in source if any(part in name for part in left)]
    assert max(size for name, size in source.items() if not name.endswith(".safetensors")) < 256 * 1024
