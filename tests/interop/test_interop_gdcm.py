"""GDCM's gdcmscu against our SCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers
from pynetdicom import evt

pytestmark = pytest.mark.interop

KIND = kit.KINDS[-1]


@pytest.fixture(scope="module", autouse=True)
def gdcmscu() -> None:
    """Some builds (Debian 12's 3.0.21) throw before they send a byte, whoever listens."""
    with kit.world_of("stock", "stock") as made:
        server = made.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, lambda event: 0)])
        output = peers.run("gdcmscu", "--echo", "127.0.0.1", server.port, ok=False)
    if "ProtocolStream as nullptr" in output:
        pytest.skip("this gdcmscu dies of 'ProtocolStream as nullptr' before it sends anything")


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


def test_echo(world: kit.World) -> None:
    seen: list[int] = []

    def handler(event: evt.Event) -> int:
        seen.append(1)
        return 0

    server = world.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, handler)])
    peers.run("gdcmscu", "--echo", "127.0.0.1", server.port)
    server.quiet()
    assert seen == [1]


@pytest.mark.parametrize("maximum", [0, 16382])
def test_store(world: kit.World, files: data.Files, maximum: int) -> None:
    got: list[Any] = []

    def handler(event: evt.Event) -> int:
        ds = event.dataset
        got.append((str(ds.SOPInstanceUID), kit.sha(ds.PixelData)))
        return 0

    server = world.serve(
        [data.CT, data.VERIFICATION],
        [(evt.EVT_C_STORE, handler)],
        attributes={"maximum_pdu_size": maximum},
    )
    paths = [files.made(number, size) for number, size in ((81, 500), (82, 300_000))]
    for path in paths:
        peers.run("gdcmscu", "--store", "-i", path, "127.0.0.1", server.port)
    server.quiet()
    expected = [peers.part10_key(path) for path in paths]
    assert got == [(uid, pixels) for uid, _, pixels in expected]


def test_find(world: kit.World) -> None:
    def handler(event: evt.Event) -> Iterator[Any]:
        for number in range(12):
            yield (
                0xFF00,
                data.query(
                    QueryRetrieveLevel="PATIENT", PatientID=f"FOUND{number}", PatientName="A^B"
                ),
            )
        yield 0x0000, None

    server = world.serve(
        ["1.2.840.10008.5.1.4.1.2.1.1", data.STUDY_FIND], [(evt.EVT_C_FIND, handler)]
    )
    output = peers.run(
        *("gdcmscu", "--find", "--patientroot", "--patient", "--key", "10,20="),
        *("--key", "10,10=", "-V", "127.0.0.1", server.port),
    )
    server.quiet()
    assert all(f"FOUND{number}" in output for number in range(12))


def test_move(world: kit.World, tmp_path: Path) -> None:
    port = peers.free_port()

    def handler(event: evt.Event) -> Iterator[Any]:
        yield ("127.0.0.1", port)
        yield 3
        for number in range(1, 4):
            yield 0xFF00, data.image(number, 40_000)

    ae = kit.make_ae(KIND, "MOVER")
    ae.add_requested_context(data.CT, data.EXPLICIT)
    ae.add_requested_context(data.CT, data.IMPLICIT)
    server = world.serve(
        ["1.2.840.10008.5.1.4.1.2.1.2", data.STUDY_MOVE], [(evt.EVT_C_MOVE, handler)], ae=ae
    )
    peers.run(
        *("gdcmscu", "--move", "--patientroot", "--patient", "--key", "10,20=P7"),
        *("--port-scp", port, "-o", tmp_path, "127.0.0.1", server.port),
    )
    server.quiet()
    got = sorted(peers.part10_key(path)[2] for path in tmp_path.rglob("*") if path.is_file())
    assert got == sorted(kit.sha(data.image(number, 40_000).PixelData) for number in range(1, 4))
