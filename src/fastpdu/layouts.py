"""Where a received instance goes below a directory: templates, and names that can come from anybody.

A name from the network is a name, never a path: whatever it holds, it becomes one component of letters, digits, `.`,
`-` and `_`, that no file system and no shell takes for anything else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from string import Formatter

from pydicom.datadict import dictionary_VR, tag_for_keyword

DEFAULT_LAYOUT = "{SOPInstanceUID}.dcm"
# Fields that the command set and the association know
COMMAND_FIELDS = frozenset(
    {"SOPClassUID", "SOPInstanceUID", "TransferSyntaxUID", "CallingAETitle", "CalledAETitle"}
)
# Value representations whose values are short text (PS3.5 6.2)
_TEXT_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI", "UR"}
)
_PIXEL_GROUP = 0x7FE0
# What stands where a value is missing
MISSING = "unknown"

# Characters of a component: no file system allows fewer than 255, and there may be a number behind it
MAX_COMPONENT = 200
_MAX_VALUE = 120
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
# Names of devices on Windows, with any extension
_RESERVED = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
_is_plain_uid = re.compile(r"[0-9](?:[0-9.]{0,62}[0-9])?").fullmatch
_ends_like_ours = re.compile(r".*-[0-9a-f]{16}").fullmatch


def safe_name(value: str | None) -> str:
    """Return a value as a name that is safe wherever it becomes a file.

    Parameters
    ----------
    value : str or None
        Any text.

    Returns
    -------
    str
        The value itself, if it is made of letters, digits, ``.``, ``-`` and ``_``, does not begin with ``.`` or ``-``,
        does not end with ``.``, is not too long, and is not reserved on Windows. Else what can be kept of it, and 16
        hexadecimal digits of its SHA-256, so that two values do not become one name. ``unknown``, if there is none.
    """
    text = (value or "").strip(" \0")
    if not text:
        return MISSING
    kept = _UNSAFE.sub("_", text[:_MAX_VALUE])
    if kept[0] in ".-":
        kept = "_" + kept[1:]
    if kept[-1] == ".":
        kept = kept[:-1] + "_"
    if (
        kept == text
        and text != MISSING
        and _RESERVED.fullmatch(text) is None
        and _ends_like_ours(text) is None
    ):
        return text
    return f"{kept.replace('.', '_')}-{_digest(text)}"


def safe_uid(value: str | None) -> str:
    """Return a UID as a safe name; like `safe_name`, but two that differ in case only are told apart, too."""
    if value is not None and _is_plain_uid(value):
        return value
    name = safe_name(value)
    return name if name != value else f"{name}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _safe_component(name: str) -> str:
    """Return a component made of safe names and the layout's own text as one that is safe as a whole."""
    if len(name) > MAX_COMPONENT:
        stem, dot, extension = name.rpartition(".")
        if not dot or len(extension) > 16:
            stem, dot, extension = name, "", ""
        name = f"{stem[: MAX_COMPONENT - 40]}-{_digest(name)}{dot}{extension}"
    return f"_{name}" if _RESERVED.fullmatch(name) else name


class Layout:
    """A template for the path of an instance below a directory.

    Parameters
    ----------
    template : str
        Components separated by ``/``, with fields in braces: ``{StudyInstanceUID}/{SOPInstanceUID}.dcm``. A field is
        one of ``SOPClassUID``, ``SOPInstanceUID``, ``TransferSyntaxUID``, ``CallingAETitle``, ``CalledAETitle``, or the
        keyword of an element of the data set whose value is short text.

    Attributes
    ----------
    tags : dict of int and str
        Tags of the elements that must be read from the data set, and their keywords.
    fields : frozenset of str
        The names of all fields.

    Raises
    ------
    TypeError
        If `template` is not a string.
    ValueError
        If it is not a relative path without ``..``, or a field is not known.
    """

    def __init__(self, template: str) -> None:
        if not isinstance(template, str):
            raise TypeError(f"layout must be a str, not {type(template).__name__}")
        self.template = template
        self.tags: dict[int, str] = {}
        fields: set[str] = set()
        if "\\" in template or "\0" in template or template.startswith("/"):
            raise ValueError(f"the layout is not a relative path with '/': {template!r}")
        parts = template.split("/")
        self._components: list[list[tuple[str, str | None]]] = []
        for part in parts:
            if part in ("", ".", "..") or part[0] == "." or part[-1] in ". ":
                raise ValueError(f"the layout has a component that cannot be: {template!r}")
            component = _parse(part)
            fields.update(field for _, field in component if field is not None)
            self._components.append(component)
        self.fields = frozenset(fields)
        for field in sorted(self.fields - COMMAND_FIELDS):
            self.tags[_tag_of(field)] = field
        self._name: Callable[[Mapping[str, str | None]], str] = self._render
        if template == DEFAULT_LAYOUT:
            self._name = _default_name

    def path(self, values: Mapping[str, str | None]) -> str:
        """Return the path of an instance, relative, with ``/``.

        Parameters
        ----------
        values : mapping of str and str
            The values of the fields; missing ones may be left out.

        Returns
        -------
        str
            The path.
        """
        return self._name(values)

    def _render(self, values: Mapping[str, str | None]) -> str:
        return "/".join(
            _safe_component(
                "".join(
                    text + ("" if field is None else _safe(field)(values.get(field)))
                    for text, field in component
                )
            )
            for component in self._components
        )


def _default_name(values: Mapping[str, str | None]) -> str:
    return _safe_component(safe_uid(values.get("SOPInstanceUID")) + ".dcm")


def _safe(field: str) -> Callable[[str | None], str]:
    return safe_uid if field == "SOPInstanceUID" else safe_name


def _parse(part: str) -> list[tuple[str, str | None]]:
    """Split a component into (text, field) pairs."""
    try:
        parsed = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"the layout cannot be read: {part!r}: {error}") from None
    found: list[tuple[str, str | None]] = []
    for text, field, specification, conversion in parsed:
        if specification or conversion or field == "":
            raise ValueError(f"a field of the layout is a name and nothing else: {part!r}")
        if re.search(r'[\x00-\x1f<>:"|?*]', text):
            raise ValueError(f"the layout has characters that are not for file names: {part!r}")
        found.append((text, field))
    return found


def _tag_of(field: str) -> int:
    """Return the tag of an element that a layout may name."""
    tag = tag_for_keyword(field)
    if tag is None:
        raise ValueError(f"the layout has an unknown field: {field!r}")
    if dictionary_VR(tag) not in _TEXT_VRS:
        raise ValueError(f"the value of {field} is not short text, and cannot be in a file name")
    if not 0x00080000 <= tag < _PIXEL_GROUP << 16:
        raise ValueError(f"{field} is not an element at the beginning of a data set")
    return tag
