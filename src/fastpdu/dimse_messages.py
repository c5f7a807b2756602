"""DIMSE messages as bytes and primitives, without pydicom where nothing is lost by it.

The engine's codec handles the command sets that every conforming peer sends. Everything else, and every message that
somebody watches, goes through pynetdicom's own `DIMSEMessage`, so that logs, warnings and errors are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom import _config, _validators, dimse, dimse_messages
from pynetdicom.dsutils import decode, encode

from fastpdu import engine

DATA_SET_FOLLOWS = 0x0001
NO_DATA_SET = 0x0101
C_STORE_RQ = 0x0001
COMMAND_FIELD = 0x0100
COMMAND_DATA_SET_TYPE = 0x0800

# Elements of group 0000 by keyword (PS3.7 E.1), the ones that primitives have as attributes
_ELEMENTS = {
    "AffectedSOPClassUID": 0x0002,
    "RequestedSOPClassUID": 0x0003,
    "MessageID": 0x0110,
    "MessageIDBeingRespondedTo": 0x0120,
    "MoveDestination": 0x0600,
    "Priority": 0x0700,
    "Status": 0x0900,
    "OffendingElement": 0x0901,
    "ErrorComment": 0x0902,
    "ErrorID": 0x0903,
    "AffectedSOPInstanceUID": 0x1000,
    "RequestedSOPInstanceUID": 0x1001,
    "EventTypeID": 0x1002,
    "AttributeIdentifierList": 0x1005,
    "ActionTypeID": 0x1008,
    "NumberOfRemainingSuboperations": 0x1020,
    "NumberOfCompletedSuboperations": 0x1021,
    "NumberOfFailedSuboperations": 0x1022,
    "NumberOfWarningSuboperations": 0x1023,
    "MoveOriginatorApplicationEntityTitle": 0x1030,
    "MoveOriginatorMessageID": 0x1031,
}
_KEYWORDS = {element: keyword for keyword, element in _ELEMENTS.items()}
# Where primitives keep the parameters whose setters check nothing that the codec has not checked
_PLAIN_ATTRIBUTES = {
    "MessageID": "_message_id",
    "MessageIDBeingRespondedTo": "_message_id_being_responded_to",
    "Status": "_status",
}
_UID_ATTRIBUTES = {
    "AffectedSOPClassUID": "_affected_sop_class_uid",
    "AffectedSOPInstanceUID": "_affected_sop_instance_uid",
    "RequestedSOPClassUID": "_requested_sop_class_uid",
    "RequestedSOPInstanceUID": "_requested_sop_instance_uid",
}
# Their values are tags, which pydicom turns into objects of its own
_TAG_ELEMENTS = {0x0901, 0x1005}


_is_conformant = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*").fullmatch


@lru_cache(maxsize=1024)
def _conformant_uid(text: str) -> UID | None:
    """Return a UID that every validator of pydicom and pynetdicom accepts, without asking them; else None."""
    if len(text) > 64 or not _is_conformant(text):
        return None
    return str.__new__(UID, text)


def set_uid(primitive: Any, keyword: str, attribute: str, value: str) -> None:
    """Set a UID parameter of a primitive, by its own setter if there is anything to check.

    Parameters
    ----------
    primitive : pynetdicom.dimse_primitives.DIMSEPrimitive
        The primitive.
    keyword : str
        The parameter.
    attribute : str
        The attribute that holds it.
    value : str
        The UID.
    """
    uid = _conformant_uid(value) if _config.VALIDATORS["UI"] is _validators.validate_ui else None
    if uid is None:
        setattr(primitive, keyword, value)
    else:
        setattr(primitive, attribute, uid)


def _set_plain(primitive: Any, keyword: str, attribute: str, value: Any) -> None:
    setattr(primitive, attribute, value)


def _set_checked(primitive: Any, keyword: str, attribute: str, value: Any) -> None:
    setattr(primitive, keyword, value)


def _setter_for(keyword: str) -> tuple[Callable[[Any, str, str, Any], None], str, str]:
    """Return how a received value is set: (function, keyword, attribute)."""
    if keyword in _PLAIN_ATTRIBUTES:
        return _set_plain, keyword, _PLAIN_ATTRIBUTES[keyword]
    if keyword in _UID_ATTRIBUTES:
        return set_uid, keyword, _UID_ATTRIBUTES[keyword]
    return _set_checked, keyword, ""


class _Layout:
    """What the messages of one type are made of.

    Attributes
    ----------
    message : type
        pynetdicom's message class.
    primitive : type
        The primitive class.
    field : int
        The Command Field (0000,0100).
    elements : tuple of (int, str)
        The (element, attribute of the primitive) pairs of its command set.
    data_keyword : str or None
        The attribute of the primitive that holds the data set.
    """

    __slots__ = ("data_keyword", "elements", "field", "message", "primitive", "setters")

    def __init__(self, field: int, name: str, message: type[dimse_messages.DIMSEMessage]) -> None:
        self.field = field
        self.message = message
        service = message.__name__[: message.__name__.rfind("_R")]
        self.primitive = dimse_messages._MSG_TO_PRIMITVE[service]
        probe = self.primitive()
        self.elements = tuple(
            (_ELEMENTS[keyword], keyword)
            for keyword in dimse_messages._COMMAND_SET_KEYWORDS[name]
            if keyword in _ELEMENTS and hasattr(probe, keyword)
        )
        # How to set a received element: (setter, arguments before the value)
        self.setters = {
            element: _setter_for(keyword)
            for element, keyword in _KEYWORDS.items()
            if hasattr(probe, keyword)
        }
        self.data_keyword = dimse_messages._DATASET_KEYWORDS.get(message.__name__)


_LAYOUTS = {
    field: _Layout(field, name, message)
    for field, (name, message) in dimse_messages._MESSAGE_TYPES.items()
}
_BY_MESSAGE = {layout.message: layout for layout in _LAYOUTS.values()}
_REQUESTS = {primitive: _BY_MESSAGE[message] for primitive, message in dimse._RQ_TO_MESSAGE.items()}
_RESPONSES = {
    primitive: _BY_MESSAGE[message] for primitive, message in dimse._RSP_TO_MESSAGE.items()
}


class Encoded:
    """A message that is ready to be sent.

    Attributes
    ----------
    command : bytes
        The encoded command set.
    data : bytes or sequence of bytes-like
        The encoded data set, empty if it has none or it is in a file.
    file : OpenFile, tuple of (path, int) or None
        The file that holds the data set: open, or its path and the offset where the data set begins.
    """

    __slots__ = ("command", "data", "file")

    def __init__(
        self, command: bytes, data: Any = b"", file: OpenFile | tuple[Any, int] | None = None
    ) -> None:
        self.command = command
        self.data = data
        self.file = file


class OpenFile(tuple[Any, int]):
    """pynetdicom's (path, offset) of a data set in a file, with the file open.

    Attributes
    ----------
    fd : int
        The descriptor, closed by who opened it.
    length : int
        Bytes of the data set.
    """

    fd: int
    length: int

    @classmethod
    def of(cls, path: Any, offset: int, fd: int, length: int) -> OpenFile:
        """Make one."""
        self = cls((path, offset))
        self.fd = fd
        self.length = length
        return self


def layout_of(primitive: Any) -> _Layout:
    """Return the layout of the message that a primitive stands for: request or response (PS3.7 6.3.1)."""
    table = _REQUESTS if primitive.MessageIDBeingRespondedTo is None else _RESPONSES
    return table[primitive.__class__]


def to_stock_message(primitive: Any, context_id: int) -> dimse_messages.DIMSEMessage:
    """Return pynetdicom's message for a primitive, as `DIMSEServiceProvider.send_msg` makes it."""
    message = layout_of(primitive).message()
    message.primitive_to_message(primitive)
    message.context_id = context_id
    return message


def encode_stock_message(message: dimse_messages.DIMSEMessage) -> Encoded:
    """Return the bytes of pynetdicom's message."""
    command = cast(bytes, encode(message.command_set, True, True))
    data = message.data_set.getvalue() if message.data_set is not None else b""
    path = message._data_set_path if message.data_set is None else None
    return Encoded(command, data, cast("tuple[Any, int] | None", path))


def encode_primitive(primitive: Any, context_id: int) -> Encoded:
    """Encode the message that a primitive stands for; the bytes are those of pynetdicom.

    Parameters
    ----------
    primitive : pynetdicom.dimse_primitives.DIMSEPrimitive
        The request or response.
    context_id : int
        The presentation context ID that it is sent under.

    Returns
    -------
    Encoded
        The message.
    """
    layout = layout_of(primitive)
    buffer = getattr(primitive, layout.data_keyword) if layout.data_keyword else None
    path = primitive._dataset_path
    elements: dict[int, Any] = {
        element: getattr(primitive, keyword) for element, keyword in layout.elements
    }
    elements[COMMAND_FIELD] = layout.field
    elements[COMMAND_DATA_SET_TYPE] = DATA_SET_FOLLOWS if buffer or path else NO_DATA_SET
    try:
        command = engine.encode_command(elements)
    except engine.CommandError:
        # Unusual values: let pydicom decide what they are
        return encode_stock_message(to_stock_message(primitive, context_id))
    if buffer is not None:
        return Encoded(command, data_of(buffer))
    return Encoded(command, b"", path)


class BufferList(BytesIO):
    """The encoded data set of a request in several buffers that are not joined.

    It stands where pynetdicom wants an `io.BytesIO`; its own content is made only when somebody asks for it.
    """

    def __init__(self, buffers: list[Any]) -> None:
        super().__init__()
        self.buffers = buffers

    def join(self) -> BytesIO:
        """Return the data set as one buffer."""
        return BytesIO(b"".join(self.buffers))

    def getvalue(self) -> bytes:
        """Return the data set as bytes, joined."""
        return b"".join(self.buffers)


def data_of(buffer: BytesIO) -> Any:
    """Return the encoded data set in a primitive's attribute, without copying it."""
    if isinstance(buffer, BufferList):
        return buffer.buffers
    # Of a BytesIO made from bytes this is those bytes; getbuffer() would copy them
    return buffer.getvalue()


def to_primitive(message: engine.Message) -> Any:
    """Return the primitive for a received message, or None where pynetdicom's own code must make it.

    Parameters
    ----------
    message : engine.Message
        The received message.

    Returns
    -------
    pynetdicom.dimse_primitives.DIMSEPrimitive or None
        The primitive.

    Raises
    ------
    Exception
        What a setter of the primitive raises for a value that the peer should not have sent.
    """
    try:
        elements = engine.decode_command(message.command)
    except engine.CommandError:
        return None
    layout = _LAYOUTS.get(elements.get(COMMAND_FIELD, -1))
    if layout is None or not _TAG_ELEMENTS.isdisjoint(elements):
        return None
    primitive: Any = layout.primitive()
    setters = layout.setters
    for element, value in elements.items():
        if element in setters:
            set_value, keyword, attribute = setters[element]
            set_value(primitive, keyword, attribute, value)
    if layout.data_keyword:
        setattr(primitive, layout.data_keyword, _stream(message.data))
    primitive._context_id = message.context_id
    primitive._dataset_path = None
    primitive._dataset_file = None
    return primitive


def to_received_stock_message(
    context_id: int, command: bytes, data: bytes | None
) -> dimse_messages.DIMSEMessage:
    """Return pynetdicom's message for a received one, as `DIMSEMessage.decode_msg` leaves it.

    Raises
    ------
    Exception
        If the command set cannot be decoded, or its Command Field is unknown.
    """
    message = dimse_messages.DIMSEMessage()
    message.context_id = context_id
    message.encoded_command_set = BytesIO(command)
    message.command_set = decode(message.encoded_command_set, True, True)
    message.__class__ = dimse_messages._MESSAGE_TYPES[message.command_set.CommandField][1]
    message.data_set = _stream(data)
    return message


def _stream(data: bytes | None) -> BytesIO:
    """Return `data` as pynetdicom hands data sets out: a stream at its end. It shares the bytes."""
    stream = BytesIO(data or b"")
    stream.seek(0, 2)
    return stream
