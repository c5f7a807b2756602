"""`fastpdu send` to DCMTK and Orthanc, DCMTK to `fastpdu recv`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import data, kit, peers, programs
from helpers.orthanc import Orthanc, running
from helpers.pem import Pem
from pydicom import dcmread

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only"),
]

COUNT = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source")
    files = data.Files(path)
    for number in range(COUNT):
        files.made(
            number, 20_000 + number, syntax=data.IMPLICIT if number % 3 == 0 else data.EXPLICIT
        )
    return path


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        yield made


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    made = Pem(tmp_path_factory.mktemp("pem"))
    if "+tls" not in peers.run("storescu", "--help"):
        pytest.skip("this DCMTK was built without OpenSSL")
    return made


def keys(paths: list[Path]) -> list[tuple[str, str, str]]:
    return sorted(map(peers.part10_key, paths))


@pytest.mark.parametrize("associations", [1, 3])
def test_storescp(source: Path, tmp_path: Path, associations: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with peers.background(
        lambda port: [peers.program("storescp"), "--fork", "-od", str(out), str(port)],
        tmp_path / "log",
    ) as port:
        status, report, err = programs.send(
            port, source, "--associations", associations, "--window", 8
        )
    assert (status, report["sent"]) == (0, COUNT), err
    assert keys(list(out.iterdir())) == keys(list(source.iterdir()))


def test_storescp_that_is_killed(source: Path, tmp_path: Path) -> None:
    """storescp in one process, which has gone when the sender comes back, and is there again later."""
    out = tmp_path / "out"
    out.mkdir()
    port = peers.free_port()
    command = [peers.program("storescp"), "-od", str(out), str(port)]
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            kit.until(lambda: peers.answers_echo(port))
            sending = programs.start_send(
                port, source, "--rate", "400k", "--retry-delay", 0.1, "--retries", 100, "--json"
            )
            kit.until(lambda: len(list(out.iterdir())) >= COUNT // 4)
        finally:
            first.kill()
            first.wait()
        before = len(list(out.iterdir()))
        second = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            status, report, err = programs.finish(sending)
        finally:
            second.kill()
            second.wait()
    assert (status, report["sent"]) == (0, COUNT), err
    assert before < COUNT
    assert keys(list(out.iterdir())) == keys(list(source.iterdir()))


def test_orthanc(orthanc: Orthanc, source: Path) -> None:
    status, report, err = programs.send(
        orthanc.port, source, "-aec", "ORTHANC", "--associations", 2, "--window", 8
    )
    assert (status, report["sent"]) == (0, COUNT), err
    assert report["warnings"] == 0
    found = orthanc.rest("/tools/find", {"Level": "Instance", "Query": {"PatientID": "P7"}})
    assert len(found) == COUNT


def test_storescp_with_tls(source: Path, tmp_path: Path, pem: Pem) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ["+tls", str(pem.key), str(pem.certificate), "+cf", str(pem.ca)]
    known = ("--cacert", pem.ca, "--cert", pem.client, "--key", pem.client_key)
    path = next(source.iterdir())

    def ready(port: int) -> bool:
        return programs.send(port, path, *known, "--retries", 0)[0] == 0

    with peers.background(
        lambda port: [peers.program("storescp"), *options, "-od", str(out), str(port)],
        tmp_path / "log",
        ready=ready,
    ) as port:
        status, report, err = programs.send(port, source, *known)
    assert (status, report["sent"]) == (0, COUNT), err
    assert keys(list(out.iterdir())) == keys(list(source.iterdir()))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "mutual-tls"])
def test_storescu(source: Path, tmp_path: Path, tls: bool, request: pytest.FixtureRequest) -> None:
    ours: list[object] = []
    theirs: list[object] = []
    if tls:
        pem = request.getfixturevalue("pem")
        ours = ["--cert", pem.certificate, "--key", pem.key, "--cacert", pem.ca]
        theirs = ["+tls", pem.client_key, pem.client, "+cf", pem.ca]
    layout = "{PatientID}/{StudyInstanceUID}/{SOPInstanceUID}.dcm"
    with programs.receiver(tmp_path / "out", *ours, "--layout", layout) as receiver:
        paths = sorted(source.iterdir())
        peers.run("storescu", *theirs, "-aet", "THEM", "127.0.0.1", receiver.port, *paths)
        assert receiver.stop() == 0
    found = sorted((tmp_path / "out" / "P7" / f"{data.ROOT}1").iterdir())
    assert keys(found) == keys(paths)
    # each as it is: they are sent in their transfer syntax, and stored in it
    assert {dcmread(path).file_meta.SourceApplicationEntityTitle for path in found} == {"THEM"}
    assert {event["calling"] for event in receiver.of("stored")} == {"THEM"}
