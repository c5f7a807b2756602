"""What an association has moved and where its time went: `TransportStats`, the kernel's `TcpInfo`, and the log line.

docs/telemetry.md explains each figure and how to read them together.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpdu.engine import Connection

LOGGER = logging.getLogger("fastpdu.stats")

# Linux's struct tcp_info (tcp(7), include/uapi/linux/tcp.h): field, offset, format of the value. It only ever grows
# at its end; an older kernel returns less of it.
_TCP_INFO = {
    "state": (0, "=B"),
    "snd_mss": (16, "=I"),
    "rcv_mss": (20, "=I"),
    "unacked": (24, "=I"),
    "rtt_us": (68, "=I"),
    "rtt_var_us": (72, "=I"),
    "cwnd": (80, "=I"),
    "retransmits": (100, "=I"),
    "notsent_bytes": (144, "=I"),
    "min_rtt_us": (148, "=I"),
    "delivery_rate": (160, "=Q"),
    "busy_us": (168, "=Q"),
    "rwnd_limited_us": (176, "=Q"),
    "sndbuf_limited_us": (184, "=Q"),
}
_NO_MIN_RTT = 0xFFFFFFFF
# Needs no quotes in the log line
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")


@dataclass(frozen=True)
class TcpInfo:
    """What Linux knows about a connection: TCP_INFO, tcp(7). None: the kernel is too old to know it.

    Attributes
    ----------
    state : int or None
        The state of the connection (1: established).
    rtt_us, rtt_var_us, min_rtt_us : int or None
        Microseconds of a round trip: smoothed, its variation, and the shortest seen. A peer that delays its ACKs
        lengthens the first two.
    retransmits : int or None
        Segments that were sent again, since the connection was made.
    delivery_rate : int or None
        Bytes per second that reached the peer when it was last measured.
    busy_us : int or None
        Microseconds with something to send, or sent and not acknowledged.
    rwnd_limited_us : int or None
        Those of them in which the peer's receive window was full: the peer does not read fast enough.
    sndbuf_limited_us : int or None
        Those of them in which our send buffer was too small to fill the link.
    cwnd : int or None
        The congestion window, in segments.
    snd_mss, rcv_mss : int or None
        Bytes of the largest segments, sent and received.
    unacked : int or None
        Segments that were sent and not acknowledged.
    notsent_bytes : int or None
        Bytes that the kernel has taken and not sent yet.
    """

    state: int | None = None
    rtt_us: int | None = None
    rtt_var_us: int | None = None
    min_rtt_us: int | None = None
    retransmits: int | None = None
    delivery_rate: int | None = None
    busy_us: int | None = None
    rwnd_limited_us: int | None = None
    sndbuf_limited_us: int | None = None
    cwnd: int | None = None
    snd_mss: int | None = None
    rcv_mss: int | None = None
    unacked: int | None = None
    notsent_bytes: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> TcpInfo:
        """Read a ``struct tcp_info``.

        Parameters
        ----------
        data : bytes
            What the kernel returned: all of the structure, or the beginning that it knows.

        Returns
        -------
        TcpInfo
            Its figures.
        """
        found = {
            name: struct.unpack_from(form, data, offset)[0]
            for name, (offset, form) in _TCP_INFO.items()
            if offset + struct.calcsize(form) <= len(data)
        }
        if found.get("min_rtt_us") == _NO_MIN_RTT:
            del found["min_rtt_us"]
        return cls(**found)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        def scaled(value: int | None, factor: float, unit: str) -> str:
            return "unknown" if value is None else f"{value * factor:.3g} {unit}"

        return (
            f"round trip {scaled(self.rtt_us, 1e-3, 'ms')} (shortest {scaled(self.min_rtt_us, 1e-3, 'ms')}), "
            f"{_known(self.retransmits)} retransmits, delivery {scaled(self.delivery_rate, 1e-6, 'MB/s')}, "
            f"window {_known(self.cwnd)} segments of {_known(self.snd_mss)} bytes; "
            f"busy {scaled(self.busy_us, 1e-6, 's')}, of it limited by the peer's window "
            f"{scaled(self.rwnd_limited_us, 1e-6, 's')}, by our send buffer "
            f"{scaled(self.sndbuf_limited_us, 1e-6, 's')}"
        )


@dataclass(frozen=True)
class TransportStats:
    """What an association has moved, and where its time went. All figures are of this association alone.

    Attributes
    ----------
    bytes_sent, bytes_received : int
        Bytes, PDU headers included; before encryption and after decryption if TLS is used.
    pdus_sent, pdus_received : int
        PDUs of all types.
    messages_sent, messages_received : int
        DIMSE messages.
    stock_messages_sent, stock_messages_received : int
        Those of the messages that took pynetdicom's own road, PDU by PDU (docs/switching-on.md).
    send_calls, receive_calls : int
        Attempts to write to and to read from the socket: system calls, on a plain socket.
    largest_pdu_sent, largest_pdu_received : int
        PDU length (PS3.8 9.3.1: bytes behind the 6-byte header) of the largest PDU.
    maximum_length_local, maximum_length_peer : int or None
        The maximum lengths (PS3.8 D.1) that each side has announced, for what it receives; 0: no limit. None: it is
        not known (yet).
    duration_seconds : float
        From the first use of the connection to its end, or until now.
    send_blocked_seconds : float
        Time for which sends were blocked: the send buffer was full.
    send_stalls : int
        How many of these waits took 30 ms or more.
    longest_send_wait_seconds : float
        The longest of them.
    peer_wait_seconds : float
        Time of waiting for the peer's answer, or for the rest of a message that it has begun. Idle time, in which
        nothing is due, does not count.
    peer_stalls : int
        How many of these waits took 30 ms or more: on a fast network the mark of a delayed ACK or Nagle's algorithm.
    longest_peer_wait_seconds : float
        The longest of them.
    handler_seconds : float
        Time of serving the peer's requests: the handlers, what pynetdicom does around them, and their responses.
    tcp : TcpInfo or None
        The kernel's figures (Linux), those of the end once the connection is closed; None where there are none.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    pdus_sent: int = 0
    pdus_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    stock_messages_sent: int = 0
    stock_messages_received: int = 0
    send_calls: int = 0
    receive_calls: int = 0
    largest_pdu_sent: int = 0
    largest_pdu_received: int = 0
    maximum_length_local: int | None = None
    maximum_length_peer: int | None = None
    duration_seconds: float = 0.0
    send_blocked_seconds: float = 0.0
    send_stalls: int = 0
    longest_send_wait_seconds: float = 0.0
    peer_wait_seconds: float = 0.0
    peer_stalls: int = 0
    longest_peer_wait_seconds: float = 0.0
    handler_seconds: float = 0.0
    tcp: TcpInfo | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON; ``tcp`` is a dict of its own, or None."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"sent      {self.bytes_sent:,} bytes, {self.pdus_sent:,} PDUs (largest {self.largest_pdu_sent:,}), "
            f"{self.messages_sent:,} messages, {self.send_calls:,} system calls",
            f"received  {self.bytes_received:,} bytes, {self.pdus_received:,} PDUs "
            f"(largest {self.largest_pdu_received:,}), {self.messages_received:,} messages, "
            f"{self.receive_calls:,} system calls",
            f"time      {self.duration_seconds:.3f} s: blocked in send {self.send_blocked_seconds:.3f} s "
            f"(longest {self.longest_send_wait_seconds * 1e3:.1f} ms, stalls {self.send_stalls}), "
            f"waiting for the peer {self.peer_wait_seconds:.3f} s "
            f"(longest {self.longest_peer_wait_seconds * 1e3:.1f} ms, stalls {self.peer_stalls}), "
            f"in handlers {self.handler_seconds:.3f} s",
        ]
        if self.tcp is not None:
            lines.append(f"tcp       {self.tcp}")
        return "\n".join(lines)


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def from_connection(connection: Connection | None, **others: Any) -> TransportStats:
    """Return the figures of a connection, open or closed.

    Parameters
    ----------
    connection : fastpdu.engine.Connection or None
        The connection; None: there never was one.
    **others
        What the engine does not know. The messages of the stock road are added to its own.

    Returns
    -------
    TransportStats
        The figures.
    """
    if connection is None:
        return TransportStats(**others)
    info = connection.tcp_info()
    return TransportStats(
        bytes_sent=connection.bytes_sent,
        bytes_received=connection.bytes_received,
        pdus_sent=connection.pdus_sent,
        pdus_received=connection.pdus_received,
        messages_sent=connection.messages_sent + others.get("stock_messages_sent", 0),
        messages_received=connection.messages_received + others.get("stock_messages_received", 0),
        send_calls=connection.send_calls,
        receive_calls=connection.receive_calls,
        largest_pdu_sent=connection.largest_pdu_sent,
        largest_pdu_received=connection.largest_pdu_received,
        send_blocked_seconds=connection.send_blocked_ns / 1e9,
        send_stalls=connection.send_stalls,
        longest_send_wait_seconds=connection.longest_send_wait_ns / 1e9,
        peer_wait_seconds=connection.peer_wait_ns / 1e9,
        peer_stalls=connection.peer_stalls,
        longest_peer_wait_seconds=connection.longest_peer_wait_ns / 1e9,
        tcp=None if info is None else TcpInfo.from_bytes(info),
        **others,
    )


class Stopwatch:
    """Adds up the time of what runs within it, on any number of threads; what is still running counts, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._balance = 0

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1
            self._balance -= time.monotonic_ns()

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._running -= 1
            self._balance += time.monotonic_ns()

    @property
    def seconds(self) -> float:
        """The time so far."""
        with self._lock:
            return (self._balance + self._running * time.monotonic_ns()) / 1e9


def log_end(stats: TransportStats, **about: Any) -> None:
    """Write the line about an association that has ended: ``key=value ...``, at level INFO.

    Parameters
    ----------
    stats : TransportStats
        Its figures. Those of the kernel get the prefix ``tcp_``; what is not known is left out.
    **about
        What it was.
    """
    figures = stats.as_dict()
    tcp = figures.pop("tcp") or {}
    fields = {**about, **figures, **{f"tcp_{name}": value for name, value in tcp.items()}}
    LOGGER.info(
        "association %s",
        " ".join(f"{name}={_plain(value)}" for name, value in fields.items() if value is not None),
    )


def _plain(value: Any) -> str:
    """Return a value without spaces or line breaks, or in quotes."""
    if isinstance(value, float):
        return f"{value:.6f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
