"""The doctor's judgement, from made figures: each cause, several at once, and borderline cases."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fastpdu.doctor import judge
from fastpdu.doctor.figures import Trial
from fastpdu.doctor.judge import Cause

IMAGE = 530_000
LAN = 0.0002


def trial(operation: str = "echo", quickack: bool | None = True, **figures: Any) -> Trial:
    """Twenty requests on a healthy local network, unless the figures say otherwise."""
    latencies = figures.pop("latencies", (0.0005 if operation == "echo" else 0.008,) * 20)
    made = Trial(
        operation,
        quickack,
        figures.pop("pdu_limit", 16382),
        280 if operation == "echo" else 16382,
        tuple(latencies),
        bytes_sent=len(latencies) * (80 if operation == "echo" else IMAGE),
        peer_wait_seconds=0.0 if operation == "echo" else sum(latencies),
        round_trip_seconds=LAN,
        retransmits=0,
        segments=len(latencies) * (1 if operation == "echo" else IMAGE // 1448),
        delivery_rate=110_000_000,
        window_seconds=0.0,
        send_buffer_seconds=0.0,
    )
    return dataclasses.replace(made, **figures)


def causes(*trials: Trial) -> list[Cause]:
    return [verdict.cause for verdict in judge.judge(trials)]


def healthy() -> list[Trial]:
    return [trial(operation, ack) for operation in ("echo", "store") for ack in (True, False)]


def test_healthy() -> None:
    assert causes(*healthy()) == []
    assert judge.exit_status(healthy(), []) == 0


def test_refusals_are_not_healthy() -> None:
    assert judge.exit_status([*healthy()[1:], trial(failures=1)], []) == 1


def test_nothing_measured() -> None:
    assert causes() == []


@pytest.mark.parametrize("operation", ["echo", "store"])
@pytest.mark.parametrize("wait", [0.040, 0.200], ids=["linux", "windows"])
def test_stalls(operation: str, wait: float) -> None:
    usual = trial(operation, True)
    stalled = trial(operation, False, latencies=[value + wait for value in usual.latencies])
    (verdict,) = judge.judge([usual, stalled])
    assert verdict.cause is Cause.STALLS
    assert verdict.certain
    assert verdict.quickack is False
    assert verdict.share > 0.8
    assert verdict.seconds_per_request == pytest.approx(wait)
    assert any("TCP_NODELAY=1" in line for line in verdict.there)
    assert any("quickack" in line for line in verdict.here)
    assert judge.exit_status([], [verdict]) == 10


@pytest.mark.parametrize(("stalls", "named"), [(4, False), (5, True), (20, True)])
def test_stalls_are_a_pattern(stalls: int, named: bool) -> None:
    """A busy machine makes a few waits; a quarter of all requests is no accident."""
    waits = (0.0405,) * stalls + (0.0005,) * (20 - stalls)
    assert causes(trial(), trial(quickack=False, latencies=waits)) == [Cause.STALLS] * named


@pytest.mark.parametrize(("count", "stalls", "named"), [(4, 1, False), (4, 2, False), (4, 3, True)])
def test_few_requests_may_be_accidents(count: int, stalls: int, named: bool) -> None:
    waits = (0.060,) * stalls + (0.0005,) * (count - stalls)
    usual = trial(latencies=(0.0005,) * count)
    assert causes(usual, trial(quickack=False, latencies=waits)) == [Cause.STALLS] * named


def test_a_peer_of_two_speeds_does_not_stall() -> None:
    """Slow for two of ten with QUICKACK and for five of ten without it: that is no proof."""
    often = (0.080,) * 5 + (0.0005,) * 5
    now_and_then = (0.080,) * 2 + (0.0005,) * 8
    assert Cause.STALLS not in causes(
        trial(latencies=now_and_then), trial(quickack=False, latencies=often)
    )


def test_waits_that_quickack_does_not_cure_are_no_stalls() -> None:
    slow = (0.045,) * 20
    assert causes(trial(latencies=slow), trial(quickack=False, latencies=slow)) == [Cause.PEER]


def test_stalls_here_and_there_are_no_stalls() -> None:
    """As many with QUICKACK as without it: a peer that pauses now and then."""
    uneven = (0.001, 0.050) * 9 + (0.001, 0.001)
    assert Cause.STALLS not in causes(
        trial(latencies=uneven), trial(quickack=False, latencies=uneven)
    )


def test_stalls_are_compared_at_the_same_pdu_size() -> None:
    slow = (0.100,) * 20
    found = judge.judge(
        [
            trial("store", True, pdu_limit=16382, latencies=slow),
            trial("store", False, pdu_limit=16382, latencies=slow),
            trial("store", True, pdu_limit=131072),
            trial("store", False, pdu_limit=131072),
        ]
    )
    assert [verdict.cause for verdict in found] == [Cause.PEER]


@pytest.mark.parametrize("wait", [0.0405, 0.101, 0.205])
def test_stalls_without_quickack_are_suspected(wait: float) -> None:
    """Where there is no QUICKACK, the length of the waits is all there is."""
    (verdict,) = judge.judge([trial(quickack=None, latencies=(wait,) * 20)])
    assert verdict.cause is Cause.STALLS
    assert not verdict.certain


@pytest.mark.parametrize("wait", [0.025, 0.070, 0.150, 0.300])
def test_other_waits_without_quickack_are_the_peers(wait: float) -> None:
    assert causes(trial(quickack=None, latencies=(wait,) * 20)) == [Cause.PEER]


def test_far_away_without_quickack_is_no_stall() -> None:
    far = trial(quickack=None, latencies=(0.042,) * 20, round_trip_seconds=0.0415)
    assert causes(far) == [Cause.NETWORK]


def test_window() -> None:
    full = trial("store", latencies=(0.100,) * 20, window_seconds=1.7, send_blocked_seconds=1.5)
    (verdict,) = judge.judge([full])
    assert verdict.cause is Cause.WINDOW
    assert verdict.share == pytest.approx(0.85)
    assert judge.exit_status([], [verdict]) == 11


@pytest.mark.parametrize(
    ("total", "limited", "named"),
    [
        (0.100, 0.019, False),  # less than a fifth
        (0.100, 0.021, True),
        (0.008, 0.004, False),  # half of it, of very little
        (0.010, 0.006, True),
    ],
)
@pytest.mark.parametrize(
    ("figure", "cause"),
    [("window_seconds", Cause.WINDOW), ("send_buffer_seconds", Cause.SEND_BUFFER)],
)
def test_limits_at_the_border(
    total: float, limited: float, named: bool, figure: str, cause: Cause
) -> None:
    made = trial("store", latencies=(total,) * 20, **{figure: 20 * limited})
    assert (cause in causes(made)) is named


def test_send_buffer() -> None:
    made = trial(
        "store", latencies=(0.100,) * 20, send_buffer_seconds=1.8, round_trip_seconds=0.004
    )
    (verdict,) = judge.judge([made])
    assert verdict.cause is Cause.SEND_BUFFER
    assert any("send_buffer" in line for line in verdict.here)
    assert judge.exit_status([], [verdict]) == 12


@pytest.mark.parametrize("operation", ["echo", "store"])
def test_far_away(operation: str) -> None:
    made = trial(operation, latencies=(0.064,) * 20, round_trip_seconds=0.060)
    (verdict,) = judge.judge([made])
    assert verdict.cause is Cause.NETWORK
    assert "round trip of 60 ms" in verdict.text
    assert judge.exit_status([], [verdict]) == 13


def test_far_away_stalls_too() -> None:
    """A round trip above 30 ms makes each answer long; only what QUICKACK takes away is a stall."""
    on = trial(latencies=(0.061,) * 20, round_trip_seconds=0.060)
    off = trial(quickack=False, latencies=(0.121,) * 20, round_trip_seconds=0.060)
    # (a delayed ACK and the round trip of what it lets go)
    assert causes(on, off) == [Cause.NETWORK, Cause.STALLS]
    still = trial(quickack=False, latencies=(0.062,) * 20, round_trip_seconds=0.060)
    assert causes(on, still) == [Cause.NETWORK]


@pytest.mark.parametrize(("operation", "work"), [("echo", 0.001), ("store", 0.016)])
def test_far_away_with_nagle(operation: str, work: float) -> None:
    """With QUICKACK the ACK is not delayed, but it takes a round trip, for which the peer waits."""
    trip = 0.020
    rate = (
        {"delivery_rate": IMAGE / 0.033, "busy_seconds": 20 * 0.035} if operation == "store" else {}
    )
    on = trial(operation, latencies=(2 * trip + work,) * 20, round_trip_seconds=trip, **rate)
    off = dataclasses.replace(
        on,
        quickack=False,
        latencies=tuple(value + 0.042 for value in on.latencies),
        peer_wait_seconds=on.peer_wait_seconds + 20 * 0.042,
    )
    found = {verdict.cause: verdict for verdict in judge.judge([on, off])}
    assert set(found) == {Cause.NETWORK, Cause.STALLS}
    assert found[Cause.STALLS].seconds_per_request == pytest.approx(0.042 + trip, abs=0.002)
    assert "for which the peer still waits" in found[Cause.STALLS].text
    assert judge.break_down(on, off).stalls == pytest.approx(20 * trip, rel=0.1)
    assert judge.break_down(on).stalls == 0


def test_the_round_trip_in_the_rate_does_not_count_twice() -> None:
    """What fits into the congestion window arrives in a round trip and 34 ms; then the peer takes 50 ms."""
    made = trial(
        "store",
        latencies=(0.146,) * 20,
        round_trip_seconds=0.060,
        delivery_rate=IMAGE / 0.094,
        busy_seconds=20 * 0.094,
    )
    found = {verdict.cause: verdict for verdict in judge.judge([made])}
    assert set(found) == {Cause.NETWORK, Cause.PEER}
    assert found[Cause.PEER].seconds_per_request == pytest.approx(0.052)
    assert f"{IMAGE / 0.034 / 1e6:.3g} MB/s" in found[Cause.NETWORK].text
    assert "MB/s" not in judge.judge([dataclasses.replace(made, busy_seconds=20 * 0.075)])[0].text


def test_a_new_connection_gathers_speed() -> None:
    """Five round trips more for the first of few images: that is the network's, not the peer's."""
    made = trial(
        "store",
        latencies=(0.388, 0.098, 0.096, 0.095),
        round_trip_seconds=0.060,
        delivery_rate=IMAGE / 0.094,
        busy_seconds=0.388 + 3 * 0.094,
    )
    assert causes(made) == [Cause.NETWORK]
    assert judge.break_down(made).round_trips == pytest.approx(4 * 0.060 + 0.291)
    # A C-ECHO fits into the first flight
    slow = trial("echo", latencies=(0.360, 0.061, 0.061), round_trip_seconds=0.060)
    assert judge.break_down(slow).round_trips == pytest.approx(3 * 0.060)


@pytest.mark.parametrize(
    ("figure", "cause"),
    [("window_seconds", Cause.WINDOW), ("send_buffer_seconds", Cause.SEND_BUFFER)],
)
def test_the_rate_of_what_limits_is_not_the_networks(figure: str, cause: Cause) -> None:
    """The kernel notices half of the time for which a buffer is full; the rest shows in the rate."""
    made = trial(
        "store",
        latencies=(0.190,) * 20,
        round_trip_seconds=0.020,
        delivery_rate=IMAGE / 0.160,
        busy_seconds=20 * 0.182,
        **{figure: 20 * 0.100},
    )
    (verdict,) = judge.judge([made])
    assert verdict.cause is cause
    assert verdict.seconds_per_request == pytest.approx(0.160)
    assert "limited: 2 s of 3.8 s" in verdict.evidence[0]


@pytest.mark.parametrize(("milliseconds", "named"), [(4.9, False), (5.0, True)])
def test_round_trip_at_the_border(milliseconds: float, named: bool) -> None:
    seconds = milliseconds / 1000
    made = trial(latencies=(seconds + 0.001,) * 20, round_trip_seconds=seconds)
    assert causes(made) == [Cause.NETWORK] * named


def test_thin_link() -> None:
    """100 Mbit/s: half a megabyte takes 43 ms."""
    made = trial("store", latencies=(0.048,) * 20, delivery_rate=12_300_000)
    (verdict,) = judge.judge([made])
    assert verdict.cause is Cause.NETWORK
    assert "12.3 MB/s" in verdict.text


def test_a_slow_rate_because_of_the_window_is_not_the_network() -> None:
    made = trial("store", latencies=(0.100,) * 20, delivery_rate=5_400_000, window_seconds=1.9)
    assert causes(made) == [Cause.WINDOW]


def test_losses() -> None:
    lossy = trial(
        "store", latencies=(0.020,) * 20, delivery_rate=40_000_000, retransmits=150, segments=7320
    )
    (verdict,) = judge.judge([lossy])
    assert verdict.cause is Cause.NETWORK
    assert "lost" in verdict.text
    assert any("150 of about 7320" in line for line in verdict.evidence)
    # The round trip is all that a C-ECHO knows of it, and nearly all of its time
    far = [
        dataclasses.replace(made, round_trip_seconds=0.006)
        for made in (trial(latencies=(0.0061,) * 20), lossy)
    ]
    (verdict,) = judge.judge(far)
    assert verdict.operation == "store"
    assert "lost" in verdict.text
    few = dataclasses.replace(lossy, retransmits=4, segments=100)
    assert causes(few) == []
    rare = dataclasses.replace(lossy, retransmits=20)
    assert causes(rare) == []


@pytest.mark.parametrize(
    ("operation", "milliseconds", "named"),
    [
        ("echo", 9, False),
        ("echo", 12, True),
        ("store", 25, False),  # 5 of which move the image
        ("store", 35, True),
    ],
)
def test_peer_at_the_border(operation: str, milliseconds: float, named: bool) -> None:
    made = trial(operation, latencies=(milliseconds / 1000,) * 20)
    assert causes(made) == [Cause.PEER] * named


def test_peer() -> None:
    (verdict,) = judge.judge([trial("store", latencies=(0.120,) * 20)])
    assert verdict.cause is Cause.PEER
    assert verdict.share > 0.9
    assert judge.exit_status([], [verdict]) == 14


def test_one_long_pause_is_not_the_peer() -> None:
    assert causes(trial(latencies=(0.0005,) * 19 + (2.0,))) == []


def test_reading_slow_files_is_this_side() -> None:
    made = trial("store", latencies=(0.100,) * 20, peer_wait_seconds=0.1)
    assert causes(made) == []
    assert judge.break_down(made).here == pytest.approx(1.9, rel=0.01)


def test_several_causes_by_their_share() -> None:
    found = judge.judge(
        [
            trial("echo", True, round_trip_seconds=0.0001),
            trial("echo", False, latencies=(0.041,) * 20),
            trial("store", True, latencies=(0.200,) * 20, window_seconds=2.4),
            trial("store", False, latencies=(0.240,) * 20, window_seconds=2.4),
        ]
    )
    assert [verdict.cause for verdict in found] == [Cause.STALLS, Cause.WINDOW, Cause.PEER]
    assert sorted((verdict.share for verdict in found), reverse=True) == [
        verdict.share for verdict in found
    ]
    assert judge.exit_status([], found) == 10


def test_the_kernel_knows_nothing() -> None:
    """Figures of a platform without TCP_INFO."""
    unknown = dict.fromkeys(
        (
            "round_trip_seconds",
            "retransmits",
            "segments",
            "delivery_rate",
            "window_seconds",
            "send_buffer_seconds",
        )
    )
    assert causes(trial("echo", None, **unknown), trial("store", None, **unknown)) == []
    assert causes(trial("store", None, latencies=(0.3,) * 20, **unknown)) == [Cause.PEER]


def test_a_platform_that_does_not_tell_blames_nobody_for_certain() -> None:
    """A C-STORE whose bytes may have been under way for all that is known."""
    unknown = dict.fromkeys(
        ("retransmits", "segments", "delivery_rate", "window_seconds", "send_buffer_seconds")
    )
    (verdict,) = judge.judge([trial("store", None, latencies=(0.5,) * 5, **unknown)])
    assert verdict.cause is Cause.PEER
    assert not verdict.certain
    assert "or the path to it" in verdict.text
    assert any("not known" in line for line in verdict.evidence)
    # What blocked this side is known to be the path, or a peer that does not read
    blocked = trial("store", None, latencies=(0.5,) * 5, send_blocked_seconds=2.4, **unknown)
    assert [verdict.cause for verdict in judge.judge([blocked])] == [Cause.NETWORK]
    (verdict,) = judge.judge([trial("echo", None, latencies=(0.3,) * 5, **unknown)])
    assert verdict.certain


def test_this_side() -> None:
    here = trial("store", latencies=(0.1,) * 10, peer_wait_seconds=0.02)
    found = judge.own_part([*healthy(), here])
    assert found is not None
    assert found[0] is here
    assert found[1] == pytest.approx(0.1, rel=0.1)
    assert judge.own_part(healthy()) is None


@pytest.mark.parametrize(
    "made",
    [
        trial("store", latencies=(0.01,) * 20, window_seconds=9.0, send_buffer_seconds=9.0),
        trial("store", latencies=(0.01,) * 20, round_trip_seconds=9.0),
        trial("store", latencies=(0.3,) * 20, window_seconds=1.0, send_buffer_seconds=0.5),
        trial(latencies=(0.0,) * 20),
    ],
)
def test_the_parts_add_up(made: Trial) -> None:
    parts = dataclasses.asdict(judge.break_down(made))
    total = parts.pop("total")
    assert sum(parts.values()) == pytest.approx(total)
    assert all(value >= 0 for value in parts.values())


def test_every_cause_has_a_status_of_its_own() -> None:
    assert set(judge.STATUS) == set(Cause)
    assert len(set(judge.STATUS.values())) == len(Cause)
    assert min(judge.STATUS.values()) > 7


def test_json() -> None:
    found = judge.judge([trial("store", latencies=(0.120,) * 20)])
    content = json.loads(json.dumps([verdict.as_dict() for verdict in found]))
    assert content[0]["cause"] == "peer"
    assert set(content[0]) == {
        "cause",
        "operation",
        "quickack",
        "share",
        "ms_per_request",
        "certain",
        "text",
        "evidence",
        "remedies",
    }
    assert set(content[0]["remedies"]) == {"here", "peer"}
