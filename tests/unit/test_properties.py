"""Random messages, random groupings, random damage: the engines agree, and nothing hangs or crashes."""

from __future__ import annotations

from itertools import pairwise
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
    frame,
    link,
    noise,
    outcomes,
    pair,
    pdata,
    pdu,
    pdv,
    read_exactly,
    took,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def available() -> list[Impl]:
    """Return the implementations that are there."""
    found = []
    for impl in IMPLS:
        try:
            assert impl.module
        except pytest.skip.Exception:
            continue
        found.append(impl)
    return found


contexts = st.integers(0, 127).map(lambda number: 2 * number + 1)
sizes = st.one_of(
    st.integers(0, 40),
    st.integers(0, 3000),
    st.sampled_from([4084, 4090, 4096, 16370, 16384, 30_000]),
)


@quick
@given(
    st.sampled_from([7, 8, 9, 10, 100, 4096, 16382, 0]),
    st.lists(st.tuples(contexts, st.lists(sizes, max_size=5)), min_size=1, max_size=4),
    st.data(),
)
def test_round_trips(
    max_pdu: int, messages: list[tuple[int, list[int]]], source: st.DataObject
) -> None:
    impls = available()
    sender, receiver = source.draw(st.sampled_from(impls)), source.draw(st.sampled_from(impls))
    if 0 < max_pdu < 100:
        messages = [(context, [size % 200 for size in parts]) for context, parts in messages]
    with pair(sender, receiver) as (near, far):
        datas = [[noise(size, size + 1) for size in parts] for _, parts in messages]

        def send_all() -> None:
            for (context, _), data in zip(messages, datas, strict=True):
                near.send(context, STORE if b"".join(data) else ECHO, data, max_pdu=max_pdu)

        sending = Background(send_all)
        for (context, _), data in zip(messages, datas, strict=True):
            got = far.receive(PATIENCE)
            assert got.context_id == context
            assert got.data == (b"".join(data) or None)
        sending.result()
        assert far.buffered == 0


@quick
@given(st.integers(7, 300), st.lists(st.integers(0, 300), max_size=6), st.data())
def test_wire_bytes(max_pdu: int, parts: list[int], source: st.DataObject) -> None:
    data = noise(sum(parts))
    buffers, at = [], 0
    for part in parts:
        buffers.append(data[at : at + part])
        at += part
    for impl in available():
        with link(impl) as one:
            expected = frame(1, STORE, data, max_pdu, impl.module.UNLIMITED_FRAGMENT)
            assert one.conn.send(1, STORE, buffers, max_pdu=max_pdu) == len(expected)
            assert read_exactly(one.raw, len(b"".join(expected))) == b"".join(expected)


# --------------------------------------------------------------------------------------------- streams


@st.composite
def cuts(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """Cut bytes into fragments, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *places, len(whole)]
    return [whole[a:b] for a, b in pairwise(edges)]


@st.composite
def one_message(draw: st.DrawFn) -> tuple[list[bytes], tuple[Any, ...]]:
    """Return the PDUs of a message, its fragments grouped in any legal way, and the outcome."""
    context = draw(contexts)
    command = draw(st.sampled_from([ECHO, STORE, FIND]))
    data = None if command == ECHO else noise(draw(sizes), draw(st.integers(1, 9)))
    pieces = draw(cuts(command))
    pdvs = [pdv(context, 1, piece) for piece in pieces[:-1]]
    pdvs.append(pdv(context, 3, pieces[-1]))
    if data is not None:
        steady = draw(st.sampled_from([0, 0, 1, 2, 3, 100, 1000]))
        if steady and len(data) // steady < 200:
            pieces = [data[at : at + steady] for at in range(0, len(data), steady)] or [b""]
        else:
            pieces = draw(cuts(data))
        pdvs += [pdv(context, 0, piece) for piece in pieces[:-1]]
        pdvs.append(pdv(context, 2, pieces[-1]))
    pdus = []
    while pdvs:
        count = draw(st.sampled_from([1, 1, 1, 2, 3, 50]))
        pdus.append(pdata(*pdvs[:count]))
        del pdvs[:count]
    return pdus, took(context, command, data)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[Any, ...]]]:
    """Return a valid stream and its outcomes."""
    stream, expected = b"", []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 5)) == 0:
            other = draw(st.sampled_from([ABORT, RELEASE, pdu(1, bytes(70)), pdu(2, b"")]))
            stream += other
            expected.append(("pdu", other))
        else:
            pdus, outcome = draw(one_message())
            stream += b"".join(pdus)
            expected.append(outcome)
    return stream, expected


@st.composite
def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Cut a stream into chunks as the network may."""
    step = draw(st.sampled_from([0, 0, 1, 7, 13, 1000, 4096]))
    if step and len(stream) // step < 3000:
        return [stream[at : at + step] for at in range(0, len(stream), step)]
    return [chunk for chunk in draw(cuts(stream)) if chunk] or [stream]


@quick
@given(streams(), st.data())
def test_any_grouping_in_any_chunks(
    case: tuple[bytes, list[tuple[Any, ...]]], source: st.DataObject
) -> None:
    stream, expected = case
    chunks = source.draw(chunked(stream))
    for impl in available():
        assert outcomes(impl, chunks) == [*expected, END], impl


MARKS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7F, 0x80, 0xFE, 0xFF]


@settings(quick, max_examples=120)
@given(streams(), st.data())
def test_damaged_streams(case: tuple[bytes, list[tuple[Any, ...]]], source: st.DataObject) -> None:
    """Only documented outcomes, the same ones of each engine and in whatever chunks."""
    damaged = bytearray(case[0])
    for _ in range(source.draw(st.integers(1, 3))):
        # Most of the interesting bytes are near the beginning of something.
        near = source.draw(st.sampled_from([40, 200, len(damaged)]))
        at = source.draw(st.integers(0, max(0, min(near, len(damaged)) - 1)))
        kind = source.draw(st.sampled_from(["set", "set", "flip", "cut", "insert", "repeat"]))
        if kind == "set":
            damaged[at : at + 1] = bytes([source.draw(st.sampled_from(MARKS))])
        elif kind == "flip":
            damaged[at : at + 1] = bytes([(damaged[at] if damaged else 0) ^ 1])
        elif kind == "cut":
            del damaged[at : at + source.draw(st.integers(1, 30))]
        elif kind == "insert":
            damaged[at:at] = source.draw(st.binary(max_size=20))
        else:
            damaged[at:at] = damaged[at : at + source.draw(st.integers(1, 100))]
    stream = bytes(damaged)
    limit = source.draw(st.sampled_from([0, 0, 1000, 20_000]))

    def setup(conn: Any) -> None:
        conn.max_receive_pdu = limit
        conn.max_message = limit // 2
        conn.split_commands = frozenset({0x0020})

    whole = [stream[at : at + 50_000] for at in range(0, len(stream), 50_000)]
    found = {
        (str(impl), len(chunks)): outcomes(impl, chunks, setup=setup)
        for impl in available()
        for chunks in (whole, source.draw(chunked(stream)))
    }
    first = next(iter(found.values()))
    assert all(one == first for one in found.values()), found
    assert first[-1][0] in ("closed", "protocol error")


@settings(quick, max_examples=60)
@given(
    st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([ABORT, STORE, ECHO])), max_size=5)
)
def test_garbage(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    found = [outcomes(impl, [stream] if stream else []) for impl in available()]
    assert all(one == found[0] for one in found)


# ------------------------------------------------------------------------------------------ PDU by PDU


@quick
@given(streams(), st.data())
def test_pdu_by_pdu(case: tuple[bytes, list[tuple[Any, ...]]], source: st.DataObject) -> None:
    """`receive_pdu` gives the stream back as it came."""
    stream, _ = case
    chunks = source.draw(chunked(stream))
    for impl in available():
        found = []
        with link(impl) as one:
            for chunk in chunks:
                one.feed(chunk)
                while (whole := one.conn.receive_pdu()) is not None:
                    found.append(whole)
            assert one.conn.bytes_received == len(stream)
        assert b"".join(found) == stream
        assert all(len(whole) == 6 + int.from_bytes(whole[2:6], "big") for whole in found)
