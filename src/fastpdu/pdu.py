"""A-ASSOCIATE PDUs without what their receiver has to ignore, as pynetdicom's decoder can take them.

Unrecognised items and user information sub-items are to be ignored (PS3.8 9.3.1, PS3.7 D.3.3), and so are all bits of
the protocol version but the first (PS3.8 9.3.2). pynetdicom's decoder raises on the former, its state machine
rejects the latter.
"""

from __future__ import annotations

import struct

from pynetdicom.pdu_items import PDU_ITEM_TYPES

# Types of A-ASSOCIATE-RQ and -AC
_ASSOCIATE = (0x01, 0x02)
# Bytes of the PDU's header, and of its fixed fields with the header (PS3.8 9.3.2)
_HEADER = 6
_FIXED = 74
# The User Information item; what else has sub-items must have all of them (PS3.8 9.3.2.2)
_USER_INFORMATION = 0x50


def without_unknown(data: bytes) -> bytes:
    """Remove what the receiver of an A-ASSOCIATE PDU has to ignore.

    Parameters
    ----------
    data : bytes
        A whole PDU, of any type.

    Returns
    -------
    bytes
        The PDU without items and user information sub-items of unknown types, and without the further bits of the
        protocol version. It is returned as it is if there are none, or if an item ends beyond what contains it: the
        decoder judges that.
    """
    if len(data) < _FIXED or data[0] not in _ASSOCIATE:
        return data
    try:
        items = _known(data[_FIXED:])
    except ValueError:
        return data
    version = b"\0\1" if data[_HEADER + 1] & 1 else data[_HEADER : _HEADER + 2]
    body = version + data[_HEADER + 2 : _FIXED] + items
    return data[:2] + struct.pack(">I", len(body)) + body


def _known(items: bytes, within: bool = False) -> bytes:
    """Return the items of known types, and of the user information likewise.

    Parameters
    ----------
    items : bytes
        Items, one after the other.
    within : bool, optional
        Whether they are sub-items, which contain no more.

    Returns
    -------
    bytes
        Those that are known, as they are or with another length.

    Raises
    ------
    ValueError
        If an item is not whole.
    """
    kept = []
    at = 0
    while at < len(items):
        if len(items) - at < 4:
            raise ValueError("item header cut off")
        kind, length = struct.unpack_from(">BxH", items, at)
        end = at + 4 + length
        if end > len(items):
            raise ValueError("item longer than what contains it")
        if kind in PDU_ITEM_TYPES:
            body = items[at + 4 : end]
            if kind == _USER_INFORMATION and not within:
                body = _known(body, True)
            kept.append(items[at : at + 2] + struct.pack(">H", len(body)) + body)
        at = end
    return b"".join(kept)
