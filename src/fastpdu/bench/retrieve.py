"""C-MOVE and C-GET of a series in one process: requestor, archive and receiver.

For C-MOVE the archive opens an association to a storage SCP, which is in this process as well. See
`benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from fastpdu.bench import pair, verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.runners import Floor, Runner, measure
from fastpdu.bench.series import Instance, Series, ct_series, first
from fastpdu.transport import road_counters

SUMMARY = "1000 CT through C-MOVE and C-GET in one process, beside the raw-socket floor"
DESCRIPTION = """\
Moves a series of CT images with C-MOVE (the Query/Retrieve SCP, the C-MOVE SCU and the storage SCP in
one process) and with C-GET. The handlers of the fastpdu rows yield paths, or data sets read with
dcmread; stock pynetdicom takes data sets only. Beside them: the raw-socket floor of `fastpdu bench`.
Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench retrieve
  fastpdu bench retrieve --files DIR --out results
  fastpdu bench retrieve --rows floor,move,get --runs 15
"""

ROWS = ("floor", "move", "get", "move-datasets", "get-datasets", "stock-move", "stock-get")
_LABELS = {
    "move": "fastpdu, C-MOVE by path",
    "get": "fastpdu, C-GET by path",
    "move-datasets": "fastpdu, C-MOVE, Datasets",
    "get-datasets": "fastpdu, C-GET, Datasets",
    "stock-move": "pynetdicom, stock, C-MOVE",
    "stock-get": "pynetdicom, stock, C-GET",
}
#: What a slow row is given unless --full is: images and runs.
REDUCED = {
    "move-datasets": (300, 3),
    "get-datasets": (300, 3),
    "stock-move": (60, 3),
    "stock-get": (60, 3),
}
#: Roughly, in seconds per image, for the progress bar.
_EXPECTED = {
    "floor": 0.0002,
    "move": 0.0005,
    "get": 0.0005,
    "move-datasets": 0.003,
    "get-datasets": 0.003,
    "stock-move": 0.03,
    "stock-get": 0.03,
}
_VERIFYING = 0.002
_MAKING = 0.003

_MOVE = (str(StudyRootQueryRetrieveInformationModelMove), str(ExplicitVRLittleEndian))
_GET = (str(StudyRootQueryRetrieveInformationModelGet), str(ExplicitVRLittleEndian))


class Retrieve(Runner):
    """C-MOVE or C-GET over one transport."""

    def __init__(self, name: str, series: Series, runs: int, pdu: int) -> None:
        super().__init__(name, series, runs, pdu)
        self.label = _LABELS[name]
        self._transport = "stock" if name.startswith("stock") else "fastpdu"
        self._by_path = name in ("move", "get")
        self._moves = "move" in name
        self._expected: list[verify.Sample] = []

    def _items(self, instances: Sequence[Instance]) -> Iterator[tuple[int, Any]]:
        """Yield what the archive's handler does after the number of sub-operations."""
        for instance in instances:
            yield 0xFF00, instance.path if self._by_path else dcmread(instance.path)

    def _run(self, handler: pair.Handler) -> float:
        before = road_counters()
        with pair.transport(self._transport):
            elapsed = self._move(handler) if self._moves else self._get(handler)
        after = road_counters()
        if self._transport == "fastpdu" and any(
            after[name] != before[name] for name in ("stock_sent", "stock_received")
        ):
            raise BenchError(f"{self.label}: not all messages took the fast road")
        return elapsed

    def _move(self, handler: pair.Handler) -> float:
        contexts, instances = self.series.contexts, self.series.instances

        def archive(_: Any) -> Iterator[Any]:
            yield "127.0.0.1", store_port
            yield len(instances)
            yield from self._items(instances)

        with (
            pair.scp(handler, contexts, pdu=self.pdu) as store_port,
            pair.scp(
                None,
                [_MOVE],
                pdu=self.pdu,
                handlers=[(evt.EVT_C_MOVE, archive)],
                destination=contexts,
            ) as port,
        ):
            return self._operate(port, [_MOVE], None)

    def _get(self, handler: pair.Handler) -> float:
        contexts, instances = [*self.series.contexts, _GET], self.series.instances

        def archive(_: Any) -> Iterator[Any]:
            yield len(instances)
            yield from self._items(instances)

        with pair.scp(
            None, contexts, pdu=self.pdu, handlers=[(evt.EVT_C_GET, archive)], roles=True
        ) as port:
            return self._operate(port, contexts, handler)

    def _operate(self, port: int, contexts: pair.Contexts, handler: pair.Handler | None) -> float:
        """Run the operation over an association of its own; return the seconds it took."""
        fast = self._transport == "fastpdu"
        association = pair.associate(port, contexts, pdu=self.pdu, fast=fast, handler=handler)
        try:
            elapsed, last = pair.retrieve(association, moves=self._moves)
        except BaseException:
            association.abort()
            raise
        association.release()
        done = last.get("NumberOfCompletedSuboperations")
        if last.get("Status") != 0x0000 or done != len(self.series):
            raise BenchError(f"{self.label}: {done} of {len(self.series)} images were stored")
        return elapsed

    def verify(self) -> str:
        handler = verify.Verifier(self.series.instances)
        self._run(handler)
        text = handler.finish()
        self._expected = handler.samples
        return text

    def measure(self) -> float:
        handler = verify.Touch()
        elapsed = self._run(handler)
        handler.check(self._expected)
        return elapsed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="move these files instead of a made series"
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="images (default: 1000; with --files: all there are)",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        default=list(ROWS),
        metavar="NAMES",
        help=f"what to measure, separated by commas (default: {','.join(ROWS)})",
    )
    parser.add_argument(
        "--pdu",
        type=int,
        default=pair.DEFAULT_PDU,
        metavar="BYTES",
        help="maximum PDU length that all ends announce; 0: unlimited (default: %(default)s)",
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
    if args.count is not None and args.count > 65535:
        raise BenchError(
            f"--count {args.count}: an operation has at most 65535 sub-operations (PS3.4 C.4.2)"
        )


def _runners(args: argparse.Namespace, series: Series) -> list[Runner]:
    runners: list[Runner] = []
    for name in args.rows:
        part, runs = series, args.runs
        if not args.full and name in REDUCED:
            images, most = REDUCED[name]
            part, runs = first(series, images), min(runs, most)
        kind = Floor if name == "floor" else Retrieve
        runners.append(kind(name, part, runs, args.pdu))
    return runners


def _estimate(args: argparse.Namespace) -> float:
    count = args.count or 1000
    total = count * _MAKING
    for name in args.rows:
        images, runs = count, args.runs
        if not args.full and name in REDUCED:
            images, runs = min(count, REDUCED[name][0]), min(runs, REDUCED[name][1])
        total += images * (_EXPECTED[name] * (runs + 1) + _VERIFYING)
    return total


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("retrieve", "")
    with (
        progress(_estimate(args), quiet=args.quiet) as bar,
        contextlib.ExitStack() as stack,
    ):
        bar.phase("reading the series" if args.files else "making the series")
        series = stack.enter_context(
            ct_series(args.files, args.count, on_image=lambda: bar.advance(_MAKING))
        )
        rows = measure(
            _runners(args, series),
            args.runs,
            bar,
            verifying=lambda runner: len(runner.series) * (_EXPECTED[runner.name] + _VERIFYING),
            running=lambda runner: len(runner.series) * _EXPECTED[runner.name],
        )
    _fill(report, args, series, rows)
    return report


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    kind = "made CT series" if series.made else "own files"
    report.title = (
        f"{len(series)} images ({kind}, {size / 1000:.0f} KB each) retrieved in one process, "
        f"maximum PDU {args.pdu or 'unlimited'}: seconds per 1000 images"
    )
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB through C-MOVE and C-GET, one process"
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
    medians = {row.name: (row.median or 0.0) * 1000 / row.items for row in rows}
    base = medians.get("floor")
    report.columns = ["", "s / 1000", "fastest", "MB/s", "x floor", "stock / this", "runs", ""]
    for row in rows:
        median = medians[row.name]
        stock = medians.get("stock-move" if "move" in row.name else "stock-get")
        if row.name == "floor":
            stock = None
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
        ratio = f"  ({median / base:.3g} x floor)" if base and row.name != "floor" else ""
        report.bars.append((row.label, median, f"{median:.3g} s{ratio}"))
    report.axis = "seconds per 1000 images, median, logarithmic: less is better"
    report.log = True
    report.goals = [
        Goal(
            f"fastpdu {service} by path / raw-socket floor",
            medians[name] / base if base and name in medians else None,
            2.5,
            unit=" x",
        )
        for name, service in (("move", "C-MOVE"), ("get", "C-GET"))
    ]
    report.notes[:0] = [
        "All bytes arrived intact: every row moved its images once, untimed, and compared SHA-256 "
        "digests;\nthe timed runs compared the length and one byte of every page.",
        *dict.fromkeys(f"{row.label.partition(' ')[0]}: {row.note}." for row in rows if row.note),
    ]
    if series.skipped:
        report.notes.append(f"{series.skipped} files in {series.directory} are not DICOM: skipped")
