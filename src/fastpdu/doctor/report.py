"""Says what was measured and what it means: a table and plain sentences, or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from fastpdu.doctor.figures import Trial
from fastpdu.doctor.judge import (
    LEAST_STALLS,
    Verdict,
    break_down,
    counterpart,
    exit_status,
    own_part,
)

SCHEMA = 1
_WIDTH = 110
_COLUMNS = (
    "request",
    "QUICKACK",
    "PDU",
    "count",
    "median",
    "p90",
    "max",
    "stalls",
    "window",
    "send buffer",
    "network",
    "this side",
    "peer",
)
HEALTHY = (
    "Healthy: nothing stands out. Neither stalls, nor buffers, nor the network, nor the peer "
    "take time to speak of."
)


def as_dict(trials: Sequence[Trial], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the result for JSON.

    Parameters
    ----------
    trials : sequence of Trial
        What was measured.
    verdicts : sequence of Verdict
        What it means.
    """
    status = exit_status(trials, verdicts)
    return {
        "exit_status": status,
        "healthy": status == 0,
        "verdicts": [verdict.as_dict() for verdict in verdicts],
        "trials": [
            {
                **trial.as_dict(),
                "breakdown": break_down(trial, counterpart(trials, trial)).as_dict(),
            }
            for trial in trials
        ],
    }


def show(trials: Sequence[Trial], verdicts: Sequence[Verdict], title: str, stream: TextIO) -> None:
    """Print the table and the verdicts.

    Parameters
    ----------
    trials : sequence of Trial
        What was measured.
    verdicts : sequence of Verdict
        What it means.
    title : str
        Above the table.
    stream : file
        Where to print.
    """
    rows = [_row(trials, trial) for trial in trials]
    title += "; times in ms, from 'stalls' on shares of the time"
    try:
        _show_rich(rows, title, stream)
    except ImportError:
        _show_plain(rows, title, stream)
    own = own_part(trials)
    if own is not None:
        _wrapped(
            f"This side itself takes {_figure(own[1])} ms per C-{own[0].operation.upper()}, reading files and making "
            "requests: look at the CPU and the disk of this host.",
            "",
            stream,
        )
    elif exit_status(trials, verdicts) == 0:
        _wrapped(HEALTHY, "", stream)
    for number, verdict in enumerate(verdicts, 1):
        _show_verdict(number, verdict, stream)
    failed = sum(trial.failures for trial in trials)
    if failed:
        total = failed + sum(trial.count for trial in trials)
        print(
            f"\n{failed} of {total} responses had a failure status: see the peer's log. Their times are left out.",
            file=stream,
        )
    if any(trial.quickack is not None and trial.count < LEAST_STALLS for trial in trials):
        print(
            f"\nLess than {LEAST_STALLS} requests per trial cannot show stalls: ask for more (--echo, --store).",
            file=stream,
        )
    if not any(trial.operation == "store" for trial in trials):
        print(
            "\nC-ECHO alone does not show windows, buffers and disks: --store N does (the peer stores the images).",
            file=stream,
        )
    if all(trial.window_seconds is None for trial in trials):
        print("\nThis platform does not tell about windows and send buffers.", file=stream)


def _row(trials: Sequence[Trial], trial: Trial) -> list[str]:
    parts = break_down(trial, counterpart(trials, trial))
    summary = trial.summary
    shares = (
        parts.stalls,
        parts.window,
        parts.send_buffer,
        parts.round_trips + parts.transfer,
        parts.here,
        parts.peer,
    )
    return [
        f"C-{trial.operation.upper()}",
        {True: "on", False: "off", None: "-"}[trial.quickack],
        str(trial.largest_pdu) if trial.operation == "store" else "-",
        str(trial.count),
        *map(_figure, (summary.median, summary.p90, summary.maximum)),
        *(f"{value / parts.total:.0%}" if parts.total else "-" for value in shares),
    ]


def _figure(seconds: float) -> str:
    """Return milliseconds for people."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.9995 else f"{1e3 * seconds:.0f}"


def _show_rich(rows: Sequence[Sequence[str]], title: str, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # (an AE title may look like markup)
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if index > 1 else "left")
    for row in rows:
        table.add_row(*row)
    # Something that reads from a pipe gets whole lines
    Console(file=stream, width=None if stream.isatty() else 140).print(table)


def _show_plain(rows: Sequence[Sequence[str]], title: str, stream: TextIO) -> None:
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    print(title, file=stream)
    for row in (_COLUMNS, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells), file=stream)
    print(file=stream)


def _show_verdict(number: int, verdict: Verdict, stream: TextIO) -> None:
    where = {
        True: "of the time as fastpdu sends",
        False: "of the time without QUICKACK",
        None: "of the time",
    }[verdict.quickack]
    if number > 1:
        print(file=stream)
    print(
        f"{number}. {verdict.cause.value.upper()}: {verdict.share:.0%} {where}, "
        f"{_figure(verdict.seconds_per_request)} ms per C-{verdict.operation.upper()}",
        file=stream,
    )
    _wrapped(verdict.text, "   ", stream)
    for line in verdict.evidence:
        _wrapped(line, "   - ", stream)
    for whose, lines in (("this side", verdict.here), ("the peer", verdict.there)):
        for line in lines:
            _wrapped(line, f"   remedy, {whose}: ", stream)


def _wrapped(text: str, first: str, stream: TextIO) -> None:
    indent = " " * (len(first) if len(first) < 8 else 6)
    print(textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=indent), file=stream)
