"""What a tool may ask for beside its arguments."""

__all__ = ["Injected"]


class Injected:
    """Base of the classes whose instances reach a tool by annotation instead of from the model.

    `rollcast.rollout.ChainContext` is one: a parameter annotated with it is left out of the tool's schema and filled in
    at the call.
    """
