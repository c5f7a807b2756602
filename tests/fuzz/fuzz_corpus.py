"""What fuzzing starts from: valid PDUs and command sets, and the bad ones that a hostile peer would try first."""

from __future__ import annotations

import struct

from engine_kit import ABORT, ECHO, FIND, RELEASE, STORE, message, noise, pdata, pdu, pdv

OPTIONS = 4  # bytes before the stream that choose limits, sink and cuts (fuzz_targets.py)


def item(kind: int, body: bytes) -> bytes:
    """Encode an item of an A-ASSOCIATE PDU (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(body)) + body


ASSOCIATE_RQ = pdu(
    1,
    struct.pack(">H2x", 1)
    + b"SCP".ljust(16)
    + b"SCU".ljust(16)
    + bytes(32)
    + item(0x10, b"1.2.840.10008.3.1.1.1")
    + item(0x20, b"\1\0\0\0" + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2"))
    + item(0x50, item(0x51, struct.pack(">L", 16382)) + item(0x52, b"1.2.3")),
)


def in_pdus(command: bytes, data: bytes, size: int) -> bytes:
    """Return a message with data fragments of one size."""
    return b"".join(message(3, command, data, [size] * (max(len(data) - 1, 0) // size)))


VALID = [
    pdata(pdv(1, 3, ECHO)),
    pdata(pdv(1, 3, ECHO)) * 3,
    pdata(pdv(3, 3, STORE)) + pdata(pdv(3, 2, b"\x10\0\x10\0PN\4\0Some")),
    pdata(pdv(3, 3, STORE), pdv(3, 2, b"together")),
    pdata(pdv(3, 3, STORE)) + pdata(pdv(3, 0, b"some"), pdv(3, 0, b""), pdv(3, 2, b"more")),
    pdata(pdv(3, 1, STORE[:20]), pdv(3, 3, STORE[20:])) + pdata(pdv(3, 2, b"")),
    pdata(pdv(3, 0xFF, STORE)) + pdata(pdv(3, 0xFE, b"reserved bits")),
    pdata(pdv(5, 3, FIND)) + pdata(pdv(5, 2, noise(300))),
    in_pdus(STORE, noise(40_000), 4096),
    in_pdus(STORE, noise(60_001), 16376),
    in_pdus(STORE, noise(3_000), 100) + in_pdus(FIND, noise(3_000), 100) + pdata(pdv(1, 3, ECHO)),
    in_pdus(STORE, noise(30), 1),
    in_pdus(STORE, noise(70_000, 3), 8000) + in_pdus(STORE, noise(70_000, 4), 8000) + RELEASE,
    pdata(pdv(1, 3, ECHO)) + RELEASE,
    pdata(pdv(3, 3, STORE)) + pdata(pdv(3, 0, noise(5000))) + ABORT,
    ASSOCIATE_RQ + pdata(pdv(1, 3, ECHO)) + RELEASE,
    pdu(2, b""),
    pdu(3, b"\0\1\1\1"),
    pdu(6, bytes(4)),
    pdu(7, b"\0"),
]

BAD = [
    # lengths of PDVs
    pdata(pdv(1, 3, b"", 0)),
    pdata(struct.pack(">LB", 1, 1)),
    pdata(),
    pdata(b"\0"),
    pdata(b"\0\0\0"),
    pdata(struct.pack(">L", 100)),
    pdata(pdv(1, 3, ECHO, len(ECHO) + 3)),
    pdata(pdv(1, 3, ECHO, 0xFFFFFFFE)),
    pdata(pdv(1, 3, ECHO, 0xFFFFFFFF)),
    pdata(pdv(1, 1, ECHO[:10]), pdv(1, 3, ECHO[10:], 4000)),
    pdata(pdv(1, 1, ECHO[:10]), b"\0\0"),
    # the order of fragments
    pdata(pdv(3, 2, b"no command")),
    pdata(pdv(3, 1, STORE[:20])) + pdata(pdv(3, 2, b"no command")),
    pdata(pdv(3, 3, STORE)) + pdata(pdv(3, 0, b"some")) + pdata(pdv(3, 3, STORE)),
    pdata(pdv(3, 3, STORE)) + pdata(pdv(1, 2, b"elsewhere")),
    pdata(pdv(3, 1, STORE[:20])) + pdata(pdv(1, 3, STORE[20:])),
    pdata(pdv(1, 3, ECHO), pdv(1, 3, ECHO)),
    pdata(pdv(3, 3, STORE)) + pdata(pdv(3, 2, b"all"), pdv(1, 3, ECHO)),
    pdata(pdv(1, 3, ECHO)) + pdata(pdv(1, 2, b"none was announced")),
    # command sets
    pdata(pdv(1, 3, b"\xff\x13garbage" * 9)),
    pdata(pdv(1, 3, ECHO[:-7])),
    pdata(pdv(1, 3, b"")),
    pdata(pdv(1, 1, bytes(16000))) * 5,
    # lengths of PDUs
    pdata(pdv(1, 1, bytes(20_000))),
    pdu(4, b"")[:2] + b"\xff\xff\xff\xff",
    pdu(4, b"")[:2] + struct.pack(">L", 17 << 20),
    *(pdu(kind, b"")[:2] + b"\xff\xff\xff\xff" for kind in range(1, 8)),
    *(pdu(kind, b"")[:2] + struct.pack(">L", (1 << 20) + 1) for kind in (1, 2)),
    *(pdu(kind, bytes(length)) for kind in (3, 5, 6, 7) for length in (0, 1, 3, 5)),
    # types
    *(pdu(kind, bytes(4)) for kind in (0x00, 0x08, 0x16, 0x47, 0x80, 0xFF)),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    b"\4\0\0",
]

STREAMS = [bytes(OPTIONS) + stream for stream in VALID + BAD]


def element(tag: int, vr: bytes, value: bytes, order: str = "<") -> bytes:
    """Encode a data element in explicit VR (PS3.5 7.1.2), or implicit VR if `vr` is empty."""
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return head + struct.pack(order + "I", len(value)) + value
    if vr in (b"OB", b"UN", b"SQ"):
        return head + vr + bytes(2) + struct.pack(order + "I", len(value)) + value
    return head + vr + struct.pack(order + "H", len(value)) + value


def part10(syntax: bytes, vr: bool = True, order: str = "<") -> bytes:
    """Return the head of a Part 10 file (PS3.10 7.1)."""
    meta = (
        element(0x00020001, b"OB", b"\0\1")
        + element(0x00020002, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
        + element(0x00020003, b"UI", b"1.2.3.4\0")
        + element(0x00020010, b"UI", syntax + b"\0" * (len(syntax) % 2))
        + element(0x00020012, b"UI", b"1.2.3\0")
    )
    ui = b"UI" if vr else b""
    return (
        bytes(128)
        + b"DICM"
        + element(0x00020000, b"UL", struct.pack("<I", len(meta)))
        + meta
        + element(0x00080005, b"CS" if vr else b"", b"ISO_IR 6", order)
        + element(0x00080016, ui, b"1.2.840.10008.5.1.4.1.1.2\0", order)
        + element(0x00080018, ui, b"1.2.3.4\0", order)
        + element(0x00080020, b"DA" if vr else b"", b"20260101", order)
    )


HEADS = [
    part10(b"1.2.840.10008.1.2.1"),
    part10(b"1.2.840.10008.1.2", vr=False),
    part10(b"1.2.840.10008.1.2.2", order=">"),
    part10(b"1.2.840.10008.1.2.1.99"),
    part10(b"1.2.840.10008.1.2.4.50"),
]


def text(number: int, value: bytes) -> bytes:
    """Encode a text element of a command set."""
    return struct.pack("<HHI", 0, number, len(value)) + value


def with_group_length(body: bytes) -> bytes:
    """Put the group length before elements (PS3.7 6.3.1)."""
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


COMMANDS = [
    ECHO,
    STORE,
    FIND,
    with_group_length(b""),
    with_group_length(
        text(0x0002, b"1.2.840.10008.1.1\0")
        + text(0x0100, b"\x30\x80")
        + text(0x0120, b"\1\0")
        + text(0x0600, b" MOVE ")
        + text(0x0800, b"\1\1")
        + text(0x0900, b"\x10\x01")
        + text(0x0901, b"\0\0\0\1\0\0\0\2")
        + text(0x0902, b"a comment ")
        + text(0x1000, b"1.2.3\0")
        + text(0x1005, b"\x10\0\x10\0")
        + text(0x1020, b"\0\0")
        + text(0x1030, b"SCU ")
        + text(0x1031, b"\1\0")
    ),
]
