"""`fastpdu doctor` over a link with a round trip, a bandwidth and losses, to DCMTK's storescp and to ourselves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import kit, link, peers

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only"),
]

#: Seconds: far for a local network, near for the time that this takes.
ROUND_TRIP = 0.020
#: Fails if nobody listens.
LISTENS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
except OSError:
    sys.exit(1)
"""
#: A storage SCP of ours that takes its time.
SLOW = """
import sys, threading
from pynetdicom import AE, AllStoragePresentationContexts, evt
import fastpdu
def slow(event):
    threading.Event().wait(0.1)
    return 0
entity = fastpdu.AE()
entity.supported_contexts = AllStoragePresentationContexts
entity.add_supported_context("1.2.840.10008.1.1")
entity.start_server(("", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, slow)])
"""


@contextmanager
def far_away(
    peer: str,
    directory: Path,
    *,
    environment: Mapping[str, object] | None = None,
    ours: Mapping[str, object] | None = None,
    round_trip: float = ROUND_TRIP,
    **of_link: Any,
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run an SCP at the far end; give what runs the doctor at the near one: its exit status and output.

    `environment` is the SCP's, `ours` the doctor's.
    """

    def env(variables: Mapping[str, object] | None) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in (variables or {}).items())]

    def command(port: int) -> list[str]:
        return {
            "storescp": ["storescp", "-od", str(directory), str(port)],
            "recv": [sys.executable, "-m", "fastpdu", "recv", str(port), str(directory), "--quiet"],
            "slow": [sys.executable, "-c", SLOW, str(port)],
        }[peer]

    if peer == "storescp":
        peers.program("storescp")
    try:
        with link.running(round_trip=round_trip, **of_link) as ends:

            def run(*command: object) -> tuple[int, str]:
                done = subprocess.run(
                    [*ends.near, *env(ours), sys.executable, *map(str, command)],
                    stdout=subprocess.PIPE,
                    text=True,
                    timeout=60,
                    check=False,
                )
                return done.returncode, done.stdout

            def doctor(port: int, *arguments: object) -> tuple[int, str]:
                return run(*("-m", "fastpdu", "doctor", link.FAR, port, "--pdu", 16382), *arguments)

            with peers.background(
                lambda port: [*ends.far, *env(environment), *command(port)],
                directory.parent / "log",
                ready=lambda port: run("-S", "-c", LISTENS, link.FAR, port)[0] == 0,
            ) as port:
                yield lambda *arguments: doctor(port, *arguments)
    except link.Unavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def verdicts(
    doctor: Callable[..., tuple[int, str]], *arguments: object, expected: set[str]
) -> list[dict[str, Any]]:
    """What the doctor says. The machine may be busy with others: once in a few times has to be as expected."""
    for _ in range(5):
        status, output = doctor("--json", "--quiet", *arguments)
        content = json.loads(output)
        assert content["exit_status"] == status
        if {verdict["cause"] for verdict in content["verdicts"]} == expected:
            break
    found: list[dict[str, Any]] = content["verdicts"]
    assert {verdict["cause"] for verdict in found} == expected, content
    numbers = {"stalls": 10, "window": 11, "send-buffer": 12, "network": 13, "peer": 14}
    assert status == numbers[found[0]["cause"]]
    for trial in content["trials"]:
        parts = trial["breakdown"]
        assert sum(parts.values()) == pytest.approx(2 * parts["total_ms"], abs=0.1)
    return found


@pytest.mark.parametrize("peer", ["recv", "storescp"])
def test_round_trip(peer: str, out: Path) -> None:
    """It is not the peer's fault, nor that a new connection begins slowly."""
    with far_away(peer, out, environment={"TCP_NODELAY": 1}) as doctor:
        (verdict,) = verdicts(doctor, "--echo", 3, "--store", 3, expected={"network"})
        assert "round trip of 2" in verdict["text"]
        assert verdict["ms_per_request"] >= 1e3 * ROUND_TRIP
        if peer == "recv":
            status, text = doctor("--echo", 3)
            assert status == 13
            assert "1. NETWORK: " in text
            assert "each answer needs a round trip of 2" in text


def test_nagle_far_away(out: Path) -> None:
    """With QUICKACK the peer waits for one more round trip: that is neither the network's fault nor slowness."""
    with far_away("storescp", out) as doctor:
        found = verdicts(doctor, "--echo", 3, "--store", 3, expected={"stalls", "network"})
    stalls = next(verdict for verdict in found if verdict["cause"] == "stalls")
    assert stalls["ms_per_request"] >= 1e3 * (0.030 + ROUND_TRIP)
    assert "for which the peer still waits" in stalls["text"]
    assert any("for the round trip of an ACK" in line for line in stalls["evidence"])


def test_send_buffer(out: Path) -> None:
    """The rate that it allows is not taken for the network's."""
    with far_away("recv", out, ours={"FASTPDU_SEND_BUFFER": 32768}) as doctor:
        (verdict,) = verdicts(doctor, "--echo", 0, "--store", 3, expected={"send-buffer"})
    assert verdict["share"] > 0.5
    assert any("send_buffer" in line for line in verdict["remedies"]["here"])


def test_window(out: Path) -> None:
    environment = {"TCP_BUFFER_LENGTH": 32768, "TCP_NODELAY": 1}
    with far_away("storescp", out, environment=environment) as doctor:
        (verdict,) = verdicts(doctor, "--echo", 0, "--store", 3, expected={"window"})
    assert verdict["share"] > 0.5
    assert any("TCP_BUFFER_LENGTH" in line for line in verdict["remedies"]["peer"])


def test_bandwidth(out: Path) -> None:
    with far_away("recv", out, rate=5e6, queue=0.2) as doctor:
        (verdict,) = verdicts(doctor, "--echo", 3, "--store", 3, expected={"network"})
    # A C-ECHO does not know
    assert verdict["operation"] == "store"
    assert "MB/s" in verdict["text"]


def test_losses(out: Path) -> None:
    with far_away("recv", out, loses=50) as doctor:
        (verdict,) = verdicts(doctor, "--echo", 3, "--store", 3, expected={"network"})
    assert "get lost" in verdict["text"]
    assert any("sent again" in line for line in verdict["evidence"])


def test_slow_peer_far_away(out: Path) -> None:
    """Its time is told from the network's."""
    with far_away("slow", out) as doctor:
        found = verdicts(doctor, "--echo", 3, "--store", 3, expected={"network", "peer"})
    peer = next(verdict for verdict in found if verdict["cause"] == "peer")
    assert peer["operation"] == "store"
    assert peer["ms_per_request"] >= 90
