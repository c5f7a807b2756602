"""The main job: a series of CT images over one association, both ends in one process.

Every row moves the same files, and each run measures every row once, so that whatever else the
machine does hits all of them. See `benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastpdu.bench import pair
from fastpdu.bench.comparison import Comparison, dcmtk_row, require_dcmtk, tabulate
from fastpdu.bench.errors import BenchError
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.runners import Floor, Runner, Store
from fastpdu.bench.series import Series

SUMMARY = "1000 CT over one association in one process, beside the raw-socket floor (the default)"
DESCRIPTION = """\
Sends a series of CT images file by file with assoc.send_c_store(path) over one association to a
storage SCP in the same process, and compares it with: the raw-socket floor (the same files through
a bare socket, no DICOM), stock pynetdicom, and DCMTK's storescu and storescp where installed, as
they are and with TCP_NODELAY=1 on both sides. Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench                                     a made series of 1000 images, five runs
  fastpdu bench --files DIR                         your own files, as many as there are
  fastpdu bench --rows floor,fastpdu --runs 15      only these two, more runs
  fastpdu bench --out results                       JSON and a chart as well
  fastpdu bench --full                              measure the slow rows with all images, too
"""

_COMPARISON = Comparison(
    expected={
        "floor": 0.0002,
        "fastpdu": 0.0003,
        "stock": 0.012,
        "dcmtk": 0.05,
        "dcmtk-nodelay": 0.0015,
    },
    # More would tell nothing new
    reduced={"stock": (100, 5), "dcmtk": (50, 1), "dcmtk-nodelay": (1000, 3)},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    _COMPARISON.add_arguments(parser)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="make the series in DIR and leave it there"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    _COMPARISON.check_arguments(args)
    if args.files is not None and args.keep is not None:
        raise BenchError("--keep is for a made series", "leave out --files or --keep")
    require_dcmtk(args)


def _runners(args: argparse.Namespace, series: Series, notes: list[str]) -> list[Runner]:
    runners: list[Runner] = []
    for name in _COMPARISON.names(args):
        part, runs = _COMPARISON.part(args, series, name)
        if name == "floor":
            runners.append(Floor(name, part, runs, args.pdu))
        elif name in pair.TRANSPORTS:
            runners.append(Store(name, part, runs, args.pdu))
        else:
            runners += dcmtk_row(name, part, runs, args.pdu, notes)
    return runners


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("ct1000", "")
    series, rows = _COMPARISON.run(
        args, lambda series: _runners(args, series, report.notes), keep=args.keep
    )
    _fill(report, args, series, rows)
    return report


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    kind = "made CT series" if series.made else "own files"
    report.title = (
        f"{len(series)} images ({kind}, {size / 1000:.0f} KB each), one association, "
        f"maximum PDU {args.pdu or 'unlimited'}: seconds per 1000 images"
    )
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB over one association, "
        "sender and receiver on one machine"
    )
    medians = tabulate(report, args, series, rows, base="floor", column="x floor", until=" ")
    base, stock, ours = (medians.get(name) for name in ("floor", "stock", "fastpdu"))
    report.goals = [
        Goal("fastpdu / raw-socket floor", ratio(ours, base), 2.0, unit=" x"),
        Goal(
            "stock pynetdicom / fastpdu",
            ratio(stock, ours),
            30.0,
            at_least=True,
            unit=" x",
        ),
    ]
