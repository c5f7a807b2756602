"""The `fastpdu` program around its commands, and `fastpdu bench` from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import programs

import fastpdu
from fastpdu import cli
from fastpdu.bench import QUESTIONS, peers
from fastpdu.commands import CommandError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def program(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastpdu", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("stream", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(stream: str) -> None:
    """Nothing can be said then, but what was asked for is done, and no socket gets the number of a stream."""
    server = fastpdu.AE()
    server.add_supported_context("1.2.840.10008.1.1")
    scp = server.start_server(("127.0.0.1", 0), block=False)
    try:
        command = [sys.executable, "-m", "fastpdu", "echo", "127.0.0.1", str(scp.server_address[1])]
        done = subprocess.run(
            ["sh", "-c", f'"$@" {stream}', "sh", *command],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        scp.shutdown()
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"fastpdu {name}" in output
    assert "exit status" in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"fastpdu {fastpdu.__version__}, ")
    assert "pynetdicom 3." in output


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: fastpdu" in capsys.readouterr().err


def test_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bnech"])
    assert caught.value.code == 2
    assert "did you mean 'bench'" in capsys.readouterr().err


def test_errors_come_with_their_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise CommandError("it is broken", "repair it", status=1)

    assert cli.guarded(fail, "fastpdu x") == 1
    errors = capsys.readouterr().err
    assert "fastpdu x: error: it is broken" in errors
    assert "remedy: repair it" in errors


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert cli.guarded(interrupt, "fastpdu x") == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUESTIONS)
def test_help_of_every_benchmark(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", name, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for option in ("--runs", "--out", "--json", "--check", "--rows"):
        assert option in output
    assert "examples:" in output


@pytest.mark.parametrize("name", QUESTIONS)
def test_script_of_every_benchmark(name: str) -> None:
    if not BENCHMARKS.is_dir():
        pytest.skip("not in a checkout")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}.py" in done.stdout
    assert "--out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--count", "0"], 2, "less than 1"),
        (["--runs", "many"], 2, "not a whole number"),
        (["--rows", "floor,warp"], 2, "no row 'warp'"),
        (["--pdu", "6"], 1, "at least 7 bytes"),
        (["--files", "/no/such/directory"], 1, "not a directory"),
        (["--files", ".", "--keep", "x"], 1, "--keep is for a made series"),
        (["memory", "--count", "5"], 1, "after 10 images"),
    ],
)
def test_wrong_usage_of_bench(arguments: list[str], status: int, text: str) -> None:
    done = (
        program("bench", "--quiet", *arguments)
        if arguments[0] != "memory"
        else program("bench", *arguments)
    )
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = program("bench", "--count", "5", "--runs", "1", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    names = [row["name"] for row in content["rows"]]
    wanted = ["floor", "fastpdu", "stock"]
    if peers.find_dcmtk() is not None:
        wanted += ["dcmtk", "dcmtk-nodelay"]
    assert names == wanted
    for row in content["rows"]:
        assert row["verified"] == "SHA-256 of 5"
        assert len(row["samples"]) == 1
        assert row["seconds_per_1000"] > 0
    assert content["parameters"]["images"] == 5
    assert all(goal["met"] is not None for goal in content["goals"])
    (data,) = tmp_path.glob("ct1000-*.json")
    assert json.loads(data.read_text(encoding="utf-8")) == content
    (chart,) = tmp_path.glob("ct1000-*.png")
    assert chart.stat().st_size > 1000


def test_bench_with_own_files(tmp_path: Path) -> None:
    from fastpdu.bench.series import make_series

    make_series(tmp_path, 3, rows=32, columns=32)
    (tmp_path / "readme.txt").write_text("not DICOM")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = program(
        "bench", "--files", str(tmp_path), "--rows", "floor,fastpdu", "--runs", "1", "--pdu", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "3 images (own files" in done.stdout
    assert "1 files in" in done.stdout
    assert "stock pynetdicom / fastpdu: not measured" in done.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_check_fails_when_a_goal_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastpdu.bench import ct1000
    from fastpdu.bench.report import Goal, Report

    missed = Report("ct1000", "title", columns=["", ""], goals=[Goal("ratio", 3.0, 2.0)])
    monkeypatch.setattr(ct1000, "run", lambda args: missed)
    assert cli.main(["bench"]) == 0
    assert cli.main(["bench", "--check"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_disk_from_end_to_end(tmp_path: Path) -> None:
    done = program(
        *(
            "bench",
            "disk",
            "--count",
            "3",
            "--runs",
            "1",
            "--rows",
            "fastpdu,fastpdu-handler,stock",
        ),
        *("--directory", str(tmp_path), "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["rows"]] == ["fastpdu", "fastpdu-handler", "stock"]
    assert all(row["verified"] == "SHA-256 of 3" for row in result["rows"][:2])
    assert not list(tmp_path.iterdir())


def test_small_from_end_to_end() -> None:
    done = program("bench", "small", "--echoes", "5", "--count", "5", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)["rows"]]
    assert names == ["echo-fastpdu", "echo-stock", "store-fastpdu", "store-stock"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["idle", "--associations", "2", "--seconds", "0.2"],
        ["associations", "--associations", "2", "--each", "2", "--runs", "1"],
        ["memory", "--count", "12"],
    ],
)
def test_others_from_end_to_end(arguments: list[str]) -> None:
    done = program("bench", *arguments)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    assert "fastpdu" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_bench_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpdu", "bench", "--count", "200", "--rows", "stock", "--full"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=programs.PREEXEC,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/*.dcm")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
