"""Answers to an association request that come before pynetdicom looks for them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from helpers import data, kit, raw
from pynetdicom import evt

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")


def test_a_rejection_that_has_closed_the_connection_already() -> None:
    def script(peer: raw.Peer) -> None:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(raw.pdu(raw.ASSOCIATE_RJ, bytes([0, 1, 1, 7])))
        peer.at_end()

    def wait(event: evt.Event) -> None:
        dul: Any = event.assoc.dul
        # what pynetdicom looks at next
        dul.socket._ready.wait()
        kit.until(lambda: not dul.socket._is_connected, what="the end of the connection")

    with raw.Acceptor(script) as acceptor, kit.world_of("fast", "fast") as world:
        assoc = world.connect(
            acceptor.address,
            [(data.VERIFICATION, data.IMPLICIT)],
            [(evt.EVT_REQUESTED, wait)],
            established=False,
        )
        assert assoc.is_rejected
        assert not assoc.is_aborted
        primitive: Any = assoc.acceptor.primitive
        assert (primitive.result, primitive.result_source, primitive.diagnostic) == (1, 1, 7)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_request_that_comes_while_its_connection_makes_room() -> None:
    """The ARTIM timer of a connection expires in the very turn that brings the A-ASSOCIATE-RQ."""
    with kit.world_of("fast", "fast") as world:
        server = world.serve(
            [(data.VERIFICATION, data.IMPLICIT)], attributes={"maximum_associations": 2}
        )

        def ask() -> None:
            for _ in range(20):
                ae = kit.make_ae("fast", "SCU")
                ae.add_requested_context(data.VERIFICATION, data.IMPLICIT)
                assoc = ae.associate(*server.address)
                if assoc.is_established:
                    time.sleep(0.002)
                    assoc.release()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.quiet()
