"""What the tests of the engine share: its implementations, an independent framer, sockets, threads."""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

PATIENCE = 20.0  # seconds after which a test has failed; nothing that works takes that long
REQUIRED = any(os.environ.get(name) for name in ("FASTPDU_REQUIRE_COMPILED", "FASTPDU_REQUIRE_EXT"))

# ------------------------------------------------------------------------------------ implementations


@dataclass(frozen=True)
class Impl:
    """One implementation of the engine, and one of its connection classes."""

    backend: str
    kind: str

    @property
    def module(self) -> ModuleType:
        """The engine; skips the test if it cannot be imported and need not be there."""
        if self.backend == "pure":
            return importlib.import_module("fastpdu._pure")
        try:
            return importlib.import_module("fastpdu._fastpdu")
        except ImportError:
            if REQUIRED:
                raise
            pytest.skip("the compiled engine is not there")

    def open(self, sock: Any) -> Any:
        """Return a connection over `sock`."""
        module = self.module
        return (module.FdConnection if self.kind == "fd" else module.SocketConnection)(sock)

    def __str__(self) -> str:
        return f"{self.backend}-{self.kind}"


IMPLS = [Impl(backend, kind) for backend in ("pure", "compiled") for kind in ("fd", "socket")]
CROSS = [
    (sender, receiver)
    for sender in IMPLS
    for receiver in IMPLS
    if sender.backend != receiver.backend
]
all_impls = pytest.mark.parametrize("impl", IMPLS, ids=str)
cross_pairs = pytest.mark.parametrize(
    ("sender", "receiver"),
    [(impl, impl) for impl in IMPLS] + CROSS,
    ids=lambda impl: str(impl),
)


# ------------------------------------------------------------------------------------------ the wire


def element(number: int, value: bytes, group: int = 0) -> bytes:
    """Encode one element in implicit VR little endian (PS3.5 7.1.3)."""
    return struct.pack("<HHI", group, number, len(value)) + value


def us(number: int, value: int) -> bytes:
    """Encode one US element of a command set."""
    return element(number, struct.pack("<H", value))


def command_set(*elements: bytes) -> bytes:
    """Put the group length before elements (PS3.7 6.3.1)."""
    body = b"".join(elements)
    return element(0, struct.pack("<I", len(body))) + body


STORE = command_set(us(0x0100, 0x0001), us(0x0110, 7), us(0x0700, 0), us(0x0800, 0x0001))
FIND = command_set(us(0x0100, 0x0020), us(0x0110, 8), us(0x0800, 0x0000))
PENDING = command_set(us(0x0100, 0x8010), us(0x0120, 7), us(0x0800, 0x0101), us(0x0900, 0xFF00))
ECHO = command_set(us(0x0100, 0x0030), us(0x0110, 9), us(0x0800, 0x0101))


def pdu(kind: int, body: bytes) -> bytes:
    """Encode a PDU (PS3.8 9.3.1)."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def pdv(context: int, control: int, fragment: bytes, length: int | None = None) -> bytes:
    """Encode a PDV (PS3.8 9.3.5.1), with another length than it has if `length` is given."""
    return (
        struct.pack(">IBB", len(fragment) + 2 if length is None else length, context, control)
        + fragment
    )


def pdata(*pdvs: bytes) -> bytes:
    """Encode a P-DATA-TF PDU (PS3.8 9.3.5)."""
    return pdu(4, b"".join(pdvs))


ABORT = pdu(7, b"\0\0\2\0")
RELEASE = pdu(5, b"\0\0\0\0")


def frame(context: int, command: bytes, data: bytes, max_pdu: int, unlimited: int) -> list[bytes]:
    """Return the PDUs of a message as docs/engine.md says."""
    size = unlimited if max_pdu == 0 else min(max_pdu, 2**20) - 6
    if size > 1:
        size = size // 2 * 2
    pdus = []
    for control, whole in ((1, command), (0, data)):
        for start in range(0, len(whole), size):
            last = 2 if start + size >= len(whole) else 0
            pdus.append(pdata(pdv(context, control | last, whole[start : start + size])))
    return pdus


def message(
    context: int,
    command: bytes,
    data: bytes | None,
    sizes: Iterable[int] = (),
    command_sizes: Iterable[int] = (),
) -> list[bytes]:
    """Return the PDUs of a message with fragments of given sizes; the last of them takes the rest."""
    pdus = []
    for control, whole, cuts in ((1, command, command_sizes), (0, data, sizes)):
        if whole is None:
            continue
        rest = whole
        for size in cuts:
            pdus.append(pdata(pdv(context, control, rest[:size])))
            rest = rest[size:]
        pdus.append(pdata(pdv(context, control | 2, rest)))
    return pdus


WHOLE = b"".join(message(1, STORE, b"abcdef", [2, 2]))


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes without a pattern that a misplaced block could hide in."""
    words = bytearray()
    state = seed
    while len(words) < min(size, 65521):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        words += state.to_bytes(8, "little")
    block = bytes(words[:65521])
    return (block * (size // len(block) + 1))[:size] if size else b""


# --------------------------------------------------------------------------------------- connections


@dataclass
class Link:
    """A connection of the engine (`conn`) and the raw socket at its other end (`raw`)."""

    conn: Any
    raw: Any
    sock: Any

    def feed(self, data: bytes, close: bool = False) -> None:
        """Send what fits into the socket buffers, perhaps followed by the end of the stream."""
        self.raw.sendall(data)
        if close:
            self.raw.shutdown(socket.SHUT_WR)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), timeout=PATIENCE)
        far, _ = server.accept()
    near.settimeout(None)
    return near, far


def close_all(*things: Any) -> None:
    """Close connections and sockets."""
    for thing in things:
        thing.close()


@contextmanager
def link(impl: Impl, tcp: bool = False) -> Iterator[Link]:
    """Return a connection with a raw socket at its other end."""
    near, far = tcp_pair() if tcp else socket.socketpair()
    far.settimeout(PATIENCE)
    conn = None
    try:
        conn = impl.open(near)
        yield Link(conn, far, near)
    finally:
        close_all(*([conn] if conn else []), near, far)


@contextmanager
def pair(sender: Impl, receiver: Impl, tcp: bool = False) -> Iterator[tuple[Any, Any]]:
    """Return two connections, connected to each other."""
    near, far = tcp_pair() if tcp else socket.socketpair()
    opened: list[Any] = []
    try:
        opened.append(sender.open(near))
        opened.append(receiver.open(far))
        yield opened[0], opened[1]
    finally:
        close_all(*opened, near, far)


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, args, kwargs), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        try:
            self._value = call(*args, **kwargs)
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        """Whether the call has not returned."""
        return self._thread.is_alive()

    def result(self, patience: float = PATIENCE) -> Any:
        """Return or raise what the call did."""
        self._thread.join(patience)
        assert not self._thread.is_alive(), "the call does not return"
        if self._error is not None:
            raise self._error
        return self._value


def eventually(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait until a condition holds."""
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        done.wait(0.005)
    pytest.fail(f"{what} does not happen")


def blocked(conn: Any) -> None:
    """Wait until a send of `conn` in another thread makes no progress."""
    seen = [-1]

    def stands() -> bool:
        before, seen[0] = seen[0], conn.bytes_sent
        # The counter of the pure engine moves when a batch is done; the attempts always do.
        return bool(conn.send_calls) and before == seen[0]

    eventually(stands, "the block")
    threading.Event().wait(0.05)


def read_exactly(sock: Any, size: int) -> bytes:
    """Read `size` bytes from a raw socket."""
    found = bytearray()
    while len(found) < size:
        piece = sock.recv(min(size - len(found), 2**20))
        assert piece, f"the stream ends after {len(found)} of {size} bytes"
        found += piece
    return bytes(found)


def read_all(sock: Any) -> bytes:
    """Read from a raw socket up to the end of the stream."""
    found = bytearray()
    while piece := sock.recv(2**20):
        found += piece
    return bytes(found)


# ------------------------------------------------------------------------------------------- outcomes


def outcomes(
    impl: Impl,
    chunks: Sequence[bytes],
    *,
    end: bool = True,
    setup: Callable[[Any], None] = lambda conn: None,
    sink: int = -1,
) -> list[tuple[Any, ...]]:
    """Return what a receiver makes of a stream that arrives in chunks.

    Every chunk must fit into the buffers of a socket. After each one everything is taken that is there.
    """
    found: list[tuple[Any, ...]] = []
    with link(impl) as one:
        setup(one.conn)
        for chunk in chunks:
            one.raw.sendall(chunk)
            if not _take_all(impl, one.conn, found, sink):
                return found
        if end:
            one.raw.shutdown(socket.SHUT_WR)
            _take_all(impl, one.conn, found, sink)
    return found


def _take_all(impl: Impl, conn: Any, found: list[tuple[Any, ...]], sink: int) -> bool:
    """Take what is there; return whether more can follow."""
    module = impl.module
    try:
        while True:
            got = conn.receive(0)
            if got == module.TIMEOUT:
                return True
            if got == module.OTHER:
                if conn.in_message:
                    found.append(("dropped",))
                    conn.drop_message()
                raw = conn.receive_pdu()
                if raw is None:
                    return True
                found.append(("pdu", raw))
            elif got == module.PARTIAL:
                found.append(("partial", conn.partial.context_id, conn.partial.command))
                conn.set_sink(sink)
            else:
                found.append(("message", got.context_id, got.command, got.data, got.length))
    except module.ProtocolError as error:
        found.append(("protocol error", error.reason))
    except module.PeerClosed as error:
        found.append(("closed", error.received, error.expected))
    return False


def took(context: int, command: bytes, data: bytes | None) -> tuple[Any, ...]:
    """Return the outcome for a message."""
    return ("message", context, command, data, len(data or b""))


END = ("closed", 0, 0)


# ------------------------------------------------------------------------------------------------ TLS


def tls_sockets(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return two TLS sockets that have shaken hands."""
    near, far = tcp_pair()
    accepting = Background(server.wrap_socket, far, server_side=True)
    wrapped = client.wrap_socket(near, server_hostname="localhost")
    return wrapped, accepting.result()
