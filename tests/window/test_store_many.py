"""`assoc.send_c_store_many`: every item has exactly one result, whatever the peer does."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import windowed
from helpers import data, kit, raw
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt

import fastpdu
from fastpdu.store_many import Pipeline

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

WATCHED = [(evt.EVT_DATA_RECV, lambda event: None)]
# What the sender listens to: nothing, messages (built for the handler), or each PDU (pynetdicom's road)
ROADS: dict[str, list[Any]] = {
    "fast": [],
    "messages": [
        (evt.EVT_DIMSE_RECV, lambda event: None),
        (evt.EVT_DIMSE_SENT, lambda event: None),
    ],
    "watched": WATCHED,
}


@pytest.fixture
def pair() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> Any:
    return ROADS[request.param]


def connect(pair: kit.World, address: Any, window: int = 4, road: Any = (), **kwargs: Any) -> Any:
    return pair.connect(address, windowed.CTX, road, async_window=window, **kwargs)


def uid(number: int) -> str:
    return str(data.image(number).SOPInstanceUID)


def brief(results: Any) -> list[tuple[str | None, int | None]]:
    """(SOP Instance UID, status or None) of results without an error."""
    found = []
    for result in results:
        assert result.error is None
        found.append((result.sop_instance_uid, result.status.get("Status")))
        assert result.is_answered == (found[-1][1] is not None)
    return found


def uids(results: Any) -> list[str | None]:
    return [result.sop_instance_uid for result in results]


def finish(peer: raw.Peer) -> None:
    peer.expect(raw.RELEASE_RQ)
    peer.send(raw.RELEASE_RP_PDU)


# ------------------------------------------------------------------------------------------------- correct peers


@pytest.mark.parametrize(("offered", "granted"), [(None, None), (8, None), (8, 3), (4, 8)])
@pytest.mark.parametrize("kind", kit.KINDS)
def test_everything_arrives(
    pair: kit.World, files: data.Files, road: Any, kind: str, offered: Any, granted: Any
) -> None:
    """Paths and data sets, large and small, converted or not, over any window and to stock pynetdicom."""
    received: dict[str, str] = {}

    def store(event: evt.Event) -> int:
        received[event.request.AffectedSOPInstanceUID] = kit.sha(event.dataset.PixelData)
        return 0

    pair.scp = kind
    attributes = {"async_window": granted} if kind == "fast" else {}
    server = pair.serve(windowed.CTX, [(evt.EVT_C_STORE, store)], attributes=attributes)
    assoc = connect(pair, server, offered or 1, road)
    expected_window = min(offered or 1, granted or 1) if kind == "fast" else 1
    assert assoc.async_window == expected_window
    kit.mend(server.one())
    items: list[Any] = [data.image(number, 100 * number) for number in range(1, 8)]
    items += [files.made(number, 300_000) for number in range(8, 12)]
    # Small ones in the other encoding have to be decoded
    other = data.image(12, 500)
    other.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    items.append(other)
    results = list(assoc.send_c_store_many(items))
    assert sorted(map(str, uids(results))) == sorted(uid(number) for number in range(1, 13))
    assert {result.status.Status for result in results} == {0}
    assert [result.item for result in results] == items  # this peer answers in order
    assert {result.sop_class_uid for result in results} == {data.CT}
    assert len({result.message_id for result in results}) == 12
    for number, item in enumerate(items, 1):
        size = 100 * number if number < 8 else 300_000 if number < 12 else 500
        assert received[uid(number)] == kit.sha(data.image(number, size).PixelData)
        assert isinstance(item, (Path, Dataset))
    assert assoc.send_c_store(data.image(20)).Status == 0
    assoc.release()


def test_as_many_in_flight_as_negotiated(pair: kit.World, road: Any) -> None:
    """Three are sent before the first answer, and not a fourth; each answer lets one more out."""

    def script(peer: raw.Peer) -> list[int]:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 3)
        assert windowed.is_quiet(peer)
        for index in range(3, 6):
            windowed.answer(peer, requests[index - 3])
            requests += windowed.read(peer)
            assert windowed.is_quiet(peer)
        windowed.answer(peer, *requests[3:])
        finish(peer)
        return [request.message_id for request in requests]

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 5, road)
        results = brief(assoc.send_c_store_many(windowed.numbered(6)))
        assoc.release()
    assert results == [(uid(number), 0) for number in range(1, 7)]
    assert len(set(acceptor.results[0])) == 6


@pytest.mark.parametrize("window", [1, 2])
def test_no_busy_waiting_with_several_in_flight(
    pair: kit.World, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """The peer needs the processor more than we need its answer early."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    seen = []

    def store(event: evt.Event) -> int:
        seen.append(bool(assoc.dul.connection.busy_wait))
        return 0

    server = pair.serve(
        windowed.CTX, [(evt.EVT_C_STORE, store)], attributes={"async_window": window}
    )
    assoc: Any = connect(pair, server, window)
    for _ in range(2):
        assert assoc.send_c_store(data.image(1)).Status == 0
        assert len(list(assoc.send_c_store_many(windowed.numbered(3)))) == 3
    assert seen == [True, *[window == 1] * 3] * 2
    assert assoc.dul.connection.busy_wait
    assoc.release()


@pytest.mark.parametrize("window", [1, 2])
def test_a_smaller_window(pair: kit.World, window: int) -> None:
    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        for _ in range(3):
            requests = windowed.read(peer, window)
            assert windowed.is_quiet(peer)
            windowed.answer(peer, *requests)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        assert (
            len(list(assoc.send_c_store_many(windowed.numbered(3 * window), window))) == 3 * window
        )
        assoc.release()


def test_a_larger_window_is_not_used(pair: kit.World) -> None:
    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, None)
        for _ in range(3):
            requests = windowed.read(peer)
            assert windowed.is_quiet(peer)
            windowed.answer(peer, *requests)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        assert len(list(assoc.send_c_store_many(windowed.numbered(3), 9))) == 3
        assoc.release()


def test_out_of_order(pair: kit.World, road: Any) -> None:
    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        one, two, three, four = windowed.read(peer, 4)
        windowed.answer(peer, three)
        windowed.answer(peer, one, status=0xB000)
        windowed.answer(peer, four, status=0xA700)
        windowed.answer(peer, two)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        results = list(assoc.send_c_store_many(windowed.numbered(4)))
        assoc.release()
    assert brief(results) == [(uid(3), 0), (uid(1), 0xB000), (uid(4), 0xA700), (uid(2), 0)]


def test_what_else_a_response_says(pair: kit.World, road: Any) -> None:
    """The status is the one that `send_c_store` would return, comment included."""

    def respond(peer: raw.Peer, request: windowed.Request) -> None:
        elements = {
            0x0002: data.CT,
            0x0100: 0x8001,
            0x0120: request.message_id,
            0x0800: 0x0101,
            0x0900: 0xA900,
            0x0902: "not mine",
            0x1000: request.instance,
        }
        peer.send(raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.command(elements))))

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        for _ in range(2):
            respond(peer, *windowed.read(peer))
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        plain = assoc.send_c_store(data.image(1))
        (result,) = assoc.send_c_store_many([data.image(2)])
        assoc.release()
    assert kit.status_of(result.status) == kit.status_of(plain)
    assert result.status.ErrorComment == "not mine"


def test_message_ids_wrap(pair: kit.World) -> None:
    """65535 is followed by 1, unless that one is still in flight."""

    def script(peer: raw.Peer) -> list[int]:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 3)
        windowed.answer(peer, *requests[:2])
        requests += windowed.read(peer, 2)
        windowed.answer(peer, *requests[2:])
        finish(peer)
        return [request.message_id for request in requests]

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        assoc._requests_sent = 65533
        assert len(list(assoc.send_c_store_many(windowed.numbered(5)))) == 5
        assoc.release()
    assert acceptor.results == [[65534, 65535, 1, 2, 3]]


def test_items_are_not_read_ahead(pair: kit.World) -> None:
    """An item is asked for when it can be sent."""
    asked: list[int] = []

    def items() -> Iterator[Dataset]:
        for number in itertools.count(1):
            asked.append(number)
            yield data.image(number)

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 3)
        windowed.answer(peer, *requests)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        results = assoc.send_c_store_many(items())
        assert asked == []
        assert next(results).sop_instance_uid == uid(1)
        assert asked == [1, 2, 3]
        results.close()
        assoc.release()
    assert asked == [1, 2, 3]


def test_no_items(pair: kit.World) -> None:
    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        assert list(assoc.send_c_store_many([])) == []
        assoc.release()


# ------------------------------------------------------------------------------------------ items that cannot be sent


def answering(peer: raw.Peer, window: int | None = 4) -> int:
    """Answer everything until the release; how many there were."""
    windowed.accept(peer, window)
    count = 0
    while True:
        got = peer.read()
        assert got is not None
        if got[0] == raw.RELEASE_RQ:
            peer.send(raw.RELEASE_RP_PDU)
            return count
        # (command set and data set each in one PDU)
        elements = raw.decode(got[1][6:])
        assert peer.read() is not None
        windowed.answer(peer, windowed.Request(elements, b""))
        count += 1


def test_bad_items_do_not_keep_the_others(
    pair: kit.World, files: data.Files, road: Any, tmp_path: Path
) -> None:
    """The errors are those of `send_c_store`."""
    no_context = data.image(30, sop_class=data.MR)
    no_class = data.image(31)
    del no_class.SOPClassUID
    bad: list[Any] = [
        tmp_path / "missing.dcm",
        files.not_dicom(),
        files.empty(),
        tmp_path,
        no_context,
        no_class,
        None,
        17,
    ]
    items: list[Any] = []
    for number, item in enumerate(bad, 1):
        items += [data.image(number), item]
    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        results = list(assoc.send_c_store_many(items))
        expected = [kit.outcome(lambda item=item: assoc.send_c_store(item)) for item in bad]
        assoc.release()
    assert acceptor.results == [len(bad)]
    assert len(results) == len(items)
    good = [result for result in results if result.error is None]
    assert brief(good) == [(uid(number), 0) for number in range(1, len(bad) + 1)]
    failed = [result for result in results if result.error is not None]
    assert [result.item for result in failed] == bad
    assert [(type(result.error).__name__, str(result.error)) for result in failed] == expected
    assert all(result.message_id is None and not result.is_answered for result in failed)
    assert failed[4].sop_instance_uid == uid(30)
    assert failed[0].sop_instance_uid is None


def test_items_that_raise(pair: kit.World) -> None:
    """What is in flight has its results first."""

    def items() -> Iterator[Dataset]:
        yield data.image(1)
        yield data.image(2)
        raise LookupError("no third")

    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address)
        found = []
        with pytest.raises(LookupError, match="no third"):
            for result in assoc.send_c_store_many(items()):
                found.append(result)
        assert brief(found) == [(uid(1), 0), (uid(2), 0)]
        assert assoc.send_c_store(data.image(3)).Status == 0
        assoc.release()


def test_arguments(pair: kit.World) -> None:
    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address)
        for single in ("x.dcm", Path("x.dcm"), b"x", data.image(1), 3, None):
            with pytest.raises(TypeError):
                assoc.send_c_store_many(single)
        for window in ("2", 2.0, True):
            with pytest.raises(TypeError, match="window must be an int"):
                assoc.send_c_store_many([], window)
        for window in (0, -1):
            with pytest.raises(ValueError, match="window must be at least 1"):
                assoc.send_c_store_many([], window)
        # These are refused where they are used, like by send_c_store
        (result,) = assoc.send_c_store_many([data.image(1)], priority=7)
        assert isinstance(result.error, ValueError)
        (result,) = assoc.send_c_store_many([data.image(1)], originator_aet="A", originator_id=5)
        assert result.status.Status == 0
        assoc.release()
    with pytest.raises(RuntimeError, match="must be established"):
        assoc.send_c_store_many([])


# ------------------------------------------------------------------------------------------------ odd and bad peers


def test_answers_twice(pair: kit.World, road: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The second answer to a request is nobody's, also when others are in flight."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 2)
        one, two = windowed.read(peer, 2)
        windowed.answer(peer, one, one)
        (three,) = windowed.read(peer)
        windowed.answer(peer, one, two, three)
        finish(peer)

    with raw.Acceptor(script) as acceptor, caplog.at_level(logging.WARNING, "pynetdicom"):
        assoc = connect(pair, acceptor.address, 2, road)
        results = brief(assoc.send_c_store_many(windowed.numbered(3)))
        assoc.release()
    assert results == [(uid(1), 0), (uid(2), 0), (uid(3), 0)]
    assert caplog.text.count("Ignoring another response to the C-STORE request 1") == 2


def test_answers_what_was_not_asked(pair: kit.World, road: Any) -> None:
    """Nobody knows what such a peer has stored: the association ends, and nothing counts as acknowledged."""

    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 3)
        one, _two, _three = windowed.read(peer, 3)
        windowed.answer(peer, one)
        windowed.read(peer)
        peer.send(windowed.store_rsp(999))
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3, road)
        results = list(assoc.send_c_store_many(windowed.numbered(6)))
        kit.until(lambda: assoc.is_aborted)
    assert acceptor.results == [(0, 0)]
    assert brief(results[:4]) == [(uid(1), 0), (uid(2), None), (uid(3), None), (uid(4), None)]
    assert uids(results[4:]) == [uid(5), uid(6)]
    assert all(isinstance(result.error, RuntimeError) for result in results[4:])


def test_one_at_a_time_with_odd_ids(pair: kit.World, caplog: pytest.LogCaptureFixture) -> None:
    """With one in flight the answer can only be for that one: pynetdicom does not even look."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, None)
        for _ in range(3):
            windowed.read(peer)
            peer.send(windowed.store_rsp(4711))
        finish(peer)

    with raw.Acceptor(script) as acceptor, caplog.at_level(logging.WARNING, "pynetdicom"):
        assoc = connect(pair, acceptor.address)
        results = brief(assoc.send_c_store_many(windowed.numbered(3)))
        assoc.release()
    assert results == [(uid(1), 0), (uid(2), 0), (uid(3), 0)]
    assert "Received a response to the C-STORE request 4711 instead of 1" in caplog.text


@pytest.mark.parametrize("end", ["abort", "close", "reset"])
def test_the_peer_ends_it(pair: kit.World, road: Any, end: str) -> None:
    """What was acknowledged before the end is, what was sent is not, the rest was not sent."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        _one, two, _three, _four = windowed.read(peer, 4)
        windowed.answer(peer, two)
        windowed.read(peer)
        if end == "abort":
            peer.send(raw.ABORT_PDU)
        elif end == "reset":
            peer.reset()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        results = list(assoc.send_c_store_many(windowed.numbered(7)))
    assert brief(results[:5]) == [(uid(n), 0 if n == 2 else None) for n in (2, 1, 3, 4, 5)]
    assert uids(results[5:]) == [uid(6), uid(7)]
    assert all(isinstance(result.error, RuntimeError) for result in results[5:])
    kit.until(lambda: assoc.is_aborted)


@pytest.mark.parametrize("end", ["abort", "close"])
def test_acknowledged_while_a_write_fails(
    pair: kit.World, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The peer answers and goes away in the middle of our next request: its answers are there, and count."""
    # Nobody else reads while we write
    monkeypatch.setattr("fastpdu.direct.LEASE", 5.0)

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 50)
        requests = windowed.read(peer, 2)
        peer.exactly(200_000)
        windowed.answer(peer, *requests)
        if end == "abort":
            peer.send(raw.ABORT_PDU)
        peer.close()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 50)
        items = [data.image(1), data.image(2), data.image(3, 20_000_000), data.image(4)]
        results = list(assoc.send_c_store_many(items))
    assert brief(results[:3]) == [(uid(1), 0), (uid(2), 0), (uid(3), None)]
    assert isinstance(results[3].error, RuntimeError)
    kit.until(lambda: assoc.is_aborted)


def test_no_answer(pair: kit.World, road: Any) -> None:
    """The DIMSE timeout ends the association."""

    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 3)
        windowed.answer(peer, requests[1])
        windowed.read(peer)
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3, road, attributes={"dimse_timeout": 0.3})
        results = list(assoc.send_c_store_many(windowed.numbered(5)))
    assert acceptor.results == [(0, 0)]
    assert brief(results[:4]) == [(uid(2), 0), (uid(1), None), (uid(3), None), (uid(4), None)]
    assert isinstance(results[4].error, RuntimeError)
    assert len(results) == 5


def test_an_invalid_response(pair: kit.World, road: Any) -> None:
    """Without a status it is no response: pynetdicom aborts."""

    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 2)
        elements = {0x0002: data.CT, 0x0100: 0x8001, 0x0120: requests[0].message_id, 0x0800: 0x0101}
        peer.send(raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.command(elements))))
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3, road)
        results = list(assoc.send_c_store_many(windowed.numbered(2)))
    assert brief(results) == [(uid(1), None), (uid(2), None)]
    assert acceptor.results == [(0, 0)]


def test_a_response_of_another_kind(pair: kit.World, road: Any) -> None:
    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 3)
        windowed.read(peer, 2)
        peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rsp(1))))
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3, road)
        results = list(assoc.send_c_store_many(windowed.numbered(2)))
    assert brief(results) == [(uid(1), None), (uid(2), None)]
    assert acceptor.results == [(0, 0)]


def test_answers_while_we_write(pair: kit.World) -> None:
    """The peer reads nothing until we have taken its answers, which do not fit into the buffers: no deadlock."""
    count, first = 160, 80

    def respond(peer: raw.Peer, request: windowed.Request) -> None:
        elements = {
            0x0002: data.CT,
            0x0100: 0x8001,
            0x0120: request.message_id,
            0x0800: 0x0101,
            0x0900: 0xA900,
            0x0902: "x" * 64,
            0x1000: request.instance,
        }
        peer.send(raw.p_data(raw.pdv(3, raw.LAST_COMMAND, raw.command(elements))))

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, count)
        peer.sock.setsockopt(raw.socket.SOL_SOCKET, raw.socket.SO_SNDBUF, 1)
        requests = windowed.read(peer, first)
        # We write the others by now, which are more than the buffers hold
        for request in requests:
            respond(peer, request)
        for request in windowed.read(peer, count - first):
            respond(peer, request)
        finish(peer)

    options = fastpdu.TransportOptions(receive_buffer=1, send_buffer=1)
    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, count, transport=options)
        results = list(assoc.send_c_store_many(windowed.numbered(count, 20_000)))
        assoc.release()
    assert brief(results) == [(uid(number), 0xA900) for number in range(1, count + 1)]


def test_messages_do_not_pile_up_on_the_watched_road(pair: kit.World) -> None:
    """While the peer reads nothing, one is being written, and no other one is made."""
    made: list[int] = []
    read_on = threading.Event()

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        assert read_on.wait(kit.DEADLINE)
        for _ in range(4):
            windowed.answer(peer, *windowed.read(peer))
        finish(peer)

    def items() -> Iterator[Dataset]:
        for number in range(1, 5):
            made.append(number)
            yield data.image(number, 2_000_000)

    def watch() -> None:
        kit.until(lambda: len(made) >= 2)
        threading.Event().wait(0.3)
        most.append(len(made))
        read_on.set()

    most: list[int] = []
    watcher = threading.Thread(target=watch, name="watcher")
    with raw.Acceptor(script) as acceptor:
        options = fastpdu.TransportOptions(send_buffer=65536)
        assoc = connect(pair, acceptor.address, 4, WATCHED, transport=options)
        watcher.start()
        results = brief(assoc.send_c_store_many(items()))
        assoc.release()
    watcher.join(kit.DEADLINE)
    assert results == [(uid(number), 0) for number in range(1, 5)]
    assert most == [2]


# --------------------------------------------------------------------------------------------- other operations between


def test_other_operations_between(pair: kit.World, road: Any) -> None:
    """They wait for the answers that are due, and get their own; the results are not lost."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        one, two, three = windowed.read(peer, 3)
        windowed.answer(peer, one)
        # Now an echo is due, but not before these are answered
        assert windowed.is_quiet(peer)
        windowed.answer(peer, three, two)
        _context, elements, _ = peer.message()
        assert elements[0x0100] == b"\x30\x00"
        number = int.from_bytes(elements[0x0110], "little")
        peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rsp(number))))
        windowed.answer(peer, *windowed.read(peer, 2))
        finish(peer)

    contexts = [(data.VERIFICATION, data.IMPLICIT), *windowed.CTX]
    with raw.Acceptor(script) as acceptor:
        assoc = pair.connect(acceptor.address, contexts, road, async_window=3)
        results = assoc.send_c_store_many(windowed.numbered(5))
        found = [next(results)]
        assert assoc.send_c_echo().Status == 0
        found += results
        assoc.release()
    assert brief(found) == [(uid(number), 0) for number in (1, 3, 2, 4, 5)]


def test_answers_that_come_between_two_results(
    pair: kit.World, road: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The association's own thread takes them, also just before our thread takes the association."""
    pause = Pipeline._pause_reactor

    def is_answered(pipeline: Pipeline) -> bool:
        return not pipeline._in_flight or bool(assoc.is_aborted)

    def late(pipeline: Pipeline) -> None:
        pipelines.append(pipeline)
        kit.until(lambda: is_answered(pipeline))
        pause(pipeline)

    def answer_all(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        for _ in range(6):
            windowed.answer(peer, *windowed.read(peer))
        finish(peer)

    monkeypatch.setattr(Pipeline, "_pause_reactor", late)
    pipelines: list[Pipeline] = []
    found = []
    with raw.Acceptor(answer_all) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        for result in assoc.send_c_store_many(windowed.numbered(6)):
            found.append(result)
            kit.until(lambda: is_answered(pipelines[0]))
        assoc.release()
    assert brief(found) == [(uid(number), 0) for number in range(1, 7)]


def test_two_at_a_time(pair: kit.World) -> None:
    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address)
        one = assoc.send_c_store_many(windowed.numbered(6))
        two = assoc.send_c_store_many([data.image(number) for number in range(7, 13)])
        found = [result for both in zip(one, two, strict=True) for result in both]
        assoc.release()
    assert sorted(map(str, uids(found))) == sorted(uid(number) for number in range(1, 13))
    assert all(result.status.Status == 0 for result in found)


def test_operations_in_the_iterator(pair: kit.World) -> None:
    """Making an item may take an operation of the same association."""
    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address)

        def items() -> Iterator[Dataset]:
            for number in range(1, 6):
                assert assoc.send_c_store(data.image(number + 10)).Status == 0
                yield data.image(number)

        results = brief(assoc.send_c_store_many(items()))
        assoc.release()
    assert results == [(uid(number), 0) for number in range(1, 6)]
    assert acceptor.results == [10]


@pytest.mark.parametrize("last", ["store", "release", "abort", "nothing"])
def test_not_used_to_its_end(pair: kit.World, road: Any, last: str) -> None:
    """Nothing more is sent; the next operation waits for what is in flight, and gets its own answer."""
    go_on = threading.Event()

    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 4)
        one, two, three, four = windowed.read(peer, 4)
        windowed.answer(peer, one)
        assert go_on.wait(kit.DEADLINE)
        if last == "abort":
            return peer.abort_code()
        windowed.answer(peer, four, three)
        assert windowed.is_quiet(peer)
        windowed.answer(peer, two)
        if last == "store":
            windowed.answer(peer, *windowed.read(peer), status=0xB000)
        return finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 4, road)
        for result in assoc.send_c_store_many(windowed.numbered(9)):
            assert result.sop_instance_uid == uid(1)
            break
        go_on.set()
        if last == "store":
            assert assoc.send_c_store(data.image(20)).Status == 0xB000
        elif last == "abort":
            assoc.abort()
            assert assoc.is_aborted
        elif last == "nothing":
            # The association's own thread takes the answers
            kit.until(lambda: assoc._pipeline is None)
        assoc.release()
    assert assoc.is_released == (last != "abort")


def test_released_in_the_loop(pair: kit.World) -> None:
    """A release waits for what is in flight; what comes after it is not sent, and says so."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        one, two, three = windowed.read(peer, 3)
        windowed.answer(peer, one)
        assert windowed.is_quiet(peer)
        windowed.answer(peer, two, three)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3)
        results = assoc.send_c_store_many(windowed.numbered(5))
        found = [next(results)]
        assoc.release()
        assert assoc.is_released
        found += results
    assert brief(found[:3]) == [(uid(1), 0), (uid(2), 0), (uid(3), 0)]
    assert uids(found[3:]) == [uid(4), uid(5)]
    assert all(isinstance(result.error, RuntimeError) for result in found[3:])


def test_aborted_by_another_thread(pair: kit.World, road: Any) -> None:
    """While an answer is waited for."""
    waiting = threading.Event()

    def script(peer: raw.Peer) -> Any:
        windowed.accept(peer, 3)
        windowed.read(peer, 3)
        waiting.set()
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address, 3, road)

        def abort() -> None:
            assert waiting.wait(kit.DEADLINE)
            assoc.abort()

        thread = threading.Thread(target=abort, name="user abort")
        thread.start()
        results = list(assoc.send_c_store_many(windowed.numbered(4)))
        thread.join(kit.DEADLINE)
    assert acceptor.results == [(0, 0)]
    assert brief(results[:3]) == [(uid(1), None), (uid(2), None), (uid(3), None)]
    assert isinstance(results[3].error, RuntimeError)


def test_the_peer_asks_something_meanwhile(pair: kit.World, road: Any) -> None:
    """Its request is served while answers are due."""
    asked: list[Any] = []

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 3)
        requests = windowed.read(peer, 3)
        peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, raw.echo_rq(77))))
        _context, elements, _ = peer.message()
        assert elements[0x0100] == b"\x30\x80"
        windowed.answer(peer, *requests)
        finish(peer)

    def echo(event: evt.Event) -> int:
        asked.append(event.request.MessageID)
        return 0

    contexts = [(data.VERIFICATION, data.IMPLICIT), *windowed.CTX]
    handlers = [*road, (evt.EVT_C_ECHO, echo)]
    with raw.Acceptor(script) as acceptor:
        assoc = pair.connect(acceptor.address, contexts, handlers, async_window=3)
        results = brief(assoc.send_c_store_many(windowed.numbered(3)))
        assoc.release()
    assert results == [(uid(1), 0), (uid(2), 0), (uid(3), 0)]
    assert asked == [77]


def test_replaced_provider_methods(pair: kit.World) -> None:
    """Who replaces what sends messages sees each, one at a time."""
    sent: list[Any] = []

    with raw.Acceptor(answering) as acceptor:
        assoc = connect(pair, acceptor.address)
        original = assoc.dimse.send_msg

        def send_msg(primitive: Any, context_id: int) -> None:
            sent.append(primitive.AffectedSOPInstanceUID)
            original(primitive, context_id)

        assoc.dimse.send_msg = send_msg
        results = brief(assoc.send_c_store_many(windowed.numbered(3)))
        assoc.release()
    assert results == [(uid(1), 0), (uid(2), 0), (uid(3), 0)]
    assert sent == [uid(1), uid(2), uid(3)]


def test_handlers_bound_in_the_middle(pair: kit.World) -> None:
    """The road may change while requests are in flight."""

    def script(peer: raw.Peer) -> None:
        windowed.accept(peer, 4)
        requests = windowed.read(peer, 4)
        for _ in range(8):
            windowed.answer(peer, requests.pop(0))
            requests += windowed.read(peer)
        windowed.answer(peer, *requests)
        finish(peer)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(pair, acceptor.address)
        found = []
        for result in assoc.send_c_store_many(windowed.numbered(12)):
            found.append(result)
            if len(found) == 3:
                assoc.bind(*WATCHED[0])
            if len(found) == 6:
                assoc.unbind(*WATCHED[0])
        assoc.release()
    assert brief(found) == [(uid(number), 0) for number in range(1, 13)]
