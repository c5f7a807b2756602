"""`fastpdu bench small`: a response that pynetdicom loses does not end it."""

from __future__ import annotations

import pytest

from fastpdu.bench import small
from fastpdu.bench.errors import LostResponse


@pytest.mark.parametrize(("lost", "notes"), [(0, 0), (2, 2)])
def test_a_run_of_stock_is_made_again(
    monkeypatch: pytest.MonkeyPatch, lost: int, notes: int
) -> None:
    tries = 0

    def once(name: str, count: int) -> float:
        nonlocal tries
        tries += 1
        if tries <= lost:
            raise LostResponse("a C-ECHO has no response")
        return 0.5

    monkeypatch.setattr(small, "_echo_once", once)
    said: list[str] = []
    assert small._echo_run("stock", 5, said) == 0.5
    assert len(said) == notes


@pytest.mark.parametrize(("name", "tries"), [("stock", 3), ("fastpdu", 1)])
def test_not_for_ever_and_not_ours(monkeypatch: pytest.MonkeyPatch, name: str, tries: int) -> None:
    made = []

    def once(name: str, count: int) -> float:
        made.append(name)
        raise LostResponse("a C-ECHO has no response")

    monkeypatch.setattr(small, "_echo_once", once)
    with pytest.raises(LostResponse):
        small._echo_run(name, 5, [])
    assert made == [name] * tries
