"""What idle associations cost: CPU time and threads."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from typing import Any

from fastpdu.bench import child, pair
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row

SUMMARY = "CPU time and threads of 100 idle associations, beside stock pynetdicom"
DESCRIPTION = """\
Opens associations whose two ends are in one process, leaves them alone, and measures the CPU time
that the process takes and its threads. After that every association has to answer a C-ECHO. Each
row has a process of its own.
"""
EXAMPLES = """\
examples:
  fastpdu bench idle
  fastpdu bench idle --associations 500 --rows fastpdu
"""

ROWS = ("fastpdu", "stock")
RUNS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--associations",
        type=positive,
        default=100,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="how long they are left alone (default: %(default)g)",
    )
    parser.add_argument(
        "--rows", type=row_names(ROWS), default=list(ROWS), metavar="NAMES", help="what to measure"
    )


def _threads() -> int:
    """Return the threads of this process, those that are not Python's included."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def idle(name: str, count: int, seconds: float) -> dict[str, Any]:
    """Measure one row in this process.

    Parameters
    ----------
    name : str
        The transport.
    count : int
        Number of associations.
    seconds : float
        How long they are idle.

    Returns
    -------
    dict
        "cpu" (seconds), "wall" (seconds), "threads" (those of the association ends).
    """
    with pair.transport(name):
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(pair.scp(None, maximum=count + 10))
            # The listening thread belongs to the server, not to an association.
            before = _threads()
            associations = []
            for _ in range(count):
                association = pair.associate(port, fast=name == "fastpdu")
                stack.callback(association.abort)
                associations.append(association)
            # Let the handshakes come to their end.
            time.sleep(1.0)
            threads = _threads() - before
            start, cpu = time.perf_counter(), time.process_time()
            time.sleep(seconds)
            used, wall = time.process_time() - cpu, time.perf_counter() - start
            threads = max(threads, _threads() - before)
            alive = 0
            for association in associations:
                status = association.send_c_echo()
                alive += bool(status) and status.Status == 0x0000
            if alive != count:
                raise BenchError(f"{alive} of {count} associations answered after being idle")
    return {"cpu": used, "wall": wall, "threads": threads}


def run(args: argparse.Namespace) -> Report:
    """Measure every row and return the result."""
    report = Report("idle", "")
    labels = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
    ends = 2 * args.associations
    rows = {name: Row(name, labels[name], "% of one CPU", args.associations) for name in args.rows}
    threads: dict[str, int] = {}
    with progress(args.runs * len(args.rows), quiet=args.quiet) as bar:
        for number in range(args.runs):
            for name in args.rows:
                bar.phase(f"{labels[name]}: run {number + 1} of {args.runs}")
                got = child.call(
                    idle, name, args.associations, args.seconds, patience=600 + args.seconds
                )
                rows[name].samples.append(100.0 * got["cpu"] / got["wall"])
                threads[name] = max(threads.get(name, 0), got["threads"])
                bar.advance(1)
    report.title = (
        f"{args.associations} idle associations, both ends in one process, {args.seconds:g} s"
    )
    report.parameters = {
        "associations": args.associations,
        "seconds": args.seconds,
        "runs": args.runs,
    }
    report.columns = ["", "% of one CPU", "threads", "threads / end", "runs", ""]
    for name, row in rows.items():
        median = row.median or 0.0
        row.verified = "every association answered a C-ECHO afterwards"
        row.details.update(threads=threads[name], threads_per_end=threads[name] / ends)
        report.rows.append(row)
        report.table.append(
            [
                row.label,
                f"{median:.2f}",
                str(threads[name]),
                f"{threads[name] / ends:.2f}",
                str(len(row.samples)),
                row.verified,
            ]
        )
        # A logarithmic axis has no zero.
        report.bars.append((row.label, max(median, 0.001), f"{median:.2f} %"))
    ours = rows.get("fastpdu")
    report.goals = [
        Goal("CPU of idle associations", ours.median if ours else None, 1.0, unit=" %"),
        Goal("threads per association end", threads["fastpdu"] / ends if ours else None, 1.0),
    ]
    report.axis = "per cent of one CPU, logarithmic: less is better"
    report.log = True
    return report
