"""The stall benchmark: its arithmetic, and one cell of each kind. No time is asserted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastpdu
from fastpdu import cli
from fastpdu.bench import cells, peers, stall, sweep, verify, waits
from fastpdu.bench.cells import Cell, Outcome, Tools
from fastpdu.bench.errors import BenchError
from fastpdu.bench.heatmap import HeatMap, Panel
from fastpdu.bench.report import Report, Row
from fastpdu.bench.series import Instance, Series, make_series

TOOLS = cells.find_tools()
needs_dcmtk = pytest.mark.skipif(
    any(TOOLS.missing(end) for end in ("storescp", "dcmqrscp", "movescu")), reason="needs DCMTK"
)
needs_orthanc = pytest.mark.skipif(TOOLS.orthanc is None, reason="needs Orthanc")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    directory = tmp_path_factory.mktemp("stall")
    return Series(directory, tuple(make_series(directory, 4, rows=64, columns=64)), made=True)


def _samples(series: Series) -> dict[str, verify.Sample]:
    return {item.sop_instance: verify.touch(item.data_set()) for item in series.instances}


def _row(name: str, per_1000: float, waited: list[int] | None = None, items: int = 100) -> Row:
    row = Row(name, name, items=items, samples=[per_1000 * items / 1000])
    if waited is not None:
        row.details["waits"] = waited
    return row


# waits


def test_only_what_takes_more_than_the_limit_has_waited() -> None:
    assert waits.count([]) == 0
    assert waits.count([0.001, waits.LIMIT, 0.0301, 0.2]) == 2
    assert Outcome(1.0).waits is None
    assert Outcome(1.0, [0.04, 0.001]).waits == 1
    assert Outcome(1.0, [0.04, 0.001], stalls=3).waits == 3


def test_telemetry_counts_where_there_is_some() -> None:
    stock: Any = SimpleNamespace()
    fast: Any = SimpleNamespace(
        transport_stats=lambda: SimpleNamespace(send_stalls=2, peer_stalls=3)
    )
    assert waits.stalls(stock) is None
    assert waits.stalls(fast) == 5


def test_waits_are_scaled_and_the_median_of_the_runs() -> None:
    assert stall.waits_per_1000(_row("a", 1.0, [0, 3, 100], items=50)) == 60
    assert stall.waits_per_1000(_row("a", 1.0)) is None


def _event(instance: Instance, data: bytes | None = None) -> Any:
    content = instance.data_set() if data is None else data
    request = SimpleNamespace(
        DataSet=io.BytesIO(content), AffectedSOPInstanceUID=instance.sop_instance
    )
    return SimpleNamespace(request=request, assoc=SimpleNamespace(dul=object()))


@pytest.mark.parametrize("digest", [True, False])
def test_receiver_takes_any_order_and_notices_what_is_wrong(series: Series, digest: bool) -> None:
    expected = _samples(series)
    receiver = waits.Receiver(series.instances, fast=False, digest=digest)
    for instance in reversed(series.instances):
        assert receiver(_event(instance)) == 0
    receiver.check(expected)
    assert len(receiver.durations) == len(series) - 1

    partial = waits.Receiver(series.instances, fast=False, digest=digest)
    partial(_event(series.instances[0]))
    partial.check(expected, count=1)
    with pytest.raises(BenchError, match="1 of 4"):
        partial.check(expected)

    changed = waits.Receiver(series.instances[:1], fast=False, digest=digest)
    changed(_event(series.instances[0], series.instances[1].data_set()))
    with pytest.raises(BenchError, match="arrived changed"):
        changed.check(expected)

    other = waits.Receiver(series.instances[:1], fast=True, digest=digest)
    other(_event(series.instances[0]))
    with pytest.raises(BenchError, match="other transport"):
        other.check(expected)


def test_archive_counts_from_the_first_image_on(series: Series) -> None:
    """However long the destination took to accept the association."""
    told = SimpleNamespace(send_stalls=0, peer_stalls=1)
    made: Any = SimpleNamespace(dul=object(), transport_stats=lambda: told)
    archive = waits.Archive(series.instances, 104, fast=False)
    results = archive(SimpleNamespace(assoc=made))
    host, port, options = next(results)
    assert (host, port) == ("127.0.0.1", 104)
    assert next(results) == len(series)
    with pytest.raises(BenchError, match="0 of 4"):
        archive.check()
    ((_, established),) = options["evt_handlers"]
    established(SimpleNamespace(assoc=made))
    assert next(results)[0] == 0xFF00
    told.send_stalls += 2
    assert [status for status, _ in results] == [0xFF00] * (len(series) - 1)
    assert archive.stalls == 2
    assert len(archive.durations) == len(series)
    archive.check()

    archive._fast = True
    with pytest.raises(BenchError, match="other transport"):
        archive.check()


# the matrix


def test_names_are_consistent() -> None:
    assert set(stall.AT_LEAST) <= set(stall.ROWS)
    assert len(stall.ROWS) == sum(map(len, cells.PARTS.values()))
    for name in (*stall.ROWS, *(n for n in sweep.SCENARIOS if "nagle" not in n)):
        assert set(name.split(":")) <= set(cells.ENDS)


def test_missing_programs_are_named() -> None:
    nothing = Tools(None, None)
    assert nothing.missing("orthanc-nodelay") == "Orthanc"
    assert nothing.missing("storescp") == "DCMTK"
    assert nothing.missing("fastpdu-noquickack") is None
    some = Tools(peers.Dcmtk("storescu", "storescp", "3"), None)
    assert some.missing("storescu-nodelay") is None
    assert some.missing("movescu") == "DCMTK's movescu"


def test_goals() -> None:
    send = {
        name: _row(name, value, waited)
        for name, value, waited in (
            ("stock:storescp", 45.0, [100]),
            ("fastpdu:storescp", 1.5, [0]),
            ("fastpdu:storescp-nodelay", 0.75, [0]),
            ("fastpdu:orthanc", 2.0, [1]),
        )
    }
    cost = {
        name: _row(name, value) for name, value in (("cost-quickack", 1.1), ("cost-noquickack", 1))
    }
    goals = {goal.text: goal for goal in stall._goals({"send": send, "cost": cost})}
    assert len(goals) == 7
    assert goals["fastpdu to storescp, waits per 1000"].met is True
    assert goals["fastpdu to Orthanc, waits per 1000"].met is False
    assert goals["stock pynetdicom / fastpdu, to storescp"].value == pytest.approx(30)
    assert goals["fastpdu to storescp / to storescp with TCP_NODELAY=1"].met is False
    assert goals["stock pynetdicom / fastpdu, to Orthanc"].met is None
    assert goals["one process, with QUICKACK / without"].met is False


def test_chart_of_the_matrix_has_empty_cells_where_nothing_was_measured() -> None:
    rows = {}
    for sender, receiver in (("stock", "storescp"), ("storescu", "orthanc")):
        row = _row(f"{sender}:{receiver}", 2.0, [1])
        row.details.update(sender=sender, receiver=receiver)
        rows[row.name] = row
    chart = stall._matrix("send", rows, _row("floor", 0.25))
    assert chart.rows == ["pynetdicom, stock", "storescu"]
    assert chart.columns == ["storescp", "Orthanc"]
    (panel,) = chart.panels
    assert panel.values == [[2.0, None], [None, 2.0]]
    assert panel.texts is not None
    assert panel.texts[0] == ["2 s\n10 waits", ""]


@pytest.mark.interop
@needs_dcmtk
@pytest.mark.parametrize(
    ("part", "sender", "receiver", "counted"),
    [
        ("send", "fastpdu", "storescp", 4),
        ("send", "stock", "storescp-nodelay", 4),
        ("send", "fastpdu-noquickack", "dcmqrscp", 4),
        ("send", "storescu", "storescp", None),
        ("receive", "storescu", "stock", 3),
        ("receive", "storescu-nodelay", "fastpdu", 3),
        ("move", "dcmqrscp", "fastpdu", 3),
        ("move", "dcmqrscp-nodelay", "movescu-nodelay", None),
        ("move", "fastpdu", "movescu", 4),
        ("move", "fastpdu-noquickack", "movescu-nodelay", 4),
        ("move", "stock", "movescu-nodelay", 4),
    ],
)
def test_cell(series: Series, part: str, sender: str, receiver: str, counted: int | None) -> None:
    cell = Cell(part, sender, receiver, TOOLS)
    for digest in (True, False):
        outcome = cell.run(series.instances, digest=digest)
        assert outcome.seconds > 0
        assert (None if outcome.durations is None else len(outcome.durations)) == counted


@pytest.mark.interop
@needs_orthanc
def test_cell_of_orthanc(series: Series) -> None:
    outcome = Cell("send", "fastpdu", "orthanc", TOOLS).run(series.instances, digest=False)
    assert outcome.durations is not None
    assert len(outcome.durations) == len(series)


@pytest.mark.interop
@needs_dcmtk
def test_cell_that_loses_an_image_is_an_error(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = make_series(tmp_path, 1, rows=8, columns=8)
    monkeypatch.setattr(waits, "send", lambda association, instances: [0.001])
    with pytest.raises(BenchError, match=r"no DICOM|did not arrive"):
        Cell("send", "fastpdu", "storescp", TOOLS).run(short, digest=False)


# the sweeps


def test_sizes_have_names() -> None:
    sizes = [4096, 1 << 20, 4 << 20, 16382, None]
    assert [sweep.name_of(size) for size in sizes] == ["4K", "1M", "4M", "16382", "unset"]


def test_point() -> None:
    point = sweep.Point(0.5, 20, 2)
    assert point.per_image == 0.025
    row = point.row("p", "a point", part="buffers")
    assert row.median == 0.5
    assert row.details == {"waits": 2, "seconds_per_1000": 25.0, "part": "buffers"}
    assert sweep._text(point) == "25 (100)"


def test_points_between_our_ends(series: Series) -> None:
    options = [
        fastpdu.TransportOptions(nodelay=False, send_buffer=size, receive_buffer=65536)
        for size in (16384, None)
    ]
    points = sweep.between_our_ends(series.instances, options, 16382, _samples(series), 10.0)
    assert [point.images for point in points] == [len(series) - 1] * 2
    assert all(point.seconds > 0 for point in points)
    (one,) = sweep.between_our_ends(series.instances[:1], options[:1], 0, _samples(series), 10.0)
    assert one.images == 1


@pytest.mark.interop
@needs_dcmtk
@pytest.mark.skipif(sys.platform != "linux", reason="TCP_MAXSEG of Linux")
@pytest.mark.parametrize("scenario", sweep.SCENARIOS)
def test_scenario_of_small_segments(series: Series, scenario: str) -> None:
    assert TOOLS.dcmtk is not None
    point = sweep.segment(scenario, 536, series.instances, _samples(series), TOOLS.dcmtk, 10.0)
    assert 0 < point.images <= len(series)


def test_buffer_map_has_a_panel_for_each_setting() -> None:
    sizes, pdus = (4096, None), (16382, 1 << 20)
    points = {
        (nodelay, quickack, pdu, send, receive): sweep.Point(0.5, 1, 0)
        for nodelay in (True, False)
        for quickack in (True, False)
        for pdu in pdus
        for send in sizes
        for receive in sizes
    }
    chart = sweep.buffer_map(points, sizes, pdus, 500_000, "title")
    assert len(chart.panels) == 8
    assert chart.panels[0].title == "NODELAY on, QUICKACK on\nPDU 16382"
    assert chart.panels[-1].values == [[1.0, 1.0], [1.0, 1.0]]


def test_charts_are_written_with_the_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report("stall", "A title")
    for name, panels in (("one", 1), ("three", 3)):
        panel = Panel("a panel", [[1.0, None], [10.0, 100.0]], [["1", ""], ["10", "100"]])
        report.charts.append(
            HeatMap(
                name,
                "A title",
                [panel] * panels,
                across=2,
                rows=["a", "b"],
                columns=["c", "d"],
                row_title="down",
                column_title="across",
                scale="x",
                more_is_better=panels == 1,
            )
        )
    written = report.save(tmp_path)
    date = f"{report.date:%Y-%m-%d}"
    assert [path.name for path in written] == [
        f"stall-{date}.json",
        f"one-{date}.png",
        f"three-{date}.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


# from end to end


def _program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastpdu", "bench", "stall", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.interop
@needs_dcmtk
def test_stall_from_end_to_end() -> None:
    done = _program(
        *("--quick", "--count", "10", "--rows", "fastpdu:storescp,storescu:fastpdu", "--json")
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == {"floor", "fastpdu:storescp", "storescu:fastpdu"}
    assert len(rows["fastpdu:storescp"]["waits"]) == 1
    assert rows["fastpdu:storescp"]["items"] == 10
    assert len(content["goals"]) == 9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--parts", "send,nothing"], "no row 'nothing'"),
        (["--rows", "fastpdu:nobody"], "no row 'fastpdu:nobody'"),
        (["--parts", "cost", "--rows", "fastpdu:storescp"], "parts with cells"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = _program(*arguments)
    assert done.returncode != 0
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_need_their_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "find_tools", lambda: Tools(None, None))
    args = SimpleNamespace(rows=["fastpdu:orthanc"], parts=None)
    with pytest.raises(BenchError, match="needs Orthanc"):
        stall.check_arguments(args)  # type: ignore[arg-type]


def test_pynetdicom_scripts_are_not_dcmtk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCMTK is found behind other programs of the same names."""
    if sys.platform == "win32":
        pytest.skip("needs shell scripts")
    for place, says in (("first", "usage: storescp"), ("second", "$dcmtk: {} v3.6.7 2022 $")):
        for name in ("storescu", "storescp"):
            script = tmp_path / place / name
            script.parent.mkdir(exist_ok=True)
            script.write_text(f"#!/bin/sh\necho '{says.format(name)}'\n")
            script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}:/bin")
    found = peers.find_dcmtk()
    assert found is not None
    assert found.storescp == str(tmp_path / "second" / "storescp")
    assert found.version == "v3.6.7 2022"


def test_a_cell_of_another_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured, and not as a result without rows."""
    arguments = ["bench", "stall", "--parts", "send", "--rows", "dcmqrscp:fastpdu"]
    assert cli.main(arguments) != 0
    assert "dcmqrscp:fastpdu: no cell of --parts send" in capsys.readouterr().err
