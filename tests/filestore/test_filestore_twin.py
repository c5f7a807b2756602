"""FileStore on stock pynetdicom and on the fast transport: what is in the directory, what the sender is told."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit
from pydicom.filereader import dcmread
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, evt

import fastpdu

pytestmark = pytest.mark.filterwarnings("ignore")
CTX = [(data.CT, data.EXPLICIT)]
SIZES = [2, 100, 40_000, 600_000]


def names(directory: Path) -> list[str]:
    """Return the files below a directory, hidden ones too."""
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()
    )


def serve(world: kit.World, directory: Path, *, contexts: Any = CTX, **options: Any) -> Any:
    """Start an SCP with a FileStore; return both."""
    store = fastpdu.FileStore(directory, **options)
    return store, world.serve(contexts, [(evt.EVT_C_STORE, store)])


def test_files_are_what_was_sent(world: kit.World, files: data.Files, tmp_path: Path) -> None:
    store, server = serve(world, tmp_path / "new" / "store")
    assoc = world.connect(server, CTX)
    paths = [files.made(number, size) for number, size in enumerate(SIZES)]
    for path in paths:
        assert assoc.send_c_store(path).Status == 0x0000
    sent = {str(dcmread(path).SOPInstanceUID): path for path in paths}
    assert names(store.directory) == sorted(f"{uid}.dcm" for uid in sent)
    for uid, path in sent.items():
        stored = store.directory / f"{uid}.dcm"
        ds = dcmread(stored)
        assert ds.preamble == bytes(128)
        assert ds.file_meta.MediaStorageSOPInstanceUID == uid
        assert ds.file_meta.MediaStorageSOPClassUID == data.CT
        assert ds.file_meta.TransferSyntaxUID == data.EXPLICIT
        assert ds.file_meta.ImplementationClassUID == PYNETDICOM_IMPLEMENTATION_UID
        assert ds.file_meta.SourceApplicationEntityTitle == "SCU"
        assert ds.file_meta.SendingApplicationEntityTitle == "SCU"
        assert ds.file_meta.ReceivingApplicationEntityTitle == "SCP"
        assert ds == dcmread(path)
        if world.scu == "fast":
            assert data.payload(stored) == data.payload(path)


def test_the_data_set_is_not_in_memory_on_the_fast_road(
    world: kit.World, files: data.Files, tmp_path: Path
) -> None:
    seen = []

    class Looking(fastpdu.FileStore):
        def __call__(self, event: evt.Event) -> Any:
            seen.append((len(event.request.DataSet.getvalue()), event.dataset.SOPInstanceUID))
            return super().__call__(event)

    path = files.made(1, 40_000)
    server = world.serve(CTX, [(evt.EVT_C_STORE, Looking(tmp_path))])
    assert world.connect(server, CTX).send_c_store(path).Status == 0x0000
    whole = 0 if world.scp == "fast" else len(data.payload(path))
    assert seen == [(whole, dcmread(path).SOPInstanceUID)]


@pytest.mark.parametrize("watch", [evt.EVT_DIMSE_RECV, evt.EVT_PDU_RECV], ids=lambda e: e.name)
def test_watched(world: kit.World, files: data.Files, tmp_path: Path, watch: Any) -> None:
    seen = []
    store = fastpdu.FileStore(tmp_path, on_stored=lambda path, info: seen.append(path.name))
    server = world.serve(CTX, [(evt.EVT_C_STORE, store), (watch, lambda event: None)])
    path = files.made(1, 40_000)
    assert world.connect(server, CTX).send_c_store(path).Status == 0x0000
    (name,) = names(tmp_path)
    assert dcmread(tmp_path / name) == dcmread(path)
    kit.until(lambda: seen == [name])


@pytest.mark.parametrize(
    ("existing", "statuses", "left"),
    [
        ("replace", [0, 0, 0], {"": 3}),
        ("keep", [0, 0, 0], {"": 1}),
        ("keep-both", [0, 0, 0], {"": 1, ".1": 2, ".2": 3}),
        ("fail", [0, 0x0111, 0x0111], {"": 1}),
    ],
)
def test_existing(
    world: kit.World, tmp_path: Path, existing: str, statuses: list[int], left: dict[str, int]
) -> None:
    told = []
    _, server = serve(
        world,
        tmp_path,
        existing=existing,
        on_stored=lambda path, info: told.append((path.name, info.is_kept)),
    )
    assoc = world.connect(server, CTX)
    got = []
    for number in (1, 2, 3):
        ds = data.image(7)
        ds.PatientID = f"P{number}"
        got.append(assoc.send_c_store(ds).Status)
    assert got == statuses
    uid = ds.SOPInstanceUID
    assert names(tmp_path) == sorted(f"{uid}{suffix}.dcm" for suffix in left)
    for suffix, number in left.items():
        assert dcmread(tmp_path / f"{uid}{suffix}.dcm").PatientID == f"P{number}"
    expected = {
        "replace": [(f"{uid}.dcm", False)] * 3,
        "keep": [(f"{uid}.dcm", False), (f"{uid}.dcm", True), (f"{uid}.dcm", True)],
        "keep-both": [(f"{uid}{suffix}.dcm", False) for suffix in ("", ".1", ".2")],
        "fail": [(f"{uid}.dcm", False)],
    }
    kit.until(lambda: len(told) >= len(expected[existing]))
    assert told == expected[existing]


@pytest.mark.parametrize("existing", ["replace", "keep", "keep-both", "fail"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_the_same_instance_from_several_associations(
    world: kit.World,
    tmp_path: Path,
    existing: str,
    links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not links:

        def no_link(source: str, target: str) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_link)
    _, server = serve(world, tmp_path, existing=existing)
    assocs = [world.connect(server, CTX) for _ in range(4)]
    statuses: list[int] = []
    start = threading.Barrier(len(assocs))

    def send(assoc: Any, number: int) -> None:
        ds = data.image(7, 20_000)
        ds.PatientID = f"P{number}"
        start.wait()
        for _ in range(5):
            statuses.append(assoc.send_c_store(ds).Status)

    threads = [
        threading.Thread(target=send, args=(assoc, number), name="user")
        for number, assoc in enumerate(assocs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    uid = data.image(7).SOPInstanceUID
    if existing == "fail":
        assert sorted(statuses) == [0] + [0x0111] * 19
    else:
        assert statuses == [0] * 20
    numbers = range(20 if existing == "keep-both" else 1)
    assert names(tmp_path) == sorted(f"{uid}{f'.{n}' if n else ''}.dcm" for n in numbers)
    kept = [dcmread(tmp_path / name) for name in names(tmp_path)]
    assert all(len(ds.PixelData) == 20_000 for ds in kept)
    if existing == "keep-both":
        assert sorted(ds.PatientID for ds in kept) == sorted(
            f"P{n}" for n in range(4) for _ in range(5)
        )


@pytest.mark.parametrize("syntax", [data.EXPLICIT, data.IMPLICIT, data.BIG, data.DEFLATED])
def test_layout_from_the_data_set(
    world: kit.World, files: data.Files, tmp_path: Path, syntax: str
) -> None:
    layout = "{CallingAETitle}/{PatientID}-{Modality}/{SeriesInstanceUID}/{AccessionNumber}.{SOPInstanceUID}.dcm"
    contexts = [(data.CT, syntax)]
    _, server = serve(world, tmp_path, contexts=contexts, layout=layout)
    path = files.made(3, 1000, syntax=syntax)
    assert world.connect(server, contexts).send_c_store(path).Status == 0x0000
    uid = dcmread(path).SOPInstanceUID
    assert names(tmp_path) == [f"SCU/P7-CT/{data.ROOT}2/unknown.{uid}.dcm"]
    assert dcmread(tmp_path / names(tmp_path)[0]) == dcmread(path)


def test_on_stored_comes_after_the_response(world: kit.World, tmp_path: Path) -> None:
    answered = threading.Event()
    told: list[Any] = []

    def on_stored(path: Path, info: fastpdu.StoredInstance) -> None:
        # the sender has its answer while we are here
        told.append((path, info, answered.wait(kit.DEADLINE), path.exists()))

    store, server = serve(world, tmp_path, on_stored=on_stored)
    assoc = world.connect(server, CTX)
    ds = data.image(5, 5000)
    assert assoc.send_c_store(ds).Status == 0x0000
    answered.set()
    kit.until(lambda: told)
    path, info, was_answered, exists = told[0]
    assert was_answered
    assert exists
    assert path == store.directory / f"{ds.SOPInstanceUID}.dcm"
    assert info == fastpdu.StoredInstance(
        sop_class_uid=data.CT,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=data.EXPLICIT,
        calling_ae_title="SCU",
        called_ae_title="ANY-SCP",
        address="127.0.0.1",
        length=len(data.payload(path)),
        is_kept=False,
    )


def test_an_exception_in_on_stored_is_logged(
    world: kit.World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Path] = []

    def on_stored(path: Path, info: fastpdu.StoredInstance) -> None:
        calls.append(path)
        raise RuntimeError("on purpose")

    with caplog.at_level(logging.ERROR, "fastpdu.filestore"):
        _, server = serve(world, tmp_path, on_stored=on_stored)
        assoc = world.connect(server, CTX)
        for number in (1, 2):
            assert assoc.send_c_store(data.image(number)).Status == 0x0000
        kit.until(lambda: len(calls) == 2)
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("durability", ["none", "file", "directory"])
def test_durability(
    world: kit.World, tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}") if os.path.exists("/proc") else "")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    layout = "{PatientID}/{Modality}/{SOPInstanceUID}.dcm"
    _, server = serve(world, tmp_path, durability=durability, layout=layout)
    assoc = world.connect(server, CTX)
    for number in (1, 2):
        assert assoc.send_c_store(data.image(number)).Status == 0x0000
    assert len(names(tmp_path)) == 2
    root = str(tmp_path)
    file_first = [name.endswith(".part") for name in synced]
    if durability == "none":
        assert synced == []
    elif durability == "file":
        assert file_first == [True, True]
    elif os.path.exists("/proc"):
        assert file_first == [True, False, False, False, True, False]
        leading = [f"{root}/P7/CT", f"{root}/P7", root]
        assert [name for name in synced if not name.endswith(".part")] == [*leading, leading[0]]


def test_errors_are_told_and_the_association_goes_on(
    world: kit.World, files: data.Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, server = serve(world, tmp_path / "store", layout="{PatientID}/{SOPInstanceUID}.dcm")
    assoc = world.connect(server, CTX)
    path = files.made(1, 600_000)
    # a file is where a directory would have to be
    (tmp_path / "store" / "P7").write_bytes(b"")
    response = assoc.send_c_store(path)
    assert (response.Status, bool(response.ErrorComment)) == (0xA702, True)
    assert names(tmp_path / "store") == ["P7"]
    (tmp_path / "store" / "P7").unlink()
    assert assoc.send_c_store(path).Status == 0x0000
    # no directory any more
    (tmp_path / "store").rename(tmp_path / "away")
    assert assoc.send_c_store(path).Status == 0xA702
    (tmp_path / "away").rename(tmp_path / "store")
    assert assoc.send_c_store(path).Status == 0x0000
    assert len(names(tmp_path / "store")) == 1
