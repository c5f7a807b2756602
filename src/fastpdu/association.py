"""The association: its reactor without sleeping, and the C-STORE road without decoding."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom import association as stock
from pynetdicom.dimse_primitives import C_STORE

from fastpdu import dsutils, service_class, transport
from fastpdu.dimse import DIMSEServiceProvider
from fastpdu.dimse_messages import set_uid
from fastpdu.dul import BOUND, DULServiceProvider

if TYPE_CHECKING:
    from pathlib import Path

    from pynetdicom.presentation import PresentationContext
    from pynetdicom.service_class import ServiceClass
    from pynetdicom.transport import AssociationSocket

    from fastpdu.options import TransportOptions

LOGGER = stock.LOGGER


# What the reactor asks after each message, unless somebody has replaced it on the instance
# Seconds for which a killed reactor waits for the DUL, if there is no ACSE timeout
LAST_WORDS = 30.0
_ACSE_QUESTIONS = frozenset({"is_release_requested", "is_aborted"})


class _Checkpoint(threading.Event):
    """The event that lets the association's reactor serve messages."""

    def __init__(self, assoc: AssociationMixin) -> None:
        super().__init__()
        self._assoc = assoc

    def set(self) -> None:
        if self.is_set():
            return
        super().set()
        dul = self._assoc.dul
        # In direct mode the reactor's thread waits for work, and mostly there is none
        if not dul.is_direct or self._assoc._has_work():
            dul.rouse()


class AssociationMixin(stock.Association):
    """What a pynetdicom association does differently on the fast transport.

    An association becomes fast by `upgrade`, before anything of it has been started.
    """

    dul: DULServiceProvider
    _transport_options: TransportOptions
    # Whether the reactor's thread waits for work
    _is_waiting: bool
    # (SOP class, transfer syntax): accepted context
    _context_cache: dict[tuple[str, str], PresentationContext]
    # SOP class: service class
    _service_cache: dict[str, type[ServiceClass]]

    def set_socket(self, socket: AssociationSocket) -> None:
        """Set the socket to use for communicating with the peer, and tune it."""
        super().set_socket(socket)
        _tune(self)

    def kill(self) -> None:
        """Kill the association's thread."""
        self._reactor_checkpoint.set()
        self._kill = True
        self.is_established = False
        self._is_paused = True
        while self.dul.is_alive() and not self.dul.stop_dul():
            self.dul.wait_dead(0.01)

    # The reactor ------------------------------------------------------------------------------------------------

    def _run_reactor(self) -> None:
        """Serve messages until the association ends; pynetdicom's loop, waiting where that one sleeps."""
        while not self._kill:
            # To others the reactor is paused while it has nothing to serve: `send_*` need not wait for it
            self._is_waiting = self._is_paused = True
            self._wait_for_work()
            self._reactor_checkpoint.wait()
            self._is_waiting = self._is_paused = False
            if not self._reactor_checkpoint.is_set():
                # Somebody wants to use the association, and has seen it paused
                continue
            if self._kill:
                break
            context_id, message = self.dimse.get_msg(block=False)
            if message:
                self._serve_request(message, cast(int, context_id))
            if self._is_over():
                return
        # Killed by somebody else: the last primitive (an A-RELEASE-RP, an A-ABORT) leaves before the socket is closed
        self.dul.wait_dead(self.acse_timeout or LAST_WORDS)

    def _wait_for_work(self) -> None:
        """Wait until there is a message, an ACSE primitive, or the end of the association."""
        dul = self.dul
        while not self._kill and dul.is_alive() and not self._has_work():
            if (dul.is_direct or self._reactor_checkpoint.is_set()) and dul.enter_direct():
                dul.idle_direct(self._has_work)
                continue
            # Objects that are not ours, put in place of those that are, do not tell when they have something
            dul.roused.wait(BOUND)
            dul.roused.clear()
            if getattr(self.dimse, "msg_queue", None) is None and self._reactor_checkpoint.is_set():
                return

    def _has_work(self) -> bool:
        """Whether there is something that the reactor may attend to now."""
        if not self._reactor_checkpoint.is_set():
            return False
        waiting = getattr(self.dimse, "msg_queue", None)
        return bool(
            self.dul.to_user_queue.queue
            or (waiting is not None and waiting.queue)
            or self.dul.idle_timer_expired()
        )

    def _is_over(self) -> bool:
        """Do what pynetdicom's reactor does about the end of the association, and say whether it has come."""
        if (
            not self.dul.to_user_queue.queue
            and self.dul.is_alive()
            and not self.dul.idle_timer_expired()
            and _ACSE_QUESTIONS.isdisjoint(self.acse.__dict__)
        ):
            return False
        if self.is_established and self.acse.is_release_requested():
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
        source: dsutils.StoreSource | None = None
        if self.is_established:
            source = dsutils.store_source(self, dataset, chunked=_config.STORE_SEND_CHUNKED_DATASET)
        if source is None:
            return super().send_c_store(dataset, msg_id, priority, originator_aet, originator_id)
        try:
            request = C_STORE()
            request.MessageID = msg_id
            request.Priority = priority
            request.MoveOriginatorApplicationEntityTitle = originator_aet
            request.MoveOriginatorMessageID = originator_id
            set_uid(request, "AffectedSOPClassUID", "_affected_sop_class_uid", source.sop_class)
            set_uid(
                request, "AffectedSOPInstanceUID", "_affected_sop_instance_uid", source.sop_instance
            )
            request._dataset_path = source.file
            request.DataSet = source.buffer
            return self._exchange_store(request, source.context_id)
        finally:
            source.close()

    def _exchange_store(self, request: Any, context_id: int) -> Dataset:
        """Send a C-STORE request and return the status of the answer, as pynetdicom does."""
        self._reactor_checkpoint.clear()
        while not self._is_paused:
            # The reactor serves a message of the peer at this moment
            threading.Event().wait(0.0001)
        try:
            self.dimse.send_msg(request, context_id)
            _, response = self.dimse.get_msg(block=True)
        finally:
            self._reactor_checkpoint.set()
        if response is None:
            self._handle_no_response()
            return Dataset()
        return self._check_received_status(response)

    def _check_received_status(self, rsp: Any) -> Dataset:
        """Return the status of a response as a data set; see pynetdicom."""
        if dsutils.is_plain_response(rsp):
            return dsutils.status_dataset(rsp.Status)
        return super()._check_received_status(rsp)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Handle a DIMSE service request; see pynetdicom. A C-STORE for the storage service takes a shorter way."""
        if service_class.serve_store(self, msg, context_id):
            return
        super()._serve_request(msg, context_id)
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
            assoc._transport_options = assoc.dul._options = options
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
    fast._service_cache = {}
    dul = DULServiceProvider(fast, options)
    dul.artim_timer.timeout = old.artim_timer.timeout
    dul._idle_timer.timeout = old._idle_timer.timeout
    dul.socket = old.socket
    while not old.event_queue.empty():
        # The transport's indication of an accepted connection (Evt5)
        dul.event_queue.put(old.event_queue.get())
    fast.dul = dul
    fast.dimse = DIMSEServiceProvider(fast)
    fast._reactor_checkpoint = _Checkpoint(fast)
    fast._reactor_checkpoint.set()
    if dul.socket is not None:
        _tune(fast)


def _tune(assoc: AssociationMixin) -> None:
    """Set the options of the association's socket, if it is one."""
    sock: Any = getattr(assoc.dul.socket, "socket", None)
    if transport.tunable(sock):
        transport.tune(sock, assoc._transport_options)
