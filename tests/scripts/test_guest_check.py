"""The check that Rollcast is a clean guest finds what it is there for. Its packages are made up, and no registry is asked."""

import zipfile
from pathlib import Path

import pytest
from scripts.guest_check import HOSTS, MOST_ADDED_MB, Conflict, Guest, Host, Resolver, as_table, main

HOST = Host("host", "host==1.0")


def wheel(folder, name, version, *requires, size=0):
    """An empty package."""
    path = Path(folder) / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as files:
        files.writestr(f"{name}/data", bytes(size))
        files.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        files.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        files.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip is to look in, and nowhere else: a host with an old dependency, of which there is a newer one."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "host", "1.0", "shared<2")
    wheel(folder, "shared", "1.5")
    wheel(folder, "shared", "2.0")
    wheel(folder, "fresh", "3.0", size=7_000_000)
    for name in ("PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def guest_of(index, tmp_path, *requires):
    guest = wheel(tmp_path, "guest", "0.1", *requires)
    resolver = Resolver(tmp_path, ["--no-index", "--find-links", str(index)])
    environment = resolver.resolve(HOST.requirement)
    assert environment == {"host": "1.0", "shared": "1.5"}
    return resolver.on_top(HOST, environment, guest, "")


def test_a_guest_that_fits_is_clean(index, tmp_path):
    """What is there stays as it is, and what comes is measured."""
    guest = guest_of(index, tmp_path, "shared>=1", "fresh")
    assert guest.clean
    assert set(guest.added) == {"guest", "fresh"}
    assert guest.added["fresh"] == pytest.approx(7.0, abs=0.01)
    assert guest.packages == 2


def test_a_guest_that_would_change_a_version_is_found(index, tmp_path):
    """The finding names the package."""
    guest = guest_of(index, tmp_path, "shared>=2")
    assert not guest.clean
    assert "shared" in guest.conflict
    assert "shared" in as_table([guest])


def test_a_guest_that_is_too_large_is_found():
    """NumPy does not count: hosts have it."""
    assert not Guest("host", "guest", 1, {"guest": MOST_ADDED_MB + 1}).clean
    assert Guest("host", "guest", 1, {"guest": 1.0, "numpy": MOST_ADDED_MB + 1}).clean


def test_a_host_that_cannot_be_had_is_not_clean(index, tmp_path):
    """It is an error of the check, rather than a finding."""
    resolver = Resolver(tmp_path, ["--no-index", "--find-links", str(index)])
    with pytest.raises(Conflict, match="nothere"):
        resolver.resolve("nothere==1")


def test_a_host_that_is_not_known_is_refused(capsys):
    """The sentence has those that are."""
    with pytest.raises(SystemExit) as left:
        main(["trlx"])
    assert left.value.code == 2
    assert f"the hosts are {HOSTS[0].name}, " in capsys.readouterr().err
