"""TLS (also mutual), and IPv6."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any

import pytest
import trustme
from helpers import data, kit
from helpers.pem import SECRET, Pem
from pynetdicom import evt

from fastpdu.tls import PROFILES, client_context, server_context

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]


class Authority:
    """A CA made for this run, and one that nobody trusts."""

    def __init__(self) -> None:
        self.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.stranger = trustme.CA(key_type=trustme.KeyType.ECDSA)

    def server(self, ca: trustme.CA | None = None, mutual: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (ca or self.ca).issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client(self, cert: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if cert:
            cert.issue_cert("client@example.org").configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Sink:
    def __init__(self) -> None:
        self.got: list[str] = []

    def __call__(self, event: evt.Event) -> int:
        self.got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self), (evt.EVT_C_ECHO, lambda event: 0)]


@pytest.mark.parametrize("mutual", [False, True], ids=["server-cert", "mutual"])
@pytest.mark.parametrize("pdu", [0, 16382, 100])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(
    world: kit.World,
    files: data.Files,
    authority: Authority,
    mutual: bool,
    pdu: int,
    version: ssl.TLSVersion,
) -> None:
    """Objects smaller and larger than a TLS record, PDUs smaller and larger than one."""
    sink = Sink()
    server_context = authority.server(mutual=mutual)
    server_context.maximum_version = version
    server = world.serve(
        CTX, sink.handlers, ssl_context=server_context, attributes={"maximum_pdu_size": pdu}
    )
    client = authority.client(authority.ca if mutual else None)
    assoc = world.connect(server, CTX, tls_args=(client, "localhost"), max_pdu=pdu)
    assert assoc.dul.socket.socket.version() == version.name.replace("v1_", "v1.")
    sizes = [100, 20000] if pdu == 100 else [100, 16384, 20000, 3_000_000]
    paths = [files.made(number, size) for number, size in enumerate(sizes, 1)]
    with kit.road_delta() as delta:
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
            assert assoc.send_c_echo().Status == 0
    assert sink.got == [kit.sha(data.payload(path)) for path in paths]
    assert delta["stock_sent"] == delta["stock_received"] == 0
    assert delta["fast_sent"] == 2 * len(paths) * world.fast_ends
    assoc.release()
    assert assoc.is_released


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Pem(tmp_path_factory.mktemp("pem"))


@pytest.mark.parametrize("profile", PROFILES)
def test_tls_contexts_of_ours(world: kit.World, files: data.Files, pem: Pem, profile: Any) -> None:
    """What `fastpdu.tls` makes works on either transport; the key has a password."""
    sink = Sink()
    accepting = server_context(
        pem.certificate, pem.locked, password=SECRET, client_ca=pem.ca, profile=profile
    )
    requesting = client_context(pem.ca, pem.client, pem.client_key, profile=profile)
    server = world.serve(CTX, sink.handlers, ssl_context=accepting)
    nobody = client_context(pem.ca, profile=profile)
    assoc = world.connect(server, CTX, tls_args=(nobody, "localhost"), established=False)
    assert assoc.is_aborted
    paths = [files.made(number, size) for number, size in enumerate((10, 16_000, 700_000), 1)]
    for _ in range(2):
        assoc = world.connect(server, CTX, tls_args=(requesting, "localhost"))
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
        assoc.release()
        assert assoc.is_released
    assert sink.got == [kit.sha(data.payload(path)) for path in paths] * 2


def test_tls_many_at_once(world: kit.World, files: data.Files, authority: Authority) -> None:
    """Associations that send at the same time, each from a thread of its own."""
    sink = Sink()
    server = world.serve(
        CTX,
        sink.handlers,
        ssl_context=authority.server(),
        attributes={"maximum_associations": 10},
    )
    path = files.made(4, 600_000)
    assocs = [
        world.connect(server, CTX, tls_args=(authority.client(), "localhost")) for _ in range(6)
    ]
    checks = kit.Checks()

    @checks
    def send(assoc: Any) -> None:
        for _ in range(4):
            assert assoc.send_c_store(path).Status == 0
            assert assoc.send_c_echo().Status == 0

    threads = [
        threading.Thread(target=send, args=(assoc,), name=f"user-{number}")
        for number, assoc in enumerate(assocs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(kit.DEADLINE * 2)
    checks.verify(6)
    assert sink.got == [kit.sha(data.payload(path))] * 24


def test_tls_large(world: kit.World, files: data.Files, authority: Authority) -> None:
    path = files.made(32, 32 * 2**20)
    sink = Sink()
    server = world.serve(
        CTX,
        sink.handlers,
        ssl_context=authority.server(),
        attributes={"maximum_pdu_size": 1 << 17},
    )
    assoc = world.connect(server, CTX, tls_args=(authority.client(), "localhost"))
    assert assoc.send_c_store(path).Status == 0
    assert sink.got == [kit.sha(data.payload(path))]


def test_tls_find(world: kit.World, authority: Authority) -> None:
    """Many small messages: several PDUs may share a TLS record."""

    def handler(event: evt.Event) -> Any:
        for number in range(60):
            yield 0xFF00, data.query(PatientID=str(number))
        yield 0x0000, None

    contexts = [(data.STUDY_FIND, data.EXPLICIT)]
    server = world.serve(contexts, [(evt.EVT_C_FIND, handler)], ssl_context=authority.server())
    assoc = world.connect(server, contexts, tls_args=(authority.client(), "localhost"))
    answers = list(assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND))
    assert [ds.PatientID for _, ds in answers[:-1]] == [str(number) for number in range(60)]


@pytest.mark.parametrize("case", ["unknown ca", "wrong name", "no client cert", "wrong client"])
def test_tls_refused(world: kit.World, authority: Authority, case: str) -> None:
    """A bad certificate: not established, the listener goes on."""
    mutual = "client" in case
    server = world.serve(
        CTX,
        Sink().handlers,
        ssl_context=authority.server(
            ca=authority.stranger if case == "unknown ca" else None, mutual=mutual
        ),
    )
    client = authority.client(authority.stranger if case == "wrong client" else None)
    name = "example.org" if case == "wrong name" else "localhost"
    assoc = world.connect(server, CTX, tls_args=(client, name), established=False)
    assert assoc.is_aborted
    kit.until(lambda: not assoc.is_alive())
    if case != "unknown ca":
        good = authority.client(authority.ca)
        assoc = world.connect(server, CTX, tls_args=(good, "localhost"))
        assert assoc.send_c_echo().Status == 0


def test_plain_peer_on_a_tls_port(world: kit.World, authority: Authority) -> None:
    server = world.serve(CTX, Sink().handlers, ssl_context=authority.server())
    assoc = world.connect(server, CTX, established=False)
    assert assoc.is_aborted
    good = authority.client()
    assoc = world.connect(server, CTX, tls_args=(good, "localhost"))
    assert assoc.send_c_echo().Status == 0


def test_tls_peer_on_a_plain_port(world: kit.World, authority: Authority) -> None:
    server = world.serve(CTX, Sink().handlers)
    assoc = world.connect(
        server,
        CTX,
        tls_args=(authority.client(), "localhost"),
        established=False,
        attributes={"network_timeout": 1},
    )
    assert assoc.is_aborted
    assert world.connect(server, CTX).send_c_echo().Status == 0


@pytest.mark.parametrize("side", ["scu", "scp"])
def test_tls_abort(world: kit.World, authority: Authority, side: str) -> None:
    server = world.serve(CTX, Sink().handlers, ssl_context=authority.server())
    assoc = world.connect(server, CTX, tls_args=(authority.client(), "localhost"))
    acceptor = server.one()
    assert assoc.send_c_store(data.image(1)).Status == 0
    (assoc if side == "scu" else acceptor).abort()
    kit.until(lambda: assoc.is_aborted and acceptor.is_aborted)
    server.quiet()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_ipv6(
    world: kit.World,
    files: data.Files,
    authority: Authority,
    encrypted: bool,
) -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 loopback on this machine")
    sink = Sink()
    context = authority.server() if encrypted else None
    server = world.serve(CTX, sink.handlers, host="::1", ssl_context=context)
    tls = (authority.client(), "localhost") if encrypted else None
    assoc = world.connect(server, CTX, tls_args=tls)
    acceptor = server.one()
    assert acceptor.remote["address"] == "::1"
    assert acceptor.requestor.address_info.is_ipv6
    path = files.made(3, 100_000)
    assert assoc.send_c_store(path).Status == 0
    assert sink.got == [kit.sha(data.payload(path))]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_bind_address(world: kit.World) -> None:
    """The requestor binds to an address and port of its own."""
    ports: list[Any] = []
    server = world.serve(
        CTX,
        [*Sink().handlers, (evt.EVT_CONN_OPEN, lambda event: ports.append(event.address))],
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assoc = world.connect(server, CTX, bind_address=("127.0.0.1", port))
    assert assoc.send_c_echo().Status == 0
    assert ports == [("127.0.0.1", port)]
