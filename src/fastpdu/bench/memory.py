"""The memory of a receiver while a series streams through it.

The receiving process is a new one, its handler keeps nothing. What it holds after ten images is
what it needs; more than a little above that would be memory that grows with the series.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpdu.bench import child, pair, verify, watch
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.series import Series, ct_series

SUMMARY = "peak memory of a receiver while 1000 CT stream through it"
DESCRIPTION = """\
Sends a CT series to an SCP in another process whose handler looks at each image and keeps nothing,
and measures the resident memory of that process: after ten images, and its peak until the end.
"""
EXAMPLES = """\
examples:
  fastpdu bench memory
  fastpdu bench memory --count 5000 --rows fastpdu
"""

ROWS = ("fastpdu", "stock")
RUNS = 1
FIRST = 10
#: Stock pynetdicom needs ten seconds for a thousand images, and shows its level long before.
STOCK_COUNT = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--count", type=positive, default=1000, metavar="N", help="images (default: %(default)s)"
    )
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="send these files instead of a made series"
    )
    parser.add_argument(
        "--rows", type=row_names(ROWS), default=list(ROWS), metavar="NAMES", help="what to measure"
    )
    parser.add_argument(
        "--full", action="store_true", help="send all images to stock pynetdicom, too"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if args.count <= FIRST:
        raise BenchError(f"--count {args.count}: the level is taken after {FIRST} images")


def resident() -> int:
    """Return the resident memory of this process in bytes.

    Where the system does not say it, the highest value so far stands in for it.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _highest()


def _highest() -> int:
    try:
        import resource
    except ImportError:
        raise BenchError("this system does not tell how much memory a process uses") from None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Make the peak of this process its present level, where the system can (Linux)."""
    watch.forget_peak(os.getpid())


def peak() -> int:
    """Return the highest resident memory of this process since `reset_peak`."""
    found = watch.peak_memory(os.getpid())
    return _highest() if found is None else found


def receiver(
    give: Callable[[object], None], take: Callable[[], Any], name: str, contexts: pair.Contexts
) -> None:
    """Be the SCP: runs in a child process. Gives its port, then, when told, its figures."""
    lock = threading.Lock()
    figures = {"images": 0, "bytes": 0, "level": 0, "start": resident()}

    def handler(event: Any) -> int:
        length, _ = verify.touch(verify.received_bytes(event))
        with lock:
            figures["images"] += 1
            figures["bytes"] += length
            if figures["images"] == FIRST:
                figures["level"] = resident()
                # From now on the kernel remembers the highest value, between the images as well.
                reset_peak()
        return 0x0000

    with pair.transport(name), pair.scp(handler, contexts) as port:
        give(port)
        take()
        give({**figures, "peak": peak()})
        take()


def measure(name: str, series: Series) -> dict[str, int]:
    """Send a series to a new process and return its figures, in bytes."""
    with child.child(receiver, name, series.contexts) as scp:
        port = scp.receive()
        with pair.transport(name):
            association = pair.associate(port, series.contexts, fast=name == "fastpdu")
            pair.send(association, series.instances)
            association.release()
        figures: dict[str, int] = scp.ask("report")
        scp.send("stop")
    wanted = sum(instance.size - instance.offset for instance in series.instances)
    if figures["images"] != len(series):
        raise BenchError(f"{figures['images']} of {len(series)} images arrived")
    # The other transport may encode a user's files in another way, fastpdu sends them as they are.
    if name == "fastpdu" and figures["bytes"] != wanted:
        raise BenchError(f"{figures['bytes']} of {wanted} bytes arrived")
    return figures


def run(args: argparse.Namespace) -> Report:
    """Measure every row and return the result."""
    from fastpdu.bench.series import first

    report = Report("memory", "")
    labels = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
    rows: list[Row] = []
    with progress(1 + args.runs * len(args.rows), quiet=args.quiet) as bar:
        bar.phase("reading the series" if args.files else "making the series")
        with ct_series(args.files, args.count) as series:
            bar.advance(1)
            for name in args.rows:
                part = series
                if name == "stock" and not args.full:
                    part = first(series, STOCK_COUNT)
                row = Row(name, labels[name], "bytes above the level", len(part))
                results = []
                for number in range(args.runs):
                    bar.phase(f"{labels[name]}: run {number + 1} of {args.runs}")
                    figures = measure(name, part)
                    results.append(figures)
                    row.samples.append(figures["peak"] - figures["level"])
                    bar.advance(1)
                row.details["runs"] = results
                row.verified = f"{len(part)} images counted"
                if len(part) < len(series):
                    row.note = f"{len(part)} images"
                rows.append(row)
    report.rows = rows
    report.title = f"Resident memory of the receiver while {len(series)} images stream through it"
    report.parameters = {"images": len(series), "bytes": series.bytes, "runs": args.runs}
    report.columns = ["", "at start MB", f"after {FIRST} MB", "peak MB", "growth MB", "runs", ""]
    mib = 1024 * 1024
    for row in rows:
        # The run that the median is from, or the one next to it.
        ordered = sorted(
            row.details["runs"], key=lambda figures: figures["peak"] - figures["level"]
        )
        shown = ordered[len(ordered) // 2]
        growth = (shown["peak"] - shown["level"]) / mib
        report.table.append(
            [
                row.label,
                f"{shown['start'] / mib:.1f}",
                f"{shown['level'] / mib:.1f}",
                f"{shown['peak'] / mib:.1f}",
                f"{growth:.1f}",
                str(len(row.samples)),
                row.note,
            ]
        )
        report.bars.append(
            (row.label, max(growth, 0.01), f"{growth:.1f} MB above {shown['level'] / mib:.0f} MB")
        )
    worst = next((max(row.samples) / mib for row in rows if row.name == "fastpdu"), None)
    report.goals = [Goal("growth after the first ten images", worst, 16.0, unit=" MB")]
    report.axis = "MB above the level after ten images: less is better"
    return report
