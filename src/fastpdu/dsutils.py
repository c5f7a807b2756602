"""Data sets to be sent: from a file as they are, or from memory without joining the pixel data to the rest."""

from __future__ import annotations

import errno
import os
import zlib
from typing import TYPE_CHECKING, Any, cast

from pydicom import dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import _handlers, evt
from pynetdicom.dimse_primitives import C_ECHO, C_STORE

from fastpdu import engine
from fastpdu.dimse_messages import PROGRESS, STATUS, BufferList, OpenFile, store_request
from fastpdu.first_elements import first_elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

# A Part 10 file's meta information and the elements up to (0008,0018) fit into this, mostly
HEAD_BYTES = 8192
# ... or else into this
LONG_HEAD_BYTES = 256 * 1024
# Bytes of a deflated file that are inflated at once, and what they may become at once
_DEFLATED_PIECE, _INFLATED_PIECE = 64 * 1024, 256 * 1024
_DEFLATED = str(DeflatedExplicitVRLittleEndian)
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
# From this size on it is worth the trouble not to copy the pixel data
MIN_UNJOINED = 64 * 1024
PIXEL_DATA = Tag(0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF
SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_PROGRESS_TAGS = {element: Tag(0x0000, element) for element in PROGRESS}


class StoreSource:
    """Where the data set of a C-STORE request comes from, and the context that it is sent under.

    Attributes
    ----------
    sop_class, sop_instance : str
        What the data set is.
    context_id : int
        The presentation context ID.
    file : OpenFile or None
        The file, open.
    data : list of bytes-like, or empty
        The encoded data set, if it does not come from a file.
    """

    __slots__ = ("context_id", "data", "file", "sop_class", "sop_instance")

    def __init__(
        self,
        sop_class: str,
        sop_instance: str,
        context_id: int,
        file: OpenFile | None = None,
        data: Any = b"",
    ) -> None:
        self.sop_class = sop_class
        self.sop_instance = sop_instance
        self.context_id = context_id
        self.file = file
        self.data = data

    def request(
        self,
        message_id: int,
        priority: int,
        originator_aet: str | None,
        originator_id: int | None,
    ) -> Any:
        """Return pynetdicom's primitive for the C-STORE request, whose setters check the values.

        Parameters
        ----------
        message_id, priority : int
            Message ID and Priority.
        originator_aet : str or None
            Move Originator AE Title.
        originator_id : int or None
            Move Originator Message ID.

        Raises
        ------
        TypeError, ValueError
            If a value is not allowed.
        """
        request = store_request(self.sop_class, self.sop_instance, message_id, priority)
        request.MoveOriginatorApplicationEntityTitle = originator_aet
        request.MoveOriginatorMessageID = originator_id
        if self.file is None:
            request.DataSet = BufferList(self.data)
        else:
            request._dataset_path = (self.file.path, self.file.offset)
        return request

    def close(self) -> None:
        """Close the file, if it is open."""
        file, self.file = self.file, None
        if file is not None:
            engine.close_file(file.fd)


class StoredFile(Dataset):
    """A Part 10 file in the place of the data set that a C-GET or C-MOVE sub-operation stores.

    To pynetdicom it is a data set that is not empty, has a SOP Instance UID, and can be given to `send_c_store`.

    Parameters
    ----------
    path : str
        The file. It is not opened before it is sent, or its SOP Instance UID is asked for.
    error : Exception, optional
        Why it cannot be sent.
    """

    path: str
    error: Exception | None

    def __init__(self, path: str, error: Exception | None = None) -> None:
        # What else a data set has is seldom looked at: `__getattr__`
        vars(self).update(path=path, error=error)

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name in _BLANK and name not in vars(self):
            vars(self).update(_blank_state({}))
            return vars(self)[name]
        return super().__getattr__(name)

    @property
    def SOPInstanceUID(self) -> Any:
        """The *SOP Instance UID*; not an attribute if the file has none, or cannot be read."""
        try:
            fd, _, head = engine.open_head(self.path, HEAD_BYTES)
            engine.close_file(fd)
            found = engine.read_part10(head)
            if found is not None and found.sop_instance is not None:
                return UID(found.sop_instance)
            dataset = dcmread(self.path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        except Exception as error:
            raise AttributeError(f"{self.path}: {error}") from error
        return dataset.SOPInstanceUID

    def send(self, store: Callable[..., int | Dataset], *args: Any) -> int | Dataset:
        """Send the file.

        Parameters
        ----------
        store : callable
            Sends it, and returns the response's status.
        *args
            Its arguments after the path.

        Returns
        -------
        int or pydicom.dataset.Dataset
            The status.

        Raises
        ------
        RuntimeError
            If it cannot be sent, with the path and the reason: that is what pynetdicom logs.
        """
        try:
            if self.error is not None:
                raise self.error
            return store(self.path, *args)
        except Exception as error:
            raise RuntimeError(f"Unable to send {self.path}: {error}") from error


class PlainStatus:
    """The status of a C-STORE sub-operation for pynetdicom's own code, which looks at *Status* only.

    Attributes
    ----------
    Status : int
        (0000,0900).
    """

    __slots__ = ("Status",)

    def __init__(self, status: int) -> None:
        self.Status = status


def store_source(assoc: Association, dataset: Any, chunked: bool) -> StoreSource | None:
    """Find out how a data set can be sent without conversion.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        An established association.
    dataset : str, PathLike or pydicom.dataset.Dataset
        What `send_c_store` was given.
    chunked : bool
        Whether `_config.STORE_SEND_CHUNKED_DATASET` is set: the file meta information then says what the file holds.

    Returns
    -------
    StoreSource or None
        None where pynetdicom's own code has to do it, or to say what is wrong.
    """
    if isinstance(dataset, Dataset):
        return _from_dataset(assoc, dataset)
    if chunked or not _user_watches_sending(assoc):
        return _from_file(assoc, dataset, chunked)
    refuse_special_file(dataset)
    return None


def _user_watches_sending(assoc: Association) -> bool:
    """Whether somebody sees the messages sent, who may want to see their data sets."""
    handlers: Any = assoc._handlers
    bound = handlers.get(evt.EVT_DIMSE_SENT)
    return bool(bound) and (
        len(bound) > 1 or bound[0][0] is not _handlers.standard_dimse_sent_handler
    )


def refuse_special_file(path: Any) -> None:
    """Refuse what pynetdicom might wait for without an end: a pipe, a device.

    Parameters
    ----------
    path : str or PathLike
        The file. Anything else, or one that cannot be opened, is pynetdicom's to refuse.

    Raises
    ------
    OSError
        If it is not a regular file.
    """
    opened = _open(path, 0)
    if opened is not None:
        engine.close_file(opened[0])


def _open(path: Any, limit: int) -> tuple[int, int, bytes] | None:
    """Open a file and read its first bytes; None if pynetdicom raises what its users know."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    try:
        return engine.open_head(path, limit)
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ESPIPE:
            raise
        return None


def _from_file(assoc: Association, path: Any, chunked: bool) -> StoreSource | None:
    """Open a file whose data set can go out as it is."""
    for limit in (HEAD_BYTES, LONG_HEAD_BYTES):
        opened = _open(path, limit)
        if opened is None:
            return None
        fd, size, head = opened
        source = None
        try:
            found = engine.read_part10(head)
            if found is not None:
                source = _verbatim(assoc, path, fd, size, head, found, chunked)
        finally:
            if source is None:
                engine.close_file(fd)
        if found is not None or len(head) < limit:
            return source
    return None


def _verbatim(
    assoc: Association,
    path: Any,
    fd: int,
    size: int,
    head: bytes,
    found: engine.Part10,
    chunked: bool,
) -> StoreSource | None:
    """Return the data set of an open file, if there is a context for it, and it is whole.

    Of a file that is not whole pynetdicom sends what pydicom makes of it; with `_config.STORE_SEND_CHUNKED_DATASET`
    whatever is in it.
    """
    sop_class, sop_instance = found.sop_class, found.sop_instance
    if chunked:
        sop_class, sop_instance = found.media_sop_class, found.media_sop_instance
    elif found.transfer_syntax == _DEFLATED:
        uids = first_elements(fd, found.offset, found.transfer_syntax, (_SOP_CLASS, _SOP_INSTANCE))
        sop_class, sop_instance = uids.get(_SOP_CLASS), uids.get(_SOP_INSTANCE)
    if sop_class is None or sop_instance is None:
        return None
    context = exact_context(assoc, sop_class, found.transfer_syntax)
    if context is None:
        return None
    if not chunked and not (
        _inflates(fd, found.offset)
        if found.transfer_syntax == _DEFLATED
        else engine.is_whole(fd, size, head, found)
    ):
        return None
    file = OpenFile(path, found.offset, fd, size - found.offset)
    return StoreSource(sop_class, sop_instance, context.context_id, file)


def _inflates(fd: int, offset: int) -> bool:
    """Whether a deflated data set (PS3.5 A.5) can be inflated to its end; nothing of it is kept."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        with open(os.dup(fd), "rb", buffering=0) as file:
            file.seek(offset)
            while not inflater.eof and (piece := file.read(_DEFLATED_PIECE)):
                while piece and not inflater.eof:
                    inflater.decompress(piece, _INFLATED_PIECE)
                    piece = inflater.unconsumed_tail
    except zlib.error:
        return False
    return inflater.eof


def exact_context(assoc: Any, sop_class: str, transfer_syntax: str) -> Any:
    """Return the accepted context that `Association._get_valid_context` would choose for an exact match.

    Parameters
    ----------
    assoc : AssociationMixin
        The association.
    sop_class, transfer_syntax : str
        The UIDs.

    Returns
    -------
    pynetdicom.presentation.PresentationContext or None
        None if there is none with exactly these, for the SCU role.
    """
    known = assoc._context_cache.get((sop_class, transfer_syntax))
    if known is not None and known.as_scu and assoc._accepted_cx.get(known.context_id) is known:
        return known
    for context in assoc.accepted_contexts:
        if _fits(context, sop_class, transfer_syntax):
            assoc._context_cache[(sop_class, transfer_syntax)] = context
            return context
    return None


def _fits(context: PresentationContext, sop_class: str, transfer_syntax: str) -> bool:
    return (
        context.abstract_syntax == sop_class
        and context.as_scu is True
        and context.transfer_syntax[0] == transfer_syntax
    )


def _from_dataset(assoc: Association, dataset: Dataset) -> StoreSource | None:
    """Split a data set with uncompressed or encapsulated pixel data around it."""
    try:
        sop_class, sop_instance = dataset.SOPClassUID, dataset.SOPInstanceUID
        transfer_syntax = dataset.file_meta.TransferSyntaxUID
    except AttributeError:
        return None
    if not (
        isinstance(sop_class, str)
        and isinstance(sop_instance, str)
        and isinstance(transfer_syntax, UID)
    ):
        return None
    if transfer_syntax.is_private or transfer_syntax.is_deflated:
        return None
    encoding = (transfer_syntax.is_implicit_VR, transfer_syntax.is_little_endian)
    if _encoding_of(dataset) not in (encoding, (None, None)):
        return None
    context = exact_context(assoc, sop_class, transfer_syntax)
    if context is None:
        return None
    buffers = encode_unjoined(dataset, *encoding)
    if buffers is None:
        return None
    return StoreSource(sop_class, sop_instance, context.context_id, data=buffers)


def _encoding_of(dataset: Dataset) -> tuple[bool | None, bool | None]:
    """Return how pynetdicom takes a data set to be encoded."""
    original = dataset.original_encoding
    return (
        dataset.is_implicit_VR if original[0] is None else original[0],
        dataset.is_little_endian if original[1] is None else original[1],
    )


def encode_unjoined(dataset: Dataset, implicit: bool, little: bool) -> list[Any] | None:
    """Encode a data set like `pynetdicom.dsutils.encode`, leaving the pixel data where it is.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        The data set.
    implicit, little : bool
        The encoding.

    Returns
    -------
    list of bytes-like or None
        The buffers that together are the encoded data set. None if it has no large pixel data as its last element,
        or anything about it is unusual.
    """
    if PIXEL_DATA not in dataset or not little or max(dataset.keys()) != PIXEL_DATA:
        return None
    element = dataset.get_item(PIXEL_DATA)
    value = element.value
    if not isinstance(value, bytes) or len(value) < MIN_UNJOINED:
        return None
    vr = element.VR
    if isinstance(element, RawDataElement):
        undefined = element.length == UNDEFINED_LENGTH
        if element.is_implicit_VR != implicit or not element.is_little_endian:
            return None
    else:
        undefined = element.is_undefined_length
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if undefined != encapsulated or (not implicit and vr not in ("OB", "OW")):
        return None
    if encapsulated and not value.startswith(b"\xfe\xff\x00\xe0"):
        return None
    stream = DicomBytesIO()
    stream.is_implicit_VR = implicit
    stream.is_little_endian = little
    try:
        write_dataset(stream, dataset[:PIXEL_DATA])
    except Exception:
        # pynetdicom will try the whole data set, and log what is wrong
        return None
    head = cast(Any, stream).parent.getvalue()
    padding = b"\x00" if len(value) % 2 else b""
    length = UNDEFINED_LENGTH if undefined else len(value) + len(padding)
    if length > UNDEFINED_LENGTH - 1 and not undefined:
        return None
    tag = b"\xe0\x7f\x10\x00"
    if implicit:
        header = tag + length.to_bytes(4, "little")
    else:
        header = tag + vr.encode("ascii") + b"\x00\x00" + length.to_bytes(4, "little")
    return [head + header, value, padding + (SEQUENCE_DELIMITER if undefined else b"")]


_PLAIN_RESPONSES = (C_STORE, C_ECHO)


def is_plain_response(response: Any) -> bool:
    """Whether a response is valid and says nothing about its status but the status."""
    if type(response) not in _PLAIN_RESPONSES or response._status is None:
        return False
    if response._message_id_being_responded_to is None:
        return False
    return all(
        getattr(response, keyword, None) is None for keyword in response.STATUS_OPTIONAL_KEYWORDS
    )


def status_dataset(status: int | Dataset) -> Dataset:
    """Return a data set with nothing but a *Status* (0000,0900); one that is a data set already as it is."""
    return _dataset_of({STATUS: status}) if isinstance(status, int) else status


def pending_dataset(numbers: dict[int, int]) -> Dataset:
    """Return the status of a pending response as a data set.

    Parameters
    ----------
    numbers : dict of int and int
        *Status* (0000,0900) and the numbers of sub-operations (0000,1020) to (0000,1023), by their elements.
    """
    return _dataset_of(numbers)


# A new data set and a new element make a dozen checked assignments each. What comes out is copied from here instead.
_BLANK = dict(vars(Dataset()))
_BLANK_DICTS = tuple(name for name, value in _BLANK.items() if type(value) is dict)
_NUMBER = dict(vars(DataElement(_PROGRESS_TAGS[STATUS], "US", 0)))


def _blank_state(elements: dict[BaseTag, Any]) -> dict[str, Any]:
    """Return the attributes of ``Dataset(elements)``."""
    state = _BLANK.copy()
    for name in _BLANK_DICTS:
        state[name] = _BLANK[name].copy()
    state["_dict"] = elements
    return state


def raw_dataset(elements: dict[BaseTag, RawDataElement]) -> Dataset:
    """Return ``Dataset(elements)``.

    Parameters
    ----------
    elements : dict of BaseTag and RawDataElement
        The elements; the data set takes it over.
    """
    dataset = Dataset.__new__(Dataset)
    # (pydicom's __setattr__ looks at what is set)
    object.__setattr__(dataset, "__dict__", _blank_state(elements))
    return dataset


def _dataset_of(numbers: dict[int, int]) -> Dataset:
    """Return a data set of US elements of group 0000."""
    elements: dict[BaseTag, Any] = {}
    for number, value in numbers.items():
        tag = _PROGRESS_TAGS[number]
        element = elements[tag] = DataElement.__new__(DataElement)
        element.__dict__ = {**_NUMBER, "tag": tag, "_value": value}
    return raw_dataset(elements)
