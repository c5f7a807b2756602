"""`fastpdu echo`, and what goes wrong between us and a peer: each failure has its message, remedy and exit status."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers import data, kit, peers, raw
from pynetdicom import evt

from fastpdu import cli
from fastpdu.latency import Latencies

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

CTX = [(data.VERIFICATION, data.IMPLICIT)]
Echo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def echo(capsys: pytest.CaptureFixture[str]) -> Echo:
    """Run `fastpdu echo` on a port of this host: its exit status and both streams."""

    def run(port: int, *arguments: object, command: str = "echo") -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([command, "127.0.0.1", str(port), *map(str, arguments)])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return status, output.out, output.err

    return run


@pytest.fixture
def scp() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


def test_one(scp: kit.World, echo: Echo) -> None:
    server = scp.serve(CTX)
    status, out, err = echo(server.port, "-aec", "SCP")
    assert (status, err) == (0, "")
    assert "SCP at 127.0.0.1" in out
    assert "C-ECHO" in out


def test_many(scp: kit.World, echo: Echo) -> None:
    seen: list[int] = []

    def handler(event: evt.Event) -> int:
        seen.append(event.request.MessageID)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_ECHO, handler)])
    status, out, _ = echo(server.port, "-c", 50)
    assert status == 0
    assert seen == list(range(1, 51))
    for word in ("50 C-ECHOs", "min", "median", "p90", "p99", "max"):
        assert word in out


def test_json(scp: kit.World, echo: Echo) -> None:
    server = scp.serve(CTX)
    status, out, err = echo(
        server.port, *("--count", 5, "--interval", 0.001, "--json", "-aet", "ME", "-aec", "YOU")
    )
    assert (status, err) == (0, "")
    content = json.loads(out)
    assert content["schema"] == 1
    assert content["exit_status"] == 0
    assert content["peer"] == {
        "host": "127.0.0.1",
        "port": server.port,
        "calling": "ME",
        "called": "YOU",
        "tls": False,
    }
    found = content["echo"]
    assert found["count"] == 5
    assert 0 < found["min_ms"] <= found["median_ms"] <= found["p90_ms"] <= found["max_ms"]
    assert content["failures"] == {}


def test_titles(scp: kit.World, echo: Echo) -> None:
    titles: list[Any] = []

    def handler(event: evt.Event) -> None:
        titles.append((event.assoc.requestor.ae_title, event.assoc.acceptor.primitive))

    server = scp.serve(CTX, [(evt.EVT_ACCEPTED, handler)])
    assert echo(server.port, "--calling-aet", "SIXTEEN CHARS OK")[0] == 0
    assert titles[0][0] == "SIXTEEN CHARS OK"


def test_debug_log_goes_to_stderr(scp: kit.World, echo: Echo) -> None:
    import logging

    logger = logging.getLogger("pynetdicom")
    before, level = list(logger.handlers), logger.level
    try:
        server = scp.serve(CTX)
        _, out, _ = echo(server.port, "-d", "--json")
        json.loads(out)
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)


def test_failure_status(scp: kit.World, echo: Echo) -> None:
    server = scp.serve(CTX, [(evt.EVT_C_ECHO, lambda event: 0x0122)])
    status, _, err = echo(server.port, "-c", 3)
    assert status == 1
    assert "0x0122 (3x)" in err


# Both commands fail alike where there is no association ---------------------------------------------------------

both = pytest.mark.parametrize("command", ["echo", "doctor"])


@both
def test_refused(echo: Echo, command: str) -> None:
    status, out, err = echo(peers.free_port(), command=command)
    assert (status, out) == (3, "")
    assert "refuses the connection" in err
    assert "listening" in err


@both
def test_error_in_json(echo: Echo, command: str) -> None:
    status, out, err = echo(peers.free_port(), "--json", command=command)
    content = json.loads(out)
    assert status == content["exit_status"] == 3
    assert content["error"]["kind"] == "no-connection"
    assert content["error"]["message"] in err
    assert content["error"]["remedy"]


@both
def test_no_such_host(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "no-such-host.invalid", "104"]) == 3
    assert "there is no host 'no-such-host.invalid'" in capsys.readouterr().err


@both
def test_called_title_not_recognised(scp: kit.World, echo: Echo, command: str) -> None:
    server = scp.serve(CTX, attributes={"require_called_aet": True})
    status, _, err = echo(server.port, "-aec", "WRONG", command=command)
    assert status == 4
    assert "called ae title not recognised" in err
    assert "'WRONG'" in err
    assert "-aec" in err


@both
def test_calling_title_not_recognised(scp: kit.World, echo: Echo, command: str) -> None:
    server = scp.serve(CTX, attributes={"require_calling_aet": ["SOMEBODY"]})
    status, _, err = echo(server.port, command=command)
    assert status == 4
    assert "-aet" in err


@both
def test_context_rejected(scp: kit.World, echo: Echo, command: str) -> None:
    server = scp.serve([(data.CT, data.EXPLICIT)])
    status, _, err = echo(server.port, command=command)
    assert status == 4
    assert "not Verification SOP Class" in err


def web_server(peer: raw.Peer) -> None:
    peer.sock.recv(65536)
    peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    peer.at_end()


@both
def test_no_dicom_peer(echo: Echo, command: str) -> None:
    with raw.Acceptor(web_server) as acceptor:
        status, _, err = echo(acceptor.address[1], command=command)
    assert status == 5
    assert "not DICOM" in err
    assert "--tls" in err


@both
def test_aborted(echo: Echo, command: str) -> None:
    def script(peer: raw.Peer) -> None:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(raw.pdu(raw.ABORT, bytes(4)))
        peer.at_end()

    with raw.Acceptor(script) as acceptor:
        status, _, err = echo(acceptor.address[1], command=command)
    assert status == 5
    assert "aborted the association request" in err


@both
def test_closed(echo: Echo, command: str) -> None:
    with raw.Acceptor(lambda peer: peer.expect(raw.ASSOCIATE_RQ)) as acceptor:
        status, _, err = echo(acceptor.address[1], command=command)
    assert status == 5
    assert "closed the connection" in err


@both
def test_no_answer_to_the_association_request(echo: Echo, command: str) -> None:
    with raw.Acceptor(lambda peer: peer.at_end()) as acceptor:
        status, _, err = echo(acceptor.address[1], "-ta", 0.3, command=command)
    assert status == 6
    assert "did not answer the association request" in err


@both
def test_no_answer_to_the_request(echo: Echo, command: str) -> None:
    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        peer.at_end()

    with raw.Acceptor(script) as acceptor:
        status, _, err = echo(acceptor.address[1], "-td", 0.3, command=command)
    assert status == 6
    assert "did not answer the C-ECHO" in err


@both
@pytest.mark.parametrize("how", ["abort", "close"])
def test_ended_in_place_of_an_answer(echo: Echo, command: str, how: str) -> None:
    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        peer.message()
        if how == "abort":
            peer.send(raw.pdu(raw.ABORT, bytes(4)))
            peer.at_end()

    with raw.Acceptor(script) as acceptor:
        status, _, err = echo(acceptor.address[1], command=command)
    assert status == 5
    assert "ended the association" in err


def test_no_connection_in_time(monkeypatch: pytest.MonkeyPatch, echo: Echo) -> None:
    def connect(self: socket.socket, address: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", connect)
    status, _, err = echo(104, "-to", 2)
    assert status == 3
    assert "within 2 s" in err
    assert "firewall" in err


# TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def pem(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    made = authority.issue_cert("client@example.org")
    names = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(names["ca"])
    made.cert_chain_pems[0].write_to_path(names["cert"])
    made.private_key_pem.write_to_path(names["key"])
    return names


def server_context(authority: trustme.CA, mutual: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(
    scp: kit.World, echo: Echo, authority: trustme.CA, pem: dict[str, Path], mutual: bool
) -> None:
    server = scp.serve(CTX, ssl_context=server_context(authority, mutual))
    client = ("--cert", pem["cert"], "--key", pem["key"]) if mutual else ()
    status, out, err = echo(server.port, "--cacert", pem["ca"], *client, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["peer"]["tls"] is True


def test_tls_without_verification(scp: kit.World, echo: Echo, authority: trustme.CA) -> None:
    server = scp.serve(CTX, ssl_context=server_context(authority))
    assert echo(server.port, "--no-verify")[0] == 0


def test_tls_certificate_not_trusted(scp: kit.World, echo: Echo, authority: trustme.CA) -> None:
    server = scp.serve(CTX, ssl_context=server_context(authority))
    status, _, err = echo(server.port, "--tls")
    assert status == 7
    assert "not trusted" in err
    assert "--cacert" in err


def test_tls_to_a_peer_without(scp: kit.World, echo: Echo) -> None:
    server = scp.serve(CTX)
    status, _, err = echo(server.port, "--tls", "--no-verify")
    assert status == 7
    assert "no TLS" in err


def test_no_tls_to_a_peer_with(scp: kit.World, echo: Echo, authority: trustme.CA) -> None:
    server = scp.serve(CTX, ssl_context=server_context(authority))
    status, _, err = echo(server.port)
    assert status == 5
    assert "--tls" in err


# Wrong usage ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["host"], "PORT"),
        (["host", "0"], "not a port"),
        (["host", "65536"], "not a port"),
        (["host", "acr-nema"], "not a port"),
        (["host", "104", "-aec", "SEVENTEEN LETTERS"], "not an AE title"),
        (["host", "104", "-aet", " "], "not an AE title"),
        (["host", "104", "-aet", "A\\B"], "not an AE title"),
        (["host", "104", "-td", "0"], "number of seconds"),
        (["host", "104", "-to", "soon"], "number of seconds"),
        (["host", "104", "--nosuch"], "unrecognized"),
    ],
)
def test_wrong_usage(
    command: str, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, *arguments])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


@both
def test_tls_files_that_cannot_be_used(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not PEM")
    for arguments in (
        ["--cacert", str(tmp_path / "missing")],
        ["--cacert", str(wrong)],
        ["--cert", str(wrong)],
        ["--key", str(wrong)],
    ):
        assert cli.main([command, "host", "104", *arguments]) == 2
        assert "error" in capsys.readouterr().err


@both
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for word in ("examples:", "exit status", "-aec", "-aet", "--json", "-ta", "-td", "-to"):
        assert word in output


def test_percentiles() -> None:
    found = Latencies.of([value / 1000 for value in range(100, 0, -1)])
    assert (found.count, found.minimum, found.maximum) == (100, 0.001, 0.1)
    assert (found.median, found.p90, found.p99) == (0.0505, 0.09, 0.099)
    one = Latencies.of([0.002])
    assert one.minimum == one.median == one.p90 == one.p99 == one.maximum == one.mean == 0.002
    with pytest.raises(ValueError):
        Latencies.of([])
