"""The upper layer service provider, without polling.

An association is in one of two modes:

* **stock mode**: the DUL's own thread runs pynetdicom's reactor, event-driven instead of every millisecond. All of
  negotiation, release and abort happens here, and P-DATA too while somebody watches it PDU by PDU.
* **direct mode** (`fastpdu.direct`): the association is established and nobody watches. The DUL's thread has ended;
  whoever wants a message reads the socket itself, whoever has one writes it. Anything that is not P-DATA, and anything
  that is put into the DUL's queues, ends direct mode: a new thread takes the reactor up again.

docs/architecture.md has the reasons and the rules.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pynetdicom import _config, evt, fsm
from pynetdicom import dul as stock
from pynetdicom.pdu import A_ABORT_RQ

from fastpdu import engine
from fastpdu.direct import DirectMode
from fastpdu.notifying import NotifyingQueue, NotifyingTimer
from fastpdu.pdu import without_unknown
from fastpdu.transport import ROADS, connection_for, tunable
from fastpdu.watching import PduWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.pdu import _PDUType

    from fastpdu.options import TransportOptions

_T = TypeVar("_T")

# pynetdicom's logger, since the messages are pynetdicom's
LOGGER = logging.getLogger("pynetdicom.dul")

# Bound of a wait outside Sta6, in seconds: there, tests and applications change things without telling us
# (`_is_connected`, a raw close of the socket).
BOUND = 0.05
# Reads of up to 64 KiB that are thrown away before a connection is closed on which the peer broke the protocol
DRAIN = 64
# Events of primitives that the local user issued: A-ASSOCIATE, P-DATA, A-RELEASE and A-ABORT
LOCAL_EVENTS = frozenset({"Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15"})
# States in which an answer of the peer is due: A-ASSOCIATE-AC or -RJ, A-RELEASE-RP (PS3.8 9.2.1)
AWAITING = frozenset({"Sta5", "Sta7", "Sta10", "Sta11"})
# States from our A-RELEASE request on, in which a request or response of ours has no transition any more
RELEASING = frozenset({"Sta7", "Sta9", "Sta10", "Sta11", "Sta12"})
# Outcomes of `Connection.receive` that tell of a message that has begun
_BEGUN = (engine.PARTIAL, engine.COMMAND)
# Reasons in an A-ABORT of the service provider (PS3.8 9.3.8)
UNEXPECTED_PDU = 2
INVALID_PARAMETER = 6


class DULServiceProvider(stock.DULServiceProvider):
    """pynetdicom's upper layer service provider over the engine.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The parent association.
    options : TransportOptions
        How to move bytes.
    """

    def __init__(self, assoc: Association, options: TransportOptions) -> None:
        self._options = options
        self._killed = False
        # Whether the association is in direct mode
        self.is_direct = False
        # The peer's maximum length (PS3.8 D.1)
        self.peer_maximum = 0
        # The engine's connection, None before there is one
        self.connection: engine.Connection | None = None
        self._connected_socket: Any = None
        # `time.monotonic` of the first connection, and of the end
        self._began: float | None = None
        self._ended: float | None = None
        # What has been told to the engine
        self._split: Any = None
        self._pdu_timeout: float | None = None
        self._maxima_known = False
        # Wakes the reactor while there is no connection to wait on
        self._stirred = threading.Event()
        # Wakes the association's thread when it does not hold the read token
        self.roused = threading.Event()
        self._dead = threading.Event()
        self._running = False
        self._reactor_ident: int | None = None
        self._mode_lock = threading.Lock()
        self._retirement: threading.Event | None = None
        self._primitive_waiters = 0
        # What went wrong while a message was read in direct mode
        self.unread_failure: Exception | None = None
        self._abort_reason = 0
        # What the state machine deals with, or has dealt with last
        self._event = ""
        # After a protocol error nobody knows where the next PDU begins
        self._out_of_step = False

        super().__init__(assoc)

        self.direct = DirectMode(self)
        self._watch = PduWatch(self)
        # What pynetdicom's `make_target` keeps for the DUL's thread: there may be more than one such thread here
        self._context = copy_context() if _config.PASS_CONTEXTVARS else None
        self.event_queue = NotifyingQueue(self.stir)
        self.to_provider_queue = NotifyingQueue(self.stir)
        self.to_user_queue = NotifyingQueue(self.roused.set)
        self._idle_timer = NotifyingTimer(60, self.rouse)
        self.artim_timer = NotifyingTimer(30, self.stir)

    # State ------------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the association has begun and ended."""
        return self._dead.is_set()

    @property
    def duration(self) -> float:
        """Seconds from the first use of the connection to the end, or until now."""
        if self._began is None:
            return 0.0
        return (self._ended or time.monotonic()) - self._began

    @property
    def send_timeout(self) -> float | None:
        """Seconds for which a peer may take no data while we send, None for ever."""
        return self._options.send_timeout or self._assoc._network_timeout

    @property
    def _kill_thread(self) -> bool:
        return self._killed

    @_kill_thread.setter
    def _kill_thread(self, value: bool) -> None:
        self._killed = value
        if value:
            self.stir()

    def start(self) -> None:
        """Start the reactor."""
        self._running = True
        try:
            super().start()
        except BaseException:
            self._running = False
            raise

    def is_alive(self) -> bool:
        """Return True from `start` until the association is over, whether a thread runs or not."""
        return self._running

    def peek_next_pdu(self) -> Any:
        """Return the next primitive for ACSE and leave it there; see pynetdicom. Mostly there is none."""
        return super().peek_next_pdu() if self.to_user_queue.queue else None

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return the next primitive for the service user; see pynetdicom. Nobody waits for a dead provider."""
        self._primitive_waiters += 1
        try:
            if self._dead.is_set():
                wait = False
            return super().receive_pdu(wait, timeout)
        finally:
            self._primitive_waiters -= 1

    def stop_dul(self) -> bool:
        """Stop the reactor if the current state is Sta1, and wait until it has ended."""
        if self.state_machine.current_state != "Sta1":
            return False
        self._kill_thread = True
        if self._running and threading.get_ident() != self._reactor_ident:
            self._dead.wait()
        return True

    def wait_dead(self, timeout: float) -> bool:
        """Wait until the reactor has ended, at most `timeout` seconds."""
        return self._dead.wait(timeout)

    def stir(self) -> None:
        """Something was put into a queue, or has changed: the reactor has to look."""
        if self.is_direct:
            self.leave_direct()
        if threading.get_ident() == self._reactor_ident:
            return
        self._stirred.set()
        if self.connection is not None:
            self.connection.wake()

    def rouse(self) -> None:
        """Wake the association's thread, wherever it waits."""
        self.roused.set()
        self.rouse_reader()

    def rouse_reader(self) -> None:
        """Wake the thread that waits for the peer, if there is one."""
        if self.connection is not None:
            self.connection.wake()

    # Modes ------------------------------------------------------------------------------------------------------

    def is_watched(self) -> bool:
        """Return whether somebody is to see each P-DATA PDU, or has replaced what handles them."""
        return self._watch.is_on()

    def _may_be_direct(self) -> bool:
        """Whether direct mode may begin."""
        return (
            self._running
            and not self._killed
            and self._assoc.is_established
            and not self.event_queue.queue
            and not self.to_provider_queue.queue
            and tunable(getattr(self.socket, "socket", None))
            and self.may_stay_direct()
        )

    def may_stay_direct(self) -> bool:
        """Whether direct mode may go on: what ends it without telling. Asked before each message."""
        # (without `is_watched` and `_dimse_takes_messages`: each message asks several times)
        dimse: Any = self._assoc.dimse
        return (
            self.state_machine.current_state == "Sta6"
            and not self._watch.is_on()
            and getattr(dimse, "takes_messages", False)
            and dimse.message is None
            and getattr(self.socket, "socket", None) is self._connected_socket
        )

    def _dimse_takes_messages(self) -> bool:
        """Whether DIMSE is ours, and not in the middle of a message that came PDU by PDU."""
        dimse = self._assoc.dimse
        return getattr(dimse, "takes_messages", False) and dimse.message is None

    def enter_direct(self) -> bool:
        """Enter direct mode, if that is possible, and say whether the association is in it."""
        if self.is_direct:
            if self.may_stay_direct():
                return True
            self.leave_direct()
            return False
        if threading.get_ident() == self._reactor_ident or not self._may_be_direct():
            return False
        with self._mode_lock:
            if self.is_direct or not self._running:
                return self.is_direct
            if self._retirement is None:
                self._retirement = threading.Event()
            retirement = self._retirement
        self.stir()
        # The reactor may be in somebody's handler: do not wait for that
        if not retirement.wait(BOUND):
            with self._mode_lock:
                if self._retirement is retirement:
                    self._retirement = None
        return self.is_direct

    def _retire(self) -> bool:
        """On the reactor's thread: enter direct mode, if it was asked for."""
        with self._mode_lock:
            retirement, self._retirement = self._retirement, None
            if retirement is None:
                return False
            retired = False
            connection = self._attach()
            half_a_pdu = connection is not None and connection.in_pdu and not connection.in_message
            # (attached before it is asked, since it must be the socket that is used)
            if connection is not None and not half_a_pdu and self._may_be_direct():
                self._learn_maxima(connection)
                connection.resume()
                self._reactor_ident = None
                self.is_direct = retired = True
                self.direct.token.release()
        retirement.set()
        # Not what `is_direct` is by now: somebody may have ended direct mode already, with a thread of its own
        return retired

    def leave_direct(self) -> None:
        """Leave direct mode: a new thread takes the reactor up."""
        with self._mode_lock:
            if not self.is_direct:
                return
            self.is_direct = False
            connection = self.connection
            if connection is not None:
                connection.hold()
                connection.wake()
            if self._running:
                threading.Thread(
                    target=self.in_context,
                    args=(self.run_reactor,),
                    name=self.name,
                    daemon=self.daemon,
                ).start()
        self.roused.set()

    # Messages ---------------------------------------------------------------------------------------------------------

    def take_message(
        self, connection: engine.Connection, timeout: float | None, awaited: bool = False
    ) -> engine.Message | int:
        """Receive a message for DIMSE, or the engine's outcome if there is none.

        Parameters
        ----------
        connection : engine.Connection
            The connection.
        timeout : float or None
            0: take what is there; else whatever the rest of the message needs.
        awaited : bool, optional
            Whether somebody waits for an answer, and not only for something to do.

        Returns
        -------
        engine.Message or int
            The message, which the caller delivers.

        Raises
        ------
        engine.ProtocolError, OSError
            As `Connection.receive` does.
        """
        self.prepare_to_take(connection, awaited)
        return self.take_prepared(connection, timeout, awaited)

    def take_prepared(
        self, connection: engine.Connection, timeout: float | None, awaited: bool
    ) -> engine.Message | int:
        """`take_message` after `prepare_to_take`."""
        dimse: Any = self._assoc.dimse
        prepared, sink = None, dimse.sink
        while (message := connection.receive(timeout, awaited=awaited)) in _BEGUN:
            prepared = dimse.begin_message(connection, message == engine.PARTIAL)
            # It outlives `receive`, which makes its file: see Incoming.close
            sink = dimse.sink
        if not isinstance(message, int):
            message.prepared = prepared
            # While the read token is in hand: the next message may need a file, too
            message.sink, dimse.sink = sink, None
            self._idle_timer.restart()
        return message

    def prepare_to_take(self, connection: engine.Connection, awaited: bool) -> None:
        """Tell the connection what holds for the next message: before any of it is received."""
        assoc: Any = self._assoc
        limit = self._options.pdu_timeout
        if limit is None:
            limit = assoc._network_timeout or None
            # (only then: as acceptor we wait for what the peer wants, however long)
            due = assoc._dimse_timeout if awaited else None
            if due and (not limit or due < limit):
                limit = due
        if limit != self._pdu_timeout:
            connection.pdu_timeout = self._pdu_timeout = limit
        split = assoc.dimse.split_commands()
        if split is not self._split:
            connection.split_commands = self._split = split

    def deliver(self, message: engine.Message) -> None:
        """Hand a message to DIMSE, for whoever will take it from there."""
        dimse: Any = self._assoc.dimse
        self.in_context(dimse.receive_message, message)

    def idle_remaining(self) -> float | None:
        """Return the seconds until the network timeout, None for never."""
        if self._idle_timer.timeout is None:
            return None
        remaining = self._idle_timer.remaining
        return remaining + 0.001 if remaining > 0 else 0.001

    def in_context(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function with the context variables of the DUL's thread (`_config.PASS_CONTEXTVARS`)."""
        if self._context is None:
            return function(*args)
        return self._context.copy().run(function, *args)

    def _learn_maxima(self, connection: engine.Connection) -> None:
        """Take over the maximum lengths that were negotiated (PS3.8 D.1): ours for reading, the peer's for writing."""
        assoc = self._assoc
        local, remote = assoc.requestor, assoc.acceptor
        if not assoc.is_requestor:
            local, remote = remote, local
        connection.max_receive_pdu = local.maximum_length or 0
        connection.tells_command = True
        self.peer_maximum = remote.maximum_length or 0
        self._maxima_known = True

    # The reactor of stock mode ------------------------------------------------------------------------------------

    def run_reactor(self) -> None:
        """Run the DUL reactor until the association is over, or direct mode begins."""
        self._reactor_ident = threading.get_ident()
        if not self._assoc._dul_ready.is_set():
            self._idle_timer.start()
        self.direct.token.acquire()
        retired = False
        try:
            retired = self._react()
        finally:
            if not retired:
                self._finish()

    def _react(self) -> bool:
        """One event per turn, like pynetdicom's loop, but waiting where that one sleeps."""
        while True:
            if not self._assoc._dul_ready.is_set():
                self._assoc._dul_ready.set()
                # Like pynetdicom, before anything is done: who has just started a server thread relies on it
                time.sleep(self._run_loop_delay)
            if self._killed:
                return False
            if self.artim_timer.expired and not self._is_room_made():
                self.event_queue.put("Evt18")
            received = False
            try:
                if self._process_recv_primitive():
                    pass
                elif self._is_transport_event():
                    received = True
                    self._idle_timer.restart()
            except Exception as error:
                self._abort_hard(error)
                return False
            try:
                event = self.event_queue.get(block=False)
            except queue.Empty:
                self.roused.set()
                if not received:
                    # Only in a turn without anything to do: what ended direct mode has been attended to
                    if self._retirement is not None and self._retire():
                        return True
                    self._rest()
                continue
            if self._is_too_late(event):
                continue
            if event == "Evt18" and (self._is_room_made() or not self.artim_timer.expired):
                # The A-ASSOCIATE-RQ stood before it in the queue
                continue
            self._event = event
            try:
                self.state_machine.do_action(event)
            except Exception:
                if not self.is_watched():
                    self._send_abort()
                raise
            self.roused.set()

    def _is_room_made(self) -> bool:
        """Whether `acse._close` has let ARTIM expire, and the A-ASSOCIATE-RQ has come all the same.

        A timer that is stopped counts as expired if its timeout is less than the time for which it ran.
        """
        timeout = self.artim_timer.timeout
        return (
            timeout is not None
            and timeout < 0
            and ("Evt18", self.state_machine.current_state) not in fsm.TRANSITION_TABLE
        )

    def _is_too_late(self, event: str) -> bool:
        """Drop what the user wants to send when nothing more can be sent, and say so.

        PS3.8 has no transition for that (Table 9-10), and pynetdicom's state machine raises. Either the peer broke the
        protocol, or aborted, while the user's primitive was on its way, and the connection is only waiting to be
        closed; or somebody has released the association while a handler was running, whose response is too late.
        """
        state = self.state_machine.current_state
        closing = (
            state == "Sta13"
            and event in LOCAL_EVENTS
            and (event, "Sta13") not in fsm.TRANSITION_TABLE
        )
        releasing = state in RELEASING and event == "Evt9"
        beside = getattr(self._assoc, "_handler_threads", None)
        if not (closing or releasing) or (beside is None and self.is_watched()):
            return False
        with suppress(queue.Empty):
            self.to_provider_queue.get(block=False)
        return True

    def _rest(self) -> None:
        """Wait until there may be something to do."""
        connection = self._attach()
        established = (
            connection is not None
            and self.state_machine.current_state == "Sta6"
            and not (connection.in_pdu or connection.in_message)
        )
        bound: float | None = None if established else BOUND
        artim = self.artim_timer
        if artim.timeout is not None and artim._start_time is not None and artim._end_time is None:
            left = max(artim.remaining, 0) + 0.001
            bound = left if bound is None else min(bound, left)
        # Only now: `_is_transport_event` may have consumed the wake-up that came with one of these
        if (
            self._retirement is not None
            or self._killed
            or self.to_provider_queue.queue
            or self.event_queue.queue
        ):
            return
        if connection is None or self._is_choked():
            self._stirred.wait(bound)
        else:
            connection.wait(bound, awaited=self._is_awaiting())
        self._stirred.clear()

    def _is_choked(self) -> bool:
        """Whether so many messages wait for somebody to take them that the socket is left alone (`message_taken`)."""
        return self.state_machine.current_state == "Sta6" and self.direct.is_full()

    def message_taken(self) -> None:
        """Somebody took a message from DIMSE's queue: there is room for another one."""
        self.direct.message_taken()
        self._stirred.set()

    def _is_awaiting(self) -> bool:
        """Whether the reactor waits for an answer, or for the rest of a message that comes PDU by PDU."""
        dimse = getattr(self._assoc, "dimse", None)
        return self.state_machine.current_state in AWAITING or getattr(dimse, "is_awaiting", False)

    def _abort_hard(self, error: Exception) -> None:
        """An unexpected exception: abort past the state machine, as pynetdicom does."""
        LOGGER.error("Exception in DUL.run(), aborting association")
        LOGGER.exception(error)
        self._send_abort()
        self._assoc.is_aborted = True
        self._assoc.is_established = False
        self._assoc._kill = True
        self._killed = True

    def _send_abort(self) -> None:
        """Try to send an A-ABORT past the state machine."""
        pdu = A_ABORT_RQ()
        pdu.source = 0x02
        pdu.reason_diagnostic = 0x00
        try:
            cast(Any, self.socket).send(pdu.encode())
        except Exception as error:
            LOGGER.debug("The A-ABORT could not be sent: %s", error)

    def _finish(self) -> None:
        """The association is over."""
        with self._mode_lock:
            self._running = False
            self.is_direct = False
            retirement, self._retirement = self._retirement, None
            if retirement is not None:
                retirement.set()
        self.direct.token.release()
        connection = self.connection
        if connection is not None:
            self._ended = time.monotonic()
            ROADS.end(connection)
            connection.close()
            # pynetdicom does not close a socket that the peer has reset: its shutdown() fails first
            with suppress(OSError):
                self._connected_socket.close()
        self._drop_sink()
        self._dead.set()
        self.roused.set()
        for _ in range(self._primitive_waiters):
            self.to_user_queue.put(None)
        release_waiters = getattr(getattr(self._assoc, "dimse", None), "release_waiters", None)
        if release_waiters is not None:
            release_waiters()

    def _drop_sink(self) -> None:
        """Remove what a message leaves behind that will never be complete."""
        drop = (
            getattr(self._assoc.dimse, "drop_sink", None) if hasattr(self._assoc, "dimse") else None
        )
        if drop is not None:
            drop()

    def _attach(self) -> engine.Connection | None:
        """Return the engine's connection over the association's socket, None while there is no usable socket."""
        holder = self.socket
        sock = getattr(holder, "socket", None)
        if self.connection is not None and sock is self._connected_socket:
            return None if self.connection.closed else self.connection
        if not getattr(holder, "_is_connected", False) or not tunable(sock):
            return None
        if self.connection is not None:
            self.connection.close()
        self.connection = connection_for(cast(Any, sock), self._options)
        if self._began is None:
            self._began = time.monotonic()
        self._connected_socket = sock
        self._split = self._pdu_timeout = None
        return self.connection

    def _is_transport_event(self) -> bool:
        """Take incoming data, if there is any; return True if there was."""
        failure, self.unread_failure = self.unread_failure, None
        if failure is not None:
            self._reading_failed(failure)
            return True
        connection = self._attach()
        if connection is None:
            return super()._is_transport_event()
        if not tunable(self._connected_socket):
            # Closed by somebody else. pynetdicom's select() notices that, too.
            if connection.in_pdu or connection.in_message:
                self._reading_failed(OSError("the socket was closed"))
            else:
                self.event_queue.put("Evt17")
            return False
        if not self._maxima_known and self.state_machine.current_state == "Sta6":
            self._learn_maxima(connection)
        if self._out_of_step and self.state_machine.current_state == "Sta13":
            self._drain()
            cast(Any, self.socket).close()
            return True
        if self._is_choked():
            return False
        if not _readable(connection):
            return self._wait_is_over(connection)
        if self.to_provider_queue.queue:
            # Put there since this turn began; what the user sends comes before what is received
            return False
        if connection.in_message or (
            self.state_machine.current_state == "Sta6"
            and self._dimse_takes_messages()
            and not self.is_watched()
        ):
            return self._receive_message(connection)
        self._read_pdu_data()
        return True

    def _drain(self) -> None:
        """Throw away what the peer has sent, so that the close that follows does not reset our A-ABORT."""
        sock = self._connected_socket
        try:
            sock.setblocking(False)
            for _ in range(DRAIN):
                if not sock.recv(65536):
                    return
        except (OSError, ValueError) as error:
            LOGGER.debug("Drained: %s", error)

    def _wait_is_over(self, connection: engine.Connection) -> bool:
        """Nothing can be read now: that ends Sta13, and a PDU that has been waited for too long."""
        if self.state_machine.current_state == "Sta13":
            cast(Any, self.socket).close()
            return True
        limit = self._options.pdu_timeout or self._assoc.network_timeout
        if limit is not None and connection.pdu_age > limit:
            LOGGER.error("The peer did not complete a PDU within %s seconds", limit)
            connection.abandon()
            self.event_queue.put("Evt19")
            return True
        return False

    def _receive_message(self, connection: engine.Connection) -> bool:
        """In stock mode, unwatched: take what there is of a message; True if there was something."""
        if self.state_machine.current_state == "Sta13":
            # Nobody wants the rest, and it need not be complete: no PDU follows it that matters
            cast(Any, self.socket).close()
            return True
        try:
            outcome = self.take_message(connection, 0)
        except (engine.ProtocolError, OSError) as error:
            self._reading_failed(error)
            return True
        if not isinstance(outcome, int):
            self.deliver(outcome)
        elif outcome == engine.OTHER:
            if connection.in_message:
                # An A-ABORT, or something that is wrong here: the message will never be complete
                connection.drop_message()
                self._drop_sink()
            self._read_pdu_data()
        return True

    def _reading_failed(self, error: Exception) -> None:
        """Log what went wrong, in pynetdicom's words, and tell the state machine."""
        if isinstance(error, engine.ProtocolError):
            LOGGER.error("%s" if error.reason == 1 else "Received an invalid PDU: %s", error)
            self._abort_reason = error.reason
            self._out_of_step = True
            if self.connection is not None:
                self.connection.abandon()
            self.event_queue.put("Evt19")
            return
        if getattr(self._assoc.dimse, "sink", None) is not None and not isinstance(
            error, ConnectionError
        ):
            LOGGER.error("Unable to write the received data set: %s", error)
            if self.connection is not None:
                self.connection.abandon()
            self.event_queue.put("Evt19")
            return
        if isinstance(error, engine.PeerClosed) and error.__cause__ is None:
            if error.received >= 6:
                LOGGER.error(
                    "The received PDU is shorter than expected "
                    f"({error.received} of {error.expected} bytes received)"
                )
        else:
            LOGGER.error("Connection closed before the entire PDU was received")
            LOGGER.exception(error)
        if self.connection is not None:
            self.connection.abandon()
        self.event_queue.put("Evt17")

    def _read_pdu_data(self) -> None:
        """Read a PDU, if it is complete, and put its event into the queue; see pynetdicom."""
        connection = self._attach()
        if connection is None:
            super()._read_pdu_data()
            return
        try:
            data = connection.receive_pdu()
        except (engine.ProtocolError, OSError) as error:
            self._reading_failed(error)
            return
        if data is None:
            return
        try:
            pdu, event = self._decode_pdu(bytearray(data))
            self.event_queue.put(event)
        except Exception as error:
            LOGGER.error("Unable to decode the received PDU data")
            LOGGER.exception(error)
            self._abort_reason = INVALID_PARAMETER
            self.event_queue.put("Evt19")
            return
        self._recv_pdu.put(pdu)

    def _decode_pdu(self, bytestream: bytearray) -> tuple[_PDUType, str]:
        """Decode a received PDU; see pynetdicom. What is to be ignored in an A-ASSOCIATE PDU is."""
        data = bytes(bytestream)
        known = without_unknown(data)
        if known == data:
            return super()._decode_pdu(bytestream)
        evt.trigger(self._assoc, evt.EVT_DATA_RECV, {"data": data})
        pdu_class, event = stock._PDU_TYPES[data[:1]]
        pdu = pdu_class()
        pdu.decode(known)
        evt.trigger(self._assoc, evt.EVT_PDU_RECV, {"pdu": pdu})
        return pdu, event

    def _send(self, pdu: _PDUType) -> None:
        """Encode and send a PDU; see pynetdicom."""
        if isinstance(pdu, A_ABORT_RQ) and self._event != "Evt15" and not self.is_watched():
            # Not the user's: say why (PS3.8 9.3.8). Whoever watches sees what pynetdicom sends.
            pdu.source = 0x02
            pdu.reason_diagnostic = self._abort_reason if self._event == "Evt19" else UNEXPECTED_PDU
        connection = self._attach()
        if connection is None or self._watch.is_on_socket():
            super()._send(pdu)
            return
        data = pdu.encode()
        if isinstance(pdu, A_ABORT_RQ):
            connection.cancel()
        try:
            connection.send_bytes(data, timeout=self.send_timeout)
            evt.trigger(self._assoc, evt.EVT_DATA_SENT, {"data": data})
        except Exception as error:
            LOGGER.debug("The PDU could not be sent: %s", error)
            self.event_queue.put("Evt17")
        evt.trigger(self._assoc, evt.EVT_PDU_SENT, {"pdu": pdu})


def _readable(connection: engine.Connection) -> bool:
    """Whether there is something to read now."""
    while (outcome := connection.wait(0)) == engine.WAKE:
        pass
    return outcome == engine.READY
