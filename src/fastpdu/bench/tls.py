"""The main job over TLS: a series of CT images over one association, both ends in one process.

The floor is what Python's `ssl` module can do at its best with the same files; see `fastpdu.bench.floor`.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import threading
from pathlib import Path

from fastpdu import tls
from fastpdu.bench import floor, pair, peers
from fastpdu.bench.certificates import Certificates, certificates
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.runners import Dcmtk, Floor, Runner, Store, measure
from fastpdu.bench.series import Series, ct_series, first

SUMMARY = "1000 CT over one association with TLS, beside the floor of Python's ssl module"
DESCRIPTION = """\
Sends a series of CT images with assoc.send_c_store(path) over one association with TLS to a storage
SCP in the same process, and compares it with: the floor (the same files through a bare pair of TLS
sockets of the ssl module, with large buffers and no DICOM), fastpdu without TLS, stock pynetdicom,
and DCMTK's storescu and storescp where installed. Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench tls
  fastpdu bench tls --rows floor,fastpdu --runs 15
  fastpdu bench tls --version 1.2 --pdu 0
"""

ROWS = ("floor", "fastpdu", "plain", "stock", "dcmtk", "dcmtk-nodelay")
#: What a slow row is given unless --full is: images and runs.
REDUCED = {"stock": (50, 3), "dcmtk": (30, 1), "dcmtk-nodelay": (300, 2)}
#: Roughly, in seconds per image, for the progress bar.
_EXPECTED = {
    "floor": 0.0006,
    "fastpdu": 0.0008,
    "plain": 0.0003,
    "stock": 0.02,
    "dcmtk": 0.06,
    "dcmtk-nodelay": 0.003,
}
_VERIFYING = 0.003
_MAKING = 0.003
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="send these files instead of a made series"
    )
    parser.add_argument(
        "--count", type=positive, metavar="N", help="images (default: 1000; with --files: all)"
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
        "--version",
        choices=sorted(_VERSIONS),
        default="1.3",
        help="of TLS; DCMTK takes what it knows (default: %(default)s)",
    )
    parser.add_argument(
        "--full", action="store_true", help="measure slow rows with all images and runs, too"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if args.pdu < 0 or 0 < args.pdu < 7:
        raise BenchError(
            f"--pdu {args.pdu}: a PDU has at least 7 bytes", "give 0 (unlimited), or 7 or more"
        )


def _runners(
    args: argparse.Namespace, series: Series, made: Certificates, notes: list[str]
) -> list[Runner]:
    runners: list[Runner] = []
    tools = peers.find_dcmtk()
    for name in args.rows or ROWS:
        part, runs = series, args.runs
        if not args.full and name in REDUCED:
            images, most = REDUCED[name]
            part, runs = first(series, images), min(runs, most)
        if name == "floor":
            runners.append(Floor(name, part, runs, args.pdu, tls=made))
            runners[-1].label = "raw TLS floor"
        elif name == "plain":
            runners.append(Store(name, part, runs, args.pdu, transport="fastpdu"))
            runners[-1].label = "fastpdu, without TLS"
        elif name in pair.TRANSPORTS:
            runners.append(Store(name, part, runs, args.pdu, tls=made))
        elif tools is None or not peers.speaks_tls(tools):
            notes.append(f"{name}: skipped, there is no DCMTK with OpenSSL")
        else:
            runners.append(Dcmtk(name, part, runs, args.pdu, tools, tls=made))
    return runners


def agreed(ends: floor.TlsEnds) -> dict[str, object]:
    """Return what two ends agree on: version, cipher, and whether the kernel does a part of it."""
    server, client = ends
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with server.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as connection,
            client.wrap_socket(connection, server_hostname="localhost") as secured,
        ):
            cipher = secured.cipher()
            kernel = tls.kernel_tls(secured)
            found: dict[str, object] = {
                "openssl": ssl.OPENSSL_VERSION,
                "tls_version": secured.version(),
                "cipher": cipher[0] if cipher else None,
                "ktls_sends": kernel.sends,
                "ktls_receives": kernel.receives,
            }
        thread.join(5)
    return found


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("tls", "")
    count = args.count or 1000
    names = args.rows or ROWS
    total = count * _MAKING + sum(
        min(count, REDUCED.get(name, (count,))[0])
        * (_EXPECTED[name] * (args.runs + 1) + _VERIFYING)
        for name in names
    )
    with progress(total, quiet=args.quiet) as bar, contextlib.ExitStack() as stack:
        made = stack.enter_context(certificates(_VERSIONS[args.version]))
        bar.phase("reading the series" if args.files else "making the series")
        series = stack.enter_context(
            ct_series(args.files, args.count, on_image=lambda: bar.advance(_MAKING))
        )
        report.parameters = {
            "images": len(series),
            "bytes": series.bytes,
            "made": series.made,
            "runs": args.runs,
            "pdu": args.pdu,
            "full": args.full,
            **agreed(made.ends()),
        }
        rows = measure(
            _runners(args, series, made, report.notes),
            args.runs,
            bar,
            verifying=lambda runner: len(runner.series) * (_EXPECTED[runner.name] + _VERIFYING),
            running=lambda runner: len(runner.series) * _EXPECTED[runner.name],
        )
    _fill(report, args, series, rows)
    return report


def _per_1000(row: Row) -> float:
    assert row.median is not None
    return row.median * 1000 / row.items


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    facts = report.parameters
    report.title = (
        f"{len(series)} images of {size / 1000:.0f} KB over one association with {facts['tls_version']}, "
        f"{facts['cipher']}, maximum PDU {args.pdu or 'unlimited'}"
    )
    report.rows = rows
    medians = {row.name: _per_1000(row) for row in rows}
    base, ours, stock = (medians.get(name) for name in ("floor", "fastpdu", "stock"))
    report.columns = ["", "s / 1000", "fastest", "MB/s", "of the floor", "stock / this", "runs", ""]
    for row in rows:
        median = medians[row.name]
        speed = size / 1000 / median
        row.details.update(seconds_per_1000=median, mb_per_second=speed)
        scaled = ""
        if row.items < len(series):
            scaled = f"scaled from {row.items} images"
            row.details["scaled_from"] = row.items
        report.table.append(
            [
                row.label,
                f"{median:.3f}",
                f"{min(row.samples) * 1000 / row.items:.3f}",
                f"{speed:.0f}",
                f"{base / median:.2f}" if base else "",
                f"{stock / median:.1f}" if stock else "",
                str(len(row.samples)),
                scaled,
            ]
        )
        part = f"  ({base / median:.2f} of the floor)" if base and row.name != "floor" else ""
        report.bars.append((row.label, speed, f"{speed:.0f} MB/s{part}"))
    report.axis = "MB/s, median, logarithmic: more is better"
    report.log = True
    report.goals = [
        Goal(
            "throughput of fastpdu / of the raw TLS floor",
            base / ours if base and ours else None,
            0.7,
            at_least=True,
            unit=" x",
        )
    ]
    kernel = facts["ktls_sends"] or facts["ktls_receives"]
    report.notes[:0] = [
        "All bytes arrived intact: every row sent its images once, untimed, and compared SHA-256 "
        "digests;\nthe timed runs compared the length and one byte of every page.",
        f"{facts['openssl']}; kTLS: {'active' if kernel else 'not active'}.",
        *dict.fromkeys(f"{row.label.partition(',')[0]}: {row.note}." for row in rows if row.note),
    ]
