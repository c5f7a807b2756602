"""What the benchmarks print and write."""

from __future__ import annotations

import builtins
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpdu.bench import report as reports
from fastpdu.bench.errors import BenchError
from fastpdu.bench.progress import Progress, progress
from fastpdu.bench.report import Goal, Report, Row


@pytest.fixture
def report() -> Report:
    made = Report("ct1000", "A title")
    made.columns = ["", "s", "notes"]
    made.table = [["fastpdu", "0.200", "first"], ["pynetdicom, stock", "9.000", ""]]
    made.rows = [Row("fastpdu", "fastpdu", items=10, samples=[0.3, 0.1, 0.2])]
    made.goals = [Goal("fastpdu / floor", 1.5, 2.0, unit=" x"), Goal("unknown", None, 1.0)]
    made.bars = [("fastpdu", 0.2, "0.2 s"), ("pynetdicom, stock", 9.0, "9 s")]
    made.axis = "seconds"
    made.command = reports.command_line(["--count", "10"])
    return made


def _without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in packages:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", fake)


def test_json_says_what_where_and_how(report: Report) -> None:
    content = json.loads(json.dumps(report.as_json()))
    assert content["schema"] == 1
    assert content["benchmark"] == "ct1000"
    assert content["command"] == "fastpdu bench --count 10"
    assert content["date"].endswith("+00:00")
    assert set(content["fastpdu"]) == {"version", "engine", "commit", "modified"}
    assert {"cpu", "cpus", "kernel", "machine", "load_average_before"} <= set(content["host"])
    assert content["packages"]["pynetdicom"].startswith("3.")
    assert content["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    (row,) = content["rows"]
    assert row["samples"] == [0.3, 0.1, 0.2]
    assert (row["median"], row["min"], row["max"]) == (0.2, 0.1, 0.3)
    assert [goal["met"] for goal in content["goals"]] == [True, None]
    assert content["goals_met"] is True


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [
        (1.0, False, True),
        (3.0, False, False),
        (1.0, True, False),
        (3.0, True, True),
        (2.0, True, True),
    ],
)
def test_goals(value: float, at_least: bool, met: bool) -> None:
    goal = Goal("ratio", value, 2.0, at_least=at_least)
    assert goal.met is met
    assert ("MISSED" in str(goal)) is not met


def test_table_with_rich(report: Report) -> None:
    pytest.importorskip("rich")
    stream = io.StringIO()
    report.show(stream)
    assert "A title" in stream.getvalue()
    assert "pynetdicom, stock" in stream.getvalue()


def test_table_without_rich(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "rich")
    stream = io.StringIO()
    report.show(stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "A title"
    assert lines[2].split() == ["fastpdu", "0.200", "first"]
    assert "fastpdu / floor: 1.5 x (goal ≤ 2 x: met)" in lines
    assert "unknown: not measured (goal ≤ 1)" in lines


def test_files(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, chart = report.save(tmp_path / "new")
    day = f"{report.date:%Y-%m-%d}"
    assert data.name == f"ct1000-{day}.json"
    assert chart.name == f"ct1000-{day}.png"
    assert json.loads(data.read_text(encoding="utf-8"))["benchmark"] == "ct1000"
    assert chart.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("log", [False, True])
def test_chart_of_one_bar(report: Report, tmp_path: Path, log: bool) -> None:
    pytest.importorskip("matplotlib")
    report.bars = report.bars[:1]
    report.log = log
    report.chart(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_no_matplotlib_tells_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "matplotlib")
    with pytest.raises(BenchError) as caught:
        reports.require_matplotlib()
    assert "pip install 'fastpdu[bench]'" in (caught.value.remedy or "")


def test_progress_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(4.0) as bar:
        bar.phase("first")
        bar.advance(2.0)
        bar.phase("second")
    assert stream.getvalue() == "[  0 %] first\n[ 50 %] second\n"


def test_quiet_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(1.0, quiet=True) as bar:
        bar.phase("first")
    assert stream.getvalue() == ""


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress(2.0) as bar:
        assert type(bar) is not Progress
        bar.phase("making the series")
        bar.advance(1.0)
        bar.phase("measuring")
    assert "making the series" in stream.getvalue()
