"""Waiting: timeouts, wake-ups, cancellation, close, signals, threads."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_kit import (
    ABORT,
    ECHO,
    PATIENCE,
    RELEASE,
    STORE,
    WHOLE,
    Background,
    Impl,
    Link,
    blocked,
    cross_pairs,
    eventually,
    link,
    message,
    noise,
    pair,
    pdata,
    pdv,
    read_all,
    read_exactly,
)

HEAD = pdata(pdv(1, 3, STORE))

# ---------------------------------------------------------------------------------------------- receiving


@pytest.mark.parametrize("timeout", [0, 0.0, 0.02])
def test_timeouts(one: Link, engine: Any, timeout: float) -> None:
    assert one.conn.wait(timeout) == engine.TIMEOUT
    assert one.conn.receive(timeout) == engine.TIMEOUT
    one.feed(b"".join(message(1, ECHO, None)))
    assert one.conn.wait(timeout) == engine.READY
    assert one.conn.receive(timeout).command == ECHO


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_bad_timeouts(one: Link, timeout: float) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: one.conn.wait(timeout),
        lambda: one.conn.receive(timeout),
        lambda: one.conn.send(1, ECHO, max_pdu=0, timeout=timeout),
        lambda: one.conn.send_bytes(ABORT, timeout=timeout),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert one.conn.bytes_sent == 0


@pytest.mark.parametrize("timeout", [1e6, 1e12, float("inf")])
def test_endless_timeouts(one: Link, timeout: float) -> None:
    receiving = Background(one.conn.receive, timeout)
    one.conn.send(1, ECHO, b"12", max_pdu=0, timeout=timeout)
    one.feed(WHOLE)
    assert receiving.result().data == b"abcdef"


def test_constants_differ(engine: Any) -> None:
    values = [
        engine.READY,
        engine.WAKE,
        engine.TIMEOUT,
        engine.OTHER,
        engine.PARTIAL,
        engine.COMMAND,
    ]
    assert len(set(values)) == len(values)
    assert all(type(value) is int for value in values)


def test_timeout_is_for_the_first_byte_only(one: Link) -> None:
    """A message that has begun may take longer."""
    one.feed(WHOLE[:10])
    receiving = Background(one.conn.receive, 0.02)
    threading.Event().wait(0.15)
    assert receiving.running
    one.feed(WHOLE[10:])
    assert receiving.result().data == b"abcdef"


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 11, 12, 13, len(HEAD) + 1, len(HEAD) + 13])
def test_pdu_timeout(one: Link, engine: Any, cut: int) -> None:
    """A PDU that was begun must be completed; the reason of the error is 0."""
    one.conn.pdu_timeout = 0.1
    assert one.conn.pdu_timeout == 0.1
    one.feed(WHOLE[:cut])
    with pytest.raises(engine.ProtocolError) as caught:
        Background(one.conn.receive, 10.0).result()
    assert caught.value.reason == 0


@pytest.mark.parametrize("cut", [1, 6, 13, len(HEAD) + 13])
def test_pdu_timeout_while_polling(one: Link, engine: Any, cut: int) -> None:
    one.conn.pdu_timeout = 0.05
    one.feed(WHOLE[:cut])
    assert one.conn.receive(0) == engine.TIMEOUT

    def fails() -> bool:
        try:
            assert one.conn.receive(0) == engine.TIMEOUT
        except engine.ProtocolError as error:
            return bool(error.reason == 0)
        return False

    eventually(fails, "the error")


def test_pdu_timeout_is_absolute(one: Link, engine: Any) -> None:
    """One byte now and then does not postpone it."""
    one.conn.pdu_timeout = 0.3
    over = threading.Event()

    def drip() -> None:
        for at in range(len(HEAD) - 1):
            if over.wait(0.02):
                return
            one.feed(HEAD[at : at + 1])

    dripping = Background(drip)
    with pytest.raises(engine.ProtocolError) as caught:
        Background(one.conn.receive).result()
    assert caught.value.reason == 0
    over.set()
    dripping.result()
    assert one.conn.bytes_received < len(HEAD) - 1


def test_pdu_timeout_does_not_limit_idleness(one: Link, engine: Any) -> None:
    one.conn.pdu_timeout = 0.01
    assert one.conn.receive(0.1) == engine.TIMEOUT
    one.feed(WHOLE)
    assert one.conn.receive(PATIENCE).data == b"abcdef"
    assert one.conn.receive(0.1) == engine.TIMEOUT
    one.conn.pdu_timeout = None
    assert one.conn.pdu_timeout is None


def test_what_has_arrived_in_time_is_taken(one: Link, engine: Any) -> None:
    """The caller was late, not the peer."""
    one.conn.pdu_timeout = 0.02
    one.feed(WHOLE[:20])
    assert one.conn.receive(0) == engine.TIMEOUT
    one.feed(WHOLE[20:])
    threading.Event().wait(0.1)
    assert one.conn.receive(0).data == b"abcdef"


def test_wake(one: Link, engine: Any) -> None:
    for call in (one.conn.wait, one.conn.receive):
        waiting = Background(call)
        threading.Event().wait(0.05)
        one.conn.wake()
        assert waiting.result() == engine.WAKE
        one.conn.wake()
        one.conn.wake()
        assert call(PATIENCE) == engine.WAKE
        assert call(0) == engine.TIMEOUT
        one.conn.wake()
        assert one.conn.wait(0) == engine.WAKE
        assert one.conn.wait(0) == engine.TIMEOUT


def test_a_wake_stays_when_receive_polls(one: Link, engine: Any) -> None:
    """``receive(0)`` takes what is there, or says TIMEOUT; the wake-up is for the next wait."""
    one.conn.wake()
    assert one.conn.receive(0) == engine.TIMEOUT
    assert one.conn.wait(0) == engine.WAKE


@pytest.mark.parametrize("cut", [1, 13, len(HEAD), len(HEAD) + 13])
def test_wake_inside_a_message(one: Link, engine: Any, cut: int) -> None:
    one.feed(WHOLE[:cut])
    for _ in range(3):
        receiving = Background(one.conn.receive)
        eventually(lambda: one.conn.bytes_received == cut)
        one.conn.wake()
        assert receiving.result() == engine.WAKE
    one.feed(WHOLE[cut:])
    assert one.conn.receive(PATIENCE).data == b"abcdef"


def test_many_wakes_do_not_block(one: Link, engine: Any) -> None:
    for _ in range(100_000):
        one.conn.wake()
    assert one.conn.wait(0) == engine.WAKE
    assert one.conn.wait(0) == engine.TIMEOUT


def test_a_wake_is_not_lost_while_data_flow(one: Link, engine: Any) -> None:
    """Each message and the wake-up are told, in whatever order."""
    for _ in range(50):
        one.conn.wake()
        one.feed(WHOLE)
        found = [one.conn.receive(PATIENCE), one.conn.receive(PATIENCE)]
        assert engine.WAKE in found
        assert sum(got != engine.WAKE for got in found) == 1


def test_quickack(impl: Impl) -> None:
    """It changes nothing but the timing."""
    with link(impl, tcp=True) as one:
        assert not one.conn.quickack
        one.conn.quickack = True
        for _ in range(3):
            one.feed(WHOLE[:20])
            receiving = Background(one.conn.receive, PATIENCE)
            eventually(lambda: one.conn.in_pdu or not receiving.running)
            one.feed(WHOLE[20:])
            assert receiving.result().data == b"abcdef"


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="no TCP_QUICKACK here")
@pytest.mark.parametrize("wanted", [True, False])
def test_quickack_is_set_before_each_wait_that_follows_a_read(impl: Impl, wanted: bool) -> None:
    """The kernel's own state: it is taken away by hand, as the kernel does, and has to come back."""
    with link(impl, tcp=True) as one:
        one.conn.quickack = wanted

        def state() -> bool:
            return bool(one.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

        def take_away() -> None:
            one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            assert not state()

        for _ in range(3):
            one.feed(WHOLE)
            assert one.conn.receive(PATIENCE).data == b"abcdef"
            # The ACK travels with these: nothing is left that the kernel would send later, changing the state
            one.conn.send(1, ECHO, max_pdu=0)
            read_exactly(one.raw, 12 + len(ECHO))
            take_away()
            assert one.conn.wait(0) == impl.module.TIMEOUT  # no wait
            assert not state()
            assert one.conn.wait(0.001) == impl.module.TIMEOUT
            assert state() is wanted
            take_away()
            assert one.conn.wait(0.001) == impl.module.TIMEOUT  # nothing was read since
            assert not state()


# ------------------------------------------------------------------------------------------ cancel and close


def test_cancel(one: Link, engine: Any) -> None:
    sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=2**20)
    blocked(one.conn)
    one.conn.cancel()
    with pytest.raises(engine.Cancelled):
        sending.result()
    sent = one.conn.bytes_sent
    head = 12 + len(STORE)
    assert one.conn.send_broken is (sent < head or (sent - head) % (2**20 + 6) != 0)
    assert one.conn.messages_sent == 0


def test_cancel_of_send_bytes_and_send_file(one: Link, engine: Any, tmp_path: Any) -> None:
    (tmp_path / "data").write_bytes(noise(5_000_000))
    with (tmp_path / "data").open("rb") as file:
        sending = Background(one.conn.send_file, 1, STORE, file.fileno(), 0, 5_000_000, max_pdu=0)
        blocked(one.conn)
        one.conn.cancel()
        with pytest.raises(engine.Cancelled):
            sending.result()


def test_cancel_leaves_the_receiver_alone(one: Link, engine: Any) -> None:
    sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382)
    receiving = Background(one.conn.receive)
    blocked(one.conn)
    one.feed(WHOLE[:20])
    one.conn.cancel()
    with pytest.raises(engine.Cancelled):
        sending.result()
    one.feed(WHOLE[20:])
    got = receiving.result()
    if got == engine.WAKE:  # allowed: wake-ups may be spurious
        got = one.conn.receive(PATIENCE)
    assert got.data == b"abcdef"


def test_wake_does_not_end_a_send(one: Link) -> None:
    data = noise(3_000_000)
    sending = Background(one.conn.send, 1, STORE, data, max_pdu=0)
    blocked(one.conn)
    one.conn.wake()
    threading.Event().wait(0.05)
    assert sending.running
    reading = Background(read_exactly, one.raw, 12 + len(STORE) + len(data))
    sending.result()
    reading.result()


def test_cancel_holds(one: Link, engine: Any) -> None:
    """A waiting sender raises Cancelled too, and each later one until `resume`."""
    calls = [
        Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382) for _ in range(3)
    ]
    blocked(one.conn)
    one.conn.cancel()
    for call in calls:
        with pytest.raises((engine.Cancelled, OSError)):
            call.result()
    if not one.conn.send_broken:
        with pytest.raises(engine.Cancelled):
            one.conn.send(1, ECHO, max_pdu=0)


def test_hold_and_resume(one: Link, engine: Any, tmp_path: Any) -> None:
    for stop in (one.conn.hold, one.conn.cancel):
        stop()
        with pytest.raises(engine.Cancelled):
            one.conn.send(1, ECHO, max_pdu=0)
        with pytest.raises(engine.Cancelled):
            one.conn.send_file(1, STORE, 0, 0, 10, max_pdu=0)
        sent = one.conn.bytes_sent
        one.conn.send_bytes(ABORT)
        assert one.conn.bytes_sent == sent + len(ABORT)
        one.conn.resume()
        one.conn.send(1, ECHO, max_pdu=0)
    assert one.conn.messages_sent == 2
    assert not one.conn.send_broken


def test_hold_lets_a_message_be_completed(one: Link) -> None:
    data = noise(3_000_000)
    sending = Background(one.conn.send, 1, STORE, data, max_pdu=2**20)
    blocked(one.conn)
    one.conn.hold()
    threading.Event().wait(0.05)
    assert sending.running
    reading = Background(read_exactly, one.raw, 4 * 12 + len(STORE) + len(data))
    sending.result()
    reading.result()


def test_send_bytes_works_after_cancel(one: Link, engine: Any) -> None:
    """The blocked one raises; the next one is sent once there is room."""
    whole = pdata(pdv(1, 2, noise(16)))
    one.sock.setblocking(False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += one.sock.send(whole[:1] * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += one.sock.send(b"x")
    sending = Background(one.conn.send_bytes, ABORT)
    blocked(one.conn)
    one.conn.cancel()
    with pytest.raises(engine.Cancelled):
        sending.result()
    assert not one.conn.send_broken
    sending = Background(one.conn.send_bytes, whole)
    blocked(one.conn)
    assert sending.running
    read_exactly(one.raw, filled)
    sending.result()
    assert read_exactly(one.raw, len(whole)) == whole


def test_close(one: Link) -> None:
    assert not one.conn.closed
    one.conn.close()
    one.conn.close()
    assert bool(one.conn.closed)
    one.conn.wake()
    one.conn.cancel()
    for call in (
        one.conn.wait,
        one.conn.receive,
        one.conn.receive_pdu,
        lambda: one.conn.send_bytes(ABORT),
    ):
        with pytest.raises(OSError):
            call()
    one.sock.sendall(b"still open")
    assert one.raw.recv(100) == b"still open"


@pytest.mark.parametrize("call", ["wait", "receive"])
def test_close_while_receiving(one: Link, call: str) -> None:
    receiving = Background(getattr(one.conn, call))
    threading.Event().wait(0.05)
    assert receiving.running
    one.conn.close()
    with pytest.raises(OSError):
        receiving.result()
    assert one.conn.closed


def test_close_while_sending(one: Link, engine: Any) -> None:
    sending = Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382)
    blocked(one.conn)
    one.conn.close()
    with pytest.raises((OSError, engine.Cancelled)):
        sending.result()


def test_close_while_both(one: Link, engine: Any) -> None:
    calls = [
        Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382),
        Background(one.conn.receive),
        Background(one.conn.send, 1, STORE, noise(20_000_000), max_pdu=16382),
    ]
    blocked(one.conn)
    one.conn.close()
    for call in calls:
        with pytest.raises((OSError, engine.Cancelled)):
            call.result()


def test_the_base_class_is_abstract(one: Link, engine: Any) -> None:
    with pytest.raises(TypeError):
        engine.Connection(one.sock)
    assert issubclass(engine.FdConnection, engine.Connection)
    assert issubclass(engine.SocketConnection, engine.Connection)


def test_sockets_that_are_closed(impl: Impl) -> None:
    with link(impl) as one:
        one.raw.close()
        with pytest.raises((OSError, ValueError)):
            impl.open(one.raw)


def test_blocking_mode_of_a_plain_socket(one: Link, impl: Impl) -> None:
    """The duplicate shares it, so that it has to stay as it was."""
    if impl.kind == "fd":
        assert one.sock.getblocking()


# --------------------------------------------------------------------------------------------- full duplex


@cross_pairs
def test_full_duplex(sender: Impl, receiver: Impl) -> None:
    """Both ends send and receive at once: nobody waits for the other one."""
    data = noise(4_000_000)
    with pair(sender, receiver) as (near, far):

        def send(conn: Any, context: int) -> None:
            for _ in range(3):
                conn.send(context, STORE, data, max_pdu=16382)

        def receive(conn: Any, context: int) -> None:
            for _ in range(3):
                got = conn.receive(PATIENCE)
                assert got.context_id == context
                assert got.data == data

        calls = [
            Background(send, near, 1),
            Background(send, far, 3),
            Background(receive, near, 3),
            Background(receive, far, 1),
        ]
        for call in calls:
            call.result()


# ------------------------------------------------------------------------------------------------- signals


class Interruption(BaseException):
    """What a signal handler may raise, like KeyboardInterrupt."""


class Timer:
    """A signal at short intervals, as from ``setitimer``."""

    def __init__(self, raises: bool) -> None:
        self.raises = raises
        self.armed = False
        self.count = 0
        self.raised = 0

    def __call__(self, number: int, stack: Any) -> None:
        self.count += 1
        if self.raises and self.armed:
            self.armed = False
            self.raised += 1
            raise Interruption


@pytest.fixture
def ticking() -> Iterator[Callable[[bool], Timer]]:
    """Start a timer; stopped after the test."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signal handlers run in the main thread only")
    before = signal.getsignal(signal.SIGALRM)

    def start(raises: bool) -> Timer:
        timer = Timer(raises)
        signal.signal(signal.SIGALRM, timer)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        return timer

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


with_a_timer = pytest.mark.timeout(60, method="thread")  # the timer of the other method is ours


@with_a_timer
def test_signals_while_waiting(one: Link, engine: Any, ticking: Any) -> None:
    timer = ticking(False)
    assert one.conn.wait(0.1) == engine.TIMEOUT
    assert one.conn.receive(0.1) == engine.TIMEOUT
    assert timer.count > 2


@with_a_timer
def test_signals_while_receiving(one: Link, ticking: Any) -> None:
    data = noise(1_000_000)
    stream = b"".join(message(1, STORE, data, [16376] * 60))
    timer = ticking(False)

    def feed() -> None:
        for at in range(0, len(stream), 40_000):
            one.feed(stream[at : at + 40_000])
            threading.Event().wait(0.004)

    feeding = Background(feed)
    assert one.conn.receive(PATIENCE).data == data
    assert timer.count > 2
    feeding.result()


@with_a_timer
def test_signals_while_sending(one: Link, ticking: Any) -> None:
    data = noise(3_000_000)
    timer = ticking(False)

    def read() -> bytes:
        found = bytearray()
        while len(found) < 3_000_000:
            threading.Event().wait(0.003)
            found += one.raw.recv(65536)
        return bytes(found)

    reading = Background(read)
    one.conn.send(1, STORE, data, max_pdu=0)
    assert timer.count > 2
    found = reading.result()
    found += read_exactly(one.raw, one.conn.bytes_sent - len(found))
    assert found.startswith(pdata(pdv(1, 3, STORE)))


@with_a_timer
def test_exceptions_of_handlers_while_receiving(one: Link, ticking: Any) -> None:
    """They come out, and the message is continued by the next call."""
    data = noise(600_000)
    stream = b"".join(message(1, STORE, data, [5000] * 100))
    timer = ticking(True)

    def feed() -> None:
        for at in range(0, len(stream) - 1, 9_000):
            one.feed(stream[at : min(at + 9_000, len(stream) - 1)])
            threading.Event().wait(0.002)
        # The message is completed when no exception can come any more.
        eventually(lambda: timer.raised >= 5, "the exception")
        timer.raises = False
        one.feed(stream[-1:])

    feeding = Background(feed)
    while True:
        try:
            timer.armed = True
            got = one.conn.receive(PATIENCE)
            break
        except Interruption:
            pass
    assert timer.raised >= 5
    assert got.data == data
    feeding.result()


@with_a_timer
def test_exceptions_of_handlers_while_sending(one: Link, ticking: Any) -> None:
    timer = ticking(True)
    with pytest.raises(Interruption):
        timer.armed = True
        one.conn.send(1, STORE, noise(20_000_000), max_pdu=2**20)
    assert timer.raised == 1
    sent = one.conn.bytes_sent
    head = 12 + len(STORE)
    cut = sent < head or (sent - head) % (2**20 + 6) != 0
    assert one.conn.send_broken is (cut and sent > 0)
    one.conn.close()
    one.sock.close()
    assert len(read_all(one.raw)) == sent


@with_a_timer
@pytest.mark.parametrize("call", ["wait", "receive"])
def test_exceptions_of_handlers_while_idle(one: Link, engine: Any, ticking: Any, call: str) -> None:
    timer = ticking(True)
    for _ in range(5):
        with pytest.raises(Interruption):
            timer.armed = True
            getattr(one.conn, call)(PATIENCE)
    timer.raises = False
    one.feed(RELEASE)
    assert one.conn.receive(PATIENCE) == engine.OTHER


@with_a_timer
def test_handlers_may_call_the_engine(one: Link, engine: Any) -> None:
    """``wake`` from a signal handler ends the blocked call of the same thread."""
    before = signal.signal(signal.SIGALRM, lambda number, stack: one.conn.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert one.conn.receive(PATIENCE) == engine.WAKE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
