"""For how long the idle reader stays away while somebody asks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from helpers import data, kit
from pynetdicom import evt

from fastpdu import direct

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")


@pytest.fixture
def assoc() -> Any:
    """A requestor, to whose C-ECHO requests somebody answers."""
    with kit.world_of("fast", "fast") as world:
        server = world.serve([(data.VERIFICATION, data.IMPLICIT)])
        yield world.connect(server.address, [(data.VERIFICATION, data.IMPLICIT)])


def leases(
    assoc: Any, monkeypatch: pytest.MonkeyPatch, count: int = 3
) -> list[tuple[float, float]]:
    """Send some requests: the leases while they lasted, and for how long they lingered at most."""
    seen: list[tuple[float, float]] = []
    linger = direct.DirectMode._linger

    def look(mode: direct.DirectMode) -> float:
        seen.append((mode._lease, linger(mode)))
        return seen[-1][1]

    monkeypatch.setattr(direct.DirectMode, "_linger", look)
    for _ in range(count):
        assert assoc.send_c_echo().Status == 0x0000
    # (not where the idle reader still has the token; twice where a message lingers in its turn)
    assert len(seen) >= count - 1
    return seen


def test_alone(assoc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the traffic lasts: an abort is to be noticed soon after it."""
    monkeypatch.setattr(direct, "_asking", set())
    assert set(leases(assoc, monkeypatch, 20)) == {(direct.LEASE, direct.LEASE)}
    assert direct._asking == set()


@pytest.mark.parametrize(
    ("others", "lease"),
    [(4, 5 * direct.LEASE), (63, direct.LONGEST_LEASE), (1000, direct.LONGEST_LEASE)],
)
def test_among_others(
    assoc: Any, monkeypatch: pytest.MonkeyPatch, others: int, lease: float
) -> None:
    """The more wait for answers, the longer each takes."""
    monkeypatch.setattr(direct, "_asking", set(range(others)))
    for seen in leases(assoc, monkeypatch):
        assert seen == pytest.approx((lease, lease))
    assert len(direct._asking) == others


def test_no_longer_than_the_answer_may_take(assoc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DIMSE timeout comes after it."""
    monkeypatch.setattr(direct, "_asking", set(range(63)))
    assoc.dimse_timeout = 0.15
    assert set(leases(assoc, monkeypatch)) == {(direct.LONGEST_LEASE, 0.15)}


def test_whoever_watches_while_it_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced while an answer is waited for sees the answer."""
    monkeypatch.setattr(direct, "LEASE", 10.0)
    monkeypatch.setattr(direct, "LONGEST_LEASE", 10.0)
    entered, go = threading.Event(), threading.Event()
    seen: list[Any] = []

    def echo(event: evt.Event) -> int:
        entered.set()
        assert go.wait(10)
        return 0x0000

    with kit.world_of("fast", "fast") as world:
        server = world.serve([(data.VERIFICATION, data.IMPLICIT)], [(evt.EVT_C_ECHO, echo)])
        assoc: Any = world.connect(server.address, [(data.VERIFICATION, data.IMPLICIT)])
        go.set()
        assert assoc.send_c_echo().Status == 0x0000
        entered.clear()
        go.clear()
        decode = assoc.dul._decode_pdu

        def watch() -> None:
            assert entered.wait(10)
            assoc.dul._decode_pdu = lambda data: seen.append(data) or decode(data)
            go.set()

        watching = threading.Thread(target=watch)
        watching.start()
        assert assoc.send_c_echo().Status == 0x0000
        watching.join()
        assert len(seen) == 1
        del assoc.dul._decode_pdu


def test_an_abort_after_much_traffic() -> None:
    """The idle reader comes back, and sees it."""
    acceptors: list[Any] = []

    def echo(event: evt.Event) -> int:
        acceptors.append(event.assoc)
        return 0x0000

    with kit.world_of("fast", "fast") as world:
        server = world.serve([(data.VERIFICATION, data.IMPLICIT)], [(evt.EVT_C_ECHO, echo)])
        assoc = world.connect(server.address, [(data.VERIFICATION, data.IMPLICIT)])
        for _ in range(200):
            assert assoc.send_c_echo().Status == 0x0000
        acceptors[0].abort()
        kit.until(lambda: assoc.is_aborted, what="the abort")
