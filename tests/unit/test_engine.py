"""Which engine `fastpdu.engine` picks, and that both have the same interface."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
from engine_kit import Impl

NAMES = [
    "Cancelled",
    "CommandError",
    "Connection",
    "FdConnection",
    "Message",
    "NewFile",
    "PeerClosed",
    "ProtocolError",
    "SocketConnection",
    "connect",
    "decode_command",
    "encode_command",
    "is_uid",
    "close_file",
    "open_head",
    "read_part10",
]
CONSTANTS = [
    "HARD_PDU_CAP",
    "MAX_ASSOCIATE_PDU",
    "MAX_COMMAND",
    "MIN_PDU",
    "OTHER",
    "PARTIAL",
    "READY",
    "TIMEOUT",
    "TURNS",
    "UNLIMITED_FRAGMENT",
    "CAN_CORK",
    "COMMAND",
    "WAKE",
]


def choose(value: str | None, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with a value of FASTPDU_ENGINE in an interpreter of its own."""
    lines = ["import os, sys", f"sys.path[:] = {sys.path!r}", "os.environ.pop('FASTPDU_ENGINE', 0)"]
    if value is not None:
        lines.append(f"os.environ['FASTPDU_ENGINE'] = {value!r}")
    lines += ["sys.modules['fastpdu._fastpdu'] = None" if "absent" in code else "", code]
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SHOW = "from fastpdu import engine; print(engine.BACKEND, engine.FdConnection.__module__)"


def test_pure_on_demand() -> None:
    done = choose("pure", SHOW)
    assert done.stdout.split() == ["pure", "fastpdu._pure"], done.stderr
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("value", [None, "", "compiled"])
def test_compiled_by_default(value: str | None) -> None:
    assert Impl("compiled", "fd").module
    done = choose(value, SHOW)
    assert done.stdout.split() == ["compiled", "fastpdu._fastpdu"], done.stderr
    assert "RuntimeWarning" not in done.stderr


def test_fallback_with_a_warning() -> None:
    done = choose(None, SHOW + " # absent")
    assert done.stdout.split() == ["pure", "fastpdu._pure"], done.stderr
    assert "RuntimeWarning" in done.stderr


def test_no_fallback_if_the_compiled_one_is_asked_for() -> None:
    done = choose("compiled", SHOW + " # absent")
    assert done.returncode
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


def test_unknown_engine() -> None:
    done = choose("turbo", SHOW)
    assert done.returncode
    assert "FASTPDU_ENGINE" in done.stderr


def test_names() -> None:
    engine = importlib.import_module("fastpdu.engine")
    chosen = importlib.import_module(
        "fastpdu._pure" if engine.BACKEND == "pure" else "fastpdu._fastpdu"
    )
    assert {*NAMES, *CONSTANTS, "BACKEND"} <= set(engine.__all__)
    for name in engine.__all__:
        if name != "BACKEND":
            assert getattr(engine, name) is getattr(chosen, name)


def twins() -> tuple[Any, Any]:
    """Return the Python and the compiled engine."""
    return Impl("pure", "fd").module, Impl("compiled", "fd").module


def test_constants_agree() -> None:
    pure, compiled = twins()
    for name in CONSTANTS:
        assert getattr(pure, name) == getattr(compiled, name), name


def members(cls: type) -> set[str]:
    """Return the public names of a class."""
    return {name for name in dir(cls) if not name.startswith("_")}


def test_interfaces_agree() -> None:
    pure, compiled = twins()
    options = {
        "max_receive_pdu",
        "max_message",
        "pdu_timeout",
        "quickack",
        "busy_wait",
        "cork",
        "pack_command",
        "split_commands",
        "tells_command",
    }
    for name in ("Connection", "FdConnection", "SocketConnection"):
        ours, theirs = getattr(pure, name), getattr(compiled, name)
        assert members(ours) - options == members(theirs) - options
        assert options <= members(theirs)
    for name in ("Message", "Part10"):
        attributes = members(getattr(compiled, name))
        assert attributes <= members(getattr(pure, name))
    for name in NAMES:
        assert inspect.getdoc(getattr(pure, name)), name
        assert inspect.getdoc(getattr(compiled, name)), name


def test_stubs_name_everything() -> None:
    """Each public name of the engine is in the stub file."""
    pure, _ = twins()
    from pathlib import Path

    stub = Path(pure.__file__).resolve().parent / "_fastpdu.pyi"
    text = stub.read_text()
    for name in [*pure.__all__, *members(pure.FdConnection)]:
        assert name in text, name


def test_exceptions() -> None:
    for engine in twins():
        error = engine.ProtocolError(6, "what")
        assert (error.reason, str(error)) == (6, "what")
        closed = engine.PeerClosed(3, 6)
        assert (closed.received, closed.expected) == (3, 6)
        assert (engine.PeerClosed().received, engine.PeerClosed().expected) == (0, 0)
        assert issubclass(engine.PeerClosed, ConnectionError)
        assert issubclass(engine.CommandError, ValueError)
        assert not issubclass(engine.Cancelled, OSError)
