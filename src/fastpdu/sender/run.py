"""One run of a `Sender`: what its associations share, and the books."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from fastpdu.requestor import Peer
from fastpdu.sender.backlog import Backlog
from fastpdu.sender.files import FileItem, Key
from fastpdu.sender.journal import Journal
from fastpdu.sender.pacing import Pace, Patience
from fastpdu.sender.report import MAX_LISTED, Failure, GivenUp, Progress, Report

if TYPE_CHECKING:
    from fastpdu.options import TransportOptions
    from fastpdu.sender.worker import Worker

LOGGER = logging.getLogger("fastpdu.sender")
# Seconds between two calls of a progress callback
PROGRESS_SECONDS = 0.1


class Run:
    """What the associations of one run share.

    Parameters
    ----------
    peer : Peer
        To whom.
    options : TransportOptions or None
        How to move bytes.
    max_pdu : int or None
        The maximum length to announce.
    window : int or None
        Requests in flight on each association, at most. None: as many as were negotiated.
    retries : int
        How often a file is sent again.
    pace, patience : Pace, Patience
        How fast, and how long to wait.
    transcode : bool
        Whether pynetdicom may convert what the peer does not accept as it is.
    journal : Journal or None
        Where to note what was acknowledged.
    on_progress : callable or None
        To be told how far it is.

    Attributes
    ----------
    backlog : Backlog
        The files that wait.
    report : Report
        The books.
    room : queue.SimpleQueue
        Has an entry for each file that leaves the backlog, and for whatever else the filling thread has to look at.
        (Putting something into it is all that a signal handler can do safely.)
    refused : dict of Key and str
        What the peer does not accept, and why we think so.
    is_aborting : bool
        Whether what is on its way is given up, too.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        options: TransportOptions | None,
        max_pdu: int | None,
        window: int | None,
        retries: int,
        pace: Pace,
        patience: Patience,
        transcode: bool,
        journal: Journal | None,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self.peer = peer
        self.options = options
        self.max_pdu = max_pdu
        self.window = window
        self.retries = retries
        self.pace = pace
        self.patience = patience
        self.transcode = transcode
        self.journal = journal
        self.report = Report()
        self.room: SimpleQueue[None] = SimpleQueue()
        self.backlog = Backlog(lambda: self.room.put(None))
        self.refused: dict[Key, str] = {}
        self.workers: list[Worker] = []
        self.is_aborting = False
        self.is_listed = False
        self._on_progress = on_progress
        self._passed = 0
        self._told = 0.0
        self._telling = threading.Lock()
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    # The books ------------------------------------------------------------------------------------------------------

    def found(self, count: int = 1) -> None:
        """A file was found."""
        with self._lock:
            self.report.found += count

    def passed(self, size: int) -> None:
        """So many bytes need not, or cannot, be sent."""
        with self._lock:
            self._passed += size

    def skipped(self, path: str, reason: str) -> None:
        """A file is no DICOM instance."""
        LOGGER.info("Skipped: %s: %s", path, reason)
        with self._lock:
            self.report.skipped += 1
            if len(self.report.skips) < MAX_LISTED:
                self.report.skips.append(Failure(path, "not-dicom", reason))

    def failed(self, failure: Failure) -> None:
        """A file is not sent."""
        LOGGER.warning("Not sent: %s: %s", failure.path, failure.reason)
        with self._lock:
            self.report.failed += 1
            if len(self.report.failures) < MAX_LISTED:
                self.report.failures.append(failure)
        self.tell()

    def not_sent(self, item: FileItem, kind: str, reason: str, status: int | None = None) -> None:
        """A file is not sent, after what was tried."""
        self.passed(item.size)
        self.failed(Failure(item.path, kind, reason, item.sop_instance, status, item.attempts))

    def acknowledged(self, item: FileItem, status: int, is_warning: bool) -> None:
        """The peer has acknowledged a file."""
        with self._lock:
            self.report.sent += 1
            self.report.warnings += is_warning
            self.report.bytes += item.size
        self.patience.succeeded()
        if self.journal is not None:
            try:
                self.journal.acknowledged(item, status)
            except OSError as error:
                self.give_up(GivenUp(f"the journal cannot be written: {error}"))
        self.tell()

    def sent_again(self) -> None:
        """A file is sent once more."""
        with self._lock:
            self.report.retries += 1

    def associated(self) -> None:
        """An association was made."""
        with self._lock:
            self.report.associations += 1

    def refuse(self, key: Key, reason: str) -> None:
        """Note that the peer does not accept what a file holds."""
        self.refused.setdefault(key, reason)

    def give_up(self, why: GivenUp) -> None:
        """End the run before its files end."""
        with self._lock:
            if self.report.given_up is not None:
                return
            self.report.given_up = why
        LOGGER.error("Given up: %s", why.message)
        self.backlog.stop()
        self.room.put(None)

    # Progress -------------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return how far it is."""
        report = self.report
        associations = tuple(worker.progress() for worker in list(self.workers))
        sent = sum(association.bytes for association in associations)
        return Progress(
            report.found,
            report.sent,
            report.already_sent,
            report.failed,
            report.skipped,
            sent,
            sent + self._passed,
            time.monotonic() - self._begun,
            self.is_listed,
            associations,
        )

    def tell(self, is_last: bool = False) -> None:
        """Call the progress callback, if it is time to."""
        if self._on_progress is None:
            return
        if not is_last and time.monotonic() - self._told < PROGRESS_SECONDS:
            return
        # Whoever comes while another thread is at it need not tell the same
        if not self._telling.acquire(blocking=is_last):
            return
        try:
            self._told = time.monotonic()
            self._on_progress(self.progress())
        except Exception:
            LOGGER.exception("Exception in the callback on_progress")
        finally:
            self._telling.release()

    def close(self) -> Report:
        """Return the books, closed."""
        report = self.report
        report.seconds = time.monotonic() - self._begun
        settled = report.sent + report.failed + report.skipped + report.already_sent
        report.not_sent = max(0, report.found - settled - report.duplicates)
        report.is_complete = self.is_listed and not report.not_sent and report.given_up is None
        self.tell(is_last=True)
        return report
