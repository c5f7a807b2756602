"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import data, kit


@pytest.fixture(params=kit.PAIRS, ids=kit.PAIR_IDS)
def world(request: pytest.FixtureRequest) -> Iterator[kit.World]:
    """One of the four pairs SCU x SCP; everything in it is stopped after the test."""
    with kit.world_of(*request.param) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def _oracles(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kit.ORACLES[:] = [shared / "oracles"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> data.Files:
    """Generated and shipped DICOM files."""
    return data.Files(tmp_path_factory.mktemp("files"))
