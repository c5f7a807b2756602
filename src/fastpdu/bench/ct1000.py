"""The main job: a series of CT images over one association, both ends in one process.

Every row moves the same files, and each run measures every row once, so that whatever else the
machine does hits all of them. See `benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from fastpdu.bench import pair, peers
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.runners import Dcmtk, Floor, Runner, Store, measure
from fastpdu.bench.series import Series, ct_series, first

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

ROWS = ("floor", "fastpdu", "stock", "dcmtk", "dcmtk-nodelay")
#: What a slow row is given unless --full is: images and runs. More would tell nothing new.
REDUCED = {"stock": (100, 5), "dcmtk": (50, 1), "dcmtk-nodelay": (1000, 3)}
#: Roughly, in seconds per image, for the progress bar.
_EXPECTED = {
    "floor": 0.0002,
    "fastpdu": 0.0003,
    "stock": 0.012,
    "dcmtk": 0.05,
    "dcmtk-nodelay": 0.0015,
}
_VERIFYING = 0.002
_MAKING = 0.003


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="send these files instead of a made series"
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="images (default: 1000; with --files: all there are)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="make the series in DIR and leave it there"
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        metavar="NAMES",
        help=f"what to measure, separated by commas (default: {','.join(ROWS)})",
    )
    parser.add_argument(
        "--pdu",
        type=int,
        default=pair.DEFAULT_PDU,
        metavar="BYTES",
        help="maximum PDU length that both sides announce; 0: unlimited (default: %(default)s)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="measure slow rows with all images and runs, too (several minutes)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if args.pdu < 0 or 0 < args.pdu < 7:
        raise BenchError(
            f"--pdu {args.pdu}: a PDU has at least 7 bytes", "give 0 (unlimited), or 7 or more"
        )
    if args.files is not None and args.keep is not None:
        raise BenchError("--keep is for a made series", "leave out --files or --keep")
    if args.rows is not None and peers.find_dcmtk() is None:
        for name in args.rows:
            if name.startswith("dcmtk"):
                raise BenchError(
                    f"row {name} needs DCMTK's storescu and storescp, which are not installed",
                    "install DCMTK (Debian, Ubuntu: apt install dcmtk), or leave the row out",
                )


def _runners(args: argparse.Namespace, series: Series, notes: list[str]) -> list[Runner]:
    runners: list[Runner] = []
    tools = peers.find_dcmtk()
    for name in args.rows or ROWS:
        part, runs = series, args.runs
        if not args.full and name in REDUCED:
            images, most = REDUCED[name]
            part, runs = first(series, images), min(runs, most)
        if name == "floor":
            runners.append(Floor(name, part, runs, args.pdu))
        elif name in pair.TRANSPORTS:
            runners.append(Store(name, part, runs, args.pdu))
        elif tools is None:
            notes.append(f"{name}: skipped, DCMTK is not installed (apt install dcmtk)")
        elif not {syntax for _, syntax in series.contexts} <= peers.TRANSFER_SYNTAXES:
            notes.append(f"{name}: skipped, storescu does not propose compressed images by itself")
        else:
            runners.append(Dcmtk(name, part, runs, args.pdu, tools))
    return runners


def _estimate(args: argparse.Namespace) -> float:
    count = args.count or 1000
    total = count * _MAKING
    for name in args.rows or ROWS:
        images, runs = count, args.runs
        if not args.full and name in REDUCED:
            images, runs = min(count, REDUCED[name][0]), min(runs, REDUCED[name][1])
        total += images * (_EXPECTED[name] * (runs + 1) + _VERIFYING)
    return total


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("ct1000", "")
    with (
        progress(_estimate(args), quiet=args.quiet) as bar,
        contextlib.ExitStack() as stack,
    ):
        bar.phase("reading the series" if args.files else "making the series")
        series = stack.enter_context(
            ct_series(args.files, args.count, keep=args.keep, on_image=lambda: bar.advance(_MAKING))
        )
        runners = _runners(args, series, report.notes)
        rows = measure(
            runners,
            args.runs,
            bar,
            verifying=lambda runner: len(runner.series) * (_EXPECTED[runner.name] + _VERIFYING),
            running=lambda runner: len(runner.series) * _EXPECTED[runner.name],
        )
    _fill(report, args, series, rows)
    return report


def _per_1000(row: Row) -> float | None:
    return None if row.median is None else row.median * 1000 / row.items


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    kind = "made CT series" if series.made else "own files"
    report.title = (
        f"{len(series)} images ({kind}, {size / 1000:.0f} KB each), one association, "
        f"maximum PDU {args.pdu or 'unlimited'}: seconds per 1000 images"
    )
    report.rows = rows
    report.parameters = {
        "images": len(series),
        "bytes": series.bytes,
        "made": series.made,
        "runs": args.runs,
        "pdu": args.pdu,
        "full": args.full,
    }
    medians = {row.name: _per_1000(row) for row in rows}
    base, stock = medians.get("floor"), medians.get("stock")
    report.columns = ["", "s / 1000", "fastest", "MB/s", "x floor", "stock / this", "runs", ""]
    for row in rows:
        median = medians[row.name]
        assert median is not None
        scaled = ""
        if row.items < len(series):
            scaled = f"scaled from {row.items} images"
            row.details["scaled_from"] = row.items
        row.details["seconds_per_1000"] = median
        report.table.append(
            [
                row.label,
                f"{median:.3f}",
                f"{min(row.samples) * 1000 / row.items:.3f}",
                f"{size / 1000 / median:.0f}",
                f"{median / base:.2f}" if base else "",
                f"{stock / median:.1f}" if stock else "",
                str(len(row.samples)),
                scaled,
            ]
        )
        times = f"{median:.3g} s"
        ratio = f"  ({median / base:.3g} x floor)" if base and row.name != "floor" else ""
        report.bars.append((row.label, median, times + ratio))
    report.axis = "seconds per 1000 images, median, logarithmic: less is better"
    report.log = True
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB over one association, "
        "sender and receiver on one machine"
    )
    ours = medians.get("fastpdu")
    report.goals = [
        Goal("fastpdu / raw-socket floor", ours / base if ours and base else None, 2.0, unit=" x"),
        Goal(
            "stock pynetdicom / fastpdu",
            stock / ours if ours and stock else None,
            30.0,
            at_least=True,
            unit=" x",
        ),
    ]
    report.notes[:0] = [
        "All bytes arrived intact: every row sent its images once, untimed, and compared SHA-256 "
        "digests;\nthe timed runs compared the length and one byte of every page.",
        *dict.fromkeys(f"{row.label.partition(' ')[0]}: {row.note}." for row in rows if row.note),
    ]
    if series.skipped:
        report.notes.append(f"{series.skipped} files in {series.directory} are not DICOM: skipped")
