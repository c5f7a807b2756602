"""SIGINT and SIGTERM, as the commands that have something to bring to an end are told of them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

#: What ends the thread; no signal has this number
_END = b"\0"


@contextmanager
def handled(handler: Callable[[int], object]) -> Iterator[None]:
    """Have a function called with each SIGINT and SIGTERM, for the duration of a ``with`` block.

    It runs on a thread of its own, whatever the main thread does. Python itself would call it on the main thread, which
    may wait for a lock and not be woken: the kernel may give the signal to any thread of the process, most of all while
    threads begin and end, and on Windows no wait for a lock is interrupted.

    A signal that this process was started to ignore, as a shell does for what it runs in the background, stays ignored.
    A thread that is not the main one cannot handle signals: there nothing changes.

    Parameters
    ----------
    handler : callable
        Is given the number of the signal. What it raises is printed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGINT last, and so put back last: it may raise KeyboardInterrupt as soon as it is as it was. (None: it has a
    # handler that is not Python's.)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    numbers = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    with ExitStack() as stack:
        for number in numbers:
            stack.callback(signal.signal, number, before[number])
        reading, writing = map(stack.enter_context, socket.socketpair())
        thread = threading.Thread(target=_pass_on, args=(reading, numbers, handler), daemon=True)
        thread.start()
        stack.callback(_end, thread, writing)
        # The interpreter's own handler, which runs at once on any thread, writes the number of the signal there
        writing.setblocking(False)
        stack.callback(
            signal.set_wakeup_fd,
            signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False),
        )
        for number in reversed(numbers):
            signal.signal(number, lambda *_: None)
        yield


def _pass_on(
    reading: socket.socket, numbers: list[signal.Signals], handler: Callable[[int], object]
) -> None:
    while (byte := reading.recv(1)) != _END:
        # (others that somebody handles are written there, too)
        if byte[0] in numbers:
            try:
                handler(byte[0])
            except Exception:
                traceback.print_exc()


def _end(thread: threading.Thread, writing: socket.socket) -> None:
    writing.setblocking(True)
    writing.sendall(_END)
    thread.join()


def leave(status: int) -> None:
    """End the process now, as who has sent two signals wants it: threads that wait for a peer would keep it alive.

    Parameters
    ----------
    status : int
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
