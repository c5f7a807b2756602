"""A queue and a timer that tell when they change, so that nobody has to poll them."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Any

from pynetdicom.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable


class NotifyingQueue(queue.Queue[Any]):
    """A queue that tells when something is put into it.

    Parameters
    ----------
    on_put : callable
        Called without arguments, on the thread that put something.
    """

    def __init__(self, on_put: Callable[[], None]) -> None:
        super().__init__()
        self._on_put = on_put

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item into the queue; see `queue.Queue`."""
        super().put(item, block, timeout)
        self._on_put()


class NotifyingTimer(Timer):
    """A timer that tells when its end changes, other than by a restart on reception.

    Parameters
    ----------
    timeout : float or None
        Seconds before it expires, None for never.
    on_change : callable
        Called without arguments, on the thread that changed it.
    """

    def __init__(self, timeout: float | None, on_change: Callable[[], None]) -> None:
        super().__init__(timeout)
        self._on_change = on_change

    def start(self) -> None:
        """Start the timer."""
        self.restart()
        self._on_change()

    def restart(self) -> None:
        """Start the timer again, without telling.

        It ends later than before: whoever waits finds out when the earlier end has come.
        """
        self._start_time = time.time()
        self._end_time = None

    # pynetdicom's two properties, as one calculation each: they are asked for each message

    @property
    def remaining(self) -> float:
        """Seconds until the timer expires; 1 if it never does."""
        timeout, start = self._timeout, self._start_time
        if timeout is None:
            return 1
        if start is None:
            return timeout
        end = self._end_time
        return timeout - ((time.time() if end is None else end) - start)

    @property
    def expired(self) -> bool:
        """Whether the timer has expired."""
        timeout, start = self._timeout, self._start_time
        if timeout is None or start is None:
            return False
        end = self._end_time
        return (time.time() if end is None else end) - start > timeout

    @property
    def timeout(self) -> float | None:
        """Seconds until the timer expires, None for never."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._timeout = value
        if self._start_time is not None and self._end_time is None:
            self._on_change()
