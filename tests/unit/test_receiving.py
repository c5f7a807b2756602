"""What the receiver makes of streams, good and bad."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ABORT,
    ECHO,
    END,
    FIND,
    IMPLS,
    PATIENCE,
    RELEASE,
    STORE,
    Background,
    Impl,
    Link,
    command_set,
    cross_pairs,
    eventually,
    link,
    message,
    noise,
    outcomes,
    pair,
    pdata,
    pdu,
    pdv,
    took,
    us,
)

HEAD = pdata(pdv(1, 3, STORE))
WHOLE = b"".join(message(1, STORE, b"abcd", [2]))


def cut_everywhere(stream: bytes) -> list[list[bytes]]:
    """Return the stream cut in two at each offset, and into single bytes."""
    cuts = [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    return [*cuts, [stream], [stream[at : at + 1] for at in range(len(stream))]]


STREAMS = {
    "echo": (b"".join(message(1, ECHO, None)), [took(1, ECHO, None)]),
    "store": (b"".join(message(1, STORE, b"abcdef")), [took(1, STORE, b"abcdef")]),
    "fragments": (
        b"".join(message(1, STORE, b"abcdefghij", [2, 4, 2], [10, 20])),
        [took(1, STORE, b"abcdefghij")],
    ),
    "odd fragments": (
        b"".join(message(1, STORE, b"abcdefghij", [1, 3, 5], [1, 1, 7])),
        [took(1, STORE, b"abcdefghij")],
    ),
    "several PDVs per PDU": (
        pdata(pdv(9, 1, STORE[:9]), pdv(9, 3, STORE[9:]))
        + pdata(pdv(9, 0, b"ab"), pdv(9, 0, b"cd"), pdv(9, 2, b"ef")),
        [took(9, STORE, b"abcdef")],
    ),
    "command and data in one PDU": (
        pdata(pdv(1, 3, STORE), pdv(1, 2, b"abc")),
        [took(1, STORE, b"abc")],
    ),
    "command and first data in one PDU": (
        pdata(pdv(1, 3, STORE), pdv(1, 0, b"abc")) + pdata(pdv(1, 2, b"def")),
        [took(1, STORE, b"abcdef")],
    ),
    "empty last fragment": (
        HEAD + pdata(pdv(1, 0, b"ab")) + pdata(pdv(1, 2, b"")),
        [took(1, STORE, b"ab")],
    ),
    "empty fragments": (
        pdata(pdv(1, 1, b""))
        + pdata(pdv(1, 1, STORE))
        + pdata(pdv(1, 3, b""), pdv(1, 0, b""))
        + pdata(pdv(1, 0, b""), pdv(1, 0, b"ab"), pdv(1, 0, b""))
        + pdata(pdv(1, 0, b""))
        + pdata(pdv(1, 2, b"")),
        [took(1, STORE, b"ab")],
    ),
    "empty data set": (HEAD + pdata(pdv(1, 2, b"")), [took(1, STORE, b"")]),
    "reserved bits and bytes": (
        struct.pack(">BBI", 4, 0xFF, 6 + len(STORE))
        + pdv(1, 0xFF, STORE)
        + pdata(pdv(1, 0xFE, b"ab")),
        [took(1, STORE, b"ab")],
    ),
    "pipelined": (
        b"".join(message(1, ECHO, None) + message(3, STORE, b"abcd", [2]) + message(5, FIND, b"x")),
        [took(1, ECHO, None), took(3, STORE, b"abcd"), took(5, FIND, b"x")],
    ),
    "abort between messages": (
        b"".join([*message(1, ECHO, None), ABORT]),
        [took(1, ECHO, None), ("pdu", ABORT)],
    ),
    "release, then a message": (
        b"".join([RELEASE, *message(1, ECHO, None)]),
        [("pdu", RELEASE), took(1, ECHO, None)],
    ),
    "A-ASSOCIATE": (
        pdu(1, bytes(100)) + pdu(2, b""),
        [("pdu", pdu(1, bytes(100))), ("pdu", pdu(2, b""))],
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_cut_at_every_offset(impl: Impl, name: str) -> None:
    stream, expected = STREAMS[name]
    for chunks in cut_everywhere(stream):
        assert outcomes(impl, chunks) == [*expected, END]


@pytest.mark.parametrize("name", STREAMS)
def test_end_of_the_stream_at_every_offset(impl: Impl, name: str) -> None:
    """EOF: PeerClosed says how much of which PDU came."""
    stream, expected = STREAMS[name]
    borders = [0]
    while borders[-1] < len(stream):
        start = borders[-1]
        borders.append(start + 6 + int.from_bytes(stream[start + 2 : start + 6], "big"))
    for at in range(len(stream)):
        found = outcomes(impl, [stream[:at]] if at else [])
        *messages, (kind, received, length) = found
        assert messages == expected[: len(messages)]
        assert kind == "closed"
        start = max(border for border in borders if border <= at)
        assert received == at - start
        if at == start:
            assert length == 0
        elif at < start + 6:
            assert length == 6
        else:
            assert length == borders[borders.index(start) + 1] - start


def irregular() -> dict[str, tuple[bytes, list[Any]]]:
    """Return streams whose fragment sizes are not those that a guess would give."""
    data = noise(60_000)
    warm = message(1, STORE, data, [5000] * 11)  # teaches the receiver the size
    cases = {
        "steady": [5000] * 11,
        "shrinking": [9000, 8000, 7000, 6000, 5000, 4000, 3000, 2000, 1000, 500, 100, 10, 1],
        "growing": [1, 10, 100, 1000, 2000, 4000, 8000, 16_000],
        "alternating": [5000, 100] * 10,
        "one short in between": [5000, 5000, 5000, 4999, 5000, 5000],
        "one long in between": [5000, 5000, 5000, 5001, 5000, 5000],
        "short by a header": [5000, 5000, 4988, 5000, 4994, 5000],
        "tiny": [1] * 300,
        "single": [],
        "empty ones": [5000, 0, 5000, 0, 0, 5000],
        "all but nothing in the last": [6000] * 10,
    }
    found: dict[str, tuple[bytes, list[Any]]] = {}
    for name, sizes in cases.items():
        found[name] = (
            b"".join([*warm, *message(3, STORE, data, sizes), *message(5, ECHO, None)]),
            [took(1, STORE, data), took(3, STORE, data), took(5, ECHO, None)],
        )
    head = message(1, STORE, data, [5000] * 5)[:-1]
    found["abort in the middle"] = (
        b"".join([*warm, *head, ABORT]),
        [took(1, STORE, data), ("dropped",), ("pdu", ABORT)],
    )
    found["release in the middle, then a message"] = (
        b"".join([*warm, *head, RELEASE, *message(3, STORE, data, [5000] * 5)]),
        [took(1, STORE, data), ("dropped",), ("pdu", RELEASE), took(3, STORE, data)],
    )
    found["one PDV, then two per PDU"] = (
        b"".join(
            [
                *warm,
                *head,
                pdata(pdv(1, 0, b"a" * 2497), pdv(1, 0, b"b" * 2497)),
                pdata(pdv(1, 0, b"c" * 5000), pdv(1, 2, b"d")),
            ]
        ),
        [
            took(1, STORE, data),
            took(1, STORE, data[:25_000] + b"a" * 2497 + b"b" * 2497 + b"c" * 5000 + b"d"),
        ],
    )
    short = message(1, STORE, data[:7000], [5000])
    found["short after long, then many"] = (
        b"".join([*warm, *short, *short, *message(1, ECHO, None) * 50, *warm]),
        [
            took(1, STORE, data),
            *[took(1, STORE, data[:7000])] * 2,
            *[took(1, ECHO, None)] * 50,
            took(1, STORE, data),
        ],
    )
    return found


IRREGULAR = irregular()


@pytest.mark.parametrize("name", IRREGULAR)
@pytest.mark.parametrize("step", [0, 100_000, 5012, 4999, 777])
def test_irregular_fragments(impl: Impl, name: str, step: int) -> None:
    """The guess of a scattering receiver fails here and there: no byte may be misplaced."""
    stream, expected = IRREGULAR[name]
    step = step or len(stream)
    with link(impl) as one:
        if step >= len(stream):
            sending = Background(one.feed, stream, close=True)
            found: list[tuple[Any, ...]] = []
            while True:
                try:
                    got = one.conn.receive(PATIENCE)
                except impl.module.PeerClosed:
                    break
                if got == impl.module.OTHER:
                    if one.conn.in_message:
                        found.append(("dropped",))
                        one.conn.drop_message()
                    found.append(("pdu", _whole_pdu(one)))
                else:
                    found.append(("message", got.context_id, got.command, got.data, got.length))
            sending.result()
            assert found == expected
            return
    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    found = outcomes(impl, chunks)
    assert found[:-1] == expected
    assert found[-1] == END


def _whole_pdu(one: Link) -> bytes:
    while (found := one.conn.receive_pdu()) is None:
        one.conn.wait(PATIENCE)
    return bytes(found)


@pytest.mark.parametrize("at", [1, 6, 12, 13, 500, 4999, 5000, 5001, 5005, 5006, 5011, 5012, 5013])
@pytest.mark.parametrize("kind", ["abort", "protocol error"])
def test_trouble_inside_a_scattered_read(impl: Impl, at: int, kind: str) -> None:
    """What follows good fragments in the same read is still judged."""
    data = noise(60_000)
    warm = b"".join(message(1, STORE, data, [5000] * 11))
    good = b"".join(message(1, STORE, data, [5000] * 5)[:-1])
    bad = ABORT if kind == "abort" else pdata(pdv(3, 0, b"x" * 5000))
    for stream in (warm + good, good):
        expected: list[Any] = [took(1, STORE, data)] if stream.startswith(warm) else []
        expected += [("dropped",), ("pdu", ABORT)] if kind == "abort" else [("protocol error", 5)]
        found = outcomes(impl, [stream[:-at], stream[-at:] + bad])
        assert found[: len(expected)] == expected
        found = outcomes(
            impl, [stream + bad[: min(at, len(bad) - 1)], bad[min(at, len(bad) - 1) :]]
        )
        assert found[: len(expected)] == expected


def huge_pdu(length: int, kind: int = 4) -> bytes:
    """Return a PDU header with any length."""
    return struct.pack(">BBI", kind, 0, length)


PROTOCOL_ERRORS: dict[str, tuple[bytes, int]] = {
    "unknown PDU type 0": (pdu(0, b"1234"), 1),
    "unknown PDU type 8": (pdu(8, b"1234"), 1),
    "unknown PDU type 255": (pdu(255, b"1234"), 1),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", 1),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1),
    "P-DATA longer than announced": (huge_pdu(1001), 6),
    "P-DATA of 4 GiB": (huge_pdu(0xFFFFFFFF), 6),
    "no PDV": (pdu(4, b""), 6),
    "PDU of 1 byte": (pdu(4, b"\0"), 6),
    "PDU of 5 bytes": (pdu(4, b"\0\0\0\2\1"), 6),
    "PDV length 0": (pdata(pdv(1, 3, STORE, 0)), 6),
    "PDV length 1": (pdata(pdv(1, 3, STORE, 1)), 6),
    "PDV past the PDU by 1": (pdata(pdv(1, 3, STORE, len(STORE) + 3)), 6),
    "PDV past the PDU by far": (pdata(pdv(1, 3, STORE, 0x7FFFFFFF)), 6),
    "PDV length wraps": (pdata(pdv(1, 3, STORE, 0xFFFFFFFE)), 6),
    "PDV length wraps to 2": (pdata(pdv(1, 3, STORE, 0xFFFFFFFF)), 6),
    "rest of PDU too small for a PDV": (pdata(pdv(1, 1, STORE[:20]), b"\0\0\0"), 6),
    "rest of PDU too small for a PDV header": (pdata(pdv(1, 1, STORE[:20]), b"\0\0\0\1\1"), 6),
    "second PDV past the PDU": (pdata(pdv(1, 1, STORE[:20]), pdv(1, 3, STORE[20:], 200)), 6),
    "A-ASSOCIATE-RQ over 1 MiB": (huge_pdu(2**20 + 1, 1), 6),
    "A-ASSOCIATE-AC over 1 MiB": (huge_pdu(2**20 + 1, 2), 6),
    "A-ASSOCIATE-RQ of 4 GiB": (huge_pdu(0xFFFFFFFF, 1), 6),
    "A-ASSOCIATE-RJ of 0": (pdu(3, b""), 6),
    "A-RELEASE-RQ of 0": (pdu(5, b""), 6),
    "A-RELEASE-RQ of 3": (pdu(5, bytes(3)), 6),
    "A-ASSOCIATE-RJ of 5": (pdu(3, bytes(5)), 6),
    "A-RELEASE-RP of 8": (pdu(6, bytes(8)), 6),
    "A-ABORT of 5": (pdu(7, bytes(5)), 6),
    "A-ABORT of 4 GiB": (huge_pdu(0xFFFFFFFF, 7), 6),
    "command set without Data Set Type": (
        pdata(pdv(1, 3, command_set(us(0x0100, 1), us(0x0110, 1)))),
        6,
    ),
    "empty command set": (pdata(pdv(1, 3, b"")), 6),
    "garbage command set": (pdata(pdv(1, 3, b"\xff" * 40)), 6),
    "command set that is cut": (pdata(pdv(1, 3, STORE[:-1])), 6),
    "command element past the end": (
        pdata(pdv(1, 3, STORE + struct.pack("<HHI", 0, 0x1000, 0x7FFFFFFF))),
        6,
    ),
    "Data Set Type of length 0": (
        pdata(pdv(1, 3, command_set(us(0x0100, 1), struct.pack("<HHI", 0, 0x0800, 0)))),
        6,
    ),
    "data set over the limit": (
        HEAD + pdata(pdv(1, 0, bytes(60))) + pdata(pdv(1, 2, bytes(41))),
        6,
    ),
    "data before the command": (pdata(pdv(1, 2, b"ab")), 5),
    "empty data before the command": (pdata(pdv(1, 0, b"")), 5),
    "data inside the command": (pdata(pdv(1, 1, STORE[:10])) + pdata(pdv(1, 0, b"ab")), 5),
    "command inside the data": (HEAD + pdata(pdv(1, 0, b"ab")) + pdata(pdv(1, 3, STORE)), 5),
    "command instead of data": (HEAD + HEAD, 5),
    "context changes inside the command": (
        pdata(pdv(1, 1, STORE[:10])) + pdata(pdv(3, 3, STORE[10:])),
        5,
    ),
    "context changes between command and data": (HEAD + pdata(pdv(3, 2, b"ab")), 5),
    "context changes inside the data": (
        HEAD + pdata(pdv(1, 0, b"ab")) + pdata(pdv(3, 2, b"ab")),
        5,
    ),
    "context changes inside a PDU": (pdata(pdv(1, 3, STORE), pdv(3, 2, b"ab")), 5),
    "two commands in one PDU": (pdata(pdv(1, 3, ECHO), pdv(1, 3, ECHO)), 5),
    "two messages in one PDU": (
        pdata(pdv(1, 3, STORE), pdv(1, 2, b"ab"), pdv(1, 3, ECHO)),
        5,
    ),
    "data after a message without": (pdata(pdv(1, 3, ECHO), pdv(1, 2, b"ab")), 5),
    "data after the last fragment": (
        HEAD + pdata(pdv(1, 2, b"ab"), pdv(1, 2, b"cd")),
        5,
    ),
}


@pytest.mark.parametrize("name", PROTOCOL_ERRORS)
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_protocol_errors(impl: Impl, name: str, byte_by_byte: bool) -> None:
    stream, reason = PROTOCOL_ERRORS[name]

    def setup(conn: Any) -> None:
        conn.max_receive_pdu = 1000
        conn.max_message = 100

    good = message(1, ECHO, None) + message(1, STORE, b"a" * 100)
    chunks = [stream[at : at + 1] for at in range(len(stream))] if byte_by_byte else [stream]
    expected = [took(1, ECHO, None), took(1, STORE, b"a" * 100), ("protocol error", reason)]
    assert outcomes(impl, [b"".join(good), *chunks], setup=setup, end=False) == expected
    if not byte_by_byte:
        assert outcomes(impl, [b"".join(good) + stream], setup=setup, end=False) == expected
        assert outcomes(impl, [stream], setup=setup, end=False) == expected[2:]


def test_limits_are_inclusive(impl: Impl) -> None:
    def setup(conn: Any) -> None:
        conn.max_receive_pdu = 1000
        conn.max_message = 994

    pdus = [HEAD, pdata(pdv(1, 2, bytes(994)))]
    assert len(pdus[1]) == 6 + 1000
    assert outcomes(impl, pdus, setup=setup) == [took(1, STORE, bytes(994)), END]
    pdus = [HEAD, pdata(pdv(1, 2, bytes(995)))]
    assert outcomes(impl, pdus, setup=setup, end=False) == [("protocol error", 6)]


def test_hard_cap(impl: Impl) -> None:
    cap = impl.module.HARD_PDU_CAP
    assert cap == 16 * 2**20
    assert outcomes(impl, [huge_pdu(cap)]) == [("closed", 6, 6 + cap)]
    assert outcomes(impl, [huge_pdu(cap + 1)], end=False) == [("protocol error", 6)]


def test_associate_cap(impl: Impl) -> None:
    assert outcomes(impl, [huge_pdu(2**20, 1)]) == [("closed", 6, 6 + 2**20)]
    body = noise(2**20)
    with link(impl) as one:
        sending = Background(one.feed, pdu(1, body))
        assert one.conn.receive(PATIENCE) == impl.module.OTHER
        assert _whole_pdu(one) == pdu(1, body)
        sending.result()


def test_command_cap(impl: Impl) -> None:
    """64 KiB of command set, in fragments."""
    filler = struct.pack("<HHI", 0, 0x0902, 65536 - len(STORE) - 8)
    command = STORE + filler + b"x" * (65536 - len(STORE) - 8)
    assert len(command) == 65536
    pdus = message(1, command, b"ab", [], [10_000] * 6)
    assert outcomes(impl, pdus) == [took(1, command, b"ab"), END]
    pdus = message(1, command + b"12", b"ab", [], [10_000] * 6)
    assert outcomes(impl, pdus, end=False) == [("protocol error", 6)]
    endless = [pdata(pdv(1, 1, bytes(30_000)))] * 4
    assert outcomes(impl, endless, end=False) == [("protocol error", 6)]


@pytest.mark.parametrize("kind", [0x0000, 0x0001, 0x0100, 0x0102, 0xFFFF])
def test_data_set_type(impl: Impl, kind: int) -> None:
    """0101H means none, anything else that there is one (PS3.7 E.1)."""
    command = command_set(us(0x0100, 0x0020), us(0x0800, kind))
    pdus = message(1, command, b"xy")
    assert outcomes(impl, pdus) == [took(1, command, b"xy"), END]


@pytest.mark.parametrize("context", [0, 1, 2, 128, 255])
def test_context_ids_are_passed_on(impl: Impl, context: int) -> None:
    """Whether an ID was negotiated is for the caller to know."""
    assert outcomes(impl, message(context, ECHO, None)) == [took(context, ECHO, None), END]


def test_errors_stay(one: Link, engine: Any) -> None:
    one.feed(pdu(9, b"1234"))
    for _ in range(2):
        with pytest.raises(engine.ProtocolError):
            one.conn.receive(PATIENCE)


def test_messages_before_the_end_of_the_stream(one: Link, engine: Any) -> None:
    one.feed(b"".join(message(1, STORE, b"abcd") + message(1, ECHO, None)), close=True)
    assert one.conn.receive(PATIENCE).data == b"abcd"
    assert one.conn.receive(PATIENCE).command == ECHO
    for _ in range(2):
        with pytest.raises(engine.PeerClosed) as caught:
            one.conn.receive(PATIENCE)
        assert (caught.value.received, caught.value.expected) == (0, 0)
        assert isinstance(caught.value, ConnectionError)
    assert one.conn.wait(PATIENCE) == engine.READY


@pytest.mark.parametrize("sent", [0, 3, 20])
def test_reset(impl: Impl, sent: int) -> None:
    with link(impl, tcp=True) as one:
        one.raw.sendall(HEAD[:sent])
        if sent:
            assert one.conn.receive(0.05) != impl.module.READY if sent == 0 else True
            eventually(lambda: one.conn.receive(0) == impl.module.TIMEOUT and one.conn.in_pdu)
        one.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.raw.close()
        assert one.conn.wait(PATIENCE) == impl.module.READY
        with pytest.raises(impl.module.PeerClosed) as caught:
            one.conn.receive(PATIENCE)
        assert caught.value.received == sent


def test_message_attributes(one: Link) -> None:
    one.feed(b"".join(message(7, STORE, b"abcd")))
    got = one.conn.receive(PATIENCE)
    assert (got.context_id, got.command, got.data, got.length) == (7, STORE, b"abcd", 4)
    assert type(got.command) is bytes
    assert type(got.data) is bytes
    one.feed(b"".join(message(7, ECHO, None)))
    got = one.conn.receive(PATIENCE)
    assert (got.context_id, got.command, got.data, got.length) == (7, ECHO, None, 0)


def test_counters(one: Link) -> None:
    stream = b"".join(message(1, STORE, b"abcd", [2]) + message(1, ECHO, None))
    one.feed(stream)
    one.conn.receive(PATIENCE)
    one.conn.receive(PATIENCE)
    assert one.conn.messages_received == 2
    assert one.conn.pdus_received == 4
    assert one.conn.bytes_received == len(stream)
    assert one.conn.receive_calls >= 1
    one.feed(ABORT)
    one.conn.receive(PATIENCE)
    assert one.conn.receive_pdu() == ABORT
    assert one.conn.messages_received == 2
    assert one.conn.pdus_received == 5
    assert one.conn.bytes_received == len(stream) + len(ABORT)
    assert one.conn.buffered == 0


def test_progress_properties(one: Link, engine: Any) -> None:
    assert not one.conn.in_message
    assert not one.conn.in_pdu
    assert one.conn.pdu_age == 0.0
    one.feed(HEAD[:3])
    assert one.conn.receive(0) == engine.TIMEOUT
    assert not one.conn.in_message
    assert one.conn.in_pdu
    assert one.conn.pdu_age > 0.0
    one.feed(HEAD[3:])
    assert one.conn.receive(0) == engine.TIMEOUT
    assert one.conn.in_message
    assert not one.conn.in_pdu
    one.feed(pdata(pdv(1, 2, b"ab")))
    assert one.conn.receive(0).data == b"ab"
    assert not one.conn.in_message
    assert not one.conn.in_pdu
    assert one.conn.pdu_age == 0.0


# ---------------------------------------------------------------------------------- other PDUs, PDU by PDU


def test_other_is_not_consumed(one: Link, engine: Any) -> None:
    one.feed(RELEASE)
    assert one.conn.receive(PATIENCE) == engine.OTHER
    assert one.conn.receive(0) == engine.OTHER
    assert one.conn.receive_pdu() == RELEASE
    assert one.conn.receive(0) == engine.TIMEOUT
    assert one.conn.receive_pdu() is None


def test_receive_pdu_takes_any_type(one: Link) -> None:
    pdus = [*message(1, STORE, b"abcd", [2]), RELEASE, pdu(6, bytes(4)), pdu(1, bytes(200)), ABORT]
    assert one.conn.receive_pdu() is None
    one.feed(b"".join(pdus))
    assert [one.conn.receive_pdu() for _ in pdus] == pdus
    assert one.conn.receive_pdu() is None
    assert one.conn.pdus_received == len(pdus)


def test_receive_pdu_byte_by_byte(one: Link) -> None:
    for whole in [*message(1, STORE, b"abcd", [2]), RELEASE, pdu(1, bytes(20))]:
        for at in range(len(whole)):
            assert one.conn.receive_pdu() is None
            one.feed(whole[at : at + 1])
        assert one.conn.receive_pdu() == whole


@pytest.mark.parametrize(
    "name",
    [name for name, (stream, _) in PROTOCOL_ERRORS.items() if stream[0] != 4 or "P-DATA" in name],
)
def test_receive_pdu_judges_headers(one: Link, engine: Any, name: str) -> None:
    stream, reason = PROTOCOL_ERRORS[name]
    one.conn.max_receive_pdu = 1000
    one.feed(stream)
    with pytest.raises(engine.ProtocolError) as caught:
        one.conn.receive_pdu()
    assert caught.value.reason == reason


def test_receive_pdu_at_the_end(one: Link, engine: Any) -> None:
    one.feed(RELEASE + ABORT[:7], close=True)
    assert one.conn.receive_pdu() == RELEASE
    with pytest.raises(engine.PeerClosed) as caught:
        one.conn.receive_pdu()
    assert (caught.value.received, caught.value.expected) == (7, 10)


@pytest.mark.parametrize("begun", [HEAD, HEAD + pdata(pdv(1, 0, b"abcd"))[:14]])
def test_receive_pdu_inside_a_message(one: Link, engine: Any, begun: bytes) -> None:
    one.feed(begun)
    assert one.conn.receive(0) == engine.TIMEOUT
    one.feed((HEAD + pdata(pdv(1, 0, b"abcd")))[len(begun) :])
    with pytest.raises(RuntimeError):
        one.conn.receive_pdu()
    one.feed(pdata(pdv(1, 2, b"ef")))
    assert one.conn.receive(PATIENCE).data == b"abcdef"


def test_abort_inside_a_message(one: Link, engine: Any) -> None:
    one.feed(HEAD + pdata(pdv(1, 0, b"abcd")) + ABORT)
    assert one.conn.receive(PATIENCE) == engine.OTHER
    assert one.conn.in_message
    with pytest.raises(RuntimeError):
        one.conn.receive_pdu()
    one.conn.drop_message()
    assert not one.conn.in_message
    assert one.conn.receive_pdu() == ABORT
    assert one.conn.receive(0) == engine.TIMEOUT


def test_drop_message_without_one(one: Link, engine: Any) -> None:
    one.conn.drop_message()
    one.feed(WHOLE + RELEASE)
    assert one.conn.receive(PATIENCE).data == b"abcd"
    one.conn.drop_message()
    assert one.conn.receive(PATIENCE) == engine.OTHER
    one.conn.drop_message()
    assert one.conn.receive_pdu() == RELEASE


def test_receive_pdu_reads_nothing_beyond(one: Link) -> None:
    """Somebody else may read the rest of the stream from the socket."""
    pdus = [RELEASE, pdu(1, noise(10_000)), *message(1, STORE, b"abcd"), pdu(2, b""), ABORT]
    one.feed(b"".join(pdus) + b"rest")
    for expected in pdus:
        assert one.conn.receive_pdu() == expected
        assert one.conn.buffered == 0
    one.sock.setblocking(False)
    assert one.sock.recv(100) == b"rest"


def test_messages_and_pdus_take_turns(one: Link, engine: Any) -> None:
    """The whole stream may be in the buffer of the engine: both read on from where the other one ended."""
    pdus = message(1, STORE, b"abcd", [2])
    one.feed(b"".join(pdus * 3))
    assert [one.conn.receive_pdu() for _ in pdus] == pdus
    assert one.conn.receive(PATIENCE).data == b"abcd"
    assert [one.conn.receive_pdu() for _ in pdus] == pdus
    assert one.conn.receive(0) == engine.TIMEOUT


def test_large_pdus_one_by_one(one: Link) -> None:
    pdus = [pdata(pdv(1, 0, noise(size, size))) for size in (1, 5000, 2_000_000, 10, 4096, 300_000)]
    sending = Background(one.feed, b"".join(pdus))
    for expected in pdus:
        assert _whole_pdu(one) == expected
    sending.result()


def test_wait_does_not_spin_on_a_part_of_a_pdu(one: Link, engine: Any) -> None:
    """A part of a PDU that was looked at is nothing that can be read."""
    one.feed(RELEASE[:7])
    assert one.conn.wait(PATIENCE) == engine.READY
    assert one.conn.receive_pdu() is None
    assert one.conn.wait(0) == engine.TIMEOUT
    one.feed(RELEASE[7:])
    assert one.conn.wait(PATIENCE) == engine.READY
    assert one.conn.receive_pdu() == RELEASE
    one.feed(HEAD[:4])
    assert one.conn.receive(0) == engine.TIMEOUT
    assert one.conn.wait(0) == engine.TIMEOUT


def test_wait_sees_what_is_buffered(one: Link, engine: Any) -> None:
    one.feed(b"".join(message(1, ECHO, None) * 2))
    assert one.conn.receive(PATIENCE).command == ECHO
    assert one.conn.wait(0) == engine.READY
    assert one.conn.receive(0).command == ECHO
    assert one.conn.wait(0) == engine.TIMEOUT


def test_abandon(one: Link, engine: Any) -> None:
    one.feed(HEAD + pdata(pdv(1, 0, b"abcd")))
    assert one.conn.receive(0) == engine.TIMEOUT
    assert one.conn.in_message
    one.conn.abandon()
    assert not one.conn.in_message
    assert not one.conn.in_pdu
    one.feed(b"".join(message(1, STORE, b"12")))
    assert one.conn.receive(PATIENCE).data == b"12"


# ------------------------------------------------------------------------------------- the command set alone


def receive_told(conn: Any, module: Any, told: list[Any]) -> Any:
    """Receive one message; `told` gets what was known when its command set was told of."""
    while True:
        got = conn.receive(PATIENCE)
        if got != module.COMMAND:
            return got
        told.append(conn.partial)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_command_is_told_once(one: Link, engine: Any, size: int) -> None:
    """By an engine that has something to gain by it."""
    one.conn.tells_command = True
    data = noise(size)
    head, *rest = message(3, STORE, data, [1000] * (size // 1000))
    for _ in range(2):
        told: list[Any] = []
        receiving = Background(receive_told, one.conn, engine, told)
        one.feed(head)
        eventually(lambda: one.conn.in_message and one.conn.buffered == 0)
        time.sleep(0.02)
        one.feed(b"".join(rest))
        got = receiving.result()
        assert (got.context_id, got.command, got.data, got.prepared) == (3, STORE, data, None)
        assert [(part.context_id, part.command, part.data) for part in told] == [
            (3, STORE, None)
        ] * len(told)
        assert len(told) == (engine.__name__ == "fastpdu._fastpdu")


def test_command_is_not_told(one: Link, engine: Any) -> None:
    """If the data set is there already, there is none, it goes to a sink, nobody waits, or nobody asked."""
    one.conn.tells_command = True
    one.feed(b"".join(message(1, STORE, b"ab") + message(1, ECHO, None)))
    assert one.conn.receive(PATIENCE).data == b"ab"
    assert one.conn.receive(PATIENCE).command == ECHO
    head, rest = message(1, STORE, b"ab")
    one.feed(head)
    assert one.conn.receive(0) == engine.TIMEOUT
    with pytest.raises(RuntimeError):
        one.conn.partial  # noqa: B018
    one.feed(rest)
    assert one.conn.receive(PATIENCE).data == b"ab"
    one.conn.split_commands = frozenset({0x0001})
    one.feed(head)
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    one.conn.set_sink(-1)
    receiving = Background(one.conn.receive, PATIENCE)
    one.feed(rest)
    assert receiving.result().data == b"ab"
    one.conn.split_commands = frozenset()
    one.conn.tells_command = False
    receiving = Background(one.conn.receive, PATIENCE)
    one.feed(head)
    time.sleep(0.02)
    one.feed(rest)
    assert receiving.result().data == b"ab"


# ------------------------------------------------------------------------------------------------- sinks


@pytest.fixture
def target(tmp_path: Path) -> Any:
    """A file for a data set."""
    with (tmp_path / "sink").open("w+b") as file:
        yield file


def receive_to(conn: Any, module: Any, fd: int) -> Any:
    """Receive one message whose data set goes to `fd`."""
    assert conn.receive(PATIENCE) == module.PARTIAL
    conn.set_sink(fd)
    return conn.receive(PATIENCE)


@pytest.mark.parametrize("size", [0, 1, 100, 60_000, 3_000_000])
@pytest.mark.parametrize("sizes", [[], [1000] * 3, [16376] * 200], ids=["one", "few", "many"])
def test_sink(one: Link, engine: Any, target: Any, size: int, sizes: list[int]) -> None:
    one.conn.split_commands = frozenset({0x0001})
    data = noise(size)
    sizes = sizes[: size // (sizes[0] if sizes else 1)]
    sending = Background(
        one.feed, b"".join(message(3, STORE, data, sizes) + message(3, ECHO, None))
    )
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    partial = one.conn.partial
    assert (partial.context_id, partial.command, partial.data) == (3, STORE, None)
    one.conn.set_sink(target.fileno())
    got = one.conn.receive(PATIENCE)
    assert (got.context_id, got.command, got.data, got.length) == (3, STORE, None, size)
    assert one.conn.receive(PATIENCE).command == ECHO
    sending.result()
    target.seek(0)
    assert target.read() == data


def test_sink_to_memory(one: Link, engine: Any) -> None:
    one.conn.split_commands = frozenset({0x0001, 0x0020})
    for command in (STORE, FIND):
        one.feed(b"".join(message(3, command, b"abcdef", [2])))
        got = receive_to(one.conn, engine, -1)
        assert (got.command, got.data, got.length) == (command, b"abcdef", 6)


def test_only_split_commands_are_told(one: Link) -> None:
    one.conn.split_commands = frozenset({0x0001})
    no_data = command_set(us(0x0100, 0x0001), us(0x0800, 0x0101))
    one.feed(b"".join(message(1, FIND, b"ab") + message(1, no_data, None)))
    assert one.conn.receive(PATIENCE).data == b"ab"
    assert one.conn.receive(PATIENCE).command == no_data


def test_partial_is_told_until_it_is_answered(one: Link, engine: Any) -> None:
    one.conn.split_commands = frozenset({0x0001})
    one.feed(pdata(pdv(1, 3, STORE), pdv(1, 2, b"ab")))
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    one.conn.set_sink(-1)
    with pytest.raises(RuntimeError):
        one.conn.set_sink(-1)
    assert one.conn.receive(PATIENCE).data == b"ab"


def test_set_sink_without_partial(one: Link, engine: Any) -> None:
    with pytest.raises(RuntimeError):
        one.conn.set_sink(-1)
    one.feed(HEAD)
    assert one.conn.receive(0) == engine.TIMEOUT
    with pytest.raises(RuntimeError):
        one.conn.set_sink(-1)


def test_sink_byte_by_byte(impl: Impl, target: Any) -> None:
    def setup(conn: Any) -> None:
        conn.split_commands = {0x0001}

    stream = b"".join(message(1, STORE, b"abcdefghij", [3, 0, 4]) * 2)
    chunks = [stream[at : at + 1] for at in range(len(stream))]
    found = outcomes(impl, chunks, setup=setup, sink=target.fileno())
    one_message = [("partial", 1, STORE), ("message", 1, STORE, None, 10)]
    assert found == [*one_message, *one_message, END]
    target.seek(0)
    assert target.read() == b"abcdefghij" * 2


def test_sink_that_cannot_be_written(one: Link, engine: Any, tmp_path: Path) -> None:
    one.conn.split_commands = frozenset({0x0001})
    (tmp_path / "sink").write_bytes(b"")
    with (tmp_path / "sink").open("rb") as file:
        one.feed(b"".join(message(1, STORE, b"abcd")))
        with pytest.raises(OSError) as caught:
            receive_to(one.conn, engine, file.fileno())
        assert not isinstance(caught.value, engine.PeerClosed)


def test_sink_obeys_max_message(one: Link, engine: Any, target: Any) -> None:
    one.conn.split_commands = frozenset({0x0001})
    one.conn.max_message = 10
    one.feed(b"".join(message(1, STORE, bytes(11), [6])))
    with pytest.raises(engine.ProtocolError) as caught:
        receive_to(one.conn, engine, target.fileno())
    assert caught.value.reason == 6


def test_split_commands_is_a_frozenset(one: Link) -> None:
    assert one.conn.split_commands == frozenset()
    one.conn.split_commands = frozenset({1, 0x8001, 0xFFFF})
    assert one.conn.split_commands == frozenset({1, 0x8001, 0xFFFF})
    assert isinstance(one.conn.split_commands, frozenset)


# ------------------------------------------------------------------------------------- both ends the engine


@cross_pairs
@pytest.mark.parametrize("max_pdu", [8, 4096, 16382, 262_144, 0])
def test_round_trips(sender: Impl, receiver: Impl, max_pdu: int) -> None:
    top = 3000 if max_pdu < 100 else 3_000_000
    sizes = [0, 1, top // 3, top, top - 1, 5, top // 2, top + 1, 100, 0]
    with pair(sender, receiver) as (near, far):

        def send_all() -> None:
            for number, size in enumerate(sizes):
                command = STORE if size else ECHO
                near.send(2 * number + 1, command, noise(size, number), max_pdu=max_pdu)

        sending = Background(send_all)
        for number, size in enumerate(sizes):
            got = far.receive(PATIENCE)
            assert got.context_id == 2 * number + 1
            assert got.data == (noise(size, number) if size else None)
        sending.result()
        assert near.bytes_sent == far.bytes_received
        assert near.pdus_sent == far.pdus_received
        assert near.messages_sent == far.messages_received == len(sizes)


BIG = 2**32 + 2**20 + 5


@pytest.mark.slow
@pytest.mark.parametrize("impl", [IMPLS[2]], ids=str)
def test_more_than_4_gib(impl: Impl, tmp_path: Path) -> None:
    """64-bit counters: a sparse file goes to a sink that forgets it.

    The Python engine's integers do not overflow; it would take too long.
    """
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(BIG)
    with (
        path.open("rb") as file,
        open(os.devnull, "wb") as nowhere,
        pair(impl, impl) as (near, far),
    ):
        far.split_commands = frozenset({0x0001})
        sending = Background(near.send_file, 1, STORE, file.fileno(), 0, BIG, max_pdu=2**20)
        got = receive_to(far, impl.module, nowhere.fileno())
        assert got.length == BIG
        assert got.data is None
        pdus = sending.result(100)
        assert pdus == 1 + -(-BIG // (2**20 - 6))
        assert near.bytes_sent == far.bytes_received == BIG + 12 * pdus + len(STORE)


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("size", [0, 7, 1_000_000])
def test_sink_with_a_head(one: Link, engine: Any, target: Any, size: int, drain: bool) -> None:
    one.conn.split_commands = frozenset({0x0001})
    data = noise(size)
    sending = Background(one.feed, b"".join(message(3, STORE, data, [16376] * (size // 20000))))
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    one.conn.set_sink(target.fileno(), b"head", drain=drain)
    got = one.conn.receive(PATIENCE)
    assert (got.data, got.length, got.error) == (None, size, 0)
    sending.result()
    target.seek(0)
    assert target.read() == b"head" + data


def test_sink_with_too_long_a_head(one: Link, engine: Any, target: Any) -> None:
    one.conn.split_commands = frozenset({0x0001})
    one.feed(b"".join(message(1, STORE, b"ab")))
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    with pytest.raises(ValueError, match="65536"):
        one.conn.set_sink(target.fileno(), b"a" * 65537)
    one.conn.set_sink(target.fileno(), b"a" * 65536)
    assert one.conn.receive(PATIENCE).length == 2
    target.seek(0)
    assert target.read() == b"a" * 65536 + b"ab"


@pytest.mark.parametrize("size", [0, 4, 3_000_000])
def test_sink_that_cannot_be_written_is_drained(
    one: Link, engine: Any, tmp_path: Path, size: int
) -> None:
    one.conn.split_commands = frozenset({0x0001})
    (tmp_path / "sink").write_bytes(b"")
    stream = b"".join(message(1, STORE, noise(size), [16376] * (size // 20000)))
    sending = Background(one.feed, stream + b"".join(message(1, ECHO, None)))
    with (tmp_path / "sink").open("rb") as file:
        assert one.conn.receive(PATIENCE) == engine.PARTIAL
        one.conn.set_sink(file.fileno(), b"head", drain=True)
        got = one.conn.receive(PATIENCE)
    assert (got.command, got.data, got.length, got.error) == (STORE, None, size, errno.EBADF)
    assert one.conn.receive(PATIENCE).command == ECHO
    sending.result()
    # and nothing is left of it
    one.feed(b"".join(message(1, STORE, b"abcd")))
    got = receive_to(one.conn, engine, -1)
    assert (got.data, got.error) == (b"abcd", 0)


@pytest.mark.parametrize("size", [0, 4, 3_000_000])
def test_data_set_to_nowhere(one: Link, engine: Any, size: int) -> None:
    one.conn.split_commands = frozenset({0x0001})
    stream = b"".join(message(1, STORE, noise(size), [16376] * (size // 20000)))
    sending = Background(one.feed, stream + b"".join(message(1, ECHO, None)))
    assert one.conn.receive(PATIENCE) == engine.PARTIAL
    one.conn.set_sink(-1, drain=True)
    got = one.conn.receive(PATIENCE)
    assert (got.command, got.data, got.length, got.error) == (STORE, None, size, 0)
    assert one.conn.receive(PATIENCE).command == ECHO
    sending.result()
