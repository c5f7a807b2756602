"""`pack_command`: the command set and the first data fragment in one PDU (PS3.8 E.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ABORT,
    ECHO,
    IMPLS,
    PATIENCE,
    STORE,
    Background,
    Impl,
    Link,
    blocked,
    command_set,
    cross_pairs,
    element,
    frame,
    noise,
    pair,
    pdata,
    pdv,
    read_exactly,
    us,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HUGE = command_set(us(0x0100, 1), us(0x0110, 7), us(0x0800, 1), element(0x5110, bytes(60_000)))


def packed(context: int, command: bytes, data: bytes, max_pdu: int, unlimited: int) -> list[bytes]:
    """Return the PDUs of a message as docs/engine.md says, packed."""
    size = unlimited if max_pdu == 0 else min(max_pdu, 2**20) - 6
    if size > 1:
        size = size // 2 * 2
    plain = frame(context, command, b"", max_pdu, unlimited)
    last = plain[-1][6:]
    room = (size + 6 - len(last) - 6) // 2 * 2
    if room < 2 or not data:
        return frame(context, command, data, max_pdu, unlimited)
    first, rest = data[:room], data[room:]
    pdus = plain[:-1] + [pdata(last, pdv(context, 0 if rest else 2, first))]
    for start in range(0, len(rest), size):
        end = 2 if start + size >= len(rest) else 0
        pdus.append(pdata(pdv(context, end, rest[start : start + size])))
    return pdus


def sizes_around(command: bytes, max_pdu: int, unlimited: int) -> list[int]:
    """Return data set sizes at the borders of the first fragment, and of the one after it."""
    size = (unlimited if max_pdu == 0 else min(max_pdu, 2**20) - 6) // 2 * 2 or 1
    room = max(size - ((len(command) - 1) % size + 1) - 6, 0)
    borders = {0, room, room + size, room + 2 * size}
    return sorted({max(b + d, 0) for b in borders for d in (-2, -1, 0, 1, 2)})


MAX_PDUS = [
    7,
    8,
    9,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
    64,
    93,
    4096,
    16381,
    16382,
    0,
    2**32 - 1,
]


@pytest.mark.parametrize(
    ("command", "max_pdu"),
    # A PDU for each byte of a huge command set is slow, and nothing new
    [(c, m) for c in (STORE, ECHO, HUGE) for m in MAX_PDUS if c is not HUGE or not 0 < m < 64],
)
def test_wire_bytes(one: Link, engine: Any, command: bytes, max_pdu: int, tmp_path: Path) -> None:
    one.conn.pack_command = True
    content = noise(3_300_000)
    path = tmp_path / "data"
    path.write_bytes(content)
    with path.open("rb") as file:
        for size in sizes_around(command, max_pdu, engine.UNLIMITED_FRAGMENT):
            data = content[100 : 100 + size]
            expected = packed(5, command, data, max_pdu, engine.UNLIMITED_FRAGMENT)
            assert max_pdu == 0 or all(len(pdu) - 6 <= max_pdu for pdu in expected)
            whole = b"".join(expected)
            reading = Background(read_exactly, one.raw, 2 * len(whole))
            parts = [data[:3], data[3:4], b"", data[4:]]
            assert one.conn.send(5, command, parts, max_pdu=max_pdu) == len(expected)
            sent = one.conn.send_file(5, command, file.fileno(), 100, size, max_pdu=max_pdu)
            assert sent == len(expected)
            assert reading.result() == 2 * whole


def test_off_by_default(one: Link, engine: Any) -> None:
    assert not one.conn.pack_command
    expected = b"".join(frame(1, STORE, noise(100), 16382, engine.UNLIMITED_FRAGMENT))
    one.conn.send(1, STORE, noise(100), max_pdu=16382)
    assert read_exactly(one.raw, len(expected)) == expected


def test_a_small_message_is_one_pdu(one: Link) -> None:
    one.conn.pack_command = True
    assert one.conn.send(1, STORE, noise(100), max_pdu=16382) == 1
    assert one.conn.send_calls == 1
    expected = pdata(pdv(1, 3, STORE), pdv(1, 2, noise(100)))
    assert read_exactly(one.raw, len(expected)) == expected


@pytest.mark.parametrize("max_pdu", [1000, 16382, 100_000, 0])
def test_large_file(one: Link, engine: Any, tmp_path: Path, max_pdu: int) -> None:
    """A file of many reads: the fragments go on across them."""
    content = noise(3_000_001)
    path = tmp_path / "data"
    path.write_bytes(content)
    one.conn.pack_command = True
    expected = b"".join(packed(1, STORE, content, max_pdu, engine.UNLIMITED_FRAGMENT))
    reading = Background(read_exactly, one.raw, len(expected))
    with path.open("rb") as file:
        one.conn.send_file(1, STORE, file.fileno(), 0, len(content), max_pdu=max_pdu)
    assert reading.result() == expected


def test_file_that_ends_early(one: Link, engine: Any, tmp_path: Path) -> None:
    """Not a byte of a PDU that cannot be completed leaves: an A-ABORT can follow."""
    path = tmp_path / "data"
    path.write_bytes(noise(50))
    one.conn.pack_command = True
    with path.open("rb") as file, pytest.raises(EOFError):
        one.conn.send_file(1, STORE, file.fileno(), 0, 100, max_pdu=16382)
    assert not one.conn.send_broken
    one.conn.send_bytes(ABORT)
    assert read_exactly(one.raw, len(ABORT)) == ABORT


def test_cut_inside_and_between_pdus(one: Link, engine: Any) -> None:
    """What `cancel` leaves behind: the send is broken unless it stands between two PDUs."""
    one.conn.pack_command = True
    data = noise(20_000_000)
    pdus = packed(1, STORE, data, 2**20, engine.UNLIMITED_FRAGMENT)
    ends, at = {0}, 0
    for one_pdu in pdus:
        at += len(one_pdu)
        ends.add(at)
    sending = Background(one.conn.send, 1, STORE, data, max_pdu=2**20)
    blocked(one.conn)
    one.conn.cancel()
    with pytest.raises(engine.Cancelled):
        sending.result()
    assert one.conn.send_broken is (one.conn.bytes_sent not in ends)


@cross_pairs
@pytest.mark.parametrize("max_pdu", [64, 16382, 131072, 0])
def test_received_where_it_stays(sender: Impl, receiver: Impl, max_pdu: int) -> None:
    """Series of equal messages, whose first fragment is shorter than the others."""
    assert sender.module
    assert receiver.module
    size = 2000 if max_pdu == 64 else 600_000
    with pair(sender, receiver) as (near, far):
        near.pack_command = True
        sending = Background(
            lambda: [near.send(1, STORE, noise(size, n), max_pdu=max_pdu) for n in range(1, 5)]
        )
        for number in range(1, 5):
            got = far.receive(PATIENCE)
            assert got.command == STORE
            assert got.data == noise(size, number)
        sending.result()


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(st.integers(7, 200), st.sampled_from([4096, 16382, 0])),
    st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(0, 500), max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_round_trips(
    max_pdu: int, messages: list[tuple[int, list[int]]], source: st.DataObject
) -> None:
    """Any command and data set under any maximum length, in one piece or several."""
    impls = [impl for impl in IMPLS if impl.module]
    sender, receiver = source.draw(st.sampled_from(impls)), source.draw(st.sampled_from(impls))
    with pair(sender, receiver) as (near, far):
        near.pack_command = True
        made = []
        for length, parts in messages:
            command = command_set(
                us(0x0100, 1),
                us(0x0110, 7),
                us(0x0800, 1 if sum(parts) else 0x0101),
                element(0x5110, bytes(length)),
            )
            made.append((command, [noise(part, part + 1) for part in parts]))
        expected = sum(
            len(packed(3, c, b"".join(d), max_pdu, sender.module.UNLIMITED_FRAGMENT))
            for c, d in made
        )
        sending = Background(lambda: sum(near.send(3, c, d, max_pdu=max_pdu) for c, d in made))
        for command, parts in made:
            got = far.receive(PATIENCE)
            assert got.command == command
            assert (got.data or b"") == b"".join(parts)
        assert sending.result() == expected
        assert far.buffered == 0
        assert far.pdus_received == expected
