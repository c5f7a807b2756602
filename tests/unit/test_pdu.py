"""What a receiver of an A-ASSOCIATE PDU has to ignore."""

from __future__ import annotations

import struct

import pytest
from engine_kit import ECHO, pdata, pdu, pdv

from fastpdu.pdu import without_unknown


def item(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(body) if length is None else length) + body


FIXED = b"\0\1\0\0" + b"CALLED".ljust(16) + b"CALLING".ljust(16) + bytes(32)
NAME = item(0x10, b"1.2.840.10008.3.1.1.1")
ABSTRACT, TRANSFER = item(0x30, b"1.2.840.10008.1.1"), item(0x40, b"1.2.840.10008.1.2")
CONTEXT = item(0x20, b"\1\0\0\0" + ABSTRACT + TRANSFER)
MAXIMUM, CLASS_UID = item(0x51, b"\0\0\x40\0"), item(0x52, b"1.2.3")
USER = item(0x50, MAXIMUM + CLASS_UID)
PLAIN = pdu(1, FIXED + NAME + CONTEXT + USER)
STRANGE = [item(kind, body) for kind in (0, 0x11, 0x5A, 0xFF) for body in (b"", b"what is this?")]


def test_nothing_to_ignore() -> None:
    assert without_unknown(PLAIN) == PLAIN
    assert without_unknown(pdu(2, PLAIN[6:])) == pdu(2, PLAIN[6:])


@pytest.mark.parametrize("strange", STRANGE, ids=lambda one: one[:5].hex())
def test_unknown_items(strange: bytes) -> None:
    """In front, between and behind."""
    for body in (
        strange + NAME + CONTEXT + USER,
        NAME + strange * 3 + CONTEXT + USER,
        NAME + CONTEXT + USER + strange,
        NAME + CONTEXT + item(0x50, strange + MAXIMUM + CLASS_UID),
        NAME + CONTEXT + item(0x50, MAXIMUM + strange + CLASS_UID + strange),
    ):
        assert without_unknown(pdu(1, FIXED + body)) == PLAIN


@pytest.mark.parametrize(
    ("sent", "kept"), [(0xFFFF, 1), (3, 1), (1, 1), (2, 2), (0, 0), (0xFFFE, 0xFFFE)]
)
def test_protocol_version(sent: int, kept: int) -> None:
    changed = PLAIN[:6] + struct.pack(">H", sent) + PLAIN[8:]
    assert without_unknown(changed)[6:8] == struct.pack(">H", kept)
    assert without_unknown(changed)[8:] == PLAIN[8:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pdu(1, b""),
        pdu(1, FIXED[:-1]),
        pdu(1, FIXED + STRANGE[1] + b"\x20\0\0"),
        pdu(1, FIXED + STRANGE[1] + item(0x20, b"\1\0\0\0", 500)),
        pdu(1, FIXED + NAME + item(0x20, b"\1\0\0\0" + STRANGE[1] + TRANSFER) + USER),
        pdu(1, FIXED + item(0x50, item(0x51, b"\0\0\x40\0", 900) + STRANGE[1])),
        pdu(3, bytes(4)),
        pdata(pdv(1, 3, ECHO)),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_left_to_the_decoder(data: bytes) -> None:
    assert without_unknown(data) == data


def test_depth_is_bounded() -> None:
    """A sub-item that looks like an item with sub-items is none."""
    body = b""
    for _ in range(16_000):
        body = item(0x50, body)
    assert without_unknown(pdu(1, FIXED + body)) == pdu(1, FIXED + body)
