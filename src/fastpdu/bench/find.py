"""C-FIND with thousands of responses, both ends in one process."""

from __future__ import annotations

import argparse
import gc
import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from fastpdu.bench import pair
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row, ratio

SUMMARY = "C-FIND with 5000 responses, beside stock pynetdicom"
DESCRIPTION = """\
Measures a C-FIND at the study level whose SCP, in the same process, answers with thousands of matches
of 13 elements each. Stock pynetdicom is measured in the same run, with fewer responses unless --full
is given. Before it is timed, each row is checked: the elements of all matches, by SHA-256.
"""
EXAMPLES = """\
examples:
  fastpdu bench find
  fastpdu bench find --responses 20000 --runs 9 --out results
"""

ROWS = ("fastpdu", "stock")
_LABELS = {"fastpdu": "fastpdu", "stock": "pynetdicom, stock"}
_EXPECTED = {"fastpdu": 0.0003, "stock": 0.004}
_VERIFYING = 0.001
_CONTEXT = (str(StudyRootQueryRetrieveInformationModelFind), str(ImplicitVRLittleEndian))


def match(number: int) -> Dataset:
    """Return a study as an archive answers a query for it."""
    study = Dataset()
    study.QueryRetrieveLevel = "STUDY"
    study.StudyDate = f"2026{number % 12 + 1:02d}{number % 28 + 1:02d}"
    study.StudyTime = f"{number % 24:02d}{number % 60:02d}00"
    study.AccessionNumber = f"A{number:07d}"
    study.ModalitiesInStudy = ["CT", "SR"]
    study.StudyDescription = "CT THORAX WITH CONTRAST"
    study.PatientName = f"Bench^Patient {number}"
    study.PatientID = f"P{number:06d}"
    study.PatientBirthDate = "19600229"
    study.PatientSex = "F"
    study.StudyInstanceUID = f"2.25.170023498100.{number + 1}"
    study.StudyID = str(number)
    study.NumberOfStudyRelatedInstances = 100 + number % 900
    return study


def _digest(matches: Sequence[Dataset]) -> str:
    digest = hashlib.sha256()
    for match in matches:
        digest.update(match.to_json().encode())
    return digest.hexdigest()


class Find:
    """One transport."""

    def __init__(self, name: str, matches: Sequence[Dataset]) -> None:
        self.name = name
        self.matches = matches

    def _find(self, received: list[Dataset]) -> float:
        def archive(_: Any) -> Iterator[Any]:
            for match in self.matches:
                yield 0xFF00, match

        with (
            pair.transport(self.name),
            pair.scp(None, [_CONTEXT], handlers=[(evt.EVT_C_FIND, archive)]) as port,
        ):
            association = pair.associate(port, [_CONTEXT], fast=self.name == "fastpdu")
            query = Dataset()
            query.QueryRetrieveLevel = "STUDY"
            query.StudyInstanceUID = ""
            status = Dataset()
            start = time.perf_counter()
            responses = association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
            for status, identifier in responses:  # noqa: B007
                if identifier is not None:
                    # What an application does at least: one element of each
                    identifier.StudyInstanceUID  # noqa: B018
                    received.append(identifier)
            elapsed = time.perf_counter() - start
            association.release()
        if status.get("Status") != 0x0000 or len(received) != len(self.matches):
            raise BenchError(f"{len(received)} of {len(self.matches)} matches arrived")
        return elapsed

    def verify(self) -> str:
        """Compare all elements of all matches; return what was compared."""
        received: list[Dataset] = []
        self._find(received)
        if _digest(received) != _digest(self.matches):
            raise BenchError(f"{_LABELS[self.name]}: the matches arrived changed")
        return f"SHA-256 of the elements of {len(received)}"

    def measure(self) -> float:
        """Return the seconds of one run."""
        return self._find([])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--responses",
        type=positive,
        default=5000,
        metavar="N",
        help="pending responses (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=row_names(ROWS), default=list(ROWS), metavar="NAMES", help="what to measure"
    )
    parser.add_argument(
        "--full", action="store_true", help="measure stock pynetdicom with as many responses"
    )


def run(args: argparse.Namespace) -> Report:
    """Measure and return the result."""
    report = Report("find", "")
    counts = dict.fromkeys(args.rows, args.responses)
    if not args.full and "stock" in counts:
        counts["stock"] = min(args.responses, 500)
    rows = {name: Row(name, _LABELS[name], "s", count) for name, count in counts.items()}
    total = sum(
        count * (_EXPECTED[name] * (args.runs + 1) + _VERIFYING) for name, count in counts.items()
    )
    with progress(total, quiet=args.quiet) as bar:
        bar.phase("making the matches")
        matches = [match(number) for number in range(args.responses)]
        runners = {name: Find(name, matches[:count]) for name, count in counts.items()}
        for name, runner in runners.items():
            bar.phase(f"{_LABELS[name]}: comparing the matches")
            rows[name].verified = runner.verify()
            bar.advance(counts[name] * (_EXPECTED[name] + _VERIFYING))
        for number in range(args.runs):
            for name, runner in runners.items():
                bar.phase(f"{_LABELS[name]}: run {number + 1} of {args.runs}")
                gc.collect()
                cpu = time.process_time()
                rows[name].samples.append(runner.measure())
                spent = time.process_time() - cpu
                rows[name].details.setdefault("cpu_samples", []).append(spent)
                bar.advance(counts[name] * _EXPECTED[name])
    _fill(report, args, rows)
    return report


def _fill(report: Report, args: argparse.Namespace, rows: dict[str, Row]) -> None:
    report.title = f"C-FIND with {args.responses} responses, one process: µs per response"
    report.parameters = {"responses": args.responses, "runs": args.runs, "full": args.full}
    report.columns = ["", "µs", "fastest", "per second", "stock / this", "runs", ""]
    cost = {name: (row.median or 0.0) / row.items for name, row in rows.items()}
    for name, row in rows.items():
        row.details["microseconds"] = cost[name] * 1e6
        if row.items < args.responses:
            row.note = f"scaled from {row.items} responses"
        faster = ratio(cost.get("stock"), cost[name])
        report.rows.append(row)
        report.table.append(
            [
                row.label,
                f"{cost[name] * 1e6:.0f}",
                f"{min(row.samples) / row.items * 1e6:.0f}",
                f"{1 / cost[name]:.0f}",
                "" if faster is None else f"{faster:.1f}",
                str(len(row.samples)),
                row.note,
            ]
        )
        text = f"{cost[name] * 1e6:.0f} µs"
        if faster is not None and name != "stock":
            text += f"  ({faster:.0f} x faster)"
        report.bars.append((row.label, cost[name] * 1e6, text))
    report.goals = [
        Goal(
            "C-FIND, stock / fastpdu",
            ratio(cost.get("stock"), cost.get("fastpdu")),
            10.0,
            at_least=True,
            unit=" x",
        )
    ]
    report.axis = "microseconds per response, median, logarithmic: less is better"
    report.log = True
    report.notes.append(
        "Every row was checked: all elements of all matches arrived (SHA-256), before it was timed."
    )
