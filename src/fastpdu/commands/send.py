"""`fastpdu send`: files and directories to a DICOM peer."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from queue import Empty, Queue
from typing import TYPE_CHECKING

from fastpdu.bench.options import count, positive
from fastpdu.commands import CommandError, environment, live, signals
from fastpdu.commands import peer as peers

if TYPE_CHECKING:
    from fastpdu.requestor import Peer
    from fastpdu.sender import Report, Sender

DESCRIPTION = """\
Sends DICOM files to a peer, each as it is: one presentation context for each combination of SOP class and transfer
syntax among the files. Directories are looked through with all that is below them. What is no DICOM file is skipped.

What fails for the moment is tried again: no connection, an association rejected for now, a lost association, a peer
without room (A7xxH). With --resume, a journal notes each file that the peer has acknowledged: the same command
again goes on where the last one was stopped or killed, and sends none of them twice.
"""
EPILOG = """\
examples:
  fastpdu send pacs.example 104 study/ -aec PACS            a directory
  fastpdu send pacs.example 104 archive/ --associations 4   over up to four associations
  fastpdu send pacs.example 104 archive/ --resume archive.journal   killed? The same command again goes on
  fastpdu send pacs.example 104 archive/ --rate 20M         20 MB/s on the average
  fastpdu send pacs.example 2762 study/ --cacert ca.pem --cert me.pem
  find archive -name '*.dcm' -newer mark | fastpdu send pacs.example 104 -

Ctrl-C: no new file is sent, the answers to those on their way are waited for; twice: abort.

exit status:
  0 everything was sent
  1 a file was not sent (failure status, unreadable, with --strict: no DICOM), or there was none to be sent
  2 wrong usage, or a journal that cannot be used
or, if it was given up:
  3 no connection   4 rejected   5 aborted, or the peer closed the connection or does not speak DICOM
  6 no answer in time   7 TLS failed
  130 interrupted (Ctrl-C)   143 terminated
"""
# Seconds between two looks whether more paths are wanted
_GLANCE = 0.2
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def _rate(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([kmg]?)", text.lower())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a rate: bytes per second, more than 0, as in 500k, 20M or 1.5G"
        )
    return value


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options] HOST PORT PATH [PATH ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    peers.add_arguments(parser, "FASTPDU")
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a file, a directory, or - for paths on stdin, one on a line",
    )
    add = parser.add_argument_group("how fast").add_argument
    add(
        "--associations",
        type=positive,
        default=1,
        metavar="N",
        help="associations at the same time, at most (default: %(default)s)",
    )
    add(
        "--window",
        type=positive,
        metavar="N",
        help="requests on their way on each, at most, if the peer agrees (default: 1)",
    )
    peers.add_max_pdu(add)
    add("--rate", type=_rate, metavar="N", help="bytes per second: 500k, 20M (default: no limit)")
    add = parser.add_argument_group("when something goes wrong").add_argument
    add(
        *("--resume", "--journal"),
        dest="journal",
        metavar="JOURNAL",
        help="file that notes what was acknowledged; what is in it is not sent again",
    )
    add(
        "--retries",
        type=count,
        default=5,
        metavar="N",
        help="new attempts, one after another, before giving up (default: %(default)s)",
    )
    add(
        "--retry-delay",
        type=peers.seconds,
        default=1.0,
        metavar="S",
        help="seconds before the first of them; it doubles each time, up to 60 (default: %(default)g)",
    )
    add(
        "--transcode",
        action="store_true",
        help="let pynetdicom convert between Explicit and Implicit VR Little Endian, if the peer takes only the other",
    )
    add("--strict", action="store_true", help="a file that is no DICOM file is a failure")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add(*("-q", "--quiet"), action="store_true", help="no progress and no warnings")
    add(*("-v", "--verbose"), action="store_true", help="say which files are skipped, too")
    add(
        *("-d", "--debug"), action="store_true", help="show pynetdicom's debug log on stderr (slow)"
    )
    return parser


def main(argv: Sequence[str], prog: str = "fastpdu send") -> int:
    """Send files.

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
    if "-" in args.paths and len(args.paths) > 1:
        parser.error("- (paths on stdin) does not go with other paths")
    for path in args.paths:
        if path != "-" and not os.path.lexists(path):
            raise CommandError(
                f"there is no file or directory {live.printable(path)!r}", "check the path", 2
            )
    peer = peers.from_arguments(args)
    peers.log_debug(args)
    return _send(args, peer)


def _send(args: argparse.Namespace, peer: Peer) -> int:
    from fastpdu.sender import JournalError, Sender

    sender = Sender(
        peer.host,
        peer.port,
        ae_title=peer.calling,
        called_ae_title=peer.called,
        associations=args.associations,
        window=args.window,
        max_pdu=args.max_pdu,
        tls=peer.tls,
        journal=args.journal,
        retries=args.retries,
        retry_delay=args.retry_delay,
        transcode=args.transcode,
        rate=args.rate,
        strict=args.strict,
        connection_timeout=peer.connection_timeout,
        acse_timeout=peer.acse_timeout,
        dimse_timeout=peer.dimse_timeout,
        transport=environment.options(),
    )
    stdin = _Lines(lambda: sender.is_stopping) if args.paths == ["-"] else None
    view = _View(sender)
    shown = live.display(view.summary, view.rows, view.share, quiet=args.quiet)
    with ExitStack() as stack:
        if not args.quiet and stdin is None:
            view.count(args.paths)
            stack.callback(view.close)
        level = logging.INFO if args.verbose else logging.WARNING
        stack.enter_context(
            live.logged("fastpdu.sender", shown, logging.CRITICAL if args.quiet else level)
        )
        stack.enter_context(shown)
        stopper = _Stopper(sender)
        stack.enter_context(signals.handled(stopper.stop))
        try:
            report = sender.send(args.paths if stdin is None else stdin)
        except JournalError as error:
            raise CommandError(
                str(error), "give another file with --resume, or wait for the other run", 2
            ) from error
        except OSError as error:
            if error.filename != args.journal:
                raise
            raise CommandError(
                f"the journal {args.journal} cannot be used: {error.strerror}",
                "give a file that can be written with --resume",
                2,
            ) from error
    status = _conclude(args, peer, report, stopper.signal)
    if stopper.is_impatient:
        signals.leave(status)
    return status


def _conclude(args: argparse.Namespace, peer: Peer, report: Report, stopped: int | None) -> int:
    """Print the report, and return the exit status or raise what has ended the run."""
    error: CommandError | None = None
    status = 0 if report.is_success else 1
    given_up = report.given_up
    if stopped is not None and report.is_cancelled:
        status = 128 + stopped
    elif given_up is not None:
        if given_up.cause is None:
            error = CommandError(live.printable(given_up.message))
        else:
            error = peers.PeerError.of(peer, live.printable(given_up.message), given_up.cause)
        status = error.status
    elif not report.failed and not report.sent + report.already_sent:
        error = CommandError("there was no DICOM file to be sent", "check the paths; -v says why")
        status = error.status
    if args.json:
        content = {"schema": 1, "peer": peer.as_dict(), "exit_status": status, **report.as_dict()}
        # (ASCII: a path may have bytes that are no text)
        print(json.dumps(content, indent=2))
    else:
        _print(report)
    if status > 128:
        resume = "; the same command goes on" if args.journal else ""
        print(f"interrupted{resume}", file=sys.stderr)
    if error is not None:
        raise error
    return status


def _print(report: Report) -> None:
    seconds = max(report.seconds, 1e-3)
    print(
        f"{report.sent} sent ({live.size(report.bytes)}, {live.size(report.bytes / seconds)}/s, {seconds:.3g} s)"
    )
    for number, text in (
        (report.warnings, "of them with a warning"),
        (report.already_sent, "already sent, by the journal"),
        (report.duplicates, "found twice"),
        (report.skipped, "skipped: no DICOM files"),
        (report.retries, "sent again"),
        (report.failed, "NOT sent"),
        (report.not_sent, "not sent any more"),
    ):
        if number:
            print(f"{number} {text}")
    for failure in report.failures[:20]:
        print(f"  {live.printable(failure.path)}: {live.printable(failure.reason)}")
    if report.failed > 20:
        print(f"  and {report.failed - 20} more (--json lists them)")


class _Lines:
    """The paths on stdin, one on a line.

    A thread of its own reads them: nothing can interrupt that, and whoever has no use for more paths need not wait.

    Parameters
    ----------
    is_over : callable
        Whether no more paths are wanted.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        # Bounded, since whoever writes them may be faster than the peer. None: there are no more.
        self._paths: Queue[str | None] = Queue(1000)
        self._error: OSError | None = None

    def __iter__(self) -> Iterator[str]:
        threading.Thread(target=self._read, daemon=True).start()
        while not self._is_over():
            try:
                path = self._paths.get(timeout=_GLANCE)
            except Empty:
                continue
            if path is None:
                break
            yield path
        if self._error is not None:
            raise CommandError(
                f"the paths on stdin cannot be read: {self._error.strerror or self._error}"
            )

    def _read(self) -> None:
        try:
            # A stream of its own, since the thread may still be in it when the interpreter closes sys.stdin
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                if os.name == "posix":
                    # Where there is nothing yet would look like the end
                    os.set_blocking(stream.fileno(), True)
                for line in stream:
                    path = os.fsdecode(line.rstrip(b"\r\n"))
                    if path:
                        self._paths.put(path)
        except OSError as error:
            self._error = error
        finally:
            self._paths.put(None)


class _Stopper:
    """Turns SIGINT and SIGTERM into `Sender.cancel`: softly, then at once.

    Attributes
    ----------
    signal : int or None
        The first one that came.
    is_impatient : bool
        Whether another one has come.
    """

    def __init__(self, sender: Sender) -> None:
        self.signal: int | None = None
        self.is_impatient = False
        self._sender = sender

    def stop(self, number: int) -> None:
        """Handle a signal."""
        self.is_impatient = self.signal is not None
        if self.signal is None:
            self.signal = number
        self._sender.cancel(at_once=self.is_impatient)


class _View:
    """What is shown of a sender, and of the files that it will come to."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._rate = live.Rate()
        self._files = self._bytes = 0
        self._is_counted = self._is_closed = False

    def count(self, paths: Sequence[str]) -> None:
        """Begin to count files and bytes, on a thread of its own."""
        threading.Thread(target=self._count, args=(paths,), daemon=True).start()

    def close(self) -> None:
        """Stop counting."""
        self._is_closed = True

    def _count(self, paths: Sequence[str]) -> None:
        from fastpdu.sender.files import walk

        for path in walk(paths):
            if self._is_closed:
                return
            self._files += 1
            if isinstance(path, str):
                try:
                    self._bytes += os.stat(path).st_size
                except OSError:
                    continue
        self._is_counted = True

    def share(self) -> float | None:
        """Return how much is done, if that is known."""
        progress = self._sender.progress()
        if progress is None or not self._is_counted or not self._bytes:
            return None
        return min(1.0, progress.bytes_done / self._bytes)

    def summary(self) -> str:
        """Return a line that says how far it is."""
        progress = self._sender.progress()
        if progress is None:
            return "looking for files"
        rate = self._rate.update(progress.bytes)
        done = progress.sent + progress.already_sent + progress.failed + progress.skipped
        text = f"{done}"
        if self._is_counted:
            text += f" of {self._files}"
        text += f" files, {live.size(progress.bytes_done)}"
        if self._is_counted:
            text += f" of {live.size(self._bytes)}"
        text += f", {live.size(rate)}/s"
        left = self._bytes - progress.bytes_done
        if self._is_counted and rate > 0 and left > 0:
            text += f", {live.duration(left / rate)} to go"
        for number, what in ((progress.failed, "failed"), (progress.skipped, "skipped")):
            if number:
                text += f", {number} {what}"
        return text

    def rows(self) -> list[list[str]]:
        """Return a row for each association."""
        progress = self._sender.progress()
        if progress is None:
            return []
        return [
            [f"#{one.number}", one.state, f"{one.sent} files", live.size(one.bytes)]
            for one in progress.associations
        ]
