"""The messages that are made from primitives without their properties: the parameters are the same."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pynetdicom import dimse_messages as stock

from fastpdu import dimse_messages, engine

VALUES: dict[str, Any] = {
    "AffectedSOPClassUID": "1.2.840.10008.1.1",
    "RequestedSOPClassUID": "1.2.840.10008.3.1.2.3.3",
    "AffectedSOPInstanceUID": "1.2.3.4",
    "RequestedSOPInstanceUID": "1.2.3.5",
    "MessageID": 7,
    "MessageIDBeingRespondedTo": 8,
    "MoveDestination": "SOMEWHERE",
    "Priority": 1,
    "Status": 0xB000,
    "ErrorComment": "a comment",
    "ErrorID": 12,
    "EventTypeID": 2,
    "ActionTypeID": 3,
    "NumberOfRemainingSuboperations": 1,
    "NumberOfCompletedSuboperations": 2,
    "NumberOfFailedSuboperations": 3,
    "NumberOfWarningSuboperations": 4,
    "MoveOriginatorApplicationEntityTitle": "ORIGIN",
    "MoveOriginatorMessageID": 9,
    "AttributeIdentifierList": [0x00100010, 0x00100020],
    "OffendingElement": [0x00100010],
}


def _filled(layout: Any) -> Any:
    """Return a primitive with a value for each parameter of a message."""
    primitive = layout.primitive()
    wanted = stock._COMMAND_SET_KEYWORDS[stock._MESSAGE_TYPES[layout.field][0]]
    is_response = layout.field & 0x8000
    for keyword in wanted:
        if keyword in VALUES and hasattr(primitive, keyword):
            setattr(primitive, keyword, VALUES[keyword])
    if not is_response and layout.field != 0x0FFF:
        primitive.MessageIDBeingRespondedTo = None
    if layout.data_keyword:
        setattr(primitive, layout.data_keyword, BytesIO(b"\x08\x00\x05\x00\x00\x00\x00\x00"))
    return primitive


@pytest.mark.parametrize("field", sorted(dimse_messages._LAYOUTS))
@pytest.mark.parametrize("filled", [True, False])
def test_the_bytes_are_those_of_pynetdicom(field: int, filled: bool) -> None:
    layout = dimse_messages._LAYOUTS[field]
    primitive = _filled(layout) if filled else layout.primitive()
    if not filled and (field & 0x8000 or field == 0x0FFF):
        primitive.MessageIDBeingRespondedTo = 1
    if dimse_messages.layout_of(primitive) is not layout:
        pytest.skip("pynetdicom makes no such message of a primitive")
    encoded = dimse_messages.encode_primitive(primitive, 1)
    expected = dimse_messages.encode_stock_message(dimse_messages.to_stock_message(primitive, 1))
    assert encoded.command == expected.command
    assert bytes(encoded.data) == bytes(expected.data)


@pytest.mark.parametrize("field", sorted(dimse_messages._LAYOUTS))
def test_received_parameters_are_those_of_pynetdicom(field: int) -> None:
    layout = dimse_messages._LAYOUTS[field]
    primitive = _filled(layout)
    if dimse_messages.layout_of(primitive) is not layout:
        pytest.skip("pynetdicom makes no such message of a primitive")
    # Tags are left to pydicom
    for keyword in ("AttributeIdentifierList", "OffendingElement"):
        if hasattr(primitive, keyword):
            setattr(primitive, keyword, None)
    sent = dimse_messages.encode_primitive(primitive, 1)

    class Received:
        context_id = 1
        command = sent.command
        data = bytes(sent.data) or None

    made = dimse_messages.to_primitive(Received())  # type: ignore[arg-type]
    assert made is not None
    stock_made = dimse_messages.to_received_stock_message(
        1, sent.command, Received.data
    ).message_to_primitive()
    assert type(made) is type(stock_made)
    assert engine.decode_command(sent.command)[0x0100] == field
    for keyword in VALUES:
        if hasattr(stock_made, keyword):
            ours, theirs = getattr(made, keyword), getattr(stock_made, keyword)
            assert ours == theirs, keyword
            assert type(ours) is type(theirs), keyword
    if layout.data_keyword:
        ours, theirs = (getattr(p, layout.data_keyword) for p in (made, stock_made))
        assert ours.getvalue() == theirs.getvalue()


def _store_command(**values: Any) -> bytes:
    """Return the command set of a C-STORE request, as it is or with other values."""
    elements = {
        0x0002: "1.2.840.10008.5.1.4.1.1.2",
        0x0100: 0x0001,
        0x0110: 7,
        0x0700: 2,
        0x0800: 0x0001,
        0x1000: "1.2.3.4",
        **{int(name[1:], 16): value for name, value in values.items()},
    }
    return engine.encode_command(elements)


class Begun:
    """A message whose command set has come."""

    context_id = 3
    data: bytes | None = None
    prepared: Any = None

    def __init__(self, command: bytes) -> None:
        self.command = command


@pytest.mark.parametrize("originator", [{}, {"e1030": "ORIGIN", "e1031": 9}])
def test_a_prepared_request_is_the_same(originator: dict[str, Any]) -> None:
    message: Any = Begun(_store_command(**originator))
    message.prepared = dimse_messages.prepare_store(message)
    assert message.prepared is not None
    message.data = b"abcd"
    ours = dimse_messages.complete_store(message)
    theirs = dimse_messages.to_primitive(message)
    for keyword in VALUES:
        if hasattr(theirs, keyword):
            assert getattr(ours, keyword) == getattr(theirs, keyword), keyword
    assert (ours.DataSet.getvalue(), ours.DataSet.tell()) == (b"abcd", theirs.DataSet.tell())
    assert ours.is_valid_request
    assert ours._context_id == theirs._context_id == 3
    prepared, made = (dimse_messages.encode_store_response(r, 0x0000) for r in (ours, theirs))
    assert prepared is not None
    assert made is not None
    assert (prepared.command, prepared.is_last) == (made.command, made.is_last)
    warned = dimse_messages.encode_store_response(ours, 0xB000)
    assert warned is not None
    assert engine.decode_command(warned.command)[0x0900] == 0xB000
    assert dimse_messages.store_response(ours).MessageIDBeingRespondedTo == 7


@pytest.mark.parametrize(
    "values",
    [
        {"e0700": 3},
        {"e0700": None},
        {"e0110": None},
        {"e0002": None},
        {"e1000": "1.02"},
        {"e1030": "A B"},
        {"e0100": 0x0020},
        {"e0120": 4},
        {"e0900": 0},
    ],
)
def test_what_is_unusual_is_not_prepared(values: dict[str, Any], recwarn: Any) -> None:
    """Its setters may have something to say, once."""
    message: Any = Begun(_store_command(**values))
    assert dimse_messages.prepare_store(message) is None
    assert not recwarn.list


def test_what_cannot_be_decoded_is_not_prepared() -> None:
    message: Any = Begun(b"\0" * 20)
    assert dimse_messages.prepare_store(message) is None
