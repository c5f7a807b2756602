"""One large multi-frame object in a file that takes little room on the disk.

Its frames are zeros, which a sparse file does not store, but for a number every 64 KiB: a transport that lost,
repeated or moved a part of them could not pass the digest.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

from fastpdu.bench.series import Identity, Instance

__all__ = ["FRAME", "MOST_FRAMES", "Large", "digest_of", "make_multiframe"]

#: Bytes of a frame: 512 x 512 pixels of 16 bits.
FRAME = 512 * 512 * 2
#: An element that is not encapsulated has a length of 32 bits, and this one an even one (PS3.5 7.1.1).
MOST_FRAMES = 0xFFFFFFFE // FRAME
_STRIDE = 64 * 1024
_PIECE = 1024 * 1024


@dataclass(frozen=True)
class Large:
    """A large object.

    Attributes
    ----------
    instance : Instance
        The file.
    digest : bytes
        SHA-256 of its data set.
    """

    instance: Instance
    digest: bytes

    @property
    def length(self) -> int:
        """Bytes of the data set."""
        return self.instance.size - self.instance.offset


def _header(frames: int) -> Dataset:
    """Return a Multi-frame Grayscale Word Secondary Capture image (PS3.3 A.8.4) without its pixels."""
    identity = Identity()
    dataset = Dataset()
    dataset.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    dataset.SOPInstanceUID = identity.uid(9, frames)
    dataset.StudyDate = dataset.ContentDate = "20260101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.PatientName = identity.patient_name
    dataset.PatientID = identity.patient_id
    dataset.StudyInstanceUID = identity.uid(1)
    dataset.SeriesInstanceUID = identity.uid(8)
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = frames
    dataset.Rows = dataset.Columns = 512
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def make_multiframe(path: Path, frames: int) -> Large:
    """Write an object.

    Parameters
    ----------
    path : Path
        The file.
    frames : int
        Its frames of 512 KiB, up to `MOST_FRAMES`.

    Raises
    ------
    ValueError
        If it cannot have so many frames.
    """
    if not 0 < frames <= MOST_FRAMES:
        raise ValueError(f"frames must be 1 to {MOST_FRAMES}, not {frames}")
    header = _header(frames)
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    offset = 144 + int.from_bytes(buffer.getvalue()[140:144], "little")
    pixels = frames * FRAME
    buffer.seek(0, os.SEEK_END)
    buffer.write(b"\xe0\x7f\x10\0OW\0\0" + pixels.to_bytes(4, "little"))
    head = buffer.getvalue()
    digest = hashlib.sha256(head[offset:])
    part = bytearray(_STRIDE)
    with path.open("wb") as file:
        file.write(head)
        for number, at in enumerate(range(len(head), len(head) + pixels, _STRIDE), 1):
            mark = number.to_bytes(8, "little")
            file.seek(at)
            file.write(mark)
            part[:8] = mark
            digest.update(part)
        file.truncate(len(head) + pixels)
    instance = Instance(
        str(path),
        len(head) + pixels,
        offset,
        str(UID(header.SOPClassUID)),
        str(header.SOPInstanceUID),
        str(ExplicitVRLittleEndian),
    )
    return Large(instance, digest.digest())


def digest_of(path: Path, offset: int) -> bytes:
    """Return the SHA-256 of a file from an offset on, without loading it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()
