"""The asynchronous operations window: who offers, who grants, and what holds (PS3.7 D.3.3.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pynetdicom
import pytest
import windowed
from helpers import data, kit, raw
from pynetdicom import evt
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation

import fastpdu

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")


@pytest.fixture
def pair() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


def requested(pair: kit.World, grant: int | None = None, **kwargs: Any) -> tuple[Any, int]:
    """What is offered to a raw acceptor that grants `grant`, and the window that comes of it."""
    bodies: list[bytes] = []

    def script(peer: raw.Peer) -> None:
        bodies.append(windowed.accept(peer, grant))
        peer.expect(raw.RELEASE_RQ)
        peer.send(raw.RELEASE_RP_PDU)

    with raw.Acceptor(script) as acceptor:
        assoc = pair.connect(acceptor.address, windowed.CTX, **kwargs)
        window = assoc.async_window
        assoc.release()
    return windowed.offered(bodies[0]), window


def ae(**kwargs: Any) -> fastpdu.AE:
    made = fastpdu.AE("SCU", **kwargs)
    made.acse_timeout = made.dimse_timeout = made.network_timeout = 20
    return made


def test_off_by_default(pair: kit.World) -> None:
    assert requested(pair) == (None, 1)
    # An answer to what has not been asked grants nothing
    assert requested(pair, 8) == (None, 1)


@pytest.mark.parametrize(
    ("offer", "grant", "window"),
    [(8, None, 1), (8, 1, 1), (8, 5, 5), (8, 8, 8), (8, 9, 8), (8, 0, 8), (65535, 65535, 65535)],
)
def test_lower_of_both(pair: kit.World, offer: int, grant: int | None, window: int) -> None:
    assert requested(pair, grant, ae=ae(async_window=offer)) == ((offer, 1), window)


def test_one_is_not_offered(pair: kit.World) -> None:
    assert requested(pair, 8, ae=ae(async_window=1)) == (None, 1)


def test_of_one_association(pair: kit.World) -> None:
    assert requested(pair, 4, async_window=6) == ((6, 1), 4)
    assert requested(pair, 4, ae=ae(async_window=6), async_window=2) == ((2, 1), 2)
    assert requested(pair, 4, ae=ae(async_window=6), async_window=1) == (None, 1)
    # What else the AE has stays
    options = fastpdu.TransportOptions(max_pdu=4096)
    assert requested(pair, 4, ae=ae(transport=options), async_window=6) == ((6, 1), 4)


def test_of_options(pair: kit.World, monkeypatch: pytest.MonkeyPatch) -> None:
    options = fastpdu.TransportOptions(async_window=7)
    assert requested(pair, 7, ae=ae(transport=options)) == ((7, 1), 7)
    assert requested(pair, 7, transport=options) == ((7, 1), 7)
    assert requested(pair, 7, ae=ae(transport=options, async_window=3)) == ((3, 1), 3)
    monkeypatch.setenv("FASTPDU_ASYNC_WINDOW", "9")
    with fastpdu.installed(fastpdu.TransportOptions.from_environment()):
        assert requested(pair, 9, ae=pynetdicom.AE("SCU")) == ((9, 1), 9)


def test_excluded(pair: kit.World) -> None:
    made = ae(async_window=8, async_window_excluded={"OLD GE ", "OTHER"})
    assert made.async_window_excluded == {"OLD GE", "OTHER"}
    assert requested(pair, 8, ae=made, ae_title="OLD GE") == (None, 1)
    assert requested(pair, 8, ae=made, ae_title="NEW GE") == ((8, 1), 8)
    made.async_window_excluded = None
    assert requested(pair, 8, ae=made, ae_title="OLD GE") == ((8, 1), 8)
    # pynetdicom's AE can have the same attribute
    stock = pynetdicom.AE("SCU")
    stock.async_window_excluded = {"OLD GE"}  # type: ignore[attr-defined]
    with fastpdu.installed(fastpdu.TransportOptions(async_window=8)):
        assert requested(pair, 8, ae=stock, ae_title="OLD GE") == (None, 1)
        stock.async_window_excluded = ["OLD GE "]  # type: ignore[attr-defined]
        assert requested(pair, 8, ae=stock, ae_title="OLD GE") == (None, 1)
        stock.async_window_excluded = "OLD GE"  # type: ignore[attr-defined]
        stock.add_requested_context(data.CT)
        with pytest.raises(TypeError, match="must be a set of AE titles"):
            stock.associate("127.0.0.1", 104)


def test_the_users_item_wins(pair: kit.World) -> None:
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = 3
    item.maximum_number_operations_performed = 2
    assert requested(pair, 9, ae=ae(async_window=8), ext_neg=[item]) == ((3, 2), 3)
    item.maximum_number_operations_invoked = 0
    offered, window = requested(pair, 0, ae=ae(), ext_neg=[item])
    assert offered == (0, 2)
    assert 1 < window < 1000


@pytest.mark.parametrize("value", [0, -1, 65536, "8", 2.0, True])
def test_bad_windows(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="async_window must be"):
        fastpdu.AE(async_window=value)
    made = fastpdu.AE()
    with pytest.raises((TypeError, ValueError), match="async_window must be"):
        made.async_window = value
    assert made.async_window is None
    made.add_requested_context(data.CT)
    with pytest.raises((TypeError, ValueError), match="async_window must be"):
        made.associate("127.0.0.1", 104, async_window=value)


@pytest.mark.parametrize("value", ["TITLE", b"TITLE", [1]])
def test_bad_exclusions(value: Any) -> None:
    with pytest.raises(TypeError, match="async_window_excluded must"):
        fastpdu.AE(async_window_excluded=value)


def test_set_and_unset() -> None:
    made = fastpdu.AE(async_window=5)
    assert (made.async_window, made.transport.async_window) == (5, 5)
    made.async_window = None
    assert (made.async_window, made.transport.async_window) == (None, None)
    options = fastpdu.TransportOptions(async_window=4)
    made.transport = options
    assert made.transport is options


# ------------------------------------------------------------------------------------------------------- as acceptor


def granted(
    server: kit.Server, offer: tuple[int, int] | None, calling: bytes = b"RAW"
) -> tuple[int, int] | None:
    """What a server grants a raw requestor."""
    user_info = raw.max_length(16382) + raw.IDENTITY
    if offer is not None:
        user_info += windowed.window_item(*offer)
    with raw.dial(server.address) as peer:
        body = raw.associate_body(raw.proposals() + raw.item(0x50, user_info), calling=calling)
        peer.send(raw.pdu(raw.ASSOCIATE_RQ, body))
        answer = peer.expect(raw.ASSOCIATE_AC)
        peer.release()
    return windowed.offered(answer)


def serve(pair: kit.World, handlers: Any = (), **kwargs: Any) -> kit.Server:
    made = fastpdu.AE("SCP", **kwargs)
    return pair.serve([data.VERIFICATION, *windowed.CTX], handlers, ae=made)


def test_grants_nothing_by_default(pair: kit.World) -> None:
    server = serve(pair)
    assert granted(server, (8, 8)) is None
    assert granted(server, None) is None


@pytest.mark.parametrize(
    ("offer", "grant"),
    [((8, 3), (5, 3)), ((2, 9), (2, 5)), ((0, 0), (5, 5)), ((1, 4), (1, 4)), ((1, 1), None)],
)
def test_grants_at_most_its_own(pair: kit.World, offer: Any, grant: Any) -> None:
    """(1, 1) is no window: pynetdicom does not even ask."""
    assert granted(serve(pair, async_window=5), offer) == grant


def test_does_not_answer_what_was_not_offered(pair: kit.World) -> None:
    assert granted(serve(pair, async_window=5), None) is None


def test_grants_nothing_to_excluded(pair: kit.World) -> None:
    server = serve(pair, async_window=5, async_window_excluded={"OLD"})
    assert granted(server, (8, 1), calling=b"OLD") is None
    assert granted(server, (8, 1), calling=b"NEW") == (5, 1)


def test_the_handler_is_told(pair: kit.World) -> None:
    """What it returns means as little as in stock; that it raises does not keep us from answering."""
    seen: list[tuple[int, int]] = []

    def handler(event: evt.Event) -> Any:
        seen.append((event.nr_invoked, event.nr_performed))
        raise ValueError("no")

    server = serve(pair, [(evt.EVT_ASYNC_OPS, handler)], async_window=5)
    assert granted(server, (8, 2)) == (5, 2)
    assert seen == [(8, 2)]


def test_both_ends_agree(pair: kit.World) -> None:
    server = serve(pair, async_window=5)
    assoc = pair.connect(server, windowed.CTX, async_window=9)
    assert assoc.async_window == 5
    # The other direction has not been offered
    assert server.one().async_window == 1


def test_before_and_without(pair: kit.World) -> None:
    """No association, no window."""

    def script(peer: raw.Peer) -> None:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(raw.pdu(raw.ASSOCIATE_RJ, struct.pack("xBBB", 1, 1, 1)))

    with raw.Acceptor(script) as acceptor:
        assoc = pair.connect(acceptor.address, windowed.CTX, established=None, async_window=9)
        assert assoc.is_rejected
        assert assoc.async_window == 1
