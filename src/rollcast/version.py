"""The version of the package, for every room that tells it to others. `pyproject.toml` says the same."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
