"""The association: its reactor without sleeping, and the C-STORE road without decoding."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom import association as stock
from pynetdicom._globals import DEFAULT_MAX_LENGTH
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from fastpdu import (
    association_qr,
    dsutils,
    service_class,
    service_class_qr,
    stats,
    store_many,
    transport,
    window,
)
from fastpdu.acse import ACSE, limit_half_open
from fastpdu.dimse import DIMSEServiceProvider, get_answer, send_encoded
from fastpdu.dimse_messages import (
    C_ECHO_RSP,
    C_STORE_RSP,
    Encoded,
    encode_echo_request,
    encode_store_request,
    store_response_command,
)
from fastpdu.dul import BOUND, DULServiceProvider
from fastpdu.filestore import answered
from fastpdu.handshakes import with_deadline
from fastpdu.options import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pydicom.uid import UID
    from pynetdicom.dimse import _QueueItem
    from pynetdicom.presentation import PresentationContext, PresentationContextTuple
    from pynetdicom.transport import AssociationSocket

    from fastpdu.handler_threads import HandlerThreads
    from fastpdu.options import TransportOptions

LOGGER = stock.LOGGER


# Seconds for which a killed reactor waits for the DUL, if there is no ACSE timeout
LAST_WORDS = 30.0
# What the reactor asks after each message, unless somebody has replaced it on the instance
_ACSE_QUESTIONS = frozenset({"is_release_requested", "is_aborted"})


class _Checkpoint(threading.Event):
    """The event that lets the association's reactor serve messages.

    It is opened and closed for each message, and mostly nobody waits for it: then it is a mere flag.

    Attributes
    ----------
    is_open : bool
        `is_set()`.
    """

    def __init__(self, assoc: AssociationMixin) -> None:
        super().__init__()
        self._assoc = assoc
        self._waiting = 0
        self.is_open = False

    def is_set(self) -> bool:
        return self.is_open

    def clear(self) -> None:
        pipeline = self._assoc._pipeline
        if pipeline is not None:
            # Somebody begins another operation: no answer that is due may be taken for its own
            pipeline.settle()
        self.is_open = False

    def close(self) -> None:
        """Do what `clear` does, for who has nothing in flight or knows what."""
        self.is_open = False

    def set(self) -> None:
        if self.is_open:
            return
        self.is_open = True
        if self._waiting:
            super().set()
        dul = self._assoc.dul
        # In direct mode the reactor's thread waits for work, and mostly there is none
        if not dul.is_direct or self._assoc._has_work():
            dul.rouse()

    def wait(self, timeout: float | None = None) -> bool:
        if self.is_open:
            return True
        self._waiting += 1
        try:
            super().clear()
            # Only now: who opens it later sees that somebody waits
            return self.is_open or super().wait(timeout)
        finally:
            self._waiting -= 1


class AssociationMixin(stock.Association):
    """What a pynetdicom association does differently on the fast transport.

    An association becomes fast by `upgrade`, before anything of it has been started.
    """

    dul: DULServiceProvider
    dimse: DIMSEServiceProvider
    _reactor_checkpoint: _Checkpoint
    _transport_options: TransportOptions
    # Who handles a request can be told when its response has left: `filestore.answered`
    tells_answered = True
    # Changes with each handler that is bound or unbound
    bindings = 0
    # Whether the reactor's thread waits for work
    _is_waiting: bool
    # (SOP class, transfer syntax): accepted context
    _context_cache: dict[tuple[str, str], PresentationContext]
    # (context ID, SOP class, service class; of a sub-operation None): accepted context, and what handlers see of it
    _service_contexts: dict[
        tuple[int, str, type | None], tuple[PresentationContext, PresentationContextTuple]
    ]
    # The time of serving the peer's requests
    _serving: stats.Stopwatch
    # Held from the line about the end on
    _end_logged: threading.Lock
    # What `send_c_store_many` has in flight, if anything; who may have; and how many requests it has sent
    _pipeline: store_many.Pipeline | None
    _turns: threading.RLock
    _requests_sent = 0
    # Where requests are served if not on the association's thread
    _handler_threads: HandlerThreads | None

    def set_socket(self, socket: AssociationSocket) -> None:
        """Set the socket to use for communicating with the peer, and tune it."""
        if self._server is not None:
            # An acceptor of a patched process has been made before it knew its server
            self._use(options_of(self._server, self.ae))
        super().set_socket(socket)
        if self.is_requestor:
            with_deadline(socket)
        _tune(self)

    def _use(self, options: TransportOptions) -> None:
        """Move bytes as `options` say from now on."""
        self._transport_options = self.dul._options = options

    def bind(self, event: evt.EventType, handler: Any, args: list[Any] | None = None) -> None:
        """Bind a callable `handler` to an `event`; see pynetdicom."""
        super().bind(event, handler, args)
        self._bindings_changed()

    def unbind(self, event: evt.EventType, handler: Any) -> None:
        """Unbind a callable `handler` from an `event`; see pynetdicom."""
        super().unbind(event, handler)
        self._bindings_changed()

    def _bindings_changed(self) -> None:
        """Have whoever waits for a message look again at who is to see it."""
        self.bindings += 1
        if isinstance(self.dul, DULServiceProvider):
            self.dul.rouse_reader()

    def request(self) -> None:
        """Request an association with a peer; see pynetdicom."""
        self._announce_max_pdu(self.requestor)
        window.offer(self)
        super().request()

    def release(self) -> None:
        """Release the association; see pynetdicom. What is in flight, either way, is answered first.

        Of several handlers that run at the same time, one that releases the association does not wait for the others,
        whose responses cannot be sent any more.
        """
        if self.is_established and self._pipeline is not None:
            self._pipeline.settle()
            self._reactor_checkpoint.set()
        threads = self._handler_threads
        if self.is_established and threads is not None and not threads.is_one():
            self._reactor_checkpoint.clear()
            self.await_pause()
            threads.settle()
            if not self.is_established:
                self._reactor_checkpoint.set()
        super().release()

    def start(self) -> None:
        """Start the association's thread; see pynetdicom. An acceptor's negotiates."""
        if self.is_acceptor:
            self._announce_max_pdu(self.acceptor)
        super().start()
        if self.is_acceptor:
            limit_half_open(self.ae)

    def _announce_max_pdu(self, local: stock.ServiceUser) -> None:
        """Announce the maximum length of the options (PS3.8 D.1), unless pynetdicom was told one."""
        max_pdu = self._transport_options.max_pdu
        if max_pdu is not None and local.maximum_length == DEFAULT_MAX_LENGTH:
            local.maximum_length = max_pdu

    def kill(self) -> None:
        """Kill the association's thread."""
        self._reactor_checkpoint.set()
        self._kill = True
        self.is_established = False
        self._is_paused = True
        while self.dul.is_alive() and not self.dul.stop_dul():
            self.dul.wait_dead(0.01)
        self._log_end()

    # Telemetry --------------------------------------------------------------------------------------------------

    def transport_stats(self) -> stats.TransportStats:
        """Return what this association has moved and where its time went, until now or until its end.

        May be called at any time, from any thread, also in handlers of any event. An association that was never
        connected has zeros.
        """
        local, remote = self.requestor, self.acceptor
        if self.is_acceptor:
            local, remote = remote, local
        connection = self.dul.connection
        yielded = connection.yielded_ns / 1e9 if connection is not None else 0.0
        # (not there if somebody has put another provider in its place)
        roads: Any = getattr(self.dimse, "roads", {})
        return stats.from_connection(
            connection,
            stock_messages_sent=roads.get("stock_sent", 0),
            stock_messages_received=roads.get("stock_received", 0),
            maximum_length_local=local.maximum_length,
            # (pynetdicom has a default before the peer has said anything)
            maximum_length_peer=None if remote.writeable else remote.maximum_length,
            duration_seconds=self.dul.duration,
            handler_seconds=self._serving.seconds - yielded,
        )

    def _log_end(self) -> None:
        """Log the figures of an association that has ended, once."""
        if (
            not stats.LOGGER.isEnabledFor(logging.INFO)
            or self.dul.connection is None
            or not self._end_logged.acquire(blocking=False)
        ):
            return
        outcomes = {
            "released": self.is_released,
            "aborted": self.is_aborted,
            "rejected": self.is_rejected,
        }
        stats.log_end(
            self.transport_stats(),
            role=self.mode,
            local=self.local["ae_title"],
            peer=self.remote["ae_title"],
            address=self.remote["address"],
            port=self.remote["port"],
            outcome=next((name for name, true in outcomes.items() if true), "closed"),
        )

    # The reactor ------------------------------------------------------------------------------------------------

    def _run_reactor(self) -> None:
        """Serve messages until the association ends, and its handlers with it; see pynetdicom."""
        try:
            self._serve_messages()
        finally:
            if self._handler_threads is not None:
                self._handler_threads.end()

    def _serve_messages(self) -> None:
        """Serve messages until the association ends; pynetdicom's loop, waiting where that one sleeps."""
        checkpoint = self._reactor_checkpoint
        while not self._kill:
            # To others the reactor is paused while it has nothing to serve: `send_*` need not wait for it
            self._is_waiting = self._is_paused = True
            item = self._wait_for_work()
            if not checkpoint.is_open:
                self._give_back(item)
                item = None
                checkpoint.wait()
            self._is_waiting = self._is_paused = False
            if not checkpoint.is_open:
                # Somebody wants to use the association, and has seen it paused
                self._give_back(item)
                continue
            if self._kill:
                break
            context_id, message = item or self.dimse.get_msg(block=False)
            if message:
                self._serve_request(message, context_id)  # type: ignore[arg-type]
            if self._is_over():
                return
        # Who waits for the reactor to pause need not wait for one that has ended
        self._is_paused = True
        # Killed by somebody else: the last primitive (an A-RELEASE-RP, an A-ABORT) leaves before the socket is closed
        self.dul.wait_dead(self.acse_timeout or LAST_WORDS)
        self._log_end()

    def settle_handlers(self) -> None:
        """On the association's thread: wait for the handlers that run beside it, which may use the association."""
        if self._handler_threads is not None:
            self._is_paused = True
            self._handler_threads.settle()
            self.resume_reactor()

    def await_pause(self) -> None:
        """With the checkpoint closed: wait for the reactor, which may serve a message of the peer at this moment."""
        while not self._is_paused:
            threading.Event().wait(0.0001)

    def resume_reactor(self) -> None:
        """On the association's thread, paused: go on when nobody uses the association."""
        self._is_paused = False
        while not self._reactor_checkpoint.is_open and not self._kill:
            self._is_paused = True
            self._reactor_checkpoint.wait()
            # Only then look again: who closes it later sees that we are not paused
            self._is_paused = False

    def _wait_for_work(self) -> _QueueItem | None:
        """Wait until there is a message, an ACSE primitive, or the end of the association.

        Returns
        -------
        tuple of (int, DIMSEPrimitive) or None
            A message that has been read for the reactor alone, if there is one.
        """
        dul = self.dul
        while not self._kill and dul.is_alive() and not self._has_work():
            if dul.is_direct or (self._reactor_checkpoint.is_open and dul.enter_direct()):
                message = dul.direct.idle(self._has_work)
                if message is not None:
                    item = dul.in_context(self.dimse.accept, message)
                    if item is not None:
                        return item
                continue
            # Objects that are not ours, put in place of those that are, do not tell when they have something
            dul.roused.wait(BOUND)
            dul.roused.clear()
            if getattr(self.dimse, "msg_queue", None) is None and self._reactor_checkpoint.is_open:
                break
        return None

    def _give_back(self, item: _QueueItem | None) -> None:
        """Put a message where it would be had the reactor not read it, and tell who may wait for it."""
        if item is not None:
            self.dimse.msg_queue.put(item)
            self.dul.rouse()

    def _has_work(self) -> bool:
        """Whether there is something that the reactor may attend to now."""
        dul = self.dul
        if not self._reactor_checkpoint.is_open:
            return False
        waiting = getattr(self.dimse, "msg_queue", None)
        return bool(
            dul.to_user_queue.queue
            or (waiting is not None and waiting.queue)
            or dul._idle_timer.expired
        )

    def _is_over(self) -> bool:
        """Do what pynetdicom's reactor does about the end of the association, and say whether it has come."""
        if (
            not self.dul.to_user_queue.queue
            and not getattr(self.acse, "release_due", False)
            and self.dul.is_alive()
            and not self.dul.idle_timer_expired()
            and _ACSE_QUESTIONS.isdisjoint(self.acse.__dict__)
        ):
            return False
        if self.is_established and self.acse.is_release_requested():
            # What has been asked for is answered before
            self.settle_handlers()
            if not self.is_established:
                # A handler has aborted it
                return False
            self.acse.send_release(is_response=True)
            LOGGER.info("Association Released")
            self.is_released = True
            self.is_established = False
            evt.trigger(self, evt.EVT_RELEASED, {})
            self.kill()
            return True
        if self.acse.is_aborted():
            text = "Association Aborted"
            if self.acse.is_aborted("a-p-abort"):
                text += " (A-P-ABORT)"
            LOGGER.info(text)
            # So that EVT_ACSE_RECV is triggered
            self.dul.receive_pdu(wait=False)
            self.is_aborted = True
            self.is_established = False
            evt.trigger(self, evt.EVT_ABORTED, {})
            self.kill()
            return True
        if not self.dul.is_alive():
            self.kill()
            return True
        if self.dul.idle_timer_expired():
            if self._handler_threads is not None and self._handler_threads.is_busy:
                # It is we who are waited for
                self.dul._idle_timer.restart()
                return False
            LOGGER.error("Network timeout reached")
            if self.network_timeout_response == "A-RELEASE":
                self._is_paused = True
                self._reactor_checkpoint.wait()
                self.release()
                self._is_paused = False
            else:
                self.abort()
            self.kill()
            return True
        return False

    # C-STORE ----------------------------------------------------------------------------------------------------

    def send_c_store(
        self,
        dataset: str | Path | Dataset,
        msg_id: int = 1,
        priority: int = 2,
        originator_aet: str | None = None,
        originator_id: int | None = None,
    ) -> Dataset:
        """Send a C-STORE request to the peer AE; see pynetdicom.

        A file whose transfer syntax is that of the presentation context goes out as it is, without being decoded;
        a data set's pixel data goes out from where it is. Where anything has to be converted, pynetdicom does it.
        """
        arguments = (msg_id, priority, originator_aet, originator_id)
        if isinstance(dataset, dsutils.StoredFile):
            status = dataset.send(self._store, False, *arguments)
            if type(status) is int and self._has_own("send_c_store"):
                return dsutils.PlainStatus(status)  # type: ignore[return-value]
        else:
            status = self._store(dataset, True, *arguments)
        return dsutils.status_dataset(status)

    def _has_own(self, method: str) -> bool:
        """Whether a method is ours for whoever calls it: not replaced by a subclass, nor on the instance."""
        ours = AssociationMixin.__dict__[method]
        return method not in vars(self) and getattr(type(self), method) is ours

    def _store(
        self,
        dataset: str | Path | Dataset,
        makes_status: bool,
        msg_id: int,
        priority: int,
        originator_aet: str | None,
        originator_id: int | None,
    ) -> int | Dataset:
        """Send a C-STORE request; return the status of its response, the number alone if there is no more to it.

        With `makes_status` the status of success is a data set already, made while there is time.
        """
        source: dsutils.StoreSource | None = None
        if self.is_established:
            source = dsutils.store_source(self, dataset, _config.STORE_SEND_CHUNKED_DATASET)
        if source is None:
            return super().send_c_store(dataset, msg_id, priority, originator_aet, originator_id)
        try:
            encoded: Encoded | None = None
            command = encode_store_request(
                source.sop_class,
                source.sop_instance,
                msg_id,
                priority,
                originator_aet,
                originator_id,
            )
            if command is not None:
                encoded = Encoded(command, source.data, source.file, is_awaited=True)

            def request() -> Any:
                return source.request(msg_id, priority, originator_aet, originator_id)

            def finish_sending() -> bytes:
                source.close()
                if encoded is None:
                    return b""
                return store_response_command(source.sop_class, source.sop_instance, msg_id, 0x0000)

            return self._exchange(
                encoded, request, source.context_id, C_STORE_RSP, finish_sending, makes_status
            )
        finally:
            source.close()

    @property
    def async_window(self) -> int:
        """How many operations we may have outstanding: what was negotiated, 1 if nothing was (PS3.7 D.3.3.3)."""
        return window.invoked(self)

    def send_c_store_many(
        self,
        items: Iterable[str | Path | Dataset],
        window: int | None = None,
        *,
        priority: int = 2,
        originator_aet: str | None = None,
        originator_id: int | None = None,
    ) -> Iterator[store_many.StoreResult]:
        """Send many C-STORE requests, the next before the last is answered if the peer allows it.

        Every item that is taken from `items` has exactly one result, in the order of the answers. An item that cannot
        be sent does not keep the others from being sent, and neither does the end of the association keep the
        results from coming: those in flight then have an empty status, those after it an error.

        If it is not used to its end (``break``, ``close()``), nothing more is sent, and what is in flight is answered
        in the background. The next operation, and `release`, wait for those answers first.

        Parameters
        ----------
        items : iterable of (str, PathLike or pydicom.dataset.Dataset)
            What to send, as for `send_c_store`. An item is taken only when it can be sent, so it may be an iterator
            that makes them. Its exceptions are raised here, after the results of what is in flight.
        window : int, optional
            The requests that may be in flight at a time, by default, and at most, `async_window`.
        priority, originator_aet, originator_id
            As for `send_c_store`, for all of them.

        Returns
        -------
        iterator of StoreResult
            It sends while it is asked for results.

        Raises
        ------
        RuntimeError
            If the association is not established.
        TypeError, ValueError
            If `items` is no iterable, or a single path or data set, or `window` is not at least 1.
        """
        return store_many.send_many(self, items, window, priority, originator_aet, originator_id)

    def _exchange(
        self,
        encoded: Encoded | None,
        make_request: Callable[[], Any],
        context_id: int,
        field: int,
        meanwhile: Callable[[], bytes] = bytes,
        makes_status: bool = True,
    ) -> int | Dataset:
        """Send a request and return the status of its response, the number alone if there is no more to it.

        Parameters
        ----------
        encoded : Encoded or None
            The message, if it needs no primitive.
        make_request : callable
            Makes the primitive, should it be needed.
        context_id : int
            The presentation context ID.
        field : int
            The Command Field of the response.
        meanwhile : callable, optional
            Called while the peer is busy. Returns the command set of the response that is expected, if there is one.
        makes_status : bool, optional
            Whether to make the data set of the status of success then, too, and to return that.
        """
        request = make_request() if encoded is None else None
        success: Dataset | None = None
        self._reactor_checkpoint.clear()
        if not self._is_paused:
            self.await_pause()
        try:
            if encoded is None or not send_encoded(self.dimse, context_id, encoded):
                self.dimse.send_msg(request or make_request(), context_id)
            expected = meanwhile()
            if makes_status:
                success = dsutils.status_dataset(0x0000)
            answer = get_answer(self.dimse, field, expected)
        finally:
            self._reactor_checkpoint.set()
        if type(answer) is int:
            return success if success is not None and answer == 0x0000 else answer
        if answer is None:
            self._handle_no_response()
            return Dataset()
        return self._check_received_status(answer)

    # C-ECHO -----------------------------------------------------------------------------------------------------

    def send_c_echo(self, msg_id: int = 1) -> Dataset:
        """Send a C-ECHO request to the peer AE; see pynetdicom."""
        encoded = None
        # (at that level pynetdicom says what it sends)
        if self.is_established and not LOGGER.isEnabledFor(logging.INFO):
            encoded = encode_echo_request(msg_id)
        if encoded is None:
            return super().send_c_echo(msg_id)

        def request() -> Any:
            primitive = C_ECHO()
            primitive.MessageID = msg_id
            primitive.AffectedSOPClassUID = Verification
            return primitive

        context = self._context_cache.get((Verification, ""))
        if context is None or self._accepted_cx.get(cast(int, context.context_id)) is not context:
            context = self._get_valid_context(Verification, "", "scu")
            self._context_cache[Verification, ""] = context
        status = self._exchange(encoded, request, cast(int, context.context_id), C_ECHO_RSP)
        return dsutils.status_dataset(status)

    # C-FIND, C-GET and C-MOVE -----------------------------------------------------------------------------------

    def _wrap_find_responses(self, transfer_syntax: UID, query_model: UID) -> Iterator[Any]:
        """Wrap the responses to a C-FIND request; see pynetdicom."""
        yield from association_qr.pending_matches(self, transfer_syntax, query_model)
        yield from super()._wrap_find_responses(transfer_syntax, query_model)

    def _wrap_get_move_responses(self, transfer_syntax: UID) -> Iterator[Any]:
        """Wrap the responses to a C-GET or C-MOVE request; see pynetdicom."""
        yield from association_qr.pending_sub_operations(self)
        yield from super()._wrap_get_move_responses(transfer_syntax)

    def _c_store_scp(self, req: C_STORE) -> None:
        """Serve a C-STORE sub-operation of our C-GET request; see pynetdicom."""
        with self._serving:
            if not (
                isinstance(self.dimse, DIMSEServiceProvider)
                and association_qr.serve_sub_operation(self, req)
            ):
                super()._c_store_scp(req)
        answered(req)

    # All -------------------------------------------------------------------------------------------------------

    def _check_received_status(self, rsp: Any) -> Dataset:
        """Return the status of a response as a data set; see pynetdicom."""
        if dsutils.is_plain_response(rsp):
            return dsutils.status_dataset(rsp.Status)
        return super()._check_received_status(rsp)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Handle a DIMSE service request; see pynetdicom. A C-STORE for the storage service takes a shorter way."""
        if (
            self._pipeline is not None
            and type(msg) is C_STORE
            and msg._message_id_being_responded_to
        ):
            # An answer to one of many requests, while the user does something else
            self._pipeline.take(msg)
            return
        if (
            self._handler_threads is not None
            # (else somebody who waits for an answer has received it, or it is an N-EVENT-REPORT)
            and threading.current_thread() is self
            and service_class.serve_beside(self, self._handler_threads, msg, context_id)
        ):
            return
        with self._serving:
            if service_class.serve(self, msg, context_id) or service_class_qr.serve(
                self, msg, context_id
            ):
                return
            super()._serve_request(msg, context_id)
        answered(msg)
        if threading.current_thread() is not self:
            # An N-EVENT-REPORT, served beside the reactor, which need not turn before the next request of ours
            self._is_paused = self._is_waiting


class Association(AssociationMixin):
    """pynetdicom's association on the fast transport."""


_FAST_CLASSES: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def fast_class(cls: type) -> type:
    """Return the class of an association of class `cls` on the fast transport: a subclass of it."""
    if cls is stock.Association:
        return Association
    if issubclass(cls, AssociationMixin):
        return cls
    if cls not in _FAST_CLASSES:
        _FAST_CLASSES[cls] = type(
            cls.__name__, (AssociationMixin, cls), {"__module__": cls.__module__}
        )
    return _FAST_CLASSES[cls]


def upgrade(assoc: stock.Association, options: TransportOptions) -> None:
    """Put an association on the fast transport. Nothing of it may have been started.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association, new, with or without its socket.
    options : TransportOptions
        How to move bytes.

    Raises
    ------
    RuntimeError
        If the association has been started.
    """
    if isinstance(assoc, AssociationMixin):
        if assoc._transport_options is not options:
            assoc._use(options)
            _tune(assoc)
        return
    if not transport.upgradable(assoc):
        raise RuntimeError(
            "The association has been started, its transport can no longer be replaced"
        )
    old = assoc.dul
    assoc.__class__ = fast_class(type(assoc))
    fast = cast(AssociationMixin, assoc)
    fast._transport_options = options
    fast._is_waiting = False
    fast._context_cache = {}
    fast._service_contexts = {}
    fast._serving = stats.Stopwatch()
    fast._end_logged = threading.Lock()
    fast._pipeline = None
    fast._handler_threads = None
    fast._turns = threading.RLock()
    dul = DULServiceProvider(fast, options)
    dul.artim_timer.timeout = old.artim_timer.timeout
    dul._idle_timer.timeout = old._idle_timer.timeout
    dul.socket = old.socket
    while not old.event_queue.empty():
        # The transport's indication of an accepted connection (Evt5)
        dul.event_queue.put(old.event_queue.get())
    fast.dul = dul
    fast.dimse = DIMSEServiceProvider(fast)
    fast.acse = ACSE(fast)
    fast._reactor_checkpoint = _Checkpoint(fast)
    fast._reactor_checkpoint.set()
    _tune(fast)


def _tune(assoc: AssociationMixin) -> None:
    """Set the options of the association's socket, if it has one; a requestor's is not connected yet."""
    sock: Any = getattr(assoc.dul.socket, "socket", None)
    if not transport.tunable(sock):
        return
    try:
        transport.tune(sock, assoc._transport_options, connected=assoc.is_acceptor)
    except transport.OptionError:
        # Nobody will use it
        sock.close()
        raise
