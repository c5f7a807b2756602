"""SIGINT and SIGTERM, as the commands that have something to bring to an end are told of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def handled(handler: Callable[[int], object]) -> Iterator[None]:
    """Have a function called with each SIGINT and SIGTERM, for the duration of a ``with`` block.

    It runs on the main thread between any two of its instructions, so it must take no lock. A thread that is not the
    main one cannot handle signals: there nothing changes.

    Parameters
    ----------
    handler : callable
        Is given the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, frame: handler(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def leave(status: int) -> None:
    """End the process now, as who has sent two signals wants it: threads that wait for a peer would keep it alive.

    Parameters
    ----------
    status : int
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
