"""FileStore under hostile peers and failing disks: nothing is left, nothing leaves the directory, the rest goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, raw
from pydicom.filereader import dcmread
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
)

import fastpdu
from fastpdu import filestore
from fastpdu.filestore import Incoming

pytestmark = pytest.mark.filterwarnings("ignore")
CTX = [(data.CT, data.EXPLICIT)]
KINDS = pytest.mark.parametrize("kind", kit.KINDS)


def names(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()
    )


def serve(world: kit.World, directory: Path, **options: Any) -> Any:
    store = fastpdu.FileStore(directory, **options)
    return world.serve([data.VERIFICATION, *CTX], [(evt.EVT_C_STORE, store)])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can become longer."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
def test_a_file_that_cannot_grow(world: kit.World, files: data.Files, tmp_path: Path) -> None:
    server = serve(world, tmp_path)
    assoc = world.connect(server, CTX)
    large, small = files.made(1, 3_000_000), files.made(2, 1000)
    with largest_file(1_000_000):
        response = assoc.send_c_store(large)
        assert response.Status == 0xA700
        assert response.ErrorComment
        assert names(tmp_path) == []
        assert assoc.send_c_store(small).Status == 0x0000
    assert assoc.send_c_store(large).Status == 0x0000
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, 0xA700),
        (errno.EDQUOT, 0xA700),
        (errno.EMFILE, 0xA700),
        (errno.EACCES, 0xA701),
        (errno.EROFS, 0xA701),
        (errno.EIO, 0xA702),
    ],
    ids=lambda value: errno.errorcode.get(value, hex(value)),
)
@pytest.mark.parametrize("where", ["write", "replace", "fsync"])
def test_statuses(
    world: kit.World,
    files: data.Files,
    tmp_path: Path,
    number: int,
    status: int,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(world, tmp_path, durability="file")
    assoc = world.connect(server, CTX)
    path = files.made(1, 600_000)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if where == "write":
            complete = Incoming.complete
            patch.setattr(Incoming, "complete", lambda self, n, _: complete(self, n, number))
        else:
            patch.setattr(os, where, fails)
        assert assoc.send_c_store(path).Status == status
    assert names(tmp_path) == []
    assert assoc.send_c_store(path).Status == 0x0000


@pytest.mark.parametrize("place", ["missing/x.part", "x" * 300, "taken.part"])
def test_a_temporary_file_that_cannot_be_made(
    world: kit.World,
    files: data.Files,
    tmp_path: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(world, tmp_path)
    assoc = world.connect(server, CTX)
    path = files.made(1, 600_000)
    (tmp_path / "taken.part").write_bytes(b"of somebody else")
    with monkeypatch.context() as patch:
        patch.setattr(fastpdu.FileStore, "_temporary_name", lambda self, _: str(tmp_path / place))
        response = assoc.send_c_store(path)
    assert response.Status == 0xA702
    assert response.ErrorComment
    assert (tmp_path / "taken.part").read_bytes() == b"of somebody else"
    assert assoc.send_c_store(path).Status == 0x0000
    assert len(names(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_no_permission(
    world: kit.World, files: data.Files, tmp_path: Path
) -> None:  # pragma: no cover
    server = serve(world, tmp_path / "store")
    assoc = world.connect(server, CTX)
    (tmp_path / "store").chmod(0o500)
    try:
        assert assoc.send_c_store(files.made(1)).Status == 0xA701
    finally:
        (tmp_path / "store").chmod(0o700)


INSTANCES = ["../../x", "/etc/x", "..", ".", "C:\\x", "..\\x", "1.2\n3", "CON", "x y", "1.2.", "-1"]


@KINDS
@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("layout", ["{SOPInstanceUID}.dcm", "{CallingAETitle}/{SOPInstanceUID}"])
def test_hostile_instances(kind: str, tmp_path: Path, instance: str, layout: str) -> None:
    directory = tmp_path / "a" / "b"
    with kit.world_of(kind, kind) as world:
        server = serve(world, directory, layout=layout)
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(
                raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.store_rq(1, instance)))
                + raw.p_data(raw.pdv(3, raw.LAST_DATA, raw.DATASET))
            )
            # an answer, or (an invalid message) an abort: then nothing is stored
            answer = peer.read()
        server.quiet()
    everything = names(tmp_path)
    assert all(name.startswith("a/b/") and not name.endswith(".part") for name in everything)
    if answer is not None and answer[0] == raw.P_DATA:
        assert len(everything) == 1
        assert dcmread(tmp_path / everything[0], force=True).file_meta is not None


ENDINGS = {
    "abort": lambda peer: peer.send(raw.pdu(raw.ABORT, bytes(4))),
    "reset": lambda peer: peer.reset(),
    "close": lambda peer: peer.close(),
    "nonsense": lambda peer: peer.send(b"GET / HTTP/1.1\r\n\r\n"),
    "too early a command": lambda peer: peer.send(raw.echo()),
}


@KINDS
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [0, 10, 400_000])
def test_a_data_set_that_never_ends_leaves_nothing(
    kind: str, tmp_path: Path, ending: str, size: int
) -> None:
    if kind == "stock" and ending == "too early a command":
        pytest.skip("pynetdicom goes on")
    with kit.world_of(kind, kind) as world:
        server = serve(world, tmp_path)
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.store_rq())))
            for at in range(0, size, 10_000):
                peer.send(raw.p_data(raw.pdv(3, raw.DATA, bytes(min(10_000, size - at)))))
            if kind == "fast":
                kit.until(lambda: names(tmp_path), what="a temporary file")
                assert names(tmp_path)[0].startswith(".fastpdu-")
            ENDINGS[ending](peer)
            server.quiet()
        kit.until(lambda: names(tmp_path) == [], what="nothing left")
        raw.check_service(server.address)


@KINDS
def test_shutdown_in_the_middle_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with kit.world_of(kind, kind) as world:
        server = serve(world, tmp_path)
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.store_rq())))
            peer.send(raw.p_data(raw.pdv(3, raw.DATA, bytes(10_000))))
            if kind == "fast":
                kit.until(lambda: names(tmp_path), what="a temporary file")
            else:
                kit.until(lambda: server.associations and server.one())
            server.ae.shutdown()
            kit.until(lambda: names(tmp_path) == [], what="nothing left")


@KINDS
def test_an_empty_data_set(kind: str, tmp_path: Path) -> None:
    with kit.world_of(kind, kind) as world:
        server = serve(world, tmp_path)
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(
                raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.store_rq()))
                + raw.p_data(raw.pdv(3, raw.LAST_DATA, b""))
            )
            _, command, _ = peer.message()
            assert int.from_bytes(command[0x0900], "little") == 0xC000
            peer.echo()
            peer.release()
        server.quiet()
        assert names(tmp_path) == []


def test_a_directory_on_another_file_system(
    world: kit.World, files: data.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount point below the store's directory would be."""
    replace = os.replace

    def across(source: Any, target: Any) -> None:
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    server = serve(world, tmp_path, layout="{Modality}/{SOPInstanceUID}.dcm", durability="file")
    assoc = world.connect(server, CTX)
    path = files.made(1, 600_000)
    for _ in range(2):
        assert assoc.send_c_store(path).Status == 0x0000
    uid = dcmread(path).SOPInstanceUID
    assert names(tmp_path) == [f"CT/{uid}.dcm"]
    assert dcmread(tmp_path / "CT" / f"{uid}.dcm") == dcmread(path)


def test_as_the_requestor_of_a_get(world: kit.World, files: data.Files, tmp_path: Path) -> None:
    """The sub-operations of a C-GET come to the handler of the requestor."""
    from pynetdicom import build_role

    path = files.made(1, 600_000)

    def get(event: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xFF00, dcmread(path)

    model = StudyRootQueryRetrieveInformationModelGet
    server = world.serve([(str(model), data.EXPLICIT), *CTX], [(evt.EVT_C_GET, get)], roles=True)
    told: list[Path] = []
    store = fastpdu.FileStore(tmp_path, on_stored=lambda path, info: told.append(path))
    assoc = world.connect(
        server,
        [(str(model), data.EXPLICIT), *CTX],
        [(evt.EVT_C_STORE, store)],
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
    )
    statuses = [
        status.Status
        for status, _ in assoc.send_c_get(data.query(QueryRetrieveLevel="STUDY"), model)
    ]
    assert statuses[-1] == 0x0000
    (name,) = names(tmp_path)
    stored = dcmread(tmp_path / name)
    assert stored == dcmread(path)
    assert stored.file_meta.SendingApplicationEntityTitle == "ANY-SCP"
    assert stored.file_meta.ReceivingApplicationEntityTitle == "SCU"
    assoc.release()
    kit.until(lambda: told == [tmp_path / name])


def test_with_chunked_data_sets(
    world: kit.World, files: data.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pynetdicom import _config

    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    server = serve(world, tmp_path)
    path = files.made(1, 600_000)
    assert world.connect(server, CTX).send_c_store(path).Status == 0x0000
    (name,) = names(tmp_path)
    stored = dcmread(tmp_path / name)
    assert stored == dcmread(path)
    assert stored.file_meta.SendingApplicationEntityTitle == "SCU"


def test_rename_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for links in (True, False):
        if not links:

            def no_link(source: str, target: str) -> None:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")

            monkeypatch.setattr(os, "link", no_link)
        source, target = tmp_path / "source", tmp_path / f"target-{links}"
        source.write_bytes(b"new")
        filestore.rename_new(str(source), str(target))
        assert target.read_bytes() == b"new"
        assert not source.exists()
        source.write_bytes(b"other")
        with pytest.raises(FileExistsError):
            filestore.rename_new(str(source), str(target))
        assert source.read_bytes() == b"other"
        assert target.read_bytes() == b"new"
        source.unlink()
