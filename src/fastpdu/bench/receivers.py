"""Receivers of many associations, each a process of its own, that can tell what each association has delivered."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import fastpdu
from fastpdu import engine
from fastpdu.bench import child, pair, verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance

__all__ = ["KINDS", "Receiver", "open_receiver", "title_of"]

Shares = Sequence[Sequence[Instance]]

KINDS = ("memory", "files", "recv")
_LAYOUT = "{CallingAETitle}/{SOPInstanceUID}.dcm"
_HEAD = 4096


def title_of(number: int) -> str:
    """Return the calling AE title of a sender."""
    return f"SENDER{number:04d}"


def digest(data: bytes) -> bytes:
    """Return the SHA-256 of a data set."""
    return hashlib.sha256(data).digest()


class Receiver(Protocol):
    """An SCP in another process.

    Attributes
    ----------
    port : int
        Where it listens.
    pid : int
        The process.
    """

    port: int
    pid: int

    def begin(self, *, exact: bool) -> None:
        """Forget what came; `exact`: the next images are to be compared with SHA-256."""

    def check(self, shares: Shares) -> None:
        """Compare what came since `begin` with what each association has sent.

        Raises
        ------
        BenchError
            If an image is missing or differs, or came without having been sent.
        """


def open_receiver(
    kind: str, name: str, contexts: pair.Contexts, maximum: int
) -> contextlib.AbstractContextManager[Receiver]:
    """Start a receiver for the duration of a ``with`` block.

    Parameters
    ----------
    kind : {"memory", "files", "recv"}
        Whether its handler looks at the data sets and forgets them, or is a `fastpdu.FileStore`; or it is the program
        ``fastpdu recv``.
    name : {"fastpdu", "stock"}
        Its transport.
    contexts : sequence of (SOP class, transfer syntax)
        What it accepts.
    maximum : int
        How many associations may be open at once.
    """
    if kind == "memory":
        return _in_memory(name, contexts, maximum)
    if kind == "recv":
        return _by_program(name, maximum)
    return _into_files(name, contexts, maximum)


# In memory ------------------------------------------------------------------------------------------------------


def receive_in_memory(
    give: Callable[[object], None],
    take: Callable[[], Any],
    name: str,
    contexts: pair.Contexts,
    maximum: int,
) -> None:
    """Be the SCP: runs in a child process.

    Gives its port. Then takes "touch" or "digest" (what to keep of the next images), or "report"
    (gives what it kept of each association, in order), until it is told to "stop".
    """
    lock = threading.Lock()
    kept: dict[str, list[object]] = {}
    keep: Callable[[bytes], object] = verify.touch

    def handler(event: Any) -> int:
        value = keep(verify.received_bytes(event))
        title = str(event.assoc.requestor.ae_title).strip()
        with lock:
            kept.setdefault(title, []).append(value)
        return 0x0000

    with pair.transport(name), pair.scp(handler, contexts, maximum=maximum) as port:
        give(port)
        while (order := take()) != "stop":
            if order == "report":
                give(kept)
            else:
                kept = {}
                keep = verify.touch if order == "touch" else digest
                give(None)


class _InMemory:
    def __init__(self, scp: child.Child) -> None:
        self._scp = scp
        self._keep: Callable[[bytes], object] = verify.touch
        self._known: dict[tuple[bool, str], object] = {}
        self.port: int = scp.receive()
        self.pid = scp.pid

    def begin(self, *, exact: bool) -> None:
        self._keep = digest if exact else verify.touch
        self._scp.ask("digest" if exact else "touch")

    def _wanted(self, instance: Instance) -> object:
        key = (self._keep is digest, instance.path)
        if key not in self._known:
            self._known[key] = self._keep(instance.data_set())
        return self._known[key]

    def check(self, shares: Shares) -> None:
        compare(self._scp.ask("report"), [[self._wanted(i) for i in share] for share in shares])


def compare(got: dict[str, list[object]], wanted: Sequence[Sequence[object]]) -> None:
    """Compare what each association has delivered with what it was given, in order.

    Raises
    ------
    BenchError
        If it is not the same.
    """
    for number, expected in enumerate(wanted):
        arrived = got.get(title_of(number), [])
        if len(arrived) != len(expected):
            raise BenchError(
                f"{len(arrived)} of {len(expected)} images of association {number + 1} arrived"
            )
        if arrived != list(expected):
            raise BenchError(f"an image of association {number + 1} arrived changed")
    if len(got) > len(wanted):
        raise BenchError("images arrived from nowhere")


@contextlib.contextmanager
def _in_memory(name: str, contexts: pair.Contexts, maximum: int) -> Iterator[Receiver]:
    with child.child(receive_in_memory, name, contexts, maximum) as scp:
        yield _InMemory(scp)
        scp.send("stop")


# Into files -----------------------------------------------------------------------------------------------------


def receive_into_files(
    give: Callable[[object], None],
    take: Callable[[], Any],
    name: str,
    contexts: pair.Contexts,
    maximum: int,
    directory: str,
) -> None:
    """Be an SCP that writes files below a directory: runs in a child process, until it is told anything."""
    store = fastpdu.FileStore(directory, layout=_LAYOUT)
    with pair.transport(name), pair.scp(store, contexts, maximum=maximum) as port:
        give(port)
        take()


class _IntoFiles:
    def __init__(self, port: int, pid: int, directory: Path) -> None:
        self._directory = directory
        self._exact = False
        self._known: dict[str, bytes] = {}
        self.port = port
        self.pid = pid

    def begin(self, *, exact: bool) -> None:
        self._exact = exact
        for entry in self._directory.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)

    def _digest(self, instance: Instance) -> bytes:
        if instance.path not in self._known:
            self._known[instance.path] = digest(instance.data_set())
        return self._known[instance.path]

    def check(self, shares: Shares) -> None:
        for number, share in enumerate(shares):
            folder = self._directory / title_of(number)
            names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for instance in share:
                name = f"{instance.sop_instance}.dcm"
                if name not in names:
                    raise BenchError(f"an image of association {number + 1} was not stored")
                self._compare(folder / name, instance, number)
            if len(names) > len({instance.sop_instance for instance in share}):
                raise BenchError(f"association {number + 1} has stored more than it was sent")
        if len([entry for entry in self._directory.iterdir() if entry.is_dir()]) > len(shares):
            raise BenchError("images arrived from nowhere")

    def _compare(self, path: Path, instance: Instance, number: int) -> None:
        """Compare the data set of a file: its length, if asked each byte. Its meta information is the receiver's."""
        with path.open("rb") as file:
            head = engine.read_part10(file.read(_HEAD))
            if head is None or head.sop_instance != instance.sop_instance:
                raise BenchError(f"{path.name} of association {number + 1} is not that instance")
            length = path.stat().st_size - head.offset
            changed = length != instance.size - instance.offset
            if self._exact and not changed:
                file.seek(head.offset)
                changed = digest(file.read()) != self._digest(instance)
        if changed:
            raise BenchError(f"an image of association {number + 1} was stored changed")


@contextlib.contextmanager
def _into_files(name: str, contexts: pair.Contexts, maximum: int) -> Iterator[Receiver]:
    with (
        tempfile.TemporaryDirectory(prefix="fastpdu-received-") as directory,
        child.child(receive_into_files, name, contexts, maximum, directory) as scp,
    ):
        yield _IntoFiles(scp.receive(), scp.pid, Path(directory))
        scp.send("stop")


@contextlib.contextmanager
def _by_program(name: str, maximum: int) -> Iterator[Receiver]:
    if name != "fastpdu":
        raise BenchError("fastpdu recv has no other transport than ours: --rows fastpdu")
    with tempfile.TemporaryDirectory(prefix="fastpdu-received-") as directory:
        command = [sys.executable, "-m", "fastpdu", "recv", "0", directory, "--bind", "127.0.0.1"]
        command += ["--quiet", "--layout", _LAYOUT, "--max-associations", str(maximum)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline() if process.stdout is not None else ""
                found = re.search(r":(\d+);", line)
                if found is None:
                    raise BenchError(f"fastpdu recv does not say where it listens: {line!r}")
                yield _IntoFiles(int(found[1]), process.pid, Path(directory))
                # (SIGINT may be ignored, if this runs in the background of a shell)
                process.terminate()
                if process.wait(30) != 0:
                    raise BenchError(f"fastpdu recv ended with status {process.returncode}")
            finally:
                if process.poll() is None:
                    process.kill()
