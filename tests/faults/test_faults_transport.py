"""Peers that stall, drip, vanish or flood: bounded, and without traces."""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers import data, kit, raw
from pynetdicom import _config, build_role, evt

KIND = kit.KINDS[-1]
stock_hangs = pytest.mark.skipif(KIND == "stock", reason="stock blocks in recv, or buffers all")

CONTEXTS = [
    (data.VERIFICATION, data.IMPLICIT),
    (data.CT, data.EXPLICIT),
    (data.STUDY_FIND, data.EXPLICIT),
]


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


@pytest.fixture
def no_log() -> Iterator[None]:
    """pytest keeps log records, their tracebacks keep frames, and those keep what is counted here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def find(event: evt.Event) -> Iterator[Any]:
    yield 0xFF00, data.query(PatientID="1")
    yield 0x0000, None


def serve(world: kit.World, handlers: Any = None, **attributes: Any) -> kit.Server:
    given = list(handlers or [])
    bound = [handler[0] for handler in given]
    for event, handler in (
        (evt.EVT_C_ECHO, lambda event: 0),
        (evt.EVT_C_STORE, lambda event: 0),
        (evt.EVT_C_FIND, find),
    ):
        if event not in bound:
            given.append((event, handler))
    ssl_context = attributes.pop("ssl_context", None)
    return world.serve(CONTEXTS, given, ssl_context=ssl_context, attributes=attributes)


class Opened:
    """Counts accepted connections: quicker connects than accepts cost a second each (SYN queue)."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: evt.Event) -> None:
        self.count += 1

    def wait(self, count: int) -> None:
        kit.until(lambda: self.count >= count, what=f"{count} accepted connections")


def connect(world: kit.World, acceptor: raw.Acceptor, **attributes: Any) -> Any:
    return world.connect(acceptor.address, CONTEXTS, attributes=attributes)


def descriptors() -> int:
    gc.collect()  # stock leaves some sockets to the garbage collector
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")

# silence in the middle


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 20, 80])
def test_silence_before_an_association(world: kit.World, count: int) -> None:
    """So many bytes of an A-ASSOCIATE-RQ, then nothing: closed by ARTIM (PS3.8 AA-2)."""
    if KIND == "stock" and count:
        pytest.skip("stock blocks in recv")
    server = serve(world, acse_timeout=0.3)
    with raw.dial(server.address) as peer:
        peer.send(raw.associate_rq()[:count])
        assert peer.at_end()
    server.quiet()
    raw.check_service(server.address)


@stock_hangs
@pytest.mark.parametrize("count", [1, 3, 5, 6, 10, 11, 12, 40])
@pytest.mark.parametrize("side", ["scp", "scu"])
def test_silence_in_an_association(world: kit.World, side: str, count: int) -> None:
    """A PDU that was begun and not finished ends the association by the network timeout."""
    if side == "scp":
        server = serve(world, network_timeout=0.4)
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.echo()
            peer.send(raw.echo()[:count])
            assert peer.at_end()
        server.quiet()
        raw.check_service(server.address)
        return

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        peer.message()
        peer.send(raw.p_data(raw.pdv(1, 3, raw.echo_rsp()))[:count])
        return peer.at_end()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor, network_timeout=0.4)
        assert kit.outcome(assoc.send_c_echo) == ()
        kit.until(lambda: not assoc.is_established)
    assert acceptor.results == [True]
    assert assoc.is_aborted


@pytest.mark.parametrize("part", ["pdu", "message"])
def test_silence_in_a_response_without_a_network_timeout(world: kit.World, part: str) -> None:
    """The DIMSE timeout ends the wait for an answer that was begun, too."""
    if KIND == "stock" and part == "pdu":
        pytest.skip("stock blocks in recv")
    over = threading.Event()

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        peer.message()
        response = raw.echo_rsp()
        if part == "pdu":
            peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, response))[:20])
        else:
            peer.send(raw.p_data(raw.pdv(1, raw.COMMAND, response[:20])))
        over.wait(kit.DEADLINE / 2)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor, network_timeout=None, dimse_timeout=0.4)
        answer = assoc.send_c_echo()
        in_time = not over.is_set() and acceptor.thread.is_alive()
        over.set()
    assert not answer
    assert in_time
    kit.until(lambda: assoc.is_aborted)


@stock_hangs
@pytest.mark.parametrize("what", ["request", "message"])
def test_drip(world: kit.World, what: str) -> None:
    """A byte now and then does not move the deadline of the PDU."""
    server = serve(world, acse_timeout=0.5, network_timeout=0.5)
    with raw.dial(server.address) as peer:
        sent = raw.associate_rq()
        if what == "message":
            peer.associate()
            sent = raw.store()
        peer.sock.settimeout(0.05)
        count = 0
        for count in range(len(sent)):
            peer.send(sent[count : count + 1])
            try:
                if peer.sock.recv(1) in (b"", b"\x07"):
                    break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        assert count < len(sent) - 1
    server.quiet()
    raw.check_service(server.address)


@stock_hangs
def test_silence_of_the_acceptor(world: kit.World) -> None:
    """Half an A-ASSOCIATE-AC: the requestor gives up by its ACSE timeout."""

    def script(peer: raw.Peer) -> Any:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(raw.associate_ac()[:50])
        return peer.at_end()

    with raw.Acceptor(script) as acceptor:
        assoc = world.connect(
            acceptor.address, CONTEXTS, attributes={"acse_timeout": 0.4}, established=False
        )
        assert assoc.is_aborted
        kit.until(lambda: not assoc.dul.is_alive())
    assert acceptor.results == [True]


# lengths that lie, and memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@stock_hangs
@needs_proc
@pytest.mark.parametrize("kind", [raw.ASSOCIATE_RQ, raw.P_DATA])
def test_a_declared_length_is_not_allocated(world: kit.World, kind: int) -> None:
    """FFFFFFFFH and as many bytes as one can send: aborted on the header, memory as before."""
    server = serve(world)
    before = resident()
    with raw.dial(server.address) as peer:
        if kind == raw.P_DATA:
            peer.associate()
        peer.send(raw.pdu(kind, b"", 0xFFFFFFFF))
        block = bytes(1 << 20)
        peer.sock.settimeout(0.3)
        try:
            for _ in range(64):
                peer.sock.sendall(block)
        except OSError:
            pass
        assert resident() - before < 48 << 20
    server.quiet()
    raw.check_service(server.address)


@needs_proc
def test_a_slow_handler_stops_the_reads(world: kit.World) -> None:
    """Messages sent ahead stay in the kernel's buffers: nothing grows here."""
    if KIND == "stock":
        pytest.skip("stock queues all that comes")
    go_on = threading.Event()
    count = [0]

    def handler(event: evt.Event) -> int:
        go_on.wait(kit.DEADLINE)
        count[0] += 1
        return 0

    server = serve(world, [(evt.EVT_C_STORE, handler)], maximum_pdu_size=0)
    before = resident()
    with raw.dial(server.address) as peer:
        peer.associate()
        message = raw.store(payload=bytes(1 << 20))
        peer.sock.setblocking(False)
        sent = 0
        stalled = 0
        pending = memoryview(message)
        while stalled < 50 and sent < 200 << 20:
            try:
                written = peer.sock.send(pending)
                sent += written
                pending = pending[written:] or memoryview(message)
                stalled = 0
            except BlockingIOError:
                stalled += 1
                time.sleep(0.01)
        assert sent < 100 << 20
        assert resident() - before < 64 << 20
        go_on.set()
        peer.sock.setblocking(True)
        peer.reset()
    server.quiet()
    assert count[0] >= 1


# the end of the stream, everywhere


def exchange() -> list[bytes]:
    """The requests of a small exchange; each is followed by a response."""
    return [raw.associate_rq(), raw.store(), raw.echo(), raw.RELEASE_RQ_PDU]


@needs_proc
@pytest.mark.parametrize("how", ["eof", "reset", "half"])
@pytest.mark.usefixtures("no_log")
def test_the_end_at_every_offset_of_a_request(world: kit.World, how: str) -> None:
    """Against an SCP: no thread and no descriptor is left, whatever the byte (the rarer ends at every third)."""
    opened = Opened()
    server = serve(world, [(evt.EVT_CONN_OPEN, opened)], maximum_associations=1000, acse_timeout=2)
    raw.check_service(server.address)
    server.quiet()
    before = descriptors()
    steps = exchange()
    step = 23 if KIND == "stock" else 1 if how == "eof" else 3
    for number, offset in enumerate(range(0, sum(map(len, steps)), step), 1):
        opened.wait(number)
        with raw.dial(server.address) as peer:
            rest = offset
            for turn, part in enumerate(steps):
                peer.send(part[:rest])
                rest -= len(part)
                if rest < 0:
                    break
                if turn == 0:
                    peer.expect(raw.ASSOCIATE_AC)
                elif turn < 3:
                    peer.message()
            if how == "reset":
                peer.reset()
            elif how == "half":
                peer.sock.shutdown(socket.SHUT_WR)
                assert peer.at_end()
    server.quiet()
    raw.check_service(server.address)
    server.quiet()
    kit.until(lambda: descriptors() <= before + 1, what="as many descriptors as before")


@needs_proc
@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.usefixtures("no_log")
def test_the_end_at_every_offset_of_a_response(world: kit.World, how: str) -> None:
    """Against an SCU: aborted, an empty status, nothing left."""
    accept = raw.associate_ac()
    answer = raw.p_data(raw.pdv(1, 1, raw.echo_rsp()[:10])) + raw.p_data(
        raw.pdv(1, 3, raw.echo_rsp()[10:])
    )
    step = (
        5 if KIND == "fast" else 19
    )  # each aborted association takes pynetdicom a tenth of a second
    offsets = list(range(0, len(accept) + len(answer), step))
    turn = iter(offsets)

    def script(peer: raw.Peer) -> None:
        rest = next(turn)
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(accept[:rest])
        rest -= len(accept)
        if rest >= 0:
            try:
                peer.message()
            except AssertionError:
                pass  # not even the association came about in time
            peer.send(answer[:rest])
        if how == "reset":
            peer.reset()

    ae = kit.make_ae(KIND, "SCU")
    for abstract, transfer in CONTEXTS:
        ae.add_requested_context(abstract, transfer)
    before = None
    with raw.Acceptor(script, connections=len(offsets)) as acceptor:
        for offset in offsets:
            assoc = ae.associate(*acceptor.address)
            if offset < len(accept):
                assert not assoc.is_established
            elif assoc.is_established:
                result = kit.outcome(assoc.send_c_echo)
                assert result == () or result[0] == "RuntimeError"
            kit.until(lambda: not assoc.is_established and not assoc.is_alive())
            kit.until(lambda: not assoc.dul.is_alive())
            assert assoc.is_aborted
            if before is None:
                before = descriptors()
    assoc = None  # after a reset its socket is closed when it is collected
    kit.until(lambda: descriptors() <= before + 1, what="as many descriptors as before")


def test_half_close_while_an_answer_is_due(world: kit.World) -> None:
    """FIN right behind a request: the association ends, with or without the response."""
    server = serve(world)
    for _ in range(20):
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(raw.store())
            peer.sock.shutdown(socket.SHUT_WR)
            assert peer.at_end()
    server.quiet()
    raw.check_service(server.address)


# a peer that does not read


@stock_hangs
@pytest.mark.usefixtures("no_log")
def test_a_requestor_that_does_not_read(world: kit.World) -> None:
    """C-FIND responses without end, nobody reads: the network timeout ends it."""
    finished = threading.Event()

    def handler(event: evt.Event) -> Iterator[Any]:
        try:
            for _ in range(2000):
                yield 0xFF00, data.query(PatientID="1", PatientComments="c" * 200_000)
                if not event.assoc.is_established:
                    return
        finally:
            finished.set()

    server = serve(world, [(evt.EVT_C_FIND, handler)], network_timeout=0.5)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.find())
        server.quiet()
        kit.until(lambda: gc.collect() is None or finished.is_set(), what="the generator's end")
    raw.check_service(server.address)


@stock_hangs
@pytest.mark.parametrize("how", ["dataset", "path", "chunked"])
def test_an_acceptor_that_does_not_read(
    world: kit.World, files: data.Files, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", how == "chunked")
    done = threading.Event()

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        assert done.wait(kit.DEADLINE)

    # made before: that may take longer than the network timeout
    item = data.image(1, 32 << 20) if how == "dataset" else files.made(1, 32 << 20)
    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor, network_timeout=0.5)
        try:
            assert kit.outcome(lambda: assoc.send_c_store(item)) == ()
            kit.until(lambda: not assoc.is_established)
            kit.until(lambda: not assoc.dul.is_alive())
        finally:
            done.set()
    assert assoc.is_aborted


@stock_hangs
def test_abort_while_a_send_is_stuck(world: kit.World) -> None:
    """Another thread aborts: the stuck sender comes back at once, not by a timeout."""
    done = threading.Event()

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        assert done.wait(kit.DEADLINE)

    results: list[Any] = []
    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor, network_timeout=None, dimse_timeout=None)
        image = data.image(1, 32 << 20)
        thread = threading.Thread(
            target=lambda: results.append(kit.outcome(lambda: assoc.send_c_store(image))),
            name="user",
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        try:
            assoc.abort()
            thread.join(kit.DEADLINE)
            assert not thread.is_alive()
        finally:
            done.set()
    assert results[0] == () or results[0][0] == "RuntimeError"
    assert assoc.is_aborted


@pytest.mark.parametrize("size", [1000, 8 << 20])
def test_a_peer_that_aborts_while_we_send(world: kit.World, size: int) -> None:
    """The A-ABORT waits in our receive buffer while the send is stuck."""

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        peer.exactly(500)
        peer.send(raw.ABORT_PDU)
        while peer.sock.recv(1 << 20):
            pass

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor)
        result = kit.outcome(lambda: assoc.send_c_store(data.image(1, size)))
        assert result == () or result[0] == "RuntimeError"
        kit.until(lambda: not assoc.is_established and not assoc.dul.is_alive())
    assert assoc.is_aborted


# many connections


@needs_proc
@pytest.mark.parametrize("first", [b"", b"\1", raw.associate_rq()], ids=["none", "byte", "request"])
@pytest.mark.usefixtures("no_log")
def test_connect_and_close(world: kit.World, first: bytes) -> None:
    """200 health checks leave neither thread nor descriptor."""
    opened = Opened()
    server = serve(world, [(evt.EVT_CONN_OPEN, opened)], maximum_associations=1000, acse_timeout=2)
    raw.check_service(server.address)
    server.quiet()
    threads, files = threading.active_count(), descriptors()
    for number in range(1, 201):
        opened.wait(number)
        with raw.dial(server.address) as peer:
            peer.send(first)
    server.quiet()
    kit.until(lambda: threading.active_count() <= threads, what="as many threads as before")
    kit.until(lambda: descriptors() <= files, what="as many descriptors as before")
    raw.check_service(server.address)


@stock_hangs
def test_half_open_peers_take_no_slots(world: kit.World) -> None:
    """Slots are for associations: silent connections must not use them up."""
    server = serve(world, maximum_associations=2, acse_timeout=2)
    silent = [socket.create_connection(server.address) for _ in range(10)]
    try:
        for number, sock in enumerate(silent):
            sock.sendall(raw.associate_rq()[: number % 4])
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.echo()
            peer.release()
    finally:
        for sock in silent:
            sock.close()
    server.quiet()


@stock_hangs
def test_half_open_peers_make_no_room_in_vain(world: kit.World) -> None:
    """With both slots taken a third peer is rejected, and a silent connection may stay."""
    server = serve(world, maximum_associations=2)
    with raw.dial(server.address) as one, raw.dial(server.address) as two:
        one.associate()
        two.associate()
        with raw.dial(server.address) as silent, raw.dial(server.address) as three:
            kit.until(lambda: len(server.associations) == 4)
            three.send(raw.associate_rq())
            assert three.expect(raw.ASSOCIATE_RJ)[1:4] == bytes((2, 3, 2))
            three.close()
            two.release()
            kit.until(lambda: len(server.associations) == 2)
            silent.associate()
            silent.echo()
        one.echo()
    server.quiet()


@stock_hangs
def test_half_open_peers_are_bounded(world: kit.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest silent connections are closed when there are too many; associations are not."""
    from fastpdu import acse

    monkeypatch.setattr(acse, "HALF_OPEN", 3)
    opened = Opened()
    server = serve(world, [(evt.EVT_CONN_OPEN, opened)], acse_timeout=20)
    with raw.dial(server.address) as peer:
        peer.associate()
        silent = []
        try:
            for number in range(2, 8):
                silent.append(raw.Peer(socket.create_connection(server.address)))
                opened.wait(number)
            kit.until(lambda: len(server.associations) == 4, what="three closed connections")
            served = 0
            for one in silent:
                one.send(raw.associate_rq())
                served += one.read() is not None
            assert served == 3
        finally:
            for one in silent:
                one.close()
        peer.echo()
    server.quiet()


def test_slots_come_back(world: kit.World) -> None:
    """Two slots; a third peer is refused as the standard says, and served when one is free."""
    server = serve(world, maximum_associations=2)
    with raw.dial(server.address) as one, raw.dial(server.address) as two:
        one.associate()
        two.associate()
        with raw.dial(server.address) as three:
            three.send(raw.associate_rq())
            assert three.expect(raw.ASSOCIATE_RJ)[1:4] == bytes((2, 3, 2))
        one.echo()
        two.reset()
        kit.until(lambda: len(server.associations) == 1)
        raw.check_service(server.address)
        one.echo()


@stock_hangs
def test_a_silent_peer_on_the_tls_port(world: kit.World) -> None:
    import ssl

    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    server = serve(world, ssl_context=context)
    silent = [socket.create_connection(server.address) for _ in range(3)]
    silent[1].sendall(b"\x16\x03\x01")
    silent[2].sendall(raw.associate_rq())
    try:
        for _ in range(3):
            assoc = world.connect(server, CONTEXTS, tls_args=(client, "localhost"))
            assert assoc.send_c_echo().Status == 0
            assoc.release()
    finally:
        for sock in silent:
            sock.close()
    server.quiet()


def test_sending_on_a_tls_socket_that_has_just_been_used(world: kit.World) -> None:
    """The acceptor's thread may still be inside the call that sent the A-ASSOCIATE-AC; OpenSSL allows one."""
    import ssl

    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    server = serve(world, ssl_context=context)
    for _ in range(40):
        got: list[int] = []
        assoc = world.connect(
            server,
            CONTEXTS,
            [(evt.EVT_C_ECHO, lambda event, got=got: got.append(1) or 0)],
            tls_args=(client, "localhost"),
        )
        server.associations[0].dul.socket.send(raw.echo() * 2)
        kit.until(lambda got=got: len(got) == 2 or not assoc.is_established)
        assert len(got) == 2
        assoc.release()
        assert assoc.is_released
        server.quiet()


# out of turn


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_garbage_right_behind_the_request(world: kit.World) -> None:
    """The acceptor's A-ASSOCIATE-AC meets Sta13: it is dropped, and no thread dies of it."""
    server = serve(world)
    for _ in range(40):
        with raw.dial(server.address) as peer:
            peer.send(raw.associate_rq() + b"\x09\0\0\0\0\0")
            while peer.read() is not None:
                pass
    server.quiet()
    raw.check_service(server.address)


@pytest.mark.skipif(KIND == "stock", reason="stock forgets it, then its network timeout aborts")
@pytest.mark.parametrize("answers", [0, 1, 50])
def test_release_with_an_operation_outstanding(world: kit.World, answers: int) -> None:
    """A-RELEASE-RQ right behind a C-FIND-RQ: the operation ends with its status, then the release is answered.

    (pynetdicom's service classes take the request off the queue, end the operation, and forget it.)
    """

    def handler(event: evt.Event) -> Iterator[Any]:
        for _ in range(answers):
            yield 0xFF00, data.query(PatientID="1")

    server = serve(world, [(evt.EVT_C_FIND, handler)])
    for _ in range(10):
        with raw.dial(server.address) as peer:
            peer.associate()
            peer.send(raw.find() + raw.RELEASE_RQ_PDU)
            statuses = []
            while not statuses or statuses[-1] == b"\x00\xff":
                statuses.append(peer.message()[1][0x0900])
            assert statuses[-1] == b"\0\0"
            assert len(statuses) <= answers + 1
            peer.expect(raw.RELEASE_RP)
    server.quiet()
    raw.check_service(server.address)


def test_release_in_the_middle_of_a_message(world: kit.World) -> None:
    """A-RELEASE-RQ between a command and its data set: it ends with an answer."""
    server = serve(world)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.p_data(raw.pdv(3, 3, raw.store_rq())) + raw.RELEASE_RQ_PDU)
        got = peer.read()
        assert got is not None
        assert got[0] in (raw.RELEASE_RP, raw.ABORT)
    server.quiet()
    raw.check_service(server.address)


@pytest.mark.parametrize("after", ["command", "part", "pdu header", "all"])
@pytest.mark.parametrize("how", ["abort", "eof", "reset"])
def test_chunked_files_are_removed(
    world: kit.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, how: str
) -> None:
    """The end in the middle of a data set that goes to a temporary file: no file stays."""
    if KIND == "stock":
        pytest.skip("stock leaves the file behind")
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = serve(world)
    body = raw.p_data(raw.pdv(3, raw.DATA, bytes(8000)))
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.store())
        peer.message()
        peer.send(raw.p_data(raw.pdv(3, 3, raw.store_rq(2))))
        if after != "command":
            peer.send(body * 5)
        if after == "pdu header" and how != "abort":
            peer.send(body[:9])
        if after == "all":
            peer.send(raw.p_data(raw.pdv(3, raw.LAST_DATA, b"")))
        if how == "abort":
            peer.send(raw.ABORT_PDU)
        elif how == "reset":
            peer.reset()
    server.quiet()
    kit.until(lambda: not list(tmp_path.iterdir()), what="an empty temporary directory")
    raw.check_service(server.address)
    server.quiet()
    assert not list(tmp_path.iterdir())


def test_chunked_files_of_a_handler_that_raises(
    world: kit.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock leaks this file (surface section 7, 4); so nothing is said of stock."""
    if KIND == "stock":
        pytest.skip("stock leaves the file behind")

    def handler(event: evt.Event) -> int:
        raise ValueError("no")

    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = serve(world, [(evt.EVT_C_STORE, handler)])
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.store())
        assert peer.message()[1][0x0900] == b"\x11\xc2"
        peer.release()
    server.quiet()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(KIND == "stock", reason="stock's 11th C-CANCEL ends its thread")
@pytest.mark.parametrize("when", ["idle", "operation"])
def test_flood_of_cancels(world: kit.World, when: str) -> None:
    """Thousands of C-CANCELs for operations that are none: ignored."""
    cancelled: list[bool] = []

    def handler(event: evt.Event) -> Iterator[Any]:
        yield 0xFF00, data.query(PatientID="1")
        time.sleep(0.1)
        cancelled.append(event.is_cancelled)
        yield 0x0000, None

    server = serve(world, [(evt.EVT_C_FIND, handler)])
    flood = b"".join(
        raw.p_data(raw.pdv(5, 3, raw.cancel_rq(number))) for number in range(1000, 4000)
    )
    with raw.dial(server.address) as peer:
        peer.associate()
        if when == "operation":
            peer.send(raw.find(7) + flood)
            assert peer.message()[1][0x0900] == b"\x00\xff"
            assert peer.message()[1][0x0900] == b"\0\0"
            assert cancelled == [False]
        else:
            peer.send(flood)
        peer.echo()
        peer.release()
    server.quiet()


def test_a_cancel_behind_a_flood_counts(world: kit.World) -> None:
    """The right C-CANCEL is seen, also behind others (fewer than stock's limit of ten)."""

    def handler(event: evt.Event) -> Iterator[Any]:
        yield 0xFF00, data.query(PatientID="1")
        kit.until(lambda: event.is_cancelled, what="the cancellation")
        yield 0xFE00, None

    server = serve(world, [(evt.EVT_C_FIND, handler)])
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.find(7))
        assert peer.message()[1][0x0900] == b"\x00\xff"
        for number in (1, 2, 3, 7):
            peer.send(raw.p_data(raw.pdv(5, 3, raw.cancel_rq(number))))
        assert peer.message()[1][0x0900] == b"\x00\xfe"
        peer.echo()
        peer.release()


def test_an_abort_while_a_handler_runs(world: kit.World) -> None:
    """The handler sees the end of its association without a message being read for it."""
    seen = threading.Event()

    def handler(event: evt.Event) -> Iterator[Any]:
        yield 0xFF00, data.query(PatientID="1")
        kit.until(lambda: event.is_cancelled or not event.assoc.dul.is_alive())
        seen.set()
        yield 0x0000, None

    server = serve(world, [(evt.EVT_C_FIND, handler)])
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.find())
        peer.message()
        peer.send(raw.ABORT_PDU)
        assert peer.at_end()
    assert seen.wait(kit.DEADLINE)
    server.quiet()
    raw.check_service(server.address)


# release, as PS3.8 has it


def test_release_collision_of_the_requestor(world: kit.World) -> None:
    """Sta7 -> AR-8 -> Sta9: the requestor answers first (AR-9), then waits (Sta11)."""

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        peer.expect(raw.RELEASE_RQ)
        peer.send(raw.RELEASE_RQ_PDU)
        peer.expect(raw.RELEASE_RP)
        peer.send(raw.RELEASE_RP_PDU)
        return peer.at_end()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor)
        assoc.release()
    assert assoc.is_released
    assert acceptor.results == [True]


def collide(server: kit.Server, peer: raw.Peer, before_answer: Callable[[], object]) -> None:
    """Release an association on both sides at once, the acceptor's first, and see it through."""
    acceptor = server.one()
    releasing = threading.Thread(target=acceptor.release, name="user")
    releasing.start()
    peer.expect(raw.RELEASE_RQ)
    peer.send(raw.RELEASE_RQ_PDU)
    time.sleep(0.05)  # its A-RELEASE-RQ is to be read before its A-RELEASE-RP
    before_answer()
    peer.send(raw.RELEASE_RP_PDU)
    peer.expect(raw.RELEASE_RP)
    peer.close()
    releasing.join(kit.DEADLINE)
    assert not releasing.is_alive()
    assert acceptor.is_released
    server.quiet()


@pytest.mark.skipif(KIND == "stock", reason="stock closes before its A-RELEASE-RP has left")
def test_release_collision_of_the_acceptor(world: kit.World) -> None:
    """Sta7 -> AR-8 -> Sta10: the acceptor waits for the A-RELEASE-RP, then answers (AR-4)."""
    server = serve(world)
    with raw.dial(server.address) as peer:
        peer.associate()
        collide(server, peer, lambda: None)


def test_data_after_our_release_request(world: kit.World) -> None:
    """P-DATA in Sta7 (AR-6) is no error."""

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        peer.expect(raw.RELEASE_RQ)
        for _ in range(3):
            peer.send(raw.echo())
        peer.send(raw.RELEASE_RP_PDU)
        return peer.at_end()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor)
        assoc.release()
        kit.until(lambda: not assoc.dul.is_alive())
    assert assoc.is_released
    assert acceptor.results == [True]


class Slow:
    """An EVT_C_ECHO handler that runs until it is told to end."""

    def __init__(self) -> None:
        self.runs, self.ends = threading.Event(), threading.Event()

    def __call__(self, event: evt.Event) -> int:
        self.runs.set()
        assert self.ends.wait(kit.DEADLINE)
        return 0

    def end(self) -> None:
        self.ends.set()
        time.sleep(0.1)  # for the response


@pytest.mark.skipif(KIND == "stock", reason="stock's DUL thread dies of it")
@pytest.mark.parametrize("collides", [False, True], ids=["alone", "collision"])
def test_a_response_after_our_release_request(world: kit.World, collides: bool) -> None:
    """A handler whose association is released meanwhile: P-DATA of ours is dropped, and that is all."""
    handler = Slow()

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        peer.send(raw.echo())
        peer.expect(raw.RELEASE_RQ)
        if collides:
            peer.send(raw.RELEASE_RQ_PDU)
            peer.expect(raw.RELEASE_RP)
        handler.end()
        peer.send(raw.RELEASE_RP_PDU)
        return peer.at_end()

    with raw.Acceptor(script) as acceptor:
        assoc = world.connect(acceptor.address, CONTEXTS, [(evt.EVT_C_ECHO, handler)])
        assert handler.runs.wait(kit.DEADLINE)
        assoc.release()
    assert assoc.is_released
    assert acceptor.results == [True]


@pytest.mark.skipif(KIND == "stock", reason="stock's DUL thread dies of it")
def test_a_response_after_a_release_collision_of_the_acceptor(world: kit.World) -> None:
    """The same in Sta10."""
    handler = Slow()
    server = serve(world, [(evt.EVT_C_ECHO, handler)])
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.echo())
        assert handler.runs.wait(kit.DEADLINE)
        collide(server, peer, handler.end)


def test_data_after_an_abort(world: kit.World) -> None:
    """P-DATA in Sta13 (AA-6) is dropped: nothing is answered or served."""
    served: list[int] = []

    def handler(event: evt.Event) -> int:
        served.append(1)
        return 0

    server = serve(world, [(evt.EVT_C_ECHO, handler)], acse_timeout=1)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.RELEASE_RP_PDU)
        assert peer.abort_code() is not None
        peer.send(raw.echo() * 3)
        assert peer.at_end()
    server.quiet()
    assert served == []


# responses


def test_responses_nobody_asked_for(world: kit.World) -> None:
    """To an SCP: it lives on, or aborts. It does not hang."""
    server = serve(world)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(raw.p_data(raw.pdv(1, 3, raw.echo_rsp(42))))
        peer.send(raw.echo())
        got = peer.read()
        assert got is None or got[0] in (raw.P_DATA, raw.ABORT)
    server.quiet()
    raw.check_service(server.address)


def test_sub_operations_of_a_get(world: kit.World) -> None:
    """C-STORE requests between the responses of a C-GET, sent without waiting."""
    store = raw.p_data(raw.pdv(3, 3, raw.store_rq(9))) + raw.p_data(
        raw.pdv(3, raw.LAST_DATA, raw.DATASET)
    )
    answer = {0x0002: data.STUDY_GET, 0x0100: 0x8010, 0x0120: 1, 0x0800: 0x0101}
    pending = raw.command({**answer, 0x0900: 0xFF00, 0x1020: 1, 0x1021: 1, 0x1022: 0, 0x1023: 0})
    final = raw.command({**answer, 0x0900: 0, 0x1021: 3, 0x1022: 0, 0x1023: 0})

    def script(peer: raw.Peer) -> Any:
        peer.expect(raw.ASSOCIATE_RQ)
        role = raw.item(
            0x54,
            struct.pack(">H", len(data.CT)) + data.CT.encode() + b"\0\1",
        )
        peer.send(
            raw.associate_ac(
                [(1, data.EXPLICIT), (3, data.EXPLICIT)],
                user_info=raw.max_length(16382) + raw.IDENTITY + role,
            )
        )
        peer.message()
        peer.send(store + raw.p_data(raw.pdv(1, 3, pending)) + store + store)
        statuses = [peer.message()[1][0x0900] for _ in range(3)]
        peer.send(raw.p_data(raw.pdv(1, 3, final)))
        peer.expect(raw.RELEASE_RQ)
        peer.send(raw.RELEASE_RP_PDU)
        return statuses

    got: list[bytes] = []

    def handler(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0

    with raw.Acceptor(script) as acceptor:
        assoc = world.connect(
            acceptor.address,
            [(data.STUDY_GET, data.EXPLICIT), (data.CT, data.EXPLICIT)],
            [(evt.EVT_C_STORE, handler)],
            ext_neg=[build_role(data.CT, scp_role=True)],
        )
        answers = list(assoc.send_c_get(data.query(PatientID="1"), data.STUDY_GET))
        assoc.release()
    assert acceptor.results == [[b"\0\0"] * 3]
    assert [status.Status for status, _ in answers] == [0xFF00, 0]
    assert got == [raw.DATASET] * 3


# bytes at random


@pytest.mark.skipif(KIND == "stock", reason="stock's threads die of these")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stage", ["request", "message"])
def test_bytes_changed_at_random(world: kit.World, stage: str, seed: int) -> None:
    """Whatever comes, the connection ends or goes on; no thread dies, nobody waits for ever."""
    chance = random.Random(f"{stage}{seed}")
    # (no timeout is needed: the peer goes away)
    server = serve(
        world,
        acse_timeout=kit.DEADLINE / 2,
        network_timeout=kit.DEADLINE / 2,
        maximum_associations=1000,
    )
    died: list[Any] = []
    hook, threading.excepthook = threading.excepthook, died.append
    try:
        for _ in range(30):
            original = raw.associate_rq() if stage == "request" else raw.store() + raw.echo()
            changed = bytearray(original)
            for _ in range(chance.choice((1, 1, 2, 5))):
                at = chance.randrange(len(changed))
                changed[at] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
            if chance.random() < 0.2:
                del changed[chance.randrange(len(changed)) :]
            with raw.dial(server.address) as peer:
                if stage == "message":
                    peer.associate()
                peer.send(bytes(changed))
                peer.sock.settimeout(0.02)
                try:
                    while peer.sock.recv(65536):
                        pass
                except OSError:
                    pass
        server.quiet()
    finally:
        threading.excepthook = hook
    assert not died
    raw.check_service(server.address)
