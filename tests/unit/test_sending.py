"""The bytes that `send`, `send_file` and `send_bytes` put on the wire."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ABORT,
    ECHO,
    PATIENCE,
    STORE,
    Background,
    Impl,
    Link,
    blocked,
    frame,
    noise,
    pdata,
    pdv,
    read_all,
    read_exactly,
)

MAX_PDUS = [7, 8, 9, 10, 11, 64, 16381, 16382, 65536, 0, 2**20, 2**20 + 7, 2**32 - 1]


def sizes_around(fragment: int) -> list[int]:
    """Return data set sizes at the borders of fragments."""
    around = [
        fragment - 1,
        fragment,
        fragment + 1,
        2 * fragment - 1,
        2 * fragment,
        2 * fragment + 1,
    ]
    return sorted({0, 1, 2, 3, *around})


@pytest.mark.parametrize("max_pdu", MAX_PDUS)
def test_wire_bytes(one: Link, engine: Any, max_pdu: int) -> None:
    fragment = engine.UNLIMITED_FRAGMENT if max_pdu == 0 else min(max_pdu, 2**20) - 6
    for size in sizes_around(fragment):
        data = noise(size)
        expected = frame(5, STORE, data, max_pdu, engine.UNLIMITED_FRAGMENT)
        reading = Background(read_exactly, one.raw, len(b"".join(expected)))
        assert one.conn.send(5, STORE, data, max_pdu=max_pdu) == len(expected)
        assert reading.result() == b"".join(expected)
        assert max_pdu == 0 or all(len(pdu) - 6 <= max_pdu for pdu in expected)


@pytest.mark.parametrize("max_pdu", [7, 9, 23, 16382, 0])
def test_wire_bytes_from_a_file(one: Link, engine: Any, tmp_path: Path, max_pdu: int) -> None:
    fragment = engine.UNLIMITED_FRAGMENT if max_pdu == 0 else max_pdu - 6
    content = noise(3 * fragment + 300)
    path = tmp_path / "data"
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(11)
        for size in sizes_around(fragment):
            data = content[100 : 100 + size]
            expected = frame(255, ECHO, data, max_pdu, engine.UNLIMITED_FRAGMENT)
            reading = Background(read_exactly, one.raw, len(b"".join(expected)))
            sent = one.conn.send_file(255, ECHO, file.fileno(), 100, size, max_pdu=max_pdu)
            assert sent == len(expected)
            assert reading.result() == b"".join(expected)
        assert file.tell() == 11


@pytest.mark.parametrize("max_pdu", [9, 1000, 16382, 300_001, 0])
def test_large_file(one: Link, engine: Any, tmp_path: Path, max_pdu: int) -> None:
    """A file of many reads: the fragments go on across them."""
    size = 20_001 if max_pdu < 100 else 3_000_001
    content = noise(size)
    path = tmp_path / "data"
    path.write_bytes(content)
    expected = b"".join(frame(1, STORE, content[7:], max_pdu, engine.UNLIMITED_FRAGMENT))
    reading = Background(read_exactly, one.raw, len(expected))
    with path.open("rb") as file:
        one.conn.send_file(1, STORE, file.fileno(), 7, size - 7, max_pdu=max_pdu)
    assert reading.result() == expected


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [0],
        [0, 0, 0],
        [1] * 50,
        [10, 0, 10, 0],
        [3, 1, 4, 1, 5, 9, 2, 6],
        [16376, 1],
        [1, 16376],
        [5000] * 9,
        [30_000, 1, 30_000],
        [1] * 2000,
    ],
    ids=lambda parts: f"{len(parts)}x{max(parts, default=0)}",
)
@pytest.mark.parametrize("max_pdu", [8, 13, 16382])
def test_many_buffers(one: Link, parts: list[int], max_pdu: int, engine: Any) -> None:
    whole = noise(sum(parts))
    buffers = []
    at = 0
    for part in parts:
        buffers.append(whole[at : at + part])
        at += part
    expected = b"".join(frame(3, STORE, whole, max_pdu, engine.UNLIMITED_FRAGMENT))
    reading = Background(read_exactly, one.raw, len(expected))
    one.conn.send(3, STORE, buffers if max_pdu == 8 else tuple(buffers), max_pdu=max_pdu)
    assert reading.result() == expected


def make_buffer(kind: str, data: bytes, tmp_path: Path) -> Any:
    """Return a buffer object with given content."""
    if kind == "bytearray":
        return bytearray(data)
    if kind == "memoryview":
        return memoryview(b"xx" + data + b"x")[2:-1]
    if kind == "mmap":
        with (tmp_path / "mapped").open("w+b") as file:
            file.write(data)
            file.flush()
            return mmap.mmap(file.fileno(), len(data))
    numpy = pytest.importorskip("numpy")
    if kind == "numpy":
        return numpy.frombuffer(data, dtype="u1").copy()
    if kind == "numpy16":
        return numpy.frombuffer(data, dtype="<u2").copy().reshape(-1, 10)
    return data


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "mmap", "numpy", "numpy16"])
@pytest.mark.parametrize("in_list", [False, True])
def test_kinds_of_buffers(one: Link, engine: Any, kind: str, in_list: bool, tmp_path: Path) -> None:
    data = noise(40_000)
    buffer = make_buffer(kind, data, tmp_path)
    whole = data + (data[:2000] if in_list else b"")
    expected = b"".join(frame(1, STORE, whole, 16382, engine.UNLIMITED_FRAGMENT))
    argument = [buffer, memoryview(data)[:2000]] if in_list else buffer
    reading = Background(read_exactly, one.raw, len(expected))
    one.conn.send(1, bytearray(STORE), argument, max_pdu=16382)
    assert reading.result() == expected
    del argument
    gc.collect()
    if kind == "bytearray":
        buffer.append(1)  # BufferError if it is still held
    if kind == "mmap":
        buffer.close()


def test_buffers_must_be_contiguous(one: Link) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        one.conn.send(1, STORE, memoryview(b"12345678")[::2], max_pdu=0)
    numpy = pytest.importorskip("numpy")
    with pytest.raises((TypeError, ValueError, BufferError)):
        one.conn.send(1, STORE, numpy.zeros((10, 10), "u1")[:, ::2], max_pdu=0)
    assert one.conn.bytes_sent == 0
    assert not one.conn.send_broken


@pytest.mark.parametrize("data", ["text", 5, [5], ["text"], None, [None]])
def test_data_must_be_bytes(one: Link, data: Any) -> None:
    with pytest.raises(TypeError):
        one.conn.send(1, STORE, data, max_pdu=0)
    assert one.conn.bytes_sent == 0


@pytest.mark.parametrize("context", [0, 2, 256, 257, -1, 254])
def test_bad_context_id(one: Link, context: int) -> None:
    with pytest.raises(ValueError):
        one.conn.send(context, STORE, max_pdu=0)
    with pytest.raises(ValueError):
        one.conn.send_file(context, STORE, 0, 0, 0, max_pdu=0)
    assert one.conn.bytes_sent == 0


@pytest.mark.parametrize("max_pdu", [1, 2, 5, 6, -1, -(2**40)])
def test_bad_max_pdu(one: Link, max_pdu: int) -> None:
    with pytest.raises(ValueError):
        one.conn.send(1, STORE, b"12", max_pdu=max_pdu)
    with pytest.raises(ValueError):
        one.conn.send_file(1, STORE, 0, 0, 0, max_pdu=max_pdu)
    assert one.conn.bytes_sent == 0


def test_empty_command(one: Link) -> None:
    with pytest.raises(ValueError):
        one.conn.send(1, b"", b"12", max_pdu=0)
    with pytest.raises(ValueError):
        one.conn.send_file(1, b"", 0, 0, 0, max_pdu=0)
    assert one.conn.bytes_sent == 0


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1)])
def test_bad_range(one: Link, offset: int, length: int) -> None:
    with pytest.raises(ValueError):
        one.conn.send_file(1, STORE, 0, offset, length, max_pdu=0)
    assert one.conn.bytes_sent == 0


def test_bad_arguments_leave_the_connection_usable(one: Link, engine: Any) -> None:
    with pytest.raises(ValueError):
        one.conn.send(2, STORE, max_pdu=0)
    one.conn.send(1, ECHO, max_pdu=0)
    assert read_exactly(one.raw, 12 + len(ECHO)) == b"".join(
        frame(1, ECHO, b"", 0, engine.UNLIMITED_FRAGMENT)
    )


@pytest.mark.parametrize("max_pdu", [7, 8, 9, 30])
def test_long_command(one: Link, engine: Any, max_pdu: int) -> None:
    command = STORE + noise(1001)
    expected = b"".join(frame(1, command, b"123", max_pdu, engine.UNLIMITED_FRAGMENT))
    reading = Background(read_exactly, one.raw, len(expected))
    one.conn.send(1, command, b"123", max_pdu=max_pdu)
    assert reading.result() == expected


def test_counters(one: Link) -> None:
    assert one.conn.send(1, ECHO, max_pdu=16382) == 1
    assert one.conn.send(1, STORE, b"x" * 20_000, max_pdu=16382) == 3
    assert one.conn.messages_sent == 2
    assert one.conn.pdus_sent == 4
    assert one.conn.bytes_sent == 4 * 12 + len(ECHO) + len(STORE) + 20_000
    assert one.conn.send_calls >= 2
    one.conn.send_bytes(ABORT)
    assert one.conn.messages_sent == 2
    assert one.conn.pdus_sent == 5
    assert one.conn.bytes_sent == 4 * 12 + len(ECHO) + len(STORE) + 20_000 + len(ABORT)
    assert one.conn.send_broken is False


def test_send_bytes(one: Link) -> None:
    assert one.conn.send_bytes(ABORT) is None
    assert one.conn.send_bytes(memoryview(ABORT)) is None
    assert one.conn.send_bytes(bytearray(noise(50_000))) is None
    assert read_exactly(one.raw, 50_020) == ABORT + ABORT + noise(50_000)


def test_nothing_is_kept(one: Link) -> None:
    """References and buffers are given back, after failures too."""
    data = bytearray(noise(3_000_000))
    command = bytes(bytearray(STORE))
    parts = [data, memoryview(data)[:10]]
    counts = [sys.getrefcount(thing) for thing in (data, command, parts)]
    reading = Background(read_exactly, one.raw, 9_000_000)
    for _ in range(2):
        one.conn.send(1, command, parts, max_pdu=16382)
    one.conn.send(1, command, data, max_pdu=0)
    reading.result()
    assert [sys.getrefcount(thing) for thing in (data, command, parts)] == counts
    for bad in ({"context_id": 2}, {"max_pdu": 3}, {"data": [data, "text"]}):
        arguments = {"context_id": 1, "command": command, "data": data, "max_pdu": 0, **bad}
        with pytest.raises((ValueError, TypeError)):
            one.conn.send(**arguments)
        del arguments
    bad = {}
    gc.collect()
    assert [sys.getrefcount(thing) for thing in (data, command, parts)] == counts
    with pytest.raises(TimeoutError):
        for _ in range(5):
            one.conn.send(1, command, parts, max_pdu=16382, timeout=0.05)
    gc.collect()
    assert [sys.getrefcount(thing) for thing in (data, command, parts)] == counts
    parts.clear()
    data.append(1)


def test_short_file(one: Link, impl: Impl, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(impl.module.FileError, match="shorter") as raised:
        one.conn.send_file(1, STORE, file.fileno(), 0, 6, max_pdu=0)
    assert isinstance(raised.value, (OSError, EOFError))
    assert (raised.value.begun, raised.value.errno) == (False, None)
    # Nothing has left, not even the command set: the connection goes on
    assert (one.conn.send_broken, one.conn.bytes_sent) == (False, 0)
    one.conn.send(1, ECHO, max_pdu=0)
    assert one.conn.messages_sent == 1


def test_file_that_ends_after_fragments_have_left(one: Link, impl: Impl, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(noise(5_000_000))
    reading = Background(read_all, one.raw)
    with path.open("rb") as file, pytest.raises(impl.module.FileError) as raised:
        one.conn.send_file(1, STORE, file.fileno(), 0, 9_000_000, max_pdu=16382)
    assert raised.value.begun
    assert one.conn.bytes_sent > 1_000_000
    # No PDU was cut: an abort can follow what has left of the message
    assert not one.conn.send_broken
    one.conn.send_bytes(ABORT)
    one.conn.close()
    one.sock.close()
    assert len(reading.result()) < 9_000_000
    assert reading.result().endswith(ABORT)


def test_file_that_cannot_be_read(one: Link, impl: Impl, tmp_path: Path) -> None:
    with (
        (tmp_path / "written").open("wb") as file,
        pytest.raises(impl.module.FileError, match="cannot be read") as raised,
    ):
        one.conn.send_file(1, STORE, file.fileno(), 0, 100, max_pdu=0)
    assert (raised.value.begun, raised.value.errno) == (False, errno.EBADF)
    assert one.conn.bytes_sent == 0
    assert one.conn.messages_sent == 0


def test_timeout_without_progress(one: Link, impl: Impl) -> None:
    with pytest.raises(TimeoutError):
        one.conn.send(1, STORE, noise(20_000_000), max_pdu=2**20, timeout=0.1)
    sent = one.conn.bytes_sent
    assert sent > 0
    assert one.conn.messages_sent == 0
    header = 12 + len(STORE)
    cut = sent < header or (sent - header) % (2**20 + 6) != 0
    assert one.conn.send_broken is cut
    if cut:
        with pytest.raises(OSError):
            one.conn.send_bytes(ABORT, timeout=1)
    one.conn.close()
    one.sock.close()
    assert len(read_all(one.raw)) == sent


def test_timeout_before_the_first_byte_breaks_nothing(one: Link) -> None:
    """Nothing of the message has left: the connection can be used once the peer reads again."""
    one.sock.setblocking(False)
    filled = 0
    junk = bytes(4096)
    for size in (4096, 64, 1):
        try:
            while True:
                filled += one.sock.send(junk[:size])
        except BlockingIOError:
            pass
    with pytest.raises(TimeoutError):
        one.conn.send(1, STORE, b"12", max_pdu=0, timeout=0.05)
    assert one.conn.bytes_sent == 0
    assert not one.conn.send_broken
    read_exactly(one.raw, filled)
    one.conn.send(1, ECHO, max_pdu=0, timeout=PATIENCE)
    assert len(read_exactly(one.raw, 12 + len(ECHO))) == 12 + len(ECHO)


def test_progress_postpones_the_timeout(one: Link) -> None:
    data = noise(2_000_000)
    sending = Background(one.conn.send, 1, STORE, data, max_pdu=65536, timeout=5)
    blocked(one.conn)
    total = 0
    while sending.running and total < 2_000_000:
        total += len(one.raw.recv(300_000))
    reading = Background(read_exactly, one.raw, 12 + len(STORE) + 31 * 12 + len(data) - total)
    assert sending.result() == 32
    reading.result()


def test_peer_goes_away(one: Link) -> None:
    sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382)
    blocked(one.conn)
    one.raw.close()
    with pytest.raises(OSError):
        sending.result()
    assert one.conn.messages_sent == 0
    with pytest.raises(OSError):
        one.conn.send(1, ECHO, max_pdu=0)


def test_senders_take_turns(one: Link, engine: Any) -> None:
    """Messages of several threads do not mix."""
    messages = {
        thread: frame(thread, STORE, noise(200_000, thread), 5000, engine.UNLIMITED_FRAGMENT)
        for thread in (1, 3, 5, 7)
    }
    calls = [
        Background(one.conn.send, thread, STORE, noise(200_000, thread), max_pdu=5000)
        for thread in messages
    ]
    stream = read_exactly(one.raw, sum(len(b"".join(pdus)) for pdus in messages.values()))
    for call in calls:
        call.result()
    while stream:
        whole = b"".join(messages.pop(stream[10]))
        assert stream.startswith(whole)
        stream = stream[len(whole) :]
    assert not messages


def test_closed_descriptor_of_a_file(one: Link, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"1234")
    fd = os.open(path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError):
        one.conn.send_file(1, STORE, fd, 0, 4, max_pdu=0)


@pytest.mark.parametrize("size", [65_535, 65_536])
def test_the_command_set_leaves_before_a_large_file_is_read(
    impl: Impl, one: Link, tmp_path: Path, size: int
) -> None:
    """So that the receiver can deal with it meanwhile; alone, should the file be cut."""
    path = tmp_path / "data"
    path.write_bytes(b"cut")
    command = pdata(pdv(1, 3, STORE))
    leaves = size == 65_536 and (impl.backend, impl.kind) == ("compiled", "fd")
    with path.open("rb") as file, pytest.raises(EOFError):
        one.conn.send_file(1, STORE, file.fileno(), 0, size, max_pdu=16382)
    assert one.conn.bytes_sent == (len(command) if leaves else 0)
    assert not one.conn.send_broken
    if leaves:
        assert read_exactly(one.raw, len(command)) == command
    for option in ("cork", "pack_command"):
        setattr(one.conn, option, True)
        before = one.conn.bytes_sent
        with path.open("rb") as file, pytest.raises(EOFError):
            one.conn.send_file(1, STORE, file.fileno(), 0, size, max_pdu=16382)
        assert one.conn.bytes_sent == before
        setattr(one.conn, option, False)
