"""C-GET and C-MOVE over all four pairs: counts, statuses, failed instances, log lines; and paths on fast ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, build_role, evt
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation

from fastpdu import FileStore

CTX = [(data.CT, data.EXPLICIT)]
GET = [(data.STUDY_GET, data.EXPLICIT)]
MOVE = [(data.STUDY_MOVE, data.EXPLICIT)]
WITHOUT_BULK = "1.2.840.10008.5.1.4.1.2.5.3"
Results = Iterator[Any]
Store = Callable[[evt.Event], Any]
Archive = Callable[[evt.Event], Results]
SERVICES = ["get", "move"]
fast_only = pytest.mark.skipif("fast" not in kit.KINDS, reason="an extension of the fast ends")


class Retrieval:
    """An archive with the results of `archive`, and who retrieves from it with `store` as handler."""

    def __init__(
        self,
        world: kit.World,
        service: str,
        archive: Archive,
        store: Store,
        *,
        contexts: Any = CTX,
        model: str | None = None,
        bind: Any = (),
    ) -> None:
        self.service = service
        if service == "get":
            get = [(model or data.STUDY_GET, data.EXPLICIT)]
            handlers = [(evt.EVT_C_GET, archive)]
            self.server = world.serve([*contexts, *get], handlers, roles=True)
            roles = [build_role(abstract, scp_role=True) for abstract, _ in contexts]
            bound = [(evt.EVT_C_STORE, store), *bind]
            self.assoc = world.connect(self.server, [*contexts, *get], bound, ext_neg=roles)
            self.model = model or data.STUDY_GET
        else:
            self.destination = world.serve(contexts, [(evt.EVT_C_STORE, store)])

            def with_destination(event: evt.Event) -> Results:
                yield "127.0.0.1", self.destination.port
                yield from archive(event)

            ae = kit.make_ae(world.scp, "MOVER")
            ae.requested_contexts = self.destination.ae.supported_contexts
            self.server = world.serve(MOVE, [(evt.EVT_C_MOVE, with_destination)], ae=ae)
            self.assoc = world.connect(self.server, MOVE, bind)
            self.model = data.STUDY_MOVE

    def responses(self, msg_id: int = 7) -> Iterator[tuple[Dataset, Dataset | None]]:
        query = data.query(PatientID="1", QueryRetrieveLevel="STUDY")
        if self.service == "get":
            return self.assoc.send_c_get(query, self.model, msg_id=msg_id)
        return self.assoc.send_c_move(query, "DEST", self.model, msg_id=msg_id)

    def answers(self, msg_id: int = 7) -> Any:
        return kit.outcome(lambda: self.responses(msg_id))


def images(number: int = 4, size: int = 3000) -> Results:
    for index in range(number):
        yield 0xFF00, data.image(index + 1, size)


def good(event: evt.Event) -> Results:
    yield 4
    yield from images()


def early_success(event: evt.Event) -> Results:
    yield 4
    yield from images(2)
    yield 0x0000, None


def early_failure(event: evt.Event) -> Results:
    yield 4
    yield from images(2)
    yield 0xA702, None


def own_list(event: evt.Event) -> Results:
    yield 4
    yield from images(1)
    yield 0xA702, data.query(FailedSOPInstanceUIDList=["1.2.3", "1.2.4"])


def warning_status(event: evt.Event) -> Results:
    yield 4
    yield from images(2)
    yield 0xB000, None


def cancelled(event: evt.Event) -> Results:
    yield 4
    yield from images(2)
    yield 0xFE00, None


def raises_first(event: evt.Event) -> Results:
    raise ValueError("at once")
    yield 1


def raises_later(event: evt.Event) -> Results:
    yield 4
    yield from images(2)
    raise ValueError("later")


def no_dataset(event: evt.Event) -> Results:
    yield 3
    yield from images(1)
    yield 0xFF00, 17
    yield from images(1)


def incomplete(event: evt.Event) -> Results:
    yield 3
    yield from images(1)
    broken = data.image(9)
    del broken.SOPClassUID
    yield 0xFF00, broken
    yield from images(1)


def other_context(event: evt.Event) -> Results:
    yield 2
    yield 0xFF00, data.image(5, sop_class=data.MR)
    yield from images(1)


def too_many(event: evt.Event) -> Results:
    yield 2
    yield from images(4)


def too_few(event: evt.Event) -> Results:
    yield 9
    yield from images(2)


def nothing(event: evt.Event) -> Results:
    yield 0


def bad_number(event: evt.Event) -> Results:
    yield "many"


def unknown_status(event: evt.Event) -> Results:
    yield 3
    yield from images(1)
    yield 0x0FFF, None


def status_dataset(event: evt.Event) -> Results:
    yield 2
    status = data.query(ErrorComment="odd")
    status.Status = 0xFF00
    yield status, data.image(1)
    yield from images(1)


def empty_dataset(event: evt.Event) -> Results:
    yield 2
    yield 0xFF00, Dataset()
    yield from images(1)


def empty_text(event: evt.Event) -> Results:
    yield 2
    yield 0xFF00, ""
    yield from images(1)


ARCHIVES = [
    good,
    early_success,
    early_failure,
    own_list,
    warning_status,
    cancelled,
    raises_first,
    raises_later,
    no_dataset,
    incomplete,
    other_context,
    too_many,
    too_few,
    nothing,
    bad_number,
    unknown_status,
    status_dataset,
    empty_dataset,
    empty_text,
]


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.__name__)
@pytest.mark.parametrize("service", SERVICES)
def test_archives(world: kit.World, service: str, archive: Archive) -> None:
    def scenario(world: kit.World, service: str, name: str) -> Any:
        got: list[Any] = []

        def store(event: evt.Event) -> int:
            got.append((event.message_id, str(event.request.AffectedSOPInstanceUID)))
            return 0

        retrieval = Retrieval(world, service, archive, store)
        answers = retrieval.answers(65534)
        # The association is still good for something, or not, alike
        again = retrieval.answers(3)
        return answers, again, got, retrieval.assoc.is_established

    kit.against_oracle(world, scenario, service, archive.__name__)


def _dataset(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


STATUSES: dict[str, list[Any]] = {
    "datasets": [
        _dataset(Status=0),
        _dataset(Status=0xA700, ErrorComment="full"),
        _dataset(PatientID="1"),
        0,
    ],
    "odd dataset": [_dataset(Status=0, PatientID="1"), "0", True, 0],
    "warnings": [0, 0xB000, 0xB007, 0],
    "failures": [0, 0xA700, 0xC000, 0],
    "all fail": [0xA700] * 4,
    "unknown": [0, 0x0FFF, 0, 0],
    "none": [0, None, 0, 0],
}


@pytest.mark.parametrize("kind", STATUSES)
@pytest.mark.parametrize("service", SERVICES)
def test_statuses(world: kit.World, service: str, kind: str) -> None:
    def scenario(world: kit.World, service: str, kind: str) -> Any:
        statuses = iter(STATUSES[kind])
        return Retrieval(world, service, good, lambda event: next(statuses)).answers()

    kit.against_oracle(world, scenario, service, kind)


@pytest.mark.parametrize("service", SERVICES)
def test_log_lines(world: kit.World, service: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every line of both ends at INFO, thread by thread."""

    def scenario(world: kit.World, service: str) -> Any:
        statuses = iter([0, 0xB000, 0xA700, 0])
        retrieval = Retrieval(world, service, good, lambda event: next(statuses))
        caplog.clear()
        with caplog.at_level(logging.INFO, "pynetdicom"):
            answers = retrieval.answers()
        lines: dict[str, list[str]] = {"user": [], "archive": []}
        for record in caplog.records:
            if record.name == "pynetdicom.service-c" or record.name.endswith("service_class"):
                lines["archive"].append(record.getMessage())
            elif record.name.endswith("association") and record.threadName == "MainThread":
                lines["user"].append(record.getMessage())
        return answers, lines

    _, lines = kit.against_oracle(world, scenario, service)
    assert any("Pending" in line for line in lines["archive"])
    assert any("Sub-Operations" in line for line in lines["user"])


@pytest.mark.parametrize("service", SERVICES)
def test_cancel_in_the_middle(world: kit.World, service: str) -> None:
    def scenario(world: kit.World, service: str) -> Any:
        stored: list[int] = []
        cancel_sent = threading.Event()

        def archive(event: evt.Event) -> Results:
            yield 30
            for index, result in enumerate(images(30)):
                if index == 3:
                    assert cancel_sent.wait(kit.DEADLINE)
                    kit.until(lambda: event.is_cancelled, what="the cancellation")
                    yield 0xFE00, None
                    return
                yield result

        def store(event: evt.Event) -> int:
            stored.append(event.message_id)
            return 0

        retrieval = Retrieval(world, service, archive, store)
        responses = retrieval.responses(8)
        answers = [kit.status_of(next(responses)[0])]
        retrieval.assoc.send_c_cancel(8, None, retrieval.model)
        cancel_sent.set()
        answers += [kit.status_of(status) for status, _ in responses]
        return answers, stored

    answers, stored = kit.against_oracle(world, scenario, service)
    assert len(answers) == 4
    assert len(stored) == 3


@pytest.mark.parametrize("who", ["requestor", "archive", "receiver"])
@pytest.mark.parametrize("service", SERVICES)
def test_abort_in_the_middle(world: kit.World, service: str, who: str) -> None:
    """The second sub-operation ends the association, and nobody hangs."""
    if (service, who, world.scp) == ("move", "receiver", "stock"):
        pytest.skip("stock's archive may wait for the DIMSE timeout, as long as its requestor does")
    ended = threading.Event()

    def archive(event: evt.Event) -> Results:
        try:
            yield 4
            for index, result in enumerate(images()):
                if who == "archive" and index == 1:
                    event.assoc.abort()
                yield result
        finally:
            ended.set()

    count = []

    def store(event: evt.Event) -> int:
        count.append(1)
        if who == "receiver" and len(count) == 2:
            event.assoc.abort()
        return 0

    retrieval = Retrieval(world, service, archive, store)
    responses = retrieval.responses()
    statuses = []
    for status, _ in responses:
        statuses.append(status.get("Status"))
        if who == "requestor" and len(statuses) == 1:
            retrieval.assoc.abort()
            break
    assert ended.wait(kit.DEADLINE)
    if who == "receiver" and service == "move":
        assert statuses[-1] == 0xB000
    else:
        kit.until(lambda: not retrieval.assoc.is_established, what="the end")
    if who != "requestor" or service == "move":
        kit.until(lambda: retrieval.server.associations == [] or who == "receiver")


# Paths


def fast_world(scu: str = "fast") -> Any:
    return kit.world_of(scu, "fast")


def by_path(*items: Any) -> Archive:
    def archive(event: evt.Event) -> Results:
        yield len(items)
        for item in items:
            yield 0xFF00, item

    return archive


class Received:
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.originators: list[Any] = []

    def __call__(self, event: evt.Event) -> int:
        request = event.request
        self.got.append((str(request.AffectedSOPInstanceUID), kit.sha(request.DataSet.getvalue())))
        self.originators.append(
            (request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID)
        )
        return 0


def expected(*paths: Path) -> list[tuple[str, str]]:
    return [(str(dcmread(path).SOPInstanceUID), kit.sha(data.payload(path))) for path in paths]


@fast_only
@pytest.mark.parametrize("convert", [str, Path], ids=["str", "Path"])
@pytest.mark.parametrize("scu", kit.KINDS)
@pytest.mark.parametrize("service", SERVICES)
def test_paths(files: data.Files, service: str, scu: str, convert: Any) -> None:
    paths = [files.made(number, size) for number, size in ((1, 100), (2, 70_000), (3, 600_000))]
    received = Received()
    with fast_world(scu) as world:
        retrieval = Retrieval(world, service, by_path(*map(convert, paths)), received)
        with kit.road_delta() as delta:
            answers = list(retrieval.responses(7))
        if scu == "fast":
            assert delta["stock_sent"] == delta["stock_received"] == 0
        assert [status.Status for status, _ in answers] == [0xFF00] * 3 + [0]
        assert answers[-1][0].NumberOfCompletedSuboperations == 3
        assert [status.NumberOfRemainingSuboperations for status, _ in answers[:-1]] == [2, 1, 0]
    assert received.got == expected(*paths)
    assert received.originators == [("MOVER", 7) if service == "move" else (None, None)] * 3


@fast_only
@pytest.mark.parametrize("service", SERVICES)
def test_paths_are_counted_like_datasets(files: data.Files, service: str) -> None:
    """Whatever the receiver answers: the same responses with paths as stock gives with data sets."""
    paths = [files.made(number) for number in (1, 2, 3, 4)]

    def scenario(world: kit.World, service: str, by_path_: bool) -> Any:
        statuses = iter([0, 0xB000, 0xA700, 0])
        items = paths if by_path_ else [dcmread(path) for path in paths]
        return Retrieval(world, service, by_path(*items), lambda event: next(statuses)).answers()

    with kit.world_of("stock", "stock") as world:
        stock = scenario(world, service, False)
    with fast_world() as world:
        assert scenario(world, service, True) == stock
    assert "FailedSOPInstanceUIDList" not in str(stock[0])


@fast_only
@pytest.mark.parametrize("service", SERVICES)
def test_paths_that_cannot_be_sent(
    files: data.Files, service: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each fails alone, is in the list if it has a UID, and the log says which file and why."""
    whole = files.made(1)
    missing = tmp_path / "missing.dcm"
    no_dicom = tmp_path / "text.dcm"
    no_dicom.write_bytes(b"this is no DICOM file " * 40)
    other = files.made(6, sop_class=data.MR)
    received = Received()
    with fast_world() as world:
        archive = by_path(missing, whole, str(no_dicom), other, tmp_path, files.made(2))
        retrieval = Retrieval(world, service, archive, received)
        answers = list(retrieval.responses())
        last, identifier = answers[-1]
        assert [status.NumberOfFailedSuboperations for status, _ in answers] == [
            1,
            1,
            2,
            3,
            4,
            4,
            4,
        ]
        assert last.Status == 0xB000
        assert last.NumberOfCompletedSuboperations == 2
        assert identifier is not None
        assert identifier.FailedSOPInstanceUIDList == str(dcmread(other).SOPInstanceUID)
    assert received.got == expected(whole, files.made(2))
    lines = [record.getMessage() for record in caplog.records if "Unable to send" in record.message]
    assert [
        str(path) in line
        for path, line in zip((missing, no_dicom, other, tmp_path), lines, strict=True)
    ] == [True] * 4
    assert "No such file" in lines[0]
    assert "DICM" in lines[1]
    assert "No presentation context" in lines[2]


class Odd:
    """A path of somebody's own."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def __fspath__(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def __repr__(self) -> str:
        return "<Odd path>"


@fast_only
@pytest.mark.parametrize("model", [data.STUDY_GET, WITHOUT_BULK, data.STUDY_MOVE])
def test_odd_path_objects(files: data.Files, model: str, caplog: pytest.LogCaptureFixture) -> None:
    """One that says nothing useful fails alone, bytes are the path that they encode."""
    path = files.made(1)
    stored: list[str] = []

    def store(event: evt.Event) -> int:
        stored.append(event.request.AffectedSOPInstanceUID)
        return 0

    bad = [Odd(ValueError("moved to tape")), Odd(17)]
    service = "move" if model == data.STUDY_MOVE else "get"
    with fast_world() as world:
        archive = by_path(*bad, Odd(bytes(path)), Odd(str(path)))
        answers = list(Retrieval(world, service, archive, store, model=model).responses())
        assert [status.Status for status, _ in answers] == [0xFF00] * 4 + [0xB000]
        assert answers[-1][0].NumberOfFailedSuboperations == 2
    assert stored == [dcmread(path).SOPInstanceUID] * 2
    lines = [record.getMessage() for record in caplog.records if "Unable to send" in record.message]
    assert len(lines) == 2
    assert all("<Odd path>" in line for line in lines)
    assert "moved to tape" in lines[0]


@fast_only
@pytest.mark.parametrize("sop_class", [data.CT, data.STUDY_GET])
def test_paths_after_common_extended_negotiation(files: data.Files, sop_class: str) -> None:
    """Which service a SOP class belongs to has been negotiated: for another one, and for the one of the request."""
    item = SOPClassCommonExtendedNegotiation()
    item.sop_class_uid = UID(sop_class)
    # pynetdicom takes it for a SOP class
    item.service_class_uid = UID("1.2.840.10008.5.1.4.1.2.1.3")
    received = Received()
    paths = [files.made(1), files.made(2)]
    with fast_world() as world:
        server = world.serve(
            [*CTX, *GET],
            [(evt.EVT_SOP_COMMON, lambda event: event.items), (evt.EVT_C_GET, by_path(*paths))],
            roles=True,
        )
        assoc = world.connect(
            server,
            [*CTX, *GET],
            [(evt.EVT_C_STORE, received)],
            ext_neg=[build_role(data.CT, scp_role=True), item],
        )
        assert server.one().acceptor.accepted_common_extended
        query = data.query(PatientID="1", QueryRetrieveLevel="STUDY")
        answers = list(assoc.send_c_get(query, data.STUDY_GET))
    assert [status.Status for status, _ in answers] == [0xFF00] * 2 + [0]
    assert received.got == expected(*paths)


def test_common_extended_negotiation_of_another_service(world: kit.World) -> None:
    """What pynetdicom then does with the request is done here, too."""

    def scenario(world: kit.World) -> Any:
        item = SOPClassCommonExtendedNegotiation()
        item.sop_class_uid = UID(data.STUDY_GET)
        item.service_class_uid = UID("1.2.3.4")
        server = world.serve(
            [*CTX, *GET],
            [(evt.EVT_SOP_COMMON, lambda event: event.items), (evt.EVT_C_GET, good)],
            roles=True,
        )
        assoc = world.connect(
            server, [*CTX, *GET], ext_neg=[build_role(data.CT, scp_role=True), item]
        )
        query = data.query(PatientID="1", QueryRetrieveLevel="STUDY")
        answers = kit.outcome(lambda: assoc.send_c_get(query, data.STUDY_GET))
        kit.until(lambda: not assoc.is_established, what="the abort")
        return answers, assoc.is_aborted

    assert kit.against_oracle(world, scenario)[1]


@fast_only
@pytest.mark.parametrize("service", SERVICES)
def test_path_with_a_final_status(files: data.Files, service: str) -> None:
    """There it is nothing: the list of failed instances is made, as for a data set without one."""

    def archive(event: evt.Event) -> Results:
        yield 2
        yield 0xFF00, files.made(1)
        yield 0xA702, files.made(2)

    with fast_world() as world:
        answers = list(Retrieval(world, service, archive, Received()).responses())
    assert [status.Status for status, _ in answers] == [0xFF00, 0xA702]
    assert answers[-1][0].NumberOfFailedSuboperations == 1


@fast_only
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("syntax", [data.IMPLICIT, data.DEFLATED])
def test_path_in_another_transfer_syntax(files: data.Files, service: str, syntax: str) -> None:
    """Explicit VR was accepted: the file is decoded and encoded, as `send_c_store(path)` does."""
    path = files.made(11, 5000, syntax=syntax)
    got: list[Dataset] = []

    def store(event: evt.Event) -> int:
        assert event.context.transfer_syntax == data.EXPLICIT
        got.append(event.dataset)
        return 0

    with fast_world() as world:
        answers = list(Retrieval(world, service, by_path(path), store).responses())
    assert [status.Status for status, _ in answers] == [0xFF00, 0]
    assert got == [data.image(11, 5000)]


@fast_only
@pytest.mark.parametrize("service", SERVICES)
def test_path_in_a_transfer_syntax_that_cannot_be_converted(
    files: data.Files, service: str
) -> None:
    path = files.made(12, 5000, syntax=data.BIG)
    received = Received()
    with fast_world() as world:
        answers = list(Retrieval(world, service, by_path(path), received).responses())
    assert [status.Status for status, _ in answers] == [0xFF00, 0xA702]
    assert answers[-1][1] is not None
    assert answers[-1][1].FailedSOPInstanceUIDList == str(dcmread(path).SOPInstanceUID)
    assert received.got == []


@fast_only
def test_path_without_bulk_data(files: data.Files) -> None:
    """Composite Instance Retrieve Without Bulk Data (PS3.4 Z): the pixels are removed from the file's data set, too."""
    path = files.made(13, 5000)
    before = path.read_bytes()
    got: list[Dataset] = []

    def store(event: evt.Event) -> int:
        got.append(event.dataset)
        return 0

    with fast_world() as world:
        archive = by_path(path, files.not_dicom())
        retrieval = Retrieval(world, "get", archive, store, model=WITHOUT_BULK)
        answers = list(retrieval.responses())
    assert answers[-1][0].NumberOfCompletedSuboperations == 1
    assert answers[-1][0].NumberOfFailedSuboperations == 1
    assert [("PixelData" in ds, ds.PatientID) for ds in got] == [(False, "P7")]
    assert path.read_bytes() == before


@fast_only
def test_paths_to_files(files: data.Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-GET by path, received into files: no data set is ever whole in memory."""
    paths = [files.made(number, 300_000) for number in (1, 2, 3)]
    arrived: list[Path] = []

    def store(event: evt.Event) -> int:
        arrived.append(event.dataset_path)
        return 0

    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    try:
        with fast_world() as world:
            answers = list(Retrieval(world, "get", by_path(*paths), store).responses())
        assert answers[-1][0].NumberOfCompletedSuboperations == 3
        assert [data.payload(path) for path in arrived] == [data.payload(path) for path in paths]
    finally:
        for path in arrived:
            path.unlink(missing_ok=True)


@fast_only
@pytest.mark.parametrize("service", SERVICES)
def test_cancel_between_paths(files: data.Files, service: str) -> None:
    """A C-CANCEL is seen between two sub-operations, without a wait for it."""
    path = files.made(1, 50_000)
    seen: list[int] = []

    def archive(event: evt.Event) -> Results:
        yield 60_000
        for index in range(60_000):
            if event.is_cancelled:
                seen.append(index)
                yield 0xFE00, None
                return
            yield 0xFF00, path

    with fast_world() as world:
        retrieval = Retrieval(world, service, archive, Received())
        responses = retrieval.responses(5)
        next(responses)
        retrieval.assoc.send_c_cancel(5, None, retrieval.model)
        *_, (last, _) = responses
    assert last.Status == 0xFE00
    assert seen == [last.NumberOfCompletedSuboperations]


class Gate(threading.Event):
    """An archive that waits until its requestor waits, and has done something meanwhile."""

    def archive(self, *results: Any) -> Archive:
        def archive(event: evt.Event) -> Results:
            assert self.wait(kit.DEADLINE)
            yield len(results)
            yield from results

        return archive

    def open_after(self, action: Callable[[], Any]) -> None:
        def run() -> None:
            # The requestor waits by then; if not, there is less to see
            threading.Event().wait(0.2)
            action()
            self.set()

        threading.Thread(target=run).start()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("number", [0, 3])
def test_watcher_bound_while_the_requestor_waits(
    world: kit.World, service: str, number: int
) -> None:
    """It sees every PDU from then on, and no response is lost to it."""

    def scenario(world: kit.World, service: str, number: int) -> Any:
        gate, seen = Gate(), []
        retrieval = Retrieval(world, service, gate.archive(*images(number)), lambda event: 0)
        gate.open_after(
            lambda: retrieval.assoc.bind(
                evt.EVT_PDU_RECV, lambda event: seen.append(type(event.pdu).__name__)
            )
        )
        answers = retrieval.answers()
        return answers, set(seen), retrieval.assoc.is_established

    _, seen, established = kit.against_oracle(world, scenario, service, number)
    assert seen == {"P_DATA_TF"}
    assert established


@fast_only
def test_store_handler_bound_while_the_requestor_waits(tmp_path: Path) -> None:
    """A FileStore no longer has what comes after it was replaced, and has it after it was bound."""
    got: list[int] = []

    def store(event: evt.Event) -> int:
        got.append(len(event.request.DataSet.getvalue()))
        return 0

    for first, second, number in (
        (FileStore(tmp_path / "a"), store, 0),
        (store, FileStore(tmp_path / "b"), 2),
    ):
        gate = Gate()
        with fast_world() as world:
            retrieval = Retrieval(world, "get", gate.archive(*images(2)), first)
            gate.open_after(lambda: retrieval.assoc.bind(evt.EVT_C_STORE, second))
            assert list(retrieval.responses())[-1][0].Status == 0
        assert len([*tmp_path.rglob("*.dcm")]) == number
    assert len(got) == 2
    assert min(got) > 3000


@fast_only
def test_path_through_a_wrapper(files: data.Files) -> None:
    """Whoever has replaced `send_c_store` sees a status as pynetdicom gives it."""
    found: list[Any] = []

    def wrap(assoc: Any) -> None:
        plain = assoc.send_c_store

        def send_c_store(*args: Any, **kwargs: Any) -> Dataset:
            status = plain(*args, **kwargs)
            found.append(("Status" in status, status.get("Status"), type(status)))
            return status

        assoc.send_c_store = send_c_store

    def archive(event: evt.Event) -> Results:
        wrap(event.assoc)
        yield 1
        yield 0xFF00, files.made(1)

    with fast_world() as world:
        answers = list(Retrieval(world, "get", archive, Received()).responses())
    assert answers[-1][0].NumberOfCompletedSuboperations == 1
    assert found == [(True, 0, Dataset)]
