"""Many associations and threads, full pipes, signals, context variables, subclasses."""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import data, kit
from pynetdicom import _config, build_role, evt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]


def start_all(calls: list[Callable[[], None]]) -> None:
    """Run all at once; the first exception of any is raised here."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=guarded, args=(call,), name=f"user{number}")
        for number, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not [thread for thread in threads if thread.is_alive()]
    if errors:
        raise errors[0]


@pytest.mark.parametrize("shared", [True, False], ids=["one-ae", "many-aes"])
def test_many_threads(world: kit.World, files: data.Files, shared: bool) -> None:
    """16 threads, one association each, 20 stores each: nothing lost, nothing mixed up."""
    lock = threading.Lock()
    got: dict[str, list[str]] = {}

    def handler(event: evt.Event) -> int:
        ds = event.dataset
        assert shared or ds.PatientID == event.assoc.requestor.ae_title
        with lock:
            got.setdefault(ds.PatientID, []).append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    server = world.serve(
        CTX, [(evt.EVT_C_STORE, handler)], attributes={"maximum_associations": 100}
    )
    shared_ae = kit.make_ae(world.scu, "SHARED")
    shared_ae.add_requested_context(data.CT, data.EXPLICIT)

    def work(number: int) -> None:
        name = f"T{number}"
        ae = shared_ae
        if not shared:
            ae = kit.make_ae(world.scu, name)
            ae.add_requested_context(data.CT, data.EXPLICIT)
        assoc = ae.associate(*server.address)
        kit.mend(assoc)
        assert assoc.is_established
        for index in range(20):
            image = data.image(index, 500 + 1000 * (index % 5), seed=number + 10)
            image.PatientID = name
            rsp = assoc.send_c_store(image, msg_id=index + 1)
            assert rsp.Status == 0
        assoc.release()
        assert assoc.is_released

    start_all([lambda number=number: work(number) for number in range(16)])
    server.quiet()
    assert {name: len(items) for name, items in got.items()} == {
        f"T{number}": 20 for number in range(16)
    }
    assert all(len(set(items)) == 20 for items in got.values())


def test_several_associations_of_one_ae(world: kit.World) -> None:
    """One AE opens several associations to one server and uses them in turn."""
    server = world.serve(
        CTX,
        [(evt.EVT_C_ECHO, lambda event: 0), (evt.EVT_C_STORE, lambda event: 0)],
        attributes={"maximum_associations": 20},
    )
    ae = kit.make_ae(world.scu, "SCU")
    assocs = [world.connect(server, [] if number else CTX, ae=ae) for number in range(8)]
    assert len(ae.active_associations) == 8
    kit.until(lambda: len(server.ae.active_associations) == 8)
    for _ in range(3):
        for assoc in assocs:
            assert assoc.send_c_echo().Status == 0
    assocs[3].abort()
    assocs[4].release()
    for number, assoc in enumerate(assocs):
        if number not in (3, 4):
            assert assoc.send_c_store(data.image(number)).Status == 0


def test_a_slow_handler_holds_up_nobody_else(world: kit.World) -> None:
    """One handler waits until 20 echoes of another association are through."""
    inside = threading.Event()
    go_on = threading.Event()

    def store(event: evt.Event) -> int:
        inside.set()
        assert go_on.wait(kit.DEADLINE)
        time.sleep(0.3)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, store), (evt.EVT_C_ECHO, lambda event: 0)])
    slow = world.connect(server, CTX)
    quick = world.connect(server, CTX)
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(kit.outcome(lambda: slow.send_c_store(data.image(1)))),
        name="user",
    )
    thread.start()
    assert inside.wait(kit.DEADLINE)
    for _ in range(10):
        assert quick.send_c_echo().Status == 0
    assert not results
    go_on.set()
    for _ in range(10):
        assert quick.send_c_echo().Status == 0
    thread.join(kit.DEADLINE)
    assert results == [(("Status", "0"),)]


def test_a_sleeping_handler_and_other_cancels(world: kit.World) -> None:
    """Messages that arrive while a handler sleeps are served afterwards, in order."""
    order: list[int] = []

    def find(event: evt.Event) -> Any:
        yield 0xFF00, data.query(PatientID="1")
        time.sleep(0.3)
        order.append(event.message_id)
        yield 0x0000, None

    contexts = [(data.STUDY_FIND, data.EXPLICIT), *CTX]
    server = world.serve(contexts, [(evt.EVT_C_FIND, find), (evt.EVT_C_ECHO, lambda event: 0)])
    assoc = world.connect(server, contexts)
    for number in (1, 2):
        answers = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND, msg_id=number)
        assert next(answers)[0].Status == 0xFF00
        for other in range(100, 108):
            assoc.send_c_cancel(other, 1)
        assert [status.Status for status, _ in answers] == [0]
        assert assoc.send_c_echo().Status == 0
    assert order == [1, 2]


def test_both_directions_at_once(world: kit.World) -> None:
    """Both ends send a message that is larger than all socket buffers, at the same time.

    Each side's receiver must go on while its sender is blocked. The requests cross; each end is
    inside its own send_c_store, so each answers with the other's timeout at worst, but no byte
    may block for ever.
    """
    size = 24 * 2**20
    contexts = [(data.CT, data.EXPLICIT)]
    got: list[str] = []

    def store(event: evt.Event) -> int:
        got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    server = world.serve(
        contexts,
        [(evt.EVT_C_STORE, store)],
        roles=True,
        attributes={"dimse_timeout": 3, "maximum_pdu_size": 1 << 17},
    )
    assoc = world.connect(
        server,
        contexts,
        [(evt.EVT_C_STORE, store)],
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
        attributes={"dimse_timeout": 3},
        max_pdu=1 << 17,
    )
    acceptor = server.one()
    barrier = threading.Barrier(2)

    def send(end: Any) -> None:
        image = data.image(1, size)
        barrier.wait()
        kit.outcome(lambda: end.send_c_store(image))

    start_all([lambda: send(assoc), lambda: send(acceptor)])
    # both were waiting for a response when a request came in: stock ends both
    kit.until(lambda: not assoc.is_established or not acceptor.is_established, timeout=10)
    server.ae.shutdown()
    world.servers.remove(server)


def test_find_responses_against_a_busy_requestor(world: kit.World) -> None:
    """The SCP sends more than the socket buffers hold while the SCU does not read."""
    number, size = 40, 500_000

    def find(event: evt.Event) -> Any:
        for index in range(number):
            yield 0xFF00, data.query(PatientID=str(index), PatientComments="c" * size)
        yield 0x0000, None

    contexts = [(data.STUDY_FIND, data.EXPLICIT)]
    server = world.serve(contexts, [(evt.EVT_C_FIND, find)])
    assoc = world.connect(server, contexts)
    answers = assoc.send_c_find(data.query(PatientID="*"), data.STUDY_FIND)
    assert next(answers)[1].PatientID == "0"
    time.sleep(0.3)  # what is on its way fills the buffers meanwhile
    rest = [(ds.PatientID, len(ds.PatientComments)) for status, ds in answers if ds]
    assert rest == [(str(index), size) for index in range(1, number)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.parametrize("send", ["path", "dataset"])
def test_timer_signals(world: kit.World, files: data.Files, send: str) -> None:
    """The main thread stores 50 objects under a signal every millisecond."""
    assert threading.current_thread() is threading.main_thread()
    got: list[str] = []
    ticks = [0]

    def handler(event: evt.Event) -> int:
        got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    def tick(number: int, frame: Any) -> None:
        ticks[0] += 1

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    paths = [files.made(number, 300_000) for number in range(1, 6)]
    items = paths if send == "path" else [data.image(number, 300_000) for number in range(1, 6)]
    before = signal.signal(signal.SIGALRM, tick)
    timer = signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(50):
            assert assoc.send_c_store(items[number % 5]).Status == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
    assert ticks[0] > 10
    assert got == [kit.sha(data.payload(paths[number % 5])) for number in range(50)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_a_signal_handler_that_raises(world: kit.World) -> None:
    """An exception out of a signal handler leaves a waiting send_c_store, as in any Python call."""
    go_on = threading.Event()

    def handler(event: evt.Event) -> int:
        go_on.wait(kit.DEADLINE)
        return 0

    class Alarm(Exception):
        pass

    def tick(number: int, frame: Any) -> None:
        raise Alarm

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    before = signal.signal(signal.SIGALRM, tick)
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3, 0)
    try:
        with pytest.raises(Alarm):
            assoc.send_c_store(data.image(1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
        go_on.set()
    assoc.abort()
    assert assoc.is_aborted
    server.quiet()


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("enabled", [False, True])
def test_context_variables(
    world: kit.World, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    """PASS_CONTEXTVARS: handlers see the variables of whoever made the server or association."""
    monkeypatch.setattr(_config, "PASS_CONTEXTVARS", enabled)

    def scenario(world: kit.World, enabled: bool) -> Any:
        seen: dict[str, set[str]] = {}

        def note(name: str) -> Callable[[evt.Event], int]:
            def handler(event: evt.Event) -> int:
                seen.setdefault(name, set()).add(VARIABLE.get())
                return 0

            return handler

        token = VARIABLE.set("server")
        server = world.serve(
            CTX,
            [
                (evt.EVT_C_STORE, note("store")),
                (evt.EVT_C_ECHO, note("echo")),
                (evt.EVT_DIMSE_RECV, note("acceptor dimse")),
            ],
        )
        VARIABLE.set("requestor")
        assoc = world.connect(
            server,
            CTX,
            [
                (evt.EVT_DIMSE_RECV, note("requestor dimse")),
                (evt.EVT_CONN_OPEN, note("requestor open")),
                (evt.EVT_CONN_CLOSE, note("requestor close")),
            ],
        )
        VARIABLE.set("later")
        assert assoc.send_c_echo().Status == 0
        assert assoc.send_c_store(data.image(1)).Status == 0
        assoc.release()
        server.quiet()
        VARIABLE.reset(token)
        if not enabled:
            # the fast road triggers this on the caller's thread, with the caller's variables
            del seen["requestor dimse"]
        return seen

    kit.against_oracle(world, scenario, enabled)


def test_subclasses(world: kit.World) -> None:
    """A subclass of AE, of the server and of the request handler: all their hooks are used."""
    calls: list[str] = []

    class Handler(RequestHandler):
        def handle(self) -> None:
            calls.append("handle")
            super().handle()

        def _create_association(self) -> Any:
            calls.append("create")
            return super()._create_association()

    class Server(ThreadedAssociationServer):
        def get_request(self) -> Any:
            calls.append("get_request")
            return super().get_request()

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            calls.append("thread")
            super().process_request_thread(request, client_address)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            calls.append("verify")
            return super().verify_request(request, client_address)

    base = kit.ae_class(world.scp)

    class Entity(base):  # type: ignore[valid-type,misc]
        def make_server(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["server_class"] = Server
            kwargs["request_handler"] = Handler
            return super().make_server(*args, **kwargs)

    ae = Entity(ae_title="SUB")
    ae.add_supported_context(data.VERIFICATION, data.EXPLICIT)
    server = ae.make_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_ECHO, lambda event: 0)])
    ae._servers.append(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="serve")
    thread.start()
    world.servers.append(kit.Server(world.scp, ae, server))
    assoc = world.connect(world.servers[-1], [(data.VERIFICATION, data.EXPLICIT)])
    assert assoc.send_c_echo().Status == 0
    assert calls == ["get_request", "verify", "thread", "handle", "create"]
    assert kit.is_fast(server.active_associations[0]) == (world.scp == "fast")


def test_blocking_server(world: kit.World) -> None:
    """start_server(block=True) in a thread of the user's, ended by ae.shutdown()."""
    ae = kit.make_ae(world.scp, "BLOCK")
    ae.add_supported_context(data.VERIFICATION, data.EXPLICIT)
    thread = threading.Thread(
        target=ae.start_server,
        args=(("127.0.0.1", 0),),
        kwargs={"block": True, "evt_handlers": [(evt.EVT_C_ECHO, lambda event: 0)]},
        name="user",
    )
    thread.start()
    server = kit.until(lambda: ae._servers)[0]
    wrapped = kit.Server(world.scp, ae, server)
    assoc = world.connect(wrapped, [(data.VERIFICATION, data.EXPLICIT)])
    assert assoc.send_c_echo().Status == 0
    assoc.release()
    ae.shutdown()
    thread.join(kit.DEADLINE)
    assert not thread.is_alive()


def test_association_as_context_of_threads(world: kit.World) -> None:
    """Several threads share one association, each behind the user's own lock."""
    server = world.serve(CTX, [(evt.EVT_C_STORE, lambda event: 0)])
    assoc = world.connect(server, CTX)
    lock = threading.Lock()

    def work(number: int) -> None:
        for index in range(5):
            with lock:
                assert assoc.send_c_store(data.image(index, seed=number)).Status == 0

    start_all([lambda number=number: work(number) for number in range(4)])
