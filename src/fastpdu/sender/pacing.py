"""How fast, and how long to wait before the next attempt."""

from __future__ import annotations

import random
import threading
import time

# Seconds of the rate that may be made up for after a pause
_BURST = 0.25


class Pace:
    """A number of bytes per second, over all associations, on the average over files.

    Parameters
    ----------
    rate : float or None
        Bytes per second. None: no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._level = 0.0
        self._filled = time.monotonic()

    def delay(self) -> float:
        """Return the seconds after which the next file may be sent."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._level += (now - self._filled) * self._rate
            self._level = min(self._level, self._rate * _BURST)
            self._filled = now
            return max(0.0, -self._level / self._rate)

    def charge(self, size: int) -> None:
        """A file of so many bytes is being sent."""
        if self._rate is not None:
            with self._lock:
                self._level -= size


class Patience:
    """Waits between attempts, which get longer, and how many there may be without success in between.

    All associations share one: what has failed for one of them, would have for the others.

    Parameters
    ----------
    retries : int
        Attempts after the first one.
    delay : float
        Seconds before the first of them; each wait is twice as long as the one before it.
    longest : float
        Seconds that no wait exceeds.
    """

    def __init__(self, retries: int, delay: float, longest: float) -> None:
        self._retries = retries
        self._delay = delay
        self._longest = longest
        self._lock = threading.Lock()
        self._failures = 0
        self._failed = float("-inf")
        self._until = 0.0

    def failed(self, begun: float) -> float | None:
        """Something that may succeed a little later has failed.

        Parameters
        ----------
        begun : float
            When it was begun, by `time.monotonic`. What was begun before the last failure that was counted
            has failed together with that one, and is not counted again.

        Returns
        -------
        float or None
            For how many seconds to wait. None: there have been enough attempts.
        """
        with self._lock:
            now = time.monotonic()
            if begun > self._failed:
                if self._failures >= self._retries:
                    return None
                # From the half to the whole of it, so that many do not come back at the same moment
                wait = min(self._longest, self._delay * 2.0**self._failures)
                self._until = now + wait * random.uniform(0.5, 1.0)
                self._failures += 1
                self._failed = now
            return max(0.0, self._until - now)

    def succeeded(self) -> None:
        """An instance was stored."""
        if self._failures:
            with self._lock:
                self._failures = 0
