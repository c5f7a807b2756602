"""Other DICOM programs as peers: found or skipped, started on free ports, always stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import kit, raw

REQUIRED = os.environ.get("FASTPDU_REQUIRE_PEERS") == "1"


def program(name: str) -> str:
    """The path of a peer program; without it the test is skipped (or fails, if peers are required)."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        reason = f"{name} is not installed"
        if REQUIRED:
            pytest.fail(f"{reason}, and FASTPDU_REQUIRE_PEERS=1")
        pytest.skip(reason)
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run(
    name: str, *arguments: object, cwd: Path | None = None, timeout: float = 60, ok: bool = True
) -> str:
    """Run a peer program to its end; its output, both streams."""
    done = subprocess.run(
        [program(name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    if ok:
        assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def background(
    command: Callable[[int], list[str]],
    log: Path,
    *,
    ready: Callable[[int], bool] | None = None,
    cwd: Path | None = None,
) -> Iterator[int]:
    """Run a listening program; `command` makes its arguments from a free port, which is yielded.

    Another process may take the port in between: then it is started once more on another one.
    """
    for attempt in range(4):
        port = free_port()
        with log.open("wb") as out:
            process = subprocess.Popen(command(port), stdout=out, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            deadline = time.monotonic() + 30
            up = False
            while not up and process.poll() is None and time.monotonic() < deadline:
                up = (ready or answers_echo)(port)
                if not up:
                    time.sleep(0.02)
            if not up:
                if process.poll() is not None and attempt < 3:
                    continue
                raise AssertionError(f"not ready:\n{log.read_text(errors='replace')}")
            yield port
            return
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def answers_echo(port: int, called: str = "ANY") -> bool:
    """Whether a DICOM SCP answers on this port."""
    try:
        with raw.dial(("127.0.0.1", port)) as peer:
            peer.sock.settimeout(2)
            peer.send(raw.associate_rq(contexts=raw.CONTEXTS[:1]))
            got = peer.read()
            if got is None:
                return False
            if got[0] == raw.ASSOCIATE_AC:
                peer.release()
            return True
    except (OSError, AssertionError):
        return False


def part10_key(path: Path) -> tuple[str, str, str]:
    """What must be the same of an instance, however it was written to a file."""
    from pydicom import dcmread

    ds = dcmread(path)
    return (str(ds.SOPInstanceUID), str(ds.PatientID), kit.sha(ds.PixelData))
