"""A sink that the engine makes itself."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ECHO,
    PATIENCE,
    STORE,
    Background,
    Impl,
    Link,
    eventually,
    link,
    message,
    noise,
)

HEAD, REST = message(1, STORE, b"abcd")
# Where a file cannot be made, and why
CANNOT = [
    ("missing/new", errno.ENOENT),
    ("x" * 300, errno.ENAMETOOLONG),
    ("taken", errno.EEXIST),
]


@pytest.fixture
def split(one: Link) -> Link:
    one.conn.split_commands = frozenset({0x0001})
    return one


def receive_on_a_thread(split: Link, engine: Any, file: Any) -> Background:
    """Let a thread receive a data set into a file; return when the file is made, and nothing more has come."""
    split.feed(HEAD)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file)
    receiving = Background(split.conn.receive, PATIENCE)
    eventually(lambda: file.is_made)
    return receiving


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_open(engine: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "ä")
    file = engine.NewFile(path)
    assert (file.path, file.fd, file.is_made) == (path, -1, False)
    assert not os.path.exists(path)
    file.open()
    assert file.is_made
    assert not os.get_inheritable(file.fd)
    os.write(file.fd, b"abc")
    assert os.pread(file.fd, 3, 0) == b"abc"
    with pytest.raises(FileExistsError):
        engine.NewFile(path).open()
    with pytest.raises(ValueError, match="before"):
        file.open()
    fd = file.fd
    file.close()
    assert (file.fd, file.is_made) == (-1, True)
    assert not is_open(fd)
    file.close()
    with pytest.raises(ValueError, match="before"):
        file.open()


def test_closed_before(split: Link, engine: Any, tmp_path: Path) -> None:
    """By another thread, just before it would be made."""
    file = engine.NewFile(str(tmp_path / "new"))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.open()
    lent = engine.NewFile(str(tmp_path / "lent"))
    split.feed(HEAD + REST)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(lent, drain=True)
    with pytest.raises(ValueError, match="sink"):
        lent.open()
    lent.close()
    got = split.conn.receive(PATIENCE)
    assert (got.length, got.error) == (4, errno.EBADF)
    assert not lent.is_made
    assert os.listdir(tmp_path) == []


def test_it_goes_with_its_descriptor(engine: Any, tmp_path: Path) -> None:
    file = engine.NewFile(str(tmp_path / "new"))
    file.open()
    fd = file.fd
    del file
    assert not is_open(fd)


@pytest.mark.parametrize("path", [3, None, b"x"])
def test_what_is_no_path(engine: Any, path: Any) -> None:
    with pytest.raises(TypeError):
        engine.NewFile(path)
    # (and the object that was never made closes no descriptor)
    assert is_open(0)


def test_null_byte(engine: Any) -> None:
    with pytest.raises(ValueError, match="null"):
        engine.NewFile("a\0b")


@pytest.mark.parametrize("size", [1, 300, 1_000_000])
@pytest.mark.parametrize("drain", [False, True])
def test_made_by_the_receiver(
    split: Link, engine: Any, tmp_path: Path, size: int, drain: bool
) -> None:
    data = noise(size)
    file = engine.NewFile(str(tmp_path / "new"))
    sending = Background(split.feed, b"".join(message(1, STORE, data, [16376] * (size // 20000))))
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file, b"head", drain=drain)
    assert not file.is_made
    got = split.conn.receive(PATIENCE)
    assert (got.data, got.length, got.error) == (None, size, 0)
    sending.result()
    assert file.is_made
    # It is open still: only the caller knows whether it is to be read, or synchronized
    assert os.pread(file.fd, size + 10, 0) == b"head" + data
    file.close()
    assert file.fd == -1


def test_made_before_anything_has_come(split: Link, engine: Any, tmp_path: Path) -> None:
    file = engine.NewFile(str(tmp_path / "new"))
    receiving = receive_on_a_thread(split, engine, file)
    split.feed(REST)
    assert receiving.result().length == 4
    assert os.pread(file.fd, 10, 0) == b"abcd"


def test_made_by_the_caller(split: Link, engine: Any, tmp_path: Path) -> None:
    file = engine.NewFile(str(tmp_path / "new"))
    file.open()
    fd = file.fd
    split.feed(HEAD + REST)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file)
    assert split.conn.receive(PATIENCE).length == 4
    assert file.fd == fd
    assert os.pread(fd, 10, 0) == b"abcd"


@pytest.mark.parametrize(("name", "number"), CANNOT)
@pytest.mark.parametrize("size", [4, 3_000_000])
def test_drained_if_it_cannot_be_made(
    split: Link, engine: Any, tmp_path: Path, name: str, number: int, size: int
) -> None:
    (tmp_path / "taken").write_bytes(b"of somebody else")
    file = engine.NewFile(str(tmp_path / name))
    stream = b"".join(message(1, STORE, noise(size), [16376] * (size // 20000)))
    sending = Background(split.feed, stream + b"".join(message(1, ECHO, None)))
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file, b"head", drain=True)
    got = split.conn.receive(PATIENCE)
    assert (got.command, got.data, got.length, got.error) == (STORE, None, size, number)
    assert not file.is_made
    assert split.conn.receive(PATIENCE).command == ECHO
    sending.result()
    assert (tmp_path / "taken").read_bytes() == b"of somebody else"
    # Nothing is left of it
    split.feed(HEAD + REST)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(-1)
    got = split.conn.receive(PATIENCE)
    assert (got.data, got.error) == (b"abcd", 0)


def test_raised_if_it_cannot_be_made(split: Link, engine: Any, tmp_path: Path) -> None:
    file = engine.NewFile(str(tmp_path / "missing" / "new"))
    split.feed(HEAD + REST)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            split.conn.receive(PATIENCE)
    (tmp_path / "missing").mkdir()
    assert split.conn.receive(PATIENCE).length == 4
    assert os.pread(file.fd, 10, 0) == b"abcd"


def test_not_twice_and_not_closed(split: Link, engine: Any, tmp_path: Path) -> None:
    closed, lent = (engine.NewFile(str(tmp_path / name)) for name in ("closed", "lent"))
    closed.open()
    closed.close()
    split.feed((HEAD + REST) * 2)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    with pytest.raises(ValueError, match="closed"):
        split.conn.set_sink(closed)
    with pytest.raises(TypeError):
        split.conn.set_sink("file")
    split.conn.set_sink(lent)
    assert split.conn.receive(PATIENCE).length == 4
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    # It is the caller's again: more data goes behind what is there
    split.conn.set_sink(lent)
    assert split.conn.receive(PATIENCE).length == 4
    assert os.pread(lent.fd, 10, 0) == b"abcdabcd"


@pytest.mark.parametrize("end", ["complete", "drop_message", "abandon", "close"])
def test_closed_when_the_receiver_is_through(
    split: Link, engine: Any, tmp_path: Path, end: str
) -> None:
    """Its descriptor cannot become that of something else while the data set is written to it."""
    file = engine.NewFile(str(tmp_path / "new"))
    head, first, last = message(1, STORE, b"abcd", [2])
    split.feed(head + first)
    assert split.conn.receive(PATIENCE) == engine.PARTIAL
    split.conn.set_sink(file)
    while file.fd < 0:
        assert split.conn.receive(0) == engine.TIMEOUT
    fd = file.fd
    file.close()
    assert file.fd == fd
    assert is_open(fd)
    if end == "complete":
        split.feed(last)
        assert split.conn.receive(PATIENCE).length == 4
        assert (tmp_path / "new").read_bytes() == b"abcd"
    else:
        getattr(split.conn, end)()
    assert file.fd == -1
    assert not is_open(fd)


def test_the_thread_that_receives_keeps_it(split: Link, engine: Any, tmp_path: Path) -> None:
    """Whoever closes it: not before `receive` has returned."""
    file = engine.NewFile(str(tmp_path / "new"))
    receiving = receive_on_a_thread(split, engine, file)
    fd = file.fd
    file.close()
    time.sleep(0.02)
    assert file.fd == fd
    assert is_open(fd)
    split.feed(REST)
    assert receiving.result().length == 4
    assert file.fd == -1
    assert not is_open(fd)
    assert (tmp_path / "new").read_bytes() == b"abcd"


@pytest.fixture
def two(impl: Impl) -> Iterator[tuple[Link, Link]]:
    """Two connections that wait to be told where a data set goes."""
    with link(impl) as one, link(impl) as other:
        for end in (one, other):
            end.conn.split_commands = frozenset({0x0001})
            end.feed(HEAD)
            assert end.conn.receive(PATIENCE) == impl.module.PARTIAL
        yield one, other


@pytest.mark.parametrize("late", ["drop_message", "abandon"])
def test_given_back_once(two: tuple[Link, Link], impl: Impl, tmp_path: Path, late: str) -> None:
    """What is done to a closed connection is nothing to the next one that has the file."""
    one, other = two
    file = impl.module.NewFile(str(tmp_path / "new"))
    file.open()
    one.conn.set_sink(file)
    one.conn.close()
    other.conn.set_sink(file)
    fd = file.fd
    file.close()
    getattr(one.conn, late)()
    assert file.fd == fd
    assert is_open(fd)
    other.feed(REST)
    assert other.conn.receive(PATIENCE).length == 4
    assert not is_open(fd)


def test_of_one_connection_at_a_time(two: tuple[Link, Link], impl: Impl, tmp_path: Path) -> None:
    one, other = two
    file = impl.module.NewFile(str(tmp_path / "new"))
    one.conn.set_sink(file)
    with pytest.raises(ValueError, match="another message"):
        other.conn.set_sink(file)
    one.conn.drop_message()
    other.conn.set_sink(file)
    other.feed(REST)
    assert other.conn.receive(PATIENCE).length == 4
