"""Node, in which the page's modules run without a browser."""

import shutil
import subprocess

import pytest

NODE = shutil.which("node")


def _version():
    """Of the Node on this machine; (0, 0) if there is none."""
    if NODE is None:
        return (0, 0)
    done = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True)
    major, minor, _ = done.stdout.removeprefix("v").split(".")
    return int(major), int(minor)


needs_node = pytest.mark.skipif(
    _version() < (20, 19), reason="needs Node 20.19 or newer (Debian's package nodejs)"
)
