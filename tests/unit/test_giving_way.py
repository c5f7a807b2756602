"""`wait(yields=)`: whoever reads a pending response leaves the GIL to others, who may be busy with the operation."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ECHO,
    FIND,
    IMPLS,
    PATIENCE,
    PENDING,
    STORE,
    Background,
    Impl,
    eventually,
    link,
    message,
    noise,
    pair,
    us,
)

#: Longer than any test may last: what ends it has to be something else.
LONG = 10 * PATIENCE
LARGE = 100_000
FINAL = PENDING.replace(us(0x0900, 0xFF00), us(0x0900, 0))
PENDING_PDU, FINAL_PDU = (message(1, command, None)[0] for command in (PENDING, FINAL))
compiled = pytest.mark.parametrize("impl", [i for i in IMPLS if i.backend == "compiled"], ids=str)


def waiting(one: Any) -> Background:
    return Background(one.conn.wait, LONG, awaited=True, yields=LONG)


@pytest.mark.parametrize("cut", [3, 9, 40])
def test_nothing_is_lost(impl: Impl, engine: Any, cut: int) -> None:
    """Whatever comes, and in whatever pieces, `receive` has it afterwards."""
    whole = PENDING_PDU * 2 + FINAL_PDU + b"".join(message(3, STORE, b"abcd"))
    with link(impl) as one:
        feeding = Background(_feed, one, whole, cut)
        commands = []
        while len(commands) < 4:
            assert one.conn.wait(PATIENCE, yields=0.001) == engine.READY
            found = one.conn.receive(PATIENCE)
            commands.append((found.context_id, found.command, found.data))
        feeding.result()
        assert [command for _, command, _ in commands[:3]] == [PENDING, PENDING, FINAL]
        assert commands[3] == (3, STORE, b"abcd")


def _feed(one: Any, whole: bytes, cut: int) -> None:
    for start in range(0, len(whole), cut):
        one.feed(whole[start : start + cut])


@compiled
def test_more_ends_it(impl: Impl) -> None:
    """The next message: there is something to do."""
    with link(impl) as one:
        wait = waiting(one)
        one.feed(PENDING_PDU)
        eventually(lambda: one.conn.in_message)
        assert wait.running
        one.feed(FINAL_PDU)
        assert wait.result() == impl.module.READY
        assert one.conn.receive(0).command == PENDING
        assert one.conn.receive(0).command == FINAL


@compiled
def test_a_large_message_of_another_thread_ends_it(impl: Impl, tmp_path: Path) -> None:
    """It goes through the kernel, where nobody needs the GIL."""
    path = tmp_path / "data set"
    path.write_bytes(noise(LARGE))
    with link(impl) as one, pair(impl, impl) as (sender, receiver), path.open("rb") as file:
        wait = waiting(one)
        one.feed(PENDING_PDU)
        eventually(lambda: one.conn.in_message)
        receiving = Background(receiver.receive, PATIENCE)
        # a small one does not
        sender.send_file(1, STORE, file.fileno(), 0, 1000, max_pdu=0)
        assert receiving.result().data == noise(LARGE)[:1000]
        assert wait.running
        receiving = Background(receiver.receive, PATIENCE)
        sender.send_file(1, STORE, file.fileno(), 0, LARGE, max_pdu=0)
        assert receiving.result().data == noise(LARGE)
        assert wait.result() == impl.module.READY
        assert one.conn.receive(0).command == PENDING


@pytest.mark.parametrize(
    "bytes_",
    [
        pytest.param(FINAL_PDU, id="the last response"),
        pytest.param(message(1, ECHO, None)[0], id="a request"),
        pytest.param(b"".join(message(1, FIND, b"ab")), id="a data set"),
        pytest.param(PENDING_PDU * 2, id="two at once"),
        pytest.param(PENDING_PDU[:20], id="a part"),
        pytest.param(b"\x05\0\0\0\0\4\0\0\0\0", id="a release request"),
    ],
)
def test_nothing_else_is_held_up(impl: Impl, engine: Any, bytes_: bytes) -> None:
    with link(impl) as one:
        wait = waiting(one)
        one.feed(bytes_)
        assert wait.result() == engine.READY


@pytest.mark.parametrize(
    "bytes_",
    [
        pytest.param(struct.pack(">BBI", 4, 0, 2) + b"ab", id="a PDU that is too short"),
        pytest.param(struct.pack(">BBI", 99, 0, 4) + b"abcd", id="an unknown PDU"),
        pytest.param(b"", id="the end"),
    ],
)
def test_failures_are_told(impl: Impl, engine: Any, bytes_: bytes) -> None:
    """By `wait` or by `receive`, as without `yields`."""
    with link(impl) as one:
        wait = waiting(one)
        one.feed(bytes_, close=True)
        try:
            assert wait.result() == engine.READY
            outcome = one.conn.receive(PATIENCE)
        except (engine.ProtocolError, OSError):
            return
        assert outcome == engine.OTHER


def test_closing_ends_it(impl: Impl) -> None:
    with link(impl) as one:
        wait = Background(one.conn.wait, LONG, yields=0.05)
        one.feed(PENDING_PDU)
        eventually(lambda: one.conn.in_message or not wait.running)
        one.conn.close()
        try:
            assert wait.result() == impl.module.READY
        except OSError:
            pass


@pytest.mark.parametrize("value", [-1, "1"])
def test_seconds_are_checked(impl: Impl, value: Any) -> None:
    with link(impl) as one, pytest.raises((TypeError, ValueError)):
        one.conn.wait(0, yields=value)
