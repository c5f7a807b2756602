"""C-ECHO, C-FIND, C-GET, C-MOVE and C-CANCEL over all four pairs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import data, kit
from pydicom.dataset import Dataset
from pynetdicom import build_role, evt

CTX = [(data.CT, data.EXPLICIT)]
FIND = [(data.STUDY_FIND, data.EXPLICIT)]
GET = [(data.STUDY_GET, data.EXPLICIT)]
MOVE = [(data.STUDY_MOVE, data.EXPLICIT)]
Results = Iterator[tuple[Any, Dataset | None]]


def status(value: int, **elements: Any) -> Dataset:
    ds = data.query(**elements)
    ds.Status = value
    return ds


def raising(event: evt.Event) -> int:
    raise ValueError("a handler may fail")


def aborting(event: evt.Event) -> int:
    event.assoc.abort()
    return 0


# C-ECHO


@pytest.mark.parametrize(
    "answer",
    [
        lambda event: 0x0000,
        lambda event: 0x0122,
        lambda event: 0x0FFF,
        lambda event: status(0x0210, ErrorComment="twice"),
        lambda event: data.query(ErrorComment="no status"),
        lambda event: None,
        raising,
    ],
    ids=["0000", "0122", "unknown", "dataset", "no-status", "none", "raise"],
)
def test_echo(world: kit.World, answer: Callable[[evt.Event], Any]) -> None:
    def scenario(world: kit.World, name: str) -> Any:
        server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, answer)])
        assoc = world.connect(server, [data.VERIFICATION])
        results = [kit.outcome(assoc.send_c_echo) for _ in range(3)]
        results.append(kit.outcome(lambda: assoc.send_c_echo(msg_id=65535)))
        results.append(kit.outcome(lambda: assoc.send_c_echo(msg_id=65536)))
        return results

    kit.against_oracle(world, scenario, repr(answer.__code__.co_consts))


def test_echo_event(world: kit.World) -> None:
    checks = kit.Checks()

    @checks
    def handler(event: evt.Event) -> int:
        assert event.message_id == event.request.MessageID == 9
        assert event.request.AffectedSOPClassUID == data.VERIFICATION
        assert event.context.abstract_syntax == data.VERIFICATION
        assert event.assoc.is_acceptor
        assert event.request.is_valid_request
        assert kit.thread_kind() == "association"
        with pytest.raises(AttributeError):
            event.dataset  # noqa: B018
        return 0

    server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, handler)])
    assoc = world.connect(server, [data.VERIFICATION])
    with kit.road_delta() as delta:
        for _ in range(50):
            assert assoc.send_c_echo(msg_id=9).Status == 0
    checks.verify(50)
    assert delta["stock_sent"] == delta["stock_received"] == 0
    assert delta["fast_sent"] == delta["fast_received"] == 50 * world.fast_ends


def test_echo_without_a_context(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        server = world.serve([*CTX, data.VERIFICATION])
        assoc = world.connect(server, CTX)
        return kit.outcome(assoc.send_c_echo)

    assert kit.against_oracle(world, scenario)[0] == "ValueError"


def test_abort_in_the_echo_handler(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, aborting)])
        assoc = world.connect(server, [data.VERIFICATION])
        result = kit.outcome(assoc.send_c_echo)
        kit.until(lambda: assoc.is_aborted)
        return result, assoc.is_established, assoc.is_released

    assert kit.against_oracle(world, scenario) == ((), False, False)


# C-FIND


def matches(number: int) -> list[Dataset]:
    return [
        data.query(PatientID=f"P{index}", PatientName="Name^" + "x" * (index * 37 % 50))
        for index in range(number)
    ]


def many(event: evt.Event) -> Results:
    assert event.identifier.PatientID == "*"
    for ds in matches(40):
        yield 0xFF00, ds
    yield 0x0000, None


def big_match(event: evt.Event) -> Results:
    yield 0xFF00, data.query(PatientID="1", PatientComments="c" * 200_000)
    yield 0xFF01, data.query(PatientID="2")


def none(event: evt.Event) -> Results:
    yield 0x0000, None


def implicit_success(event: evt.Event) -> Results:
    yield 0xFF00, data.query(PatientID="only")


def failing(event: evt.Event) -> Results:
    yield 0xFF00, data.query(PatientID="1")
    yield status(0xA700, ErrorComment="no room", OffendingElement=[0x00100010]), None


def late_raise(event: evt.Event) -> Results:
    yield 0xFF00, data.query(PatientID="1")
    raise ValueError("in the middle")


def late_abort(event: evt.Event) -> Results:
    yield 0xFF00, data.query(PatientID="1")
    event.assoc.abort()
    yield 0x0000, None


def bad_identifier(event: evt.Event) -> Results:
    ds = Dataset()
    ds.Rows = "not a number"
    yield 0xFF00, ds
    yield 0x0000, None


def bad_status(event: evt.Event) -> Results:
    yield "what", None


def unknown_status(event: evt.Event) -> Results:
    yield 0xFFF1, None


def no_generator(event: evt.Event) -> int:
    return 0x0000


FINDERS = [
    many,
    big_match,
    none,
    implicit_success,
    failing,
    late_raise,
    bad_identifier,
    bad_status,
    unknown_status,
    no_generator,
    raising,
]


@pytest.mark.parametrize("finder", FINDERS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("syntax", [data.EXPLICIT, data.IMPLICIT, data.BIG, data.DEFLATED])
def test_find(world: kit.World, finder: Callable[[evt.Event], Any], syntax: str) -> None:
    if syntax != data.EXPLICIT and finder not in (many, big_match):
        pytest.skip("the transfer syntax plays no part in this answer")

    def scenario(world: kit.World, name: str, syntax: str) -> Any:
        contexts = [(data.STUDY_FIND, syntax), (data.VERIFICATION, data.EXPLICIT)]
        server = world.serve(contexts, [(evt.EVT_C_FIND, finder)])
        assoc = world.connect(server, contexts)
        ask = data.query(PatientID="*", QueryRetrieveLevel="STUDY")
        first = kit.outcome(lambda: assoc.send_c_find(ask, data.STUDY_FIND))
        second = kit.outcome(lambda: assoc.send_c_find(ask, data.STUDY_FIND, msg_id=5))
        return first, second, kit.outcome(assoc.send_c_echo)

    first, _, echo = kit.against_oracle(world, scenario, finder.__name__, syntax)
    assert echo == (("Status", "0"),)
    if finder is many:
        assert len(first) == 41


def test_find_aborted(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        server = world.serve(FIND, [(evt.EVT_C_FIND, late_abort)])
        assoc = world.connect(server, FIND)
        result = kit.outcome(lambda: assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND))
        kit.until(lambda: assoc.is_aborted)
        return result[-1]

    assert kit.against_oracle(world, scenario) == ((), None)


def test_find_requests(world: kit.World) -> None:
    """Bad arguments of send_c_find, send_c_get, send_c_move, send_c_cancel."""

    def scenario(world: kit.World) -> Any:
        contexts = FIND + GET + MOVE
        server = world.serve(contexts, [(evt.EVT_C_FIND, none)])
        assoc = world.connect(server, contexts)
        ask = data.query(PatientID="*")
        broken = Dataset()
        broken.Rows = "not a number"
        return [
            kit.outcome(call)
            for call in (
                lambda: assoc.send_c_find(ask, "1.2.3"),
                lambda: assoc.send_c_find(broken, data.STUDY_FIND),
                lambda: assoc.send_c_find(ask, data.STUDY_FIND, msg_id=70000),
                lambda: assoc.send_c_find(ask, data.STUDY_FIND, priority=9),
                lambda: assoc.send_c_get(ask, "1.2.3"),
                lambda: assoc.send_c_get(broken, data.STUDY_GET),
                lambda: assoc.send_c_move(ask, "DEST", "1.2.3"),
                lambda: assoc.send_c_move(broken, "DEST", data.STUDY_MOVE),
                lambda: assoc.send_c_move(ask, "D" * 17, data.STUDY_MOVE),
                lambda: assoc.send_c_cancel(1, None),
                lambda: assoc.send_c_cancel(1, 99),
                lambda: assoc.send_c_find(ask, data.STUDY_FIND),
            )
        ]

    kit.against_oracle(world, scenario)


def test_find_event(world: kit.World) -> None:
    checks = kit.Checks()

    @checks
    def look(event: evt.Event) -> None:
        assert event.message_id == 4
        assert event.request.Priority == 1
        assert event.identifier == data.query(PatientID="a", PatientName="")
        assert event.request.Identifier.getvalue() != b""
        assert not event.is_cancelled
        assert event.context.transfer_syntax == data.EXPLICIT
        assert kit.thread_kind() == "association"

    def handler(event: evt.Event) -> Results:
        look(event)
        yield 0xFF00, data.query(PatientID="1")
        yield 0x0000, None

    server = world.serve(FIND, [(evt.EVT_C_FIND, handler)])
    assoc = world.connect(server, FIND)
    ask = data.query(PatientID="a", PatientName="")
    with kit.road_delta() as delta:
        answers = list(assoc.send_c_find(ask, data.STUDY_FIND, msg_id=4, priority=1))
    checks.verify(1)
    assert [answer[0].Status for answer in answers] == [0xFF00, 0x0000]
    assert delta["stock_sent"] == delta["stock_received"] == 0
    expected = {"scu": (1, 2), "scp": (2, 1)}
    sent = sum(expected[end][0] for end in ("scu", "scp") if getattr(world, end) == "fast")
    received = sum(expected[end][1] for end in ("scu", "scp") if getattr(world, end) == "fast")
    assert (delta["fast_sent"], delta["fast_received"]) == (sent, received)


def test_find_left_early(world: kit.World) -> None:
    """The caller drops the iterator half way and aborts."""
    server = world.serve(FIND, [(evt.EVT_C_FIND, many)])
    assoc = world.connect(server, FIND)
    answers = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND)
    for _ in range(3):
        assert next(answers)[0].Status == 0xFF00
    assoc.abort()
    assert assoc.is_aborted
    server.quiet()


# C-CANCEL


@pytest.mark.parametrize("by", ["context", "model"])
def test_cancel_find(world: kit.World, by: str) -> None:
    """The handler notices the cancellation while it runs, and the SCU sees 0xFE00."""
    cancelled = threading.Event()

    def handler(event: evt.Event) -> Results:
        assert not event.is_cancelled
        yield 0xFF00, data.query(PatientID="1")
        kit.until(lambda: event.is_cancelled, what="the cancellation")
        cancelled.set()
        yield 0xFE00, None

    server = world.serve(FIND, [(evt.EVT_C_FIND, handler)])
    assoc = world.connect(server, FIND)
    answers = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND, msg_id=11)
    assert next(answers)[0].Status == 0xFF00
    if by == "context":
        assoc.send_c_cancel(11, assoc.accepted_contexts[0].context_id)
    else:
        assoc.send_c_cancel(11, None, data.STUDY_FIND)
    last, identifier = next(answers)
    assert last.Status == 0xFE00
    assert identifier is None
    assert list(answers) == []
    assert cancelled.is_set()
    # the association goes on, and the next operation is not taken for cancelled
    again = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND, msg_id=12)
    assert next(again)[0].Status == 0xFF00
    assoc.send_c_cancel(12, 1)
    assert next(again)[0].Status == 0xFE00


def test_cancel_of_something_else(world: kit.World) -> None:
    """A C-CANCEL for an unknown message id is ignored."""
    seen: list[bool] = []
    go_on = threading.Event()

    def handler(event: evt.Event) -> Results:
        yield 0xFF00, data.query(PatientID="1")
        assert go_on.wait(kit.DEADLINE)
        seen.append(event.is_cancelled)
        yield 0x0000, None

    server = world.serve(FIND + [data.VERIFICATION], [(evt.EVT_C_FIND, handler)])
    assoc = world.connect(server, FIND + [data.VERIFICATION])
    answers = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND, msg_id=11)
    next(answers)
    for other in (1, 12, 65535):
        assoc.send_c_cancel(other, 1)
    go_on.set()
    assert next(answers)[0].Status == 0
    assert list(answers) == []
    assert seen == [False]
    assoc.send_c_cancel(11, 1)  # it is over
    assert assoc.send_c_echo().Status == 0


# C-GET


def get_handlers(number: int, size: int = 3000) -> list[Any]:
    def handler(event: evt.Event) -> Results:
        yield number
        for index in range(number):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, data.image(index + 1, size)
        yield 0x0000, None

    return [(evt.EVT_C_GET, handler)]


def get_world(
    world: kit.World, handlers: list[Any], store: Callable[[evt.Event], Any], **kwargs: Any
) -> Any:
    server = world.serve(CTX + GET, handlers, roles=True)
    assoc = world.connect(
        server,
        CTX + GET,
        [(evt.EVT_C_STORE, store)],
        ext_neg=[build_role(data.CT, scp_role=True)],
        **kwargs,
    )
    return server, assoc


@pytest.mark.parametrize("size", [100, 16378, 200_000])
def test_get(world: kit.World, size: int) -> None:
    def scenario(world: kit.World, size: int) -> Any:
        got: list[Any] = []

        def store(event: evt.Event) -> int:
            got.append(
                (
                    event.message_id,
                    event.request.MoveOriginatorMessageID,
                    str(event.request.AffectedSOPInstanceUID),
                    kit.sha(event.request.DataSet.getvalue()),
                    event.dataset == data.image(len(got) + 1, size),
                    kit.thread_kind(),
                    event.assoc.is_requestor,
                )
            )
            return 0

        _, assoc = get_world(world, get_handlers(6, size), store)
        answers = kit.outcome(
            lambda: assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET, msg_id=2)
        )
        return answers, got

    answers, got = kit.against_oracle(world, scenario, size)
    assert len(got) == 6
    assert len(answers) == 7
    assert all(item[4] for item in got)


@pytest.mark.parametrize("kind", ["warning", "failure", "raise", "dataset"])
def test_get_sub_operations_that_fail(world: kit.World, kind: str) -> None:
    def scenario(world: kit.World, kind: str) -> Any:
        def store(event: evt.Event) -> Any:
            if event.request.AffectedSOPInstanceUID.endswith(".2"):
                if kind == "raise":
                    raise ValueError("no")
                if kind == "dataset":
                    return status(0xA700, ErrorComment="full")
                return 0xB000 if kind == "warning" else 0xA900
            return 0

        _, assoc = get_world(world, get_handlers(3), store)
        return kit.outcome(lambda: assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET))

    kit.against_oracle(world, scenario, kind)


def test_get_chunked_files(world: kit.World) -> None:
    """C-GET with the sub-operations received into files."""
    from pynetdicom import _config

    got: list[bool] = []
    paths = []

    def store(event: evt.Event) -> int:
        from pydicom import dcmread

        paths.append(event.dataset_path)
        got.append(dcmread(event.dataset_path).PixelData == data.image(len(got) + 1).PixelData)
        return 0

    _config.STORE_RECV_CHUNKED_DATASET = True
    try:
        _, assoc = get_world(world, get_handlers(3, 1000), store)
        answers = list(assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET))
    finally:
        _config.STORE_RECV_CHUNKED_DATASET = False
        for path in paths:
            path.unlink(missing_ok=True)  # stock leaves these behind (surface section 7, 4)
    assert got == [True] * 3
    assert answers[-1][0].NumberOfCompletedSuboperations == 3


def test_cancel_get(world: kit.World) -> None:
    """C-CANCEL from inside a sub-operation's handler."""
    stored: list[int] = []

    def handler(event: evt.Event) -> Results:
        yield 50
        for index in range(50):
            if index >= 3:
                kit.until(lambda: event.is_cancelled, what="the cancellation")
                yield 0xFE00, None
                return
            yield 0xFF00, data.image(index + 1, 50000)

    def store(event: evt.Event) -> int:
        stored.append(event.message_id)
        return 0

    _, assoc = get_world(world, [(evt.EVT_C_GET, handler)], store)
    answers = assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET, msg_id=8)
    assert next(answers)[0].Status == 0xFF00
    assoc.send_c_cancel(8, None, data.STUDY_GET)
    rest = [answer[0].Status for answer in answers]
    assert rest == [0xFF00, 0xFF00, 0xFE00]
    assert len(stored) == 3


def test_get_without_the_role(world: kit.World) -> None:
    """No SCP role for storage: every sub-operation fails, alike."""

    def scenario(world: kit.World) -> Any:
        server = world.serve(CTX + GET, get_handlers(2))
        assoc = world.connect(server, CTX + GET, [(evt.EVT_C_STORE, lambda event: 0)])
        return kit.outcome(lambda: assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET))

    kit.against_oracle(world, scenario)


# C-MOVE


@pytest.mark.parametrize("kind", ["good", "warning", "failure", "unreachable", "unknown"])
def test_move(world: kit.World, kind: str) -> None:
    """The C-MOVE SCP opens an association of its own to a store SCP."""

    def scenario(world: kit.World, kind: str) -> Any:
        got: list[Any] = []

        def store(event: evt.Event) -> int:
            got.append(
                (
                    event.message_id,
                    event.request.MoveOriginatorMessageID,
                    event.request.MoveOriginatorApplicationEntityTitle,
                    kit.sha(event.request.DataSet.getvalue()),
                )
            )
            if len(got) == 2:
                return {"warning": 0xB000, "failure": 0xA700}.get(kind, 0)
            return 0

        destination = world.serve(CTX, [(evt.EVT_C_STORE, store)])

        def handler(event: evt.Event) -> Results:
            assert event.move_destination == "DEST"
            if kind == "unknown":
                yield None, None
                return
            yield ("127.0.0.1", 1 if kind == "unreachable" else destination.port)
            yield 4
            for index in range(4):
                yield 0xFF00, data.image(index + 1, 30000)
            yield 0x0000, None

        ae = kit.make_ae(world.scp, "MOVER")
        ae.requested_contexts = destination.ae.supported_contexts
        server = world.serve(MOVE, [(evt.EVT_C_MOVE, handler)], ae=ae)
        assoc = world.connect(server, MOVE)
        answers = kit.outcome(
            lambda: assoc.send_c_move(data.query(PatientID="1"), "DEST", data.STUDY_MOVE, msg_id=33)
        )
        return answers, got

    _, got = kit.against_oracle(world, scenario, kind)
    assert len(got) == (4 if kind in ("good", "warning", "failure") else 0)


def test_cancel_move(world: kit.World) -> None:
    stored: list[int] = []

    def store(event: evt.Event) -> int:
        stored.append(1)
        return 0

    destination = world.serve(CTX, [(evt.EVT_C_STORE, store)])

    def handler(event: evt.Event) -> Results:
        yield ("127.0.0.1", destination.port)
        yield 20
        yield 0xFF00, data.image(1)
        kit.until(lambda: event.is_cancelled, what="the cancellation")
        yield 0xFE00, None

    ae = kit.make_ae(world.scp, "MOVER")
    ae.requested_contexts = destination.ae.supported_contexts
    server = world.serve(MOVE, [(evt.EVT_C_MOVE, handler)], ae=ae)
    assoc = world.connect(server, MOVE)
    answers = assoc.send_c_move(data.query(PatientID="1"), "DEST", data.STUDY_MOVE, msg_id=6)
    assert next(answers)[0].Status == 0xFF00
    assoc.send_c_cancel(6, None, data.STUDY_MOVE)
    last = next(answers)[0]
    assert last.Status == 0xFE00
    assert last.NumberOfCompletedSuboperations == 1
    assert stored == [1]


# calls back on the association that runs the handler


def test_echo_both_ways(world: kit.World) -> None:
    """Both ends are SCU and SCP of one association, and either may begin."""
    calls: list[Any] = []

    def requestor_echo(event: evt.Event) -> int:
        calls.append("served")
        return 0

    server = world.serve(
        [data.VERIFICATION],
        [(evt.EVT_C_ECHO, requestor_echo)],
        roles=True,
    )
    assoc = world.connect(
        server,
        [data.VERIFICATION],
        [(evt.EVT_C_ECHO, requestor_echo)],
        ext_neg=[build_role(data.VERIFICATION, scu_role=True, scp_role=True)],
    )
    acceptor = server.one()
    assert acceptor.send_c_echo().Status == 0
    assert calls == ["served"]
    assert assoc.send_c_echo().Status == 0
    assert calls == ["served"] * 2
    assert acceptor.send_c_echo().Status == 0


def test_store_back_inside_a_handler(world: kit.World) -> None:
    """The acceptor's N-ACTION handler stores to the requestor before it answers.

    The requestor is waiting for its N-ACTION response: it serves nothing until then, so the
    store is answered by nobody and ends by the DIMSE timeout, on stock too.
    """

    def scenario(world: kit.World) -> Any:
        back: list[Any] = []

        def action(event: evt.Event) -> Any:
            event.assoc.dimse_timeout = 0.3
            back.append(kit.outcome(lambda: event.assoc.send_c_store(data.image(1))))
            return 0, None

        contexts = CTX + [(data.STORAGE_COMMITMENT, data.EXPLICIT)]
        server = world.serve(contexts, [(evt.EVT_N_ACTION, action)], roles=True)
        assoc = world.connect(
            server,
            contexts,
            [(evt.EVT_C_STORE, lambda event: 0)],
            ext_neg=[build_role(data.CT, scp_role=True, scu_role=True)],
        )
        kit.outcome(
            lambda: assoc.send_n_action(None, 1, data.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
        )
        kit.until(lambda: not assoc.is_established)
        return back

    assert kit.against_oracle(world, scenario) == [()]
