"""The engine in Python: whole DIMSE messages over one stream socket.

The twin of the compiled ``fastpdu._fastpdu``, with the same interface (``docs/engine.md``). It is the fallback where
the extension cannot be loaded, and the oracle that the compiled engine is tested against; clarity comes before speed.
It knows nothing of pynetdicom.

Notes
-----
*Exceptions of signal handlers.* Python runs signal handlers between any two bytecodes, so an exception may appear
anywhere in this module. No byte may get lost by that, neither received nor sent:

* What a system call returns is put away by ``list.extend(map(call, ...))``, which is one bytecode: either the call did
  not happen, or its result is in the list.
* The receiver's state is replaced, never changed: a `_State` is copied, the copy is worked on, and one assignment makes
  it valid. What is interrupted before that assignment is simply done again.
"""

from __future__ import annotations

import copy
import errno
import functools
import math
import operator
import os
import re
import select
import selectors
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol, cast

try:
    import ssl
except ImportError:  # pragma: no cover - a Python without OpenSSL
    ssl = None  # type: ignore[assignment]

__all__ = [
    "CAN_CORK",
    "HARD_PDU_CAP",
    "MAX_ASSOCIATE_PDU",
    "MAX_COMMAND",
    "MIN_PDU",
    "OTHER",
    "PARTIAL",
    "READY",
    "STALL_NS",
    "TIMEOUT",
    "TURNS",
    "UNLIMITED_FRAGMENT",
    "WAKE",
    "Cancelled",
    "CommandError",
    "Connection",
    "FdConnection",
    "FileError",
    "Message",
    "NewFile",
    "Part10",
    "PeerClosed",
    "ProtocolError",
    "SocketConnection",
    "close_file",
    "connect",
    "decode_command",
    "encode_command",
    "is_whole",
    "open_head",
    "read_part10",
]

# Limits
MIN_PDU = 7
HARD_PDU_CAP = 16 * 2**20
MAX_ASSOCIATE_PDU = 2**20
MAX_COMMAND = 65536
_MAX_SINK_HEAD = 2**16
UNLIMITED_FRAGMENT = 131072 - 12
# (of the compiled engine: here nobody takes turns)
TURNS = 4
# Whether `Connection.cork` has an effect on this platform. Python does not know the TCP_NOPUSH of other systems.
CAN_CORK = hasattr(socket, "TCP_CORK")

# Nanoseconds from which on a wait is a suspected stall: the shortest delayed ACK takes 40 ms
STALL_NS = 30_000_000

# Outcomes that are not a message
READY = 1
WAKE = 2
TIMEOUT = 3
OTHER = 4
PARTIAL = 5
COMMAND = 6

_P_DATA = 0x04
_HEADER = 6  # PDU type, reserved, length (PS3.8 9.3.1)
_PDV_HEADER = 6  # item length, context ID, message control header (PS3.8 9.3.5.1, E.2)
_HEADERS = struct.Struct(">BxIIBB")  # both of them, as every P-DATA-TF PDU that we send begins
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 E.2)
_NO_DATA_SET = 0x0101  # Command Data Set Type (0000,0800), PS3.7 E.1

_MAX_LENGTH = 2**20  # longer PDUs are not sent, whatever the peer would take
_READ_SIZE = 2**18  # bytes of one read from the socket
_BATCH_SIZE = 2**19  # bytes framed and handed over at once
_BATCH_BUFFERS = 512  # vectors handed over at once; POSIX systems take 1024 (IOV_MAX)
_TCP_INFO_SIZE = 512  # bytes; more than any kernel has
_STAGE_SIZE = 320 * 2**10  # bytes of one `send` of a socket object
_RECORD_SIZE = 2**14  # bytes of a TLS record: one system call each

_Clock = time.monotonic


# ----------------------------------------------------------------------------------------------- exceptions


class ProtocolError(Exception):
    """The peer broke the upper layer protocol.

    Parameters
    ----------
    reason : int
        The reason to give in the A-ABORT.
    message : str
        What is wrong.

    Attributes
    ----------
    reason : int
        The reason to give in the A-ABORT (PS3.8 9.3.8): 0, 1, 2, 4, 5 or 6.
    """

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PeerClosed(ConnectionError):
    """The connection ended: the peer closed or reset it.

    Parameters
    ----------
    received, expected : int, optional
        See the attributes.
    error : OSError or str, optional
        What the system said.

    Attributes
    ----------
    received, expected : int
        Bytes of the PDU in progress, header included; both 0 between PDUs. `expected` is 6 while the header is
        incomplete.
    """

    def __init__(self, received: int = 0, expected: int = 0, error: object = None) -> None:
        message = "Connection closed by the peer"
        if expected:
            message += f" in the middle of a PDU ({received} of {expected} bytes received)"
        if error is not None:
            message += f": {error}"
        super().__init__(message)
        self.received = received
        self.expected = expected


class Cancelled(Exception):
    """`hold` or `cancel` was called.

    Attributes
    ----------
    begun : bool
        Whether a part of the message has left.
    """

    def __init__(self, message: str, begun: bool = False) -> None:
        super().__init__(message)
        self.begun = begun


class FileError(OSError, EOFError):
    """A file that is being sent cannot be read to the end that it was said to have: the message cannot be completed.

    No PDU has been cut. `errno` is None if the file has become shorter.

    Attributes
    ----------
    begun : bool
        Whether a part of the message has left.
    """

    def __init__(self, message: str, begun: bool = False, number: int = 0) -> None:
        super().__init__(*((number, message) if number else (message,)))
        self.begun = begun


class CommandError(ValueError):
    """The command set is not in the canonical form that the codec understands."""


class _WouldBlock(Exception):
    """An operation cannot go on before the socket is ready.

    Parameters
    ----------
    writable : bool
        Whether it has to become writable, not readable.
    """

    def __init__(self, writable: bool) -> None:
        super().__init__()
        self.writable = writable


def _closed_error() -> OSError:
    return OSError(errno.EBADF, "the connection is closed")


# ------------------------------------------------------------------------------------------------- waiting


def _deadline(timeout: float | None) -> float:
    """Return the monotonic time at which `timeout` is over.

    Parameters
    ----------
    timeout : float or None
        Seconds from now; None for never.

    Returns
    -------
    float
        The time, infinity for never.

    Raises
    ------
    ValueError
        If it is negative or not a number.
    """
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    return _Clock() + timeout


def _poll(readable: Sequence[int], writable: Sequence[int], seconds: float) -> set[int]:
    """Wait until one of some descriptors is ready.

    Parameters
    ----------
    readable, writable : sequence of int
        The descriptors; one may be in both. An error or hang-up counts as ready.
    seconds : float
        How long at most; may be infinite. The wait may end sooner, with nothing ready.

    Returns
    -------
    set of int
        Those that are ready.
    """
    seconds = min(max(seconds, 0.0), 86400.0)
    if hasattr(select, "poll"):
        poll = select.poll()
        for fd in {*readable, *writable}:
            events = (select.POLLIN if fd in readable else 0) | (
                select.POLLOUT if fd in writable else 0
            )
            poll.register(fd, events)
        return {fd for fd, _ in poll.poll(math.ceil(seconds * 1000))}
    with selectors.DefaultSelector() as selector:  # pragma: no cover - Windows
        for fd in {*readable, *writable}:
            mask = (selectors.EVENT_READ if fd in readable else 0) | (
                selectors.EVENT_WRITE if fd in writable else 0
            )
            selector.register(fd, mask)
        return {key.fd for key, _ in selector.select(seconds)}


class _Waits:
    """The blocking waits in one direction.

    Attributes
    ----------
    total, longest : int
        Nanoseconds of all of them, and of the longest.
    stalls : int
        How many took `STALL_NS` or more.
    """

    def __init__(self) -> None:
        self.total = 0
        self.longest = 0
        self.stalls = 0
        self._current = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a blocking call. A wait lasts until `end`, however many calls it takes."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            duration = time.monotonic_ns() - began
            self.total += duration
            if self._current < STALL_NS <= self._current + duration:
                self.stalls += 1
            self._current += duration
            self.longest = max(self.longest, self._current)

    def end(self) -> None:
        """Bytes have moved, or the next wait is for something else."""
        self._current = 0


class _Flag:
    """A flag that `_poll` can wait for: an eventfd, or else a pair of sockets."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # pragma: no cover - not Linux
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            self._fd = self._ends[0].fileno()

    def fileno(self) -> int:
        """Return the descriptor that is readable while the flag is set."""
        return self._fd

    def set(self) -> None:
        """Set the flag."""
        with suppress(BlockingIOError):  # then it is set, more than enough
            if self._ends is None:
                os.eventfd_write(self._fd, 1)
            else:  # pragma: no cover - not Linux
                self._ends[1].send(b"\0")

    def clear(self) -> None:
        """Clear the flag."""
        with suppress(BlockingIOError):  # then it was not set
            if self._ends is None:
                os.eventfd_read(self._fd)
            else:  # pragma: no cover - not Linux
                while self._ends[0].recv(4096):
                    pass

    def close(self) -> None:
        """Close the descriptors."""
        if self._ends is None:
            os.close(self._fd)
        else:  # pragma: no cover - not Linux
            for end in self._ends:
                end.close()


# ------------------------------------------------------------------------------------- the receiver's state


class Message:
    """One received DIMSE message (PS3.7 6.3).

    Attributes
    ----------
    context_id : int
        The presentation context ID.
    command : bytes
        The encoded command set.
    data : bytes or None
        The encoded data set; None if the message has none, or it went to the sink.
    length : int
        Bytes of the data set.
    error : int
        The errno of the sink, if it could not be written and the rest was drained; else 0.
    sink : object
        What the caller says that the data set went to; None at first.
    prepared : object
        What the caller has made of the command set before the message was complete; None at first.
    """

    __slots__ = ("command", "context_id", "data", "error", "length", "prepared", "sink")

    def __init__(
        self, context_id: int, command: bytes, data: bytes | None, length: int, error: int = 0
    ) -> None:
        self.context_id = context_id
        self.command = command
        self.data = data
        self.length = length
        self.error = error
        self.sink: object = None
        self.prepared: object = None

    def __repr__(self) -> str:
        return (
            f"<Message context_id={self.context_id} command={len(self.command)} bytes "
            f"data={self.length} bytes>"
        )


class _Gathered:
    """Bytes that grow at the end; older values stay valid until a newer one is made of them.

    Parameters
    ----------
    store : bytearray, optional
        Where the bytes are, and perhaps some more that do not count.
    size : int, optional
        How many of them count.
    """

    __slots__ = ("_store", "size")

    def __init__(self, store: bytearray | None = None, size: int = 0) -> None:
        self._store = bytearray() if store is None else store
        self.size = size

    def plus(self, more: bytes | memoryview) -> _Gathered:
        """Return these bytes with `more` behind them.

        The storage is shared and grows with the bytes received, never with a length declared.
        """
        del self._store[self.size :]
        self._store += more
        return _Gathered(self._store, len(self._store))

    def __bytes__(self) -> bytes:
        with memoryview(self._store) as view:
            return bytes(view[: self.size])


class _Read:
    """One read from the socket.

    Parameters
    ----------
    size : int
        Bytes to read at most.

    Attributes
    ----------
    store : bytearray
        Where the bytes were put.
    counts : list of int
        What the read returned: nothing if it has not, else one number.
    """

    __slots__ = ("counts", "store")

    def __init__(self, size: int) -> None:
        self.store = bytearray(size)
        self.counts: list[int] = []

    def __len__(self) -> int:
        return self.counts[0] if self.counts else 0

    def view(self) -> memoryview:
        """Return the bytes that were read."""
        return memoryview(self.store)[: len(self)]


class _State:
    """Where the receiver stands: always valid, replaced as a whole (see the notes of the module).

    Attributes
    ----------
    reads : list of _Read
        What was read from the socket and is not used up; shared by the copies.
    taken : int
        Bytes of `reads` that are used up.
    consumed : int
        Bytes of the stream that are used up.
    pdus, messages : int
        Complete ones.
    largest : int
        PDU length of the largest of the PDUs.
    header : bytes
        The header of the PDU in progress, as far as it came.
    raw : _Gathered or None
        The variable field of the PDU in progress if `receive_pdu` takes it.
    pdu_left : int
        Bytes of the P-DATA-TF PDU in progress that are to come, if its header is complete.
    pdu_began : float
        When the PDU in progress began. Inside a message, the next PDU begins with the end of the one before.
    pdv_header : bytes
        The header of the PDV in progress, as far as it came.
    pdv_left : int
        Bytes of the fragment in progress that are to come, if the PDV's header is complete.
    context_id : int or None
        The presentation context of the message in progress; None if there is none.
    command : _Gathered
        Its command set.
    command_done, complete : bool
        Whether the command set, the whole message is complete.
    split : bool
        Whether the data set goes where `set_sink` says.
    sink : int or None
        Where that is, -1 for memory or nowhere; None if it was not said.
    file : NewFile or None
        The file that the sink is, if it is one.
    drains : bool
        Whether a sink that cannot be written does not end the message.
    error : int
        The errno of such a sink.
    head : bytes
        What the sink is still to get before the data set.
    sunk : int
        Bytes that the sink has, or would have.
    data : _Gathered
        The data set, if it goes to memory.
    length : int
        Bytes of the data set so far.
    written : list of int
        The bytes that the sink has, in summands; shared by the copies.
    """

    def __init__(self) -> None:
        self.reads: list[_Read] = []
        self.taken = 0
        self.consumed = 0
        self.pdus = 0
        self.messages = 0
        self.largest = 0
        self.file: NewFile | None = None
        self.header = b""
        self.raw: _Gathered | None = None
        self.pdu_left = 0
        self.pdu_began = 0.0
        self.pdv_header = b""
        self.pdv_left = 0
        self.forget_message()

    def forget_message(self) -> None:
        """Forget the message in progress."""
        self.context_id: int | None = None
        self.command = _Gathered()
        self.command_done = False
        self.complete = False
        self.split = False
        self.sink: int | None = None
        self.file = None
        self.drains = False
        self.error = 0
        self.head = b""
        self.sunk = 0
        self.data = _Gathered()
        self.length = 0
        self.written: list[int] = []

    @property
    def buffered(self) -> int:
        """Bytes that were read and are not used up."""
        return sum(map(len, self.reads)) - self.taken

    @property
    def pdu_type(self) -> int | None:
        """Type of the PDU in progress; None if its header is not complete."""
        return self.header[0] if len(self.header) == _HEADER else None

    @property
    def pdu_length(self) -> int:
        """Declared length of the PDU in progress."""
        return int.from_bytes(self.header[2:6], "big")

    @property
    def in_message(self) -> bool:
        """Whether a message is in progress."""
        return self.context_id is not None

    @property
    def sinking(self) -> bool:
        """Whether the data set goes to a sink, or nowhere."""
        return self.drains or self.file is not None or self.sink not in (None, -1)

    @property
    def in_pdu(self) -> bool:
        """Whether a PDU is in progress."""
        return bool(self.header)

    @property
    def other_is_next(self) -> bool:
        """Whether the PDU in progress is of another type than P-DATA-TF."""
        return self.pdu_type not in (None, _P_DATA)

    @property
    def in_p_data(self) -> bool:
        """Whether a P-DATA-TF PDU is in progress that `receive` has begun."""
        return self.pdu_type == _P_DATA and self.raw is None

    def progress(self) -> tuple[int, int]:
        """Return the (received, expected) bytes of the PDU in progress."""
        if self.pdu_type is None:
            return len(self.header), _HEADER if self.header else 0
        if self.raw is not None:
            received = self.raw.size + self.buffered
        elif self.other_is_next:
            received = self.buffered
        else:
            received = self.pdu_length - self.pdu_left
        return _HEADER + received, _HEADER + self.pdu_length

    def take(self, most: int) -> memoryview:
        """Use up to `most` bytes of what was read."""
        view = self.reads[0].view() if self.reads else memoryview(b"")
        piece = view[self.taken : self.taken + most]
        self.taken += len(piece)
        self.consumed += len(piece)
        if self.reads and self.taken == len(view):
            self.reads = self.reads[1:]
            self.taken = 0
        return piece

    def end_pdu(self) -> None:
        """The PDU in progress is complete."""
        self.pdus += 1
        self.largest = max(self.largest, self.pdu_length)
        self.header = b""
        self.raw = None
        self.pdu_began = _Clock() if self.in_message and not self.complete else 0.0

    def message(self) -> Message:
        """Describe the message in progress."""
        in_memory = self.command_done and self.complete and not self.sinking
        data = bytes(self.data) if in_memory and _has_data_set(bytes(self.command)) else None
        return Message(
            cast(int, self.context_id), bytes(self.command), data, self.length, self.error
        )


def _walk_command(command: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk through the elements of a command set (PS3.7 6.3.1).

    Parameters
    ----------
    command : bytes
        The command set, implicit VR little endian.

    Yields
    ------
    tuple of (int, bytes)
        The tag (group << 16 | element) and the value field of each element.

    Raises
    ------
    CommandError
        If an element ends beyond the command set.
    """
    at = 0
    while at < len(command):
        if len(command) - at < 8:
            raise CommandError("element header cut off")
        group, element, length = struct.unpack_from("<HHI", command, at)
        at += 8
        if length > len(command) - at:
            raise CommandError(f"element ({group:04X},{element:04X}) longer than the command set")
        yield group << 16 | element, command[at : at + length]
        at += length


def _fields_of(command: bytes) -> tuple[int, int]:
    """Return Command Field (0000,0100) and Command Data Set Type (0000,0800), PS3.7 E.1.

    Raises
    ------
    CommandError
        If the command set cannot be walked through, or one of them is not there.
    """
    found: dict[int, int] = {}
    for tag, value in _walk_command(command):
        if tag in (0x0100, 0x0800) and len(value) >= 2:
            found[tag] = int.from_bytes(value[:2], "little")
    try:
        return found[0x0100], found[0x0800]
    except KeyError as error:
        raise CommandError(f"no element (0000,{error.args[0]:04X})") from None


def _has_data_set(command: bytes) -> bool:
    return _fields_of(command)[1] != _NO_DATA_SET


# --------------------------------------------------------------------------------------------- connections


class _Socket(Protocol):
    """What `SocketConnection` needs of a socket object."""

    def recv_into(self, buffer: bytearray, /) -> int: ...

    def send(self, data: memoryview, /) -> int: ...

    def fileno(self) -> int: ...


class Connection:
    """PDU framing over one connected stream socket: see ``docs/engine.md``.

    The base class of `FdConnection` and `SocketConnection`; not to be instantiated itself.

    Parameters
    ----------
    sock : socket.socket
        The connected socket.

    Attributes
    ----------
    max_receive_pdu : int
        The maximum length that we announced (PS3.8 D.1); 0 for unlimited, then `HARD_PDU_CAP` holds.
    max_message : int
        Bytes of one data set; 0 for no limit.
    pdu_timeout : float or None
        Seconds from a PDU's first byte to its last.
    quickack : bool
        Whether to re-arm ``TCP_QUICKACK`` before a blocking wait that follows a read.
    busy_wait : bool
        Whether the compiled engine looks for a message before it sleeps. Here that gains nothing, so nobody does.
    cork : bool
        Whether to hold back partial segments (``TCP_CORK``) between the system calls of one message.
    pack_command : bool
        Whether the last PDU of a command set takes as much of the data set as it has room for (PS3.8 E.1).
    split_commands : frozenset of int
        Command fields whose data set goes to a sink.
    tells_command : bool
        Whether the compiled engine tells COMMAND. Nothing could be done meanwhile here, so it is never told.
    """

    def __init__(self, sock: Any) -> None:
        if type(self) is Connection:
            raise TypeError(
                "Connection is abstract: use FdConnection, SocketConnection or connect()"
            )
        if sock.fileno() < 0:
            raise ValueError("the socket is closed")
        self.max_receive_pdu: int = 0
        self.max_message: int = 0
        self.pdu_timeout: float | None = None
        self.quickack: bool = False
        self.busy_wait: bool = False
        self.cork: bool = False
        self.pack_command: bool = False
        self.split_commands: frozenset[int] = frozenset()
        self.tells_command: bool = False

        self._guard = threading.RLock()  # re-entrant: signal handlers may call wake()
        self._users = 0
        self._closing = False
        self._wake = _Flag()
        self._cancel = _Flag()

        self._state = _State()
        self._has_read = False
        self._receive_calls = 0
        self._peer_waits = _Waits()

        self._send_lock = threading.Lock()
        self._corked = False
        self._held = False
        self._cancels = 0  # calls of cancel()
        self._cancels_seen = 0  # those before the send in progress
        self._send_broken = False
        self._bytes_sent = 0
        self._pdus_sent = 0
        self._messages_sent = 0
        self._send_calls = 0
        self._send_waits = _Waits()
        self._largest_pdu_sent = 0
        self._last_tcp_info: bytes | None = None

    # What the two kinds of connection do in their own way

    def _fileno(self) -> int:
        """Return the descriptor to poll."""
        raise NotImplementedError

    def _read_into(self, read: _Read) -> None:
        """Read once, without blocking.

        Raises
        ------
        _WouldBlock
            If nothing is there.
        OSError
            If the socket fails.
        """
        raise NotImplementedError

    def _write(self, buffers: Sequence[memoryview], counts: list[int]) -> None:
        """Write as much of `buffers` as is taken without blocking; append the number of bytes to `counts`.

        Raises
        ------
        _WouldBlock
            If nothing is taken.
        OSError
            If the socket fails.
        """
        raise NotImplementedError

    def _pending(self) -> bool:
        """Return whether bytes can be read that `_poll` does not see."""
        return False

    def _stuck(self) -> bool:
        """Return whether nothing but the bytes of the last `_write` may be written."""
        return False

    def _takes_several_calls(self, buffers: Sequence[memoryview]) -> bool:
        """Return whether writing `buffers` takes more than one system call."""
        raise NotImplementedError

    def _set_option(self, name: str, value: int) -> None:
        """Set a TCP option of the socket, if it has that."""

    def _tcp_info(self) -> bytes | None:
        """Return the kernel's figures, see `tcp_info`."""
        raise NotImplementedError

    def _release(self) -> None:
        """Close the descriptors."""
        state = copy.copy(self._state)
        state.file, state.sink = None, -1
        self._replace_state(state)
        self._wake.close()
        self._cancel.close()

    # Life time

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the descriptors open while a call needs them."""
        with self._guard:
            if self._closing:
                raise _closed_error()
            self._users += 1
        try:
            yield
        finally:
            with self._guard:
                self._users -= 1
                if self.closed and self._users == 0:
                    self._release()

    def close(self) -> None:
        """Close what the engine owns; the socket that was given stays open.

        Blocked calls of other threads end with an `OSError`. May be called more than once, and from any thread.
        """
        with self._guard:
            if self._closing:
                return
            self._last_tcp_info = self._tcp_info()
            self._closing = True
            if self._users == 0:
                self._release()
            else:
                self._wake.set()
                self._cancel.set()

    def wake(self) -> None:
        """Make the blocked (or the next) `wait` or `receive` return WAKE; from any thread."""
        with self._guard:
            if not self._closing:
                self._wake.set()

    def hold(self) -> None:
        """Let no new message begin: `send` and `send_file` raise `Cancelled`; from any thread."""
        self._held = True

    def cancel(self) -> None:
        """Hold, and make a blocked send raise `Cancelled`; from any thread. `send_bytes` works afterwards."""
        with self._guard:
            self._held = True
            self._cancels += 1
            if not self._closing:
                self._cancel.set()

    def resume(self) -> None:
        """Let messages be sent again; from any thread."""
        self._held = False

    def __del__(self) -> None:
        with suppress(AttributeError):  # of an object whose initialisation failed
            self.close()

    # Properties

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    @property
    def in_message(self) -> bool:
        """Whether `receive` has begun a message: more than a part of its first PDU's header has come."""
        return self._state.in_message or self._state.in_p_data

    @property
    def in_pdu(self) -> bool:
        """Whether a part of a PDU has been received."""
        return self._state.in_pdu or self._state.buffered > 0

    @property
    def buffered(self) -> int:
        """Bytes read ahead: received, and not part of the PDU in progress."""
        return self._state.buffered

    @property
    def pdu_age(self) -> float:
        """Seconds since the PDU in progress began, 0.0 if there is none."""
        state = self._state
        return _Clock() - state.pdu_began if state.in_pdu and state.pdu_began else 0.0

    @property
    def partial(self) -> Message:
        """The message of which `receive` has told PARTIAL, as far as it is known.

        Raises
        ------
        RuntimeError
            If there is none.
        """
        if not self._state.split:
            raise RuntimeError("no message waits for a sink")
        message = self._state.message()
        message.data = None
        return message

    @property
    def send_broken(self) -> bool:
        """Whether a PDU was cut while it was sent, so that nothing can follow."""
        return self._send_broken

    @property
    def bytes_sent(self) -> int:
        """Bytes that the kernel has taken."""
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes read from the socket."""
        return self._state.consumed + self._state.buffered

    @property
    def pdus_sent(self) -> int:
        """PDUs sent."""
        return self._pdus_sent

    @property
    def pdus_received(self) -> int:
        """Whole PDUs received."""
        return self._state.pdus

    @property
    def messages_sent(self) -> int:
        """Whole messages sent."""
        return self._messages_sent

    @property
    def messages_received(self) -> int:
        """Whole messages received."""
        return self._state.messages

    @property
    def send_calls(self) -> int:
        """Attempts to write to the socket."""
        return self._send_calls

    @property
    def receive_calls(self) -> int:
        """Attempts to read from the socket."""
        return self._receive_calls

    @property
    def largest_pdu_sent(self) -> int:
        """PDU length (PS3.8 9.3.1: without the 6 bytes before it) of the largest PDU sent."""
        return self._largest_pdu_sent

    @property
    def largest_pdu_received(self) -> int:
        """PDU length of the largest whole PDU received."""
        return self._state.largest

    @property
    def send_blocked_ns(self) -> int:
        """Nanoseconds for which sends were blocked."""
        return self._send_waits.total

    @property
    def yielded_ns(self) -> int:
        """Nanoseconds for which the compiled engine's sends waited as their `yields` says: none here."""
        return 0

    @property
    def busy_waits(self) -> int:
        """How often the compiled engine has looked for a message before sleeping: never here."""
        return 0

    @property
    def send_stalls(self) -> int:
        """Waits of sends of `STALL_NS` or more."""
        return self._send_waits.stalls

    @property
    def longest_send_wait_ns(self) -> int:
        """Nanoseconds of the longest wait of a send."""
        return self._send_waits.longest

    @property
    def peer_wait_ns(self) -> int:
        """Nanoseconds for which the peer was waited for: for an answer, or for the rest of a message or PDU."""
        return self._peer_waits.total

    @property
    def peer_stalls(self) -> int:
        """Waits for the peer of `STALL_NS` or more."""
        return self._peer_waits.stalls

    @property
    def longest_peer_wait_ns(self) -> int:
        """Nanoseconds of the longest wait for the peer."""
        return self._peer_waits.longest

    def tcp_info(self) -> bytes | None:
        """Return what the kernel knows about the connection; after `close`, what it knew then.

        Returns
        -------
        bytes or None
            Linux's ``struct tcp_info`` (tcp(7)), as long as this kernel has it. None elsewhere, and if this is not TCP.
        """
        with self._guard:
            return self._last_tcp_info if self._closing else self._tcp_info()

    # Receiving: reading and waiting

    def _read(self, most: int = _READ_SIZE) -> None:
        """Read what is there into the state, without blocking.

        Parameters
        ----------
        most : int, optional
            Bytes to read at most.

        Raises
        ------
        _WouldBlock
            If nothing is there.
        PeerClosed
            If the connection ended.
        OSError
            If the socket fails otherwise.
        """
        read = _Read(min(most, _READ_SIZE))
        state = copy.copy(self._state)
        state.reads = [*state.reads, read]
        self._state = state  # first, so that no byte can get lost
        self._receive_calls += 1
        error: OSError | None = None
        try:
            self._read_into(read)
        except ConnectionError as reset:
            error = reset
        finally:
            if len(read) == 0:
                state = copy.copy(self._state)
                state.reads = [one for one in state.reads if one is not read]
                self._state = state
        if len(read) == 0:
            raise PeerClosed(*self._state.progress(), error) from error
        self._has_read = True
        self._peer_waits.end()

    def _wait(self, writable: bool, seconds: float, awaited: bool) -> int:
        """Wait until the socket is ready.

        Parameters
        ----------
        writable : bool
            Whether it has to become writable (TLS).
        seconds : float
            How long at most.
        awaited : bool
            Whether this is time that the peer takes, not idleness.

        Returns
        -------
        int
            READY, WAKE or TIMEOUT (perhaps too soon, the caller has a deadline).
        """
        if self._has_read and self.quickack and seconds > 0:
            # It is not sticky
            self._set_option("TCP_QUICKACK", 1)
            self._has_read = False
        fd, wake = self._fileno(), self._wake.fileno()
        readable = [wake] if writable else [fd, wake]
        if awaited and seconds > 0:
            with self._peer_waits.counted():
                ready = _poll(readable, [fd] if writable else [], seconds)
        else:
            if seconds > 0:
                # Before it, not after: an idle reader may be woken because an answer is due by now
                self._peer_waits.end()
            ready = _poll(readable, [fd] if writable else [], seconds)
        if self._closing:
            raise _closed_error()
        if wake in ready:
            self._wake.clear()
            return WAKE
        return READY if fd in ready else TIMEOUT

    def wait(
        self, timeout: float | None = None, *, awaited: bool = False, yields: float = 0
    ) -> int:
        """Block until there is something to read.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None for ever, 0 to poll.
        awaited : bool, optional
            Whether the peer is to answer: then the time counts as waiting for it, else as idleness. In the middle of
            a PDU or message it always counts.
        yields : float, optional
            Seconds for which the compiled engine leaves the GIL to others after a pending response. Here it changes
            nothing.

        Returns
        -------
        int
            READY (there is something to read, or the connection has ended), WAKE or TIMEOUT.

        Raises
        ------
        OSError
            If the connection is closed on our side.
        """
        deadline = _deadline(timeout)
        if yields is None:
            raise TypeError("yields must be a number of seconds, not None")
        _deadline(yields)
        with self._in_use():
            state = self._state
            if state.buffered or self._pending():
                return READY
            if state.other_is_next and state.pdu_length == 0:
                return READY
            while True:
                outcome = self._wait(
                    False, deadline - _Clock(), awaited or self.in_pdu or self.in_message
                )
                if outcome != TIMEOUT or _Clock() >= deadline:
                    return outcome

    def receive(self, timeout: float | None = None, *, awaited: bool = False) -> Message | int:
        """Receive one whole DIMSE message (PS3.7 6.3, PS3.8 Annex E).

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for the first byte; None for ever, 0 to take what is there. The PDUs of a message that
            has begun must each be complete within `pdu_timeout`.
        awaited : bool, optional
            As for `wait`, about the first byte.

        Returns
        -------
        Message or int
            The message, or OTHER, WAKE, TIMEOUT, PARTIAL.

        Raises
        ------
        ProtocolError
            If the peer breaks the protocol.
        PeerClosed
            If the connection ended.
        OSError
            If the socket fails, the sink cannot be written, or the connection is closed on our side.
        RuntimeError
            If `receive_pdu` has begun a P-DATA-TF PDU.
        """
        deadline = _deadline(timeout)
        with self._in_use():
            if self._state.file is not None:
                self._make_sink(self._state.file)
            while True:
                state = copy.copy(self._state)
                outcome = self._advance(state)
                self._replace_state(state)
                if outcome is not None:
                    return outcome
                try:
                    self._read()
                except _WouldBlock as block:
                    ended = self._wait_to_receive(block.writable, timeout == 0, deadline, awaited)
                    if ended is not None:
                        return ended

    def _replace_state(self, state: _State) -> None:
        """Take another state of the receiver; a file that is not its sink any more goes back."""
        old, self._state = self._state, state
        if old.file is not None and state.file is None:
            old.file.come_back()

    def _make_sink(self, file: NewFile) -> None:
        """Make the file that is the sink, if it is still to be made.

        Raises
        ------
        OSError
            If it cannot be made, and the rest of the message is not to be drained.
        """
        state = self._state
        if not file.is_made and not state.error:
            try:
                file.make()
            except OSError as error:
                if not state.drains:
                    raise
                state.error = error.errno or errno.EIO
        state.sink = file.fd

    def _wait_to_receive(
        self, writable: bool, poll: bool, deadline: float, awaited: bool
    ) -> int | None:
        """Wait for more of a message.

        Parameters
        ----------
        writable : bool
            Whether to wait until the socket can be written to (TLS).
        poll : bool
            Whether not to wait at all.
        deadline : float
            Until when the message must have begun.
        awaited : bool
            Whether the first byte is awaited.

        Returns
        -------
        int or None
            WAKE, TIMEOUT, or None to try again.

        Raises
        ------
        ProtocolError
            If the PDU in progress took too long.
        """
        state = self._state
        begun = state.in_pdu or state.in_message
        if begun:
            deadline = math.inf
            if self.pdu_timeout is not None and state.pdu_began:
                deadline = state.pdu_began + self.pdu_timeout
                if _Clock() >= deadline:
                    raise ProtocolError(0, "the peer stalled in the middle of a message")
        if poll:
            return TIMEOUT
        outcome = self._wait(writable, deadline - _Clock(), awaited or begun)
        if outcome == WAKE:
            return WAKE
        if outcome == TIMEOUT and not begun and _Clock() >= deadline:
            return TIMEOUT
        return None

    # Receiving: the parser

    def _advance(self, state: _State) -> Message | int | None:
        """Take as much as possible of what was read.

        Parameters
        ----------
        state : _State
            A copy of the receiver's state, to be brought forward.

        Returns
        -------
        Message or int or None
            A message, OTHER, PARTIAL, or None if more must be read.

        Raises
        ------
        ProtocolError
            If the peer breaks the protocol.
        """
        if state.raw is not None and state.pdu_type == _P_DATA:
            raise RuntimeError("receive_pdu() has begun a P-DATA-TF PDU")
        while True:
            if state.split and state.sink is None:
                return PARTIAL
            if state.complete:
                if state.pdu_left:
                    raise ProtocolError(5, "a second message in one P-DATA-TF PDU")
                return self._end_message(state)
            if state.pdu_type is None:
                if not self._take_header(state):
                    return None
                state.pdu_left = state.pdu_length if state.pdu_type == _P_DATA else 0
            if state.other_is_next:
                return OTHER
            if not (self._take_pdv_header(state) and self._take_fragment(state)):
                return None

    def _take_header(self, state: _State) -> bool:
        """Take the PDU header (PS3.8 9.3.1); return whether it is complete."""
        while len(state.header) < _HEADER and state.reads:
            if not state.header and not state.pdu_began:
                state.pdu_began = _Clock()
            state.header += bytes(state.take(_HEADER - len(state.header)))
        if len(state.header) < _HEADER:
            return False
        self._check_header(state.header[0], state.pdu_length)
        return True

    def _check_header(self, kind: int, length: int) -> None:
        """Judge a PDU by its type and length (PS3.8 9.3.1, D.1).

        Raises
        ------
        ProtocolError
            If it cannot be.
        """
        if kind == _P_DATA:
            limit = min(self.max_receive_pdu or HARD_PDU_CAP, HARD_PDU_CAP)
            if length > limit:
                raise ProtocolError(6, "P-DATA-TF PDU longer than the announced maximum length")
            if length == 0:
                raise ProtocolError(6, "P-DATA-TF PDU without a presentation data value")
        elif kind in (0x01, 0x02):
            if length > MAX_ASSOCIATE_PDU:
                raise ProtocolError(6, "A-ASSOCIATE PDU longer than 1 MiB")
        elif kind in (0x03, 0x05, 0x06, 0x07):
            if length > 4 or (length < 4 and kind != 0x07):
                raise ProtocolError(6, "PDU of a fixed length with another length")
        else:
            raise ProtocolError(1, "unrecognised PDU type")

    def _take_pdv_header(self, state: _State) -> bool:
        """Take the header of a PDV (PS3.8 9.3.5.1, E.2); return whether it is complete."""
        if len(state.pdv_header) == _PDV_HEADER:
            return True
        if state.pdu_left < _PDV_HEADER - len(state.pdv_header):
            raise ProtocolError(6, "presentation data value shorter than its header")
        while len(state.pdv_header) < _PDV_HEADER and state.reads:
            piece = bytes(state.take(_PDV_HEADER - len(state.pdv_header)))
            state.pdv_header += piece
            state.pdu_left -= len(piece)
        if len(state.pdv_header) < _PDV_HEADER:
            return False
        length, context_id, control = struct.unpack(">IBB", state.pdv_header)
        self._check_pdv(state, length, context_id, control)
        state.context_id = context_id
        state.pdv_left = length - 2
        return True

    def _check_pdv(self, state: _State, length: int, context_id: int, control: int) -> None:
        """Judge a PDV by its header (PS3.8 E.1, E.2).

        Raises
        ------
        ProtocolError
            If it cannot be.
        """
        if length < 2 or length - 2 > state.pdu_left:
            raise ProtocolError(6, "presentation data value length out of range")
        if state.in_message and context_id != state.context_id:
            raise ProtocolError(5, "presentation context changes inside a message")
        if control & _COMMAND and state.command_done:
            raise ProtocolError(5, "command fragment inside a data set")
        if not control & _COMMAND and not state.command_done:
            raise ProtocolError(5, "data set fragment before the command set is complete")
        if control & _COMMAND:
            if state.command.size + length - 2 > MAX_COMMAND:
                raise ProtocolError(6, "command set longer than 64 KiB")
        elif self.max_message and state.length + length - 2 > self.max_message:
            raise ProtocolError(6, "data set longer than the limit of this receiver")

    def _take_fragment(self, state: _State) -> bool:
        """Take the rest of the fragment; return whether it is complete."""
        control = state.pdv_header[5]
        while state.pdv_left and state.reads:
            piece = state.take(state.pdv_left)
            state.pdv_left -= len(piece)
            state.pdu_left -= len(piece)
            if control & _COMMAND:
                state.command = state.command.plus(piece)
            elif state.sinking:
                _sink_head(state)
                _sink(state, piece)
                state.length += len(piece)
            else:
                state.data = state.data.plus(piece)
                state.length += len(piece)
        if state.pdv_left:
            return False
        state.pdv_header = b""
        if control & _LAST:
            if control & _COMMAND:
                self._end_command(state)
            else:
                state.complete = True
        if state.pdu_left == 0:
            state.end_pdu()
        return True

    def _end_command(self, state: _State) -> None:
        """The command set is complete: find out what follows (PS3.7 E.1)."""
        try:
            field, kind = _fields_of(bytes(state.command))
        except CommandError as error:
            raise ProtocolError(6, f"command set cannot be read: {error}") from None
        state.command_done = True
        state.complete = kind == _NO_DATA_SET
        state.split = not state.complete and field in self.split_commands

    @staticmethod
    def _end_message(state: _State) -> Message:
        """The message is complete: return it."""
        _sink_head(state)
        message = state.message()
        state.messages += 1
        state.forget_message()
        return message

    def receive_pdu(self) -> bytes | None:
        """Take one whole PDU of any type from the stream; never blocks, and reads nothing beyond it.

        Returns
        -------
        bytes or None
            The PDU with its 6-byte header (PS3.8 9.3); None if it is not complete yet.

        Raises
        ------
        ProtocolError
            If its header is not acceptable.
        PeerClosed
            If the connection ended.
        RuntimeError
            If `receive` has begun a message.
        """
        with self._in_use():
            while True:
                state = copy.copy(self._state)
                pdu = self._advance_raw(state)
                self._state = state
                if pdu is not None:
                    return pdu
                received, expected = state.progress()
                try:
                    self._read((expected or _HEADER) - received)
                except _WouldBlock:
                    return None

    def _advance_raw(self, state: _State) -> bytes | None:
        """Like `_advance`, PDU by PDU."""
        if state.in_message or state.in_p_data:
            raise RuntimeError("a message is in progress")
        if state.pdu_type is None and not self._take_header(state):
            return None
        if state.raw is None:
            state.raw = _Gathered()
        while state.raw.size < state.pdu_length and state.reads:
            state.raw = state.raw.plus(state.take(state.pdu_length - state.raw.size))
        if state.raw.size < state.pdu_length:
            return None
        pdu = state.header + bytes(state.raw)
        state.end_pdu()
        return pdu

    def set_sink(self, sink: int | NewFile, head: bytes = b"", *, drain: bool = False) -> None:
        """Say where the data set goes of which `receive` has told PARTIAL.

        Parameters
        ----------
        sink : int or NewFile
            A file descriptor open for writing, or -1 for memory (with `drain`: for nowhere); or a file, which the next
            `receive` makes if it is not made yet.
        head : bytes-like, optional
            What to write before the data set, at most 64 KiB.
        drain : bool, optional
            Whether to go on with the message if the sink cannot be made or written: the rest of the data set is thrown
            away, and `Message.error` tells why.

        Raises
        ------
        RuntimeError
            If no message waits for it.
        ValueError
            If `head` is too long, or the file is closed again, or the sink of another message.
        """
        begin = bytes(head)
        file = sink if isinstance(sink, NewFile) else None
        fd = sink.fd if isinstance(sink, NewFile) else operator.index(sink)
        state = self._state
        if not state.split or state.sink is not None:
            raise RuntimeError("no message waits for a sink")
        if len(begin) > _MAX_SINK_HEAD:
            raise ValueError(
                f"the head of a sink has at most {_MAX_SINK_HEAD} bytes, not {len(begin)}"
            )
        if file is not None:
            if file.is_lent or file.is_closed:
                raise ValueError("the file is closed, or the sink of another message")
            file.is_lent = True
        state.file = file
        state.drains = drain
        state.head = begin
        state.sink = max(fd, -1)

    def drop_message(self) -> None:
        """Forget the message in progress; what was read ahead of it stays (an A-ABORT, for instance)."""
        state = copy.copy(self._state)
        state.forget_message()
        if state.in_p_data:
            state.header = state.pdv_header = b""
            state.pdu_left = state.pdv_left = 0
        state.pdu_began = _Clock() if state.header else 0.0
        self._replace_state(state)

    def abandon(self) -> None:
        """Forget the message or PDU in progress, and what was read ahead."""
        old, state = self._state, _State()
        state.consumed = old.consumed + old.buffered
        state.pdus = old.pdus
        state.messages = old.messages
        state.largest = old.largest
        self._replace_state(state)

    # Sending

    def send(
        self,
        context_id: int,
        command: Any,
        data: Any = (),
        *,
        max_pdu: int,
        timeout: float | None = None,
        linger: float = 0,
        yields: float | None = None,
    ) -> int:
        """Send one whole DIMSE message as P-DATA-TF PDUs (PS3.7 6.3, PS3.8 Annex E).

        Parameters
        ----------
        context_id : int
            The presentation context ID, odd, 1 to 255.
        command : bytes-like
            The encoded command set.
        data : bytes-like or sequence of bytes-like, optional
            The encoded data set, in one or more buffers. They are not copied.
        max_pdu : int
            The peer's maximum length (PS3.8 D.1); 0 means unlimited.
        timeout : float, optional
            Seconds without progress after which to give up; None for never.
        linger : float, optional
            Seconds for which the compiled engine waits for something to read before it returns. There is nothing to
            be gained by that here.
        yields : float, optional
            Seconds for which the compiled engine waits likewise, and whether it releases the GIL even for a small
            message. Here it always is.

        Returns
        -------
        int
            The number of PDUs sent.

        Raises
        ------
        ValueError
            If an argument is out of range.
        TimeoutError
            If the peer takes no data for `timeout` seconds.
        OSError
            If the connection fails or is closed.
        Cancelled
            If `cancel` was called.
        """
        fragment = _fragment_size(max_pdu)
        _deadline(timeout)
        _deadline(linger)
        _deadline(yields)
        with _views([command]) as head, _views(_buffers_of(data)) as body:
            beside = self._beside(head, sum(map(len, body)), fragment)
            pdus = _message_pdus(context_id, head, [body], fragment, beside)
            return self._send_message(pdus, timeout)

    def send_file(
        self,
        context_id: int,
        command: Any,
        fd: int,
        offset: int,
        length: int,
        *,
        max_pdu: int,
        timeout: float | None = None,
        linger: float = 0,
    ) -> int:
        """Send one whole DIMSE message whose data set is a part of a file.

        Parameters
        ----------
        context_id : int
            The presentation context ID, odd, 1 to 255.
        command : bytes-like
            The encoded command set.
        fd : int
            The descriptor of the file; its position is neither used nor changed.
        offset, length : int
            Where the data set is in the file.
        max_pdu : int
            The peer's maximum length (PS3.8 D.1); 0 means unlimited.
        timeout : float, optional
            Seconds without progress after which to give up; None for never.
        linger : float, optional
            Seconds for which the compiled engine waits for something to read before it returns. There is nothing to
            be gained by that here.

        Returns
        -------
        int
            The number of PDUs sent.

        Raises
        ------
        FileError
            If the file ends early, or cannot be read.
        ValueError, TimeoutError, OSError, Cancelled
            See `send`.
        """
        fragment = _fragment_size(max_pdu)
        _deadline(timeout)
        _deadline(linger)
        if offset < 0 or length < 0:
            raise ValueError("offset and length must not be negative")
        with _views([command]) as head:
            beside = self._beside(head, length, fragment)
            pieces = _file_pieces(fd, offset, length, fragment, beside)
            pdus = _message_pdus(context_id, head, pieces, fragment, beside)
            return self._send_message(pdus, timeout)

    def send_bytes(self, data: Any, *, timeout: float | None = None) -> None:
        """Send ready-made PDUs.

        Parameters
        ----------
        data : bytes-like
            One or more whole PDUs.
        timeout : float, optional
            Seconds without progress after which to give up; None for never.

        Raises
        ------
        TimeoutError, OSError, Cancelled
            See `send`.
        """
        _deadline(timeout)
        if isinstance(data, (list, tuple)):
            raise TypeError("send_bytes takes one bytes-like object")
        with _views([data]) as views, self._sending(False), self._in_use():
            self._push([_Pdu([pdu]) for view in views for pdu in _split_pdus(view)], timeout)

    def _beside(self, command: Sequence[memoryview], length: int, fragment: int) -> int:
        """Return how many bytes of the data set go into the last PDU of the command set (PS3.8 E.1).

        Parameters
        ----------
        command : sequence of memoryview
            The command set.
        length : int
            Bytes of the data set.
        fragment : int
            The size of all fragments but the last.

        Returns
        -------
        int
            The number; 0 if `pack_command` is off, or if there is no room.
        """
        if not self.pack_command:
            return 0
        rest = (sum(map(len, command)) - 1) % fragment + 1
        room = fragment - rest - _PDV_HEADER
        return min(room - room % 2, length) if room > 1 else 0

    @contextmanager
    def _sending(self, message: bool) -> Iterator[None]:
        """Be the one sender.

        Parameters
        ----------
        message : bool
            Whether a message is to be sent, not a ready-made PDU.

        Raises
        ------
        PeerClosed, Cancelled
            If nothing may be sent any more.
        """
        with self._send_lock:
            if message and self._held:
                raise Cancelled("no message may be sent")
            if self._send_broken:
                raise PeerClosed(0, 0, "an earlier message was cut while it was sent")
            with self._guard:
                if self._closing:
                    raise _closed_error()
                self._cancel.clear()
                self._cancels_seen = self._cancels
            try:
                yield
            finally:
                self._set_cork(False)

    def _send_message(self, pdus: Iterator[_Pdu], timeout: float | None) -> int:
        """Send the PDUs of one message; return their number."""
        batch = [next(pdus)]  # validates the arguments
        with self._sending(True), self._in_use():
            sent = 0
            before = self._bytes_sent
            while batch:
                try:
                    following = next(pdus, None)
                except FileError as error:
                    error.begun = self._bytes_sent > before
                    raise
                size = sum(pdu.size for pdu in batch)
                buffers = sum(len(pdu.buffers) for pdu in batch)
                full = size >= _BATCH_SIZE or buffers >= _BATCH_BUFFERS
                if following is None or full:
                    try:
                        self._push(batch, timeout, more=following is not None)
                    except Cancelled as error:
                        error.begun = self._bytes_sent > before
                        raise
                    sent += len(batch)
                    batch = []
                if following is not None:
                    batch.append(following)
            self._messages_sent += 1
            return sent

    def _set_cork(self, on: bool) -> None:
        """Hold back partial segments, or let them go."""
        if on != self._corked:
            self._corked = on
            self._set_option("TCP_CORK", on)

    def _push(self, pdus: Sequence[_Pdu], timeout: float | None, more: bool = False) -> None:
        """Hand whole PDUs to the kernel, all of them.

        Parameters
        ----------
        pdus : sequence of _Pdu
            The PDUs.
        timeout : float or None
            See `send`.
        more : bool, optional
            Whether they are not the last ones of their message.

        Raises
        ------
        TimeoutError, OSError, Cancelled
            See `send`. If a PDU was cut, nothing can be sent any more.
        """
        counts: list[int] = []
        buffers = [buffer for pdu in pdus for buffer in pdu.buffers]
        if self.cork and (more or self._takes_several_calls(buffers)):
            self._set_cork(True)
        try:
            while buffers:
                self._send_calls += 1
                before = len(counts)
                try:
                    self._write(buffers, counts)
                except _WouldBlock as block:
                    self._set_cork(False)
                    self._wait_to_send(block.writable, timeout)
                except ConnectionError as error:
                    raise PeerClosed(0, 0, error) from error
                if len(counts) > before:
                    self._send_waits.end()
                buffers = _without(buffers, sum(counts[before:]))
        finally:
            sent = sum(counts)
            self._bytes_sent += sent
            for pdu in pdus:
                if 0 < sent < pdu.size:
                    self._send_broken = True
                if sent >= pdu.size:
                    self._pdus_sent += 1
                    self._largest_pdu_sent = max(self._largest_pdu_sent, pdu.size - _HEADER)
                sent = max(sent - pdu.size, 0)
            if buffers and self._stuck():
                self._send_broken = True

    def _wait_to_send(self, writable: bool, timeout: float | None) -> None:
        """Wait until more can be sent.

        Raises
        ------
        TimeoutError
            If that is not within `timeout` seconds.
        Cancelled
            If `cancel` was called.
        OSError
            If the connection is closed on our side.
        """
        deadline = _deadline(timeout)
        fd, cancel = self._fileno(), self._cancel.fileno()
        while True:
            with self._send_waits.counted():
                ready = _poll(
                    [cancel] if writable else [fd, cancel],
                    [fd] if writable else [],
                    deadline - _Clock(),
                )
            if self._closing:
                raise _closed_error()
            if self._cancels != self._cancels_seen:
                raise Cancelled("the send was cancelled")
            if fd in ready:
                return
            if _Clock() >= deadline:
                raise TimeoutError("the peer does not take data")


class FdConnection(Connection):
    """A connection over a plain socket (POSIX).

    Parameters
    ----------
    sock : socket.socket
        The connected socket. It is duplicated; whether it is blocking neither matters nor changes.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        if sys.platform == "win32":
            raise OSError("FdConnection needs POSIX sockets")
        fd = os.dup(sock.fileno())
        blocking = os.get_blocking(fd)  # shared by the duplicates
        self._sock = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
        self._sock.settimeout(0)  # or the methods of the object would wait themselves
        os.set_blocking(fd, blocking)
        self._flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

    def _fileno(self) -> int:
        return self._sock.fileno()

    def _read_into(self, read: _Read) -> None:
        try:
            read.counts.extend(
                map(self._sock.recv_into, (read.store,), (0,), (socket.MSG_DONTWAIT,))
            )
        except BlockingIOError:
            raise _WouldBlock(writable=False) from None

    def _write(self, buffers: Sequence[memoryview], counts: list[int]) -> None:
        vector = buffers[:_BATCH_BUFFERS]
        try:
            counts.extend(map(self._sock.sendmsg, (vector,), ((),), (self._flags,)))
        except BlockingIOError:
            raise _WouldBlock(writable=True) from None

    def _takes_several_calls(self, buffers: Sequence[memoryview]) -> bool:
        return len(buffers) > _BATCH_BUFFERS

    def _set_option(self, name: str, value: int) -> None:
        _set_option(self._sock, name, value)

    def _tcp_info(self) -> bytes | None:
        return _tcp_info(self._sock)

    def _release(self) -> None:
        super()._release()
        self._sock.close()


class SocketConnection(Connection):
    """A connection over any object with the methods of a socket, for instance `ssl.SSLSocket`.

    Parameters
    ----------
    sock : object
        The connected socket: `recv_into`, `send`, `fileno`; optionally `pending` (TLS). It is switched to
        non-blocking if it has `setblocking` or `settimeout`. It is not closed with the connection.
    """

    def __init__(self, sock: _Socket) -> None:
        super().__init__(sock)
        self._sock = sock
        # For what is asked of the kernel: the object may be closed before we are
        self._kernel_socket: socket.socket | None = None
        if sys.platform != "win32":
            self._kernel_socket = socket.socket(fileno=os.dup(sock.fileno()))
        self._has_pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._recv_into: Callable[[Any], int] = sock.recv_into
        self._send_to: Callable[[Any], int] = sock.send
        self._io = threading.Lock()  # a TLS object is not to be used by two threads at once
        if ssl is not None and isinstance(sock, ssl.SSLSocket):
            # What those two come to, without the detours: past a lock of the object's own, so under it
            self._recv_into = cast(Any, functools.partial(sock.read, _READ_SIZE))
            self._send_to = sock.write
            self._io = getattr(sock, "io_lock", self._io)
        self._stage: memoryview | None = None  # what an interrupted `send` has to be given again
        self._never_blocks = True
        if hasattr(sock, "setblocking"):
            sock.setblocking(False)
        elif hasattr(sock, "settimeout"):
            sock.settimeout(0)
        else:
            self._never_blocks = False

    def _fileno(self) -> int:
        fd = self._sock.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, "the socket is closed")
        return fd

    def _pending(self) -> bool:
        if self._has_pending is None:
            return False
        with self._io:
            return self._has_pending() > 0

    def _read_into(self, read: _Read) -> None:
        if not (self._never_blocks or self._pending() or _poll([self._fileno()], [], 0)):
            raise _WouldBlock(writable=False)
        with self._io, _TlsErrors(writable=False):
            read.counts.extend(map(self._recv_into, (read.store,)))
        if len(read) > len(read.store):
            raise ValueError(f"recv_into tells {len(read)} bytes of a buffer of {len(read.store)}")

    def _write(self, buffers: Sequence[memoryview], counts: list[int]) -> None:
        if not (self._never_blocks or _poll([], [self._fileno()], 0)):
            raise _WouldBlock(writable=True)
        if self._stage is None:
            self._stage = memoryview(_joined(buffers, _STAGE_SIZE))
        with self._io, _TlsErrors(writable=True):
            counts.extend(map(self._send_to, (self._stage,)))
        if not 0 <= counts[-1] <= len(self._stage):
            raise ValueError(f"send tells {counts.pop()} bytes of a buffer of {len(self._stage)}")
        self._stage = None

    def _stuck(self) -> bool:
        # A TLS record that was not taken as a whole must be given again: nothing else can be sent.
        return self._has_pending is not None and self._stage is not None

    @contextmanager
    def _sending(self, message: bool) -> Iterator[None]:
        with super()._sending(message):
            self._stage = None
            yield

    def _takes_several_calls(self, buffers: Sequence[memoryview]) -> bool:
        return sum(map(len, buffers)) > _RECORD_SIZE

    def _set_option(self, name: str, value: int) -> None:
        _set_option(self._sock, name, value)

    def _tcp_info(self) -> bytes | None:
        return _tcp_info(self._kernel_socket)

    def _release(self) -> None:
        super()._release()
        if self._kernel_socket is not None:
            self._kernel_socket.close()


def connect(sock: Any) -> Connection:
    """Return the connection that fits a socket.

    Parameters
    ----------
    sock : socket.socket
        The connected socket.

    Returns
    -------
    FdConnection or SocketConnection
        An `FdConnection` for a plain socket on POSIX, else a `SocketConnection`.
    """
    if type(sock) is socket.socket and sys.platform != "win32":
        return FdConnection(sock)
    return SocketConnection(sock)


class _TlsErrors:
    """A context that turns what non-blocking sockets raise into `_WouldBlock` and `ConnectionError`.

    Not a generator: on CPython 3.12 one that answers an exception with another keeps the frames of both for ever, and
    with them the buffers of the call.

    Parameters
    ----------
    writable : bool
        Whether the operation is a write.
    """

    __slots__ = ("_writable",)

    def __init__(self, writable: bool) -> None:
        self._writable = writable

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, BlockingIOError):
            raise _WouldBlock(self._writable) from None
        if isinstance(error, ValueError) and "closed or unwrapped" in str(error):
            # What a TLS socket says that has been closed
            raise OSError(errno.EBADF, "the socket is closed") from None
        if ssl is None or not isinstance(error, OSError):
            return
        if isinstance(error, ssl.SSLWantReadError):
            raise _WouldBlock(writable=False) from None
        if isinstance(error, ssl.SSLWantWriteError):
            raise _WouldBlock(writable=True) from None
        if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
            raise ConnectionAbortedError(errno.ECONNABORTED, "the TLS connection ended") from error


def _set_option(sock: Any, name: str, value: int) -> None:
    """Set a TCP option, where the platform and the socket have it (tcp(7))."""
    option = getattr(socket, name, None)
    if option is not None and hasattr(sock, "setsockopt"):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _tcp_info(sock: socket.socket | None) -> bytes | None:
    """Return Linux's ``struct tcp_info`` (tcp(7)); None elsewhere, and if the socket is not TCP."""
    if sock is None or sys.platform != "linux":
        return None
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE) or None
    except OSError:
        return None


def _sink_head(state: _State) -> None:
    """Write what comes before the data set to the sink, if that is still to be done."""
    if state.head and state.sinking:
        _sink(state, memoryview(state.head))
        state.head = b""


def _sink(state: _State, piece: memoryview) -> None:
    """Write a piece to the sink, unless it has failed, or there is none."""
    if state.error or state.sink in (None, -1):
        return
    try:
        _write_sink(state.sink, state.written, state.sunk, piece)
    except OSError as error:
        if not state.drains:
            raise
        state.error = error.errno or errno.EIO
    state.sunk += len(piece)
    state.written = [state.sunk]


def _write_sink(fd: int, written: list[int], length: int, piece: memoryview) -> None:
    """Write a piece of a data set to the sink, once.

    Parameters
    ----------
    fd : int
        The sink.
    written : list of int
        The bytes that the sink has, in summands. More than `length` if an earlier attempt to write `piece` was
        interrupted.
    length : int
        The bytes before `piece`.
    piece : memoryview
        The bytes.
    """
    end = length + len(piece)
    while sum(written) < end:
        rest = piece[sum(written) - length :]
        written.extend(map(os.write, (fd,), (rest,)))


# ------------------------------------------------------------------------------------------------- framing


class _Pdu:
    """One PDU to be sent.

    Parameters
    ----------
    buffers : list of memoryview
        Its bytes.
    """

    __slots__ = ("buffers", "size")

    def __init__(self, buffers: list[memoryview]) -> None:
        self.buffers = buffers
        self.size = sum(map(len, buffers))


def _fragment_size(max_pdu: int) -> int:
    """Return the size of all fragments but the last under a maximum length (PS3.8 D.1).

    Parameters
    ----------
    max_pdu : int
        The peer's maximum length; 0 means unlimited.

    Returns
    -------
    int
        The size, even (PS3.8 E.1) unless that is not possible.

    Raises
    ------
    ValueError
        If no fragment fits into such PDUs.
    """
    if not isinstance(max_pdu, int) or max_pdu < 0 or 0 < max_pdu < MIN_PDU:
        raise ValueError(f"max_pdu must be 0 (unlimited) or at least {MIN_PDU}, not {max_pdu!r}")
    if max_pdu == 0:
        return UNLIMITED_FRAGMENT
    size = min(max_pdu, _MAX_LENGTH) - _PDV_HEADER
    return size - size % 2 if size > 1 else size


def _buffers_of(data: Any) -> Iterable[Any]:
    """Return the buffers of a bytes-like object or sequence of them."""
    return data if isinstance(data, list | tuple) else (data,)


@contextmanager
def _views(buffers: Iterable[Any]) -> Iterator[list[memoryview]]:
    """Return the bytes of buffers, as long as the context lasts.

    Raises
    ------
    TypeError, BufferError
        If one is not a C-contiguous buffer.
    """
    views: list[memoryview] = []
    try:
        for buffer in buffers:
            with memoryview(buffer) as view:
                if not view.c_contiguous:
                    raise BufferError("the buffer is not C-contiguous")
                if view.nbytes:
                    views.append(view.cast("B"))
        yield views
    finally:
        for view in views:
            view.release()


def _slices(views: Sequence[memoryview], size: int, first: int = 0) -> Iterator[list[memoryview]]:
    """Cut buffers, taken as one, into parts of `size` bytes; the last one may be shorter.

    Parameters
    ----------
    views : sequence of memoryview
        The buffers.
    size : int
        The size of a part.
    first : int, optional
        The size of the first part, if it is another one.

    Yields
    ------
    list of memoryview
        The bytes of a part; never empty.
    """
    part: list[memoryview] = []
    room = first or size
    for view in views:
        at = 0
        while at < len(view):
            piece = view[at : at + room]
            part.append(piece)
            at += len(piece)
            room -= len(piece)
            if room == 0:
                yield part
                part, room = [], size
    if part:
        yield part


def _message_pdus(
    context_id: int,
    command: Sequence[memoryview],
    pieces: Iterable[Sequence[memoryview]],
    fragment: int,
    beside: int,
) -> Iterator[_Pdu]:
    """Frame a message: one PDV per PDU, the command set first (PS3.8 9.3.5, E.1).

    Parameters
    ----------
    context_id : int
        The presentation context ID.
    command : sequence of memoryview
        The command set.
    pieces : iterable of sequence of memoryview
        The data set, in pieces whose size is a multiple of `fragment`, but for the last one. The first has
        `beside` bytes more.
    fragment : int
        The size of all fragments but the last.
    beside : int
        Bytes of the data set that go into the last PDU of the command set.

    Yields
    ------
    _Pdu
        The PDUs.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if not isinstance(context_id, int) or not 0 < context_id < 256 or context_id % 2 == 0:
        raise ValueError(f"context_id must be an odd number from 1 to 255, not {context_id!r}")
    if not command:
        raise ValueError("the command set must not be empty")
    commands = _set_pdus(context_id, _COMMAND, [command], fragment)
    data = _set_pdus(context_id, 0, pieces, fragment, beside)
    if beside:
        *whole, last = commands
        yield from whole
        yield _merged(last, next(data))
    else:
        yield from commands
    yield from data


def _merged(one: _Pdu, other: _Pdu) -> _Pdu:
    """Put the PDVs of two P-DATA-TF PDUs into one."""
    pdvs = [
        buffer for pdu in (one, other) for buffer in (pdu.buffers[0][_HEADER:], *pdu.buffers[1:])
    ]
    header = struct.pack(">BxI", _P_DATA, sum(map(len, pdvs)))
    return _Pdu([memoryview(header), *pdvs])


def _set_pdus(
    context_id: int,
    control: int,
    pieces: Iterable[Sequence[memoryview]],
    fragment: int,
    first: int = 0,
) -> Iterator[_Pdu]:
    """Frame a command set (`control` 1) or data set (0); see `_message_pdus`."""

    def pdu(part: list[memoryview], last: int) -> _Pdu:
        length = sum(map(len, part))
        header = _HEADERS.pack(_P_DATA, length + 6, length + 2, context_id, control | last)
        return _Pdu([memoryview(header), *part])

    previous: list[memoryview] | None = None
    for piece in pieces:
        for part in _slices(piece, fragment, first):
            if previous is not None:
                yield pdu(previous, 0)
            previous = part
        first = 0
    if previous is not None:
        yield pdu(previous, _LAST)


def _file_pieces(
    fd: int, offset: int, length: int, fragment: int, first: int
) -> Iterator[list[memoryview]]:
    """Read a part of a file.

    Parameters
    ----------
    fd : int
        The descriptor of the file.
    offset, length : int
        The part.
    fragment : int
        The size of all pieces but the last is a multiple of this one.
    first : int
        Bytes that the first piece has beyond that.

    Yields
    ------
    list of memoryview
        The bytes.

    Raises
    ------
    FileError
        If the file ends early, or cannot be read.
    """
    size = fragment * max(1, _BATCH_SIZE // fragment)
    end = offset + length
    while offset < end:
        piece = bytearray()
        wanted = min(size + first, end - offset)
        first = 0
        while len(piece) < wanted:
            try:
                got = _pread(fd, wanted - len(piece), offset + len(piece))
            except OSError as error:
                number = error.errno or errno.EIO
                raise FileError(
                    f"the file cannot be read: {error.strerror}", number=number
                ) from error
            if not got:
                raise FileError("the file is shorter than it was when the transfer began")
            piece += got
        offset += wanted
        yield [memoryview(piece)]


def _pread(fd: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes of a file at `offset`."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    where = os.lseek(fd, 0, os.SEEK_CUR)  # pragma: no cover - Windows
    try:  # pragma: no cover - Windows
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)
    finally:  # pragma: no cover - Windows
        os.lseek(fd, where, os.SEEK_SET)


def _split_pdus(view: memoryview) -> Iterator[memoryview]:
    """Cut ready-made PDUs apart; what is no whole PDU comes as one."""
    while len(view) >= _HEADER:
        end = _HEADER + int.from_bytes(view[2:6], "big")
        yield view[:end]
        view = view[end:]
    if len(view):
        yield view


def _without(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return buffers without their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _joined(buffers: Sequence[memoryview], size: int) -> bytes:
    """Return the first `size` bytes of buffers, or all if they are fewer."""
    joined = bytearray()
    for buffer in buffers:
        joined += buffer[: size - len(joined)]
        if len(joined) == size:
            break
    return bytes(joined)


# -------------------------------------------------------------------------------------------- command sets

# Value representations of the command elements in use (PS3.7 E.1)
_COMMAND_VRS: dict[int, str] = {
    0x0002: "UI",  # Affected SOP Class UID
    0x0003: "UI",  # Requested SOP Class UID
    0x0100: "US",  # Command Field
    0x0110: "US",  # Message ID
    0x0120: "US",  # Message ID Being Responded To
    0x0600: "AE",  # Move Destination
    0x0700: "US",  # Priority
    0x0800: "US",  # Command Data Set Type
    0x0900: "US",  # Status
    0x0901: "AT",  # Offending Element
    0x0902: "LO",  # Error Comment
    0x0903: "US",  # Error ID
    0x1000: "UI",  # Affected SOP Instance UID
    0x1001: "UI",  # Requested SOP Instance UID
    0x1002: "US",  # Event Type ID
    0x1005: "AT",  # Attribute Identifier List
    0x1008: "US",  # Action Type ID
    0x1020: "US",  # Number of Remaining Sub-operations
    0x1021: "US",  # Number of Completed Sub-operations
    0x1022: "US",  # Number of Failed Sub-operations
    0x1023: "US",  # Number of Warning Sub-operations
    0x1030: "AE",  # Move Originator Application Entity Title
    0x1031: "US",  # Move Originator Message ID
}
_MAX_TEXT = 256  # bytes of a text that is worth encoding here
_MAX_TAGS = 256  # attribute tags, likewise


def encode_command(elements: Mapping[int, Any]) -> bytes:
    """Encode a command set in implicit VR little endian, group length first (PS3.7 6.3.1).

    Parameters
    ----------
    elements : mapping of int to (int, str or sequence of int)
        ``{element number of group 0000: value}``. A value of None leaves the element out; (0000,0000) is computed.

    Returns
    -------
    bytes
        The encoded command set.

    Raises
    ------
    CommandError
        If an element is unknown, or a value does not fit it.
    """
    encoded = b""
    given = [(element, value) for element, value in elements.items() if value is not None]
    for element, value in sorted(given, key=lambda item: _element_of(item[0])):
        if element == 0x0000:
            continue
        if element not in _COMMAND_VRS:
            raise CommandError(f"(0000,{element:04X}) is not a command element")
        try:
            field = _encode_value(_COMMAND_VRS[element], value)
        except (TypeError, ValueError, struct.error) as error:
            raise CommandError(f"(0000,{element:04X}) cannot hold {value!r}") from error
        encoded += struct.pack("<HHI", 0, element, len(field)) + field
    return struct.pack("<HHII", 0, 0, 4, len(encoded)) + encoded


def _element_of(number: Any) -> int:
    """Return the number of an element."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise CommandError(f"{number!r} is not the number of a command element") from error


def _encode_value(vr: str, value: Any) -> bytes:
    """Encode one value field (PS3.5 6.2).

    Raises
    ------
    TypeError, ValueError, struct.error
        If the value does not fit the value representation.
    """
    if vr == "US":
        return struct.pack("<H", value)
    if vr == "AT":
        tags = tuple(value)
        if len(tags) > _MAX_TAGS:
            raise ValueError("too many attribute tags")
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
    if not isinstance(value, str):
        raise TypeError("not a text")
    text = value.encode("ascii")
    if len(text) > _MAX_TEXT:
        raise ValueError("text too long")
    padding = b"\0" if vr == "UI" else b" "
    return text + padding * (len(text) % 2)


def decode_command(data: bytes) -> dict[int, Any]:
    """Decode a command set (PS3.7 6.3.1) as every conforming peer sends it.

    Parameters
    ----------
    data : bytes
        The encoded command set.

    Returns
    -------
    dict of int to (int, str or tuple of int)
        ``{element number: value}``, the group length left out.

    Raises
    ------
    CommandError
        If it is not in canonical form: known elements in ascending order, right lengths, one value each (AT
        excepted), ASCII, right group length.
    """
    elements = list(_walk_command(data))
    if not elements or elements[0] != (0x0000, (len(data) - 12).to_bytes(4, "little", signed=True)):
        raise CommandError("no group length, or a wrong one")
    found: dict[int, Any] = {}
    last = 0x0000
    for tag, field in elements[1:]:
        if tag <= last or tag not in _COMMAND_VRS:
            raise CommandError(f"unexpected element ({tag >> 16:04X},{tag & 0xFFFF:04X})")
        found[tag] = _decode_value(tag, _COMMAND_VRS[tag], field)
        last = tag
    return found


_is_uid = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*").fullmatch


def is_uid(text: str) -> bool:
    """Whether a text is a UID as PS3.5 9.1 wants it.

    Parameters
    ----------
    text : str
        The text, without padding.

    Returns
    -------
    bool
        False if it is empty, longer than 64 characters, or not of numbers without leading zeros, separated by dots.
    """
    return len(text) <= 64 and _is_uid(text) is not None


def _decode_value(tag: int, vr: str, field: bytes) -> int | str | tuple[int, ...]:
    """Decode one value field (PS3.5 6.2).

    Raises
    ------
    CommandError
        If it is not in canonical form.
    """
    if vr == "US":
        if len(field) != 2:
            raise CommandError(f"(0000,{tag:04X}) has length {len(field)}")
        return int.from_bytes(field, "little")
    if vr == "AT":
        if not field or len(field) % 4:
            raise CommandError(f"(0000,{tag:04X}) has length {len(field)}")
        words = struct.unpack(f"<{len(field) // 2}H", field)
        return tuple(
            group << 16 | element for group, element in zip(words[::2], words[1::2], strict=True)
        )
    text = field.rstrip(b"\0 ")
    if vr == "AE":
        text = text.lstrip(b" ")
    if not text:
        raise CommandError(f"(0000,{tag:04X}) is empty")
    if b"\\" in text or b"\0" in text or not text.isascii():
        raise CommandError(f"(0000,{tag:04X}) has several values, or unusual characters")
    return text.decode("ascii")


# ------------------------------------------------------------------------------------------- files


class NewFile:
    """A file that is to be made: by `open`, or by the connection whose sink it is, when it receives the data set.

    The connection may write to it until the message is complete or forgotten, or it has closed its own descriptors; the
    file is closed after that, whoever asked for it before. Its descriptor does not outlive this object.

    Parameters
    ----------
    path : str
        The file; there must be none of that name when it is made.

    Raises
    ------
    TypeError, ValueError
        If `path` is not one.
    """

    def __init__(self, path: str) -> None:
        self._fds: list[int] = []
        self._is_made = False
        # At once, or as soon as it comes back
        self.is_closed = False
        # To a connection
        self.is_lent = False
        if not isinstance(path, str):
            raise TypeError(f"a path is a str, not {path!r}")
        if b"\0" in os.fsencode(path):
            raise ValueError("embedded null byte")
        self._path = path

    @property
    def path(self) -> str:
        """The file."""
        return self._path

    @property
    def fd(self) -> int:
        """A descriptor for reading and writing; -1 before and after."""
        return self._fds[0] if self._fds else -1

    @property
    def is_made(self) -> bool:
        """Whether the file was made."""
        return self._is_made or bool(self._fds)

    def __del__(self) -> None:
        self.is_closed = True
        self.come_back()

    def open(self) -> None:
        """Make the file and open it.

        Raises
        ------
        OSError
            If it cannot be made; FileExistsError if there is one of that name.
        ValueError
            If it was made or closed before, or is the sink of a message.
        """
        if self.is_made or self.is_closed or self.is_lent:
            raise ValueError("the file was made or closed before, or is the sink of a message")
        self.make()

    def close(self) -> None:
        """Close the descriptor, if it is open: at once, or when the connection that writes to it is through.

        A file that is not made yet will not be.

        Raises
        ------
        OSError
            If the file system writes late, and says now that it could not.
        """
        self.is_closed = True
        if not self.is_lent:
            self._close()

    def _close(self) -> None:
        self._is_made = self.is_made
        while self._fds:
            os.close(self._fds.pop())

    # For the connection

    def come_back(self) -> None:
        """The connection does not write to it any more."""
        self.is_lent = False
        if self.is_closed:
            with suppress(OSError):
                self._close()

    def make(self) -> None:
        """Make the file."""
        if self.is_closed:
            raise OSError(errno.EBADF, "the file is closed")
        # One step: an exception of a signal handler comes before it, or finds the descriptor in its place
        self._fds.extend(map(os.open, (self._path,), (_CREATING,), (0o666,)))


# ------------------------------------------------------------------------------------------- Part 10 files


class Part10(NamedTuple):
    """What the head of a Part 10 file says (PS3.10 7.1).

    Attributes
    ----------
    sop_class, sop_instance : str or None
        (0008,0016) and (0008,0018) of the data set; None if it is deflated.
    media_sop_class, media_sop_instance, transfer_syntax : str
        (0002,0002), (0002,0003) and (0002,0010) of the file meta information.
    offset : int
        Where the data set begins.
    """

    sop_class: str | None
    sop_instance: str | None
    media_sop_class: str
    media_sop_instance: str
    transfer_syntax: str
    offset: int


class _Unusual(Exception):
    """The head of a file is not what `read_part10` understands."""


class _Element(NamedTuple):
    """A data element: tag, value field, and where the next element begins."""

    tag: int
    value: bytes
    end: int


_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_UID_CHARACTERS = frozenset(b"0123456789.")
_CREATING = (
    os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
)
_READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PEEK = 512  # bytes that are read where a header is expected
_DEEPEST = 60  # sequences and items in one another


def open_head(path: str | os.PathLike[str], limit: int) -> tuple[int, int, bytes]:
    """Open a file and read its first bytes.

    Parameters
    ----------
    path : str or PathLike
        The file.
    limit : int
        How many bytes to read at most.

    Returns
    -------
    tuple of (int, int, bytes)
        A descriptor, which the caller closes with `close_file`; the length of the file; its first bytes.

    Raises
    ------
    OSError
        If it cannot be opened or read. With ESPIPE: it is neither a regular file nor a directory (a pipe, a device);
        opening it has not waited for anybody.
    TypeError, ValueError
        If `path` is not one, or `limit` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit must not be negative: {limit}")
    try:
        fd = os.open(path, _READING | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except BlockingIOError:
        # A lease that is being given back (F_SETLEASE)
        if not os.path.isfile(path):
            raise
        fd = os.open(path, _READING)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise OSError(errno.ESPIPE, "Not a regular file", path)
        return fd, about.st_size, os.read(fd, limit)
    except BaseException:
        os.close(fd)
        raise


def close_file(fd: int) -> None:
    """Close a descriptor of `open_head`."""
    os.close(fd)


def read_part10(head: bytes) -> Part10 | None:
    """Read the head of a Part 10 file: what it is, and where its data set begins.

    Parameters
    ----------
    head : bytes
        The first few KiB of the file.

    Returns
    -------
    Part10 or None
        None if the head is unusual (no preamble, no file meta information, SOP UIDs not within it ...): ask pydicom.

    Notes
    -----
    The file meta information ends where another group begins, whatever its group length (0002,0000) says, or if it has
    none: so does pydicom's.
    """
    try:
        return _read_part10(head)
    except _Unusual:
        return None


def _read_part10(head: bytes) -> Part10:
    """Like `read_part10`, but raise `_Unusual`."""
    if head[128:132] != b"DICM":
        raise _Unusual("no preamble")
    meta: dict[int, bytes] = {}
    offset, declared = 132, 0
    # (a data set may begin with anything: nothing but its tag is looked at)
    while head[offset : offset + 2] == b"\x02\x00":
        one = _element(head, offset, True, False)
        meta[one.tag] = one.value
        if one.tag == 0x00020000 and len(one.value) == 4:
            declared = one.end + int.from_bytes(one.value, "little")
        offset = one.end
    if len(head) - offset < 2 and offset != declared:
        raise _Unusual("there may be more of the file meta information behind the head")
    media_sop_class = _uid(meta.get(0x00020002))
    media_sop_instance = _uid(meta.get(0x00020003))
    syntax = _uid(meta.get(0x00020010))
    if syntax == _DEFLATED:
        return Part10(None, None, media_sop_class, media_sop_instance, syntax, offset)
    found: dict[int, bytes] = {}
    explicit, big = syntax != _IMPLICIT_LITTLE, syntax == _EXPLICIT_BIG
    for one in _elements(head, offset, explicit, big):
        found[one.tag] = one.value
        if one.tag >= 0x00080018:
            break
    return Part10(
        _uid(found.get(0x00080016)),
        _uid(found.get(0x00080018)),
        media_sop_class,
        media_sop_instance,
        syntax,
        offset,
    )


def _elements(head: bytes, at: int, explicit: bool, big: bool) -> Iterator[_Element]:
    """Walk through data elements up to the end of `head`, in ascending order."""
    last = 0x0002FFFF
    while at < len(head):
        one = _element(head, at, explicit, big)
        if one.tag <= last:
            raise _Unusual("elements not in ascending order")
        yield one
        last, at = one.tag, one.end


def _element(head: bytes, at: int, explicit: bool, big: bool) -> _Element:
    """Read one data element (PS3.5 7.1).

    Raises
    ------
    _Unusual
        If it is not whole, or its VR is none.
    """
    tag, _, length, start = _header(head, at, explicit, big)
    if length > len(head) - start:
        raise _Unusual("element longer than the head")
    return _Element(tag, head[start : start + length], start + length)


def _header(head: bytes, at: int, explicit: bool, big: bool) -> tuple[int, bytes, int, int]:
    """Read the header of a data element (PS3.5 7.1); items and delimiters have no VR (PS3.5 7.5).

    Returns
    -------
    tuple of (int, bytes, int, int)
        Tag, VR (or nothing), length, and where the value field begins.

    Raises
    ------
    _Unusual
        If it is not whole, or its VR is none.
    """
    order = ">" if big else "<"
    try:
        group, element = struct.unpack_from(order + "HH", head, at)
        tag = group << 16 | element
        if not explicit or group == 0xFFFE:
            return tag, b"", struct.unpack_from(order + "I", head, at + 4)[0], at + 8
        vr = head[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):
            raise _Unusual("no value representation")
        if vr in _LONG_VRS:
            return tag, vr, struct.unpack_from(order + "I", head, at + 8)[0], at + 12
        return tag, vr, struct.unpack_from(order + "H", head, at + 6)[0], at + 8
    except struct.error:
        raise _Unusual("element header cut off") from None


def _uid(field: bytes | None) -> str:
    """Return a UID without its padding (PS3.5 9.1).

    Raises
    ------
    _Unusual
        If there is none, or something else.
    """
    text = (field or b"").rstrip(b"\0 ")
    if not 0 < len(text) <= 64 or not _UID_CHARACTERS.issuperset(text):
        raise _Unusual("no UID")
    return text.decode("ascii")


def is_whole(fd: int, size: int, head: bytes, found: Part10) -> bool:
    """Say whether a file has all of the data set that it begins with.

    Parameters
    ----------
    fd : int
        The file, open for reading.
    size : int
        Its length.
    head : bytes
        Its first bytes.
    found : Part10
        What they say.

    Returns
    -------
    bool
        False if the last element ends before or behind the end of the file, or where the walk from element to element
        meets anything unusual: ask pydicom. A deflated data set is not looked into: False.
    """
    syntax = found.transfer_syntax
    if syntax == _DEFLATED:
        return False
    try:
        return _walk(
            fd, size, head, found.offset, syntax != _IMPLICIT_LITTLE, syntax == _EXPLICIT_BIG
        )
    except _Unusual:
        return False


def _walk(fd: int, size: int, head: bytes, at: int, explicit: bool, big: bool) -> bool:
    """Walk from header to header to the end of a data set."""
    window, window_at = head, 0
    # What is open: an item, or a sequence
    is_item: list[bool] = []
    # How deep it has been implicit VR little endian from on (PS3.5 6.2.2 note 2)
    plain = _DEEPEST
    while at < size:
        if size - at < 8:
            return False
        want = min(12, size - at)
        if at < window_at or at + want > window_at + len(window):
            window, window_at = _pread(fd, _PEEK, at), at
        depth = len(is_item)
        has_vr = explicit and depth < plain
        tag, vr, length, value = _header(
            window[: at - window_at + want], at - window_at, has_vr, big
        )
        at = value + window_at
        in_item = bool(is_item) and is_item[-1]
        if tag >> 16 == 0xFFFE:
            if tag == _ITEM and is_item and not in_item:
                if length == _UNDEFINED_LENGTH:
                    is_item.append(True)
                else:
                    at += length
            elif (tag == _ITEM_END and in_item) or (
                tag == _SEQUENCE_END and is_item and not in_item
            ):
                is_item.pop()
                if len(is_item) < plain:
                    plain = _DEEPEST
            else:
                return False
        elif is_item and not in_item:
            return False
        elif length != _UNDEFINED_LENGTH:
            at += length
        else:
            if has_vr:
                if vr not in _LONG_VRS or (vr == b"UN" and big):
                    return False
                if vr == b"UN":
                    plain = depth + 1
            if tag == _PIXEL_DATA and not is_item and _ends_in_delimiter(fd, size, big):
                # Fragments need not be looked up one by one: nothing that is cut off ends like this
                return True
            is_item.append(False)
        if len(is_item) >= _DEEPEST:
            return False
    return at == size and not is_item


def _ends_in_delimiter(fd: int, size: int, big: bool) -> bool:
    """Whether a file ends with a Sequence Delimitation Item (PS3.5 7.5.2)."""
    end = struct.pack(">HHI" if big else "<HHI", 0xFFFE, 0xE0DD, 0)
    return _pread(fd, 8, size - 8) == end
