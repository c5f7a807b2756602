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
