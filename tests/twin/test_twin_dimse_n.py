"""N-EVENT-REPORT, N-GET, N-SET, N-ACTION, N-CREATE and N-DELETE over all four pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers import data, kit
from pydicom.dataset import Dataset
from pynetdicom import build_role, evt

CLASSES = [data.PRINTER, data.FILM_SESSION, data.MPPS, data.STORAGE_COMMITMENT]
CONTEXTS = [(uid, data.EXPLICIT) for uid in CLASSES]
INSTANCE = "1.2.840.10008.5.1.1.17"

CALLS: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "event": (
        evt.EVT_N_EVENT_REPORT,
        lambda assoc, ds: assoc.send_n_event_report(ds, 2, data.PRINTER, INSTANCE, msg_id=21),
    ),
    "get": (
        evt.EVT_N_GET,
        lambda assoc, ds: assoc.send_n_get(
            [0x00100010, (0x0010, 0x0020)], data.PRINTER, INSTANCE, msg_id=22
        ),
    ),
    "get-all": (
        evt.EVT_N_GET,
        lambda assoc, ds: assoc.send_n_get([], data.PRINTER, INSTANCE),
    ),
    "set": (
        evt.EVT_N_SET,
        lambda assoc, ds: assoc.send_n_set(ds, data.FILM_SESSION, INSTANCE, msg_id=23),
    ),
    "action": (
        evt.EVT_N_ACTION,
        lambda assoc, ds: assoc.send_n_action(ds, 1, data.STORAGE_COMMITMENT, INSTANCE, msg_id=24),
    ),
    "create": (
        evt.EVT_N_CREATE,
        lambda assoc, ds: assoc.send_n_create(ds, data.MPPS, INSTANCE, msg_id=25),
    ),
    "create-no-uid": (
        evt.EVT_N_CREATE,
        lambda assoc, ds: assoc.send_n_create(ds, data.MPPS, None, msg_id=26),
    ),
    "delete": (
        evt.EVT_N_DELETE,
        lambda assoc, ds: assoc.send_n_delete(data.FILM_SESSION, INSTANCE, msg_id=27),
    ),
}

PRIMITIVES = (
    "MessageID",
    "AffectedSOPClassUID",
    "AffectedSOPInstanceUID",
    "RequestedSOPClassUID",
    "RequestedSOPInstanceUID",
    "EventTypeID",
    "ActionTypeID",
    "AttributeIdentifierList",
)
DATASETS = ("event_information", "modification_list", "action_information", "attribute_list")
IDS = ("message_id", "event_type", "action_type", "attribute_identifiers")


def answer(name: str) -> Any:
    reply = data.query(PatientComments="x" * 40000, AffectedSOPInstanceUID=INSTANCE)
    full = data.query(ErrorComment="comment", ErrorID=7)
    full.Status = 0x0107
    missing = data.query(ErrorComment="no status")
    return {
        "success": (0x0000, reply),
        "warning": (0x0116, data.query(PatientID="1")),
        "dataset": (full, reply),
        "failure": (0x0110, None),
        "unknown": (0x9999, None),
        "nothing": (0x0000, None),
        "no-status": (missing, None),
        "bad": ("text", None),
    }[name]


ANSWERS = ["success", "warning", "dataset", "failure", "unknown", "nothing", "no-status", "bad"]


def describe(event: evt.Event) -> dict[str, Any]:
    """All that the event and its request say, in comparable form."""
    seen: dict[str, Any] = {name: str(getattr(event.request, name, "-")) for name in PRIMITIVES}
    for name in DATASETS:
        try:
            seen[name] = getattr(event, name).to_json()
        except AttributeError as exc:
            seen[name] = str(exc)
    for name in IDS:
        try:
            seen[name] = str(getattr(event, name))
        except AttributeError as exc:
            seen[name] = str(exc)
    seen["context"] = tuple(map(str, event.context))
    seen["acceptor"] = event.assoc.is_acceptor
    return seen


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("kind", [*ANSWERS, "raise"])
def test_n_services(world: kit.World, call: str, kind: str) -> None:
    def scenario(world: kit.World, call: str, kind: str) -> Any:
        event_type, send = CALLS[call]
        seen: list[Any] = []

        def handler(event: evt.Event) -> Any:
            seen.append(describe(event))
            if kind == "raise":
                raise ValueError("a handler may fail")
            status, reply = answer(kind)
            return status if call == "delete" else (status, reply)

        server = world.serve(CONTEXTS, [(event_type, handler)])
        assoc = world.connect(server, CONTEXTS)
        small = data.query(PatientName="Twin", PatientID="1" * 60)
        large = data.query(PatientComments="y" * 70000)
        results = [
            kit.outcome(lambda: send(assoc, small)),
            kit.outcome(lambda: send(assoc, large)),
        ]
        return results, seen

    _, seen = kit.against_oracle(world, scenario, call, kind)
    assert len(seen) == 2


def test_n_roads(world: kit.World) -> None:
    """Nobody watches: every N message takes the fast road."""
    handlers = [
        (event, (lambda event: 0) if event is evt.EVT_N_DELETE else (lambda event: (0, None)))
        for event in (
            evt.EVT_N_GET,
            evt.EVT_N_SET,
            evt.EVT_N_ACTION,
            evt.EVT_N_CREATE,
            evt.EVT_N_DELETE,
            evt.EVT_N_EVENT_REPORT,
        )
    ]
    server = world.serve(CONTEXTS, handlers)
    assoc = world.connect(server, CONTEXTS)
    with kit.road_delta() as delta:
        for _, send in CALLS.values():
            send(assoc, data.query(PatientID="1"))
    assert delta["stock_sent"] == delta["stock_received"] == 0
    assert delta["fast_sent"] == delta["fast_received"] == len(CALLS) * world.fast_ends


def test_n_bad_arguments(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        server = world.serve(CONTEXTS)
        assoc = world.connect(server, CONTEXTS)
        broken = Dataset()
        broken.Rows = "not a number"
        calls: list[Callable[[], Any]] = [
            lambda: assoc.send_n_get([], "1.2.3", INSTANCE),
            lambda: assoc.send_n_set(broken, data.FILM_SESSION, INSTANCE),
            lambda: assoc.send_n_action(broken, 1, data.STORAGE_COMMITMENT, INSTANCE),
            lambda: assoc.send_n_create(broken, data.MPPS, INSTANCE),
            lambda: assoc.send_n_event_report(broken, 1, data.PRINTER, INSTANCE),
            lambda: assoc.send_n_delete(data.FILM_SESSION, "x.y"),
            lambda: assoc.send_n_get([], data.PRINTER, INSTANCE, msg_id=-1),
            lambda: assoc.send_n_get([], data.PRINTER, INSTANCE),
        ]
        return [kit.outcome(call) for call in calls]

    kit.against_oracle(world, scenario)


def test_event_report_from_the_scp(world: kit.World) -> None:
    """Storage commitment: the acceptor reports to the requestor, also while it is idle."""
    checks = kit.Checks()
    reported: list[str] = []

    @checks
    def report(event: evt.Event) -> Any:
        assert event.event_type == 1
        assert event.assoc.is_requestor
        reported.append(event.event_information.TransactionUID)
        return 0x0000, None

    def action(event: evt.Event) -> Any:
        return 0x0000, None

    server = world.serve(CONTEXTS, [(evt.EVT_N_ACTION, action)], roles=True)
    assoc = world.connect(
        server,
        CONTEXTS,
        [(evt.EVT_N_EVENT_REPORT, report)],
        ext_neg=[build_role(data.STORAGE_COMMITMENT, scu_role=True, scp_role=True)],
    )
    info = data.query(TransactionUID="1.2.3")
    rsp, _ = assoc.send_n_action(info, 1, data.STORAGE_COMMITMENT, INSTANCE)
    assert rsp.Status == 0
    acceptor = server.one()
    for number in range(5):
        info = data.query(TransactionUID=f"1.2.{number}")
        rsp, _ = acceptor.send_n_event_report(info, 1, data.STORAGE_COMMITMENT, INSTANCE)
        assert rsp.Status == 0
    checks.verify(5)
    assert reported == [f"1.2.{number}" for number in range(5)]
    rsp, _ = assoc.send_n_action(info, 1, data.STORAGE_COMMITMENT, INSTANCE)
    assert rsp.Status == 0


def test_event_report_while_the_requestor_waits(world: kit.World) -> None:
    """The report arrives inside a send_n_action call: its handler has a thread of its own."""
    checks = kit.Checks()
    order: list[str] = []

    @checks
    def report(event: evt.Event) -> Any:
        order.append("report")
        return 0x0000, None

    @checks
    def action(event: evt.Event) -> Any:
        info = data.query(TransactionUID="1.2.9")
        rsp, _ = event.assoc.send_n_event_report(info, 1, data.STORAGE_COMMITMENT, INSTANCE)
        assert rsp.Status == 0
        order.append("answered")
        return 0x0000, None

    server = world.serve(CONTEXTS, [(evt.EVT_N_ACTION, action)], roles=True)
    assoc = world.connect(
        server,
        CONTEXTS,
        [(evt.EVT_N_EVENT_REPORT, report)],
        ext_neg=[build_role(data.STORAGE_COMMITMENT, scu_role=True, scp_role=True)],
    )
    for _ in range(3):
        rsp, _ = assoc.send_n_action(
            data.query(TransactionUID="1"), 1, data.STORAGE_COMMITMENT, INSTANCE
        )
        assert rsp.Status == 0
    checks.verify(6)
    assert order == ["report", "answered"] * 3
