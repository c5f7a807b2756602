"""Orthanc as SCP and as SCU; one instance for this module, on ports and storage of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import data, kit
from helpers.orthanc import Orthanc, running
from pynetdicom import build_role, evt

pytestmark = pytest.mark.interop

KIND = kit.KINDS[-1]
CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.IMPLICIT)]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        yield made


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


class Sink:
    def __init__(self) -> None:
        self.got: list[str] = []

    def __call__(self, event: evt.Event) -> int:
        self.got.append(kit.sha(event.dataset.PixelData))
        return 0

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self), (evt.EVT_C_ECHO, lambda event: 0)]


def series(number: int, size: int = 60_000) -> list[Any]:
    """Five images of a study of their own."""
    images = [data.image(index, size, seed=1000 + number) for index in range(1, 6)]
    for image in images:
        image.StudyInstanceUID = f"{data.ROOT}55.{number}"
        image.SeriesInstanceUID = f"{data.ROOT}56.{number}"
        image.PatientID = f"ORTHANC{number}"
    return images


def study(number: int) -> Any:
    return data.query(QueryRetrieveLevel="STUDY", StudyInstanceUID=f"{data.ROOT}55.{number}")


def address(orthanc: Orthanc) -> tuple[str, int]:
    return ("127.0.0.1", orthanc.port)


def test_store(world: kit.World, orthanc: Orthanc, files: data.Files) -> None:
    """Echo and store; the pixel data that Orthanc keeps is ours."""
    from io import BytesIO

    from pydicom import dcmread

    paths = [
        files.made(number, size) for number, size in ((71, 100), (72, 16_376), (73, 3_000_000))
    ]
    assoc = world.connect(address(orthanc), CTX)
    with kit.road_delta() as delta:
        assert assoc.send_c_echo().Status == 0
        for path in paths:
            assert assoc.send_c_store(path).Status == 0
    assoc.release()
    assert assoc.is_released
    for path in paths:
        ds = dcmread(path)
        found = orthanc.rest(
            "/tools/find", {"Level": "Instance", "Query": {"SOPInstanceUID": ds.SOPInstanceUID}}
        )
        assert len(found) == 1
        kept = dcmread(BytesIO(orthanc.content(f"/instances/{found[0]}/file")))
        assert kit.sha(kept.PixelData) == kit.sha(ds.PixelData)
        assert kept == ds
    if KIND == "fast":
        assert delta["stock_sent"] == delta["stock_received"] == 0
        assert delta["fast_sent"] == delta["fast_received"] == 4


@pytest.mark.skipif(KIND != "fast", reason="of the fast transport only")
def test_store_many(world: kit.World, orthanc: Orthanc, files: data.Files) -> None:
    """Orthanc is offered a window, and grants none."""
    paths = [files.made(number, 20_000) for number in range(81, 96)]
    assoc: Any = world.connect(address(orthanc), CTX, async_window=8)
    assert assoc.async_window == 1
    results = list(assoc.send_c_store_many(paths))
    assert [(result.item, result.status.Status) for result in results] == [
        (path, 0) for path in paths
    ]
    assoc.release()
    assert assoc.is_released


def test_find_and_get(world: kit.World, orthanc: Orthanc) -> None:
    images = series(1)
    sink = Sink()
    contexts = [*CTX, (data.STUDY_FIND, data.EXPLICIT), (data.STUDY_GET, data.EXPLICIT)]
    assoc = world.connect(
        address(orthanc),
        contexts,
        sink.handlers,
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
    )
    for image in images:
        assert assoc.send_c_store(image).Status == 0
    ask = study(1)
    ask.PatientID = ""
    answers = list(assoc.send_c_find(ask, data.STUDY_FIND))
    assert [status.Status for status, _ in answers] == [0xFF00, 0]
    assert answers[0][1].PatientID == "ORTHANC1"
    answers = list(assoc.send_c_get(study(1), data.STUDY_GET))
    assert answers[-1][0].Status == 0
    assert sorted(sink.got) == sorted(kit.sha(image.PixelData) for image in images)


def test_move(world: kit.World, orthanc: Orthanc) -> None:
    """Orthanc moves to our store SCP."""
    images = series(2)
    sink = Sink()
    ae = kit.make_ae(KIND, "OURS")
    for abstract, transfer in CTX:
        ae.add_supported_context(abstract, transfer)
    server = ae.start_server(("127.0.0.1", orthanc.ours), block=False, evt_handlers=sink.handlers)
    world.servers.append(kit.Server(KIND, ae, server))
    assoc = world.connect(address(orthanc), [*CTX, (data.STUDY_MOVE, data.EXPLICIT)])
    for image in images:
        assert assoc.send_c_store(image).Status == 0
    answers = list(assoc.send_c_move(study(2), "OURS", data.STUDY_MOVE))
    assert answers[-1][0].Status == 0
    assert sorted(sink.got) == sorted(kit.sha(image.PixelData) for image in images)


def test_orthanc_as_scu(world: kit.World, orthanc: Orthanc) -> None:
    """C-ECHO, C-STORE and C-FIND by Orthanc against our SCP."""
    images = series(3)
    sink = Sink()

    def find(event: evt.Event) -> Iterator[Any]:
        for number in range(3):
            yield (
                0xFF00,
                data.query(
                    QueryRetrieveLevel="STUDY",
                    PatientID=f"F{number}",
                    StudyInstanceUID=f"1.2.{number}",
                ),
            )
        yield 0x0000, None

    ae = kit.make_ae(KIND, "OURS")
    for abstract, transfer in CTX:
        ae.add_supported_context(abstract, transfer)
    ae.add_supported_context(data.STUDY_FIND)
    server = ae.start_server(
        ("127.0.0.1", orthanc.ours),
        block=False,
        evt_handlers=[*sink.handlers, (evt.EVT_C_FIND, find)],
    )
    world.servers.append(kit.Server(KIND, ae, server))
    assoc = world.connect(address(orthanc), CTX)
    for image in images:
        assert assoc.send_c_store(image).Status == 0
    assoc.release()
    with kit.road_delta() as delta:
        orthanc.rest("/modalities/ours/echo", {})
        found = orthanc.rest(
            "/tools/find", {"Level": "Instance", "Query": {"PatientID": "ORTHANC3"}}
        )
        assert len(found) == 5
        orthanc.rest("/modalities/ours/store", found)
        assert sorted(sink.got) == sorted(kit.sha(image.PixelData) for image in images)
        answer = orthanc.rest(
            "/modalities/ours/query", {"Level": "Study", "Query": {"PatientID": "F*"}}
        )
        assert len(orthanc.rest(f"/queries/{answer['ID']}/answers")) == 3
    if KIND == "fast":
        assert delta["stock_sent"] == delta["stock_received"] == 0
        assert delta["fast_sent"] >= 10


def test_packed_messages(world: kit.World, orthanc: Orthanc, files: data.Files) -> None:
    """Command set and data set in one PDU: Orthanc reads it, as request and as identifier of a query."""
    if KIND != "fast":
        pytest.skip("pynetdicom does not pack")
    from fastpdu import TransportOptions

    images = series(9)
    find = (data.STUDY_FIND, data.EXPLICIT)
    assoc = world.connect(
        address(orthanc), [*CTX, find], transport=TransportOptions(pack_command=True)
    )
    for image in images:
        assert assoc.send_c_echo().Status == 0
        assert assoc.send_c_store(image).Status == 0
    found = [identifier for _, identifier in assoc.send_c_find(study(9), data.STUDY_FIND)]
    assert [identifier.StudyInstanceUID for identifier in found if identifier] == [
        images[0].StudyInstanceUID
    ]
    assoc.release()
    kept = orthanc.rest(
        "/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": f"{data.ROOT}55.9"}}
    )
    assert len(kept) == len(images)


def test_doctor(orthanc: Orthanc, capsys: pytest.CaptureFixture[str]) -> None:
    """Without QUICKACK, Orthanc stalls, as DCMTK does."""
    from fastpdu import cli

    arguments = ["localhost", str(orthanc.port), "-aec", "ORTHANC", "--store", "6", "--json"]
    status = cli.main(["doctor", *arguments])
    content = json.loads(capsys.readouterr().out)
    assert status == 10
    verdict = content["verdicts"][0]
    assert (verdict["cause"], verdict["quickack"], verdict["certain"]) == ("stalls", False, True)
    assert [trial["failures"] for trial in content["trials"]] == [0] * 4
    tags = {"Level": "Instance", "Query": {"PatientID": "FASTPDU-DOCTOR-TEST"}}
    assert len(orthanc.rest("/tools/find", tags)) == 12
