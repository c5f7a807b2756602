"""What stands before the data set in a DICOM file: preamble, prefix and file meta information (PS3.10 7.1)."""

from __future__ import annotations

from functools import lru_cache
from struct import pack

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

_PREAMBLE = bytes(128) + b"DICM"
_VERSION = pack("<HH2sHL", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01"


def file_head(
    sop_class: str,
    sop_instance: str,
    transfer_syntax: str,
    sending_aet: str = "",
    receiving_aet: str = "",
) -> bytes:
    """Return the head of a file for a data set that came over the network.

    Parameters
    ----------
    sop_class, sop_instance : str
        Media Storage SOP Class UID and SOP Instance UID: those of the command set.
    transfer_syntax : str
        Transfer Syntax UID: that of the presentation context.
    sending_aet : str, optional
        The peer's AE title, for Source and Sending Application Entity Title (0002,0016), (0002,0017).
    receiving_aet : str, optional
        Ours, for Receiving Application Entity Title (0002,0018).

    Returns
    -------
    bytes
        Preamble, prefix and file meta information.
    """
    before, after = _frame(sop_class, transfer_syntax, sending_aet, receiving_aet)
    instance = _uid(0x0003, sop_instance)
    length = len(before) + len(instance) + len(after)
    return b"".join(
        (_PREAMBLE, pack("<HH2sHL", 0x0002, 0, b"UL", 4, length), before, instance, after)
    )


@lru_cache(maxsize=256)
def _frame(
    sop_class: str, transfer_syntax: str, sending_aet: str, receiving_aet: str
) -> tuple[bytes, bytes]:
    """Return what stands before and after the SOP Instance UID."""
    after = [
        _uid(0x0010, transfer_syntax),
        _uid(0x0012, PYNETDICOM_IMPLEMENTATION_UID),
        _text(0x0013, b"SH", PYNETDICOM_IMPLEMENTATION_VERSION),
    ]
    if sending_aet:
        after += [_text(0x0016, b"AE", sending_aet), _text(0x0017, b"AE", sending_aet)]
    if receiving_aet:
        after.append(_text(0x0018, b"AE", receiving_aet))
    return _VERSION + _uid(0x0002, sop_class), b"".join(after)


def _uid(element: int, uid: str) -> bytes:
    return _element(element, b"UI", uid, b"\0")


def _text(element: int, vr: bytes, text: str) -> bytes:
    return _element(element, vr, text, b" ")


def _element(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    # (a UID that is none is refused by pynetdicom; one that is merely unusual goes into the file as it came)
    value = text.encode("ascii", "replace")
    value += padding[: len(value) % 2]
    return pack("<HH2sH", 0x0002, element, vr, len(value)) + value
