"""`fastpdu recv`: a storage SCP that writes what it is sent into files."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from fastpdu.bench.options import positive
from fastpdu.commands import CommandError, environment, live, signals
from fastpdu.commands import peer as peers
from fastpdu.commands.received import Books, View

if TYPE_CHECKING:
    import ssl

    from pynetdicom import evt


DESCRIPTION = """\
Receives DICOM instances and writes each into a file below DIR: every storage SOP class of the standard, every transfer
syntax, as it comes. A file appears under its name when it is complete; only then is its sender told Success.
"""
EPILOG = """\
examples:
  fastpdu recv 11112 received/
  fastpdu recv 11112 archive/ --layout '{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm'
  fastpdu recv 11112 archive/ --existing keep --durability directory
  fastpdu recv 2762 received/ --cert me.pem --key me.key --cacert clients.pem     TLS, and who may send
  fastpdu recv 0 received/ --json     any free port: the first line says which

Ctrl-C or SIGTERM: no new association is accepted, answers that are due are sent, all associations are aborted.
Whatever was acknowledged is in its file. Twice: at once.

exit status: 0 stopped by a signal, 1 cannot listen or write, 2 wrong usage, 130 stopped at once (Ctrl-C twice).
"""
# Seconds: for answers that are due when it is stopped; for associations that were aborted to end
_GRACE, _LAST_WORDS, _LAST_WORDS_AT_ONCE = 10.0, 5.0, 0.5


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port: a number from 1 to 65535, or 0 for any that is free"
        )
    return int(text)


def _parser(prog: str) -> argparse.ArgumentParser:
    from fastpdu.filestore import DURABILITY, EXISTING
    from fastpdu.layouts import DEFAULT_LAYOUT

    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options] PORT DIR",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("port", metavar="PORT", type=_port, help="TCP port; 0: any that is free")
    parser.add_argument("directory", metavar="DIR", help="where the files go; made if not there")
    add = parser.add_argument_group("files").add_argument
    add(
        "--layout",
        default=DEFAULT_LAYOUT,
        metavar="TEMPLATE",
        help=f"path of a file below DIR (default: {DEFAULT_LAYOUT}); see docs/files.md",
    )
    add(
        "--existing",
        choices=EXISTING,
        default="replace",
        help="what to do if there is a file of that name (default: %(default)s)",
    )
    add(
        "--durability",
        choices=DURABILITY,
        default="none",
        help="what must be on the disk before the sender is told Success (default: %(default)s)",
    )
    add = parser.add_argument_group("associations").add_argument
    add(
        *("-aet", "--ae-title"),
        type=peers.title,
        default="FASTPDU",
        metavar="AET",
        help="our AE title (default: %(default)s); peers may call us by any",
    )
    add(
        "--only-called",
        action="store_true",
        help="reject associations that call us by another AE title",
    )
    add(
        "--only-from",
        type=peers.title,
        action="append",
        default=[],
        metavar="AET",
        help="reject associations of other AE titles than this; may be given several times",
    )
    add(
        *("-ba", "--bind"),
        default="",
        metavar="ADDRESS",
        help="address to listen at (default: all)",
    )
    add(
        "--max-associations",
        type=positive,
        default=100,
        metavar="N",
        help="associations at the same time; others are rejected for the moment (default: %(default)s)",
    )
    add(
        "--window",
        type=positive,
        default=32,
        metavar="N",
        help="requests that a peer may have on their way, if it asks for more than one (default: %(default)s)",
    )
    peers.add_max_pdu(add)
    add(
        *("-pm", "--promiscuous"),
        action="store_true",
        help="accept any SOP class, private ones and those that are newer than this program, too",
    )
    for option, long, wait, text in (
        ("-ta", "--acse-timeout", 30.0, "for an association request, and its end"),
        (
            "-tn",
            "--network-timeout",
            60.0,
            "for the next message, before an association is aborted",
        ),
    ):
        add(
            *(option, long),
            type=peers.seconds,
            default=wait,
            metavar="S",
            help=f"seconds to wait {text} (default: %(default)g)",
        )
    add = parser.add_argument_group("TLS").add_argument
    add("--tls", action="store_true", help="use TLS; --cert implies it")
    add("--cert", metavar="FILE", help="PEM file of our certificate")
    add("--key", metavar="FILE", help="PEM file of its key, if it is not in the same file")
    add(
        "--cacert",
        metavar="FILE",
        help="PEM file of the CAs of our peers: each has to have a certificate (mutual TLS)",
    )
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print a line of JSON for each event on stdout")
    add(*("-q", "--quiet"), action="store_true", help="show no statistics")
    add(
        *("-d", "--debug"), action="store_true", help="show pynetdicom's debug log on stderr (slow)"
    )
    return parser


def main(argv: Sequence[str], prog: str = "fastpdu recv") -> int:
    """Receive files until a signal comes.

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
    context = _tls_context(args)
    peers.log_debug(args)
    books = Books(args.json)
    ae = _ae(args)
    store = _store(args, books)
    stops = _Signals()
    # Before there is anything to be lost
    with signals.handled(stops.put):
        server = _listen(args, ae, store, books, context)
        return _serve(args, server, books, stops)


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.cert is None:
        if args.tls or args.key or args.cacert:
            raise CommandError("TLS needs --cert: our own certificate", status=2)
        return None
    from fastpdu import tls

    try:
        return tls.server_context(
            args.cert,
            args.key,
            password=peers.ask_password if sys.stdin.isatty() else None,
            client_ca=args.cacert,
        )
    except (OSError, ValueError) as error:
        raise CommandError(
            f"TLS is not possible: {error}", "give PEM files that can be read", 2
        ) from error


def _ae(args: argparse.Namespace) -> Any:
    from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    from fastpdu.ae import AE

    ae: Any = AE(args.ae_title, transport=environment.options(), async_window=args.window)
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
    ae.maximum_associations = args.max_associations
    ae.acse_timeout = args.acse_timeout
    ae.network_timeout = args.network_timeout
    ae.require_called_aet = args.only_called
    ae.require_calling_aet = args.only_from
    if args.max_pdu is not None:
        ae.maximum_pdu_size = args.max_pdu
    if args.promiscuous:
        _config.UNRESTRICTED_STORAGE_SERVICE = True
    return ae


def _store(args: argparse.Namespace, books: Books) -> Any:
    from fastpdu.filestore import FileStore

    class Store(FileStore):
        """A FileStore whose statuses are entered into the books."""

        def __call__(self, event: evt.Event) -> Any:
            books.begun(event.assoc)
            try:
                status = super().__call__(event)
            except BaseException:
                books.answered(event.assoc)
                raise
            if status != 0:
                books.refused(event, status)
            return status

    try:
        store = Store(
            args.directory,
            layout=args.layout,
            existing=args.existing,
            durability=args.durability,
            on_stored=books.stored,
        )
    except ValueError as error:
        raise CommandError(str(error), "see docs/files.md for layouts", 2) from error
    except OSError as error:
        raise CommandError(
            f"the directory {live.printable(args.directory)} cannot be made: {error.strerror}",
            "give one below which files can be written",
        ) from error
    if not os.access(args.directory, os.W_OK | os.X_OK):
        raise CommandError(
            f"no files can be written into {live.printable(args.directory)}",
            "check the owner and permissions of the directory",
        )
    return store


def _listen(
    args: argparse.Namespace, ae: Any, store: Any, books: Books, context: ssl.SSLContext | None
) -> Any:
    from pynetdicom import evt

    try:
        return ae.start_server(
            (args.bind, args.port),
            block=False,
            ssl_context=context,
            evt_handlers=[
                (evt.EVT_C_STORE, store),
                (evt.EVT_ACCEPTED, books.accepted),
                (evt.EVT_REJECTED, books.rejected),
                (evt.EVT_CONN_CLOSE, books.closed),
            ],
        )
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "another program has this port: stop it, or give another port",
            errno.EACCES: "ports below 1024 need the right to: give a higher one",
            errno.EADDRNOTAVAIL: "this host has no such address (--bind)",
        }
        where = f"port {args.port}" + (f" of {args.bind}" if args.bind else "")
        raise CommandError(
            f"cannot listen at {where}: {error.strerror or error}", remedies.get(error.errno or 0)
        ) from error


def _serve(args: argparse.Namespace, server: Any, books: Books, stops: _Signals) -> int:
    host, port = server.server_address[:2]
    view = View(books)
    shown = live.display(view.summary, view.rows, quiet=args.quiet)
    with ExitStack() as stack:
        stack.enter_context(live.logged("fastpdu.filestore", shown))
        # The line that scripts wait for: there is somebody who listens now
        if args.json:
            books.event(
                "listening", host=host, port=port, ae_title=args.ae_title, tls=bool(args.cert)
            )
        else:
            where = f"{host}:{port}" if host not in ("", "0.0.0.0", "::") else f"port {port}"
            print(
                f"{args.ae_title} listens at {where}; files go to {live.printable(args.directory)}",
                flush=True,
            )
        stack.enter_context(shown)
        number = stops.wait()
        if not args.quiet:
            shown.say("stopping: answers that are due are sent; once more: at once")
        is_soft = _stop(server, books, stops)
    status = 0 if is_soft else 128 + number
    if args.json:
        books.event("stopped", exit_status=status, **books.totals())
    else:
        print(books.conclusion())
    return status


def _stop(server: Any, books: Books, stops: _Signals) -> bool:
    """End everything, and say whether there was time for answers that were due."""
    from fastpdu.acse import close_half_open

    ended: set[Any] = set()

    def established() -> list[Any]:
        return [assoc for assoc in server.active_associations if assoc.is_established]

    def end(assoc: Any) -> None:
        # Each on a thread of its own: it waits for its peer
        if assoc not in ended:
            ended.add(assoc)
            threading.Thread(target=assoc.abort, daemon=True).start()

    # Its thread looks up every half second; nobody is accepted meanwhile who is not aborted below
    shutdown = threading.Thread(target=server.shutdown, daemon=True)
    shutdown.start()
    deadline = time.monotonic() + _GRACE
    is_soft = True
    while is_soft and time.monotonic() < deadline and (shutdown.is_alive() or established()):
        for assoc in established():
            if not books.is_answering(assoc):
                end(assoc)
        is_soft = stops.wait(0.01) is None
    for assoc in established():
        end(assoc)
    # The process would live as long as they may take for their A-ASSOCIATE-RQ
    close_half_open(server.ae, "stopped")
    deadline = time.monotonic() + (_LAST_WORDS if is_soft else _LAST_WORDS_AT_ONCE)
    for thread in (shutdown, *server.active_associations):
        thread.join(max(0.0, deadline - time.monotonic()))
    return is_soft


class _Signals:
    """SIGINT and SIGTERM, one after another."""

    def __init__(self) -> None:
        self._came: SimpleQueue[int] = SimpleQueue()
        self.put = self._came.put

    def wait(self, timeout: float | None = None) -> Any:
        """Return the next signal; None if none comes in that many seconds."""
        try:
            return self._came.get(timeout=timeout)
        except Empty:
            return None
