"""`assoc.transport_stats()`: on every road, at any time, after every end."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from helpers import data, kit, raw
from pynetdicom import build_role, evt

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

PAUSE = 0.06  # seconds: more than a suspected stall
CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]
RAW_CTX = [(abstract, transfer) for _, abstract, transfer in raw.CONTEXTS]
# (what each end listens to, so that it takes pynetdicom's own road)
ROADS = {"fast": [], "watched": [(evt.EVT_DATA_RECV, lambda event: None)]}


def pause() -> None:
    threading.Event().wait(PAUSE)


def slow(event: evt.Event) -> int:
    pause()
    return 0


def services(store: Any = lambda event: 0, echo: Any = lambda event: 0) -> list[Any]:
    return [(evt.EVT_C_STORE, store), (evt.EVT_C_ECHO, echo)]


@pytest.fixture
def pair() -> Iterator[kit.World]:
    """Two fast ends."""
    with kit.world_of("fast", "fast") as made:
        yield made


def final(assoc: Any) -> Any:
    """The figures of an association once its provider has ended."""
    kit.until(lambda: assoc.dul.is_over, what="the end of the provider")
    return assoc.transport_stats()


def settled(stats: Any) -> dict[str, Any]:
    """What two readings of an association have in common when nothing is moved in between."""
    return {
        name: value
        for name, value in stats.as_dict().items()
        if name not in ("tcp", "duration_seconds", "receive_calls")
    }


# --------------------------------------------------------------------------------------------------- what is moved


@pytest.mark.parametrize("road", ROADS)
def test_both_ends_agree(pair: kit.World, road: str) -> None:
    """On the watched road too the bytes are those that the events showed."""
    seen: dict[str, int] = {"sent": 0, "received": 0}
    listeners: list[Any] = []
    if road == "watched":

        def count(event: evt.Event) -> None:
            seen["sent" if event.event is evt.EVT_DATA_SENT else "received"] += len(event.data)

        listeners = [(evt.EVT_DATA_SENT, count), (evt.EVT_DATA_RECV, count)]
    server = pair.serve(CTX, [*services(), *ROADS[road]], attributes={"maximum_pdu_size": 4096})
    assoc = pair.connect(server, CTX, listeners, max_pdu=8192)
    acceptor = server.one()
    for number in (1, 2, 3):
        assert assoc.send_c_store(data.image(number, 50_000)).Status == 0
    assert assoc.send_c_echo().Status == 0
    live = assoc.transport_stats()
    assert live.messages_sent == live.messages_received == 4
    assert live.duration_seconds > 0
    assoc.release()
    mine, theirs = final(assoc), final(acceptor)
    assert mine.bytes_sent == theirs.bytes_received > 150_000
    assert mine.bytes_received == theirs.bytes_sent > 0
    assert mine.pdus_sent == theirs.pdus_received > live.pdus_sent
    assert mine.pdus_received == theirs.pdus_sent
    assert mine.messages_sent == theirs.messages_received == 4
    assert mine.messages_received == theirs.messages_sent == 4
    stock = 4 if road == "watched" else 0
    assert mine.stock_messages_sent == mine.stock_messages_received == stock
    assert theirs.stock_messages_sent == theirs.stock_messages_received == stock
    assert mine.largest_pdu_sent == theirs.largest_pdu_received == 4096
    assert mine.maximum_length_local == theirs.maximum_length_peer == 8192
    assert mine.maximum_length_peer == theirs.maximum_length_local == 4096
    assert mine.send_calls > 0
    assert mine.receive_calls > 0
    assert theirs.handler_seconds > 0
    assert mine.handler_seconds == 0
    if road == "watched":
        assert (mine.bytes_sent, mine.bytes_received) == (seen["sent"], seen["received"])
    assert assoc.transport_stats() == mine


def test_a_watched_end_and_one_that_is_not(pair: kit.World) -> None:
    server = pair.serve(CTX, services())
    assoc = pair.connect(server, CTX, ROADS["watched"])
    acceptor = server.one()
    assert assoc.send_c_store(data.image(1, 50_000)).Status == 0
    assoc.release()
    mine, theirs = final(assoc), final(acceptor)
    assert (mine.messages_sent, mine.stock_messages_sent) == (1, 1)
    assert (theirs.messages_received, theirs.stock_messages_received) == (1, 0)
    assert mine.bytes_sent == theirs.bytes_received


def test_never_connected(pair: kit.World) -> None:
    import fastpdu

    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    assoc: Any = pair.connect(address, CTX, established=False)
    stats = assoc.transport_stats()
    assert stats == fastpdu.TransportStats(
        maximum_length_local=stats.maximum_length_local, maximum_length_peer=None
    )
    assert assoc.transport_stats() == stats


def test_rejected(pair: kit.World) -> None:
    server = pair.serve(CTX, services(), attributes={"require_called_aet": True})
    assoc: Any = pair.connect(server, CTX, established=False)
    assert assoc.is_rejected
    stats = final(assoc)
    assert stats.pdus_sent == stats.pdus_received == 1
    assert stats.largest_pdu_received == 4
    assert stats.messages_sent == 0


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO as Linux has it")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_kernels_figures(pair: kit.World, tls: bool) -> None:
    """Live, and after the end."""
    server_options: dict[str, Any] = {}
    client_options: dict[str, Any] = {}
    if tls:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        server_options["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(server_options["ssl_context"])
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(client)
        client_options["tls_args"] = (client, "localhost")
    server = pair.serve(CTX, services(), **server_options)
    assoc: Any = pair.connect(server, CTX, **client_options)
    acceptor = server.one()
    assert assoc.send_c_store(data.image(1, 300_000)).Status == 0
    live = assoc.transport_stats()
    assert live.tcp.state == 1
    assoc.release()
    mine, theirs = final(assoc), final(acceptor)
    for info in (live.tcp, mine.tcp, theirs.tcp):
        assert info.rtt_us > 0
        assert info.snd_mss > 0
        assert info.cwnd > 0
        assert info.retransmits is not None
    assert mine.tcp.state != 1
    assert mine.bytes_sent == theirs.bytes_received > 300_000
    assert mine.messages_sent == theirs.messages_received == 1


# -------------------------------------------------------------------------------------------- waits and handlers


@pytest.mark.parametrize("road", ROADS)
def test_a_slow_handler(pair: kit.World, road: str) -> None:
    """Who waits for the answer counts a suspected stall, who serves counts the time of the handler."""
    server = pair.serve(CTX, [*services(echo=slow), *ROADS[road]])
    assoc: Any = pair.connect(server, CTX, ROADS[road])
    acceptor: Any = server.one()
    before = assoc.transport_stats()
    for _ in range(2):
        assert assoc.send_c_echo().Status == 0
    mine = assoc.transport_stats()
    assert mine.peer_stalls == before.peer_stalls + 2
    assert mine.peer_wait_seconds >= 2 * 0.03
    assert 0.03 <= mine.longest_peer_wait_seconds <= mine.peer_wait_seconds
    assert mine.send_stalls == 0
    assoc.release()
    theirs = final(acceptor)
    assert theirs.handler_seconds >= 2 * PAUSE
    assert theirs.peer_stalls == 0
    assert theirs.peer_wait_seconds == 0


@pytest.mark.parametrize("road", ROADS)
def test_idle_time_is_not_waiting(pair: kit.World, road: str) -> None:
    server = pair.serve(CTX, [*services(), *ROADS[road]])
    assoc: Any = pair.connect(server, CTX, ROADS[road])
    acceptor: Any = server.one()
    assert assoc.send_c_echo().Status == 0
    before = assoc.transport_stats()
    pause()
    assert assoc.transport_stats().duration_seconds >= before.duration_seconds + PAUSE
    assoc.dul.rouse()  # no wait is under way that would count only when it ends
    pause()
    after = assoc.transport_stats()
    assert after.peer_stalls == before.peer_stalls
    if road == "fast":
        assert settled(after) == settled(before)
    assert assoc.send_c_echo().Status == 0
    assert acceptor.transport_stats().peer_wait_seconds == 0


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("where", ["between", "in the data set"])
def test_a_peer_that_pauses_inside_a_message(pair: kit.World, road: str, where: str) -> None:
    """As one that writes header and body separately, with Nagle's algorithm on."""
    server = pair.serve(RAW_CTX, [*services(), *ROADS[road]])
    with raw.dial(server.address) as peer:
        peer.associate()
        acceptor: Any = server.one()
        whole = raw.store()
        cut = len(whole) - len(raw.DATASET) - (12 if where == "between" else 0)
        before = acceptor.transport_stats().bytes_received
        peer.send(whole[:cut])
        kit.until(lambda: acceptor.transport_stats().bytes_received == before + cut)
        pause()
        peer.send(whole[cut:])
        peer.message()
        stats = acceptor.transport_stats()
        assert stats.peer_stalls == 1
        assert stats.peer_wait_seconds >= 0.03
        assert stats.messages_received == 1
        peer.release()


def test_a_peer_that_does_not_read(pair: kit.World) -> None:
    """The send buffer is full, and stays so for a while."""
    started = threading.Event()

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        started.wait(kit.DEADLINE)
        pause()
        pause()
        _, elements, got = peer.message()
        peer.send(
            raw.p_data(
                raw.pdv(
                    3,
                    raw.LAST_COMMAND,
                    raw.command(
                        {
                            0x0002: data.CT,
                            0x0100: 0x8001,
                            0x0120: int.from_bytes(elements[0x0110], "little"),
                            0x0800: 0x0101,
                            0x0900: 0,
                            0x1000: elements[0x1000].rstrip(b"\0").decode(),
                        }
                    ),
                )
            )
        )
        peer.expect(raw.RELEASE_RQ)
        peer.send(raw.RELEASE_RP_PDU)
        return len(got)

    image = data.image(1, 30_000_000)
    with raw.Acceptor(script) as acceptor:
        assoc: Any = pair.connect(acceptor.address, RAW_CTX)
        started.set()
        assert assoc.send_c_store(image).Status == 0
        stats = assoc.transport_stats()
        assoc.release()
    assert stats.send_stalls >= 1
    assert stats.send_blocked_seconds >= stats.longest_send_wait_seconds >= 0.03


def test_a_slow_release(pair: kit.World) -> None:
    """The answer to an A-RELEASE-RQ is awaited as well."""

    def script(peer: raw.Peer) -> None:
        raw.accept(peer)
        peer.expect(raw.RELEASE_RQ)
        pause()
        peer.send(raw.RELEASE_RP_PDU)

    with raw.Acceptor(script) as acceptor:
        assoc: Any = pair.connect(acceptor.address, RAW_CTX)
        before = assoc.transport_stats()
        assoc.release()
    stats = final(assoc)
    assert stats.peer_stalls == before.peer_stalls + 1
    assert stats.peer_wait_seconds >= before.peer_wait_seconds + 0.03


def test_sub_operations_of_a_c_get(pair: kit.World) -> None:
    """The requestor serves them while it waits for its response."""

    def get(event: evt.Event) -> Any:
        yield 1
        yield 0xFF00, data.image(1, 1000)

    contexts = [*CTX, (data.STUDY_GET, data.EXPLICIT)]
    server = pair.serve(contexts, [(evt.EVT_C_GET, get)], roles=True)
    assoc: Any = pair.connect(
        server,
        contexts,
        services(store=slow),
        ext_neg=[build_role(data.CT, scu_role=True, scp_role=True)],
    )
    responses = list(assoc.send_c_get(data.query(QueryRetrieveLevel="STUDY"), data.STUDY_GET))
    assert responses[-1][0].Status == 0
    assert assoc.transport_stats().handler_seconds >= PAUSE


def test_read_by_the_handler_itself(pair: kit.World) -> None:
    """What is still running counts."""
    seen: list[float] = []

    def store(event: evt.Event) -> int:
        pause()
        seen.append(event.assoc.transport_stats().handler_seconds)  # type: ignore[attr-defined]
        return 0

    server = pair.serve(CTX, services(store=store))
    assoc = pair.connect(server, CTX)
    assert assoc.send_c_store(data.image()).Status == 0
    assert len(seen) == 1
    assert seen[0] >= PAUSE


# -------------------------------------------------------------------------------------------------- after the end

ENDS = [evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE]


class AtTheEnd:
    """Reads the figures of an association in the handlers of its end."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, event: evt.Event) -> None:
        self.seen[event.event.name] = event.assoc.transport_stats()  # type: ignore[attr-defined]

    @property
    def handlers(self) -> list[Any]:
        return [(event, self) for event in ENDS]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("end", ["release", "abort", "abort by the acceptor"])
def test_handlers_of_the_end(pair: kit.World, road: str, end: str) -> None:
    """They get what is got later."""
    here, there = AtTheEnd(), AtTheEnd()
    server = pair.serve(CTX, [*services(), *there.handlers, *ROADS[road]])
    assoc: Any = pair.connect(server, CTX, [*here.handlers, *ROADS[road]])
    acceptor: Any = server.one()
    assert assoc.send_c_store(data.image(1, 50_000)).Status == 0
    {"release": assoc.release, "abort": assoc.abort}.get(end, acceptor.abort)()
    server.quiet()
    kit.until(lambda: not assoc.is_alive(), what="the end of the requestor")
    name = "EVT_RELEASED" if end == "release" else "EVT_ABORTED"
    for one, watcher in ((assoc, here), (acceptor, there)):
        last = final(one)
        assert last.messages_sent == last.messages_received == 1
        assert last.duration_seconds > 0
        assert (last.tcp is not None) == (sys.platform == "linux")
        assert set(watcher.seen) == {name, "EVT_CONN_CLOSE"}
        for seen in watcher.seen.values():
            assert seen.messages_sent == seen.messages_received == 1
            # pynetdicom reports an end of our own making before the last PDU (of 10 bytes) has left
            assert last.bytes_sent - seen.bytes_sent in (0, 10)
            assert last.bytes_received - seen.bytes_received in (0, 10)
            assert (seen.tcp is not None) == (sys.platform == "linux")
        closing = watcher.seen["EVT_CONN_CLOSE"]
        assert closing.bytes_sent == last.bytes_sent
        assert closing.bytes_received == last.bytes_received


def test_after_a_reset(pair: kit.World) -> None:
    server = pair.serve(RAW_CTX, services())
    with raw.dial(server.address) as peer:
        peer.associate()
        acceptor: Any = server.one()
        peer.echo()
        peer.reset()
    server.quiet()
    stats = final(acceptor)
    assert stats.messages_sent == stats.messages_received == 1
    assert (stats.tcp is not None) == (sys.platform == "linux")


# ---------------------------------------------------------------------------------------------------- the log line


def run(pair: kit.World, end: str) -> tuple[Any, Any]:
    """An association from its beginning to its end."""
    server = pair.serve(CTX, services())
    assoc: Any = pair.connect(server, CTX, ae_title="MY SCP")
    acceptor: Any = server.one()
    assert assoc.send_c_store(data.image()).Status == 0
    getattr(assoc, end)()
    server.quiet()
    kit.until(lambda: not (assoc.is_alive() or acceptor.is_alive()), what="the end of the threads")
    return final(assoc), final(acceptor)


@pytest.mark.parametrize(("end", "outcome"), [("release", "released"), ("abort", "aborted")])
def test_one_line_per_association(
    pair: kit.World, caplog: pytest.LogCaptureFixture, end: str, outcome: str
) -> None:
    with caplog.at_level(logging.INFO, logger="fastpdu.stats"):
        mine, theirs = run(pair, end)
    lines = [record.getMessage() for record in caplog.records if record.name == "fastpdu.stats"]
    assert len(lines) == 2
    found = {}
    for line in lines:
        word, *fields = shlex.split(line)
        assert word == "association"
        values = dict(field.split("=", 1) for field in fields)
        found[values["role"]] = values
    for role, stats in (("requestor", mine), ("acceptor", theirs)):
        values = found[role]
        assert values["outcome"] == outcome
        assert values["address"] == "127.0.0.1"
        assert values["port"].isdigit()
        for name, value in dataclasses.asdict(stats).items():
            if isinstance(value, int):
                assert values[name] == str(value)
        assert re.fullmatch(r"\d+\.\d{6}", values["peer_wait_seconds"])
    assert found["requestor"]["peer"] == "MY SCP"
    assert found["acceptor"]["peer"] == "SCU"


def test_no_line_when_it_is_off(pair: kit.World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fastpdu.stats"):
        run(pair, "release")
    assert not [record for record in caplog.records if record.name == "fastpdu.stats"]


def test_pynetdicoms_lines_stay(pair: kit.World, caplog: pytest.LogCaptureFixture) -> None:
    """The same lines, whether ours is written or not."""

    def lines(level: int) -> list[str]:
        caplog.clear()
        with (
            caplog.at_level(level, logger="fastpdu.stats"),
            caplog.at_level(logging.INFO, logger="pynetdicom"),
        ):
            run(pair, "release")
        return sorted(
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("pynetdicom") and "127.0.0.1" not in record.getMessage()
        )

    assert lines(logging.INFO) == lines(logging.WARNING) != []
