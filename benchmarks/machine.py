"""Describes the machine on which the figures were measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import rollcast

__all__ = ["about_machine"]

LIBRARIES = ("click", "msgspec", "numpy", "tokenizers", "jinja2", "pydantic", "rich", "websockets")


def about_machine() -> dict[str, Any]:
    """Date, processor, Python and versions of the libraries."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "rollcast": rollcast.__version__,
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        if "model name" in fields:
            numbers = [f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields]
            return f"{fields['model name']} ({', '.join(numbers)})" if numbers else fields["model name"]
    return platform.processor() or "unknown"
