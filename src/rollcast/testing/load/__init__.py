"""Synthetic load: many chains that write, call tools and are rewarded at a set rate, without a model.

    load = Load(chains=1000, tokens_per_s=50, seconds=60)
    report = await play_load(manager, load)

`python -m rollcast.testing.load --chains 1000` does the same in a process of its own. What is said depends only on the `Load`,
so that two plays of one give the same events in the same order, apart from times and the ids of runs.
"""

from rollcast.testing.load.plan import Load
from rollcast.testing.load.player import LoadReport, play_load

__all__ = ["Load", "LoadReport", "play_load"]
