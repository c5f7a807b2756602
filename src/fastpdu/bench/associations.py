"""Many associations at once, against one: does the throughput hold, and what do they cost?

The SCP is one process, the senders are threads of another, as in a router or an archive.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastpdu.bench import pair
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.receivers import KINDS, Receiver, Shares, open_receiver, title_of
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.series import Series, ct_series
from fastpdu.bench.watch import Figures, watch
from fastpdu.latency import Latencies

SUMMARY = "1 to 200 associations at once to one SCP process, against a single association"
DESCRIPTION = """\
Sends CT images over many associations at once, one thread each, to one SCP in another process, and
over a single association; tells throughput, latencies of single images, CPU time, memory and threads of
the receiver. What every association has delivered is counted and compared, with SHA-256 in a pass that
is not timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench associations
  fastpdu bench associations --associations 100 --each 100 --to recv
  fastpdu bench associations --associations 16 --each 100 --runs 3
  fastpdu bench associations --rows fastpdu,stock --associations 10 --each 2
"""

ROWS = ("fastpdu", "stock")
RUNS = 3
COUNTS = (1, 8, 32, 64, 100, 200)
#: The single association sends no more than this: more would tell nothing new.
SINGLE = 3200
LABELS = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
#: Up to how many the throughput is to hold: data sets of more do not fit into the caches of most machines.
MANY = {"memory": 64, "files": 100, "recv": 100}
#: What the receiver may have beside one thread for each association.
SPARE_THREADS = 4
#: MB of the receiver for each association.
MEMORY_EACH = 2.0


def _counts(text: str) -> list[int]:
    return sorted({positive(part) for part in text.split(",")})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--associations",
        type=_counts,
        default=list(COUNTS),
        metavar="N[,N...]",
        help=f"how many at once (default: {','.join(map(str, COUNTS))}); one is always measured",
    )
    parser.add_argument(
        "--each",
        type=positive,
        default=50,
        metavar="N",
        help="images per association (default: %(default)s)",
    )
    parser.add_argument(
        "--to",
        choices=KINDS,
        default="memory",
        help="what the receiver does with them: looks at them, stores them with FileStore, or is 'fastpdu recv' "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        default=["fastpdu"],
        metavar="NAMES",
        help="what to measure, stock too if named (default: fastpdu)",
    )


@dataclass
class Sent:
    """What a run of the senders took.

    Attributes
    ----------
    seconds : float
        From the start of the first to the end of the last. The associations are open before, and are released after
        that.
    latencies : list of float
        Seconds of each request, from `send_c_store` to its return.
    cpu : float
        Seconds of CPU time of the senders' process.
    """

    seconds: float
    latencies: list[float]
    cpu: float


def send_all(name: str, port: int, contexts: pair.Contexts, shares: Shares) -> Sent:
    """Send each share over an association of its own, all at once."""
    failures: list[BaseException] = []
    latencies: list[list[float]] = [[] for _ in shares]
    barrier = threading.Barrier(len(shares) + 1)

    with pair.transport(name):
        associations: list[Any] = []
        try:
            for number in range(len(shares)):
                associations.append(
                    pair.associate(port, contexts, title=title_of(number), fast=name == "fastpdu")
                )

            def work(number: int) -> None:
                send = associations[number].send_c_store
                note = latencies[number].append
                clock = time.perf_counter
                barrier.wait()
                try:
                    for instance in shares[number]:
                        began = clock()
                        status = send(instance.path)
                        note(clock() - began)
                        if not status or status.Status != 0x0000:
                            raise BenchError(f"{instance.path} was not stored")
                except BaseException as error:
                    failures.append(error)

            threads = [
                threading.Thread(target=work, args=(number,), daemon=True)
                for number in range(len(shares))
            ]
            for thread in threads:
                thread.start()
            cpu = time.process_time()
            barrier.wait()
            start = time.perf_counter()
            for thread in threads:
                thread.join()
            elapsed = time.perf_counter() - start
            cpu = time.process_time() - cpu
            if failures:
                raise failures[0]
            for association in associations:
                association.release()
            return Sent(elapsed, [value for each in latencies for value in each], cpu)
        finally:
            for association in associations:
                if association.is_established:
                    association.abort()


def shares_of(series: Series, count: int, each: int) -> Shares:
    """Return what each association sends, going round the series where it is too short."""
    length = len(series)
    return [
        [series.instances[(number * each + offset) % length] for offset in range(each)]
        for number in range(count)
    ]


class _Point:
    """A number of associations: what it is given, and what came of it."""

    def __init__(self, name: str, count: int, shares: Shares) -> None:
        self.count = count
        self.shares = shares
        self.images = sum(map(len, shares))
        self.row = Row(f"{name}-{count}", f"{LABELS[name]} x {count}", "s", self.images)
        self.latencies: list[float] = []
        self.sender_cpu = 0.0
        self.figures: list[Figures] = []

    def measure(self, name: str, receiver: Receiver, contexts: pair.Contexts) -> None:
        receiver.begin(exact=False)
        gc.collect()
        with watch(receiver.pid) as figures:
            sent = send_all(name, receiver.port, contexts, self.shares)
        receiver.check(self.shares)
        self.row.samples.append(sent.seconds)
        self.latencies += sent.latencies
        self.sender_cpu += sent.cpu
        self.figures.append(figures)

    def rate(self) -> float:
        """Images per second, median."""
        return self.images / (self.row.median or float("inf"))

    def worst(self, attribute: str) -> float | None:
        """Return the largest of some figure of the runs; None where the system does not tell it."""
        values = [getattr(figures, attribute) for figures in self.figures]
        return None if None in values or not values else max(values)

    def receiver_cpu(self) -> float | None:
        """Milliseconds of CPU time of the receiver for an image."""
        values = [figures.cpu for figures in self.figures]
        if not values or None in values:
            return None
        return 1000 * sum(value for value in values if value is not None) / self._sent()

    def _sent(self) -> int:
        return self.images * len(self.row.samples)

    def describe(self, megabytes: float, single: float) -> None:
        """Put the figures into the row."""
        memory, threads = self.worst("memory_growth"), self.worst("more_threads")
        self.row.details.update(
            associations=self.count,
            images_per_second=self.rate(),
            mb_per_second=self.rate() * megabytes,
            of_single=self.rate() / single,
            latency=Latencies.of(self.latencies).as_dict(),
            sender_cpu_ms_per_image=1000 * self.sender_cpu / self._sent(),
            receiver_cpu_ms_per_image=self.receiver_cpu(),
            receiver_idle_memory=self.worst("idle_memory"),
            receiver_memory_growth=memory,
            receiver_more_threads=threads,
        )


def run(args: argparse.Namespace) -> Report:
    """Measure every row and return the result."""
    report = Report("associations" if args.to == "memory" else f"associations-{args.to}", "")
    counts = sorted({1, *args.associations})
    most = counts[-1] * args.each
    points: dict[str, list[_Point]] = {}
    steps = 1 + len(args.rows) * (1 + args.runs * len(counts))
    with (
        progress(steps, quiet=args.quiet) as bar,
        ct_series(None, min(1000, most)) as series,
    ):
        bar.advance(1)
        for name in args.rows:
            points[name] = [
                _Point(
                    name,
                    count,
                    shares_of(series, count, args.each if count > 1 else min(SINGLE, most)),
                )
                for count in counts
            ]
            with open_receiver(args.to, name, series.contexts, counts[-1] + 10) as receiver:
                bar.phase(f"{LABELS[name]}: comparing digests")
                receiver.begin(exact=True)
                send_all(name, receiver.port, series.contexts, points[name][-1].shares)
                receiver.check(points[name][-1].shares)
                bar.advance(1)
                for number in range(args.runs):
                    for point in points[name]:
                        bar.phase(f"{point.row.label}: run {number + 1} of {args.runs}")
                        point.measure(name, receiver, series.contexts)
                        bar.advance(1)
        megabytes = series.bytes / len(series) / 1e6
    _fill(report, args, points, megabytes)
    return report


def _text(value: float | None, pattern: str = "{:.0f}") -> str:
    return "" if value is None else pattern.format(value)


def _fill(
    report: Report, args: argparse.Namespace, points: dict[str, list[_Point]], megabytes: float
) -> None:
    into = {"memory": "looked at", "files": "stored by FileStore", "recv": "stored by fastpdu recv"}
    report.title = (
        f"CT images of {1000 * megabytes:.0f} KB to one SCP in another process, {into[args.to]}: "
        f"{args.each} over each of many associations, or all over one"
    )
    report.parameters = {
        "associations": args.associations,
        "each": args.each,
        "to": args.to,
        "runs": args.runs,
    }
    report.columns = [
        *("", "images", "images/s", "MB/s", "x single"),
        *("p50 ms", "p90 ms", "p99 ms", "max ms", "CPU ms", "at SCP", "MB more", "threads", "runs"),
    ]
    mib = 2**20
    for own in points.values():
        single = own[0].rate()
        for point in own:
            point.describe(megabytes, single)
            row = point.row
            row.verified = f"{point.images} images, each association's own" + (
                ", SHA-256 in an untimed pass" if point is own[-1] else ""
            )
            times = Latencies.of(point.latencies)
            memory = point.worst("memory_growth")
            threads = point.worst("more_threads")
            report.rows.append(row)
            report.table.append(
                [
                    row.label,
                    str(point.images),
                    f"{point.rate():.0f}",
                    f"{point.rate() * megabytes:.0f}",
                    f"{point.rate() / single:.2f}",
                    *(
                        f"{1000 * value:.1f}"
                        for value in (times.median, times.p90, times.p99, times.maximum)
                    ),
                    f"{row.details['sender_cpu_ms_per_image']:.2f}",
                    _text(point.receiver_cpu(), "{:.2f}"),
                    _text(None if memory is None else memory / mib),
                    _text(threads),
                    str(len(row.samples)),
                ]
            )
            speed = point.rate() * megabytes
            report.bars.append(
                (row.label, speed, f"{speed:.0f} MB/s, p99 {1000 * times.p99:.1f} ms")
            )
    report.goals = _goals(points.get("fastpdu", []), MANY[args.to])
    report.notes = [
        "Every image arrived, in every run: they were counted, and their lengths compared; SHA-256 in an untimed pass.",
        "CPU: milliseconds of an image, in the senders' process and at the SCP. MB more, threads: the SCP's, at most, "
        "beyond what it had before.",
    ]
    report.axis = "MB/s, median: more is better"


def _goals(points: Sequence[_Point], many: int) -> list[Goal]:
    goals: list[Goal] = []
    if not points:
        return goals
    single = points[0].rate()
    for point in points[1:]:
        if point.count <= many:
            goals.append(
                Goal(
                    f"throughput of {point.count} associations / of one",
                    point.rate() / single,
                    0.8,
                    at_least=True,
                    unit=" x",
                )
            )
    last = points[-1]
    memory = last.worst("memory_growth")
    goals += [
        Goal(
            f"threads of the receiver of {last.count} associations",
            last.worst("more_threads"),
            last.count + SPARE_THREADS,
        ),
        Goal(
            f"memory of the receiver for each of {last.count} associations",
            None if memory is None else memory / 2**20 / last.count,
            MEMORY_EACH,
            unit=" MB",
        ),
    ]
    return goals
