"""Runs that are killed at random moments: what is lost, and whether the record can be read and recovered. See `crashes.py`."""
