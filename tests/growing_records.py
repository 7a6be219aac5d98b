"""Copies of records that are being written."""

import shutil
import time


def copy_while_written(record, copy, timeout=60.0):
    """What a writer that is killed now would leave: a copy of its record, without files that are half written.

    The writer makes the folder when it has something to write, and renames files. A copy into which either of these came is made again.
    """
    give_up = time.monotonic() + timeout
    while True:
        try:
            return shutil.copytree(record, copy, ignore=shutil.ignore_patterns("*.tmp"))
        except (FileNotFoundError, shutil.Error):  # the folder is not there yet, or a file was renamed
            if time.monotonic() >= give_up:
                raise
        shutil.rmtree(copy, ignore_errors=True)
        time.sleep(0.01)
