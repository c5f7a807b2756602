"""What `fastpdu send` and `fastpdu recv` show while they run: a live table on a terminal with rich, else lines."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

# Seconds: between two lines; over which a rate is taken
LINE_SECONDS = 10.0
RATE_SECONDS = 5.0
# Associations that are shown, each with a line of its own
MAX_ROWS = 12
# C0, DEL and C1, as Python writes them
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}
HINT = "for a live display: pip install 'fastpdu[cli]'"


def size(count: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def duration(seconds: float) -> str:
    """Return a number of seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def printable(text: str | os.PathLike[str]) -> str:
    """Return a path, or what a peer has said, on one line: what is no text, or would steer a terminal, made visible."""
    known = os.fspath(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return known.translate(_CONTROLS)


class Rate:
    """Bytes per second, over the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)])

    def update(self, count: float) -> float:
        """Return the rate, now that there are so many bytes in all."""
        now = time.monotonic()
        points = self._points
        points.append((now, count))
        while len(points) > 2 and now - points[1][0] > RATE_SECONDS:
            points.popleft()
        begun, first = points[0]
        return (count - first) / max(now - begun, 1e-3)


class Display:
    """Lines on stderr, one every ten seconds; the base of the live display, too.

    Parameters
    ----------
    summary : callable
        Returns one line that says how far it is.
    """

    def __init__(self, summary: Callable[[], str]) -> None:
        self._summary = summary
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Display:
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LINE_SECONDS):
            self.say(self._summary())

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


class Silent(Display):
    """Nothing but what has to be said."""

    def __enter__(self) -> Display:
        return self


class LiveDisplay(Display):
    """A table that is redrawn four times a second.

    Parameters
    ----------
    summary : callable
        Returns one line that says how far it is.
    rows : callable
        Returns the lines of the table, a sequence of cells for each.
    share : callable
        Returns how much of it is done, from 0 to 1, None if that is not known.
    """

    def __init__(
        self,
        summary: Callable[[], str],
        rows: Callable[[], Sequence[Sequence[str]]],
        share: Callable[[], float | None],
    ) -> None:
        super().__init__(summary)
        from rich.console import Console
        from rich.live import Live

        self._rows = rows
        self._share = share
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(self._summary())]
        share = self._share()
        if share is not None:
            # (in a table, since it does not end its line)
            line = Table.grid(padding=(0, 2), expand=True)
            line.add_row(ProgressBar(total=1.0, completed=share), f"{share:4.0%}")
            parts.append(line)
        rows = list(self._rows())
        if rows:
            table = Table.grid(padding=(0, 2))
            for row in rows[:MAX_ROWS]:
                table.add_row(*map(Text, row))
            parts.append(table)
        if len(rows) > MAX_ROWS:
            parts.append(Text(f"and {len(rows) - MAX_ROWS} more"))
        return Group(*parts)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def display(
    summary: Callable[[], str],
    rows: Callable[[], Sequence[Sequence[str]]],
    share: Callable[[], float | None] = lambda: None,
    *,
    quiet: bool = False,
) -> Display:
    """Return the best display that stderr can show.

    Parameters
    ----------
    summary, rows, share : callable
        As for `LiveDisplay`.
    quiet : bool
        Show nothing.
    """
    if quiet:
        return Silent(summary)
    if sys.stderr.isatty():
        try:
            return LiveDisplay(summary, rows, share)
        except ImportError:
            print(HINT, file=sys.stderr)
    return Display(summary)


class _LogLines(logging.Handler):
    """Shows what a logger says, above the display."""

    def __init__(self, shown: Display) -> None:
        super().__init__()
        self._display = shown

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        try:
            self._display.say(printable(record.getMessage()))
        except Exception:
            self.handleError(record)


@contextmanager
def logged(name: str, shown: Display, level: int = logging.WARNING) -> Iterator[None]:
    """Have what a logger says shown above the display, and nowhere else.

    Parameters
    ----------
    name : str
        The logger.
    shown : Display
        Where.
    level : int, optional
        From which level on.
    """
    logger = logging.getLogger(name)
    handler = _LogLines(shown)
    before, propagates = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(before)
