"""The CT series that the benchmarks make."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import (
    Series,
    ct_series,
    first,
    make_series,
    read_series,
    small_series,
)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    directory = tmp_path_factory.mktemp("series")
    return Series(directory, tuple(make_series(directory, 60)), made=True)


def test_every_file_is_a_valid_ct_image(series: Series) -> None:
    for index, instance in enumerate(series.instances):
        dataset = dcmread(instance.path)
        assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == CTImageStorage
        assert dataset.SOPInstanceUID == instance.sop_instance
        assert dataset.file_meta.MediaStorageSOPInstanceUID == instance.sop_instance
        assert dataset.SOPInstanceUID.is_valid
        assert dataset.InstanceNumber == index + 1
        assert (dataset.Rows, dataset.Columns, dataset.BitsAllocated) == (512, 512, 16)
        assert len(dataset.PixelData) == 512 * 512 * 2
        assert dataset.ImagePositionPatient[2] == dataset.SliceLocation


def test_header_is_like_a_scanners(series: Series) -> None:
    dataset = dcmread(series.instances[0].path)
    assert len(dataset) >= 100
    sequences = [element for element in dataset if element.VR == "SQ"]
    assert len(sequences) >= 5
    nested = dataset.RequestAttributesSequence[0].ScheduledProtocolCodeSequence[0]
    assert nested.CodeMeaning == "CT of chest with contrast"
    private = [element for element in dataset if element.tag.is_private]
    assert any(element.VR == "SQ" for element in private)
    assert 515_000 < series.instances[0].size < 545_000


def test_pixels_use_twelve_bits(series: Series) -> None:
    dataset = dcmread(series.instances[30].path)
    values = struct.unpack(f"<{512 * 512}H", dataset.PixelData)
    assert max(values) <= 4095
    # The corners lie outside of the reconstructed circle, the spine is bone, the middle is not.
    assert values[0] == 0
    assert values[int(512 * 0.70) * 512 + 256] > 1200
    assert 900 < values[256 * 512 + 256] < 1300


def test_no_two_files_are_alike(series: Series) -> None:
    uids = {instance.sop_instance for instance in series.instances}
    pixels = {hashlib.sha256(i.data_set()[-512 * 512 * 2 :]).digest() for i in series.instances}
    headers = {i.data_set()[: -512 * 512 * 2] for i in series.instances}
    assert len(uids) == len(pixels) == len(headers) == len(series)


def test_content_depends_on_the_number_alone(series: Series, tmp_path: Path) -> None:
    again = make_series(tmp_path, 3)
    for instance, other in zip(again, series.instances, strict=False):
        assert Path(instance.path).read_bytes() == Path(other.path).read_bytes()


def test_pydicom_encodes_it_to_the_same_bytes(series: Series, tmp_path: Path) -> None:
    # A sender that decodes and encodes again must not be the reason for a different digest.
    copy = tmp_path / "copy.dcm"
    dataset = dcmread(series.instances[7].path)
    list(dataset.iterall())
    dataset.save_as(copy, enforce_file_format=True)
    (again,) = read_series(tmp_path).instances
    assert again.data_set() == series.instances[7].data_set()


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="needs DCMTK's dcmdump")
def test_dcmtk_reads_it_without_complaint(series: Series) -> None:
    for number in (0, 59):
        done = subprocess.run(
            ["dcmdump", series.instances[number].path], capture_output=True, check=False
        )
        assert done.returncode == 0
        assert done.stderr == b""


def test_reading_finds_what_was_made(series: Series) -> None:
    found = read_series(series.directory)
    assert found.instances == series.instances
    assert found.contexts == ((str(CTImageStorage), str(ExplicitVRLittleEndian)),)
    assert not found.made
    assert found.skipped == 0


def test_reading_skips_what_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    make_series(tmp_path / "sub", 2, rows=4, columns=4)
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00")
    found = read_series(tmp_path)
    assert len(found) == 2
    assert found.skipped == 3
    assert len(read_series(tmp_path, limit=1)) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_reading_nothing_is_an_error(tmp_path: Path, exists: bool) -> None:
    with pytest.raises(BenchError):
        read_series(tmp_path if exists else tmp_path / "none")


def test_temporary_series_disappears() -> None:
    with ct_series(count=2) as made:
        directory = made.directory
        assert len(list(directory.iterdir())) == 2
    assert not directory.exists()
    with pytest.raises(KeyboardInterrupt), ct_series(count=1) as made:
        directory = made.directory
        raise KeyboardInterrupt
    assert not directory.exists()


def test_kept_series_stays(tmp_path: Path) -> None:
    with ct_series(count=2, keep=tmp_path / "kept"):
        pass
    with ct_series(tmp_path / "kept") as again:
        assert len(again) == 2
    assert (tmp_path / "kept").exists()


def test_small_objects_have_two_kilobytes() -> None:
    with small_series(3) as made:
        for instance in made.instances:
            assert 1900 < instance.size < 2200
            assert dcmread(instance.path).SOPInstanceUID == instance.sop_instance
        assert len(first(made, 2)) == 2
