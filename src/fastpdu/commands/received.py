"""What `fastpdu recv` has received, in all and by association: counted, told, shown."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fastpdu.commands import live

if TYPE_CHECKING:
    from pynetdicom import evt

    from fastpdu.filestore import StoredInstance


class _Association:
    """What has come over one association."""

    def __init__(self, assoc: Any) -> None:
        self.title = assoc.requestor.ae_title
        self.address = assoc.remote["address"]
        self.files = self.bytes = 0
        # Requests that are being served; more than one if the window allows it
        self.answering = 0


class Books:
    """What has been received, in all and by association.

    Parameters
    ----------
    in_json : bool
        Whether each event is a line of JSON on stdout.
    """

    def __init__(self, in_json: bool) -> None:
        self._in_json = in_json
        self._lock = threading.Lock()
        self._printing = threading.Lock()
        self._associations: dict[Any, _Association] = {}
        # The thread that notices the end of a connection need not wait for the one that accepts the association
        self._closed: WeakSet[Any] = WeakSet()
        self._current = threading.local()
        self._begun = time.monotonic()
        self.files = self.bytes = self.kept = self.failed = self.accepted_count = 0
        self.rejected_count = 0

    def event(self, name: str, **values: Any) -> None:
        """Print an event as a line of JSON, if that is wanted."""
        if not self._in_json:
            return
        line = json.dumps({"event": name, **values})
        with self._printing:
            try:
                # What is acknowledged is not told later than it has to be
                print(line, flush=True)
            except BrokenPipeError:
                # Nobody reads any more; storing goes on
                self._in_json = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    # Handlers -------------------------------------------------------------------------------------------------------

    def accepted(self, event: evt.Event) -> None:
        """Handle EVT_ACCEPTED."""
        with self._lock:
            self.accepted_count += 1
            one = _Association(event.assoc)
            is_closed = event.assoc in self._closed
            if not is_closed:
                self._associations[event.assoc] = one
        self.event("accepted", calling=one.title, address=one.address)
        if is_closed:
            self._tell_closed(one)

    def rejected(self, event: evt.Event) -> None:
        """Handle EVT_REJECTED."""
        with self._lock:
            self.rejected_count += 1
        self.event(
            "rejected",
            calling=event.assoc.requestor.ae_title,
            address=event.assoc.remote["address"],
        )

    def closed(self, event: evt.Event) -> None:
        """Handle EVT_CONN_CLOSE."""
        with self._lock:
            self._closed.add(event.assoc)
            one = self._associations.pop(event.assoc, None)
        if one is not None:
            self._tell_closed(one)

    def _tell_closed(self, one: _Association) -> None:
        self.event(
            "closed", calling=one.title, address=one.address, files=one.files, bytes=one.bytes
        )

    def begun(self, assoc: Any) -> None:
        """A request is being served."""
        with self._lock:
            one = self._associations.get(assoc)
            if one is not None:
                one.answering += 1
        self._current.association = one

    def answered(self, assoc: Any) -> None:
        """A request has been served."""
        with self._lock:
            one = self._associations.get(assoc)
            if one is not None:
                one.answering -= 1

    def is_answering(self, assoc: Any) -> bool:
        """Whether a response is due on an association."""
        one = self._associations.get(assoc)
        return one is not None and one.answering > 0

    def stored(self, path: Path, info: StoredInstance) -> None:
        """An instance is stored, and its response has left."""
        one: _Association | None = getattr(self._current, "association", None)
        with self._lock:
            self.files += 1
            self.bytes += info.length
            self.kept += info.is_kept
            if one is not None:
                one.files += 1
                one.bytes += info.length
                one.answering -= 1
        if self._in_json:
            self.event(
                "stored",
                path=str(path),
                sop_class_uid=info.sop_class_uid,
                sop_instance_uid=info.sop_instance_uid,
                transfer_syntax_uid=info.transfer_syntax_uid,
                calling=info.calling_ae_title,
                address=info.address,
                bytes=info.length,
                is_kept=info.is_kept,
            )

    def refused(self, event: evt.Event, status: Any) -> None:
        """An instance is not stored."""
        request: Any = event.request
        with self._lock:
            self.failed += 1
            one = self._associations.get(event.assoc)
            if one is not None:
                one.answering -= 1
        if self._in_json:
            code = status if isinstance(status, int) else status.Status
            self.event(
                "refused",
                sop_instance_uid=request.AffectedSOPInstanceUID,
                calling=event.assoc.requestor.ae_title,
                address=event.assoc.remote["address"],
                status=f"0x{code:04X}",
                reason=None if isinstance(status, int) else status.get("ErrorComment"),
            )

    # What is shown --------------------------------------------------------------------------------------------------

    def totals(self) -> dict[str, Any]:
        """Return all counts."""
        return {
            "files": self.files,
            "bytes": self.bytes,
            "kept": self.kept,
            "refused": self.failed,
            "associations": self.accepted_count,
            "associations_rejected": self.rejected_count,
            "seconds": round(time.monotonic() - self._begun, 3),
        }

    def conclusion(self) -> str:
        """Return what the program says at its end."""
        text = (
            f"{self.files} stored ({live.size(self.bytes)}) over {self.accepted_count} associations"
        )
        for count, what in (
            (self.kept, "of them were there already"),
            (self.failed, "refused"),
            (self.rejected_count, "associations rejected"),
        ):
            if count:
                text += f", {count} {what}"
        return text

    def associations(self) -> list[_Association]:
        """Return those that are open."""
        with self._lock:
            return list(self._associations.values())


class View:
    """What is shown while it runs."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._rate = live.Rate()

    def summary(self) -> str:
        """Return a line that says what has come."""
        books = self._books
        text = f"{books.files} files, {live.size(books.bytes)}, {live.size(self._rate.update(books.bytes))}/s, "
        text += f"{len(books.associations())} associations"
        if books.failed:
            text += f", {books.failed} refused"
        return text

    def rows(self) -> list[list[str]]:
        """Return a row for each association."""
        return [
            [live.printable(one.title), one.address, f"{one.files} files", live.size(one.bytes)]
            for one in self._books.associations()
        ]
