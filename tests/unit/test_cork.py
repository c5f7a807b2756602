"""`cork`: no half-full segments between the system calls of one message, and never a wait because of it."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
    blocked,
    close_all,
    frame,
    link,
    noise,
    read_exactly,
    tcp_pair,
    tls_sockets,
)

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_CORK"), reason="no TCP_CORK, whose state can be read, here"
)
SOCKET_IMPLS = [impl for impl in IMPLS if impl.kind == "socket"]


def corked(sock: socket.socket) -> bool:
    """Whether the kernel holds back partial segments."""
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))


def data_segments(sock: socket.socket) -> int:
    """Return how many segments with data have left (tcpi_data_segs_out)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < 160:
        pytest.skip("this kernel does not count segments")
    return int(struct.unpack_from("I", info, 156)[0])


@contextmanager
def corked_link(impl: Impl, **options: int) -> Iterator[Any]:
    """Return a link over TCP with `cork` and TCP_NODELAY, as an association has it."""
    with link(impl, tcp=True) as made:
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in options.items():
            made.sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        made.conn.cork = True
        yield made


def test_is_off_by_default(impl: Impl) -> None:
    assert impl.module.CAN_CORK is True
    with link(impl) as one:
        assert not one.conn.cork


@pytest.mark.parametrize(
    ("max_pdu", "size"), [(7, 2000), (9, 20_000), (16382, 3_000_000), (0, 3_000_001), (0, 0)]
)
@pytest.mark.parametrize("pack", [False, True])
def test_framing(impl: Impl, tmp_path: Path, max_pdu: int, size: int, pack: bool) -> None:
    """Every byte of a message arrives without anything sent after it, and the cork is off."""
    data = noise(size)
    path = tmp_path / "data"
    path.write_bytes(data)
    with corked_link(impl) as one, path.open("rb") as file:
        one.conn.pack_command = pack
        plain = b"".join(frame(3, STORE, data, max_pdu, impl.module.UNLIMITED_FRAGMENT))
        for send in (
            lambda: one.conn.send(3, STORE, data, max_pdu=max_pdu),
            lambda: one.conn.send(3, STORE, [data[:1], data[1:]], max_pdu=max_pdu),
            lambda: one.conn.send_file(3, STORE, file.fileno(), 0, size, max_pdu=max_pdu),
        ):
            before = one.conn.bytes_sent
            # The reader knows where the message ends from the packed or plain framing, not from a close
            receiving = Background(_read_message, one.raw, len(STORE) + size)
            send()
            whole = receiving.result()
            assert len(whole) == one.conn.bytes_sent - before
            assert pack or whole == plain
            assert not corked(one.sock)


def _read_message(sock: socket.socket, payload: int) -> bytes:
    """Read PDUs until their fragments have `payload` bytes."""
    parts = []
    while payload > 0:
        header = read_exactly(sock, 6)
        body = read_exactly(sock, int.from_bytes(header[2:], "big"))
        parts += [header, body]
        at = 0
        while at < len(body):
            length = int.from_bytes(body[at : at + 4], "big")
            payload -= length - 2
            at += 4 + length
    return b"".join(parts)


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl.kind == "fd"], ids=str)
def test_fewer_segments(impl: Impl) -> None:
    """More vectors than one system call takes: still one segment, or what the kernel lets go after 200 ms."""
    assert impl.module
    with corked_link(impl) as one:
        before = data_segments(one.sock)
        one.conn.send(1, STORE, noise(1000), max_pdu=7)
        read_exactly(one.raw, one.conn.bytes_sent)
        assert one.conn.send_calls > 3
        assert data_segments(one.sock) - before <= 2


@pytest.mark.parametrize("impl", SOCKET_IMPLS, ids=str)
def test_fewer_segments_over_tls(impl: Impl) -> None:
    """A TLS record of 16 KiB is a system call of its own."""
    assert impl.module
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    near, far = tls_sockets(server, client)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn, other = impl.open(near), impl.open(far)
    try:
        conn.cork = True
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        conn.send(1, ECHO, max_pdu=16382)
        assert other.receive(PATIENCE).command == ECHO
        before = data_segments(near)
        receiving = Background(other.receive, PATIENCE)
        conn.send(1, STORE, noise(60_000), max_pdu=16382)
        assert receiving.result().data == noise(60_000)
        assert data_segments(near) - before <= 3
        assert not corked(near)
    finally:
        close_all(conn, other, near, far)


def test_ping_pong_with_tiny_buffers(impl: Impl) -> None:
    """No message, and no part of one, waits for the kernel to lose its patience with a cork."""
    near, far = tcp_pair()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ends = [impl.open(near), impl.open(far)]
    try:
        for conn in ends:
            conn.cork = conn.quickack = True

        def echo() -> None:
            for _ in range(70):
                message = ends[1].receive(PATIENCE)
                ends[1].send(1, message.command, message.data or b"", max_pdu=16)

        echoing = Background(echo)
        for number in range(70):
            data = noise(1 + 50 * number)
            ends[0].send(1, STORE, data, max_pdu=16)
            assert ends[0].receive(PATIENCE).data == data
            assert not corked(near)
        echoing.result()
    finally:
        close_all(*ends, near, far)


def test_off_while_it_waits_and_after_a_failure(impl: Impl) -> None:
    """What the kernel has by then is not held back while the peer takes nothing, nor when the send ends."""
    with corked_link(impl, SO_SNDBUF=20_000) as one:
        sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=4096)
        blocked(one.conn)
        assert not corked(one.sock)
        one.conn.cancel()
        with pytest.raises(impl.module.Cancelled):
            sending.result()
        assert not corked(one.sock)


def test_off_after_a_file_that_ends_early(impl: Impl, tmp_path: Path) -> None:
    """The A-ABORT that follows leaves at once, with what was sent before it."""
    (tmp_path / "data").write_bytes(noise(1_500_000))
    with corked_link(impl) as one, (tmp_path / "data").open("rb") as file:
        reading = Background(one.raw.recv, 1)
        sending = Background(_expect_eof, one.conn, file.fileno())
        reading.result()
        rest = bytearray()
        while not rest.endswith(ABORT):
            piece = one.raw.recv(2**20)
            assert piece
            rest += piece
        sending.result()
        assert not corked(one.sock)


def _expect_eof(conn: Any, fd: int) -> None:
    with pytest.raises(EOFError):
        conn.send_file(1, STORE, fd, 0, 2_000_000, max_pdu=16382)
    assert not conn.send_broken
    conn.send_bytes(ABORT)


def test_python_engine_corks_only_what_takes_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of the state, in order."""
    pure = Impl("pure", "fd").module
    changes: list[tuple[str, int]] = []
    monkeypatch.setattr(
        pure, "_set_option", lambda sock, name, value: changes.append((name, value))
    )
    with corked_link(Impl("pure", "fd")) as one:
        one.conn.send(1, STORE, noise(1000), max_pdu=16382)
        assert changes == []
        read_exactly(one.raw, one.conn.bytes_sent)
        one.conn.send(1, STORE, noise(1000), max_pdu=7)
        assert changes == [("TCP_CORK", 1), ("TCP_CORK", 0)]
        one.conn.cork = False
        one.conn.send(1, STORE, noise(1000), max_pdu=7)
        assert len(changes) == 2
