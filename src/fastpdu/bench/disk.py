"""From disk to disk: a series of CT images in files becomes files again, over one association in one process.

The floor is `cp -r` of the same files. See `benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastpdu
from fastpdu.bench import pair, peers, verify
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.bench.runners import Dcmtk, Runner, measure
from fastpdu.bench.series import Series, ct_series, first

SUMMARY = "1000 CT from files to files over one association in one process, beside cp -r"
DESCRIPTION = """\
Sends a series of CT images from files with assoc.send_c_store(path) to a storage SCP in the same
process that writes them to files: fastpdu with its FileStore, fastpdu and stock pynetdicom with a
handler that writes event.encoded_dataset(), and DCMTK's storescu and storescp where installed. The
floor is cp -r of the same files. The page cache is warm and nothing is forced onto the disk, unless
--durability says so. Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench disk                                a made series of 1000 images, five runs
  fastpdu bench disk --rows cp,fastpdu --runs 15    only these two, more runs
  fastpdu bench disk --directory /dev/shm           another file system
  fastpdu bench disk --durability directory         FileStore's fsyncs, and sync -f after cp
"""

ROWS = ("cp", "fastpdu", "fastpdu-handler", "stock", "dcmtk", "dcmtk-nodelay")
_LABELS = {
    "fastpdu": "fastpdu, FileStore",
    "fastpdu-handler": "fastpdu, handler that writes the file",
    "stock": "pynetdicom, stock, handler that writes the file",
}
#: What a slow row is given unless --full is: images and runs.
REDUCED = {"stock": (100, 5), "dcmtk": (50, 1), "dcmtk-nodelay": (1000, 3)}
_EXPECTED = {
    "cp": 0.0003,
    "fastpdu": 0.0005,
    "fastpdu-handler": 0.0007,
    "stock": 0.013,
    "dcmtk": 0.05,
    "dcmtk-nodelay": 0.0015,
}
_VERIFYING = 0.002
_MAKING = 0.003


class _Files(Runner):
    """A row that leaves one file for each image in a new directory."""

    def __init__(self, name: str, series: Series, runs: int, pdu: int, directory: Path) -> None:
        super().__init__(name, series, runs, pdu)
        self._directory = directory
        self._expected: dict[str, verify.Sample] = {}

    def _move(self, target: Path) -> float:
        """Bring the images into a directory; return the seconds."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _run(self) -> Iterator[tuple[float, Path]]:
        target = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self._directory), "received")
        # The disk is done with what the row before has left
        getattr(os, "sync", int)()
        yield self._move(target), target
        # Not removed before the end: ext4 looks twice at each inode that was removed in the last minute
        for path in target.iterdir():
            os.truncate(path, 0)

    def verify(self) -> str:
        with self._run() as (_, target):
            text = peers.verify_received(target, self.series.instances)
            self._expected = peers.contents(target)
        return text

    def measure(self) -> float:
        with self._run() as (elapsed, target):
            if peers.contents(target) != self._expected:
                raise BenchError(f"{self.label}: not everything arrived unchanged")
        return elapsed


class _Copy(_Files):
    label = "cp -r"
    note = "a process of its own, its start included; no network"

    def __init__(
        self, name: str, series: Series, runs: int, directory: Path, durability: str
    ) -> None:
        super().__init__(name, series, runs, 0, directory)
        self._syncs = durability != "none"

    def _move(self, target: Path) -> float:
        with contextlib.ExitStack() as stack:
            options, source = "-r", self.series.directory
            if not self.series.made:
                # There may be more in the user's directory
                options, source = "-rL", stack.enter_context(peers.linked(self.series.instances))
            begun = time.perf_counter()
            subprocess.run(["cp", options, os.fspath(source), os.fspath(target)], check=True)
            if self._syncs:
                subprocess.run(["sync", "-f", os.fspath(target)], check=True)
            return time.perf_counter() - begun


class _Store(_Files):
    def __init__(
        self, name: str, series: Series, runs: int, pdu: int, directory: Path, durability: str
    ) -> None:
        super().__init__(name, series, runs, pdu, directory)
        self.label = _LABELS[name]
        self._transport = "stock" if name == "stock" else "fastpdu"
        self._durability = durability

    def _move(self, target: Path) -> float:
        handler: Any = _writer(target)
        if self.name == "fastpdu":
            handler = fastpdu.FileStore(target, durability=self._durability)
        contexts = self.series.contexts
        with (
            pair.transport(self._transport),
            pair.scp(handler, contexts, pdu=self.pdu) as port,
        ):
            fast = self._transport == "fastpdu"
            association = pair.associate(port, contexts, pdu=self.pdu, fast=fast)
            try:
                elapsed = pair.send(association, self.series.instances)
            except BaseException:
                association.abort()
                raise
            association.release()
            return elapsed


def _writer(target: Path) -> pair.Handler:
    """Return a handler that writes files as pynetdicom's documentation shows it."""
    target.mkdir()

    def handler(event: Any) -> int:
        with open(target / f"{event.request.AffectedSOPInstanceUID}.dcm", "wb") as file:
            file.write(event.encoded_dataset())
        return 0x0000

    return handler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="send these files instead of a made series"
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="images (default: 1000; with --files: all there are)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where the files are written, and made (default: where temporary files are)",
    )
    parser.add_argument(
        "--durability",
        choices=("none", "file", "directory"),
        default="none",
        help="what FileStore forces onto the disk for each image (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        metavar="NAMES",
        help=f"what to measure, separated by commas (default: {','.join(ROWS)})",
    )
    parser.add_argument(
        "--pdu",
        type=int,
        default=pair.DEFAULT_PDU,
        metavar="BYTES",
        help="maximum PDU length that both sides announce; 0: unlimited (default: %(default)s)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="measure slow rows with all images and runs, too (several minutes)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if args.pdu < 0 or 0 < args.pdu < 7:
        raise BenchError(
            f"--pdu {args.pdu}: a PDU has at least 7 bytes", "give 0 (unlimited), or 7 or more"
        )
    if args.directory is not None and not args.directory.is_dir():
        raise BenchError(f"--directory {args.directory}: there is no such directory")
    if shutil.which("cp") is None and "cp" in (args.rows or ()):
        raise BenchError("row cp needs the program cp, which is not installed", "leave the row out")
    if peers.find_dcmtk() is None:
        for name in args.rows or ():
            if name.startswith("dcmtk"):
                raise BenchError(
                    f"row {name} needs DCMTK's storescu and storescp, which are not installed",
                    "install DCMTK (Debian, Ubuntu: apt install dcmtk), or leave the row out",
                )


def _runners(
    args: argparse.Namespace, series: Series, directory: Path, notes: list[str]
) -> list[Runner]:
    runners: list[Runner] = []
    tools = peers.find_dcmtk()
    for name in args.rows or ROWS:
        part, runs = series, args.runs
        if not args.full and name in REDUCED:
            images, most = REDUCED[name]
            part, runs = first(series, images), min(runs, most)
        if name == "cp":
            if shutil.which("cp") is None:
                notes.append("cp: skipped, there is no such program")
            else:
                runners.append(_Copy(name, part, runs, directory, args.durability))
        elif not name.startswith("dcmtk"):
            runners.append(_Store(name, part, runs, args.pdu, directory, args.durability))
        elif tools is None:
            notes.append(f"{name}: skipped, DCMTK is not installed (apt install dcmtk)")
        elif not {syntax for _, syntax in series.contexts} <= peers.TRANSFER_SYNTAXES:
            notes.append(f"{name}: skipped, storescu does not propose compressed images by itself")
        else:
            runners.append(Dcmtk(name, part, runs, args.pdu, tools))
    return runners


def _estimate(args: argparse.Namespace) -> float:
    count = args.count or 1000
    total = count * _MAKING
    for name in args.rows or ROWS:
        images, runs = count, args.runs
        if not args.full and name in REDUCED:
            images, runs = min(count, REDUCED[name][0]), min(runs, REDUCED[name][1])
        total += images * (_EXPECTED[name] * (runs + 1) + _VERIFYING)
    return total


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("disk", "")
    with (
        progress(_estimate(args), quiet=args.quiet) as bar,
        contextlib.ExitStack() as stack,
    ):
        bar.phase("reading the series" if args.files else "making the series")
        directory = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fastpdu-disk-", dir=args.directory)
            )
        )
        keep = None if args.files else directory / "series"
        series = stack.enter_context(
            ct_series(args.files, args.count, keep=keep, on_image=lambda: bar.advance(_MAKING))
        )
        runners = _runners(args, series, directory, report.notes)
        rows = measure(
            runners,
            args.runs,
            bar,
            verifying=lambda runner: len(runner.series) * (_EXPECTED[runner.name] + _VERIFYING),
            running=lambda runner: len(runner.series) * _EXPECTED[runner.name],
        )
    _fill(report, args, series, rows)
    return report


def _per_1000(row: Row) -> float:
    assert row.median is not None
    return row.median * 1000 / row.items


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    kind = "made CT series" if series.made else "own files"
    report.title = (
        f"{len(series)} images ({kind}, {size / 1000:.0f} KB each) from files to files, one association, "
        f"maximum PDU {args.pdu or 'unlimited'}, durability {args.durability}: seconds per 1000 images"
    )
    report.rows = rows
    report.parameters = {
        "images": len(series),
        "bytes": series.bytes,
        "made": series.made,
        "runs": args.runs,
        "pdu": args.pdu,
        "durability": args.durability,
        "full": args.full,
    }
    medians = {row.name: _per_1000(row) for row in rows}
    base, stock, ours = medians.get("cp"), medians.get("stock"), medians.get("fastpdu")
    report.columns = ["", "s / 1000", "fastest", "MB/s", "x cp -r", "stock / this", "runs", ""]
    for row in rows:
        median = medians[row.name]
        scaled = ""
        if row.items < len(series):
            scaled = f"scaled from {row.items} images"
            row.details["scaled_from"] = row.items
        row.details["seconds_per_1000"] = median
        report.table.append(
            [
                row.label,
                f"{median:.3f}",
                f"{min(row.samples) * 1000 / row.items:.3f}",
                f"{size / 1000 / median:.0f}",
                f"{median / base:.2f}" if base else "",
                f"{stock / median:.1f}" if stock else "",
                str(len(row.samples)),
                scaled,
            ]
        )
        ratio = f"  ({median / base:.3g} x cp -r)" if base and row.name != "cp" else ""
        report.bars.append((row.label, median, f"{median:.3g} s{ratio}"))
    report.axis = "seconds per 1000 images, median, logarithmic: less is better"
    report.log = True
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB from files to files over one association, "
        "sender and receiver on one machine"
    )
    report.goals = [
        Goal("fastpdu / cp -r", ours / base if ours and base else None, 2.0, unit=" x"),
        Goal(
            "stock pynetdicom / fastpdu",
            stock / ours if ours and stock else None,
            25.0,
            at_least=True,
            unit=" x",
        ),
    ]
    report.notes[:0] = [
        "All bytes arrived intact: every row moved its images once, untimed, and compared SHA-256 "
        "digests;\nthe timed runs compared the length and one byte of every page of every file.",
        *dict.fromkeys(f"{row.label.partition(',')[0]}: {row.note}." for row in rows if row.note),
    ]
    if series.skipped:
        report.notes.append(f"{series.skipped} files in {series.directory} are not DICOM: skipped")
