"""A progress bar that keeps still while something is being timed."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Progress", "progress"]


class Progress:
    """Says on stderr how far a benchmark is: the plain form, and the base of the rich one.

    Parameters
    ----------
    total : float
        What all steps add up to, in any unit.
    stream : file, optional
        Where to write; None: say nothing.

    Notes
    -----
    Nothing is drawn by a thread of its own: it would take the interpreter lock from the transfer
    that is being measured. The bar moves when `phase` or `advance` is called, between measurements.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self.total = max(total, 1e-9)
        self.done = 0.0
        self._stream = stream
        self._text = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def phase(self, text: str) -> None:
        """Say what comes next."""
        self._text = text
        if self._stream is not None:
            percent = min(100.0, 100.0 * self.done / self.total)
            print(f"[{percent:3.0f} %] {text}", file=self._stream, flush=True)

    def advance(self, amount: float) -> None:
        """Move the bar."""
        self.done += amount

    def close(self) -> None:
        """Take the bar away."""


class _RichProgress(Progress):
    def __init__(self, total: float) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar: Any = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=self.total)
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def phase(self, text: str) -> None:
        self._bar.update(self._task, description=text)
        self._bar.refresh()

    def advance(self, amount: float) -> None:
        super().advance(amount)
        self._bar.update(self._task, completed=self.done)
        # Drawing costs a millisecond: too much for each of a thousand small steps.
        if self.done - self._drawn >= self.total / 200:
            self._drawn = self.done
            self._bar.refresh()

    def close(self) -> None:
        self._bar.stop()


def progress(total: float, *, quiet: bool = False) -> Progress:
    """Return the best progress display that stderr can show.

    Parameters
    ----------
    total : float
        What all steps add up to.
    quiet : bool
        Show nothing.

    Returns
    -------
    Progress
        A bar on a terminal where rich is installed, else lines.
    """
    if quiet:
        return Progress(total)
    if sys.stderr.isatty():
        try:
            return _RichProgress(total)
        except ImportError:
            pass
    return Progress(total, sys.stderr)
