"""Our own programs as processes of their own: `fastpdu recv` and `fastpdu send`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import kit

FASTPDU = [sys.executable, "-m", "fastpdu"]


class Receiver:
    """A running `fastpdu recv --json`.

    Attributes
    ----------
    events : list of dict
        What it has printed until now.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # a killed process may have cut its last line
            if line.endswith(b"\n"):
                self.events.append(json.loads(line))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["event"] == name]

    @property
    def port(self) -> int:
        kit.until(lambda: self.of("listening") or self.process.poll() is not None, what="listening")
        return int(self.of("listening")[0]["port"])

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send it a signal; its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(10)
        return status


@contextmanager
def receiver(
    directory: Path,
    *arguments: object,
    port: int = 0,
    preexec_fn: Callable[[], object] | None = None,
) -> Iterator[Receiver]:
    """A `fastpdu recv` on a free port."""
    command = [*FASTPDU, "recv", str(port), str(directory), "--json", "--quiet"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=preexec_fn,
    )
    made = Receiver(process)
    try:
        yield made
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        made._reader.join(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def start_send(port: int, *arguments: object) -> subprocess.Popen[str]:
    """Start a `fastpdu send` to a port of this host."""
    return subprocess.Popen(
        [*FASTPDU, "send", "127.0.0.1", str(port), *map(os.fspath, map(_text, arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def send(port: int, *arguments: object, timeout: float = 90) -> tuple[int, dict[str, Any], str]:
    """Run `fastpdu send --json`: exit status, report, stderr."""
    process = start_send(port, *arguments, "--json")
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, json.loads(out) if out else {}, err


def _text(argument: object) -> str:
    return os.fspath(argument) if isinstance(argument, os.PathLike) else str(argument)
