"""Bad PDUs, PDVs and messages: A-ABORT with the right source and reason, and service goes on.

What is expected is PS3.8's answer. ``stock`` says where pynetdicom 3.0.4 gives another one; those
cases are left out of a run with FASTPDU_TEST_KINDS=stock.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from helpers import data, kit, raw
from helpers.raw import COMMAND, DATA, LAST_COMMAND, LAST_DATA, p_data, pdu, pdv
from pynetdicom import evt

KIND = kit.KINDS[-1]
OUTSIDE_MAXIMUM = 20_000


@dataclass(frozen=True)
class Case:
    name: str
    sent: bytes
    codes: frozenset[tuple[int, int]] | None  # None: any A-ABORT
    stock: str = ""

    def allowed(self, code: tuple[int, int] | None) -> bool:
        return code is not None and (self.codes is None or code in self.codes)


def case(name: str, sent: bytes, *codes: tuple[int, int], stock: str = "") -> Case:
    return Case(name, sent, frozenset(codes) or None, stock)


COMMAND_SET = raw.echo_rq()
STORE_SET = raw.store_rq()
STORE_COMMAND = p_data(pdv(3, LAST_COMMAND, STORE_SET))
LIE = "another reason"

IN_ASSOCIATION = [
    # PDV items
    case("pdv length 0", p_data(pdv(1, 3, b"", 0)), (2, 6), stock=LIE),
    case("pdv length 1", p_data(struct.pack(">LB", 1, 1)), (2, 6), stock="dead thread"),
    case("no pdv", p_data(), (2, 6), stock="no reply"),
    case("1 byte", p_data(b"\0"), (2, 6), stock=LIE),
    case("3 bytes", p_data(b"\0\0\0"), (2, 6), stock=LIE),
    case("pdv header only", p_data(struct.pack(">L", 100)), (2, 6), stock=LIE),
    case(
        "pdv past the pdu", p_data(pdv(1, 3, COMMAND_SET, len(COMMAND_SET) + 3)), (2, 6), stock=LIE
    ),
    case("pdv length fffffffe", p_data(pdv(1, 3, COMMAND_SET, 0xFFFFFFFE)), (2, 6), stock=LIE),
    case("pdv length ffffffff", p_data(pdv(1, 3, COMMAND_SET, 0xFFFFFFFF)), (2, 6), stock=LIE),
    case(
        "second pdv past the pdu",
        p_data(pdv(1, COMMAND, COMMAND_SET[:10]), pdv(1, 3, COMMAND_SET[10:], 4000)),
        (2, 6),
        stock=LIE,
    ),
    case(
        "rest too short for a pdv",
        p_data(pdv(1, COMMAND, COMMAND_SET[:10]), b"\0\0"),
        (2, 6),
        stock=LIE,
    ),
    # contexts
    case("even context id", p_data(pdv(2, 3, COMMAND_SET))),
    case("context id 0", p_data(pdv(0, 3, COMMAND_SET))),
    case("unknown context id", p_data(pdv(99, 3, COMMAND_SET))),
    # the order of fragments
    case("data before command", p_data(pdv(3, LAST_DATA, raw.DATASET)), (2, 5), stock=LIE),
    case("data before command, not last", p_data(pdv(3, DATA, raw.DATASET)), (2, 5), stock=LIE),
    case(
        "data before the last command fragment",
        p_data(pdv(3, COMMAND, STORE_SET[:20])) + p_data(pdv(3, LAST_DATA, raw.DATASET)),
        (2, 5),
        stock="accepted",
    ),
    case(
        "command inside the data set",
        STORE_COMMAND + p_data(pdv(3, DATA, raw.DATASET)) + p_data(pdv(3, 3, STORE_SET)),
        (2, 5),
        stock="accepted",
    ),
    case(
        "context changes between command and data",
        STORE_COMMAND + p_data(pdv(1, LAST_DATA, raw.DATASET)),
        (2, 5),
        stock="accepted",
    ),
    case(
        "context changes inside the command set",
        p_data(pdv(3, COMMAND, STORE_SET[:20])) + p_data(pdv(1, LAST_COMMAND, STORE_SET[20:])),
        (2, 5),
        stock="accepted",
    ),
    case(
        "context changes inside the data set",
        STORE_COMMAND + p_data(pdv(3, DATA, b"12"), pdv(5, LAST_DATA, b"34")),
        (2, 5),
        stock="accepted",
    ),
    case(
        "two messages in one pdu",
        p_data(pdv(1, 3, COMMAND_SET), pdv(1, 3, raw.echo_rq(2))),
        (2, 5),
        stock="the second is dropped",
    ),
    case(
        "the next message after the last data fragment",
        STORE_COMMAND + p_data(pdv(3, LAST_DATA, raw.DATASET), pdv(1, 3, COMMAND_SET)),
        (2, 5),
        stock="the second is dropped",
    ),
    # command sets
    case("garbage command set", p_data(pdv(1, 3, b"\xff\x13garbage" * 9)), stock="dead thread"),
    case("half a command set", p_data(pdv(1, 3, COMMAND_SET[:-7])), stock="dead thread"),
    case("empty command set", p_data(pdv(1, 3, b"")), stock="dead thread"),
    case(
        "unknown command field",
        p_data(pdv(1, 3, raw.command({2: data.VERIFICATION, 0x100: 0x77, 0x110: 1, 0x800: 0x101}))),
        stock="dead thread",
    ),
    case(
        "no command field",
        p_data(pdv(1, 3, raw.command({2: data.VERIFICATION, 0x110: 1, 0x800: 0x101}))),
        stock="dead thread",
    ),
    case(
        "no data set type",
        p_data(pdv(1, 3, raw.command({2: data.VERIFICATION, 0x100: 0x30, 0x110: 1}))),
        stock="dead thread",
    ),
    case(
        "a data set in the data, none in the command",
        p_data(pdv(1, 3, COMMAND_SET)) + p_data(pdv(1, LAST_DATA, raw.DATASET)),
        (2, 5),
        stock="another reason",
    ),
    case("command set that never ends", p_data(pdv(1, COMMAND, bytes(16000))) * 5, stock="waits"),
    # lengths
    case(
        "longer than announced",
        p_data(pdv(1, COMMAND, bytes(OUTSIDE_MAXIMUM))),
        (2, 6),
        stock="accepted",
    ),
    case(
        "one byte longer than announced",
        p_data(pdv(3, COMMAND, bytes(16382 - 5))),
        (2, 6),
        stock="accepted",
    ),
    case("header of a 4 GiB p-data", pdu(raw.P_DATA, b"", 0xFFFFFFFF), (2, 6), stock="waits"),
    case("header of a 17 MiB p-data", pdu(raw.P_DATA, b"", 17 << 20), (2, 6), stock="waits"),
    # types
    *(
        case(f"pdu type {kind:#04x}", pdu(kind, bytes(4)), (2, 1), stock=LIE)
        for kind in (0x00, 0x08, 0x16, 0x47, 0x80, 0xFF)
    ),
    case("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (2, 1), stock=LIE),
    case("second a-associate-rq", raw.associate_rq(), (2, 2), stock=LIE),
    case("a-associate-ac", raw.associate_ac(), (2, 2), stock=LIE),
    case("a-associate-rj", pdu(raw.ASSOCIATE_RJ, b"\0\1\1\1"), (2, 2), stock=LIE),
    case("a-release-rp", raw.RELEASE_RP_PDU, (2, 2), stock=LIE),
    case("a-associate-rq of 4 GiB", pdu(1, b"", 0xFFFFFFFF), (2, 2), (2, 6), stock="waits"),
    *(
        case(f"a-release-rq of {length}", pdu(5, b"", length), (2, 6), stock="waits")
        for length in (5, 0x7FFFFFFF, 0xFFFFFFFF)
    ),
    case("a-release-rq of 3", pdu(5, bytes(3)), (2, 6), stock="lenient"),
    case("a-release-rp of 1", pdu(6, bytes(1)), (2, 2), (2, 6), stock=LIE),
    case("a-abort of 4 GiB", pdu(7, b"", 0xFFFFFFFF), (2, 6), stock="waits"),
]

CASES = [one for one in IN_ASSOCIATION if KIND == "fast" or not one.stock]


def serve(world: kit.World, **attributes: Any) -> kit.Server:
    def find(event: evt.Event) -> Iterator[Any]:
        yield 0xFF00, data.query(PatientID="1")
        yield 0x0000, None

    return world.serve(
        [
            (data.VERIFICATION, data.IMPLICIT),
            (data.CT, data.EXPLICIT),
            (data.STUDY_FIND, data.EXPLICIT),
        ],
        [
            (evt.EVT_C_ECHO, lambda event: 0),
            (evt.EVT_C_STORE, lambda event: 0),
            (evt.EVT_C_FIND, find),
        ],
        attributes=attributes,
    )


def connect(world: kit.World, acceptor: raw.Acceptor, **attributes: Any) -> Any:
    return world.connect(
        acceptor.address,
        [
            (data.VERIFICATION, data.IMPLICIT),
            (data.CT, data.EXPLICIT),
            (data.STUDY_FIND, data.EXPLICIT),
        ],
        attributes=attributes,
    )


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of(KIND, KIND) as made:
        yield made


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
@pytest.mark.parametrize("after", ["at once", "after messages"])
def test_against_an_scp(world: kit.World, bad: Case, after: str) -> None:
    server = serve(world)
    with raw.dial(server.address) as peer:
        peer.associate()
        if after != "at once":
            peer.echo()
            peer.send(raw.store())
            peer.message()
        peer.send(bad.sent)
        code = peer.abort_code()
        assert bad.allowed(code), f"A-ABORT {code}"
    server.quiet()
    raw.check_service(server.address)


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
@pytest.mark.parametrize("state", ["idle", "waiting"])
def test_against_an_scu(world: kit.World, bad: Case, state: str) -> None:
    """The same from an SCP: while the SCU waits for its response, and while nobody calls."""

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer)
        if state == "waiting":
            peer.message()
        else:
            assert established.wait(10)
        peer.send(bad.sent)
        return peer.abort_code()

    established = threading.Event()
    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor)
        established.set()
        if state == "waiting":
            result = kit.outcome(assoc.send_c_echo)
            assert result == () or result[0] == "RuntimeError"
        kit.until(lambda: not assoc.is_established)
        kit.until(lambda: not assoc.is_alive() and not assoc.dul.is_alive())
    assert assoc.is_aborted
    code = acceptor.results[0]
    if state == "waiting" and bad.name == "a data set in the data, none in the command":
        # its command set is a request: the service user has aborted by then
        assert code in ((2, 5), (0, 0))
    else:
        assert bad.allowed(code), f"A-ABORT {code}"


# what must be accepted


def store_with(*pdvs: bytes) -> bytes:
    return STORE_COMMAND + b"".join(pdvs)


TOLERATED = {
    "empty last pdv": store_with(p_data(pdv(3, DATA, raw.DATASET)), p_data(pdv(3, LAST_DATA, b""))),
    "empty pdv in between": store_with(
        p_data(pdv(3, DATA, raw.DATASET[:8]), pdv(3, DATA, b""), pdv(3, 2, raw.DATASET[8:]))
    ),
    "reserved control bits": p_data(pdv(3, 0xFF, STORE_SET)) + p_data(pdv(3, 0xFE, raw.DATASET)),
    "odd fragments": store_with(
        p_data(pdv(3, DATA, raw.DATASET[:5])), p_data(pdv(3, LAST_DATA, raw.DATASET[5:]))
    ),
    "two pdvs of one kind in a pdu": p_data(
        pdv(3, COMMAND, STORE_SET[:30]), pdv(3, LAST_COMMAND, STORE_SET[30:])
    )
    + p_data(pdv(3, DATA, raw.DATASET[:4]), pdv(3, LAST_DATA, raw.DATASET[4:])),
    "command and data in one pdu": p_data(pdv(3, 3, STORE_SET), pdv(3, 2, raw.DATASET)),
    "one byte per pdv": b"".join(
        p_data(pdv(3, COMMAND, STORE_SET[i : i + 1])) for i in range(len(STORE_SET) - 1)
    )
    + p_data(pdv(3, LAST_COMMAND, STORE_SET[-1:]))
    + b"".join(p_data(pdv(3, DATA, raw.DATASET[i : i + 1])) for i in range(len(raw.DATASET) - 1))
    + p_data(pdv(3, LAST_DATA, raw.DATASET[-1:])),
    "one byte per pdv, all in one pdu": p_data(
        *(pdv(3, COMMAND, STORE_SET[i : i + 1]) for i in range(len(STORE_SET) - 1)),
        pdv(3, LAST_COMMAND, STORE_SET[-1:]),
        *(pdv(3, DATA, raw.DATASET[i : i + 1]) for i in range(len(raw.DATASET) - 1)),
        pdv(3, LAST_DATA, raw.DATASET[-1:]),
    ),
    "reserved byte of the header": b"\x04\xff" + store_with(p_data(pdv(3, 2, raw.DATASET)))[2:],
    "exactly the announced length": store_with(
        p_data(pdv(3, DATA, raw.DATASET), pdv(3, DATA, b"")), p_data(pdv(3, LAST_DATA, b""))
    ),
    "data set type 0": p_data(
        pdv(
            3,
            3,
            raw.command({2: data.CT, 0x100: 1, 0x110: 1, 0x700: 0, 0x800: 0, 0x1000: "1.2.3.4"}),
        )
    )
    + p_data(pdv(3, 2, raw.DATASET)),
}


@pytest.mark.parametrize("name", list(TOLERATED))
@pytest.mark.parametrize("pieces", [1, 7, 0], ids=lambda size: f"pieces{size}")
def test_tolerated(world: kit.World, name: str, pieces: int) -> None:
    """Unusual, but to be accepted (PS3.8 E.1, E.2); also when it comes in small TCP segments."""
    got: list[bytes] = []

    def handler(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0

    server = serve(world)
    server.server.bind(evt.EVT_C_STORE, handler)
    with raw.dial(server.address) as peer:
        peer.associate()
        sent = TOLERATED[name]
        if pieces and len(sent) < 1000:
            for at in range(0, len(sent), pieces):
                peer.send(sent[at : at + pieces])
        else:
            peer.send(sent)
        _, elements, _ = peer.message()
        assert elements[0x0900] == b"\0\0"
        peer.echo()
        peer.release()
    assert got == [raw.DATASET]


def test_messages_without_waiting(world: kit.World) -> None:
    """Requests sent ahead of the responses: all answered, in order."""
    server = serve(world)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(b"".join(raw.store(number) for number in range(1, 51)))
        answered = [peer.message()[1][0x0120] for _ in range(50)]
        assert answered == [struct.pack("<H", number) for number in range(1, 51)]
        peer.release()


def test_exactly_the_announced_length(world: kit.World) -> None:
    got: list[int] = []

    def handler(event: evt.Event) -> int:
        got.append(len(event.request.DataSet.getvalue()))
        return 0

    server = serve(world, maximum_pdu_size=5000)
    server.server.bind(evt.EVT_C_STORE, handler)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(STORE_COMMAND + p_data(pdv(3, DATA, bytes(4994))) * 3)
        peer.send(p_data(pdv(3, LAST_DATA, bytes(10))))
        assert peer.message()[1][0x0900] == b"\0\0"
    assert got == [3 * 4994 + 10]


@pytest.mark.skipif(KIND == "stock", reason="stock has no limit")
def test_hard_limit_when_unlimited_was_announced(world: kit.World) -> None:
    server = serve(world, maximum_pdu_size=0)
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(STORE_COMMAND + p_data(pdv(3, LAST_DATA, bytes(1 << 20))))
        assert peer.message()[1][0x0900] == b"\0\0"
        peer.send(pdu(raw.P_DATA, b"", (16 << 20) + 1))
        assert peer.abort_code() == (2, 6)
    raw.check_service(server.address)


@pytest.mark.skipif(KIND == "stock", reason="stock has no limit")
def test_largest_message(world: kit.World) -> None:
    """TransportOptions(max_message=...): a data set that never ends is cut off."""
    import fastpdu

    ae = fastpdu.AE("SCP", transport=fastpdu.TransportOptions(max_message=100_000))
    for abstract, transfer in ((data.VERIFICATION, data.IMPLICIT), (data.CT, data.EXPLICIT)):
        ae.add_supported_context(abstract, transfer)
    server = world.serve(
        [], [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_C_ECHO, lambda event: 0)], ae=ae
    )
    with raw.dial(server.address) as peer:
        peer.associate()
        peer.send(STORE_COMMAND + p_data(pdv(3, DATA, bytes(16000))) * 20)
        assert peer.abort_code() == (2, 6)
    raw.check_service(server.address)


# before the association

# in Sta2 PS3.8 wants the service user's A-ABORT (AA-1), whatever the reason
BEFORE = [
    case("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (2, 1), (0, 0)),
    case(
        "tls client hello",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        (2, 1),
        (0, 0),
        stock="waits",
    ),
    case("pdu type 0", pdu(0, bytes(4)), (2, 1), (0, 0), stock="waits"),
    case("pdu type 8", pdu(8, bytes(4)), (2, 1), (0, 0), stock="waits"),
    case("p-data", raw.echo()),
    case("a-associate-ac", raw.associate_ac()),
    case("a-release-rq", raw.RELEASE_RQ_PDU),
    case("a-release-rp", raw.RELEASE_RP_PDU),
    case("a-associate-rq of 4 GiB", pdu(1, b"", 0xFFFFFFFF), stock="waits"),
    case("a-associate-rq of 1 MiB + 1", pdu(1, b"", (1 << 20) + 1), stock="waits"),
    case("a-associate-rq of 4 bytes", pdu(1, bytes(4))),
    case("item past the pdu", pdu(1, raw.associate_body(raw.item(0x20, b"\1\0\0\0", 5000)))),
    case(
        "sub-item past its item",
        pdu(
            1,
            raw.associate_body(
                raw.proposals() + raw.item(0x50, raw.item(0x51, b"\0\0\x40\0", 900))
            ),
        ),
        stock="accepted",
    ),
]


@pytest.mark.parametrize(
    "bad", [one for one in BEFORE if KIND == "fast" or not one.stock], ids=lambda bad: bad.name
)
def test_before_an_association(world: kit.World, bad: Case) -> None:
    server = serve(world, acse_timeout=2)
    with raw.dial(server.address) as peer:
        peer.send(bad.sent)
        code = peer.abort_code()
        assert bad.allowed(code), f"A-ABORT {code}"
    server.quiet()
    raw.check_service(server.address)


ANSWERS = [
    case("http", b"HTTP/1.1 400 Bad Request\r\n\r\n", (2, 1), stock=LIE),
    case("pdu type 0", pdu(0, bytes(4)), (2, 1), stock=LIE),
    case("p-data", raw.echo(), (2, 2), stock=LIE),
    case("a-associate-rq", raw.associate_rq(), (2, 2), stock=LIE),
    case("a-release-rq", raw.RELEASE_RQ_PDU, (2, 2), stock=LIE),
    case("a-release-rp", raw.RELEASE_RP_PDU, (2, 2), stock=LIE),
    case("a-associate-ac of 4 GiB", pdu(2, b"", 0xFFFFFFFF), (2, 6), stock="waits"),
    case("a-associate-rj of 5", pdu(3, bytes(5)), (2, 6), stock="accepted"),
    case("a-associate-ac of 4 bytes", pdu(2, bytes(4))),
]


@pytest.mark.parametrize(
    "bad", [one for one in ANSWERS if KIND == "fast" or not one.stock], ids=lambda bad: bad.name
)
def test_instead_of_an_acceptance(world: kit.World, bad: Case) -> None:
    def script(peer: raw.Peer) -> Any:
        peer.expect(raw.ASSOCIATE_RQ)
        peer.send(bad.sent)
        return peer.abort_code()

    with raw.Acceptor(script) as acceptor:
        assoc = world.connect(
            acceptor.address, [(data.VERIFICATION, data.IMPLICIT)], established=False
        )
        kit.until(lambda: not assoc.dul.is_alive())
    assert bad.allowed(acceptor.results[0]), f"A-ABORT {acceptor.results[0]}"
    assert assoc.is_aborted


# what the association request may contain


ignores = pytest.mark.skipif(KIND == "stock", reason="stock aborts or rejects")


@ignores
def test_unknown_items_are_ignored(world: kit.World) -> None:
    """Items (PS3.8 9.3.1) and user information sub-items (PS3.7 D.3.3); who watches sees what came."""
    seen: list[bytes] = []
    server = serve(world, acse_timeout=2)
    server.server.bind(evt.EVT_DATA_RECV, lambda event: seen.append(event.data))
    what = raw.item(0x5F, b"what is this")
    items = raw.proposals() + what + raw.item(0x50, what + raw.max_length(16382) + raw.IDENTITY)
    request = pdu(raw.ASSOCIATE_RQ, raw.associate_body(items + raw.item(0xFF, b"")))
    with raw.dial(server.address) as peer:
        peer.associate(request)
        assert server.one().requestor.maximum_length == 16382
        peer.echo()
        peer.release()
    assert seen[0] == request


@ignores
def test_unknown_items_of_an_answer_are_ignored(world: kit.World) -> None:
    info = raw.item(0x5F, b"") + raw.max_length(5000) + raw.item(0x5A, b"12345") + raw.IDENTITY

    def script(peer: raw.Peer) -> Any:
        raw.accept(peer, user_info=info)
        peer.expect(raw.RELEASE_RQ)
        peer.send(raw.RELEASE_RP_PDU)

    with raw.Acceptor(script) as acceptor:
        assoc = connect(world, acceptor)
        assert assoc.acceptor.maximum_length == 5000
        assoc.release()
    assert assoc.is_released


@pytest.mark.parametrize("reserved", [pytest.param("version", marks=ignores), "ae fields"])
def test_reserved_bits_of_a_request(world: kit.World, reserved: str) -> None:
    """Only the first bit of the protocol version counts (PS3.8 9.3.2)."""
    server = serve(world, acse_timeout=2)
    request = bytearray(raw.associate_rq())
    if reserved == "version":
        request[6:8] = b"\xff\xff"
    else:
        request[42:74] = b"\xaa" * 32
    request[1] = 0x5A
    with raw.dial(server.address) as peer:
        peer.associate(bytes(request))
        peer.echo()
        peer.release()


def test_another_protocol_version(world: kit.World) -> None:
    """Without that bit: rejected (permanent, ACSE's, protocol version not supported)."""
    server = serve(world, acse_timeout=2)
    request = bytearray(raw.associate_rq())
    request[6:8] = b"\xff\xfe"
    with raw.dial(server.address) as peer:
        peer.send(bytes(request))
        assert peer.expect(raw.ASSOCIATE_RJ)[1:4] == bytes((1, 2, 2))


@pytest.mark.parametrize("value", [1, 2, 5, 6])
def test_unusable_maximum_length(world: kit.World, value: int) -> None:
    """No fragment fits: refused or aborted, never an endless stream."""
    server = serve(world, acse_timeout=2)
    with raw.dial(server.address) as peer:
        peer.send(raw.associate_rq(maximum=value))
        got = peer.read()
        if got is not None and got[0] == raw.ASSOCIATE_AC:
            peer.send(raw.echo())
            got = peer.read()
        assert got is None or got[0] in (raw.ABORT, raw.ASSOCIATE_RJ)
    server.quiet()
    raw.check_service(server.address)


@pytest.mark.parametrize("value", [7, 8, 9, 0, 0xFFFFFFFF])
def test_odd_maximum_length(world: kit.World, value: int) -> None:
    server = serve(world, acse_timeout=2)
    with raw.dial(server.address) as peer:
        peer.associate(raw.associate_rq(maximum=value))
        peer.send(raw.find())
        _, elements, identifier = peer.message()
        assert elements[0x0900] == b"\x00\xff"
        assert b"LO" in identifier
        _, elements, _ = peer.message()
        assert elements[0x0900] == b"\0\0"
        peer.release()


def test_thousands_of_items(world: kit.World) -> None:
    """16,000 four-byte sub-items: an answer of any kind, soon."""
    server = serve(world, acse_timeout=2)
    with raw.dial(server.address) as peer:
        info = raw.max_length(16382) + raw.IDENTITY + raw.item(0x5E, b"") * 16000
        peer.send(raw.associate_rq(user_info=info[:65535]))
        got = peer.read()
        assert got is None or got[0] in (raw.ASSOCIATE_AC, raw.ABORT, raw.ASSOCIATE_RJ)
    server.quiet()
    raw.check_service(server.address)


@pytest.mark.parametrize("what", ["twice 51h", "no 51h", "no 52h", "even id", "same id", "many"])
def test_odd_requests(world: kit.World, what: str) -> None:
    """No rule says how these end; they must end, and the next peer is served."""
    both = raw.max_length(16382) + raw.IDENTITY
    requests = {
        "twice 51h": raw.associate_rq(user_info=both + raw.max_length(1)),
        "no 51h": raw.associate_rq(user_info=raw.IDENTITY),
        "no 52h": raw.associate_rq(user_info=raw.max_length(16382)),
        "even id": raw.associate_rq(contexts=[(2, data.VERIFICATION, data.IMPLICIT)]),
        "same id": raw.associate_rq(contexts=[(1, data.VERIFICATION, data.IMPLICIT)] * 2),
        "many": raw.associate_rq(contexts=[(1, data.VERIFICATION, data.IMPLICIT)] * 300),
    }
    server = serve(world, acse_timeout=2)
    with raw.dial(server.address) as peer:
        peer.send(requests[what])
        got = peer.read()
        assert got is None or got[0] in (raw.ASSOCIATE_AC, raw.ABORT, raw.ASSOCIATE_RJ)
    server.quiet()
    raw.check_service(server.address)
