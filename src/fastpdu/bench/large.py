"""One object of some gigabytes from a file into a file, both ways: what does it cost in memory?

Each end is a process of its own. See `benchmarks/README.md` for the method.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
)

import fastpdu
from fastpdu import engine
from fastpdu.bench import child, pair, watch
from fastpdu.bench.comparison import add_pdu, check_pdu
from fastpdu.bench.disk import writer
from fastpdu.bench.errors import BenchError
from fastpdu.bench.multiframe import FRAME, MOST_FRAMES, Large, digest_of, make_multiframe
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Goal, Report, Row
from fastpdu.transport import road_counters

SUMMARY = "one object of 4 GB from a file into a file, both ways: peak memory of both ends"
DESCRIPTION = """\
Moves one multi-frame object of some gigabytes between two processes, from a file into a
fastpdu.FileStore: to the SCP with assoc.send_c_store(path), and back with a C-GET whose handler yields the
path. Measures the resident memory of both processes: with the association open before anything is
sent, and its peak until the response. Stock pynetdicom sends and stores a smaller object of the same
kind, since it needs several times its size. What has arrived is compared with SHA-256 in every run.
"""
EXAMPLES = """\
examples:
  fastpdu bench large                               4 GB, three runs
  fastpdu bench large --size 500 --rows store       less, one way
  fastpdu bench large --directory /data --pdu 0     another file system, unlimited PDUs
"""

RUNS = 3
LABELS = {
    "store": "fastpdu, C-STORE",
    "get": "fastpdu, C-GET",
    "stock": "pynetdicom, stock, C-STORE",
}
ROWS = tuple(LABELS)
#: MB that stock pynetdicom is given at most.
STOCK_SIZE = 200
#: MB that an end may need beyond what it needs when it does nothing.
GROWTH = 32.0
_GET = (str(StudyRootQueryRetrieveInformationModelGet), str(ExplicitVRLittleEndian))
_MIB = 1024 * 1024
#: Seconds that a run may take at most.
_PATIENCE = 3600.0
_HEAD = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--size",
        type=positive,
        default=4000,
        metavar="MB",
        help="of the object, in whole frames of 512 KiB (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=row_names(ROWS),
        default=list(ROWS),
        metavar="NAMES",
        help=f"what to measure, separated by commas (default: {','.join(ROWS)})",
    )
    add_pdu(parser, "both")
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where the files are (default: where temporary files are)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is measured."""
    if _frames(args.size) > MOST_FRAMES:
        raise BenchError(
            f"--size {args.size}: pixel data that is not encapsulated has at most "
            f"{MOST_FRAMES * FRAME // 1_000_000} MB"
        )
    check_pdu(args)
    directory = args.directory or Path(tempfile.gettempdir())
    if not directory.is_dir():
        raise BenchError(f"--directory {directory}: there is no such directory")
    # What arrives, and what the source takes where there are no sparse files
    need = 2 * _frames(args.size) * FRAME + 64 * _MIB
    free = shutil.disk_usage(directory).free
    if free < need:
        raise BenchError(
            f"{directory} has {free // _MIB} MB free, the files need {need // _MIB} MB",
            "use a smaller --size, or --directory for a larger file system",
        )
    if watch.peak_memory(os.getpid()) is None:
        raise BenchError("this system does not tell how much memory another process uses")


def _frames(size: int) -> int:
    """Return the frames of an object of a size in MB."""
    return max(1, round(size * 1_000_000 / FRAME))


@dataclass
class Move:
    """What a run took.

    Attributes
    ----------
    seconds : float
        From the request to the response.
    sender, receiver : Figures
        The two processes.
    """

    seconds: float
    sender: watch.Figures
    receiver: watch.Figures


# The two ends -----------------------------------------------------------------------------------------------------


def _handler(name: str, target: str) -> Any:
    """Return what stores the object."""
    return writer(Path(target)) if name == "stock" else fastpdu.FileStore(target)


def _transport(name: str) -> str:
    return "stock" if name == "stock" else "fastpdu"


def acceptor(
    give: Callable[[object], None],
    take: Callable[[], Any],
    name: str,
    contexts: pair.Contexts,
    pdu: int,
    path: str,
    target: str,
) -> None:
    """Be the SCP: runs in a child process. Gives its port, then, when told, its roads."""

    def archive(_: Any) -> Iterator[Any]:
        yield 1
        yield 0xFF00, path

    gets = name == "get"
    with (
        pair.transport(_transport(name)),
        pair.scp(
            None if gets else _handler(name, target),
            [*contexts, _GET] if gets else contexts,
            pdu=pdu,
            handlers=[(evt.EVT_C_GET, archive)] if gets else (),
            roles=gets,
        ) as port,
    ):
        give(port)
        take()
        give(road_counters())
        take()


def requestor(
    give: Callable[[object], None],
    take: Callable[[], Any],
    name: str,
    contexts: pair.Contexts,
    pdu: int,
    path: str,
    target: str,
    port: int,
) -> None:
    """Be the SCU: runs in a child process. Associates, and operates when told; gives the seconds and its roads."""
    gets = name == "get"
    with pair.transport(_transport(name)):
        association = pair.associate(
            port,
            [*contexts, _GET] if gets else contexts,
            pdu=pdu,
            fast=name != "stock",
            handler=_handler(name, target) if gets else None,
        )
        try:
            give("ready")
            take()
            if gets:
                seconds, last = pair.retrieve(association, moves=False)
                if (last.get("Status"), last.get("NumberOfCompletedSuboperations")) != (0, 1):
                    raise BenchError(f"the object was not retrieved: {last}")
            else:
                began = time.perf_counter()
                status = association.send_c_store(path)
                seconds = time.perf_counter() - began
                if not status or status.Status != 0x0000:
                    raise BenchError(f"the object was not stored: {status or 'no response'}")
            give((seconds, road_counters()))
            take()
        except BaseException:
            association.abort()
            raise
        association.release()


def move(name: str, large: Large, pdu: int, directory: Path) -> Move:
    """Move an object once, and compare what has arrived.

    Parameters
    ----------
    name : str
        The row.
    large : Large
        The object.
    pdu : int
        The maximum PDU length that both ends announce.
    directory : Path
        Where a directory for the file can be made; nothing is left there.

    Raises
    ------
    BenchError
        If it did not arrive as it was, or not on the fast road.
    """
    instance = large.instance
    contexts = [(instance.sop_class, instance.transfer_syntax)]
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
        target = Path(scratch, "received")
        arguments = (name, contexts, pdu, instance.path, str(target))
        with child.child(acceptor, *arguments) as scp:
            port = scp.receive()
            with child.child(requestor, *arguments, port) as scu:
                scu.receive()
                with watch.watch(scu.pid) as ours, watch.watch(scp.pid) as theirs:
                    seconds, roads = scu.ask("begin", _PATIENCE)
                both = (roads, scp.ask("report"))
                scu.send("stop")
            scp.send("stop")
        if name != "stock" and any(each["stock_sent"] + each["stock_received"] for each in both):
            raise BenchError(f"{LABELS[name]}: not all messages took the fast road")
        _compare(target, large)
    ends = (theirs, ours) if name == "get" else (ours, theirs)
    return Move(seconds, *ends)


def _compare(target: Path, large: Large) -> None:
    """Compare the one file in a directory with the object that was sent."""
    paths = [path for path in target.iterdir() if path.is_file()]
    if len(paths) != 1:
        raise BenchError(f"{len(paths)} files arrived, not one")
    with paths[0].open("rb") as file:
        head = engine.read_part10(file.read(_HEAD))
    if head is None or head.sop_instance != large.instance.sop_instance:
        raise BenchError("another instance arrived")
    if paths[0].stat().st_size - head.offset != large.length:
        raise BenchError("the object arrived with another length")
    if digest_of(paths[0], head.offset) != large.digest:
        raise BenchError("the object arrived changed")


# The report -------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> Report:
    """Make the object, measure every row, and return the result."""
    report = Report("large", "")
    moves: dict[str, list[Move]] = {}
    with (
        progress(len(args.rows) * (1 + args.runs), quiet=args.quiet) as bar,
        tempfile.TemporaryDirectory(prefix="fastpdu-large-", dir=args.directory) as scratch,
    ):
        directory = Path(scratch)
        made: dict[int, Large] = {}
        for name in args.rows:
            size = min(args.size, STOCK_SIZE) if name == "stock" else args.size
            if size not in made:
                bar.phase("making the object")
                made[size] = make_multiframe(directory / f"{size}.dcm", _frames(size))
            bar.advance(1)
            row = Row(name, LABELS[name], "bytes above idle, of the end that needs more")
            row.verified = "SHA-256 of the object, in every run"
            row.details["bytes"] = made[size].length
            if size != args.size:
                row.note = f"{size} MB only"
            moves[name] = []
            for number in range(args.runs):
                bar.phase(f"{row.label}: run {number + 1} of {args.runs}")
                moves[name].append(move(name, made[size], args.pdu, directory))
                bar.advance(1)
            row.samples = [
                float(max(_growth(one.sender), _growth(one.receiver))) for one in moves[name]
            ]
            row.details["runs"] = [dataclasses.asdict(one) for one in moves[name]]
            report.rows.append(row)
    _fill(report, args, moves)
    return report


def _growth(figures: watch.Figures) -> int:
    """Return what a process has needed beyond what it needs when idle."""
    if figures.memory_growth is None:
        raise BenchError("a process ended before its memory could be read")
    return figures.memory_growth


def _fill(report: Report, args: argparse.Namespace, moves: dict[str, list[Move]]) -> None:
    size = _frames(args.size) * FRAME
    report.title = (
        f"One object of {size / 1e9:.2f} GB ({_frames(args.size)} frames) from a file into a file, two processes, "
        f"maximum PDU {args.pdu or 'unlimited'}: resident memory"
    )
    report.headline = (
        f"One object of {size / 1e9:.2f} GB from a file into a file: memory above idle"
    )
    report.parameters = {
        "size_mb": args.size,
        "frames": _frames(args.size),
        "runs": args.runs,
        "pdu": args.pdu,
    }
    report.columns = ["", "sender idle MB", "grows by", "receiver idle MB", "grows by"]
    report.columns += ["s", "MB/s", "runs", ""]
    for row in report.rows:
        seconds = statistics.median(one.seconds for one in moves[row.name])
        cells = [row.label]
        for end in ("sender", "receiver"):
            figures = [getattr(one, end) for one in moves[row.name]]
            growth = statistics.median(_growth(one) for one in figures) / _MIB
            idle = statistics.median(one.idle_memory for one in figures) / _MIB
            cells += [f"{idle:.1f}", f"{growth:.1f}"]
            of = row.note.removesuffix(" only")
            label = f"{row.label}{' of ' + of if of else ''}: {end}"
            text = f"{growth:.0f}" if growth >= 10 else f"{growth:.1f}"
            report.bars.append((label, max(growth, 0.1), f"{text} MB above {idle:.0f}"))
        speed = row.details["bytes"] / 1e6 / seconds
        cells += [f"{seconds:.2f}", f"{speed:.0f}", str(len(row.samples)), row.note]
        report.table.append(cells)
    report.axis = "MB above idle, median, logarithmic: less is better"
    report.log = True
    ours = [one for name, each in moves.items() if name != "stock" for one in each]
    report.goals = [
        Goal(
            f"fastpdu: growth of the {end}, worst run",
            max((_growth(getattr(one, end)) / _MIB for one in ours), default=None),
            GROWTH,
            unit=" MB",
        )
        for end in ("sender", "receiver")
    ]
    report.notes = [
        "All bytes arrived intact: SHA-256 of the data set in the file that was received, in every run.",
        "Idle: the association is open, and nothing has been sent. MB of memory are of 1024 x 1024 bytes.",
    ]
