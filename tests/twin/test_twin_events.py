"""Notification events: order, payload and thread, as recorded on stock (surface section 5.1)."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

import pytest
from helpers import data, kit
from helpers import recorder as rec
from pydicom.dataset import Dataset
from pynetdicom import _config, build_role, evt

CTX = [
    (data.CT, data.EXPLICIT),
    (data.VERIFICATION, data.EXPLICIT),
    (data.STUDY_FIND, data.EXPLICIT),
    (data.STUDY_GET, data.EXPLICIT),
    (data.PRINTER, data.EXPLICIT),
]


def finder(event: evt.Event) -> Any:
    for number in range(3):
        yield 0xFF00, data.query(PatientID=str(number))
    yield 0x0000, None


def getter(event: evt.Event) -> Any:
    yield 2
    yield 0xFF00, data.image(1, 20000)
    yield 0xFF00, data.image(2, 100)


SERVICES = [
    (evt.EVT_C_STORE, lambda event: 0),
    (evt.EVT_C_ECHO, lambda event: 0),
    (evt.EVT_C_FIND, finder),
    (evt.EVT_C_GET, getter),
    (evt.EVT_N_GET, lambda event: (0, data.query(PatientID="n"))),
]
ROLE = [build_role(data.CT, scu_role=True, scp_role=True)]


def send_echo(assoc: Any) -> None:
    assert assoc.send_c_echo().Status == 0


def send_small(assoc: Any) -> None:
    assert assoc.send_c_store(data.image(3, 100)).Status == 0


def send_large(assoc: Any) -> None:
    assert assoc.send_c_store(data.image(4, 50000)).Status == 0


def send_find(assoc: Any) -> None:
    assert len(list(assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND))) == 4


def send_get(assoc: Any) -> None:
    assert len(list(assoc.send_c_get(data.query(PatientID="*"), data.STUDY_GET))) == 3


def send_n_get(assoc: Any) -> None:
    assert assoc.send_n_get([0x00100020, 0x00100010], data.PRINTER, "1.2.3")[0].Status == 0


EXCHANGES = {
    "echo": send_echo,
    "small": send_small,
    "large": send_large,
    "find": send_find,
    "get": send_get,
    "n-get": send_n_get,
}

SETS = {
    "all": rec.ALL_EVENTS,
    "data": rec.DATA_EVENTS,
    "pdu": rec.PDU_EVENTS,
    "fsm": rec.FSM_EVENTS,
    "dimse": rec.DIMSE_EVENTS,
    "acse": rec.ACSE_EVENTS + rec.CONN_EVENTS + rec.STATE_EVENTS,
    "data-recv": (evt.EVT_DATA_RECV,),
    "pdu-sent": (evt.EVT_PDU_SENT,),
}


def run(world: kit.World, exchange: str, events: str, log_handlers: str = "standard") -> Any:
    """One exchange with recorders bound at the association's start, on both ends."""
    scu = rec.Recorder(*SETS[events])
    scp = rec.Recorder(*SETS[events])
    server = world.serve(CTX, SERVICES + scp.handlers, roles=True)
    assoc = world.connect(
        server, CTX, [(evt.EVT_C_STORE, lambda event: 0), *scu.handlers], ext_neg=ROLE
    )
    EXCHANGES[exchange](assoc)
    assoc.release()
    server.quiet()
    kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
    return scu.lanes(), scp.lanes()


@pytest.mark.parametrize("events", list(SETS))
@pytest.mark.parametrize("exchange", list(EXCHANGES))
def test_sequences(world: kit.World, exchange: str, events: str) -> None:
    """Every event of an association with one exchange, from its start to its end."""
    scu, scp = kit.against_oracle(world, run, exchange, events)
    assert scu
    assert scp


@pytest.mark.parametrize("events", ["all", "dimse", "acse"])
def test_threads(world: kit.World, events: str) -> None:
    """On which kinds of thread handlers run.

    Watched per PDU: as on stock. Otherwise the fast road has no DUL thread: EVT_DIMSE_RECV is
    triggered by the thread that reads, which is the one that waits for the message.
    """

    def scenario(world: kit.World, events: str) -> Any:
        scu, scp = rec.Recorder(*SETS[events]), rec.Recorder(*SETS[events])
        server = world.serve(CTX, SERVICES + scp.handlers)
        assoc = world.connect(server, CTX, scu.handlers)
        for name in ("echo", "large", "find"):
            EXCHANGES[name](assoc)
        assoc.release()
        server.quiet()
        kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
        return {"scu": scu.threads(), "scp": scp.threads()}

    expected = kit.oracle(scenario, events)
    found = scenario(world, events)
    for end in ("scu", "scp"):
        if events == "dimse" and getattr(world, end) == "fast":
            where = set(found[end].pop("EVT_DIMSE_RECV"))
            assert where <= {"scu": {"user", "association"}, "scp": {"association"}}[end] | {"dul"}
            del expected[end]["EVT_DIMSE_RECV"]
    assert found == expected


@pytest.mark.parametrize("level", ["standard", "none"])
def test_sequences_without_default_handlers(
    world: kit.World, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "LOG_HANDLER_LEVEL", level)
    kit.against_oracle(world, run, "large", "all", level)


@pytest.mark.parametrize("events", ["all", "data", "dimse"])
@pytest.mark.parametrize("side", ["scu", "scp"])
def test_one_side_watched(world: kit.World, side: str, events: str) -> None:
    """A recorder on one end only: it sees the same, and the other end stays fast."""

    def scenario(world: kit.World, side: str, events: str) -> Any:
        record = rec.Recorder(*SETS[events])
        server = world.serve(CTX, SERVICES + (record.handlers if side == "scp" else []))
        assoc = world.connect(server, CTX, record.handlers if side == "scu" else [])
        for name in ("echo", "small", "large", "find"):
            EXCHANGES[name](assoc)
        assoc.release()
        server.quiet()
        kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
        return record.lanes()

    kit.against_oracle(world, scenario, side, events)


@pytest.mark.parametrize("events", ["all", "data", "pdu", "fsm", "dimse"])
def test_bound_between_messages(world: kit.World, events: str) -> None:
    """Bind and unbind on a live association: effective with the next message, on both ends."""

    def scenario(world: kit.World, events: str) -> Any:
        scu = rec.Recorder(*SETS[events])
        scp = rec.Recorder(*SETS[events])
        server = world.serve(CTX, SERVICES)
        assoc = world.connect(server, CTX)
        acceptor = server.one()
        parts = []

        def part() -> None:
            """What was recorded; the last events of a message may still be on their way."""

            def steady() -> bool:
                count = len(scu.calls) + len(scp.calls)
                threading.Event().wait(0.03)
                return count == len(scu.calls) + len(scp.calls)

            kit.until(steady)
            parts.append((scu.lanes(), scp.lanes()))

        send_large(assoc)
        part()
        scu.bind(assoc)
        scp.bind(acceptor)
        send_large(assoc)
        send_echo(assoc)
        part()
        scp.unbind(acceptor)
        scu.unbind(assoc)
        send_large(assoc)
        send_find(assoc)
        part()
        scp.bind(server.server)
        send_small(assoc)
        part()
        scu.bind(assoc)
        send_find(assoc)
        part()
        return parts

    parts = kit.against_oracle(world, scenario, events)
    assert parts[0] == ({}, {})
    assert parts[1] == parts[2]
    assert parts[3] != parts[2]


def test_roads_follow_the_handlers(world: kit.World) -> None:
    """Watched per PDU: the faithful road. Unwatched again: back to the fast one."""
    server = world.serve(CTX, SERVICES)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    record = rec.Recorder(*rec.PDU_EVENTS)
    with kit.road_delta() as before:
        send_large(assoc)
    record.bind(assoc)
    record.bind(acceptor)
    with kit.road_delta() as watched:
        send_large(assoc)
    record.unbind(assoc)
    record.unbind(acceptor)
    with kit.road_delta() as after:
        send_large(assoc)
        send_large(assoc)
    assert before["fast_sent"] == before["fast_received"] == world.fast_ends
    assert before["stock_sent"] == before["stock_received"] == 0
    assert watched["fast_sent"] == watched["fast_received"] == 0
    # an acceptor that waits inside a fast read may take the first message as one
    assert after["fast_sent"] == after["fast_received"] == 2 * world.fast_ends


def test_default_handlers_unbound(world: kit.World) -> None:
    """Without pynetdicom's own log handlers nothing changes but the log."""
    from pynetdicom import _handlers

    server = world.serve(CTX, SERVICES)
    assoc = world.connect(server, CTX)
    assoc.unbind(evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler)
    assoc.unbind(evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler)
    assoc.unbind(evt.EVT_DIMSE_SENT, _handlers.standard_dimse_sent_handler)
    assoc.unbind(evt.EVT_DIMSE_RECV, _handlers.standard_dimse_recv_handler)
    with kit.road_delta() as delta:
        for exchange in ("echo", "large", "find", "n-get"):
            EXCHANGES[exchange](assoc)
    assert delta["stock_sent"] == delta["stock_received"] == 0


@pytest.mark.parametrize("event_type", [*rec.DIMSE_EVENTS, *rec.PDU_EVENTS, *rec.DATA_EVENTS])
def test_handlers_that_raise(
    world: kit.World, caplog: pytest.LogCaptureFixture, event_type: Any
) -> None:
    """Logged with pynetdicom's text, and the message goes through."""

    def boom(event: evt.Event) -> None:
        raise ValueError("boom")

    server = world.serve(CTX, [*SERVICES, (event_type, boom)])
    assoc = world.connect(server, CTX, [(event_type, boom)])
    with caplog.at_level(logging.ERROR, logger="pynetdicom"):
        caplog.clear()
        send_echo(assoc)
        send_small(assoc)
    text = f"Exception raised in user's 'evt.{event_type.name}' event handler 'boom'"
    assert text in caplog.text


@pytest.mark.parametrize("event_type", [*rec.DIMSE_EVENTS, *rec.PDU_EVENTS, *rec.DATA_EVENTS])
@pytest.mark.parametrize("side", ["scu", "scp"])
def test_abort_in_a_notification_handler(world: kit.World, side: str, event_type: Any) -> None:
    """assoc.abort() from the handler of a notification, on whatever thread it runs."""

    def scenario(world: kit.World, side: str, name: str) -> Any:
        armed = threading.Event()

        def handler(event: evt.Event) -> None:
            if armed.is_set():
                event.assoc.abort()

        handlers = [(event_type, handler)]
        server = world.serve(CTX, SERVICES + (handlers if side == "scp" else []))
        assoc = world.connect(server, CTX, handlers if side == "scu" else [])
        assoc.dimse_timeout = 0.5  # an abort in a handler does not wake send_c_echo on stock
        server.one()
        armed.set()
        kit.outcome(assoc.send_c_echo)
        kit.until(lambda: not assoc.is_established)
        server.quiet()
        return assoc.is_aborted, assoc.is_released

    assert kit.against_oracle(world, scenario, side, event_type.name) == (True, False)


def test_dimse_message_survives(world: kit.World) -> None:
    """The command set of an EVT_DIMSE_* message stays readable after the handler."""
    kept: list[Any] = []

    def keep(event: evt.Event) -> None:
        kept.append((type(event.message).__name__, event.message))

    server = world.serve(CTX, [*SERVICES, (evt.EVT_DIMSE_RECV, keep)])
    assoc = world.connect(server, CTX, [(evt.EVT_DIMSE_SENT, keep), (evt.EVT_DIMSE_RECV, keep)])
    send_large(assoc)
    assoc.release()
    server.quiet()
    assert sorted(name for name, _ in kept) == ["C_STORE_RQ", "C_STORE_RQ", "C_STORE_RSP"]
    for name, message in kept:
        assert isinstance(message.command_set, Dataset)
        assert message.command_set.CommandField == (0x8001 if name.endswith("RSP") else 1)


def test_dimse_handlers_keep_the_fast_road(world: kit.World) -> None:
    """EVT_DIMSE_* handlers are per message: they do not need the faithful road."""
    record = rec.Recorder(*rec.DIMSE_EVENTS)
    server = world.serve(CTX, SERVICES + record.handlers)
    assoc = world.connect(server, CTX, record.handlers)
    with kit.road_delta() as delta:
        send_large(assoc)
        send_echo(assoc)
    assert len(record.calls) == 8
    assert delta["fast_sent"] + delta["stock_sent"] == 2 * world.fast_ends


# log lines

NOISE = [
    (re.compile(r"0x[0-9a-f]{6,}"), "0x?"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?"), "TIME"),
    (re.compile(r"(127\.0\.0\.1)(:| port |', )\d+"), r"\1\2PORT"),
    (re.compile(r"Thread@\d+"), "Thread@"),
]


def normal(message: str) -> str:
    for pattern, replacement in NOISE:
        message = pattern.sub(replacement, message)
    return message


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG, logging.WARNING])
@pytest.mark.parametrize("exchange", [*EXCHANGES, "abort", "reject"])
def test_log_lines(
    world: kit.World, caplog: pytest.LogCaptureFixture, exchange: str, level: int
) -> None:
    """The same lines from the same loggers, thread by thread."""

    def scenario(world: kit.World, exchange: str, level: int) -> Any:
        caplog.clear()
        with caplog.at_level(level, logger="pynetdicom"):
            server = world.serve(CTX, SERVICES, roles=True)
            if exchange == "reject":
                server.ae.require_called_aet = True
            assoc = world.connect(
                server,
                CTX,
                [(evt.EVT_C_STORE, lambda event: 0)],
                ext_neg=ROLE,
                ae_title="OTHER",
                established=exchange != "reject",
            )
            if exchange == "abort":
                send_echo(assoc)
                assoc.abort()
            elif exchange != "reject":
                EXCHANGES[exchange](assoc)
                assoc.release()
            server.quiet()
            kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
        lines = [
            (record.name, record.levelname, line)
            for record in caplog.records
            if record.name.startswith("pynetdicom")
            for line in normal(record.getMessage()).splitlines()
        ]
        return sorted(lines)

    lines = kit.against_oracle(world, scenario, exchange, level)
    assert (level < logging.WARNING or exchange == "reject") == bool(lines)
