"""Files over TLS: sent from a file, stored by FileStore; also where the data set goes to a sink."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import data, kit
from helpers.pem import Pem
from pydicom import dcmread
from pynetdicom import evt

import fastpdu
from fastpdu.tls import client_context, server_context

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]


@pytest.mark.parametrize("pdu", [0, 4096, 16382, 131072])
def test_files_to_files(pem: Pem, files: data.Files, tmp_path: Path, pdu: int) -> None:
    paths = [
        files.made(number, size)
        for number, size in enumerate((2, 16_383, 16_384, 300_000, 5_000_000), 1)
    ]
    store = fastpdu.FileStore(tmp_path / "store", layout="{SOPInstanceUID}.dcm")
    with kit.world_of("fast", "fast") as world:
        server = world.serve(
            CTX,
            [(evt.EVT_C_STORE, store)],
            ssl_context=server_context(pem.certificate, pem.key),
            attributes={"maximum_pdu_size": pdu},
        )
        assoc = world.connect(
            server, CTX, tls_args=(client_context(pem.ca), "localhost"), max_pdu=pdu
        )
        with kit.road_delta() as delta:
            for path in paths:
                assert assoc.send_c_store(path).Status == 0
        assert delta["stock_sent"] == delta["stock_received"] == 0
    for path in paths:
        stored = tmp_path / "store" / f"{dcmread(path).SOPInstanceUID}.dcm"
        assert kit.sha(data.payload(stored)) == kit.sha(data.payload(path))


@pytest.mark.parametrize("pdu", [0, 16382])
@pytest.mark.parametrize("threads", [None, 4])
def test_many_in_flight(
    pem: Pem, files: data.Files, tmp_path: Path, pdu: int, threads: int | None
) -> None:
    """Requests are written while answers are read, and answers while requests are."""
    paths = [files.made(number, 200_000) for number in range(1, 41)]
    store = fastpdu.FileStore(tmp_path / "store", layout="{SOPInstanceUID}.dcm")
    with kit.world_of("fast", "fast") as world:
        server = world.serve(
            CTX,
            [(evt.EVT_C_STORE, store)],
            ssl_context=server_context(pem.certificate, pem.key),
            attributes={"maximum_pdu_size": pdu},
            async_window=8,
            handler_threads=threads,
        )
        assoc = world.connect(
            server,
            CTX,
            tls_args=(client_context(pem.ca), "localhost"),
            max_pdu=pdu,
            async_window=8,
        )
        for _ in range(3):
            results = list(assoc.send_c_store_many(paths))
            assert [result.error for result in results] == [None] * 40
            assert {result.status.get("Status") for result in results} == {0}
        assoc.release()
    for path in paths:
        stored = tmp_path / "store" / f"{dcmread(path).SOPInstanceUID}.dcm"
        assert kit.sha(data.payload(stored)) == kit.sha(data.payload(path))
