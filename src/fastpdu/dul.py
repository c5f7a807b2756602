"""The upper layer service provider, without polling.

An association is in one of two modes:

* **stock mode**: the DUL's own thread runs pynetdicom's reactor, event-driven instead of every millisecond. All of
  negotiation, release and abort happens here, and P-DATA too while somebody watches it PDU by PDU.
* **direct mode**: the association is established and nobody watches. The DUL's thread has ended; whoever wants a
  message reads the socket itself (one at a time, by the read token), whoever has one writes it. Anything that is not
  P-DATA, and anything that is put into the DUL's queues, ends direct mode: a new thread takes the reactor up again.

docs/architecture.md has the reasons and the rules.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import _config, _handlers, evt, fsm
from pynetdicom import dul as stock
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.timer import Timer

from fastpdu import engine
from fastpdu.dimse_messages import OpenFile
from fastpdu.transport import ROADS, connection_for, tunable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.pdu import _PDUType

    from fastpdu.dimse_messages import Encoded
    from fastpdu.options import TransportOptions

# pynetdicom's logger, since the messages are pynetdicom's
LOGGER = logging.getLogger("pynetdicom.dul")

# Bound of a wait outside Sta6, in seconds: there, tests and applications change things without telling us
# (`_is_connected`, a raw close of the socket).
BOUND = 0.05
# Seconds for which the idle reader stays away after somebody else has read: that one will be back soon
LEASE = 0.02
# Messages that may wait for somebody who does not take them, before the socket is left alone
BACKLOG = 8
# Reads of up to 64 KiB that are thrown away before a connection is closed on which the peer broke the protocol
DRAIN = 64
# Events of primitives that the local user issued: A-ASSOCIATE, P-DATA, A-RELEASE and A-ABORT
LOCAL_EVENTS = frozenset({"Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15"})
# Reasons in an A-ABORT of the service provider (PS3.8 9.3.8)
UNEXPECTED_PDU = 2
INVALID_PARAMETER = 6

_DT_1, _DT_2 = fsm.ACTIONS["DT-1"], fsm.ACTIONS["DT-2"]
_WATCHABLE_METHODS = frozenset(
    {"_read_pdu_data", "_decode_pdu", "_send", "_is_transport_event", "_process_recv_primitive"}
)
_WATCHABLE_SOCKET_METHODS = frozenset({"send", "recv", "ready"})
# Any of these handlers sees each PDU
_PDU_EVENTS = (evt.EVT_FSM_TRANSITION, evt.EVT_DATA_RECV, evt.EVT_DATA_SENT)
# ... and these do if they are more than pynetdicom's own, which do nothing for P-DATA
_DEFAULTED_PDU_EVENTS = (
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)


class _Queue(queue.Queue[Any]):
    """A queue that tells when something is put into it."""

    def __init__(self, on_put: Callable[[], None]) -> None:
        super().__init__()
        self._on_put = on_put

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._on_put()


class _Timer(Timer):
    """A timer that tells when its end changes, other than by a restart on reception."""

    def __init__(self, timeout: float | None, on_change: Callable[[], None]) -> None:
        super().__init__(timeout)
        self._on_change = on_change

    def start(self) -> None:
        super().start()
        self._on_change()

    def restart(self) -> None:
        # Later than before: whoever waits finds out when the earlier end has come
        super().start()

    @property
    def timeout(self) -> float | None:
        """Seconds until the timer expires, None for never."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._timeout = value
        if self._start_time is not None and self._end_time is None:
            self._on_change()


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
        self._direct = False
        self._connection: engine.Connection | None = None
        self._connected_socket: Any = None
        self._split: Any = None
        self._peer_maximum = 0
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
        self._read_token = threading.Lock()
        self._lease_until = 0.0
        self._token_wanted = 0
        self._reads = 0
        self._parked_for_long = False
        self._primitive_waiters = 0
        self._unread_failure: Exception | None = None
        self._abort_reason = 0
        # What the state machine deals with, or has dealt with last
        self._event = ""
        # After a protocol error nobody knows where the next PDU begins
        self._out_of_step = False

        super().__init__(assoc)

        # What pynetdicom's `make_target` keeps for the DUL's thread: there may be more than one such thread here
        self._context = copy_context() if _config.PASS_CONTEXTVARS else None
        self.event_queue = _Queue(self.stir)
        self.to_provider_queue = _Queue(self.stir)
        self.to_user_queue = _Queue(self.roused.set)
        self._idle_timer = _Timer(60, self.rouse)
        self.artim_timer = _Timer(30, self.stir)

    # State ------------------------------------------------------------------------------------------------------

    @property
    def is_direct(self) -> bool:
        """Whether the association is in direct mode."""
        return self._direct

    @property
    def is_over(self) -> bool:
        """Whether the association has begun and ended."""
        return self._dead.is_set()

    @property
    def connection(self) -> engine.Connection | None:
        """The engine's connection, None before there is one."""
        return self._connection

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
        if self._direct:
            self.leave_direct()
        if threading.get_ident() == self._reactor_ident:
            return
        self._stirred.set()
        if self._connection is not None:
            self._connection.wake()

    def rouse(self) -> None:
        """Wake the association's thread, wherever it waits."""
        self.roused.set()
        if self._connection is not None:
            self._connection.wake()

    # Modes ------------------------------------------------------------------------------------------------------

    def is_watched(self) -> bool:
        """Return whether somebody is to see each P-DATA PDU, or has replaced what handles them."""
        machine = self.state_machine
        if type(machine) is not fsm.StateMachine or len(machine.__dict__) > 2:
            return True
        actions = fsm.ACTIONS
        if actions["DT-1"] is not _DT_1 or actions["DT-2"] is not _DT_2:
            return True
        bound = cast(Any, self._assoc._handlers).get
        for event in _PDU_EVENTS:
            if bound(event):
                return True
        for event, default in _DEFAULTED_PDU_EVENTS:
            handlers = bound(event)
            if handlers and (len(handlers) > 1 or handlers[0][0] is not default):
                return True
        if not _WATCHABLE_METHODS.isdisjoint(self.__dict__):
            return True
        return not _WATCHABLE_SOCKET_METHODS.isdisjoint(getattr(self.socket, "__dict__", ()))

    def _may_be_direct(self) -> bool:
        """Whether direct mode may begin."""
        return (
            self._running
            and not self._killed
            and self._assoc.is_established
            and not self.event_queue.queue
            and not self.to_provider_queue.queue
            and tunable(getattr(self.socket, "socket", None))
            and self._may_stay_direct()
        )

    def _may_stay_direct(self) -> bool:
        """Whether direct mode may go on: what ends it without telling. Asked before each message."""
        return (
            self.state_machine.current_state == "Sta6"
            and not self.is_watched()
            and self._dimse_takes_messages()
            and getattr(self.socket, "socket", None) is self._connected_socket
        )

    def _dimse_takes_messages(self) -> bool:
        """Whether DIMSE is ours, and not in the middle of a message that came PDU by PDU."""
        dimse = self._assoc.dimse
        return getattr(dimse, "takes_messages", False) and dimse.message is None

    def enter_direct(self) -> bool:
        """Enter direct mode, if that is possible, and say whether the association is in it."""
        if self._direct:
            if self._may_stay_direct():
                return True
            self.leave_direct()
            return False
        if threading.get_ident() == self._reactor_ident or not self._may_be_direct():
            return False
        with self._mode_lock:
            if self._direct or not self._running:
                return self._direct
            if self._retirement is None:
                self._retirement = threading.Event()
            retirement = self._retirement
        self.stir()
        # The reactor may be in somebody's handler: do not wait for that
        if not retirement.wait(BOUND):
            with self._mode_lock:
                if self._retirement is retirement:
                    self._retirement = None
        return self._direct

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
                self._direct = retired = True
                self._read_token.release()
        retirement.set()
        # Not what `_direct` is by now: somebody may have ended direct mode already, with a thread of its own
        return retired

    def leave_direct(self) -> None:
        """Leave direct mode: a new thread takes the reactor up."""
        with self._mode_lock:
            if not self._direct:
                return
            self._direct = False
            connection = self._connection
            if connection is not None:
                connection.hold()
                connection.wake()
            if self._running:
                threading.Thread(
                    target=self._in_context,
                    args=(self.run_reactor,),
                    name=self.name,
                    daemon=self.daemon,
                ).start()
        self.roused.set()

    # Reading and writing in direct mode ---------------------------------------------------------------------------

    def send_direct(self, context_id: int, message: Encoded) -> bool:
        """Write a whole message from the calling thread.

        Parameters
        ----------
        context_id : int
            The presentation context ID.
        message : Encoded
            The message.

        Returns
        -------
        bool
            False if direct mode ended before a byte was sent: the message must take the stock road.

        Raises
        ------
        OSError
            If the file with the data set cannot be opened.
        ValueError
            If the maximum length is 1 to 6.
        """
        connection = cast(engine.Connection, self._connection)
        max_pdu = self._peer_maximum
        timeout = self._options.send_timeout or self._assoc.network_timeout
        sent = connection.bytes_sent
        try:
            if message.file is None:
                connection.send(
                    context_id, message.command, message.data, max_pdu=max_pdu, timeout=timeout
                )
            else:
                self._send_file(connection, context_id, message, max_pdu, timeout)
        except engine.Cancelled as error:
            return error.begun
        except (EOFError, TimeoutError, ConnectionError) as error:
            self._sending_failed(connection, error)
        except OSError as error:
            if connection.bytes_sent == sent and message.file is not None and not connection.closed:
                raise
            self._sending_failed(connection, error)
        return True

    def _send_file(
        self,
        connection: engine.Connection,
        context_id: int,
        message: Encoded,
        max_pdu: int,
        timeout: float | None,
    ) -> None:
        if isinstance(message.file, OpenFile):
            connection.send_file(
                context_id,
                message.command,
                message.file.fd,
                message.file[1],
                message.file.length,
                max_pdu=max_pdu,
                timeout=timeout,
            )
            return
        path, offset = cast("tuple[Any, int]", message.file)
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            length = max(os.fstat(fd).st_size - offset, 0)
            connection.send_file(
                context_id, message.command, fd, offset, length, max_pdu=max_pdu, timeout=timeout
            )
        finally:
            os.close(fd)

    def _sending_failed(self, connection: engine.Connection, error: Exception) -> None:
        """The message cannot be completed: the association is over."""
        if not connection.closed:
            LOGGER.error("Failed to send a message: %s", error)
        if isinstance(error, EOFError):
            # Half a message has left; only an abort can end it (PS3.8 9.2, AA-8)
            self.event_queue.put("Evt19")
        else:
            self.event_queue.put("Evt17")

    def read_direct(self, deadline: float | None, until: Callable[[], bool]) -> None:
        """Read messages on the calling thread until one has come that `until` wants.

        Returns also when direct mode ends, and at the deadline.

        Parameters
        ----------
        deadline : float or None
            The `time.monotonic` at which to stop.
        until : callable
            Says whether what was waited for is there.
        """
        if not self._read_token.acquire(blocking=False):
            self._token_wanted += 1
            try:
                cast(engine.Connection, self._connection).wake()
                if not self._read_token.acquire(
                    timeout=_remaining(deadline, threading.TIMEOUT_MAX)
                ):
                    return
            finally:
                self._token_wanted -= 1
        self._reads += 1
        try:
            connection = cast(engine.Connection, self._connection)
            while self._direct and not until():
                left = _remaining(deadline, None)
                if left == 0 and not connection.in_message:
                    return
                self._read_step(left)
        finally:
            self._lease_until = time.monotonic() + LEASE
            self._read_token.release()
            if self._parked_for_long:
                self.roused.set()

    def poll_direct(self) -> None:
        """Take what has arrived, without waiting: a handler wants to know about a C-CANCEL."""
        if not self._direct or not self._read_token.acquire(blocking=False):
            return
        try:
            while self._direct and not self._is_full():
                if not self._read_step(0):
                    return
        finally:
            self._read_token.release()

    def idle_direct(self, has_work: Callable[[], bool]) -> None:
        """On the association's thread: wait for a message, or for anything else to do.

        Parameters
        ----------
        has_work : callable
            Says whether there is something to do already. It is asked with the read token in hand, without which
            nobody can bring a message.
        """
        lease = self._lease_until - time.monotonic()
        if self._token_wanted or lease > 0:
            # Somebody else reads now and then: come back when that one has not for a while
            self._park(max(lease, LEASE))
        elif self._is_full():
            self._park_for_long(self._is_full)
        elif not self._read_token.acquire(blocking=False):
            # Somebody waits for the peer. Most answers come soon, and need not wake us.
            reads = self._reads
            self._park(LEASE)
            if reads == self._reads and self._read_token.locked():
                self._park_for_long(self._read_token.locked)
        else:
            try:
                if self._direct and not has_work():
                    self._read_step(self._idle_remaining())
            finally:
                self._read_token.release()

    def _is_full(self) -> bool:
        """Whether so many messages wait that the socket is to be left alone."""
        waiting = getattr(self._assoc.dimse, "msg_queue", None)
        return waiting is not None and waiting.qsize() >= BACKLOG

    def _park_for_long(self, reason: Callable[[], bool]) -> None:
        """Wait without the read token until the reader, or who takes messages from the queue, wakes us."""
        self._parked_for_long = True
        try:
            # Only now: who ends the reason later sees the flag
            if reason():
                self._park(None)
        finally:
            self._parked_for_long = False

    def _park(self, timeout: float | None) -> None:
        """Wait without the read token, not longer than the network timeout allows."""
        idle = self._idle_remaining()
        if timeout is None or (idle is not None and idle < timeout):
            timeout = idle
        self.roused.wait(timeout)
        self.roused.clear()

    def message_taken(self) -> None:
        """Somebody took a message from DIMSE's queue: there is room for another one."""
        if self._parked_for_long:
            self.roused.set()

    def _idle_remaining(self) -> float | None:
        """Seconds until the network timeout; None for never."""
        if self._idle_timer.timeout is None:
            return None
        return max(self._idle_timer.remaining, 0) + 0.001

    def _read_step(self, timeout: float | None) -> bool:
        """With the read token: take one message, if one begins within `timeout`; say whether something was read."""
        connection = cast(engine.Connection, self._connection)
        try:
            if not connection.in_message and connection.wait(timeout) != engine.READY:
                return False
            if not connection.in_message and not self._may_stay_direct():
                self.leave_direct()
                return False
            outcome = self._take_message(connection, 0 if timeout == 0 else None)
            if outcome == engine.OTHER:
                self.leave_direct()
            return outcome == engine.READY
        except (engine.ProtocolError, OSError) as error:
            # The reactor will do what pynetdicom does about it
            self._unread_failure = error
            self.leave_direct()
            return False

    def _take_message(self, connection: engine.Connection, timeout: float | None) -> int:
        """Receive a message and hand it to DIMSE; return READY, or the engine's outcome if there is none."""
        dimse = cast(Any, self._assoc.dimse)
        limit = self._options.pdu_timeout or self._assoc.network_timeout
        if limit != connection.pdu_timeout:
            connection.pdu_timeout = limit
        split = dimse.split_commands()
        if split is not self._split:
            connection.split_commands = self._split = split
        while isinstance(message := connection.receive(timeout), int):
            if message != engine.PARTIAL:
                return message
            connection.set_sink(dimse.open_sink(connection.partial))
        self._idle_timer.restart()
        self._in_context(dimse.receive_message, message)
        return engine.READY

    def _in_context(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function with the context variables of the DUL's thread (`_config.PASS_CONTEXTVARS`)."""
        if self._context is None:
            function(*args)
        else:
            self._context.copy().run(function, *args)

    def _learn_maxima(self, connection: engine.Connection) -> None:
        """Take over the maximum lengths that were negotiated (PS3.8 D.1): ours for reading, the peer's for writing."""
        assoc = self._assoc
        local, remote = assoc.requestor, assoc.acceptor
        if not assoc.is_requestor:
            local, remote = remote, local
        connection.max_receive_pdu = local.maximum_length or 0
        self._peer_maximum = remote.maximum_length or 0
        self._maxima_known = True

    # The reactor of stock mode ------------------------------------------------------------------------------------

    def run_reactor(self) -> None:
        """Run the DUL reactor until the association is over, or direct mode begins."""
        self._reactor_ident = threading.get_ident()
        if not self._assoc._dul_ready.is_set():
            self._idle_timer.start()
        self._read_token.acquire()
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
            if self.artim_timer.expired:
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
            self._event = event
            try:
                self.state_machine.do_action(event)
            except Exception:
                if not self.is_watched():
                    self._send_abort()
                raise
            self.roused.set()

    def _is_too_late(self, event: str) -> bool:
        """Drop what the user wants to send while the connection is only waiting to be closed, and say so.

        The peer broke the protocol, or aborted, while the user's primitive was on its way. PS3.8 has no transition
        for that (Table 9-10), and pynetdicom's state machine raises.
        """
        if (
            self.state_machine.current_state != "Sta13"
            or event not in LOCAL_EVENTS
            or (event, "Sta13") in fsm.TRANSITION_TABLE
            or self.is_watched()
        ):
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
        if connection is None:
            self._stirred.wait(bound)
        else:
            connection.wait(bound)
        self._stirred.clear()

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
            self._direct = False
            retirement, self._retirement = self._retirement, None
            if retirement is not None:
                retirement.set()
        self._read_token.release()
        connection = self._connection
        if connection is not None:
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
        if self._connection is not None and sock is self._connected_socket:
            return None if self._connection.closed else self._connection
        if not getattr(holder, "_is_connected", False) or not tunable(sock):
            return None
        if self._connection is not None:
            self._connection.close()
        self._connection = connection_for(cast(Any, sock), self._options)
        self._connected_socket = sock
        self._split = None
        return self._connection

    def _is_transport_event(self) -> bool:
        """Take incoming data, if there is any; return True if there was."""
        failure, self._unread_failure = self._unread_failure, None
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
            outcome = self._take_message(connection, 0)
        except (engine.ProtocolError, OSError) as error:
            self._reading_failed(error)
            return True
        if outcome == engine.OTHER:
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
            if self._connection is not None:
                self._connection.abandon()
            self.event_queue.put("Evt19")
            return
        if getattr(self._assoc.dimse, "sink", None) is not None and not isinstance(
            error, ConnectionError
        ):
            LOGGER.error("Unable to write the received data set: %s", error)
            if self._connection is not None:
                self._connection.abandon()
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
        if self._connection is not None:
            self._connection.abandon()
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

    def _send(self, pdu: _PDUType) -> None:
        """Encode and send a PDU; see pynetdicom."""
        if isinstance(pdu, A_ABORT_RQ) and self._event != "Evt15" and not self.is_watched():
            # Not the user's: say why (PS3.8 9.3.8). Whoever watches sees what pynetdicom sends.
            pdu.source = 0x02
            pdu.reason_diagnostic = self._abort_reason if self._event == "Evt19" else UNEXPECTED_PDU
        connection = self._attach()
        if connection is None or not _WATCHABLE_SOCKET_METHODS.isdisjoint(self.socket.__dict__):
            super()._send(pdu)
            return
        data = pdu.encode()
        if isinstance(pdu, A_ABORT_RQ):
            connection.cancel()
        try:
            connection.send_bytes(
                data, timeout=self._options.send_timeout or self._assoc.network_timeout
            )
            evt.trigger(self._assoc, evt.EVT_DATA_SENT, {"data": data})
        except Exception as error:
            LOGGER.debug("The PDU could not be sent: %s", error)
            self.event_queue.put("Evt17")
        evt.trigger(self._assoc, evt.EVT_PDU_SENT, {"pdu": pdu})


def _remaining(deadline: float | None, never: Any) -> Any:
    """Seconds until a `time.monotonic` deadline, at least 0; `never` if there is none."""
    return never if deadline is None else max(deadline - time.monotonic(), 0)


def _readable(connection: engine.Connection) -> bool:
    """Whether there is something to read now."""
    while (outcome := connection.wait(0)) == engine.WAKE:
        pass
    return outcome == engine.READY
