"""A hub, producers and viewers as real processes, and everything that may go wrong between them (docs/testing.md)."""
