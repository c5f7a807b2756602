"""Fixtures of the tests of the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_kit import IMPLS, Impl, Link, link


@pytest.fixture(params=IMPLS, ids=str)
def impl(request: pytest.FixtureRequest) -> Impl:
    """One of the implementations of the engine."""
    chosen: Impl = request.param
    assert chosen.module
    return chosen


@pytest.fixture
def engine(impl: Impl) -> Any:
    """The engine's module."""
    return impl.module


@pytest.fixture
def one(impl: Impl) -> Iterator[Link]:
    """A connection with a raw socket at its other end."""
    with link(impl) as made:
        yield made
