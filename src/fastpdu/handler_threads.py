"""Handlers of one association side by side, where the peer may have several operations outstanding (PS3.7 D.3.3.3).

The association's thread reads the requests and hands those of C-STORE to threads of their own. It waits for one of
these to be free before it reads on: no request waits anywhere but in the network.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pynetdicom.utils import make_target

from fastpdu import window

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpdu.association import AssociationMixin

LOGGER = logging.getLogger("fastpdu.handler_threads")


class HandlerThreads:
    """A bounded number of threads, started when they are needed.

    Parameters
    ----------
    count : int
        How many there may be.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._due: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        # Calls that have been handed over and have not ended
        self._running = 0
        self._threads: list[threading.Thread] = []
        self._is_over = False

    @property
    def is_busy(self) -> bool:
        """Whether something runs."""
        return self._running > 0

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Have a thread call a function; wait until one is free. Without any, the calling thread does it.

        Parameters
        ----------
        function : callable
            The function. It deals with its exceptions.
        *args
            Its arguments.
        """
        with self._changed:
            while self._running >= self._count:
                self._changed.wait()
            if self._running >= len(self._threads) and not self._start() and not self._threads:
                has_thread = False
            else:
                has_thread = True
                self._running += 1
                self._due.append((function, args))
                self._changed.notify_all()
        if not has_thread:
            function(*args)

    def is_one(self) -> bool:
        """Whether the calling thread is one of these."""
        return threading.current_thread() in self._threads

    def settle(self) -> None:
        """Wait until nothing runs. One of the threads itself does not wait for the others."""
        if self.is_one():
            return
        with self._changed:
            while self._running:
                self._changed.wait()

    def end(self) -> None:
        """Wait until nothing runs, and end the threads."""
        self.settle()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _start(self) -> bool:
        """Start another thread, if the system has one for us."""
        thread = threading.Thread(
            # With the context variables of the association's thread (`_config.PASS_CONTEXTVARS`)
            target=make_target(self._work),
            # (pynetdicom finds its associations by the names of their threads)
            name=f"HandlerThread-{len(self._threads) + 1}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            LOGGER.warning("No thread for a handler: %s", error)
            return False
        self._threads.append(thread)
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._due:
                    if self._is_over:
                        return
                    self._changed.wait()
                function, args = self._due.popleft()
            is_fit = False
            try:
                function(*args)
                is_fit = True
            finally:
                del function, args
                with self._changed:
                    self._running -= 1
                    if not is_fit:
                        # Something that is no Exception ends this thread: the next call gets another one
                        self._threads.remove(threading.current_thread())
                    self._changed.notify_all()


def threads_for(assoc: AssociationMixin) -> HandlerThreads | None:
    """Return the handlers' threads of an established association, None if it serves one request at a time.

    Parameters
    ----------
    assoc : AssociationMixin
        The association.
    """
    count = min(assoc._transport_options.handler_threads or 1, window.performed(assoc))
    return HandlerThreads(count) if count > 1 else None
