"""`fastpdu send` and `fastpdu recv`: arguments, messages and exit statuses."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers, programs
from pydicom.dataset import Dataset
from pynetdicom import evt

from fastpdu import cli

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `fastpdu`: its exit status and both streams."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([*map(str, arguments)])
        except SystemExit as end:
            status = int(str(end.code))
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return status, output.out, output.err

    return call


@pytest.fixture
def scp() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture
def server(scp: kit.World) -> kit.Server:
    return scp.serve([(data.CT, [data.EXPLICIT])], [(evt.EVT_C_STORE, lambda event: 0)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    files = data.Files(path)
    for number in range(5):
        files.made(number)
    return path


@pytest.mark.parametrize("command", ["send", "recv"])
def test_help(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "examples:" in out
    assert "exit status" in out


def test_send(run: Run, server: kit.Server, folder: Path) -> None:
    data.Files(folder).not_dicom()
    status, out, err = run("send", "127.0.0.1", server.port, folder)
    assert (status, err) == (0, "")
    assert out.startswith("5 sent (")
    assert "1 skipped" in out
    status, out, err = run("send", "127.0.0.1", server.port, folder, "-v")
    assert "not_dicom.dcm: not a DICOM file" in err
    status, out, err = run("send", "127.0.0.1", server.port, folder, "--strict", "-q")
    assert (status, err) == (1, "")
    assert "1 NOT sent" in out


def test_titles(run: Run, scp: kit.World, folder: Path) -> None:
    titles: list[Any] = []

    def accepted(event: evt.Event) -> None:
        primitive: Any = event.assoc.requestor.primitive
        titles.append((primitive.calling_ae_title, primitive.called_ae_title))
        titles.append(primitive.maximum_length_received)

    server = scp.serve(
        [(data.CT, [data.EXPLICIT])],
        [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_ACCEPTED, accepted)],
    )
    options = ("-aet", "ME", "-aec", "YOU", "--max-pdu", 65536)
    assert run("send", "127.0.0.1", server.port, folder, *options)[0] == 0
    assert titles == [("ME", "YOU"), 65536]


def test_a_failure_of_the_peer(run: Run, scp: kit.World, folder: Path) -> None:
    server = scp.serve([(data.CT, [data.EXPLICIT])], [(evt.EVT_C_STORE, lambda event: 0xC001)])
    status, out, err = run("send", "127.0.0.1", server.port, folder, "--json")
    assert status == 1
    report = json.loads(out)
    assert (report["exit_status"], report["sent"], report["failed"]) == (1, 0, 5)
    assert report["failures"][0]["status"] == 0xC001
    assert "0xC001" in err


def test_nobody_else_steers_the_terminal(run: Run, scp: kit.World, folder: Path) -> None:
    def refuse(event: evt.Event) -> Dataset:
        status = Dataset()
        status.Status, status.ErrorComment = 0xC001, "no\x1b[2Jroom\r1 sent"
        return status

    server = scp.serve([(data.CT, [data.EXPLICIT])], [(evt.EVT_C_STORE, refuse)])
    if os.name != "nt":
        (folder / "line\nline\x1b[2J").write_bytes(b"no DICOM")
    status, out, err = run("send", "127.0.0.1", server.port, folder, "--verbose")
    assert status == 1
    for text in (out, err):
        assert "no\\x1b[2Jroom\\r1 sent" in text
        assert not {"\x1b", "\r"} & set(text)
    assert "\nline" not in err


def test_nobody_listens(run: Run, folder: Path) -> None:
    status, out, err = run(
        *("send", "127.0.0.1", peers.free_port(), folder),
        *("--retries", 1, "--retry-delay", 0.01, "--json"),
    )
    assert status == 3
    assert "trying again in 0.0 s" in err
    assert "refuses the connection" in err
    assert "is the peer running" in err
    assert json.loads(out)["given_up"]["cause"]["name"] == "refused"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "no file or directory"),
        ([".", "--window", "0"], "--window"),
        ([".", "--rate", "fast"], "not a rate"),
        ([".", "--max-pdu", "10"], "not a PDU size"),
        ([".", "-"], "does not go with"),
        ([], "PATH"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], text: str) -> None:
    status, _, err = run("send", "localhost", 104, *arguments)
    assert status == 2
    assert text in err


def test_a_journal_that_is_none(run: Run, server: kit.Server, folder: Path) -> None:
    journal = folder / "0_1000_1.2.840.10008.1.2.1_1.2.840.10008.5.1.4.1.1.2.dcm"
    before = journal.read_bytes()
    status, _, err = run("send", "127.0.0.1", server.port, folder, "--resume", journal)
    assert status == 2
    assert "is not a journal" in err
    assert journal.read_bytes() == before
    status, _, err = run("send", "127.0.0.1", server.port, folder, "--resume", folder / "a" / "b")
    assert status == 2
    assert "cannot be used" in err


def test_nothing_to_send(run: Run, server: kit.Server, tmp_path: Path) -> None:
    status, _, err = run("send", "127.0.0.1", server.port, tmp_path)
    assert status == 1
    assert "no DICOM file" in err


# recv -----------------------------------------------------------------------------------------------------------


def test_recv_says_what_comes(run: Run, folder: Path, tmp_path: Path) -> None:
    options = ("--existing", "keep", "-aet", "ARCHIVE", "--layout", "{PatientID}/{SOPInstanceUID}")
    with programs.receiver(tmp_path / "out", *options) as receiver:
        port = receiver.port
        assert run("echo", "127.0.0.1", port)[0] == 0
        for _ in range(2):
            assert run("send", "127.0.0.1", port, folder, "-aet", "ME")[0] == 0
        assert receiver.stop() == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["P7"]
    assert len(list((tmp_path / "out" / "P7").iterdir())) == 5
    (listening,) = receiver.of("listening")
    assert (listening["ae_title"], listening["tls"]) == ("ARCHIVE", False)
    stored = receiver.of("stored")
    assert [event["is_kept"] for event in stored] == [False] * 5 + [True] * 5
    assert {event["calling"] for event in stored} == {"ME"}
    assert stored[0]["sop_class_uid"] == data.CT
    assert stored[0]["transfer_syntax_uid"] == data.EXPLICIT
    assert Path(stored[0]["path"]).is_file()
    (stopped,) = receiver.of("stopped")
    assert (stopped["files"], stopped["kept"], stopped["associations"]) == (10, 5, 3)


def test_recv_refuses(run: Run, folder: Path, tmp_path: Path) -> None:
    with programs.receiver(tmp_path / "out", "--existing", "fail") as receiver:
        assert run("send", "127.0.0.1", receiver.port, folder)[0] == 0
        assert run("send", "127.0.0.1", receiver.port, folder)[0] == 1
        assert receiver.stop() == 0
    refused = receiver.of("refused")
    assert [event["status"] for event in refused] == ["0x0111"] * 5
    assert refused[0]["reason"]
    assert receiver.of("stopped")[0]["refused"] == 5


def test_recv_knows_whom_to_let_in(run: Run, folder: Path, tmp_path: Path) -> None:
    options = ("-aet", "ARCHIVE", "--only-called", "--only-from", "ONE", "--only-from", "TWO")
    with programs.receiver(tmp_path / "out", *options) as receiver:
        path = next(folder.iterdir())
        for calling, called, expected in (
            ("ONE", "ARCHIVE", 0),
            ("TWO", "ARCHIVE", 0),
            ("THREE", "ARCHIVE", 4),
            ("ONE", "OTHER", 4),
        ):
            titles = ("-aet", calling, "-aec", called)
            assert run("send", "127.0.0.1", receiver.port, path, *titles)[0] == expected
        assert receiver.stop() == 0
    assert [event["calling"] for event in receiver.of("rejected")] == ["THREE", "ONE"]


def test_recv_takes_private_classes_if_asked_to(run: Run, tmp_path: Path) -> None:
    files = data.Files(tmp_path)
    path = files.made(1, sop_class=f"{data.ROOT}99")
    for options, expected in (((), 1), (("--promiscuous",), 0)):
        with programs.receiver(tmp_path / "out", *options) as receiver:
            assert run("send", "127.0.0.1", receiver.port, path)[0] == expected
            assert receiver.stop() == 0


def test_recv_on_a_port_that_is_taken(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = run("recv", port, tmp_path / "out", "--bind", "127.0.0.1")
    assert status == 1
    assert "another program has this port" in err


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["0", "DIR", "--layout", "{PatientID}"], 2, "SOPInstanceUID"),
        (["0", "DIR", "--layout", "{Nonsense}/{SOPInstanceUID}"], 2, "Nonsense"),
        (["70000", "DIR"], 2, "not a port"),
        (["0", "DIR", "--key", "k.pem"], 2, "needs --cert"),
        (["0", "DIR", "--tls"], 2, "needs --cert"),
        (["0", "DIR", "--cert", "missing.pem"], 2, "TLS is not possible"),
        (["0", "FILE"], 1, "cannot be made"),
        (["0"], 2, "DIR"),
    ],
)
def test_recv_wrong_usage(
    run: Run, tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    paths = {"DIR": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    found, _, err = run("recv", *(paths.get(word, word) for word in arguments))
    assert found == status
    assert text in err
