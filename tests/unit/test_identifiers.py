"""Identifiers: the bytes and data sets of pydicom, or none at all."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom.dsutils import decode, encode, pretty_dataset

from fastpdu import identifiers

ENCODINGS = [True, False]


def dataset(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def item(**elements: Any) -> Dataset:
    return dataset(**elements)


PLAIN = {
    "study": dataset(
        QueryRetrieveLevel="STUDY",
        PatientName="Some^Body=Other",
        PatientID="12345",
        StudyDate="20260102",
        StudyTime="101112.123",
        ModalitiesInStudy=["CT", "SR"],
        StudyInstanceUID="1.2.3",
        StudyDescription="odd",
        NumberOfStudyRelatedInstances=12,
        PatientWeight="71.5",
        PatientAge="033Y",
        RetrieveAETitle="ARCHIVE",
    ),
    "empty elements": dataset(PatientName="", PatientID=None, StudyDate="", Rows=None),
    "numbers": dataset(Rows=512, RecommendedDisplayFrameRate=25),
    "more numbers": dataset(
        SelectorUSValue=[1, 2, 3],
        SelectorULValue=70_000,
        SelectorSLValue=-5,
        SelectorFDValue=[1.5, -2.25],
        SelectorFLValue=0.5,
    ),
    "decimals": dataset(ImagePositionPatient=["1.5", "-2", "0.0001"], SliceThickness=3.0),
    "latin": dataset(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", PatientID="ä"),
    "utf8": dataset(
        SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎", StudyDescription="é"
    ),
    "worklist": dataset(
        PatientName="A^B",
        ScheduledProcedureStepSequence=[
            item(Modality="CT", ScheduledProcedureStepStartDate="20260101"),
            item(Modality="MR", ScheduledProtocolCodeSequence=[item(CodeValue="1")]),
        ],
        RequestedProcedureCodeSequence=[],
    ),
    "long text": dataset(AdditionalPatientHistory="x" * 3001, TextValue="t" * 70_001),
    "names": dataset(PatientName="A", OtherPatientNames=["B^C", "D"]),
}


@pytest.mark.parametrize("implicit", ENCODINGS)
@pytest.mark.parametrize("name", PLAIN)
def test_encode(name: str, implicit: bool) -> None:
    ds = PLAIN[name]
    expected = encode(ds, implicit, True)
    found = identifiers.encode(ds, implicit)
    assert found == expected
    # What has been decoded can be sent on, verbatim
    again = decode(BytesIO(expected or b""), implicit, True)
    assert identifiers.encode(again, implicit) in (expected, None)


LEFT_ALONE = {
    "no data set": 17,
    "private": dataset(PatientID="1"),
    "unencodable": dataset(PatientID="山"),
    "bytes": dataset(PatientID="1", EncapsulatedDocument=b"12"),
    "code extension": dataset(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="A"),
    "ambiguous": dataset(SmallestImagePixelValue=3, PixelRepresentation=0),
    "tags": dataset(FrameIncrementPointer=0x00181063),
    "too large": dataset(Rows=70_000),
}
LEFT_ALONE["private"].private_block(0x0011, "CREATOR", create=True).add_new(1, "UN", b"12")


@pytest.mark.parametrize("implicit", ENCODINGS)
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_encode_leaves_alone(name: str, implicit: bool) -> None:
    assert identifiers.encode(LEFT_ALONE[name], implicit) is None


def test_encode_leaves_other_classes_alone() -> None:
    class Own(Dataset):
        pass

    ds = Own()
    ds.PatientID = "1"
    assert identifiers.encode(ds, True) is None


def same(found: Dataset, expected: Dataset) -> None:
    """The same elements, raw and converted, and the same encoding."""
    assert found.keys() == expected.keys()
    for tag in expected.keys():  # noqa: SIM118
        assert found.get_item(tag) == expected.get_item(tag)
        assert type(tag) is type(next(iter(found.keys())))
    assert found.original_encoding == expected.original_encoding
    assert found.original_character_set == expected.original_character_set
    assert found == expected
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("implicit", ENCODINGS)
@pytest.mark.parametrize("name", sorted(set(PLAIN) - {"long text"}))
def test_decode(name: str, implicit: bool) -> None:
    data = encode(PLAIN[name], implicit, True)
    assert data is not None
    found = identifiers.decode(data, implicit)
    assert found is not None
    same(found, decode(BytesIO(data), implicit, True))


VALUES = {
    **dict.fromkeys(identifiers._CHECKS, b"12"),
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), bytes(range(16))),
    "AS": b"033Y",
    "DA": b"20260102",
    "DT": b"2026",
    "UI": b"1.2\0",
}


@pytest.mark.parametrize("implicit", ENCODINGS)
@pytest.mark.parametrize("vr", VALUES)
def test_raw_elements(vr: str, implicit: bool) -> None:
    """Each VR: the same bytes as pydicom's, and back."""
    # (0072,00xx), one for each VR
    tag = Tag(f"Selector{vr}Value")
    assert dictionary_VR(tag) == vr

    def made() -> Dataset:
        value, known = VALUES[vr], None if implicit else vr
        ds = Dataset({tag: RawDataElement(tag, known, len(value), value, 0, implicit, True)})
        ds.set_original_encoding(implicit, True, "iso8859")
        ds.PatientID = "not raw"
        return ds

    expected = encode(made(), implicit, True)
    assert expected is not None
    assert identifiers.encode(made(), implicit) == expected
    found = identifiers.decode(expected, implicit)
    assert found is not None
    same(found, decode(BytesIO(expected), implicit, True))


@pytest.mark.parametrize("implicit", ENCODINGS)
@pytest.mark.parametrize("value", [b"ISO_IR 6\0\0", b"ISO_IR 100  ", b"ISO_IR 192\0\0"])
def test_raw_character_set_with_padding(value: bytes, implicit: bool) -> None:
    """pydicom looks at it, and writes it anew."""

    length = len(value).to_bytes(4, "little")
    data = b"\x08\0\x05\0" + (length if implicit else b"CS" + length[:2]) + value
    expected = encode(decode(BytesIO(data), implicit, True), implicit, True)
    assert expected is not None
    assert expected != data
    for decoded in (decode(BytesIO(data), implicit, True), identifiers.decode(data, implicit)):
        assert identifiers.encode(decoded, implicit) == expected


def bad(vr: str, value: bytes, tag: bytes = b"\x10\x00\x20\x00") -> bytes:
    return tag + vr.encode() + len(value).to_bytes(2, "little") + value


@pytest.mark.parametrize(
    "data",
    [
        bad("LO", b"x" * 66),
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192" + bad("LO", b"\xff\xff"),
        bad("LO", b"a\x1b$B"),
        bad("IS", b"12345678901 "),
        bad("IS", b"1.5 "),
        bad("DS", b"1e999 "),
        bad("DS", b"1,5 "),
        bad("DA", b"2026.01.01"),
        bad("UI", b"1.02"),
        bad("CS", b"lower "),
        bad("US", b"123"),
        bad("PN", b"a=b=c=d "),
        bad("UN", b"12"),
        bad("ZZ", b"12"),
        bad("LO", b"1 ", b"\x11\x00\x20\x00"),
        bad("UL", b"1234", b"\x10\x00\x00\x00"),
        bad("LO", b"1234")[:-1],
        b"\x10\x00\x20",
        b"\x08\x00\x05\x00CS\x0a\x00NO_SUCH   ",
    ],
)
def test_decode_leaves_alone(data: bytes) -> None:
    """Whatever pydicom would warn about, or refuse."""
    assert identifiers.decode(data, False) is None


def test_decode_leaves_explicit_vr_alone_where_implicit_was_agreed() -> None:
    assert identifiers.decode(bad("LO", b"12"), True) is None


def test_decode_leaves_a_changed_pydicom_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bad("LO", b"12")
    assert identifiers.decode(data, False) is not None
    monkeypatch.setattr(config, "datetime_conversion", True)
    assert identifiers.decode(data, False) is None


VRS = [
    "AE",
    "AS",
    "CS",
    "DA",
    "DS",
    "DT",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "SQ",
    "ST",
    "TM",
    "UI",
    "UL",
    "US",
    "UN",
    "OB",
    "UT",
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [(0x0010, 0x0020), (0x0008, 0x0050), (0x0010, 0x0010), (0x0040, 0x0100)]
            ),
            st.sampled_from(VRS),
            st.binary(max_size=20)
            | st.text("0123456789.-^=\\ ABCe", max_size=18).map(lambda text: text.encode()),
        ),
        max_size=4,
        unique_by=lambda element: element[0],
    ).map(sorted),
    st.booleans(),
)
def test_decode_any_bytes(elements: Any, implicit: bool) -> None:
    """What is decoded here pydicom decodes to the same, and converts without a warning."""
    data = b""
    for (group, number), vr, value in elements:
        head = group.to_bytes(2, "little") + number.to_bytes(2, "little")
        if implicit:
            data += head + len(value).to_bytes(4, "little") + value
        elif vr in ("SQ", "UN", "OB", "UT"):
            data += head + vr.encode() + bytes(2) + len(value).to_bytes(4, "little") + value
        else:
            data += head + vr.encode() + len(value).to_bytes(2, "little") + value
    found = identifiers.decode(data, implicit)
    if found is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = decode(BytesIO(data), implicit, True)
        list(pretty_dataset(expected))
        list(pretty_dataset(found))
    assert found == expected
    assert [element.VR for element in found] == [element.VR for element in expected]


TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x17F), max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "PatientID": TEXT,
            "PatientName": TEXT,
            "StudyDescription": TEXT,
            "OtherPatientIDs": st.lists(TEXT, max_size=3),
            "ModalitiesInStudy": st.lists(st.sampled_from(["CT", "MR", ""]), max_size=3),
            "StudyInstanceUID": st.sampled_from(["1.2", "1.2.3", ""]),
            "NumberOfStudyRelatedInstances": st.integers(-9999, 9999) | st.none(),
            "PatientWeight": st.floats(0, 500).map(lambda number: f"{number:.3f}") | st.none(),
            "Rows": st.integers(0, 65535),
            "SpecificCharacterSet": st.sampled_from(["ISO_IR 100", "ISO_IR 192", "ISO_IR 6", ""]),
        },
    ),
    st.booleans(),
)
def test_encode_any_values(elements: dict[str, Any], implicit: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset(**elements)
        found = identifiers.encode(ds, implicit)
        if found is not None:
            assert found == encode(dataset(**elements), implicit, True)
