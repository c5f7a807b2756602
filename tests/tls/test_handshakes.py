"""TLS handshakes: silent and slow peers hold up nobody, and do not stay. Stock pynetdicom waits for them for ever."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pynetdicom
import pytest
from helpers import data, kit
from helpers.pem import Pem
from pynetdicom import evt
from pynetdicom.transport import AssociationServer

import fastpdu
from fastpdu import handshakes
from fastpdu.tls import client_context, server_context

CTX = [(data.VERIFICATION, data.EXPLICIT)]
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.fixture
def fast() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture(params=["AE", "install"])
def maker(request: pytest.FixtureRequest) -> Iterator[type[pynetdicom.AE]]:
    """Both ways of switching fastpdu on."""
    if request.param == "AE":
        yield fastpdu.AE
    else:
        with fastpdu.installed():
            yield pynetdicom.AE


def make(maker: type[pynetdicom.AE], **attributes: Any) -> pynetdicom.AE:
    ae = maker(ae_title="TLS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for name, value in attributes.items():
        setattr(ae, name, value)
    return ae


@contextmanager
def silent(port: int, count: int = 1) -> Iterator[list[socket.socket]]:
    """Peers that connect and say nothing."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=kit.DEADLINE))
            for _ in range(count)
        ]


def ended(sock: socket.socket) -> bool:
    """Wait for the end of a connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def handshaking() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if "process_request" in thread.name or "_secure_and_handle" in thread.name
    ]


# The server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False])
def test_silent_peers_hold_up_nobody(
    maker: type[pynetdicom.AE], pem: Pem, fast: kit.World, threaded: bool
) -> None:
    ae = make(maker)
    ae.add_supported_context(data.VERIFICATION)
    options: dict[str, Any] = {} if threaded else {"server_class": AssociationServer}
    context = server_context(pem.certificate, pem.key)
    server = ae.make_server(("127.0.0.1", 0), ssl_context=context, **options)
    ae._servers.append(server)  # where `shutdown` removes it from
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        port = server.server_address[1]
        with silent(port, 5):
            assoc = fast.connect(
                ("127.0.0.1", port), CTX, tls_args=(client_context(pem.ca), "localhost")
            )
            assert assoc.send_c_echo().Status == 0
            assoc.release()
        kit.until(lambda: not handshaking(), what="the end of the handshakes")
    finally:
        server.shutdown()
        serving.join(kit.DEADLINE)


@pytest.mark.parametrize("begin", [b"", CLIENT_HELLO])
def test_a_silent_peer_is_closed_at_the_deadline(
    maker: type[pynetdicom.AE],
    pem: Pem,
    begin: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ae = make(maker, acse_timeout=0.3)
    ae.add_supported_context(data.VERIFICATION)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=server_context(pem.certificate, pem.key)
    )
    try:
        with caplog.at_level(logging.WARNING, "fastpdu.transport"):
            with silent(server.server_address[1], 2) as peers:
                for peer in peers:
                    peer.sendall(begin)
                assert all(ended(peer) for peer in peers)
            kit.until(lambda: not handshaking(), what="the end of the handshakes")
        assert caplog.text.count("TLS handshake with a requestor failed") == 2
        assert "timed out" in caplog.text
    finally:
        ae.shutdown()


def test_a_byte_now_and_then_wins_no_time(pem: Pem, fast: kit.World) -> None:
    """The deadline is one of the whole handshake."""
    server = fast.serve(
        CTX,
        ssl_context=server_context(pem.certificate, pem.key),
        attributes={"acse_timeout": 0.5},
    )
    sent = 0
    with silent(server.port) as (peer,):
        try:
            for _ in range(4000):
                peer.sendall((CLIENT_HELLO + bytes(4000))[sent : sent + 1])
                sent += 1
                threading.Event().wait(0.02)
        except ConnectionError:
            pass
        assert 0 < sent < 4000


def test_a_peer_that_goes_away_leaves_nothing(pem: Pem, fast: kit.World) -> None:
    server = fast.serve(CTX, ssl_context=server_context(pem.certificate, pem.key))
    with silent(server.port, 3) as peers:
        peers[1].sendall(CLIENT_HELLO)
        kit.until(lambda: len(handshaking()) == 3, what="three handshakes")
    kit.until(lambda: not handshaking(), what="the end of the handshakes")
    assert not handshakes._handshakes[server.server]._waiting


def test_handshakes_are_a_bounded_number(
    pem: Pem, fast: kit.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many costs the oldest its place, and nobody else."""
    monkeypatch.setattr(handshakes.Handshakes, "MOST", 3)
    server = fast.serve(CTX, ssl_context=server_context(pem.certificate, pem.key))
    with silent(server.port, 3) as peers:
        kit.until(lambda: len(handshaking()) == 3, what="three handshakes")
        with silent(server.port, 1) as (last,):
            assert ended(peers[0])
            assoc = fast.connect(server, CTX, tls_args=(client_context(pem.ca), "localhost"))
            assert assoc.send_c_echo().Status == 0
            assert ended(peers[1])
            for peer in (peers[2], last):
                peer.setblocking(False)
                with pytest.raises(BlockingIOError):
                    peer.recv(1)


# The requestor --------------------------------------------------------------------------------------------------


@contextmanager
def mute() -> Iterator[int]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("connection_timeout", [None, 0.3])
def test_a_silent_server_is_not_waited_for(
    maker: type[pynetdicom.AE],
    pem: Pem,
    connection_timeout: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ae = make(maker, acse_timeout=0.3, connection_timeout=connection_timeout)
    ae.add_requested_context(data.VERIFICATION)
    before = set(threading.enumerate())
    with mute() as port:
        assoc = ae.associate("127.0.0.1", port, tls_args=(client_context(pem.ca), "localhost"))
    assert assoc.is_aborted
    kit.until(lambda: not set(threading.enumerate()) - before, what="the end of the threads")
    if connection_timeout is None:
        assert "has not completed the TLS handshake within 0.3 s" in caplog.text
    else:
        assert "timed out" in caplog.text


def test_a_missing_name_is_told(
    maker: type[pynetdicom.AE], pem: Pem, caplog: pytest.LogCaptureFixture
) -> None:
    """Stock's thread would die of it, and its caller wait for ever."""
    ae = make(maker)
    ae.add_requested_context(data.VERIFICATION)
    with mute() as port:
        arguments: Any = (client_context(pem.ca), None)
        assoc = ae.associate("127.0.0.1", port, tls_args=arguments)
    assert assoc.is_aborted
    assert "tls_args do not fit: check_hostname requires server_hostname" in caplog.text


def test_the_wrong_name_is_told(
    maker: type[pynetdicom.AE], pem: Pem, fast: kit.World, caplog: pytest.LogCaptureFixture
) -> None:
    server = fast.serve(CTX, ssl_context=server_context(pem.certificate, pem.key))
    ae = make(maker)
    ae.add_requested_context(data.VERIFICATION)
    assoc = ae.associate(
        "127.0.0.1", server.port, tls_args=(client_context(pem.ca), "pacs.example")
    )
    assert assoc.is_aborted
    assert "certificate is not valid for 'pacs.example'" in caplog.text


def test_the_timeouts_are_as_before(pem: Pem, fast: kit.World) -> None:
    """What bounds the handshake does not bound what comes after it."""
    server = fast.serve(CTX, ssl_context=server_context(pem.certificate, pem.key))
    seen: list[Any] = []

    def opened(event: evt.Event) -> None:
        sock = event.assoc.dul.socket.socket
        seen.append((type(sock).__mro__[-4].__name__, sock.gettimeout()))

    assoc = fast.connect(
        server,
        CTX,
        [(evt.EVT_CONN_OPEN, opened)],
        tls_args=(client_context(pem.ca), "localhost"),
        attributes={"connection_timeout": None},
    )
    assert assoc.send_c_echo().Status == 0
    assert seen == [("SSLSocket", None)]
