"""SIGINT and SIGTERM, as the commands that have something to bring to an end are told of them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
#: What ends the thread; no signal has this number
_END = b"\0"


@contextmanager
def handled(handler: Callable[[int], object]) -> Iterator[None]:
    """Have a function called with each SIGINT and SIGTERM, for the duration of a ``with`` block.

    It runs on a thread of its own, whatever the main thread does. Python itself would call it on the main thread, which
    may wait for a lock and not be woken: the kernel may give the signal to any thread of the process, most of all while
    threads begin and end, and on Windows no wait for a lock is interrupted.

    A thread that is not the main one cannot handle signals: there nothing changes.

    Parameters
    ----------
    handler : callable
        Is given the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The interpreter's own handler, which runs at once on any thread, writes the number of the signal there
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    thread = threading.Thread(target=_pass_on, args=(reading, handler), daemon=True)
    thread.start()
    woken_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(woken_before)
        writing.setblocking(True)
        writing.sendall(_END)
        thread.join()
        reading.close()
        writing.close()


def _pass_on(reading: socket.socket, handler: Callable[[int], object]) -> None:
    while (number := reading.recv(1)) != _END:
        # (others that somebody handles are written there, too)
        if number[0] in _NUMBERS:
            handler(number[0])


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
