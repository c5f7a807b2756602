"""The first elements of a data set in a file: found in every transfer syntax, and bounded whatever is in it."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from helpers import data
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence

from fastpdu import first_elements
from fastpdu.first_elements import first_elements as read

PATIENT_ID, STUDY, SERIES, MODALITY = 0x00100020, 0x0020000D, 0x0020000E, 0x00080060
TAGS = [PATIENT_ID, STUDY, SERIES, MODALITY]


def of(path: Path, content: bytes, syntax: str, offset: int = 0) -> dict[int, str]:
    path.write_bytes(bytes(offset) + content)
    with path.open("rb") as file:
        return read(file.fileno(), offset, syntax, TAGS)


def nested(undefined: bool, depth: int = 3) -> Dataset:
    """A data set with sequences in front of what is looked for."""
    ds = data.image(1, 1000)
    ds.PatientID = "P1"
    inner = Dataset()
    inner.PatientID = "not this one"
    for _ in range(depth):
        outer = Dataset()
        outer.StudyInstanceUID = "9.9.9"
        outer.ReferencedStudySequence = Sequence([inner, Dataset()])
        outer["ReferencedStudySequence"].is_undefined_length = undefined
        for item in outer.ReferencedStudySequence:
            item.is_undefined_length_sequence_item = undefined
        inner = outer
    ds.ReferencedStudySequence = Sequence([inner])
    ds["ReferencedStudySequence"].is_undefined_length = undefined
    inner.is_undefined_length_sequence_item = undefined
    block = ds.private_block(0x0009, "TEST", create=True)
    block.add_new(1, "OB", bytes(100_000))
    return ds


@pytest.mark.parametrize("syntax", [data.EXPLICIT, data.IMPLICIT, data.BIG, data.DEFLATED])
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_found_behind_sequences(tmp_path: Path, syntax: str, undefined: bool) -> None:
    ds = nested(undefined)
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    path = tmp_path / "made.dcm"
    path.write_bytes(buffer.getvalue())
    assert of(tmp_path / "x", data.payload(path), syntax, offset=333) == {
        PATIENT_ID: "P1",
        STUDY: f"{data.ROOT}1",
        SERIES: f"{data.ROOT}2",
        MODALITY: "CT",
    }


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length) + value


def long_element(tag: int, vr: bytes, value: bytes, length: int) -> bytes:
    return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, vr, length) + value


def test_values(tmp_path: Path) -> None:
    content = (
        element(MODALITY, b"CS", b"CT\\MR ")
        + element(PATIENT_ID, b"LO", "Mü ".encode("latin-1"))
        + element(STUDY, b"UI", b"1.2\0")
        + element(SERIES, b"UI", b"")
    )
    found = of(tmp_path / "x", content, data.EXPLICIT)
    assert found == {MODALITY: "CT", PATIENT_ID: "M\ufffd", STUDY: "1.2"}


FIRST = element(MODALITY, b"CS", b"CT")
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
HOSTILE = {
    "nothing": b"",
    "not dicom": b"this is not a data set at all" * 10,
    "ends in a header": FIRST + b"\x10\x00",
    "ends in a value": FIRST + element(PATIENT_ID, b"LO", b"", 60000)[:8],
    "a length past the end": FIRST + long_element(0x00090010, b"UN", b"", 0xFFFFFFFE),
    "a sequence that never ends": FIRST + long_element(0x00091001, b"SQ", ITEM, 0xFFFFFFFF),
    "deep": FIRST + (long_element(0x00091001, b"SQ", ITEM, 0xFFFFFFFF)) * 100_000,
    "many": FIRST + element(0x00090010, b"LO", b"") * 1_000_000,
    "pixel data first": FIRST + long_element(0x7FE00010, b"OW", b"", 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_sets(tmp_path: Path, name: str) -> None:
    expected = {MODALITY: "CT"} if HOSTILE[name].startswith(FIRST) else {}
    assert of(tmp_path / "x", HOSTILE[name], data.EXPLICIT) == expected


def test_a_huge_element_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x"
    size = 1 << 31
    with path.open("w+b") as file:
        file.write(FIRST + long_element(0x00090010, b"UN", b"", size))
        file.seek(size, 1)
        file.write(element(PATIENT_ID, b"LO", b"P1"))
    with path.open("rb") as file:
        assert read(file.fileno(), 0, data.EXPLICIT, TAGS) == {MODALITY: "CT", PATIENT_ID: "P1"}


def test_a_deflated_bomb(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = FIRST + long_element(0x00090010, b"UN", bytes(64 << 20), 64 << 20)
    bomb += element(PATIENT_ID, b"LO", b"P1")
    content = squeeze.compress(bomb) + squeeze.flush()
    assert len(content) < first_elements._MAX_DEFLATED
    assert of(tmp_path / "x", content, data.DEFLATED) == {MODALITY: "CT"}
    assert of(tmp_path / "x", b"not deflated", data.DEFLATED) == {}
