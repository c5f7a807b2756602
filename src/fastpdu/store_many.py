"""C-STORE requests in flight: `send_c_store_many` sends the next before the last has been answered (PS3.7 D.3.3.3).

Everything happens on the thread that asks for the next result. Between two results the association is its own: its
reactor may serve the peer, and the user may do other operations, which first wait for the answers that are due.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pynetdicom import _config
from pynetdicom import association as stock
from pynetdicom.dimse_primitives import C_STORE

from fastpdu import dsutils
from fastpdu.dimse import get_stored, is_ours, send_encoded
from fastpdu.dimse_messages import Encoded, encode_store_request
from fastpdu.window import MOST, SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from fastpdu.association import AssociationMixin

# pynetdicom's logger, since an association says it
LOGGER = logging.getLogger("pynetdicom.association")

# Types of a single item, all of which could be iterated over
_SINGLE = (str, bytes, os.PathLike, Dataset)


class AssociationEnded(RuntimeError):
    """An item was not sent since there is no association any more."""


@dataclass(frozen=True, eq=False)
class StoreResult:
    """What became of one item of `send_c_store_many`.

    Attributes
    ----------
    item : str, PathLike or pydicom.dataset.Dataset
        The item.
    sop_instance_uid : str or None
        Its SOP Instance UID; None if it could not be read.
    status : pydicom.dataset.Dataset
        The status that `send_c_store` would return: with a *Status* (0000,0900) if the peer has answered, else empty.
    error : Exception or None
        Why the item has not been sent at all: what `send_c_store` would raise. If it is None and the status is empty,
        the request has left and no answer has come: the peer may or may not have stored the instance.
    sop_class_uid : str or None
        Its SOP Class UID.
    message_id : int or None
        The Message ID of the request, None if it has not been sent.
    """

    item: Any
    sop_instance_uid: str | None
    status: Dataset
    error: Exception | None = None
    sop_class_uid: str | None = None
    message_id: int | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the peer has answered, whatever it said."""
        return "Status" in self.status


class _Prepared:
    """A request that can be sent.

    Attributes
    ----------
    sop_class, sop_instance : str
        What it stores.
    context_id : int
        The presentation context ID that it is sent under.
    encoded : Encoded or None
        The message, if it needs no primitive.
    make_request : callable
        Makes the primitive, should it be needed.
    source : StoreSource or None
        What has to be closed when it has been sent.
    """

    __slots__ = ("context_id", "encoded", "make_request", "sop_class", "sop_instance", "source")

    def __init__(
        self,
        sop_class: str,
        sop_instance: str,
        context_id: int,
        make_request: Callable[[], Any],
        encoded: Encoded | None = None,
        source: dsutils.StoreSource | None = None,
    ) -> None:
        self.sop_class = sop_class
        self.sop_instance = sop_instance
        self.context_id = context_id
        self.make_request = make_request
        self.encoded = encoded
        self.source = source


class _Preparation:
    """Stands in for an association in pynetdicom's `send_c_store`, which then does everything but send.

    Attributes
    ----------
    request : C_STORE or None
        The request that would have been sent.
    context_id : int
        Its presentation context ID.
    """

    is_established = _is_paused = True

    def __init__(self, assoc: AssociationMixin) -> None:
        self._get_valid_context = assoc._get_valid_context
        self.dimse = self._reactor_checkpoint = self
        self.request: Any = None
        self.context_id = 0

    def clear(self) -> None:
        """In place of closing the checkpoint."""

    def set(self) -> None:
        """In place of opening the checkpoint."""

    def send_msg(self, request: Any, context_id: int) -> None:
        """In place of sending the request."""
        self.request, self.context_id = request, context_id

    def get_msg(self, block: bool) -> tuple[None, None]:
        """In place of waiting for the response."""
        return None, None

    def _handle_no_response(self) -> None:
        """In place of aborting."""


class Pipeline:
    """The C-STORE requests of one `send_c_store_many`, and what became of them.

    Parameters
    ----------
    assoc : AssociationMixin
        The association.
    items : iterator
        What is to be sent. No more is taken from it than can be sent.
    window : int
        The requests that may be in flight.
    parameters : tuple of (int, str or None, int or None)
        Priority, Move Originator AE Title and Message ID of the requests.
    """

    def __init__(
        self,
        assoc: AssociationMixin,
        items: Iterator[Any],
        window: int,
        parameters: tuple[int, str | None, int | None],
    ) -> None:
        self._assoc = assoc
        self._items = items
        self._window = window
        self._parameters = parameters
        # By Message ID, in the order of sending: item and its UIDs
        self._in_flight: dict[int, tuple[Any, str, str]] = {}
        self._results: deque[StoreResult] = deque()
        # The association has ended, or is about to
        self._is_over = False

    def results(self) -> Iterator[StoreResult]:
        """Send the items and yield what became of each.

        Yields
        ------
        StoreResult
            As the answers come.
        """
        is_exhausted = False
        failure: Exception | None = None
        while True:
            if not is_exhausted and len(self._in_flight) < self._window:
                try:
                    item = next(self._items)
                except StopIteration:
                    is_exhausted = True
                except Exception as error:
                    # What is in flight comes first
                    is_exhausted, failure = True, error
                else:
                    self._take_turn(self._send, item)
            elif self._in_flight:
                self._take_turn(self._wait)
            elif not self._results:
                break
            while self._results:
                yield self._results.popleft()
        if failure is not None:
            raise failure

    # Turns --------------------------------------------------------------------------------------------------------

    def _take_turn(self, action: Callable[..., None], *args: Any) -> None:
        """Do something with the association to ourselves."""
        assoc = self._assoc
        with assoc._turns:
            before = assoc._pipeline
            if before is not None and before is not self:
                before.settle()
            self._pause_reactor()
            # Only now: until it pauses, the reactor may take the last answer that was due
            assoc._pipeline = self
            assoc.dul.direct.expect_many(self._window)
            try:
                action(*args)
            finally:
                self._done_if_answered()
                assoc._reactor_checkpoint.set()

    def settle(self) -> None:
        """Wait for the answers that are due: somebody wants to do another operation.

        The results are yielded when they are asked for.
        """
        with self._assoc._turns:
            self._pause_reactor()
            try:
                while self._in_flight:
                    self._collect(block=True)
            finally:
                self._done_if_answered()

    def _pause_reactor(self) -> None:
        """Keep the association's reactor from taking what comes for us."""
        assoc = self._assoc
        assoc._reactor_checkpoint.close()
        assoc.await_pause()

    def _done_if_answered(self) -> None:
        """Nothing is in flight: nobody has to wait for us any more."""
        assoc = self._assoc
        if not self._in_flight and assoc._pipeline is self:
            assoc._pipeline = None
            assoc.dul.direct.expect_many(0)

    # Sending ------------------------------------------------------------------------------------------------------

    def _send(self, item: Any) -> None:
        """Send the request for an item, and take the answers that are there."""
        assoc = self._assoc
        self._wait_for_room()
        # (what has failed in direct mode ends the association soon)
        if not assoc.is_established or assoc.dul.direct.has_failed or assoc.dul.is_over:
            while self._in_flight:
                self._collect(block=True)
            self._is_over = True
        if self._is_over:
            self._refused(
                item,
                AssociationEnded(
                    "The association with a peer SCP must be established before "
                    "sending a C-STORE request"
                ),
            )
            return
        if not is_ours(assoc.dimse):
            self._send_alone(item)
            return
        message_id = self._next_message_id()
        try:
            prepared = self._prepare(item, message_id)
        except Exception as error:
            self._refused(item, error)
            return
        # Before it is sent: whatever interrupts us now, the peer may answer
        self._in_flight[message_id] = (item, prepared.sop_instance, prepared.sop_class)
        # The last that may be sent: what comes next is an answer
        is_last = len(self._in_flight) >= self._window
        try:
            encoded = prepared.encoded
            if encoded is not None:
                encoded.is_awaited = is_last
            if encoded is None or not send_encoded(assoc.dimse, prepared.context_id, encoded):
                assoc.dimse.send_msg(prepared.make_request(), prepared.context_id)
        except Exception as error:
            # Not a byte has left
            del self._in_flight[message_id]
            is_last = False
            self._refused(item, error)
        finally:
            if prepared.source is not None:
                prepared.source.close()
        # (the answer to what has just been sent is not there yet)
        while len(self._in_flight) > (0 if is_last else 1):
            if not self._collect(block=False, lingers=is_last):
                break
            is_last = False

    def _wait_for_room(self) -> None:
        """On pynetdicom's road a whole message waits in the DUL's queue: no second one beside it."""
        dul = self._assoc.dul
        while dul.to_provider_queue.queue and not dul.is_over:
            if not (self._in_flight and self._collect(block=False)):
                threading.Event().wait(0.001)

    def _send_alone(self, item: Any) -> None:
        """Send one item like `send_c_store` does: somebody has replaced what sends or receives messages."""
        while self._in_flight:
            self._collect(block=True)
        message_id = self._next_message_id()
        try:
            status = self._assoc.send_c_store(item, message_id, *self._parameters)
        except Exception as error:
            self._refused(item, error)
        else:
            self._results.append(
                StoreResult(item, _instance_of(item), status, message_id=message_id)
            )

    def _next_message_id(self) -> int:
        """Return a Message ID that no request in flight has (PS3.7 9.1.1.1)."""
        assoc = self._assoc
        while True:
            message_id = assoc._requests_sent % MOST + 1
            assoc._requests_sent += 1
            if message_id not in self._in_flight:
                return message_id

    def _prepare(self, item: Any, message_id: int) -> _Prepared:
        """Find out how an item is sent.

        Raises
        ------
        Exception
            What `send_c_store` would raise.
        """
        assoc = self._assoc
        if isinstance(item, dsutils.StoredFile):
            if item.error is not None:
                raise item.error
            item = item.path
        source = dsutils.store_source(assoc, item, _config.STORE_SEND_CHUNKED_DATASET)
        parameters = (message_id, *self._parameters)
        if source is None:
            preparation: Any = _Preparation(assoc)
            stock.Association.send_c_store(preparation, item, *parameters)
            request = preparation.request
            return _Prepared(
                request.AffectedSOPClassUID,
                request.AffectedSOPInstanceUID,
                preparation.context_id,
                lambda: request,
            )
        try:
            command = encode_store_request(source.sop_class, source.sop_instance, *parameters)
            encoded = None if command is None else Encoded(command, source.data, source.file)
            make_request = partial(source.request, *parameters)
            if encoded is None:
                # Its setters say what is wrong, before anything is in flight
                make_request()
        except BaseException:
            source.close()
            raise
        return _Prepared(
            source.sop_class, source.sop_instance, source.context_id, make_request, encoded, source
        )

    def _refused(self, item: Any, error: Exception) -> None:
        """An item has not been sent."""
        self._results.append(StoreResult(item, _instance_of(item), Dataset(), error))

    # Answers ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait until there is a result."""
        while self._in_flight and not self._results:
            self._collect(block=True)

    def _collect(self, block: bool, lingers: bool = False) -> bool:
        """Take a message from the peer, if there is one, or wait for it; `lingers`: see `get_stored`."""
        assoc = self._assoc
        item = get_stored(assoc.dimse, block, lingers)
        if item is None:
            return False
        context_id, message = item
        if type(message) is tuple:
            self._answered(*message)
        elif message is None:
            # The DIMSE timeout, or the association has ended
            assoc._handle_no_response()
            self._fail()
        elif type(message) is C_STORE and message.MessageIDBeingRespondedTo is not None:
            self.take(message)
        elif message.is_valid_request:
            assoc._serve_request(message, context_id)
            # Now nobody serves, and what served may have opened the checkpoint
            assoc._is_paused = assoc._is_waiting
            self._pause_reactor()
        else:
            name = type(message).__name__.replace("_", "-")
            LOGGER.error(f"Received an invalid {name} response from the peer")
            assoc.abort()
            self._fail()
        return True

    def take(self, response: Any) -> None:
        """Take a response that is a primitive.

        Parameters
        ----------
        response : pynetdicom.dimse_primitives.C_STORE
            The response.
        """
        status = self._assoc._check_received_status(response)
        if "Status" in status:
            self._answered(response.MessageIDBeingRespondedTo, status)
        else:
            self._fail()
        self._done_if_answered()

    def _answered(self, message_id: int, status: Dataset | int) -> None:
        """The peer has answered a request."""
        assoc = self._assoc
        if message_id not in self._in_flight:
            was_sent = 1 <= message_id <= assoc._requests_sent
            if was_sent:
                LOGGER.warning(f"Ignoring another response to the C-STORE request {message_id}")
                return
            if self._window > SYNCHRONOUS:
                # Nobody knows what the peer has stored
                LOGGER.error(f"Received a response to the C-STORE request {message_id}, not sent")
                assoc.abort()
                self._fail()
                return
            # pynetdicom does not look at it, and there is only one that it can be for
            (sent,) = self._in_flight
            LOGGER.warning(
                f"Received a response to the C-STORE request {message_id} instead of {sent}"
            )
            message_id = sent
        item, sop_instance, sop_class = self._in_flight.pop(message_id)
        status = dsutils.status_dataset(status)
        self._results.append(StoreResult(item, sop_instance, status, None, sop_class, message_id))

    def _fail(self) -> None:
        """No answer will come any more."""
        self._is_over = True
        for message_id, (item, sop_instance, sop_class) in self._in_flight.items():
            self._results.append(
                StoreResult(item, sop_instance, Dataset(), None, sop_class, message_id)
            )
        self._in_flight.clear()


def send_many(
    assoc: AssociationMixin,
    items: Iterable[str | Path | Dataset],
    window: int | None,
    priority: int,
    originator_aet: str | None,
    originator_id: int | None,
) -> Iterator[StoreResult]:
    """Check the arguments of `AssociationMixin.send_c_store_many`, and return what it returns."""
    if isinstance(items, _SINGLE):
        raise TypeError(
            f"items must be an iterable of paths or data sets, not {type(items).__name__}"
        )
    iterator = iter(items)
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int):
            raise TypeError(f"window must be an int, not {window!r}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
    if not assoc.is_established:
        raise RuntimeError(
            "The association with a peer SCP must be established before sending a C-STORE request"
        )
    allowed = assoc.async_window
    pipeline = Pipeline(
        assoc, iterator, min(window or allowed, allowed), (priority, originator_aet, originator_id)
    )
    return pipeline.results()


def _instance_of(item: Any) -> str | None:
    """Return the SOP Instance UID of an item, if it is easily found."""
    try:
        source = dsutils.StoredFile(os.fspath(item)) if not isinstance(item, Dataset) else item
        return str(source.SOPInstanceUID)
    except Exception:
        return None
