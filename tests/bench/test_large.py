"""The benchmark of one large object, with small ones. No amount of memory is asserted but the stock end's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from fastpdu.bench import large
from fastpdu.bench.errors import BenchError
from fastpdu.bench.multiframe import FRAME, MOST_FRAMES, Large, digest_of, make_multiframe

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Large:
    return make_multiframe(tmp_path_factory.mktemp("large") / "object.dcm", 3)


def test_the_object_is_what_it_says(made: Large) -> None:
    path = Path(made.instance.path)
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == made.instance.sop_class
    assert dataset.SOPInstanceUID == made.instance.sop_instance
    assert (dataset.NumberOfFrames, len(dataset.PixelData)) == (3, 3 * FRAME)
    content = path.read_bytes()
    assert len(content) == made.instance.size
    assert len(content[made.instance.offset :]) == made.length
    assert hashlib.sha256(content[made.instance.offset :]).digest() == made.digest
    assert digest_of(path, made.instance.offset) == made.digest
    # No two parts of 64 KiB are the same
    pixels = dataset.PixelData
    assert len({pixels[at : at + 65536] for at in range(0, len(pixels), 65536)}) == 24


@linux_only
def test_the_object_takes_little_room(tmp_path: Path) -> None:
    one = make_multiframe(tmp_path / "object.dcm", 100)
    about = os.stat(one.instance.path)
    assert about.st_size > 50_000_000
    assert about.st_blocks * 512 < about.st_size / 4


@pytest.mark.parametrize("frames", [0, -1, MOST_FRAMES + 1])
def test_frames_that_cannot_be(tmp_path: Path, frames: int) -> None:
    with pytest.raises(ValueError, match="frames must be"):
        make_multiframe(tmp_path / "object.dcm", frames)
    assert not list(tmp_path.iterdir())


@linux_only
@pytest.mark.parametrize("name", large.ROWS)
def test_rows_move_and_compare(made: Large, tmp_path: Path, name: str) -> None:
    moved = large.move(name, made, 16382, tmp_path)
    assert moved.seconds > 0
    for figures in (moved.sender, moved.receiver):
        assert figures.idle_memory
        assert figures.peak_memory
    if name == "stock":
        # Both hold it at least once: what is measured is the right process
        assert (moved.sender.memory_growth or 0) > made.length // 2
        assert (moved.receiver.memory_growth or 0) > made.length // 2
    assert not list(tmp_path.iterdir())


@linux_only
def test_an_object_that_arrives_changed(made: Large, tmp_path: Path) -> None:
    wrong = Large(made.instance, bytes(32))
    with pytest.raises(BenchError, match="arrived changed"):
        large.move("store", wrong, 0, tmp_path)
    assert not list(tmp_path.iterdir())


@linux_only
def test_from_end_to_end(tmp_path: Path) -> None:
    arguments = ["--size", "2", "--runs", "1", "--json", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "fastpdu", "bench", "large", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["rows"]] == ["store", "get", "stock"]
    for row in result["rows"]:
        assert len(row["samples"]) == len(row["runs"]) == 1
        assert row["bytes"] > 2_000_000
        assert row["runs"][0]["sender"]["peak_memory"] > 0
    assert [goal["met"] for goal in result["goals"]] == [True, True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "4400"], "at most 4294 MB"),
        (["--pdu", "6"], "at least 7 bytes"),
        (["--directory", "/no/such/directory"], "no such directory"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastpdu", "bench", "large", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
