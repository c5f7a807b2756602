"""Busy waiting: between messages that come soon, a thread looks for the next before it sleeps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from engine_kit import PATIENCE, WHOLE, Background, Impl, Link, link

# (longer than it is looked for a message)
LONG = 0.002


def exchange(one: Link, engine: Any) -> None:
    """Let a message come while nobody has to wait for it."""
    one.feed(WHOLE)
    assert one.conn.wait(PATIENCE) == engine.READY
    assert one.conn.receive(PATIENCE).data == b"abcdef"


def look(one: Link, engine: Any) -> int:
    """Wait in vain after a message that came soon; return how often that was without sleeping."""
    # (the first may end a long wait)
    exchange(one, engine)
    exchange(one, engine)
    before: int = one.conn.busy_waits
    assert one.conn.wait(LONG) == engine.TIMEOUT
    return one.conn.busy_waits - before


def looks(one: Link, engine: Any) -> bool:
    """Whether the connection looks, now or soon: other tests of this process may have left a crowd."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if look(one, engine):
            return True
    return False


@pytest.fixture
def busy(one: Link) -> Link:
    """A connection that waits busily, if its engine can."""
    assert not one.conn.busy_wait
    one.conn.busy_wait = True
    return one


@pytest.fixture
def compiled(busy: Link, impl: Impl) -> Link:
    """The same, of the engine that can."""
    if impl.backend == "pure":
        pytest.skip("the pure engine never looks")
    return busy


def test_only_if_asked_for(one: Link, engine: Any) -> None:
    assert not one.conn.busy_wait
    for _ in range(20):
        assert look(one, engine) == 0


def test_never_in_the_pure_engine(busy: Link, engine: Any, impl: Impl) -> None:
    if impl.backend != "pure":
        pytest.skip("the compiled engine does")
    for _ in range(20):
        assert look(busy, engine) == 0


def test_once_for_each_message(compiled: Link, engine: Any) -> None:
    """However often it is waited for; who polls without end does not burn a processor."""
    assert looks(compiled, engine)
    for _ in range(20):
        before = compiled.conn.busy_waits
        for _ in range(10):
            assert compiled.conn.wait(LONG) == engine.TIMEOUT
        assert compiled.conn.busy_waits == before
    assert looks(compiled, engine)


def test_not_after_a_message_that_came_late(compiled: Link, engine: Any) -> None:
    assert looks(compiled, engine)
    exchange(compiled, engine)
    waiting = Background(compiled.conn.wait, PATIENCE)
    time.sleep(0.05)
    compiled.feed(WHOLE)
    assert waiting.result() == engine.READY
    compiled.conn.receive(PATIENCE)
    before = compiled.conn.busy_waits
    assert compiled.conn.wait(LONG) == engine.TIMEOUT
    assert compiled.conn.busy_waits == before


def test_not_in_the_middle_of_a_message(compiled: Link, engine: Any) -> None:
    assert looks(compiled, engine)
    exchange(compiled, engine)
    exchange(compiled, engine)
    before = compiled.conn.busy_waits
    for end in range(20, len(WHOLE)):
        compiled.feed(WHOLE[end - 1 : end] if end > 20 else WHOLE[:20])
        assert compiled.conn.receive(0) == engine.TIMEOUT
    receiving = Background(compiled.conn.receive, PATIENCE)
    time.sleep(LONG)
    compiled.feed(WHOLE[-1:])
    assert receiving.result().data == b"abcdef"
    assert compiled.conn.busy_waits == before


def test_not_with_three_connections(compiled: Link, engine: Any, impl: Impl) -> None:
    """Two are both ends of one association."""
    assert looks(compiled, engine)
    with link(impl) as other, link(impl) as third:
        exchange(other, engine)
        assert looks(compiled, engine)
        assert looks(compiled, engine)
        exchange(other, engine)
        before = time.monotonic()
        exchange(third, engine)
        looked = look(compiled, engine)
        # (the crowd is forgotten after a hundredth of a second)
        assert not looked or time.monotonic() - before > 0.01
        assert looks(compiled, engine)


def test_only_the_timing_changes(busy: Link, engine: Any) -> None:
    """Messages in pieces, soon and late, timeouts, wake-ups."""
    for seconds in (0.0, 0.0001, 0.0003, 0.002, 0.02, 0.0001):
        waiting = Background(busy.conn.receive, PATIENCE)
        time.sleep(seconds)
        busy.feed(WHOLE[:20])
        time.sleep(seconds)
        busy.feed(WHOLE[20:])
        assert waiting.result().data == b"abcdef"
    for timeout in (0, 0.0001, 0.0003, 0.002):
        assert busy.conn.wait(timeout) == engine.TIMEOUT
        assert busy.conn.receive(timeout) == engine.TIMEOUT
        busy.feed(WHOLE)
        assert busy.conn.receive(PATIENCE).data == b"abcdef"
    for _ in range(20):
        exchange(busy, engine)
        waiting = Background(busy.conn.wait, PATIENCE)
        busy.conn.wake()
        assert waiting.result() == engine.WAKE


def test_the_end(busy: Link, engine: Any) -> None:
    exchange(busy, engine)
    waiting = Background(busy.conn.wait, PATIENCE)
    busy.conn.close()
    with pytest.raises(OSError, match="closed"):
        waiting.result()


def test_many_at_once(impl: Impl) -> None:
    """Only one thread of the process looks; the others get their messages all the same."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(link(impl)) for _ in range(6)]
        for each in links:
            each.conn.busy_wait = True
        for _ in range(30):
            waiting = [Background(each.conn.wait, PATIENCE) for each in links]
            for each in links:
                each.feed(WHOLE)
            for found in waiting:
                found.result()
            assert [each.conn.receive(PATIENCE).data for each in links] == [b"abcdef"] * len(links)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no pthread_kill here")
def test_signals(compiled: Link, engine: Any) -> None:
    """One that comes while nobody sleeps interrupts nothing, and its handler must run nevertheless."""

    class Rang(Exception):
        pass

    def ring(*args: Any) -> None:
        raise Rang

    def kill(delay: float) -> None:
        time.sleep(delay)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    assert looks(compiled, engine)
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        for delay in (0, 0.0001, 0.0002, 0.0003, 0.0004) * 10:
            exchange(compiled, engine)
            exchange(compiled, engine)
            with pytest.raises(Rang):
                Background(kill, delay)
                compiled.conn.wait(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)


FORK = """
import os, socket, sys, threading, time
from fastpdu import _fastpdu as engine

whole = bytes.fromhex(sys.argv[1])


def look(conn, far):
    for _ in range(2):
        far.sendall(whole)
        conn.wait(10)
        conn.receive(10)
    conn.wait(0.0005)


def busy():
    near, far = socket.socketpair()
    conn = engine.FdConnection(near)
    conn.busy_wait = True
    return conn, far


def look_without_end():
    while True:
        look(*one)


one = busy()
threading.Thread(target=look_without_end, daemon=True).start()
while not one[0].busy_waits:
    time.sleep(0.001)
for _ in range(20):
    child = os.fork()
    if child == 0:
        other = busy()
        for _ in range(3):
            look(*other)
        os._exit(0 if other[0].busy_waits else 3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.skipif(bool(os.environ.get("FASTPDU_SANITIZED")), reason="forks")
def test_a_child_looks(compiled: Link) -> None:
    """Whatever the threads of its parent did when it was made."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, WHOLE.hex()], timeout=60, check=False
    )
    assert done.returncode == 0
