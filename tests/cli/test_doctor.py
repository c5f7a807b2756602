"""`fastpdu doctor` against peers that are slow for one reason each."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import data, kit, raw
from pydicom import dcmread
from pynetdicom import evt

from fastpdu import cli
from fastpdu.doctor import measure

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")
needs_quickack = pytest.mark.skipif(not measure.has_quickack(), reason="needs TCP_QUICKACK")

CTX = [(data.VERIFICATION, data.IMPLICIT), (data.CT, data.EXPLICIT)]
Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run `fastpdu doctor --json` on a port of this host: its exit status and the JSON."""

    def run(port: int, *arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = cli.main(["doctor", "127.0.0.1", str(port), "--json", *map(str, arguments)])
        content = json.loads(capsys.readouterr().out)
        assert content["exit_status"] == status
        return status, content

    return run


@pytest.fixture
def scp() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


def causes(content: dict[str, Any]) -> list[str]:
    return [verdict["cause"] for verdict in content["verdicts"]]


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_healthy(scp: kit.World, doctor: Doctor) -> None:
    server = scp.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
    # Everything runs in this process, and the machine may be busy with others: once is enough
    for _ in range(5):
        status, content = doctor(server.port, "--store", 5)
        if status == 0:
            break
    assert (status, content["healthy"], content["verdicts"]) == (0, True, [])
    for trial in content["trials"]:
        assert trial["stock_messages"] == 0
        assert trial["failures"] == 0
        assert sum(
            value for name, value in trial["breakdown"].items() if name != "total_ms"
        ) == pytest.approx(trial["breakdown"]["total_ms"], abs=0.1)


def test_trials(scp: kit.World, doctor: Doctor) -> None:
    got: list[Any] = []

    def store(event: evt.Event) -> int:
        got.append(event.dataset)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_STORE, store)], attributes={"maximum_pdu_size": 65536})
    _, content = doctor(server.port, "--echo", 3, "--store", 2, "--pdu", "4096,32768,131072")
    trials = content["trials"]
    acks = [True, False] if measure.has_quickack() else [None]
    expected = [("echo", ack, 3) for ack in acks]
    expected += [("store", ack, 2) for _ in range(3) for ack in acks]
    assert [(t["operation"], t["quickack"], t["latency"]["count"]) for t in trials] == expected
    sizes = {t["pdu_limit"]: t["largest_pdu"] for t in trials if t["operation"] == "store"}
    # (131072 would be more than the peer takes)
    assert sizes == {4096: 4096, 32768: 32768, 131072: 65536}
    assert {t["peer_limit"] for t in trials} == {65536}
    # No image twice, all of the patient that cannot be mistaken
    assert len({ds.SOPInstanceUID for ds in got}) == len(got) == 6 * len(acks)
    assert {str(ds.PatientName) for ds in got} == {"FASTPDU^DOCTOR^TEST"}
    assert {ds.PatientID for ds in got} == {"FASTPDU-DOCTOR-TEST"}
    assert len({ds.StudyInstanceUID for ds in got}) == 1
    assert all(ds.SOPInstanceUID.is_valid for ds in got)
    first = got[0].StudyInstanceUID
    doctor(server.port, "--echo", 0, "--store", 1)
    assert got[-1].StudyInstanceUID != first


def test_size_that_makes_no_difference_is_left_out(scp: kit.World, doctor: Doctor) -> None:
    server = scp.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
    _, content = doctor(server.port, "--echo", 0, "--store", 1)
    assert {trial["pdu_limit"] for trial in content["trials"]} == {16382}


def test_slow_echo(scp: kit.World, doctor: Doctor) -> None:
    def slow(event: evt.Event) -> int:
        pause(0.15)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_ECHO, slow)])
    status, content = doctor(server.port, "--echo", 4)
    assert status == 14
    assert causes(content) == ["peer"]
    (verdict,) = content["verdicts"]
    assert verdict["ms_per_request"] >= 140
    assert verdict["evidence"]
    assert verdict["remedies"]["peer"]


def test_slow_store(scp: kit.World, doctor: Doctor) -> None:
    def slow(event: evt.Event) -> int:
        pause(0.3)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_STORE, slow)])
    status, content = doctor(server.port, "--echo", 5, "--store", 3)
    assert status == 14
    assert causes(content) == ["peer"]
    assert content["verdicts"][0]["operation"] == "store"


def serve_raw(peer: raw.Peer, respond: Callable[[raw.Peer, bytes], None], **kwargs: Any) -> None:
    """Answer until the association is released."""
    raw.accept(peer, **kwargs)
    while True:
        got = peer.read()
        if got is None or got[0] == raw.ABORT:
            return
        if got[0] == raw.RELEASE_RQ:
            peer.send(raw.pdu(raw.RELEASE_RP, bytes(4)))
            peer.at_end()
            return
        respond(peer, got[1])


@needs_quickack
def test_nagle(doctor: Doctor) -> None:
    """A peer with Nagle's algorithm on, which writes the header of a PDU and its body separately."""

    def respond(peer: raw.Peer, body: bytes) -> None:
        message_id = struct.unpack("<H", raw.decode(body[6:])[0x0110])[0]
        answer = raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rsp(message_id)))
        peer.send(answer[:6])
        peer.send(answer[6:])

    def script(peer: raw.Peer) -> None:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        serve_raw(peer, respond)

    with raw.Acceptor(script, connections=2) as acceptor:
        status, content = doctor(acceptor.address[1], "--echo", 12)
    assert status == 10
    assert causes(content)[0] == "stalls"
    assert content["verdicts"][0]["certain"] is True
    assert any("TCP_NODELAY=1" in line for line in content["verdicts"][0]["remedies"]["peer"])


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="needs TCP_INFO")
def test_window(doctor: Doctor) -> None:
    """A peer with a small receive buffer that takes its time to read what is in it."""

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        buffered = b""

        def more() -> bool:
            nonlocal buffered
            pause(0.002)
            piece = peer.sock.recv(4096)
            buffered += piece
            return bool(piece)

        message_id = 0
        while True:
            while len(buffered) < 6 or len(buffered) < 6 + struct.unpack(">L", buffered[2:6])[0]:
                if not more():
                    return
            length = 6 + struct.unpack(">L", buffered[2:6])[0]
            got, buffered = buffered[:length], buffered[length:]
            if got[0] == raw.RELEASE_RQ:
                peer.send(raw.pdu(raw.RELEASE_RP, bytes(4)))
                peer.at_end()
                return
            control, fragment = got[11], got[12:]
            if control == raw.LAST_COMMAND:
                command = raw.decode(fragment)
                message_id = struct.unpack("<H", command[0x0110])[0]
                instance = command[0x1000].rstrip(b"\0").decode()
            elif control == raw.LAST_DATA:
                answer = raw.command(
                    {
                        0x0002: data.CT,
                        0x0100: 0x8001,
                        0x0120: message_id,
                        0x0800: 0x0101,
                        0x0900: 0,
                        0x1000: instance,
                    }
                )
                peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, answer)))

    with raw.Acceptor(script, connections=2 if measure.has_quickack() else 1) as acceptor:
        acceptor.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        status, content = doctor(acceptor.address[1], "--echo", 0, "--store", 2, "--pdu", "16382")
    assert status == 11, content
    assert causes(content)[0] == "window"


def test_some_failures(scp: kit.World, doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    """Refusals are no sign of health, and their times, which may be short, are left out."""
    answers = itertools.cycle([0xA700, 0])
    server = scp.serve(CTX, [(evt.EVT_C_STORE, lambda event: next(answers))])
    status, content = doctor(server.port, "--echo", 0, "--store", 4)
    assert (status, content["healthy"]) == (1, False)
    assert content["verdicts"] == []
    for trial in content["trials"]:
        assert trial["failures"] == trial["latency"]["count"] == 2
    assert cli.main(["doctor", "127.0.0.1", str(server.port), "--store", "4", "--echo", "0"]) == 1
    output = capsys.readouterr().out
    assert "had a failure status" in output
    assert "Healthy" not in output


def test_only_failures(scp: kit.World, capsys: pytest.CaptureFixture[str]) -> None:
    server = scp.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0xA700)])
    arguments = ["doctor", "127.0.0.1", str(server.port), "--store", "2"]
    assert cli.main(arguments) == 1
    assert "0xA700" in capsys.readouterr().err
    assert cli.main([*arguments, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["exit_status"] == 1
    assert content["error"]["kind"] == "failure-status"


@pytest.mark.parametrize(
    ("limits", "taken", "measured"),
    [
        ("16382,131072", 0, [16382, 131072]),
        ("131072,16382", 0, [131072, 16382]),
        ("16382,131072", 16384, [16382]),
        ("131072,16382", 16384, [131072]),
        ("1048576,16382,4194304", 0, [1048576, 16382]),
    ],
)
def test_sizes_that_make_a_difference_are_measured(
    scp: kit.World, doctor: Doctor, limits: str, taken: int, measured: list[int]
) -> None:
    """In any order: each that makes the PDUs longer or shorter, and no other."""
    server = scp.serve(
        CTX, [(evt.EVT_C_STORE, lambda event: 0)], attributes={"maximum_pdu_size": taken}
    )
    _, content = doctor(server.port, "--echo", 0, "--store", 1, "--pdu", limits)
    found = dict.fromkeys(trial["pdu_limit"] for trial in content["trials"])
    assert list(found) == measured


def test_an_ae_title_that_looks_like_markup(
    scp: kit.World, capsys: pytest.CaptureFixture[str]
) -> None:
    server = scp.serve(CTX)
    assert cli.main(["doctor", "127.0.0.1", str(server.port), "-aec", "A[/b][red]B"]) == 0
    assert "A[/b][red]B" in capsys.readouterr().out


def test_store_context_rejected(scp: kit.World, capsys: pytest.CaptureFixture[str]) -> None:
    server = scp.serve(CTX[:1])
    assert cli.main(["doctor", "127.0.0.1", str(server.port), "--store", "2"]) == 4
    assert "not CT Image Storage" in capsys.readouterr().err


@pytest.mark.parametrize("rich", [True, False])
def test_text(
    scp: kit.World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rich: bool,
) -> None:
    """In plain words, with and without rich; progress goes to stderr."""
    if rich:
        pytest.importorskip("rich")
    else:
        import sys

        for name in ("rich", "rich.box", "rich.console", "rich.table", "rich.progress"):
            monkeypatch.setitem(sys.modules, name, None)
    if not rich:
        monkeypatch.setattr("fastpdu.commands.doctor._QUIET_SECONDS", 0.0)

    def slow(event: evt.Event) -> int:
        pause(0.1)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_ECHO, slow)])
    assert cli.main(["doctor", "127.0.0.1", str(server.port), "--echo", "3"]) == 14
    output = capsys.readouterr()
    for text in (
        "QUICKACK",
        "1. PEER: ",
        "The peer itself takes",
        "remedy, this side",
        "remedy, the peer",
        "--store N does",
    ):
        assert text in output.out
    assert ("C-ECHO, PDUs up to 16382" in output.err) is not rich


def test_progress_can_be_left_out(
    scp: kit.World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastpdu.commands.doctor._QUIET_SECONDS", 0.0)
    server = scp.serve(CTX)
    cli.main(["doctor", "127.0.0.1", str(server.port), "--echo", "2", "--quiet"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--echo", "0"], "nothing to measure"),
        (["--echo", "-1"], "less than 1"),
        (["--store", "some"], "not a whole number"),
        (["--pdu", "10"], "not a PDU size"),
        (["--pdu", "16384,"], "not a PDU size"),
        (["--pdu", "16384,16384"], "twice"),
        (["--pdu", str(2**30)], "not a PDU size"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "host", "104", *arguments])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_help_warns_of_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    output = capsys.readouterr().out
    assert "STORES" in output
    assert measure.PATIENT_NAME in output
    assert measure.PATIENT_ID in output


def test_without_quickack_and_tcp_info(
    scp: kit.World, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a platform that has neither: one trial of each kind, and a round trip from the association."""
    monkeypatch.setattr("fastpdu.doctor.measure.has_quickack", lambda: False)
    monkeypatch.setattr("fastpdu.stats.TcpInfo.from_bytes", lambda data: None)

    def slow(event: evt.Event) -> int:
        pause(0.15)
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_ECHO, slow)])
    status, content = doctor(server.port, "--echo", 4)
    assert [trial["quickack"] for trial in content["trials"]] == [None]
    assert status == 14


def test_temporary_files_are_deleted(
    scp: kit.World, doctor: Doctor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def store(event: evt.Event) -> int:
        seen.extend(tmp_path.rglob("*.dcm"))
        return 0

    server = scp.serve(CTX, [(evt.EVT_C_STORE, store)])
    doctor(server.port, "--echo", 0, "--store", 1)
    assert seen
    assert list(tmp_path.iterdir()) == []


def test_identity(tmp_path: Any) -> None:
    from fastpdu.bench.series import Identity, make_series

    one, other = (Identity.new("A^B", "C", "comment") for _ in range(2))
    assert one.stem != other.stem
    (made,) = make_series(tmp_path, 1, identity=one)
    ds = dcmread(made.path)
    assert (str(ds.PatientName), ds.PatientID, ds.ImageComments) == ("A^B", "C", "comment")
    assert ds.SOPInstanceUID == made.sop_instance == one.uid(4)
    assert int(one.uid(99, 10**8 - 1).split(".")[1]) < 2**128
    for stem in ("", "0" * 28, "1" * 27, "1" * 29, "x" * 28):
        with pytest.raises(ValueError, match="28 digits"):
            Identity(stem=stem)
