"""How the commands are told of signals: `fastpdu.commands.signals`, in this process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import kit

from fastpdu.commands import signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs os.kill")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """SIGINT as it is in a foreground job."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def state() -> tuple[Any, ...]:
    """What the process does with signals; the descriptor for wake-ups is not known without setting it."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return wakeup, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def test_everything_is_as_before() -> None:
    before, threads = state(), threading.active_count()
    with signals.handled(lambda number: None):
        assert state() != before
    assert state() == before
    assert threading.active_count() == threads


def test_each_signal_is_told_on_another_thread() -> None:
    told: list[tuple[int, threading.Thread]] = []
    with signals.handled(lambda number: told.append((number, threading.current_thread()))):
        interrupt()
        kit.until(lambda: len(told) == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        kit.until(lambda: len(told) == 2)
    assert [number for number, _ in told] == [signal.SIGINT, signal.SIGTERM]
    assert threading.main_thread() not in [thread for _, thread in told]


def test_a_signal_at_the_end_is_told() -> None:
    told: list[int] = []
    with signals.handled(told.append):
        interrupt()
    assert told == [signal.SIGINT]


def test_inside_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    outer: list[int] = []
    inner: list[int] = []
    with signals.handled(outer.append):
        with signals.handled(inner.append):
            interrupt()
            kit.until(lambda: inner)
        interrupt()
        kit.until(lambda: outer)
    assert (len(outer), len(inner)) == (1, 1)


def test_a_handler_that_raises_is_called_again(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []

    def handler(number: int) -> None:
        told.append(number)
        raise ValueError("of a handler")

    with signals.handled(handler):
        for count in (1, 2):
            interrupt()
            kit.until(lambda count=count: len(told) == count)
    assert capsys.readouterr().err.count("ValueError: of a handler") == 2


def test_what_is_ignored_stays_ignored() -> None:
    told: list[int] = []
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.handled(told.append):
            interrupt()
            os.kill(os.getpid(), signal.SIGTERM)
            kit.until(lambda: told)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)
    assert told == [signal.SIGTERM]


@pytest.mark.parametrize("name", ["set_wakeup_fd", "signal"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_an_interrupt_while_it_begins_or_ends(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    """Whatever is being done when Ctrl-C comes, nothing is left of it."""
    before, threads = state(), threading.active_count()
    real: Callable[..., Any] = getattr(signal, name)
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            # Raises at once where SIGINT has its usual handler
            interrupt()
        return real(*args, **kwargs)

    told: list[int] = []
    monkeypatch.setattr(signal, name, interrupted)
    came = False
    try:
        with signals.handled(told.append):
            pass
    except KeyboardInterrupt:
        came = True
    monkeypatch.undo()
    assert calls >= min(nth, 2)
    assert state() == before
    assert threading.active_count() == threads
    assert came or told or calls < nth or nth > 2
