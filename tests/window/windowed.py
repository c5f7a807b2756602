"""A raw acceptor that grants a window and answers C-STORE requests when and how the test wants."""

from __future__ import annotations

import struct
from typing import Any

from helpers import data, raw

CTX = [(data.CT, data.EXPLICIT)]


def window_item(invoked: int, performed: int = 1) -> bytes:
    return raw.item(0x53, struct.pack(">HH", invoked, performed))


def accept(peer: raw.Peer, invoked: int | None, performed: int = 1) -> bytes:
    """Accept an association with this window, or without one; returns the body of the request."""
    body = peer.expect(raw.ASSOCIATE_RQ)
    user_info = raw.max_length(16382) + raw.IDENTITY
    if invoked is not None:
        user_info += window_item(invoked, performed)
    peer.send(raw.associate_ac(user_info=user_info))
    return body


def offered(body: bytes) -> tuple[int, int] | None:
    """The window in the body of an A-ASSOCIATE-RQ, which has no other bytes like it."""
    at = body.find(b"\x53\x00\x00\x04")
    return None if at < 0 else struct.unpack(">HH", body[at + 4 : at + 8])  # type: ignore[return-value]


def store_rsp(message_id: int, status: int = 0, instance: str = "1.2.3") -> bytes:
    command = raw.command(
        {
            0x0002: data.CT,
            0x0100: 0x8001,
            0x0120: message_id,
            0x0800: 0x0101,
            0x0900: status,
            0x1000: instance,
        }
    )
    return raw.p_data(raw.pdv(3, raw.LAST_COMMAND, command))


class Request:
    """A C-STORE request that the raw acceptor has read."""

    def __init__(self, elements: dict[int, bytes], data_set: bytes) -> None:
        self.message_id = struct.unpack("<H", elements[0x0110])[0]
        self.instance = elements[0x1000].rstrip(b"\0").decode()
        self.data_set = data_set


def read(peer: raw.Peer, count: int = 1) -> list[Request]:
    """Read so many C-STORE requests."""
    found = []
    for _ in range(count):
        _context, elements, data_set = peer.message()
        assert elements[0x0100] == b"\x01\x00"
        found.append(Request(elements, data_set))
    return found


def answer(peer: raw.Peer, *requests: Request, status: int = 0) -> None:
    for request in requests:
        peer.send(store_rsp(request.message_id, status, request.instance))


def is_quiet(peer: raw.Peer, seconds: float = 0.15) -> bool:
    """Whether nothing comes for a while. (More would be a failure at any time: no test waits for it in vain.)"""
    peer.sock.settimeout(seconds)
    try:
        return not peer.sock.recv(1)
    except TimeoutError:
        return True
    finally:
        peer.sock.settimeout(20)


def numbered(count: int, size: int = 1000) -> list[Any]:
    return [data.image(number, size) for number in range(1, count + 1)]
