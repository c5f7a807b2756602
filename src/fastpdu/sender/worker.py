"""One association of a `Sender`, made again when it is lost, and the thread that uses it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from fastpdu import requestor
from fastpdu.dsutils import exact_context
from fastpdu.sender.backlog import MAX_CONTEXTS
from fastpdu.sender.files import FileItem, Key
from fastpdu.sender.report import AssociationProgress, GivenUp
from fastpdu.store_many import AssociationEnded

if TYPE_CHECKING:
    from pynetdicom.presentation import PresentationContext

    from fastpdu.association import AssociationMixin
    from fastpdu.sender.run import Run
    from fastpdu.store_many import StoreResult

LOGGER = logging.getLogger("fastpdu.sender")

# What pynetdicom converts into what (`Association._get_valid_context`)
_OTHER_SYNTAX = {
    str(ExplicitVRLittleEndian): str(ImplicitVRLittleEndian),
    str(ImplicitVRLittleEndian): str(ExplicitVRLittleEndian),
}
# What `send_c_store` raises if there is no association (any more)
_LOST = (RuntimeError, ConnectionError, TimeoutError)
# Resource limitation (PS3.7 C.5.22)
_RESOURCE_LIMITATION = 0x0213


def is_transient(status: int) -> bool:
    """Whether a failure status is one that may be another a little later: A7xxH, 0213H."""
    return status & 0xFF00 == 0xA700 or status == _RESOURCE_LIMITATION


def describe(status: Any) -> str:
    """Return a status of the storage service in words.

    Parameters
    ----------
    status : pydicom.dataset.Dataset
        What `send_c_store` returns.
    """
    code = status.Status
    text = STORAGE_SERVICE_CLASS_STATUS.get(code, ("", ""))[1]
    if not text and code & 0xFF00 == 0xA700:
        text = "Refused: Out of Resources"
    comment = status.get("ErrorComment")
    parts = [part for part in (text or code_to_category(code), comment) if part]
    return f"status 0x{code:04X} ({'; '.join(map(str, parts))})"


def _context(sop_class: str, syntax: str) -> PresentationContext:
    """Return the presentation context for a kind of file, or raise ValueError."""
    for uid in (sop_class, syntax):
        # pynetdicom finds that out when it encodes the request, with all others in it
        if not uid.isascii():
            raise ValueError(f"{uid!r} is not a UID")
    return build_context(sop_class, syntax)


class Worker(threading.Thread):
    """Sends files over one association at a time until there are no more.

    Parameters
    ----------
    run : Run
        What it shares with the others.
    number : int
        Which one it is, from 1.

    Attributes
    ----------
    is_done : bool
        Whether it will send nothing any more.
    """

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(name=f"fastpdu-sender-{number}", daemon=True)
        self._run = run
        self._number = number
        self._state = "idle"
        self.is_done = False
        self._assoc: AssociationMixin | None = None
        # What it can carry
        self._keys: frozenset[Key] = frozenset()
        # Files that it has taken and that are to be sent (again)
        self._again: deque[FileItem] = deque()
        self._flight: dict[int, FileItem] = {}
        self._is_retired = False
        self._sent = self._bytes = 0
        # Bytes of the files that this association is done with
        self._settled = 0
        # Whether nothing can be sent over the association any more
        self._is_over = False
        # Why the peer should be left alone for a moment
        self._trouble: str | None = None
        # Whether another file comes next: is it the peer that has no room, or has one file no place there?
        self._tries_another = False

    def run(self) -> None:
        """Send files until there are no more."""
        run = self._run
        try:
            while not run.backlog.is_stopped and not self._is_retired:
                delay = run.pace.delay()
                if delay:
                    self._wait(delay)
                    continue
                item = self._next()
                if item is None:
                    break
                self._serve(item)
        except Exception as error:
            LOGGER.exception("Exception in a thread of a Sender")
            run.give_up(GivenUp(f"{type(error).__name__}: {error}"))
        finally:
            try:
                self._disconnect()
            finally:
                self._state = "closed"
                self.is_done = True
                run.room.put(None)

    def abort(self) -> None:
        """End the association at once, whatever is on its way. From any thread."""
        assoc = self._assoc
        if assoc is not None and assoc.is_established:
            assoc.abort()

    def progress(self) -> AssociationProgress:
        """Return what it is doing."""
        on_its_way = sum(item.size for item in list(self._flight.values()))
        connection = getattr(getattr(self._assoc, "dul", None), "connection", None)
        if on_its_way and connection is not None:
            on_its_way = max(0, min(on_its_way, connection.bytes_sent - self._settled))
        return AssociationProgress(self._number, self._state, self._sent, self._bytes + on_its_way)

    def _wait(self, seconds: float) -> None:
        self._state = "waiting"
        self._run.backlog.pause(seconds)

    def _next(self) -> FileItem | None:
        """Return the file to be sent next, None if there are no more."""
        if self._tries_another:
            self._tries_another = False
            item = self._run.backlog.take(self._keys)
            if item is not None:
                return item
        if self._again:
            return self._again.popleft()
        self._state = "idle"
        return self._run.backlog.wait(self._keys)

    def _serve(self, item: FileItem) -> None:
        """Send a file, and others with it, or put it aside."""
        reason = self._run.refused.get(item.key)
        if reason is not None:
            self._run.not_sent(item, "context", reason)
            return
        assoc = self._assoc
        if assoc is not None and assoc.is_established and item.key in self._keys:
            self._send(assoc, item)
            return
        self._disconnect()
        begun = time.monotonic()
        try:
            assoc = self._associate(item.key)
        except requestor.AssociationError as error:
            self._again.appendleft(item)
            self._not_associated(error, begun)
            return
        if assoc is not None and item.key in self._keys:
            self._send(assoc, item)
        else:
            self._again.appendleft(item)

    # The association ------------------------------------------------------------------------------------------------

    def _associate(self, first: Key) -> AssociationMixin | None:
        """Request an association that can carry a kind of file, and others that wait or have been seen."""
        run = self._run
        self._state = "connecting"
        limit = MAX_CONTEXTS // 2 if run.transcode else MAX_CONTEXTS
        kinds = [kind for kind in run.backlog.kinds(first, limit) if kind not in run.refused]
        contexts: dict[Key, PresentationContext] = {}
        for kind in kinds:
            for key in self._carriers(kind):
                try:
                    contexts.setdefault(key, _context(*key))
                except ValueError as error:
                    run.refuse(kind, f"no presentation context can be made for it: {error}")
        if not contexts:
            return None
        try:
            assoc = requestor.request(
                run.peer,
                list(contexts.values()),
                run.options,
                needs_all=False,
                async_window=run.window,
                max_pdu=run.max_pdu,
            )
        except requestor.AssociationError as error:
            if error.cause is not requestor.NO_CONTEXT:
                raise
            self._refuse(kinds)
            return None
        run.associated()
        self._settled = 0
        self._keys = frozenset(
            kind
            for kind in kinds
            if any(exact_context(assoc, *key) is not None for key in self._carriers(kind))
        )
        self._refuse(kind for kind in kinds if kind not in self._keys)
        self._assoc = assoc
        if run.is_aborting:
            # It was made after the others had been aborted
            self.abort()
        return assoc

    def _carriers(self, kind: Key) -> list[Key]:
        """Return the presentation contexts that can carry a kind of file: SOP class and transfer syntax."""
        sop_class, syntax = kind
        if self._run.transcode and syntax in _OTHER_SYNTAX:
            return [kind, (sop_class, _OTHER_SYNTAX[syntax])]
        return [kind]

    def _refuse(self, kinds: Any) -> None:
        for kind in kinds:
            sop_class, syntax = kind
            self._run.refuse(
                kind, f"the peer does not accept {UID(sop_class).name} in {UID(syntax).name}"
            )

    def _not_associated(self, error: requestor.AssociationError, begun: float) -> None:
        """Wait before the next attempt, or leave it to others, or give up."""
        run = self._run
        has_others = any(worker.is_established for worker in run.workers)
        # Who has let us in before may do so again
        if error.cause.is_transient or (run.report.associations and not has_others):
            self._calm_down(str(error), begun, error.cause)
        elif has_others:
            # One more is not wanted
            LOGGER.warning("%s; going on with fewer associations", error)
            self._is_retired = True
            while self._again:
                run.backlog.give_back(self._again.pop())
        else:
            run.give_up(GivenUp(str(error), error.cause))

    @property
    def is_established(self) -> bool:
        """Whether it has an association."""
        assoc = self._assoc
        return assoc is not None and assoc.is_established

    def _calm_down(self, text: str, begun: float, cause: requestor.Cause | None = None) -> None:
        """Wait after a failure that may be none a little later, or give up."""
        run = self._run
        if run.backlog.is_stopped:
            return
        delay = run.patience.failed(begun)
        if delay is None:
            run.give_up(GivenUp(text, cause))
            return
        LOGGER.warning("%s; trying again in %.1f s", text, delay)
        self._wait(delay)

    def _disconnect(self) -> None:
        assoc, self._assoc = self._assoc, None
        self._keys = frozenset()
        if assoc is not None and assoc.is_established:
            if self._run.is_aborting:
                assoc.abort()
            else:
                assoc.release()

    # Files ----------------------------------------------------------------------------------------------------------

    def _send(self, assoc: AssociationMixin, first: FileItem) -> None:
        """Send files as long as there are some that fit, and settle what becomes of each."""
        run = self._run
        self._state = "sending"
        self._trouble = None
        self._is_over = False
        self._again.appendleft(first)
        begun = time.monotonic()
        try:
            # (a FileItem is a PathLike)
            paths: Any = self._items(is_alone=first.is_suspect)
            window = 1 if first.is_suspect else run.window
            for result in assoc.send_c_store_many(paths, window):
                self._settle(assoc, result)
        except Exception as error:
            # Whatever it is, what was on its way has no answer
            LOGGER.warning("Sending was interrupted: %s: %s", type(error).__name__, error)
            LOGGER.debug("", exc_info=True)
            if assoc.is_established:
                assoc.abort()
        if self._is_over and assoc.is_established:
            assoc.abort()
        if self._flight:
            self._unanswered()
        if self._trouble is not None:
            self._calm_down(self._trouble, begun)

    def _items(self, is_alone: bool) -> Iterator[FileItem]:
        """Yield files as long as there is one at once; responses are not read while the next one is waited for."""
        run = self._run
        item: FileItem | None = self._again.popleft()
        while item is not None:
            if item.attempts:
                run.sent_again()
            item.attempts += 1
            self._flight[id(item)] = item
            run.pace.charge(item.size)
            yield item
            if is_alone or self._trouble is not None or run.backlog.is_stopped or run.pace.delay():
                return
            item = self._more()

    def _more(self) -> FileItem | None:
        if not self._again:
            return self._run.backlog.take(self._keys)
        item = self._again[0]
        if item.is_suspect or item.key not in self._keys:
            return None
        return self._again.popleft()

    def _settle(self, assoc: AssociationMixin, result: StoreResult) -> None:
        """Do what the outcome of a file asks for."""
        item: FileItem = result.item
        run = self._run
        if result.error is not None:
            self._flight.pop(id(item))
            self._settle_unsent(assoc, item, result.error)
            return
        if not result.is_answered:
            # `_unanswered` will see to it
            return
        status = result.status
        code: int = status.Status
        self._flight.pop(id(item))
        self._settled += item.size
        category = code_to_category(code)
        if category in ("Success", "Warning"):
            self._sent += 1
            self._bytes += item.size
            run.acknowledged(item, code, category == "Warning")
        elif not is_transient(code) or item.attempts > run.retries:
            run.not_sent(item, "status", describe(status), code)
        else:
            self._trouble = f"{run.peer} answers with {describe(status)}"
            self._tries_another = True
            self._again.append(item)

    def _settle_unsent(self, assoc: AssociationMixin, item: FileItem, error: Exception) -> None:
        """A file was not sent at all: it is its own fault, or that of the association."""
        is_unreadable = isinstance(error, (OSError, EOFError)) and not isinstance(error, _LOST)
        if isinstance(error, AssociationEnded):
            # It may not know yet that it has
            item.attempts -= 1
            self._is_over = True
        elif not assoc.is_established and not is_unreadable:
            item.attempts -= 1
        elif not isinstance(error, _LOST) or item.attempts > self._run.retries:
            kind = "unreadable" if is_unreadable else "not-sendable"
            self._run.not_sent(item, kind, str(error) or type(error).__name__)
            return
        self._again.append(item)
        self._trouble = self._end_of_association()

    def _end_of_association(self) -> str:
        return f"{self._run.peer} ended the association, or did not answer in time"

    def _unanswered(self) -> None:
        """Files were on their way when the association was lost: whether they have arrived is not known."""
        run = self._run
        lost = list(self._flight.values())
        self._flight.clear()
        for item in reversed(lost):
            if item.attempts > run.retries and not run.backlog.is_stopped:
                run.not_sent(item, "lost", "no answer: the association was lost each time")
            else:
                item.is_suspect = True
                self._again.appendleft(item)
                self._trouble = self._end_of_association()
                self._tries_another = True
