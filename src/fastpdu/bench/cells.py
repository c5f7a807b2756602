"""The cells of the matrix in `fastpdu.bench.stall`: one sender, one receiver, one way to start it.

Each cell moves the images once, and compares all of them with what was sent when the clock has
stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelMove,
)

import fastpdu
from fastpdu.bench import pair, peers, verify, waits
from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance, contexts_of

__all__ = ["ENDS", "PARTS", "Cell", "End", "Outcome", "Tools", "find_tools"]

_Pairs = tuple[tuple[str, str], ...]


def _pairs(senders: Sequence[str], receivers: Sequence[str]) -> _Pairs:
    return tuple(itertools.product(senders, receivers))


#: The cells of each part: sender and receiver. In the part "move" the sender is the archive, the receiver the
#: destination, which is the C-MOVE SCU as well.
PARTS: dict[str, _Pairs] = {
    "send": (
        *_pairs(
            ("stock", "fastpdu-noquickack", "fastpdu", "storescu"),
            ("storescp", "storescp-nodelay", "orthanc", "orthanc-nodelay", "dcmqrscp"),
        ),
        # Nobody waits for an ACK, and nothing of it is ours: what the receiver itself needs
        *_pairs(("storescu-nodelay",), ("storescp-nodelay", "orthanc-nodelay")),
    ),
    "receive": _pairs(
        ("storescu", "storescu-nodelay"),
        ("stock", "fastpdu-noquickack", "fastpdu"),
    ),
    # (both ends in this process are what `fastpdu bench retrieve` is about)
    "move": (
        *_pairs(
            ("dcmqrscp", "dcmqrscp-nodelay"),
            ("movescu", "movescu-nodelay", "stock", "fastpdu-noquickack", "fastpdu"),
        ),
        *_pairs(("stock", "fastpdu-noquickack", "fastpdu"), ("movescu", "movescu-nodelay")),
    ),
}

_MOVE = ((str(StudyRootQueryRetrieveInformationModelMove), str(ImplicitVRLittleEndian)),)


@dataclass(frozen=True)
class End:
    """One end of an association.

    Attributes
    ----------
    label : str
        For people.
    ours : bool
        It is pynetdicom, in this process; otherwise a program of its own.
    quickack : bool or None
        fastpdu's option; None: it is not fastpdu.
    nodelay : bool
        A program that has TCP_NODELAY=1 in its environment.
    """

    label: str
    ours: bool = False
    quickack: bool | None = None
    nodelay: bool = False

    @property
    def fast(self) -> bool:
        """Whether it is fastpdu."""
        return self.quickack is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that its process is started with."""
        return peers.NODELAY if self.nodelay else {}

    @contextlib.contextmanager
    def transport(self) -> Iterator[None]:
        """Make AEs of this kind in the `with` block."""
        if self.quickack is None:
            with pair.transport("stock"):
                yield
            return
        options = fastpdu.TransportOptions.from_environment()
        with pair.transport("fastpdu", dataclasses.replace(options, quickack=self.quickack)):
            yield


ENDS = {
    "stock": End("pynetdicom, stock", ours=True),
    "fastpdu-noquickack": End("fastpdu without QUICKACK", ours=True, quickack=False),
    "fastpdu": End("fastpdu", ours=True, quickack=True),
    "storescu": End("storescu"),
    "storescu-nodelay": End("storescu, TCP_NODELAY=1", nodelay=True),
    "storescp": End("storescp"),
    "storescp-nodelay": End("storescp, TCP_NODELAY=1", nodelay=True),
    "orthanc": End("Orthanc"),
    "orthanc-nodelay": End("Orthanc, TCP_NODELAY=1", nodelay=True),
    "dcmqrscp": End("dcmqrscp"),
    "dcmqrscp-nodelay": End("dcmqrscp, TCP_NODELAY=1", nodelay=True),
    "movescu": End("movescu"),
    "movescu-nodelay": End("movescu, TCP_NODELAY=1", nodelay=True),
}


@dataclass(frozen=True)
class Tools:
    """The programs of others that are installed."""

    dcmtk: peers.Dcmtk | None
    orthanc: peers.Orthanc | None

    def missing(self, end: str) -> str | None:
        """Return what has to be installed for one end, if it is not."""
        program = end.removesuffix("-nodelay")
        if ENDS[end].ours:
            return None
        if program == "orthanc":
            return None if self.orthanc else "Orthanc"
        if self.dcmtk is None:
            return "DCMTK"
        return None if getattr(self.dcmtk, program) else f"DCMTK's {program}"


def find_tools() -> Tools:
    """Look for the programs of others."""
    return Tools(peers.find_dcmtk(), peers.find_orthanc())


@dataclass(frozen=True)
class Outcome:
    """One run of a cell.

    Attributes
    ----------
    seconds : float
        For all images.
    durations : list of float or None
        Seconds of each exchange as the end in this process saw it; None: neither end is.
    stalls : int or None
        What the transport of our sender has counted; see `waits.stalls`.
    """

    seconds: float
    durations: list[float] | None = None
    stalls: int | None = None

    @property
    def waits(self) -> int | None:
        """The waits, by telemetry where there is any, else the exchanges that have waited."""
        if self.stalls is not None:
            return self.stalls
        return None if self.durations is None else waits.count(self.durations)


@dataclass
class Cell:
    """One cell.

    Attributes
    ----------
    part : str
        A key of `PARTS`.
    sender, receiver : str
        Keys of `ENDS`. In the part "move" the sender is the archive.
    tools : Tools
        What is installed.
    samples : dict
        A sample of each data set, by SOP instance UID, kept from cell to cell.
    """

    part: str
    sender: str
    receiver: str
    tools: Tools
    samples: dict[str, verify.Sample] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """For programs and for `--rows`."""
        return f"{self.sender}:{self.receiver}"

    @property
    def label(self) -> str:
        """For people."""
        arrow = "C-MOVE to" if self.part == "move" else "to"
        return f"{ENDS[self.sender].label} {arrow} {ENDS[self.receiver].label}"

    def run(self, instances: Sequence[Instance], *, digest: bool) -> Outcome:
        """Move the images once.

        Parameters
        ----------
        instances : sequence of Instance
            The images.
        digest : bool
            A receiver in this process compares digests, which takes time: not for timing. Files
            that another receiver has written are always compared by digest, afterwards.

        Returns
        -------
        Outcome
            What it took.

        Raises
        ------
        BenchError
            If not every image arrived unchanged.
        """
        if self.part == "send":
            return self._send(instances)
        if self.receiver.startswith("movescu"):
            return self._move_to_movescu(instances)
        return self._receive(instances, digest)

    # ---------------------------------------------------------------- into another's program

    @contextlib.contextmanager
    def _program(self, directory: Path) -> Iterator[int]:
        """Run the receiver; give its port."""
        environment = ENDS[self.receiver].environment
        kind = self.receiver.removesuffix("-nodelay")
        if kind == "orthanc":
            assert self.tools.orthanc is not None
            made = peers.orthanc(self.tools.orthanc, directory, environment=environment)
        elif kind == "dcmqrscp":
            made = peers.dcmqrscp(self._dcmtk, directory, environment=environment)
        else:
            made = peers.storescp(self._dcmtk, directory, environment=environment)
        with made as port:
            yield port

    @property
    def _dcmtk(self) -> peers.Dcmtk:
        assert self.tools.dcmtk is not None
        return self.tools.dcmtk

    def _send(self, instances: Sequence[Instance]) -> Outcome:
        end = ENDS[self.sender]
        called = peers.ARCHIVE if self.receiver == "dcmqrscp" else "ANY-SCP"
        with tempfile.TemporaryDirectory(prefix="fastpdu-received-") as scratch:
            directory = Path(scratch)
            with self._program(directory) as port:
                if end.ours:
                    outcome = self._send_ours(end, port, called, instances)
                else:
                    with peers.linked(instances) as links:
                        outcome = Outcome(
                            peers.storescu(
                                self._dcmtk,
                                port,
                                links,
                                called=called,
                                environment=end.environment,
                            )
                        )
            peers.verify_received(directory, instances)
        return outcome

    @staticmethod
    def _send_ours(end: End, port: int, called: str, instances: Sequence[Instance]) -> Outcome:
        contexts = contexts_of(instances)
        with end.transport():
            association = pair.associate(port, contexts, called=called, fast=end.fast)
            try:
                begun = time.perf_counter()
                durations = waits.send(association, instances)
                seconds = time.perf_counter() - begun
                stalls = waits.stalls(association)
            except BaseException:
                association.abort()
                raise
            association.release()
        return Outcome(seconds, durations, stalls)

    def _move_to_movescu(self, instances: Sequence[Instance]) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="fastpdu-received-") as scratch:
            directory = Path(scratch)
            query = peers.Query(_study(instances))
            ours = peers.free_port()
            end = ENDS[self.sender]
            handler = waits.Archive(instances, ours, fast=end.fast)
            archive = (
                self._archive_ours(end, handler, instances)
                if end.ours
                else self._archive(instances, (query.destination, ours))
            )
            with archive as port:
                seconds = peers.movescu(
                    self._dcmtk,
                    port,
                    ours,
                    directory,
                    query,
                    environment=ENDS[self.receiver].environment,
                )
            peers.verify_received(directory, instances)
        if not end.ours:
            return Outcome(seconds)
        handler.check()
        return Outcome(seconds, handler.durations, handler.stalls)

    @staticmethod
    @contextlib.contextmanager
    def _archive_ours(
        end: End, handler: waits.Archive, instances: Sequence[Instance]
    ) -> Iterator[int]:
        contexts = contexts_of(instances)
        with (
            end.transport(),
            pair.scp(
                None, _MOVE, handlers=[(evt.EVT_C_MOVE, handler)], destination=contexts
            ) as port,
        ):
            yield port

    # ---------------------------------------------------------------- into this process

    @contextlib.contextmanager
    def _archive(
        self, instances: Sequence[Instance], destination: tuple[str, int]
    ) -> Iterator[int]:
        with (
            tempfile.TemporaryDirectory(prefix="fastpdu-storage-") as storage,
            peers.dcmqrscp(
                self._dcmtk,
                Path(storage),
                instances=instances,
                destination=destination,
                environment=ENDS[self.sender].environment,
            ) as port,
        ):
            yield port

    def _receive(self, instances: Sequence[Instance], digest: bool) -> Outcome:
        for item in instances:
            if item.sop_instance not in self.samples:
                self.samples[item.sop_instance] = verify.touch(item.data_set())
        end = ENDS[self.receiver]
        handler = waits.Receiver(instances, fast=end.fast, digest=digest)
        contexts = contexts_of(instances)
        with end.transport(), pair.scp(handler, contexts) as ours:
            if self.part == "receive":
                with peers.linked(instances) as links:
                    seconds = peers.storescu(
                        self._dcmtk, ours, links, environment=ENDS[self.sender].environment
                    )
            else:
                seconds = self._move(end, ours, instances)
        handler.check(self.samples)
        return Outcome(seconds, handler.durations)

    def _move(self, end: End, ours: int, instances: Sequence[Instance]) -> float:
        query = peers.Query(_study(instances))
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.StudyInstanceUID = query.study
        with self._archive(instances, (query.destination, ours)) as port:
            association = pair.associate(
                port, _MOVE, title=query.destination, called=peers.ARCHIVE, fast=end.fast
            )
            try:
                begun = time.perf_counter()
                status = None
                for status, _ in association.send_c_move(
                    identifier, query.destination, _MOVE[0][0]
                ):
                    if not status:
                        break
                seconds = time.perf_counter() - begun
                if not status or status.Status != 0x0000:
                    told = f"status 0x{status.Status:04X}" if status else "no response"
                    raise BenchError(f"the archive did not send the study: {told}")
            except BaseException:
                association.abort()
                raise
            association.release()
        return seconds


def _study(instances: Sequence[Instance]) -> str:
    """Return the Study Instance UID of a series."""
    from pydicom import dcmread

    found = dcmread(instances[0].path, specific_tags=["StudyInstanceUID"])
    return str(found.StudyInstanceUID)
