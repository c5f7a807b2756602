"""DIMSE messages as bytes and primitives, without pydicom where nothing is lost by it.

The engine's codec handles the command sets that every conforming peer sends. Everything else, and every message that
somebody watches, goes through pynetdicom's own `DIMSEMessage`, so that logs, warnings and errors are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from operator import attrgetter
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom import _config, _validators, dimse, dimse_messages
from pynetdicom.dsutils import decode, encode
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from fastpdu import engine

DATA_SET_FOLLOWS = 0x0001
NO_DATA_SET = 0x0101
C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
C_ECHO_RQ = 0x0030
C_ECHO_RSP = 0x8030
C_FIND_RSP = 0x8020
C_GET_RSP = 0x8010
C_MOVE_RSP = 0x8021
COMMAND_FIELD = 0x0100
_VERIFICATION = "1.2.840.10008.1.1"
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
STATUS = _ELEMENTS["Status"]
#: What tells how far an operation is: the status and the numbers of sub-operations, by their elements
PROGRESS = {element: _KEYWORDS[element] for element in (STATUS, 0x1020, 0x1021, 0x1022, 0x1023)}
# Parameters whose setters check nothing that the codec has not checked
_PLAIN = frozenset({"MessageID", "MessageIDBeingRespondedTo", "Status"})
_UIDS = frozenset(
    {
        "AffectedSOPClassUID",
        "AffectedSOPInstanceUID",
        "RequestedSOPClassUID",
        "RequestedSOPInstanceUID",
    }
)
_TITLES = frozenset({"MoveOriginatorApplicationEntityTitle"})
_WORDS = re.compile(r"SOP|UID|ID|[A-Z][a-z]+")
# Their values are tags, which pydicom turns into objects of its own
_TAG_ELEMENTS = {0x0901, 0x1005}


def _conformant_uid(text: str) -> UID | None:
    """Return a UID that every validator of pydicom and pynetdicom accepts, without asking them; else None."""
    return str.__new__(UID, text) if _checks_uids_as_usual() and engine.is_uid(text) else None


def _conformant_title(text: str) -> str | None:
    """Return an AE title that every validator accepts as it is, without asking them; else None."""
    return text if _is_plain_title(text) else None


def _attribute_of(primitive: type, keyword: str) -> str:
    """Return the attribute in which a primitive keeps a parameter: the one behind a property, else `keyword` itself."""
    attribute = "".join(f"_{word.lower()}" for word in _WORDS.findall(keyword))
    probe, value = primitive(), object()
    vars(probe)[attribute] = value
    return attribute if getattr(probe, keyword) is value else keyword


def _checks_uids_as_usual() -> bool:
    return _config.VALIDATORS["UI"] is _validators.validate_ui


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
    elements : tuple of int
        The elements of its command set that come from parameters of the primitive.
    values : callable
        Returns their values, in the same order, for a primitive; the first once more at the end.
    data_keyword : str or None
        The attribute of the primitive that holds the data set.
    """

    __slots__ = (
        "_blank",
        "_checked",
        "_conformant",
        "_plain",
        "data_keyword",
        "elements",
        "field",
        "message",
        "primitive",
        "values",
    )

    def __init__(self, field: int, name: str, message: type[dimse_messages.DIMSEMessage]) -> None:
        self.field = field
        self.message = message
        service = message.__name__[: message.__name__.rfind("_R")]
        self.primitive = dimse_messages._MSG_TO_PRIMITVE[service]
        probe = self.primitive()
        keywords = [
            keyword
            for keyword in dimse_messages._COMMAND_SET_KEYWORDS[name]
            if keyword in _ELEMENTS and hasattr(probe, keyword)
        ]
        self.elements = tuple(_ELEMENTS[keyword] for keyword in keywords)
        # The attributes behind the properties, where there are: those compute nothing
        names = [_attribute_of(self.primitive, keyword) for keyword in keywords]
        # (of a single name it would return the value itself)
        self.values = attrgetter(*names, *names[:1])
        self._blank = vars(probe)
        had = {e: k for e, k in _KEYWORDS.items() if hasattr(probe, k)}
        self._plain = {e: _attribute_of(self.primitive, k) for e, k in had.items() if k in _PLAIN}
        self._conformant = {
            e: (_attribute_of(self.primitive, k), k, conformant)
            for keywords, conformant in ((_UIDS, _conformant_uid), (_TITLES, _conformant_title))
            for e, k in had.items()
            if k in keywords
        }
        known = _PLAIN | _UIDS | _TITLES
        self._checked = {e: k for e, k in had.items() if k not in known}
        self.data_keyword = dimse_messages._DATASET_KEYWORDS.get(message.__name__)

    def blank(self) -> Any:
        """Return a new primitive."""
        primitive = self.primitive.__new__(self.primitive)
        vars(primitive).update(self._blank)
        return primitive

    def make(self, elements: Mapping[int, Any]) -> Any:
        """Return a primitive with the parameters of a command set.

        Raises
        ------
        Exception
            What a setter of the primitive raises for a value that should not be there.
        """
        primitive = self.blank()
        attributes = vars(primitive)
        plain, known, checked = self._plain, self._conformant, self._checked
        for element, value in elements.items():
            if element in plain:
                attributes[plain[element]] = value
            elif element in known:
                attribute, keyword, conformant = known[element]
                found = conformant(value)
                if found is None:
                    setattr(primitive, keyword, value)
                else:
                    attributes[attribute] = found
            elif element in checked:
                setattr(primitive, checked[element], value)
        return primitive


_LAYOUTS = {
    field: _Layout(field, name, message)
    for field, (name, message) in dimse_messages._MESSAGE_TYPES.items()
}
_BY_MESSAGE = {layout.message: layout for layout in _LAYOUTS.values()}
_REQUESTS = {primitive: _BY_MESSAGE[message] for primitive, message in dimse._RQ_TO_MESSAGE.items()}
_RESPONSES = {
    primitive: _BY_MESSAGE[message] for primitive, message in dimse._RSP_TO_MESSAGE.items()
}


# Requests of operations with exactly one response, but for C-STORE
_AWAITED = frozenset({0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150})
_RESPONSE_FIELDS = frozenset(field for field in _LAYOUTS if field & 0x8000)
_PENDING_STATUSES = frozenset({0xFF00, 0xFF01})


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
    is_last : bool
        Whether it is the last that its sender has to do for the peer, who now waits for nothing else.
    is_awaited : bool
        Whether the thread that sends it reads the answer next.
    """

    __slots__ = ("command", "data", "file", "is_awaited", "is_last")

    def __init__(
        self,
        command: bytes,
        data: Any = b"",
        file: OpenFile | tuple[Any, int] | None = None,
        is_last: bool = False,
        is_awaited: bool = False,
    ) -> None:
        self.command = command
        self.data = data
        self.file = file
        self.is_last = is_last
        self.is_awaited = is_awaited


class OpenFile:
    """A data set in a file that is open.

    Attributes
    ----------
    path : str or PathLike
        The file.
    offset, length : int
        Where the data set is in it.
    fd : int
        The descriptor, closed by who opened it.
    """

    __slots__ = ("fd", "length", "offset", "path")

    def __init__(self, path: Any, offset: int, fd: int, length: int) -> None:
        self.path = path
        self.offset = offset
        self.fd = fd
        self.length = length


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
    elements = command_elements(primitive, layout)
    if buffer or path:
        elements[COMMAND_DATA_SET_TYPE] = DATA_SET_FOLLOWS
    try:
        command = engine.encode_command(elements)
    except engine.CommandError:
        # Unusual values: let pydicom decide what they are
        return encode_stock_message(to_stock_message(primitive, context_id))
    encoded = Encoded(command) if buffer is None else Encoded(command, data_of(buffer))
    if buffer is None:
        encoded.file = path
    # pynetdicom's methods for these requests read the answer next; after a last response there is nothing to be done
    field = layout.field
    encoded.is_awaited = field in _AWAITED
    encoded.is_last = encoded.is_awaited or (
        field in _RESPONSE_FIELDS and primitive._status not in _PENDING_STATUSES
    )
    return encoded


def command_elements(primitive: Any, layout: _Layout | None = None) -> dict[int, Any]:
    """Return the elements of the command set of a message without a data set.

    Parameters
    ----------
    primitive : pynetdicom.dimse_primitives.DIMSEPrimitive
        The request or response that the message is.
    layout : _Layout, optional
        The layout of the message.
    """
    layout = layout or layout_of(primitive)
    elements: dict[int, Any] = dict(zip(layout.elements, layout.values(primitive)))  # noqa: B905
    elements[COMMAND_FIELD] = layout.field
    elements[COMMAND_DATA_SET_TYPE] = NO_DATA_SET
    return elements


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
    primitive = _primitive_of(layout, elements, message.context_id)
    if layout.data_keyword:
        setattr(primitive, layout.data_keyword, _stream(message.data))
    return primitive


def _primitive_of(layout: _Layout, elements: Mapping[int, Any], context_id: int) -> Any:
    """Return a received primitive without its data set."""
    return _received(layout.make(elements), context_id)


def _received(primitive: Any, context_id: int) -> Any:
    """Return a new primitive as one that has been received."""
    primitive._context_id = context_id
    primitive._dataset_path = None
    primitive._dataset_file = None
    return primitive


# C-STORE, without a primitive where there is nothing to be told by one --------------------------------------------

_STORE_REQUEST, _STORE_RESPONSE = _LAYOUTS[C_STORE_RQ], _LAYOUTS[C_STORE_RSP]
# The elements of a response that says nothing but its status
_PLAIN_RESPONSE = frozenset({0x0002, COMMAND_FIELD, 0x0120, COMMAND_DATA_SET_TYPE, 0x0900, 0x1000})
_PRIORITIES = frozenset({0, 1, 2})
_PREPARED_REQUEST = frozenset(
    {0x0002, COMMAND_FIELD, 0x0110, 0x0700, COMMAND_DATA_SET_TYPE, 0x1000, 0x1030, 0x1031}
)


def prepare_store(message: engine.Message) -> Any:
    """Return what a C-STORE request needs that has come but for its data set.

    Parameters
    ----------
    message : engine.Message
        The message so far.

    Returns
    -------
    pynetdicom.dimse_primitives.C_STORE or None
        The request, without the data set, for `Message.prepared`; None if anything about it is unusual.
    """
    try:
        elements = engine.decode_command(message.command)
    except engine.CommandError:
        return None
    if not (
        elements.get(COMMAND_FIELD) == C_STORE_RQ
        and 0x0110 in elements
        and _PREPARED_REQUEST.issuperset(elements)
        and elements.get(0x0700) in _PRIORITIES
        and _checks_uids_as_usual()
        and engine.is_uid(elements.get(0x0002, ""))
        and engine.is_uid(elements.get(0x1000, ""))
        and (0x1030 not in elements or _is_plain_title(elements[0x1030]))
    ):
        # What a setter has to say about a value is said once, when the message is complete
        return None
    request = _received(_STORE_REQUEST.blank(), message.context_id)
    # (what the setters do, and what they check has been checked)
    vars(request).update(
        _affected_sop_class_uid=str.__new__(UID, elements[0x0002]),
        _message_id=elements[0x0110],
        _priority=elements[0x0700],
        _affected_sop_instance_uid=str.__new__(UID, elements[0x1000]),
        _move_originator_application_entity_title=elements.get(0x1030),
        _move_originator_message_id=elements.get(0x1031),
    )
    vars(request).update(
        _prepared_response=store_response(request),
        _prepared_success=encode_store_response(request, 0x0000),
    )
    return request


def complete_store(message: engine.Message) -> Any:
    """Return the prepared request of a message that is complete."""
    request: Any = message.prepared
    request._dataset = _stream(message.data)
    return request


def store_request(sop_class: str, sop_instance: str, message_id: int, priority: int) -> Any:
    """Return a C-STORE request without its data set.

    Parameters
    ----------
    sop_class, sop_instance : str
        Affected SOP Class UID and Affected SOP Instance UID.
    message_id, priority : int
        Message ID and Priority.

    Raises
    ------
    TypeError, ValueError
        If a value is not allowed.
    """
    request = _STORE_REQUEST.make({0x0002: sop_class, 0x1000: sop_instance})
    request.MessageID = message_id
    request.Priority = priority
    return request


def encode_store_request(
    sop_class: str,
    sop_instance: str,
    message_id: Any,
    priority: Any,
    originator_aet: Any = None,
    originator_id: Any = None,
) -> bytes | None:
    """Return the command set of a C-STORE request with a data set, None if a value needs a closer look."""
    if not (
        type(message_id) is int
        and (originator_aet is None or _is_plain_title(originator_aet))
        and (originator_id is None or type(originator_id) is int)
        and type(priority) is int
        and priority in _PRIORITIES
        and _checks_uids_as_usual()
        and engine.is_uid(sop_class)
        and engine.is_uid(sop_instance)
    ):
        return None
    try:
        return engine.encode_command(
            {
                0x0002: sop_class,
                COMMAND_FIELD: C_STORE_RQ,
                0x0110: message_id,
                0x0700: priority,
                COMMAND_DATA_SET_TYPE: DATA_SET_FOLLOWS,
                0x1000: sop_instance,
                0x1030: originator_aet,
                0x1031: originator_id,
            }
        )
    except engine.CommandError:
        return None


# Nothing that a validator of pynetdicom would remove or refuse
_is_title = re.compile(r"[A-Za-z0-9_.-]{1,16}").fullmatch


def _is_plain_title(title: Any) -> bool:
    return (
        type(title) is str
        and _is_title(title) is not None
        and _config.VALIDATORS["AE"] is _validators.validate_ae
    )


def store_uids(message: engine.Message) -> tuple[str, str]:
    """Return Affected SOP Class UID and Affected SOP Instance UID of a received C-STORE request.

    Raises
    ------
    Exception
        If the command set cannot be decoded, or has not got them.
    """
    try:
        elements = engine.decode_command(message.command)
    except engine.CommandError:
        command = to_received_stock_message(message.context_id, message.command, None).command_set
        return str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID)
    return elements[0x0002], elements[0x1000]


def store_response(request: Any) -> Any:
    """Return the response to a C-STORE request, without its status."""
    prepared = vars(request).get("_prepared_response")
    if prepared is not None:
        return prepared
    response = _STORE_RESPONSE.blank()
    # The request has had them checked
    response._message_id = response._message_id_being_responded_to = request._message_id
    response._affected_sop_instance_uid = request._affected_sop_instance_uid
    response._affected_sop_class_uid = request._affected_sop_class_uid
    return response


def encode_store_response(request: Any, status: Any) -> Encoded | None:
    """Return a response that says nothing but its status, None if a value needs a closer look."""
    if type(status) is not int or status not in STORAGE_SERVICE_CLASS_STATUS:
        return None
    prepared = vars(request).get("_prepared_success")
    if prepared is not None and status == 0x0000:
        return cast(Encoded, prepared)
    try:
        command = store_response_command(
            request._affected_sop_class_uid,
            request._affected_sop_instance_uid,
            request._message_id,
            status,
        )
    except engine.CommandError:
        return None
    return Encoded(command, is_last=True)


def store_response_command(
    sop_class: str, sop_instance: str, message_id: int, status: int
) -> bytes:
    """Return the command set of a C-STORE response as most peers encode it, and we do.

    Raises
    ------
    engine.CommandError
        If a value needs a closer look.
    """
    return engine.encode_command(
        {
            0x0002: sop_class,
            COMMAND_FIELD: C_STORE_RSP,
            0x0120: message_id,
            COMMAND_DATA_SET_TYPE: NO_DATA_SET,
            0x0900: status,
            0x1000: sop_instance,
        }
    )


def plain_status(message: engine.Message, field: int) -> int | None:
    """Return the status of a response that says nothing else, None for any other message.

    Parameters
    ----------
    message : engine.Message
        The message.
    field : int
        The Command Field of the response: that of C-STORE or C-ECHO.
    """
    answer = plain_answer(message, field)
    return None if answer is None else answer[1]


def plain_answer(message: engine.Message, field: int) -> tuple[int, int] | None:
    """Return what a response that says nothing but its status is the answer to, and its status.

    Parameters
    ----------
    message : engine.Message
        The message.
    field : int
        The Command Field of the response: that of C-STORE or C-ECHO.

    Returns
    -------
    tuple of (int, int) or None
        Message ID Being Responded To and Status; None for any other message.
    """
    try:
        elements = engine.decode_command(message.command)
    except engine.CommandError:
        return None
    if (
        elements.get(COMMAND_FIELD) != field
        or message.data is not None
        or 0x0120 not in elements
        or 0x0900 not in elements
        or not _PLAIN_RESPONSE.issuperset(elements)
        or not _checks_uids_as_usual()
        or not engine.is_uid(elements.get(0x0002, "0"))
        or not engine.is_uid(elements.get(0x1000, "0"))
    ):
        return None
    return elements[0x0120], elements[0x0900]


def encode_echo_request(message_id: Any) -> Encoded | None:
    """Return a C-ECHO request, None if its Message ID needs a closer look."""
    if type(message_id) is not int:
        return None
    try:
        command = engine.encode_command(
            {
                0x0002: _VERIFICATION,
                COMMAND_FIELD: C_ECHO_RQ,
                0x0110: message_id,
                COMMAND_DATA_SET_TYPE: NO_DATA_SET,
            }
        )
    except engine.CommandError:
        return None
    return Encoded(command, is_last=True, is_awaited=True)


def encode_echo_response(request: Any) -> Encoded:
    """Return the response to a C-ECHO request: Success."""
    command = engine.encode_command(
        {
            0x0002: _VERIFICATION,
            COMMAND_FIELD: C_ECHO_RSP,
            0x0120: request._message_id,
            COMMAND_DATA_SET_TYPE: NO_DATA_SET,
            0x0900: 0x0000,
        }
    )
    return Encoded(command, is_last=True)


class Pending:
    """A pending response to a C-FIND, C-GET or C-MOVE request.

    Attributes
    ----------
    numbers : dict of int and int
        *Status* and the numbers of sub-operations, by their elements.
    identifier : bytes
        The encoded identifier.
    """

    __slots__ = ("identifier", "numbers")

    def __init__(self, numbers: dict[int, int], identifier: bytes) -> None:
        self.numbers = numbers
        self.identifier = identifier


_PENDING_ELEMENTS = frozenset(
    {
        *(0x0002, COMMAND_FIELD, 0x0110, 0x0120, COMMAND_DATA_SET_TYPE),
        *PROGRESS,
    }
)


def plain_pending(message: engine.Message, fields: frozenset[int]) -> Pending | None:
    """Return a message as a pending response without comments, None if it is anything else.

    Parameters
    ----------
    message : engine.Message
        The message.
    fields : frozenset of int
        The Command Fields of the responses that are meant.
    """
    try:
        elements = engine.decode_command(message.command)
    except engine.CommandError:
        return None
    if (
        elements.get(COMMAND_FIELD) not in fields
        or elements.get(0x0900) not in _PENDING_STATUSES
        or 0x0120 not in elements
        or not _PENDING_ELEMENTS.issuperset(elements)
        or (
            0x0002 in elements and not (_checks_uids_as_usual() and engine.is_uid(elements[0x0002]))
        )
    ):
        return None
    numbers = {number: elements[number] for number in PROGRESS if number in elements}
    return Pending(numbers, message.data or b"")


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
