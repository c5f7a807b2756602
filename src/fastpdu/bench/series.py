"""A realistic CT series in files, made in about a second, or one that the user has.

The files are valid CT Image Storage Part 10 files: 512 x 512 pixels of 16 bits, explicit VR little
endian, a header of about a hundred elements with nested sequences and private elements, about
530 KB each. No two have the same UIDs, position or pixels, so that a transport that mixed up, cut
or repeated a byte could not pass the digests. The content depends on the index alone: every
machine measures the same bytes.

pydicom writes one header. The other files take a copy of it in which the values that differ from
image to image, all of fixed width, are overwritten in place.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import random
import re
import secrets
import shutil
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from fastpdu.bench.errors import BenchError

__all__ = [
    "Identity",
    "Instance",
    "Series",
    "contexts_of",
    "ct_series",
    "make_series",
    "read_series",
    "small_series",
]

OnImage = Callable[[], object]

# A stem has this many digits
_STEM_DIGITS = 28
_PRIVATE_CREATOR = "FASTPDU BENCH 1.0"


@dataclass(frozen=True)
class Identity:
    """Whose images they are: what a series says of its patient, and its UIDs.

    Attributes
    ----------
    patient_name, patient_id : str
        Recognisable, so that nobody takes the images for those of a patient.
    stem : str
        The first digits of each UID: 28 of them, the first not 0. A UID is 2.25.<integer>, from an integer below
        2**128 (PS3.5 B.2); the last ten digits are counters, so that every UID of a series has the same length.
    comment : str
        Image Comments.
    """

    patient_name: str = "Bench^Series"
    patient_id: str = "FASTPDU-1"
    stem: str = "1700234981550067432190875134"
    comment: str = "Made by fastpdu bench. " * 8

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[1-9][0-9]{{{_STEM_DIGITS - 1}}}", self.stem):
            raise ValueError(f"stem must be {_STEM_DIGITS} digits, the first not 0: {self.stem!r}")

    @classmethod
    def new(cls, patient_name: str, patient_id: str, comment: str) -> Identity:
        """Return an identity whose UIDs nobody has used before."""
        digits = "".join(str(secrets.randbelow(10)) for _ in range(_STEM_DIGITS - 1))
        # Below 2**128, which is 3.4e38: a stem and ten digits of counters have 38 digits
        return cls(patient_name, patient_id, str(1 + secrets.randbelow(9)) + digits, comment)

    def uid(self, kind: int, index: int = 0) -> str:
        """Return a UID of the series: the study's is of kind 1, those of the images of kind 4."""
        return f"2.25.{self.stem}{kind:02d}{index:08d}"


_BENCH = Identity()


@dataclass(frozen=True)
class Instance:
    """One file of a series.

    Attributes
    ----------
    path : str
        The Part 10 file.
    size : int
        Its length in bytes.
    offset : int
        Where its data set begins: after the preamble and the file meta information.
    sop_class, sop_instance, transfer_syntax : str
        UIDs from its file meta information.
    """

    path: str
    size: int
    offset: int
    sop_class: str
    sop_instance: str
    transfer_syntax: str

    def data_set(self) -> bytes:
        """Return the encoded data set as it is in the file."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read()


@dataclass(frozen=True)
class Series:
    """Files to be sent, in order.

    Attributes
    ----------
    directory : Path
        Where the files are.
    instances : tuple of Instance
        The files.
    made : bool
        False for files that the user brought.
    skipped : int
        Files of the directory that are not DICOM Part 10.
    """

    directory: Path
    instances: tuple[Instance, ...]
    made: bool
    skipped: int = 0
    contexts: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", contexts_of(self.instances))

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def bytes(self) -> int:
        """The length of all files together."""
        return sum(item.size for item in self.instances)


# --- headers --------------------------------------------------------------------------------------


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _varying(index: int, identity: Identity) -> dict[int, str]:
    """Return the elements that differ from image to image, with values of fixed width."""
    seconds = 30.0 + index * 0.01
    minute, second = divmod(seconds, 60.0)
    time = f"10{25 + int(minute) % 30:02d}{second:09.6f}"
    z = -250.0 + index * 0.625
    return {
        0x0002_0003: identity.uid(4, index),
        0x0008_0018: identity.uid(4, index),
        0x0008_0032: time,
        0x0008_0033: time,
        0x0018_1151: f"{180 + index % 90:04d}",
        0x0018_1152: f"{90 + index % 45:04d}",
        0x0020_0013: f"{index + 1:08d}",
        0x0020_0032: f"-0250.00\\-0250.00\\{z:+08.2f}",
        0x0020_1041: f"{z:+08.2f}",
        0x0028_1050: f"{40 + index % 20:04d}",
    }


def _set_varying(dataset: Dataset, index: int, identity: Identity) -> None:
    for tag, value in _varying(index, identity).items():
        if tag >> 16 != 0x0002:
            keyword_vr = {
                0x0008_0018: "UI",
                0x0008_0032: "TM",
                0x0008_0033: "TM",
                0x0018_1151: "IS",
                0x0018_1152: "IS",
                0x0020_0013: "IS",
                0x0020_0032: "DS",
                0x0020_1041: "DS",
                0x0028_1050: "DS",
            }
            dataset.add(DataElement(tag, keyword_vr[tag], value))


def _short_header(identity: Identity) -> Dataset:
    """Return the elements that every image has to have, and few others."""
    dataset = Dataset()
    values: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": "20240117",
        "StudyTime": "101500.000000",
        "AccessionNumber": "A000001",
        "Modality": "CT",
        "Manufacturer": "fastpdu",
        "ReferringPhysicianName": "Doe^Referring",
        "PatientName": identity.patient_name,
        "PatientID": identity.patient_id,
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "KVP": "120",
        "StudyInstanceUID": identity.uid(1),
        "SeriesInstanceUID": identity.uid(2),
        "StudyID": "1",
        "SeriesNumber": "2",
        "AcquisitionNumber": "1",
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "FrameOfReferenceUID": identity.uid(3),
        "PositionReferenceIndicator": "SN",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": ["0.976562", "0.976562"],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowWidth": "400",
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    _set_varying(dataset, 0, identity)
    return dataset


def _full_header(identity: Identity) -> Dataset:
    """Return a header as a scanner writes it: a hundred elements, sequences, private elements."""
    dataset = _short_header(identity)
    chest = _code("51185008", "Chest")
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID=identity.uid(1)
    )
    scout = _item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=identity.uid(6, 1))
    scout.PurposeOfReferenceCodeSequence = [_code("121311", "Localizer", "DCM")]
    protocol = _code("CTCH", "CT of chest with contrast", "99FASTPDU")
    request = _item(
        RequestedProcedureID="RP0001",
        RequestedProcedureDescription="CT of chest with contrast",
        ScheduledProcedureStepID="SPS0001",
        ScheduledProcedureStepDescription="CT of chest with contrast",
    )
    request.ScheduledProtocolCodeSequence = [protocol]
    values: dict[str, object] = {
        "InstanceCreationDate": "20240117",
        "InstanceCreationTime": "102530.000000",
        "SeriesDate": "20240117",
        "AcquisitionDate": "20240117",
        "ContentDate": "20240117",
        "SeriesTime": "102400.000000",
        "InstitutionName": "Benchmark General Hospital",
        "InstitutionAddress": "1 Loopback Street, Localhost",
        "StationName": "CT01",
        "StudyDescription": "CT chest with contrast",
        "ProcedureCodeSequence": [protocol],
        "SeriesDescription": "Chest 0.6 mm soft tissue",
        "InstitutionalDepartmentName": "Radiology",
        "PerformingPhysicianName": "Doe^Performing",
        "OperatorsName": "Doe^Operator",
        "ManufacturerModelName": "Synthetic CT 64",
        "ReferencedStudySequence": [study],
        "ReferencedImageSequence": [scout],
        "PatientAge": "054Y",
        "PatientSize": "1.75",
        "PatientWeight": "75",
        "PatientComments": "Synthetic data. No person was scanned.",
        "ContrastBolusAgent": "Iodine 300",
        "BodyPartExamined": "CHEST",
        "ScanOptions": "SPIRAL MODE",
        "SliceThickness": "0.625",
        "DataCollectionDiameter": "500",
        "DeviceSerialNumber": "000001",
        "SoftwareVersions": ["1.0", "build 1"],
        "ProtocolName": "6.1 CHEST ROUTINE",
        "ContrastBolusRoute": "IV",
        "ContrastBolusVolume": "80",
        "ContrastFlowRate": ["3.0"],
        "ReconstructionDiameter": "500",
        "DistanceSourceToDetector": "1085.6",
        "DistanceSourceToPatient": "595",
        "GantryDetectorTilt": "0",
        "TableHeight": "160",
        "RotationDirection": "CW",
        "ExposureTime": "500",
        "FilterType": "BODY FILTER",
        "GeneratorPower": "28",
        "FocalSpots": ["0.7"],
        "ConvolutionKernel": "STANDARD",
        "PatientPosition": "FFS",
        "RevolutionTime": 0.5,
        "SingleCollimationWidth": 0.625,
        "TotalCollimationWidth": 40.0,
        "TableSpeed": 78.75,
        "TableFeedPerRotation": 39.375,
        "SpiralPitchFactor": 0.984375,
        "ExposureModulationType": "XYZ_EC",
        "CTDIvol": 8.25,
        "CTDIPhantomTypeCodeSequence": [_code("113691", "IEC Body Dosimetry Phantom", "DCM")],
        "ImagesInAcquisition": "1000",
        "ImageComments": identity.comment,
        "LossyImageCompression": "00",
        "SmallestImagePixelValue": 0,
        "LargestImagePixelValue": 4095,
        "WindowCenterWidthExplanation": "SOFT TISSUE",
        "RequestingPhysician": "Doe^Requesting",
        "RequestedProcedureDescription": "CT of chest with contrast",
        "PerformedProcedureStepStartDate": "20240117",
        "PerformedProcedureStepStartTime": "101500.000000",
        "PerformedProcedureStepID": "PPS0001",
        "PerformedProcedureStepDescription": "CT of chest with contrast",
        "RequestAttributesSequence": [request],
        "AnatomicRegionSequence": [chest],
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    block = dataset.private_block(0x0019, _PRIVATE_CREATOR, create=True)
    block.add_new(0x01, "LO", "raw data of the acquisition")
    block.add_new(0x02, "DS", ["0.1", "0.2", "0.3"])
    block.add_new(0x03, "FD", [math.pi, math.e])
    # Scanners keep their own header in a private element of a kilobyte or more.
    block.add_new(0x10, "OB", bytes(range(256)) * 6)
    block = dataset.private_block(0x0021, _PRIVATE_CREATOR, create=True)
    inner = _item(Manufacturer="fastpdu")
    inner_block = inner.private_block(0x0021, _PRIVATE_CREATOR, create=True)
    inner_block.add_new(0x02, "SL", [-1, 0, 1])
    block.add_new(0x01, "SQ", [inner])
    block.add_new(0x02, "UN", b"opaque value")
    return dataset


def _template(header: Dataset, rows: int, columns: int, identity: Identity) -> bytes:
    """Encode one file up to the first pixel."""
    header.Rows = rows
    header.Columns = columns
    header.PixelData = b""
    header["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(identity.uid(4))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    file = FileDataset(buffer, header, file_meta=meta, preamble=bytes(128))
    file.save_as(buffer, enforce_file_format=True)
    encoded = bytearray(buffer.getvalue())
    # Pixel Data is the last element: its length is the last thing before the pixels.
    encoded[-4:] = struct.pack("<I", rows * columns * 2)
    return bytes(encoded)


def _find_values(template: bytes, identity: Identity) -> list[tuple[int, int]]:
    """Return (tag, position of its value in the template) of each varying element."""
    found = []
    for tag, value in _varying(0, identity).items():
        length = len(value) + len(value) % 2
        # The VR stands between tag and length. No header of ours has the same bytes twice.
        prefix = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        at = -1
        while (at := template.find(prefix, at + 1)) >= 0:
            start = at + 8
            same_length = struct.unpack_from("<H", template, at + 6)[0] == length
            if same_length and template.startswith(value.encode(), start):
                found.append((tag, start))
                break
        else:
            raise AssertionError(f"element {tag:08X} is not in the template")
    return found


# --- pixels ---------------------------------------------------------------------------------------

_TEXTURE = 1 << 14  # values
_STORED = {  # stored value = HU + 1024: mean and standard deviation of the noise
    "air": (30, 12),
    "fat": (930, 18),
    "soft": (1070, 22),
    "lung": (190, 50),
    "bone": (1750, 110),
}
_VARIANTS = 20  # different anatomies; the noise differs from image to image


def _textures(width: int) -> dict[str, bytes]:
    """Return noise of each tissue, with a margin of one row so that no slice runs past the end."""
    source = random.Random(20240117)
    textures = {}
    for name, (mean, deviation) in _STORED.items():
        noise = [
            min(4095, max(0, int(source.gauss(mean, deviation)))) for _ in range(_TEXTURE + width)
        ]
        values = array("H", noise)
        if struct.pack("=H", 1) != struct.pack("<H", 1):  # pragma: no cover - big endian machine
            values.byteswap()
        textures[name] = values.tobytes()
    return textures


def _span(center: float, half_width: float, y: float, y_center: float, half_height: float) -> range:
    """Return the columns that an ellipse covers in row `y`."""
    inside = 1.0 - ((y - y_center) / half_height) ** 2
    if inside <= 0.0:
        return range(0)
    reach = half_width * math.sqrt(inside)
    return range(round(center - reach), round(center + reach))


def _anatomy(rows: int, columns: int, z: float) -> list[tuple[str | None, int]]:
    """Return one slice of a chest as runs of (tissue or None for padding, number of pixels).

    Parameters
    ----------
    z : float
        0 to 1, from the abdomen to the neck.
    """
    width = columns * (0.44 - 0.10 * z * z)
    height = rows * (0.32 - 0.08 * z * z)
    lung = math.sin(math.pi * z)
    shapes: list[tuple[str, float, float, float, float]] = [
        # tissue, center x, center y, half width, half height: later ones lie on top
        ("air", 0.5, 0.5, columns * 0.5, rows * 0.5),
        ("fat", 0.5, 0.5, width, height),
        ("soft", 0.5, 0.5, width * 0.93, height * 0.92),
        ("lung", 0.33, 0.47, columns * 0.12 * lung, rows * 0.19 * lung),
        ("lung", 0.67, 0.47, columns * 0.12 * lung, rows * 0.19 * lung),
        ("bone", 0.5, 0.70, columns * 0.05, rows * 0.05),
        ("bone", 0.5, 0.24, columns * 0.04, rows * 0.015),
    ]
    runs: list[tuple[str | None, int]] = []
    for y in range(rows):
        # Split the row at every edge, then ask which shape is on top between two edges.
        spans = [
            (name, _span(x * columns, max(w, 1e-9), y + 0.5, yc * rows, max(h, 1e-9)))
            for name, x, yc, w, h in shapes
        ]
        spans = [(name, span) for name, span in spans if len(span)]
        edges = sorted({0, columns, *(s.start for _, s in spans), *(s.stop for _, s in spans)})
        edges = [edge for edge in edges if 0 <= edge <= columns]
        for left, right in itertools.pairwise(edges):
            top = next((name for name, span in reversed(spans) if left in span), None)
            runs.append((top, right - left))
    return runs


class _Pixels:
    """Makes the pixels of image after image."""

    def __init__(self, rows: int, columns: int) -> None:
        textures = _textures(columns)
        padding = bytes(2 * columns)
        self._layouts = [
            [
                (None if name is None else textures[name], 2 * length, padding[: 2 * length])
                for name, length in _anatomy(rows, columns, (variant + 0.5) / _VARIANTS)
            ]
            for variant in range(_VARIANTS)
        ]

    def image(self, index: int) -> bytes:
        """Return the pixels of image `index`."""
        layout = self._layouts[index // 50 % _VARIANTS]
        # A linear congruential generator chooses where each run of pixels takes its noise from:
        # a hundred times cheaper than noise for every pixel, and no two images are the same.
        state = (index * 2654435761 + 12345) & 0xFFFFFFFF
        parts = []
        for texture, length, padding in layout:
            if texture is None:
                parts.append(padding)
            else:
                state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
                start = state >> 17 & ~1
                parts.append(texture[start : start + length])
        return b"".join(parts)


# --- files ----------------------------------------------------------------------------------------


def make_series(
    directory: Path,
    count: int,
    *,
    rows: int = 512,
    columns: int = 512,
    full_header: bool = True,
    identity: Identity = _BENCH,
    on_image: OnImage | None = None,
) -> list[Instance]:
    """Write a CT series.

    Parameters
    ----------
    directory : Path
        An existing directory.
    count : int
        Number of files.
    rows, columns : int
        The size of an image.
    full_header : bool
        A header as a scanner writes it, or the least that a CT image has.
    identity : Identity
        Whose images they are.
    on_image : callable, optional
        Called after each file.

    Returns
    -------
    list of Instance
        The files in order.
    """
    if count > 10**8:
        raise ValueError("the counter in the UIDs has eight digits")
    header = (_full_header if full_header else _short_header)(identity)
    template = _template(header, rows, columns, identity)
    places = _find_values(template, identity)
    (meta_length,) = struct.unpack_from("<I", template, 140)
    offset = 144 + meta_length
    pixels = _Pixels(rows, columns)
    size = len(template) + rows * columns * 2
    head = bytearray(template)
    instances = []
    for index in range(count):
        values = _varying(index, identity)
        for tag, start in places:
            value = values[tag].encode()
            head[start : start + len(value)] = value
        path = os.path.join(directory, f"CT{index + 1:06d}.dcm")
        with open(path, "wb", buffering=0) as file:
            _write(file, head)
            _write(file, pixels.image(index))
        instances.append(
            Instance(
                path,
                size,
                offset,
                str(CTImageStorage),
                identity.uid(4, index),
                str(ExplicitVRLittleEndian),
            )
        )
        if on_image is not None:
            on_image()
    return instances


def _write(file: io.FileIO, data: bytes | bytearray) -> None:
    """Write all of `data`: an unbuffered file may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _stop_after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return True


def read_series(
    directory: Path, limit: int | None = None, on_image: OnImage | None = None
) -> Series:
    """Find the DICOM Part 10 files below a directory, in the order of their names.

    Parameters
    ----------
    directory : Path
        Where to look, subdirectories included.
    limit : int, optional
        Take no more than this many.
    on_image : callable, optional
        Called after each file.

    Returns
    -------
    Series
        What was found. Files that are not DICOM are counted, not taken.

    Raises
    ------
    BenchError
        If there is no directory, or no DICOM file in it.
    """
    if not directory.is_dir():
        raise BenchError(f"{directory} is not a directory")
    instances: list[Instance] = []
    skipped = 0
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        if limit is not None and len(instances) >= limit:
            break
        instance = _read_instance(path)
        if instance is None:
            skipped += 1
            continue
        instances.append(instance)
        if on_image is not None:
            on_image()
    if not instances:
        raise BenchError(
            f"no DICOM Part 10 file in {directory}",
            "leave --files out to have a series made",
        )
    return Series(directory, tuple(instances), made=False, skipped=skipped)


def _read_instance(path: Path) -> Instance | None:
    if path.name.upper() == "DICOMDIR":
        return None
    with open(path, "rb") as file:
        try:
            meta = read_partial(file, stop_when=_stop_after_meta).file_meta
        except (InvalidDicomError, EOFError, struct.error):
            return None
        try:
            sop_class = str(meta.MediaStorageSOPClassUID)
            sop_instance = str(meta.MediaStorageSOPInstanceUID)
            syntax = str(meta.TransferSyntaxUID)
        except AttributeError:
            return None
        file.seek(132)
        tag, length = struct.unpack("<4s4xI", file.read(12))
        if tag != b"\x02\x00\x00\x00":
            # No group length: the data set begins where the first element of another group does.
            return None
        return Instance(
            str(path), path.stat().st_size, 144 + length, sop_class, sop_instance, syntax
        )


@contextlib.contextmanager
def _temporary(need: int) -> Iterator[Path]:
    """Give a directory that disappears with everything in it."""
    directory = Path(tempfile.mkdtemp(prefix="fastpdu-bench-"))
    try:
        free = shutil.disk_usage(directory).free
        if free < need + (64 << 20):
            raise BenchError(
                f"{directory.parent} has {free >> 20} MB free, the series needs {need >> 20} MB",
                "use --count for fewer images, or set TMPDIR to a larger file system",
            )
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def ct_series(
    files: Path | None = None,
    count: int | None = None,
    *,
    keep: Path | None = None,
    on_image: OnImage | None = None,
) -> Iterator[Series]:
    """Give the series of the main job: made in a temporary directory, or the user's own.

    Parameters
    ----------
    files : Path, optional
        A directory with DICOM files. Nothing in it is changed.
    count : int, optional
        Number of images: 1000 if the series is made, all that there are if not.
    keep : Path, optional
        Make the series in this directory, and leave it there.
    on_image : callable, optional
        Called after each image that was made or read.

    Yields
    ------
    Series
        The files. Those that were made are deleted at the end, unless `keep` is given.
    """
    if files is not None:
        yield read_series(files, count, on_image)
        return
    number = 1000 if count is None else count
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield Series(keep, tuple(make_series(keep, number, on_image=on_image)), made=True)
        return
    with _temporary(number * 532_000) as directory:
        instances = make_series(directory, number, on_image=on_image)
        yield Series(directory, tuple(instances), made=True)


@contextlib.contextmanager
def small_series(count: int, on_image: OnImage | None = None) -> Iterator[Series]:
    """Give a temporary series of CT images of 2 KB.

    Parameters
    ----------
    count : int
        Number of images.
    on_image : callable, optional
        Called after each image.

    Yields
    ------
    Series
        The files. They are deleted at the end.
    """
    with _temporary(count * 4096) as directory:
        instances = make_series(
            directory, count, rows=20, columns=22, full_header=False, on_image=on_image
        )
        yield Series(directory, tuple(instances), made=True)


def contexts_of(instances: Iterable[Instance]) -> tuple[tuple[str, str], ...]:
    """Return the SOP classes with their transfer syntaxes that some images need contexts for, sorted."""
    return tuple(sorted({(item.sop_class, item.transfer_syntax) for item in instances}))


def first(series: Series, count: int) -> Series:
    """Return a series of the first `count` images of another."""
    instances: Sequence[Instance] = series.instances[:count]
    return Series(series.directory, tuple(instances), series.made, series.skipped)
