"""A link with a propagation delay and a bandwidth, between two ends on one machine.

A process of its own takes connections and passes on what comes, in both directions, when a link would have delivered
it. TCP ends at the process on either side: its congestion control does not see the delay, so there is no slow start,
and no window of TCP is in the way. What remains is what the protocol above does with a long link.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from fastpdu.bench.child import Child, child

__all__ = ["Link", "link"]

#: Bytes that are passed on in one piece.
_PIECE = 64 << 10
#: Seconds for which bytes may queue in front of the link: as long as that, the scheduler may forget the process
#: without leaving the link idle.
_QUEUE = 0.010
#: Bytes on a link that has no bandwidth.
_MOST = 64 << 20


class Link:
    """The process that delays.

    Parameters
    ----------
    running : Child
        The process.
    """

    def __init__(self, running: Child) -> None:
        self._running = running

    def to(self, port: int, *, round_trip: float, rate: float) -> int:
        """Lay a link for one connection.

        Parameters
        ----------
        port : int
            Where it leads, on this machine.
        round_trip : float
            Seconds, half of them in each direction.
        rate : float
            Bytes per second in each direction; 0: as many as the process can pass on.

        Returns
        -------
        int
            The port to connect to. Connecting is not delayed.
        """
        return int(self._running.ask((port, round_trip, rate)))


@contextlib.contextmanager
def link() -> Iterator[Link]:
    """Run the process for the duration of a ``with`` block."""
    with child(_serve) as running:
        yield Link(running)


# In the process ---------------------------------------------------------------------------------------------------


def _serve(give: Callable[[object], None], take: Callable[[], tuple[int, float, float]]) -> None:
    while True:
        port, round_trip, rate = take()
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(
            target=_connect, args=(listener, port, round_trip / 2, rate), daemon=True
        ).start()
        give(listener.getsockname()[1])


def _connect(listener: socket.socket, port: int, delay: float, rate: float) -> None:
    with listener:
        near, _ = listener.accept()
    with near:
        try:
            far = socket.create_connection(("127.0.0.1", port))
        except OSError:
            # There is nobody: the other end sees the connection close
            return
        with far:
            threads = []
            for source, target in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threads += _Direction(source, target, delay, rate).start()
            for thread in threads:
                thread.join()


class _Direction:
    """One direction of a connection."""

    def __init__(
        self, source: socket.socket, target: socket.socket, delay: float, rate: float
    ) -> None:
        self._source = source
        self._target = target
        self._delay = delay
        self._rate = rate
        # What the link holds, and as much again while the receiver is not ready
        self._most = int(2 * rate * (delay + _QUEUE)) + _PIECE if rate else _MOST
        self._held = 0
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()

    def start(self) -> list[threading.Thread]:
        """Begin to pass on; return the threads."""
        threads = [
            threading.Thread(target=self._guarded, args=(part,), daemon=True)
            for part in (self._enter, self._leave)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except OSError:
            # One end is lost: so is the other, and nobody waits for either
            self._most = sys.maxsize
            for end in (self._source, self._target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._put(0.0, b"")

    def _enter(self) -> None:
        """Take bytes as fast as the link sends them."""
        sent = 0.0
        while data := self._source.recv(_PIECE):
            sent = max(sent, time.monotonic())
            if self._rate:
                sent += len(data) / self._rate
            self._put(sent + self._delay, data)
            ahead = sent - _QUEUE - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        self._put(max(sent, time.monotonic()) + self._delay, b"")

    def _put(self, due: float, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not data or self._held < self._most)
            self._held += len(data)
            self._pieces.append((due, data))
            self._changed.notify_all()

    def _leave(self) -> None:
        """Deliver each piece when it is due."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
                due, data = self._pieces.popleft()
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            if not data:
                self._target.shutdown(socket.SHUT_WR)
                return
            self._target.sendall(data)
            with self._changed:
                self._held -= len(data)
                self._changed.notify_all()
