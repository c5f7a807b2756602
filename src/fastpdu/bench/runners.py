"""Rows that are measured in turns: each is verified once, then timed."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import fastpdu
from fastpdu.bench import floor, pair, peers, verify
from fastpdu.bench.certificates import Certificates
from fastpdu.bench.errors import BenchError
from fastpdu.bench.progress import Progress
from fastpdu.bench.report import Row
from fastpdu.bench.series import Series

__all__ = ["Dcmtk", "FileRunner", "Floor", "HandlerRunner", "Runner", "Store", "measure", "send"]


class Runner:
    """Measures one row.

    Parameters
    ----------
    name : str
        Of the row.
    series : Series
        What is sent.
    runs : int
        How often at most.
    pdu : int
        The maximum PDU length that both ends announce.
    tls : Certificates, optional
        Send it over TLS.
    """

    label = ""
    note = ""

    def __init__(
        self,
        name: str,
        series: Series,
        runs: int,
        pdu: int,
        *,
        tls: Certificates | None = None,
    ) -> None:
        self.name = name
        self.series = series
        self.runs = runs
        self.pdu = pdu
        self.tls = tls

    def verify(self) -> str:
        """Send everything once, untimed, and compare digests; return what was compared."""
        raise NotImplementedError

    def measure(self) -> float:
        """Return the seconds of one run."""
        raise NotImplementedError

    def _ends(self) -> floor.TlsEnds | None:
        return self.tls.ends() if self.tls else None

    def row(self) -> Row:
        """Return the row, without samples."""
        return Row(self.name, self.label, "s", len(self.series), note=self.note)


class Floor(Runner):
    """The same bytes over a socket, or over TLS, without DICOM."""

    label = "raw-socket floor"
    note = "no DICOM; read, sendall, recv_into, a reply of 100 bytes"

    def _digests(self) -> Sequence[bytes]:
        """Send everything once; return the digests of what arrived."""
        return floor.digests_received(self.series.instances, self._ends())

    def verify(self) -> str:
        received = self._digests()
        for instance, digest in zip(self.series.instances, received, strict=True):
            if hashlib.sha256(Path(instance.path).read_bytes()).digest() != digest:
                raise BenchError(f"{instance.path} arrived changed")
        return verify.summary(len(received), 0)

    def measure(self) -> float:
        return floor.measure(self.series.instances, self._ends())


class HandlerRunner(Runner):
    """A row whose receiver is an EVT_C_STORE handler of this process."""

    _expected: Sequence[verify.Sample] = ()

    def _run(self, handler: pair.Handler) -> float:
        """Move everything to the handler once; return the seconds."""
        raise NotImplementedError

    def verify(self) -> str:
        handler = verify.Verifier(self.series.instances)
        self._run(handler)
        text = handler.finish()
        self._expected = handler.samples
        return text

    def measure(self) -> float:
        handler = verify.Touch()
        elapsed = self._run(handler)
        handler.check(self._expected)
        return elapsed


class FileRunner(Runner):
    """A row that leaves one file for each image in a directory."""

    _expected: Mapping[str, verify.Sample] = MappingProxyType({})

    def _run(self) -> contextlib.AbstractContextManager[tuple[float, Path]]:
        """Move everything once; give the seconds and, for the duration of a ``with`` block, the directory."""
        raise NotImplementedError

    def verify(self) -> str:
        with self._run() as (_, received):
            text = peers.verify_received(received, self.series.instances)
            self._expected = peers.contents(received)
        return text

    def measure(self) -> float:
        with self._run() as (elapsed, received):
            if peers.contents(received) != self._expected:
                raise BenchError(f"{self.label}: not everything arrived unchanged")
        return elapsed


def send(
    transport: str,
    handler: pair.Handler,
    series: Series,
    pdu: int,
    tls: floor.TlsEnds | None = None,
    *,
    window: int = 1,
    lead: floor.Lead | None = None,
) -> float:
    """Send a series over one association to a handler, both ends in this process; return the seconds.

    Parameters
    ----------
    transport : str
        That of both ends.
    handler : callable
        The EVT_C_STORE handler.
    series : Series
        What is sent.
    pdu : int
        The maximum PDU length that both ends announce.
    tls : (server's context, client's context), optional
        Send it over TLS.
    window : int
        The operations in flight; more than one needs fastpdu.
    lead : callable, optional
        Returns the port to connect to, for that of the SCP: the way through a link.
    """
    accepting, requesting = tls or (None, None)
    options = dataclasses.replace(fastpdu.TransportOptions.from_environment(), async_window=window)
    with (
        pair.transport(transport, options),
        pair.scp(handler, series.contexts, pdu=pdu, tls=accepting) as port,
    ):
        association = pair.associate(
            lead(port) if lead else port,
            series.contexts,
            pdu=pdu,
            fast=transport == "fastpdu",
            tls=requesting,
        )
        try:
            if window > 1:
                elapsed = pair.send_many(association, series.instances, window)
            else:
                elapsed = pair.send(association, series.instances)
        except BaseException:
            association.abort()
            raise
        association.release()
        return elapsed


class Store(HandlerRunner):
    """Both ends in this process, over fastpdu or stock pynetdicom; `transport` says which, by default the name.

    With a `window` of more than one so many operations are in flight.
    """

    def __init__(
        self,
        name: str,
        series: Series,
        runs: int,
        pdu: int,
        *,
        tls: Certificates | None = None,
        transport: str | None = None,
        window: int = 1,
    ) -> None:
        super().__init__(name, series, runs, pdu, tls=tls)
        self._transport = transport or name
        self._window = window
        self.label = "fastpdu" if self._transport == "fastpdu" else "pynetdicom, stock"
        if window > 1:
            self.label += f", window {window}"

    def _run(self, handler: pair.Handler) -> float:
        return send(
            self._transport, handler, self.series, self.pdu, self._ends(), window=self._window
        )


class Dcmtk(FileRunner):
    """DCMTK's storescu and storescp."""

    note = "two processes, their start included; the receiver writes files"

    def __init__(
        self,
        name: str,
        series: Series,
        runs: int,
        pdu: int,
        tools: peers.Dcmtk,
        *,
        tls: Certificates | None = None,
    ) -> None:
        super().__init__(name, series, runs, pdu, tls=tls)
        nodelay = name == "dcmtk-nodelay"
        version = tools.version.split()[0].removeprefix("v")
        self.label = f"DCMTK {version}, {'TCP_NODELAY on both' if nodelay else 'stock'}"
        self._tools = tools
        self._environment = peers.NODELAY if nodelay else {}

    @contextlib.contextmanager
    def _run(self) -> Iterator[tuple[float, Path]]:
        with (
            tempfile.TemporaryDirectory(prefix="fastpdu-received-") as scratch,
            peers.linked(self.series.instances) as links,
        ):
            received = Path(scratch)
            options = self.tls.dcmtk_options() if self.tls else ()
            with peers.storescp(
                self._tools,
                received,
                environment=self._environment,
                pdu=self.pdu,
                options=options,
            ) as port:
                elapsed = peers.storescu(
                    self._tools,
                    port,
                    links,
                    environment=self._environment,
                    pdu=self.pdu,
                    options=options,
                )
            yield elapsed, received


def measure(
    runners: Sequence[Runner],
    runs: int,
    bar: Progress,
    *,
    verifying: Callable[[Runner], float],
    running: Callable[[Runner], float],
) -> list[Row]:
    """Verify every row, and measure them in turns.

    Parameters
    ----------
    runners : sequence of Runner
        The rows.
    runs : int
        How often to measure; a runner may want fewer.
    bar : Progress
        Is moved.
    verifying, running : callable
        What the verification and a run of a row are worth in the bar.

    Returns
    -------
    list of Row
        With their samples.
    """
    rows = {runner.name: runner.row() for runner in runners}
    for runner in runners:
        # The pass that compares digests also fills the page cache, for all rows alike.
        bar.phase(f"{runner.label}: comparing digests")
        rows[runner.name].verified = runner.verify()
        bar.advance(verifying(runner))
    for number in range(runs):
        for runner in runners:
            if number >= runner.runs:
                continue
            bar.phase(f"{runner.label}: run {number + 1} of {runner.runs}")
            # The garbage of one row is not collected in the time of the next.
            gc.collect()
            cpu = time.process_time()
            rows[runner.name].samples.append(runner.measure())
            spent = time.process_time() - cpu
            rows[runner.name].details.setdefault("cpu_samples", []).append(spent)
            bar.advance(running(runner))
    return list(rows.values())
