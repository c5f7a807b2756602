"""Whether a file has all of the data set that it begins with: both engines, and pydicom."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import pydicom
import pytest
from engine_kit import PATIENCE, Impl
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, JPEG = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50"
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.fixture(params=["pure", "compiled"])
def codec(request: pytest.FixtureRequest) -> Any:
    return Impl(request.param, "fd").module


def instance(syntax: str, pixels: bytes = bytes(5000)) -> Dataset:
    """A data set with sequences in sequences, of defined and of undefined length."""
    inner = Dataset()
    inner.CodeValue = "1"
    inner.PurposeOfReferenceCodeSequence = [Dataset(), Dataset()]
    inner["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    outer = Dataset()
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.ConceptNameCodeSequence = [inner]
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.ReferencedImageSequence = [outer, outer]
    dataset.ProcedureCodeSequence = [outer]
    dataset["ProcedureCodeSequence"].is_undefined_length = True
    for item in dataset.ProcedureCodeSequence:
        item.is_undefined_length_sequence_item = True
    block = dataset.private_block(0x0029, "A", create=True)
    block.add_new(0x10, "UN", b"1234")
    block.add_new(0x11, "OB", bytes(6000))
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB" if syntax == JPEG else "OW"
    dataset["PixelData"].is_undefined_length = syntax == JPEG
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def written(syntax: str) -> bytes:
    pixels = bytes(5000)
    if syntax == JPEG:
        pixels = b"".join(
            b"\xfe\xff\0\xe0" + struct.pack("<I", len(frame)) + frame
            for frame in (b"", b"\xff\xd8" * 300, b"\xff\xd8" * 2000)
        )
    buffer = io.BytesIO()
    instance(syntax, pixels).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Kept:
    """Asks an engine about bytes, by way of a file."""

    def __init__(self, codec: Any, path: Path) -> None:
        self._codec = codec
        self._path = path

    def __call__(self, content: bytes) -> bool:
        self._path.write_bytes(content)
        fd, size, head = self._codec.open_head(self._path, 4096)
        try:
            found = self._codec.read_part10(head)
            assert found is not None
            answer = self._codec.is_whole(fd, size, head, found)
            assert isinstance(answer, bool)
            return answer
        finally:
            self._codec.close_file(fd)


@pytest.fixture
def ask(codec: Any, tmp_path: Path) -> Kept:
    return Kept(codec, tmp_path / "file")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, JPEG])
def test_nothing_that_is_cut_is_whole(ask: Kept, syntax: str) -> None:
    content = written(syntax)
    assert pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID == "1.2.3.4"
    assert ask(content)
    for left in (*range(800, len(content), 397), *range(len(content) - 20, len(content))):
        assert not ask(content[:left]), left


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_elements_behind_the_pixel_data(ask: Kept, syntax: str) -> None:
    content = written(syntax)
    order = ">" if syntax == BIG else "<"
    tag = struct.pack(order + "HH", 0xFFFC, 0xFFFC)
    if syntax == IMPLICIT:
        padding = tag + struct.pack("<I", 100) + bytes(100)
    else:
        padding = tag + b"OB\0\0" + struct.pack(order + "I", 100) + bytes(100)
    assert ask(content + padding)
    assert not ask(content + padding[:-1])
    assert not ask(content + padding[:7])


def test_elements_behind_fragments(ask: Kept) -> None:
    padding = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 100) + bytes(100)
    assert ask(written(JPEG) + padding)
    assert not ask(written(JPEG)[: -len(DELIMITER)] + padding)


@pytest.mark.parametrize(
    "extra", [b"\0", bytes(8), bytes(512), DELIMITER, b"\xfe\xff\0\xe0\0\0\0\0"]
)
def test_what_is_no_element_is_not_taken_for_one(ask: Kept, extra: bytes) -> None:
    assert not ask(written(EXPLICIT) + extra)


def explicit(body: bytes) -> bytes:
    return written(EXPLICIT)[:-5012] + body


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (b"", True),
        # UN of undefined length: implicit VR inside, explicit again behind it
        (
            b"\x31\0\x10\0UN\0\0\xff\xff\xff\xff"
            b"\xfe\xff\0\xe0\xff\xff\xff\xff\x31\0\x11\0\2\0\0\0ab\xfe\xff\x0d\xe0\0\0\0\0"
            b"\xfe\xff\xdd\xe0\0\0\0\0\x32\0\x10\0LO\2\0ab",
            True,
        ),
        (b"\x31\0\x10\0LO\xff\xff", False),
        (b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff" + DELIMITER, True),
        (b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff" + DELIMITER[:4], False),
        (b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff", False),
        (b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff\x31\0\x11\0LO\2\0ab" + DELIMITER, False),
        (b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0" + DELIMITER, False),
        (b"\x31\0\x10\0UT\0\0\xff\xff\xff\x7f", False),
        (b"\x31\0\x10\0\0\0\2\0ab", False),
        # As deep as nobody is
        (
            b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 40
            + (b"\xfe\xff\x0d\xe0\0\0\0\0" + DELIMITER) * 40,
            False,
        ),
        (
            b"\x31\0\x10\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 20
            + (b"\xfe\xff\x0d\xe0\0\0\0\0" + DELIMITER) * 20,
            True,
        ),
    ],
)
def test_sequences(ask: Kept, body: bytes, whole: bool) -> None:
    assert ask(explicit(body)) is whole


def test_shipped_files(ask: Kept, codec: Any) -> None:
    """Those that pydicom calls truncated are, and nearly all others are whole."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    answers = {}
    for path in folder.glob("*.dcm"):
        content = path.read_bytes()
        found = codec.read_part10(content[:4096])
        if found is not None and found.sop_class is not None:
            answers[path.name] = ask(content)
    assert not answers.pop("MR_truncated.dcm")
    assert not answers.pop("rtplan_truncated.dcm")
    assert len(answers) > 40
    assert all(answers.values()), [name for name, whole in answers.items() if not whole]


def test_more_than_four_gigabytes(codec: Any, tmp_path: Path) -> None:
    """Fragments of 2 GB each, in a file that takes no room."""
    content = written(JPEG)
    begin = content.index(b"\xfe\xff\0\xe0")
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(content[:begin] + b"\xfe\xff\0\xe0\0\0\0\0")
        for _ in range(3):
            file.write(b"\xfe\xff\0\xe0" + struct.pack("<I", 0x7FFFFFFE))
            file.seek(0x7FFFFFFE, os.SEEK_CUR)
        file.write(DELIMITER)
        length = file.tell()
    assert length > 6 * 2**30
    fd, size, head = codec.open_head(path, 4096)
    try:
        assert size == length
        found = codec.read_part10(head)
        assert codec.is_whole(fd, size, head, found)
        # One element more: now each fragment is looked up
        os.truncate(path, length - 8)
        assert not codec.is_whole(fd, size - 8, head, found)
        with path.open("r+b") as file:
            file.seek(length - 8)
            file.write(DELIMITER + b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0ab")
        assert codec.is_whole(fd, length + 14, head, found)
    finally:
        codec.close_file(fd)


# ------------------------------------------------------------------------------------------- what is no regular file


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with a name here")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def in_time(call: Any) -> Any:
    """Return what a call raises, which must not wait for anybody."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits"
    return raised[0] if raised else None


def test_a_pipe_is_refused_at_once(codec: Any, fifo: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    error = in_time(lambda: codec.open_head(fifo, 4096))
    assert isinstance(error, OSError)
    assert "Not a regular file" in str(error)
    assert "pipe" in str(error)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused(codec: Any, name: str) -> None:
    if not os.path.exists(name) or not stat.S_ISCHR(os.stat(name).st_mode):
        pytest.skip(f"no {name} here")
    error = in_time(lambda: codec.open_head(name, 4096))
    assert isinstance(error, OSError)
