"""What the benchmarks share that move one series of images in several ways: options, plan, frame and table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpdu import engine
from fastpdu.bench import pair, peers
from fastpdu.bench.errors import BenchError
from fastpdu.bench.options import positive, row_names
from fastpdu.bench.progress import progress
from fastpdu.bench.report import Report, Row
from fastpdu.bench.runners import Dcmtk, Runner, measure
from fastpdu.bench.series import Series, ct_series, first

__all__ = ["Comparison", "add_pdu", "check_pdu", "dcmtk_row", "require_dcmtk", "tabulate"]

_MAKING = 0.003


def add_pdu(parser: argparse.ArgumentParser, ends: str) -> None:
    """Add the option of the maximum PDU length that the ends announce."""
    parser.add_argument(
        "--pdu",
        type=int,
        default=pair.DEFAULT_PDU,
        metavar="BYTES",
        help=f"maximum PDU length that {ends} ends announce; 0: unlimited (default: %(default)s)",
    )


def check_pdu(args: argparse.Namespace) -> None:
    """Refuse a maximum length that no PDU has."""
    if args.pdu < 0 or 0 < args.pdu < engine.MIN_PDU:
        raise BenchError(
            f"--pdu {args.pdu}: a PDU has at least 7 bytes", "give 0 (unlimited), or 7 or more"
        )


@dataclass(frozen=True)
class Comparison:
    """The rows of a benchmark.

    Attributes
    ----------
    expected : mapping of str and float
        Their names, in the order of the table, and roughly the seconds of an image, for the progress bar.
    reduced : mapping of str and (int, int)
        What a slow row is given unless ``--full`` is: images and runs.
    verifying : float
        Seconds that the comparison of digests takes for an image.
    """

    expected: Mapping[str, float]
    reduced: Mapping[str, tuple[int, int]]
    verifying: float = 0.002

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that all of them have."""
        parser.add_argument(
            "--files", type=Path, metavar="DIR", help="take these files instead of a made series"
        )
        parser.add_argument(
            "--count",
            type=positive,
            metavar="N",
            help="images (default: 1000; with --files: all there are)",
        )
        names = tuple(self.expected)
        parser.add_argument(
            "--rows",
            type=row_names(names),
            metavar="NAMES",
            help=f"what to measure, separated by commas (default: {','.join(names)})",
        )
        add_pdu(parser, "all")
        parser.add_argument(
            "--full",
            action="store_true",
            help="measure slow rows with all images and runs, too (several minutes)",
        )

    @staticmethod
    def check_arguments(args: argparse.Namespace) -> None:
        """Refuse a maximum length that no PDU has."""
        check_pdu(args)

    def names(self, args: argparse.Namespace) -> Sequence[str]:
        """Return the rows that are asked for."""
        return args.rows or tuple(self.expected)

    def _share(self, args: argparse.Namespace, name: str, count: int) -> tuple[int, int]:
        """Return the images and runs of a row."""
        if args.full or name not in self.reduced:
            return count, args.runs
        images, runs = self.reduced[name]
        return min(count, images), min(args.runs, runs)

    def part(self, args: argparse.Namespace, series: Series, name: str) -> tuple[Series, int]:
        """Return what a row moves, and how often at most."""
        images, runs = self._share(args, name, len(series))
        return first(series, images), runs

    def _estimate(self, args: argparse.Namespace) -> float:
        count = args.count or 1000
        total = count * _MAKING
        for name in self.names(args):
            images, runs = self._share(args, name, count)
            total += images * (self.expected[name] * (runs + 1) + self.verifying)
        return total

    def run(
        self,
        args: argparse.Namespace,
        runners: Callable[[Series], Sequence[Runner]],
        keep: Path | None = None,
    ) -> tuple[Series, list[Row]]:
        """Make or read the series, verify and measure every row.

        Parameters
        ----------
        args : argparse.Namespace
            The command line.
        runners : callable
            Returns the rows to be, for the series.
        keep : Path, optional
            Where a made series is left.

        Returns
        -------
        tuple of (Series, list of Row)
            What was moved, and the rows with their samples.
        """
        with progress(self._estimate(args), quiet=args.quiet) as bar:
            bar.phase("reading the series" if args.files else "making the series")
            with ct_series(
                args.files, args.count, keep=keep, on_image=lambda: bar.advance(_MAKING)
            ) as series:
                rows = measure(
                    runners(series),
                    args.runs,
                    bar,
                    verifying=lambda row: (
                        len(row.series) * (self.expected[row.name] + self.verifying)
                    ),
                    running=lambda row: len(row.series) * self.expected[row.name],
                )
        return series, rows


def require_dcmtk(args: argparse.Namespace) -> None:
    """Refuse a row that is asked for by name and needs DCMTK, if that is not installed."""
    if not args.rows or peers.find_dcmtk() is not None:
        return
    for name in args.rows:
        if name.startswith("dcmtk"):
            raise BenchError(
                f"row {name} needs DCMTK's storescu and storescp, which are not installed",
                "install DCMTK (Debian, Ubuntu: apt install dcmtk), or leave the row out",
            )


def dcmtk_row(name: str, series: Series, runs: int, pdu: int, notes: list[str]) -> list[Runner]:
    """Return DCMTK's row, or none and a note that says why."""
    tools = peers.find_dcmtk()
    if tools is None:
        notes.append(f"{name}: skipped, DCMTK is not installed (apt install dcmtk)")
    elif not {syntax for _, syntax in series.contexts} <= peers.TRANSFER_SYNTAXES:
        notes.append(f"{name}: skipped, storescu does not propose compressed images by itself")
    else:
        return [Dcmtk(name, series, runs, pdu, tools)]
    return []


def tabulate(
    report: Report,
    args: argparse.Namespace,
    series: Series,
    rows: list[Row],
    *,
    base: str,
    column: str,
    stock: Callable[[str], str | None] = lambda name: "stock",
    as_speed: bool = False,
    verb: str = "sent",
    touched: str = "every page",
    until: str = ",",
    facts: Sequence[str] = (),
) -> dict[str, float]:
    """Fill a report with the rows of a comparison.

    Parameters
    ----------
    report : Report
        Gets rows, parameters, table, bars and notes; title, headline and goals are the benchmark's.
    args : argparse.Namespace
        The command line.
    series : Series
        What was moved.
    rows : list of Row
        The rows.
    base : str
        The row that the others are compared with.
    column : str
        Head of the column of the ratio to it.
    stock : callable, optional
        Returns the name of stock pynetdicom's row to compare a row with, None for no comparison.
    as_speed : bool
        Ratios and bars tell the throughput, not the time.
    verb, touched : str
        How the rows moved the images, and a byte of what was compared in the timed runs.
    until : str
        What ends the name of a row in front of its note.
    facts : sequence of str
        Notes that come before those of the rows.

    Returns
    -------
    dict of str and float
        Seconds per 1000 images of each row, median.
    """
    size = series.bytes / len(series)
    report.rows = rows
    report.parameters = {
        "images": len(series),
        "bytes": series.bytes,
        "made": series.made,
        "runs": args.runs,
        "pdu": args.pdu,
        "full": args.full,
    }
    medians = {row.name: row.per_1000 for row in rows}
    floor = medians.get(base)
    report.columns = ["", "s / 1000", "fastest", "MB/s", column, "stock / this", "runs", ""]
    for row in rows:
        median = medians[row.name]
        speed = size / 1000 / median
        row.details["seconds_per_1000"] = median
        if as_speed:
            row.details["mb_per_second"] = speed
        scaled = ""
        if row.items < len(series):
            scaled = f"scaled from {row.items} images"
            row.details["scaled_from"] = row.items
        other = medians.get(stock(row.name) or "")
        ratio = part = ""
        if floor:
            times = floor / median if as_speed else median / floor
            ratio = f"{times:.2f}"
            if row.name != base:
                part = f"  ({times:{'.2f' if as_speed else '.3g'}} {column})"
        report.table.append(
            [
                row.label,
                f"{median:.3f}",
                f"{min(row.samples) * 1000 / row.items:.3f}",
                f"{speed:.0f}",
                ratio,
                f"{other / median:.1f}" if other else "",
                str(len(row.samples)),
                scaled,
            ]
        )
        if as_speed:
            report.bars.append((row.label, speed, f"{speed:.0f} MB/s{part}"))
        else:
            report.bars.append((row.label, median, f"{median:.3g} s{part}"))
    report.axis = (
        "MB/s, median, logarithmic: more is better"
        if as_speed
        else "seconds per 1000 images, median, logarithmic: less is better"
    )
    report.log = True
    report.notes[:0] = [
        f"All bytes arrived intact: every row {verb} its images once, untimed, and compared SHA-256 "
        f"digests;\nthe timed runs compared the length and one byte of {touched}.",
        *facts,
        *dict.fromkeys(f"{row.label.partition(until)[0]}: {row.note}." for row in rows if row.note),
    ]
    if series.skipped:
        report.notes.append(f"{series.skipped} files in {series.directory} are not DICOM: skipped")
    return medians
