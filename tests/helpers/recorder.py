"""Records notification events in comparable form: order, payload and kind of thread."""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association

from helpers import kit

DATA_EVENTS = (evt.EVT_DATA_RECV, evt.EVT_DATA_SENT)
PDU_EVENTS = (evt.EVT_PDU_RECV, evt.EVT_PDU_SENT)
FSM_EVENTS = (evt.EVT_FSM_TRANSITION,)
DIMSE_EVENTS = (evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT)
ACSE_EVENTS = (evt.EVT_ACSE_RECV, evt.EVT_ACSE_SENT)
CONN_EVENTS = (evt.EVT_CONN_OPEN, evt.EVT_CONN_CLOSE)
STATE_EVENTS = (
    evt.EVT_REQUESTED,
    evt.EVT_ACCEPTED,
    evt.EVT_ESTABLISHED,
    evt.EVT_REJECTED,
    evt.EVT_RELEASED,
    evt.EVT_ABORTED,
)
ALL_EVENTS = (
    DATA_EVENTS + PDU_EVENTS + FSM_EVENTS + DIMSE_EVENTS + ACSE_EVENTS + CONN_EVENTS + STATE_EVENTS
)


def payload(event: evt.Event) -> Any:
    """What the event carries."""
    kind = event.event
    if kind in DATA_EVENTS:
        return (type(event.data).__name__ in ("bytes", "bytearray"), bytes(event.data).hex())
    if kind in PDU_EVENTS:
        return (type(event.pdu).__name__, event.pdu.encode().hex())
    if kind in FSM_EVENTS:
        return (event.current_state, event.fsm_event, event.action, event.next_state)
    if kind in DIMSE_EVENTS:
        message = event.message
        return (
            type(message).__name__,
            message.context_id,
            message.command_set.to_json(),
            kit.sha(message.data_set.getvalue()) if message.data_set else None,
        )
    if kind in ACSE_EVENTS:
        primitive = event.primitive
        return (type(primitive).__name__, getattr(primitive, "result", None))
    if kind in CONN_EVENTS:
        return event.address[0]
    return None


ON_THE_DUL = DATA_EVENTS + PDU_EVENTS + FSM_EVENTS + (evt.EVT_DIMSE_RECV, evt.EVT_CONN_CLOSE)


class Recorder:
    """Handlers for one end; ``lanes`` gives the sequence of each thread of stock.

    Between threads the order is a race on stock as well, so only what stock does on one thread
    has an order. The fast road may run these handlers on another thread; ``threads`` says where.
    """

    def __init__(self, *events: Any) -> None:
        self.events = events or ALL_EVENTS
        self.lock = threading.Lock()
        self.calls: list[tuple[str, str, Any]] = []
        self.flags: list[tuple[str, bool, bool]] = []
        self.problems: list[str] = []

    def record(self, event: evt.Event) -> None:
        thread = kit.thread_kind(event.assoc)
        if not isinstance(event.assoc, Association) or event.timestamp is None:
            self.problems.append(f"{event.event}: no association")
        try:
            call = (thread, event.event.name, payload(event))
        except Exception as exc:
            self.problems.append(f"{event.event}: {exc!r}")
            raise
        with self.lock:
            self.calls.append(call)

    @property
    def handlers(self) -> list[Any]:
        return [(event, self.record) for event in self.events]

    def bind(self, target: Any) -> None:
        for event in self.events:
            target.bind(event, self.record)

    def unbind(self, target: Any) -> None:
        for event in self.events:
            target.unbind(event, self.record)

    def lanes(self) -> dict[str, list[tuple[str, Any]]]:
        """The events of each thread that stock would have used, in order."""
        assert not self.problems
        names = {event.name for event in ON_THE_DUL}
        lanes: dict[str, list[tuple[str, Any]]] = {}
        with self.lock:
            for thread, name, what in self.calls:
                if name == "EVT_FSM_TRANSITION" and what[1] == "Evt5":
                    continue  # stock may read the first PDU before it makes this transition
                lanes.setdefault("dul" if name in names else thread, []).append((name, what))
        return lanes

    def names(self, *only: str) -> list[str]:
        with self.lock:
            return [name for _, name, _ in self.calls if not only or name in only]

    def threads(self) -> dict[str, list[str]]:
        """For each event the kinds of thread that it was seen on."""
        with self.lock:
            return {
                name: sorted({kind for kind, other, _ in self.calls if other == name})
                for name in sorted({name for _, name, _ in self.calls})
            }
