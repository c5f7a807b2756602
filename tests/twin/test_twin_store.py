"""C-STORE: what is sent, what arrives, what the handler sees, what the caller gets."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pynetdicom import _config, evt
from pynetdicom.dimse_primitives import C_STORE

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom has opinions about its own test files


@contextmanager
def config(**flags: Any) -> Iterator[None]:
    before = {name: getattr(_config, name) for name in flags}
    for name, value in flags.items():
        setattr(_config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_config, name, value)


def request_key(req: C_STORE) -> tuple[Any, ...]:
    return (
        str(req.AffectedSOPClassUID),
        str(req.AffectedSOPInstanceUID),
        req.MessageID,
        req.Priority,
        req.MoveOriginatorApplicationEntityTitle,
        req.MoveOriginatorMessageID,
    )


def content(ds: Dataset) -> str:
    """All elements in words, but for group lengths, and for the lengths of sequences."""
    lines = [str(elem) for elem in ds if elem.tag.element != 0]
    return "\n".join([*lines, kit.sha(ds.get("PixelData", b""))])


class Sink:
    """An EVT_C_STORE handler that keeps what it got in comparable form."""

    def __init__(self, chunked: bool = False) -> None:
        self.got: list[Any] = []
        self.chunked = chunked
        self.decoded = False  # compare what the bytes say, not the bytes

    def __call__(self, event: evt.Event) -> int:
        if self.chunked:
            whole = event.dataset_path.read_bytes()
            body = kit.sha(data.payload(event.dataset_path))
            head = kit.sha(whole[: len(whole) - len(data.payload(event.dataset_path))])
        else:
            body = kit.sha(event.request.DataSet.getvalue())
            whole = event.encoded_dataset(include_meta=True)
            head = kit.sha(whole[: len(whole) - len(event.request.DataSet.getvalue())])
        if self.decoded:
            body = kit.sha(content(dcmread(BytesIO(whole))).encode())
        self.got.append((request_key(event.request), tuple(map(str, event.context)), body, head))
        return 0x0000

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self)]


CTX = [(data.CT, data.EXPLICIT)]
MODES = ["path", "dataset", "send-chunked", "recv-chunked", "both-chunked"]


def flags(mode: str) -> dict[str, Any]:
    return {
        "STORE_SEND_CHUNKED_DATASET": mode in ("send-chunked", "both-chunked"),
        "STORE_RECV_CHUNKED_DATASET": mode in ("recv-chunked", "both-chunked"),
    }


def readable(path: Path) -> Callable[[], Dataset]:
    return lambda: dcmread(path)


@pytest.mark.parametrize("mode", MODES)
def test_every_shipped_file(world: kit.World, mode: str) -> None:
    """All transfer syntaxes that pydicom ships: compressed, deflated, implicit, big endian."""

    def scenario(world: kit.World, mode: str) -> Any:
        sink = Sink("recv" in mode or "both" in mode)
        contexts = data.contexts_for(data.shipped())
        server = world.serve(contexts, sink.handlers)
        assoc = world.connect(server, contexts)
        results = []
        for number, path in enumerate(data.shipped()[:: MODES.index(mode) + 1], 1):
            item = dcmread(path) if mode == "dataset" else path
            # a fast SCU sends a file verbatim, stock decodes it and encodes it again
            sink.decoded = mode in ("path", "recv-chunked")
            results.append(kit.outcome(lambda: assoc.send_c_store(item, msg_id=number)))
        assoc.release()
        server.quiet()
        return results, sink.got

    with config(**flags(mode)):
        results, got = kit.against_oracle(world, scenario, mode)
    stored = [result for result in results if result == (("Status", "0"),)]
    assert len(stored) > 10
    assert len(stored) == len(got)


@pytest.mark.parametrize("syntax", [data.IMPLICIT, data.EXPLICIT, data.BIG])
@pytest.mark.parametrize("mode", ["path", "dataset", "send-chunked"])
def test_conversion(world: kit.World, mode: str, syntax: str) -> None:
    """Only one transfer syntax accepted: converted, or refused with the same exception."""

    def scenario(world: kit.World, mode: str, syntax: str) -> Any:
        sink = Sink()
        contexts = sorted({(abstract, syntax) for abstract, _ in data.contexts_for(data.shipped())})
        server = world.serve(contexts, sink.handlers)
        assoc = world.connect(server, contexts)
        results = []
        for path in data.shipped()[::3]:
            item = dcmread(path) if mode == "dataset" else path
            # a fast SCU sends a file verbatim, stock decodes it and encodes it again
            sink.decoded = mode in ("path", "recv-chunked")
            results.append(kit.outcome(lambda: assoc.send_c_store(item)))
        return results, sink.got

    with config(**flags(mode)):
        results, got = kit.against_oracle(world, scenario, mode, syntax)
    assert any(isinstance(result[0], str) for result in results)
    assert got


def test_verbatim(world: kit.World, files: data.Files) -> None:
    """What a path holds behind its meta information arrives byte for byte."""
    paths = [
        files.made(number, size, syntax=syntax)
        for syntax in (data.EXPLICIT, data.IMPLICIT, data.BIG)
        for number, size in enumerate((0, 2, 5000, 16368, 16370, 16376, 16378, 16382, 70000), 1)
    ]
    contexts = [(data.CT, [syntax]) for syntax in (data.EXPLICIT, data.IMPLICIT, data.BIG)]
    got: list[str] = []

    def handler(event: evt.Event) -> int:
        got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    server = world.serve(contexts, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, contexts)
    with kit.road_delta() as delta:
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
    assert got == [kit.sha(data.payload(path)) for path in paths]
    assert delta["stock_sent"] == delta["stock_received"] == 0
    assert delta["fast_sent"] == delta["fast_received"] == len(paths) * world.fast_ends


@pytest.mark.parametrize("receive", [False, True], ids=["recv-memory", "recv-file"])
@pytest.mark.parametrize("pdu", [0, 7, 16382], ids=lambda pdu: f"pdu{pdu}")
def test_chunked_odd_sizes(world: kit.World, files: data.Files, receive: bool, pdu: int) -> None:
    """Chunked sending moves any number of bytes, odd ones too, whatever they mean."""
    sizes = [8, 9, 16375, 16376, 16377, 32752, 50001] if pdu != 7 else [8, 9, 701]
    got: list[tuple[int, str]] = []

    def handler(event: evt.Event) -> int:
        if receive:
            raw = event.dataset_path.read_bytes()
            raw = raw[-sizes[len(got)] :]
        else:
            raw = event.request.DataSet.getvalue()
        got.append((len(raw), kit.sha(raw)))
        return 0

    with config(STORE_SEND_CHUNKED_DATASET=True, STORE_RECV_CHUNKED_DATASET=receive):
        server = world.serve(
            CTX,
            [(evt.EVT_C_STORE, handler)],
            attributes={"maximum_pdu_size": pdu},
        )
        assoc = world.connect(server, CTX)
        for size in sizes:
            assert assoc.send_c_store(files.odd_payload(size)).Status == 0
    assert got == [(size, kit.sha(b"\x07" * size)) for size in sizes]


@pytest.mark.parametrize("as_path", [True, False], ids=["path", "dataset"])
def test_large(world: kit.World, files: data.Files, as_path: bool) -> None:
    """64 MB, and a memory image that fills many PDUs."""
    size = 64 * 2**20
    path = files.made(64, size)
    got: list[str] = []

    def handler(event: evt.Event) -> int:
        got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    server = world.serve(
        CTX,
        [(evt.EVT_C_STORE, handler)],
        attributes={"maximum_pdu_size": 1 << 20},
    )
    assoc = world.connect(server, CTX)
    item = path if as_path else dcmread(path)
    assert assoc.send_c_store(item).Status == 0
    assert got == [kit.sha(data.payload(path))]


def test_event_attributes(world: kit.World, files: data.Files) -> None:
    """Everything an EVT_C_STORE handler can ask its event."""
    path = files.made(5, 4000)
    checks = kit.Checks()

    @checks
    def handler(event: evt.Event, extra: str) -> int:
        assert extra == "extra"
        req = event.request
        assert type(req) is C_STORE
        assert isinstance(req.DataSet, BytesIO)
        assert hash(req.DataSet) is not None
        raw = req.DataSet.getvalue()
        assert req.DataSet.tell() == len(raw)
        assert raw == data.payload(path)
        assert event.encoded_dataset(include_meta=False) == raw
        part10 = event.encoded_dataset()
        assert part10[128:132] == b"DICM"
        assert part10.endswith(raw)
        ds = event.dataset
        assert event.dataset is ds
        assert ds.PatientName == "Twin^Test"
        assert ds.PixelData == dcmread(path).PixelData
        meta = event.file_meta
        assert meta.TransferSyntaxUID == data.EXPLICIT
        assert meta.MediaStorageSOPClassUID == data.CT
        assert meta.MediaStorageSOPInstanceUID == req.AffectedSOPInstanceUID
        assert event.message_id == req.MessageID == 77
        assert req.Priority == 1
        assert req.MoveOriginatorApplicationEntityTitle == "MOVER"
        assert req.MoveOriginatorMessageID == 12
        assert req.is_valid_request
        assert not req.is_valid_response
        assert req.msg_type == "C-STORE"
        assert req._context_id == 1
        assert req._dataset_path is None
        assert event.dataset_path is None
        assert event.context.abstract_syntax == data.CT
        assert event.context.transfer_syntax == data.EXPLICIT
        assert event.context.context_id == 1
        assert event.assoc is server.associations[0]
        assert event.assoc.is_acceptor
        assert event.event is evt.EVT_C_STORE
        assert event.timestamp is not None
        assert event.is_cancelled is False
        with pytest.raises(AttributeError):
            event.identifier  # noqa: B018
        assert kit.thread_kind() == "association"
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler, ["extra"])])
    assoc = world.connect(server, CTX)
    rsp = assoc.send_c_store(path, msg_id=77, priority=1, originator_aet="MOVER", originator_id=12)
    checks.verify(1)
    assert kit.status_of(rsp) == (("Status", "0"),)


def test_request_outlives_the_handler(world: kit.World, files: data.Files) -> None:
    """Handlers keep requests, bytes and data sets: later messages must not change them."""
    paths = [files.made(number, 20000) for number in range(1, 8)]
    kept: list[Any] = []

    def handler(event: evt.Event) -> int:
        kept.append((event, event.request, event.request.DataSet, event.dataset))
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    for path in paths:
        assert assoc.send_c_store(path).Status == 0
    assoc.release()
    gc.collect()
    for path, (event, request, stream, dataset) in zip(paths, kept, strict=True):
        assert event.request is request
        assert request.DataSet is stream
        assert stream.getvalue() == data.payload(path)
        assert dataset == dcmread(path)
        stream.seek(0)
        assert stream.read() == data.payload(path)
        stream.write(b"more")


def test_chunked_receive_file(world: kit.World, files: data.Files) -> None:
    """The temporary file: complete in the handler, removed after it, also when it is kept open."""
    path = files.made(6, 40000)
    checks = kit.Checks()
    names: list[Path] = []

    @checks
    def handler(event: evt.Event) -> int:
        name = event.dataset_path
        names.append(name)
        assert isinstance(name, Path)
        assert name.suffix == ".dcm"
        assert event.request._dataset_path == name
        assert event.request.DataSet.getvalue() == b""
        raw = name.read_bytes()
        assert raw[:128] == b"\0" * 128
        assert raw[128:132] == b"DICM"
        assert raw.endswith(data.payload(path))
        ds = dcmread(name)
        assert ds.file_meta.TransferSyntaxUID == data.EXPLICIT
        assert ds.file_meta.MediaStorageSOPClassUID == data.CT
        assert ds == dcmread(path)
        assert event.message_id == 3
        if len(names) == 2:
            name.unlink()  # the handler may have moved it away
        return 0

    with config(STORE_RECV_CHUNKED_DATASET=True):
        server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
        assoc = world.connect(server, CTX)
        for _ in range(3):
            assert assoc.send_c_store(path, msg_id=3).Status == 0
    checks.verify(3)
    assoc.release()
    server.quiet()
    assert len(set(names)) == 3
    assert not any(name.exists() for name in names)


def optional_status() -> Dataset:
    ds = Dataset()
    ds.Status = 0xB007
    ds.ErrorComment = "some comment"
    ds.OffendingElement = [0x00100010, 0x00100020]
    return ds


def missing_status() -> Dataset:
    ds = Dataset()
    ds.ErrorComment = "no status"
    return ds


def raising(event: evt.Event) -> int:
    raise ValueError("a handler may fail")


STATUSES: dict[str, Callable[[], Any]] = {
    "0000": lambda: 0x0000,
    "b000": lambda: 0xB000,
    "a700": lambda: 0xA700,
    "unknown": lambda: 0xFFF0,
    "dataset": optional_status,
    "dataset-without-status": missing_status,
    "none": lambda: None,
    "text": lambda: "0x0000",
    "bool": lambda: True,
}


@pytest.mark.parametrize("name", list(STATUSES))
def test_statuses(world: kit.World, files: data.Files, name: str) -> None:
    """A status as int, as Dataset, and everything else that handlers return."""

    def scenario(world: kit.World, name: str) -> Any:
        server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: STATUSES[name]())])
        assoc = world.connect(server, CTX)
        return [kit.outcome(lambda: assoc.send_c_store(files.made(7))) for _ in range(2)]

    kit.against_oracle(world, scenario, name)


def abort_in_handler(event: evt.Event) -> int:
    event.assoc.abort()
    return 0


@pytest.mark.parametrize("mode", ["memory", "file"])
@pytest.mark.parametrize(
    ("handler", "alive"),
    [(raising, True), (abort_in_handler, False)],
    ids=["raise", "abort"],
)
def test_handlers_that_end_badly(
    world: kit.World, files: data.Files, handler: Callable[..., int], alive: bool, mode: str
) -> None:
    def scenario(world: kit.World, name: str, mode: str) -> Any:
        server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
        assoc = world.connect(server, CTX)
        first = kit.outcome(lambda: assoc.send_c_store(files.made(8)))
        if not alive:
            kit.until(lambda: not assoc.is_established)
        second = kit.outcome(lambda: assoc.send_c_store(files.made(8)))
        state = (assoc.is_established, assoc.is_aborted, assoc.is_released)
        return first, second, state

    with config(STORE_RECV_CHUNKED_DATASET=mode == "file"):
        _, _, state = kit.against_oracle(world, scenario, handler.__name__, mode)
    assert state[0] is alive


def test_release_in_a_handler(world: kit.World, files: data.Files) -> None:
    """The requestor waits for its response, so this ends by the timeouts: but it ends."""

    def handler(event: evt.Event) -> int:
        event.assoc.release()
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)], attributes={"acse_timeout": 0.3})
    assoc = world.connect(server, CTX, attributes={"dimse_timeout": 1})
    assert kit.outcome(lambda: assoc.send_c_store(files.made(8))) == ()
    kit.until(lambda: not assoc.is_established)
    server.quiet()


def test_dataset_variants(world: kit.World) -> None:
    """Data sets made in memory: encodings, mismatches, missing elements."""

    def variants() -> Iterator[tuple[str, Dataset]]:
        yield "plain", data.image(1)
        ds = data.image(2)
        del ds.file_meta
        yield "no file meta", ds
        ds = data.image(3)
        del ds.file_meta.TransferSyntaxUID
        yield "no transfer syntax", ds
        ds = data.image(4)
        del ds.SOPClassUID
        yield "no class", ds
        ds = data.image(5)
        del ds.SOPInstanceUID
        yield "no instance", ds
        ds = data.image(6, sop_class=data.MR)
        yield "no context", ds
        ds = data.image(7, syntax="1.2.840.10008.1.2.4.50")
        yield "compressed without context", ds
        ds = data.image(8)
        ds.PatientName = "Ännchen^ß"
        yield "wrong charset", ds
        ds = data.image(9)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName = "Ännchen^ß"
        ds.PatientComments = "x" * 70001
        yield "utf-8", ds
        ds = data.image(10)
        ds.Rows = "not a number"
        yield "cannot be encoded", ds
        ds = data.image(11)
        ds.SOPInstanceUID = "not.a.uid.x"
        yield "bad uid", ds
        ds = data.image(12)
        ds.SOPInstanceUID = "1." * 40 + "1"
        yield "long uid", ds
        ds = data.image(13, size=300000)
        yield "many PDUs", ds
        yield "empty", Dataset()
        ds = Dataset()
        ds.file_meta = data.image(1).file_meta
        yield "only file meta", ds
        ds = data.image(14)
        ds.is_implicit_VR = True  # against the file meta
        ds.is_little_endian = True
        yield "mismatch implicit", ds
        ds = data.image(15)
        ds.PixelData = b""
        yield "no pixels", ds
        ds = data.image(16)
        ds.PixelData = b"\1\2\3"
        yield "odd pixels", ds

    def scenario(world: kit.World) -> Any:
        sink = Sink()
        contexts = [(data.CT, [data.EXPLICIT]), (data.CT, [data.IMPLICIT])]
        server = world.serve(contexts, sink.handlers)
        assoc = world.connect(server, contexts)
        results = []
        for name, ds in variants():
            results.append((name, kit.outcome(lambda: assoc.send_c_store(ds))))
        return results, sink.got

    results, _ = kit.against_oracle(world, scenario)
    names = dict(results)
    assert names["plain"] == names["utf-8"] == names["many PDUs"] == (("Status", "0"),)
    assert names["no instance"][0] == names["no transfer syntax"][0] == "AttributeError"


def test_the_callers_dataset_is_left_alone(world: kit.World) -> None:
    """Sending must not change the caller's Dataset."""
    server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
    assoc = world.connect(server, CTX)
    ds = data.image(3, 50000)
    pixels = ds.PixelData
    assert assoc.send_c_store(ds).Status == 0
    assert ds == data.image(3, 50000)
    assert ds.PixelData is pixels
    assert assoc.send_c_store(ds).Status == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_bad_paths(world: kit.World, files: data.Files, chunked: bool) -> None:
    """The same exceptions, and an association that goes on."""

    def scenario(world: kit.World, chunked: bool) -> Any:
        sink = Sink()
        sink.decoded = not chunked  # a fast SCU sends a file verbatim
        server = world.serve(CTX, sink.handlers)
        assoc = world.connect(server, CTX)
        odd: list[Any] = [
            files.directory / "missing.dcm",
            str(files.directory / "missing.dcm"),
            files.directory,
            files.not_dicom(),
            files.empty(),
            files.truncated(),
            files.made(9, sop_class=data.MR),
            files.made(9, syntax=data.BIG, sop_class=data.MR),
            str(files.made(9)),
            os.fspath(files.made(9)).encode(),
            None,
            7,
        ]
        odd += [path for path in data.shipped() if "bad_meta" in path.name]
        odd += [path.with_name("CTImageStorage_bad_meta.dcm") for path in data.shipped()[-1:]]
        results = [kit.outcome(lambda: assoc.send_c_store(item)) for item in odd]
        results.append(kit.outcome(lambda: assoc.send_c_store(files.made(9))))
        here = str(files.directory)
        return [
            tuple(str(part).replace(here, "HERE") for part in result) for result in results
        ], sink.got

    with config(STORE_SEND_CHUNKED_DATASET=chunked):
        results, _ = kit.against_oracle(world, scenario, chunked)
    assert results[0][0] == "FileNotFoundError"
    assert results[-1] == ("('Status', '0')",)


def test_parameters(world: kit.World, files: data.Files) -> None:
    """Message id, priority, originator: accepted and refused alike."""

    def scenario(world: kit.World) -> Any:
        sink = Sink()
        server = world.serve(CTX, sink.handlers)
        assoc = world.connect(server, CTX)
        results = []
        for kwargs in (
            {},
            {"msg_id": 0},
            {"msg_id": 65535},
            {"msg_id": 65536},
            {"msg_id": -1},
            {"msg_id": "x"},
            {"priority": 0},
            {"priority": 1},
            {"priority": 2},
            {"priority": 3},
            {"originator_aet": "  LEADING"},
            {"originator_aet": "x" * 17},
            {"originator_aet": ""},
            {"originator_aet": "A", "originator_id": 65535},
            {"originator_id": 65536},
        ):
            results.append(
                (kwargs, kit.outcome(lambda: assoc.send_c_store(files.made(10), **kwargs)))
            )
        return results, sink.got

    kit.against_oracle(world, scenario)


def test_not_established(world: kit.World, files: data.Files) -> None:
    """All calls on an association that is over raise RuntimeError, as stock."""

    def scenario(world: kit.World) -> Any:
        server = world.serve(CTX)
        assoc = world.connect(server, CTX)
        assoc.release()
        query = data.query(PatientID="x")
        calls: list[Callable[[], Any]] = [
            lambda: assoc.send_c_echo(),
            lambda: assoc.send_c_store(files.made(11)),
            lambda: assoc.send_c_store(files.directory / "missing"),
            lambda: assoc.send_c_find(query, data.STUDY_FIND),
            lambda: assoc.send_c_get(query, data.STUDY_GET),
            lambda: assoc.send_c_move(query, "X", data.STUDY_MOVE),
            lambda: assoc.send_c_cancel(1, 1),
            lambda: assoc.send_n_get([], data.PRINTER, "1.2"),
            lambda: assoc.send_n_set(query, data.PRINTER, "1.2"),
            lambda: assoc.send_n_create(query, data.PRINTER, "1.2"),
            lambda: assoc.send_n_delete(data.PRINTER, "1.2"),
            lambda: assoc.send_n_action(query, 1, data.PRINTER, "1.2"),
            lambda: assoc.send_n_event_report(query, 1, data.PRINTER, "1.2"),
        ]
        return [kit.outcome(call) for call in calls]

    results = kit.against_oracle(world, scenario)
    assert {result[0] for result in results} == {"RuntimeError"}


def test_unrestricted_storage(world: kit.World) -> None:
    """Any SOP class, also private ones, with UNRESTRICTED_STORAGE_SERVICE."""

    def scenario(world: kit.World) -> Any:
        sink = Sink()
        server = world.serve([data.VERIFICATION], sink.handlers)
        contexts = [("1.2.3.4.5.6", data.EXPLICIT), (data.MR, data.IMPLICIT)]
        assoc = world.connect(server, contexts)
        results = [
            kit.outcome(lambda: assoc.send_c_store(data.image(1, sop_class="1.2.3.4.5.6"))),
            kit.outcome(
                lambda: assoc.send_c_store(data.image(2, sop_class=data.MR, syntax=data.IMPLICIT))
            ),
        ]
        return results, sink.got

    with config(UNRESTRICTED_STORAGE_SERVICE=True):
        _, got = kit.against_oracle(world, scenario)
    assert len(got) == 2


def test_uid_conformance(world: kit.World) -> None:
    """ENFORCE_UID_CONFORMANCE applies to what is sent and to what is received."""

    def scenario(world: kit.World, enforce: bool) -> Any:
        sink = Sink()
        server = world.serve(CTX, sink.handlers)
        assoc = world.connect(server, CTX)
        ds = data.image(1)
        ds.SOPInstanceUID = "1.2.003.4"
        return kit.outcome(lambda: assoc.send_c_store(ds)), sink.got

    for enforce in (False, True):
        with config(ENFORCE_UID_CONFORMANCE=enforce):
            kit.against_oracle(world, scenario, enforce)


def test_default_handler(world: kit.World, files: data.Files) -> None:
    """No EVT_C_STORE handler bound: 0xC211 as stock says it."""

    def scenario(world: kit.World) -> Any:
        server = world.serve([data.CT, data.VERIFICATION])
        assoc = world.connect(server, [data.CT, data.VERIFICATION])
        return (
            kit.outcome(lambda: assoc.send_c_store(files.made(12))),
            kit.outcome(lambda: assoc.send_c_echo()),
        )

    kit.against_oracle(world, scenario)


def test_rebinding_between_messages(world: kit.World, files: data.Files) -> None:
    """A C-STORE handler bound, replaced and unbound on a live association."""

    def scenario(world: kit.World) -> Any:
        server = world.serve(CTX)
        assoc = world.connect(server, CTX)

        def send() -> Any:
            return kit.outcome(lambda: assoc.send_c_store(files.made(13)))

        def first(event: evt.Event) -> int:
            return 0xB000

        def second(event: evt.Event, status: int) -> int:
            return status

        results = [send()]
        server.server.bind(evt.EVT_C_STORE, first)
        results.append(send())
        server.one().bind(evt.EVT_C_STORE, second, [0xB006])
        results.append(send())
        server.server.unbind(evt.EVT_C_STORE, first)
        results.append(send())
        server.one().unbind(evt.EVT_C_STORE, second)
        results.append(send())
        return results

    kit.against_oracle(world, scenario)


@pytest.mark.parametrize("uid", ["é.1", "1.02", "1.2.", "a.b", "1" * 64])
def test_odd_instance_uids(world: kit.World, uid: str) -> None:
    """UIDs that the standard does not know are stored and answered all the same."""

    def scenario(world: kit.World, uid: str) -> Any:
        got: list[str] = []

        def handler(event: evt.Event) -> int:
            got.append(str(event.request.AffectedSOPInstanceUID))
            return 0

        server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
        assoc = world.connect(server, CTX)
        ds = data.image(1, 70000)
        ds.SOPInstanceUID = uid
        results = [kit.outcome(lambda: assoc.send_c_store(ds)) for _ in range(2)]
        return results, got, assoc.is_established

    kit.against_oracle(world, scenario, uid)


@pytest.mark.parametrize(
    "change",
    [
        {"priority": [1]},
        {"priority": True},
        {"priority": None},
        {"SOPInstanceUID": ["1.2", "1.3"]},
        {"SOPClassUID": ["1.2", "1.3"]},
        {"TransferSyntaxUID": None},
    ],
    ids=str,
)
def test_values_that_cannot_be_sent(world: kit.World, change: dict[str, Any]) -> None:
    """The exceptions are those of stock."""

    def scenario(world: kit.World, change: dict[str, Any]) -> Any:
        server = world.serve(CTX, Sink().handlers)
        assoc = world.connect(server, CTX)
        ds = data.image(1, 70000)
        arguments = {}
        for name, value in change.items():
            if name == "TransferSyntaxUID":
                ds.file_meta.TransferSyntaxUID = value
            elif name in ds:
                setattr(ds, name, value)
            else:
                arguments[name] = value
        return kit.outcome(lambda: assoc.send_c_store(ds, **arguments))

    kit.against_oracle(world, scenario, change)


def test_a_replaced_dimse_provider_is_asked(world: kit.World) -> None:
    """Who replaces what the DIMSE provider does sees every message, on both sides."""

    def scenario(world: kit.World) -> Any:
        calls: list[str] = []

        def recorded(provider: Any, side: str) -> None:
            for name in ("send_msg", "get_msg"):
                original = getattr(provider, name)

                def call(*args: Any, _name: str = name, _call: Any = original, **kw: Any) -> Any:
                    if _name == "send_msg" or kw.get("block") or args == (True,):
                        calls.append(f"{side} {_name}")
                    return _call(*args, **kw)

                setattr(provider, name, call)

        server = world.serve(CTX, Sink().handlers)
        assoc = world.connect(server, CTX)
        recorded(assoc.dimse, "scu")
        recorded(server.one().dimse, "scp")
        statuses = [kit.outcome(lambda: assoc.send_c_store(data.image(1, 70000))) for _ in range(3)]
        return statuses, sorted(calls)

    _, calls = kit.against_oracle(world, scenario)
    assert calls.count("scu send_msg") == calls.count("scu get_msg") == 3
    assert calls.count("scp send_msg") == 3


def test_a_failing_handler_leaves_a_traceback(
    world: kit.World, files: data.Files, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where it failed."""

    def scenario(world: kit.World) -> Any:
        server = world.serve(CTX, [(evt.EVT_C_STORE, raising)])
        assoc = world.connect(server, CTX)
        caplog.clear()
        status = assoc.send_c_store(files.made(1)).Status
        found = [record for record in caplog.records if record.getMessage().startswith("a handler")]
        return status, ["in raising" in caplog.handler.format(record) for record in found]

    assert kit.against_oracle(world, scenario) == (0xC211, [True])


def test_the_request_of_a_failing_handler_is_not_kept(world: kit.World, files: data.Files) -> None:
    """Nor is its data set, until some garbage collection."""
    kept: list[weakref.ref[Any]] = []

    def store(event: evt.Event) -> int:
        kept.append(weakref.ref(event.request))
        raise ValueError("a handler may fail")

    server = world.serve(CTX, [(evt.EVT_C_STORE, store)])
    assoc = world.connect(server, CTX)
    # (log records that are kept have the traceback, and all that is in it)
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        for _ in range(3):
            assert assoc.send_c_store(files.made(1)).Status == 0xC211
        assert [one() for one in kept[:2]] == [None, None]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def test_a_temporary_file_that_cannot_be_closed(world: kit.World, files: data.Files) -> None:
    """As stock answers: the handler is to blame, the association goes on."""

    def scenario(world: kit.World) -> Any:
        def store(event: evt.Event) -> int:
            os.close(event.request._dataset_file.fileno())
            return 0

        server = world.serve(CTX, [(evt.EVT_C_STORE, store)])
        assoc = world.connect(server, CTX)
        with config(STORE_RECV_CHUNKED_DATASET=True):
            status = assoc.send_c_store(files.made(1)).Status
        return status, assoc.is_established

    assert kit.against_oracle(world, scenario) == (0xC211, True)
