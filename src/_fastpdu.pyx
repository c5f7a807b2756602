# cython: language_level=3
"""The compiled engine: whole DIMSE messages over one stream socket.

Framing (PS3.8 9.3.5 and Annex E), vectored send, scattering receive and the command-set codec (PS3.7 6.3.1).
It knows nothing of pynetdicom. ``docs/engine.md`` describes the interface, ``fastpdu._pure`` is the same engine
in Python and its oracle in the tests.

The border between Python and C is crossed once per message. Inside, every function that can block runs without
the GIL and returns one of the ``R_*`` codes below; the ``def`` methods turn those into results and exceptions.
"""

import errno
import operator
import os
import stat
import threading

try:
    from ssl import SSLSocket, SSLError, SSLWantReadError, SSLWantWriteError, SSLZeroReturnError, SSLEOFError
except ImportError:  # pragma: no cover
    class SSLError(OSError):
        pass

    class SSLSocket:
        pass

    SSLWantReadError = SSLWantWriteError = SSLZeroReturnError = SSLEOFError = SSLError

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AsString
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.errno cimport EAGAIN, EBADF, EINTR, ENOSYS, ESPIPE
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cdef extern from "Python.h":
    long PyLong_AsLongAndOverflow(object, int *)
    bint PyUnicode_IS_COMPACT_ASCII(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    void *PyUnicode_DATA(object)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    char *bytes_at "PyBytes_AsString"(PyObject *)

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    enum:
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    int PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int interruptible)
    void PyThread_release_lock(PyThread_type_lock)
    void PyThread_free_lock(PyThread_type_lock)

cdef extern from "_fastpdu_sys.h" nogil:
    ctypedef struct fp_iov:
        void *iov_base
        size_t iov_len
    enum:
        FP_HAVE_FD
        FP_CAN_CORK
        FP_CORK_PUSHES
        FP_IN
        FP_OUT
        FP_WAKE
        FP_PAGE
    uint32_t fp_get32(const unsigned char *p)
    void fp_put32(unsigned char *p, uint32_t v)
    void fp_copy(void *to, const void *origin, size_t n)
    void *fp_malloc_page(size_t n)
    int64_t fp_now()
    int fp_dup(int fd)
    int fp_open(const char *path)
    int fp_create(const char *path)
    int64_t fp_file_size(int fd)
    void fp_close(int fd)
    int64_t fp_recvv(int fd, fp_iov *v, int n)
    int64_t fp_sendv(int fd, fp_iov *v, int n)
    int64_t fp_pread(int fd, void *p, size_t n, int64_t at)
    int fp_write_all(int fd, const void *p, size_t n)
    int fp_poll(int fd, int events, int wake, int64_t timeout)
    int fp_wake_new(int *ends)
    void fp_wake_set(int fd)
    void fp_wake_clear(int fd)
    void fp_quickack(int fd)
    void fp_cork(int fd, int on)
    void fp_yield()
    int fp_tcp_info(int fd, void *p, size_t n)

# Limits (docs/limits.md)
MIN_PDU = 7
HARD_PDU_CAP = 16 * 1024 * 1024
MAX_ASSOCIATE_PDU = 1024 * 1024
MAX_COMMAND = 65536
UNLIMITED_FRAGMENT = 131072 - 12
# Large messages that leave the process at once, if their answers come soon
TURNS = 4
# Whether `Connection.cork` has an effect on this platform
CAN_CORK = bool(FP_CAN_CORK)

NOT_REGULAR = "Not a regular file"
CREATING = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# Nanoseconds from which on a wait is a suspected stall: the shortest delayed ACK takes 40 ms
STALL_NS = 30000000

# Outcomes that are not a message
READY = 1
WAKE = 2
TIMEOUT = 3
OTHER = 4
PARTIAL = 5
COMMAND = 6

cdef enum:
    C_HARD_PDU_CAP = 16 * 1024 * 1024
    C_MAX_ASSOCIATE = 1024 * 1024
    C_MAX_COMMAND = 65536
    C_UNLIMITED_FRAGMENT = 131072 - 12
    C_MAX_FRAGMENT = 1024 * 1024 - 6
    HEAD = 12  # a PDU header and the PDV header behind it
    PDV_HEAD = 6
    IOVS = 256  # vectors of one system call
    AHEAD = 4096  # bytes read ahead at the start of a message
    WINDOW = 1024 * 1024  # bytes that one scattering read may take beyond the current fragment
    SINK = 256 * 1024  # bytes gathered before a write to the sink
    C_MAX_SINK_HEAD = 64 * 1024
    READ_CHUNK = 512 * 1024  # bytes of a file in flight between pread and sendmsg (docs/measurements.md)
    C_TURNS = 4
    HOLD = 12  # times as long as a message took to leave, it keeps its turn and waits for the answer
    MAX_HOLD = 20000000  # ns of that at most
    C_TURN_US = 100000  # microseconds after which a message leaves out of turn
    BUSY_NS = 400000  # ns for which to look for a message before sleeping, if the last one came within them
    CROWD_NS = 10000000  # ns after a message on a third connection for which nobody does
    SPARES = 4  # buffers for reading files that the process keeps
    EARLY = 64 * 1024  # bytes of a data set in a file from which on the command set leaves before the file is read
    SMALL = 8 * 1024  # bytes of a message that is sent without releasing the GIL
    STAGE = 320 * 1024  # bytes of one write of the socket-object backend
    INBOX = 64 * 1024  # bytes that it reads without giving up the GIL
    RECORD = 16 * 1024  # bytes of a TLS record: one system call each
    SKEW = 320  # bytes by which each use of a buffer for TLS begins further on in its page
    FIRST_DATA = 16 * 1024  # first allocation for a data set whose size cannot be guessed
    MAX_GUESS = 64 * 1024 * 1024
    MAX_GROWTH = 256 * 1024 * 1024
    C_STALL_NS = 30000000
    TCP_INFO_SIZE = 512  # more than any kernel has
    RAISED = -100000  # in place of a negative errno: self.raised holds an exception

cdef enum:
    R_OK = 0
    R_READY = 1
    R_WAKE = 2
    R_TIMEOUT = 3
    R_OTHER = 4
    R_PARTIAL = 5
    R_MESSAGE = 6
    R_GROW = 7  # the data set needs (more) memory: back to the GIL
    R_SIGNAL = 8  # EINTR: let Python's signal handlers run, then go on
    R_EOF = 9
    R_ERRNO = 10  # self.failure holds the errno
    R_PROTOCOL = 11  # self.reason, self.what
    R_RAISED = 12  # self.raised holds the exception of a socket object
    R_CANCELLED = 13
    R_FILE = 14  # the file that is sent cannot be read: self.failure holds the errno, 0 if it ends early
    R_NOMEM = 15
    R_COMMAND = 16


class ProtocolError(Exception):
    """The peer broke the upper layer protocol.

    Attributes
    ----------
    reason : int
        The reason to give in the A-ABORT (PS3.8 9.3.8): 0, 1, 2, 4, 5 or 6.
    """

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason


class PeerClosed(ConnectionError):
    """The connection ended.

    Attributes
    ----------
    received, expected : int
        Bytes of the PDU in progress, header included; both 0 between PDUs. `expected` is 6 while the header is
        incomplete.
    """

    def __init__(self, received=0, expected=0, error=None):
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

    def __init__(self, message, begun=False):
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

    def __init__(self, message, begun=False, number=0):
        super().__init__(*((number, message) if number else (message,)))
        self.begun = begun


class CommandError(ValueError):
    """The command set is not in the canonical form that the codec understands."""


# Threads of this process that are in `receive`, and those that send a file or wait for an answer; changed with the GIL
# in hand.
# Where there are several, there is mostly something to do while one waits, and each return to the GIL costs more than
# it gives.
cdef int receiving = 0
cdef int sending = 0
# Threads that may leave the GIL to others until one of those sends a large message, and what tells them
cdef int giving_way = 0
cdef int way_ends[2]
way_ends[0] = way_ends[1] = -1


# Where more than TURNS threads send large messages at once, they take turns, and each keeps its turn until the answer
# comes, for a while: what is in the sockets of many connections falls out of the caches before it is received.
cdef PyThread_type_lock turns[C_TURNS]
# For whose turn the next one looks first, so that those who wait do not all wait for the same
cdef unsigned int next_turn = 0


cdef PyThread_type_lock new_lock() except NULL:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock == NULL:
        raise MemoryError
    return lock


cdef int _make_turns() except -1:
    cdef int i
    for i in range(C_TURNS):
        turns[i] = new_lock()
    return 0


_make_turns()


# The connections that the last two messages of different connections came by: both ends of an association, mostly; and
# the monotonic time in ns until which there are considered to be more, changed with the GIL in hand
cdef void *busiest[2]
busiest[0] = busiest[1] = NULL
cdef int64_t crowded_until = 0


cdef void notice_message(void *connection) noexcept:
    """Take notice of a message: with more than two connections that have some, nobody waits busily."""
    global crowded_until
    if connection == busiest[0]:
        return
    if connection != busiest[1] and busiest[1] != NULL:
        crowded_until = fp_now() + CROWD_NS
    busiest[1] = busiest[0]
    busiest[0] = connection


# Held by the one thread of the process that looks for a message and does not sleep
cdef PyThread_type_lock busy_lock = new_lock()


def free_turns():
    """Return how many turns nobody has: for tests."""
    cdef int count = 0
    cdef int i
    for i in range(C_TURNS):
        if PyThread_acquire_lock_timed(turns[i], 0, 0) == PY_LOCK_ACQUIRED:
            PyThread_release_lock(turns[i])
            count += 1
    return count


cdef int take_turn(unsigned int first) noexcept nogil:
    """Wait for a turn, but not for ever: which one, or -1."""
    cdef int i
    for i in range(C_TURNS):
        if PyThread_acquire_lock_timed(turns[(first + i) % C_TURNS], 0, 0) == PY_LOCK_ACQUIRED:
            return <int>((first + i) % C_TURNS)
    if PyThread_acquire_lock_timed(turns[first % C_TURNS], C_TURN_US, 0) == PY_LOCK_ACQUIRED:
        return <int>(first % C_TURNS)
    return -1


def _forget_threads():
    """After a fork: the threads that were counted, and had turns, are not in this process."""
    global receiving, sending, giving_way, crowded_until, busy_lock
    receiving = sending = giving_way = 0
    crowded_until = 0
    busiest[0] = busiest[1] = NULL
    # (the parent goes on with the descriptors)
    close_ends(way_ends)
    _make_turns()
    busy_lock = new_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


cdef struct Chunk:
    unsigned char *at
    size_t size


# Buffers that nobody reads a file into now. A connection has one while it sends, so idle ones cost nothing, and the
# buffer that was used last, which the caches still know, is the first to be used again.
cdef Chunk spares[SPARES]
cdef int spare_count = 0
cdef PyThread_type_lock spares_lock = new_lock()


cdef Chunk take_chunk(size_t size) noexcept nogil:
    """Return a buffer of at least `size` bytes; NULL if there is no memory."""
    global spare_count
    cdef Chunk chunk
    chunk.at = NULL
    chunk.size = 0
    # Never waiting: after a fork nobody might give the lock back
    if PyThread_acquire_lock_timed(spares_lock, 0, 0) == PY_LOCK_ACQUIRED:
        if spare_count:
            spare_count -= 1
            chunk = spares[spare_count]
        PyThread_release_lock(spares_lock)
    if chunk.size < size:
        free(chunk.at)
        chunk.at = <unsigned char *>fp_malloc_page(size)
        chunk.size = size
    return chunk


cdef void give_chunk(Chunk chunk) noexcept nogil:
    """Keep a buffer for the next send, or free it."""
    global spare_count
    if PyThread_acquire_lock_timed(spares_lock, 0, 0) == PY_LOCK_ACQUIRED:
        if chunk.at != NULL and spare_count < SPARES:
            spares[spare_count] = chunk
            spare_count += 1
            chunk.at = NULL
        PyThread_release_lock(spares_lock)
    free(chunk.at)


cdef int64_t patience_of(object timeout) except -2:
    """Return a timeout in seconds as nanoseconds, -1 for never."""
    if timeout is None or timeout > 4e9:
        return -1
    if timeout != timeout or timeout < 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    return <int64_t>(<double>timeout * 1e9)


cdef int64_t deadline_of(object timeout) except -2:
    """Return the monotonic time in ns of a timeout in seconds from now, -1 for never."""
    cdef int64_t patience = patience_of(timeout)
    return patience if patience < 0 else fp_now() + patience


cdef struct Waits:
    uint64_t total  # ns
    uint64_t current  # ns without a byte, in one or more calls
    uint64_t longest  # ns
    uint64_t stalls  # of them, those of C_STALL_NS or more


cdef inline void waited(Waits *waits, int64_t since) noexcept nogil:
    """Count a blocking call that began at `since`. A wait lasts until bytes move, however many calls it takes."""
    cdef uint64_t duration = <uint64_t>(fp_now() - since)
    waits.total += duration
    if waits.current < C_STALL_NS <= waits.current + duration:
        waits.stalls += 1
    waits.current += duration
    if waits.current > waits.longest:
        waits.longest = waits.current


cdef inline int64_t left(int64_t deadline) noexcept nogil:
    """Nanoseconds until `deadline`, -1 for never, 0 when it is over."""
    cdef int64_t rest
    if deadline < 0:
        return -1
    rest = deadline - fp_now()
    return rest if rest > 0 else 0


@cython.final
@cython.freelist(8)
cdef class Message:
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

    cdef readonly int context_id
    cdef readonly bytes command
    cdef readonly bytes data
    cdef readonly uint64_t length
    cdef readonly int error
    cdef public object sink, prepared

    def __repr__(self):
        return (
            f"<Message context_id={self.context_id} command={len(self.command)} bytes data={self.length} bytes>"
        )


@cython.final
cdef class NewFile:
    """A file that is to be made: by `open`, or by the connection whose sink it is, when it receives the data set.

    The connection may write to it until the message is complete or forgotten, or it has closed its own descriptors; the
    file is closed after that, whoever asked for it before. Its descriptor does not outlive this object.

    Parameters
    ----------
    path : str
        The file; there must be none of that name when it is made.

    Attributes
    ----------
    path : str
        The file.
    fd : int
        A descriptor for reading and writing; -1 before and after.
    is_made : bool
        Whether the file was made.

    Raises
    ------
    TypeError, ValueError
        If `path` is not one.
    """

    cdef readonly object path
    cdef bytes encoded
    cdef const char *encoded_at
    cdef readonly int fd
    cdef readonly bint is_made
    cdef bint is_lent  # to a connection
    cdef bint is_closed  # at once, or as soon as it comes back

    def __cinit__(self, path):
        self.fd = -1
        if not isinstance(path, str):
            raise TypeError(f"a path is a str, not {path!r}")
        self.path = path
        self.encoded = os.fsencode(path)
        self.encoded_at = PyBytes_AsString(self.encoded)
        if b"\0" in self.encoded:
            raise ValueError("embedded null byte")

    def __dealloc__(self):
        fp_close(self.fd)

    def open(self):
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
        self.make_with_gil()

    def close(self):
        """Close the descriptor, if it is open: at once, or when the connection that writes to it is through.

        A file that is not made yet will not be.

        Raises
        ------
        OSError
            If the file system writes late, and says now that it could not.
        """
        cdef int fd = self.fd
        self.is_closed = True
        if fd >= 0 and not self.is_lent:
            self.fd = -1
            os.close(fd)

    cdef void come_back(self) noexcept:
        """The connection does not write to it any more."""
        self.is_lent = False
        if self.is_closed:
            fp_close(self.fd)
            self.fd = -1

    cdef int make(self) noexcept nogil:
        """Make it where descriptors are the system's: 0 or a negative errno."""
        cdef int fd = -EBADF if self.is_closed else fp_create(self.encoded_at)
        if fd < 0:
            return fd
        self.fd = fd
        self.is_made = True
        return 0

    cdef int make_with_gil(self) except -1:
        """Make it anywhere."""
        if self.is_closed:
            raise OSError(errno.EBADF, "the file is closed")
        self.fd = os.open(self.path, CREATING, 0o666)
        self.is_made = True
        return 0


@cython.final
cdef class Outgoing:
    """Owns every buffer of one message until the kernel has all of it."""

    cdef Py_buffer *views
    cdef int count
    cdef uint64_t total

    def __cinit__(self, data):
        cdef tuple parts
        cdef object part
        if isinstance(data, (bytes, bytearray, memoryview)) or not isinstance(data, (tuple, list)):
            parts = (data,)
        else:
            parts = tuple(data)
        if not parts:
            return
        self.views = <Py_buffer *>malloc(len(parts) * sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError
        for part in parts:
            PyObject_GetBuffer(part, &self.views[self.count], PyBUF_SIMPLE)
            self.total += self.views[self.count].len
            self.count += 1

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])
        free(self.views)


cdef void close_ends(int *ends) noexcept:
    """Close both ends of a wake-up; they may be one descriptor."""
    if ends[1] != ends[0]:
        fp_close(ends[1])
    fp_close(ends[0])
    ends[0] = ends[1] = -1


cdef bint make_way() except -1:
    """Make what tells threads that the GIL is free; whether there is any."""
    if way_ends[0] < 0:
        fp_wake_new(way_ends)
    return way_ends[0] >= 0


cdef class Connection:
    """PDU framing over one connected stream socket: see docs/engine.md.

    Parameters
    ----------
    sock : socket.socket
        The connected socket.
    """

    cdef object __weakref__
    # Limits and options
    cdef public uint32_t max_receive_pdu
    cdef public uint64_t max_message
    cdef public bint quickack
    cdef public bint busy_wait
    cdef public bint cork
    cdef public bint pack_command
    cdef public bint tells_command
    cdef double c_pdu_timeout  # seconds, negative: none
    cdef object c_split
    cdef bint split_any
    cdef unsigned char split_map[8192]  # a bit per command field

    # The descriptor that is polled (and, in FdConnection, read and written)
    cdef int fd
    cdef int wake_ends[2]
    cdef int cancel_ends[2]  # made when a send may block for the first time
    cdef int users  # blocked calls; the last one closes
    cdef bint closing
    cdef bint wake_pending
    cdef bint is_closed

    # Failure details of the R_* codes
    cdef int failure
    cdef int reason
    cdef const char *what
    cdef object raised

    # Receiving: bytes read ahead
    cdef unsigned char *ahead
    cdef size_t ahead_at, ahead_end, ahead_size
    # the PDU and PDV in progress
    cdef uint32_t pdu_length  # of the PDU in progress, as declared
    cdef uint32_t pdu_left  # bytes of its variable field that are still to come
    cdef uint32_t pdv_left  # bytes of the fragment still to come
    cdef uint32_t pdv_size
    cdef bint in_fragment, fragment_is_command, fragment_is_last
    cdef int64_t pdu_began  # monotonic ns, 0: none in progress
    # the message in progress
    cdef bint in_msg, command_done, complete, partial_due, partial_told, command_told
    cdef bint is_interim  # a pending response without a data set
    cdef int context
    cdef unsigned char *command
    cdef size_t command_len, command_size
    cdef PyObject *data
    cdef unsigned char *data_at
    cdef uint64_t data_len, data_size  # in memory; of the sink's buffer, if there is a sink
    cdef uint64_t data_total
    cdef uint64_t guess
    cdef int sink
    cdef NewFile sink_file  # that the sink is, if it is one
    cdef bint sink_due  # it is still to be made
    cdef bint sinking  # the data set goes to the sink, or nowhere
    cdef bint drains  # a sink that cannot be written does not end the message
    cdef int sink_error
    cdef unsigned char *sink_buffer
    cdef bint did_read
    cdef int64_t gap  # ns waited since the last message was sent or received
    cdef int64_t last_gap[2]  # ns waited in the end, for a message that was not awaited, and for one that was
    cdef bint starved  # what is buffered is known to be incomplete
    # scattering read
    cdef fp_iov in_iov[IOVS]
    cdef unsigned char in_heads[HEAD * IOVS]

    # Sending
    cdef PyThread_type_lock send_lock  # of C, so that it can be released before the GIL is taken back
    cdef int out_at, out_count, out_heads_count
    cdef fp_iov out_iov[IOVS]
    cdef unsigned char out_heads[HEAD * IOVS]
    cdef size_t read_chunk
    cdef uint64_t early
    cdef int turn  # that it has, or -1
    cdef int64_t turn_began  # monotonic ns
    cdef uint64_t out_sent  # bytes of the message that the kernel has taken
    cdef uint32_t packed  # bytes of the data set beside the command set, in its last PDU
    cdef bint pack_due  # they are still to be framed
    cdef bint corked  # partial segments are held back now
    cdef bint held, cancelled
    cdef readonly bint send_broken

    cdef readonly uint64_t bytes_sent, bytes_received, pdus_sent, pdus_received
    cdef readonly uint64_t messages_sent, messages_received, send_calls, receive_calls, yielded_ns, busy_waits
    cdef readonly uint32_t largest_pdu_sent, largest_pdu_received
    cdef Waits send_waits, peer_waits
    cdef object last_tcp_info

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.wake_ends[0] = self.wake_ends[1] = self.cancel_ends[0] = self.cancel_ends[1] = -1
        self.sink = -1
        self.c_pdu_timeout = -1
        self.c_split = frozenset()
        self.send_lock = new_lock()
        self.read_chunk = READ_CHUNK
        self.early = EARLY
        self.turn = -1
        self.last_gap[0] = self.last_gap[1] = BUSY_NS

    def __init__(self, sock):
        if type(self) is Connection:
            raise TypeError("Connection is abstract: use FdConnection, SocketConnection or connect()")
        number = sock.fileno()
        if number < 0:
            raise ValueError("the socket is closed")
        if FP_HAVE_FD:
            self.fd = fp_dup(number)
            if self.fd < 0:
                raise OSError(-self.fd, os.strerror(-self.fd))
            status = fp_wake_new(self.wake_ends)
            if status < 0:
                raise OSError(-status, os.strerror(-status))
        self.ahead_size = AHEAD
        self.ahead = <unsigned char *>malloc(AHEAD)
        if self.ahead == NULL:
            raise MemoryError

    def __dealloc__(self):
        self._release()
        if self.send_lock != NULL:
            PyThread_free_lock(self.send_lock)
        free(self.ahead)
        free(self.command)
        free(self.sink_buffer)
        Py_XDECREF(self.data)
        self.data = NULL

    cdef void _give_back(self) noexcept:
        """Nothing more is written to the sink."""
        self.sink = -1
        self.sink_due = False
        if self.sink_file is not None:
            self.sink_file.come_back()
            self.sink_file = None

    cdef void _release(self) noexcept:
        self._give_back()
        if self.fd >= 0:
            fp_close(self.fd)
            self.fd = -1
        close_ends(self.wake_ends)
        close_ends(self.cancel_ends)
        self.is_closed = True

    # ------------------------------------------------------------------------------- backend
    cdef int64_t _recvv(self, fp_iov *v, int n) noexcept nogil:
        """Read into the vectors without blocking: bytes, 0 at the end, or a negative errno."""
        return -ENOSYS

    cdef bint _takes_several_calls(self) noexcept nogil:
        """Whether the backend makes more than one system call of what is in the vectors."""
        return False

    cdef int64_t _sendv(self, fp_iov *v, int n) noexcept nogil:
        """Write from the vectors without blocking: bytes taken, or a negative errno."""
        return -ENOSYS

    cdef int _poll(self, int events, int64_t timeout) noexcept nogil:
        """Wait for FP_IN, which a wake-up ends, or for FP_OUT, which a cancellation ends: see fp_poll."""
        return fp_poll(self.fd, events, self.wake_ends[0] if events & FP_IN else self.cancel_ends[0], timeout)

    cdef bint _holds_bytes(self) noexcept nogil:
        """Whether there are bytes to read that the socket does not have any more."""
        return self.ahead_end > self.ahead_at or self._pending()

    cdef bint _has_more(self) noexcept:
        """Whether there is something to read that nobody has looked at."""
        return self._holds_bytes() or fp_poll(self.fd, FP_IN, -1, 0) > 0

    cdef void _set_wake(self) noexcept:
        fp_wake_set(self.wake_ends[1])

    cdef int _make_cancellable(self) except -1:
        """A send may block now: let `cancel` reach it."""
        if FP_HAVE_FD and self.cancel_ends[0] < 0 and not self.closing:
            status = fp_wake_new(self.cancel_ends)
            if status < 0:
                raise OSError(-status, os.strerror(-status))
        return 0

    cdef void _set_cancel(self) noexcept:
        if self.cancel_ends[1] >= 0:
            fp_wake_set(self.cancel_ends[1])

    cdef void _clear_cancel(self) noexcept:
        if self.cancelled and self.cancel_ends[0] >= 0:
            fp_wake_clear(self.cancel_ends[0])
        self.cancelled = False

    cdef bint _half_written(self) noexcept:
        """Whether the backend insists on the bytes that it was last offered (TLS)."""
        return False

    cdef void _clear_wake(self) noexcept:
        fp_wake_clear(self.wake_ends[0])

    cdef bint _pending(self) noexcept nogil:
        """Whether the backend holds bytes that poll does not see (TLS)."""
        return False

    # ------------------------------------------------------------------------------- failures
    cdef int _broke(self, int reason, const char *what) noexcept nogil:
        self.reason = reason
        self.what = what
        return R_PROTOCOL

    cdef int _failed(self, int64_t status) noexcept nogil:
        """Turn a negative errno of the backend into a code."""
        if status == -EINTR:
            return R_SIGNAL
        if status == RAISED:
            return R_RAISED
        self.failure = <int>-status
        return R_ERRNO

    cdef int _raise(self, int code) except -1:
        """Raise what `code` stands for."""
        cdef object error
        if code == R_SIGNAL:
            PyErr_CheckSignals()
            return 0
        if code == R_EOF:
            raise PeerClosed(*self._progress())
        if code == R_PROTOCOL:
            if self.reason == 1:
                raise ProtocolError(1, f"Unknown PDU type received '0x{self.ahead[self.ahead_at]:02X}'")
            raise ProtocolError(self.reason, self.what.decode("ascii"))
        if code == R_RAISED:
            error = self.raised
            self.raised = None
            raise error
        if code == R_NOMEM:
            raise MemoryError
        if code == R_CANCELLED:
            raise Cancelled("the send was cancelled", self.out_sent > 0)
        if code == R_FILE:
            if self.failure == 0:
                raise FileError("the file is shorter than it was when the transfer began", self.out_sent > 0)
            raise FileError(
                f"the file cannot be read: {os.strerror(self.failure)}", self.out_sent > 0, self.failure
            )
        if code == R_ERRNO:
            error = OSError(self.failure, os.strerror(self.failure))
            if isinstance(error, ConnectionError):
                raise PeerClosed(*self._progress(), error) from error
            raise error
        if code == R_TIMEOUT:
            raise TimeoutError("the peer does not take data")
        raise RuntimeError(f"unexpected engine code {code}")

    cdef tuple _progress(self):
        """Return the (received, expected) bytes of the PDU in progress."""
        cdef size_t n = self.ahead_end - self.ahead_at
        if self.pdu_left:
            return 6 + self.pdu_length - self.pdu_left + n, 6 + self.pdu_length
        if n == 0:
            return 0, 0
        if n < 6:
            return n, 6
        return n, 6 + <uint64_t>fp_get32(self.ahead + self.ahead_at + 2)

    cdef int _enter(self) except -1:
        if self.is_closed or self.closing:
            raise OSError(errno.EBADF, "the connection is closed")
        self.users += 1
        return 0

    cdef void _leave(self) noexcept:
        self.users -= 1
        if self.closing and self.users == 0:
            self._release()

    # ------------------------------------------------------------------------------- waiting
    cdef int _wait_readable(self, int64_t timeout, bint awaited) noexcept nogil:
        """Wait for bytes; `awaited`: this is time that the peer takes, not idleness."""
        cdef int ready
        cdef int64_t began
        if self.quickack and self.did_read and timeout != 0:
            fp_quickack(self.fd)
            self.did_read = False
        if awaited and timeout != 0:
            began = fp_now()
            ready = self._poll_in(timeout, awaited)
            waited(&self.peer_waits, began)
        else:
            if timeout != 0:
                # Before it, not after: an idle reader may be woken because an answer is due by now
                self.peer_waits.current = 0
            ready = self._poll_in(timeout, awaited)
        if ready < 0:
            return self._failed(ready)
        if ready & FP_WAKE:
            return R_WAKE
        return R_READY if ready else R_TIMEOUT

    cdef int _poll_in(self, int64_t timeout, bint awaited) noexcept nogil:
        """`_poll` for bytes. With `busy_wait`, between messages that come soon, look for a while before sleeping.

        To wake a thread may take as long as the answer. Whoever else wants the processor gets it meanwhile.
        """
        cdef int64_t began, most
        cdef int ready = 0
        if not (FP_HAVE_FD and self.busy_wait) or timeout == 0 or self._in_progress():
            return self._poll(FP_IN, timeout)
        began = fp_now()
        # So long for one message, however often it is waited for
        most = BUSY_NS - self.gap
        if most > 0 and self.last_gap[awaited] < BUSY_NS and began >= crowded_until:
            if PyThread_acquire_lock_timed(busy_lock, 0, 0) == PY_LOCK_ACQUIRED:
                self.busy_waits += 1
                ready = self._look(began, most if timeout < 0 or timeout > most else timeout)
                PyThread_release_lock(busy_lock)
                if ready == 0:
                    self.gap += fp_now() - began
                    # A signal that came meanwhile has interrupted nothing
                    return 0 if 0 < timeout <= fp_now() - began else -EINTR
        if ready == 0:
            ready = self._poll(FP_IN, timeout)
        self.gap += fp_now() - began
        if ready > 0 and ready != FP_WAKE:
            self.last_gap[awaited] = self.gap
        return ready

    cdef int _look(self, int64_t began, int64_t most) noexcept nogil:
        """Look for bytes for at most `most` ns since `began`, and let others have the processor: see fp_poll."""
        cdef int ready = self._poll(FP_IN, 0)
        cdef int64_t now
        while ready == 0:
            fp_yield()
            now = fp_now()
            if now - began >= most or now < crowded_until:
                break
            ready = self._poll(FP_IN, 0)
        return ready

    cdef int _linger(self, int64_t timeout, bint awaited) noexcept nogil:
        """Wait until there is something to read; a wake-up ends it, and is left for who waits.

        R_TIMEOUT: nothing has ended it.
        """
        cdef int64_t began
        cdef int code
        if timeout == 0:
            return R_TIMEOUT
        if self.closing or self._holds_bytes():
            return R_READY
        began = fp_now()
        code = self._wait_readable(timeout, awaited)
        if not awaited:
            self.yielded_ns += <uint64_t>(fp_now() - began)
        return code

    cdef int _wait_writable(self, int64_t timeout) noexcept nogil:
        cdef int64_t began = fp_now()
        cdef int ready = self._poll(FP_OUT, timeout)
        waited(&self.send_waits, began)
        if self.cancelled or self.closing:
            return R_CANCELLED
        if ready < 0:
            return self._failed(ready)
        return R_READY if ready else R_TIMEOUT

    cdef int _woken(self) except -1:
        """Consume a wake-up."""
        self.wake_pending = False
        if not self.closing:
            self._clear_wake()
        return 0

    cdef int _give_way(self, int64_t timeout) noexcept nogil:
        """Take what has come; if it is a pending response, leave the GIL to others until there is better use of it.

        Whoever has sent it, in this process, mostly has the GIL now, and sends the next image soon. While that goes
        through the kernel, nobody needs the GIL.
        """
        cdef int code = self._advance(0, False, True)
        if code == R_MESSAGE and self.is_interim and not self._holds_bytes():
            fp_wake_clear(way_ends[0])
            fp_poll(self.fd, FP_IN, way_ends[0], timeout)
        # (`receive` comes to the same again, unless it is a failure)
        if code in (R_MESSAGE, R_TIMEOUT, R_OTHER, R_PARTIAL, R_GROW):
            return R_READY
        return code

    def wait(self, timeout=None, *, bint awaited=False, yields=0):
        """Block until there is something to read.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None for ever, 0 to poll.
        awaited : bool, optional
            Whether the peer is to answer: then the time counts as waiting for it, else as idleness. In the middle of
            a PDU or message it always counts.
        yields : float, optional
            Seconds for which to leave the GIL to others when a pending response without a data set has come, unless
            more comes, or another thread of the process begins to send a large message from a file, which needs no GIL.
            The response is then in the connection already (`in_message`). Nothing else ends it.

        Returns
        -------
        int
            READY, WAKE or TIMEOUT.

        Raises
        ------
        OSError
            If the connection is closed on our side.
        ProtocolError, PeerClosed
            With `yields`, which takes what has come from the socket.
        ValueError, TypeError
            If `timeout` or `yields` is no number of seconds.
        """
        global giving_way, sending
        cdef int64_t deadline = deadline_of(timeout)
        cdef int64_t yielding = patience_of(yields)
        cdef int code
        if yielding < 0:
            raise TypeError("yields must be a number of seconds, not None")
        if yielding and not (FP_HAVE_FD and make_way()):
            yielding = 0
        self._enter()
        giving_way += yielding != 0
        sending += awaited
        try:
            # (a whole message that an earlier `wait` has taken is here, and not in the socket)
            if self.complete or not self.starved and self._holds_bytes():
                return READY
            while True:
                with nogil:
                    code = self._wait_readable(left(deadline), awaited or self._in_progress())
                    if code == R_READY and yielding and not self._in_progress():
                        code = self._give_way(yielding)
                if self.closing:
                    raise OSError(errno.EBADF, "the connection is closed")
                if code == R_READY:
                    return READY
                if code == R_TIMEOUT:
                    return TIMEOUT
                if code == R_WAKE:
                    self._woken()
                    return WAKE
                self._raise(code)
        finally:
            giving_way -= yielding != 0
            sending -= awaited
            self._leave()

    # ------------------------------------------------------------------------------- receiving
    cdef int _keep(self, const unsigned char *p, size_t n) noexcept nogil:
        """Put bytes at the end of those read ahead."""
        cdef size_t size
        cdef unsigned char *bigger
        if n == 0:
            return R_OK
        if self.ahead_end + n > self.ahead_size:
            if self.ahead_at > 0:
                memmove(self.ahead, self.ahead + self.ahead_at, self.ahead_end - self.ahead_at)
                self.ahead_end -= self.ahead_at
                self.ahead_at = 0
            if self.ahead_end + n > self.ahead_size:
                size = self.ahead_end + n
                if size < 2 * self.ahead_size:
                    size = 2 * self.ahead_size
                bigger = <unsigned char *>realloc(self.ahead, size)
                if bigger == NULL:
                    return R_NOMEM
                self.ahead = bigger
                self.ahead_size = size
        memcpy(self.ahead + self.ahead_end, p, n)
        self.ahead_end += n
        return R_OK

    cdef int _got(self, int64_t n) noexcept nogil:
        """Account for the outcome of a read; R_OK if it brought bytes."""
        self.receive_calls += 1
        if n > 0:
            self.bytes_received += <uint64_t>n
            self.did_read = True
            self.starved = False
            self.peer_waits.current = 0
            if self.pdu_began == 0:
                self.pdu_began = fp_now()
            return R_OK
        if n == 0:
            return R_EOF
        return self._failed(n)

    cdef int _read_ahead(self, size_t want) noexcept nogil:
        """Read more bytes ahead, room for `want` at least, without blocking."""
        cdef fp_iov v
        cdef int64_t n
        cdef int code
        if self.ahead_at == self.ahead_end:
            self.ahead_at = self.ahead_end = 0
        elif self.ahead_at > 0 and self.ahead_end + want > self.ahead_size:
            memmove(self.ahead, self.ahead + self.ahead_at, self.ahead_end - self.ahead_at)
            self.ahead_end -= self.ahead_at
            self.ahead_at = 0
        code = self._widen()
        if code != R_OK:
            return code
        v.iov_base = self.ahead + self.ahead_end
        v.iov_len = self.ahead_size - self.ahead_end
        n = self._recvv(&v, 1)
        if n > 0:
            self.ahead_end += <size_t>n
        return self._got(n)

    cdef int _read_exactly(self, size_t want) noexcept nogil:
        """Read until `want` bytes are there, and no byte more, so that other readers find the stream intact."""
        cdef fp_iov v
        cdef int64_t n
        cdef int code
        if self.ahead_at > 0:
            memmove(self.ahead, self.ahead + self.ahead_at, self.ahead_end - self.ahead_at)
            self.ahead_end -= self.ahead_at
            self.ahead_at = 0
        code = self._widen()
        if code != R_OK:
            return code
        v.iov_base = self.ahead + self.ahead_end
        v.iov_len = self.ahead_size - self.ahead_end
        if v.iov_len > want - self.ahead_end:
            v.iov_len = want - self.ahead_end
        n = self._recvv(&v, 1)
        if n > 0:
            self.ahead_end += <size_t>n
        return self._got(n)

    cdef int _widen(self) noexcept nogil:
        """Make room behind the bytes read ahead: as much again as has arrived, whatever length was declared."""
        cdef unsigned char *bigger
        if self.ahead_end < self.ahead_size:
            return R_OK
        bigger = <unsigned char *>realloc(self.ahead, 2 * self.ahead_size)
        if bigger == NULL:
            return R_NOMEM
        self.ahead = bigger
        self.ahead_size *= 2
        return R_OK

    cdef void _trim_ahead(self) noexcept nogil:
        """Give memory back once a large PDU or an overshoot has been consumed."""
        cdef unsigned char *smaller
        if self.ahead_at == self.ahead_end and self.ahead_size > AHEAD:
            smaller = <unsigned char *>realloc(self.ahead, AHEAD)
            if smaller != NULL:
                self.ahead = smaller
                self.ahead_size = AHEAD
            self.ahead_at = self.ahead_end = 0

    cdef int _check_header(self, const unsigned char *p) noexcept nogil:
        """Judge a PDU by its 6-byte header (PS3.8 9.3.1, D.1)."""
        cdef uint32_t length = fp_get32(p + 2)
        cdef uint32_t limit
        if p[0] == 4:
            limit = self.max_receive_pdu
            if limit == 0 or limit > C_HARD_PDU_CAP:
                limit = C_HARD_PDU_CAP
            if length > limit:
                return self._broke(6, "P-DATA-TF PDU longer than the announced maximum length")
            if length == 0:
                return self._broke(6, "P-DATA-TF PDU without a presentation data value")
            return R_OK
        if p[0] == 1 or p[0] == 2:
            if length > C_MAX_ASSOCIATE:
                return self._broke(6, "A-ASSOCIATE PDU longer than 1 MiB")
            return R_OK
        if p[0] == 0 or p[0] > 7:
            return self._broke(1, "unrecognised PDU type")
        if length > 4 or (length < 4 and p[0] != 7):
            return self._broke(6, "PDU of a fixed length with another length")
        return R_OK

    cdef int _pdu_header(self) noexcept nogil:
        """Take the header of the next P-DATA-TF PDU from the bytes read ahead."""
        cdef const unsigned char *p
        cdef int code
        if self.ahead_end - self.ahead_at < 6:
            return self._read_ahead(6)
        p = self.ahead + self.ahead_at
        code = self._check_header(p)
        if code != R_OK:
            return code
        if p[0] != 4:
            return R_OTHER
        if self.pdu_began == 0:
            self.pdu_began = fp_now()
        self.pdu_length = self.pdu_left = fp_get32(p + 2)
        self.ahead_at += 6
        return R_OK

    cdef int _pdv_header(self) noexcept nogil:
        """Take the next PDV header (PS3.8 9.3.5.1, E.2) from the bytes read ahead."""
        cdef const unsigned char *p
        if self.pdu_left < 6:
            return self._broke(6, "presentation data value shorter than its header")
        if self.ahead_end - self.ahead_at < 6:
            return self._read_ahead(6)
        p = self.ahead + self.ahead_at
        return self._open_fragment(fp_get32(p), p[4], p[5], True)

    cdef int _open_fragment(self, uint32_t length, int context, int control, bint ahead) noexcept nogil:
        cdef bint is_command = control & 1
        if length < 2 or length > self.pdu_left - 4:
            return self._broke(6, "presentation data value length out of range")
        if self.in_msg and context != self.context:
            return self._broke(5, "presentation context changes inside a message")
        if is_command and self.command_done:
            return self._broke(5, "command fragment inside a data set")
        if not is_command and not self.command_done:
            return self._broke(5, "data set fragment before the command set is complete")
        if is_command and self.command_len + length - 2 > C_MAX_COMMAND:
            return self._broke(6, "command set longer than 64 KiB")
        if not is_command and self.max_message and self.data_total + length - 2 > self.max_message:
            return self._broke(6, "data set longer than the limit of this receiver")
        if not self.in_msg:
            self.in_msg = True
            self.context = context
        if ahead:
            self.ahead_at += 6
        self.pdu_left -= 6
        self.pdv_left = self.pdv_size = length - 2
        self.in_fragment = True
        self.fragment_is_command = is_command
        self.fragment_is_last = (control & 2) != 0
        return R_OK

    cdef inline void _count_pdu(self, uint32_t length) noexcept nogil:
        self.pdus_received += 1
        if length > self.largest_pdu_received:
            self.largest_pdu_received = length

    cdef int _fragment_done(self) noexcept nogil:
        """The fragment in progress is complete."""
        self.in_fragment = False
        if self.pdu_left == 0:
            self._count_pdu(self.pdu_length)
            self.pdu_began = fp_now()
        if not self.fragment_is_last:
            return R_OK
        if self.fragment_is_command:
            return self._command_complete()
        self.complete = True
        return R_OK

    cdef int _command_complete(self) noexcept nogil:
        """Find out whether a data set follows: Command Data Set Type (0000,0800), PS3.7 E.1."""
        cdef size_t at = 0
        cdef uint32_t tag, length
        cdef int field = -1
        cdef int kind = -1
        cdef int status = 0
        cdef const unsigned char *p = self.command
        self.command_done = True
        while self.command_len - at >= 8:
            # group and element are little endian 16-bit words
            tag = (<uint32_t>p[at + 1] << 24) | (<uint32_t>p[at] << 16) | (<uint32_t>p[at + 3] << 8) | p[at + 2]
            length = p[at + 4] | (<uint32_t>p[at + 5] << 8) | (<uint32_t>p[at + 6] << 16) | (<uint32_t>p[at + 7] << 24)
            at += 8
            if length > self.command_len - at:
                return self._broke(6, "command set cannot be read")
            if length >= 2:
                if tag == 0x0100:
                    field = p[at] | (p[at + 1] << 8)
                elif tag == 0x0800:
                    kind = p[at] | (p[at + 1] << 8)
                elif tag == 0x0900:
                    status = p[at] | (p[at + 1] << 8)
            at += length
        if at != self.command_len or kind < 0 or field < 0:
            return self._broke(6, "command set cannot be read")
        if kind == 0x0101:
            self.complete = True
            self.is_interim = status == 0xFF00 or status == 0xFF01
        elif self.split_any and (self.split_map[field >> 3] >> (field & 7)) & 1:
            self.partial_due = True
        return R_OK

    cdef int _take_command(self) noexcept nogil:
        """Move command bytes from those read ahead to the command set."""
        cdef size_t n = self.ahead_end - self.ahead_at
        cdef size_t size
        cdef unsigned char *bigger
        if n == 0:
            return self._read_ahead(1)
        if n > self.pdv_left:
            n = self.pdv_left
        if self.command_len + n > self.command_size:
            size = 2 * (self.command_len + n)
            bigger = <unsigned char *>realloc(self.command, size)
            if bigger == NULL:
                return R_NOMEM
            self.command = bigger
            self.command_size = size
        memcpy(self.command + self.command_len, self.ahead + self.ahead_at, n)
        self.command_len += n
        self.ahead_at += n
        self.pdv_left -= <uint32_t>n
        self.pdu_left -= <uint32_t>n
        return R_OK

    cdef int _take_data(self) noexcept nogil:
        """Move data set bytes to their place: from those read ahead, else straight from the socket."""
        cdef size_t n
        cdef uint64_t room
        cdef int code
        room = self.data_size - self.data_len
        if room == 0 and self.sinking:
            code = self._flush_sink()
            if code != R_OK:
                return code
            room = self.data_size
        if room == 0:
            return R_GROW
        n = self.ahead_end - self.ahead_at
        if n == 0:
            return self._scatter(room)
        if n > self.pdv_left:
            n = self.pdv_left
        if n > room:
            n = <size_t>room
        memcpy(self.data_at + self.data_len, self.ahead + self.ahead_at, n)
        self.ahead_at += n
        self._took(n)
        return R_OK

    cdef inline void _took(self, uint64_t n) noexcept nogil:
        self.data_len += n
        self.data_total += n
        self.pdv_left -= <uint32_t>n
        self.pdu_left -= <uint32_t>n

    cdef int _make_sink(self) noexcept nogil:
        """Make the file that is the sink.

        Here, and not before: to give up the GIL for it would cost far more than the file, if a sender of this process
        waits for the GIL, whose next message this is.
        """
        cdef int status = self.sink_file.make()
        return R_SIGNAL if status == -EINTR else self._sink_made(status)

    cdef int _make_sink_with_gil(self) except -1:
        """The same where descriptors are not the system's."""
        cdef int status = 0
        try:
            self.sink_file.make_with_gil()
        except OSError as error:
            status = -(error.errno or errno.EIO)
        return self._sink_made(status)

    cdef int _sink_made(self, int status) noexcept nogil:
        """Go on with a file that was just made, or (a negative errno) could not be."""
        if status < 0 and not self.drains:
            self.failure = -status
            return R_ERRNO
        self.sink_due = False
        self.sink = self.sink_file.fd
        self.sink_error = -status
        return R_OK

    cdef int _flush_sink(self) noexcept nogil:
        """Write what was gathered for the sink, when the buffer is full, and at the end of the message."""
        cdef int status
        if self.sinking and self.data_len > 0:
            if self.sink >= 0 and self.sink_error == 0:
                status = fp_write_all(self.sink, self.sink_buffer, self.data_len)
                if status < 0 and not self.drains:
                    self.failure = -status
                    return R_ERRNO
                self.sink_error = -status
            self.data_len = 0
        return R_OK

    cdef int _scatter(self, uint64_t room) noexcept nogil:
        """Read the rest of the fragment and, betting that the next ones are as long, those behind it.

        The vector is [rest of the fragment][header][fragment][header][fragment]..., so that each byte lands where
        it stays. The headers are checked afterwards; from the first that is not as expected, the bytes are put
        aside and read again in the general way.
        """
        cdef uint64_t first = self.pdv_left if self.pdv_left < room else room
        cdef uint64_t at = self.data_len + first
        cdef uint64_t window = 0
        # That of a PDU as long as this one: the first fragment may share its PDU with the command set
        cdef uint32_t fragment = self.pdu_length - PDV_HEAD
        cdef int n = 1
        cdef int i, code
        cdef int64_t r
        cdef size_t got, part, take
        cdef unsigned char *head
        cdef uint32_t length
        self.ahead_at = self.ahead_end = 0
        self.in_iov[0].iov_base = self.data_at + self.data_len
        self.in_iov[0].iov_len = <size_t>first
        if first == self.pdv_left and self.pdu_left == self.pdv_left and not self.fragment_is_last and fragment:
            while n + 2 <= IOVS and at < self.data_size and window < WINDOW:
                self.in_iov[n].iov_base = &self.in_heads[HEAD * (n >> 1)]
                self.in_iov[n].iov_len = HEAD
                self.in_iov[n + 1].iov_base = self.data_at + at
                part = fragment
                if part > self.data_size - at:
                    part = <size_t>(self.data_size - at)
                self.in_iov[n + 1].iov_len = part
                at += part
                window += HEAD + part
                n += 2
        r = self._recvv(self.in_iov, n)
        code = self._got(r)
        if code != R_OK:
            return code
        got = <size_t>r
        take = got if got < first else <size_t>first
        self._took(take)
        got -= take
        i = 1
        while got > 0:
            # The fragment before is complete here, and was not the last one.
            code = self._fragment_done()
            head = &self.in_heads[HEAD * (i >> 1)]
            if got < HEAD:
                return self._keep(head, got)
            length = fp_get32(head + 2)
            part = self.in_iov[i + 1].iov_len
            if (
                head[0] != 4
                or fp_get32(head + 6) != length - 4
                or length < 6
                or length - 6 > fragment
                or self._check_header(head) != R_OK
                or head[11] & 1
            ):
                return self._put_aside(i, 0, got)
            self.pdu_length = self.pdu_left = length
            code = self._open_fragment(length - 4, head[10], head[11], False)
            if code != R_OK:
                return code
            got -= HEAD
            if part > got:
                part = got
            take = part if part < self.pdv_left else self.pdv_left
            self._took(take)
            got -= take
            if self.pdv_left > 0:
                return R_OK
            if self.fragment_is_last or take < part:
                # A shorter fragment, or the end of the message: what was read beyond it is not in its place.
                return self._put_aside(i + 1, take, got)
            i += 2
        return R_OK

    cdef int _put_aside(self, int i, size_t offset, size_t n) noexcept nogil:
        """Keep `n` bytes of the read vector, from `offset` of entry `i` on."""
        cdef size_t part
        cdef int code
        while n > 0:
            part = self.in_iov[i].iov_len - offset
            if part > n:
                part = n
            code = self._keep(<const unsigned char *>self.in_iov[i].iov_base + offset, part)
            if code != R_OK:
                return code
            n -= part
            offset = 0
            i += 1
        return R_OK

    cdef int _step(self) noexcept nogil:
        """One step of the receiver, without blocking."""
        cdef int code
        if self.in_fragment:
            if self.pdv_left > 0:
                code = self._take_command() if self.fragment_is_command else self._take_data()
                if code != R_OK:
                    return code
                if self.pdv_left > 0 or not self.in_fragment:
                    return R_OK
            return self._fragment_done()
        if self.partial_due and not self.partial_told:
            return R_PARTIAL
        if self.complete:
            if self.pdu_left > 0:
                return self._broke(5, "a second message in one P-DATA-TF PDU")
            code = self._flush_sink()
            return R_MESSAGE if code == R_OK else code
        if self.pdu_left > 0:
            return self._pdv_header()
        return self._pdu_header()

    cdef int _advance(self, int64_t deadline, bint block, bint awaited) noexcept nogil:
        """Run the receiver until something is to be said or done under the GIL."""
        cdef int code
        cdef int64_t until
        cdef bint idle
        if self.sink_due:
            code = self._make_sink()
            if code != R_OK:
                return code
        while True:
            code = self._step()
            if code == R_OK:
                continue
            if code != R_ERRNO or self.failure != EAGAIN:
                return code
            idle = not self._in_progress()
            if idle:
                self.pdu_began = 0
                until = deadline
            else:
                until = -1
                if self.c_pdu_timeout >= 0 and self.pdu_began:
                    until = self.pdu_began + <int64_t>(self.c_pdu_timeout * 1e9)
                    if left(until) == 0:
                        return self._broke(0, "the peer stalled in the middle of a message")
            if not block:
                self.starved = True
                return R_TIMEOUT
            if self._tells_now():
                return R_COMMAND
            code = self._wait_readable(left(until), awaited or not idle)
            if code == R_READY:
                continue
            if code == R_TIMEOUT and not idle:
                return self._broke(0, "the peer stalled in the middle of a message")
            return code

    cdef bint _tells_now(self) noexcept nogil:
        """Whether to tell now that nothing has come of a message but its command set: once, if nobody else receives."""
        if (
            not self.tells_command or self.command_told or not self.command_done or self.complete
            or self.partial_due or self.data_total > 0 or receiving > 1
        ):
            return False
        self.command_told = True
        return True

    cdef bint _in_progress(self) noexcept nogil:
        """Whether a PDU or message has begun."""
        return self.in_msg or self.pdu_left > 0 or self.ahead_at != self.ahead_end

    cdef int _grow(self) except -1:
        """Make room for more of the data set: as much again as has arrived."""
        cdef uint64_t size
        if self.data == NULL:
            size = self.guess if self.guess > FIRST_DATA else FIRST_DATA
            self.data = new_bytes(NULL, <Py_ssize_t>size)
        else:
            size = self.data_size + (self.data_size if self.data_size < MAX_GROWTH else MAX_GROWTH)
            _PyBytes_Resize(&self.data, <Py_ssize_t>size)
        self.data_size = size
        self.data_at = <unsigned char *>bytes_at(self.data)
        return 0

    cdef Message _take(self):
        """Return the complete message and forget it here."""
        cdef Message message = self._describe()
        if self.data != NULL:
            if self.data_len != self.data_size:
                _PyBytes_Resize(&self.data, <Py_ssize_t>self.data_len)
            message.data = <bytes><object>self.data
            Py_XDECREF(self.data)
            self.data = NULL
            self.guess = self.data_len if self.data_len < MAX_GUESS else MAX_GUESS
        elif not self.fragment_is_command and not self.sinking:
            message.data = b""  # a data set came, and was empty
        self.messages_received += 1
        self.gap = 0
        notice_message(<void *>self)
        self._forget()
        return message

    cdef Message _describe(self):
        cdef Message message = Message.__new__(Message)
        message.context_id = self.context
        message.command = PyBytes_FromStringAndSize(<char *>self.command, <Py_ssize_t>self.command_len)
        message.length = self.data_total
        message.error = self.sink_error
        return message

    cdef void _forget(self) noexcept:
        self.in_msg = self.in_fragment = False
        self.command_done = self.command_told = self.complete = self.partial_due = self.partial_told = False
        self.is_interim = False
        self.pdv_left = 0
        self.command_len = 0
        self.data_len = self.data_size = self.data_total = 0
        self._give_back()
        self.sinking = self.drains = False
        self.sink_error = 0
        self.pdu_began = 0 if self.ahead_at == self.ahead_end else self.pdu_began
        self._trim_ahead()

    @property
    def partial(self):
        """The message of which `receive` has told PARTIAL or COMMAND, as far as it is known."""
        if not self.partial_due and not self.command_told:
            raise RuntimeError("no message waits for a sink, or for its data set")
        return self._describe()

    def receive(self, timeout=None, *, bint awaited=False):
        """Receive one whole DIMSE message (PS3.7 6.3, PS3.8 Annex E).

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for the first byte; None for ever, 0 to take what is there. A message that has begun
            must go on within `pdu_timeout`.
        awaited : bool, optional
            As for `wait`, about the first byte.

        Returns
        -------
        Message or int
            The message, or OTHER, WAKE, TIMEOUT, PARTIAL, COMMAND.

        Raises
        ------
        ProtocolError
            If the peer breaks the protocol.
        PeerClosed
            If the connection ends.
        OSError
            If the socket fails, the sink cannot be written, or the connection is closed on our side.
        """
        global receiving
        cdef int64_t deadline = deadline_of(timeout)
        cdef bint block = timeout is None or timeout > 0
        cdef int code
        self._enter()
        receiving += 1
        try:
            if self.sinking:
                code = R_OK
                if self.sink_due and not FP_HAVE_FD:
                    code = self._make_sink_with_gil()
                if code == R_OK:
                    with nogil:
                        code = self._advance(deadline, block, awaited)
            else:
                # What is there already, up to the data set: that cannot block, and is not much
                code = self._advance(deadline, False, awaited)
            while True:
                if code == R_MESSAGE:
                    return self._take()
                if code == R_GROW:
                    self._grow()
                elif code == R_TIMEOUT and block and (deadline < 0 or left(deadline) > 0 or self._in_progress()):
                    if self._tells_now():
                        return COMMAND
                elif self.closing:
                    raise OSError(errno.EBADF, "the connection is closed")
                elif code == R_WAKE:
                    self._woken()
                    return WAKE
                elif code == R_TIMEOUT:
                    return TIMEOUT
                elif code == R_OTHER:
                    return OTHER
                elif code == R_PARTIAL:
                    return PARTIAL
                elif code == R_COMMAND:
                    return COMMAND
                else:
                    self._raise(code)
                with nogil:
                    code = self._advance(deadline, block, awaited)
        finally:
            receiving -= 1
            self._leave()

    def receive_pdu(self):
        """Take one whole PDU of any type from the stream; never blocks.

        Returns
        -------
        bytes or None
            The PDU with its 6-byte header; None if it is not complete yet.

        Raises
        ------
        ProtocolError
            If its header is not acceptable.
        PeerClosed
            If the connection ends.
        RuntimeError
            If `receive` has begun a message.
        """
        cdef size_t n, want
        cdef int code = R_OK
        cdef bytes pdu
        if self.in_msg or self.pdu_left:
            raise RuntimeError("a message is in progress")
        self._enter()
        try:
            while True:
                n = self.ahead_end - self.ahead_at
                want = 6
                if n >= 6:
                    code = self._check_header(self.ahead + self.ahead_at)
                    if code != R_OK:
                        self._raise(code)
                    want = 6 + <size_t>fp_get32(self.ahead + self.ahead_at + 2)
                if n >= want:
                    pdu = PyBytes_FromStringAndSize(<char *>self.ahead + self.ahead_at, <Py_ssize_t>want)
                    self.ahead_at += want
                    self._count_pdu(<uint32_t>(want - 6))
                    self.pdu_began = 0 if self.ahead_at == self.ahead_end else fp_now()
                    self._trim_ahead()
                    return pdu
                with nogil:
                    code = self._read_exactly(want)
                if code == R_ERRNO and self.failure == EAGAIN:
                    self.starved = True
                    return None
                if code != R_OK:
                    self._raise(code)
        finally:
            self._leave()

    def set_sink(self, sink, head=b"", *, bint drain=False):
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
        MemoryError
            If there is no memory for a buffer.
        """
        cdef bytes begin = bytes(head)
        cdef size_t n = len(begin)
        cdef NewFile file = sink if isinstance(sink, NewFile) else None
        cdef int fd = file.fd if file is not None else sink
        if not self.partial_due or self.partial_told:
            raise RuntimeError("no message waits for a sink")
        if n > C_MAX_SINK_HEAD:
            raise ValueError(f"the head of a sink has at most {C_MAX_SINK_HEAD} bytes, not {n}")
        if file is not None and (file.is_lent or file.is_closed):
            raise ValueError("the file is closed, or the sink of another message")
        self.sinking = fd >= 0 or drain or file is not None
        if self.sinking:
            if self.sink_buffer == NULL:
                self.sink_buffer = <unsigned char *>fp_malloc_page(SINK)
                if self.sink_buffer == NULL:
                    self.sinking = False
                    raise MemoryError
            memcpy(self.sink_buffer, PyBytes_AsString(begin), n)
            self.data_at = self.sink_buffer
            self.data_len = n
            self.data_size = SINK
        self.sink = fd if fd >= 0 else -1
        self.sink_file = file
        if file is not None:
            file.is_lent = True
            self.sink_due = fd < 0
        self.drains = drain
        self.partial_told = True

    def drop_message(self):
        """Forget the message in progress; what was read ahead of it stays (an A-ABORT, for instance)."""
        Py_XDECREF(self.data)
        self.data = NULL
        self.pdu_left = 0
        self._forget()

    def abandon(self):
        """Forget the message or PDU in progress, and what was read ahead."""
        self.ahead_at = self.ahead_end = 0
        self.drop_message()

    # ------------------------------------------------------------------------------- sending
    cdef int64_t _write_once(self) noexcept nogil:
        """Offer the vectors to the kernel once: bytes taken, or a negative errno."""
        cdef int64_t r = self._sendv(&self.out_iov[self.out_at], self.out_count - self.out_at)
        cdef int64_t rest = r
        self.send_calls += 1
        if r <= 0:
            return r
        self.bytes_sent += <uint64_t>r
        self.out_sent += <uint64_t>r
        self.send_waits.current = 0
        while self.out_at < self.out_count and <size_t>rest >= self.out_iov[self.out_at].iov_len:
            rest -= <int64_t>self.out_iov[self.out_at].iov_len
            self.out_at += 1
        if self.out_at < self.out_count:
            self.out_iov[self.out_at].iov_base = <char *>self.out_iov[self.out_at].iov_base + rest
            self.out_iov[self.out_at].iov_len -= <size_t>rest
        return r

    cdef int _flush(self, int64_t patience) noexcept nogil:
        """Hand the vectors to the kernel; `patience` ns without progress are too long (negative: never)."""
        cdef int64_t r
        cdef int code
        while self.out_at < self.out_count:
            r = self._write_once()
            if r >= 0:
                continue
            if r == -EAGAIN:
                self._leave_turn()
                self._uncork()
                code = self._wait_writable(patience)
                if code == R_READY:
                    continue
            else:
                code = self._failed(r)
            if code == R_SIGNAL:
                self._leave_turn()
                code = self._run_signal_handlers()
                if code == R_OK:
                    continue
            self._clear_vectors()
            return code
        self._clear_vectors()
        return R_OK

    cdef void _leave_turn(self) noexcept nogil:
        if self.turn >= 0:
            PyThread_release_lock(turns[self.turn])
            self.turn = -1

    cdef void _linger_in_turn(self, int turn, int64_t began, int64_t timeout) noexcept nogil:
        """Linger for an answer, and keep the turn until then, but not for long: the peer may have a lot to do."""
        cdef int64_t now = fp_now()
        cdef int64_t hold = HOLD * (now - began)
        cdef int64_t until = -1 if timeout < 0 else now + timeout
        cdef int code = R_TIMEOUT
        if turn >= 0:
            if hold > MAX_HOLD:
                hold = MAX_HOLD
            code = self._linger(hold if timeout < 0 or hold < timeout else timeout, True)
            PyThread_release_lock(turns[turn])
        if code == R_TIMEOUT:
            self._linger(left(until), True)

    cdef int _flush_part(self, int64_t patience) noexcept nogil:
        """`_flush`, and more of the same message follows."""
        if self.cork:
            self._cork()
        return self._flush(patience)

    cdef int _flush_rest(self, int64_t patience) noexcept nogil:
        """`_flush` the end of a message."""
        if not FP_CORK_PUSHES:
            self._uncork()
        elif self.cork and self._takes_several_calls():
            self._cork()
        return self._flush(patience)

    cdef void _cork(self) noexcept nogil:
        if not self.corked:
            self.corked = True
            fp_cork(self.fd, 1)

    cdef void _uncork(self) noexcept nogil:
        """Let go what is held back: before each wait, and at the end of a message, whatever has come of it."""
        if self.corked:
            self.corked = False
            fp_cork(self.fd, 0)

    cdef void _clear_vectors(self) noexcept nogil:
        self.out_at = self.out_count = self.out_heads_count = 0

    cdef int _run_signal_handlers(self) noexcept nogil:
        with gil:
            try:
                PyErr_CheckSignals()
            except BaseException as error:
                self.raised = error
                return R_RAISED
        return R_OK

    cdef int _frame(
        self, int context, int control, Py_buffer *views, uint64_t total, bint ends, uint32_t fragment, int64_t patience
    ) noexcept nogil:
        """Put `total` bytes of the command set (control 1) or the data set (0) into the vectors, as P-DATA-TF PDUs.

        The vectors are flushed whenever they are full. `ends`: the last fragment is the last of the set (PS3.8 E.2).
        If `pack_due`, the last PDU of the command set has room for `packed` bytes of the data set, which go there.
        """
        cdef int i = 0
        cdef size_t offset = 0
        cdef size_t part
        cdef uint32_t rest
        cdef unsigned char *head
        cdef bint beside
        cdef int code
        while total > 0:
            if self.out_count + 2 > IOVS:
                code = self._flush_part(patience)
                if code != R_OK:
                    return code
            beside = self.pack_due and control == 0
            if beside:
                rest = self.packed
                self.pack_due = False
            else:
                rest = fragment if total > fragment else <uint32_t>total
            total -= rest
            head = &self.out_heads[HEAD * self.out_heads_count]
            self.out_heads_count += 1
            head[0] = 4
            head[1] = 0
            fp_put32(head + 2, rest + 6 + (self.packed + PDV_HEAD if self.pack_due and total == 0 else 0))
            fp_put32(head + 6, rest + 2)
            head[10] = <unsigned char>context
            head[11] = <unsigned char>(control | (2 if total == 0 and ends else 0))
            # Beside the command set there is a PDU header already
            self.out_iov[self.out_count].iov_base = head + HEAD - PDV_HEAD if beside else head
            self.out_iov[self.out_count].iov_len = PDV_HEAD if beside else HEAD
            self.out_count += 1
            if not beside:
                self.pdus_sent += 1
                if fp_get32(head + 2) > self.largest_pdu_sent:
                    self.largest_pdu_sent = fp_get32(head + 2)
            while rest > 0:
                part = <size_t>views[i].len - offset
                if part == 0:
                    i += 1
                    offset = 0
                    continue
                if self.out_count == IOVS:
                    code = self._flush_part(patience)
                    if code != R_OK:
                        return code
                if part > rest:
                    part = rest
                self.out_iov[self.out_count].iov_base = <char *>views[i].buf + offset
                self.out_iov[self.out_count].iov_len = part
                self.out_count += 1
                offset += part
                rest -= <uint32_t>part
        return R_OK

    cdef int _send_message(
        self, int context, Outgoing command, Outgoing data, uint32_t fragment, int64_t patience
    ) noexcept nogil:
        cdef int code = self._frame_message(context, command, data, fragment, patience)
        return self._flush_rest(patience) if code == R_OK else code

    cdef int _frame_message(
        self, int context, Outgoing command, Outgoing data, uint32_t fragment, int64_t patience
    ) noexcept nogil:
        cdef int code = self._frame(context, 1, command.views, command.total, True, fragment, patience)
        if code == R_OK:
            code = self._frame(context, 0, data.views, data.total, True, fragment, patience)
        return code

    cdef bint _sent_at_once(self, int context, Outgoing command, Outgoing data, uint32_t fragment) noexcept:
        """Send a small message with one system call that cannot block, and say whether it has left.

        Releasing the GIL for these few microseconds would hand it to the very thread that the message wakes, in this
        process, and cost more than it gives (docs/measurements.md).
        """
        if command.total + data.total > SMALL or command.total > fragment or data.total > fragment or data.count > 8:
            return False
        self._frame_message(context, command, data, fragment, 0)
        self._write_once()
        return self.out_at == self.out_count

    cdef int _send_from_file(
        self, int context, Outgoing command, int fd, int64_t offset, uint64_t length, uint32_t fragment,
        int64_t patience, bint in_turn,
    ) noexcept nogil:
        # Whole fragments, so that the data set is framed as if it were in one piece
        cdef size_t whole = fragment * ((self.read_chunk + fragment - 1) // fragment)
        cdef Chunk chunk
        cdef int code
        chunk.at = NULL
        if length > 0:
            # Before anything leaves
            chunk = take_chunk(FP_PAGE + (whole + self.packed if whole + self.packed < length else <size_t>length))
            if chunk.at == NULL:
                return R_NOMEM
        code = self._frame(context, 1, command.views, command.total, True, fragment, patience)
        if code == R_OK and length >= self.early and not self.packed and not self.cork and sending == 1:
            # The receiver can deal with the command set while the file is read
            code = self._flush(patience)
        if code == R_OK and length > 0:
            code = self._send_chunks(context, chunk.at, whole, fd, offset, length, fragment, patience, in_turn)
        elif code == R_OK:
            code = self._flush_rest(patience)
        give_chunk(chunk)
        return code

    cdef int _send_chunks(
        self, int context, unsigned char *chunk, size_t whole, int fd, int64_t offset, uint64_t length,
        uint32_t fragment, int64_t patience, bint in_turn,
    ) noexcept nogil:
        """Send a range of a file through a buffer of `whole` bytes, what is packed beside the command set, and a page.

        `in_turn`: whether the end of it has to wait for its turn. (A file of many chunks would keep others waiting.)
        """
        cdef size_t size = whole + self.packed
        cdef size_t got
        cdef int64_t r
        cdef Py_buffer view
        cdef unsigned char *at
        cdef int code = R_OK
        while code == R_OK and length > 0:
            if size > length:
                size = <size_t>length
            # As far into its page as in the file
            at = chunk + offset % FP_PAGE
            got = 0
            while got < size:
                r = fp_pread(fd, at + got, size - got, offset)
                if r <= 0:
                    # The PDUs that are in the vectors already must not leave alone
                    self._clear_vectors()
                    self.failure = <int>-r
                    return R_FILE
                got += <size_t>r
                offset += r
            length -= size
            if length == 0 and in_turn:
                self.turn = take_turn(next_turn)
                self.turn_began = fp_now()
                if self.cancelled or self.closing:
                    self._clear_vectors()
                    return R_CANCELLED
            view.buf = at
            view.len = <Py_ssize_t>size
            code = self._frame(context, 0, &view, size, length == 0, fragment, patience)
            if code == R_OK:
                code = self._flush_part(patience) if length > 0 else self._flush_rest(patience)
            size = whole
        return code

    cdef int _check_send(self, object context_id, Outgoing command, object max_pdu) except -1:
        if not isinstance(context_id, int) or not 0 < context_id < 256 or context_id % 2 == 0:
            raise ValueError(f"context_id must be an odd number from 1 to 255, not {context_id!r}")
        if command.count != 1 or command.total == 0:
            raise ValueError("the command set must be one buffer, and not an empty one")
        if not isinstance(max_pdu, int) or max_pdu < 0 or 0 < max_pdu < 7:
            raise ValueError(f"max_pdu must be 0 (unlimited) or at least {MIN_PDU}, not {max_pdu!r}")
        return 0

    cdef uint32_t _fragment(self, object max_pdu) except 0:
        """Return the fragment size under a maximum length (PS3.8 D.1), even where that is possible (E.1)."""
        cdef uint32_t size
        if max_pdu == 0:
            return C_UNLIMITED_FRAGMENT
        size = C_MAX_FRAGMENT if max_pdu - 6 > C_MAX_FRAGMENT else max_pdu - 6
        return size & ~(<uint32_t>1) if size > 1 else size

    cdef void _pack(self, uint64_t command, uint64_t data, uint32_t fragment) noexcept:
        """Decide how much of the data set goes into the last PDU of the command set (PS3.8 E.1)."""
        cdef uint32_t rest = <uint32_t>((command - 1) % fragment) + 1
        self.packed = 0
        if self.pack_command and data > 0 and fragment - rest >= PDV_HEAD + 2:
            self.packed = (fragment - rest - PDV_HEAD) & ~(<uint32_t>1)
            if self.packed > data:
                self.packed = <uint32_t>data
        self.pack_due = self.packed > 0

    cdef int _lock_sends(self) except -1:
        """Wait until nobody else sends."""
        cdef int got = PyThread_acquire_lock_timed(self.send_lock, 0, 0)
        while got != PY_LOCK_ACQUIRED:
            with nogil:
                got = PyThread_acquire_lock_timed(self.send_lock, -1, 1)
            if got == PY_LOCK_INTR:
                PyErr_CheckSignals()
        return 0

    cdef int _begin_send(self, bint message) except -1:
        """Have the connection for a send. `_finish_send` or the caller gives the lock back; the caller, `_leave`."""
        self._lock_sends()
        if message:
            self.gap = 0
        try:
            self._prepare_send(message)
        except BaseException:
            PyThread_release_lock(self.send_lock)
            raise
        return 0

    cdef int _prepare_send(self, bint message) except -1:
        if message and self.held:
            raise Cancelled("no message may be sent now")
        if self.send_broken:
            raise PeerClosed(0, 0, "an earlier PDU was cut while it was sent")
        self._enter()
        self._clear_cancel()
        self.out_sent = 0
        self._clear_vectors()
        return 0

    cdef uint64_t _finish_send(self, uint64_t before) noexcept nogil:
        """A message has been sent: the next one may be. Returns how many PDUs it took."""
        cdef uint64_t pdus = self.pdus_sent - before
        self._uncork()
        self.messages_sent += 1
        PyThread_release_lock(self.send_lock)
        return pdus

    cdef int _send_failed(self, int code, uint64_t command, uint64_t data, uint32_t fragment) except -1:
        """Raise what `code` stands for, having found out whether a PDU has been cut."""
        cdef uint64_t step = fragment + HEAD
        cdef uint64_t command_bytes = command + HEAD * ((command + fragment - 1) // fragment)
        cdef uint64_t data_bytes
        cdef uint64_t at = self.out_sent
        self._uncork()
        if self.packed:
            command_bytes += PDV_HEAD + self.packed
            data -= self.packed
        data_bytes = data + HEAD * ((data + fragment - 1) // fragment)
        if at > command_bytes:
            at -= command_bytes
            self.send_broken = at != data_bytes and at % step != 0
        else:
            self.send_broken = at != command_bytes and at % step != 0
        self.send_broken = self.send_broken or self._half_written()
        return self._raise(code)

    def send(self, context_id, command, data=(), *, max_pdu, timeout=None, linger=0, yields=None):
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
            Seconds for which to wait afterwards, still without the GIL, until there is something to read: for who will
            read the answer next. What came of it is not told.
        yields : float, optional
            For who has nothing urgent to do next: release the GIL even for a small message, so that the thread that it
            wakes in this process, if there is one, can go on, and if there is nothing to `linger` for, wait so many
            seconds in the same way. That is not waiting for the peer: `yielded_ns` counts it. Ignored while other
            threads of the process are in `receive`, and if there is something to read already.

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
        PeerClosed, OSError
            If the connection fails.
        Cancelled
            If `cancel` was called.
        """
        cdef Outgoing head = Outgoing(command)
        cdef Outgoing body = Outgoing(data)
        cdef int64_t patience = patience_of(timeout)
        cdef int64_t wait = patience_of(linger)
        cdef int64_t yielding = 0 if yields is None else patience_of(yields)
        cdef bint awaited = wait != 0
        cdef bint at_once = yields is None
        cdef uint32_t fragment
        cdef int context
        cdef int code = R_OK
        cdef uint64_t pdus
        cdef bint locked = True
        if receiving > 0 or not at_once and self._has_more():
            # Others want the GIL as it is, or there is something to do for us
            at_once = True
        elif not awaited:
            wait = yielding
        self._check_send(context_id, head, max_pdu)
        fragment = self._fragment(max_pdu)
        context = context_id
        self._begin_send(True)
        try:
            pdus = self.pdus_sent
            self._pack(head.total, body.total, fragment)
            if at_once and self._sent_at_once(context, head, body, fragment):
                pdus = self._finish_send(pdus)
                locked = False
                if wait:
                    with nogil:
                        self._linger(wait, awaited)
            else:
                self._make_cancellable()
                with nogil:
                    # There may be the rest of a small one
                    if self.out_count:
                        code = self._flush(patience)
                    else:
                        code = self._send_message(context, head, body, fragment, patience)
                    if code == R_OK:
                        pdus = self._finish_send(pdus)
                        locked = False
                        self._linger(wait, awaited)
                if code != R_OK:
                    self._send_failed(code, head.total, body.total, fragment)
        finally:
            if locked:
                PyThread_release_lock(self.send_lock)
            self._leave()
        return pdus

    def send_file(self, context_id, command, int fd, offset, length, *, max_pdu, timeout=None, linger=0):
        """Send one whole DIMSE message whose data set is a range of a file.

        Parameters
        ----------
        context_id : int
            The presentation context ID, odd, 1 to 255.
        command : bytes-like
            The encoded command set.
        fd : int
            A descriptor of the file, open for reading. Its position is neither used nor changed.
        offset, length : int
            The range in bytes.
        max_pdu : int
            The peer's maximum length (PS3.8 D.1); 0 means unlimited.
        timeout : float, optional
            Seconds without progress after which to give up; None for never.
        linger : float, optional
            Seconds for which to wait afterwards, still without the GIL, until there is something to read: for who will
            read the answer next. What came of it is not told.

        Returns
        -------
        int
            The number of PDUs sent.

        Raises
        ------
        FileError
            If the file is shorter than `offset` + `length`, or cannot be read.
        ValueError, TimeoutError, PeerClosed, OSError, Cancelled
            As for `send`.
        """
        global sending, next_turn
        cdef bint in_turn
        cdef int turn
        cdef int64_t began
        cdef Outgoing head = Outgoing(command)
        cdef int64_t patience = patience_of(timeout)
        cdef int64_t wait = patience_of(linger)
        cdef int64_t begin
        cdef uint64_t size
        cdef uint32_t fragment
        cdef int context, code
        cdef uint64_t pdus
        cdef bint locked = True
        self._check_send(context_id, head, max_pdu)
        if offset < 0 or length < 0:
            raise ValueError(f"offset and length must not be negative: {offset!r}, {length!r}")
        fragment = self._fragment(max_pdu)
        context = context_id
        begin = offset
        size = length
        self._begin_send(True)
        sending += 1
        next_turn += 1
        if giving_way > 0 and size >= EARLY:
            fp_wake_set(way_ends[1])
        in_turn = sending > C_TURNS and wait != 0 and size >= self.early and not self.cork
        try:
            pdus = self.pdus_sent
            self._pack(head.total, size, fragment)
            self._make_cancellable()
            with nogil:
                code = self._send_from_file(context, head, fd, begin, size, fragment, patience, in_turn)
                if code != R_OK:
                    self._leave_turn()
                else:
                    # Others may send as soon as this one has finished
                    turn = self.turn
                    self.turn = -1
                    began = self.turn_began
                    pdus = self._finish_send(pdus)
                    locked = False
                    if in_turn:
                        self._linger_in_turn(turn, began, wait)
                    else:
                        self._linger(wait, True)
            if code != R_OK:
                self._send_failed(code, head.total, size, fragment)
        finally:
            sending -= 1
            if locked:
                PyThread_release_lock(self.send_lock)
            self._leave()
        return pdus

    def send_bytes(self, data, *, timeout=None):
        """Send ready-made PDUs.

        Parameters
        ----------
        data : bytes-like
            One or more whole PDUs.
        timeout : float, optional
            Seconds without progress after which to give up; None for never.

        Raises
        ------
        TimeoutError, PeerClosed, OSError, Cancelled
            As for `send`.
        """
        cdef Outgoing body = Outgoing(data)
        cdef int64_t patience = patience_of(timeout)
        cdef int code
        if body.count != 1:
            raise TypeError("send_bytes takes one bytes-like object")
        self._begin_send(False)
        try:
            if body.total == 0:
                return
            self.out_iov[0].iov_base = body.views[0].buf
            self.out_iov[0].iov_len = <size_t>body.views[0].len
            self.out_count = 1
            self._make_cancellable()
            with nogil:
                code = self._flush(patience)
            if code != R_OK:
                self.send_broken = self.out_sent > 0
                self._raise(code)
            self._count_sent(<unsigned char *>body.views[0].buf, <size_t>body.views[0].len)
        finally:
            PyThread_release_lock(self.send_lock)
            self._leave()

    cdef void _count_sent(self, const unsigned char *p, size_t n) noexcept nogil:
        """Count ready-made PDUs; what is no whole PDU counts as one."""
        cdef uint64_t size
        while n > 0:
            size = 6 + <uint64_t>fp_get32(p + 2) if n >= 6 else n
            if size > n:
                size = n
            self.pdus_sent += 1
            if size > 6 and size - 6 > self.largest_pdu_sent:
                self.largest_pdu_sent = <uint32_t>(size - 6)
            p += size
            n -= size

    # ------------------------------------------------------------------------------- control
    def wake(self):
        """Make a blocked `wait` or `receive`, or the next one, return WAKE. Any thread may call it."""
        if self.closing or self.is_closed or self.wake_pending:
            return
        self.wake_pending = True
        self._set_wake()

    def hold(self):
        """Let no new message begin: `send` and `send_file` raise Cancelled until `resume`. Any thread may call it."""
        self.held = True

    def cancel(self):
        """Hold, and make a blocked send raise Cancelled. `send_bytes` works afterwards. Any thread may call it."""
        self.held = True
        self.cancelled = True
        if not self.closing:
            self._set_cancel()

    def resume(self):
        """Let messages be sent again."""
        self.held = False

    def close(self):
        """Give up the descriptor. Blocked calls end; idempotent, from any thread."""
        if self.closing:
            return
        self.last_tcp_info = self.tcp_info()
        self.closing = True
        if self.users:
            self._set_wake()
            self._set_cancel()
        else:
            self._release()

    def tcp_info(self):
        """Return what the kernel knows about the connection; after `close`, what it knew then.

        Returns
        -------
        bytes or None
            Linux's ``struct tcp_info`` (tcp(7)), as long as this kernel has it. None elsewhere, and if this is not TCP.
        """
        cdef unsigned char buffer[TCP_INFO_SIZE]
        cdef int size
        if self.closing or self.is_closed:
            return self.last_tcp_info
        size = fp_tcp_info(self.fd, buffer, TCP_INFO_SIZE)
        return PyBytes_FromStringAndSize(<char *>buffer, size) if size > 0 else None

    @property
    def send_blocked_ns(self):
        """Nanoseconds for which sends were blocked."""
        return self.send_waits.total

    @property
    def send_stalls(self):
        """Waits of sends of `STALL_NS` or more."""
        return self.send_waits.stalls

    @property
    def longest_send_wait_ns(self):
        """Nanoseconds of the longest wait of a send."""
        return self.send_waits.longest

    @property
    def peer_wait_ns(self):
        """Nanoseconds for which the peer was waited for: for an answer, or for the rest of a message or PDU."""
        return self.peer_waits.total

    @property
    def peer_stalls(self):
        """Waits for the peer of `STALL_NS` or more."""
        return self.peer_waits.stalls

    @property
    def longest_peer_wait_ns(self):
        """Nanoseconds of the longest wait for the peer."""
        return self.peer_waits.longest

    @property
    def closed(self):
        """Whether `close` was called."""
        return bool(self.closing)

    @property
    def pdu_timeout(self):
        """Seconds from a PDU's first byte to its last, or None."""
        return None if self.c_pdu_timeout < 0 else self.c_pdu_timeout

    @pdu_timeout.setter
    def pdu_timeout(self, value):
        patience_of(value)
        self.c_pdu_timeout = -1 if value is None or value > 4e9 else value

    @property
    def split_commands(self):
        """Command fields whose data set goes to a sink: `receive` tells PARTIAL for them."""
        return self.c_split

    @split_commands.setter
    def split_commands(self, fields):
        cdef int field
        cdef int i
        fields = frozenset(fields)
        for i in range(8192):
            self.split_map[i] = 0
        for value in fields:
            if not 0 <= value <= 0xFFFF:
                raise ValueError(f"not a command field: {value!r}")
            field = value
            self.split_map[field >> 3] |= 1 << (field & 7)
        self.c_split = fields
        self.split_any = bool(fields)

    @property
    def in_message(self):
        """Whether a part of a message, more than of its first header, has been received."""
        return bool(self.in_msg or self.pdu_left)

    @property
    def in_pdu(self):
        """Whether a part of a PDU has been received."""
        return bool(self.pdu_left or self.in_fragment or self.ahead_at != self.ahead_end)

    @property
    def buffered(self):
        """Bytes read ahead."""
        return self.ahead_end - self.ahead_at

    @property
    def pdu_age(self):
        """Seconds since the PDU in progress began, 0.0 if there is none."""
        if not self.pdu_began or not self.in_pdu:
            return 0.0
        return (fp_now() - self.pdu_began) / 1e9


@cython.final
cdef class FdConnection(Connection):
    """A plain TCP (or Unix) socket on POSIX: system calls on our own duplicate of the descriptor."""

    def __init__(self, sock):
        if not FP_HAVE_FD:
            raise OSError(errno.ENOSYS, "FdConnection needs a POSIX platform: use SocketConnection")
        super().__init__(sock)

    cdef int64_t _recvv(self, fp_iov *v, int n) noexcept nogil:
        return fp_recvv(self.fd, v, n)

    cdef int64_t _sendv(self, fp_iov *v, int n) noexcept nogil:
        return fp_sendv(self.fd, v, n)


cdef object make_pair():
    import socket
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


cdef void signal_pair(object pair) noexcept:
    try:
        pair[1].send(b"w")
    except OSError:
        pass  # full: the signal is there already


cdef void drain_pair(object pair) noexcept:
    try:
        pair[0].recv(64)
    except OSError:
        pass


@cython.final
cdef class SocketConnection(Connection):
    """Any object with recv_into, send and fileno: TLS, Windows, and whatever wraps a socket.

    The socket is switched to non-blocking mode. A TLS object is not used by two threads at once.
    """

    cdef object sock, read, recv_into, write
    cdef object io_lock
    cdef object pending
    cdef object wake_pair, cancel_pair  # socket pairs, where there is no better wake-up
    cdef object stage, inbox  # what is written and read, as views of byte arrays
    cdef char *stage_bytes
    cdef char *inbox_bytes
    cdef size_t stage_size, stage_at, staged, inbox_size, inbox_at, inbox_begin, inbox_end
    cdef bint is_plain_tls  # nobody has replaced how it reads
    cdef bint insists  # the TLS layer wants the same bytes again
    cdef bint drained  # the object has given all that it had
    cdef object late  # an error that came after bytes had
    cdef int extra_events  # what the TLS layer waits for besides the direction asked for

    def __init__(self, sock):
        super().__init__(sock)
        self.sock = sock
        self.recv_into = sock.recv_into
        self.write = sock.send
        self.io_lock = threading.Lock()
        if isinstance(sock, SSLSocket):
            # What those two come to, without the detours: past a lock of the object's own, so under it
            self.read = sock.read
            self.write = sock.write
            self.is_plain_tls = type(sock).read is SSLSocket.read and "read" not in vars(sock)
            self.io_lock = getattr(sock, "io_lock", self.io_lock)
        self.pending = getattr(sock, "pending", None)
        self.read_chunk = STAGE - 64 * 1024  # so that a chunk, framed, is one write
        self.early = UINT64_MAX  # a TLS record for the command set alone costs more than it gives
        if not FP_HAVE_FD:
            self.wake_pair = make_pair()
            self.cancel_pair = make_pair()
        if hasattr(sock, "setblocking"):
            sock.setblocking(False)

    cdef int64_t _status(self, object error) noexcept:
        """Turn an exception of the socket object into a negative errno."""
        if isinstance(error, SSLWantWriteError):
            self.extra_events = FP_OUT
            return -EAGAIN
        if isinstance(error, SSLWantReadError):
            self.extra_events = FP_IN
            return -EAGAIN
        if isinstance(error, (SSLZeroReturnError, SSLEOFError)):
            return 0
        if isinstance(error, BlockingIOError):
            return -EAGAIN
        if isinstance(error, SSLError):
            self.raised = PeerClosed(0, 0, error)
            return RAISED
        if isinstance(error, OSError) and error.errno:
            return -<int64_t>error.errno
        if isinstance(error, ValueError) and self.read is not None and self.sock.fileno() < 0:
            # What a TLS socket says when it has been closed
            return -EBADF
        self.raised = error
        return RAISED

    cdef int64_t _recvv(self, fp_iov *v, int n) noexcept nogil:
        cdef size_t limit = 0
        cdef size_t got, part
        cdef int64_t status
        cdef int i
        for i in range(n):
            limit += v[i].iov_len
        if self.inbox_at == self.inbox_end:
            if self.drained and not self._may_have_more():
                # What asking the object would tell with an exception
                return -EAGAIN
            with gil:
                status = self._fill(limit if limit < INBOX else INBOX)
            if status <= 0:
                return status
        got = self.inbox_end - self.inbox_at
        if got > limit:
            got = limit
        limit = got
        for i in range(n):
            part = v[i].iov_len if v[i].iov_len < got else got
            fp_copy(v[i].iov_base, self.inbox_bytes + self.inbox_at, part)
            self.inbox_at += part
            got -= part
            if got == 0:
                break
        return <int64_t>limit

    cdef bint _may_have_more(self) noexcept nogil:
        """Whether an object that has given all that it had may have something again."""
        return not FP_HAVE_FD or self.extra_events != 0 or fp_poll(self.fd, FP_IN, -1, 0) != 0

    cdef int64_t _fill(self, size_t limit) noexcept:
        """Read up to `limit` bytes into the inbox, one TLS record after the other: more than 0, or as `_recvv`."""
        cdef size_t n
        cdef size_t begin = (self.inbox_begin + SKEW) % FP_PAGE
        cdef size_t end = begin + limit
        self.inbox_begin = self.inbox_at = self.inbox_end = begin
        try:
            if self.late is not None:
                error, self.late = self.late, None
                raise error
            if self.inbox_size < limit:
                self.inbox = memoryview(bytearray(limit + FP_PAGE))
                self.inbox_bytes = PyByteArray_AsString(self.inbox.obj)
                self.inbox_size = limit
            self.drained = False
            with self.io_lock:
                self.extra_events = 0
                read = self.read
                while self.inbox_end < end:
                    if self.is_plain_tls:
                        # As SSLSocket.read does, for each record: once it is closed the descriptor is somebody else's
                        inner = getattr(self.sock, "_sslobj", None)
                        read = self.read if inner is None else inner.read
                    view = self.inbox[self.inbox_end:end]
                    n = self.recv_into(view) if read is None else read(end - self.inbox_end, view)
                    if n > end - self.inbox_end:
                        raise ValueError(f"recv_into tells {n} bytes of a buffer of {end - self.inbox_end}")
                    self.inbox_end += n
                    # After a full record there are mostly more: asking the kernel first would be a waste
                    if 0 < n < RECORD and self.inbox_end < end and not self._may_have_more():
                        self.drained = self.pending is None or self.pending() == 0
                    if n == 0 or self.drained:
                        break
        except BaseException as error:
            if self.inbox_end == begin or not isinstance(error, OSError):
                # What has arrived stays in the inbox
                return self._status(error)
            self.drained = isinstance(error, (SSLWantReadError, BlockingIOError))
            if not self.drained:
                self.late = error
        return <int64_t>(self.inbox_end - begin)

    cdef int64_t _sendv(self, fp_iov *v, int n) noexcept nogil:
        cdef size_t size = 0
        cdef size_t at = 0
        cdef size_t part
        cdef int i
        cdef int64_t status, sent
        if not self.insists:
            for i in range(n):
                size += v[i].iov_len
            if size > STAGE:
                size = STAGE
            if size > self.stage_size:
                with gil:
                    status = self._enlarge_stage(size)
                if status < 0:
                    return status
            self.staged = size
            self.stage_at = (self.stage_at + SKEW) % FP_PAGE
            for i in range(n):
                part = v[i].iov_len if v[i].iov_len < size - at else size - at
                fp_copy(self.stage_bytes + self.stage_at + at, v[i].iov_base, part)
                at += part
                if at == size:
                    break
        with gil:
            try:
                with self.io_lock:
                    self.extra_events = 0
                    self.insists = False
                    sent = self.write(self.stage[self.stage_at:self.stage_at + self.staged])
                if not 0 <= sent <= <int64_t>self.staged:
                    raise ValueError(f"send tells {sent} bytes of a buffer of {self.staged}")
                return sent
            except BaseException as error:
                status = self._status(error)
                self.insists = status == -EAGAIN and isinstance(error, SSLError)
                return -32 if status == 0 else status  # EPIPE

    cdef int64_t _enlarge_stage(self, size_t size) noexcept:
        """Make room for `size` bytes, and not for many more: most of those who only answer never need it."""
        try:
            size = (size + RECORD - 1) & ~(<size_t>RECORD - 1)
            self.stage = memoryview(bytearray(size + FP_PAGE))
            self.stage_bytes = PyByteArray_AsString(self.stage.obj)
            self.stage_size = size
            return 0
        except BaseException as error:
            return self._status(error)

    cdef bint _takes_several_calls(self) noexcept nogil:
        cdef size_t size = 0
        cdef int i
        for i in range(self.out_at, self.out_count):
            size += self.out_iov[i].iov_len
        return size > RECORD

    cdef int _poll(self, int events, int64_t timeout) noexcept nogil:
        cdef int ready
        if FP_HAVE_FD:
            return fp_poll(
                self.fd,
                events | self.extra_events,
                self.wake_ends[0] if events & FP_IN else self.cancel_ends[0],
                timeout,
            )
        with gil:
            ready = self._select(events, events | self.extra_events, timeout)
        return ready

    cdef int _select(self, int purpose, int events, int64_t timeout) noexcept:
        """`fp_poll` for platforms without it."""
        import select
        pair = self.wake_pair if purpose & FP_IN else self.cancel_pair
        readers = [pair[0]]
        if events & FP_IN:
            readers.append(self.sock)
        writers = [self.sock] if events & FP_OUT else []
        try:
            found = select.select(readers, writers, [], None if timeout < 0 else timeout / 1e9)
        except (OSError, ValueError):
            return events
        ready = events if self.sock in found[0] or self.sock in found[1] else 0
        return ready | (FP_WAKE if pair[0] in found[0] else 0)

    cdef void _set_wake(self) noexcept:
        if FP_HAVE_FD:
            fp_wake_set(self.wake_ends[1])
        else:
            signal_pair(self.wake_pair)

    cdef void _clear_wake(self) noexcept:
        if FP_HAVE_FD:
            fp_wake_clear(self.wake_ends[0])
        else:
            drain_pair(self.wake_pair)

    cdef void _set_cancel(self) noexcept:
        if not FP_HAVE_FD:
            signal_pair(self.cancel_pair)
        elif self.cancel_ends[1] >= 0:
            fp_wake_set(self.cancel_ends[1])

    cdef void _clear_cancel(self) noexcept:
        if self.cancelled:
            if not FP_HAVE_FD:
                drain_pair(self.cancel_pair)
            elif self.cancel_ends[0] >= 0:
                fp_wake_clear(self.cancel_ends[0])
        self.cancelled = False

    cdef bint _half_written(self) noexcept:
        return self.insists

    cdef bint _pending(self) noexcept nogil:
        if self.inbox_at != self.inbox_end:
            return True
        if self.drained:
            return False
        with gil:
            if self.late is not None:
                return True
            if self.pending is None:
                return False
            try:
                with self.io_lock:
                    return self.pending() > 0
            except (OSError, ValueError):
                return True


def connect(sock):
    """Return the connection object for a connected socket.

    Parameters
    ----------
    sock : socket.socket
        A connected stream socket, plain or TLS.

    Returns
    -------
    Connection
        FdConnection for a plain socket on POSIX, else SocketConnection.
    """
    import socket
    if FP_HAVE_FD and type(sock) is socket.socket:
        return FdConnection(sock)
    return SocketConnection(sock)


# ----------------------------------------------------------------------------------- command sets
cdef enum:
    V_US = 1
    V_UL = 2
    V_AT = 3
    V_UI = 4
    V_AE = 5
    V_TEXT = 6
    LONGEST_TEXT = 256  # bytes of a text that is worth encoding here
    LONGEST_VALUE = 1024  # bytes of any value: as many attribute tags

# The command elements in use (PS3.7 E.1)
cdef dict VALUE_KINDS = {
    0x0000: V_UL,
    0x0002: V_UI,
    0x0003: V_UI,
    0x0100: V_US,
    0x0110: V_US,
    0x0120: V_US,
    0x0600: V_AE,
    0x0700: V_US,
    0x0800: V_US,
    0x0900: V_US,
    0x0901: V_AT,
    0x0902: V_TEXT,
    0x0903: V_US,
    0x1000: V_UI,
    0x1001: V_UI,
    0x1002: V_US,
    0x1005: V_AT,
    0x1008: V_US,
    0x1020: V_US,
    0x1021: V_US,
    0x1022: V_US,
    0x1023: V_US,
    0x1030: V_AE,
    0x1031: V_US,
}
cdef unsigned char kinds[0x1032]
for _element, _kind in VALUE_KINDS.items():
    kinds[_element] = _kind


cdef inline void put16(unsigned char *p, uint32_t v) noexcept:
    p[0] = v & 0xFF
    p[1] = (v >> 8) & 0xFF


cdef inline void put32(unsigned char *p, uint32_t v) noexcept:
    put16(p, v & 0xFFFF)
    put16(p + 2, v >> 16)


cdef inline uint32_t get16(const unsigned char *p) noexcept nogil:
    return p[0] | (<uint32_t>p[1] << 8)


cdef inline uint32_t get32(const unsigned char *p) noexcept nogil:
    return get16(p) | (get16(p + 2) << 16)


def encode_command(elements):
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
    return encode_elements(elements if type(elements) is dict else dict(elements), False)


cdef bytes encode_elements(dict given, bint is_sorted):
    cdef unsigned char buffer[8192]  # twice what all elements need at their longest
    cdef size_t at = 12
    cdef int64_t length
    cdef int element
    cdef int last = 0
    cdef object number_of, value
    for number_of, value in given.items():
        if value is None:
            continue
        element = element_of(number_of)
        if element == 0:
            continue
        if element < last and not is_sorted:
            return encode_elements(dict(sorted(given.items(), key=element_of_item)), True)
        last = element
        if at + 8 + LONGEST_VALUE > sizeof(buffer):
            raise CommandError("the command set is too long")
        put32(buffer + at, <uint32_t>element << 16)
        try:
            length = put_value(buffer + at + 8, kinds[element], value)
        except (TypeError, OverflowError, UnicodeEncodeError) as error:
            raise CommandError(f"(0000,{element:04X}) cannot hold {value!r}") from error
        put32(buffer + at + 4, <uint32_t>length)
        at += 8 + <size_t>length
    put32(buffer, 0)
    put32(buffer + 4, 4)
    put32(buffer + 8, <uint32_t>(at - 12))
    return PyBytes_FromStringAndSize(<char *>buffer, <Py_ssize_t>at)


def element_of_item(tuple item):
    return element_of(item[0])


cdef int element_of(object number) except -1:
    """Return the number of a command element, 0 for the group length.

    Raises
    ------
    CommandError
        If there is no such element.
    """
    cdef int overflow = 0
    cdef long n
    if type(number) is not int:
        try:
            number = operator.index(number)
        except TypeError as error:
            raise CommandError(f"{number!r} is not the number of a command element") from error
    n = PyLong_AsLongAndOverflow(number, &overflow)
    if overflow or n < 0 or n >= 0x1032 or (n > 0 and kinds[n] == 0):
        raise CommandError(f"(0000,{number:04X}) is not a command element")
    return <int>n


cdef int64_t put_value(unsigned char *p, int kind, object value) except -1:
    """Encode a value; return its length, or raise TypeError, OverflowError or UnicodeEncodeError."""
    cdef int64_t length = 0
    cdef uint64_t number
    cdef bytes text
    cdef const void *letters
    cdef tuple tags
    if kind == V_US or kind == V_UL:
        number = value if type(value) is int else operator.index(value)
        if number > (0xFFFF if kind == V_US else 0xFFFFFFFF):
            raise OverflowError
        put16(p, number & 0xFFFF)
        if kind == V_US:
            return 2
        put16(p + 2, number >> 16)
        return 4
    if kind == V_AT:
        tags = tuple(value)
        if len(tags) > LONGEST_VALUE // 4:
            raise OverflowError
        for tag in tags:
            number = operator.index(tag)
            if number > 0xFFFFFFFF:
                raise OverflowError
            put16(p + length, number >> 16)
            put16(p + length + 2, number & 0xFFFF)
            length += 4
        return length
    if not isinstance(value, str):
        raise TypeError("text is needed")
    if PyUnicode_IS_COMPACT_ASCII(value):
        letters = PyUnicode_DATA(value)
        length = PyUnicode_GET_LENGTH(value)
    else:
        text = value.encode("ascii")
        letters = PyBytes_AsString(text)
        length = len(text)
    if length > LONGEST_TEXT:
        raise OverflowError
    memcpy(p, letters, length)
    if length & 1:
        p[length] = 0 if kind == V_UI else 0x20
        length += 1
    return length


def decode_command(data):
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
        excepted), ASCII, right group length. That says nothing about its validity: ask pydicom.
    """
    cdef bytes source = data
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AsString(source)
    cdef size_t size = len(source)
    cdef size_t at = 12
    cdef size_t i
    cdef uint32_t length, end
    cdef int element, kind
    cdef int last = 0
    cdef dict found = {}
    cdef bytes text
    if size < 12 or get32(p) != 0 or get32(p + 4) != 4 or get32(p + 8) != size - 12:
        raise CommandError("no group length, or a wrong one")
    while at < size:
        if size - at < 8:
            raise CommandError("the command set is cut")
        element = <int>get16(p + at + 2)
        length = get32(p + at + 4)
        kind = kinds[element] if element < 0x1032 else 0
        if get16(p + at) != 0 or element <= last or kind == 0:
            raise CommandError(f"unexpected element (0000,{element:04X})")
        at += 8
        if length > size - at:
            raise CommandError("the command set is cut")
        last = element
        if kind == V_US or kind == V_UL:
            if length != (2 if kind == V_US else 4):
                raise CommandError(f"(0000,{element:04X}) has length {length}")
            found[element] = get16(p + at) if kind == V_US else get32(p + at)
        elif kind == V_AT:
            if length == 0 or length % 4:
                raise CommandError(f"(0000,{element:04X}) has length {length}")
            found[element] = tuple(
                [(get16(p + i) << 16) | get16(p + i + 2) for i in range(at, at + length, 4)]
            )
        else:
            end = length
            while end > 0 and (p[at + end - 1] == 0x20 or p[at + end - 1] == 0):
                end -= 1
            i = 0
            if kind == V_AE:
                while i < end and p[at + i] == 0x20:
                    i += 1
            if length == 0 or end == i:
                raise CommandError(f"(0000,{element:04X}) is empty")
            text = PyBytes_FromStringAndSize(<char *>p + at + i, <Py_ssize_t>(end - i))
            if b"\\" in text or b"\x00" in text or not text.isascii():
                raise CommandError(f"(0000,{element:04X}) has several values, or unusual characters")
            found[element] = text.decode("ascii")
        at += length
    return found


def is_uid(text):
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
    cdef Py_ssize_t size = len(text)
    cdef Py_UCS4 character
    cdef Py_UCS4 first = 0  # of the number in progress
    cdef int digits = 0
    if not isinstance(text, str):
        raise TypeError(f"a UID is a str, not {text!r}")
    if size == 0 or size > 64:
        return False
    for character in <str>text:
        if character == u".":
            if digits == 0:
                return False
            digits = 0
        elif u"0" <= character <= u"9":
            if digits == 0:
                first = character
            elif first == u"0":
                return False
            digits += 1
        else:
            return False
    return digits > 0


# ----------------------------------------------------------------------------------- Part 10 files
@cython.final
cdef class Part10:
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

    cdef readonly str sop_class, sop_instance, media_sop_class, media_sop_instance, transfer_syntax
    cdef readonly Py_ssize_t offset


cdef str uid_at(const unsigned char *p, size_t n):
    """Return a UID without its padding; None if it does not look like one."""
    cdef size_t i
    while n > 0 and (p[n - 1] == 0 or p[n - 1] == 0x20):
        n -= 1
    if n == 0 or n > 64:
        return None
    for i in range(n):
        if p[i] != 0x2E and not 0x30 <= p[i] <= 0x39:
            return None
    return PyBytes_FromStringAndSize(<char *>p, <Py_ssize_t>n).decode("ascii")


cdef inline bint long_form(const unsigned char *vr) noexcept nogil:
    """Whether an explicit VR has a 32-bit length (PS3.5 7.1.2)."""
    if vr[0] == 0x4F:  # OB OD OF OL OV OW
        return vr[1] in b"BDFLVW"
    if vr[0] == 0x53:  # SQ SV
        return vr[1] == 0x51 or vr[1] == 0x56
    if vr[0] == 0x55:  # UC UN UR UT UV
        return vr[1] in b"CNRTV"
    return False


cdef struct Element:
    uint32_t tag
    uint32_t length
    size_t value


cdef int element_at(
    const unsigned char *p, size_t size, size_t at, bint explicit, bint big, Element *e
) noexcept nogil:
    """Read an element header; -1 if it is not whole, or not one."""
    cdef uint32_t group, number
    if size - at < 8:
        return -1
    if big:
        group = (<uint32_t>p[at] << 8) | p[at + 1]
        number = (<uint32_t>p[at + 2] << 8) | p[at + 3]
    else:
        group = get16(p + at)
        number = get16(p + at + 2)
    e.tag = (group << 16) | number
    if not explicit:
        e.length = get32(p + at + 4)
        e.value = at + 8
        return 0
    if not (0x41 <= p[at + 4] <= 0x5A and 0x41 <= p[at + 5] <= 0x5A):
        return -1
    if long_form(p + at + 4):
        if size - at < 12:
            return -1
        e.length = fp_get32(p + at + 8) if big else get32(p + at + 8)
        e.value = at + 12
    else:
        e.length = ((<uint32_t>p[at + 6] << 8) | p[at + 7]) if big else get16(p + at + 6)
        e.value = at + 8
    return 0


def open_head(path, Py_ssize_t limit):
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
    cdef bytes name, head
    cdef const char *c_name
    cdef char *into
    cdef int fd
    cdef int64_t got, size
    if limit < 0:
        raise ValueError(f"limit must not be negative: {limit}")
    if not FP_HAVE_FD:
        return _open_head(path, limit)
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    head = PyBytes_FromStringAndSize(NULL, limit)
    c_name = PyBytes_AsString(name)
    into = PyBytes_AsString(head)
    # One release of the GIL for all three: in a process with other threads each costs more than the calls
    while True:
        with nogil:
            size = 0
            fd = fp_open(c_name)
            got = fd
            if fd >= 0:
                got = size = fp_file_size(fd)
                if size >= 0:
                    got = fp_pread(fd, into, limit, 0)
                if got < 0:
                    fp_close(fd)
        if got != -EINTR:
            break
        # A network file system may take its time
        PyErr_CheckSignals()
    if got == -ESPIPE:
        raise OSError(ESPIPE, NOT_REGULAR, path)
    if got < 0:
        raise OSError(<int>-got, os.strerror(<int>-got), path)
    return fd, size, head if got == limit else head[:got]


def _open_head(path, limit):
    """`open_head` where descriptors are not the system's."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.ESPIPE, NOT_REGULAR, path)
        return fd, about.st_size, os.read(fd, limit)
    except BaseException:
        os.close(fd)
        raise


def close_file(int fd):
    """Close a descriptor of `open_head`. Nothing was written, so nothing is waited for, and the GIL is kept."""
    if FP_HAVE_FD:
        fp_close(fd)
    else:
        os.close(fd)


def read_part10(head):
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
    cdef bytes source = head
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AsString(source)
    cdef size_t size = len(source)
    cdef size_t at = 132
    cdef size_t declared = 0
    cdef Element e
    cdef Part10 found = Part10.__new__(Part10)
    cdef bint explicit = True
    cdef bint big = False
    cdef uint32_t last = 0
    if size < 144 or p[128] != 0x44 or p[129] != 0x49 or p[130] != 0x43 or p[131] != 0x4D:
        return None
    # (a data set may begin with anything: nothing but its tag is looked at)
    while size - at >= 2 and get16(p + at) == 2:
        if element_at(p, size, at, True, False, &e) < 0 or e.length > size - e.value:
            return None
        if e.tag == 0x00020002:
            found.media_sop_class = uid_at(p + e.value, e.length)
        elif e.tag == 0x00020003:
            found.media_sop_instance = uid_at(p + e.value, e.length)
        elif e.tag == 0x00020010:
            found.transfer_syntax = uid_at(p + e.value, e.length)
        elif e.tag == 0x00020000 and e.length == 4:
            declared = e.value + 4 + get32(p + e.value)
        at = e.value + e.length
    if size - at < 2 and at != declared:
        # There may be more of it behind the head
        return None
    if found.media_sop_class is None or found.media_sop_instance is None or found.transfer_syntax is None:
        return None
    found.offset = <Py_ssize_t>at
    if found.transfer_syntax == "1.2.840.10008.1.2.1.99":
        return found
    if found.transfer_syntax == "1.2.840.10008.1.2":
        explicit = False
    elif found.transfer_syntax == "1.2.840.10008.1.2.2":
        big = True
    last = 0x0002FFFF
    while found.sop_instance is None:
        if element_at(p, size, at, explicit, big, &e) < 0 or e.tag <= last or e.tag > 0x00080018:
            return None
        last = e.tag
        if e.length > size - e.value:
            return None
        if e.tag == 0x00080016:
            found.sop_class = uid_at(p + e.value, e.length)
        elif e.tag == 0x00080018:
            found.sop_instance = uid_at(p + e.value, e.length)
            if found.sop_instance is None:
                return None
        at = e.value + e.length
    return found if found.sop_class is not None else None


# ------------------------------------------------------------------------- is a data set all there?
cdef enum:
    C_MORE = 2  # the walk has come to what is not in the head
    C_UNDEFINED = 0xFFFFFFFF
    PEEK = 512  # bytes that are read where a header is expected
    DEEPEST = 60  # sequences and items in one another


cdef int walk(
    int fd, int64_t size, const unsigned char *head, size_t head_size, int64_t at, bint explicit, bint big
) noexcept nogil:
    """Walk from header to header to the end of a data set: 1 if the file has all of it, 0 if not or unusual, C_MORE.

    Without a descriptor (-1) nothing is read: C_MORE if it would have to be. Values are skipped, so it takes one read
    for each value that is longer than PEEK.
    """
    cdef unsigned char buffer[PEEK]
    cdef const unsigned char *window = head
    cdef int64_t window_at = 0
    cdef size_t window_size = head_size
    cdef int depth = 0
    cdef uint64_t items = 0  # bit d: what is open at depth d is an item, not a sequence
    cdef int plain = DEEPEST  # the depth from which on it is implicit VR little endian (PS3.5 6.2.2 note 2)
    cdef size_t want
    cdef int64_t got
    cdef uint32_t length
    cdef const unsigned char *p
    cdef Element e
    while at < size:
        want = 12 if size - at > 12 else <size_t>(size - at)
        if want < 8:
            return 0
        if at < window_at or at + <int64_t>want > window_at + <int64_t>window_size:
            if fd < 0:
                return C_MORE
            got = fp_pread(fd, buffer, PEEK, at)
            if got < <int64_t>want:
                return 0
            window = buffer
            window_at = at
            window_size = <size_t>got
        p = window + (at - window_at)
        if p[0] == (0xFF if big else 0xFE) and p[1] == (0xFE if big else 0xFF):
            # Items and delimiters have no VR (PS3.5 7.5)
            element_at(p, want, 0, False, big, &e)
            length = fp_get32(p + 4) if big else e.length
            at += 8
            if e.tag & 0xFFFF == 0xE000:  # item
                if depth == 0 or (items >> depth) & 1:
                    return 0
                if length == C_UNDEFINED:
                    depth += 1
                    if depth == DEEPEST:
                        return 0
                    items |= <uint64_t>1 << depth
                else:
                    at += length
            elif e.tag & 0xFFFF == 0xE00D:  # its end
                if depth == 0 or not (items >> depth) & 1:
                    return 0
                items &= ~(<uint64_t>1 << depth)
                depth -= 1
            elif e.tag & 0xFFFF == 0xE0DD:  # the sequence's end
                if depth == 0 or (items >> depth) & 1:
                    return 0
                depth -= 1
                if depth < plain:
                    plain = DEEPEST
            else:
                return 0
            continue
        if depth > 0 and not (items >> depth) & 1:
            return 0
        if element_at(p, want, 0, explicit and depth < plain, big, &e) < 0:
            return 0
        if e.length == C_UNDEFINED:
            if explicit and depth < plain:
                if p[4] == 0x55:  # UN
                    if p[5] != 0x4E or big:
                        return 0
                    plain = depth + 1
                elif not long_form(p + 4):
                    return 0
            at += <int64_t>e.value
            if e.tag == 0x7FE00010 and depth == 0 and fd >= 0 and ends_in_delimiter(fd, size, big):
                # Fragments need not be looked up one by one: nothing that is cut off ends like this
                return 1
            depth += 1
            if depth == DEEPEST:
                return 0
        else:
            at += <int64_t>e.value + e.length
    return at == size and depth == 0


cdef bint ends_in_delimiter(int fd, int64_t size, bint big) noexcept nogil:
    """Whether a file ends with a Sequence Delimitation Item (PS3.5 7.5.2)."""
    cdef unsigned char p[8]
    if size < 8 or fp_pread(fd, p, 8, size - 8) != 8 or fp_get32(p + 4) != 0:
        return False
    return fp_get32(p) == (<uint32_t>0xFFFEE0DD if big else <uint32_t>0xFEFFDDE0)


def is_whole(int fd, size, head, Part10 found not None):
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
    cdef bytes source = head
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AsString(source)
    cdef size_t n = len(source)
    cdef int64_t total = size
    cdef int64_t begin = found.offset
    cdef bint explicit = found.transfer_syntax != "1.2.840.10008.1.2"
    cdef bint big = found.transfer_syntax == "1.2.840.10008.1.2.2"
    cdef int code
    if found.transfer_syntax == "1.2.840.10008.1.2.1.99":
        return False
    # Mostly the head has all headers, and nothing needs to be read
    code = walk(-1, total, p, n, begin, explicit, big)
    if code == C_MORE:
        with nogil:
            code = walk(fd, total, p, n, begin, explicit, big)
    return code == 1
