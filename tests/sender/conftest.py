"""Fixtures of the tests of `Sender`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit
from helpers.counting import Counting


@pytest.fixture
def scp() -> Iterator[kit.World]:
    """A world with a fast SCP; everything in it is stopped after the test."""
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.fixture
def counting(scp: kit.World) -> Counting:
    """A storage SCP for CT and MR, uncompressed."""
    contexts = [
        (sop_class, [data.EXPLICIT, data.IMPLICIT, data.BIG]) for sop_class in (data.CT, data.MR)
    ]
    return Counting(scp, contexts)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory with CT files."""

    def make(count: int, size: int = 2000, name: str = "in", **kwargs: Any) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        files = data.Files(path)
        for number in range(count):
            files.made(number, size, **kwargs)
        return path

    return make
