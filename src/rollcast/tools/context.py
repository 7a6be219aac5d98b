"""What a tool may take beside its arguments."""

__all__ = ["Injected"]


class Injected:
    """The base of classes whose instances the rollout gives to a tool, by annotation.

    `rollcast.rollout.ChainContext` is one: a parameter annotated with it is left out of the tool's schema and filled in
    when the tool is called.
    """
