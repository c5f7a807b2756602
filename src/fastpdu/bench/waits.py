"""Waits that are too long to be work: the mark of a peer whose delayed ACK somebody waits for.

Linux delays an ACK for 40 ms, Windows for 200 ms; an image of 530 KB takes about a millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydicom import dcmread
from pynetdicom import evt
from pynetdicom.association import Association

from fastpdu.bench import pair, verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance

__all__ = ["LIMIT", "Archive", "Receiver", "count", "send", "stalls"]

#: Seconds. What takes longer was waiting for a timer.
LIMIT = 0.030


def count(durations: Iterable[float]) -> int:
    """Return how many exchanges have waited.

    Parameters
    ----------
    durations : iterable of float
        Seconds of each exchange.

    Returns
    -------
    int
        Those over `LIMIT`. One exchange may hold several waits: it counts once.
    """
    return sum(1 for duration in durations if duration > LIMIT)


def stalls(association: Association) -> int | None:
    """Return how often a sender has waited, by its own telemetry.

    Parameters
    ----------
    association : Association
        The requestor's.

    Returns
    -------
    int or None
        None: this transport does not count (stock pynetdicom).
    """
    telemetry = getattr(association, "transport_stats", None)
    if telemetry is None:
        return None
    stats = telemetry()
    return int(stats.send_stalls) + int(stats.peer_stalls)


def send(
    association: Association, instances: Sequence[Instance], budget: float | None = None
) -> list[float]:
    """Send files one after the other, and look at the clock after each.

    Parameters
    ----------
    association : Association
        An established association.
    instances : sequence of Instance
        The files.
    budget : float, optional
        Begin no further file after this many seconds.

    Returns
    -------
    list of float
        The seconds of each exchange, from the request to the response.

    Raises
    ------
    BenchError
        If a file was not stored.
    """
    durations: list[float] = []
    begun = before = time.perf_counter()
    for instance in instances:
        status = association.send_c_store(instance.path)
        now = time.perf_counter()
        if not status or status.Status != 0x0000:
            told = f"status 0x{status.Status:04X}" if status else "no response"
            raise BenchError(f"{instance.path} was not stored: {told}")
        durations.append(now - before)
        if budget is not None and now - begun > budget:
            break
        before = time.perf_counter()
    return durations


class Receiver:
    """An EVT_C_STORE handler that takes images in any order and looks at the clock.

    Parameters
    ----------
    instances : sequence of Instance
        What is going to be sent.
    fast : bool
        Whether the association has to be on the fast transport.
    digest : bool
        Compare SHA-256 digests: not for timing. Otherwise length and a byte of each page.
    """

    def __init__(self, instances: Sequence[Instance], *, fast: bool, digest: bool = False) -> None:
        self._instances = {item.sop_instance: item for item in instances}
        self._fast = fast
        self._digest = digest
        self._left: float | None = None
        self._received: dict[str, verify.Sample] = {}
        self._failures: list[str] = []
        self.durations: list[float] = []

    def __call__(self, event: Any) -> int:
        """Touch the data set and answer Success."""
        now = time.perf_counter()
        if self._left is None:
            if pair.rides_fastpdu(event.assoc) != self._fast:
                self._failures.append("the association uses the other transport")
        else:
            # From the end of the last image's handler to the beginning of this one's.
            self.durations.append(now - self._left)
        data = verify.received_bytes(event)
        name = str(event.request.AffectedSOPInstanceUID)
        self._received[name] = verify.touch(data)
        if self._digest and (
            name not in self._instances
            or verify.same_data_set(data, self._instances[name]) != "digest"
        ):
            self._failures.append(f"{name} arrived changed")
        self._left = time.perf_counter()
        return 0x0000

    def check(self, expected: dict[str, verify.Sample], count: int | None = None) -> None:
        """Compare what arrived with what was sent.

        Parameters
        ----------
        expected : dict
            The sample of each data set, by SOP instance UID; see `verify.touch`.
        count : int, optional
            How many were sent; by default all.

        Raises
        ------
        BenchError
            If an image is missing or differs, or came over the wrong transport.
        """
        if self._failures:
            raise BenchError(f"{len(self._failures)} errors, the first: {self._failures[0]}")
        wanted = len(self._instances) if count is None else count
        if len(self._received) != wanted:
            raise BenchError(f"{len(self._received)} of {wanted} images arrived")
        for name, sample in self._received.items():
            if expected.get(name) != sample:
                raise BenchError(f"{name} arrived changed ({sample[0]} bytes)")


class Archive:
    """An EVT_C_MOVE handler that sends all it has, and looks at the clock after each image.

    Parameters
    ----------
    instances : sequence of Instance
        What it has.
    destination : int
        The port of this host that it sends to, whatever AE title the request names.
    fast : bool
        Whether both associations have to be on the fast transport. It sends files by their path; stock
        pynetdicom takes data sets only.

    Attributes
    ----------
    durations : list of float
        Seconds of each sub-operation, with the pending response that follows it.
    stalls : int or None
        What the transport of the association to the destination has counted since it was accepted; see
        `stalls`.
    """

    def __init__(self, instances: Sequence[Instance], destination: int, *, fast: bool) -> None:
        self._instances = instances
        self._destination = destination
        self._fast = fast
        self._associations: list[Association] = []
        self.durations: list[float] = []
        self.stalls: int | None = None

    def __call__(self, event: Any) -> Iterator[Any]:
        """Yield the destination, the number of images, and each of them."""
        self._associations.append(event.assoc)
        established = (evt.EVT_ESTABLISHED, lambda made: self._associations.append(made.assoc))
        yield "127.0.0.1", self._destination, {"evt_handlers": [established]}
        yield len(self._instances)
        # The association is open now. How long the destination took to accept it is no wait for an ACK.
        before = stalls(self._associations[-1])
        for instance in self._instances:
            item = instance.path if self._fast else dcmread(instance.path)
            begun = time.perf_counter()
            yield 0xFF00, item
            self.durations.append(time.perf_counter() - begun)
        counted = stalls(self._associations[-1])
        if before is not None and counted is not None:
            self.stalls = counted - before

    def check(self) -> None:
        """Make sure that it was one C-MOVE over the right transport.

        Raises
        ------
        BenchError
            If it was not.
        """
        if len(self._associations) != 2 or len(self.durations) != len(self._instances):
            raise BenchError(f"{len(self.durations)} of {len(self._instances)} images were moved")
        if any(pair.rides_fastpdu(made) != self._fast for made in self._associations):
            raise BenchError("the association uses the other transport")
