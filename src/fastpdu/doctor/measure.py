"""Measures how a peer answers: C-ECHOs and C-STOREs, with and without TCP_QUICKACK, with two PDU sizes."""

from __future__ import annotations

import dataclasses
import functools
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpdu.bench.series import Identity, make_series
from fastpdu.commands import peer as peers
from fastpdu.doctor.figures import Trial
from fastpdu.options import TransportOptions
from fastpdu.requestor import Peer, announced_limit

if TYPE_CHECKING:
    from fastpdu.stats import TransportStats

#: Announced and kept to: pynetdicom's default, and one that is large for a peer and small for memory.
PDU_LIMITS = (16382, 131072)
PATIENT_NAME, PATIENT_ID = "FASTPDU^DOCTOR^TEST", "FASTPDU-DOCTOR-TEST"
#: Called with the number of trials that are done, of how many, and what comes next.
OnTrial = Callable[[int, int, str], object]


def has_quickack() -> bool:
    """Whether this platform has TCP_QUICKACK."""
    return hasattr(socket, "TCP_QUICKACK")


def measure(
    peer: Peer,
    *,
    echoes: int,
    stores: int = 0,
    pdu_limits: Sequence[int] = PDU_LIMITS,
    options: TransportOptions | None = None,
    on_trial: OnTrial | None = None,
) -> list[Trial]:
    """Associate with a peer again and again, and time what it does.

    Parameters
    ----------
    peer : Peer
        Whom to examine.
    echoes : int
        C-ECHOs per trial; 0: none.
    stores : int
        C-STOREs of synthetic CT images per trial. The peer stores them. No image is sent twice.
    pdu_limits : sequence of int
        Maximum lengths (PS3.8 D.1) to announce and to keep to. One that makes no difference, since the peer takes
        no longer PDUs than another, is left out for C-STORE; a C-ECHO fits into any.
    options : TransportOptions, optional
        How to move bytes, but for `quickack` and `max_pdu`.
    on_trial : callable, optional
        Told before each trial.

    Returns
    -------
    list of Trial
        In the order in which they were made.

    Raises
    ------
    PeerError
        If the peer cannot be reached, or does not go on.
    """
    acks = (True, False) if has_quickack() else (None,)
    # A C-ECHO is smaller than any PDU
    plan = [("echo", ack, pdu_limits[0]) for ack in acks if echoes]
    plan += [("store", ack, limit) for limit in pdu_limits for ack in acks if stores]
    tell = on_trial or (lambda done, total, text: None)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="fastpdu-doctor-") as directory:
        paths: list[str] = []
        if stores:
            tell(0, len(plan), "making images")
            paths = _images(Path(directory), stores * sum(1 for item in plan if item[0] == "store"))
        for done, (operation, ack, limit) in enumerate(plan):
            if operation == "store" and _is_covered(trials, ack, limit):
                continue
            text = f"C-{operation.upper()}, PDUs up to {limit}"
            if ack is not None:
                text += f", QUICKACK {'on' if ack else 'off'}"
            tell(done, len(plan), text)
            mine = [paths.pop() for _ in range(stores)] if operation == "store" else []
            trials.append(_trial(peer, options or TransportOptions(), ack, limit, echoes, mine))
    return trials


def _is_covered(trials: Sequence[Trial], ack: bool | None, limit: int) -> bool:
    """Whether this limit has been measured already: with another, PDUs were (about) as long as they would be."""
    return any(
        trial.operation == "store"
        and trial.quickack == ack
        and abs(_longest(trial, limit) - trial.largest_pdu) <= 0.1 * trial.largest_pdu
        for trial in trials
    )


def _longest(trial: Trial, limit: int) -> float:
    """Return about how long PDUs to the peer of a trial, with such images, get under a limit."""
    return min(limit, trial.peer_limit or limit, trial.bytes_sent / (trial.count + trial.failures))


def _images(directory: Path, count: int) -> list[str]:
    identity = Identity.new(
        PATIENT_NAME, PATIENT_ID, "Synthetic test image of fastpdu doctor. May be deleted."
    )
    return [item.path for item in make_series(directory, count, identity=identity)]


def _trial(
    peer: Peer,
    base: TransportOptions,
    ack: bool | None,
    limit: int,
    echoes: int,
    paths: Sequence[str],
) -> Trial:
    """Send C-STOREs of files, or without files C-ECHOs, over an association of their own."""
    from pynetdicom import build_context
    from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

    if paths:
        context = build_context(CTImageStorage, "1.2.840.10008.1.2.1")
        operation, name = "store", "C-STORE"
    else:
        context = build_context(Verification)
        operation, name = "echo", "C-ECHO"
    options = dataclasses.replace(base, quickack=ack, max_pdu=limit)
    begun = time.perf_counter()
    with peers.associate(peer, [context], options, limit=limit) as assoc:
        associated = time.perf_counter() - begun
        requests: list[Callable[[int], Any]]
        if paths:
            requests = [functools.partial(assoc.send_c_store, path) for path in paths]
        else:
            # The first one meets a peer that may have to wake up; it does not count
            asked = time.perf_counter()
            peers.check_going_on(assoc, peer, assoc.send_c_echo(), asked, name)
            requests = [assoc.send_c_echo] * echoes
        before = assoc.transport_stats()
        latencies: list[float] = []
        failures = 0
        for index, request in enumerate(requests):
            asked = time.perf_counter()
            answer = request(index % 65535 + 1)
            took = time.perf_counter() - asked
            peers.check_going_on(assoc, peer, answer, asked, name)
            # Warnings (PS3.7 C.3) are stored images
            if answer.Status == 0 or answer.Status >> 12 == 0xB:
                latencies.append(took)
            else:
                failures += 1
        if not latencies:
            raise peers.PeerError(
                f"{peer} answers each {name} with a failure status, the last with 0x{answer.Status:04X}",
                "look into the peer's log; a failure tells nothing about its speed",
                peers.FAILURE_STATUS,
            )
        after = assoc.transport_stats()
        peer_limit = announced_limit(assoc)
    return _figures(
        operation, ack, limit, peer_limit, latencies, failures, before, after, associated
    )


def _figures(
    operation: str,
    ack: bool | None,
    limit: int,
    peer_limit: int | None,
    latencies: Sequence[float],
    failures: int,
    before: TransportStats,
    after: TransportStats,
    associated: float,
) -> Trial:
    """Return what happened between two looks at the telemetry of an association."""
    sent = after.bytes_sent - before.bytes_sent
    figures: dict[str, Any] = {}
    tcp, tcp_before = after.tcp, before.tcp
    if tcp is not None and tcp_before is not None:

        def during(name: str) -> Any:
            old, new = getattr(tcp_before, name), getattr(tcp, name)
            return None if old is None or new is None else new - old

        def seconds(microseconds: int | None) -> float | None:
            return None if microseconds is None else microseconds / 1e6

        figures = {
            "round_trip_seconds": seconds(tcp.min_rtt_us),
            "retransmits": during("retransmits"),
            "segments": sent // tcp.snd_mss + len(latencies) + failures if tcp.snd_mss else None,
            "delivery_rate": tcp.delivery_rate,
            "window_seconds": seconds(during("rwnd_limited_us")),
            "send_buffer_seconds": seconds(during("sndbuf_limited_us")),
            "busy_seconds": seconds(during("busy_us")),
        }
    if figures.get("round_trip_seconds") is None:
        # Two round trips at least: the connection, and the association request with its answer
        figures["round_trip_seconds"] = min(associated / 2, min(latencies))
    return Trial(
        operation,
        ack,
        limit,
        after.largest_pdu_sent,
        tuple(latencies),
        peer_limit,
        failures,
        sent,
        after.peer_wait_seconds - before.peer_wait_seconds,
        after.peer_stalls - before.peer_stalls,
        after.send_blocked_seconds - before.send_blocked_seconds,
        after.stock_messages_sent - before.stock_messages_sent,
        **figures,
    )
