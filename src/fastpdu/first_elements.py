"""The first elements of a data set in a file: some values, without reading pixel data or decoding anything else.

The data set is not trusted: what is read is bounded, whatever lengths it declares.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Collection
from struct import Struct

# Whole data sets that are deflated: Deflated Explicit VR, JPIP (HTJ2K) Referenced Deflate (PS3.5 A.5, A.7, A.9)
DEFLATED = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# Bytes that are looked at for one data set
MAX_READ = 4 * 2**20
_MAX_DEFLATED = 256 * 1024
_MAX_INFLATED = 2**20
_PIECE = 16 * 1024
_MAX_VALUE = 1024
_MAX_DEPTH = 32
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_Read = Callable[[int, int], bytes]


class _Unreadable(Exception):
    """The data set ends, or is not one, or is more than shall be read."""


def first_elements(
    fd: int, offset: int, transfer_syntax: str, tags: Collection[int]
) -> dict[int, str]:
    """Return the values of text elements of a data set.

    Parameters
    ----------
    fd : int
        The file, open for reading.
    offset : int
        Where the data set begins.
    transfer_syntax : str
        Its transfer syntax.
    tags : collection of int
        The tags of the elements.

    Returns
    -------
    dict of int and str
        The values that were found, the first of each element, without padding; text that is not ASCII has
        ``\\ufffd`` in it. None of what stands behind something that cannot be read.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    found: dict[int, str] = {}
    try:
        read = _inflating(fd, offset) if transfer_syntax in DEFLATED else _reading(fd, offset)
        walker = _Walker(read, transfer_syntax != _IMPLICIT, transfer_syntax == _BIG_ENDIAN)
        walker.collect(frozenset(tags), found)
    except (_Unreadable, zlib.error):
        pass
    return found


def _pread(fd: int, n: int, at: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, n, at)
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, n)


def _reading(fd: int, offset: int) -> _Read:
    """Read a file in pieces."""
    begin, piece, left = 0, b"", MAX_READ

    def read(at: int, n: int) -> bytes:
        nonlocal begin, piece, left
        if not begin <= at or at + n > begin + len(piece):
            left -= _PIECE
            if left < 0:
                raise _Unreadable
            begin, piece = at, _pread(fd, _PIECE, offset + at)
        return piece[at - begin : at - begin + n]

    return read


def _inflating(fd: int, offset: int) -> _Read:
    """Inflate the beginning of a file (PS3.5 A.5), not more than a bounded number of bytes."""
    whole = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
        _pread(fd, _MAX_DEFLATED, offset), _MAX_INFLATED
    )
    return lambda at, n: whole[at : at + n]


class _Walker:
    """Walks through the elements of a data set (PS3.5 7.1)."""

    def __init__(self, read: _Read, explicit: bool, big: bool) -> None:
        self._read = read
        self._explicit = explicit
        order = ">" if big else "<"
        self._tag = Struct(order + "HH").unpack_from
        self._short = Struct(order + "H").unpack_from
        self._long = Struct(order + "L").unpack_from

    def collect(self, tags: frozenset[int], found: dict[int, str]) -> None:
        """Collect the values of elements, as far as they can be read."""
        last = max(tags)
        at = 0
        while True:
            tag, length, value = self._element(at, self._explicit)
            if tag > last:
                return
            if tag in tags and length != _UNDEFINED:
                text = self._read(value, min(length, _MAX_VALUE))
                first = text.decode("ascii", "replace").split("\\")[0].strip(" \0")
                if first and tag not in found:
                    found[tag] = first
                if tag == last:
                    return
            at = self._behind(length, value, self._explicit, 0)

    def _element(self, at: int, explicit: bool) -> tuple[int, int, int]:
        """Return an element's tag, length, and where its value begins."""
        head = self._read(at, 12)
        if len(head) < 8:
            raise _Unreadable
        group, element = self._tag(head)
        tag = group << 16 | element
        if not explicit or group == 0xFFFE:
            return tag, self._long(head, 4)[0], at + 8
        vr = head[4:6]
        if vr not in _LONG_VRS:
            if not vr.isalpha() or not vr.isupper():
                raise _Unreadable
            return tag, self._short(head, 6)[0], at + 8
        if len(head) < 12:
            raise _Unreadable
        return tag, self._long(head, 8)[0], at + 12

    def _behind(self, length: int, value: int, explicit: bool, depth: int) -> int:
        """Return where the next element begins."""
        return value + length if length != _UNDEFINED else self._skip(value, explicit, depth)

    def _skip(self, at: int, explicit: bool, depth: int) -> int:
        """Return where a sequence of undefined length ends (PS3.5 7.5)."""
        if depth > _MAX_DEPTH:
            raise _Unreadable
        while True:
            tag, length, at = self._element(at, explicit)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise _Unreadable
            if length != _UNDEFINED:
                at += length
                continue
            while True:
                tag, length, value = self._element(at, explicit)
                if tag == _ITEM_END:
                    at = value
                    break
                at = self._behind(length, value, explicit, depth + 1)
