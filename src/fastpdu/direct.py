"""Direct mode: whoever wants a message reads the socket itself, whoever has one writes it.

The association is established, and nobody watches its PDUs. It has no thread that reads: reading goes by the *read
token*, one thread at a time. docs/architecture.md has the rules.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from fastpdu import engine
from fastpdu.dimse_messages import OpenFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpdu.dimse_messages import Encoded
    from fastpdu.dul import DULServiceProvider

# pynetdicom's logger, since the messages are pynetdicom's
LOGGER = logging.getLogger("pynetdicom.dul")

# Seconds for which the idle reader stays away after somebody else has asked or read: that one will be back soon.
# As many times that as associations of the process wait for answers, up to the longest: answers take longer then, and
# each look is another turn in the queue for the GIL.
LEASE = 0.02
LONGEST_LEASE = 0.5
# Seconds for which an acceptor leaves the GIL to others after a response, unless the next request comes before
YIELD = 0.001
# ... and whoever reads the progress of a C-GET or C-MOVE after a pending response
PROGRESS_YIELD = 0.0003
# Seconds for which a reader may take to notice that the connection has ended
LAST_WORDS = 1.0
# Messages that may wait for somebody who does not take them, before the socket is left alone
BACKLOG = 8


# Those of this process that send a request, or linger for the answer
_asking: set[DirectMode] = set()
if hasattr(os, "register_at_fork"):
    # (those threads are not in the child)
    os.register_at_fork(after_in_child=lambda: _asking.clear())


class DirectMode:
    """Reads and writes an association's messages on the threads that call.

    The service provider decides when direct mode begins and ends.

    Parameters
    ----------
    dul : DULServiceProvider
        The association's service provider.

    Attributes
    ----------
    token : threading.Lock
        The read token. Outside direct mode the reactor has it.
    backlog : int
        Messages that may wait in DIMSE's queue before the idle reader leaves the socket alone.
    has_failed : bool
        Whether a read or a write has failed: the association is over, or about to be.
    """

    def __init__(self, dul: DULServiceProvider) -> None:
        self._dul = dul
        self.backlog = BACKLOG
        self.has_failed = False
        # What `Connection.busy_wait` will be again
        self._waits_busily: bool | None = None
        self.token = threading.Lock()
        self._lease = LEASE
        self._lease_until = 0.0
        self._wanted = 0
        self._reads = 0
        self._parked_for_long = False
        # Whether the last request has been lingered for by who sent it
        self._has_lingered = False

    # Writing ------------------------------------------------------------------------------------------------------

    def send(self, context_id: int, message: Encoded) -> bool:
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
            False if direct mode ended before a byte was sent, or its file holds no data set: the message must take the
            stock road.

        Raises
        ------
        OSError
            If the file with the data set cannot be opened.
        engine.FileError
            If it cannot be read, and nothing has been sent.
        ValueError
            If the maximum length is 1 to 6.
        """
        dul = self._dul
        connection: Any = dul.connection
        max_pdu = dul.peer_maximum
        timeout = dul.send_timeout
        sent = connection.bytes_sent
        linger = 0.0
        try:
            if message.is_awaited:
                self._begin_lease()
                if len(_asking) > engine.TURNS:
                    # A large message may have its turn until it has been answered
                    linger = self._linger()
                self._has_lingered = linger > 0
            if message.file is None:
                connection.send(
                    context_id,
                    message.command,
                    message.data,
                    max_pdu=max_pdu,
                    timeout=timeout,
                    linger=linger,
                    yields=self._yields() if message.is_last else None,
                )
            elif not self._send_file(connection, context_id, message, max_pdu, timeout, linger):
                return False
        except engine.Cancelled as error:
            return error.begun
        except engine.FileError as error:
            text = f"{_path_of(message)}: {error.strerror or error}"
            told = engine.FileError(text, error.begun, error.errno or 0)
            if not error.begun:
                raise told from error
            self._sending_failed(connection, told)
        except (TimeoutError, ConnectionError) as error:
            self._sending_failed(connection, error)
        except OSError as error:
            if connection.bytes_sent == sent and message.file is not None and not connection.closed:
                raise
            self._sending_failed(connection, error)
        finally:
            if message.is_awaited:
                _asking.discard(self)
        return True

    def expect_many(self, window: int) -> None:
        """Take notice that the answers to so many requests may come from now on; 0: no longer.

        With more than one the peer is busy all the time, and needs the processor more, if it is in this process, than
        we need the answer early: no busy waiting then.
        """
        self.backlog = BACKLOG + window
        connection: Any = self._dul.connection
        if window > 1:
            if self._waits_busily is None and connection is not None:
                self._waits_busily, connection.busy_wait = connection.busy_wait, False
        elif self._waits_busily is not None:
            self._waits_busily, connection.busy_wait = None, self._waits_busily

    def _begin_lease(self) -> None:
        """Somebody is about to ask for something: that one will read the answer."""
        _asking.add(self)
        self._lease = max(LEASE, min(LEASE * len(_asking), LONGEST_LEASE))
        self._lease_until = time.monotonic() + self._lease

    def _linger(self) -> float:
        """Return for how long to wait for an answer before looking whether anything has changed."""
        timeout = self._dul._assoc._dimse_timeout
        return self._lease if timeout is None else min(self._lease, max(timeout, 0))

    def _yields(self) -> float:
        """Return for how long to leave the GIL to others after a last response.

        On the association's thread, what is still to be done for a request is done while the next one comes.
        """
        return YIELD if threading.get_ident() == self._dul._assoc.ident else 0

    def _send_file(
        self,
        connection: engine.Connection,
        context_id: int,
        message: Encoded,
        max_pdu: int,
        timeout: float | None,
        linger: float,
    ) -> bool:
        """Write a message whose data set is in a file; False if there is none in it.

        The command set says that one follows: pynetdicom sends an empty fragment then, which no message of ours has.
        """
        file = message.file
        if isinstance(file, OpenFile):
            if file.length == 0:
                return False
            connection.send_file(
                context_id,
                message.command,
                file.fd,
                file.offset,
                file.length,
                max_pdu=max_pdu,
                timeout=timeout,
                linger=linger,
            )
            return True
        path, offset = cast("tuple[Any, int]", file)
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            length = max(os.fstat(fd).st_size - offset, 0)
            if length == 0:
                return False
            connection.send_file(
                context_id, message.command, fd, offset, length, max_pdu=max_pdu, timeout=timeout
            )
        finally:
            os.close(fd)
        return True

    def _sending_failed(self, connection: engine.Connection, error: Exception) -> None:
        """The message cannot be completed: the association is over."""
        self.has_failed = True
        if not connection.closed:
            LOGGER.error("Failed to send a message: %s", error)
        if isinstance(error, ConnectionError):
            self._read_last_words(connection)
            if not self._dul.is_direct:
                # The reactor finds the end of the connection, or what comes before it
                return
        # Half a message has left if the file was too short; only an abort can end it (PS3.8 9.2, AA-8)
        self._dul.event_queue.put("Evt19" if isinstance(error, engine.FileError) else "Evt17")

    # Reading ------------------------------------------------------------------------------------------------------

    def read(
        self, deadline: float | None, until: Callable[[], bool], yields: float = 0
    ) -> engine.Message | None:
        """Read the next message on the calling thread.

        Parameters
        ----------
        deadline : float or None
            The `time.monotonic` at which to stop.
        until : callable
            Says whether what is waited for has come in another way. It is asked with the read token in hand, without
            which nobody can bring a message.
        yields : float, optional
            Seconds for which to leave the GIL to others after a pending response: see `Connection.wait`.

        Returns
        -------
        engine.Message or None
            None at the deadline, when `until` is satisfied, and when direct mode ends.
        """
        dul = self._dul
        if not self.token.acquire(blocking=False):
            self._wanted += 1
            try:
                dul.rouse_reader()
                if not self.token.acquire(timeout=_remaining(deadline, threading.TIMEOUT_MAX)):
                    return None
            finally:
                self._wanted -= 1
        try:
            connection: Any = dul.connection
            while dul.is_direct and not until():
                left = _remaining(deadline, None)
                if left == 0 and not connection.in_message:
                    return None
                message = self._step(left, awaited=True, yields=yields)
                if message is not None:
                    return message
            return None
        finally:
            self._release()

    def take_answer(self, lingers: bool) -> engine.Message | None:
        """Take the answer to what has been sent, which mostly is the next that comes, and comes soon.

        Parameters
        ----------
        lingers : bool
            Whether to wait for it, for the time of a lease, unless `send` has. What else there is to do is done before.

        Returns
        -------
        engine.Message or None
            None also if a message came before it: `read` has to sort that out.
        """
        dul = self._dul
        if not self.token.acquire(blocking=False):
            return None
        try:
            if dul.is_direct and dul.may_stay_direct() and not dul._assoc.dimse.msg_queue.queue:
                connection: Any = dul.connection
                dul.prepare_to_take(connection, True)
                if lingers and not self._has_lingered and not self._comes(connection):
                    return None
                message = dul.take_prepared(connection, 0, True)
                if not isinstance(message, int):
                    return message
        except (engine.ProtocolError, OSError) as error:
            self._reading_failed(error)
        finally:
            self._release()
        return None

    def _comes(self, connection: engine.Connection) -> bool:
        """Wait for something to read, with the read token; whoever changes something ends the wait."""
        dul = self._dul
        _asking.add(self)
        try:
            # (what ends direct mode without telling may have come meanwhile)
            return (
                connection.wait(self._linger(), awaited=True) == engine.READY
                and dul.is_direct
                and dul.may_stay_direct()
            )
        finally:
            _asking.discard(self)

    def poll(self) -> None:
        """Take what has arrived, without waiting: a handler wants to know about a C-CANCEL."""
        dul = self._dul
        if not dul.is_direct or not self.token.acquire(blocking=False):
            return
        try:
            while dul.is_direct and not self.is_full():
                message = self._step(0)
                if message is None:
                    return
                dul.deliver(message)
        finally:
            self._unlock()

    def _read_last_words(self, connection: engine.Connection) -> None:
        """Take what the peer has sent before it went away: it may have answered what it was asked."""
        dul = self._dul
        self._wanted += 1
        try:
            dul.rouse_reader()
            if not self.token.acquire(timeout=LAST_WORDS):
                return
        finally:
            self._wanted -= 1
        try:
            while dul.is_direct and not self.is_full():
                while connection.wait(0) == engine.WAKE:
                    pass
                message = self._step(0)
                if message is None:
                    return
                dul.deliver(message)
        finally:
            self._unlock()

    def idle(self, has_work: Callable[[], bool]) -> engine.Message | None:
        """On the association's thread: wait for a message, or for anything else to do.

        Parameters
        ----------
        has_work : callable
            Says whether there is something to do already. It is asked with the read token in hand.

        Returns
        -------
        engine.Message or None
            The message that has come, if one has, and no other thread wants to use the association: it is nowhere
            else, and the caller has to serve it.
        """
        dul = self._dul
        assoc: Any = dul._assoc
        lease = self._lease_until and self._lease_until - time.monotonic()
        if self._wanted or lease > 0:
            # Somebody else reads now and then: come back when that one has not for a while
            self._park(max(lease, LEASE))
        elif self.is_full():
            self._park_for_long(self.is_full)
        elif not self.token.acquire(blocking=False):
            # Somebody waits for the peer. Most answers come soon, and need not wake us.
            reads = self._reads
            self._park(LEASE)
            if reads == self._reads and self.token.locked():
                self._park_for_long(self.token.locked)
        else:
            try:
                if dul.is_direct and not has_work():
                    message = self._step(dul.idle_remaining())
                    if message is not None:
                        if assoc._reactor_checkpoint.is_open and not assoc.dimse.msg_queue.queue:
                            return message
                        # While the token is in hand: who waits for it looks there as soon as it has the token
                        self._deliver(message)
            finally:
                self.token.release()
        return None

    def _deliver(self, message: engine.Message) -> None:
        """Hand a message to DIMSE on the idle thread, and tell who may linger for it.

        That one has it now, and will be back for the next: the idle reader stays away, and leaves the wake-up alone.
        """
        self._dul.deliver(message)
        self._lease_until = time.monotonic() + self._lease
        self._dul.rouse_reader()

    def is_full(self) -> bool:
        """Whether so many messages wait that the socket is to be left alone."""
        waiting = getattr(self._dul._assoc.dimse, "msg_queue", None)
        return waiting is not None and len(waiting.queue) >= self.backlog

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
        idle = self._dul.idle_remaining()
        if timeout is None or (idle is not None and idle < timeout):
            timeout = idle
        self._dul.roused.wait(timeout)
        self._dul.roused.clear()

    def message_taken(self) -> None:
        """Somebody took a message from DIMSE's queue: there is room for another one."""
        if self._parked_for_long:
            self._dul.roused.set()

    def _step(
        self, timeout: float | None, awaited: bool = False, yields: float = 0
    ) -> engine.Message | None:
        """With the read token: take one message, if one begins within `timeout`.

        `awaited`: somebody waits for an answer, and not only for something to do. `yields`: as for `Connection.wait`.
        """
        dul = self._dul
        connection: Any = dul.connection
        try:
            if not connection.in_message:
                # A PDU that has begun must go on within its timeout, which `receive` knows
                ready = connection.in_pdu and timeout != 0
                if yields:
                    # `wait` may take a message from the socket: what is asked afterwards has to be asked before.
                    # (`AssociationMixin.bind` ends the wait)
                    if not dul.may_stay_direct():
                        dul.leave_direct()
                        return None
                    dul.prepare_to_take(connection, awaited)
                if (
                    not ready
                    and connection.wait(timeout, awaited=awaited, yields=yields) != engine.READY
                ):
                    return None
                if not (connection.in_message or dul.may_stay_direct()):
                    dul.leave_direct()
                    return None
            outcome = dul.take_message(connection, 0 if timeout == 0 else None, awaited)
            if not isinstance(outcome, int):
                return outcome
            if outcome == engine.OTHER:
                dul.leave_direct()
        except (engine.ProtocolError, OSError) as error:
            self._reading_failed(error)
        return None

    def _release(self) -> None:
        """Give the read token back: who has read once will read again soon."""
        self._lease_until = time.monotonic() + self._lease
        self._unlock()

    def _unlock(self) -> None:
        """Give the read token back to the idle reader, which may have parked until somebody does."""
        self._reads += 1
        self.token.release()
        if self._parked_for_long:
            self._dul.roused.set()

    def _reading_failed(self, error: Exception) -> None:
        """Leave it to the reactor to do what pynetdicom does about it."""
        self.has_failed = True
        self._dul.unread_failure = error
        self._dul.leave_direct()


def _path_of(message: Encoded) -> Any:
    """Return the file that has a message's data set."""
    file = message.file
    if isinstance(file, OpenFile):
        return file.path
    return None if file is None else file[0]


def _remaining(deadline: float | None, never: Any) -> Any:
    """Seconds until a `time.monotonic` deadline, at least 0; `never` if there is none."""
    return never if deadline is None else max(deadline - time.monotonic(), 0)
