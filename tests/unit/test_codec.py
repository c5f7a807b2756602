"""The command set codec against pydicom, and `read_part10` against dcmread."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest
from engine_kit import Impl, command_set, element, us
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom import dimse_messages, dsutils

CODECS = ["pure", "compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> Any:
    """An implementation of the codec."""
    return Impl(request.param, "fd").module


UID_A = "1.2.840.10008.5.1.4.1.1.2"
UID_B = "1.2.826.0.1.3680043.8.498.1"
SAMPLES: dict[str, Any] = {
    "UI": UID_B,
    "US": 0x1234,
    "AE": "STORE_SCP",
    "AT": [Tag(0x00100010), Tag(0x7FE0, 0x0010)],
    "LO": "Something went wrong",
}


def elements_of(dataset: Dataset) -> dict[int, Any]:
    """Return a command set of pydicom as `decode_command` does."""
    found: dict[int, Any] = {}
    for one in dataset:
        if one.tag == 0x00000000:
            continue
        value = one.value
        if one.VR == "AT":
            value = [value] if one.VM == 1 else value
            found[int(one.tag)] = tuple(int(tag) for tag in value)
        else:
            found[int(one.tag)] = str(value) if isinstance(value, str) else int(value)
    return found


def decoded(data: bytes) -> dict[int, Any]:
    """Decode a command set with pydicom."""
    return elements_of(dsutils.decode(io.BytesIO(data), True, True))


def command_of(name: str) -> Dataset:
    """Return the command set of a DIMSE message of pynetdicom, with a value in each element."""
    message = getattr(dimse_messages, name)()
    dataset: Dataset = message.command_set
    for one in dataset:
        if one.tag == 0x00000000:
            continue
        value = SAMPLES[one.VR]
        dataset[one.tag].value = value
    body = dsutils.encode(dataset.group_dataset(0)[0x00000001:], True, True)
    assert body is not None
    dataset.CommandGroupLength = len(body)
    return dataset


MESSAGES = sorted(
    name
    for name, thing in vars(dimse_messages).items()
    if isinstance(thing, type)
    and issubclass(thing, dimse_messages.DIMSEMessage)
    and thing is not dimse_messages.DIMSEMessage
)


def test_all_messages_are_here() -> None:
    assert len(MESSAGES) == 23
    assert {"C_STORE_RQ", "C_CANCEL_RQ", "N_GET_RQ", "N_EVENT_REPORT_RSP"} <= set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_dimse_message(codec: Any, name: str) -> None:
    dataset = command_of(name)
    expected = dsutils.encode(dataset, True, True)
    assert expected is not None
    elements = codec.decode_command(expected)
    assert elements == elements_of(dataset) == decoded(expected)
    assert codec.encode_command(elements) == expected
    assert all(type(value) in (int, str, tuple) for value in elements.values())


@pytest.mark.parametrize("tags", [1, 2, 3, 16])
def test_attribute_tags(codec: Any, tags: int) -> None:
    dataset = Dataset()
    dataset.CommandGroupLength = 8 + 4 * tags
    dataset.AttributeIdentifierList = [Tag(0x0010, number) for number in range(1, tags + 1)]
    encoded = dsutils.encode(dataset, True, True)
    expected = {0x1005: tuple(0x00100000 + number for number in range(1, tags + 1))}
    assert codec.decode_command(encoded) == expected
    assert codec.encode_command(expected) == encoded
    assert codec.encode_command({0x1005: list(expected[0x1005])}) == encoded


def test_encode(codec: Any) -> None:
    elements = {0x0800: 0x0101, 0x0002: "1.2.3", 0x0600: "ABC", 0x0100: 0x0021, 0x0110: None}
    body = (
        element(0x0002, b"1.2.3\0")
        + us(0x0100, 0x0021)
        + element(0x0600, b"ABC ")
        + us(0x0800, 0x0101)
    )
    assert codec.encode_command(elements) == command_set(body)
    assert codec.encode_command({0x0000: 7, **elements}) == command_set(body)
    assert codec.encode_command({}) == command_set()
    assert codec.decode_command(command_set()) == {}
    assert codec.encode_command({0x0002: pydicom.uid.UID("1.2.34")}) == command_set(
        element(0x0002, b"1.2.34")
    )


@pytest.mark.parametrize(
    "elements",
    [
        {0x0100: -1},
        {0x0100: 65536},
        {0x0100: 2**70},
        {0x0100: "1"},
        {0x0100: 1.5},
        {0x0002: 5},
        {0x0002: b"1.2"},
        {0x0902: "\u00e4"},
        {0x0600: "\u65e5"},
        {0x0901: [2**32]},
        {0x0901: [-1]},
        {0x0901: ["a"]},
        {0x0901: 5},
        {0x0004: 1},
        {0x0001: 1},
        {0x5010: "A"},
        {0x1234: 1},
        {0x10000: 1},
        {0x00080016: "1.2"},
        {-1: 1},
        {2**70: 1},
        {"a": 1},
        {0x0100: 1, "a": 1},
        {2.5: "1.2"},
    ],
    ids=str,
)
def test_encode_refuses(codec: Any, elements: dict[int, Any]) -> None:
    with pytest.raises(codec.CommandError):
        codec.encode_command(elements)
    assert issubclass(codec.CommandError, ValueError)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"1.2.3\0", "1.2.3"),
        (b"1.2.34", "1.2.34"),
        (b"1.2.3 ", "1.2.3"),
        (b"1.2.\0\0", "1.2."),
    ],
)
def test_uid_padding(codec: Any, raw: bytes, value: str) -> None:
    assert codec.decode_command(command_set(element(0x0002, raw))) == {0x0002: value}


def test_text_padding(codec: Any) -> None:
    data = command_set(
        element(0x0600, b"  A B   "), element(0x0902, b"  text  "), element(0x1030, b"X ")
    )
    assert codec.decode_command(data) == {0x0600: "A B", 0x0902: "  text", 0x1030: "X"}


GOOD = command_set(us(0x0100, 1), us(0x0110, 2), us(0x0800, 3))
REFUSED = {
    "empty": b"",
    "no group length": us(0x0100, 1),
    "group length alone, wrong": element(0, struct.pack("<I", 2)),
    "group length too large": GOOD[:8] + struct.pack("<I", len(GOOD) - 11) + GOOD[12:],
    "group length too small": GOOD[:8] + struct.pack("<I", len(GOOD) - 13) + GOOD[12:],
    "group length twice": command_set(element(0, b"\0\0\0\0"), us(0x0100, 1)),
    "cut": GOOD[:-1],
    "cut header": GOOD + b"\0\0\0",
    "not ascending": command_set(us(0x0110, 1), us(0x0100, 1)),
    "twice": command_set(us(0x0100, 1), us(0x0100, 1)),
    "unknown element": command_set(us(0x0100, 1), us(0x0101, 1)),
    "retired element": command_set(us(0x0100, 1), us(0x0850, 1)),
    "last element": command_set(us(0xFFFF, 1)),
    "other group": command_set(us(0x0100, 1), element(0x0016, b"1.2\0", group=8)),
    "US of 0": command_set(element(0x0100, b"")),
    "US of 4": command_set(element(0x0100, b"\1\0\1\0")),
    "US of 1": command_set(element(0x0100, b"\1")),
    "AT of 0": command_set(element(0x1005, b"")),
    "AT of 6": command_set(element(0x1005, b"\1\0\1\0\1\0")),
    "two UIDs": command_set(element(0x0002, b"1.2\\1.3\0")),
    "two texts": command_set(element(0x0902, b"a\\b ")),
    "not ASCII": command_set(element(0x0902, b"\xe4 ")),
    "NUL inside": command_set(element(0x0002, b"1\x002\0")),
    "no text": command_set(element(0x0002, b"")),
    "padding only": command_set(element(0x0600, b"    ")),
    "length beyond": command_set(us(0x0100, 1), struct.pack("<HHI", 0, 0x0110, 3) + b"\1\0"),
    "length of 4 GiB": command_set(us(0x0100, 1), struct.pack("<HHI", 0, 0x0110, 0xFFFFFFFF)),
    "explicit VR": b"\0\0\0\0UL\4\0\0\0\0\0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_decode_refuses(codec: Any, name: str) -> None:
    with pytest.raises(codec.CommandError):
        codec.decode_command(REFUSED[name])


def test_decode_of_every_prefix(codec: Any) -> None:
    whole = command_set(element(0x0002, b"1.2\0"), us(0x0100, 1), element(0x1005, b"\1\0\2\0"))
    for size in range(len(whole)):
        with pytest.raises(codec.CommandError):
            codec.decode_command(whole[:size])
    assert len(codec.decode_command(whole)) == 3


def outcome(call: Any, error: type[Exception], *arguments: Any) -> Any:
    """Return what a call returns, or that it raised."""
    try:
        return call(*arguments)
    except error:
        return "refused"


quick = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@cache
def engines() -> list[Any]:
    """Return the engines that are there."""
    found = []
    for backend in CODECS:
        try:
            found.append(Impl(backend, "fd").module)
        except pytest.skip.Exception:
            continue
    return found


uids = st.from_regex(r"[0-2](\.(0|[1-9][0-9]{0,8})){1,5}", fullmatch=True)
texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"), min_size=1
)
commands = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((0x0002, 0x0003, 0x1000, 0x1001), uids),
        **dict.fromkeys(
            (0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x0903, 0x1002, 0x1008),
            st.integers(0, 0xFFFF),
        ),
        **dict.fromkeys((0x1020, 0x1021, 0x1022, 0x1023, 0x1031), st.integers(0, 0xFFFF)),
        **dict.fromkeys((0x0600, 0x1030), texts.map(lambda text: text[:16])),
        0x0902: texts.map(lambda text: text[:64]),
        **dict.fromkeys(
            (0x0901, 0x1005),
            st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20).map(tuple),
        ),
    },
)


@quick
@given(commands)
def test_round_trips(elements: dict[int, Any]) -> None:
    encoded = {engine.encode_command(elements) for engine in engines()}
    assert len(encoded) == 1
    data = encoded.pop()
    for engine in engines():
        assert engine.decode_command(data) == elements
    assert decoded(data) == elements


@quick
@given(commands, st.data())
def test_mutated_command_sets(elements: dict[int, Any], source: st.DataObject) -> None:
    """The engines agree on what they refuse; what they accept, pydicom reads likewise."""
    data = bytearray(engines()[0].encode_command(elements))
    for _ in range(source.draw(st.integers(1, 4))):
        at = source.draw(st.integers(0, len(data)))
        kind = source.draw(st.sampled_from(["set", "set", "cut", "insert"]))
        if kind == "set" and at < len(data):
            data[at] = source.draw(st.sampled_from([0, 1, 2, 4, 8, 0x20, 0x5C, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del data[at : at + source.draw(st.integers(1, 8))]
        else:
            data[at:at] = source.draw(st.binary(max_size=10))
    found = [
        outcome(engine.decode_command, engine.CommandError, bytes(data)) for engine in engines()
    ]
    assert all(one == found[0] for one in found)
    if found[0] != "refused":
        assert decoded(bytes(data)) == found[0]


# ------------------------------------------------------------------------------------------- read_part10

SUFFIXES = {".dcm", "", ".dic", ".IMA"}


def dicom_files() -> list[Path]:
    """Return the DICOM files that pydicom and pynetdicom ship."""
    folders = [
        Path(pydicom.__file__).parent / "data" / "test_files",
        Path(pynetdicom.__file__).parent / "tests" / "dicom_files",
    ]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in SUFFIXES and path.stat().st_size
    )


FILES = dicom_files()
ATTRIBUTES = [
    "sop_class",
    "sop_instance",
    "media_sop_class",
    "media_sop_instance",
    "transfer_syntax",
    "offset",
]


def as_tuple(found: Any) -> tuple[Any, ...] | None:
    """Return a Part10 of any engine as a tuple."""
    return None if found is None else tuple(getattr(found, name) for name in ATTRIBUTES)


def by_pydicom(data: bytes) -> tuple[Any, ...]:
    """Return what dcmread says of a file."""
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    meta = dataset.file_meta
    deflated = meta.TransferSyntaxUID == pydicom.uid.DeflatedExplicitVRLittleEndian
    return (
        None if deflated else dataset.SOPClassUID,
        None if deflated else dataset.SOPInstanceUID,
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
        meta.TransferSyntaxUID,
        132 + 12 + meta.FileMetaInformationGroupLength,
    )


@pytest.mark.parametrize("size", [4096, 1024, 300])
def test_shipped_files(codec: Any, size: int) -> None:
    """Whenever there is a result, dcmread says the same."""
    results = 0
    for path in FILES:
        data = path.read_bytes()
        found = as_tuple(codec.read_part10(data[:size]))
        if found is not None:
            assert found == by_pydicom(data), path.name
            results += 1
    assert len(FILES) > 50
    assert size < 1024 or results > len(FILES) // 3


def test_ordinary_files_have_a_result(codec: Any) -> None:
    for name in ("CTImageStorage.dcm", "RTImageStorage.dcm"):
        path = next(path for path in FILES if path.name == name)
        assert codec.read_part10(path.read_bytes()[:4096]) is not None
    deflated = next(path for path in FILES if path.name == "SCImageStorage_Deflated.dcm")
    found = codec.read_part10(deflated.read_bytes()[:4096])
    if found is not None:
        assert found.sop_class is None
        assert found.sop_instance is None


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big": "1.2.840.10008.1.2.2",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "deflated": "1.2.840.10008.1.2.1.99",
}


@pytest.fixture(scope="module", params=SYNTAXES)
def file(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """A transfer syntax and a canonical file."""
    return request.param, build(request.param)


def build(syntax: str, before: bytes = b"", drop: tuple[int, ...] = ()) -> bytes:
    """Return a canonical file, written without pydicom; `before` comes ahead of (0008,0016)."""
    uids = {0x00080016: UID_A, 0x00080018: UID_B}
    order = ">" if syntax == "big" else "<"
    body = before
    for tag, uid in uids.items():
        if tag in drop:
            continue
        value = padded(uid)
        body += struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
        if syntax == "implicit":
            body += struct.pack("<I", len(value))
        else:
            body += b"UI" + struct.pack(order + "H", len(value))
        body += value
    if syntax == "deflated":
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(body) + packer.flush()
    return head(SYNTAXES[syntax], drop) + body


def padded(uid: str) -> bytes:
    """Encode a UID."""
    return uid.encode() + b"\0" * (len(uid) % 2)


def head(syntax: str, drop: tuple[int, ...] = (), extra: bytes = b"") -> bytes:
    """Return the preamble and the file meta information."""
    values = {0x0002: UID_A, 0x0003: UID_B + ".7", 0x0010: syntax, 0x0012: "1.2.3"}
    meta = b"\2\0\1\0OB\0\0" + struct.pack("<I", 2) + b"\0\1"
    for number, value in values.items():
        if 0x00020000 + number not in drop:
            meta += struct.pack("<HH2sH", 2, number, b"UI", len(padded(value))) + padded(value)
    meta += extra
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    return b"\0" * 128 + b"DICM" + (b"" if 0x00020000 in drop else length) + meta


def test_canonical_files(codec: Any, file: tuple[str, bytes]) -> None:
    syntax, data = file
    found = codec.read_part10(data)
    deflated = syntax == "deflated"
    assert as_tuple(found) == (
        None if deflated else UID_A,
        None if deflated else UID_B,
        UID_A,
        UID_B + ".7",
        SYNTAXES[syntax],
        len(head(SYNTAXES[syntax])),
    )
    if not deflated:
        assert as_tuple(found) == by_pydicom(data)


def test_cut_heads(codec: Any, file: tuple[str, bytes]) -> None:
    syntax, data = file
    needed = len(head(SYNTAXES[syntax])) if syntax == "deflated" else len(data)
    for size in range(needed):
        assert codec.read_part10(data[:size]) is None
    assert codec.read_part10(data[:needed]) is not None


EXPLICIT = SYNTAXES["explicit"]
UNUSUAL = {
    "empty": b"",
    "short": b"DICM",
    "no preamble": build("explicit")[132:],
    "no DICM": build("explicit").replace(b"DICM", b"dicm"),
    "no transfer syntax": build("explicit", drop=(0x00020010,)),
    "no media class": build("explicit", drop=(0x00020002,)),
    "no media instance": build("explicit", drop=(0x00020003,)),
    "no class": build("explicit", drop=(0x00080016,)),
    "no instance": build("explicit", drop=(0x00080018,)),
    "implicit data, explicit syntax": head(EXPLICIT)
    + build("implicit")[len(head(SYNTAXES["implicit"])) :],
    "explicit data, implicit syntax": head(SYNTAXES["implicit"])
    + build("explicit")[len(head(EXPLICIT)) :],
    "big data, little syntax": head(EXPLICIT) + build("big")[len(head(SYNTAXES["big"])) :],
    "undefined length first": build("explicit", b"\x08\0\x06\0SQ\0\0\xff\xff\xff\xff"),
    "huge element first": build("explicit", b"\x08\0\x05\0CS\xff\xff"),
    "letters in a UID": build("explicit").replace(
        UID_B.encode() + b"\0", b"1.2.x" + UID_B.encode()[4:]
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_heads(codec: Any, name: str) -> None:
    assert codec.read_part10(UNUSUAL[name]) is None


GROUP_LENGTHS = {
    "none": build("explicit", drop=(0x00020000,)),
    "beyond": build("explicit")[:140] + b"\xff\xff\xff\x7f" + build("explicit")[144:],
    "one more": (
        build("explicit")[:140]
        + struct.pack("<I", len(head(EXPLICIT)) - 144 + 1)
        + build("explicit")[144:]
    ),
    "one less": (
        build("explicit")[:140]
        + struct.pack("<I", len(head(EXPLICIT)) - 144 - 1)
        + build("explicit")[144:]
    ),
}


@pytest.mark.parametrize("name", GROUP_LENGTHS)
def test_group_lengths(codec: Any, name: str) -> None:
    """The file meta information ends where another group begins, as it does for pydicom."""
    data = GROUP_LENGTHS[name]
    found = codec.read_part10(data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    assert found.sop_instance == dataset.SOPInstanceUID
    assert found.media_sop_instance == dataset.file_meta.MediaStorageSOPInstanceUID
    assert found.offset == len(head(EXPLICIT, (0x00020000,) if name == "none" else ()))


@settings(quick, max_examples=150)
@given(st.data())
def test_mutated_heads(source: st.DataObject) -> None:
    """The engines agree, and never read beyond the head."""
    data = bytearray(build(source.draw(st.sampled_from(sorted(SYNTAXES)))))
    for _ in range(source.draw(st.integers(1, 5))):
        at = source.draw(st.integers(128, len(data) - 1))
        data[at] = source.draw(st.one_of(st.integers(0, 255), st.just(data[at] ^ 1)))
    size = source.draw(st.integers(0, len(data)))
    found = [as_tuple(engine.read_part10(bytes(data[: -size or None]))) for engine in engines()]
    assert all(one == found[0] for one in found)


# -------------------------------------------------------------------------------------------- open_head, close_file


def test_open_head(codec: Any, tmp_path: Path) -> None:
    path = tmp_path / "Grüße.bin"
    content = bytes(range(256)) * 40
    path.write_bytes(content)
    for limit in (0, 100, 4096, len(content), len(content) + 1):
        for name in (path, str(path)):
            fd, size, head = codec.open_head(name, limit)
            try:
                assert size == len(content)
                assert head == content[:limit]
                assert os.pread(fd, 16, 1000) == content[1000:1016]
                assert not os.get_inheritable(fd)
            finally:
                codec.close_file(fd)
            with pytest.raises(OSError):
                os.fstat(fd)


def test_open_head_tells_what_is_wrong(codec: Any, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with pytest.raises(FileNotFoundError, match="missing"):
        codec.open_head(tmp_path / "missing", 10)
    with pytest.raises(OSError):
        codec.open_head(tmp_path, 10)
    with pytest.raises(ValueError, match="null"):
        codec.open_head("a\0b", 10)
    with pytest.raises(ValueError, match="limit"):
        codec.open_head(__file__, -1)
    with pytest.raises(TypeError):
        codec.open_head(None, 10)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("1", True),
        ("0", True),
        ("1.2.840.10008.1.1", True),
        ("1.0.2", True),
        ("1." * 31 + "10", True),
        ("1." * 32 + "1", False),
        ("", False),
        (".", False),
        ("1.", False),
        (".1", False),
        ("1..2", False),
        ("1.02", False),
        ("00", False),
        ("1.2 ", False),
        ("1.2\n", False),
        ("1.2\0", False),
        ("1.a", False),
        ("\u0661.2", False),
    ],
)
def test_is_uid(codec: Any, text: str, is_one: bool) -> None:
    assert codec.is_uid(text) is is_one


@given(st.text("0123456789.", max_size=70))
def test_both_agree_on_uids(text: str) -> None:
    pure, compiled = (Impl(name, "fd").module for name in CODECS)
    assert compiled.is_uid(text) is pure.is_uid(text)


def test_is_uid_takes_text(codec: Any) -> None:
    with pytest.raises(TypeError):
        codec.is_uid(None)
    with pytest.raises(TypeError):
        codec.is_uid(b"1.2")
    assert codec.is_uid(pydicom.uid.UID("1.2.3"))
