"""C-MOVE and C-GET of a series in one process: requestor, archive and receiver.

For C-MOVE the archive opens an association to a storage SCP, which is in this process as well. See
`benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from fastpdu.bench import pair
from fastpdu.bench.comparison import Comparison, tabulate
from fastpdu.bench.errors import BenchError
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.runners import Floor, HandlerRunner, Runner
from fastpdu.bench.series import Instance, Series
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

_LABELS = {
    "move": "fastpdu, C-MOVE by path",
    "get": "fastpdu, C-GET by path",
    "move-datasets": "fastpdu, C-MOVE, Datasets",
    "get-datasets": "fastpdu, C-GET, Datasets",
    "stock-move": "pynetdicom, stock, C-MOVE",
    "stock-get": "pynetdicom, stock, C-GET",
}
_COMPARISON = Comparison(
    expected={
        "floor": 0.0002,
        "move": 0.0005,
        "get": 0.0005,
        "move-datasets": 0.003,
        "get-datasets": 0.003,
        "stock-move": 0.03,
        "stock-get": 0.03,
    },
    reduced={
        "move-datasets": (300, 3),
        "get-datasets": (300, 3),
        "stock-move": (60, 3),
        "stock-get": (60, 3),
    },
)
ROWS = tuple(_COMPARISON.expected)

_MOVE = (str(StudyRootQueryRetrieveInformationModelMove), str(ExplicitVRLittleEndian))
_GET = (str(StudyRootQueryRetrieveInformationModelGet), str(ExplicitVRLittleEndian))


class Retrieve(HandlerRunner):
    """C-MOVE or C-GET over one transport."""

    def __init__(self, name: str, series: Series, runs: int, pdu: int) -> None:
        super().__init__(name, series, runs, pdu)
        self.label = _LABELS[name]
        self._transport = "stock" if name.startswith("stock") else "fastpdu"
        self._by_path = name in ("move", "get")
        self._moves = "move" in name

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    _COMPARISON.add_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    _COMPARISON.check_arguments(args)
    if args.count is not None and args.count > 65535:
        raise BenchError(
            f"--count {args.count}: an operation has at most 65535 sub-operations (PS3.4 C.4.2)"
        )


def _runners(args: argparse.Namespace, series: Series) -> list[Runner]:
    runners: list[Runner] = []
    for name in _COMPARISON.names(args):
        part, runs = _COMPARISON.part(args, series, name)
        kind = Floor if name == "floor" else Retrieve
        runners.append(kind(name, part, runs, args.pdu))
    return runners


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("retrieve", "")
    series, rows = _COMPARISON.run(args, lambda series: _runners(args, series))
    _fill(report, args, series, rows)
    return report


def _stock_row(name: str) -> str | None:
    if name == "floor":
        return None
    return "stock-move" if "move" in name else "stock-get"


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
    medians = tabulate(
        report,
        args,
        series,
        rows,
        base="floor",
        column="x floor",
        stock=_stock_row,
        verb="moved",
        until=" ",
    )
    base = medians.get("floor")
    report.goals = [
        Goal(
            f"fastpdu {service} by path / raw-socket floor",
            ratio(medians.get(name), base),
            2.5,
            unit=" x",
        )
        for name, service in (("move", "C-MOVE"), ("get", "C-GET"))
    ]
