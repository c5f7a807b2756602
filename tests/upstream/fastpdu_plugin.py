"""pytest plugin: runs pynetdicom's own tests on the fast transport and proves that it was used.

Load it with ``-p fastpdu_plugin`` (scripts/run-upstream-tests does), so that it is imported before any
module of ``pynetdicom.tests``, in the main process and in each xdist worker.

Every process counts the DIMSE messages by the road they took. The counts are summed at the end of the
session; when the fast road carried less than ``FASTPDU_MIN_FAST`` per cent of them (default 80, 0 only
reports) the run fails: a suite that passes because everything went down the stock road proves nothing.

Subprocesses that were accelerated through ``sitecustomize/`` beside this file leave their counts in
``$FASTPDU_ROAD_DIR``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import fastpdu

fastpdu.install()

import pytest  # noqa: E402

# pytest's own codes end at 5; scripts/run-upstream-tests tells this apart from failed tests
EXIT_TOO_FEW = 20
KEYS = ("fast_sent", "stock_sent", "fast_received", "stock_received")

_total: Counter[str] = Counter()
_lost_workers: list[str] = []
_verdict: list[str] = []


def _own_counters() -> dict[str, int]:
    from fastpdu.transport import road_counters

    counters = road_counters()
    return {key: int(counters[key]) for key in KEYS}


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_report_header(config: pytest.Config) -> str:
    from fastpdu import engine

    return f"fastpdu: installed={fastpdu.is_installed()}, engine={engine.BACKEND}"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    counters = getattr(node, "workeroutput", {}).get("fastpdu_roads")
    if counters is None:
        _lost_workers.append(str(node.gateway.id))
    else:
        _total.update(counters)


def _share(part: str) -> tuple[int, int]:
    fast = _total[f"fast_{part}"]
    return fast, fast + _total[f"stock_{part}"]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if _is_worker(config):
        config.workeroutput["fastpdu_roads"] = _own_counters()  # type: ignore[attr-defined]
        return
    _total.update(_own_counters())
    minimum = float(os.environ.get("FASTPDU_MIN_FAST", "80"))
    sent, sent_all = _share("sent")
    received, received_all = _share("received")
    _verdict.append(
        f"fastpdu: fast road carried {sent} of {sent_all} messages sent, {received} of {received_all} received"
    )
    if _lost_workers:
        _verdict.append(
            f"fastpdu: no counts from worker(s) {', '.join(sorted(_lost_workers))}: they crashed"
        )
    road_dir = os.environ.get("FASTPDU_ROAD_DIR")
    if road_dir:
        _verdict.append(_subprocesses(Path(road_dir)))
    if minimum <= 0 or config.option.collectonly:
        return
    if not fastpdu.is_installed():
        problem = "no longer installed at the end of the run"
    elif (
        sent < sent_all * minimum / 100
        or received < received_all * minimum / 100
        or not (sent_all and received_all)
    ):
        problem = f"that is less than {minimum:g} %"
    else:
        return
    _verdict.append(f"fastpdu: FAILED: {problem}")
    session.exitstatus = EXIT_TOO_FEW


def _subprocesses(road_dir: Path) -> str:
    total: Counter[str] = Counter()
    files = sorted(road_dir.glob("*.json"))
    for file in files:
        counters = json.loads(file.read_text(encoding="utf-8"))
        total.update({key: counters[key] for key in KEYS})
    sent, received = total["fast_sent"], total["fast_received"]
    return (
        f"fastpdu: in {len(files)} subprocesses that ended by themselves the fast road carried {sent} of "
        f"{sent + total['stock_sent']} messages sent, {received} of {received + total['stock_received']} received"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _verdict:
        terminalreporter.write_line(line)
