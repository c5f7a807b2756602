"""Orthanc as a peer, on ports and storage of its own."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import peers


@dataclass
class Orthanc:
    port: int
    http: int
    ours: int  # the port at which it looks for the modality "ours"

    def rest(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}",
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def content(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def running(home: Path) -> Iterator[Orthanc]:
    """An Orthanc for the duration of a ``with`` block, with everything of its own below `home`."""
    http = peers.free_port()
    ours = peers.free_port()

    def command(port: int) -> list[str]:
        config = home / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "Name": "twin",
                    "StorageDirectory": str(home / "storage"),
                    "IndexDirectory": str(home / "storage"),
                    "Plugins": [],
                    "HttpServerEnabled": True,
                    "HttpPort": http,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomServerEnabled": True,
                    "DicomAet": "ORTHANC",
                    "DicomPort": port,
                    "DicomCheckCalledAet": False,
                    "DicomCheckModalityHost": False,
                    "DicomAlwaysAllowEcho": True,
                    "DicomAlwaysAllowStore": True,
                    "DicomAlwaysAllowFind": True,
                    "DicomAlwaysAllowGet": True,
                    "DicomAlwaysAllowMove": True,
                    "StorageCompression": False,
                    "OverwriteInstances": True,
                    "DicomModalities": {
                        "ours": ["OURS", "127.0.0.1", ours],
                        "scu": ["SCU", "127.0.0.1", ours],
                    },
                }
            )
        )
        return [peers.program("Orthanc"), str(config)]

    def ready(port: int) -> bool:
        try:
            orthanc.rest("/system")
        except (OSError, ValueError):
            return False
        return peers.answers_echo(port)

    orthanc = Orthanc(0, http, ours)
    with peers.background(command, home / "log", ready=ready, cwd=home) as port:
        orthanc.port = port
        yield orthanc
