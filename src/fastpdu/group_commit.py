"""Making directory entries durable, many at a time."""

from __future__ import annotations

import os
import threading


class _Turn:
    """One fsync, and everybody who is satisfied by it."""

    __slots__ = ("error", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self.error: OSError | None = None


class GroupCommit:
    """Synchronises directories with their disk: threads that come while one is at it share the next.

    A thread is satisfied by an fsync that *began* after it came, so the next one is for all who have come meanwhile.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next: dict[str, _Turn] = {}
        self._running: set[str] = set()

    def sync(self, directory: str) -> None:
        """Return when everything that the directory has now is on the disk.

        Parameters
        ----------
        directory : str
            The directory.

        Raises
        ------
        OSError
            If that failed.
        """
        with self._condition:
            turn = self._next.get(directory)
            if turn is not None:
                while not turn.is_done:
                    self._condition.wait()
                if turn.error is not None:
                    raise OSError(turn.error.errno, turn.error.strerror, directory)
                return
            turn = self._next[directory] = _Turn()
            while directory in self._running:
                self._condition.wait()
            self._running.add(directory)
            del self._next[directory]
        try:
            sync_directory(directory)
        except OSError as error:
            turn.error = error
            raise
        finally:
            with self._condition:
                self._running.discard(directory)
                turn.is_done = True
                self._condition.notify_all()


def sync_directory(directory: str) -> None:
    """Write the entries of a directory to the disk, where that is possible (not on Windows)."""
    if os.name == "nt":
        return
    fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
