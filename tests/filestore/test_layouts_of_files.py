"""Layouts: which templates there can be, and that a value from the network is a name and nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastpdu
from fastpdu.layouts import MAX_COMPONENT, MISSING, Layout, safe_name, safe_uid

HOSTILE = [
    *(
        "..",
        ".",
        "...",
        "/",
        "//",
        "/etc/passwd",
        "../../x",
        "..\\x",
        "C:\\x",
        "C:x",
        "\\\\host\\x",
    ),
    *(
        "a/b",
        "a\\b",
        "a\0b",
        "\0",
        "1.2.3\0",
        "-rf",
        ".hidden",
        "a.",
        "a ",
        "~",
        "$HOME",
        "`id`",
        "a;b",
    ),
    *("CON", "con.dcm", "NUL", "COM1", "LPT9.txt", "aux", "PRN"),
    *(
        "x" * 300,
        "1." * 200,
        "é" * 100,
        "\u202e1.2",
        "\ud800",
        "a\nb",
        "*",
        "?",
        "<",
        ">",
        "|",
        '"',
        ":",
    ),
]


@pytest.mark.parametrize("make", [safe_name, safe_uid], ids=["name", "uid"])
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values(make: Any, value: str) -> None:
    name = make(value)
    assert re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?", name)
    assert ".." not in name
    assert len(name) <= MAX_COMPONENT
    assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)


@pytest.mark.parametrize("value", ["1.2.840.10008.1", "P7", "CT", "a_b-c.d", "20260102", "x" * 120])
def test_plain_values_are_kept(value: str) -> None:
    assert safe_name(value) == value


@pytest.mark.parametrize("value", [None, "", "  ", "\0\0", " \0"])
def test_missing_values(value: str | None) -> None:
    assert safe_name(value) == MISSING


def test_nothing_else_is_the_stand_in() -> None:
    assert safe_name("unknown") != MISSING


@given(st.text(), st.text())
def test_two_values_are_two_names(one: str, other: str) -> None:
    same = one.strip(" \0") == other.strip(" \0")
    assert (safe_name(one) == safe_name(other)) == same
    # a value that looks like what another one becomes
    assert safe_name(safe_name(one)) in (safe_name(one), safe_name(safe_name(one)))
    if safe_name(one) != one.strip(" \0") and one.strip(" \0"):
        assert safe_name(safe_name(one)) != safe_name(one)


def test_uids_that_differ_in_case_are_two_names() -> None:
    assert safe_uid("1.2.a").lower() != safe_uid("1.2.A").lower()
    assert safe_uid("1.2.3") == "1.2.3"


@given(
    st.dictionaries(st.sampled_from(["SOPInstanceUID", "PatientID", "CallingAETitle"]), st.text())
)
def test_a_path_stays_below_its_directory(values: dict[str, str]) -> None:
    layout = Layout("{PatientID}{CallingAETitle}/x{PatientID}/{SOPInstanceUID}.dcm")
    parts = layout.path(values).split("/")
    assert len(parts) == 3
    for part in parts:
        assert part not in ("", ".", "..")
        assert not part.startswith((".", "-"))
        assert len(part) <= 255
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part)
    root = os.path.abspath("root")
    assert os.path.normpath(os.path.join(root, *parts)) == os.path.join(root, *parts)


def test_a_component_is_safe_as_a_whole() -> None:
    layout = Layout("{PatientID}{Modality}/{SOPInstanceUID}")
    assert layout.path({"PatientID": "CO", "Modality": "N", "SOPInstanceUID": "1.2"}) == "_CON/1.2"
    names = {
        layout.path({"PatientID": letter * 120, "Modality": "y" * 120, "SOPInstanceUID": "1.2"})
        for letter in "ab"
    }
    assert len(names) == 2
    assert all(len(name) < 255 for name in names)


@pytest.mark.parametrize(
    "template",
    [
        *(
            "",
            "/",
            "/abs/{SOPInstanceUID}",
            "../{SOPInstanceUID}",
            "a/../{SOPInstanceUID}",
            "./x",
            "a//b",
        ),
        *(
            "a/",
            ".hidden/x",
            "a\\b",
            "a\0b",
            "{",
            "{}",
            "{0}",
            "{SOPInstanceUID!r}",
            "{SOPInstanceUID:>80}",
        ),
        *(
            "{SOPInstanceUID.x}",
            "{Nonsense}",
            "{PixelData}",
            "{Rows}",
            "{MediaStorageSOPInstanceUID}",
        ),
        *("{ReferencedStudySequence}", "a:b", "a*", "trailing.", "trailing "),
    ],
)
def test_templates_that_cannot_be(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout|field|value|element"):
        fastpdu.FileStore(tmp_path, layout=template, existing="keep-both")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layout": 7}, TypeError),
        ({"existing": "overwrite"}, ValueError),
        ({"existing": None}, TypeError),
        ({"durability": "all"}, ValueError),
        ({"on_stored": 7}, TypeError),
        ({"layout": "{PatientID}.dcm"}, ValueError),
        ({"layout": "{PatientID}.dcm", "existing": "keep"}, ValueError),
    ],
)
def test_arguments_that_cannot_be(
    options: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        fastpdu.FileStore(tmp_path, **options)


@pytest.mark.parametrize("existing", ["keep-both", "fail"])
def test_names_need_not_be_unique_where_nothing_is_lost(existing: str, tmp_path: Path) -> None:
    fastpdu.FileStore(tmp_path, layout="{PatientID}.dcm", existing=existing)


def test_directory_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        fastpdu.FileStore(tmp_path / "file")
    with pytest.raises(TypeError):
        fastpdu.FileStore(os.fsencode(tmp_path))  # type: ignore[arg-type]
    assert fastpdu.FileStore(tmp_path / "a" / "b").directory == tmp_path / "a" / "b"
