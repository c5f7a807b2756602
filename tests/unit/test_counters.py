"""The engine's telemetry: waits, suspected stalls, the largest PDUs, the kernel's figures."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from engine_kit import (
    ABORT,
    ECHO,
    RELEASE,
    STORE,
    Background,
    Impl,
    Link,
    all_impls,
    blocked,
    eventually,
    link,
    message,
    noise,
    pdata,
    pdv,
    read_all,
    read_exactly,
)

PAUSE = 0.06  # seconds: more than a stall
HEAD = pdata(pdv(1, 3, STORE))
DATA = pdata(pdv(1, 2, b"abcdef"))
WAITS = (
    "send_blocked_ns",
    "send_stalls",
    "longest_send_wait_ns",
    "peer_wait_ns",
    "peer_stalls",
    "longest_peer_wait_ns",
)


def pause(seconds: float = PAUSE) -> None:
    threading.Event().wait(seconds)


def waits(conn: Any) -> dict[str, int]:
    """The counters of waits that are not zero."""
    return {name: value for name in WAITS if (value := getattr(conn, name))}


def test_the_threshold(engine: Any) -> None:
    assert engine.STALL_NS == 30_000_000


def test_nothing_is_counted_at_first(one: Link) -> None:
    assert waits(one.conn) == {}
    assert one.conn.largest_pdu_sent == one.conn.largest_pdu_received == 0


@pytest.mark.parametrize("name", [*WAITS, "largest_pdu_sent", "largest_pdu_received"])
def test_counters_are_read_only(one: Link, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(one.conn, name, 1)


# ------------------------------------------------------------------------------------------- waiting for the peer


@pytest.mark.parametrize("cut", [3, 9, 20, len(HEAD), len(HEAD) + 6, len(HEAD) + 14])
def test_a_pause_inside_a_message(one: Link, cut: int) -> None:
    """In a PDU header, in a command set, between the PDUs, in the data set: the peer is waited for."""
    stream = HEAD + DATA
    receiving = Background(one.conn.receive)
    one.feed(stream[:cut])
    eventually(lambda: one.conn.bytes_received == cut, "the first part")
    pause()
    assert receiving.running
    one.feed(stream[cut:])
    assert receiving.result().data == b"abcdef"
    assert one.conn.peer_stalls == 1
    assert one.conn.peer_wait_ns >= one.conn.longest_peer_wait_ns >= 30_000_000
    assert one.conn.send_blocked_ns == 0


def test_two_pauses(one: Link) -> None:
    stream = HEAD + DATA
    receiving = Background(one.conn.receive)
    for begin, end in ((0, 4), (4, len(HEAD)), (len(HEAD), len(stream))):
        one.feed(stream[begin:end])
        if end < len(stream):
            eventually(lambda end=end: one.conn.bytes_received == end, "a part")
            pause()
    assert receiving.result().data == b"abcdef"
    assert one.conn.peer_stalls == 2
    assert 30_000_000 <= one.conn.longest_peer_wait_ns < one.conn.peer_wait_ns


@pytest.mark.parametrize("call", ["wait", "receive"])
def test_an_idle_pause(one: Link, engine: Any, call: str) -> None:
    waiting = Background(getattr(one.conn, call))
    pause()
    one.feed(b"".join(message(1, ECHO, None)))
    waiting.result()
    assert one.conn.wait(0.01) in (engine.READY, engine.TIMEOUT)
    assert waits(one.conn) == {}


@pytest.mark.parametrize("call", ["wait", "receive"])
def test_an_awaited_answer(one: Link, call: str) -> None:
    waiting = Background(getattr(one.conn, call), awaited=True)
    pause()
    one.feed(b"".join(message(1, ECHO, None)))
    waiting.result()
    assert one.conn.peer_stalls == 1
    assert one.conn.peer_wait_ns == one.conn.longest_peer_wait_ns >= 30_000_000


def test_polling_is_not_waiting(one: Link, engine: Any) -> None:
    assert one.conn.wait(0, awaited=True) == engine.TIMEOUT
    assert one.conn.receive(0, awaited=True) == engine.TIMEOUT
    one.feed(HEAD)
    assert one.conn.receive(0, awaited=True) == engine.TIMEOUT
    assert one.conn.wait(0, awaited=True) == engine.TIMEOUT
    assert waits(one.conn) == {}


def test_a_wait_in_several_calls_is_one(one: Link, engine: Any) -> None:
    """However often it is interrupted: it ends when bytes come."""
    for _ in range(4):
        assert one.conn.wait(0.02, awaited=True) == engine.TIMEOUT
    waiting = Background(one.conn.wait, awaited=True)
    pause()
    one.conn.wake()
    assert waiting.result() == engine.WAKE
    assert one.conn.peer_stalls == 1
    assert one.conn.longest_peer_wait_ns == one.conn.peer_wait_ns >= 130_000_000


def test_a_send_that_lingers(one: Link, engine: Any) -> None:
    """It waits for the answer already; who reads it goes on with that wait, though an idle reader was woken."""
    idle = Background(one.conn.wait)
    pause(0.01)
    sending = Background(one.conn.send, 1, ECHO, max_pdu=0, linger=0.05)
    sending.result()
    one.conn.wake()
    assert idle.result() == engine.WAKE
    assert one.conn.wait(0.02, awaited=True) == engine.TIMEOUT
    if one.conn.peer_wait_ns > 40_000_000:  # an engine that lingers
        assert one.conn.longest_peer_wait_ns == one.conn.peer_wait_ns
        assert one.conn.peer_stalls == 1


def test_a_send_that_yields(one: Link, engine: Any) -> None:
    """It waits likewise, and that is not waiting for the peer."""
    one.conn.send(1, ECHO, max_pdu=0, yields=0.04)
    assert waits(one.conn) == {}
    if one.conn.yielded_ns:  # an engine that lingers
        assert one.conn.yielded_ns > 30_000_000
        one.conn.send(1, ECHO, max_pdu=0)
        one.conn.send(1, ECHO, max_pdu=0, yields=0)
        # not if there is something to do already
        before = one.conn.yielded_ns
        one.feed(b"".join(message(1, ECHO, None)))
        one.conn.send(1, ECHO, max_pdu=0, yields=30)
        assert one.conn.yielded_ns == before
    # who waits for the answer has a better reason
    if one.conn.yielded_ns:
        assert one.conn.receive().command == ECHO
    before = one.conn.yielded_ns
    one.conn.send(1, ECHO, max_pdu=0, linger=0.01, yields=30)
    assert one.conn.yielded_ns == before


@pytest.mark.parametrize("yields", [-1, float("nan")])
def test_no_such_time_to_yield(one: Link, yields: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        one.conn.send(1, ECHO, max_pdu=0, yields=yields)
    with pytest.raises(ValueError, match="timeout"):
        one.conn.send(1, ECHO, max_pdu=0, yields=yields, linger=0.01)
    assert one.conn.bytes_sent == 0


def test_bytes_end_a_wait(one: Link, engine: Any) -> None:
    assert one.conn.wait(0.01, awaited=True) == engine.TIMEOUT
    one.feed(b"".join(message(1, ECHO, None)))
    assert one.conn.receive().command == ECHO
    assert one.conn.wait(0.01, awaited=True) == engine.TIMEOUT
    assert 0 < one.conn.longest_peer_wait_ns < one.conn.peer_wait_ns


def test_idleness_ends_a_wait(one: Link, engine: Any) -> None:
    for awaited in (True, False, True):
        assert one.conn.wait(0.01, awaited=awaited) == engine.TIMEOUT
    assert 0 < one.conn.longest_peer_wait_ns < one.conn.peer_wait_ns


def test_a_pause_inside_another_pdu(one: Link, engine: Any) -> None:
    """As the reactor waits for the rest of a PDU: `wait`, then `receive_pdu`."""
    one.feed(RELEASE[:7])
    assert one.conn.receive_pdu() is None
    waiting = Background(one.conn.wait)
    pause()
    one.feed(RELEASE[7:])
    assert waiting.result() == engine.READY
    assert one.conn.receive_pdu() == RELEASE
    assert one.conn.peer_stalls == 1


def test_the_counters_survive(one: Link) -> None:
    receiving = Background(one.conn.receive)
    one.feed(HEAD[:9])
    eventually(lambda: one.conn.bytes_received == 9, "the first part")
    pause()
    one.feed(HEAD[9:] + DATA)
    receiving.result()
    before = waits(one.conn)
    one.conn.abandon()
    one.conn.close()
    assert waits(one.conn) == before
    assert one.conn.largest_pdu_received == len(HEAD) - 6


# ------------------------------------------------------------------------------------------------- blocked sends


@pytest.mark.parametrize("way", ["send", "send_file", "send_bytes"])
def test_a_full_send_buffer(one: Link, tmp_path: Any, way: str) -> None:
    data = noise(20_000_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    with path.open("rb") as file:
        if way == "send":
            sending = Background(one.conn.send, 1, STORE, data, max_pdu=16384)
        elif way == "send_file":
            sending = Background(
                one.conn.send_file, 1, STORE, file.fileno(), 0, len(data), max_pdu=16384
            )
        else:
            sending = Background(one.conn.send_bytes, pdata(pdv(1, 2, data)))
        blocked(one.conn)
        reading = Background(read_all, one.raw)
        sending.result()
        one.sock.shutdown(1)
        assert len(reading.result()) == one.conn.bytes_sent
    assert one.conn.send_stalls >= 1
    assert one.conn.send_blocked_ns >= one.conn.longest_send_wait_ns >= 30_000_000
    assert one.conn.peer_wait_ns == one.conn.peer_stalls == 0


def test_a_send_that_gives_up(one: Link) -> None:
    sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=0, timeout=PAUSE)
    with pytest.raises(TimeoutError):
        sending.result()
    assert one.conn.send_stalls == 1
    assert one.conn.send_blocked_ns >= 30_000_000


def test_a_send_that_does_not_block(one: Link) -> None:
    for size in (0, 100, 20_000):
        before = one.conn.bytes_sent
        one.conn.send(1, STORE, noise(size), max_pdu=0)
        read_exactly(one.raw, one.conn.bytes_sent - before)
    assert waits(one.conn) == {}


# ------------------------------------------------------------------------------------------------ the largest PDUs


def test_largest_pdus(one: Link) -> None:
    one.conn.send_bytes(RELEASE)
    assert one.conn.largest_pdu_sent == 4
    one.conn.send(1, STORE, noise(1000), max_pdu=106)
    assert one.conn.largest_pdu_sent == 106
    one.conn.send(1, STORE, noise(10), max_pdu=60)
    assert one.conn.largest_pdu_sent == 106
    one.feed(b"".join(message(1, STORE, noise(3000), [500, 2000])) + RELEASE)
    assert one.conn.receive().length == 3000
    assert one.conn.largest_pdu_received == 2006
    assert one.conn.receive_pdu() == RELEASE
    assert one.conn.largest_pdu_received == 2006


def test_a_large_pdu_of_another_type(one: Link) -> None:
    associate = bytes([1, 0, 0, 0, 2, 0]) + bytes(512)
    one.feed(associate)
    assert one.conn.receive_pdu() == associate
    assert one.conn.largest_pdu_received == 512


def test_ready_made_pdus_are_counted(one: Link) -> None:
    one.conn.send_bytes(RELEASE + HEAD + ABORT)
    assert one.conn.pdus_sent == 3
    assert one.conn.largest_pdu_sent == len(HEAD) - 6
    assert read_exactly(one.raw, one.conn.bytes_sent) == RELEASE + HEAD + ABORT


# ----------------------------------------------------------------------------------------------- the kernel's figures


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO as Linux has it")
@all_impls
def test_tcp_info(impl: Impl) -> None:
    with link(impl, tcp=True) as one:
        info = one.conn.tcp_info()
        assert type(info) is bytes
        assert len(info) >= 104
        assert info[0] == 1  # established
        one.raw.close()
        one.sock.close()  # the engine has a descriptor of its own
        assert len(one.conn.tcp_info()) == len(info)
        one.conn.close()
        last = one.conn.tcp_info()
        assert len(last) == len(info)
        assert one.conn.tcp_info() is last


@all_impls
def test_tcp_info_of_another_socket(impl: Impl) -> None:
    with link(impl) as one:
        assert one.conn.tcp_info() is None
        one.conn.close()
        assert one.conn.tcp_info() is None
