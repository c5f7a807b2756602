"""Room for associations: whatever happens while it is made, the peer gets an answer and the timers stay right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import data, kit, raw
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")


@pytest.fixture
def pair() -> Iterator[kit.World]:
    """Two fast ends."""
    with kit.world_of("fast", "fast") as made:
        yield made


def half_open() -> Any:
    """An acceptor that waits for its A-ASSOCIATE-RQ, whose thread has not started yet."""
    from fastpdu.association import upgrade
    from fastpdu.options import TransportOptions

    assoc = Association(kit.make_ae("fast", acse_timeout=17), "acceptor")
    assoc.requestor.address_info = AddressInformation("127.0.0.1", 11112)
    upgrade(assoc, TransportOptions())
    return assoc


def test_a_thread_that_has_not_started_is_not_waited_for() -> None:
    from fastpdu import acse

    acse._close([half_open()], "a test", time.monotonic() + 60)


def test_two_that_make_room_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A-ASSOCIATE-RQ at the last moment: the timer is what it was, whoever comes second."""
    from fastpdu import acse

    assoc = half_open()
    waits: list[float] = []

    def join(timeout: float) -> None:
        waits.append(timeout)
        if len(waits) == 1:
            acse._close([assoc], "a test", time.monotonic() + 60)
        else:
            assoc.requestor.primitive = object()

    monkeypatch.setattr(assoc, "is_alive", lambda: True)
    monkeypatch.setattr(assoc, "join", join)
    monkeypatch.setattr(acse, "_is_half_open", lambda one: len(waits) < 2)
    acse._close([assoc], "a test", time.monotonic() + 60)
    assert len(waits) == 2
    assert assoc.dul.artim_timer.timeout == 17


def test_an_error_while_room_is_made_is_answered(
    pair: kit.World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastpdu import acse

    def fail(ae: Any) -> None:
        raise RuntimeError("no room")

    server = pair.serve([data.VERIFICATION], [(evt.EVT_C_ECHO, lambda event: 0)])
    with monkeypatch.context() as patch:
        patch.setattr(acse, "make_room", fail)
        with raw.dial(server.address) as peer:
            peer.send(raw.associate_rq())
            peer.expect(raw.ABORT)
    assert "no room" in caplog.text
    server.quiet()
    assert pair.connect(server, [data.VERIFICATION]).send_c_echo().Status == 0
