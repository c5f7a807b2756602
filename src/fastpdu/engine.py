"""The engine in use: the compiled one, or its Python twin.

The compiled engine ``fastpdu._fastpdu`` is used unless it cannot be loaded; then ``fastpdu._pure`` is, with a
`RuntimeWarning`. The environment variable ``FASTPDU_ENGINE`` asks for one of them: ``compiled`` (an `ImportError` if it
cannot be loaded) or ``pure``. ``docs/engine.md`` describes the interface.

Attributes
----------
BACKEND : str
    ``"compiled"`` or ``"pure"``.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

__all__ = [
    "BACKEND",
    "CAN_CORK",
    "COMMAND",
    "HARD_PDU_CAP",
    "MAX_ASSOCIATE_PDU",
    "MAX_COMMAND",
    "MIN_PDU",
    "OTHER",
    "PARTIAL",
    "READY",
    "STALL_NS",
    "TIMEOUT",
    "TURNS",
    "UNLIMITED_FRAGMENT",
    "WAKE",
    "Cancelled",
    "CommandError",
    "Connection",
    "FdConnection",
    "FileError",
    "Message",
    "NewFile",
    "Part10",
    "PeerClosed",
    "ProtocolError",
    "SocketConnection",
    "close_file",
    "connect",
    "decode_command",
    "encode_command",
    "is_uid",
    "is_whole",
    "open_head",
    "read_part10",
]

BACKEND: str


def _choose() -> str:
    """Return the name of the engine to use.

    Returns
    -------
    str
        ``"compiled"`` or ``"pure"``.

    Raises
    ------
    ImportError
        If the compiled engine was asked for and cannot be loaded.
    ValueError
        If ``FASTPDU_ENGINE`` is neither of the two.
    """
    wanted = os.environ.get("FASTPDU_ENGINE", "").strip().lower()
    if wanted not in ("", "compiled", "pure"):
        raise ValueError(f"FASTPDU_ENGINE must be 'compiled' or 'pure', not {wanted!r}")
    if wanted == "pure":
        return "pure"
    try:
        import fastpdu._fastpdu  # noqa: F401
    except ImportError as error:
        if wanted == "compiled":
            raise
        warnings.warn(
            f"The compiled engine cannot be loaded, the slow one in Python is used: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return "pure"
    return "compiled"


BACKEND = _choose()

if TYPE_CHECKING or BACKEND == "compiled":
    from fastpdu._fastpdu import (
        CAN_CORK,
        COMMAND,
        HARD_PDU_CAP,
        MAX_ASSOCIATE_PDU,
        MAX_COMMAND,
        MIN_PDU,
        OTHER,
        PARTIAL,
        READY,
        STALL_NS,
        TIMEOUT,
        TURNS,
        UNLIMITED_FRAGMENT,
        WAKE,
        Cancelled,
        CommandError,
        Connection,
        FdConnection,
        FileError,
        Message,
        NewFile,
        Part10,
        PeerClosed,
        ProtocolError,
        SocketConnection,
        close_file,
        connect,
        decode_command,
        encode_command,
        is_uid,
        is_whole,
        open_head,
        read_part10,
    )
else:
    from fastpdu._pure import (
        CAN_CORK,
        COMMAND,
        HARD_PDU_CAP,
        MAX_ASSOCIATE_PDU,
        MAX_COMMAND,
        MIN_PDU,
        OTHER,
        PARTIAL,
        READY,
        STALL_NS,
        TIMEOUT,
        TURNS,
        UNLIMITED_FRAGMENT,
        WAKE,
        Cancelled,
        CommandError,
        Connection,
        FdConnection,
        FileError,
        Message,
        NewFile,
        Part10,
        PeerClosed,
        ProtocolError,
        SocketConnection,
        close_file,
        connect,
        decode_command,
        encode_command,
        is_uid,
        is_whole,
        open_head,
        read_part10,
    )
