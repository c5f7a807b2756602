"""What a benchmark hands out: a table, JSON with everything that was measured, a chart."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from fastpdu.bench.curves import Curves
from fastpdu.bench.errors import BenchError
from fastpdu.bench.heatmap import HeatMap

__all__ = ["Goal", "Report", "Row", "environment", "require_matplotlib"]

SCHEMA = 1
_PACKAGES = ("pynetdicom", "pydicom", "numpy", "rich", "matplotlib")


# --- where and with what --------------------------------------------------------------------------


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.lower().startswith(("model name", "cpu model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def usable_cpus() -> int:
    """Return how many CPUs this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout that this code runs from, if it does."""
    nothing: dict[str, Any] = {"commit": None, "modified": None}
    top = _git("rev-parse", "--show-toplevel")
    # An installed copy may lie in a virtual environment inside some other repository.
    if top is None or Path(top, "src", "fastpdu").resolve() != Path(__file__).resolve().parents[1]:
        return nothing
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return nothing
    return {"commit": commit, "modified": bool(_git("status", "--porcelain", "-uno"))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Describe the machine and the software that the figures belong to."""
    import fastpdu

    try:
        from fastpdu import engine

        backend = str(engine.BACKEND)
    except (ImportError, AttributeError):
        backend = None
    try:
        load: list[float] | None = [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        load = None
    return {
        "fastpdu": {
            "version": getattr(fastpdu, "__version__", None),
            "engine": backend,
            **_commit(),
        },
        "host": {
            "name": platform.node(),
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "cpus_usable": usable_cpus(),
            "memory_bytes": _memory(),
            "load_average_before": load,
        },
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "compiler": platform.python_compiler(),
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "settings": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTPDU_")
        },
    }


# --- the content ----------------------------------------------------------------------------------


@dataclass
class Row:
    """One thing that was measured.

    Attributes
    ----------
    name : str
        Short, for programs.
    label : str
        For people.
    samples : list of float
        One value for each run.
    unit : str
        Of the samples.
    items : int
        How many images, round trips... one sample covers.
    verified : str
        How it was checked that nothing was lost or changed.
    note : str
        What a reader has to know to compare this row with the others.
    details : dict
        Anything else for the JSON.
    """

    name: str
    label: str
    unit: str = "s"
    items: int = 1
    samples: list[float] = field(default_factory=list)
    verified: str = ""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        """The median of the samples."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def per_1000(self) -> float:
        """The median of a row that has samples, for 1000 items."""
        return statistics.median(self.samples) * 1000 / self.items

    def as_json(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        return {
            "name": self.name,
            "label": self.label,
            "unit": self.unit,
            "items": self.items,
            "samples": self.samples,
            "median": self.median,
            "min": min(self.samples, default=None),
            "max": max(self.samples, default=None),
            "verified": self.verified,
            "note": self.note,
            **self.details,
        }


def ratio(value: float | None, other: float | None) -> float | None:
    """Return a quotient of two medians; None if one of the two has not been measured."""
    return value / other if value and other else None


@dataclass
class Goal:
    """What the project promises, and what this run says about it.

    Attributes
    ----------
    text : str
        What is compared.
    value : float or None
        What was measured; None: not measured in this run.
    limit : float
        What it is compared with.
    at_least : bool
        The value has to reach the limit; if False, it must not pass it.
    unit : str
        Printed after the figures.
    """

    text: str
    value: float | None
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the goal for the JSON file."""
        return {
            "text": self.text,
            "value": self.value,
            "limit": self.limit,
            "comparison": ">=" if self.at_least else "<=",
            "unit": self.unit,
            "met": self.met,
        }

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        goal = f"goal {sign} {self.limit:g}{self.unit}"
        if self.value is None:
            return f"{self.text}: not measured ({goal})"
        return (
            f"{self.text}: {self.value:.3g}{self.unit} ({goal}: {'met' if self.met else 'MISSED'})"
        )


@dataclass
class Report:
    """The result of one benchmark.

    Attributes
    ----------
    name : str
        Of the benchmark; the files are called after it.
    title : str
        One line above the table.
    columns : list of str
        The header of the table.
    table : list of list of str
        The table.
    rows : list of Row
        What was measured.
    parameters : dict
        What the measurement was asked for.
    goals : list of Goal
        What the figures are judged by.
    notes : list of str
        Printed below the table.
    bars : list of (label, value, text)
        The chart; empty: no chart.
    axis : str
        What the chart shows.
    log : bool
        The chart's axis is logarithmic.
    headline : str
        Above the chart; empty: the title.
    charts : list of HeatMap or Curves
        Further charts.
    """

    name: str
    title: str
    columns: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[tuple[str, float, str]] = field(default_factory=list)
    axis: str = ""
    log: bool = False
    headline: str = ""
    charts: list[HeatMap | Curves] = field(default_factory=list)
    command: str = ""
    environment: dict[str, Any] = field(default_factory=environment)
    date: datetime.datetime = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc)
    )

    @property
    def goals_met(self) -> bool:
        """False if a goal was measured and missed."""
        return all(goal.met is not False for goal in self.goals)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "schema": SCHEMA,
            "benchmark": self.name,
            "title": self.title,
            "date": self.date.isoformat(timespec="seconds"),
            "command": self.command,
            **self.environment,
            "parameters": self.parameters,
            "rows": [row.as_json() for row in self.rows],
            "goals": [goal.as_json() for goal in self.goals],
            "goals_met": self.goals_met,
            "notes": self.notes,
        }

    def machine(self) -> str:
        """Return one line about where the figures come from."""
        host, python = self.environment["host"], self.environment["python"]
        packages = self.environment["packages"]
        return (
            f"{self.date:%Y-%m-%d}, {host['cpu']} ({host['cpus_usable']} CPUs), "
            f"{host['system']} {host['kernel']}, Python {python['version']}, "
            f"pynetdicom {packages['pynetdicom']}, "
            f"fastpdu {self.environment['fastpdu']['version']}"
        )

    def show(self, stream: TextIO) -> None:
        """Print the table, the goals and the notes."""
        try:
            self._show_rich(stream)
        except ImportError:
            self._show_plain(stream)
        for goal in self.goals:
            print(goal, file=stream)
        for note in self.notes:
            print(note, file=stream)
        print(self.machine(), file=stream)

    def _show_rich(self, stream: TextIO) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(self.columns):
            table.add_column(
                column, justify="right" if 0 < index < len(self.columns) - 1 else "left"
            )
        for cells in self.table:
            table.add_row(*cells)
        # Something that reads from a pipe gets whole lines.
        Console(file=stream, width=None if stream.isatty() else 140).print(table)

    def _show_plain(self, stream: TextIO) -> None:
        lines = [self.columns, *self.table]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        print(self.title, file=stream)
        for line in lines:
            cells = [
                cell.ljust(width) if index in (0, len(line) - 1) else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            print("  ".join(cells).rstrip(), file=stream)
        print(file=stream)

    def save(self, directory: Path) -> list[Path]:
        """Write `name-date.json`, `name-date.png` if there are bars, and the other charts.

        Parameters
        ----------
        directory : Path
            Where; it is made if it does not exist.

        Returns
        -------
        list of Path
            What was written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}-{self.date:%Y-%m-%d}"
        written = [directory / f"{stem}.json"]
        written[0].write_text(
            json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if self.bars:
            written.append(directory / f"{stem}.png")
            self.chart(written[1])
        if self.charts:
            require_matplotlib()
        for chart in self.charts:
            written.append(directory / f"{chart.name}-{self.date:%Y-%m-%d}.png")
            chart.draw(written[-1], self.machine())
        return written

    def chart(self, path: Path) -> None:
        """Draw the bars into a PNG file."""
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        figure = Figure(figsize=(10, 1.7 + 0.55 * len(self.bars)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        labels, values, texts = zip(*self.bars, strict=True)
        colors = ["#0b6e99" if label.startswith("fastpdu") else "#b8c1c8" for label in labels]
        bars = axes.barh(range(len(values)), values, color=colors, height=0.68)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        if self.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlim(min(values) / 2, max(values) * 12)
        else:
            axes.set_xlim(0, max(values) * 1.35)
        axes.bar_label(bars, labels=texts, padding=5, fontsize=9)
        axes.set_xlabel(self.axis, fontsize=9)
        axes.tick_params(labelsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.suptitle(
            self.headline or self.title, x=0.01, ha="left", fontsize=11, fontweight="bold"
        )
        figure.supxlabel(self.machine(), fontsize=7, color="#606060")
        figure.savefig(path)


def require_matplotlib() -> None:
    """Raise a helpful error if there is nothing to draw charts with.

    Called before the measurement as well: nobody wants to hear it after two minutes.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError(
            "the chart of --out needs matplotlib, which is not installed",
            "pip install 'fastpdu[bench]', or use --json to get the figures alone",
        ) from error


def command_line(arguments: Sequence[str]) -> str:
    """Return the command for the record, without the path of the program."""
    return shlex.join(["fastpdu", "bench", *arguments])


def emit(
    report: Report, *, out: Path | None, as_json: bool, stdout: TextIO | None = None
) -> list[Path]:
    """Print and save a report as the options say.

    Parameters
    ----------
    report : Report
        What to give out.
    out : Path or None
        A directory for files.
    as_json : bool
        Print JSON instead of the table.
    stdout : file, optional
        Where to print.

    Returns
    -------
    list of Path
        The files that were written.
    """
    stream = sys.stdout if stdout is None else stdout
    if as_json:
        json.dump(report.as_json(), stream, indent=2, ensure_ascii=False)
        print(file=stream)
    else:
        report.show(stream)
    written = [] if out is None else report.save(out)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return written
