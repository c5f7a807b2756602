"""Group commit: whoever comes while an fsync runs shares the next one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers import kit

from fastpdu import group_commit
from fastpdu.group_commit import GroupCommit


class Disk:
    """Counts and holds fsyncs."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let = {"a": threading.Semaphore(0), "b": threading.Semaphore(0)}
        self.error: OSError | None = None

    def sync(self, directory: str) -> None:
        self.begun.append(directory)
        assert self.let[directory].acquire(timeout=kit.DEADLINE)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(group_commit, "sync_directory", made.sync)
    return made


class Caller(threading.Thread):
    def __init__(self, commits: GroupCommit, directory: str) -> None:
        super().__init__(name="user", daemon=True)
        self.commits, self.directory = commits, directory
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.commits.sync(self.directory)
            self.outcome = "done"
        except OSError as error:
            self.outcome = error


def waiting(commits: GroupCommit) -> int:
    """How many threads wait for a turn."""
    return len(commits._condition._waiters)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fails", [False, True])
def test_who_comes_meanwhile_shares_the_next(disk: Disk, fails: bool) -> None:
    commits = GroupCommit()
    first = Caller(commits, "a")
    kit.until(lambda: disk.begun == ["a"])
    others = [Caller(commits, "a") for _ in range(5)]
    kit.until(lambda: waiting(commits) == 5)
    elsewhere = Caller(commits, "b")
    kit.until(lambda: disk.begun == ["a", "b"])
    disk.let["a"].release()
    disk.let["b"].release()
    first.join(kit.DEADLINE)
    elsewhere.join(kit.DEADLINE)
    kit.until(lambda: len(disk.begun) == 3)
    disk.error = OSError(5, "Input/output error") if fails else None
    # none of the five is satisfied by an fsync that had begun before it came
    assert [caller.outcome for caller in others] == [None] * 5
    disk.let["a"].release()
    for caller in others:
        caller.join(kit.DEADLINE)
    assert first.outcome == "done"
    if fails:
        assert all(isinstance(caller.outcome, OSError) for caller in others)
    else:
        assert [caller.outcome for caller in others] == ["done"] * 5
    assert disk.begun == ["a", "b", "a"]
    assert not commits._next
    assert not commits._running


def test_real_directory(tmp_path: Path) -> None:
    commits = GroupCommit()
    commits.sync(str(tmp_path))
    with pytest.raises(OSError):
        commits.sync(str(tmp_path / "none"))
    commits.sync(str(tmp_path))
