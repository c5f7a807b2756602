"""What another process takes while it is measured: CPU time, memory, threads (Linux; elsewhere nothing is told)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Figures", "forget_peak", "peak_memory", "watch"]

#: Seconds between two looks at the number of threads.
PERIOD = 0.05


@dataclass
class Figures:
    """What a process took.

    Attributes
    ----------
    cpu : float or None
        Seconds of CPU time, user and system.
    idle_memory, peak_memory : int or None
        Bytes that were resident at the beginning, and at most.
    idle_threads, peak_threads : int or None
        Threads at the beginning, and at most, those that are not Python's included.
    """

    cpu: float | None = None
    idle_memory: int | None = None
    peak_memory: int | None = None
    idle_threads: int | None = None
    peak_threads: int | None = None

    @property
    def memory_growth(self) -> int | None:
        """Bytes between the beginning and the peak."""
        if self.peak_memory is None or self.idle_memory is None:
            return None
        return self.peak_memory - self.idle_memory

    @property
    def more_threads(self) -> int | None:
        """Threads at most, beyond those at the beginning."""
        if self.peak_threads is None or self.idle_threads is None:
            return None
        return self.peak_threads - self.idle_threads


def _status(pid: int, name: str) -> int | None:
    """Return a number of /proc/PID/status."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(name + ":"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _memory(pid: int, name: str) -> int | None:
    value = _status(pid, name)
    return None if value is None else value * 1024


def forget_peak(pid: int) -> None:
    """Make the peak of a process its present level, where the system can (Linux)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def peak_memory(pid: int) -> int | None:
    """Return the bytes that were resident at most since `forget_peak`, where the system tells it (Linux)."""
    return _memory(pid, "VmHWM")


def _cpu(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name of the program, in parentheses, may have spaces
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


@contextlib.contextmanager
def watch(pid: int) -> Iterator[Figures]:
    """Watch a process for the duration of a ``with`` block.

    Parameters
    ----------
    pid : int
        The process; one of the same user.

    Yields
    ------
    Figures
        Complete when the block ends.
    """
    forget_peak(pid)
    threads = _status(pid, "Threads")
    figures = Figures(None, _memory(pid, "VmRSS"), None, threads, threads)
    began = _cpu(pid)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(PERIOD):
            now = _status(pid, "Threads")
            if now is not None:
                figures.peak_threads = max(figures.peak_threads or 0, now)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield figures
    finally:
        ended.set()
        thread.join()
        figures.peak_memory = peak_memory(pid)
        used = _cpu(pid)
        if used is not None and began is not None:
            figures.cpu = used - began
