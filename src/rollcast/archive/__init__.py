"""A run's folder, which answers tomorrow what happened (docs/archive.md). `format.py` draws it."""
