"""The books of `fastpdu recv`."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pynetdicom import AE, evt
from pynetdicom.association import Association

from fastpdu.commands.received import Books


def of(assoc: Any) -> evt.Event:
    return cast("evt.Event", SimpleNamespace(assoc=assoc))


@pytest.mark.parametrize("is_early", [False, True])
def test_an_association_that_has_ended_is_forgotten(
    capsys: pytest.CaptureFixture[str], is_early: bool
) -> None:
    """Even if its connection is closed before the thread that accepts it gets to say so."""
    books = Books(in_json=True)
    event = of(Association(AE(), "acceptor"))
    steps = [books.accepted, books.closed]
    for step in reversed(steps) if is_early else steps:
        step(event)
    assert not books.associations()
    assert books.accepted_count == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["accepted", "closed"]
