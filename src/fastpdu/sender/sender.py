"""Sender: many files to one destination."""

from __future__ import annotations

import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastpdu import compatibility
from fastpdu.engine import HARD_PDU_CAP, MIN_PDU
from fastpdu.options import TransportOptions, checked
from fastpdu.requestor import Peer
from fastpdu.sender.files import FileItem, NotSendable, examine, walk
from fastpdu.sender.journal import Journal
from fastpdu.sender.pacing import Pace, Patience
from fastpdu.sender.report import Failure, Progress, Report
from fastpdu.sender.run import Run
from fastpdu.sender.worker import Worker

# Files that are known and wait
_MAX_WAITING = 2048
# Seconds to wait for threads that were told to end at once: they may be connecting
_LAST_WORDS = 2.0


class Sender:
    """Sends many files to one destination, over one or more associations.

    >>> sender = fastpdu.Sender("pacs.example", 104, called_ae_title="PACS", associations=4, journal="run.journal")
    >>> report = sender.send(["/data/studies"])
    >>> report.sent, report.failed
    (12000, 0)

    Presentation contexts are chosen from the files: one for each combination of SOP class and transfer syntax, so that
    the peer's choice never asks for a conversion. What fails for the moment (no connection, an association rejected for
    now, a lost association, statuses A7xxH and 0213H) is tried again, with waits that get longer. A file is *sent* when
    a response with Success or a Warning was read; if it is not known whether it has arrived, it is sent again.

    Parameters
    ----------
    host : str
        Name or address of the peer.
    port : int
        Its TCP port.
    ae_title, called_ae_title : str
        AE titles: ours and the peer's.
    associations : int
        How many associations at the same time, at most.
    window : int, optional
        Requests on their way on each association, at most (PS3.7 D.3.3.3): more than 1 if the peer agrees. By default
        what the transport's options offer (`async_window`), which is 1 if nobody has set it.
    max_pdu : int, optional
        The maximum length that we announce, in bytes; 0: no limit.
    tls : ssl.SSLContext, optional
        Use TLS: `fastpdu.tls.client_context`.
    journal : path, optional
        A file that notes what was acknowledged. With the same file a later run leaves those files out, whatever has
        ended the earlier one. It is made if it is not there.
    retries : int
        How often a file is sent again, and how many attempts of any kind may fail one after another.
    retry_delay, retry_delay_max : float
        Seconds before the first new attempt, and at most. It doubles each time; a random part of up to a half is
        taken off.
    transcode : bool
        Whether data sets in Explicit VR Little Endian may be sent in Implicit VR Little Endian, and the other way
        round, where the peer does not accept what the file has: pynetdicom decodes and encodes them. It converts
        nothing else.
    rate : float, optional
        Bytes per second, over all associations, on the average over files.
    strict : bool
        Whether a file that is no DICOM instance counts as failed, not as skipped.
    connection_timeout, acse_timeout, dimse_timeout : float
        Seconds: for the TCP connection, for answers to association requests, for each response.
    transport : TransportOptions, optional
        How to move bytes.
    on_progress : callable, optional
        Called with a `Progress`, on any thread, one at a time, ten times a second at most, and at the end.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ae_title: str = "FASTPDU",
        called_ae_title: str = "ANY-SCP",
        associations: int = 1,
        window: int | None = None,
        max_pdu: int | None = None,
        tls: ssl.SSLContext | None = None,
        journal: str | os.PathLike[str] | None = None,
        retries: int = 5,
        retry_delay: float = 1.0,
        retry_delay_max: float = 60.0,
        transcode: bool = False,
        rate: float | None = None,
        strict: bool = False,
        connection_timeout: float = 10.0,
        acse_timeout: float = 30.0,
        dimse_timeout: float = 30.0,
        transport: TransportOptions | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        compatibility.check()
        if not isinstance(host, str) or not host:
            raise TypeError(f"host must be a name or an address, not {host!r}")
        _whole("port", port, 1, 65535)
        _whole("associations", associations, 1, 1000)
        if window is not None:
            _whole("window", window, 1, 65535)
        _whole("retries", retries, 0, 10**6)
        if max_pdu is not None and max_pdu != 0:
            _whole("max_pdu", max_pdu, MIN_PDU, HARD_PDU_CAP)
        for name, value in (
            ("retry_delay", retry_delay),
            ("retry_delay_max", retry_delay_max),
            ("connection_timeout", connection_timeout),
            ("acse_timeout", acse_timeout),
            ("dimse_timeout", dimse_timeout),
            ("rate", 1 if rate is None else rate),
        ):
            _positive(name, value)
        if tls is not None and not isinstance(tls, ssl.SSLContext):
            raise TypeError(f"tls must be an ssl.SSLContext, not {type(tls).__name__}")
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"on_progress must be callable, not {type(on_progress).__name__}")
        for name, title in (("ae_title", ae_title), ("called_ae_title", called_ae_title)):
            _title(name, title)
        self.peer = Peer(
            *(host, port, ae_title, called_ae_title),
            *(connection_timeout, acse_timeout, dimse_timeout, tls),
        )
        self._max_pdu = max_pdu
        self._associations = associations
        self._window = window
        self._journal = None if journal is None else os.fspath(journal)
        self._retries = retries
        self._delays = retry_delay, retry_delay_max
        self._transcode = bool(transcode)
        self._rate = rate
        self._strict = bool(strict)
        self._transport = checked(transport)
        self._on_progress = on_progress
        self._sending = threading.Lock()
        self._run: Run | None = None
        # 1: no new file is sent; 2: what is on its way is given up
        self._cancelled = 0
        self._has_sent = False

    def send(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Report:
        """Send files, and return when all of them have been sent, or have failed.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, and directories, which are looked through with all that is below them. Taken from an iterator (on
            this thread) as they are needed: it may be endless.

        Returns
        -------
        Report
            What has become of them.

        Raises
        ------
        RuntimeError
            If this `Sender` is sending on another thread.
        fastpdu.sender.JournalError, OSError
            If the journal cannot be used.
        """
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        if not self._sending.acquire(blocking=False):
            raise RuntimeError("This Sender is sending already: one run at a time")
        journal = None
        try:
            if self._journal is not None:
                journal = Journal(self._journal, self.peer)
            run = self._run = self._new_run(journal)
            try:
                self._fill(run, paths)
                run.backlog.complete()
                self._finish(run)
            except BaseException:
                # An interrupt, or an error of the iterator
                run.is_aborting = True
                self._stop(run)
                raise
            return run.close()
        finally:
            if journal is not None:
                journal.close()
            self._cancelled = 0
            self._has_sent = True
            self._sending.release()

    def cancel(self, *, at_once: bool = False) -> None:
        """End `send` soon, with a report. From any thread, or a signal handler.

        Before the first `send` it ends that one; between two there is nothing to be ended.

        Parameters
        ----------
        at_once : bool
            Whether to abort the associations. Otherwise the answers to what is on its way are waited for.
        """
        if self._has_sent and not self._sending.locked():
            # Too late, and not meant for the next
            return
        self._cancelled = max(self._cancelled, 2 if at_once else 1)
        run = self._run
        if run is not None:
            run.room.put(None)

    @property
    def is_stopping(self) -> bool:
        """Whether `send` will send no more files: it was cancelled, or has given up. From any thread.

        For an iterable of paths that waits for the next one, and might do so for ever.
        """
        run = self._run
        return self._cancelled > 0 or (run is not None and run.backlog.is_stopped)

    def progress(self) -> Progress | None:
        """Return how far `send` is, or was at its end; None before the first. From any thread."""
        run = self._run
        return None if run is None else run.progress()

    # The thread that fills the backlog --------------------------------------------------------------------------------

    def _new_run(self, journal: Journal | None) -> Run:
        return Run(
            self.peer,
            options=self._transport,
            max_pdu=self._max_pdu,
            window=self._window,
            retries=self._retries,
            pace=Pace(self._rate),
            patience=Patience(self._retries, *self._delays),
            transcode=self._transcode,
            journal=journal,
            on_progress=self._on_progress,
        )

    def _is_over(self, run: Run) -> bool:
        """Whether no more files are to be sent; does what `cancel` has asked for."""
        if self._cancelled and not run.backlog.is_stopped:
            run.report.is_cancelled = True
            run.backlog.stop()
        if self._cancelled > 1 and not run.is_aborting:
            run.is_aborting = True
            for worker in run.workers:
                worker.abort()
        return run.backlog.is_stopped

    def _fill(self, run: Run, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Put the files into the backlog as there is room, and start associations as there is work for them."""
        room = _MAX_WAITING
        for path in walk(paths):
            if self._is_over(run):
                return
            item = self._examine(run, path)
            if item is None:
                continue
            while not room:
                run.room.get()
                room += 1
                if self._is_over(run):
                    return
            run.backlog.put(item)
            room -= 1
            if len(run.workers) < self._associations:
                self._start_worker(run)
        # (an iterable that knows `is_stopping` ends early)
        run.is_listed = not self._is_over(run)

    def _examine(self, run: Run, path: str | OSError) -> FileItem | None:
        """Return a file that is to be sent; enter any other into the books."""
        run.found()
        if isinstance(path, OSError):
            run.failed(Failure(str(path.filename), "unreadable", path.strerror or str(path)))
            return None
        try:
            item = examine(path)
        except NotSendable as error:
            run.passed(_size(path))
            if self._strict:
                run.failed(Failure(path, "not-dicom", str(error)))
            else:
                run.skipped(path, str(error))
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            run.failed(Failure(path, "unreadable", reason))
            return None
        known = None if run.journal is None else run.journal.claim(item)
        if known is not None:
            run.passed(item.size)
        if known == "already sent":
            run.report.already_sent += 1
        elif known == "duplicate":
            run.report.duplicates += 1
        return item if known is None else None

    def _finish(self, run: Run) -> None:
        """Wait for the associations to end."""
        while not self._is_over(run) or not run.is_aborting:
            if not all(worker.is_done for worker in run.workers):
                run.room.get()
            elif len(run.backlog) and not run.backlog.is_stopped:
                # Given back by one, at the moment when the last of the others had nothing to do any more
                self._start_worker(run)
            else:
                break
        self._join(run)

    def _start_worker(self, run: Run) -> None:
        worker = Worker(run, len(run.workers) + 1)
        run.workers.append(worker)
        worker.start()

    def _stop(self, run: Run) -> None:
        """End the associations at once."""
        run.backlog.stop()
        for worker in run.workers:
            worker.abort()
        self._join(run)

    def _join(self, run: Run) -> None:
        deadline = time.monotonic() + _LAST_WORDS
        for worker in run.workers:
            worker.join(max(0.0, deadline - time.monotonic()) if run.is_aborting else None)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {value}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be more than 0, not {value}")


def _title(name: str, title: Any) -> None:
    if not isinstance(title, str):
        raise TypeError(f"{name} must be a str, not {title!r}")
    if not 0 < len(title.strip(" ")) <= 16 or not title.isascii() or "\\" in title:
        raise ValueError(
            f"{name} must be 1 to 16 ASCII characters, without a backslash, not {title!r}"
        )
