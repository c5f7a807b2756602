"""A long link: a series of CT images with and without the asynchronous operations window, beside raw sockets.

Both ends are in this process, the link between them (`fastpdu.bench.delay`) is one of its own. See
`benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from fastpdu.bench import delay, floor, pair
from fastpdu.bench.comparison import Comparison
from fastpdu.bench.curves import Curve, Curves
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.runners import Floor, HandlerRunner, Runner, measure, send
from fastpdu.bench.series import Series, ct_series, first

SUMMARY = "1000 CT over a link of 0 to 100 ms, with and without a window, beside raw sockets"
DESCRIPTION = """\
Sends a series of CT images over one association through a process that delays what it passes on and has
a stated bandwidth: with assoc.send_c_store_many and a window of several operations, with
assoc.send_c_store one after the other, and with stock pynetdicom. The floor is a pair of raw sockets that
streams the same files through the same link. Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench wan
  fastpdu bench wan --round-trips 50 --full         1000 images in every row
  fastpdu bench wan --window 8 --rate 100
"""
RUNS = 3

ROUND_TRIPS = (0, 5, 20, 50, 100)
#: The round trip that the goals are about, ms.
GOAL = 50
#: A row of one operation at a time is given as many images as fit into so many seconds, unless --full is given.
BUDGET = 1.5
LEAST = 20

#: What an image costs beside the link, roughly, in seconds.
_COMPARISON = Comparison(
    expected={"floor": 0.0, "window": 0.0, "single": 0.001, "stock": 0.025}, reduced={}
)
_STREAMED = ("floor", "window")


def _round_trips(text: str) -> list[int]:
    values = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is not a whole number of milliseconds")
        values.append(int(part))
    return sorted(set(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    _COMPARISON.add_arguments(parser)
    parser.add_argument(
        "--round-trips",
        type=_round_trips,
        default=list(ROUND_TRIPS),
        metavar="MS[,MS...]",
        help=f"of the link (default: {','.join(map(str, ROUND_TRIPS))})",
    )
    parser.add_argument(
        "--rate",
        type=positive,
        default=1000,
        metavar="MBIT",
        help="bandwidth of the link in each direction, Mbit/s (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=positive,
        default=32,
        metavar="N",
        help="operations in flight (default: %(default)s)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    _COMPARISON.check_arguments(args)
    if not 2 <= args.window <= 65535:
        raise BenchError(f"--window {args.window}: a window is 2 to 65535 operations")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to send over one link.

    Attributes
    ----------
    kind : {"floor", "window", "single", "stock"}
        The way.
    round_trip : int
        Milliseconds.
    rate : float
        Bytes per second.
    window : int
        The operations in flight; the floor has no limit.
    """

    kind: str
    round_trip: int
    rate: float
    window: int

    @property
    def name(self) -> str:
        """For programs."""
        return f"{self.kind}-{self.round_trip}"

    @property
    def what(self) -> str:
        """The way, for people."""
        return {
            "floor": "raw sockets, streaming",
            "window": f"fastpdu, window {self.window}",
            "single": "fastpdu, one at a time",
            "stock": "pynetdicom, stock",
        }[self.kind]

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.what}, {self.round_trip} ms"

    def limit(self, images: int, size: float) -> float:
        """Return the seconds that the bandwidth and the delay allow.

        Parameters
        ----------
        images : int
            How many are sent.
        size : float
            Bytes of one.
        """
        transfer, trip = size / self.rate, self.round_trip / 1000
        streamed = images * transfer + trip
        if self.kind == "floor":
            return streamed
        return max(streamed, images * (transfer + trip) / self.window)

    def images(self, count: int, size: float) -> int:
        """Return how many images it is given if it is not to take long."""
        if self.kind in _STREAMED:
            return count
        each = self.limit(count, size) / count + _COMPARISON.expected[self.kind]
        return min(count, max(LEAST, int(BUDGET / each)))


class _Way:
    """The way from one end to the other through the link.

    Parameters
    ----------
    link : Link
        The process that delays.
    cell : Cell
        Says how much.
    """

    def __init__(self, link: delay.Link, cell: Cell) -> None:
        self._link = link
        self._cell = cell
        #: The bandwidth is left out where nothing is timed.
        self.is_timed = False

    def __call__(self, port: int) -> int:
        """Return where to connect to, for the port of the receiver."""
        rate = self._cell.rate if self.is_timed else 0
        return self._link.to(port, round_trip=self._cell.round_trip / 1000, rate=rate)


class Streamed(Floor):
    """Raw sockets."""

    note = "no DICOM; read, sendall, recv_into, one reply of 100 bytes after the last image"

    def __init__(self, cell: Cell, series: Series, runs: int, link: delay.Link) -> None:
        super().__init__(cell.name, series, runs, 0)
        self.label = cell.label
        self._way = _Way(link, cell)

    def _digests(self) -> Sequence[bytes]:
        self._way.is_timed = False
        return floor.digests_received(self.series.instances, lead=self._way)

    def measure(self) -> float:
        self._way.is_timed = True
        return floor.stream(self.series.instances, self._way)


class Stored(HandlerRunner):
    """One association."""

    def __init__(self, cell: Cell, series: Series, runs: int, pdu: int, link: delay.Link) -> None:
        super().__init__(cell.name, series, runs, pdu)
        self.label = cell.label
        self._cell = cell
        self._way = _Way(link, cell)

    def verify(self) -> str:
        self._way.is_timed = False
        return super().verify()

    def measure(self) -> float:
        self._way.is_timed = True
        return super().measure()

    def _run(self, handler: pair.Handler) -> float:
        transport = "stock" if self._cell.kind == "stock" else "fastpdu"
        return send(
            transport, handler, self.series, self.pdu, window=self._cell.window, lead=self._way
        )


def _cells(args: argparse.Namespace) -> list[Cell]:
    return [
        Cell(kind, trip, args.rate * 1e6 / 8, args.window if kind == "window" else 1)
        for trip in args.round_trips
        for kind in _COMPARISON.names(args)
    ]


def _runner(args: argparse.Namespace, cell: Cell, series: Series, link: delay.Link) -> Runner:
    count = len(series)
    images = count if args.full else cell.images(count, series.bytes / count)
    part = first(series, images)
    if cell.kind == "floor":
        return Streamed(cell, part, args.runs, link)
    return Stored(cell, part, args.runs, args.pdu, link)


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("wan", "")
    cells = {cell.name: cell for cell in _cells(args)}
    with ct_series(args.files, args.count) as series, delay.link() as link:
        runners = [_runner(args, cell, series, link) for cell in cells.values()]
        alone = max(_link_alone(link, series) for _ in range(3))
        times = {
            runner.name: cells[runner.name].limit(len(runner.series), series.bytes / len(series))
            for runner in runners
        }
        with progress(sum(times.values()) * (args.runs + 1), quiet=args.quiet) as bar:
            rows = measure(
                runners,
                args.runs,
                bar,
                verifying=lambda row: times[row.name],
                running=lambda row: times[row.name],
            )
    _fill(report, args, series, cells, rows, alone)
    return report


def _link_alone(link: delay.Link, series: Series) -> float:
    """Return the bytes per second that the link's process can pass on."""
    part = first(series, 200)
    way = _Way(link, Cell("floor", 0, 0.0, 1))
    return part.bytes / floor.stream(part.instances, way)


def _fill(
    report: Report,
    args: argparse.Namespace,
    series: Series,
    cells: dict[str, Cell],
    rows: list[Row],
    alone: float,
) -> None:
    size = series.bytes / len(series)
    report.rows = rows
    report.title = (
        f"{len(series)} images of {size / 1000:.0f} KB over one association and a link of {args.rate} Mbit/s, "
        f"by its round trip, maximum PDU {args.pdu or 'unlimited'}"
    )
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB over a link of {args.rate} Mbit/s, "
        "by its round trip"
    )
    report.parameters = {
        "images": len(series),
        "bytes": series.bytes,
        "made": series.made,
        "runs": args.runs,
        "pdu": args.pdu,
        "full": args.full,
        "rate_mbit": args.rate,
        "round_trips_ms": args.round_trips,
        "window": args.window,
        "link_alone_bytes_per_second": alone,
    }
    report.columns = ["", "s / 1000", "MB/s", "x limit", "x raw", "one / this", "runs", ""]
    medians = {row.name: row.per_1000 for row in rows}
    for row in rows:
        cell, median = cells[row.name], medians[row.name]
        limit = cell.limit(row.items, size) * 1000 / row.items
        row.details.update(
            round_trip_ms=cell.round_trip,
            window=None if cell.kind == "floor" else cell.window,
            seconds_per_1000=median,
            limit_per_1000=limit,
        )
        scaled = ""
        if row.items < len(series):
            scaled = f"scaled from {row.items} images"
            row.details["scaled_from"] = row.items
        raw = medians.get(f"floor-{cell.round_trip}")
        single = medians.get(f"single-{cell.round_trip}")
        report.table.append(
            [
                row.label,
                f"{median:.2f}",
                f"{size / 1000 / median:.1f}",
                f"{median / limit:.2f}",
                f"{median / raw:.2f}" if raw else "",
                f"{single / median:.1f}" if single else "",
                str(len(row.samples)),
                scaled,
            ]
        )
    report.charts = [_chart(report.headline, cells, medians)]
    report.goals = _goals(medians)
    report.notes = [
        "All bytes arrived intact: every row sent its images once, untimed, and compared SHA-256 digests;\n"
        "the timed runs compared the length and one byte of every page.",
        "x limit: against what bandwidth, round trip and window allow, computed; x raw: against the raw sockets, "
        "measured\nover the same link.",
        f"The process that delays can pass on {alone / 1e6:.0f} MB/s, {8 * alone / args.rate / 1e6:.1f} times the "
        "bandwidth of the link.",
    ]
    if series.skipped:
        report.notes.append(f"{series.skipped} files in {series.directory} are not DICOM: skipped")


def _chart(title: str, cells: dict[str, Cell], medians: dict[str, float]) -> Curves:
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, median in medians.items():
        curves.setdefault(cells[name].kind, []).append((cells[name].round_trip, median))
    labels = {cell.kind: cell.what for cell in cells.values()}
    return Curves(
        "wan",
        title,
        # The raw sockets last: above the others
        [
            Curve(labels[kind], curves[kind], dashed=kind == "floor")
            for kind in sorted(curves, key=["window", "single", "stock", "floor"].index)
        ],
        x_title="round trip, ms",
        y_title="s / 1000 images, median, logarithmic",
    )


def _goals(medians: dict[str, float]) -> list[Goal]:
    raw, many, single = (medians.get(f"{kind}-{GOAL}") for kind in ("floor", "window", "single"))
    return [
        Goal(
            f"{GOAL} ms: fastpdu with the window / raw sockets",
            ratio(many, raw),
            1.3,
            unit=" x",
        ),
        Goal(
            f"{GOAL} ms: one at a time / fastpdu with the window",
            ratio(single, many),
            8.0,
            at_least=True,
            unit=" x",
        ),
    ]
