"""The hub's process: `rollcast hub`, with times that are short enough for a test, and perhaps a wrong clock.

`python -m fleet_faults.hub CLOCK_S ARGUMENTS…`
"""

from __future__ import annotations

import sys
from functools import partial

from fleet_faults.skew import shift_clock

HEARTBEAT_S = 0.5
LOST_AFTER_S = 1.0


def main() -> None:
    """See the module."""
    shift_clock(float(sys.argv[1]))
    import rollcast.serve
    from rollcast.cli import main as command
    from rollcast.fleet.hub import Hub

    rollcast.serve.ServerSettings = partial(rollcast.serve.ServerSettings, heartbeat_s=HEARTBEAT_S)  # type: ignore[misc, assignment]
    assert Hub.__init__.__kwdefaults__ is not None
    Hub.__init__.__kwdefaults__["lost_after_s"] = LOST_AFTER_S
    sys.argv = ["rollcast", "hub", *sys.argv[2:]]
    command()


if __name__ == "__main__":
    main()
