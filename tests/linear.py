"""Whether a cost grows as its input does, on any machine."""

import time

LENGTH, TIMES = 4_000, 16
MARGIN = 4
TRIES = 3


def processor_time(work, given):
    """How much time of a processor `work(given)` takes on this thread, at best."""

    def once():
        begin = time.thread_time()
        work(given)
        return time.thread_time() - begin

    return min(once() for _ in range(TRIES))


def assert_linear(work, make):
    """Assert that `work(make(length))` takes processor time in proportion to the length.

    An input 16 times as long takes less than 64 times as long; if each character cost as much as all before it, it would
    take 256 times.
    """
    least = processor_time(work, make(LENGTH))
    long = make(TIMES * LENGTH)
    for _ in range(TRIES):
        begin = time.thread_time()
        work(long)
        taken = time.thread_time() - begin
        if taken < MARGIN * TIMES * least:
            return
    raise AssertionError(f"{TIMES} times the length takes {taken / least:.0f} times as long")
