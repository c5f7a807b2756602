"""What a row measures, and that it notices when a byte is lost. No time is asserted."""

from __future__ import annotations

import io
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastpdu
from fastpdu.bench import (
    associations,
    certificates,
    child,
    delay,
    disk,
    find,
    floor,
    idle,
    memory,
    pair,
    peers,
    receivers,
    retrieve,
    runners,
    tls,
    verify,
    wan,
    watch,
)
from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance, Series, make_series, read_series

needs_dcmtk = pytest.mark.skipif(peers.find_dcmtk() is None, reason="needs DCMTK")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    directory = tmp_path_factory.mktemp("rows")
    return Series(directory, tuple(make_series(directory, 4, rows=64, columns=64)), made=True)


def _event(instance: Instance, data: bytes | None = None) -> Any:
    content = instance.data_set() if data is None else data
    request = SimpleNamespace(
        DataSet=io.BytesIO(content), AffectedSOPInstanceUID=instance.sop_instance
    )
    return SimpleNamespace(request=request)


def test_floor_moves_every_byte(series: Series) -> None:
    import hashlib

    expected = [hashlib.sha256(Path(i.path).read_bytes()).digest() for i in series.instances]
    assert floor.digests_received(series.instances) == expected
    assert floor.measure(series.instances) > 0


@pytest.fixture(scope="module")
def made() -> Iterator[certificates.Certificates]:
    with certificates.certificates() as files:
        yield files


def test_floor_of_tls_moves_every_byte(series: Series, made: certificates.Certificates) -> None:
    row = runners.Floor("floor", series, 1, pair.DEFAULT_PDU, tls=made)
    assert row.verify() == "SHA-256 of 4"
    assert row.measure() > 0


@pytest.mark.parametrize("name", pair.TRANSPORTS)
def test_store_rows_over_tls(series: Series, made: certificates.Certificates, name: str) -> None:
    row = runners.Store(name, series, 1, pair.DEFAULT_PDU, tls=made)
    assert row.verify() == "SHA-256 of 4"
    assert row.measure() > 0


def test_row_with_a_window_over_tls(
    series: Series, made: certificates.Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = []
    many = pair.send_many

    def look(association: Any, instances: Any, window: int) -> float:
        windows.append((association.async_window, window))
        return many(association, instances, window)

    monkeypatch.setattr(pair, "send_many", look)
    row = runners.Store("x", series, 1, pair.DEFAULT_PDU, tls=made, transport="fastpdu", window=3)
    assert row.label == "fastpdu, window 3"
    assert row.verify() == "SHA-256 of 4"
    assert row.measure() > 0
    assert windows == [(3, 3)] * 2


@pytest.mark.interop
@needs_dcmtk
def test_dcmtk_over_tls(series: Series, made: certificates.Certificates) -> None:
    tools = peers.find_dcmtk()
    assert tools is not None
    if not peers.speaks_tls(tools):
        pytest.skip("this DCMTK was built without OpenSSL")
    row = runners.Dcmtk("dcmtk-nodelay", series, 1, pair.DEFAULT_PDU, tools, tls=made)
    assert row.verify().startswith("SHA-256 of 4")
    assert row.measure() > 0


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_what_two_ends_agree_on(version: str) -> None:
    with certificates.certificates(ssl.TLSVersion[version]) as files:
        found = tls.agreed(files.ends())
    assert found["tls_version"] == version.replace("v1_", "v1.")
    assert found["cipher"]


def test_floor_notices_a_file_that_shrank(series: Series, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x")
    wrong = Instance(str(path), 100, 0, "", "", "")
    with pytest.raises(BenchError, match="changed"):
        floor.measure([wrong])


@pytest.mark.parametrize("name", pair.TRANSPORTS)
def test_store_rows_verify_and_measure(series: Series, name: str) -> None:
    verifier, touch = verify.Verifier(series.instances), verify.Touch()
    for handler in (verifier, touch):
        with pair.transport(name), pair.scp(handler, series.contexts) as port:
            association = pair.associate(port, series.contexts, fast=name == "fastpdu")
            assert pair.send(association, series.instances) > 0
            association.release()
    assert verifier.finish() == "SHA-256 of 4"
    touch.check(verifier.samples)


@pytest.mark.parametrize("name", ["fastpdu", "fastpdu-window", "fastpdu-handler", "stock"])
def test_rows_from_files_to_files(series: Series, tmp_path: Path, name: str) -> None:
    row = disk.Store(name, series, 1, pair.DEFAULT_PDU, tmp_path, "none")
    assert row.verify().startswith("SHA-256 of 4")
    assert row.measure() > 0


@pytest.mark.parametrize("name", [name for name in retrieve.ROWS if name != "floor"])
def test_retrieve_rows_verify_and_measure(series: Series, name: str) -> None:
    row = retrieve.Retrieve(name, series, 1, pair.DEFAULT_PDU)
    assert row.verify() == "SHA-256 of 4"
    assert row.measure() > 0


def test_retrieve_row_notices_a_lost_image(series: Series) -> None:
    row = retrieve.Retrieve("get", series, 1, pair.DEFAULT_PDU)
    row.verify()
    broken = Series(series.directory, (*series.instances[:3], series.instances[0]), made=True)
    wrong = retrieve.Retrieve("get", broken, 1, pair.DEFAULT_PDU)
    wrong._expected = row._expected
    with pytest.raises(BenchError, match="image 4 arrived changed"):
        wrong.measure()


@pytest.fixture(scope="module")
def link() -> Iterator[delay.Link]:
    with delay.link() as process:
        yield process


def test_link_delivers_everything_and_not_before_its_time(link: delay.Link) -> None:
    content = os.urandom(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = link.to(listener.getsockname()[1], round_trip=0.06, rate=1e8)
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as near:
            far, _ = listener.accept()
            with far:
                near.sendall(content)
                near.shutdown(socket.SHUT_WR)
                got = b"".join(iter(lambda: far.recv(1 << 16), b""))
                far.sendall(b"answer")
                far.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: near.recv(16), b""))
    # Never sooner than bandwidth and round trip allow
    assert time.monotonic() - begun >= 0.06 + len(content) / 1e8
    assert (got, answer) == (content, b"answer")


def test_link_holds_no_more_than_a_link_would(link: delay.Link) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = link.to(listener.getsockname()[1], round_trip=0.0, rate=1e9)
        with socket.create_connection(("127.0.0.1", port)) as near:
            far, _ = listener.accept()
            with far:
                near.settimeout(1)
                # Nobody takes it: what fits neither into the link nor into socket buffers waits at the sender
                with pytest.raises(TimeoutError):
                    near.sendall(bytes(1 << 28))


def test_link_that_leads_nowhere_is_closed(link: delay.Link) -> None:
    port = link.to(peers.free_port(), round_trip=0.0, rate=0)
    with socket.create_connection(("127.0.0.1", port)) as near:
        near.settimeout(30)
        assert near.recv(1) == b""


def test_link_passes_on_that_an_end_is_lost(link: delay.Link) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = link.to(listener.getsockname()[1], round_trip=0.0, rate=0)
        with socket.create_connection(("127.0.0.1", port)) as near:
            far, _ = listener.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            near.settimeout(30)
            assert near.recv(1) == b""


@pytest.mark.parametrize("kind", ["floor", "window", "single", "stock"])
def test_rows_over_a_link(series: Series, link: delay.Link, kind: str) -> None:
    cell = wan.Cell(kind, 2, 1e8, 3 if kind == "window" else 1)
    row: runners.Runner
    if kind == "floor":
        row = wan.Streamed(cell, series, 1, link)
    else:
        row = wan.Stored(cell, series, 1, pair.DEFAULT_PDU, link)
    assert row.verify() == "SHA-256 of 4"
    assert row.measure() >= 0.002


def test_report_of_a_link(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fastpdu.bench import command, report

    arguments = "--count 3 --runs 1 --round-trips 0,2 --window 2 --rows floor,window,single --quiet"
    args = command._parser("wan", "wan").parse_args(arguments.split())
    result = wan.run(args)
    assert [row.name for row in result.rows] == [
        f"{kind}-{trip}" for trip in (0, 2) for kind in ("floor", "window", "single")
    ]
    assert all(row.items == 3 and len(row.samples) == 1 for row in result.rows)
    assert [goal.met for goal in result.goals] == [None, None]
    written = report.emit(result, out=tmp_path, as_json=False, stdout=io.StringIO())
    assert [path.name.split("-")[0] for path in written] == ["wan", "wan"]
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_limit_of_a_link() -> None:
    # 1 MB takes 10 ms, the round trip 50 ms
    assert wan.Cell("floor", 50, 1e8, 1).limit(100, 1e6) == pytest.approx(1.05)
    assert wan.Cell("single", 50, 1e8, 1).limit(100, 1e6) == pytest.approx(6.0)
    assert wan.Cell("window", 50, 1e8, 3).limit(100, 1e6) == pytest.approx(2.0)
    assert wan.Cell("window", 50, 1e8, 32).limit(100, 1e6) == pytest.approx(1.05)


def test_row_with_a_window_that_was_not_granted(series: Series) -> None:
    with pair.transport("fastpdu"), pair.scp(None, series.contexts) as port:
        association = pair.associate(port, series.contexts)
        with pytest.raises(BenchError, match="agreed to 1 operations at a time, not 4"):
            pair.send_many(association, series.instances, 4)
        association.release()


def test_refused_image_of_many_is_an_error(series: Series) -> None:
    with pair.transport("stock"), pair.scp(lambda event: 0xA700, series.contexts) as port:
        with pair.transport("fastpdu"):
            association = pair.associate(port, series.contexts)
            with pytest.raises(BenchError, match="0xA700"):
                pair.send_many(association, series.instances, 1)
            association.release()


@pytest.mark.parametrize("name", find.ROWS)
def test_find_rows_verify_and_measure(name: str) -> None:
    row = find.Find(name, [find.match(number) for number in range(30)])
    assert row.verify() == "SHA-256 of the elements of 30"
    assert row.measure() > 0


@pytest.mark.parametrize("name", pair.TRANSPORTS)
def test_echo(name: str) -> None:
    with pair.transport(name), pair.scp(None) as port:
        association = pair.associate(port)
        assert pair.echo(association, 3) > 0
        association.release()


def test_row_over_the_wrong_transport_is_an_error() -> None:
    with pair.transport("stock"), pair.scp(None) as port:
        with pytest.raises(BenchError, match="this row is about fastpdu"):
            pair.associate(port, fast=True)


def test_stock_row_refuses_an_installed_transport() -> None:
    with fastpdu.installed():
        with pytest.raises(BenchError, match="installed"), pair.transport("stock"):
            pass


def test_refused_image_is_an_error(series: Series) -> None:
    with pair.transport("stock"), pair.scp(lambda event: 0xA700, series.contexts) as port:
        association = pair.associate(port, series.contexts)
        with pytest.raises(BenchError, match="0xA700"):
            pair.send(association, series.instances)
        association.release()


def test_verifier_notices_what_is_wrong(series: Series) -> None:
    good = series.instances[0]
    data = good.data_set()
    changed = bytes([data[-1] ^ 1])
    for event in (
        _event(good, data[:-1] + changed),
        _event(good, data[:-2]),
        _event(series.instances[1]),
        _event(good, b""),
    ):
        verifier = verify.Verifier([good])
        verifier(event)
        with pytest.raises(BenchError):
            verifier.finish()
    verifier = verify.Verifier([good])
    with pytest.raises(BenchError, match="0 of 1"):
        verifier.finish()
    verifier(_event(good))
    verifier(_event(good))
    with pytest.raises(BenchError, match="more images"):
        verifier.finish()


def test_verifier_accepts_the_same_elements_in_another_encoding(series: Series) -> None:
    good = series.instances[0]
    data = good.data_set()
    # A group length in front is another encoding of the same data set.
    other = b"\x08\x00\x00\x00UL\x04\x00\x00\x00\x00\x00" + data
    assert verify.same_data_set(other, good) == "elements"
    assert verify.same_data_set(data, good) == "digest"
    verifier = verify.Verifier([good])
    verifier(_event(good, other))
    assert "1 of them re-encoded" in verifier.finish()


def test_touch_notices_what_is_wrong(series: Series) -> None:
    expected = [verify.touch(i.data_set()) for i in series.instances]
    touch = verify.Touch()
    for instance in series.instances:
        assert touch(_event(instance)) == 0
    touch.check(expected)
    touch.samples[2] = verify.touch(b"something else")
    with pytest.raises(BenchError, match="image 3"):
        touch.check(expected)
    del touch.samples[2]
    with pytest.raises(BenchError, match="3 of 4"):
        touch.check(expected)


@pytest.mark.interop
@needs_dcmtk
@pytest.mark.parametrize("environment", [{}, peers.NODELAY])
def test_dcmtk_moves_every_byte(
    series: Series, tmp_path: Path, environment: dict[str, str]
) -> None:
    tools = peers.find_dcmtk()
    assert tools is not None
    with peers.linked(series.instances) as links:
        with peers.storescp(tools, tmp_path, environment=environment) as port:
            assert peers.storescu(tools, port, links, environment=environment) > 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
    assert peers.verify_received(tmp_path, series.instances) == "SHA-256 of 4"
    lost = next(iter(tmp_path.iterdir()))
    before = peers.contents(tmp_path)
    lost.unlink()
    assert peers.contents(tmp_path) != before
    with pytest.raises(BenchError, match="did not arrive"):
        peers.verify_received(tmp_path, series.instances)


@pytest.mark.interop
@needs_dcmtk
def test_dcmtk_that_fails_says_why(tmp_path: Path) -> None:
    tools = peers.find_dcmtk()
    assert tools is not None
    with pytest.raises(BenchError, match=r"storescu failed: ."):
        peers.storescu(tools, peers.free_port(), tmp_path)
    with pytest.raises(BenchError, match=r"storescp did not start: ."):
        with peers.storescp(tools, tmp_path / "missing"):
            pass


def test_other_programs_of_that_name_are_not_dcmtk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.name != "posix":
        pytest.skip("needs shell scripts")
    for name in ("storescu", "storescp"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'storescp 5.31.0'\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.find_dcmtk() is None


def test_child_answers_and_fails_loudly() -> None:
    assert child.call(os.path.basename, "a/b") == "b"
    with pytest.raises(BenchError, match="FileNotFoundError"):
        child.call(os.stat, "/no/such/file")
    with pytest.raises(BenchError, match="exit status 3"):
        child.call(os._exit, 3)


@pytest.mark.parametrize("name", pair.TRANSPORTS)
def test_idle_associations_are_counted(name: str) -> None:
    got = child.call(idle.idle, name, 2, 0.2)
    assert got["wall"] >= 0.2
    assert got["cpu"] >= 0
    assert got["threads"] >= 0


def test_associations_deliver_what_each_was_given(series: Series) -> None:
    shares = associations.shares_of(series, 3, 2)
    with receivers.open_receiver("memory", "fastpdu", series.contexts, 10) as scp:
        for exact in (True, False):
            scp.begin(exact=exact)
            with watch.watch(scp.pid) as figures:
                sent = associations.send_all("fastpdu", scp.port, series.contexts, shares)
            scp.check(shares)
            assert sent.seconds > 0
            assert len(sent.latencies) == 6
            if sys.platform == "linux":
                assert figures.cpu is not None
                assert figures.cpu >= 0
                assert figures.more_threads is not None
                assert figures.more_threads >= 0
                assert figures.memory_growth is not None
        with pytest.raises(BenchError, match="association 2 arrived changed"):
            scp.check([shares[0], shares[1][::-1], shares[2]])
        with pytest.raises(BenchError, match="images arrived from nowhere"):
            scp.check(shares[:2])
        scp.begin(exact=False)
        with pytest.raises(BenchError, match="0 of 2 images of association 1"):
            scp.check(shares)


@pytest.mark.parametrize("kind", ["files", "recv"])
def test_associations_store_what_each_was_given(series: Series, kind: str) -> None:
    shares = associations.shares_of(series, 3, 3)
    with receivers.open_receiver(kind, "fastpdu", series.contexts, 10) as scp:
        for exact in (True, False):
            scp.begin(exact=exact)
            associations.send_all("fastpdu", scp.port, series.contexts, shares)
            scp.check(shares)
        with pytest.raises(BenchError, match="association 2 has stored more"):
            scp.check([shares[0], shares[1][:2], shares[2]])
        with pytest.raises(BenchError, match="images arrived from nowhere"):
            scp.check(shares[:2])
        with pytest.raises(BenchError, match="of association 1 was not stored"):
            scp.check([series.instances, *shares[1:]])
        scp.begin(exact=True)
        associations.send_all("fastpdu", scp.port, series.contexts, shares)
        (damaged,) = Path(scp._directory, receivers.title_of(2)).glob(  # type: ignore[attr-defined]
            f"{shares[2][0].sop_instance}.dcm"
        )
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(BenchError, match="of association 3 was stored changed"):
            scp.check(shares)


def test_figures_of_another_process() -> None:
    with watch.watch(2**22 + 1) as figures:  # there is none of this number
        pass
    assert figures == watch.Figures()
    assert figures.memory_growth is None
    assert figures.more_threads is None


def test_memory_of_a_receiver(tmp_path: Path) -> None:
    make_series(tmp_path, memory.FIRST + 2, rows=8, columns=8)
    figures = memory.measure("fastpdu", read_series(tmp_path))
    assert figures["images"] == memory.FIRST + 2
    assert figures["peak"] >= figures["level"] * 0.9 > 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_forgets_what_was_before() -> None:
    block = b"x" * (64 << 20)
    with_block = memory.resident()
    del block
    memory.reset_peak()
    before = memory.peak()
    assert before < with_block - (32 << 20)
    block = b"x" * (64 << 20)
    del block
    assert memory.peak() > before + (32 << 20)
