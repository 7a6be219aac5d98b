"""Seeded fault schedules: everything goes wrong at once, and the invariants hold (docs/testing.md)."""
