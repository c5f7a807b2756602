"""A DICOM peer made of bytes: it speaks correctly as long as the test wants it to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from helpers import data, kit

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
LAST_COMMAND, COMMAND, LAST_DATA, DATA = 3, 1, 2, 0
CONTEXTS: Sequence[tuple[int, str, str]] = (
    (1, data.VERIFICATION, data.IMPLICIT),
    (3, data.CT, data.EXPLICIT),
    (5, data.STUDY_FIND, data.EXPLICIT),
)


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def item(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(body) if length is None else length) + body


def max_length(value: int) -> bytes:
    return item(0x51, struct.pack(">L", value))


IDENTITY = item(0x52, b"1.2.826.0.1.3680043.10.54321.9")


def associate_body(
    items: bytes, *, called: bytes = b"SCP", calling: bytes = b"RAW", version: int = 1
) -> bytes:
    return (
        struct.pack(">H2x", version)
        + called.ljust(16)
        + calling.ljust(16)
        + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + items
    )


def proposals(contexts: Sequence[tuple[int, str, str]] = CONTEXTS) -> bytes:
    return b"".join(
        item(
            0x20,
            bytes((number, 0, 0, 0))
            + item(0x30, abstract.encode())
            + item(0x40, transfer.encode()),
        )
        for number, abstract, transfer in contexts
    )


def associate_rq(
    *,
    contexts: Sequence[tuple[int, str, str]] = CONTEXTS,
    maximum: int = 16382,
    user_info: bytes | None = None,
) -> bytes:
    if user_info is None:
        user_info = max_length(maximum) + IDENTITY
    return pdu(ASSOCIATE_RQ, associate_body(proposals(contexts) + item(0x50, user_info)))


def associate_ac(
    accepted: Sequence[tuple[int, str]] = tuple((number, syntax) for number, _, syntax in CONTEXTS),
    *,
    maximum: int = 16382,
    user_info: bytes | None = None,
) -> bytes:
    if user_info is None:
        user_info = max_length(maximum) + IDENTITY
    answers = b"".join(
        item(0x21, bytes((number, 0, 0, 0)) + item(0x40, syntax.encode()))
        for number, syntax in accepted
    )
    return pdu(ASSOCIATE_AC, associate_body(answers + item(0x50, user_info)))


def pdv(context: int, control: int, fragment: bytes, length: int | None = None) -> bytes:
    size = len(fragment) + 2 if length is None else length
    return struct.pack(">LBB", size, context, control) + fragment


def p_data(*pdvs: bytes, length: int | None = None) -> bytes:
    return pdu(P_DATA, b"".join(pdvs), length)


RELEASE_RQ_PDU = pdu(RELEASE_RQ, bytes(4))
RELEASE_RP_PDU = pdu(RELEASE_RP, bytes(4))
ABORT_PDU = pdu(ABORT, bytes(4))


def command(elements: dict[int, int | str | None]) -> bytes:
    """A command set (implicit VR little endian, group length first)."""
    body = b""
    for element, value in sorted(elements.items()):
        if value is None:
            continue
        if isinstance(value, int):
            raw = struct.pack("<H", value)
        else:
            raw = value.encode()
            raw += (b"\0" if element in (0x0002, 0x0003, 0x1000) else b" ") * (len(raw) % 2)
        body += struct.pack("<HHL", 0, element, len(raw)) + raw
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def echo_rq(message_id: int = 1) -> bytes:
    return command({0x0002: data.VERIFICATION, 0x0100: 0x30, 0x0110: message_id, 0x0800: 0x0101})


def echo_rsp(message_id: int = 1) -> bytes:
    return command(
        {
            0x0002: data.VERIFICATION,
            0x0100: 0x8030,
            0x0120: message_id,
            0x0800: 0x0101,
            0x0900: 0,
        }
    )


def store_rq(message_id: int = 1, instance: str = "1.2.3.4") -> bytes:
    return command(
        {
            0x0002: data.CT,
            0x0100: 1,
            0x0110: message_id,
            0x0700: 0,
            0x0800: 1,
            0x1000: instance,
        }
    )


def find_rq(message_id: int = 1) -> bytes:
    return command(
        {0x0002: data.STUDY_FIND, 0x0100: 0x20, 0x0110: message_id, 0x0700: 0, 0x0800: 1}
    )


def cancel_rq(message_id: int) -> bytes:
    return command({0x0100: 0x0FFF, 0x0120: message_id, 0x0800: 0x0101})


FIND_IDENTIFIER = struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 2) + b"* "
DATASET = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 8) + b"Raw^Peer"


def echo() -> bytes:
    return p_data(pdv(1, LAST_COMMAND, echo_rq()))


def store(message_id: int = 1, payload: bytes = DATASET) -> bytes:
    return p_data(pdv(3, LAST_COMMAND, store_rq(message_id))) + p_data(pdv(3, LAST_DATA, payload))


def find(message_id: int = 1) -> bytes:
    return p_data(pdv(5, LAST_COMMAND, find_rq(message_id))) + p_data(
        pdv(5, LAST_DATA, FIND_IDENTIFIER)
    )


class Peer:
    """One connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(kit.DEADLINE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, raw: bytes) -> None:
        """Send what can be sent: a peer that has gone away in the meantime is no failure."""
        try:
            self.sock.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def exactly(self, count: int) -> bytes:
        """So many bytes; fewer only at the end of the stream."""
        raw = bytearray()
        while len(raw) < count:
            try:
                more = self.sock.recv(count - len(raw))
            except ConnectionResetError:
                break
            if not more:
                break
            raw += more
        return bytes(raw)

    def read(self) -> tuple[int, bytes] | None:
        """The next PDU as (type, body); None when the stream is over."""
        head = self.exactly(6)
        if len(head) < 6:
            assert not head, "the stream ends inside a PDU header"
            return None
        kind, length = struct.unpack(">BxL", head)
        body = self.exactly(length)
        assert len(body) == length, "the stream ends inside a PDU"
        return kind, body

    def expect(self, kind: int) -> bytes:
        got = self.read()
        assert got is not None, f"closed; expected PDU type {kind}"
        assert got[0] == kind, f"PDU type {got[0]} ({got[1][:40].hex()}); expected {kind}"
        return got[1]

    def abort_code(self, *, skip: Sequence[int] = (P_DATA,)) -> tuple[int, int] | None:
        """(source, reason) of the A-ABORT that comes next, or None if it is a bare close."""
        while True:
            got = self.read()
            if got is None:
                return None
            if got[0] == ABORT:
                return got[1][2], got[1][3]
            assert got[0] in skip, f"PDU type {got[0]}; expected an A-ABORT"

    def message(self) -> tuple[int, dict[int, bytes], bytes]:
        """One DIMSE message: context id, raw command elements, data set."""
        commands, data_set = b"", bytearray()
        context = 0
        want_data = None
        while want_data is None or want_data:
            body = self.expect(P_DATA)
            while body:
                size, context, control = struct.unpack(">LBB", body[:6])
                fragment, body = body[6 : 4 + size], body[4 + size :]
                if control & 1:
                    commands += fragment
                    if control & 2:
                        want_data = decode(commands)[0x0800] != b"\x01\x01"
                else:
                    data_set += fragment
                    if control & 2:
                        want_data = False
        return context, decode(commands), bytes(data_set)

    def at_end(self) -> bool:
        """Whether the peer closes the connection, after whatever it still sends."""
        while True:
            try:
                if not self.sock.recv(65536):
                    return True
            except ConnectionResetError:
                return True

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    # good manners

    def associate(self, rq: bytes | None = None) -> bytes:
        self.send(rq or associate_rq())
        return self.expect(ASSOCIATE_AC)

    def echo(self) -> None:
        self.send(echo())
        _, elements, _ = self.message()
        assert elements[0x0100] == b"\x30\x80"
        assert elements[0x0900] == b"\0\0"

    def release(self) -> None:
        self.send(RELEASE_RQ_PDU)
        self.expect(RELEASE_RP)
        self.close()


def decode(raw: bytes) -> dict[int, bytes]:
    elements = {}
    while raw:
        _, element, size = struct.unpack("<HHL", raw[:8])
        elements[element] = raw[8 : 8 + size]
        raw = raw[8 + size :]
    return elements


@contextmanager
def dial(address: tuple[str, int]) -> Iterator[Peer]:
    """A connection to an SCP."""
    peer = Peer(socket.create_connection(address, timeout=kit.DEADLINE))
    try:
        yield peer
    finally:
        peer.close()


def check_service(address: tuple[str, int]) -> None:
    """The SCP serves the next association as if nothing had been."""
    deadline = time.monotonic() + kit.DEADLINE
    while True:
        with dial(address) as peer:
            peer.send(associate_rq())
            got = peer.read()
            if got and got[0] == ASSOCIATE_RJ and time.monotonic() < deadline:
                continue  # slots come back when the last association has ended
            assert got is not None, "closed instead of A-ASSOCIATE-AC"
            assert got[0] == ASSOCIATE_AC, f"PDU type {got[0]} {got[1].hex()}"
            peer.echo()
            peer.send(store())
            assert peer.message()[1][0x0900] == b"\0\0"
            peer.release()
            return


class Acceptor:
    """A listening socket whose connections are answered by `script`, in a thread."""

    def __init__(self, script: Callable[[Peer], Any], *, connections: int = 1) -> None:
        self.script = script
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.settimeout(kit.DEADLINE)
        self.connections = connections
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, name="raw acceptor")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()[:2]
        return host, port

    def _run(self) -> None:
        for _ in range(self.connections):
            try:
                sock, _address = self.listener.accept()
            except OSError:
                return
            peer = Peer(sock)
            try:
                self.results.append(self.script(peer))
            except BaseException as exc:
                self.errors.append(exc)
            finally:
                peer.close()

    def __enter__(self) -> Acceptor:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            self.listener.close()
        self.thread.join(2 * kit.DEADLINE)
        self.listener.close()
        if exc[0] is None:
            assert not self.thread.is_alive()
            if self.errors:
                raise self.errors[0]


def accept(peer: Peer, **kwargs: Any) -> None:
    """The acceptor's part of a good association request."""
    peer.expect(ASSOCIATE_RQ)
    peer.send(associate_ac(**kwargs))
