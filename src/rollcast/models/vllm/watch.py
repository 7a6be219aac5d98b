"""Ends the engine's processes when the program that started them has ended, even if it was killed.

vLLM's engine would wait for requests forever. A small process beside it waits for the end of its own input, which the
operating system closes even if the program is killed. It imports nothing from Rollcast.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

__all__ = ["Watch"]


class Watch:
    """A process that ends others, and their children, with this one.

    Args:
        process_ids: the processes that it ends.
    """

    def __init__(self, process_ids: list[int]) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (this file)
            [sys.executable, "-P", __file__, *map(str, process_ids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the program.
            start_new_session=True,
        )

    def close(self) -> None:
        """End the processes that are left, and the watch."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _main(process_ids: list[int]) -> None:
    import psutil  # noqa: PLC0415  (comes with vLLM)

    watched = []
    for process_id in process_ids:
        with contextlib.suppress(psutil.NoSuchProcess):
            watched.append(psutil.Process(process_id))
    sys.stdin.read()
    for process in watched:
        # It may have ended by itself; psutil can tell it from a later process with the same number.
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


if __name__ == "__main__":
    _main([int(argument) for argument in sys.argv[1:]])
