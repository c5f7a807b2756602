"""`fastpdu doctor`: where the time goes between us and a peer, and what helps."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastpdu.bench.options import count
from fastpdu.bench.progress import progress
from fastpdu.commands import environment
from fastpdu.commands import peer as peers
from fastpdu.requestor import Peer

if TYPE_CHECKING:
    from fastpdu.doctor.figures import Trial

DESCRIPTION = """\
Sends C-ECHOs and, if asked to, synthetic CT images to a DICOM peer, with and without TCP_QUICKACK and with two PDU
sizes, and says in plain words where the time goes and what helps: the peer's Nagle's algorithm against delayed ACKs,
its receive window, our send buffer, the network, or its own processing.

--store N: the peer STORES these images, N for each trial, 530 KB each; two trials for each PDU size that matters. All
have the patient name FASTPDU^DOCTOR^TEST, the patient ID FASTPDU-DOCTOR-TEST and UIDs that nobody else uses. Delete
them afterwards. Without --store nothing is left at the peer, and only what C-ECHO shows is seen: not its window, our
send buffer, its disk.
"""
EPILOG = f"""\
examples:
  fastpdu doctor pacs.example 104 -aec PACS              C-ECHO alone: leaves nothing behind
  fastpdu doctor pacs.example 104 -aec PACS --store 20   up to 80 images are stored there
  fastpdu doctor localhost 11112 --store 20 --pdu 16384,1048576
  fastpdu doctor localhost 11112 --json > figures.json
  FASTPDU_SEND_BUFFER=65536 fastpdu doctor localhost 11112 --store 20   options as for 'fastpdu run'

exit status, by the first verdict:
  0 healthy   10 stalls (Nagle's algorithm against delayed ACKs)   11 the peer's receive window
  12 our send buffer   13 the network   14 the peer's own processing
or, if there is none:
{peers.EXIT_STATUS}"""
# What takes less time needs no progress
_QUIET_SECONDS = 1.0


def _pdu_limits(text: str) -> list[int]:
    from fastpdu.engine import HARD_PDU_CAP

    # Below it a PDU is little more than its headers
    least = 1024
    limits = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not least <= int(part) <= HARD_PDU_CAP:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a PDU size: {least} to {HARD_PDU_CAP} bytes, several with commas between them"
            )
        limits.append(int(part))
    if len(set(limits)) != len(limits):
        raise argparse.ArgumentTypeError(f"{text!r} has a size twice")
    return limits


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    peers.add_arguments(parser, "FASTPDU")
    parser.add_argument(
        "--echo",
        type=count,
        default=20,
        metavar="N",
        help="C-ECHOs per trial (default: %(default)s; 0: none)",
    )
    parser.add_argument(
        "--store",
        type=count,
        default=0,
        metavar="N",
        help="synthetic CT images per trial, which the peer STORES (default: none)",
    )
    parser.add_argument(
        "--pdu",
        type=_pdu_limits,
        default="16382,131072",
        metavar="A,B",
        help="maximum PDU lengths to announce and to keep to, in bytes (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print figures and verdicts as JSON")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    return parser


def main(argv: Sequence[str], prog: str = "fastpdu doctor") -> int:
    """Examine a peer.

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
    parser = _parser(prog)
    args = parser.parse_args(list(argv))
    if not args.echo and not args.store:
        parser.error("there is nothing to measure: --echo 0 needs --store N")
    peer = peers.from_arguments(args)
    from fastpdu.doctor import report

    about = {"schema": report.SCHEMA, "peer": peer.as_dict()}
    return peers.in_json(lambda: _examine(args, peer, about), about, args.json)


def _examine(args: argparse.Namespace, peer: Peer, about: dict[str, object]) -> int:
    from fastpdu.doctor import judge, report

    trials = _measure(args, peer)
    verdicts = judge.judge(trials)
    if args.json:
        peers.print_json({**about, **report.as_dict(trials, verdicts)})
    else:
        report.show(trials, verdicts, f"{peer.called} at {peer}", sys.stdout)
    return judge.exit_status(trials, verdicts)


def _measure(args: argparse.Namespace, peer: Peer) -> list[Trial]:
    from fastpdu.doctor.measure import measure

    options = environment.options()
    begun = time.monotonic()
    with progress(1.0, quiet=args.quiet) as bar:

        def on_trial(done: int, total: int, text: str) -> None:
            bar.advance(done / total - bar.done)
            if time.monotonic() - begun >= _QUIET_SECONDS:
                bar.phase(text)

        return measure(
            peer,
            echoes=args.echo,
            stores=args.store,
            pdu_limits=args.pdu,
            options=options,
            on_trial=on_trial,
        )
