"""The main job over TLS: a series of CT images over one association, both ends in one process.

The floor is what Python's `ssl` module can do at its best with the same files; see `fastpdu.bench.floor`.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import threading

from fastpdu import tls
from fastpdu.bench import floor, pair, peers
from fastpdu.bench.certificates import Certificates, certificates
from fastpdu.bench.comparison import Comparison, tabulate
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.runners import Dcmtk, Floor, Runner, Store
from fastpdu.bench.series import Series

SUMMARY = "1000 CT over one association with TLS, beside the floor of Python's ssl module"
DESCRIPTION = """\
Sends a series of CT images over one association with TLS to a storage SCP in the same process, with
assoc.send_c_store(path) and with two in flight, and compares it with: the floor (the same files through
a bare pair of TLS sockets of the ssl module, with large buffers and no DICOM), fastpdu without TLS, stock
pynetdicom, and DCMTK's storescu and storescp where installed. Every row is checked with SHA-256 before it
is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench tls
  fastpdu bench tls --rows floor,fastpdu --runs 15
  fastpdu bench tls --version 1.2 --pdu 0
"""

_COMPARISON = Comparison(
    expected={
        "floor": 0.0006,
        "fastpdu": 0.0008,
        "fastpdu-window": 0.0007,
        "plain": 0.0003,
        "stock": 0.02,
        "dcmtk": 0.06,
        "dcmtk-nodelay": 0.003,
    },
    reduced={"stock": (50, 3), "dcmtk": (30, 1), "dcmtk-nodelay": (300, 2)},
    verifying=0.003,
)
#: Operations in flight of the row that has several: while one is decrypted, the next is encrypted.
_WINDOW = 2
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    _COMPARISON.add_arguments(parser)
    parser.add_argument(
        "--version",
        choices=sorted(_VERSIONS),
        default="1.3",
        help="of TLS; DCMTK takes what it knows (default: %(default)s)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    _COMPARISON.check_arguments(args)


def _runners(
    args: argparse.Namespace, series: Series, made: Certificates, notes: list[str]
) -> list[Runner]:
    runners: list[Runner] = []
    tools = peers.find_dcmtk()
    for name in _COMPARISON.names(args):
        part, runs = _COMPARISON.part(args, series, name)
        if name == "floor":
            runners.append(Floor(name, part, runs, args.pdu, tls=made))
            runners[-1].label = "raw TLS floor"
        elif name == "plain":
            runners.append(Store(name, part, runs, args.pdu, transport="fastpdu"))
            runners[-1].label = "fastpdu, without TLS"
        elif name == "fastpdu-window":
            runners.append(
                Store(name, part, runs, args.pdu, tls=made, transport="fastpdu", window=_WINDOW)
            )
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
    with certificates(_VERSIONS[args.version]) as made:
        facts = agreed(made.ends())
        series, rows = _COMPARISON.run(
            args, lambda series: _runners(args, series, made, report.notes)
        )
    _fill(report, args, series, rows, facts)
    return report


def _fill(
    report: Report,
    args: argparse.Namespace,
    series: Series,
    rows: list[Row],
    facts: dict[str, object],
) -> None:
    size = series.bytes / len(series)
    report.title = (
        f"{len(series)} images of {size / 1000:.0f} KB over one association with {facts['tls_version']}, "
        f"{facts['cipher']}, maximum PDU {args.pdu or 'unlimited'}"
    )
    kernel = facts["ktls_sends"] or facts["ktls_receives"]
    medians = tabulate(
        report,
        args,
        series,
        rows,
        base="floor",
        column="of the floor",
        as_speed=True,
        facts=[f"{facts['openssl']}; kTLS: {'active' if kernel else 'not active'}."],
    )
    report.parameters.update(facts)
    base = medians.get("floor")
    for name, flight in (("fastpdu", 1), ("fastpdu-window", _WINDOW)):
        ours = medians.get(name)
        report.goals.append(
            Goal(
                f"throughput of fastpdu, {flight} in flight / of the raw TLS floor",
                ratio(base, ours),
                0.7,
                at_least=True,
                unit=" x",
            )
        )
