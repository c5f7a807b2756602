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
from fastpdu.bench import pair, peers
from fastpdu.bench.comparison import Comparison, dcmtk_row, require_dcmtk, tabulate
from fastpdu.bench.errors import BenchError
from fastpdu.bench.report import Goal, Report, Row, ratio
from fastpdu.bench.runners import FileRunner, Runner, send
from fastpdu.bench.series import Series

SUMMARY = "1000 CT from files to files over one association in one process, beside cp -r"
DESCRIPTION = """\
Sends a series of CT images from files with assoc.send_c_store(path) to a storage SCP in the same
process that writes them to files: fastpdu with its FileStore, one at a time and with several in flight,
fastpdu and stock pynetdicom with a handler that writes event.encoded_dataset(), and DCMTK's storescu
and storescp where installed. The floor is cp -r of the same files. The page cache is warm and nothing is
forced onto the disk, unless --durability says so. Every row is checked with SHA-256 before it is timed.
"""
EXAMPLES = """\
examples:
  fastpdu bench disk                                a made series of 1000 images, five runs
  fastpdu bench disk --rows cp,fastpdu --runs 15    only these two, more runs
  fastpdu bench disk --directory /dev/shm           another file system
  fastpdu bench disk --durability directory         FileStore's fsyncs, and sync -f after cp
"""

#: Operations in flight: the next is written while one is stored, and more would only empty the caches.
_WINDOW = 2
_LABELS = {
    "fastpdu": "fastpdu, FileStore",
    "fastpdu-window": f"fastpdu, FileStore, window {_WINDOW}",
    "fastpdu-handler": "fastpdu, handler that writes the file",
    "stock": "pynetdicom, stock, handler that writes the file",
}
_COMPARISON = Comparison(
    expected={
        "cp": 0.0003,
        "fastpdu": 0.0005,
        "fastpdu-window": 0.0005,
        "fastpdu-handler": 0.0007,
        "stock": 0.013,
        "dcmtk": 0.05,
        "dcmtk-nodelay": 0.0015,
    },
    reduced={"stock": (100, 5), "dcmtk": (50, 1), "dcmtk-nodelay": (1000, 3)},
)


class _Files(FileRunner):
    """A row that leaves one file for each image in a new directory."""

    def __init__(self, name: str, series: Series, runs: int, pdu: int, directory: Path) -> None:
        super().__init__(name, series, runs, pdu)
        self._directory = directory

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


class Store(_Files):
    """One association in this process."""

    def __init__(
        self, name: str, series: Series, runs: int, pdu: int, directory: Path, durability: str
    ) -> None:
        super().__init__(name, series, runs, pdu, directory)
        self.label = _LABELS[name]
        self._transport = "stock" if name == "stock" else "fastpdu"
        self._durability = durability

    def _move(self, target: Path) -> float:
        handler: Any = writer(target)
        if self.name in ("fastpdu", "fastpdu-window"):
            handler = fastpdu.FileStore(target, durability=self._durability)
        window = _WINDOW if self.name == "fastpdu-window" else 1
        return send(self._transport, handler, self.series, self.pdu, window=window)


def writer(target: Path) -> pair.Handler:
    """Return a handler that writes files as pynetdicom's documentation shows it."""
    target.mkdir()

    def handler(event: Any) -> int:
        with open(target / f"{event.request.AffectedSOPInstanceUID}.dcm", "wb") as file:
            file.write(event.encoded_dataset())
        return 0x0000

    return handler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    _COMPARISON.add_arguments(parser)
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


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    _COMPARISON.check_arguments(args)
    if args.directory is not None and not args.directory.is_dir():
        raise BenchError(f"--directory {args.directory}: there is no such directory")
    if shutil.which("cp") is None and "cp" in (args.rows or ()):
        raise BenchError("row cp needs the program cp, which is not installed", "leave the row out")
    require_dcmtk(args)


def _runners(
    args: argparse.Namespace, series: Series, directory: Path, notes: list[str]
) -> list[Runner]:
    runners: list[Runner] = []
    for name in _COMPARISON.names(args):
        part, runs = _COMPARISON.part(args, series, name)
        if name == "cp":
            if shutil.which("cp") is None:
                notes.append("cp: skipped, there is no such program")
            else:
                runners.append(_Copy(name, part, runs, directory, args.durability))
        elif name.startswith("dcmtk"):
            runners += dcmtk_row(name, part, runs, args.pdu, notes)
        else:
            runners.append(Store(name, part, runs, args.pdu, directory, args.durability))
    return runners


def run(args: argparse.Namespace) -> Report:
    """Make the series, verify and measure every row, and return the result."""
    report = Report("disk", "")
    with tempfile.TemporaryDirectory(prefix="fastpdu-disk-", dir=args.directory) as scratch:
        directory = Path(scratch)
        series, rows = _COMPARISON.run(
            args,
            lambda series: _runners(args, series, directory, report.notes),
            keep=None if args.files else directory / "series",
        )
    _fill(report, args, series, rows)
    return report


def _fill(report: Report, args: argparse.Namespace, series: Series, rows: list[Row]) -> None:
    size = series.bytes / len(series)
    kind = "made CT series" if series.made else "own files"
    report.title = (
        f"{len(series)} images ({kind}, {size / 1000:.0f} KB each) from files to files, one association, "
        f"maximum PDU {args.pdu or 'unlimited'}, durability {args.durability}: seconds per 1000 images"
    )
    report.headline = (
        f"{len(series)} images of {size / 1000:.0f} KB from files to files over one association, "
        "sender and receiver on one machine"
    )
    medians = tabulate(
        report,
        args,
        series,
        rows,
        base="cp",
        column="x cp -r",
        verb="moved",
        touched="every page of every file",
    )
    report.parameters["durability"] = args.durability
    base, stock = medians.get("cp"), medians.get("stock")
    for name, flight in (("fastpdu", 1), ("fastpdu-window", _WINDOW)):
        ours = medians.get(name)
        report.goals += [
            Goal(
                f"fastpdu, {flight} in flight / cp -r",
                ratio(ours, base),
                2.0,
                unit=" x",
            ),
            Goal(
                f"stock pynetdicom / fastpdu, {flight} in flight",
                ratio(stock, ours),
                25.0,
                at_least=True,
                unit=" x",
            ),
        ]
