"""DCMTK's programs on the other end: echoscu, storescu, storescp, findscu, movescu, getscu,
dcmqrscp, termscu."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers
from pydicom import dcmread
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import _config, build_role, evt

pytestmark = pytest.mark.interop

KIND = kit.KINDS[-1]
CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.IMPLICIT)]
SHUTDOWN = "1.2.276.0.7230010.3.4.1915765545.18030.917282194.0"


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


class Sink:
    """Stores what arrives in comparable form."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        self.raw: list[str] = []
        self.syntaxes: list[str] = []

    def __call__(self, event: evt.Event) -> int:
        ds = event.dataset
        self.got.append((str(ds.SOPInstanceUID), str(ds.get("PatientID")), kit.sha(ds.PixelData)))
        self.raw.append(kit.sha(event.request.DataSet.getvalue()))
        self.syntaxes.append(str(event.context.transfer_syntax))
        return 0

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self), (evt.EVT_C_ECHO, lambda event: 0)]


def fast_road(delta: dict[str, int], messages: int) -> None:
    """Nobody watched: the messages of our end took the fast road."""
    if KIND == "fast":
        assert delta["stock_sent"] == delta["stock_received"] == 0
        assert delta["fast_sent"] + delta["fast_received"] >= messages


# their SCU, our SCP


@pytest.mark.parametrize(
    "options",
    [[], ["--repeat", "20"], ["-pdu", "4096"], ["-pdu", "131072"], ["--propose-pc", "40"]],
    ids=lambda options: " ".join(options) or "plain",
)
def test_echoscu(world: kit.World, options: list[str]) -> None:
    server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, lambda event: 0)])
    with kit.road_delta() as delta:
        peers.run("echoscu", *options, "127.0.0.1", server.port)
        server.quiet()
    fast_road(delta, 2)


def test_echoscu_aborts(world: kit.World) -> None:
    aborted: list[int] = []
    server = world.serve(
        [data.VERIFICATION],
        [(evt.EVT_C_ECHO, lambda event: 0), (evt.EVT_ABORTED, lambda event: aborted.append(1))],
    )
    peers.run("echoscu", "--abort", "127.0.0.1", server.port)
    server.quiet()
    assert aborted == [1]
    peers.run("echoscu", "127.0.0.1", server.port)


def test_echoscu_is_rejected(world: kit.World) -> None:
    server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, lambda event: 0)])
    server.ae.require_called_aet = True
    output = peers.run("echoscu", "-aec", "WRONG", "127.0.0.1", server.port, ok=False)
    assert "Called AE Title Not Recognized" in output
    peers.run("echoscu", "-aec", "SCP", "127.0.0.1", server.port)


@pytest.mark.parametrize("maximum", [0, 4096, 16382, 131072])
@pytest.mark.parametrize("chunked", [False, True], ids=["memory", "file"])
def test_storescu(
    world: kit.World,
    files: data.Files,
    maximum: int,
    chunked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", chunked)
    paths = [
        files.made(number, size) for number, size in enumerate((2, 5000, 100_000, 2_000_000), 1)
    ]
    got: list[Any] = []

    def handler(event: evt.Event) -> int:
        if chunked:
            got.append(peers.part10_key(event.dataset_path))
        else:
            ds = event.dataset
            got.append((str(ds.SOPInstanceUID), str(ds.PatientID), kit.sha(ds.PixelData)))
        return 0

    server = world.serve(
        CTX, [(evt.EVT_C_STORE, handler)], attributes={"maximum_pdu_size": maximum}
    )
    with kit.road_delta() as delta:
        peers.run("storescu", "127.0.0.1", server.port, *paths)
        server.quiet()
    assert got == [peers.part10_key(path) for path in paths]
    fast_road(delta, 2 * len(paths))


SYNTAXES = {
    "-xe": data.EXPLICIT,
    "-xi": data.IMPLICIT,
    "-xb": data.BIG,
    "-xd": data.DEFLATED,
    "-xr": str(RLELossless),
    "-xv": str(JPEG2000Lossless),
    "-xy": str(JPEGBaseline8Bit),
    "-xt": str(JPEGLSLossless),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", list(SYNTAXES))
def test_storescu_transfer_syntaxes(world: kit.World, option: str) -> None:
    syntax = SYNTAXES[option]
    path = next(
        path
        for path in data.shipped()
        if dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
        and "PixelData" in dcmread(path)
        and "SC_" not in path.name
    )
    ds = dcmread(path)
    sink = Sink()
    server = world.serve([(str(ds.SOPClassUID), syntax)], sink.handlers)
    peers.run("storescu", option, "127.0.0.1", server.port, path)
    server.quiet()
    assert sink.syntaxes == [syntax]
    assert sink.got[0][0] == ds.SOPInstanceUID
    assert sink.got[0][2] == kit.sha(ds.PixelData)


@pytest.mark.skipif(KIND != "fast", reason="of the fast transport only")
def test_storescu_and_an_scp_with_a_window(world: kit.World, files: data.Files) -> None:
    """It asks for no window; the handlers stay on one thread."""
    sink = Sink()
    server = world.serve(CTX, sink.handlers, attributes={"async_window": 8, "handler_threads": 4})
    paths = [files.made(number, 50_000) for number in range(1, 6)]
    peers.run("storescu", "127.0.0.1", server.port, *paths)
    server.quiet()
    assert sink.raw == [kit.sha(data.payload(path)) for path in paths]


def test_storescu_aborts(world: kit.World, files: data.Files) -> None:
    sink = Sink()
    server = world.serve(CTX, sink.handlers)
    peers.run("storescu", "--abort", "127.0.0.1", server.port, files.made(1))
    server.quiet()
    assert len(sink.got) == 1
    peers.run("storescu", "127.0.0.1", server.port, files.made(1))


def test_storescu_sees_a_failure(world: kit.World, files: data.Files) -> None:
    server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0xA700)])
    output = peers.run("storescu", "-v", "127.0.0.1", server.port, files.made(1), ok=False)
    assert "0xa700" in output.lower() or "Refused: OutOfResources" in output


def find_handler(number: int, wait: bool = False) -> Any:
    def handler(event: evt.Event) -> Iterator[Any]:
        for index in range(number):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            if wait and index == number - 1:
                kit.until(lambda: event.is_cancelled, what="the cancellation")
                yield 0xFE00, None
                return
            yield (
                0xFF00,
                data.query(
                    QueryRetrieveLevel="STUDY",
                    PatientID=f"{event.identifier.PatientID}{index}",
                    StudyDescription="d" * 60,
                ),
            )
        yield 0x0000, None

    return [(evt.EVT_C_FIND, handler)]


FIND_OPTIONS = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=ID"]


def test_findscu(world: kit.World, tmp_path: Path) -> None:
    server = world.serve([data.STUDY_FIND], find_handler(25))
    with kit.road_delta() as delta:
        peers.run("findscu", *FIND_OPTIONS, "-X", "127.0.0.1", server.port, cwd=tmp_path)
        server.quiet()
    found = sorted(tmp_path.glob("rsp*.dcm"))
    assert [dcmread(path, force=True).PatientID for path in found] == [
        f"ID{index}" for index in range(25)
    ]
    fast_road(delta, 27)


def test_findscu_cancels(world: kit.World) -> None:
    """findscu --cancel 3 sends a C-CANCEL while the handler runs."""
    server = world.serve([data.STUDY_FIND], find_handler(50, wait=True))
    output = peers.run("findscu", "-v", *FIND_OPTIONS, "--cancel", "3", "127.0.0.1", server.port)
    assert "Cancel" in output
    server.quiet()


def test_getscu(world: kit.World, tmp_path: Path) -> None:
    def handler(event: evt.Event) -> Iterator[Any]:
        yield 5
        for number in range(1, 6):
            yield 0xFF00, data.image(number, 60_000)

    server = world.serve(
        [(data.CT, data.EXPLICIT), data.STUDY_GET], [(evt.EVT_C_GET, handler)], roles=True
    )
    with kit.road_delta() as delta:
        peers.run(
            "getscu",
            *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"),
            *("+B", "-od", tmp_path, "127.0.0.1", server.port),
        )
        server.quiet()
    got = sorted(peers.part10_key(path) for path in tmp_path.iterdir())
    assert len(got) == 5
    assert [item[2] for item in got] == [
        kit.sha(data.image(number, 60_000).PixelData) for number in range(1, 6)
    ]
    fast_road(delta, 11)


@pytest.mark.skipif(KIND != "fast", reason="an extension of the fast ends")
@pytest.mark.parametrize("chosen", [str, Path], ids=["str", "Path"])
def test_getscu_of_paths(world: kit.World, files: data.Files, tmp_path: Path, chosen: Any) -> None:
    """The files go out as they are."""
    paths = [files.made(number, 300_000) for number in range(1, 6)]

    def handler(event: evt.Event) -> Iterator[Any]:
        yield len(paths)
        for path in paths:
            yield 0xFF00, chosen(path)

    server = world.serve(
        [(data.CT, data.EXPLICIT), data.STUDY_GET], [(evt.EVT_C_GET, handler)], roles=True
    )
    with kit.road_delta() as delta:
        peers.run(
            "getscu",
            *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"),
            *("+B", "-od", tmp_path, "127.0.0.1", server.port),
        )
        server.quiet()
    got = sorted(map(peers.part10_key, tmp_path.iterdir()))
    assert got == sorted(map(peers.part10_key, paths))
    fast_road(delta, 11)


@pytest.mark.skipif(KIND != "fast", reason="an extension of the fast ends")
def test_movescu_of_paths(world: kit.World, files: data.Files, tmp_path: Path) -> None:
    port = peers.free_port()
    paths = [files.made(number, 300_000) for number in range(1, 6)]

    def handler(event: evt.Event) -> Iterator[Any]:
        yield ("127.0.0.1", port)
        yield len(paths)
        for path in paths:
            yield 0xFF00, path

    ae = kit.make_ae(KIND, "MOVER")
    ae.add_requested_context(data.CT, data.EXPLICIT)
    server = world.serve([data.STUDY_MOVE], [(evt.EVT_C_MOVE, handler)], ae=ae)
    with kit.road_delta() as delta:
        peers.run(
            "movescu",
            *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"),
            *("+P", port, "-aem", "MOVESCU", "+B", "127.0.0.1", server.port),
            cwd=tmp_path,
        )
        server.quiet()
    got = sorted(map(peers.part10_key, tmp_path.iterdir()))
    assert got == sorted(map(peers.part10_key, paths))
    fast_road(delta, 16)


def test_movescu(world: kit.World, tmp_path: Path) -> None:
    """movescu receives on a port of its own what our C-MOVE SCP sends."""
    port = peers.free_port()

    def handler(event: evt.Event) -> Iterator[Any]:
        yield ("127.0.0.1", port)
        yield 4
        for number in range(1, 5):
            yield 0xFF00, data.image(number, 60_000)

    ae = kit.make_ae(KIND, "MOVER")
    ae.add_requested_context(data.CT, data.EXPLICIT)
    server = world.serve([data.STUDY_MOVE], [(evt.EVT_C_MOVE, handler)], ae=ae)
    peers.run(
        "movescu",
        *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"),
        *("+P", port, "-aem", "MOVESCU", "+B", "127.0.0.1", server.port),
        cwd=tmp_path,  # with +B it ignores -od
    )
    server.quiet()
    got = sorted(peers.part10_key(path) for path in tmp_path.iterdir())
    assert [item[2] for item in got] == [
        kit.sha(data.image(number, 60_000).PixelData) for number in range(1, 5)
    ]


@pytest.mark.parametrize("supported", [True, False])
def test_termscu(world: kit.World, supported: bool) -> None:
    """It proposes one private SOP class. However that ends, the SCP goes on."""
    contexts = [data.VERIFICATION] + ([SHUTDOWN] if supported else [])
    server = world.serve(contexts, [(evt.EVT_C_ECHO, lambda event: 0)])
    peers.run("termscu", "127.0.0.1", server.port, ok=False)
    server.quiet()
    peers.run("echoscu", "127.0.0.1", server.port)


# our SCU, their SCP


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    with peers.background(
        lambda port: [
            *(peers.program("storescp"), "+xa", "+B", "-pm", "-od", str(tmp_path / "got")),
            *("-pdu", "16384", str(port)),
        ],
        log=(tmp_path / "got").parent / "log",
        cwd=_made(tmp_path / "got"),
    ) as port:
        yield port, tmp_path / "got"


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("how", ["path", "dataset", "chunked"])
def test_storescp(
    world: kit.World,
    files: data.Files,
    storescp: tuple[int, Path],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit preserving: the bytes in its files are the bytes of ours."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", how == "chunked")
    port, directory = storescp
    sizes = (2, 5000, 16_370, 16_376, 100_000, 2_000_000)
    paths = [files.made(number, size) for number, size in enumerate(sizes, 1)]
    assoc = world.connect(("127.0.0.1", port), CTX)
    with kit.road_delta() as delta:
        assert assoc.send_c_echo().Status == 0
        for path in paths:
            item = dcmread(path) if how == "dataset" else path
            assert assoc.send_c_store(item).Status == 0
    assoc.release()
    assert assoc.is_released
    by_instance = {str(dcmread(path).SOPInstanceUID): path for path in directory.iterdir()}
    for path in paths:
        received = by_instance[str(dcmread(path).SOPInstanceUID)]
        assert kit.sha(data.payload(received)) == kit.sha(data.payload(path))
    fast_road(delta, 2 * len(paths) + 2)


@pytest.mark.skipif(KIND != "fast", reason="of the fast transport only")
def test_storescp_is_offered_a_window(
    world: kit.World, files: data.Files, storescp: tuple[int, Path]
) -> None:
    """It grants none: one request at a time."""
    port, directory = storescp
    paths = [files.made(number, 50_000) for number in range(1, 21)]
    assoc: Any = world.connect(("127.0.0.1", port), CTX, async_window=8)
    assert assoc.async_window == 1
    results = list(assoc.send_c_store_many(paths))
    assert [(result.item, result.status.Status) for result in results] == [
        (path, 0) for path in paths
    ]
    assert assoc.send_c_echo().Status == 0
    assoc.release()
    assert assoc.is_released
    received = {kit.sha(data.payload(path)) for path in directory.iterdir()}
    assert received == {kit.sha(data.payload(path)) for path in paths}


@pytest.mark.filterwarnings("ignore")
def test_storescp_transfer_syntaxes(
    world: kit.World, storescp: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shipped file that storescp takes, sent verbatim."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    port, directory = storescp
    paths = [path for path in data.shipped() if path.stat().st_size > 300][::2]
    assoc = world.connect(("127.0.0.1", port), data.contexts_for(paths))
    sent = {}
    for path in paths:
        result = kit.outcome(lambda: assoc.send_c_store(path))
        if result == (("Status", "0"),):
            meta = dcmread(path, stop_before_pixels=True).file_meta
            sent[str(meta.MediaStorageSOPInstanceUID)] = kit.sha(data.payload(path))
        assert assoc.is_established
    assoc.release()
    got = {
        str(dcmread(path, stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID): kit.sha(
            data.payload(path)
        )
        for path in directory.iterdir()
    }
    assert len(sent) > 10
    assert got == sent


def test_storescp_aborts(world: kit.World, files: data.Files, tmp_path: Path) -> None:
    """storescp --abort-during: A-ABORT in the middle of our C-STORE."""
    for option in ("--abort-during", "--abort-after"):
        with peers.background(
            lambda port, option=option: [
                *(peers.program("storescp"), option, "--ignore", str(port)),
            ],
            log=tmp_path / "log",
            cwd=tmp_path,
        ) as port:
            assoc = world.connect(("127.0.0.1", port), CTX)
            kit.outcome(lambda: assoc.send_c_store(files.made(1, 4_000_000)))
            kit.until(lambda: not assoc.is_established)
            assert assoc.is_aborted
            kit.until(lambda: not assoc.dul.is_alive())


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """An archive and the port that it moves to (AE title MOVEDEST)."""
    destination = peers.free_port()
    store = _made(tmp_path / "store")

    def command(port: int) -> list[str]:
        config = tmp_path / "dcmqrscp.cfg"
        config.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            "HostTable BEGIN\n"
            f"dest = (MOVEDEST, 127.0.0.1, {destination})\n"
            "HostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            "AETable BEGIN\n"
            f"ARCHIVE {store} RW (100, 1024mb) ANY\n"
            "AETable END\n"
        )
        return [peers.program("dcmqrscp"), "--allow-shutdown", "-c", str(config), str(port)]

    with peers.background(command, log=tmp_path / "log", cwd=tmp_path) as port:
        yield port, destination


def test_dcmqrscp(world: kit.World, dcmqrscp: tuple[int, int]) -> None:
    """Store, find, get and move with one archive."""
    port, destination = dcmqrscp
    images = [data.image(number, 60_000) for number in range(1, 6)]
    pixels = sorted(kit.sha(image.PixelData) for image in images)

    def level(name: str, **elements: Any) -> Any:
        return data.query(QueryRetrieveLevel=name, StudyInstanceUID=f"{data.ROOT}1", **elements)

    stored = Sink()
    ae = kit.make_ae(KIND, "MOVEDEST")
    ae.add_supported_context(data.CT, data.EXPLICIT)
    server = ae.start_server(("127.0.0.1", destination), block=False, evt_handlers=stored.handlers)
    world.servers.append(kit.Server(KIND, ae, server))

    got = Sink()
    contexts = [*CTX, (data.STUDY_FIND, data.EXPLICIT), (data.STUDY_GET, data.EXPLICIT)]
    contexts.append((data.STUDY_MOVE, data.EXPLICIT))
    assoc = world.connect(
        ("127.0.0.1", port),
        contexts,
        got.handlers,
        ae_title="ARCHIVE",
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
    )
    with kit.road_delta() as delta:
        for image in images:
            assert assoc.send_c_store(image).Status == 0
        answers = list(
            assoc.send_c_find(
                level("IMAGE", SeriesInstanceUID=f"{data.ROOT}2", SOPInstanceUID=""),
                data.STUDY_FIND,
            )
        )
        assert [status.Status for status, _ in answers] == [0xFF00] * 5 + [0]
        assert {str(ds.SOPInstanceUID) for _, ds in answers if ds} == {
            str(image.SOPInstanceUID) for image in images
        }
        answers = list(assoc.send_c_get(level("STUDY"), data.STUDY_GET))
        assert answers[-1][0].Status == 0
        answers = list(assoc.send_c_move(level("STUDY"), "MOVEDEST", data.STUDY_MOVE))
        assert answers[-1][0].Status == 0
        assert answers[-1][0].NumberOfCompletedSuboperations == 5
    assoc.release()
    assert assoc.is_released
    assert sorted(item[2] for item in got.got) == pixels
    assert sorted(item[2] for item in stored.got) == pixels
    fast_road(delta, 30)


def test_dcmqrscp_cancel(world: kit.World, dcmqrscp: tuple[int, int]) -> None:
    """Our C-CANCEL to a DCMTK archive; it may have answered all before it reads it."""
    port, _ = dcmqrscp
    assoc = world.connect(
        ("127.0.0.1", port), [*CTX, (data.STUDY_FIND, data.EXPLICIT)], ae_title="ARCHIVE"
    )
    for number in range(1, 9):
        assert assoc.send_c_store(data.image(number, 100)).Status == 0
    ask = data.query(
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=f"{data.ROOT}1",
        SeriesInstanceUID=f"{data.ROOT}2",
        SOPInstanceUID="",
    )
    answers = assoc.send_c_find(ask, data.STUDY_FIND, msg_id=3)
    assert next(answers)[0].Status == 0xFF00
    assoc.send_c_cancel(3, None, data.STUDY_FIND)
    assert [status.Status for status, _ in answers][-1] in (0xFE00, 0)
    assert assoc.send_c_echo().Status == 0


def test_termscu_ends_dcmqrscp(dcmqrscp: tuple[int, int], world: kit.World) -> None:
    """The archive shuts down under our association: it ends as aborted."""
    port, _ = dcmqrscp
    assoc = world.connect(("127.0.0.1", port), CTX, ae_title="ARCHIVE")
    assert assoc.send_c_echo().Status == 0
    assoc.release()
    peers.run("termscu", "-aec", "ARCHIVE", "127.0.0.1", port, ok=False)
    kit.until(lambda: not peers.answers_echo(port))
    late = world.connect(("127.0.0.1", port), CTX, established=False)
    assert late.is_aborted


# command set and data set in one PDU


@pytest.fixture
def packing() -> dict[str, Any]:
    """Arguments for the end that packs."""
    if KIND != "fast":
        pytest.skip("pynetdicom does not pack")
    from fastpdu import TransportOptions

    return {"transport": TransportOptions(pack_command=True)}


def test_storescp_reads_packed_messages(
    world: kit.World, files: data.Files, storescp: tuple[int, Path], packing: dict[str, Any]
) -> None:
    port, directory = storescp
    paths = [files.made(n, size) for n, size in enumerate((2, 5000, 16_376, 2_000_000), 81)]
    assoc = world.connect(("127.0.0.1", port), CTX, **packing)
    for path in paths:
        assert assoc.send_c_echo().Status == 0
        assert assoc.send_c_store(path).Status == 0
    assoc.release()
    assert assoc.is_released
    by_instance = {str(dcmread(path).SOPInstanceUID): path for path in directory.iterdir()}
    for path in paths:
        received = by_instance[str(dcmread(path).SOPInstanceUID)]
        assert kit.sha(data.payload(received)) == kit.sha(data.payload(path))


def test_findscu_and_getscu_read_packed_messages(
    world: kit.World, tmp_path: Path, packing: dict[str, Any]
) -> None:
    """Responses with an identifier, and C-STORE requests of a C-GET."""

    def get(event: evt.Event) -> Iterator[Any]:
        yield 3
        for number in range(1, 4):
            yield 0xFF00, data.image(number, 60_000)

    server = world.serve(
        [(data.CT, data.EXPLICIT), data.STUDY_GET, data.STUDY_FIND],
        [*find_handler(25), (evt.EVT_C_GET, get)],
        roles=True,
        **packing,
    )
    found, got = _made(tmp_path / "found"), _made(tmp_path / "got")
    peers.run("findscu", *FIND_OPTIONS, "-X", "127.0.0.1", server.port, cwd=found)
    assert [dcmread(path, force=True).PatientID for path in sorted(found.glob("rsp*.dcm"))] == [
        f"ID{index}" for index in range(25)
    ]
    peers.run(
        "getscu",
        *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"),
        *("+B", "-od", got, "127.0.0.1", server.port),
    )
    assert sorted(peers.part10_key(path)[2] for path in got.iterdir()) == sorted(
        kit.sha(data.image(number, 60_000).PixelData) for number in range(1, 4)
    )


def doctor(port: int, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    from fastpdu import cli

    status = cli.main(["doctor", "localhost", str(port), "--echo", "10", "--store", "6", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_doctor_finds_the_stalls_of_storescp(
    storescp: tuple[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    port, directory = storescp
    status, content = doctor(port, capsys)
    assert status == 10
    verdict = content["verdicts"][0]
    assert (verdict["cause"], verdict["quickack"], verdict["certain"]) == ("stalls", False, True)
    by_operation = {(t["operation"], t["quickack"]): t["breakdown"] for t in content["trials"]}
    for operation in ("echo", "store"):
        parts = by_operation[operation, False]
        assert parts["stalls_ms"] > parts["total_ms"] / 2
        assert by_operation[operation, True]["stalls_ms"] == 0
    assert len(list(directory.iterdir())) == 12


def test_doctor_finds_no_stalls_with_tcp_nodelay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy that it names helps."""
    program = peers.program("storescp")
    with peers.background(
        lambda port: ["env", "TCP_NODELAY=1", program, "-od", str(tmp_path), str(port)],
        log=tmp_path / "log",
        cwd=tmp_path,
    ) as port:
        _, content = doctor(port, capsys)
    assert "stalls" not in [verdict["cause"] for verdict in content["verdicts"]]
