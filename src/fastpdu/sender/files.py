"""The files to be sent: found one after another, and known by their heads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from fastpdu import engine
from fastpdu.dsutils import HEAD_BYTES

#: SOP class and transfer syntax: what a presentation context is for.
Key = tuple[str, str]

_DICOMDIR = "1.2.840.10008.1.3.10"


class NotSendable(Exception):
    """A file is no DICOM instance, or not one that can be stored."""


class FileItem(os.PathLike[str]):
    """A file to be sent.

    Parameters
    ----------
    path : str
        Its path.
    size : int
        Its bytes.
    mtime_ns : int
        When it was last modified, in nanoseconds.
    sop_class, sop_instance, transfer_syntax : str
        What it holds.

    Attributes
    ----------
    attempts : int
        How often it was sent, or tried to.
    is_suspect : bool
        Whether it was on its way when an association was lost. It is sent alone the next time, to find out which
        file it is that a peer cannot bear.
    order : int
        Its place in the queue.
    """

    __slots__ = (
        *("attempts", "is_suspect", "mtime_ns", "order", "path", "size"),
        *("sop_class", "sop_instance", "transfer_syntax"),
    )

    def __init__(
        self,
        path: str,
        size: int,
        mtime_ns: int,
        sop_class: str,
        sop_instance: str,
        transfer_syntax: str,
    ) -> None:
        self.path = path
        self.size = size
        self.mtime_ns = mtime_ns
        self.sop_class = sop_class
        self.sop_instance = sop_instance
        self.transfer_syntax = transfer_syntax
        self.attempts = 0
        self.is_suspect = False
        self.order = 0

    def __fspath__(self) -> str:
        return self.path

    @property
    def key(self) -> Key:
        """SOP class and transfer syntax."""
        return (self.sop_class, self.transfer_syntax)

    def digest(self) -> bytes:
        """Return what tells this file from others, and from what it was before it was changed: 16 bytes."""
        return digest(os.path.abspath(self.path), self.size, self.mtime_ns, self.sop_instance)


def digest(path: str, size: int, mtime_ns: int, sop_instance: str) -> bytes:
    """Return a digest of what a file is known by.

    Parameters
    ----------
    path : str
        Its absolute path.
    size : int
        Its bytes.
    mtime_ns : int
        When it was last modified, in nanoseconds.
    sop_instance : str
        Its SOP Instance UID.

    Returns
    -------
    bytes
        16 bytes.
    """
    text = f"{path}\0{size}\0{mtime_ns}\0{sop_instance}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def walk(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str | OSError]:
    """Yield the files that paths lead to: a file itself, and those below a directory, in the directory's order.

    Nothing is held but the directories that are still to be looked into. Symbolic links to files are followed, those
    to directories only where they are one of `paths`.

    Parameters
    ----------
    paths : iterable of str or PathLike
        Files and directories.

    Yields
    ------
    str or OSError
        A file, or why a directory (its `filename`) cannot be read.

    Raises
    ------
    TypeError
        If a path is not one.
    """
    for given in paths:
        path = os.fspath(given)
        if not isinstance(path, str):
            raise TypeError(f"paths must be str or PathLike of it, not {path!r}")
        if not os.path.isdir(path):
            yield path
            continue
        directories = [path]
        while directories:
            directory = directories.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            directories.append(entry.path)
                        else:
                            yield entry.path
            except OSError as error:
                yield OSError(error.errno, error.strerror, directory)


def examine(path: str) -> FileItem:
    """Find out what a file is.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    FileItem
        What is to be sent.

    Raises
    ------
    NotSendable
        If it is nothing that can be stored; the message says why.
    OSError
        If it cannot be read.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise NotSendable("a symbolic link to a directory")
    if not stat.S_ISREG(status.st_mode):
        # A pipe would have us wait for somebody who writes into it
        raise NotSendable("not a regular file")
    fd, size, head = engine.open_head(path, HEAD_BYTES)
    engine.close_file(fd)
    if not size:
        raise NotSendable("empty")
    found = engine.read_part10(head)
    if found is None or found.sop_class is None or found.sop_instance is None:
        sop_class, sop_instance, syntax = _ask_pydicom(path)
    elif size < found.offset:
        raise NotSendable("truncated")
    else:
        sop_class, sop_instance = found.sop_class, found.sop_instance
        syntax = found.transfer_syntax
    return FileItem(path, size, status.st_mtime_ns, sop_class, sop_instance, syntax)


def _ask_pydicom(path: str) -> tuple[str, str, str]:
    """Return SOP class, SOP instance and transfer syntax as pynetdicom's ``send_c_store`` will see them."""
    try:
        head: Any = dcmread(
            path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"]
        )
    except InvalidDicomError:
        raise NotSendable("not a DICOM file") from None
    except OSError:
        raise
    except Exception as error:
        raise NotSendable(f"damaged: {error}") from error
    if str(head.file_meta.get("MediaStorageSOPClassUID", "")) == _DICOMDIR:
        raise NotSendable("a DICOMDIR")
    for keyword, name in (
        ("SOPClassUID", "SOP Class UID"),
        ("SOPInstanceUID", "SOP Instance UID"),
    ):
        if not head.get(keyword):
            raise NotSendable(f"it has no {name}")
    syntax = head.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise NotSendable("it has no Transfer Syntax UID")
    syntax = UID(syntax)
    # A data set that is not encoded as its meta information says goes out as what it is
    if syntax.is_transfer_syntax and not syntax.is_compressed:
        if head.original_encoding == (True, True):
            syntax = ImplicitVRLittleEndian
        elif head.original_encoding == (False, False):
            syntax = ExplicitVRBigEndian
    return str(head.SOPClassUID), str(head.SOPInstanceUID), str(syntax)
