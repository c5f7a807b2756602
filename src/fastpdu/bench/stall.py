"""Stalls: what Nagle's algorithm and delayed ACKs make of DICOM between peers as they are.

The matrix of peers is in `fastpdu.bench.cells`, the sweeps over socket options in
`fastpdu.bench.sweep`; docs/stalls.md explains what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastpdu
from fastpdu.bench import cells, floor, pair, sweep, verify, waits
from fastpdu.bench.cells import ENDS, Cell, Tools
from fastpdu.bench.errors import BenchError
from fastpdu.bench.heatmap import HeatMap, Panel
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import Progress, progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.series import Series, ct_series, first

SUMMARY = (
    "Nagle's algorithm and delayed ACKs between DICOM peers: DCMTK, Orthanc, pynetdicom, fastpdu"
)
DESCRIPTION = """\
Moves CT images between pynetdicom (stock, with fastpdu, with fastpdu but without QUICKACK) and the
programs of others as they are installed (storescu, storescp, dcmqrscp and movescu of DCMTK,
Orthanc), and with TCP_NODELAY=1 in their environment: seconds per 1000 images, and how many images
had to wait for more than 30 ms. The parts:

  send      to storescp, Orthanc and dcmqrscp
  receive   from storescu
  move      C-MOVE from dcmqrscp, and from pynetdicom to movescu, the sender and the receiver on one host
  cost      what QUICKACK costs where nobody needs it, both ends in one process
  buffers   SO_SNDBUF x SO_RCVBUF x NODELAY x QUICKACK x PDU length, between our own ends
  segments  smaller maximum segments, as of an Ethernet link

All bytes are compared in every run. Slow cells get fewer images; the table says how many.
"""
EXAMPLES = """\
examples:
  fastpdu bench stall                               all parts: some minutes
  fastpdu bench stall --quick                       a look at each of them
  fastpdu bench stall --parts send,receive          only these
  fastpdu bench stall --rows fastpdu:orthanc,stock:orthanc --runs 5
  TMPDIR=/dev/shm fastpdu bench stall --out results receivers write into memory; JSON and charts
"""

PARTS = (*cells.PARTS, "cost", "buffers", "segments")
ROWS = tuple(
    dict.fromkeys(
        f"{sender}:{receiver}" for pairs in cells.PARTS.values() for sender, receiver in pairs
    )
)
RUNS = 3
#: Cells that a goal about 1000 images is about get as many, whatever they take; movescu takes a second
#: to accept the association, which is much in few images.
AT_LEAST = {
    **dict.fromkeys(("fastpdu:storescp", "fastpdu:storescp-nodelay", "fastpdu:orthanc"), 1000),
    **dict.fromkeys(("storescu:fastpdu", "storescu-nodelay:fastpdu", "dcmqrscp:fastpdu"), 1000),
    **{
        f"{sender}:{receiver}": 200
        for sender, receiver in cells.PARTS["move"]
        if receiver.startswith("movescu")
    },
    **dict.fromkeys(("fastpdu:movescu", "fastpdu:movescu-nodelay"), 1000),
    "dcmqrscp-nodelay:movescu-nodelay": 1000,
}
#: A comparison of 5 % needs more runs than one of factors.
COST_RUNS = 15
#: Roughly, for the progress bar: seconds of a cell's run, of a point, of a cost run.
_CELL, _POINT, _COST = 3.0, 0.2, 0.6


@dataclass(frozen=True)
class _Plan:
    """How much is measured."""

    runs: int = RUNS
    cost_runs: int = COST_RUNS
    # Seconds that a cell's run should take, by what its first images took, and the fewest images
    budget: float = 1.5
    fewest: int = 30
    sizes: Sequence[int | None] = sweep.SIZES
    pdus: Sequence[int] = sweep.PDUS
    segments: Sequence[int | None] = sweep.SEGMENTS
    point_images: int = 40
    point_budget: float = 0.12


_QUICK = _Plan(
    runs=1,
    cost_runs=7,
    budget=0.5,
    fewest=10,
    sizes=(4096, 65536, None),
    pdus=sweep.PDUS[:1],
    segments=(1448, None),
    point_images=10,
    point_budget=0.05,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--parts",
        type=row_names(PARTS),
        metavar="NAMES",
        help=f"what to measure, separated by commas (default: {','.join(PARTS)})",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        metavar="NAMES",
        help="only these cells, as SENDER:RECEIVER (fastpdu-noquickack:storescp-nodelay), "
        "separated by commas; parts without cells are left out",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=1000,
        metavar="N",
        help="images of a fast cell (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one run, few images, small grids: a minute"
    )


def _plan(args: argparse.Namespace) -> _Plan:
    if args.quick:
        return _QUICK
    return _Plan(runs=args.runs, cost_runs=max(args.runs, COST_RUNS))


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if args.rows is None:
        return
    if args.parts is not None and not set(args.parts) <= set(cells.PARTS):
        raise BenchError("--rows is for the parts with cells: " + ", ".join(cells.PARTS))
    parts = args.parts or list(cells.PARTS)
    offered = {name for part in parts for name in _names(part)}
    strange = [name for name in args.rows if name not in offered]
    if strange:
        raise BenchError(f"{', '.join(strange)}: no cell of --parts {','.join(parts)}")
    tools = cells.find_tools()
    for name in args.rows:
        for end in name.split(":"):
            missing = tools.missing(end)
            if missing is not None:
                raise BenchError(
                    f"row {name} needs {missing}, which is not installed",
                    "install it (Debian, Ubuntu: apt install dcmtk orthanc), or leave the row out",
                )


class _Measurement:
    """One run of this benchmark: what it needs, and what it has found."""

    def __init__(
        self, args: argparse.Namespace, plan: _Plan, series: Series, bar: Progress, report: Report
    ) -> None:
        self.plan = plan
        self.series = series
        self.bar = bar
        self.report = report
        self.tools: Tools = cells.find_tools()
        self.count: int = args.count
        self.rows: list[str] | None = args.rows
        self.samples: dict[str, verify.Sample] = {}
        self.floor = Row(
            "floor",
            "raw-socket floor",
            "s",
            len(series),
            verified="length of every file",
            note="no DICOM",
        )

    def measure_floor(self) -> None:
        """Measure the floor in the same run."""
        self.bar.phase("raw-socket floor")
        for _ in range(max(3, self.plan.runs)):
            self.floor.samples.append(floor.measure(self.series.instances))
        self.floor.details["seconds_per_1000"] = self.floor.per_1000

    @property
    def base(self) -> float:
        """Seconds per 1000 images of the floor."""
        return self.floor.per_1000

    def expected(self, series: Series) -> dict[str, verify.Sample]:
        """Return a sample of each data set of a series."""
        for item in series.instances:
            if item.sop_instance not in self.samples:
                self.samples[item.sop_instance] = verify.touch(item.data_set())
        return self.samples

    # ------------------------------------------------------------------------ cells

    def cells(self, part: str) -> dict[str, Row]:
        """Measure a part of the matrix; return its rows by name."""
        found: list[tuple[Cell, Row, Series]] = []
        for sender, receiver in cells.PARTS[part]:
            cell = Cell(part, sender, receiver, self.tools, self.samples)
            if self.rows is not None and cell.name not in self.rows:
                continue
            missing = self.tools.missing(sender) or self.tools.missing(receiver)
            if missing is not None:
                self.report.notes.append(f"{cell.label}: skipped, {missing} is not installed")
                continue
            self.bar.phase(f"{cell.label}: comparing digests")
            trial = first(self.series, self.plan.fewest)
            outcome = cell.run(trial.instances, digest=True)
            taken = outcome.seconds / len(trial)
            fitting = max(len(trial), int(self.plan.budget / taken))
            if self.plan is not _QUICK:
                fitting = max(fitting, AT_LEAST.get(cell.name, 0))
            series = first(self.series, min(self.count, fitting))
            row = Row(
                cell.name,
                cell.label,
                "s",
                len(series),
                verified="SHA-256 of each file received"
                if not ENDS[receiver].ours
                else f"SHA-256 of {len(trial)}; length and a byte of every page of the others",
                details={"part": part, "sender": sender, "receiver": receiver},
            )
            found.append((cell, row, series))
            self.bar.advance(_CELL / 2)
        for number in range(self.plan.runs):
            for cell, row, series in found:
                self.bar.phase(f"{cell.label}: run {number + 1} of {self.plan.runs}")
                gc.collect()
                outcome = cell.run(series.instances, digest=False)
                row.samples.append(outcome.seconds)
                if outcome.durations is not None:
                    details = row.details
                    details.setdefault("waits", []).append(outcome.waits)
                    details.setdefault("longest", []).append(max(outcome.durations, default=0.0))
                self.bar.advance(_CELL)
        rows = {}
        for _, row, _ in found:
            row.details["seconds_per_1000"] = row.per_1000
            row.details["waits_per_1000"] = waits_per_1000(row)
            if row.items < self.count:
                row.details["scaled_from"] = row.items
                row.note = f"scaled from {row.items} images"
            rows[row.name] = row
        return rows

    # ------------------------------------------------------------------------ our own ends

    def cost(self) -> tuple[Row, Row]:
        """Measure the main job with QUICKACK and without, by turns."""
        on = Row("cost-quickack", "fastpdu to fastpdu, one process", "s", len(self.series))
        off = Row(
            "cost-noquickack", "the same without QUICKACK on both ends", "s", len(self.series)
        )
        for number in range(self.plan.cost_runs + 1):
            self.bar.phase(f"the cost of QUICKACK: run {number} of {self.plan.cost_runs}")
            # The first round is not counted: it pays for memory that is touched for the first time.
            turn = ((on, True), (off, False))
            for row, quickack in turn if number % 2 else reversed(turn):
                gc.collect()
                options = fastpdu.TransportOptions(quickack=quickack)
                handler = waits.Receiver(self.series.instances, fast=True)
                contexts = self.series.contexts
                with pair.transport("fastpdu", options), pair.scp(handler, contexts) as port:
                    association = pair.associate(port, contexts, fast=True)
                    seconds = pair.send(association, self.series.instances)
                    association.release()
                handler.check(self.expected(self.series))
                row.verified = "length and a byte of every page"
                if number:
                    row.samples.append(seconds)
                self.bar.advance(_COST)
        for row in (on, off):
            row.details["seconds_per_1000"] = row.per_1000
        return on, off

    def buffers(self) -> tuple[list[Row], HeatMap]:
        """Sweep buffers, NODELAY, QUICKACK and PDU length."""
        plan = self.plan
        series = first(self.series, plan.point_images)
        points = {}
        rows = []
        for nodelay, quickack, pdu in itertools.product((True, False), (True, False), plan.pdus):
            self.bar.phase(f"buffers: NODELAY {nodelay}, QUICKACK {quickack}, PDU {pdu}")
            settings = [
                fastpdu.TransportOptions(
                    nodelay=nodelay, quickack=quickack, send_buffer=send, receive_buffer=receive
                )
                for receive in plan.sizes
                for send in plan.sizes
            ]
            measured: list[sweep.Point] = []
            for number in range(0, len(settings), len(plan.sizes)):
                measured += sweep.between_our_ends(
                    series.instances,
                    settings[number : number + len(plan.sizes)],
                    pdu,
                    self.expected(series),
                    plan.point_budget,
                )
                self.bar.advance(_POINT * len(plan.sizes))
            for point, setting in zip(measured, settings, strict=True):
                send, receive = setting.send_buffer, setting.receive_buffer
                points[nodelay, quickack, pdu, send, receive] = point
                name = sweep.name_of
                rows.append(
                    point.row(
                        f"buffers-{nodelay:d}{quickack:d}-{pdu}-{send}-{receive}",
                        f"SO_SNDBUF {name(send)}, SO_RCVBUF {name(receive)}, PDU {pdu}, "
                        f"NODELAY {'on' if nodelay else 'off'}, "
                        f"QUICKACK {'on' if quickack else 'off'}",
                        part="buffers",
                        send_buffer=send,
                        receive_buffer=receive,
                        pdu=pdu,
                        nodelay=nodelay,
                        quickack=quickack,
                    )
                )
        size = self.series.bytes / len(self.series)
        chart = sweep.buffer_map(
            points,
            plan.sizes,
            plan.pdus,
            size,
            f"Our own ends over loopback, MB/s\n"
            f"(images of {size / 1000:.0f} KB; raw-socket floor {size / 1000 / self.base:.0f} MB/s)",
        )
        return rows, chart

    def segments(self) -> tuple[list[Row], HeatMap | None]:
        """Sweep the maximum segment size."""
        if self.tools.dcmtk is None:
            self.report.notes.append("segments: skipped, DCMTK is not installed")
            return [], None
        plan = self.plan
        series = first(self.series, plan.point_images)
        points = {}
        rows = []
        for scenario, size in itertools.product(sweep.SCENARIOS, plan.segments):
            label = f"segments of {size or 65483}: {sweep.SCENARIOS[scenario]}"
            self.bar.phase(label)
            point = sweep.segment(
                scenario,
                size,
                series.instances,
                self.expected(series),
                self.tools.dcmtk,
                plan.point_budget * 10,
            )
            points[scenario, size] = point
            rows.append(
                point.row(
                    f"segments-{scenario}-{size}",
                    label,
                    part="segments",
                    scenario=scenario,
                    max_segment=size,
                )
            )
            self.bar.advance(_POINT * 4)
        return rows, sweep.segment_map(
            points,
            "Segment size: seconds per 1000 images\n(in brackets: waits over 30 ms per 1000)",
        )


def waits_per_1000(row: Row) -> float | None:
    """Return the waits of a cell per 1000 images, the median of its runs.

    Parameters
    ----------
    row : Row
        A cell's row.

    Returns
    -------
    float or None
        None: neither end was in this process, so nobody has counted.
    """
    counted = row.details.get("waits")
    return statistics.median(counted) * 1000 / row.items if counted else None


def _names(part: str) -> set[str]:
    return {f"{sender}:{receiver}" for sender, receiver in cells.PARTS[part]}


def _estimate(args: argparse.Namespace, plan: _Plan, parts: Sequence[str]) -> float:
    total = 0.0
    for part in parts:
        if part in cells.PARTS:
            names = _names(part)
            wanted = names if args.rows is None else names & set(args.rows)
            total += len(wanted) * _CELL * (plan.runs + 0.5)
        elif part == "cost":
            total += 2 * (plan.cost_runs + 1) * _COST
        elif part == "buffers":
            total += 4 * len(plan.pdus) * len(plan.sizes) ** 2 * _POINT
        else:
            total += len(sweep.SCENARIOS) * len(plan.segments) * 4 * _POINT
    return total + 1


def run(args: argparse.Namespace) -> Report:
    """Measure the parts and return the result."""
    plan = _plan(args)
    parts: list[str] = args.parts or list(PARTS if args.rows is None else cells.PARTS)
    # A run of some parts does not overwrite the files of another part's.
    name = "stall" if args.parts is None else "-".join(["stall", *parts])
    report = Report(name, "")
    with (
        progress(_estimate(args, plan, parts), quiet=args.quiet) as bar,
        contextlib.ExitStack() as stack,
    ):
        bar.phase("making the series")
        series = stack.enter_context(ct_series(None, max(args.count, plan.fewest)))
        measurement = _Measurement(args, plan, series, bar, report)
        measurement.measure_floor()
        found: dict[str, dict[str, Row]] = {}
        shown: list[Row] = [measurement.floor]
        for part in parts:
            if part in cells.PARTS:
                found[part] = measurement.cells(part)
                shown += found[part].values()
                if found[part]:
                    report.charts.append(_matrix(part, found[part], measurement.floor))
            elif part == "cost":
                both = measurement.cost()
                found[part] = {row.name: row for row in both}
                shown += both
            elif part == "buffers":
                rows, chart = measurement.buffers()
                report.rows += rows
                report.charts.append(chart)
                report.notes.append(_extremes(rows, series))
            else:
                rows, segments = measurement.segments()
                shown += rows
                if segments is not None:
                    report.charts.append(segments)
    report.rows[:0] = shown
    _fill(report, args, plan, parts, series, shown, measurement.base)
    report.goals = _goals(found)
    return report


def _extremes(rows: Sequence[Row], series: Series) -> str:
    """Say where the buffer sizes lead."""
    size = series.bytes / len(series) / 1000

    def told(row: Row) -> str:
        return f"{size / row.details['seconds_per_1000']:.0f} MB/s: {row.label}"

    ordered = sorted(rows, key=lambda row: row.per_1000)
    pick = [f"fastest {told(ordered[0])}", f"slowest {told(ordered[-1])}"]
    pick += [
        f"defaults {told(row)}"
        for row in rows
        if row.details["send_buffer"] is None
        and row.details["receive_buffer"] is None
        and row.details["nodelay"]
        and row.details["quickack"]
        and row.details["pdu"] == sweep.PDUS[0]
    ]
    return "Buffers, " + "\n  ".join(["few images each:", *pick])


def _matrix(part: str, rows: dict[str, Row], base: Row) -> HeatMap:
    """Draw a part of the matrix."""
    senders, receivers = (
        [
            end
            for end in dict.fromkeys(pair[side] for pair in cells.PARTS[part])
            if any(row.details[key] == end for row in rows.values())
        ]
        for side, key in enumerate(("sender", "receiver"))
    )
    if part != "send":
        # The ends in this process are the ones to compare: they stand below each other.
        down, across = receivers, senders
    else:
        down, across = senders, receivers

    def row_at(first: str, second: str) -> Row | None:
        return rows.get(f"{first}:{second}" if part == "send" else f"{second}:{first}")

    def text(row: Row | None) -> str:
        if row is None:
            return ""
        waited = waits_per_1000(row)
        counted = "" if waited is None else f"\n{waited:.0f} waits"
        return f"{row.per_1000:.3g} s{counted}"

    found = [[row_at(a, b) for b in across] for a in down]
    titles = {
        "send": ("sender", "receiver"),
        "receive": ("receiver", "sender"),
        "move": ("C-MOVE's destination", "archive"),
    }
    return HeatMap(
        name=f"stall-{part}",
        title=f"Seconds per 1000 CT, and waits over 30 ms (raw-socket floor {base.per_1000:.2f} s)",
        panels=[
            Panel(
                "",
                [[None if row is None else row.per_1000 for row in line] for line in found],
                [[text(row) for row in line] for line in found],
            )
        ],
        across=1,
        rows=[ENDS[end].label for end in down],
        columns=[ENDS[end].label.replace(", ", ",\n") for end in across],
        row_title=titles[part][0],
        column_title=titles[part][1],
        scale="s / 1000 images, logarithmic",
        cell=(1.5, 0.6),
    )


def _fill(
    report: Report,
    args: argparse.Namespace,
    plan: _Plan,
    parts: Sequence[str],
    series: Series,
    shown: Sequence[Row],
    base: float,
) -> None:
    size = series.bytes / len(series)
    report.title = (
        f"CT images of {size / 1000:.0f} KB over loopback: seconds per 1000 images, "
        "and images that waited for more than 30 ms"
    )
    report.parameters = {
        "images": len(series),
        "bytes": series.bytes,
        "parts": list(parts),
        "quick": args.quick,
        "runs": plan.runs,
        "cost_runs": plan.cost_runs,
        "wait_seconds": waits.LIMIT,
        "kernel": {name: _sysctl(name) for name in _SYSCTLS},
    }
    report.columns = ["", "s / 1000", "x floor", "waits / 1000", "longest, ms", "runs", ""]
    for row in shown:
        value = row.per_1000
        counted = row.details.get("waits_per_1000")
        if counted is None and isinstance(row.details.get("waits"), int):
            counted = row.details["waits"] * 1000 / row.items
        longest = row.details.get("longest")
        report.table.append(
            [
                row.label,
                f"{value:.3f}",
                f"{value / base:.1f}",
                "-" if counted is None else f"{counted:.0f}",
                f"{max(longest) * 1000:.1f}" if longest else "-",
                str(len(row.samples)),
                row.note or (f"scaled from {row.items} images" if row.items < args.count else ""),
            ]
        )
    report.notes[:0] = [
        "All bytes arrived intact, in every run. Programs of others: their start and the opening of "
        "the association\nare in the time of storescu and movescu; they and the archives write files.",
        "Waits: of more than 30 ms, as the end in this process saw them; -: neither is in this process.",
    ]


_SYSCTLS = ("net/core/rmem_max", "net/core/wmem_max", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem")


def _sysctl(name: str) -> str | None:
    """Return a setting of the kernel that bounds or tunes the buffers."""
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _goals(found: dict[str, dict[str, Row]]) -> list[Goal]:
    """Return what the project promises, for the parts that were measured."""

    def ratio(part: str, first: str, second: str) -> float | None:
        rows = found[part]
        if first not in rows or second not in rows:
            return None
        return rows[first].per_1000 / rows[second].per_1000

    def waited(part: str, name: str) -> float | None:
        row = found[part].get(name)
        return None if row is None else waits_per_1000(row)

    goals: list[Goal] = []
    if "send" in found:
        for peer in ("storescp", "orthanc"):
            label = ENDS[peer].label
            ours, known = f"fastpdu:{peer}", f"fastpdu:{peer}-nodelay"
            stock = f"stock:{peer}"
            goals += [
                Goal(f"fastpdu to {label}, waits per 1000", waited("send", ours), 0),
                Goal(
                    f"stock pynetdicom / fastpdu, to {label}",
                    ratio("send", stock, ours),
                    30.0,
                    at_least=True,
                    unit=" x",
                ),
                Goal(
                    f"fastpdu to {label} / to {label} with TCP_NODELAY=1",
                    ratio("send", ours, known),
                    1.5,
                    unit=" x",
                ),
            ]
    if "receive" in found:
        goals.append(
            Goal(
                "storescu to fastpdu / storescu with TCP_NODELAY=1 to fastpdu",
                ratio("receive", "storescu:fastpdu", "storescu-nodelay:fastpdu"),
                1.5,
                unit=" x",
            )
        )
    if "move" in found:
        goals += [
            Goal(
                f"{sender} C-MOVE to {receiver}, waits per 1000",
                waited("move", f"{sender}:{receiver}"),
                0,
            )
            for sender, receiver in (("dcmqrscp", "fastpdu"), ("fastpdu", "movescu"))
        ]
    if "cost" in found:
        goals.append(
            Goal(
                "one process, with QUICKACK / without",
                ratio("cost", "cost-quickack", "cost-noquickack"),
                1.05,
                unit=" x",
            )
        )
    return goals
