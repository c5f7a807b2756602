"""A storage SCP that keeps account of what it is sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from pynetdicom import evt

from helpers import kit


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
