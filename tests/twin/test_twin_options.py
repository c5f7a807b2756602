"""TransportOptions on associations: whose hold, that they arrive, and that nothing else changes."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, TCPServer
from typing import Any

import pytest
import trustme
from helpers import data, kit
from pynetdicom import build_role, evt
from pynetdicom.dsutils import encode
from pynetdicom.transport import AssociationServer, ThreadedAssociationServer

import fastpdu
from fastpdu import TransportOptions, _pure, engine

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="about fast ends")

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]
ECHO = [(evt.EVT_C_ECHO, lambda event: 0)]
on_linux = pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux only")


@pytest.fixture
def fast() -> Iterator[kit.World]:
    """A world with two fast ends."""
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server and a client."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


def sock_of(assoc: Any) -> socket.socket:
    """The socket of an association."""
    found: socket.socket = assoc.dul.socket.socket
    return found


# They arrive ----------------------------------------------------------------------------------------------------

ALL = {
    "nodelay": True,
    "cork": True,
    "send_buffer": 50_000,
    "receive_buffer": 60_000,
    "max_segment": 1000,
    "congestion_control": "reno",
    "keepalive": 30,
    "user_timeout": 12.5,
    "notsent_lowat": 100_000,
    "pack_command": True,
    "max_pdu": 100_000,
}


def check_all(sock: socket.socket, *, connected: bool) -> None:
    """Whether a socket has the options `ALL`."""

    def tcp(name: str) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))

    assert tcp("TCP_NODELAY") == 1
    # Connected, it is what was agreed: less than the limit by the size of the TCP options
    assert 900 <= tcp("TCP_MAXSEG") <= 1000 if connected else tcp("TCP_MAXSEG") == 1000
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert name.rstrip(b"\0") == b"reno"
    assert (tcp("TCP_KEEPIDLE"), tcp("TCP_KEEPINTVL"), tcp("TCP_KEEPCNT")) == (30, 10, 3)
    assert tcp("TCP_USER_TIMEOUT") == 12_500
    assert tcp("TCP_NOTSENT_LOWAT") == 100_000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100_000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 120_000


@on_linux
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("way", ["ae", "attribute", "call", "install", "stock-ae"])
def test_every_socket_has_them(way: str, host: str, tls: bool, contexts: Any) -> None:
    """The requestor's, the acceptor's, and the one that listens."""
    options = TransportOptions(**ALL)  # type: ignore[arg-type]
    kind = "stock" if way in ("install", "stock-ae") else "fast"
    with kit.world_of(kind, kind) as world:
        aes = [kit.make_ae(kind, title) for title in ("SCU", "SCP")]
        call: dict[str, Any] = {"transport": options} if way == "call" else {}
        if way == "ae":
            aes = [fastpdu.AE(transport=options), fastpdu.AE(transport=options)]
        elif way in ("attribute", "stock-ae"):
            for ae in aes:
                ae.transport = options  # type: ignore[attr-defined]
        process = TransportOptions() if way == "stock-ae" else options
        with fastpdu.installed(process) if kind == "stock" else _nothing():
            server = world.serve(
                CTX,
                ECHO,
                host=host,
                ae=aes[1],
                **call,
                **({"ssl_context": contexts[0]} if tls else {}),
            )
            check_all(server.server.socket, connected=False)
            assoc = aes[0]
            for abstract, transfer in CTX:
                aes[0].add_requested_context(abstract, transfer)
            assoc = aes[0].associate(
                host,
                server.port,
                **call,
                **({"tls_args": (contexts[1], "localhost")} if tls else {}),
            )
            assert assoc.is_established
            assert assoc.send_c_echo().Status == 0
            theirs = kit.until(lambda: next(iter(server.associations), None))
            for end in (assoc, theirs):
                check_all(sock_of(end), connected=True)
                assert end.requestor.maximum_length == end.acceptor.maximum_length == 100_000
                conn = end.dul.connection
                assert (conn.cork, conn.pack_command, conn.quickack) == (True, True, True)
            assoc.release()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@on_linux
def test_the_window_is_agreed_with_the_buffer(fast: kit.World) -> None:
    """A receive buffer that is set after the connection is made comes too late for the window scale."""

    def scale(assoc: Any) -> int:
        return sock_of(assoc).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[6] >> 4

    small = TransportOptions(receive_buffer=20_000)
    scales = []
    for call in ({}, {"transport": small}):
        server = fast.serve(CTX, ECHO, **call)
        assoc = fast.connect(server, CTX, **call)
        scales.append((scale(assoc), scale(server.one())))
    assert scales[1] == (0, 0)
    assert min(scales[0]) > 0


# Whose hold -----------------------------------------------------------------------------------------------------


def limit_of(assoc: Any) -> int:
    """Which options an association has, told by one of them."""
    found: int = assoc._transport_options.max_message
    return found


def numbered(number: int) -> TransportOptions:
    return TransportOptions(max_message=number)


@pytest.mark.parametrize("installed", [False, True])
def test_who_wins(installed: bool) -> None:
    """The call, then the AE, then the process."""
    with (
        fastpdu.installed(numbered(10**6)) if installed else _nothing(),
        kit.world_of("fast", "fast") as world,
    ):
        process = 10**6 if installed else 0
        for ae_options, call_options, expected in (
            (None, None, process),
            (None, numbered(3), 3),
            (numbered(2), None, 2),
            (numbered(2), numbered(3), 3),
        ):
            call = {} if call_options is None else {"transport": call_options}
            for threaded in (True, False):
                ae = kit.make_ae("fast", "SCP")
                ae.transport = ae_options  # type: ignore[attr-defined]
                server = world.serve(CTX, ECHO, ae=ae, **call)
                ours = kit.make_ae("fast", "SCU")
                ours.transport = ae_options  # type: ignore[attr-defined]
                assoc = world.connect(server, CTX, ae=ours, **call)
                assert limit_of(assoc) == limit_of(server.one()) == expected
                assert assoc.send_c_echo().Status == 0
                # What was given for one association or server is not there for the next
                again = world.connect(server, ae=ours)
                assert limit_of(again) == (process if ae_options is None else 2)
                again.release()
                assoc.release()
                server.quiet()
                if threaded:
                    continue
                made = ae.make_server(("127.0.0.1", 0), evt_handlers=ECHO)
                assert made.transport is None
                made.server_close()


def test_an_ae_keeps_its_own_under_install() -> None:
    """Also one of pynetdicom's, that carries an attribute; anything else of that name is not ours."""
    with fastpdu.installed(numbered(1)), kit.world_of("stock", "stock") as world:
        for value, expected in ((numbered(2), 2), ("something else", 1), (None, 1)):
            scp, scu = kit.make_ae("stock", "SCP"), kit.make_ae("stock", "SCU")
            scp.transport = scu.transport = value  # type: ignore[attr-defined]
            server = world.serve(CTX, ECHO, ae=scp)
            for abstract, transfer in CTX:
                scu.add_requested_context(abstract, transfer)
            assoc = scu.associate(*server.address)
            assert assoc.is_established
            theirs = kit.until(lambda s=server: next(iter(s.associations), None))  # type: ignore[misc]
            assert limit_of(assoc) == limit_of(theirs) == expected
            assoc.release()


def test_options_of_a_running_server_can_change(fast: kit.World) -> None:
    server = fast.serve(CTX, ECHO)
    for number in (1, 2):
        server.ae.transport = numbered(number)  # type: ignore[attr-defined]
        assoc = fast.connect(server, CTX)
        assert limit_of(server.one()) == number
        assoc.release()
        server.quiet()


def test_calls_in_handlers_have_their_own(fast: kit.World) -> None:
    """A handler that runs while an association is made opens one itself: it does not get those options."""
    server = fast.serve(CTX, ECHO)
    inner: list[int] = []
    other = kit.make_ae("fast", "OTHER")
    for abstract, transfer in CTX:
        other.add_requested_context(abstract, transfer)

    def handler(event: evt.Event) -> None:
        assoc = other.associate(*server.address)
        inner.append(limit_of(assoc))
        assoc.release()
        made = other.make_server(("127.0.0.1", 0), contexts=server.ae.supported_contexts)
        inner.append(getattr(made.transport, "max_message", 0))
        made.server_close()

    assoc = fast.connect(server, CTX, [(evt.EVT_ACCEPTED, handler)], transport=numbered(5))
    assert limit_of(assoc) == 5
    assert inner == [0, 0]


class Custom(ThreadedAssociationServer):
    """A server of somebody's own, with an ``__init__`` of its own."""

    def __init__(
        self,
        ae: Any,
        address: Any,
        ae_title: str,
        contexts: Any,
        ssl_context: Any,
        evt_handlers: Any,
    ) -> None:
        super().__init__(ae, address, ae_title, contexts, ssl_context, evt_handlers)
        self.own = True


@pytest.mark.parametrize(
    "server_class", [None, AssociationServer, ThreadedAssociationServer, Custom]
)
def test_make_server(server_class: Any) -> None:
    ae = kit.make_ae("fast", "SCP")
    ae.add_supported_context(data.VERIFICATION)
    options = TransportOptions(send_buffer=40_000)
    server = ae.make_server(("127.0.0.1", 0), server_class=server_class, transport=options)
    try:
        assert isinstance(server, server_class or AssociationServer)
        assert server.transport is options
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (40_000, 80_000)
    finally:
        server.server_close()


# Refused ---------------------------------------------------------------------------------------------------------

BAD = {"congestion_control": "no-such-thing"}


@on_linux
@pytest.mark.parametrize("way", ["fast", "installed"])
def test_a_refused_option_is_an_error_of_the_call(way: str, fast: kit.World) -> None:
    """`associate` and `start_server` raise it, and leave nothing behind."""
    bad = TransportOptions(**BAD)  # type: ignore[arg-type]
    server = fast.serve(CTX, ECHO)
    ae = kit.make_ae("fast" if way == "fast" else "stock", "AE")
    ae.add_requested_context(data.VERIFICATION)
    ae.add_supported_context(data.VERIFICATION)
    with fastpdu.installed(bad) if way == "installed" else _nothing():
        ae.transport = bad  # type: ignore[attr-defined]
        for call in (
            lambda: ae.associate(*server.address),
            lambda: ae.start_server(("127.0.0.1", 0), block=False),
        ):
            with pytest.raises(
                OSError, match="refuses congestion_control='no-such-thing'"
            ) as caught:
                call()
            assert caught.value.errno == errno.ENOENT
    assert not ae._servers
    assert not ae.active_associations
    ae.transport = TransportOptions() if way == "fast" else None  # type: ignore[attr-defined]
    assoc = ae.associate(*server.address)
    assert assoc.is_established
    kit.mend(assoc)
    assert assoc.send_c_echo().Status == 0
    assoc.release()


@on_linux
def test_a_running_server_refuses_the_connection_and_goes_on(
    fast: kit.World, caplog: pytest.LogCaptureFixture
) -> None:
    server = fast.serve(CTX, ECHO)
    server.ae.transport = TransportOptions(**BAD)  # type: ignore[attr-defined, arg-type]
    with caplog.at_level(logging.ERROR, "fastpdu.transport"):
        assoc = fast.connect(server, CTX, established=False)
        assert not assoc.is_established
        kit.until(lambda: "was refused" in caplog.text)
    assert "congestion_control='no-such-thing'" in caplog.text
    server.ae.transport = None  # type: ignore[attr-defined]
    assert fast.connect(server, CTX).send_c_echo().Status == 0


@on_linux
@pytest.mark.parametrize("installed", [False, True])
def test_an_acceptor_has_nothing_of_its_ae(installed: bool) -> None:
    """The options of a server and its AE are not mixed on an accepted socket, which is tuned once."""
    with (
        fastpdu.installed(TransportOptions(keepalive=90)) if installed else _nothing(),
        kit.world_of("fast", "fast") as world,
    ):
        ae = kit.make_ae("fast", "SCP")
        ae.transport = TransportOptions(user_timeout=5, keepalive=60)  # type: ignore[attr-defined]
        server = world.serve(CTX, ECHO, ae=ae, transport=TransportOptions())
        assoc = world.connect(server, CTX)
        assert assoc.send_c_echo().Status == 0
        theirs = sock_of(server.one())
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


@on_linux
@pytest.mark.parametrize("installed", [False, True])
def test_a_servers_options_are_enough(installed: bool) -> None:
    """Options of the AE that the system refuses do not matter to a server with its own."""
    with (
        fastpdu.installed() if installed else _nothing(),
        kit.world_of("fast", "fast") as world,
    ):
        ae = kit.make_ae("fast", "SCP")
        ae.transport = TransportOptions(**BAD)  # type: ignore[attr-defined, arg-type]
        server = world.serve(CTX, ECHO, ae=ae, transport=numbered(7))
        assoc = world.connect(server, CTX)
        assert assoc.send_c_echo().Status == 0
        assert limit_of(server.one()) == 7


# max_pdu ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "told", "announced"),
    [
        (None, None, 16382),
        (None, 5000, 5000),
        (65536, None, 65536),
        (0, None, 0),
        (7, None, 7),
        (65536, 5000, 5000),
        (65536, 0, 0),
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_what_is_announced(
    installed: bool, option: int | None, told: int | None, announced: int
) -> None:
    """The option takes the place of pynetdicom's default; anything else that pynetdicom was told wins."""
    kind = "stock" if installed else "fast"
    options = TransportOptions(max_pdu=option)
    with kit.world_of(kind, kind) as world:
        scp, scu = kit.make_ae(kind, "SCP"), kit.make_ae(kind, "SCU")
        if told is not None:
            scp.maximum_pdu_size = told
        if not installed:
            scp.transport = scu.transport = options  # type: ignore[attr-defined]
        seen: list[int] = []
        stored: list[str] = []

        def store(event: evt.Event) -> int:
            stored.append(kit.sha(event.dataset.PixelData))
            return 0

        def accepted(event: evt.Event) -> None:
            seen.append(event.assoc.requestor.maximum_length)

        with fastpdu.installed(options) if installed else _nothing():
            server = world.serve(
                CTX, [(evt.EVT_ACCEPTED, accepted), (evt.EVT_C_STORE, store)], ae=scp
            )
            for abstract, transfer in CTX:
                scu.add_requested_context(abstract, transfer)
            given = {} if told is None else {"max_pdu": told}
            assoc = scu.associate(*server.address, **given)
            assert assoc.is_established
            image = data.image(1, 600)
            assert assoc.send_c_store(image).Status == 0
            assoc.release()
        assert seen == [announced]
        assert assoc.acceptor.maximum_length == announced
        assert stored == [kit.sha(image.PixelData)]


# pack_command ----------------------------------------------------------------------------------------------------


class Shapes:
    """How many PDVs the P-DATA-TF PDUs had that an association got."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, event: evt.Event) -> None:
        if event.pdu.pdu_type == 4:
            items = event.pdu.presentation_data_value_items
            self.seen.append([item.presentation_data_value[0] for item in items])


@pytest.mark.parametrize("max_pdu", [7, 12, 150, 333, 16382, 0])
def test_packed_messages_mean_the_same(world: kit.World, max_pdu: int) -> None:
    """Both ends pack, if they are fast: stock reads it, and so does the engine, to the same results."""
    packing = TransportOptions(pack_command=True)
    attributes = {"maximum_pdu_size": max_pdu}
    stored: list[str] = []

    def store(event: evt.Event) -> int:
        stored.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    def find(event: evt.Event) -> Iterator[Any]:
        for number in range(3):
            yield 0xFF00, data.query(PatientID=f"{event.identifier.PatientID}{number}")

    scp = kit.make_ae(world.scp, "SCP", **attributes)
    scu = kit.make_ae(world.scu, "SCU")
    for ae, kind in ((scp, world.scp), (scu, world.scu)):
        if kind == "fast":
            ae.transport = packing  # type: ignore[attr-defined]
    syntaxes = [*CTX, (data.STUDY_FIND, data.EXPLICIT)]
    server = world.serve(
        syntaxes, [(evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find), *ECHO], ae=scp
    )
    assoc = world.connect(server, syntaxes, ae=scu, max_pdu=max_pdu)
    images = [data.image(number, 400 * number, seed=3) for number in range(1, 4)]
    for image in images:
        assert assoc.send_c_echo().Status == 0
        assert assoc.send_c_store(image).Status == 0
    query = data.query(QueryRetrieveLevel="STUDY", PatientID="P")
    found = list(assoc.send_c_find(query, data.STUDY_FIND))
    assert [identifier.PatientID for _, identifier in found[:-1]] == ["P0", "P1", "P2"]
    assert [status.Status for status, _ in found] == [0xFF00] * 3 + [0]
    assoc.release()
    assert stored == [kit.sha(encode(image, False, True) or b"") for image in images]


def test_what_stock_sees_of_packed_messages() -> None:
    """One PDU with both, and off by default; not from an association that somebody watches."""
    if "stock" not in kit.KINDS:
        pytest.skip("about a stock end")
    for options, watched, expected in (
        (TransportOptions(), False, [[3], [2]]),
        (TransportOptions(pack_command=True), False, [[3, 2]]),
        (TransportOptions(pack_command=True), True, [[3], [2]]),
    ):
        with kit.world_of("fast", "stock") as world:
            shapes = Shapes()
            server = world.serve(
                CTX, [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_PDU_RECV, shapes)]
            )
            watching = [(evt.EVT_PDU_SENT, lambda event: None)] if watched else []
            assoc = world.connect(server, CTX, watching, transport=options)
            assert assoc.send_c_store(data.image(1, 100)).Status == 0
            assoc.release()
            assert shapes.seen == expected


def test_packed_from_a_file(fast: kit.World, tmp_path: Any) -> None:
    """A path is streamed: it is packed all the same."""
    image = data.image(1, 300_000)
    path = tmp_path / "image.dcm"
    image.save_as(path, enforce_file_format=True)
    stored: list[str] = []

    def store(event: evt.Event) -> int:
        stored.append(kit.sha(event.dataset.PixelData))
        return 0

    server = fast.serve(CTX, [(evt.EVT_C_STORE, store)])
    assoc = fast.connect(
        server, CTX, transport=TransportOptions(pack_command=True, cork=engine.CAN_CORK)
    )
    for _ in range(3):
        assert assoc.send_c_store(path).Status == 0
    assert stored == [kit.sha(image.PixelData)] * 3


# quickack --------------------------------------------------------------------------------------------------------


class Order:
    """The order of reads, waits and TCP_QUICKACK of the Python engine, by socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: dict[int, list[str]] = {}
        self.owners: dict[int, Any] = {}
        monkeypatch.setattr(engine, "connect", self._connect)
        for name in ("FdConnection", "SocketConnection"):
            self._watch_reads(monkeypatch, getattr(_pure, name))
        set_option, poll = _pure._set_option, _pure._poll

        def record_option(sock: Any, name: str, value: int) -> None:
            if name == "TCP_QUICKACK":
                self._add(sock.fileno(), "quickack")
            set_option(sock, name, value)

        def record_poll(readable: Any, writable: Any, seconds: float) -> Any:
            if seconds > 0:
                for fd in readable:
                    self._add(fd, "wait")
            return poll(readable, writable, seconds)

        monkeypatch.setattr(_pure, "_set_option", record_option)
        monkeypatch.setattr(_pure, "_poll", record_poll)

    def _connect(self, sock: Any) -> Any:
        conn = _pure.connect(sock)
        self.owners[conn._fileno()] = sock.getsockname()
        self.events[conn._fileno()] = []
        return conn

    def _watch_reads(self, monkeypatch: pytest.MonkeyPatch, cls: Any) -> None:
        read_into: Callable[..., None] = cls._read_into

        def record(conn: Any, read: Any) -> None:
            read_into(conn, read)
            self._add(conn._fileno(), "read")

        monkeypatch.setattr(cls, "_read_into", record)

    def _add(self, fd: int, event: str) -> None:
        if fd in self.events:
            self.events[fd].append(event)

    def unarmed(self) -> list[list[str]]:
        """What went before each wait that followed a read without TCP_QUICKACK between them."""
        found = []
        for events in self.events.values():
            armed = True
            for at, event in enumerate(events):
                if event == "read":
                    armed = False
                elif event == "quickack":
                    armed = True
                elif not armed:
                    found.append(events[max(at - 3, 0) : at + 1])
        return found


@on_linux
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("watched", [False, True], ids=["direct", "reactor"])
@pytest.mark.parametrize("wanted", [None, False])
def test_quickack_before_every_wait_that_follows_a_read(
    monkeypatch: pytest.MonkeyPatch, contexts: Any, tls: bool, watched: bool, wanted: bool | None
) -> None:
    """Negotiation, every kind of service, and release: on both sides, in both modes, over both backends."""
    order = Order(monkeypatch)
    options = TransportOptions(quickack=wanted)
    watching = [(evt.EVT_PDU_RECV, lambda event: None)] if watched else []

    def find(event: evt.Event) -> Iterator[Any]:
        for number in range(3):
            yield 0xFF00, data.query(PatientID=str(number))

    def get(event: evt.Event) -> Iterator[Any]:
        yield 2
        for number in (1, 2):
            yield 0xFF00, data.image(number, 50_000)

    handlers = [
        *ECHO,
        *watching,
        (evt.EVT_C_STORE, lambda event: 0),
        (evt.EVT_C_FIND, find),
        (evt.EVT_C_GET, get),
        (evt.EVT_N_GET, lambda event: (0, data.query(PatientID="P"))),
    ]
    syntaxes = [
        *CTX,
        *((s, data.EXPLICIT) for s in (data.STUDY_FIND, data.STUDY_GET, data.PRINTER)),
    ]
    with kit.world_of("fast", "fast") as world:
        server = world.serve(
            syntaxes,
            handlers,
            roles=True,
            transport=options,
            **({"ssl_context": contexts[0]} if tls else {}),
        )
        assoc = world.connect(
            server,
            syntaxes,
            [*watching, (evt.EVT_C_STORE, lambda event: 0)],
            ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
            transport=options,
            **({"tls_args": (contexts[1], "localhost")} if tls else {}),
        )
        query = data.query(QueryRetrieveLevel="STUDY", PatientID="P")
        for _ in range(2):
            assert assoc.send_c_echo().Status == 0
            assert assoc.send_c_store(data.image(1, 300_000)).Status == 0
            assert len(list(assoc.send_c_find(query, data.STUDY_FIND))) == 4
            got = list(assoc.send_c_get(query, data.STUDY_GET))
            assert got[-1][0].Status == 0
            status, _ = assoc.send_n_get([0x00100020], data.PRINTER, f"{data.ROOT}9")
            assert status.Status == 0
        assoc.release()
        server.quiet()
    assert len(order.events) == 2
    for events in order.events.values():
        assert ("quickack" in events) is (wanted is not False)
        assert "read" in events
        assert "wait" in events
    assert bool(order.unarmed()) is (wanted is False)


@on_linux
def test_segments_of_packed_and_corked_messages_are_whole(fast: kit.World) -> None:
    """With small segments agreed, all options together move a series unharmed."""
    everything = TransportOptions(**ALL)  # type: ignore[arg-type]
    stored: list[str] = []

    def store(event: evt.Event) -> int:
        stored.append(kit.sha(event.dataset.PixelData))
        return 0

    server = fast.serve(CTX, [(evt.EVT_C_STORE, store)], transport=everything)
    assoc = fast.connect(server, CTX, transport=everything)
    images = [data.image(number, 200_000, seed=9) for number in range(1, 6)]
    for image in images:
        assert assoc.send_c_store(image).Status == 0
    assert stored == [kit.sha(image.PixelData) for image in images]
    mss = struct.unpack_from(
        "I", sock_of(assoc).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 20), 16
    )
    assert mss[0] <= 1000


def test_a_server_of_another_kind_has_no_ae() -> None:
    """Servers that are built on pynetdicom's, without its constructor, listen like any other."""

    class Parrot(AssociationServer):
        def __init__(self) -> None:
            self.ssl_context = None
            TCPServer.__init__(self, ("127.0.0.1", 0), StreamRequestHandler)

        def server_bind(self) -> None:
            TCPServer.server_bind(self)

    with fastpdu.installed(TransportOptions(receive_buffer=65536)), Parrot() as server:
        assert server.socket is not None
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 65536
