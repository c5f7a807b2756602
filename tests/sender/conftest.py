"""Fixtures of the tests of `Sender`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit
from pynetdicom import evt


class Counting:
    """A storage SCP that counts what it is sent, by SOP Instance UID.

    Attributes
    ----------
    answer : callable
        Called with the event; returns the status.
    """

    def __init__(self, world: kit.World, contexts: Any, **kwargs: Any) -> None:
        self.seen: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.syntaxes: dict[str, str] = {}
        self.datasets: dict[str, bytes] = {}
        self.answer: Callable[[evt.Event], int] = lambda event: 0
        self.lock = threading.Lock()
        self.proposed: list[list[tuple[str, list[str]]]] = []
        self.server = world.serve(
            contexts,
            [(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._requested)],
            **kwargs,
        )

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def total(self) -> int:
        return sum(self.seen.values())

    def _requested(self, event: evt.Event) -> None:
        self.proposed.append(
            [
                (str(cx.abstract_syntax), [str(syntax) for syntax in cx.transfer_syntax])
                for cx in event.assoc.requestor.requested_contexts
            ]
        )

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self.lock:
            self.seen[uid] += 1
            self.syntaxes[uid] = str(event.context.transfer_syntax)
            self.datasets[uid] = event.request.DataSet.getvalue()
        status = self.answer(event)
        if status == 0:
            with self.lock:
                self.stored[uid] += 1
        return status


@pytest.fixture
def scp() -> Iterator[kit.World]:
    """A world with a fast SCP; everything in it is stopped after the test."""
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture
def counting(scp: kit.World) -> Counting:
    """A storage SCP for CT and MR, uncompressed."""
    contexts = [
        (sop_class, [data.EXPLICIT, data.IMPLICIT, data.BIG]) for sop_class in (data.CT, data.MR)
    ]
    return Counting(scp, contexts)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory with CT files."""

    def make(count: int, size: int = 2000, name: str = "in", **kwargs: Any) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        files = data.Files(path)
        for number in range(count):
            files.made(number, size, **kwargs)
        return path

    return make
