"""Small messages: C-ECHO round trips, and C-STOREs of 2 KB objects.

Nothing of the time goes into moving bytes here: this is what one DIMSE message costs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time

from fastpdu.bench import pair, verify
from fastpdu.bench.errors import LostResponse
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.series import Series, first, small_series

SUMMARY = "C-ECHO round trips and 2 KB C-STOREs, beside stock pynetdicom"
DESCRIPTION = """\
Measures what one small message costs, both ends in one process: C-ECHO round trips, and C-STOREs of
CT images of 2 KB with assoc.send_c_store(path). Stock pynetdicom is measured in the same run, with
fewer messages unless --full is given.
"""
EXAMPLES = """\
examples:
  fastpdu bench small
  fastpdu bench small --echoes 20000 --runs 9 --out results
"""

ROWS = ("fastpdu", "stock")
_EXPECTED = {"fastpdu": 0.00015, "stock": 0.006}
# Seconds to wait for a C-ECHO response, and how many runs of stock's may have lost one
_PATIENCE, _TRIES = 15.0, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--echoes",
        type=positive,
        default=5000,
        metavar="N",
        help="C-ECHO round trips (default: %(default)s)",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=10000,
        metavar="N",
        help="C-STOREs of 2 KB (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=row_names(ROWS), default=list(ROWS), metavar="NAMES", help="what to measure"
    )
    parser.add_argument(
        "--full", action="store_true", help="measure stock pynetdicom with as many messages"
    )


def _echo_run(name: str, count: int, notes: list[str]) -> float:
    """Return the seconds of C-ECHOs over an association of their own.

    pynetdicom's reactor now and then takes the response to a request of its own association for a message to be served,
    and nobody gets it. That run is made again; ours has no such excuse.
    """
    tries = _TRIES if name == "stock" else 1
    while True:
        tries -= 1
        try:
            return _echo_once(name, count)
        except LostResponse:
            if not tries:
                raise
            notes.append("pynetdicom, stock: a C-ECHO response was lost, the run was made again")


def _echo_once(name: str, count: int) -> float:
    with pair.transport(name), pair.scp(None) as port:
        association = pair.associate(port, fast=name == "fastpdu", dimse_timeout=_PATIENCE)
        # The first round trips pay for what is imported and built once.
        pair.echo(association, 10)
        elapsed = pair.echo(association, count)
        association.release()
        return elapsed


def _store_run(name: str, series: Series, handler: pair.Handler) -> float:
    contexts = series.contexts
    with pair.transport(name), pair.scp(handler, contexts) as port:
        association = pair.associate(port, contexts, fast=name == "fastpdu")
        elapsed = pair.send(association, series.instances)
        association.release()
        return elapsed


def run(args: argparse.Namespace) -> Report:
    """Measure both questions and return the result."""
    report = Report("small", "")
    echoes = dict.fromkeys(args.rows, args.echoes)
    stores = dict.fromkeys(args.rows, args.count)
    if not args.full and "stock" in args.rows:
        echoes["stock"] = min(args.echoes, 200)
        stores["stock"] = min(args.count, 100)
    labels = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
    echo_rows = {
        name: Row(f"echo-{name}", f"{labels[name]}: C-ECHO", "s", echoes[name])
        for name in args.rows
    }
    store_rows = {
        name: Row(f"store-{name}", f"{labels[name]}: C-STORE of 2 KB", "s", stores[name])
        for name in args.rows
    }
    total = sum(
        _EXPECTED[name] * (echoes[name] * args.runs + stores[name] * (args.runs + 1))
        for name in args.rows
    )
    with progress(total, quiet=args.quiet) as bar, contextlib.ExitStack() as stack:
        bar.phase("making the objects")
        series = stack.enter_context(small_series(args.count))
        expected = {}
        for name in args.rows:
            bar.phase(f"{labels[name]}: comparing digests")
            part = first(series, stores[name])
            verifier = verify.Verifier(part.instances)
            _store_run(name, part, verifier)
            store_rows[name].verified = verifier.finish()
            echo_rows[name].verified = "the status of every response"
            expected[name] = verifier.samples
            bar.advance(_EXPECTED[name] * stores[name])
        for number in range(args.runs):
            for name in args.rows:
                bar.phase(f"{labels[name]}: run {number + 1} of {args.runs}")
                gc.collect()
                cpu = time.process_time()
                echo_rows[name].samples.append(_echo_run(name, echoes[name], report.notes))
                echo_rows[name].details.setdefault("cpu_samples", []).append(
                    time.process_time() - cpu
                )
                bar.advance(_EXPECTED[name] * echoes[name])
                gc.collect()
                handler = verify.Touch()
                part = first(series, stores[name])
                cpu = time.process_time()
                store_rows[name].samples.append(_store_run(name, part, handler))
                store_rows[name].details.setdefault("cpu_samples", []).append(
                    time.process_time() - cpu
                )
                handler.check(expected[name])
                bar.advance(_EXPECTED[name] * stores[name])
    _fill(report, args, series, echo_rows, store_rows)
    return report


def _fill(
    report: Report,
    args: argparse.Namespace,
    series: Series,
    echo_rows: dict[str, Row],
    store_rows: dict[str, Row],
) -> None:
    size = series.bytes // len(series)
    report.title = f"Small messages (C-ECHO; C-STORE of {size} bytes), one process: µs per message"
    report.parameters = {
        "echoes": args.echoes,
        "stores": args.count,
        "object_bytes": size,
        "runs": args.runs,
        "full": args.full,
    }
    report.columns = ["", "µs", "fastest", "per second", "stock / this", "runs", ""]
    for rows, wanted in ((echo_rows, args.echoes), (store_rows, args.count)):
        cost = {name: (row.median or 0.0) / row.items for name, row in rows.items()}
        for name, row in rows.items():
            row.details["microseconds"] = cost[name] * 1e6
            if row.items < wanted:
                row.note = f"scaled from {row.items} messages"
            faster = ratio(cost.get("stock"), cost[name])
            report.rows.append(row)
            report.table.append(
                [
                    row.label,
                    f"{cost[name] * 1e6:.1f}",
                    f"{min(row.samples) / row.items * 1e6:.1f}",
                    f"{1 / cost[name]:.0f}",
                    "" if faster is None else f"{faster:.1f}",
                    str(len(row.samples)),
                    row.note,
                ]
            )
            text = f"{cost[name] * 1e6:.0f} µs"
            if faster is not None and name != "stock":
                text += f"  ({faster:.0f} x faster)"
            report.bars.append((row.label, cost[name] * 1e6, text))
        report.goals.append(
            Goal(
                "C-ECHO, stock / fastpdu" if rows is echo_rows else "2 KB C-STORE, stock / fastpdu",
                ratio(cost.get("stock"), cost.get("fastpdu")),
                20.0 if rows is echo_rows else 15.0,
                at_least=True,
                unit=" x",
            )
        )
    report.axis = "microseconds per message, median, logarithmic: less is better"
    report.log = True
