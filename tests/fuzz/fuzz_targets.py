"""What is fuzzed: each target takes any bytes, and fails when the engines do not agree on them.

The pure engine is the oracle of the compiled one. Nothing may escape but the exceptions that docs/engine.md names.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import fuzz_corpus as corpus
import fuzz_mutations as mutations
import pytest
from engine_kit import IMPLS, Impl, link, outcomes

LIMITS = (0, 0, 1000, 16382, 20_000)  # maximum length announced, half of it the longest message
CHUNK = 50_000  # bytes that always fit into the buffers of a socket
SPLIT = frozenset({0x0001, 0x0020})

PURE_FD, PURE_SOCKET, COMPILED_FD, COMPILED_SOCKET = IMPLS


@dataclass(frozen=True)
class Target:
    """A function to be fuzzed."""

    run: Callable[[bytes], None]
    corpus: list[bytes]
    damage: Callable[[Random, bytes], bytes]


def codecs() -> list[Any]:
    """Return the engines' modules, the oracle first."""
    return [PURE_FD.module, COMPILED_FD.module]


# ------------------------------------------------------------------------------------------ streams


class Case:
    """A stream of bytes and how it is received.

    Parameters
    ----------
    data : bytes
        `corpus.OPTIONS` bytes that choose, and the stream.
    """

    def __init__(self, data: bytes) -> None:
        options = data[: corpus.OPTIONS].ljust(corpus.OPTIONS, b"\0")
        self.stream = data[corpus.OPTIONS : corpus.OPTIONS + mutations.LONGEST]
        self.limit = LIMITS[options[0] % len(LIMITS)]
        self.split = bool(options[1] & 1)
        self.to_file = bool(options[1] & 2)
        self.seed = int.from_bytes(options[2:4], "big")

    def setup(self, conn: Any) -> None:
        conn.max_receive_pdu = self.limit
        conn.max_message = self.limit // 2
        conn.split_commands = SPLIT if self.split else frozenset()

    def whole(self) -> list[bytes]:
        """Return the stream in as few chunks as possible."""
        return [self.stream[at : at + CHUNK] for at in range(0, len(self.stream), CHUNK)]

    def cut(self) -> list[bytes]:
        """Return the stream in chunks of any size."""
        chance = Random(self.seed)
        usual = chance.choice((1, 5, 11, 12, 13, 300, 4095, 4097, 20_000))
        usual = max(usual, len(self.stream) // 150)
        chunks, at = [], 0
        while at < len(self.stream):
            size = usual if chance.random() < 0.7 else chance.randint(1, 2 * usual)
            chunks.append(self.stream[at : at + min(size, CHUNK)])
            at += len(chunks[-1])
        return chunks


def in_sink(impl: Impl, case: Case, chunks: list[bytes]) -> list[Any]:
    """Return the outcomes of a receiver, and what of whole messages is in the sink.

    Up to a message that was given up: how much of that has been written already is nobody's business.
    """
    with tempfile.TemporaryFile() as file:
        found: list[Any] = outcomes(impl, chunks, setup=case.setup, sink=file.fileno())
        whole = found[: found.index(("dropped",))] if ("dropped",) in found else found
        size = sum(one[4] for one in whole if one[0] == "message" and one[3] is None)
        found.append(os.pread(file.fileno(), size, 0))
    return found


def receiver(data: bytes) -> None:
    """`receive`: the same messages and failures of each engine, backend and cut."""
    case = Case(data)

    def take(impl: Impl, chunks: list[bytes]) -> list[Any]:
        if case.to_file:
            return in_sink(impl, case, chunks)
        return outcomes(impl, chunks, setup=case.setup)

    whole, cut = case.whole(), case.cut()
    expected = take(PURE_FD, whole)
    for impl, chunks in (
        (COMPILED_FD, whole),
        (COMPILED_FD, cut),
        (COMPILED_SOCKET, cut),
        (PURE_SOCKET, cut),
    ):
        found = take(impl, chunks)
        assert found == expected, difference(impl, chunks, expected, found)


def pdus(data: bytes) -> None:
    """`receive_pdu`: the same PDUs and failures."""
    case = Case(data)
    expected = pdu_by_pdu(PURE_FD, case, case.whole())
    for impl in (COMPILED_FD, COMPILED_SOCKET, PURE_SOCKET):
        found = pdu_by_pdu(impl, case, case.cut())
        assert found == expected, difference(impl, case.cut(), expected, found)


def pdu_by_pdu(impl: Impl, case: Case, chunks: list[bytes]) -> list[Any]:
    """Return the PDUs that a receiver finds, and how it ends."""
    module = impl.module
    found: list[Any] = []
    with link(impl) as one:
        case.setup(one.conn)
        try:
            for at, chunk in enumerate([*chunks, b""]):
                one.feed(chunk, close=at == len(chunks))
                while (pdu := one.conn.receive_pdu()) is not None:
                    found.append(pdu)
        except module.ProtocolError as error:
            found.append(("protocol error", error.reason))
        except module.PeerClosed as error:
            found.append(("closed", error.received, error.expected))
    return found


def calls(data: bytes) -> None:
    """Any legal sequence of calls: the same results, the same state."""
    case = Case(data)
    chunks = case.cut()
    expected = called(PURE_FD, case, chunks)
    for impl in (COMPILED_FD, COMPILED_SOCKET):
        found = called(impl, case, chunks)
        assert found == expected, difference(impl, chunks, expected, found)


def called(impl: Impl, case: Case, chunks: list[bytes]) -> list[Any]:
    """Return what the calls on a connection come to."""
    module = impl.module
    with link(impl) as one:
        case.setup(one.conn)
        caller = Caller(module, one.conn, Random(case.seed))
        try:
            for chunk in chunks:
                one.feed(chunk)
                caller.take()
            one.feed(b"", close=True)
            caller.take()
        except module.ProtocolError as error:
            caller.trace.append(("protocol error", error.reason))
            one.conn.abandon()
            caller.trace.append(_state(one.conn))
        except module.PeerClosed as error:
            caller.trace.append(("closed", error.received, error.expected))
    return caller.trace


def _state(conn: Any) -> tuple[Any, ...]:
    return conn.in_message, conn.in_pdu


class Caller:
    """Somebody who takes what has come, one way or the other.

    Parameters
    ----------
    module : module
        The engine.
    conn : Connection
        Its connection.
    chance : Random
        What decides; the same sequence on each engine as long as they agree.
    """

    def __init__(self, module: Any, conn: Any, chance: Random) -> None:
        self.module, self.conn, self.chance = module, conn, chance
        self.by_pdu = False  # a PDU that `receive_pdu` has begun is its own
        self.trace: list[Any] = []

    def take(self) -> None:
        """Take all that is there."""
        module, conn, chance, trace = self.module, self.conn, self.chance, self.trace
        between = _state(conn) == (False, False)
        while True:
            # What `receive_pdu` has begun is its own; between two PDUs either may go on
            if self.by_pdu or (between and chance.random() < 0.2):
                whole = conn.receive_pdu()
                trace.append(whole)
                self.by_pdu = whole is None
                if whole is None:
                    break
                between = True
                continue
            got = conn.receive(0)
            between = False
            if got == module.TIMEOUT:
                break
            if got == module.OTHER:
                trace.append(("other", conn.in_message))
                if conn.in_message:
                    conn.drop_message()
                self.by_pdu = True
            elif got == module.PARTIAL:
                trace.append(("partial", conn.partial.context_id, conn.partial.command))
                if chance.random() < 0.3:
                    assert conn.receive(0) == module.PARTIAL
                conn.set_sink(-1)
            else:
                trace.append((got.context_id, got.command, got.data, got.length))
                between = True
        # Everything that has come is read now
        trace.append(
            (*_state(conn), conn.bytes_received, conn.pdus_received, conn.messages_received)
        )
        if chance.random() < 0.03:
            conn.abandon()
            self.by_pdu = False
            trace.append(_state(conn))


def difference(impl: Impl, chunks: list[bytes], expected: list[Any], found: list[Any]) -> str:
    """Say where two lists of outcomes part."""
    at = next(
        (at for at, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    sizes = [len(chunk) for chunk in chunks]
    return (
        f"{impl}, chunks of {sizes[:20]}, outcome {at}:\n"
        f"expected {str(expected[at : at + 2])[:500]}\nfound    {str(found[at : at + 2])[:500]}"
    )


# ------------------------------------------------------------------------------------------- codecs


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns, or that it refused."""
    try:
        return call(*args)
    except tuple(engine.CommandError for engine in codecs()):
        return "refused"


def decode(data: bytes) -> None:
    """`decode_command`, and back: the engines agree, and nothing is lost."""
    expected, found = (outcome(engine.decode_command, data) for engine in codecs())
    assert found == expected
    if expected == "refused":
        return
    for engine in codecs():
        again = outcome(engine.encode_command, expected)
        assert again == outcome(codecs()[0].encode_command, expected)
        if again != "refused":
            assert engine.decode_command(again) == expected


NUMBERS = (0, 1, 2, 0x0101, 0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**64, -1, True)
KNOWN = (2, 3, 0x100, 0x110, 0x120, 0x600, 0x700, 0x800, 0x900, 0x901, 0x902, 0x903, 0x1000, 0x1001)
MORE = (0x1002, 0x1005, 0x1008, 0x1020, 0x1021, 0x1022, 0x1023, 0x1030, 0x1031)
STRANGE = (0, 1, 4, 0x101, 0x1032, 0x1100, 0xFFFF, 0x10002, 2**40, -1)


def elements(chance: Random) -> dict[int, Any]:
    """Return elements that `encode_command` may be given, some of which it must refuse."""

    def value() -> Any:
        kind = chance.choice(("number", "number", "text", "text", "text", "tags", "none", "odd"))
        if kind == "number":
            return chance.choice((*NUMBERS, chance.randrange(2**16)))
        if kind == "text":
            letters = chance.choice(("1.2", "ABC ", "a\\b", " ", "\0", "\xe4", ""))
            size = chance.choice((0, 1, 2, 16, 17, 64, 255, 256, 257))
            return "".join(chance.choices(letters, k=size)) if letters else ""
        if kind == "tags":
            size = chance.choice((0, 1, 2, 20, 255, 256, 257))
            return tuple(chance.choice((*NUMBERS[:8], 0x00100010)) for _ in range(size))
        return None if kind == "none" else chance.choice((1.5, b"1.2", [1], object, "\ud800"))

    tags = (*KNOWN, *MORE, *STRANGE) if chance.random() < 0.1 else (*KNOWN, *MORE)
    return {tag: value() for tag in chance.sample(tags, chance.randint(0, len(tags) - 1))}


def sensible(chance: Random) -> dict[int, Any]:
    """Return elements of which most can be encoded."""
    found: dict[int, Any] = {}
    for tag in (*KNOWN, *MORE):
        if chance.random() < 0.5:
            continue
        if tag in (2, 3, 0x1000, 0x1001, 0x600, 0x902, 0x1030):
            found[tag] = "1.2" * chance.choice((1, 2, 5, 21, 80, 85))
        elif tag in (0x901, 0x1005):
            found[tag] = tuple(
                chance.randrange(2**32) for _ in range(chance.choice((1, 3, 250, 256)))
            )
        else:
            found[tag] = chance.randrange(2**16)
    return found


def encode(data: bytes) -> None:
    """`encode_command`: the same bytes or the same refusal; what was encoded can be decoded."""
    chance = Random(data)
    given = sensible(chance) if data[:1] < b"\x80" else elements(chance)
    expected, found = (outcome(engine.encode_command, given) for engine in codecs())
    assert found == expected, given
    if expected != "refused":
        decode(expected)


def head(data: bytes) -> None:
    """`read_part10`: the same answer, and one that is true."""
    names = [
        *("sop_class", "sop_instance", "media_sop_class", "media_sop_instance"),
        *("transfer_syntax", "offset"),
    ]
    expected, found = (
        None if one is None else [getattr(one, name) for name in names]
        for one in (engine.read_part10(data) for engine in codecs())
    )
    assert found == expected
    assert expected is None or 144 <= expected[-1] <= len(data)


TARGETS = {
    "receiver": Target(receiver, corpus.STREAMS, mutations.damage_stream),
    "pdus": Target(pdus, corpus.STREAMS, mutations.damage_stream),
    "calls": Target(calls, corpus.STREAMS, mutations.damage_stream),
    "decode": Target(decode, corpus.COMMANDS, mutations.damage_command),
    "encode": Target(encode, [b"\0", b"\xff"], mutations.damage_bytes),
    "part10": Target(head, corpus.HEADS, mutations.damage_head),
}


def need_both() -> None:
    """Skip the test where there is only one engine."""
    try:
        importlib.import_module("fastpdu._fastpdu")
    except ImportError:
        pytest.skip("there is only one engine here")
