"""Damage: to the structure of PDUs and PDVs (their lengths, types, headers and order), to elements, and to any byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from random import Random

from fuzz_corpus import OPTIONS, VALID

MARKS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x20, 0x50, 0x5C, 0x7F, 0x80, 0xFE, 0xFF)
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 999, 1001, 16381, 16383, 2**20, 2**24 + 1, 2**31, 2**32 - 1)
LONGEST = 150_000  # bytes of an input


@dataclass(frozen=True)
class Pdv:
    context: int
    control: int
    fragment: bytes
    length: int | None = None

    def __bytes__(self) -> bytes:
        length = len(self.fragment) + 2 if self.length is None else self.length
        return struct.pack(">IBB", length, self.context, self.control) + self.fragment


@dataclass(frozen=True)
class Pdu:
    kind: int
    body: bytes = b""  # what is no PDV, at the end
    pdvs: list[Pdv] = field(default_factory=list)
    length: int | None = None

    def __bytes__(self) -> bytes:
        body = b"".join(map(bytes, self.pdvs)) + self.body
        length = len(body) if self.length is None else self.length
        return struct.pack(">BxI", self.kind, length) + body


def parsed(stream: bytes) -> tuple[list[Pdu], bytes]:
    """Return the PDUs of a stream, and what is left where it stops being one."""
    pdus = []
    while len(stream) >= 6:
        kind, length = struct.unpack(">BxI", stream[:6])
        if length > len(stream) - 6:
            break
        body, stream = stream[6 : 6 + length], stream[6 + length :]
        pdvs = []
        while kind == 4 and len(body) >= 6:
            size, context, control = struct.unpack(">IBB", body[:6])
            if not 2 <= size <= len(body) - 4:
                break
            pdvs.append(Pdv(context, control, body[6 : 4 + size]))
            body = body[4 + size :]
        pdus.append(Pdu(kind, body, pdvs))
    return pdus, stream


def near(chance: Random, length: int) -> int:
    """Return a length that is interesting where `length` would be right."""
    wrong = chance.choice(LENGTHS) if chance.random() < 0.6 else length + chance.randint(-7, 7)
    return wrong % 2**32


def damage_pdv(chance: Random, pdv: Pdv) -> list[Pdv]:
    """Return what becomes of a PDV."""
    kind = chance.choice(("length", "context", "control", "cut", "cut", "empty", "twice", "steady"))
    at = chance.randint(0, len(pdv.fragment))
    if kind == "length":
        return [replace(pdv, length=near(chance, len(pdv.fragment) + 2))]
    if kind == "context":
        return [replace(pdv, context=chance.choice((0, 1, 2, 3, 5, 255)))]
    if kind == "control":
        return [replace(pdv, control=pdv.control ^ chance.choice((1, 2, 3, 4, 0xFC)))]
    if kind == "cut":
        return [
            replace(pdv, fragment=pdv.fragment[:at], control=pdv.control & ~2),
            replace(pdv, fragment=pdv.fragment[at:]),
        ]
    if kind == "empty":
        return [replace(pdv, fragment=b"", control=pdv.control & ~2), pdv]
    if kind == "twice":
        return [pdv, pdv]
    size = max(chance.choice((1, 2, 10, 100, 4090, 5000)), len(pdv.fragment) // 200, 1)
    starts = range(0, len(pdv.fragment), size)
    return [
        replace(
            pdv,
            fragment=pdv.fragment[start : start + size],
            control=pdv.control if start + size >= len(pdv.fragment) else pdv.control & ~2,
        )
        for start in starts
    ]


def damage_pdus(chance: Random, pdus: list[Pdu]) -> list[Pdu]:
    """Return what becomes of PDUs."""
    if not pdus or chance.random() < 0.1:
        more, _ = parsed(chance.choice(VALID))
        at = chance.randint(0, len(pdus))
        return pdus[:at] + more + pdus[at:]
    at = chance.randrange(len(pdus))
    one = pdus[at]
    kind = chance.choice(
        (
            "pdv",
            "pdv",
            "pdv",
            "apart",
            "apart",
            "together",
            "length",
            "type",
            "lost",
            "twice",
            "swap",
        )
    )
    if kind == "pdv" and one.pdvs:
        which = chance.randrange(len(one.pdvs))
        changed = damage_pdv(chance, one.pdvs[which])
        new = [replace(one, pdvs=[*one.pdvs[:which], *changed, *one.pdvs[which + 1 :]])]
    elif kind == "apart" and one.pdvs:
        new = [Pdu(one.kind, b"", [pdv]) for pdv in one.pdvs]
    elif kind == "together":
        new = [
            Pdu(
                one.kind,
                one.body,
                one.pdvs + [pdv for two in pdus[at + 1 : at + 2] for pdv in two.pdvs],
            )
        ]
        return [*pdus[:at], *new, *pdus[at + 2 :]]
    elif kind == "length":
        new = [replace(one, length=near(chance, len(bytes(one)) - 6))]
    elif kind == "type":
        new = [replace(one, kind=chance.choice((*range(9), 0x16, 0x47, 0xFF)))]
    elif kind == "lost":
        new = []
    elif kind == "swap":
        other = chance.randrange(len(pdus))
        swapped = list(pdus)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return swapped
    else:
        new = [one, one]
    return [*pdus[:at], *new, *pdus[at + 1 :]]


def damage_bytes(chance: Random, data: bytes) -> bytes:
    """Change, lose or add a few bytes, mostly near the beginning."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(min(len(changed), chance.choice((40, 200, 2**20))) + 1)
        kind = chance.choice(("set", "set", "set", "flip", "lose", "add", "again", "end"))
        if kind == "set":
            changed[at : at + 1] = bytes((chance.choice((*MARKS, chance.randrange(256))),))
        elif kind == "flip" and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == "lose":
            del changed[at : at + chance.choice((1, 2, 4, 8, 30))]
        elif kind == "add":
            changed[at:at] = chance.randbytes(chance.randint(1, 12))
        elif kind == "again":
            changed[at:at] = changed[at : at + chance.randint(1, 100)]
        elif kind == "end" and chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def damage_stream(chance: Random, data: bytes) -> bytes:
    """Damage a stream of PDUs with its options in front."""
    options, stream = data[:OPTIONS].ljust(OPTIONS, b"\0"), data[OPTIONS:]
    if chance.random() < 0.7:
        options = chance.randbytes(OPTIONS)
    if chance.random() < 0.75:
        pdus, rest = parsed(stream)
        for _ in range(chance.choice((1, 1, 2, 3, 6))):
            pdus = damage_pdus(chance, pdus)
        stream = b"".join(map(bytes, pdus)) + rest
    if chance.random() < 0.35:
        stream = damage_bytes(chance, stream)
    return options + stream[:LONGEST]


def damage_elements(chance: Random, data: bytes, at: int) -> bytes:
    """Damage a sequence of elements in implicit VR that begins at `at`, keeping the group length right mostly."""
    elements = []
    while len(data) - at >= 8:
        size = struct.unpack_from("<I", data, at + 4)[0]
        if size > len(data) - at - 8:
            break
        elements.append(data[at : at + 8 + size])
        at += 8 + size
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not elements:
            break
        which = chance.randrange(len(elements))
        one = elements[which]
        tag, value = one[:4], one[8:]
        kind = chance.choice(("value", "value", "size", "lost", "twice", "swap", "tag", "pad"))
        if kind == "value":
            value = damage_bytes(chance, value)
            elements[which] = tag + struct.pack("<I", len(value)) + value
        elif kind == "size":
            elements[which] = tag + struct.pack("<I", near(chance, len(value))) + value
        elif kind == "lost":
            del elements[which]
        elif kind == "twice":
            elements.insert(which, one)
        elif kind == "swap":
            other = chance.randrange(len(elements))
            elements[which], elements[other] = elements[other], elements[which]
        elif kind == "tag":
            elements[which] = damage_bytes(chance, tag)[:4].ljust(4, b"\0") + one[4:]
        else:
            padding = chance.choice((b"\0", b" ", b"\\1", b"  ", b"\xff"))
            value = chance.choice((value + padding, padding + value, padding * 2))
            elements[which] = tag + struct.pack("<I", len(value)) + value
    return b"".join(elements)


def damage_command(chance: Random, data: bytes) -> bytes:
    """Damage a command set."""
    if chance.random() < 0.25:
        return damage_bytes(chance, data)
    body = damage_elements(chance, data, 12)
    length = len(body) if chance.random() < 0.95 else near(chance, len(body))
    return data[:8] + struct.pack("<I", length) + body


def damage_head(chance: Random, data: bytes) -> bytes:
    """Damage the head of a Part 10 file behind its preamble, keeping the group length right mostly."""
    if len(data) < 144:
        return damage_bytes(chance, data)
    kind = chance.random()
    if kind < 0.1:
        return damage_bytes(chance, data)
    head, length, rest = data[:140], struct.unpack_from("<I", data, 140)[0], data[144:]
    meta, body = rest[:length], rest[length:]
    if kind < 0.6:
        meta = damage_bytes(chance, meta)
    if kind > 0.5:
        body = damage_bytes(chance, body)
    if chance.random() < 0.2:
        length = near(chance, len(meta))
    elif chance.random() < 0.9:
        length = len(meta)
    return head + struct.pack("<I", length) + meta + body
