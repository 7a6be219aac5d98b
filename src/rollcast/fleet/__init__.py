"""Many processes that are watched in one place: the hub, which takes what they publish (docs/hub.md)."""
