"""The DIMSE service provider: whole messages instead of P-DATA primitives."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, cast

from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import _config, _handlers, evt
from pynetdicom import dimse as stock
from pynetdicom.dimse_primitives import C_CANCEL, N_EVENT_REPORT
from pynetdicom.dsutils import create_file_meta
from pynetdicom.utils import make_target

from fastpdu import dimse_messages as messages
from fastpdu import engine
from fastpdu.direct import PROGRESS_YIELD
from fastpdu.dul import DULServiceProvider
from fastpdu.filestore import FileStore, Incoming
from fastpdu.transport import ROADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.dimse import _QueueItem
    from pynetdicom.dimse_primitives import DimsePrimitiveType
    from pynetdicom.pdu_primitives import P_DATA

LOGGER = logging.getLogger("pynetdicom.dimse")
_HANDLERS_LOGGER = logging.getLogger("pynetdicom._handlers")
_DECODING_LOGGER = logging.getLogger("pynetdicom.dsutils")

_NO_SPLIT: frozenset[int] = frozenset()
_SPLIT_STORE = frozenset({messages.C_STORE_RQ})
MAX_CANCELS = 10
# Who sees messages: nobody, pynetdicom's own handler, which logs them, or a handler that is not its own
NOBODY, THE_LOG, SOMEBODY = "nobody", "the log", "somebody"


class DIMSEServiceProvider(stock.DIMSEServiceProvider):
    """pynetdicom's DIMSE service provider over the engine.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The parent association.
    """

    takes_messages = True

    def __init__(self, assoc: Association) -> None:
        self._cancel_req: dict[int, C_CANCEL] = {}
        # While a data set goes to a file: the file, pynetdicom's temporary file or a FileStore's
        self.sink: Any = None
        self._waiters = 0
        # What the handlers are, and the state of them that was looked at
        self._has_file_store = False
        self._sent_watch = self._received_watch = NOBODY
        self._bindings = -1
        # Messages on the stock road: "stock_sent", "stock_received"
        self.roads: Counter[str] = Counter()
        super().__init__(assoc)

    @property
    def cancel_req(self) -> dict[int, C_CANCEL]:
        """C-CANCEL requests received, by the Message ID that they are for.

        Reading it takes what the peer has sent by now: nobody else does while a handler runs.
        """
        dul = self.dul
        if isinstance(dul, DULServiceProvider):
            dul.direct.poll()
        return self._cancel_req

    @cancel_req.setter
    def cancel_req(self, value: dict[int, C_CANCEL]) -> None:
        self._cancel_req = value

    # Receiving --------------------------------------------------------------------------------------------------

    def get_msg(self, block: bool = False) -> _QueueItem:
        """Return the next message; see pynetdicom. A caller that waits reads the socket itself."""
        item = self._next()
        if item is not None or not block:
            return item or (None, None)
        return self._await(self.accept)

    def get_answer(self, field: int, success: bytes = b"") -> Any:
        """Wait for the answer to a request; see the function of the same name."""
        item = self._next() or self._await(partial(self._accept_answer, field, success))
        return item[1]

    def _accept_answer(self, field: int, success: bytes, message: engine.Message) -> Any:
        if not self._is_reception_watched():
            if success and message.command == success and message.data is None:
                return message.context_id, 0x0000
            status = messages.plain_status(message, field)
            if status is not None:
                return message.context_id, status
        return self.accept(message)

    def get_stored(self, block: bool, lingers: bool = False) -> Any:
        """Return the answer to one of several C-STORE requests; see the function of the same name."""
        item = self._next()
        if item is not None:
            return item
        if block:
            return self._await(self._accept_stored)
        dul = self.dul
        if isinstance(dul, DULServiceProvider) and dul.is_direct:
            message = dul.direct.take_answer(lingers)
            if message is not None:
                return dul.in_context(self._accept_stored, message)
        return None

    def _accept_stored(self, message: engine.Message) -> Any:
        if not self._is_reception_watched():
            answer = messages.plain_answer(message, messages.C_STORE_RSP)
            if answer is not None:
                return message.context_id, answer
        return self.accept(message)

    def get_pending(self, fields: frozenset[int], *, progress: bool) -> Any:
        """Wait for the next message of a C-FIND, C-GET or C-MOVE that is ours.

        Parameters
        ----------
        fields : frozenset of int
            The Command Fields of the responses that are waited for.
        progress : bool
            Whether the responses only tell how far the operation has come, as those of C-GET and C-MOVE do. They are
            not there yet, mostly, and whoever sends them, maybe in this process, needs the GIL more urgently.

        Returns
        -------
        tuple of (int, Pending, DIMSEPrimitive or None)
            Like `get_msg`; a pending response that says nothing about its status but the numbers of sub-operations
            has no primitive.
        """
        return self._next() or self._await(partial(self._accept_pending, fields), progress)

    def _accept_pending(self, fields: frozenset[int], message: engine.Message) -> Any:
        if not self._is_reception_watched():
            pending = messages.plain_pending(message, fields)
            if pending is not None:
                return message.context_id, pending
        return self.accept(message)

    def _await(
        self, accept: Callable[[engine.Message], _QueueItem | None], progress: bool = False
    ) -> _QueueItem:
        """Wait for a message: who waits reads the socket itself. `progress`: see `get_pending`."""
        dul = self._assoc.dul
        timeout = self._assoc._dimse_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        if not progress and isinstance(dul, DULServiceProvider) and dul.is_direct:
            message = dul.direct.take_answer(lingers=True)
            item = None if message is None else dul.in_context(accept, message)
            if item is not None:
                return item
        yields = PROGRESS_YIELD if progress else 0
        if isinstance(dul, DULServiceProvider):
            while dul.is_direct or dul.enter_direct():
                message = dul.direct.read(deadline, self._has_message, yields)
                item = self._next() if message is None else dul.in_context(accept, message)
                if item is not None:
                    return item
                if message is None:
                    break
        # Direct mode has ended, or never began: the reactor fills the queue
        self._waiters += 1
        try:
            if isinstance(dul, DULServiceProvider) and dul.is_over:
                return self._next() or (None, None)
            # The reactor's wait is not idle any more
            if isinstance(dul, DULServiceProvider):
                dul.rouse_reader()
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            item = self.msg_queue.get(timeout=left)
            if isinstance(dul, DULServiceProvider):
                dul.message_taken()
            return item
        except queue.Empty:
            return None, None
        finally:
            self._waiters -= 1
            if isinstance(dul, DULServiceProvider):
                dul.rouse_reader()

    def put_back(self, item: _QueueItem) -> None:
        """Make what `get_msg` has returned the next that it returns."""
        with self.msg_queue.mutex:
            self.msg_queue.queue.appendleft(item)
            self.msg_queue.not_empty.notify()

    def release_waiters(self) -> None:
        """The association is over: nobody needs to wait for a message until the DIMSE timeout."""
        for _ in range(self._waiters):
            self.msg_queue.put((None, None))

    @property
    def is_awaiting(self) -> bool:
        """Whether somebody waits for a message of the stock road, or for the rest of one."""
        return self.message is not None or (self._waiters > 0 and not self.msg_queue.queue)

    def _has_message(self) -> bool:
        return bool(self.msg_queue.queue)

    def _next(self) -> _QueueItem | None:
        """Take the next message from the queue, None if there is none."""
        if not self.msg_queue.queue:
            return None
        try:
            item = self.msg_queue.get_nowait()
        except queue.Empty:
            return None
        dul = self.dul
        if isinstance(dul, DULServiceProvider):
            dul.message_taken()
        return item

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process a P-DATA primitive on the stock road; see pynetdicom."""
        super().receive_primitive(primitive)
        if self.message is None:
            ROADS.count("stock_received", self.roads)

    def receive_message(self, message: engine.Message) -> None:
        """Process a whole message from the engine, like `receive_primitive` the last of its P-DATA primitives.

        Parameters
        ----------
        message : engine.Message
            The message.
        """
        item = self.accept(message)
        if item is not None:
            self.msg_queue.put(item)

    def accept(self, message: engine.Message) -> _QueueItem | None:
        """Return what `get_msg` has to return for a whole message from the engine.

        Parameters
        ----------
        message : engine.Message
            The message.

        Returns
        -------
        tuple of (int, DIMSEPrimitive) or None
            The presentation context ID and the primitive; None if the message is not for who asks for one, and has
            been dealt with.
        """
        sink = message.sink
        if sink is not None:
            if isinstance(sink, Incoming):
                sink.complete(message.length, message.error)
            else:
                sink.flush()
        try:
            primitive = self._to_primitive(message, sink)
        except Exception as error:
            LOGGER.error("Received an invalid DIMSE message")
            LOGGER.exception(error)
            _remove(sink)
            self.dul.event_queue.put("Evt19")
            return None
        if isinstance(primitive, C_CANCEL):
            # More than that are not for operations of ours: ignored (pynetdicom would serve them as requests)
            if len(self._cancel_req) < MAX_CANCELS:
                self._cancel_req[cast(int, primitive.MessageIDBeingRespondedTo)] = primitive
        elif isinstance(primitive, N_EVENT_REPORT) and primitive.is_valid_request:
            # At once, whatever the association is busy with
            threading.Thread(
                target=make_target(self.assoc._serve_request), args=(primitive, message.context_id)
            ).start()
        else:
            return message.context_id, primitive
        return None

    def _to_primitive(self, message: engine.Message, sink: Any) -> Any:
        if (sink is None or isinstance(sink, Incoming)) and not self._is_reception_watched():
            if message.prepared is not None:
                primitive = messages.complete_store(message)
            else:
                primitive = messages.to_primitive(message)
            if primitive is not None:
                if sink is not None:
                    primitive._dataset_file = sink
                    primitive._dataset_path = sink.path
                return primitive
        received = messages.to_received_stock_message(
            message.context_id, message.command, message.data
        )
        if sink is not None:
            received._data_set_file, received._data_set_path = sink, Path(sink.name)
        evt.trigger(self.assoc, evt.EVT_DIMSE_RECV, {"message": received})
        primitive = received.message_to_primitive()
        # Like pynetdicom: the command set stays with whoever kept the message, the data set does not
        received.encoded_command_set = BytesIO()
        received.data_set = BytesIO()
        received._data_set_file = received._data_set_path = None
        return primitive

    def _look_at_handlers(self) -> None:
        """Find out who handles what, if that has changed."""
        assoc: Any = self._assoc
        bindings = assoc.bindings
        if bindings != self._bindings:
            self._has_file_store = self._file_store() is not None
            bound = assoc._handlers.get
            self._sent_watch = _watch(
                bound(evt.EVT_DIMSE_SENT), _handlers.standard_dimse_sent_handler
            )
            self._received_watch = _watch(
                bound(evt.EVT_DIMSE_RECV), _handlers.standard_dimse_recv_handler
            )
            self._bindings = bindings

    def _is_sending_watched(self) -> bool:
        """Whether somebody sees the messages sent: a handler, or pynetdicom's own when it would log something."""
        self._look_at_handlers()
        watch = self._sent_watch
        return watch is SOMEBODY or (
            watch is THE_LOG and _HANDLERS_LOGGER.isEnabledFor(logging.INFO)
        )

    def _is_reception_watched(self) -> bool:
        """Whether somebody sees the messages received, or what pynetdicom's decoder logs of them."""
        self._look_at_handlers()
        watch = self._received_watch
        return (
            watch is SOMEBODY
            or (watch is THE_LOG and _HANDLERS_LOGGER.isEnabledFor(logging.INFO))
            or _DECODING_LOGGER.isEnabledFor(logging.DEBUG)
        )

    # Messages that have begun -----------------------------------------------------------------------------------------

    def begin_message(self, connection: engine.Connection, needs_sink: bool) -> Any:
        """Do for a message whose command set has come what need not wait for the data set.

        Parameters
        ----------
        connection : engine.Connection
            The connection, which has told PARTIAL or COMMAND.
        needs_sink : bool
            Whether to say where the data set goes.

        Returns
        -------
        pynetdicom.dimse_primitives.C_STORE or None
            The request, for `Message.prepared`.
        """
        message = connection.partial
        request = None
        if not self._is_reception_watched():
            request = messages.prepare_store(message)
        if needs_sink:
            self._open_sink(connection, message, request)
        return request

    # Data sets that go to a file as they arrive -------------------------------------------------------------------

    def split_commands(self) -> frozenset[int]:
        """Return the Command Fields whose data sets are to go to a file (FileStore, STORE_RECV_CHUNKED_DATASET)."""
        self._look_at_handlers()
        if self._has_file_store or _config.STORE_RECV_CHUNKED_DATASET:
            return _SPLIT_STORE
        return _NO_SPLIT

    def _file_store(self) -> FileStore | None:
        """Return the handler of C-STORE requests, if it is a FileStore."""
        handlers: Any = self._assoc._handlers
        handler = handlers.get(evt.EVT_C_STORE, (None,))[0]
        return handler if isinstance(handler, FileStore) else None

    def _open_sink(
        self, connection: engine.Connection, message: engine.Message, request: Any
    ) -> None:
        """Say where the data set goes of a message that has begun."""
        try:
            if request is None:
                sop_class, sop_instance = messages.store_uids(message)
            else:
                sop_class = request._affected_sop_class_uid
                sop_instance = request._affected_sop_instance_uid
            context = self.assoc._accepted_cx[message.context_id]
            transfer_syntax = context.transfer_syntax[0]
        except Exception as error:
            # The message will be refused, so nobody needs the data set
            LOGGER.debug("The data set of this message cannot go to a file: %s", error)
            connection.set_sink(-1, drain=True)
            return
        store = self._file_store()
        if store is None:
            connection.set_sink(self._open_chunked(sop_class, sop_instance, transfer_syntax))
            return
        incoming = store.begin(self.assoc, sop_class, sop_instance, transfer_syntax)
        self.sink = incoming
        connection.set_sink(incoming.file, incoming.head, drain=True)

    def _open_chunked(self, sop_class: str, sop_instance: str, transfer_syntax: str) -> int:
        """Open pynetdicom's temporary file, write its file meta information, and return its descriptor."""
        meta = create_file_meta(
            sop_class_uid=UID(sop_class),
            sop_instance_uid=UID(sop_instance),
            transfer_syntax=UID(transfer_syntax),
        )
        file: Any = NamedTemporaryFile(delete=False, mode="wb", suffix=".dcm")  # noqa: SIM115
        self.sink = file
        file.write(b"\x00" * 128)
        file.write(b"DICM")
        write_file_meta_info(file, meta)
        file.flush()
        return cast(int, file.fileno())

    def drop_sink(self) -> None:
        """Remove the temporary file of a message that will never be complete."""
        sink, self.sink = self.sink, None
        _remove(sink)

    # Sending ----------------------------------------------------------------------------------------------------

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Encode and send a message; see pynetdicom. In direct mode the calling thread writes it."""
        dul = self.dul
        if isinstance(dul, DULServiceProvider) and dul.is_over:
            # Nobody will ever send it. A service class that goes on yielding responses looks at this.
            self.assoc.is_established = False
        if not isinstance(dul, DULServiceProvider) or not dul.enter_direct():
            self._send_stock(messages.to_stock_message(primitive, context_id), context_id)
            return
        if self._is_sending_watched():
            message = messages.to_stock_message(primitive, context_id)
            evt.trigger(self.assoc, evt.EVT_DIMSE_SENT, {"message": message})
            if not dul.direct.send(context_id, messages.encode_stock_message(message)):
                self._queue(message, context_id)
            return
        encoded = messages.encode_primitive(primitive, context_id)
        if not dul.direct.send(context_id, encoded):
            self._send_stock(messages.to_stock_message(primitive, context_id), context_id)

    def send_encoded(self, context_id: int, message: messages.Encoded) -> bool:
        """Send a message without a primitive, if that is possible; see the function of the same name."""
        dul = self.dul
        return (
            isinstance(dul, DULServiceProvider)
            and dul.enter_direct()
            and not self._is_sending_watched()
            and dul.direct.send(context_id, message)
        )

    def _send_stock(self, message: Any, context_id: int) -> None:
        """Send a message on the stock road."""
        evt.trigger(self.assoc, evt.EVT_DIMSE_SENT, {"message": message})
        self._queue(message, context_id)

    def _queue(self, message: Any, context_id: int) -> None:
        """Give a message to the DUL as P-DATA primitives."""
        ROADS.count("stock_sent", self.roads)
        for primitive in message.encode_msg(context_id, self.maximum_pdu_size):
            self.dul.send_pdu(primitive)


def _watch(bound: Any, default: Any) -> str:
    """Return who sees messages, given the handlers that are bound."""
    if not bound:
        return NOBODY
    return THE_LOG if len(bound) == 1 and bound[0][0] is default else SOMEBODY


def is_ours(dimse: Any) -> bool:
    """Whether a DIMSE provider is one of these, and nobody has replaced what it does on the instance."""
    if not isinstance(dimse, DIMSEServiceProvider):
        return False
    own = dimse.__dict__
    return "send_msg" not in own and "get_msg" not in own


def send_encoded(dimse: Any, context_id: int, message: messages.Encoded) -> bool:
    """Send a message without a primitive.

    Parameters
    ----------
    dimse : pynetdicom.dimse.DIMSEServiceProvider
        The association's provider, of any kind.
    context_id : int
        The presentation context ID.
    message : Encoded
        The message.

    Returns
    -------
    bool
        False if that cannot be done now, and nothing has been sent: `send_msg` has to do it.
    """
    return is_ours(dimse) and dimse.send_encoded(context_id, message)


def get_answer(dimse: Any, field: int, success: bytes = b"") -> Any:
    """Wait for the answer to a request.

    Parameters
    ----------
    dimse : pynetdicom.dimse.DIMSEServiceProvider
        The association's provider, of any kind.
    field : int
        The Command Field of the response.
    success : bytes, optional
        The command set of the response that is expected: that of success, as most peers encode it.

    Returns
    -------
    int, DIMSEPrimitive or None
        The status, if the answer is a response that says nothing else; any other message; None if none came.
    """
    if is_ours(dimse):
        return dimse.get_answer(field, success)
    return dimse.get_msg(block=True)[1]


def get_stored(dimse: Any, block: bool, lingers: bool = False) -> Any:
    """Take, or wait for, the answer to one of several C-STORE requests.

    Parameters
    ----------
    dimse : pynetdicom.dimse.DIMSEServiceProvider
        The association's provider, of any kind.
    block : bool
        Whether to wait, until the DIMSE timeout, if there is no message.
    lingers : bool, optional
        Without `block`: whether to wait for a moment.

    Returns
    -------
    tuple of (int, tuple, DIMSEPrimitive or None) or None
        The presentation context ID with (Message ID Being Responded To, Status), if the message is a response that says
        nothing else, or with any other message. None: there is no message; (None, None): none will come any more.
    """
    if is_ours(dimse):
        return dimse.get_stored(block, lingers)
    item = dimse.get_msg(block=block)
    return item if block or item[1] is not None else None


def _remove(file: Any) -> None:
    """Close and delete a temporary file."""
    if file is None:
        return
    if isinstance(file, Incoming):
        file.close()
        return
    try:
        file.close()
        os.unlink(file.name)
    except OSError as error:
        LOGGER.debug("A temporary file could not be removed: %s", error)
