"""`TransportStats` and `TcpInfo`: reading the kernel's structure, JSON, text, the log line."""

from __future__ import annotations

import json
import logging
import struct
import threading

import pytest

from fastpdu import TcpInfo, TransportStats, stats


def structure(size: int) -> bytes:
    """A ``struct tcp_info`` of a kernel that knows `size` bytes of it."""
    whole = bytearray(struct.pack("=8B24I", 1, *range(1, 8), *range(100, 124)))
    whole += struct.pack("=4Q6I5Q", *range(200, 204), *range(300, 306), *range(400, 405))
    return bytes(whole)[:size]


def test_a_new_kernel() -> None:
    info = TcpInfo.from_bytes(structure(400) + bytes(64))
    assert info == TcpInfo(
        state=1,
        snd_mss=102,
        rcv_mss=103,
        unacked=104,
        rtt_us=115,
        rtt_var_us=116,
        cwnd=118,
        retransmits=123,
        notsent_bytes=302,
        min_rtt_us=303,
        delivery_rate=400,
        busy_us=401,
        rwnd_limited_us=402,
        sndbuf_limited_us=403,
    )


@pytest.mark.parametrize(
    ("size", "known"),
    [(0, set()), (1, {"state"}), (103, {"cwnd", "rtt_us"}), (104, {"retransmits"})],
)
def test_an_old_kernel(size: int, known: set[str]) -> None:
    info = TcpInfo.from_bytes(structure(size)).as_dict()
    for name in known:
        assert info[name] is not None
    assert info["delivery_rate"] is None
    assert (info["retransmits"] is None) == (size < 104)
    assert "unknown" in str(TcpInfo.from_bytes(structure(size)))


def test_no_round_trip_yet() -> None:
    data = bytearray(structure(200))
    data[148:152] = b"\xff" * 4
    assert TcpInfo.from_bytes(bytes(data)).min_rtt_us is None


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        TransportStats().bytes_sent = 1  # type: ignore[misc]


def test_json_and_text() -> None:
    made = TransportStats(
        bytes_sent=1_234_567, peer_stalls=12, tcp=TcpInfo.from_bytes(structure(400))
    )
    back = json.loads(json.dumps(made.as_dict()))
    assert TransportStats(**{**back, "tcp": TcpInfo(**back["tcp"])}) == made
    text = str(made)
    assert "1,234,567 bytes" in text
    assert "stalls 12" in text
    assert "123 retransmits" in text
    assert json.loads(json.dumps(TransportStats().as_dict()))["tcp"] is None


def test_the_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fastpdu.stats"):
        stats.log_end(
            TransportStats(bytes_sent=5, tcp=TcpInfo(rtt_us=7)), peer='A "B"\n=', local="ME", port=1
        )
    (line,) = caplog.messages
    assert line.startswith('association peer="A \\"B\\"\\n=" local=ME port=1 bytes_sent=5 ')
    assert "\n" not in line
    assert line.endswith("tcp_rtt_us=7")
    assert "None" not in line


def test_the_stopwatch_counts_what_runs() -> None:
    watch = stats.Stopwatch()
    assert watch.seconds == 0
    with watch:
        threading.Event().wait(0.01)
        assert watch.seconds >= 0.01
        with watch:  # on another thread, as a rule
            threading.Event().wait(0.01)
    assert watch.seconds >= 0.03
    assert watch.seconds == watch.seconds
