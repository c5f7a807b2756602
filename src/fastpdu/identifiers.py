"""Identifiers of queries and their matches: small data sets, encoded and checked without pydicom's detours.

Whatever is unusual is left to pynetdicom and pydicom, so that results, warnings and errors are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from struct import Struct, pack
from struct import error as StructError
from typing import Any

from pydicom import config
from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.hooks import hooks, raw_element_value, raw_element_vr
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import (
    BYTE_VR_REGEXES,
    EXPLICIT_VR_LENGTH_32,
    MAX_VALUE_LEN,
    VALUE_LENGTH,
    PersonName,
)

from fastpdu.dsutils import raw_dataset

_PLAIN_TYPES = (Dataset, FileDataset)
_CHARACTER_SET = 0x00080005
_ITEM = b"\xfe\xff\x00\xe0"
# Character sets of a single encoding: pydicom encodes text under them as `str.encode` does
_ENCODINGS = {
    term: convert_encodings(term)
    for term in ("ISO_IR 6", "ISO_IR 100", "ISO_IR 101", "ISO_IR 144", "ISO_IR 192")
}
_DEFAULT = ["iso8859"]

_IMPLICIT, _IMPLICIT_FROM = Struct("<HHL").pack, Struct("<HHL").unpack_from
_SHORT, _SHORT_FROM = Struct("<HH2sH").pack, Struct("<HH2sH").unpack_from
_LONG = Struct("<HH2sHL").pack
_LENGTH, _LENGTH_FROM = Struct("<L").pack, Struct("<L").unpack_from
_EXPLICIT_VR = re.compile(rb"[A-Z]{2}")


class _Unusual(Exception):
    """The data set holds something that pydicom has to encode."""


# Encoding ---------------------------------------------------------------------------------------------------------


def encode(dataset: Any, implicit: bool) -> bytes | None:
    """Encode a data set like `pynetdicom.dsutils.encode`, in little endian.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        The data set.
    implicit : bool
        Whether the VRs are left out.

    Returns
    -------
    bytes or None
        None where pynetdicom's own code has to do it, or to say what is wrong.
    """
    try:
        return _encode(dataset, implicit, _DEFAULT)
    except Exception:
        # Values that cannot be encoded, too: pynetdicom logs what its users know
        return None


def _encode(dataset: Any, implicit: bool, encodings: list[str]) -> bytes:
    if type(dataset) not in _PLAIN_TYPES:
        raise _Unusual
    elements = dict(dataset.items())
    if _CHARACTER_SET in elements:
        encodings = _ENCODINGS[dataset.SpecificCharacterSet]
        # A raw one has just been converted, and goes out without its padding
        elements = dict(dataset.items())
    parts = []
    verbatim: bool | None = None
    # By the number: comparing tags takes pydicom longer than encoding them
    for tag in sorted(elements, key=int):
        element = elements[tag]
        group, number = tag >> 16, tag & 0xFFFF
        if number == 0:
            raise _Unusual
        vr = element.VR
        if type(element) is DataElement:
            if element.is_undefined_length:
                raise _Unusual
            if vr == "SQ":
                value = _encode_items(element.value, implicit, encodings)
            else:
                value = _WRITERS[vr](element.value, encodings)
        else:
            if verbatim is None:
                verbatim = _is_verbatim(dataset, implicit)
            # What pydicom may convert, pynetdicom would have converted by now, and seen it fail
            if not verbatim or not _is_harmless(element, encodings):
                raise _Unusual
            value = element.value
        length = len(value)
        if implicit:
            parts.append(_IMPLICIT(group, number, length))
        elif vr in _LONG_VRS:
            parts.append(_LONG(group, number, vr.encode(), 0, length))
        else:
            parts.append(_SHORT(group, number, vr.encode(), length))
        parts.append(value)
    return b"".join(parts)


def _is_verbatim(dataset: Dataset, implicit: bool) -> bool:
    """Whether raw values go out as they are."""
    return (
        _conversion_is_ordinary()
        and dataset.original_encoding == (implicit, True)
        and dataset.original_character_set == dataset._character_set
    )


def _encode_items(items: Any, implicit: bool, encodings: list[str]) -> bytes:
    parts = []
    for item in items or ():
        if getattr(item, "is_undefined_length_sequence_item", False):
            raise _Unusual
        value = _encode(item, implicit, encodings)
        parts += [_ITEM, _LENGTH(len(value)), value]
    return b"".join(parts)


def _joined(value: Any) -> str:
    """Return the values of a text element as one string."""
    if type(value) is str or type(value) is UID:
        return value
    if type(value) is MultiValue:
        return "\\".join(value)
    if value is None:
        return ""
    raise _Unusual


def _write_string(value: Any, _: list[str]) -> bytes:
    raw = _joined(value).encode("iso8859")
    return raw + b" " if len(raw) % 2 else raw


def _write_uid(value: Any, _: list[str]) -> bytes:
    raw = _joined(value).encode("iso8859")
    return raw + b"\0" if len(raw) % 2 else raw


def _write_text(value: Any, encodings: list[str]) -> bytes:
    raw = _joined(value).encode(encodings[0])
    return raw + b" " if len(raw) % 2 else raw


def _write_name(value: Any, encodings: list[str]) -> bytes:
    if type(value) is PersonName:
        raw = value.encode(encodings)
    elif type(value) is MultiValue and value:
        raw = b"\\".join([name.encode(encodings) for name in value])
    elif not value:
        raw = b""
    else:
        raise _Unusual
    return raw + b" " if len(raw) % 2 else raw


def _write_number_string(value: Any, _: list[str]) -> bytes:
    if type(value) is MultiValue:
        text = "\\".join(
            [
                item.original_string if hasattr(item, "original_string") else str(item)
                for item in value
            ]
        )
    elif value is None or value == "":
        text = ""
    else:
        text = value.original_string if hasattr(value, "original_string") else str(value)
    raw = text.encode("iso8859")
    return raw + b" " if len(raw) % 2 else raw


def _numbers(code: str) -> Callable[[Any, list[str]], bytes]:
    one = Struct(f"<{code}").pack

    def write(value: Any, _: list[str]) -> bytes:
        if type(value) is int or type(value) is float:
            return one(value)
        if value is None or value == "":
            return b""
        if type(value) is not MultiValue:
            raise _Unusual
        return pack(f"<{len(value)}{code}", *value)

    return write


_LONG_VRS = frozenset(vr.value for vr in EXPLICIT_VR_LENGTH_32)
_WRITERS: dict[str, Callable[[Any, list[str]], bytes]] = {
    **dict.fromkeys(("AE", "AS", "CS", "DA", "DT", "TM", "UR"), _write_string),
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), _write_text),
    **dict.fromkeys(("DS", "IS"), _write_number_string),
    "UI": _write_uid,
    "PN": _write_name,
    "US": _numbers("H"),
    "UL": _numbers("L"),
    "SL": _numbers("l"),
    "FL": _numbers("f"),
    "FD": _numbers("d"),
}


# Decoding ---------------------------------------------------------------------------------------------------------


def decode(data: bytes, implicit: bool) -> Dataset | None:
    """Decode a data set in little endian like `pynetdicom.dsutils.decode`, if none of its values could cause an error.

    Parameters
    ----------
    data : bytes
        The encoded data set.
    implicit : bool
        Whether the VRs are left out.

    Returns
    -------
    pydicom.dataset.Dataset or None
        Its elements are raw: they are converted when somebody looks at them, without an error or a warning. None where
        pynetdicom's own code has to do it, or to say what is wrong.
    """
    if not _conversion_is_ordinary():
        return None
    try:
        elements, encodings = _parse(data, 0, len(data), implicit, None)
    except (_Unusual, StructError, LookupError, UnicodeError):
        return None
    dataset = raw_dataset(elements)
    dataset.set_original_encoding(implicit, True, encodings or "iso8859")
    return dataset


def _conversion_is_ordinary() -> bool:
    """Whether nobody has changed how pydicom converts raw elements."""
    return (
        config.data_element_callback is None
        and not config.datetime_conversion
        and not config.use_none_as_empty_text_VR_value
        and hooks.raw_element_value is raw_element_value
        and hooks.raw_element_vr is raw_element_vr
    )


def _parse(
    data: bytes, position: int, end: int, implicit: bool, encodings: list[str] | None
) -> tuple[dict[BaseTag, RawDataElement], list[str] | None]:
    """Return the elements in a part of `data`, and the encodings of their text."""
    elements: dict[BaseTag, RawDataElement] = {}
    if implicit and _EXPLICIT_VR.match(data, position + 4, min(position + 6, end)):
        # Looks like explicit VR: pydicom takes it for that, and warns
        raise _Unusual
    while position < end:
        vr = None
        if implicit:
            group, number, length = _IMPLICIT_FROM(data, position)
            position += 8
        else:
            group, number, code, length = _SHORT_FROM(data, position)
            vr = _CODES[code]
            position += 8
            if vr in _LONG_VRS:
                (length,) = _LENGTH_FROM(data, position)
                position += 4
        tag, known, is_character_set = _known(group << 16 | number)
        after = position + length
        if after > end:
            raise _Unusual
        value: Any = data[position:after] if length else _EMPTY[vr]
        meaning = vr or known
        if meaning == "SQ":
            _parse_items(data, position, after, implicit, encodings)
        elif not _CHECKS[meaning](value or b"", encodings or _DEFAULT):
            raise _Unusual
        if is_character_set:
            encodings = _ENCODINGS[(value or b"").rstrip(b" \0").decode("ascii")]
        elements[tag] = RawDataElement(tag, vr, length, value, position, implicit, True)
        position = after
    return elements, encodings


def _parse_items(
    data: bytes, position: int, end: int, implicit: bool, encodings: list[str] | None
) -> None:
    """Check the items of a sequence (PS3.5 7.5)."""
    while position < end:
        if data[position : position + 4] != _ITEM:
            raise _Unusual
        (length,) = _LENGTH_FROM(data, position + 4)
        position += 8
        if length > end - position:
            raise _Unusual
        _parse(data, position, position + length, implicit, encodings)
        position += length


@lru_cache(maxsize=4096)
def _known(number: int) -> tuple[BaseTag, str, bool]:
    """Return a tag of the standard's dictionary (not a group length), its VR, and whether it is the character set."""
    tag = BaseTag(number)
    if not tag.element:
        raise _Unusual
    return tag, DicomDictionary[number][0], number == _CHARACTER_SET


def _is_harmless(element: RawDataElement, encodings: list[str]) -> bool:
    """Whether the conversion of a raw element certainly goes well, without a warning."""
    try:
        vr = element.VR or _known(int(element.tag))[1]
        return type(element.value) is bytes and _CHECKS[vr](element.value, encodings)
    except (_Unusual, LookupError, UnicodeError):
        return False


Check = Callable[[bytes, "list[str]"], bool]


def _text(limit: int) -> Check:
    def check(value: bytes, encodings: list[str]) -> bool:
        if not value.isascii():
            value.decode(encodings[0])
        return len(value) <= limit and b"\x1b" not in value

    return check


_plain_name = _text(64)


def _name(value: bytes, encodings: list[str]) -> bool:
    return value.count(b"=") < 3 and _plain_name(value, encodings)


def _matching(vr: str) -> Check:
    """Return a check by pydicom's own pattern of a VR, for one value or several."""
    match = BYTE_VR_REGEXES[vr].match
    # An IS of more digits may be out of range (PS3.5 6.2)
    limit = 9 if vr == "IS" else MAX_VALUE_LEN.get(vr, 64)

    def check(value: bytes, encodings: list[str]) -> bool:
        value = value.rstrip(b" \0")
        if b"\\" in value:
            return all(check(part, encodings) for part in value.split(b"\\"))
        return not value or (len(value) <= limit and value[-1] != 10 and match(value) is not None)

    return check


_plain_decimal = _matching("DS")


def _decimal(value: bytes, encodings: list[str]) -> bool:
    # With an exponent it may be beyond a double
    return b"e" not in value and b"E" not in value and _plain_decimal(value, encodings)


def _multiple_of(size: int) -> Check:
    return lambda value, _: len(value) % size == 0


_CHECKS: dict[str, Check] = {
    **{vr: _text(MAX_VALUE_LEN[vr]) for vr in ("LO", "LT", "SH", "ST")},
    **{vr: _matching(vr) for vr in ("AE", "AS", "CS", "DA", "DT", "IS", "TM", "UI")},
    **{vr: _multiple_of(size) for vr, size in VALUE_LENGTH.items()},
    "DS": _decimal,
    "PN": _name,
}
_CODES = {vr.encode(): vr for vr in (*_CHECKS, "SQ")}
_EMPTY: dict[str | None, Any] = {
    vr: empty_value_for_VR(vr, raw=True) for vr in (None, *_CODES.values())
}
