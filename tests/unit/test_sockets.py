"""Sockets of all kinds (TLS, objects, high descriptors), and that nothing leaks."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import socket
import ssl
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
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
    Link,
    blocked,
    close_all,
    link,
    message,
    noise,
    pair,
    pdu,
    read_exactly,
    tls_sockets,
)

SOCKET_IMPLS = [impl for impl in IMPLS if impl.kind == "socket"]

# ---------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request: pytest.FixtureRequest, contexts: Any) -> Iterator[tuple[Any, Any]]:
    """Two TLS sockets, the client's first."""
    server, client = contexts
    client.minimum_version = client.maximum_version = ssl.TLSVersion[request.param]
    near, far = tls_sockets(server, client)
    yield near, far
    near.close()
    far.close()


@pytest.fixture(
    params=[(one, other) for one in SOCKET_IMPLS for other in SOCKET_IMPLS],
    ids=lambda pair: f"{pair[0].backend}-{pair[1].backend}",
)
def secure(request: pytest.FixtureRequest, tls: Any) -> Iterator[tuple[Any, Any]]:
    """Two connections over TLS."""
    conns = [impl.open(sock) for impl, sock in zip(request.param, tls, strict=True)]
    yield conns[0], conns[1]
    close_all(*conns)


def test_tls_round_trips(secure: Any) -> None:
    near, far = secure
    sizes = [0, 1, 16_384, 16_385, 100_000, 3_000_001, 5]
    for sender, receiver in ((near, far), (far, near)):

        def send_all(conn: Any = sender) -> None:
            for size in sizes:
                conn.send(1, STORE if size else ECHO, noise(size), max_pdu=16382)

        sending = Background(send_all)
        for size in sizes:
            got = receiver.receive(PATIENCE)
            assert (got.data or b"") == noise(size)
        sending.result()


def test_tls_pending_bytes_are_seen(secure: Any) -> None:
    """Bytes that OpenSSL has decrypted are not seen by poll."""
    near, far = secure
    whole = b"".join(message(1, STORE, noise(5000), [1000] * 4) * 3)
    near.send_bytes(whole[: len(whole) // 2])
    near.send_bytes(whole[len(whole) // 2 :] + ABORT)
    for _ in range(3):
        assert far.wait(PATIENCE) == far_module(far).READY
        assert far.receive(PATIENCE).data == noise(5000)
    assert far.wait(PATIENCE) == far_module(far).READY
    assert far.receive(PATIENCE) == far_module(far).OTHER
    assert far.receive_pdu() == ABORT
    assert far.wait(0) == far_module(far).TIMEOUT


def far_module(conn: Any) -> Any:
    """Return the engine of a connection."""

    return sys.modules[type(conn).__module__]


def test_tls_large_pdu(secure: Any) -> None:
    near, far = secure
    whole = pdu(1, noise(2**20))
    sending = Background(near.send_bytes, whole)
    while (found := far.receive_pdu()) is None:
        assert far.wait(PATIENCE) == far_module(far).READY
    assert found == whole
    sending.result()


def test_tls_full_duplex(secure: Any) -> None:
    """One thread reads and another one writes the same TLS object."""
    near, far = secure
    data = noise(2_000_000)

    def send(conn: Any) -> None:
        for _ in range(3):
            conn.send(1, STORE, data, max_pdu=16382)

    def receive(conn: Any) -> None:
        for _ in range(3):
            assert conn.receive(PATIENCE).data == data

    calls = [Background(call, conn) for call in (send, receive) for conn in (near, far)]
    for call in calls:
        call.result()


def test_tls_timeouts_wake_and_cancel(secure: Any) -> None:
    near, far = secure
    module = far_module(far)
    assert far.receive(0.02) == module.TIMEOUT
    receiving = Background(far.receive)
    threading.Event().wait(0.05)
    far.wake()
    assert receiving.result() == module.WAKE
    sending = Background(near.send, 1, STORE, noise(30_000_000), max_pdu=16382)
    blocked(near)
    near.cancel()
    with pytest.raises(far_module(near).Cancelled):
        sending.result()
    with pytest.raises(TimeoutError):
        far.send(1, STORE, noise(30_000_000), max_pdu=16382, timeout=0.1)


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize("begun", [0, 9])
def test_tls_end(secure: Any, tls: Any, proper: bool, begun: int) -> None:
    near, far = secure
    if begun:
        near.send_bytes(b"".join(message(1, ECHO, None))[:begun])
    near.close()
    if proper:
        with pytest.raises((ssl.SSLWantReadError, ssl.SSLSyscallError)):
            tls[0].unwrap()  # sends close_notify; the peer's is not there yet
    tls[0].close()
    with pytest.raises(far_module(far).PeerClosed) as caught:
        far.receive(PATIENCE)
    assert caught.value.received == begun


def test_plain_text_on_a_tls_connection(secure: Any, tls: Any) -> None:
    _, far = secure
    os.write(tls[0].fileno(), b"GET / HTTP/1.1\r\n\r\n" * 3)
    with pytest.raises(OSError):
        far.receive(PATIENCE)


def test_connect_chooses_the_class(tls: Any) -> None:
    for impl in SOCKET_IMPLS:
        module = impl.module
        plain = socket.socketpair()
        conns = [module.connect(plain[0]), module.connect(tls[0])]
        assert type(conns[0]) is module.FdConnection
        assert type(conns[1]) is module.SocketConnection
        close_all(*conns, *plain)


# ------------------------------------------------------------------------------------------ socket objects


class Minimal:
    """What `SocketConnection` needs of a socket, and no more. Blocking or not, as it was."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv_into(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)

    def send(self, data: Any) -> int:
        return self._sock.send(data)

    def fileno(self) -> int:
        return self._sock.fileno()


class Trickle(Minimal):
    """A socket that moves few bytes at a time, and is often not ready."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._calls = 0

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def _limit(self, size: int) -> int:
        self._calls += 1
        if self._calls % 3 == 0:
            raise BlockingIOError
        return min(size, 1 + self._calls * 7 % 1000)

    def recv_into(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            return self._sock.recv_into(view[: self._limit(len(view))])

    def send(self, data: Any) -> int:
        with memoryview(data) as view:
            return self._sock.send(view[: self._limit(len(view))])


@pytest.mark.parametrize("impl", SOCKET_IMPLS, ids=str)
@pytest.mark.parametrize("kind", [Minimal, Trickle])
def test_socket_objects(impl: Impl, kind: Callable[..., Any]) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    conns = [impl.open(kind(near)), impl.open(kind(far))]
    try:
        data = noise(100_000)
        sending = Background(conns[0].send, 1, STORE, data, max_pdu=3000)
        assert conns[1].receive(PATIENCE).data == data
        sending.result()
        assert conns[1].receive(0.02) == impl.module.TIMEOUT
        assert conns[1].wait(0.02) == impl.module.TIMEOUT
    finally:
        close_all(*conns, near, far)


class Broken(Minimal):
    """A socket object whose methods fail in a way that no socket does."""

    def setblocking(self, flag: bool) -> None:
        pass

    def recv_into(self, buffer: Any) -> int:
        raise LookupError("recv_into")

    def send(self, data: Any) -> int:
        raise LookupError("send")


@pytest.mark.parametrize("impl", SOCKET_IMPLS, ids=str)
def test_exceptions_of_socket_objects(impl: Impl) -> None:
    near, far = socket.socketpair()
    conn = impl.open(Broken(near))
    try:
        far.sendall(b"x")
        with pytest.raises(LookupError):
            conn.receive(PATIENCE)
        with pytest.raises(LookupError):
            conn.send(1, ECHO, max_pdu=0)
    finally:
        close_all(conn, near, far)


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_sockets_in_any_mode(impl: Impl, timeout: float | None) -> None:
    near, far = socket.socketpair()
    near.settimeout(timeout)
    far.settimeout(timeout)
    conns = [impl.open(near), impl.open(far)]
    try:
        if impl.kind == "fd":
            assert near.gettimeout() == timeout
            assert os.get_blocking(near.fileno()) is (timeout is None)
        data = noise(1_000_000)
        sending = Background(conns[0].send, 1, STORE, data, max_pdu=0)
        assert conns[1].receive(PATIENCE).data == data
        sending.result()
        assert conns[1].receive(0) == impl.module.TIMEOUT
    finally:
        close_all(*conns, near, far)


def test_default_timeout_does_not_matter(impl: Impl) -> None:
    near, far = socket.socketpair()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        conn = impl.open(near)
    finally:
        socket.setdefaulttimeout(before)
    try:
        if impl.kind == "fd":
            assert os.get_blocking(near.fileno())
        receiving = Background(conn.receive)
        threading.Event().wait(0.1)
        far.sendall(b"".join(message(1, STORE, b"ab")))
        assert receiving.result().data == b"ab"
    finally:
        close_all(conn, near, far)


# ------------------------------------------------------------------------------------------ descriptors


@pytest.fixture
def many_files() -> Iterator[None]:
    """Have all descriptors below 1100 in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1400:
        if hard != resource.RLIM_INFINITY and hard < 1400:
            pytest.skip("the limit of open files is too low")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1400, hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1100:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_high_descriptors(impl: Impl, many_files: None) -> None:
    """Beyond what select() can do."""
    with pair(impl, impl) as (near, far):
        data = noise(1_000_000)
        sending = Background(near.send, 1, STORE, data, max_pdu=0)
        assert far.receive(PATIENCE).data == data
        sending.result()
        far.wake()
        assert far.wait(PATIENCE) == impl.module.WAKE
        with pytest.raises(TimeoutError):
            near.send(1, STORE, noise(10_000_000), max_pdu=0, timeout=0.05)


def open_files() -> list[str]:
    """Return the descriptors in use."""
    gc.collect()
    return sorted(os.listdir("/dev/fd"))


def exercise(impl: Impl, close: bool) -> None:
    """Open two connections, use them, and let them go."""
    near, far = socket.socketpair()
    conns = [impl.open(near), impl.open(far)]
    conns[0].send(1, STORE, b"ab", max_pdu=0)
    assert conns[1].receive(PATIENCE).data == b"ab"
    conns[1].wake()
    assert conns[1].wait(0) == impl.module.WAKE
    if close:
        close_all(*conns)
    near.close()
    far.close()


@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
def test_descriptors_do_not_leak(impl: Impl, close: bool) -> None:
    exercise(impl, close)
    before = open_files()
    for _ in range(200):
        exercise(impl, close)
    assert len(open_files()) == len(before)


def test_descriptors_of_failed_connections(impl: Impl) -> None:
    near, far = socket.socketpair()
    close_all(near, far)
    before = open_files()
    for _ in range(20):
        with pytest.raises((OSError, ValueError)):
            impl.open(near)
    assert len(open_files()) == len(before)


def test_close_is_deferred_while_the_descriptor_is_in_use(one: Link) -> None:
    """A descriptor that a blocked call uses must not become another file's."""
    before = open_files()
    receiving = Background(one.conn.receive)
    threading.Event().wait(0.05)
    one.conn.close()
    with pytest.raises(OSError):
        receiving.result()
    assert len(open_files()) < len(before)


def test_the_other_end_sees_the_end(one: Link) -> None:
    one.conn.close()
    one.sock.close()
    assert one.raw.recv(1) == b""


def test_descriptors_are_not_inherited(impl: Impl) -> None:
    before = set(os.listdir("/dev/fd"))
    with link(impl):
        for name in set(os.listdir("/dev/fd")) - before:
            try:
                flags = fcntl.fcntl(int(name), fcntl.F_GETFD)
            except OSError:  # the one of the listing itself
                continue
            assert flags & fcntl.FD_CLOEXEC


# ------------------------------------------------------------------------------------------------- memory


def test_memory_does_not_grow(one: Link, impl: Impl) -> None:
    """Messages, errors and wake-ups leave nothing behind (as far as Python's allocator sees it)."""
    module = impl.module
    stream = b"".join(message(1, STORE, noise(20_000), [5000] * 3) + message(1, ECHO, None))

    def step() -> None:
        one.feed(stream + ABORT)
        assert one.conn.receive(PATIENCE).length == 20_000
        assert one.conn.receive(PATIENCE).command == ECHO
        assert one.conn.receive(PATIENCE) == module.OTHER
        assert one.conn.receive_pdu() == ABORT
        one.conn.wake()
        assert one.conn.wait(0) == module.WAKE
        one.conn.send(1, STORE, [noise(100)] * 3, max_pdu=16)
        read_exactly(one.raw, one.conn.bytes_sent - read[0])
        read[0] = one.conn.bytes_sent
        with pytest.raises(ValueError):
            one.conn.send(2, STORE, max_pdu=0)

    read = [0]
    for _ in range(20):
        step()
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            step()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def test_declared_lengths_allocate_nothing(impl: Impl) -> None:
    """A header of 16 MiB or 1 MiB is not believed before the bytes are there."""
    tracemalloc.start()
    try:
        for stream in (
            b"\x04\0\x01\0\0\0" + b"\x00\xff\xff\xfc\x01\x00",
            b"\x04\0\x00\xff\xff\xff" + b"\x00\xff\xff\xfb\x01\x01" + b"x" * 10,
            b"".join(message(1, STORE, None))
            + b"\x04\0\x00\xff\xff\xff\x00\xff\xff\xfb\x01\x00abc",
            b"\x01\0\x00\x10\0\0" + b"x" * 10,
        ):
            with link(impl) as one:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                one.feed(stream)
                try:
                    for _ in range(3):
                        one.conn.receive(0)
                        one.conn.receive_pdu()
                except (impl.module.ProtocolError, RuntimeError):
                    pass
                assert tracemalloc.get_traced_memory()[1] - before < 700_000
    finally:
        tracemalloc.stop()


def test_messages_own_their_bytes(one: Link) -> None:
    """What a message holds is neither changed nor freed by what follows."""
    one.feed(b"".join(message(1, STORE, b"a" * 10_000) + message(1, STORE, b"b" * 10_000)))
    first = one.conn.receive(PATIENCE)
    second = one.conn.receive(PATIENCE)
    one.conn.close()
    assert first.data == b"a" * 10_000
    assert second.data == b"b" * 10_000


def test_socket_object_is_let_go(impl: Impl) -> None:
    class Weak(socket.socket):
        pass

    near, far = socket.socketpair()
    sock = Weak(fileno=near.detach())
    conn = impl.open(sock)
    gone = weakref.ref(sock)
    conn.close()
    sock.close()
    del conn, sock
    gc.collect()
    assert gone() is None
    far.close()
