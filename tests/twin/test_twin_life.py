"""The ends of associations: release, abort, loss, and the four timeouts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import data, kit
from helpers import recorder as rec
from pynetdicom import evt

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]
OK = [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_C_ECHO, lambda event: 0)]


def state(assoc: Any) -> tuple[bool, bool, bool, bool]:
    return (assoc.is_established, assoc.is_released, assoc.is_aborted, assoc.is_rejected)


RELEASED = (False, True, False, False)
ABORTED = (False, False, True, False)


def in_thread(call: Callable[[], Any], name: str = "user") -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(kit.outcome(call)), name=name)
    thread.start()
    return thread, result


def finish(thread: threading.Thread) -> None:
    thread.join(kit.DEADLINE)
    assert not thread.is_alive()


# release


@pytest.mark.parametrize("messages", [0, 1, 5])
@pytest.mark.parametrize("side", ["scu", "scp"])
def test_release(world: kit.World, side: str, messages: int) -> None:
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    for _ in range(messages):
        assert assoc.send_c_echo().Status == 0
    (assoc if side == "scu" else acceptor).release()
    kit.until(lambda: not assoc.is_established and not acceptor.is_established)
    server.quiet()
    kit.until(lambda: not assoc.is_alive())
    assert state(assoc) == state(acceptor) == RELEASED
    assert assoc.release() is None
    assert assoc.abort() is None
    assert state(assoc) == RELEASED


def test_release_at_the_same_time(world: kit.World) -> None:
    """Both ends release at once: a collision, or nearly. Both end, nobody hangs."""
    server = world.serve(CTX, OK, attributes={"acse_timeout": 2})
    for _ in range(4):
        assoc = world.connect(server, CTX, attributes={"acse_timeout": 2})
        acceptor = server.one()
        barrier = threading.Barrier(2)

        def release(end: Any, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            end.release()

        threads = [in_thread(lambda end=end: release(end))[0] for end in (assoc, acceptor)]
        for thread in threads:
            finish(thread)
        kit.until(lambda: not assoc.is_established and not acceptor.is_established)
        server.quiet()


def test_release_while_the_peer_is_serving(world: kit.World) -> None:
    """A second thread releases while a C-STORE is being answered."""
    inside = threading.Event()
    go_on = threading.Event()

    def handler(event: evt.Event) -> int:
        inside.set()
        go_on.wait(kit.DEADLINE)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    storing, stored = in_thread(lambda: assoc.send_c_store(data.image(1)))
    assert inside.wait(kit.DEADLINE)
    go_on.set()
    finish(storing)
    assert stored == [(("Status", "0"),)]
    assoc.release()
    assert state(assoc) == RELEASED


# abort


@pytest.mark.parametrize("messages", [0, 3])
@pytest.mark.parametrize("side", ["scu", "scp"])
@pytest.mark.parametrize("block", [True, False])
def test_abort(world: kit.World, side: str, messages: int, block: bool) -> None:
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    for _ in range(messages):
        assert assoc.send_c_echo().Status == 0
    (assoc if side == "scu" else acceptor).abort(block=block)
    kit.until(lambda: not assoc.is_established and not acceptor.is_established)
    server.quiet()
    kit.until(lambda: not assoc.is_alive())
    assert assoc.is_aborted
    assert acceptor.is_aborted
    assert not assoc.is_released
    assert kit.outcome(assoc.send_c_echo)[0] == "RuntimeError"
    assert assoc.abort() is None
    assert assoc.release() is None


@pytest.mark.parametrize("side", ["scu", "scp"])
def test_abort_from_another_thread_while_waiting(world: kit.World, side: str) -> None:
    """The SCU waits for a response, the SCP's handler is busy: either side aborts."""
    inside = threading.Event()
    go_on = threading.Event()

    def handler(event: evt.Event) -> int:
        inside.set()
        go_on.wait(kit.DEADLINE)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    if side == "scu":
        assoc.dimse_timeout = 1  # a local abort does not wake send_c_store on stock
    storing, stored = in_thread(lambda: assoc.send_c_store(data.image(1)))
    assert inside.wait(kit.DEADLINE)
    aborting, _ = in_thread(assoc.abort if side == "scu" else acceptor.abort)
    finish(storing)
    assert stored == [()]
    kit.until(lambda: assoc.is_aborted)
    go_on.set()
    finish(aborting)
    server.quiet()
    assert not assoc.is_established


@pytest.mark.parametrize("side", ["scu", "scp"])
@pytest.mark.parametrize("size", [1000, 4_000_000])
def test_abort_in_the_middle_of_a_stream(world: kit.World, side: str, size: int) -> None:
    """A thread stores without end; another one aborts one of the ends."""
    count = [0]

    def handler(event: evt.Event) -> int:
        count[0] += 1
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    if side == "scu":
        assoc.dimse_timeout = 1  # a local abort does not wake send_c_store on stock
    image = data.image(1, size)

    def stream() -> Any:
        while True:
            rsp = assoc.send_c_store(image)
            if not rsp:
                return rsp

    storing, stored = in_thread(stream)
    kit.until(lambda: count[0] >= 2)
    (assoc if side == "scu" else acceptor).abort()
    if world.scu == "stock":
        # A reactor of stock that ends may leave _is_paused false, and send_c_store waits for it for ever.
        kit.until(lambda: not (storing.is_alive() and assoc.is_alive()))
        assoc._is_paused = True
    finish(storing)
    assert stored[0] == () or stored[0][0] == "RuntimeError"
    kit.until(lambda: assoc.is_aborted)
    assert not assoc.is_established
    server.quiet()


@pytest.mark.parametrize("how", ["shutdown", "close"])
@pytest.mark.parametrize("side", ["scu", "scp"])
def test_connection_lost(world: kit.World, side: str, how: str) -> None:
    """TCP goes away under an idle association: both ends see it and end."""
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    assert assoc.send_c_echo().Status == 0
    end = assoc if side == "scu" else acceptor
    if how == "shutdown":
        end.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    else:
        end.dul.socket.close()
    kit.until(lambda: not assoc.is_established and not acceptor.is_established)
    assert assoc.is_aborted
    assert acceptor.is_aborted
    server.quiet()


def test_connection_lost_in_a_handler(world: kit.World) -> None:
    def handler(event: evt.Event) -> int:
        event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    assert kit.outcome(lambda: assoc.send_c_store(data.image(1))) == ()
    kit.until(lambda: assoc.is_aborted)
    server.quiet()


@pytest.mark.parametrize("way", ["release", "abort-scu", "abort-scp"])
def test_events_of_the_end(world: kit.World, way: str) -> None:
    """EVT_RELEASED, EVT_ABORTED, EVT_CONN_CLOSE...: the same on stock, thread by thread."""

    def scenario(world: kit.World, way: str) -> Any:
        events = rec.ACSE_EVENTS + rec.CONN_EVENTS + rec.STATE_EVENTS
        scu, scp = rec.Recorder(*events), rec.Recorder(*events)
        server = world.serve(CTX, OK + scp.handlers)
        assoc = world.connect(server, CTX, scu.handlers)
        acceptor = server.one()
        assert assoc.send_c_echo().Status == 0
        {"release": assoc.release, "abort-scu": assoc.abort, "abort-scp": acceptor.abort}[way]()
        server.quiet()
        kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
        kit.until(lambda: not acceptor.dul.is_alive())
        if way == "abort-scp":
            # stock may see the end of the connection before it has read the A-ABORT
            scu.calls = [call for call in scu.calls if "ABORT" not in str(call[2])]
        return scu.lanes(), scp.lanes()

    kit.against_oracle(world, scenario, way)


# who refuses


def test_rejected(world: kit.World) -> None:
    server = world.serve(CTX, OK)
    server.ae.require_called_aet = True
    assoc = world.connect(server, CTX, established=False, ae_title="WRONG")
    assert state(assoc) == (False, False, False, True)
    server.ae.require_called_aet = False
    server.ae.require_calling_aet = ["FRIEND"]
    assoc = world.connect(server, CTX, established=False)
    assert assoc.is_rejected
    ae = kit.make_ae(world.scu, "FRIEND")
    assert world.connect(server, CTX, ae=ae).send_c_echo().Status == 0


def test_no_common_context(world: kit.World) -> None:
    server = world.serve(CTX, OK)
    assoc = world.connect(server, [data.MR], established=False)
    assert assoc.is_aborted


def test_maximum_associations(world: kit.World) -> None:
    """The limit rejects the third, and an association that ended makes room again."""
    server = world.serve(CTX, OK, attributes={"maximum_associations": 2})
    first = world.connect(server, CTX)
    second = world.connect(server, CTX)
    third = world.connect(server, CTX, established=False)
    assert third.is_rejected
    first.release()
    kit.until(lambda: len(server.associations) == 1)
    fourth = world.connect(server, CTX)
    assert second.send_c_echo().Status == fourth.send_c_echo().Status == 0


@pytest.mark.parametrize("what", ["abort", "reject"])
def test_refused_in_evt_requested(world: kit.World, what: str) -> None:
    def handler(event: evt.Event) -> None:
        if what == "abort":
            event.assoc.abort()
        else:
            event.assoc.acse.send_reject(2, 1, 1)
            time.sleep(0.1)  # pynetdicom's own idiom: time to send it before the end

    server = world.serve(CTX, [*OK, (evt.EVT_REQUESTED, handler)])
    assoc = world.connect(server, CTX, established=False)
    kit.until(lambda: assoc.is_aborted if what == "abort" else assoc.is_rejected)
    server.quiet()


def test_connection_refused(world: kit.World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assoc = world.connect(free.getsockname(), CTX, established=False)
    assert assoc.is_aborted


# timeouts: none of these measures time but for "not the other timeout" (20 s)


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_dimse_timeout(world: kit.World, timeout: float) -> None:
    go_on = threading.Event()

    def handler(event: evt.Event) -> int:
        go_on.wait(kit.DEADLINE)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    assoc.dimse_timeout = timeout
    assert assoc.dimse_timeout == timeout
    try:
        assert kit.outcome(lambda: assoc.send_c_store(data.image(1))) == ()
        kit.until(lambda: assoc.is_aborted)
    finally:
        go_on.set()
    server.quiet()


def test_no_dimse_timeout(world: kit.World) -> None:
    """None waits as long as it takes."""

    def handler(event: evt.Event) -> int:
        time.sleep(0.4)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX, attributes={"dimse_timeout": None})
    assert assoc.dimse_timeout is None
    assert assoc.send_c_store(data.image(1)).Status == 0
    assert assoc.send_c_store(data.image(2)).Status == 0


def test_dimse_timeout_changed(world: kit.World) -> None:
    """A new value holds for the next message."""
    slow = threading.Event()

    def handler(event: evt.Event) -> int:
        if event.message_id == 3:
            slow.wait(kit.DEADLINE)
        return 0

    server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, CTX)
    assert assoc.send_c_store(data.image(1)).Status == 0
    assoc.dimse_timeout = 0.2
    assert assoc.send_c_store(data.image(1), msg_id=2).Status == 0
    try:
        assert kit.outcome(lambda: assoc.send_c_store(data.image(1), msg_id=3)) == ()
    finally:
        slow.set()
    kit.until(lambda: assoc.is_aborted)


@pytest.mark.parametrize("side", ["scu", "scp"])
@pytest.mark.parametrize("messages", [0, 2])
@pytest.mark.parametrize("live", [True, False])
def test_network_timeout(world: kit.World, side: str, messages: int, live: bool) -> None:
    """An idle association is aborted by the end whose timeout is over, set before or later."""
    short = {} if live else {"network_timeout": 0.3}
    server = world.serve(CTX, OK, attributes=short if side == "scp" else {})
    assoc = world.connect(server, CTX, attributes=short if side == "scu" else {})
    acceptor = server.one()
    for _ in range(messages):
        assert assoc.send_c_echo().Status == 0
    if live and side == "scp":
        server.ae.network_timeout = 0.3
        assert acceptor.network_timeout == 0.3
    elif live:
        assoc.network_timeout = 0.3
    kit.until(lambda: not assoc.is_established and not acceptor.is_established, timeout=10)
    assert assoc.is_aborted
    assert acceptor.is_aborted
    server.quiet()


def test_network_timeout_is_for_idleness(world: kit.World) -> None:
    """Traffic keeps an association alive for longer than the timeout."""
    server = world.serve(CTX, OK, attributes={"network_timeout": 1.0})
    assoc = world.connect(server, CTX, attributes={"network_timeout": 1.0})
    for _ in range(15):
        time.sleep(0.1)
        assert assoc.send_c_echo().Status == 0
    assert assoc.is_established


@pytest.mark.parametrize("side", ["scu", "scp"])
def test_network_timeout_release(world: kit.World, side: str) -> None:
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    end = assoc if side == "scu" else acceptor
    end.network_timeout_response = "A-RELEASE"
    end.network_timeout = 0.3
    kit.until(lambda: not assoc.is_established and not acceptor.is_established, timeout=10)
    kit.until(lambda: not assoc.is_alive())
    server.quiet()
    assert state(assoc) == state(acceptor) == RELEASED


def test_network_timeout_while_a_handler_runs(world: kit.World) -> None:
    """A handler slower than network_timeout: same outcome as stock, whatever it is."""

    def scenario(world: kit.World) -> Any:
        def handler(event: evt.Event) -> int:
            time.sleep(1.0)
            return 0

        server = world.serve(CTX, [(evt.EVT_C_STORE, handler)], attributes={"network_timeout": 0.4})
        assoc = world.connect(server, CTX)
        return kit.outcome(lambda: assoc.send_c_store(data.image(1)))

    kit.against_oracle(world, scenario)


def test_network_timeout_while_waiting(world: kit.World) -> None:
    """The requestor waits longer than its network_timeout for a response."""

    def scenario(world: kit.World) -> Any:
        def handler(event: evt.Event) -> int:
            time.sleep(1.0)
            return 0

        server = world.serve(CTX, [(evt.EVT_C_STORE, handler)])
        assoc = world.connect(server, CTX, attributes={"network_timeout": 0.4})
        return kit.outcome(lambda: assoc.send_c_store(data.image(1)))

    kit.against_oracle(world, scenario)


def test_acse_timeout_of_the_requestor(world: kit.World) -> None:
    """A peer that accepts TCP and then says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assoc = world.connect(
            silent.getsockname(), CTX, attributes={"acse_timeout": 0.3}, established=False
        )
        assert assoc.is_aborted


def test_acse_timeout_of_the_acceptor(world: kit.World) -> None:
    """A peer that connects and then says nothing: closed, and the others are served."""
    server = world.serve(CTX, OK, attributes={"acse_timeout": 0.3})
    with socket.create_connection(server.address) as silent:
        silent.settimeout(kit.DEADLINE)
        assert world.connect(server, CTX).send_c_echo().Status == 0
        assert silent.recv(100) == b""


def test_acse_timeout_of_a_release(world: kit.World) -> None:
    """The peer does not answer A-RELEASE-RQ in time: aborted."""
    inside = threading.Event()
    go_on = threading.Event()

    def handler(event: evt.Event) -> None:
        inside.set()
        go_on.wait(kit.DEADLINE)

    server = world.serve(CTX, [*OK, (evt.EVT_ESTABLISHED, handler)])
    assoc = world.connect(server, CTX, attributes={"acse_timeout": 0.5})
    assert inside.wait(kit.DEADLINE)
    try:
        assoc.release()
        assert assoc.is_aborted
    finally:
        go_on.set()
    server.quiet()


def test_connection_timeout(world: kit.World) -> None:
    """A listener whose queue is full: SYNs are dropped."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        assoc = world.connect(
            full.getsockname(), CTX, attributes={"connection_timeout": 0.3}, established=False
        )
        assert assoc.is_aborted
        for filler in fillers:
            filler.close()


def test_shutdown_with_live_associations(world: kit.World) -> None:
    """server.shutdown() and ae.shutdown() end the listening, as stock does."""
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    assert server.ae.active_associations
    server.ae.shutdown()
    world.servers.remove(server)
    kit.until(lambda: not assoc.is_established)
    kit.until(lambda: not server.ae.active_associations)
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        socket.create_connection(server.address, timeout=2)


def test_ae_bookkeeping(world: kit.World) -> None:
    """active_associations of both entities, local, remote, names of the threads."""
    server = world.serve(CTX, OK)
    assoc = world.connect(server, CTX)
    acceptor = server.one()
    assert server.ae.active_associations == [acceptor]
    assert server.server.active_associations == [acceptor]
    assert assoc.ae.active_associations == [assoc]
    assert acceptor.name.startswith("AcceptorThread@")
    assert assoc.name.startswith("RequestorThread@")
    assert acceptor.dul.is_alive()
    assert assoc.dul.is_alive()
    assert assoc.remote["port"] == server.port
    assert acceptor.remote["address"] == "127.0.0.1"
    assert acceptor.local["port"] == server.port
    assert acceptor.remote["ae_title"] == "SCU"
    assert assoc.is_requestor
    assert acceptor.is_acceptor
    assert acceptor.requestor.address_info.port == assoc.dul.socket.socket.getsockname()[1]
