"""pytest plugin for pynetdicom.apps.tests: waits for the applications.

Those tests start a server application, sleep 0.5 or 1 second, and connect; or start ``storescu``, sleep
1 second, and expect that everything arrived. On a busy machine a Python process takes longer than that to
start, on stock pynetdicom too. With this plugin such a sleep goes on (for up to 20 seconds more) until the
servers listen and the senders have ended. Nothing else changes.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SERVERS = {"echoscp", "storescp", "qrscp"}
SENDERS = {"storescu"}
PORT = 11112
LIMIT = 20.0

_started: list[tuple[str, subprocess.Popen[bytes]]] = []


def _listening(port: int) -> bool:
    """Whether somebody listens, without disturbing him with a connection. True where that cannot be known."""
    known = False
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        known = True
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return not known


def _ready() -> bool:
    for application, process in _started:
        if process.poll() is None and (application in SENDERS or not _listening(PORT)):
            return False
    return True


class _Stub:
    """A module with some names replaced."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _popen(args: Any, *more: Any, **options: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(args, *more, **options)
    # [python, .../storescp.py, ...] or [python, "-m", "pynetdicom", "storescp", ...]
    names = [Path(arg).stem for arg in args[1:4]]
    application = names[2] if names[:2] == ["-m", "pynetdicom"] else names[0]
    # storescu is only waited for in the tests of another application, which start it and forget it
    if application in SERVERS or (application in SENDERS and _started):
        _started.append((application, process))
    return process


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
    deadline = time.monotonic() + LIMIT
    while not _ready() and time.monotonic() < deadline:
        time.sleep(0.02)


def pytest_collection_finish(session: pytest.Session) -> None:
    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        if module.__name__.startswith("pynetdicom.apps.tests."):
            for name, stub in (
                ("subprocess", _Stub(subprocess, Popen=_popen)),
                ("time", _Stub(time, sleep=_sleep)),
            ):
                if hasattr(module, name):
                    setattr(module, name, stub)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _started.clear()
