"""The journal: which files a peer has acknowledged, so that a run that was killed can go on.

A text file of JSON lines that only grows. The first line says for whom it is, each other one names a file that the
peer has acknowledged. A line is written with one system call as soon as the response has been read, so what kills the
process loses nothing of it; every second, and at the end, it is made durable (fsync), so a machine that loses its power
loses the last second: those files are sent again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from datetime import datetime, timezone
from typing import Any

from fastpdu.requestor import Peer
from fastpdu.sender.files import FileItem, digest

LOGGER = logging.getLogger("fastpdu.sender")

FORMAT, VERSION = "fastpdu-journal", 1
#: Seconds after which what was written is made durable.
SYNC_SECONDS = 1.0
_DIGEST = 16
# Far behind the end of any journal: msvcrt locks bytes, and nobody may read those of others
_LOCKED_BYTE = 2**30


class JournalError(Exception):
    """A journal cannot be used; the message says why."""


class DigestSet:
    """A set of digests of 16 bytes, which takes some 32 bytes for each: a fifth of what a `set` takes."""

    def __init__(self) -> None:
        self._slots = 1 << 10
        self._table = bytearray(self._slots * _DIGEST)
        self._empty = bytes(_DIGEST)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: bytes) -> bool:
        return self._find(value)[1]

    def add(self, value: bytes) -> bool:
        """Add a digest, and say whether it was not there."""
        if self._count * 3 >= self._slots * 2:
            self._grow()
        at, is_there = self._find(value)
        if not is_there:
            self._table[at : at + _DIGEST] = value
            self._count += 1
        return not is_there

    def _find(self, value: bytes) -> tuple[int, bool]:
        """Return where a digest is or should be, and whether it is there."""
        slot = int.from_bytes(value[:8], "little") % self._slots
        while True:
            at = slot * _DIGEST
            found = self._table[at : at + _DIGEST]
            if found == value:
                return at, True
            if found == self._empty:
                return at, False
            slot = (slot + 1) % self._slots

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(self._slots * _DIGEST)
        for at in range(0, len(old), _DIGEST):
            value = bytes(old[at : at + _DIGEST])
            if value != self._empty:
                at = self._find(value)[0]
                self._table[at : at + _DIGEST] = value


class Journal:
    """Which files a peer has acknowledged.

    Parameters
    ----------
    path : str or PathLike
        The file. It is made if it is not there.
    peer : Peer
        For whom. A journal for somebody else is refused.

    Raises
    ------
    JournalError
        If it is in use by another process, for another peer, or not a journal.
    OSError
        If it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], peer: Peer) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        self._acknowledged = DigestSet()
        self._claimed = DigestSet()
        self._synced = time.monotonic()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(self.path, flags, 0o666)
        try:
            _lock_file(self._fd, self.path)
            self._read(peer)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def __len__(self) -> int:
        """The number of files that were acknowledged before."""
        return len(self._acknowledged)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, peer: Peer) -> None:
        header: dict[str, Any] = {
            "host": peer.host,
            "port": peer.port,
            "called": peer.called,
        }
        good = unreadable = 0
        with open(os.dup(self._fd), "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    # Cut by whatever has ended the last run
                    break
                if number == 0:
                    self._check(line, header)
                elif not self._remember(line):
                    unreadable += 1
                good += len(line)
        if unreadable:
            LOGGER.warning(
                "%s: %d lines cannot be read; their files are sent again", self.path, unreadable
            )
        if not good and os.fstat(self._fd).st_size and not self._is_cut_header():
            raise JournalError(f"{self.path} is not a journal")
        os.ftruncate(self._fd, good)
        if not good:
            self._write({"journal": FORMAT, "version": VERSION, **header, "begun": _now()})
            os.fsync(self._fd)

    def _is_cut_header(self) -> bool:
        """Whether a file without a whole line may be what is left of our first line."""
        begin = f'{{"journal": "{FORMAT}"'.encode()
        with open(os.dup(self._fd), "rb") as file:
            file.seek(0)
            head = file.read(len(begin))
        return begin.startswith(head)

    def _check(self, line: bytes, header: dict[str, Any]) -> None:
        found = _parsed(line)
        if found.get("journal") != FORMAT:
            raise JournalError(f"{self.path} is not a journal")
        if found.get("version") != VERSION:
            raise JournalError(
                f"{self.path} is a journal of version {found.get('version')}, not {VERSION}"
            )
        if any(found.get(name) != value for name, value in header.items()):
            raise JournalError(
                f"{self.path} is the journal of sending to {found.get('called')} at {found.get('host')}:"
                f"{found.get('port')}, not to {header['called']} at {header['host']}:{header['port']}"
            )

    def _remember(self, line: bytes) -> bool:
        found = _parsed(line)
        try:
            path, uid = found["path"], found["uid"]
            size, mtime_ns = found["size"], found["mtime_ns"]
        except KeyError:
            return False
        self._acknowledged.add(digest(path, size, mtime_ns, uid))
        return True

    def claim(self, item: FileItem) -> str | None:
        """Say why a file need not be sent, if so; else it is noted as one that is being sent.

        Parameters
        ----------
        item : FileItem
            The file.

        Returns
        -------
        {"already sent", "duplicate"} or None
            Acknowledged in an earlier run; claimed in this one.
        """
        found = item.digest()
        if found in self._acknowledged:
            return "already sent"
        return None if self._claimed.add(found) else "duplicate"

    def acknowledged(self, item: FileItem, status: int) -> None:
        """Note that a peer has acknowledged a file.

        Parameters
        ----------
        item : FileItem
            The file.
        status : int
            With which status.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        line = {
            "path": os.path.abspath(item.path),
            "size": item.size,
            "mtime_ns": item.mtime_ns,
            "uid": item.sop_instance,
            "status": status,
            "at": _now(),
        }
        with self._lock:
            self._write(line)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._fd)
                self._synced = time.monotonic()

    def _write(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode("ascii") + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            # Not half a line, with others behind it
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def close(self) -> None:
        """Make it durable, and let others use it."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _lock_file(fd: int, path: str) -> None:
    """Lock a file for as long as it is open, or raise JournalError."""
    try:
        if os.name == "nt":
            import msvcrt

            locking: Any = msvcrt
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            locking.locking(fd, locking.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(f"{path} is in use by another process") from error
