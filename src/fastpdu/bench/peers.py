"""DCMTK's programs and Orthanc, where they are installed.

Ports are chosen by the kernel, a server counts as started when it accepts a connection, and what
was started here is stopped here, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

__all__ = [
    "Dcmtk",
    "Orthanc",
    "Query",
    "contents",
    "dcmqrscp",
    "find_dcmtk",
    "find_orthanc",
    "linked",
    "movescu",
    "orthanc",
    "storescp",
    "storescu",
    "verify_received",
]

#: What storescu proposes and storescp accepts without further options.
TRANSFER_SYNTAXES = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
DEFAULT_PDU = 16384
NODELAY = {"TCP_NODELAY": "1"}
#: The AE title of DCMTK's archive.
ARCHIVE = "ARCHIVE"


@dataclass(frozen=True)
class Dcmtk:
    """The installed tools; those of the archive may be missing (empty)."""

    storescu: str
    storescp: str
    version: str
    dcmqrscp: str = ""
    dcmqridx: str = ""
    movescu: str = ""


def speaks_tls(tools: Dcmtk) -> bool:
    """Return whether DCMTK was built with OpenSSL."""
    try:
        asked = subprocess.run(
            [tools.storescp, "--help"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return "+tls" in asked.stdout


@dataclass(frozen=True)
class Orthanc:
    """The installed server."""

    program: str
    version: str


@dataclass(frozen=True)
class Query:
    """What a C-MOVE asks for: a study, to be sent to an AE title."""

    study: str
    destination: str = "BENCHDEST"


def _candidates(name: str) -> Iterator[str]:
    """Give every program of this name, those on the PATH first."""
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    # A server's program lies where only root's PATH leads.
    for place in [*places, "/usr/sbin", "/usr/local/sbin"]:
        found = shutil.which(name, path=place) if place else None
        if found is not None:
            yield found


def _asked(program: str) -> str:
    """Return the first line that a program says about its version."""
    try:
        asked = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (asked.stdout.splitlines() or [""])[0]


def _of_dcmtk(name: str) -> tuple[str, str] | None:
    """Return path and version of one of DCMTK's programs.

    dcm4che and pynetdicom have programs of the same names, so they are asked who they are.
    """
    for program in _candidates(name):
        first = _asked(program)
        # $dcmtk: storescp v3.6.7 2022-04-22 $
        if "dcmtk" in first:
            return program, first.strip("$ ").removeprefix(f"dcmtk: {name} ").strip()
    return None


def find_dcmtk() -> Dcmtk | None:
    """Return the tools of DCMTK, or None if they are not installed."""
    scu, scp = _of_dcmtk("storescu"), _of_dcmtk("storescp")
    if scu is None or scp is None:
        return None
    archive = {}
    for name in ("dcmqrscp", "dcmqridx", "movescu"):
        found = _of_dcmtk(name)
        archive[name] = found[0] if found else ""
    return Dcmtk(scu[0], scp[0], scp[1], **archive)


def find_orthanc() -> Orthanc | None:
    """Return Orthanc, or None if it is not installed."""
    for program in _candidates("Orthanc"):
        # /usr/sbin/Orthanc 1.10.1
        name, _, version = _asked(program).partition(" ")
        if Path(name).name == "Orthanc":
            return Orthanc(program, version.strip())
    return None


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # The stock row must not inherit what the user set for DCMTK.
    own = ("TCP_NODELAY", "TCP_BUFFER_LENGTH")
    clean = {name: value for name, value in os.environ.items() if name not in own}
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
def _server(
    name: str,
    command: Callable[[int], Sequence[str]],
    environment: Mapping[str, str] | None,
    patience: float,
) -> Iterator[int]:
    """Run a server on a free port, for which `command` makes its command line; give the port."""
    with tempfile.TemporaryDirectory(prefix=f"fastpdu-{name}-") as scratch:
        log = Path(scratch, "log")
        for _ in range(5):
            port = free_port()
            process = _start(command(port), environment or {}, log)
            try:
                deadline = time.monotonic() + patience
                while process.poll() is None and not _listens(port):
                    if time.monotonic() > deadline:
                        raise BenchError(f"{name} did not start: {_tail(log)}")
                    time.sleep(0.02)
                # Somebody else may have taken the port in the meantime: try another one.
                if process.poll() is None:
                    yield port
                    return
            finally:
                stop(process)
        raise BenchError(f"{name} did not start: {_tail(log)}")


@contextlib.contextmanager
def storescp(
    tools: Dcmtk,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    options: Sequence[str] = (),
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
    options : sequence of str
        Further ones, for TLS for instance.
    patience : float
        Seconds that it may take to start.

    Yields
    ------
    int
        The port.
    """

    def command(port: int) -> list[str]:
        return [tools.storescp, *_pdu_option(pdu), *options, "-od", str(directory), str(port)]

    with _server("storescp", command, environment, patience) as port:
        yield port


@contextlib.contextmanager
def orthanc(
    server: Orthanc,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    patience: float = 30.0,
) -> Iterator[int]:
    """Run Orthanc on a free port, without its HTTP server and plugins, otherwise as it comes.

    Parameters
    ----------
    server : Orthanc
        What is installed.
    directory : Path
        Where it puts what it receives.
    environment : mapping, optional
        Variables to set.
    patience : float
        Seconds that it may take to start.

    Yields
    ------
    int
        The port.
    """
    with tempfile.TemporaryDirectory(prefix="fastpdu-index-") as index:

        def command(port: int) -> list[str]:
            configuration = Path(index, "orthanc.json")
            settings = {
                "StorageDirectory": str(directory),
                "IndexDirectory": index,
                "Plugins": [],
                "HttpServerEnabled": False,
                "DicomPort": port,
                "DicomCheckCalledAet": False,
                "DicomAlwaysAllowStore": True,
            }
            configuration.write_text(json.dumps(settings), encoding="utf-8")
            return [server.program, str(configuration)]

        with _server("orthanc", command, environment, patience) as port:
            yield port


@contextlib.contextmanager
def dcmqrscp(
    tools: Dcmtk,
    directory: Path,
    *,
    instances: Sequence[Instance] = (),
    destination: tuple[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    patience: float = 15.0,
) -> Iterator[int]:
    """Run DCMTK's archive on a free port.

    Parameters
    ----------
    tools : Dcmtk
        What is installed.
    directory : Path
        Its storage area.
    instances : sequence of Instance
        Files that it has from the start; they stay where they are.
    destination : (AE title, port), optional
        Whom it may send to on this host.
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
    for first in range(0, len(instances), 200):
        paths = [os.path.abspath(item.path) for item in instances[first : first + 200]]
        indexed = subprocess.run(
            [tools.dcmqridx, str(directory), *paths],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if indexed.returncode != 0:
            raise BenchError(f"dcmqridx failed: {indexed.stderr.strip() or 'no message'}")
    title, where = destination or ("NOBODY", 1)
    with tempfile.TemporaryDirectory(prefix="fastpdu-archive-") as scratch:
        configuration = Path(scratch, "dcmqrscp.cfg")
        length = min(131072, max(4096, pdu + 2 if pdu == DEFAULT_PDU - 2 else pdu or 131072))

        def command(port: int) -> list[str]:
            configuration.write_text(
                f"NetworkTCPPort = {port}\nMaxPDUSize = {length}\nMaxAssociations = 16\n"
                f"HostTable BEGIN\ndest = ({title}, 127.0.0.1, {where})\nHostTable END\n"
                "VendorTable BEGIN\nVendorTable END\n"
                f"AETable BEGIN\n{ARCHIVE} {directory} RW (1000, 4096mb) ANY\nAETable END\n",
                encoding="utf-8",
            )
            return [tools.dcmqrscp, "-c", str(configuration), str(port)]

        with _server("dcmqrscp", command, environment, patience) as port:
            yield port


def storescu(
    tools: Dcmtk,
    port: int,
    directory: Path,
    *,
    called: str = "ANY-SCP",
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    options: Sequence[str] = (),
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
    called : str
        The called AE title.
    environment : mapping, optional
        Variables to set.
    pdu : int
        The maximum PDU length that it announces.
    options : sequence of str
        Further ones, for TLS for instance.
    patience : float
        Seconds that it may take.

    Returns
    -------
    float
        The seconds from its start to its end. Its own start is part of it: a few hundredths.
    """
    command = [
        *(tools.storescu, *_pdu_option(pdu), *options, "-aec", called),
        *("+sd", "127.0.0.1", str(port), str(directory)),
    ]
    return _client("storescu", command, environment, patience)


def movescu(
    tools: Dcmtk,
    port: int,
    receives_on: int,
    directory: Path,
    query: Query,
    *,
    environment: Mapping[str, str] | None = None,
    pdu: int = DEFAULT_PDU,
    patience: float = 600.0,
) -> float:
    """Have an archive send a study to movescu, which is its own storage SCP.

    Parameters
    ----------
    tools : Dcmtk
        What is installed.
    port : int
        Where the archive listens.
    receives_on : int
        The port that the archive sends to.
    directory : Path
        Where it puts what it receives.
    query : Query
        What it asks for.
    environment : mapping, optional
        Variables to set.
    pdu : int
        The maximum PDU length that it announces.
    patience : float
        Seconds that it may take.

    Returns
    -------
    float
        The seconds from its start to its end.
    """
    command = [
        *(tools.movescu, *_pdu_option(pdu), "-S", "-aec", ARCHIVE, "-aem", query.destination),
        *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={query.study}"),
        *("+P", str(receives_on), "-od", str(directory), "127.0.0.1", str(port)),
    ]
    return _client("movescu", command, environment, patience)


def _client(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None, patience: float
) -> float:
    """Run a program to its end; return the seconds it took."""
    with tempfile.TemporaryDirectory(prefix=f"fastpdu-{name}-") as scratch:
        log = Path(scratch, "log")
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
            raise BenchError(f"{name} took longer than {patience:g} s")
        if code != 0:
            raise BenchError(f"{name} failed: {_tail(log)}")
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
    """Compare what a receiver has written with what was sent.

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
