"""Many connections of one process at once: what is worth its price only while nobody else works is left out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from engine_kit import (
    ECHO,
    IMPLS,
    PATIENCE,
    STORE,
    Background,
    Impl,
    Link,
    blocked,
    eventually,
    frame,
    link,
    message,
    noise,
    pair,
    read_exactly,
)

LARGE = 100_000
#: More than the buffers of a socket pair take.
HUGE = 20_000_000


def all_turns_are_free(impl: Impl) -> None:
    if impl.backend == "compiled":
        assert impl.module.free_turns() == 4


def pause(seconds: float = 0.03) -> None:
    threading.Event().wait(seconds)


@pytest.fixture
def compiled(impl: Impl) -> Impl:
    if impl.backend != "compiled":
        pytest.skip("the pure engine has no hints to leave out")
    return impl


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data set"
    path.write_bytes(noise(HUGE))
    return path


def test_no_command_is_told_while_others_receive(compiled: Impl, engine: Any) -> None:
    """One return to the GIL less, where there is a queue for it."""
    head, rest = message(1, STORE, b"abcd")
    with link(compiled) as one, link(compiled) as other:
        one.conn.tells_command = True
        other.feed(head)
        beside = Background(other.conn.receive, PATIENCE)
        eventually(lambda: other.conn.in_message)
        pause()
        receiving = Background(one.conn.receive, PATIENCE)
        one.feed(head)
        eventually(lambda: one.conn.in_message)
        pause()
        one.feed(rest)
        assert receiving.result().data == b"abcd"
        other.feed(rest)
        assert beside.result().data == b"abcd"
        # alone again
        receiving = Background(one.conn.receive, PATIENCE)
        one.feed(head)
        assert receiving.result() == engine.COMMAND
        one.feed(rest)
        assert one.conn.receive(PATIENCE).data == b"abcd"


def test_nobody_yields_while_others_receive(compiled: Impl) -> None:
    """The GIL is wanted as it is."""
    with link(compiled) as one, link(compiled) as other:
        beside = Background(other.conn.receive, PATIENCE)
        # (its first look at the socket)
        eventually(lambda: other.conn.receive_calls > 0)
        one.conn.send(1, ECHO, max_pdu=0, yields=30)
        assert one.conn.yielded_ns == 0
        other.feed(b"".join(message(1, ECHO, None)))
        assert beside.result().command == ECHO
        one.conn.send(1, ECHO, max_pdu=0, yields=0.01)
        assert one.conn.yielded_ns > 0


def test_no_early_command_while_others_send(file: Path) -> None:
    """One system call instead of two; the bytes are the same."""
    compiled = Impl("compiled", "fd")
    expected = b"".join(frame(1, STORE, noise(HUGE)[:LARGE], 0, compiled.module.UNLIMITED_FRAGMENT))
    with link(compiled) as one, link(compiled) as other, file.open("rb") as source:
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LARGE)
        if one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 4 * LARGE:
            pytest.skip("the buffers of a socket are too small here")

        def calls() -> int:
            before = one.conn.send_calls
            reading = Background(read_exactly, one.raw, len(expected))
            one.conn.send_file(1, STORE, source.fileno(), 0, LARGE, max_pdu=0)
            assert reading.result() == expected
            return int(one.conn.send_calls - before)

        assert calls() == 2
        beside = Background(other.conn.send_file, 1, STORE, source.fileno(), 0, HUGE, max_pdu=0)
        blocked(other.conn)
        assert calls() == 1
        other.conn.cancel()
        with pytest.raises(compiled.module.Cancelled):
            beside.result()


FORK = """
import os, socket, sys, threading
from fastpdu import _fastpdu

echo = bytes.fromhex(sys.argv[1])
near, far = socket.socketpair()
other = _fastpdu.FdConnection(near)
threading.Thread(target=other.receive, daemon=True).start()
while not other.receive_calls:
    pass
child = os.fork()
if child == 0:
    near, far = socket.socketpair()
    one = _fastpdu.FdConnection(near)
    one.send(1, echo, max_pdu=0, yields=0.01)
    os._exit(0 if one.yielded_ns else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_threads_of_another_process_do_not_count() -> None:
    """A child has none of the threads that were receiving when it was made."""
    assert Impl("compiled", "fd").module
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, ECHO.hex()], timeout=60, check=False
    )
    assert done.returncode == 0


NO_MEMORY = """
import resource, socket, sys, tempfile
from pathlib import Path
from fastpdu import _fastpdu

store = bytes.fromhex(sys.argv[1])
near, far = socket.socketpair()
one = _fastpdu.FdConnection(near)
with tempfile.TemporaryFile() as file:
    file.truncate(8_000_000)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 60_000, most))
    try:
        one.send_file(1, store, file.fileno(), 0, 8_000_000, max_pdu=1_048_582, timeout=1)
    except MemoryError:
        sys.exit(3 if one.bytes_sent else 0)
sys.exit(4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer ends a process without memory"
)
def test_without_memory_nothing_leaves() -> None:
    """Half a message would make nonsense of the next one."""
    assert Impl("compiled", "fd").module
    done = subprocess.run([sys.executable, "-c", NO_MEMORY, STORE.hex()], timeout=60, check=False)
    assert done.returncode == 0


def test_who_lingers_lets_others_send(impl: Impl, one: Link) -> None:
    """An abort must not wait for the answer that will not come."""
    lingering = Background(one.conn.send, 1, ECHO, max_pdu=0, linger=PATIENCE)
    echo = b"".join(message(1, ECHO, None))
    assert read_exactly(one.raw, len(echo)) == echo
    pause()
    one.conn.send(3, ECHO, max_pdu=0)
    one.conn.send_bytes(b"\7\0\0\0\0\4\0\0\2\0")
    assert read_exactly(one.raw, len(echo) + 10)[-10:] == b"\7\0\0\0\0\4\0\0\2\0"
    assert lingering.running or impl.backend == "pure"
    one.feed(echo)
    assert lingering.result() == 1
    assert one.conn.receive(PATIENCE).command == ECHO


def test_a_close_ends_lingering(one: Link) -> None:
    lingering = Background(one.conn.send, 1, ECHO, max_pdu=0, linger=None)
    echo = b"".join(message(1, ECHO, None))
    read_exactly(one.raw, len(echo))
    pause()
    one.conn.close()
    assert lingering.result() == 1


def test_a_sender_that_waits_for_another_is_told_of_the_close(impl: Impl, file: Path) -> None:
    """The second has not begun, and must not."""
    with link(impl) as one, file.open("rb") as source:
        first = Background(one.conn.send_file, 1, STORE, source.fileno(), 0, HUGE, max_pdu=0)
        blocked(one.conn)
        second = Background(one.conn.send, 1, ECHO, max_pdu=0)
        pause()
        assert second.running
        one.conn.close()
        with pytest.raises((impl.module.Cancelled, OSError)):
            first.result()
        with pytest.raises(OSError):
            second.result()


def send_at_once(
    stack: ExitStack, impl: Impl, file: Path, sizes: Sequence[int], linger: float
) -> tuple[list[Link], list[Background]]:
    """Send the beginning of a file over a connection of its own for each of `sizes`, all at once."""
    links = [stack.enter_context(link(impl, tcp=True)) for _ in sizes]
    source = stack.enter_context(file.open("rb"))
    return links, [
        Background(
            one.conn.send_file,
            *(1, STORE, source.fileno(), 0, size),
            max_pdu=16382,
            linger=linger,
        )
        for one, size in zip(links, sizes, strict=True)
    ]


def test_nobody_keeps_others_waiting_for_an_answer(impl: Impl, file: Path) -> None:
    """No answer comes before all messages have left."""
    expected = len(b"".join(frame(1, STORE, bytes(LARGE), 16382, 0)))
    echo = b"".join(message(1, ECHO, None))
    with ExitStack() as stack:
        links, sending = send_at_once(stack, impl, file, [LARGE] * 12, 10 * PATIENCE)
        for one in links:
            read_exactly(one.raw, expected)
        for one in links:
            one.feed(echo)
        for one, background in zip(links, sending, strict=True):
            background.result()
            assert one.conn.receive(PATIENCE).command == ECHO
    all_turns_are_free(impl)


@pytest.mark.parametrize("end", ["cancel", "close", "hang up"])
def test_a_turn_ends_with_the_send(impl: Impl, file: Path, end: str) -> None:
    """Whatever comes of it."""
    with ExitStack() as stack:
        links, sending = send_at_once(stack, impl, file, [LARGE, HUGE] * 6, 10 * PATIENCE)
        for number, one in enumerate(links):
            if number % 2:
                blocked(one.conn)
        for number, one in enumerate(links):
            if end == "hang up":
                one.raw.close()
            elif end == "close" or not number % 2:
                one.conn.close()
            else:
                one.conn.cancel()
        for background in sending:
            with suppress(impl.module.Cancelled, OSError):
                background.result()
    all_turns_are_free(impl)


def test_a_message_lingers_no_longer_in_its_turn(impl: Impl, file: Path) -> None:
    """None comes back before its answer or the end of the time."""
    with ExitStack() as stack:
        links, sending = send_at_once(stack, impl, file, [LARGE] * 8, 0.05)
        for background in sending:
            background.result()
        for one in links:
            if impl.backend == "compiled":
                assert one.conn.peer_wait_ns >= 45_000_000
    all_turns_are_free(impl)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("impl", IMPLS, ids=str)
def test_each_file_arrives_as_it_is(impl: Impl, tmp_path: Path, answered: bool) -> None:
    """However many connections read files at once, with buffers that go from one to the other."""
    count, each = 8, 4
    contents = [noise(700_000 + 10_000 * number, number + 1) for number in range(count)]
    with ExitStack() as stack:
        pairs = [stack.enter_context(pair(impl, impl)) for _ in range(count)]

        def send(number: int) -> None:
            path = tmp_path / str(number)
            path.write_bytes(contents[number])
            with path.open("rb") as source:
                for _ in range(each):
                    pairs[number][0].send_file(
                        *(1, STORE, source.fileno(), 0, len(contents[number])),
                        max_pdu=16382,
                        linger=PATIENCE if answered else 0,
                    )
                    if answered:
                        assert pairs[number][0].receive(PATIENCE).command == ECHO

        def receive(number: int) -> int:
            good = 0
            for _ in range(each):
                good += pairs[number][1].receive(PATIENCE).data == contents[number]
                if answered:
                    pairs[number][1].send(1, ECHO, max_pdu=16382)
            return good

        receiving = [Background(receive, number) for number in range(count)]
        sending = [Background(send, number) for number in range(count)]
        for background in sending:
            background.result(60)
        assert [background.result(60) for background in receiving] == [each] * count
