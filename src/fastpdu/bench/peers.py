"""DCMTK's storescu and storescp, where they are installed.

Ports are chosen by the kernel, a server counts as started when it accepts a connection, and what
was started here is stopped here, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from fastpdu.bench import verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance, read_series

__all__ = ["Dcmtk", "contents", "find_dcmtk", "linked", "storescp", "storescu", "verify_received"]

#: What storescu proposes and storescp accepts without further options.
TRANSFER_SYNTAXES = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
DEFAULT_PDU = 16384
NODELAY = {"TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Dcmtk:
    """The installed tools."""

    storescu: str
    storescp: str
    version: str


def find_dcmtk() -> Dcmtk | None:
    """Return the tools of DCMTK, or None if they are not installed.

    dcm4che has programs of the same names, so they are asked who they are.
    """
    found = {name: shutil.which(name) for name in ("storescu", "storescp")}
    scu, scp = found["storescu"], found["storescp"]
    if scu is None or scp is None:
        return None
    try:
        asked = subprocess.run(
            [scp, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    first = (asked.stdout.splitlines() or [""])[0]
    # $dcmtk: storescp v3.6.7 2022-04-22 $
    if "dcmtk" not in first:
        return None
    return Dcmtk(scu, scp, first.strip("$ ").removeprefix("dcmtk: storescp ").strip())


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # The stock row must not inherit what the user set for himself.
    clean = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    return {**clean, **extra}


def _pdu_option(pdu: int) -> list[str]:
    """Return the option for a maximum length; DCMTK has a smaller range than the standard."""
    if pdu in (DEFAULT_PDU, DEFAULT_PDU - 2):
        return []
    return ["--max-pdu", str(min(131072, max(4096, pdu or 131072)))]


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


@contextlib.contextmanager
def storescp(
    tools: Dcmtk,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    patience: float = 15.0,
) -> Iterator[int]:
    """Run storescp on a free port.

    Parameters
    ----------
    tools : Dcmtk
        What is installed.
    directory : Path
        Where it puts what it receives.
    environment : mapping, optional
        Variables to set.
    pdu : int
        The maximum PDU length that it announces.
    patience : float
        Seconds that it may take to start.

    Yields
    ------
    int
        The port.
    """
    with tempfile.TemporaryDirectory(prefix="fastpdu-storescp-") as scratch:
        log = Path(scratch, "log")
        for _ in range(5):
            port = free_port()
            command = [tools.storescp, *_pdu_option(pdu), "-od", str(directory), str(port)]
            process = _start(command, environment or {}, log)
            try:
                deadline = time.monotonic() + patience
                while process.poll() is None and not _listens(port):
                    if time.monotonic() > deadline:
                        raise BenchError(f"storescp did not start: {_tail(log)}")
                    time.sleep(0.02)
                # Somebody else may have taken the port in the meantime: try another one.
                if process.poll() is None:
                    yield port
                    return
            finally:
                stop(process)
        raise BenchError(f"storescp did not start: {_tail(log)}")


def storescu(
    tools: Dcmtk,
    port: int,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    patience: float = 600.0,
) -> float:
    """Send every file of a directory with storescu.

    Parameters
    ----------
    tools : Dcmtk
        What is installed.
    port : int
        Where the SCP listens.
    directory : Path
        What to send.
    environment : mapping, optional
        Variables to set.
    pdu : int
        The maximum PDU length that it announces.
    patience : float
        Seconds that it may take.

    Returns
    -------
    float
        The seconds from its start to its end. Its own start is part of it: a few hundredths.
    """
    with tempfile.TemporaryDirectory(prefix="fastpdu-storescu-") as scratch:
        log = Path(scratch, "log")
        command = [tools.storescu, *_pdu_option(pdu), "+sd", "127.0.0.1", str(port), str(directory)]
        start = time.perf_counter()
        process = _start(command, environment or {}, log)
        # wait(timeout) sleeps up to 50 ms between two looks at the process: too coarse here.
        watchdog = threading.Timer(patience, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            code = process.wait()
            elapsed = time.perf_counter() - start
        finally:
            watchdog.cancel()
            stop(process)
        if elapsed >= patience:
            raise BenchError(f"storescu took longer than {patience:g} s")
        if code != 0:
            raise BenchError(f"storescu failed: {_tail(log)}")
        return elapsed


@contextlib.contextmanager
def linked(instances: Sequence[Instance]) -> Iterator[Path]:
    """Give a directory that holds nothing but links to these files."""
    with tempfile.TemporaryDirectory(prefix="fastpdu-links-") as scratch:
        directory = Path(scratch)
        for number, instance in enumerate(instances):
            target = os.path.abspath(instance.path)
            link = directory / f"{number:08d}.dcm"
            try:
                os.symlink(target, link)
            except OSError:
                # Windows lets only some users make symbolic links.
                os.link(target, link)
        yield directory


def contents(directory: Path) -> dict[str, verify.Sample]:
    """Return the length and a byte of each page of every file, by name."""
    return {
        path.name: verify.touch(path.read_bytes()) for path in directory.iterdir() if path.is_file()
    }


def verify_received(directory: Path, instances: Sequence[Instance]) -> str:
    """Compare what storescp has written with what was sent.

    Parameters
    ----------
    directory : Path
        What was received.
    instances : sequence of Instance
        What was sent.

    Returns
    -------
    str
        How it was verified.

    Raises
    ------
    BenchError
        If an image is missing or differs.
    """
    received = {item.sop_instance: item for item in read_series(directory).instances}
    recoded = 0
    for instance in instances:
        got = received.get(instance.sop_instance)
        if got is None:
            raise BenchError(f"{instance.path} did not arrive")
        outcome = verify.same_data_set(got.data_set(), instance)
        if outcome is None:
            raise BenchError(f"{instance.path}: the data set arrived changed")
        recoded += outcome == "elements"
    return verify.summary(len(instances), recoded)
