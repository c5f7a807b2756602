"""Many associations at once, against one: does the throughput hold?

The SCP is one process, the senders are threads of another, as in a router or an archive.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastpdu.bench import child, pair, verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.series import Instance, Series, ct_series

SUMMARY = "64 associations at once to one SCP process, against a single association"
DESCRIPTION = """\
Sends CT images over many associations at once, one thread each, to one SCP in another process, and
the same number of images over a single association. What every association has delivered is counted
and compared, with SHA-256 in a pass that is not timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench associations
  fastpdu bench associations --associations 16 --each 100 --runs 3
  fastpdu bench associations --rows fastpdu,stock --each 2
"""

ROWS = ("fastpdu", "stock")
RUNS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--associations",
        type=positive,
        default=64,
        metavar="N",
        help="how many at once (default: %(default)s)",
    )
    parser.add_argument(
        "--each",
        type=positive,
        default=50,
        metavar="N",
        help="images per association (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        default=["fastpdu"],
        metavar="NAMES",
        help="what to measure, stock too if named (default: fastpdu)",
    )


def receiver(
    give: Callable[[object], None],
    take: Callable[[], Any],
    name: str,
    contexts: pair.Contexts,
    maximum: int,
) -> None:
    """Be the SCP: runs in a child process.

    Gives its port. Then takes "touch" or "digest" (what to keep of the next images), or "report"
    (gives what it kept of each association, in order), until it is told to "stop".
    """
    lock = threading.Lock()
    kept: dict[str, list[object]] = {}
    keep: Callable[[bytes], object] = verify.touch

    def handler(event: Any) -> int:
        value = keep(verify.received_bytes(event))
        title = str(event.assoc.requestor.ae_title).strip()
        with lock:
            kept.setdefault(title, []).append(value)
        return 0x0000

    with pair.transport(name), pair.scp(handler, contexts, maximum=maximum) as port:
        give(port)
        while (order := take()) != "stop":
            if order == "report":
                give(kept)
            else:
                kept = {}
                keep = verify.touch if order == "touch" else digest
                give(None)


def digest(data: bytes) -> bytes:
    """Return the SHA-256 of a data set."""
    return hashlib.sha256(data).digest()


def title_of(number: int) -> str:
    """Return the calling AE title of a sender."""
    return f"SENDER{number:04d}"


def send_all(
    name: str, port: int, contexts: pair.Contexts, shares: Sequence[Sequence[Instance]]
) -> float:
    """Send each share over an association of its own, all at once.

    Returns
    -------
    float
        The seconds from the start of the first to the end of the last. The associations are open
        before and are released after that.
    """
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(shares) + 1)

    with pair.transport(name):
        associations = []
        try:
            for number in range(len(shares)):
                associations.append(
                    pair.associate(port, contexts, title=title_of(number), fast=name == "fastpdu")
                )

            def work(number: int) -> None:
                barrier.wait()
                try:
                    pair.send(associations[number], shares[number])
                except BaseException as error:
                    failures.append(error)

            threads = [
                threading.Thread(target=work, args=(number,), daemon=True)
                for number in range(len(shares))
            ]
            for thread in threads:
                thread.start()
            barrier.wait()
            start = time.perf_counter()
            for thread in threads:
                thread.join()
            elapsed = time.perf_counter() - start
            if failures:
                raise failures[0]
            for association in associations:
                association.release()
            return elapsed
        finally:
            for association in associations:
                if association.is_established:
                    association.abort()


def _check(got: dict[str, list[object]], wanted: Sequence[Sequence[object]]) -> None:
    for number, expected in enumerate(wanted):
        arrived = got.get(title_of(number), [])
        if len(arrived) != len(expected):
            raise BenchError(
                f"{len(arrived)} of {len(expected)} images of association {number + 1} arrived"
            )
        if arrived != list(expected):
            raise BenchError(f"an image of association {number + 1} arrived changed")
    if len(got) > len(wanted):
        raise BenchError("images arrived from nowhere")


def _shares(series: Series, count: int, each: int) -> list[list[Instance]]:
    """Return what each association sends, going round the series where it is too short."""
    length = len(series)
    return [
        [series.instances[(number * each + offset) % length] for offset in range(each)]
        for number in range(count)
    ]


def run(args: argparse.Namespace) -> Report:
    """Measure every row and return the result."""
    report = Report("associations", "")
    total = args.associations * args.each
    labels = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
    many, single = "many", "single"
    rows = {
        (name, kind): Row(
            f"{name}-{kind}",
            f"{labels[name]}, {args.associations if kind == many else 1} "
            f"association{'s' if kind == many else ''}",
            "s",
            total,
        )
        for name in args.rows
        for kind in (single, many)
    }
    with (
        progress(1 + len(args.rows) * (1 + 2 * args.runs), quiet=args.quiet) as bar,
        ct_series(None, min(1000, total)) as series,
    ):
        bar.advance(1)
        shares = {
            many: _shares(series, args.associations, args.each),
            single: _shares(series, 1, total),
        }
        data = {instance.path: instance.data_set for instance in series.instances}
        touches = {path: verify.touch(read()) for path, read in data.items()}
        digests = {path: digest(read()) for path, read in data.items()}
        for name in args.rows:
            with child.child(receiver, name, series.contexts, args.associations + 10) as scp:
                port = scp.receive()
                bar.phase(f"{labels[name]}: comparing digests")
                scp.ask("digest")
                send_all(name, port, series.contexts, shares[many])
                _check(scp.ask("report"), [[digests[i.path] for i in s] for s in shares[many]])
                bar.advance(1)
                for number in range(args.runs):
                    for kind in (single, many):
                        row = rows[name, kind]
                        bar.phase(f"{row.label}: run {number + 1} of {args.runs}")
                        scp.ask("touch")
                        row.samples.append(send_all(name, port, series.contexts, shares[kind]))
                        _check(
                            scp.ask("report"), [[touches[i.path] for i in s] for s in shares[kind]]
                        )
                        bar.advance(1)
                scp.send("stop")
    megabytes = total * series.bytes / len(series) / 1e6
    report.title = f"{total} CT images to one SCP in another process: over one association or many"
    report.parameters = {
        "associations": args.associations,
        "each": args.each,
        "images": total,
        "runs": args.runs,
    }
    report.columns = ["", "seconds", "images/s", "MB/s", "x single", "runs", "verified"]
    for (name, kind), row in rows.items():
        median = row.median or 0.0
        alone = rows[name, single].median or 0.0
        row.verified = f"{total} images, each association's in order" + (
            ", SHA-256 in an untimed pass" if kind == many else ""
        )
        row.details.update(images_per_second=total / median, mb_per_second=megabytes / median)
        report.rows.append(row)
        report.table.append(
            [
                row.label,
                f"{median:.2f}",
                f"{total / median:.0f}",
                f"{megabytes / median:.0f}",
                f"{alone / median:.2f}",
                str(len(row.samples)),
                row.verified,
            ]
        )
        report.bars.append((row.label, megabytes / median, f"{megabytes / median:.0f} MB/s"))
    if "fastpdu" in args.rows:
        alone, together = (rows["fastpdu", kind].median or 0.0 for kind in (single, many))
        report.goals = [
            Goal(
                f"throughput of {args.associations} associations / of one",
                alone / together,
                0.8,
                at_least=True,
                unit=" x",
            )
        ]
    report.axis = "MB/s, median: more is better"
    return report
