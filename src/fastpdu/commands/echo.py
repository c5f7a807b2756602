"""`fastpdu echo`: C-ECHO, and how long it takes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from fastpdu.bench.options import positive
from fastpdu.commands import environment
from fastpdu.commands import peer as peers
from fastpdu.latency import Latencies, milliseconds
from fastpdu.requestor import Peer

DESCRIPTION = """\
Associates with a DICOM peer, sends C-ECHOs and says how long they took. 'fastpdu doctor' says why.
"""
EPILOG = f"""\
examples:
  fastpdu echo pacs.example 104 -aec PACS        is it there, does it know us?
  fastpdu echo localhost 11112 -c 1000           latencies: minimum, median, percentiles
  fastpdu echo pacs.example 104 -c 60 --interval 1 --json
  fastpdu echo pacs.example 2762 --cacert ca.pem --cert me.pem

exit status:
  0 success
{peers.EXIT_STATUS}"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    peers.add_arguments(parser, "ECHOSCU")
    parser.add_argument(
        *("-c", "--count"),
        type=positive,
        default=1,
        metavar="N",
        help="how many C-ECHOs (default: 1)",
    )
    parser.add_argument(
        *("-i", "--interval"),
        type=peers.seconds,
        metavar="S",
        help="seconds between two of them (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        *("-d", "--debug"), action="store_true", help="show pynetdicom's debug log on stderr"
    )
    return parser


def main(argv: Sequence[str], prog: str = "fastpdu echo") -> int:
    """Send C-ECHOs.

    Parameters
    ----------
    argv : sequence of str
        The arguments.
    prog : str
        The name for messages.

    Returns
    -------
    int
        The exit status.
    """
    args = _parser(prog).parse_args(list(argv))
    peer = peers.from_arguments(args)
    peers.log_debug(args)
    about = {"schema": 1, "peer": peer.as_dict()}
    return peers.in_json(lambda: _echo(args, peer, about), about, args.json)


def _echo(args: argparse.Namespace, peer: Peer, about: dict[str, object]) -> int:
    from pynetdicom import build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    import fastpdu.ae  # noqa: F401 - not in the time of the first association

    latencies: list[float] = []
    failures: dict[int, int] = {}
    begun = time.perf_counter()
    with peers.associate(peer, [build_context(Verification)], environment.options()) as assoc:
        associated = time.perf_counter() - begun
        for index in range(args.count):
            if index and args.interval:
                time.sleep(args.interval)
            asked = time.perf_counter()
            answer = assoc.send_c_echo(msg_id=index % 65535 + 1)
            latencies.append(time.perf_counter() - asked)
            peers.check_going_on(assoc, peer, answer, asked, "C-ECHO")
            if answer.Status != 0:
                failures[answer.Status] = failures.get(answer.Status, 0) + 1
    summary = Latencies.of(latencies)
    status = 1 if failures else 0
    if args.json:
        peers.print_json(
            {
                **about,
                "exit_status": status,
                "associate_ms": milliseconds(associated),
                "echo": summary.as_dict(),
                "failures": {f"0x{code:04X}": number for code, number in failures.items()},
            }
        )
    elif summary.count == 1:
        print(f"{peer.called} at {peer} answers: association {1e3 * associated:.3g} ms, ", end="")
        print(f"C-ECHO {1e3 * summary.median:.3g} ms")
    else:
        print(f"{peer.called} at {peer} answers: association {1e3 * associated:.3g} ms")
        print(f"{summary.count} C-ECHOs: {summary}")
    if failures:
        listing = ", ".join(f"0x{code:04X} ({number}x)" for code, number in failures.items())
        print(f"the peer answered with a failure status: {listing}", file=sys.stderr)
    return status
