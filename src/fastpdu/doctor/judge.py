"""Says where the time went: a pure function of the figures of `measure`.

Each cause is looked for in the trial that shows it best: stalls by comparing a trial without TCP_QUICKACK with the same
one with it, everything else in the trial with it, which is how fastpdu sends. A cause counts only if it takes both a
share of the time and an amount per request that somebody would notice: on a healthy local network something always
takes the largest share, of very little.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fastpdu.doctor.figures import Trial
from fastpdu.latency import milliseconds


class Cause(Enum):
    """What may take the time. The value is its name in JSON."""

    STALLS = "stalls"
    WINDOW = "window"
    SEND_BUFFER = "send-buffer"
    NETWORK = "network"
    PEER = "peer"


#: Exit status of `fastpdu doctor` for each cause, above those of connection errors (`fastpdu.commands.peer`).
STATUS = {
    Cause.STALLS: 10,
    Cause.WINDOW: 11,
    Cause.SEND_BUFFER: 12,
    Cause.NETWORK: 13,
    Cause.PEER: 14,
}

#: A cause of less of the time than this is not named: removing it would not be felt.
LEAST_SHARE = 0.2
#: Seconds that a request must take longer than the usual one with QUICKACK to be a stall. The shortest delayed ACK
#: in use takes 40 ms (Linux; Windows up to 200 ms), and may have begun a little before we wait.
STALL = 0.030
#: Stalls per request from which on they are a pattern, not an accident: Nagle's algorithm against delayed ACKs strikes
#: nearly each time, a busy machine now and then.
STALL_RATE = 0.25
#: How many there must be: fewer of a few requests may be accidents all the same.
LEAST_STALLS = 3
#: Stalls with QUICKACK on for each one with it off, up to which it is QUICKACK that makes the difference.
OTHER_STALLS = 0.25
#: Where QUICKACK cannot be switched: waits that last as long as a system delays its ACKs, in seconds. Linux 40 ms and
#: Windows 200 ms (each a little more, by its timer), macOS up to 100 ms.
DELAYED_ACKS = ((0.038, 0.056), (0.095, 0.115), (0.190, 0.230))
#: Seconds per request of a full window, or of a send buffer too small. The kernel counts them in steps of its
#: clock tick, at most 10 ms, so less of them in one request is nothing that it can know.
LEAST_LIMITED = 0.005
#: Seconds of the round trip of what still is a local network or a campus; above it, waiting for each answer shows.
LOCAL_ROUND_TRIP = 0.005
#: Bytes with which a connection begins, before its congestion window doubles with each round trip (RFC 6928).
INITIAL_WINDOW = 14600
#: Seconds per request of moving the bytes. A CT image of 530 KB takes 4 ms at 1 Gbit/s, 43 ms at 100 Mbit/s.
LEAST_TRANSFER = 0.020
#: Share of the segments that were sent again from which on loss shows in the throughput of TCP (Mathis et al.), ...
LOSS = 0.01
#: ... and how many there must be: one or two say nothing.
LEAST_RETRANSMITS = 5
#: This side is named if it takes this much of the time, and as long per request as a transfer that counts.
LEAST_OWN_SHARE = 0.5
#: Seconds that a peer may take for a request before it is called slow. A C-ECHO needs no work; a C-STORE of half
#: a megabyte writes it to a disk, and on most to a database, in 10 ms or less.
PATIENCE = {"echo": 0.010, "store": 0.025}


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one trial went, in seconds. The parts add up to the whole.

    Attributes
    ----------
    total : float
        All requests together, each from its beginning to its response.
    window : float
        The peer's receive window was full, and what else moving the bytes took because of it.
    send_buffer : float
        Our send buffer was too small, likewise.
    round_trips, transfer : float
        The network: one round trip for each request, those in which a new connection gathers speed, and moving the
        bytes.
    stalls : float
        What the same requests took longer than with QUICKACK, if they waited for a delayed ACK; and the round trip
        of an ACK that is not delayed, if the peer waits for it and is far away.
    here : float
        This side: reading the files, making the requests.
    peer : float
        What is left: the peer read everything, and its answer did not come.
    """

    total: float
    window: float
    send_buffer: float
    round_trips: float
    transfer: float
    stalls: float
    here: float
    peer: float

    def as_dict(self) -> dict[str, float]:
        """Return the parts for JSON, in milliseconds, as `window_ms`."""
        return {
            f"{name}_ms": milliseconds(value) for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True)
class Verdict:
    """One cause, with what it rests on.

    Attributes
    ----------
    cause : Cause
        What takes the time.
    operation : str
        ``"echo"`` or ``"store"``: in which requests it shows most.
    quickack : bool or None
        In which trial: that of fastpdu's default, or the one with QUICKACK off.
    share : float
        Of the time of that trial.
    seconds_per_request : float
        What it costs.
    certain : bool
        False: the figures fit, but there was nothing to compare them with.
    text : str
        In plain words.
    evidence : tuple of str
        The figures.
    here, there : tuple of str
        What helps: on this side, on the peer's.
    """

    cause: Cause
    operation: str
    quickack: bool | None
    share: float
    seconds_per_request: float
    certain: bool
    text: str
    evidence: tuple[str, ...]
    here: tuple[str, ...]
    there: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return {
            "cause": self.cause.value,
            "operation": self.operation,
            "quickack": self.quickack,
            "share": round(self.share, 3),
            "ms_per_request": milliseconds(self.seconds_per_request),
            "certain": self.certain,
            "text": self.text,
            "evidence": list(self.evidence),
            "remedies": {"here": list(self.here), "peer": list(self.there)},
        }


def judge(trials: Sequence[Trial]) -> list[Verdict]:
    """Say what takes the time.

    Parameters
    ----------
    trials : sequence of Trial
        What was measured.

    Returns
    -------
    list of Verdict
        One for each cause that counts, by its share of the time, the largest first. None: the peer is healthy.
    """
    found: dict[Cause, Verdict] = {}
    for trial in trials:
        partner = counterpart(trials, trial)
        for verdict in _verdicts(trial, partner):
            known = found.get(verdict.cause)
            # C-STORE knows more about a network than the round trip, which takes the largest share of a C-ECHO
            if known is None or (len(verdict.evidence), verdict.share) > (
                len(known.evidence),
                known.share,
            ):
                found[verdict.cause] = verdict
    return sorted(found.values(), key=lambda verdict: -verdict.share)


def exit_status(trials: Sequence[Trial], verdicts: Sequence[Verdict]) -> int:
    """Return the exit status: that of the first verdict; without one, 1 if the peer has refused something, else 0."""
    if verdicts:
        return STATUS[verdicts[0].cause]
    return int(any(trial.failures for trial in trials))


def counterpart(trials: Sequence[Trial], trial: Trial) -> Trial | None:
    """Return the trial that differs from another in QUICKACK alone; None where there is no choice."""
    if trial.quickack is None:
        return None
    sought = (trial.operation, trial.pdu_limit, not trial.quickack)
    for other in trials:
        if (other.operation, other.pdu_limit, other.quickack) == sought:
            return other
    return None


def break_down(trial: Trial, partner: Trial | None = None) -> Breakdown:
    """Say where the time of a trial went.

    Parameters
    ----------
    trial : Trial
        Its figures.
    partner : Trial, optional
        The same without QUICKACK, or with it if this one is without.

    Returns
    -------
    Breakdown
        What is known with more certainty comes first, and limits what follows.
    """
    left = trial.seconds
    round_trip = trial.round_trip_seconds or 0.0
    is_far = round_trip >= LOCAL_ROUND_TRIP

    def take(seconds: float) -> float:
        nonlocal left
        part = min(left, max(0.0, seconds))
        left -= part
        return part

    window = take(trial.window_seconds or 0.0)
    send_buffer = take(trial.send_buffer_seconds or 0.0)
    delayed = partner if trial.quickack and partner is not None else trial
    number, longer = _stalled(delayed, partner if delayed is trial else trial)
    stalls = take(longer) if delayed is trial else 0.0
    round_trips = take(trial.count * round_trip + _slow_start(trial))
    # Without TCP_INFO, what is known of it is how long the kernel did not take more
    moving = trial.send_blocked_seconds
    if trial.delivery_rate:
        moving = trial.bytes_sent / trial.delivery_rate
    if is_far and trial.busy_seconds is not None:
        # What leaves in one flight arrives at a rate with the round trip in it, which shall not count twice
        moving = min(moving, trial.busy_seconds - round_trips)
    transfer = take(moving - window - send_buffer)
    limit = max(window, send_buffer)
    if limit >= LEAST_SHARE * trial.seconds and limit >= LEAST_LIMITED * trial.count:
        # That was the rate of the window or the buffer, not of the network
        if window >= send_buffer:
            window += transfer
        else:
            send_buffer += transfer
        transfer = 0.0
    # Waits for the response of a C-ECHO that an idle thread reads do not count as such
    waited = trial.send_blocked_seconds + trial.peer_wait_seconds
    here = take(trial.seconds - waited) if trial.operation == "store" else 0.0
    if is_far and partner is not None:
        stalls += take(trial.count * round_trip * number / delayed.count)
    return Breakdown(
        trial.seconds, window, send_buffer, round_trips, transfer, stalls, here, peer=left
    )


def _slow_start(trial: Trial) -> float:
    """Return the seconds by which the first request took longer because the connection was new."""
    each = trial.bytes_sent / trial.count if trial.count else 0.0
    if each <= INITIAL_WINDOW:
        return 0.0
    flights = math.ceil(math.log2(1 + each / INITIAL_WINDOW))
    longer = trial.latencies[0] - statistics.median(trial.latencies)
    return max(0.0, min(longer, (flights - 1) * (trial.round_trip_seconds or 0.0)))


def _stalled(trial: Trial, partner: Trial | None) -> tuple[int, float]:
    """Return how many requests waited for a delayed ACK, and the seconds that it cost; (0, 0) if it is no pattern."""
    latencies = trial.latencies
    if partner is not None:
        usual = statistics.median(partner.latencies)
        beyond = [value - usual for value in latencies if value - usual >= STALL]
        # What happens with QUICKACK as well has nothing to do with ACKs
        others = sum(value - usual >= STALL for value in partner.latencies) / partner.count
        rate = len(beyond) / trial.count
        if len(beyond) >= LEAST_STALLS and rate >= STALL_RATE and others <= OTHER_STALLS * rate:
            return len(beyond), sum(beyond)
    elif trial.quickack is None and (trial.round_trip_seconds or 0.0) <= LOCAL_ROUND_TRIP:
        for least, most in DELAYED_ACKS:
            beyond = [value for value in latencies if least <= value <= most]
            if len(beyond) >= LEAST_STALLS and len(beyond) / trial.count >= 2 * STALL_RATE:
                return len(beyond), sum(beyond)
    return 0, 0.0


def _verdicts(trial: Trial, partner: Trial | None) -> list[Verdict]:
    parts = break_down(trial, partner)
    if not trial.count or parts.total <= 0:
        return []
    if trial.quickack is False and partner is not None:
        # All else is looked for where stalls do not hide it
        return _judge_stalls(trial, partner, parts)
    return [
        *_judge_stalls(trial, None, parts),
        *_judge_window(trial, parts),
        *_judge_send_buffer(trial, parts),
        *_judge_network(trial, parts),
        *_judge_peer(trial, parts),
    ]


def _name(trial: Trial) -> str:
    return f"C-{trial.operation.upper()}"


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"


def _judge_stalls(trial: Trial, partner: Trial | None, parts: Breakdown) -> list[Verdict]:
    number, seconds = _stalled(trial, partner)
    share = parts.stalls / parts.total
    if not number or share < LEAST_SHARE:
        return []
    name = _name(trial)
    there = (
        "switch Nagle's algorithm off. DCMTK (storescp, dcmqrscp, ...) and what is built on it (Orthanc): set the "
        "environment variable TCP_NODELAY=1 for it. Others: the option TCP_NODELAY of the socket",
        "or write each message with one system call, not header and body each with its own",
    )
    if partner is None:
        return [
            Verdict(
                Cause.STALLS,
                trial.operation,
                trial.quickack,
                share,
                seconds / trial.count,
                False,
                f"The peer's answers to {name} take as long as a delayed ACK does, again and again. Probably it writes "
                "them in pieces with Nagle's algorithm on, and holds the last one until this side has acknowledged "
                "the others. This platform has no TCP_QUICKACK to make sure of it.",
                (
                    f"{number} of {trial.count} {name} took about {_ms(seconds / number)}, the round trip "
                    f"{_ms(trial.round_trip_seconds or 0.0)}",
                ),
                (
                    "on Linux, fastpdu's QUICKACK (on by default) takes these waits away",
                    "Windows: TcpAckFrequency=1 in the registry, for the network interface",
                ),
                there,
            )
        ]
    cure = "fastpdu's QUICKACK takes these waits away, so fastpdu does not suffer from them; other senders do."
    on = f"QUICKACK on: median {_ms(partner.summary.median)}"
    remaining = break_down(partner, trial).stalls / partner.count
    if remaining >= LOCAL_ROUND_TRIP:
        cure = (
            "fastpdu's QUICKACK takes the delay away, so that fastpdu suffers less than other senders do. But the "
            "acknowledgement needs a round trip, for which the peer still waits."
        )
        on += f", of which {_ms(remaining)} for the round trip of an ACK"
    return [
        Verdict(
            Cause.STALLS,
            trial.operation,
            trial.quickack,
            share,
            parts.stalls / trial.count,
            True,
            f"Without QUICKACK the peer stalls: it writes its answer to {name} in pieces with Nagle's algorithm on, "
            f"and holds the last one until this side has acknowledged the others, which the kernel delays. {cure}",
            (
                f"QUICKACK off: {number} of {trial.count} {name} waited {_ms(seconds / number)} longer (median "
                f"{_ms(trial.summary.median)})",
                on,
            ),
            (
                "leave TransportOptions.quickack on (the default on Linux)",
                "other programs on this host that send to the peer: run pynetdicom ones with 'fastpdu run', or set "
                "the route's option: ip route change ... quickack 1",
            ),
            there,
        )
    ]


def _judge_window(trial: Trial, parts: Breakdown) -> list[Verdict]:
    share = parts.window / parts.total
    each = parts.window / trial.count
    if share < LEAST_SHARE or each < LEAST_LIMITED:
        return []
    return [
        Verdict(
            Cause.WINDOW,
            trial.operation,
            trial.quickack,
            share,
            each,
            True,
            f"The peer's receive window is full for {share:.0%} of the time: it does not read as fast as the network "
            "brings, or its receive buffer is too small for the round trip.",
            (
                f"TCP_INFO rwnd_limited: {_ms(trial.window_seconds or 0.0)} of {_ms(parts.total)} in "
                f"{trial.count} {_name(trial)}",
                f"median {_name(trial)} {_ms(trial.summary.median)}",
            ),
            ("nothing: this side sends as fast as the peer lets it",),
            (
                "if its CPU or disk is busy while it receives, that is the limit",
                "if not: do not set SO_RCVBUF (it ends the kernel's autotuning), or set it to at least the rate times "
                "the round trip; DCMTK: leave its environment variable TCP_BUFFER_LENGTH unset; "
                "Linux: net.ipv4.tcp_rmem",
                "receive with larger buffers and PDUs (DCMTK: --max-pdu 131072)",
            ),
        )
    ]


def _judge_send_buffer(trial: Trial, parts: Breakdown) -> list[Verdict]:
    share = parts.send_buffer / parts.total
    each = parts.send_buffer / trial.count
    if share < LEAST_SHARE or each < LEAST_LIMITED:
        return []
    return [
        Verdict(
            Cause.SEND_BUFFER,
            trial.operation,
            trial.quickack,
            share,
            each,
            True,
            f"Our send buffer is too small for the link for {share:.0%} of the time: what is under way fills it, and "
            "the network could carry more.",
            (
                f"TCP_INFO sndbuf_limited: {_ms(trial.send_buffer_seconds or 0.0)} of {_ms(parts.total)} in "
                f"{trial.count} {_name(trial)}",
            ),
            (
                "leave TransportOptions.send_buffer (FASTPDU_SEND_BUFFER) unset, so that the kernel sizes it",
                "Linux: raise the last value of net.ipv4.tcp_wmem to at least the rate times the round trip",
            ),
            ("nothing",),
        )
    ]


def _judge_network(trial: Trial, parts: Breakdown) -> list[Verdict]:
    network = parts.round_trips + parts.transfer
    share = network / parts.total
    each = network / trial.count
    round_trip = trial.round_trip_seconds or 0.0
    resent, segments = trial.retransmits or 0, trial.segments or 0
    lossy = resent >= LEAST_RETRANSMITS and resent >= LOSS * segments
    far = round_trip >= LOCAL_ROUND_TRIP
    thin = parts.transfer / trial.count >= LEAST_TRANSFER
    if share < LEAST_SHARE or not (far or thin or lossy):
        return []
    reasons = []
    evidence = []
    here = []
    if far:
        reasons.append(f"each answer needs a round trip of {_ms(round_trip)}")
        evidence.append(
            f"shortest round trip {_ms(round_trip)}, median {_name(trial)} {_ms(trial.summary.median)}"
        )
        here.append("several associations at a time, so that the waits overlap")
    if parts.transfer and (thin or lossy):
        rate = trial.bytes_sent / parts.transfer / 1e6
        reasons.append(f"the bytes move at {rate:.3g} MB/s")
        evidence.append(
            f"{_ms(parts.transfer / trial.count)} of {_ms(parts.total / trial.count)} per {_name(trial)} for "
            f"{trial.bytes_sent / trial.count / 1e3:.4g} KB"
        )
        here.append("a compressed transfer syntax moves less")
    if lossy:
        reasons.append("and some get lost on the way")
        evidence.append(f"{resent} of about {segments} segments were sent again")
        here.append(
            'TransportOptions.congestion_control="bbr" bears losses better, where the kernel has it'
        )
    return [
        Verdict(
            Cause.NETWORK,
            trial.operation,
            trial.quickack,
            share,
            each,
            True,
            f"The network takes {share:.0%} of the time: {', '.join(reasons)}.",
            tuple(evidence),
            tuple(here),
            (
                "nothing at the peer; the network between: cabling, duplex, VPN, distance, what else uses the link",
            ),
        )
    ]


def _judge_peer(trial: Trial, parts: Breakdown) -> list[Verdict]:
    share = parts.peer / parts.total
    each = parts.peer / trial.count
    # The median too: one long pause (a flush, a pool that starts) is not how the peer works
    usual = statistics.median(trial.latencies) * share
    patience = PATIENCE[trial.operation]
    if share < LEAST_SHARE or min(each, usual) < patience:
        return []
    name = _name(trial)
    there = [
        "look at its CPU, disk and database while it is being sent to; does it compress, forward or index before it "
        "answers? It may answer first",
    ]
    if trial.operation == "echo":
        there = ["look at its CPU: a C-ECHO needs no disk and no database"]
    # A C-ECHO is too small for windows, buffers and rates
    known = trial.operation == "echo" or trial.window_seconds is not None
    text = (
        f"The peer itself takes {share:.0%} of the time: it has everything of a {name}, and answers "
        f"{_ms(each)} later."
    )
    ruled_out = (
        f"not explained by the window ({_ms(parts.window)}), our send buffer ({_ms(parts.send_buffer)}) or the "
        f"network ({_ms(parts.round_trips + parts.transfer)})"
    )
    if not known:
        text = (
            f"The peer, or the path to it, takes {share:.0%} of the time: after this side has handed over all of a "
            f"{name}, the answer comes {_ms(each)} later. This platform does not tell how much of that the bytes were "
            "under way."
        )
        ruled_out = (
            f"not explained by the round trip ({_ms(parts.round_trips)}) or by what blocked this side "
            f"({_ms(parts.transfer)}); the window, our send buffer and the rate of the network are not known"
        )
        there.append(
            "run the doctor on Linux, where the kernel tells more, to know which of them it is"
        )
    return [
        Verdict(
            Cause.PEER,
            trial.operation,
            trial.quickack,
            share,
            each,
            known,
            text,
            (
                f"median {name} {_ms(trial.summary.median)}, shortest round trip "
                f"{_ms(trial.round_trip_seconds or 0.0)}",
                ruled_out,
            ),
            (
                "several associations at a time, if the peer can work on more than one request",
                "operations in flight on one association, if the peer negotiates them (PS3.7 D.3.3.3)",
            ),
            tuple(there),
        )
    ]


def own_part(trials: Sequence[Trial]) -> tuple[Trial, float] | None:
    """Return the trial in which this side itself takes most, and its seconds per request, if that is to be felt."""
    found: tuple[Trial, float] | None = None
    for trial in trials:
        parts = break_down(trial, counterpart(trials, trial))
        each = parts.here / trial.count
        if (
            parts.here >= LEAST_OWN_SHARE * parts.total
            and each >= LEAST_TRANSFER
            and (found is None or each > found[1])
        ):
            found = trial, each
    return found
