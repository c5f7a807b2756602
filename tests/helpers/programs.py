"""Our own programs as processes of their own: `fastpdu recv` and `fastpdu send`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import kit

FASTPDU = [sys.executable, "-m", "fastpdu"]


def _command(before: str) -> list[str]:
    """The command `fastpdu`, in a process that first runs the code `before`."""
    code = f"{before}\nfrom fastpdu import cli\nraise SystemExit(cli.main())"
    return [sys.executable, "-c", code] if before else FASTPDU


def heed_interrupts() -> None:
    """Do what a shell does not do for its background jobs, in a child: have SIGINT not ignored (`preexec_fn`)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# (there is no such thing on Windows)
PREEXEC = heed_interrupts if os.name == "posix" else None


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
    before: str = "",
) -> Iterator[Receiver]:
    """A `fastpdu recv` on a free port, in a process that first runs the code `before`."""
    command = [*_command(before), "recv", str(port), str(directory)]
    process = subprocess.Popen(
        [*command, "--json", "--quiet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=PREEXEC,
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


def start_send(port: int, *arguments: object, before: str = "") -> subprocess.Popen[str]:
    """Start a `fastpdu send` to a port of this host, in a process that first runs the code `before`."""
    return subprocess.Popen(
        [*_command(before), "send", "127.0.0.1", str(port), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=PREEXEC,
    )


def send(port: int, *arguments: object, timeout: float = 90) -> tuple[int, dict[str, Any], str]:
    """Run `fastpdu send --json`: exit status, report, stderr."""
    return finish(start_send(port, *arguments, "--json"), timeout)


def finish(process: subprocess.Popen[str], timeout: float = 90) -> tuple[int, dict[str, Any], str]:
    """Wait for a `fastpdu send --json`: exit status, report, stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, json.loads(out) if out else {}, err
