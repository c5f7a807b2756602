"""The sweeps of `fastpdu.bench.stall`: socket options between our own ends, and segment sizes.

A grid point gets few images, since there are hundreds of points: what it shows are factors.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastpdu
from fastpdu.bench import pair, peers, verify, waits
from fastpdu.bench.heatmap import HeatMap, Panel
from fastpdu.bench.report import Row
from fastpdu.bench.series import Instance, contexts_of

__all__ = [
    "PDUS",
    "SCENARIOS",
    "SEGMENTS",
    "SIZES",
    "Point",
    "between_our_ends",
    "buffer_map",
    "name_of",
    "segment",
    "segment_map",
]

#: SO_SNDBUF and SO_RCVBUF; None: left to the kernel.
SIZES: tuple[int | None, ...] = (4096, 16384, 65536, 262144, 1 << 20, 4 << 20, None)
#: Maximum PDU lengths that both ends announce.
PDUS = (16382, 131072, 1 << 20)
#: TCP_MAXSEG: the internet's least, Ethernet's, jumbo frames', the most that Linux lets one ask for;
#: None: what the interface gives, 65483 on loopback.
SEGMENTS: tuple[int | None, ...] = (536, 1448, 8948, 32767, None)
#: Who sends to whom with small segments, and what people read of it.
SCENARIOS = {
    "storescu:fastpdu-noquickack": "storescu to fastpdu without QUICKACK",
    "storescu:fastpdu": "storescu to fastpdu",
    "fastpdu-noquickack:storescp": "fastpdu without QUICKACK to storescp",
    "fastpdu:storescp": "fastpdu to storescp",
    "nagle:nagle": "fastpdu with Nagle, without QUICKACK, both ends",
    "fastpdu:fastpdu": "fastpdu, both ends",
}
#: Options of an end that behaves like one that knows nothing of all this.
_NAGLE = fastpdu.TransportOptions(nodelay=False, quickack=False)


@dataclass(frozen=True)
class Point:
    """What was measured at one point of a grid.

    Attributes
    ----------
    seconds : float
        For all images.
    images : int
        How many they were.
    waits : int or None
        Exchanges that have waited, as our end saw them.
    """

    seconds: float
    images: int
    waits: int | None

    @property
    def per_image(self) -> float:
        """Seconds per image."""
        return self.seconds / self.images

    def row(self, name: str, label: str, **details: object) -> Row:
        """Return the point for the report."""
        return Row(
            name,
            label,
            "s",
            self.images,
            samples=[self.seconds],
            verified="length and a byte of every page",
            details={"waits": self.waits, "seconds_per_1000": self.per_image * 1000, **details},
        )


def name_of(size: int | None) -> str:
    """Return a size for people; None is the kernel's choice."""
    if size is None:
        return "unset"
    for shift, unit in ((20, "M"), (10, "K")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


# --- between our own ends -------------------------------------------------------------------------


def between_our_ends(
    instances: Sequence[Instance],
    options: Sequence[fastpdu.TransportOptions],
    pdu: int,
    expected: dict[str, verify.Sample],
    budget: float,
) -> list[Point]:
    """Send as many images as fit into the time, fastpdu with the same options on both ends.

    Parameters
    ----------
    instances : sequence of Instance
        The most that is sent.
    options : sequence of TransportOptions
        One association for each. They share a server, which takes half a second to stop, so what
        holds for its socket has to be the same in all of them (the receive buffer).
    pdu : int
        The maximum PDU length of both ends.
    expected : dict
        Samples of the data sets, by SOP instance UID.
    budget : float
        Seconds after which no further image of an association is begun.

    Returns
    -------
    list of Point
        What they took.
    """
    contexts = contexts_of(instances)
    points: list[Point] = []
    receivers: list[waits.Receiver] = []
    with (
        pair.transport("fastpdu", options[0]),
        pair.scp(lambda event: receivers[-1](event), contexts, pdu=pdu) as port,
    ):
        for each in options:
            receivers.append(waits.Receiver(instances, fast=True))
            # An accepted association takes the options that are in force then: these, too.
            with pair.transport("fastpdu", each):
                association = pair.associate(port, contexts, pdu=pdu, fast=True)
                try:
                    # The first image pays for slow start and for buffers that grow.
                    first = waits.send(association, instances[:1])
                    durations = waits.send(association, instances[1:], budget)
                except BaseException:
                    association.abort()
                    raise
                association.release()
            receivers[-1].check(expected, count=len(first) + len(durations))
            counted = durations or first
            points.append(Point(sum(counted), len(counted), waits.count(counted)))
    return points


def buffer_map(
    points: dict[tuple[bool, bool, int, int | None, int | None], Point],
    sizes: Sequence[int | None],
    pdus: Sequence[int],
    bytes_per_image: float,
    title: str,
) -> HeatMap:
    """Draw throughput over both buffer sizes, one panel for each PDU size, NODELAY and QUICKACK.

    Parameters
    ----------
    points : dict
        By (nodelay, quickack, PDU, send buffer, receive buffer).
    sizes, pdus : sequence of int
        The axes and the columns of panels.
    bytes_per_image : float
        To make throughput of it.
    title : str
        Above the chart.
    """
    panels = []
    for nodelay in (True, False):
        for quickack in (True, False):
            for pdu in pdus:
                rates = [
                    [
                        bytes_per_image
                        / 1e6
                        / points[nodelay, quickack, pdu, send, receive].per_image
                        for receive in sizes
                    ]
                    for send in sizes
                ]
                panels.append(
                    Panel(
                        f"NODELAY {'on' if nodelay else 'off'}, "
                        f"QUICKACK {'on' if quickack else 'off'}\nPDU {name_of(pdu)}",
                        rates,
                        [[_rate(rate) for rate in line] for line in rates],
                    )
                )
    return HeatMap(
        name="stall-buffers",
        title=title,
        panels=panels,
        across=len(pdus),
        rows=[name_of(size) for size in sizes],
        columns=[name_of(size) for size in sizes],
        row_title="SO_SNDBUF of both ends",
        column_title="SO_RCVBUF of both ends (unset: the kernel tunes it)",
        scale="MB/s, logarithmic: more is better",
        more_is_better=True,
    )


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 9.5 else f"{rate:.1f}"


# --- segments -------------------------------------------------------------------------------------


def _options(end: str, segment: int | None) -> fastpdu.TransportOptions:
    base = _NAGLE if end == "nagle" else fastpdu.TransportOptions(quickack=end == "fastpdu")
    return dataclasses.replace(base, max_segment=segment)


def segment(
    scenario: str,
    size: int | None,
    instances: Sequence[Instance],
    expected: dict[str, verify.Sample],
    tools: peers.Dcmtk,
    budget: float,
) -> Point:
    """Move images with a lowered maximum segment size, which one end announces for both.

    Parameters
    ----------
    scenario : str
        A key of `SCENARIOS`.
    size : int or None
        TCP_MAXSEG; None: what the interface gives.
    instances : sequence of Instance
        The most that is sent; storescu sends them all.
    expected : dict
        Samples of the data sets, by SOP instance UID.
    tools : Dcmtk
        What is installed.
    budget : float
        Seconds after which no further image is begun.

    Returns
    -------
    Point
        What it took.
    """
    sender, receiver = scenario.split(":")
    contexts = contexts_of(instances)
    if sender == "storescu":
        handler = waits.Receiver(instances, fast=True)
        with (
            pair.transport("fastpdu", _options(receiver, size)),
            pair.scp(handler, contexts) as port,
            peers.linked(instances) as links,
        ):
            peers.storescu(tools, port, links)
        handler.check(expected)
        # From image to image as the receiver sees it: without the start of the program.
        gaps = handler.durations
        return Point(sum(gaps), len(gaps), waits.count(gaps))
    if receiver != "storescp":
        options = [_options(sender, size)]
        return between_our_ends(instances, options, pair.DEFAULT_PDU, expected, budget)[0]
    with tempfile.TemporaryDirectory(prefix="fastpdu-received-") as scratch:
        with (
            peers.storescp(tools, Path(scratch)) as port,
            pair.transport("fastpdu", _options(sender, size)),
        ):
            association = pair.associate(port, contexts, fast=True)
            begun = time.perf_counter()
            durations = waits.send(association, instances, budget)
            seconds = time.perf_counter() - begun
            association.release()
        peers.verify_received(Path(scratch), instances[: len(durations)])
    return Point(seconds, len(durations), waits.count(durations))


def segment_map(points: dict[tuple[str, int | None], Point], title: str) -> HeatMap:
    """Draw seconds per 1000 images over scenarios and segment sizes.

    Parameters
    ----------
    points : dict
        By (scenario, segment size).
    title : str
        Above the chart.
    """
    scenarios = [name for name in SCENARIOS if any(key[0] == name for key in points)]
    sizes = [size for size in SEGMENTS if any(key[1] == size for key in points)]

    def cells(value: Callable[[Point], object]) -> list[list[object]]:
        return [[value(points[name, size]) for size in sizes] for name in scenarios]

    return HeatMap(
        name="stall-segments",
        title=title,
        panels=[
            Panel(
                "",
                cells(lambda point: point.per_image * 1000),  # type: ignore[arg-type]
                cells(_text),  # type: ignore[arg-type]
            )
        ],
        across=1,
        rows=[SCENARIOS[name] for name in scenarios],
        columns=["65483 (loopback)" if size is None else str(size) for size in sizes],
        row_title="",
        column_title="maximum segment size (TCP_MAXSEG), bytes",
        scale="s / 1000 images, logarithmic: less is better",
        cell=(1.25, 0.5),
    )


def _text(point: Point) -> str:
    waited = "" if point.waits is None else f" ({point.waits * 1000 / point.images:.0f})"
    return f"{point.per_image * 1000:.3g}{waited}"
