"""How the benchmarks know that what arrived is what was sent.

Hashing 500 KB takes longer than moving it, so a digest inside the timed section would measure the
digest. Each row is therefore checked twice:

* once, untimed, with SHA-256 of every data set against the data set in the file;
* in every timed run, with the length of every data set and one byte of each of its pages. Taking
  them is the "touch" of the timed handler; they are compared when the clock has stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance

__all__ = ["Touch", "Verifier", "received_bytes", "same_data_set", "touch"]

PAGE = 4096

Sample = tuple[int, bytes]


def touch(data: bytes) -> Sample:
    """Return the length of a data set and a byte of each of its pages."""
    return len(data), data[::PAGE]


def received_bytes(event: Any) -> bytes:
    """Return the encoded data set of a C-STORE request as the application gets it.

    `getvalue` rather than `getbuffer`: a BytesIO that was made from bytes hands those out again,
    but has to copy them before it exports a writable buffer.
    """
    data: bytes = event.request.DataSet.getvalue()
    return data


class Touch:
    """The EVT_C_STORE handler of the timed runs."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def __call__(self, event: Any) -> int:
        """Touch the data set and answer Success."""
        self.samples.append(touch(received_bytes(event)))
        return 0x0000

    def check(self, expected: Sequence[Sample]) -> None:
        """Compare what arrived with what the verification pass had.

        Raises
        ------
        BenchError
            If an image is missing or differs.
        """
        if len(self.samples) != len(expected):
            raise BenchError(f"{len(self.samples)} of {len(expected)} images arrived")
        for number, (got, wanted) in enumerate(zip(self.samples, expected, strict=True), 1):
            if got != wanted:
                raise BenchError(f"image {number} arrived changed ({got[0]} of {wanted[0]} bytes)")


class Verifier:
    """The EVT_C_STORE handler of the verification pass: SHA-256 of every data set.

    Parameters
    ----------
    instances : sequence of Instance
        What is going to be sent, in this order.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._instances = instances
        self._recoded = 0
        self.failures: list[str] = []
        self.samples: list[Sample] = []

    def __call__(self, event: Any) -> int:
        """Compare the data set with the file's and answer Success."""
        data = received_bytes(event)
        if len(self.samples) >= len(self._instances):
            self.failures.append("more images arrived than were sent")
            return 0xC000
        instance = self._instances[len(self.samples)]
        self.samples.append(touch(data))
        name = instance.path
        if str(event.request.AffectedSOPInstanceUID) != instance.sop_instance:
            self.failures.append(f"{name}: another instance UID arrived")
        outcome = same_data_set(data, instance)
        if outcome is None:
            self.failures.append(f"{name}: the data set arrived changed")
        elif outcome == "elements":
            self._recoded += 1
        return 0x0000

    def finish(self) -> str:
        """Return how the series was verified.

        Raises
        ------
        BenchError
            If an image is missing or differs.
        """
        if self.failures:
            raise BenchError(f"{len(self.failures)} errors, the first: {self.failures[0]}")
        if len(self.samples) != len(self._instances):
            raise BenchError(f"{len(self.samples)} of {len(self._instances)} images arrived")
        return summary(len(self.samples), self._recoded)


def summary(count: int, recoded: int) -> str:
    """Describe a check that everything has passed."""
    text = f"SHA-256 of {count}"
    if recoded:
        text += f", {recoded} of them re-encoded on the way and compared element by element"
    return text


def same_data_set(data: bytes, instance: Instance) -> str | None:
    """Compare a received data set with the one in the file.

    Parameters
    ----------
    data : bytes
        The encoded data set.
    instance : Instance
        The file that it should be from.

    Returns
    -------
    str or None
        "digest" if the bytes are the same, "elements" if the sender encoded the same elements in
        another way (stock pynetdicom and DCMTK both decode and encode again: lengths of sequences
        may become explicit, for instance), None if they differ.
    """
    original = instance.data_set()
    if hashlib.sha256(data).digest() == hashlib.sha256(original).digest():
        return "digest"
    try:
        same = _decode(data, instance) == _decode(original, instance)
    except Exception:
        # Whatever pydicom makes of bytes that should have been a data set: they are not it.
        return None
    return "elements" if same else None


def _decode(data: bytes, instance: Instance) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(instance.transfer_syntax)
    meta.MediaStorageSOPClassUID = UID(instance.sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance.sop_instance)
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    buffer.write(data)
    buffer.seek(0)
    dataset = dcmread(buffer)
    # Group lengths say how the elements are encoded, not what they are.
    for tag in [tag for tag, _ in dataset.items() if tag.element == 0]:
        del dataset[tag]
    # Compare elements only: file objects also compare where they were read from.
    plain = Dataset()
    plain.update(dict(dataset.items()))
    return plain
