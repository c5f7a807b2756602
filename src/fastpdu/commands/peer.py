"""What the commands that talk to a peer share: its address, titles, TLS and timeouts, and why it cannot be reached.

An association that does not come about ends as a `PeerError`: what happened, what can be done about it, and an exit
status of its own for each kind of failure, so that a script can tell them apart.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastpdu import requestor, tls
from fastpdu.commands import CommandError
from fastpdu.requestor import Peer

if TYPE_CHECKING:
    from pynetdicom.presentation import PresentationContext

    from fastpdu.association import AssociationMixin
    from fastpdu.options import TransportOptions

#: Exit status of each kind of failure; 0 is success, 1 a failure that the peer reports, 2 wrong usage.
FAILURE_STATUS, NO_CONNECTION, REJECTED, ABORTED, TIMEOUT, TLS_FAILED = 1, 3, 4, 5, 6, 7
KINDS = {
    FAILURE_STATUS: "failure-status",
    NO_CONNECTION: "no-connection",
    REJECTED: "rejected",
    ABORTED: "aborted",
    TIMEOUT: "timeout",
    TLS_FAILED: "tls",
}
EXIT_STATUS = """\
  1 the peer answered with a failure status    2 wrong usage
  3 no connection   4 rejected (association or presentation context)
  5 aborted, or the peer closed the connection or does not speak DICOM
  6 no answer in time   7 TLS failed   130 interrupted (Ctrl-C)
"""


#: What can be done about each cause.
REMEDIES = {
    requestor.NO_HOST.name: "check the name, or give its address",
    requestor.REFUSED.name: "is the peer running, and listening on this port and address? A firewall may refuse it too",
    requestor.UNREACHED.name: "is the host up, and does a firewall drop what goes to this port? -to gives it more time",
    requestor.NO_ROUTE.name: "check the address, and the route to it",
    requestor.NOT_TRUSTED.name: (
        "give the peer's CA with --cacert, and HOST as the certificate has it; --no-verify for a test"
    ),
    requestor.NO_TLS.name: (
        "does this port want TLS at all? Leave --tls out if not. Does the peer ask for a certificate (--cert, --key)?"
    ),
    requestor.REJECTED.name: "look into the peer's log",
    requestor.CALLED_TITLE.name: "the peer is not called {peer.called!r}: give its AE title with -aec",
    requestor.CALLING_TITLE.name: (
        "the peer does not know {peer.calling!r}: give an AE title that it knows with -aet, or have ours entered there"
    ),
    requestor.BUSY.name: "the peer has too many associations at this moment: try again later",
    requestor.NO_CONTEXT.name: "the peer does not offer this service, or not to this AE title (-aet)",
    requestor.NOT_DICOM.name: (
        "is this the DICOM port, not that of a web server? Does the peer want TLS (--tls)?"
    ),
    requestor.ABORTED.name: (
        "look into the peer's log; does it know our AE title {peer.calling!r} (-aet), and its own as "
        "{peer.called!r} (-aec)?"
    ),
    requestor.CLOSED.name: (
        "is this a DICOM port? Does the peer want TLS (--tls), or know only some addresses or AE titles (-aet, -aec)?"
    ),
    requestor.CLOSED_TLS.name: (
        "does the peer ask for a certificate (--cert, --key), and trust ours? Does it know only some addresses or AE "
        "titles (-aet, -aec)?"
    ),
    requestor.NO_ANSWER.name: (
        "is this a DICOM port? Does the peer want TLS (--tls)? Is it busy? -ta gives it more time"
    ),
}


class PeerError(CommandError):
    """The peer cannot be reached, does not want us, or does not go on; `status` says which.

    Parameters
    ----------
    message : str
        What happened.
    remedy : str, optional
        What can be done about it.
    status : int
        `FAILURE_STATUS`, `NO_CONNECTION`, `REJECTED`, `ABORTED`, `TIMEOUT` or `TLS_FAILED`.
    """

    def __init__(self, message: str, remedy: str | None, status: int) -> None:
        super().__init__(message, remedy, status)

    @classmethod
    def of(cls, peer: Peer, message: str, cause: requestor.Cause) -> PeerError:
        """Return the error of an association that did not come about, with the remedy for its cause."""
        status = next(status for status, kind in KINDS.items() if kind == cause.kind)
        remedy = REMEDIES.get(cause.name)
        return cls(message, remedy and remedy.format(peer=peer), status)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"kind": KINDS[self.status], "message": str(self), "remedy": self.remedy}


# The command line -----------------------------------------------------------------------------------------------


def title(text: str) -> str:
    """Read an AE title."""
    name = text.strip(" ")
    if not 0 < len(name) <= 16 or not name.isascii() or not name.isprintable() or "\\" in name:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an AE title: 1 to 16 ASCII characters, without a backslash"
        )
    return name


def max_pdu(text: str) -> int:
    """Read a maximum length of PDUs: 0, or the least length that makes sense to 16 MiB."""
    from fastpdu.engine import HARD_PDU_CAP

    if text != "0" and not (text.isdecimal() and 1024 <= int(text) <= HARD_PDU_CAP):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a PDU size: 0 (no limit), or 1024 to {HARD_PDU_CAP} bytes"
        )
    return int(text)


def add_max_pdu(add: Callable[..., object]) -> None:
    """Add the option of the maximum length of PDUs to a parser or a group, by its ``add_argument``."""
    add(
        *("-pdu", "--max-pdu"),
        type=max_pdu,
        metavar="N",
        help="maximum PDU length that we announce, in bytes (default: 16382; 0: no limit)",
    )


def log_debug(args: argparse.Namespace) -> None:
    """Show pynetdicom's debug log, if ``--debug`` asks for it."""
    if args.debug:
        from pynetdicom import debug_logger

        debug_logger()


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds, more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, more than 0")
    return value


def add_arguments(parser: argparse.ArgumentParser, calling: str) -> None:
    """Add HOST, PORT and the options of a peer, named as those of pynetdicom's and DCMTK's programs.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Where to add them.
    calling : str
        Our AE title, if none is given.
    """
    parser.add_argument("host", metavar="HOST", help="name or address of the peer")
    parser.add_argument("port", metavar="PORT", type=_port, help="its TCP port")
    add = parser.add_argument_group("association").add_argument
    for option, long, default, text in (
        ("-aet", "--calling-aet", calling, "our AE title"),
        ("-aec", "--called-aet", "ANY-SCP", "the peer's AE title"),
    ):
        add(
            *(option, long),
            type=title,
            default=default,
            metavar="AET",
            help=f"{text} (default: %(default)s)",
        )
    for option, long, wait, text in (
        ("-to", "--connection-timeout", 10.0, "for the TCP connection"),
        ("-ta", "--acse-timeout", 30.0, "for the answer to the association request"),
        ("-td", "--dimse-timeout", 30.0, "for each response"),
    ):
        add(
            *(option, long),
            type=seconds,
            default=wait,
            metavar="S",
            help=f"seconds to wait {text} (default: %(default)g)",
        )
    add = parser.add_argument_group("TLS").add_argument
    add("--tls", action="store_true", help="use TLS; the options below imply it")
    add("--cacert", metavar="FILE", help="PEM file of the CAs to trust (default: the system's)")
    add("--cert", metavar="FILE", help="PEM file of our certificate, if the peer asks for one")
    add("--key", metavar="FILE", help="PEM file of its key, if it is not in the same file")
    add("--no-verify", action="store_true", help="accept any certificate of the peer: for tests")


def from_arguments(args: argparse.Namespace) -> Peer:
    """Return the peer that was asked for.

    Parameters
    ----------
    args : argparse.Namespace
        What `add_arguments` has brought.

    Raises
    ------
    CommandError
        If the TLS options do not fit, or a file cannot be used.
    """
    context = None
    if args.tls or args.cacert or args.cert or args.key or args.no_verify:
        context = _tls_context(args)
    return Peer(
        args.host,
        args.port,
        args.calling_aet,
        args.called_aet,
        args.connection_timeout,
        args.acse_timeout,
        args.dimse_timeout,
        context,
    )


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext:
    if args.key and not args.cert:
        raise CommandError("--key needs --cert", status=2)
    try:
        return tls.client_context(
            None if args.no_verify else args.cacert,
            args.cert,
            args.key,
            password=ask_password if args.cert and sys.stdin.isatty() else None,
            verify=not args.no_verify,
        )
    except (OSError, ValueError) as error:
        raise CommandError(
            f"TLS is not possible: {error}", "give PEM files that can be read", status=2
        ) from error


def ask_password() -> str:
    """Ask for the password of a key on the terminal."""
    return getpass.getpass("password of the key: ")


def in_json(function: Callable[[], int], about: dict[str, Any], wanted: bool) -> int:
    """Call a command; if JSON is wanted and there is a `PeerError`, print it as JSON before it is raised.

    Parameters
    ----------
    function : callable
        Returns an exit status.
    about : dict
        What the JSON begins with.
    wanted : bool
        Whether stdout is to have JSON.

    Returns
    -------
    int
        The exit status.
    """
    try:
        return function()
    except PeerError as error:
        if wanted:
            print_json({**about, "exit_status": error.status, "error": error.as_dict()})
        raise


def print_json(content: dict[str, Any]) -> None:
    """Print JSON to stdout."""
    print(json.dumps(content, indent=2, ensure_ascii=False), file=sys.stdout)


# The association ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def associate(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    options: TransportOptions | None = None,
    limit: int | None = None,
) -> Iterator[AssociationMixin]:
    """Associate with the peer on the fast transport; release at the end, abort after an error.

    Parameters
    ----------
    peer : Peer
        With whom.
    contexts : sequence of PresentationContext
        What to propose. All of it must be accepted.
    options : TransportOptions, optional
        How to move bytes.
    limit : int, optional
        PDUs that we send are no longer than this, even if the peer takes longer ones (PS3.8 D.1, in bytes).

    Yields
    ------
    Association
        Established.

    Raises
    ------
    PeerError
        If it does not come about, or the peer ends it before it is released.
    """
    try:
        assoc = requestor.request(peer, contexts, options, limit=limit)
    except requestor.AssociationError as error:
        raise PeerError.of(peer, str(error), error.cause) from error
    try:
        yield assoc
    except BaseException:
        if assoc.is_established:
            assoc.abort()
        raise
    if assoc.is_established:
        assoc.release()


def check_going_on(
    assoc: AssociationMixin, peer: Peer, answer: Any, asked: float, what: str
) -> None:
    """Raise PeerError if a request got no response.

    Parameters
    ----------
    assoc : Association
        Over which it was sent.
    peer : Peer
        To whom.
    answer : Dataset
        What ``send_c_echo`` or ``send_c_store`` returned.
    asked : float
        When, by `time.perf_counter`.
    what : str
        The name of the request.
    """
    if "Status" in answer:
        return
    waited = time.perf_counter() - asked
    if waited >= peer.dimse_timeout * 0.99:
        raise PeerError(
            f"{peer} did not answer the {what} within {peer.dimse_timeout:g} s",
            "look into the peer's log; -td gives it more time",
            TIMEOUT,
        )
    raise PeerError(
        f"{peer} ended the association in place of an answer to the {what} ({waited:.3g} s after it)",
        "look into the peer's log: it aborted, or its process has ended",
        ABORTED,
    )
