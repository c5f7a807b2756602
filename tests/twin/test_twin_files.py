"""`send_c_store(path)`: files that are odd, not whole, no files, or change while they are sent."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from helpers import data, kit, raw
from pydicom.dataset import Dataset
from pynetdicom import _config, evt

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom says what it thinks of such files

JPEG = "1.2.840.10008.1.2.4.50"
SYNTAXES = [data.EXPLICIT, data.IMPLICIT, data.BIG, data.DEFLATED, JPEG]
CTX = [(data.CT, [syntax]) for syntax in SYNTAXES]
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def encoded(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def image(syntax: str = data.EXPLICIT, size: int = 6000) -> bytes:
    ds = data.image(5, size, syntax=data.EXPLICIT if syntax == JPEG else syntax)
    if syntax == JPEG:
        frames = (b"", b"\xff\xd8" * 300, b"\xff\xd8" * 2000)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(JPEG)
        ds.PixelData = b"".join(
            b"\xfe\xff\0\xe0" + struct.pack("<I", len(frame)) + frame for frame in frames
        )
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    return encoded(ds)


def long_meta() -> bytes:
    ds = data.image(6)
    ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    ds.file_meta.PrivateInformation = bytes(100_000)
    return encoded(ds)


def meta_length(content: bytes) -> int:
    (length,) = struct.unpack_from("<I", content, 140)
    return 144 + int(length)


def with_group_length(content: bytes, change: int) -> bytes:
    (length,) = struct.unpack_from("<I", content, 140)
    return content[:140] + struct.pack("<I", length + change) + content[144:]


def made() -> dict[str, bytes]:
    """Files by what is odd about them."""
    plain, jpeg, deflated = image(), image(JPEG), image(data.DEFLATED)
    begin = meta_length(plain)
    found = {
        "plain": plain,
        "jpeg": jpeg,
        "deflated": deflated,
        "no preamble": plain[132:],
        "no prefix": plain[:128] + b"dicm" + plain[132:],
        "no meta": plain[begin:],
        "preamble alone": plain[:132],
        "a few bytes": plain[:20],
        "empty": b"",
        "meta alone": plain[:begin],
        "preamble without meta": plain[:132] + plain[begin:],
        "no group length": plain[:132] + plain[144:],
        "group length too small": with_group_length(plain, -20),
        "group length too large": with_group_length(plain, 20),
        "group length far too large": with_group_length(plain, 2**30),
        "group length 0": with_group_length(plain, 132 + 12 - begin),
        "long meta": long_meta(),
        "cut in the preamble": plain[:100],
        "cut in the meta": plain[: begin - 10],
        "cut in a header": plain[: begin + 5],
        "cut in the UID": plain[: begin + 20],
        "cut before the pixel data": plain[:-6012],
        "cut in the header of the pixel data": plain[:-6005],
        "cut behind the header of the pixel data": plain[:-6000],
        "cut in the pixel data": plain[:-1000],
        "cut by a byte": plain[:-1],
        "cut fragments": jpeg[:-1000],
        "cut in a fragment's header": jpeg[: jpeg.index(b"\xff\xd8") + 604],
        "no delimiter": jpeg[:-8],
        "half a delimiter": jpeg[:-4],
        "bytes behind": plain + bytes(3),
        "padding behind": plain + bytes(512),
        "element behind": plain + b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 10) + bytes(10),
        "element behind fragments": jpeg
        + b"\xfc\xff\xfc\xffOB\0\0"
        + struct.pack("<I", 10)
        + bytes(10),
        "deflated and cut": deflated[:-500],
        "deflated, padded": deflated + b"\0",
        "deflated, not at all": deflated[: meta_length(deflated)] + plain[begin:],
        "text": b"This is no DICOM file. " * 300,
    }
    for syntax in (data.IMPLICIT, data.BIG):
        whole = image(syntax)
        found[f"{syntax} plain"] = whole
        found[f"{syntax} cut"] = whole[:-100]
        found[f"{syntax} labelled otherwise"] = plain[:begin] + whole[meta_length(whole) :]
    return found


FILES = made()


class Received:
    """An EVT_C_STORE handler that keeps what the data sets say."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def __call__(self, event: evt.Event) -> int:
        whole = io.BytesIO(event.encoded_dataset())
        ds = pydicom.dcmread(whole)
        lines = [str(elem) for elem in ds if elem.tag.element != 0]
        self.got.append(
            (
                str(event.request.AffectedSOPInstanceUID),
                *event.context[1:],
                kit.sha(repr(lines).encode()),
            )
        )
        return 0x0000


@pytest.fixture(params=[False, True], ids=["decoded", "chunked"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", request.param)
    return bool(request.param)


def test_odd_files(world: kit.World, chunked: bool, tmp_path: Path) -> None:
    """The same statuses and exceptions, the same data sets arrive, and the association goes on."""

    def scenario(world: kit.World, chunked: bool) -> Any:
        received = Received()
        server = world.serve(CTX, [(evt.EVT_C_STORE, received)])
        assoc = world.connect(server, CTX)
        results = {}
        path = tmp_path / "file.dcm"
        for name, content in FILES.items():
            path.write_bytes(content)
            before = len(received.got)
            result = kit.outcome(lambda: assoc.send_c_store(path))
            result = tuple(str(part).replace(str(path), "FILE") for part in result)
            results[name] = result, received.got[before:]
        assert assoc.is_established
        return results

    results = kit.against_oracle(world, scenario, chunked)
    stored = {name for name, (_, got) in results.items() if got}
    assert {
        "plain",
        "jpeg",
        "deflated",
        "no group length",
        "group length too large",
        "long meta",
    } <= stored
    assert not stored & {"no preamble", "no prefix", "no meta", "empty", "text"}


VERBATIM = [
    "plain",
    "jpeg",
    "deflated",
    "no group length",
    "group length too small",
    "group length far too large",
    "long meta",
    "element behind",
    "element behind fragments",
    f"{data.IMPLICIT} plain",
    f"{data.BIG} plain",
]


@pytest.mark.parametrize("name", VERBATIM)
def test_whole_files_leave_as_they_are(name: str, tmp_path: Path) -> None:
    """Also those whose file meta information is odd, and deflated ones: not a byte is decoded."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock encodes again")
    path = tmp_path / "file.dcm"
    path.write_bytes(FILES[name])
    got: list[bytes] = []

    def keep(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0x0000

    with kit.world_of("fast", "fast") as world:
        server = world.serve(CTX, [(evt.EVT_C_STORE, keep)])
        assoc = world.connect(server, CTX)
        assert assoc.send_c_store(path).Status == 0
    assert got == [data.payload(path)]


def test_a_deflated_file_that_would_fill_the_memory(tmp_path: Path) -> None:
    """It is inflated piece by piece to see whether it is whole: 1 GB of zeros in 1 MB."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock inflates all of it")
    import tracemalloc

    plain = image()
    packer = zlib.compressobj(9, wbits=-15)
    begin = meta_length(plain)
    body = [
        packer.compress(plain[begin:-6012] + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 2**28))
    ]
    body += [packer.compress(bytes(2**20)) for _ in range(2**8)]
    body.append(packer.flush())
    deflated = image(data.DEFLATED)
    path = tmp_path / "file.dcm"
    path.write_bytes(deflated[: meta_length(deflated)] + b"".join(body))
    with kit.world_of("fast", "fast") as world:
        server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
        assoc = world.connect(server, CTX)
        tracemalloc.start()
        try:
            assert assoc.send_c_store(path).Status == 0
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 * 2**20


# what is no regular file


def in_time(call: Callable[[], Any]) -> Any:
    """The outcome of a call that must not wait for anybody."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(kit.outcome(call)), daemon=True)
    thread.start()
    thread.join(kit.DEADLINE)
    assert not thread.is_alive(), "it waits"
    return result[0]


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_refused(chunked: bool, watched: bool, tmp_path: Path) -> None:
    """Stock would wait until somebody writes into it."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock waits")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    handlers = [(evt.EVT_DIMSE_SENT, lambda event: None)] if watched else []
    with kit.world_of("fast", "fast") as world:
        server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
        assoc = world.connect(server, CTX, handlers)
        kind, text = in_time(lambda: assoc.send_c_store(pipe))
        assert kind in ("OSError", "BrokenPipeError")
        assert "Not a regular file" in text
        assert str(pipe) in text
        assert assoc.send_c_store(data.image(1)).Status == 0


def test_directories_sockets_and_forbidden_files(
    world: kit.World, chunked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    (tmp_path / "forbidden").write_bytes(image())
    (tmp_path / "forbidden").chmod(0)
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the names of sockets must be short
    listener.bind("socket")

    def scenario(world: kit.World, chunked: bool) -> Any:
        server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
        assoc = world.connect(server, CTX)
        return [
            kit.outcome(lambda: assoc.send_c_store(name)) for name in (".", "socket", "forbidden")
        ]

    with listener:
        results = kit.against_oracle(world, scenario, chunked)
    assert results[0][0] == "IsADirectoryError"
    assert results[1][0] == "OSError"
    assert results[2][0] == "PermissionError" or os.geteuid() == 0


# files that change while they are sent

LARGE = 64 * 2**20


def sparse(path: Path) -> int:
    """Write a whole file of 64 MiB, of which hardly anything is on the disk; return its length."""
    head = image()[:-6012] + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", LARGE)
    path.write_bytes(head)
    os.truncate(path, len(head) + LARGE)
    return len(head) + LARGE


def slow_peer(change: Callable[[], Any]) -> raw.Acceptor:
    """Return an SCP that reads a command set, then lets a change happen, and tells how the association ends."""

    def script(peer: raw.Peer) -> Any:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(raw.associate_ac(((1, data.EXPLICIT),)))
        peer.expect(raw.P_DATA)
        change()
        size = 0
        while (got := peer.read()) is not None:
            kind, body = got
            if kind == raw.ABORT:
                return "aborted", body[2], size
            assert kind == raw.P_DATA
            size += len(body) - 6
            if body[5] & 2:
                elements = {0x0100: 0x8001, 0x0120: 1, 0x0800: 0x0101, 0x0900: 0}
                elements |= {0x0002: data.CT, 0x1000: f"{data.ROOT}7.5"}  # type: ignore[dict-item]
                peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.command(elements))))  # type: ignore[arg-type]
                peer.expect(raw.RELEASE_RQ)
                peer.send(raw.RELEASE_RP_PDU)
                return "stored", 0, size
        return "closed", 0, size

    return raw.Acceptor(script)


def send_changing(path: Path, change: Callable[[], Any]) -> tuple[Any, Any]:
    with kit.world_of("fast", "fast") as world, slow_peer(change) as acceptor:
        assoc = world.connect(acceptor.address, [(data.CT, [data.EXPLICIT])])
        outcome = kit.outcome(lambda: assoc.send_c_store(path))
        if assoc.is_established:
            assoc.release()
        return outcome, acceptor


def test_a_file_that_becomes_shorter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The message cannot be completed: an A-ABORT between two PDUs, and a line that tells why."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock reads all of it first")
    path = tmp_path / "file.dcm"
    whole = sparse(path)
    outcome, acceptor = send_changing(path, lambda: os.truncate(path, 1_000_000))
    assert outcome == ()
    (how, source, size) = acceptor.results[0]
    assert (how, source) == ("aborted", 2)
    assert size < whole
    assert any(str(path) in line and "shorter" in line for line in caplog.messages)


def test_a_file_that_becomes_longer(tmp_path: Path) -> None:
    """What is sent is what was there in the beginning."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock reads all of it first")
    path = tmp_path / "file.dcm"
    whole = sparse(path)
    begin = meta_length(image())
    outcome, acceptor = send_changing(path, lambda: os.truncate(path, 2 * whole))
    assert outcome == (("Status", "0"),)
    assert acceptor.results == [("stored", 0, whole - begin)]


def test_a_file_that_is_removed_or_replaced(tmp_path: Path) -> None:
    """It is open: that changes nothing."""
    if "fast" not in kit.KINDS:
        pytest.skip("stock reads all of it first")
    path = tmp_path / "file.dcm"
    whole = sparse(path)
    begin = meta_length(image())
    outcome, acceptor = send_changing(path, path.unlink)
    assert outcome == (("Status", "0"),)
    assert acceptor.results == [("stored", 0, whole - begin)]
