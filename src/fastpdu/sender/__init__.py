"""Sending many files to one destination.

`Sender` (`sender`) finds the files (`files`), its `Worker`s (`worker`) take them from a `Backlog` (`backlog`), each
over an association of its own; what they share, and the books, are in a `Run` (`run`). `journal` remembers what was
acknowledged, `pacing` knows how fast and how patiently, `report` is what users are told.
"""

from fastpdu.sender.journal import JournalError
from fastpdu.sender.report import AssociationProgress, Failure, GivenUp, Progress, Report
from fastpdu.sender.sender import Sender

__all__ = [
    "AssociationProgress",
    "Failure",
    "GivenUp",
    "JournalError",
    "Progress",
    "Report",
    "Sender",
]
