"""The files that wait for an association, known by what they need of one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection

from fastpdu.sender.files import FileItem, Key

#: A-ASSOCIATE-RQ: odd presentation context IDs from 1 to 255 (PS3.8 9.3.2.2).
MAX_CONTEXTS = 128
# So many files are looked at, if they are there, before the first association is requested: most
# series have no kind of file beyond those
FIRST_LOOK = 256
# Seconds for which it is worth waiting for them
FIRST_WAIT = 0.25


class Backlog:
    """Files that wait, in the order in which they have come.

    Who fills it has to bound it: `on_taken` tells when one has left.

    Parameters
    ----------
    on_taken : callable
        Called for each file that is taken.
    """

    def __init__(self, on_taken: Callable[[], object]) -> None:
        self._on_taken = on_taken
        self._changed = threading.Condition()
        self._waiting: dict[Key, deque[FileItem]] = {}
        # All kinds of files that have come by, the latest last
        self._seen: dict[Key, None] = {}
        self._put = 0
        self._is_complete = False
        self.is_stopped = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, item: FileItem) -> None:
        """Add a file."""
        with self._changed:
            self._put += 1
            item.order = self._put
            self._seen.pop(item.key, None)
            self._seen[item.key] = None
            self._waiting.setdefault(item.key, deque()).append(item)
            self._changed.notify_all()

    def give_back(self, item: FileItem) -> None:
        """Put a file back to where it was taken from, for somebody else."""
        with self._changed:
            self._waiting.setdefault(item.key, deque()).appendleft(item)
            self._changed.notify_all()

    def complete(self) -> None:
        """No more files will come."""
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody take or wait for a file any more."""
        with self._changed:
            self.is_stopped = True
            self._changed.notify_all()

    def take(self, keys: Collection[Key]) -> FileItem | None:
        """Take the first file of these kinds, if there is one.

        Parameters
        ----------
        keys : collection of Key
            What an association can carry.
        """
        with self._changed:
            return self._take(keys)

    def wait(self, keys: Collection[Key]) -> FileItem | None:
        """Wait for a file, if possible one of these kinds.

        Returns
        -------
        FileItem or None
            None if there will be no more.
        """
        with self._changed:
            while not self.is_stopped:
                item = self._take(keys) or self._take(self._waiting)
                if item is not None or self._is_complete:
                    return item
                self._changed.wait()
        return None

    def _take(self, keys: Collection[Key]) -> FileItem | None:
        if self.is_stopped:
            return None
        # (an association that can carry many kinds has mostly few of them to carry)
        fitting = [key for key in self._waiting if key in keys]
        if not fitting:
            return None
        key = min(fitting, key=lambda key: self._waiting[key][0].order)
        waiting = self._waiting[key]
        item = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        self._on_taken()
        return item

    def pause(self, seconds: float) -> bool:
        """Wait for a time, or until `stop`.

        Returns
        -------
        bool
            Whether it was stopped.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self.is_stopped, seconds)

    def kinds(self, first: Key, limit: int = MAX_CONTEXTS) -> list[Key]:
        """Return the kinds of files that an association should be able to carry.

        The first time it waits a little for more to come.

        Parameters
        ----------
        first : Key
            One that it has to.
        limit : int, optional
            How many it can.

        Returns
        -------
        list of Key
            `first`, those that wait by their order, and those that have come last.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._put >= FIRST_LOOK or self._is_complete or self.is_stopped, FIRST_WAIT
            )
            waiting = sorted(self._waiting, key=lambda key: self._waiting[key][0].order)
            kinds = dict.fromkeys([first, *waiting, *reversed(self._seen)])
        return list(kinds)[:limit]
