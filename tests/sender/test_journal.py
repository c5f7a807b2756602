"""The journal alone: what it holds, what it survives, whom it refuses."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

import pytest

from fastpdu.requestor import Peer
from fastpdu.sender.files import FileItem
from fastpdu.sender.journal import DigestSet, Journal, JournalError
from fastpdu.sender.pacing import Patience

PEER = Peer("pacs", 104, "US", "PACS")


def item(number: int, path: str = "/data/{}.dcm") -> FileItem:
    return FileItem(
        path.format(number), 1000 + number, 10**18 + number, "1.2", f"1.3.{number}", "1.4"
    )


def fill(path: Path, count: int) -> None:
    with Journal(path, PEER) as journal:
        for number in range(count):
            assert journal.claim(item(number)) is None
            journal.acknowledged(item(number), 0)


def test_remembers(tmp_path: Path) -> None:
    fill(tmp_path / "j", 5)
    with Journal(tmp_path / "j", PEER) as journal:
        assert len(journal) == 5
        assert journal.claim(item(3)) == "already sent"
        assert journal.claim(item(7)) is None
        assert journal.claim(item(7)) == "duplicate"
    first, *lines = map(json.loads, (tmp_path / "j").read_text().splitlines())
    assert (first["host"], first["port"], first["called"]) == ("pacs", 104, "PACS")
    assert [line["uid"] for line in lines] == [f"1.3.{number}" for number in range(5)]
    assert lines[0]["path"] == "/data/0.dcm"


def test_a_line_is_there_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PEER) as journal:
        journal.acknowledged(item(1), 0xB000)
        assert json.loads((tmp_path / "j").read_text().splitlines()[1])["status"] == 0xB000


def test_every_cut_of_the_end(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, 2)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, PEER) as journal:
            assert len(journal) == max(0, sum(end <= cut for end in ends) - 1)
            journal.acknowledged(item(9), 0)
        for line in path.read_text().splitlines():
            json.loads(line)


def test_lines_that_cannot_be_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    fill(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 100 + b"\n"
    path.write_bytes(b"".join(lines))
    with Journal(path, PEER) as journal:
        assert len(journal) == 2
        assert journal.claim(item(1)) is None
        assert journal.claim(item(2)) == "already sent"
    assert "1 lines cannot be read" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"something else", b"something\nelse\n", b'{"a": 1}\n', b"[]\n", b"[" * 100_000 + b"\n"],
)
def test_not_a_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, PEER)
    assert path.read_bytes() == content


def test_another_version(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('{"journal": "fastpdu-journal", "version": 2}\n')
    with pytest.raises(JournalError, match="version 2"):
        Journal(path, PEER)


@pytest.mark.parametrize(
    "peer",
    [
        Peer("other", 104, "US", "PACS"),
        Peer("pacs", 105, "US", "PACS"),
        Peer("pacs", 104, "US", "P"),
    ],
)
def test_another_destination(tmp_path: Path, peer: Peer) -> None:
    fill(tmp_path / "j", 1)
    with pytest.raises(JournalError, match="journal of sending to PACS at pacs:104"):
        Journal(tmp_path / "j", peer)


def test_in_use(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PEER), pytest.raises(JournalError, match="in use"):
        Journal(tmp_path / "j", PEER)
    Journal(tmp_path / "j", PEER).close()


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    odd = item(1, os.fsdecode(b"/data/\xff\xfe.dcm"))
    with Journal(tmp_path / "j", PEER) as journal:
        journal.acknowledged(odd, 0)
    with Journal(tmp_path / "j", PEER) as journal:
        assert journal.claim(odd) == "already sent"


def test_a_set_of_digests() -> None:
    digests = [blake2b(b"%d" % number, digest_size=16).digest() for number in range(5000)]
    found = DigestSet()
    for value in digests[:4000]:
        assert found.add(value)
        assert not found.add(value)
    assert len(found) == 4000
    assert [value in found for value in digests] == [True] * 4000 + [False] * 1000


def test_patience_counts_what_fails_together_once() -> None:
    import time

    patience = Patience(2, 0.01, 0.02)
    begun = time.monotonic()
    assert patience.failed(begun) is not None
    # others that were begun before that failure
    for _ in range(10):
        assert patience.failed(begun) is not None
    assert patience.failed(time.monotonic()) is not None
    assert patience.failed(time.monotonic()) is None
    patience.succeeded()
    assert patience.failed(time.monotonic()) is not None
