"""Ports for tests whose servers go and come back."""

import contextlib
import socket


@contextlib.contextmanager
def kept_port():
    """A port of 127.0.0.1 that nobody else is given meanwhile, also while nobody listens at it.

    It is bound and not listened at: connections are refused, and a server that is told this port may listen there, again and again.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]
