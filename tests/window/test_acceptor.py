"""The acceptor: requests that come before the last is answered, invited or not, and handlers side by side."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import windowed
from helpers import data, kit, raw
from pynetdicom import build_role, evt

import fastpdu
from fastpdu import handler_threads

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

ROADS: dict[str, list[Any]] = {"fast": [], "watched": [(evt.EVT_DATA_RECV, lambda event: None)]}
CONTEXTS = [data.VERIFICATION, data.STUDY_FIND, *windowed.CTX]


@pytest.fixture
def pair() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> Any:
    return ROADS[request.param]


class Handlers:
    """C-STORE handlers that run until they are let go, and how many do at the same time."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.running: list[int] = []
        self.most = 0
        self.seen: list[int] = []
        self.let_go: set[int] = set()
        self.open = False

    def __call__(self, event: evt.Event) -> int:
        number = event.request.MessageID
        with self.changed:
            self.running.append(number)
            self.seen.append(number)
            self.most = max(self.most, len(self.running))
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open or number in self.let_go, kit.DEADLINE)
            self.running.remove(number)
            self.changed.notify_all()
        return number

    def go(self, *numbers: int) -> None:
        with self.changed:
            self.let_go.update(numbers)
            self.open = self.open or not numbers
            self.changed.notify_all()

    def wait_for(self, *numbers: int) -> None:
        """Wait until the handlers of these requests run."""
        with self.changed:
            assert self.changed.wait_for(lambda: set(numbers) <= set(self.running), kit.DEADLINE)


@contextmanager
def handlers() -> Iterator[Handlers]:
    made = Handlers()
    try:
        yield made
    finally:
        made.go()


@contextmanager
def requestor(server: kit.Server, window: int | None) -> Iterator[raw.Peer]:
    user_info = raw.max_length(16382) + raw.IDENTITY
    if window is not None:
        user_info += windowed.window_item(window)
    # Both roles (PS3.7 D.3.3.4), so that the acceptor may send a C-ECHO request, too
    title = data.VERIFICATION.encode()
    user_info += raw.item(0x54, struct.pack(">H", len(title)) + title + b"\1\1")
    with raw.dial(server.address) as peer:
        peer.associate(raw.associate_rq(user_info=user_info))
        yield peer


def store(message_id: int, size: int = 1000) -> bytes:
    chunk = 16000
    payload = raw.DATASET + struct.pack("<HH2sxxL", 0x7FE0, 0x0010, b"OW", size) + bytes(size)
    pdus = [raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.store_rq(message_id, f"1.2.{message_id}")))]
    for at in range(0, len(payload), chunk):
        control = raw.LAST_DATA if at + chunk >= len(payload) else raw.DATA
        pdus.append(raw.p_data(raw.pdv(3, control, payload[at : at + chunk])))
    return b"".join(pdus)


def answer(peer: raw.Peer) -> tuple[int, int]:
    """(Message ID Being Responded To, Status) of the next response."""
    _context, elements, _ = peer.message()
    return tuple(int.from_bytes(elements[e], "little") for e in (0x0120, 0x0900))  # type: ignore[return-value]


def serve(
    pair: kit.World, store: Any, road: Any = (), extra: Any = (), **kwargs: Any
) -> kit.Server:
    ae = fastpdu.AE("SCP", **kwargs)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    bound = [(evt.EVT_C_STORE, store), *road, *extra]
    return pair.serve(CONTEXTS, bound, ae=ae, roles=True)


def check_service(server: kit.Server) -> None:
    """The next association is served as if nothing had been."""
    with requestor(server, None) as peer:
        peer.echo()
        peer.release()


# ------------------------------------------------------------------------------------------------------ one at a time


@pytest.mark.parametrize("window", [None, 8])
def test_pipelined_requests_are_answered_in_order(pair: kit.World, road: Any, window: Any) -> None:
    """Whether the peer was allowed to or not."""
    seen: list[str] = []

    def handler(event: evt.Event) -> int:
        seen.append(event.request.AffectedSOPInstanceUID)
        return 0

    server = serve(pair, handler, road, async_window=window)
    with requestor(server, 8 if window else None) as peer:
        for round_ in range(3):
            for number in range(1, 41):
                peer.send(store(round_ * 40 + number, 100))
            for number in range(1, 41):
                assert answer(peer) == (round_ * 40 + number, 0)
        peer.release()
    assert seen == [f"1.2.{number}" for number in range(1, 121)]


def test_a_slow_handler_stops_the_peer(pair: kit.World, road: Any) -> None:
    """What is not read stays in the network: after a bounded amount the peer cannot write any more."""
    size = 200_000
    with handlers() as running:
        server = serve(pair, running, road)
        with requestor(server, None) as peer:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            peer.send(store(1))
            running.wait_for(1)
            message, written = store(2, size), 0
            peer.sock.settimeout(0.5)
            try:
                for _ in range(1000):
                    at = 0
                    while at < len(message):
                        at += peer.sock.send(message[at:])
                    written += 1
            except TimeoutError:
                pass
            peer.sock.settimeout(kit.DEADLINE)
            # (200 MB were offered: the buffers of two sockets, and the messages that may wait)
            assert written < 100
            running.go()
            peer.sock.sendall(message[at:])
            answers = [answer(peer) for _ in range(written + 2)]
            assert answers == [(1, 1)] + [(2, 2)] * (written + 1)
            peer.release()


def test_the_peer_aborts_with_requests_unserved(pair: kit.World, road: Any) -> None:
    with handlers() as running:
        server = serve(pair, running, road)
        with requestor(server, None) as peer:
            for number in range(1, 6):
                peer.send(store(number))
            running.wait_for(1)
            peer.send(raw.ABORT_PDU)
            running.go()
        server.quiet()
        check_service(server)


# ------------------------------------------------------------------------------------------------------- side by side


def test_as_many_as_threads(pair: kit.World, road: Any) -> None:
    """Three threads, a window of eight: three handlers run, and the answers come in the order of their ends."""
    with handlers() as running:
        server = serve(pair, running, road, async_window=8, handler_threads=3)
        with requestor(server, 8) as peer:
            for number in range(1, 9):
                peer.send(store(number, 30_000))
            running.wait_for(1, 2, 3)
            running.go(2)
            assert answer(peer) == (2, 2)
            running.wait_for(1, 3, 4)
            running.go(4, 1)
            assert {answer(peer), answer(peer)} == {(4, 4), (1, 1)}
            running.wait_for(3, 5, 6)
            running.go()
            assert {answer(peer) for _ in range(5)} == {(n, n) for n in (3, 5, 6, 7, 8)}
            peer.release()
        server.quiet()
    assert running.most == 3


@pytest.mark.parametrize(
    ("granted", "threads", "offered", "most"),
    [(2, 8, 8, 2), (8, 8, 2, 2), (None, 8, 8, 1), (8, 8, None, 1)],
)
def test_not_more_than_negotiated(
    pair: kit.World, granted: Any, threads: int, offered: Any, most: int
) -> None:
    """A peer that sends more than it may is served as if it did not."""
    with handlers() as running:
        server = serve(pair, running, async_window=granted, handler_threads=threads)
        with requestor(server, offered) as peer:
            for number in range(1, 7):
                peer.send(store(number))
            running.wait_for(*range(1, most + 1))
            assert windowed.is_quiet(peer)
            running.go()
            assert {answer(peer) for _ in range(6)} == {(n, n) for n in range(1, 7)}
            peer.release()
        server.quiet()
    assert running.most == most


def test_of_one_server(pair: kit.World) -> None:
    ae = fastpdu.AE("SCP")
    with handlers() as running:
        server = pair.serve(
            CONTEXTS, [(evt.EVT_C_STORE, running)], ae=ae, async_window=4, handler_threads=2
        )
        with requestor(server, 8) as peer:
            for number in (1, 2, 3):
                peer.send(store(number))
            running.wait_for(1, 2)
            running.go()
            assert {answer(peer) for _ in range(3)} == {(1, 1), (2, 2), (3, 3)}
            peer.release()
        server.quiet()
    assert running.most == 2
    assert (ae.async_window, ae.handler_threads) == (None, None)


def test_our_own_requestor(pair: kit.World, road: Any) -> None:
    """Everything arrives once, and the threads end with the association."""
    received: dict[str, str] = {}

    def handler(event: evt.Event) -> int:
        received[event.request.AffectedSOPInstanceUID] = kit.sha(event.dataset.PixelData)
        return 0

    server = serve(pair, handler, road, async_window=16, handler_threads=4)
    assoc = pair.connect(server, windowed.CTX, async_window=16)
    items = windowed.numbered(60, 20_000)
    results = list(assoc.send_c_store_many(items))
    assert {result.status.Status for result in results} == {0}
    assert received == {str(ds.SOPInstanceUID): kit.sha(ds.PixelData) for ds in items}
    assoc.release()
    assert assoc.is_released
    kit.until(lambda: not any("HandlerThread" in t.name for t in threading.enumerate()))


def test_a_handler_that_raises(
    pair: kit.World, road: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(event: evt.Event) -> int:
        if event.request.MessageID == 2:
            raise ValueError("not this one")
        return 0

    server = serve(pair, handler, road, async_window=4, handler_threads=4)
    with caplog.at_level(logging.ERROR, "pynetdicom"), requestor(server, 4) as peer:
        for number in (1, 2, 3):
            peer.send(store(number))
        assert {answer(peer) for _ in range(3)} == {(1, 0), (2, 0xC211), (3, 0)}
        peer.release()
    assert "Exception in handler bound to 'evt.EVT_C_STORE'" in caplog.text


@pytest.mark.parametrize("status", [0x0000, 0xFFF0, "no status"])
def test_statuses(pair: kit.World, road: Any, status: Any) -> None:
    """As one at a time: unknown ones go out, wrong ones are 0xC002."""
    server = serve(pair, lambda event: status, road, async_window=4, handler_threads=4)
    with requestor(server, 4) as peer:
        for number in (1, 2):
            peer.send(store(number))
        code = status if isinstance(status, int) else 0xC002
        assert {answer(peer), answer(peer)} == {(1, code), (2, code)}
        peer.release()


def test_an_echo_does_not_wait(pair: kit.World, road: Any) -> None:
    with handlers() as running:
        server = serve(pair, running, road, async_window=4, handler_threads=4)
        with requestor(server, 4) as peer:
            peer.send(store(1))
            running.wait_for(1)
            peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rq(9))))
            assert answer(peer) == (9, 0)
            running.go()
            assert answer(peer) == (1, 1)
            peer.release()


def test_other_services_come_after_what_runs(pair: kit.World, road: Any) -> None:
    """A C-FIND is served alone, and can be cancelled."""
    order: list[str] = []
    started = threading.Event()

    def find(event: evt.Event) -> Any:
        order.append("find")
        started.set()
        while not event.is_cancelled:
            threading.Event().wait(0.001)
        yield 0xFE00, None

    with handlers() as running:
        server = serve(
            pair, running, road, [(evt.EVT_C_FIND, find)], async_window=4, handler_threads=4
        )
        with requestor(server, 4) as peer:
            peer.send(store(1) + raw.find(7))
            running.wait_for(1)
            assert not started.wait(0.1)
            running.go()
            assert answer(peer) == (1, 1)
            assert started.wait(kit.DEADLINE)
            peer.send(raw.p_data(raw.pdv(5, raw.LAST_COMMAND, raw.cancel_rq(7))))
            assert answer(peer) == (7, 0xFE00)
            peer.release()
    assert order == ["find"]


def test_a_release_waits_for_the_answers(pair: kit.World, road: Any) -> None:
    """The peer should not, but may ask for it: everything it has sent is answered first."""
    with handlers() as running:
        server = serve(pair, running, road, async_window=4, handler_threads=4)
        with requestor(server, 4) as peer:
            for number in (1, 2, 3):
                peer.send(store(number))
            running.wait_for(1, 2, 3)
            peer.send(raw.RELEASE_RQ_PDU)
            assert windowed.is_quiet(peer)
            running.go()
            assert {answer(peer) for _ in range(3)} == {(1, 1), (2, 2), (3, 3)}
            peer.expect(raw.RELEASE_RP)
        server.quiet()


def echo_back(peer: raw.Peer) -> None:
    """Answer the C-ECHO request that comes next."""
    _context, elements, _ = peer.message()
    assert elements[0x0100] == b"\x30\x00"
    number = int.from_bytes(elements[0x0110], "little")
    peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rsp(number))))


def test_a_handler_uses_the_association(pair: kit.World, road: Any) -> None:
    """While nothing comes, while every thread is busy, and while another service waits for the handlers."""
    statuses: list[int] = []

    with handlers() as running:

        def handler(event: evt.Event) -> int:
            running(event)
            if event.request.MessageID != 3:
                statuses.append(event.assoc.send_c_echo().Status)
            return 0

        def find(event: evt.Event) -> Any:
            yield 0xFE00, None

        server = serve(
            pair, handler, road, [(evt.EVT_C_FIND, find)], async_window=4, handler_threads=2
        )
        with requestor(server, 4) as peer:
            peer.send(store(1))
            running.wait_for(1)
            running.go(1)
            echo_back(peer)
            assert answer(peer) == (1, 0)

            for number in (2, 3, 4):
                peer.send(store(number))
            running.wait_for(2, 3)
            assert windowed.is_quiet(peer)  # the third is there by now, and has no thread
            running.go(2)
            echo_back(peer)
            assert answer(peer) == (2, 0)

            running.go(3)
            assert answer(peer) == (3, 0)
            peer.send(raw.find(7))
            assert windowed.is_quiet(peer)  # so is the C-FIND, and waits for the handler
            running.go(4)
            echo_back(peer)
            assert answer(peer) == (4, 0)
            assert answer(peer) == (7, 0xFE00)
            peer.release()
    assert statuses == [0, 0, 0]


@pytest.mark.parametrize("how", ["send_c_echo", "abort"])
def test_a_handler_uses_the_association_after_the_peer_has_asked_for_a_release(
    pair: kit.World, road: Any, how: str
) -> None:
    """No answer will come to its request, and it does not wait for one for ever."""
    ended = threading.Event()

    with handlers() as running:

        def handler(event: evt.Event) -> int:
            running(event)
            getattr(event.assoc, how)()
            ended.set()
            return 0

        server = serve(pair, handler, road, async_window=4, handler_threads=4)
        server.ae.dimse_timeout = 0.2
        with requestor(server, 4) as peer:
            peer.send(store(1))
            running.wait_for(1)
            peer.send(raw.RELEASE_RQ_PDU)
            assert windowed.is_quiet(peer)
            running.go()
            assert peer.abort_code() == (0, 0)
        server.quiet()
    assert ended.is_set()


def test_a_request_that_our_own_operation_receives(pair: kit.World, road: Any) -> None:
    """The acceptor sends many, too, and serves what comes while it waits: not with its handlers' threads."""
    served: list[int] = []

    def serve_and_send(event: evt.Event) -> int:
        # Before it answers, the requestor sends a request of its own
        status = event.assoc.send_c_store(data.image(50)).Status
        return int(status)

    def store_here(event: evt.Event) -> int:
        served.append(event.request.MessageID)
        return 0xB000

    ae = fastpdu.AE("SCP", async_window=4, handler_threads=4)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    handlers = [(evt.EVT_C_STORE, store_here), *road]
    server = pair.serve(windowed.CTX, handlers, ae=ae, roles=True)
    pair.connect(
        server,
        windowed.CTX,
        [(evt.EVT_C_STORE, serve_and_send)],
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
        async_window=4,
    )
    accepted: Any = server.one()
    results = list(accepted.send_c_store_many(windowed.numbered(2)))
    assert [result.status.Status for result in results] == [0xB000, 0xB000]
    assert len(served) == 2


def test_no_thread_can_be_started(pair: kit.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are served all the same: by those that there are, or by the association's."""
    start = threading.Thread.start
    allowed = 0

    def refuse(thread: threading.Thread) -> None:
        nonlocal allowed
        if thread.name.startswith("HandlerThread"):
            if not allowed:
                raise RuntimeError("can't start new thread")
            allowed -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    server = serve(pair, lambda event: event.request.MessageID, async_window=4, handler_threads=4)
    with requestor(server, 4) as peer:
        for more in (0, 1, 0):
            allowed = more
            for number in range(1, 5):
                peer.send(store(number))
            assert {answer(peer) for _ in range(4)} == {(number, number) for number in range(1, 5)}
        peer.release()
    server.quiet()


def test_a_thread_that_has_ended_is_replaced() -> None:
    """An exception that is no Exception ends a thread."""

    class Fatal(BaseException):
        pass

    def fail() -> None:
        raise Fatal

    threads = handler_threads.HandlerThreads(1)
    done = threading.Event()
    before = threading.excepthook
    threading.excepthook = lambda args: None
    try:
        threads.run(fail)
        threads.settle()
        threads.run(done.set)
        assert done.wait(kit.DEADLINE)
    finally:
        threads.end()
        threading.excepthook = before


def test_one_request_waits_for_a_thread(pair: kit.World) -> None:
    """The others stay in the network."""
    with handlers() as running:
        server = serve(pair, running, async_window=8, handler_threads=2)
        with requestor(server, 8) as peer:
            assoc = server.one()
            # (before, what comes together with the first request may be read together with it)
            kit.until(lambda: assoc.dul.is_direct)
            for number in range(1, 9):
                peer.send(store(number))
            running.wait_for(1, 2)
            kit.until(lambda: assoc.transport_stats().messages_received >= 3)
            assert windowed.is_quiet(peer)
            assert assoc.transport_stats().messages_received == 3
            running.go()
            assert {answer(peer) for _ in range(8)} == {(number, number) for number in range(1, 9)}
            assert running.most == 2
            peer.release()


@pytest.mark.parametrize("end", ["abort", "close", "reset"])
def test_the_peer_ends_it(pair: kit.World, road: Any, end: str) -> None:
    """The handlers come to their ends, then the association does."""
    with handlers() as running:
        server = serve(pair, running, road, async_window=4, handler_threads=4)
        with requestor(server, 4) as peer:
            for number in (1, 2, 3):
                peer.send(store(number))
            running.wait_for(1, 2, 3)
            assoc = server.associations[0]
            if end == "abort":
                peer.send(raw.ABORT_PDU)
            elif end == "reset":
                peer.reset()
            else:
                peer.close()
            kit.until(lambda: not assoc.is_established)
            assert assoc.is_alive()
            running.go()
        server.quiet()
        check_service(server)


@pytest.mark.parametrize("how", ["abort", "release"])
def test_a_handler_ends_it(pair: kit.World, road: Any, how: str) -> None:
    """One of several that run; the others come to their ends."""
    both = threading.Barrier(2)

    def handler(event: evt.Event) -> int:
        if event.request.MessageID < 3:
            both.wait(kit.DEADLINE)
        if event.request.MessageID == 2:
            getattr(event.assoc, how)()
        return 0

    server = serve(pair, handler, road, async_window=4, handler_threads=4)
    with requestor(server, 4) as peer:
        for number in (1, 2):
            peer.send(store(number))
        while (got := peer.read()) is not None and got[0] == raw.P_DATA:
            pass
        assert got is not None
        if how == "abort":
            assert got[0] == raw.ABORT
        else:
            assert got[0] == raw.RELEASE_RQ
            peer.send(raw.RELEASE_RP_PDU)
    server.quiet()
    check_service(server)


def test_aborted_by_another_thread(pair: kit.World, road: Any) -> None:
    with handlers() as running:
        server = serve(pair, running, road, async_window=4, handler_threads=4)
        with requestor(server, 4) as peer:
            for number in (1, 2, 3):
                peer.send(store(number))
            running.wait_for(1, 2, 3)
            server.associations[0].abort()
            assert peer.abort_code() == (0, 0)
            running.go()
        server.quiet()


def test_a_request_that_waits_for_a_thread_when_the_association_ends(
    pair: kit.World, tmp_path: Any
) -> None:
    """It is not served any more, as pynetdicom serves none after an abort, and its file goes."""
    running = threading.Semaphore(0)
    go_on = threading.Event()
    served: list[str] = []

    class Slow(fastpdu.FileStore):
        def __call__(self, event: evt.Event) -> int:
            served.append(event.request.AffectedSOPInstanceUID)
            running.release()
            assert go_on.wait(kit.DEADLINE)
            return super().__call__(event)

    server = serve(pair, Slow(tmp_path / "store"), async_window=4, handler_threads=2)
    with requestor(server, 4) as peer:
        for number in (1, 2, 3):
            peer.send(store(number))
        for _ in range(2):
            assert running.acquire(timeout=kit.DEADLINE)
        kit.until(lambda: server.associations[0].transport_stats().messages_received == 3)
        server.associations[0].abort()
        assert peer.abort_code() == (0, 0)
        go_on.set()
        server.quiet()
    assert sorted(served) == ["1.2.1", "1.2.2"]
    assert not list((tmp_path / "store").rglob("*.part"))


def test_handlers_that_run_longer_than_the_network_timeout(pair: kit.World, road: Any) -> None:
    """It is us who are waited for."""
    with handlers() as running:
        server = serve(pair, running, road, async_window=4, handler_threads=4)
        server.ae.network_timeout = 0.2
        with requestor(server, 4) as peer:
            peer.send(store(1))
            running.wait_for(1)
            assert windowed.is_quiet(peer, 0.6)
            running.go()
            assert answer(peer) == (1, 1)


def test_files_of_handlers_side_by_side(pair: kit.World, tmp_path: Any) -> None:
    """A FileStore takes them, each data set in its file."""
    store_files = fastpdu.FileStore(tmp_path / "store")
    server = serve(pair, store_files, async_window=16, handler_threads=4)
    assoc = pair.connect(server, windowed.CTX, async_window=16)
    items = windowed.numbered(40, 70_000)
    results = list(assoc.send_c_store_many(items))
    assert {result.status.Status for result in results} == {0}
    assoc.release()
    from pydicom import dcmread

    found = {
        str(ds.SOPInstanceUID): kit.sha(ds.PixelData)
        for ds in map(dcmread, (tmp_path / "store").rglob("*.dcm"))
    }
    assert found == {str(ds.SOPInstanceUID): kit.sha(ds.PixelData) for ds in items}
