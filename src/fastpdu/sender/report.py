"""What has become of the files: while they are being sent, and at the end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fastpdu.requestor import Cause

#: Files that a report lists by name; it counts all of them.
MAX_LISTED = 10_000


@dataclass(frozen=True)
class Failure:
    """A file that was not sent.

    Attributes
    ----------
    path : str
        The file.
    kind : str
        ``"status"`` (the peer answered with a failure), ``"context"`` (it does not accept what the file holds),
        ``"lost"`` (no response), ``"unreadable"``, ``"not-sendable"`` (pynetdicom cannot send it) or ``"not-dicom"``.
    reason : str
        Why.
    sop_instance_uid : str or None
        What it holds, as far as known.
    status : int or None
        The last status of the peer.
    attempts : int
        How often it was sent.
    """

    path: str
    kind: str
    reason: str
    sop_instance_uid: str | None = None
    status: int | None = None
    attempts: int = 0


@dataclass(frozen=True)
class GivenUp:
    """Why a run has ended before its files did.

    Attributes
    ----------
    message : str
        What happened.
    cause : fastpdu.requestor.Cause or None
        Which cause that is, if it is one of an association's.
    """

    message: str
    cause: Cause | None = None


@dataclass(frozen=True)
class AssociationProgress:
    """What one of the associations of a `Sender` is doing.

    Attributes
    ----------
    number : int
        Which one, from 1.
    state : str
        ``"connecting"``, ``"sending"``, ``"waiting"`` (before another attempt, or for the rate), ``"idle"`` or
        ``"closed"``.
    sent : int
        Files that were acknowledged.
    bytes : int
        Their bytes, and those of the others that have left.
    """

    number: int
    state: str
    sent: int
    bytes: int


@dataclass(frozen=True)
class Progress:
    """How far a `Sender` is.

    Attributes
    ----------
    found : int
        Files that were found until now.
    sent : int
        Files that the peer has acknowledged.
    already_sent : int
        Files that were in the journal.
    failed, skipped : int
        Files that were not sent: in spite of what was tried, and since they are no DICOM.
    bytes : int
        Bytes of the files sent, and of the others that have left.
    bytes_done : int
        These, and the bytes of files that need not or could not be sent.
    seconds : float
        Since the beginning.
    is_complete : bool
        Whether all files have been found.
    associations : tuple of AssociationProgress
        The associations.
    """

    found: int
    sent: int
    already_sent: int
    failed: int
    skipped: int
    bytes: int
    bytes_done: int
    seconds: float
    is_complete: bool
    associations: tuple[AssociationProgress, ...]


@dataclass
class Report:
    """What has become of the files of one `Sender.send`.

    Attributes
    ----------
    found : int
        Files that were found.
    sent : int
        Files that the peer has acknowledged, with Success or a Warning.
    warnings : int
        Those of them with a Warning.
    bytes : int
        The bytes of the files sent.
    already_sent : int
        Files that the peer had acknowledged in an earlier run, by the journal.
    duplicates : int
        Files that were found a second time, and not sent again (with a journal only).
    failed : int
        Files that were not sent in spite of what was tried.
    skipped : int
        Files that are no DICOM instances. With ``strict=True`` they are in `failed`.
    not_sent : int
        Files that were found and not sent, since the run was cancelled or given up. There may be more that
        were not found any more: see `is_complete`.
    retries : int
        How often files were sent again, in all.
    associations : int
        How many associations were made.
    seconds : float
        How long it took.
    failures, skips : list of Failure
        The files, `MAX_LISTED` at most.
    is_complete : bool
        Whether all files were found and had their turn.
    is_cancelled : bool
        Whether `Sender.cancel` was called.
    given_up : GivenUp or None
        Why the run ended early, if it did by itself.
    """

    found: int = 0
    sent: int = 0
    warnings: int = 0
    bytes: int = 0
    already_sent: int = 0
    duplicates: int = 0
    failed: int = 0
    skipped: int = 0
    not_sent: int = 0
    retries: int = 0
    associations: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    skips: list[Failure] = field(default_factory=list)
    is_complete: bool = False
    is_cancelled: bool = False
    given_up: GivenUp | None = None

    @property
    def is_success(self) -> bool:
        """Whether every file that was found was sent, now or earlier, but for those skipped."""
        return self.is_complete and not self.failed

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        content = dataclasses.asdict(self)
        content["is_success"] = self.is_success
        return content
