"""Generated DICOM objects, and the ones that pydicom and pynetdicom ship."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pydicom
import pynetdicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import dcmread, read_partial
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.dsutils import split_dataset

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"
PRINTER = "1.2.840.10008.5.1.1.16"
PRINT_JOB = "1.2.840.10008.5.1.1.14"
FILM_SESSION = "1.2.840.10008.5.1.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
MPPS = "1.2.840.10008.3.1.2.3.3"

EXPLICIT = str(ExplicitVRLittleEndian)
IMPLICIT = str(ImplicitVRLittleEndian)
BIG = str(ExplicitVRBigEndian)
DEFLATED = str(DeflatedExplicitVRLittleEndian)
ROOT = "1.2.826.0.1.3680043.10.54321."


def image(
    number: int = 1, size: int = 1000, *, sop_class: str = CT, syntax: str = EXPLICIT, seed: int = 7
) -> Dataset:
    """A small instance with `size` bytes of noise for pixel data (an even number of bytes)."""
    size += size % 2
    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"{ROOT}{seed}.{number}"
    ds.PatientName = "Twin^Test"
    ds.PatientID = f"P{seed}"
    ds.StudyInstanceUID = f"{ROOT}1"
    ds.SeriesInstanceUID = f"{ROOT}2"
    ds.StudyDate = "20260102"
    ds.Modality = "CT"
    ds.InstanceNumber = str(number)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = 1
    ds.Columns = min(size // 2, 65534)
    ds.BitsAllocated = 16
    ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    ds.PixelData = random.Random(seed * 1000 + number).randbytes(size)
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def query(**elements: object) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def payload(path: Path) -> bytes:
    """The bytes of a file behind its meta information: what goes over the wire verbatim."""
    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


class Files:
    """Files in one directory of the test session, made when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def made(
        self, number: int = 1, size: int = 1000, *, syntax: str = EXPLICIT, sop_class: str = CT
    ) -> Path:
        path = self.directory / f"{number}_{size}_{syntax}_{sop_class}.dcm"
        if not path.exists():
            ds = image(number, size, syntax=syntax, sop_class=sop_class)
            ds.save_as(path, enforce_file_format=True)
        return path

    def odd_payload(self, extra: int) -> Path:
        """A file with a good header whose data set is `extra` bytes, exactly, and no DICOM."""
        path = self.directory / f"odd_{extra}.dcm"
        if not path.exists():
            base = self.made(900, 64)
            path.write_bytes(base.read_bytes()[: -len(payload(base))] + b"\x07" * extra)
        return path

    def not_dicom(self) -> Path:
        path = self.directory / "not_dicom.dcm"
        path.write_bytes(b"this is no DICOM file " * 40)
        return path

    def truncated(self) -> Path:
        path = self.directory / "truncated.dcm"
        path.write_bytes(self.made(901, 5000).read_bytes()[:-1000])
        return path

    def empty(self) -> Path:
        path = self.directory / "empty.dcm"
        path.write_bytes(b"")
        return path


@cache
def shipped() -> tuple[Path, ...]:
    """The files that come with pydicom and pynetdicom and can be sent."""
    folders = [
        Path(pydicom.__file__).parent / "data" / "test_files",
        Path(pynetdicom.__file__).parent / "tests" / "dicom_files",
    ]
    found = []
    for path in sorted(p for folder in folders for p in folder.glob("*.dcm")):
        try:
            with path.open("rb") as file:
                read_partial(file, stop_when=lambda tag, vr, length: tag >= 0x00080018 + 1)
            ds = dcmread(path, force=True, stop_before_pixels=True)
            if ds.SOPClassUID and ds.SOPInstanceUID and ds.file_meta.TransferSyntaxUID:
                found.append(path)
        except Exception:
            continue
    return tuple(found)


def contexts_for(paths: Iterable[Path]) -> list[tuple[str, list[str]]]:
    """One (SOP class, [transfer syntax]) for each combination in these files."""
    pairs = set()
    for path in paths:
        ds = dcmread(path, force=True, stop_before_pixels=True)
        pairs.add((str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)))
        meta = ds.file_meta
        if "MediaStorageSOPClassUID" in meta and meta.MediaStorageSOPClassUID:
            pairs.add((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    return [(abstract, [syntax]) for abstract, syntax in sorted(pairs)]
