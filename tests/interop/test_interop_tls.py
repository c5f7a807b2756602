"""DCMTK's programs over TLS: storescu, storescp, dcmqrscp, and each of their profiles."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers
from helpers.pem import Pem
from pynetdicom import evt

from fastpdu.tls import client_context, server_context

pytestmark = pytest.mark.interop

KIND = kit.KINDS[-1]
CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.IMPLICIT)]
SIZES = (2, 5000, 16384, 100_000, 2_000_000)


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    made = Pem(tmp_path_factory.mktemp("pem"))
    if "+tls" not in peers.run("storescu", "--help"):
        pytest.skip("this DCMTK was built without OpenSSL")
    return made


def theirs(pem: Pem) -> list[str]:
    """Make DCMTK use TLS, with a certificate of its own; it verifies that of its peer."""
    return ["+tls", str(pem.client_key), str(pem.client), "+cf", str(pem.ca)]


def shakes(pem: Pem, port: int) -> bool:
    """Whether a TLS server answers on this port."""
    context = client_context(pem.ca, pem.client, pem.client_key, check_hostname=False)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
            context.wrap_socket(sock),
        ):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("profile", ["bcp195", "bcp195-modified"])
@pytest.mark.parametrize("option", ["+py", "+px", "+pz"])
@pytest.mark.parametrize("mutual", [False, True], ids=["server-cert", "mutual"])
def test_storescu(
    world: kit.World, files: data.Files, pem: Pem, option: str, profile: Any, mutual: bool
) -> None:
    """Each profile of theirs (non-downgrading, plain and extended BCP 195) finds a suite with ours."""
    paths = [files.made(number, size) for number, size in enumerate(SIZES, 1)]
    got: list[Any] = []

    def handler(event: evt.Event) -> int:
        ds = event.dataset
        got.append((str(ds.SOPInstanceUID), str(ds.PatientID), kit.sha(ds.PixelData)))
        return 0

    context = server_context(
        pem.certificate, pem.key, client_ca=pem.ca if mutual else None, profile=profile
    )
    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)], ssl_context=context)
    with kit.road_delta() as delta:
        peers.run("storescu", *theirs(pem), option, "127.0.0.1", server.port, *paths)
        server.quiet()
    assert got == [peers.part10_key(path) for path in paths]
    if KIND == "fast":
        assert delta["stock_sent"] == delta["stock_received"] == 0


def test_storescu_that_is_not_known(world: kit.World, files: data.Files, pem: Pem) -> None:
    server = world.serve(
        CTX,
        [(evt.EVT_C_STORE, lambda event: 0)],
        ssl_context=server_context(pem.certificate, pem.key, client_ca=pem.other_ca),
    )
    path = files.made(1, 100)
    assert peers.run("storescu", *theirs(pem), "127.0.0.1", server.port, path, ok=False)
    known = server_context(pem.certificate, pem.key, client_ca=pem.ca)
    other = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)], ssl_context=known)
    peers.run("storescu", *theirs(pem), "127.0.0.1", other.port, path)


@pytest.mark.parametrize("option", ["+py", "+px", "+pz"])
@pytest.mark.parametrize("pdu", [4096, 16384, 131072])
def test_storescp(
    world: kit.World, files: data.Files, pem: Pem, tmp_path: Path, option: str, pdu: int
) -> None:
    paths = [files.made(number, size) for number, size in enumerate(SIZES, 1)]
    received = tmp_path / "received"
    received.mkdir()

    def command(port: int) -> list[str]:
        options = [*theirs(pem), option, "-pdu", str(pdu), "-od", str(received)]
        return [peers.program("storescp"), *options, str(port)]

    context = client_context(pem.ca, pem.client, pem.client_key, check_hostname=False)
    with (
        peers.background(
            command, tmp_path / "log", ready=lambda port: shakes(pem, port), cwd=tmp_path
        ) as port,
        kit.road_delta() as delta,
    ):
        assoc = world.connect(("127.0.0.1", port), CTX, tls_args=(context, "localhost"))
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
        assoc.release()
        assert assoc.is_released
    assert sorted(peers.part10_key(path) for path in received.iterdir()) == sorted(
        peers.part10_key(path) for path in paths
    )
    if KIND == "fast":
        assert delta["stock_sent"] == delta["stock_received"] == 0


def test_the_name_of_their_certificate_is_checked(
    world: kit.World, pem: Pem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def command(port: int) -> list[str]:
        return [peers.program("storescp"), *theirs(pem), str(port)]

    with peers.background(
        command, tmp_path / "log", ready=lambda port: shakes(pem, port), cwd=tmp_path
    ) as port:
        assoc = world.connect(
            ("127.0.0.1", port),
            CTX,
            tls_args=(client_context(pem.ca, pem.client, pem.client_key), "localhost"),
            established=False,
        )
        assert assoc.is_aborted
        assert "not valid for 'localhost'" in caplog.text


def test_dcmqrscp(world: kit.World, files: data.Files, pem: Pem, tmp_path: Path) -> None:
    """Their archive: stored, then found, over TLS."""
    storage = tmp_path / "storage"
    storage.mkdir()
    configuration = tmp_path / "dcmqrscp.cfg"

    def command(port: int) -> list[str]:
        configuration.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nARCHIVE {storage} RW (100, 100mb) ANY\nAETable END\n"
        )
        return [
            peers.program("dcmqrscp"),
            *theirs(pem),
            *("-c", str(configuration), str(port)),
        ]

    if "+tls" not in peers.run("dcmqrscp", "--help"):
        pytest.skip("this dcmqrscp was built without OpenSSL")
    paths = [files.made(number, size) for number, size in enumerate(SIZES, 1)]
    context = client_context(pem.ca, pem.client, pem.client_key, check_hostname=False)
    contexts = [*CTX, (data.STUDY_FIND, data.EXPLICIT)]
    with peers.background(
        command, tmp_path / "log", ready=lambda port: shakes(pem, port), cwd=tmp_path
    ) as port:
        assoc = world.connect(
            ("127.0.0.1", port), contexts, tls_args=(context, "localhost"), ae_title="ARCHIVE"
        )
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
        query = data.query(PatientID="*", StudyInstanceUID="")
        answers = list(assoc.send_c_find(query, data.STUDY_FIND))
        assert answers[-1][0].Status == 0
        assert len(answers) > 1
        assoc.release()


def test_their_plain_program_on_a_tls_port(world: kit.World, pem: Pem, files: data.Files) -> None:
    server = world.serve(
        CTX,
        [(evt.EVT_C_STORE, lambda event: 0)],
        ssl_context=server_context(pem.certificate, pem.key),
    )
    output = peers.run("storescu", "127.0.0.1", server.port, files.made(1, 100), ok=False)
    assert "Association Request Failed" in output
    peers.run("storescu", *theirs(pem), "127.0.0.1", server.port, files.made(1, 100))


def test_versions(world: kit.World, pem: Pem) -> None:
    """What is agreed on with a DCMTK of TLS 1.3 or, before 3.6.8, of TLS 1.2."""
    agreed: list[Any] = []

    def opened(event: evt.Event) -> None:
        sock = event.assoc.dul.socket.socket
        assert isinstance(sock, ssl.SSLSocket)
        agreed.append((sock.version(), sock.cipher()))

    server = world.serve(
        [data.VERIFICATION],
        [(evt.EVT_C_ECHO, lambda event: 0), (evt.EVT_CONN_OPEN, opened)],
        ssl_context=server_context(pem.certificate, pem.key),
    )
    peers.run("echoscu", *theirs(pem), "127.0.0.1", server.port)
    ((version, cipher),) = agreed
    assert version in ("TLSv1.2", "TLSv1.3")
    assert cipher[2] >= 128
