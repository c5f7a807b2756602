"""How `SocketConnection` uses a TLS object: large writes, given again as they were, and whole records read."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trustme
from engine_kit import (
    ABORT,
    ECHO,
    IMPLS,
    PATIENCE,
    STORE,
    Background,
    Impl,
    close_all,
    frame,
    message,
    noise,
    pdu,
    tls_sockets,
)

SOCKET_IMPLS = [impl for impl in IMPLS if impl.kind == "socket"]
socket_impls = pytest.mark.parametrize("impl", SOCKET_IMPLS, ids=str)
RECORD = 16384


class Records:
    """A TLS object that is told what happens: it gives a record at a time, and tells what is written to it.

    Parameters
    ----------
    script : sequence of bytes or Exception
        The records that it gives, and what it raises in between.
    """

    def __init__(self, script: Sequence[bytes | Exception] = ()) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._script = list(script)
        self._record = b""
        self.read = 0
        self.refusals: list[Exception] = []
        self.offered: list[bytes] = []
        self.written = b""
        if script:
            self._far.send(b"x")  # poll sees that there is something

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return self._near.fileno()

    def pending(self) -> int:
        return len(self._record)

    def recv_into(self, buffer: Any) -> int:
        if not self._record:
            if not self._script:
                raise ssl.SSLWantReadError
            item = self._script.pop(0)
            if not self._script:
                self._near.recv(1)
            if isinstance(item, Exception):
                raise item
            self._record = item
        with memoryview(buffer) as view:
            part = self._record[: len(view)]
            view[: len(part)] = part
        self._record = self._record[len(part) :]
        self.read += len(part)
        return len(part)

    def send(self, data: Any) -> int:
        self.offered.append(bytes(data))
        if self.refusals:
            raise self.refusals.pop(0)
        self.written += data
        return len(data)

    def close(self) -> None:
        self._near.close()
        self._far.close()


def records(stream: bytes, size: int = RECORD) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.fixture
def made() -> Iterator[list[Any]]:
    """What the test has to close."""
    things: list[Any] = []
    yield things
    close_all(*things)


def opened(impl: Impl, made: list[Any], *script: bytes | Exception) -> tuple[Any, Records]:
    sock = Records(script)
    conn = impl.open(sock)
    made += [conn, sock]
    return conn, sock


# Writing --------------------------------------------------------------------------------------------------------


@socket_impls
@pytest.mark.parametrize("max_pdu", [0, 16382, 4096, 1 << 20])
@pytest.mark.parametrize("source", ["memory", "parts", "file"])
def test_writes_are_large(
    impl: Impl, made: list[Any], max_pdu: int, source: str, tmp_path: Any
) -> None:
    """One reused buffer: each write but the last has 64 KB or more, whatever the size of the PDUs."""
    conn, sock = opened(impl, made)
    data = noise(2_000_001)
    if source == "file":
        path = tmp_path / "data"
        path.write_bytes(b"head" + data)
        with path.open("rb") as file:
            conn.send_file(1, STORE, file.fileno(), 4, len(data), max_pdu=max_pdu)
    else:
        parts = [data] if source == "memory" else [data[:7], data[7:1_000_000], data[1_000_000:]]
        conn.send(1, STORE, parts, max_pdu=max_pdu)
    expected = frame(1, STORE, data, max_pdu, impl.module.UNLIMITED_FRAGMENT)
    assert sock.written == b"".join(expected)
    assert [size for size in map(len, sock.offered[:-1]) if size < 65536] == []
    assert conn.send_calls == len(sock.offered)
    assert conn.bytes_sent == len(sock.written)


class Grudging(Records):
    """It takes a third of what it is offered, at most so many bytes, and refuses every fifth time."""

    def send(self, data: Any) -> int:
        self.offered.append(bytes(data))
        if len(self.offered) % 5 == 0:
            raise ssl.SSLWantWriteError
        if len(self.offered) % 5 == 1 and len(self.offered) > 1:
            assert self.offered[-1] == self.offered[-2]
        part = bytes(data)[: max(1, min(len(data) // 3, 50_000))]
        self.written += part
        return len(part)


@socket_impls
@pytest.mark.parametrize("max_pdu", [0, 1000, 1026, 16382, 65536, 262144, 262150, 1 << 20])
def test_files_of_any_length_in_parts(
    impl: Impl, made: list[Any], max_pdu: int, tmp_path: Any
) -> None:
    """Messages one after another, short and long, whose buffer is used again while it is only half written."""
    sock = Grudging()
    conn = impl.open(sock)
    made += [conn, sock]
    fragment = (max_pdu - 6 if max_pdu else impl.module.UNLIMITED_FRAGMENT) & ~1
    lengths = [1, 300_000, 5, fragment, fragment + 1, 2 * fragment - 1, 262_144, 262_145, 700_000]
    data = noise(max(lengths) + 3)
    path = tmp_path / "data"
    path.write_bytes(data)
    expected = []
    with path.open("rb") as file:
        for at, length in enumerate(lengths):
            pdus = conn.send_file(1, STORE, file.fileno(), at % 3, length, max_pdu=max_pdu)
            expected += frame(
                1, STORE, data[at % 3 :][:length], max_pdu, impl.module.UNLIMITED_FRAGMENT
            )
            assert pdus == 1 + -(-length // fragment)
            assert sock.written == b"".join(expected)
    assert conn.pdus_sent == len(expected)
    assert conn.largest_pdu_sent == max(map(len, expected)) - 6
    assert not conn.send_broken


@socket_impls
@pytest.mark.parametrize("source", ["memory", "file"])
def test_buffers_that_begin_anywhere(
    impl: Impl, made: list[Any], source: str, tmp_path: Any
) -> None:
    """How far a buffer is into its page changes with each write; some distances are copied in another way."""
    conn, sock = opened(impl, made)
    data = noise(70_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    whole = b"".join(frame(1, STORE, data, 16382, 0))
    with path.open("rb") as file:
        for _ in range(130):
            sock.written = b""
            if source == "file":
                conn.send_file(1, STORE, file.fileno(), 0, len(data), max_pdu=16382)
            else:
                conn.send(1, STORE, data, max_pdu=16382)
            assert sock.written == whole
    conn, sock = opened(impl, made, *records(whole * 130, RECORD))
    for _ in range(130):
        assert conn.receive(PATIENCE).data == data


@socket_impls
@pytest.mark.parametrize("missing", [1, 300_000, 599_999])
def test_a_file_that_is_too_short(impl: Impl, made: list[Any], missing: int, tmp_path: Any) -> None:
    """What was read of the last piece is not sent, and no PDU is cut: the connection is as good as before."""
    conn, sock = opened(impl, made)
    path = tmp_path / "data"
    path.write_bytes(noise(600_000 - missing))
    with path.open("rb") as file, pytest.raises(impl.module.FileError):
        conn.send_file(1, STORE, file.fileno(), 0, 600_000, max_pdu=16382)
    whole = b"".join(frame(1, STORE, path.read_bytes(), 16382, impl.module.UNLIMITED_FRAGMENT))
    # (the last fragment of what is there would be marked as the last)
    assert whole.startswith(sock.written[: len(whole) - 20_000])
    assert missing < 599_999 or not sock.written
    assert conn.bytes_sent == len(sock.written)
    assert not conn.send_broken


@socket_impls
def test_an_image_is_few_writes(impl: Impl, made: list[Any]) -> None:
    conn, sock = opened(impl, made)
    conn.send(1, STORE, noise(530_000), max_pdu=16382)
    assert len(sock.offered) <= 3
    conn.send(1, ECHO, max_pdu=16382)
    assert sock.offered[-1] == b"".join(message(1, ECHO, None))


@socket_impls
@pytest.mark.parametrize("error", [ssl.SSLWantWriteError, ssl.SSLWantReadError])
def test_a_refused_write_is_given_again(
    impl: Impl, made: list[Any], error: type[Exception]
) -> None:
    """OpenSSL may have sent a part of it already, and wants the same bytes."""
    conn, sock = opened(impl, made, b"x")  # readable, so that no wait is for ever
    sock.refusals = [error() for _ in range(3)]
    data = noise(1_000_000)
    sending = Background(conn.send, 1, STORE, data, max_pdu=16382)
    sending.result()
    assert len(set(sock.offered[:4])) == 1
    assert sock.written == b"".join(frame(1, STORE, data, 16382, 0))
    assert not conn.send_broken


@socket_impls
def test_a_refused_write_that_is_given_up_breaks_the_stream(impl: Impl, made: list[Any]) -> None:
    conn, sock = opened(impl, made)
    conn.send(1, ECHO, max_pdu=0)
    # Waits for something to read, which does not come
    sock.refusals = [ssl.SSLWantReadError() for _ in range(5)]
    os.set_blocking(sock.fileno(), False)
    while True:
        try:
            os.write(sock.fileno(), bytes(65536))
        except BlockingIOError:
            break
    with pytest.raises(TimeoutError):
        conn.send(1, STORE, noise(100), max_pdu=0, timeout=0.05)
    assert conn.send_broken
    with pytest.raises(impl.module.PeerClosed):
        conn.send(1, ECHO, max_pdu=0)


# Reading --------------------------------------------------------------------------------------------------------


@socket_impls
@pytest.mark.parametrize("size", [1, 100, RECORD, RECORD - 1, 40_000])
@pytest.mark.parametrize("max_pdu", [7, 300, 16382, 131072])
def test_records_of_any_size(impl: Impl, made: list[Any], size: int, max_pdu: int) -> None:
    data = noise(3_000 if max_pdu == 7 or size == 1 else 300_000)
    stream = b"".join(frame(3, STORE, data, max_pdu, 0) + frame(3, ECHO, b"", 0, 1000))
    conn, sock = opened(impl, made, *records(stream, size))
    assert conn.receive(PATIENCE).data == data
    assert conn.receive(PATIENCE).command == ECHO
    assert sock.read == conn.bytes_received == len(stream)
    assert conn.receive(0) == impl.module.TIMEOUT


@socket_impls
def test_not_a_byte_is_read_beyond_a_pdu(impl: Impl, made: list[Any]) -> None:
    """`receive_pdu` leaves the rest of the record to the object."""
    first, second = pdu(1, noise(500)), pdu(2, noise(70_000))
    conn, sock = opened(impl, made, *records(first + second + ABORT))
    assert conn.receive_pdu() == first
    assert sock.read == len(first)
    assert conn.wait(0) == impl.module.READY
    assert conn.receive_pdu() == second
    assert sock.read == len(first + second)
    assert conn.wait(0) == impl.module.READY
    assert conn.receive_pdu() == ABORT


@socket_impls
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), b""])
def test_bytes_before_the_end_count(
    impl: Impl, made: list[Any], error: Exception | bytes, whole: bool
) -> None:
    """The last message is delivered before the news that there will be no more."""
    data = noise(50_000)
    stream = b"".join(frame(1, STORE, data, 16382, 0))
    if not whole:
        stream = stream[:-20_000]
    conn, _ = opened(impl, made, *records(stream), error, error)
    if whole:
        assert conn.receive(PATIENCE).data == data
    with pytest.raises(impl.module.PeerClosed) as caught:
        conn.receive(PATIENCE)
    assert bool(caught.value.received) is not whole


@socket_impls
def test_an_exception_loses_no_byte(impl: Impl, made: list[Any]) -> None:
    """What a signal handler raises between two records comes at once, and the stream goes on."""
    data = noise(200_000)
    stream = records(b"".join(frame(1, STORE, data, 16382, 0)))
    conn, sock = opened(impl, made, *stream[:3], KeyError("handler"), *stream[3:])
    with pytest.raises(KeyError, match="handler"):
        conn.receive(PATIENCE)
    assert sock.read == 3 * RECORD
    assert conn.wait(0) == impl.module.READY
    assert conn.receive(PATIENCE).data == data


@socket_impls
def test_a_record_that_needs_a_write(impl: Impl, made: list[Any]) -> None:
    """A key update: OpenSSL has to write before it can read on."""
    data = noise(100_000)
    stream = records(b"".join(frame(1, STORE, data, 16382, 0)))
    conn, _ = opened(impl, made, *stream[:2], ssl.SSLWantWriteError(), *stream[2:])
    assert conn.receive(PATIENCE).data == data


class Liar(Records):
    """Tells more than is true."""

    def recv_into(self, buffer: Any) -> int:
        return super().recv_into(buffer) + 2**20

    def send(self, data: Any) -> int:
        return super().send(data) + 1


@socket_impls
def test_an_object_that_lies_about_lengths(impl: Impl, made: list[Any]) -> None:
    sock = Liar([b"".join(message(1, ECHO, None))])
    conn = impl.open(sock)
    made += [conn, sock]
    with pytest.raises(ValueError, match="recv_into tells"):
        conn.receive(PATIENCE)
    with pytest.raises(ValueError, match="send tells"):
        conn.send(1, ECHO, max_pdu=0)


# The object of the ssl module -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@socket_impls
def test_a_socket_that_was_closed(impl: Impl, contexts: Any, made: list[Any]) -> None:
    """As on a plain socket: an OSError, not the ValueError of the ssl module."""
    near, far = tls_sockets(*contexts)
    conn = impl.open(near)
    made += [conn, near, far]
    near.close()
    for call in (lambda: conn.send(1, ECHO, max_pdu=0), lambda: conn.receive(PATIENCE)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno in (errno.EBADF, None)


@socket_impls
def test_many_records_both_ways(impl: Impl, contexts: Any, made: list[Any]) -> None:
    """Buffers of the kernel that are smaller than a write, and messages that are smaller than a record."""
    near, far = tls_sockets(*contexts)
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    conns = impl.open(near), impl.open(far)
    made += [*conns, near, far]
    sizes = [1, 700_000, 2, 16_384, 330_000, 3]

    def send(conn: Any) -> None:
        for size in sizes:
            conn.send(1, STORE, noise(size), max_pdu=16382)

    def receive(conn: Any) -> None:
        for size in sizes:
            assert conn.receive(PATIENCE).data == noise(size)

    calls = [Background(call, conn) for call in (send, receive) for conn in conns]
    for call in calls:
        call.result()
    assert all(conn.receive(0) == impl.module.TIMEOUT for conn in conns)


class Counting(ssl.SSLSocket):
    """An application's own kind of TLS socket."""

    reads = 0

    def read(self, *args: Any) -> Any:
        self.reads += 1
        return super().read(*args)


@socket_impls
def test_a_read_of_its_own_is_called(impl: Impl, contexts: Any, made: list[Any]) -> None:
    server, client = contexts
    client.sslsocket_class = Counting
    near, far = tls_sockets(server, client)
    conns = impl.open(near), impl.open(far)
    made += [*conns, near, far]
    conns[1].send(1, ECHO, max_pdu=16382)
    assert conns[0].receive(PATIENCE).command == ECHO
    assert isinstance(near, Counting)
    assert near.reads > 0


@socket_impls
def test_the_lock_of_the_object_is_used(impl: Impl, contexts: Any, made: list[Any]) -> None:
    """Who has a lock around the object keeps the engine out while he is inside."""
    import threading

    class Serial(ssl.SSLSocket):
        io_lock: threading.Lock

    near, far = tls_sockets(*contexts)
    near.__class__ = Serial
    near.io_lock = threading.Lock()  # type: ignore[attr-defined]
    conn, other = impl.open(near), impl.open(far)
    made += [conn, other, near, far]
    with near.io_lock:  # type: ignore[attr-defined]
        sending = Background(conn.send, 1, STORE, noise(50_000), max_pdu=16382)
        assert other.receive(0.05) == impl.module.TIMEOUT
    sending.result()
    assert other.receive(PATIENCE).data == noise(50_000)
    other.send(1, ECHO, max_pdu=0)
    with near.io_lock:  # type: ignore[attr-defined]
        receiving = Background(conn.receive, PATIENCE)
        threading.Event().wait(0.05)
        assert conn.bytes_received == 0
    assert receiving.result().command == ECHO
