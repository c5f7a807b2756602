"""FileStore: what C-STORE brings goes into files (PS3.4 B, PS3.10).

On a fast association the data set goes from the socket to the file while it arrives: `DIMSEServiceProvider._open_sink`
asks the store for a file as soon as the command set is complete, and the engine makes and writes it. Everywhere else
(pynetdicom's own transport, an association that somebody watches) the handler is given the whole data set and writes
it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from struct import unpack
from typing import Any
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.pdu import P_DATA_TF

from fastpdu import engine
from fastpdu.file_meta import file_head
from fastpdu.first_elements import first_elements
from fastpdu.group_commit import GroupCommit
from fastpdu.layouts import DEFAULT_LAYOUT, Layout

LOGGER = logging.getLogger("fastpdu.filestore")

EXISTING = ("replace", "keep", "keep-both", "fail")
DURABILITY = ("none", "file", "directory")

# Statuses of the storage service (PS3.4 B.2.3) and of PS3.7 C
SUCCESS = 0x0000
DUPLICATE_INSTANCE = 0x0111
OUT_OF_RESOURCES = 0xA700
NOT_PERMITTED = 0xA701
CANNOT_WRITE = 0xA702
CANNOT_UNDERSTAND = 0xC000

_NO_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What says that a file system has no hard links
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL})

_PREFIX, _SUFFIX = ".fastpdu-", ".part"
# Numbered names that are tried before a random one
_MAX_NUMBER = 1000
_MAX_KNOWN = 10_000


class _Process:
    """Names of temporary files that no other process uses, those that have forked from this one included."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew."""
        self.token = os.urandom(6).hex()
        self._counter = itertools.count()

    def next_name(self) -> str:
        """Return a name."""
        return f"{_PREFIX}{self.token}-{next(self._counter)}{_SUFFIX}"


_PROCESS = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.renew)


@dataclass(frozen=True)
class StoredInstance:
    """An instance that a `FileStore` has stored.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid, transfer_syntax_uid : str
        What it is, by the command set and the presentation context.
    calling_ae_title, called_ae_title : str
        The AE titles of the association request.
    address : str
        The peer's address.
    length : int
        Bytes of the data set.
    is_kept : bool
        Whether the file had been there before, and was kept (``existing="keep"``): the received one is gone.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    length: int
    is_kept: bool


class Incoming:
    """A data set on its way into a file; also what pynetdicom takes for a request's temporary file.

    Parameters
    ----------
    store : FileStore
        The store that it is for.
    values : dict of str and str
        What is known of it: the fields of layouts.

    Attributes
    ----------
    file : fastpdu.engine.NewFile
        The temporary file.
    name : str
        Its path; empty when it has got its final name.
    process : str
        Whose it is. A process that has forked from ours removes nothing.
    head : bytes
        What comes before the data set.
    length : int
        Bytes of the data set.
    error : OSError or None
        Why it could not be written.
    """

    __slots__ = ("error", "file", "head", "length", "name", "process", "store", "values")

    def __init__(self, store: FileStore, name: str, values: dict[str, str | None]) -> None:
        self.store = store
        self.values = values
        self.file = engine.NewFile(name)
        self.name = name
        self.process = _PROCESS.token
        self.head = b""
        self.length = 0
        self.error: OSError | None = None

    @property
    def path(self) -> Path | str:
        """The temporary file, for `Event.dataset_path`. FileStore itself does not look at it."""
        return self.name if type(self.store) is FileStore else Path(self.name)

    def complete(self, length: int, error: int) -> None:
        """The data set has come to its end.

        Parameters
        ----------
        length : int
            Its bytes.
        error : int
            The errno of writing it, 0 if all of it was written.
        """
        self.length = length
        if error and self.error is None:
            self.error = OSError(error, os.strerror(error), self.name)

    def open(self) -> None:
        """Make the temporary file, for a data set that is here already."""
        try:
            self.file.open()
        except OSError as error:
            self.error = error

    def write(self, piece: Any) -> None:
        """Write a part of the data set, unless something has failed before."""
        view = memoryview(piece)
        while self.error is None and len(view):
            try:
                view = view[os.write(self.file.fd, view) :]
            except OSError as error:
                self.error = error

    def close(self) -> None:
        """Remove the temporary file, if it has not got its final name.

        What cannot be done now is done when nobody knows this object any more: if a thread makes the file just now,
        which has not noticed yet that the association is over, or has it open where such files cannot be removed.
        """
        if not self.name:
            # Closed before it got its final name
            return
        with suppress(OSError):
            self.file.close()
        if self.file.is_made and self.process == _PROCESS.token:
            try:
                os.unlink(self.name)
            except OSError as error:
                if self.file.fd >= 0:
                    return
                LOGGER.error("A temporary file could not be removed: %s", error)
            self.name = ""

    def __del__(self) -> None:
        self.close()


class FileStore:
    """An EVT_C_STORE handler that writes what it is sent into DICOM files below a directory.

    >>> store = fastpdu.FileStore("/data/incoming", layout="{StudyInstanceUID}/{SOPInstanceUID}.dcm")
    >>> ae.start_server(("", 11112), evt_handlers=[(evt.EVT_C_STORE, store)])

    A file appears under its name when it is complete, and not before. It works with pynetdicom's transport, too, which
    holds each data set in memory before it is written.

    Parameters
    ----------
    directory : str or PathLike
        The directory. It is made, if it is not there. Temporary files are in it, too: ``.fastpdu-*.part``.
    layout : str, optional
        The path of an instance below the directory: see `fastpdu.layouts.Layout`. Values become safe names
        (`fastpdu.layouts.safe_name`). Elements of the data set are read from the file, once it is complete.
    existing : str, optional
        What to do if there is a file of that name: ``"replace"`` it, ``"keep"`` it (and answer Success),
        ``"keep-both"`` (the new one gets a number: ``1.2.3.1.dcm``), ``"fail"`` (status 0111H).
    durability : str, optional
        What must be on the disk before the sender is told that its instance is stored: ``"none"``, the ``"file"``, or
        the file and its ``"directory"`` entry.
    on_stored : callable, optional
        Called as ``on_stored(path, info)``, a `pathlib.Path` and a `StoredInstance`, after the response has left, on
        the thread that has served the request (on pynetdicom's transport: that sent it). What it raises is logged.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of these, or the layout could give two instances one name, and one would be lost.
    OSError
        If the directory cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        layout: str = DEFAULT_LAYOUT,
        existing: str = "replace",
        durability: str = "none",
        on_stored: Callable[[Path, StoredInstance], Any] | None = None,
    ) -> None:
        _check_choice("existing", existing, EXISTING)
        _check_choice("durability", durability, DURABILITY)
        if on_stored is not None and not callable(on_stored):
            raise TypeError(f"on_stored must be callable, not {type(on_stored).__name__}")
        self._layout = Layout(layout)
        if existing in ("replace", "keep") and "SOPInstanceUID" not in self._layout.fields:
            raise ValueError(
                f"with existing={existing!r} the layout needs {{SOPInstanceUID}}: "
                "instances with the same name would be lost"
            )
        path = os.fspath(directory)
        if not isinstance(path, str):
            raise TypeError(f"directory must be a str or a path of one, not {type(path).__name__}")
        self._root = os.path.abspath(path)
        # With the separator at its end, which the root directory has already
        self._prefix = os.path.join(self._root, "")
        os.makedirs(self._root, exist_ok=True)
        self._existing = existing
        self._durability = durability
        self._on_stored = on_stored
        self._commits = GroupCommit()
        self._known: set[str] = set()

    @property
    def directory(self) -> Path:
        """The directory."""
        return Path(self._root)

    def __repr__(self) -> str:
        return (
            f"FileStore({self._root!r}, layout={self._layout.template!r}, "
            f"existing={self._existing!r}, durability={self._durability!r})"
        )

    # Receiving ------------------------------------------------------------------------------------------------------

    def begin(
        self, assoc: Any, sop_class: str, sop_instance: str, transfer_syntax: str
    ) -> Incoming:
        """Say where a data set goes that is about to come.

        Parameters
        ----------
        assoc : pynetdicom.association.Association
            The association.
        sop_class, sop_instance : str
            Affected SOP Class UID and Affected SOP Instance UID.
        transfer_syntax : str
            The transfer syntax of the presentation context.

        Returns
        -------
        Incoming
            The data set to be. Its file is still to be made.
        """
        calling, called, sending, receiving = _titles(assoc)
        incoming = Incoming(
            self,
            self._temporary_name(self._prefix),
            {
                "SOPClassUID": sop_class,
                "SOPInstanceUID": sop_instance,
                "TransferSyntaxUID": transfer_syntax,
                "CallingAETitle": calling,
                "CalledAETitle": called,
            },
        )
        incoming.head = file_head(sop_class, sop_instance, transfer_syntax, sending, receiving)
        return incoming

    @staticmethod
    def _temporary_name(prefix: str) -> str:
        # (a directory with the separator at its end)
        return prefix + _PROCESS.next_name()

    def __call__(self, event: evt.Event) -> Any:
        """Handle EVT_C_STORE.

        Returns
        -------
        int or pydicom.dataset.Dataset
            The status.
        """
        request: Any = event.request
        incoming = request._dataset_file
        if not isinstance(incoming, Incoming) or incoming.store is not self:
            incoming = self._write(event)
        status: Any = SUCCESS
        call: Callable[[], None] | None = None
        try:
            path, is_kept = self._commit(incoming)
            if self._on_stored is not None:
                info = _describe(event, incoming, is_kept)
                call = partial(_call, self._on_stored, Path(path), info)
        except _NotStored as reason:
            LOGGER.info("Not stored: %s: %s", incoming.values["SOPInstanceUID"], reason)
            status = _status(reason.status, str(reason))
        except OSError as error:
            LOGGER.error("Not stored: %s: %s", incoming.values["SOPInstanceUID"], error)
            status = _status(_code_of(error), error.strerror or "I/O error")
        finally:
            incoming.close()
        if self._on_stored is not None:
            _call_when_answered(event, call)
        return status

    def _write(self, event: evt.Event) -> Incoming:
        """Write the data set of a request that was received as a whole."""
        request: Any = event.request
        incoming = self.begin(
            event.assoc,
            request.AffectedSOPClassUID,
            request.AffectedSOPInstanceUID,
            event.context.transfer_syntax,
        )
        incoming.open()
        incoming.write(incoming.head)
        length = 0
        if request._dataset_file is None:
            data = request.DataSet.getvalue()
            incoming.write(data)
            length = len(data)
        else:
            # pynetdicom's temporary file (`_config.STORE_RECV_CHUNKED_DATASET`), with file meta information of its own
            with open(request._dataset_path, "rb") as file:
                _skip_meta(file)
                while piece := file.read(2**18):
                    incoming.write(piece)
                    length += len(piece)
        incoming.complete(length, 0)
        return incoming

    # Finishing ------------------------------------------------------------------------------------------------------

    def _commit(self, incoming: Incoming) -> tuple[str, bool]:
        """Give a complete file its name.

        Returns
        -------
        tuple of (str, bool)
            The file, and whether it is an old one that was kept.
        """
        if incoming.error is not None:
            raise incoming.error
        if incoming.length == 0:
            raise _NotStored(CANNOT_UNDERSTAND, "The data set is empty")
        values = incoming.values
        if self._layout.tags:
            found = first_elements(
                incoming.file.fd,
                len(incoming.head),
                values["TransferSyntaxUID"] or "",
                self._layout.tags,
            )
            values.update((self._layout.tags[tag], value) for tag, value in found.items())
        if self._durability != "none":
            os.fsync(incoming.file.fd)
        # The error of a file system that writes late shows here
        incoming.file.close()
        name = self._layout.path(values)
        if os.sep != "/":
            name = name.replace("/", os.sep)
        path = self._place_somewhere(incoming, self._prefix + name)
        is_kept = bool(incoming.name)
        if self._durability == "directory":
            self._sync(os.path.dirname(path))
        return path, is_kept

    def _place_somewhere(self, incoming: Incoming, path: str) -> str:
        """Rename a temporary file, into a directory that may not be there, or be on another disk."""
        try:
            return self._place(incoming, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EXDEV):
                raise
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            return self._place(incoming, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        self._move(incoming, os.path.dirname(path))
        return self._place(incoming, path)

    def _move(self, incoming: Incoming, directory: str) -> None:
        """Copy a temporary file into a directory of another file system, where it can be renamed."""
        near = Incoming(self, self._temporary_name(os.path.join(directory, "")), {})
        try:
            near.file.open()
            with open(incoming.name, "rb") as file:
                while piece := file.read(2**20):
                    near.write(piece)
            if near.error is not None:
                raise near.error
            if self._durability != "none":
                os.fsync(near.file.fd)
            near.file.close()
            incoming.name, near.name = near.name, incoming.name
        finally:
            near.close()

    def _place(self, incoming: Incoming, path: str) -> str:
        """Rename a temporary file, unless there is one that is to be kept; return the path of either."""
        temporary = incoming.name
        if self._existing == "replace":
            os.replace(temporary, path)
            incoming.name = ""
            return path
        for name in self._names(path):
            try:
                rename_new(temporary, name)
            except FileExistsError:
                if self._existing == "keep":
                    return name
                if self._existing == "fail":
                    raise _NotStored(DUPLICATE_INSTANCE, "The instance is stored already") from None
            else:
                break
        incoming.name = ""
        return name

    def _names(self, path: str) -> Iterator[str]:
        """Yield a path, and those to be tried if there is a file of that name."""
        yield path
        stem, extension = os.path.splitext(path)
        for number in range(1, _MAX_NUMBER):
            yield f"{stem}.{number}{extension}"
        while True:
            yield f"{stem}.{os.urandom(8).hex()}{extension}"

    def _sync(self, directory: str) -> None:
        """Make the entry of a new file durable, and those of the directories that lead to it."""
        self._commits.sync(directory)
        while directory != self._root and directory not in self._known:
            parent = os.path.dirname(directory)
            self._commits.sync(parent)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known.add(directory)
            directory = parent


class _NotStored(Exception):
    """An instance is not to be stored, though it could be."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _code_of(error: OSError) -> int:
    """Return the status that says why a file could not be written."""
    if error.errno in _NO_ROOM:
        return OUT_OF_RESOURCES
    return NOT_PERMITTED if error.errno in _FORBIDDEN else CANNOT_WRITE


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    status.ErrorComment = comment[:64]
    return status


def _titles(assoc: Any) -> tuple[str, str, str, str]:
    """Return the calling and called AE titles of an established association, and those of the peer and ours."""
    known: tuple[str, str, str, str] | None = vars(assoc).get("_fastpdu_titles")
    if known is None:
        known = assoc._fastpdu_titles = _find_titles(assoc)
    return known


def _find_titles(assoc: Any) -> tuple[str, str, str, str]:
    primitive = assoc.requestor.primitive
    calling, called = assoc.requestor.ae_title, assoc.acceptor.ae_title
    if primitive is not None:
        calling, called = primitive.calling_ae_title, primitive.called_ae_title
    if assoc.is_acceptor:
        return calling, called, calling, assoc.acceptor.ae_title
    return calling, called, called, calling


def _describe(event: evt.Event, incoming: Incoming, is_kept: bool) -> StoredInstance:
    values: Any = incoming.values
    return StoredInstance(
        values["SOPClassUID"],
        values["SOPInstanceUID"],
        values["TransferSyntaxUID"],
        values["CallingAETitle"],
        values["CalledAETitle"],
        event.assoc.remote["address"],
        incoming.length,
        is_kept,
    )


def _skip_meta(file: Any) -> None:
    """Go to the data set of a file that pynetdicom has written."""
    file.seek(140)
    (length,) = unpack("<L", file.read(4))
    file.seek(length, os.SEEK_CUR)


def rename_new(source: str, target: str) -> None:
    """Rename a file, if there is none of the new name, atomically.

    Parameters
    ----------
    source, target : str
        The old and the new name, in one file system.

    Raises
    ------
    FileExistsError
        If there is one.
    OSError
        If it cannot be renamed.
    """
    if os.name == "nt":
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # The name is taken first, by an empty file that a reader may see for a moment
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(source, target)
        return
    os.unlink(source)


# Telling that an instance is stored, when its response has left -----------------------------------------------------


def _call(
    function: Callable[[Path, StoredInstance], Any], path: Path, info: StoredInstance
) -> None:
    try:
        function(path, info)
    except Exception:
        LOGGER.exception("Exception in the callback on_stored")


def _call_when_answered(event: evt.Event, call: Callable[[], None] | None) -> None:
    """Have a function called when the response to a request has left, or no longer can."""
    assoc: Any = event.assoc
    if getattr(assoc, "tells_answered", False):
        event.request._when_answered = call  # type: ignore[union-attr]
        return
    answers = _ANSWERS.get(assoc)
    if answers is None:
        answers = _ANSWERS[assoc] = _Answers()
        assoc.bind(evt.EVT_PDU_SENT, answers.sent)
        assoc.bind(evt.EVT_CONN_CLOSE, answers.closed)
    answers.calls.append(call)


def answered(request: Any) -> None:
    """Tell that the response to a C-STORE request has left, or no longer can.

    Parameters
    ----------
    request : pynetdicom.dimse_primitives.DIMSEPrimitive
        The request.
    """
    call = request.__dict__.pop("_when_answered", None)
    if call is not None:
        call()


class _Answers:
    """What to call when the responses of one of pynetdicom's own associations leave: something, or None, for each."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None] | None] = deque()

    def sent(self, event: evt.Event) -> None:
        if isinstance(event.pdu, P_DATA_TF) and self.calls:
            self._next()

    def closed(self, event: evt.Event) -> None:
        while self.calls:
            self._next()

    def _next(self) -> None:
        call = self.calls.popleft()
        if call is not None:
            call()


_ANSWERS: WeakKeyDictionary[Any, _Answers] = WeakKeyDictionary()
