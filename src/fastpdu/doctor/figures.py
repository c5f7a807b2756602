"""What the doctor measures: plain figures, made by `measure` and read by `judge`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastpdu.latency import Latencies, milliseconds


@dataclass(frozen=True)
class Trial:
    """One kind of request, sent again and again over one association; the association itself does not count.

    Attributes
    ----------
    operation : str
        ``"echo"`` or ``"store"``.
    quickack : bool or None
        Whether our ACKs left at once (TCP_QUICKACK); None: this platform leaves us no choice.
    pdu_limit : int
        The maximum length (PS3.8 D.1) that we announced and kept to; the peer's may be less.
    peer_limit : int or None
        The maximum length that the peer announced; 0: no limit.
    largest_pdu : int
        The largest PDU that was sent.
    latencies : tuple of float
        Seconds from each request to its response, if that was no failure.
    failures : int
        Responses with a failure status.
    bytes_sent : int
        Bytes.
    peer_wait_seconds : float
        Time of waiting for responses.
    peer_stalls : int
        How many of these waits took 30 ms or more.
    send_blocked_seconds : float
        Time for which sends were blocked.
    stock_messages : int
        Messages that did not take the fast road.
    round_trip_seconds : float or None
        The network's: the shortest that the kernel has seen, or how long the connection took to be made.
    retransmits, segments : int or None
        Segments that were sent again, and about how many there were.
    delivery_rate : int or None
        Bytes per second that reached the peer.
    window_seconds : float or None
        Time for which the peer's receive window was full.
    send_buffer_seconds : float or None
        Time for which our send buffer was too small.
    busy_seconds : float or None
        Time for which something was on its way to the peer, or waited for it: the two above are part of it.
    """

    operation: str
    quickack: bool | None
    pdu_limit: int
    largest_pdu: int
    latencies: tuple[float, ...]
    peer_limit: int | None = None
    failures: int = 0
    bytes_sent: int = 0
    peer_wait_seconds: float = 0.0
    peer_stalls: int = 0
    send_blocked_seconds: float = 0.0
    stock_messages: int = 0
    round_trip_seconds: float | None = None
    retransmits: int | None = None
    segments: int | None = None
    delivery_rate: int | None = None
    window_seconds: float | None = None
    send_buffer_seconds: float | None = None
    busy_seconds: float | None = None

    @property
    def count(self) -> int:
        """How many requests, without failures."""
        return len(self.latencies)

    @property
    def seconds(self) -> float:
        """What they took together."""
        return sum(self.latencies)

    @property
    def summary(self) -> Latencies:
        """The latencies summed up."""
        return Latencies.of(self.latencies)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON: the latencies summed up and each, in milliseconds."""
        found = dataclasses.asdict(self)
        found["latency"] = self.summary.as_dict()
        found["latencies_ms"] = [milliseconds(value) for value in found.pop("latencies")]
        return found
