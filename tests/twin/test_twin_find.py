"""C-FIND over all four pairs: matches that are not as ordinary as they look."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from helpers import data, kit
from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.dsutils import decode, encode

Results = Iterator[Any]
SYNTAXES = [data.EXPLICIT, data.IMPLICIT]


def match(**elements: Any) -> Dataset:
    return data.query(QueryRetrieveLevel="STUDY", **elements)


def sent_on(event: evt.Event) -> Results:
    """Data sets that were decoded from bytes, as a proxy has them, in one encoding and the other."""
    for implicit in (True, False):
        ds = match(PatientName="A^B", PatientID="1", NumberOfStudyRelatedInstances=3)
        yield 0xFF00, decode(BytesIO(encode(ds, implicit, True) or b""), implicit, True)


def worklist(event: evt.Event) -> Results:
    step = data.query(Modality="CT", ScheduledProcedureStepStartDate="20260101")
    step.ScheduledProtocolCodeSequence = [data.query(CodeValue="1"), data.query(CodeValue="22")]
    yield 0xFF00, match(ScheduledProcedureStepSequence=[step], RequestedProcedureID="R")
    yield 0xFF01, match(ScheduledProcedureStepSequence=[], RequestedProcedureID="R")


def character_sets(event: evt.Event) -> Results:
    yield 0xFF00, match(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^J")
    yield 0xFF00, match(SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
    yield (
        0xFF00,
        match(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^T=山田^太郎"),
    )


def comments_stay(event: evt.Event) -> Results:
    """What a status data set has set goes with the responses that follow."""
    yield 0xFF00, match(PatientID="1")
    status = data.query(ErrorComment="from here on")
    status.Status = 0xFF01
    yield status, match(PatientID="2")
    yield 0xFF00, match(PatientID="3")


def warning_between(event: evt.Event) -> Results:
    yield 0xFF00, match(PatientID="1")
    yield 0xB001, None
    yield 0xFF00, match(PatientID="2")


def empty_match(event: evt.Event) -> Results:
    yield 0xFF00, match(PatientID="1")
    yield 0xFF00, Dataset()
    yield 0xFF00, match(PatientID="2")


def lists(event: evt.Event) -> Results:
    yield [0xFF00, match(PatientID="1")]
    yield 0xFF00, match(PatientID="2")


def three_items(event: evt.Event) -> Results:
    yield 0xFF00, match(PatientID="1")
    yield 0xFF00, match(PatientID="2"), None


def private(event: evt.Event) -> Results:
    ds = match(PatientID="1")
    ds.private_block(0x0011, "CREATOR", create=True).add_new(1, "LO", "own")
    yield 0xFF00, ds


def unconvertible(event: evt.Event) -> Results:
    """Values that the requestor cannot convert, or not without a warning."""
    for keyword, value in (("NumberOfStudyRelatedInstances", b"many"), ("PatientWeight", b"1,5 ")):
        ds = match(PatientID="1")
        ds.add_new(keyword, "UN", value)
        raw = encode(ds, True, True) or b""
        yield 0xFF00, decode(BytesIO(raw), True, True)
    yield 0xFF00, match(PatientID="2")


FINDERS = [
    sent_on,
    worklist,
    character_sets,
    comments_stay,
    warning_between,
    empty_match,
    lists,
    three_items,
    private,
    unconvertible,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("finder", FINDERS, ids=lambda finder: finder.__name__)
def test_find(world: kit.World, finder: Callable[[evt.Event], Any], syntax: str) -> None:
    def scenario(world: kit.World, name: str, syntax: str) -> Any:
        contexts = [(data.STUDY_FIND, syntax)]
        server = world.serve(contexts, [(evt.EVT_C_FIND, finder)])
        assoc = world.connect(server, contexts)
        query = match(PatientID="*")
        answers = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for status, identifier in assoc.send_c_find(query, data.STUDY_FIND, msg_id=5):
                # (what the garbage of other tests says while it is collected does not belong here)
                seen = sum(not issubclass(w.category, ResourceWarning) for w in caught)
                key: Any = None
                if identifier is not None:
                    try:
                        key = kit.dataset_key(identifier)
                    except Exception as error:
                        key = type(error).__name__
                answers.append((kit.status_of(status), key, seen > 0))
        return answers, assoc.is_established

    kit.against_oracle(world, scenario, finder.__name__, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_log_lines(world: kit.World, syntax: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every line about responses at DEBUG, from both ends."""

    def scenario(world: kit.World, syntax: str) -> Any:
        contexts = [(data.STUDY_FIND, syntax)]
        server = world.serve(contexts, [(evt.EVT_C_FIND, comments_stay)])
        assoc = world.connect(server, contexts)
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "pynetdicom"):
            answers = kit.outcome(lambda: assoc.send_c_find(match(PatientID="*"), data.STUDY_FIND))
            kit.until(lambda: "Find SCP Response 4: 0x0000 (Success)" in caplog.text)
        lines: dict[str, list[str]] = {"service_class": [], "association": []}
        for record in caplog.records:
            source = record.name.rpartition(".")[2]
            if source == "service_class" or record.threadName == "MainThread":
                lines.setdefault(source, []).append(record.getMessage())
        return answers, lines["service_class"], lines["association"]

    kit.against_oracle(world, scenario, syntax)


def test_identifiers_that_are_not_logged(world: kit.World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "LOG_RESPONSE_IDENTIFIERS", False)

    def scenario(world: kit.World) -> Any:
        server = world.serve([data.STUDY_FIND], [(evt.EVT_C_FIND, worklist)])
        assoc = world.connect(server, [data.STUDY_FIND])
        return kit.outcome(lambda: assoc.send_c_find(match(PatientID="*"), data.STUDY_FIND))

    kit.against_oracle(world, scenario)


def test_timeout_in_the_middle(world: kit.World) -> None:
    """The DIMSE timeout, after two matches, ends the association alike."""

    def scenario(world: kit.World) -> Any:
        def finder(event: evt.Event) -> Results:
            yield 0xFF00, match(PatientID="1")
            yield 0xFF00, match(PatientID="2")
            kit.until(lambda: not event.assoc.is_established or done, what="the abort")
            yield 0x0000, None

        done: list[int] = []
        server = world.serve([data.STUDY_FIND], [(evt.EVT_C_FIND, finder)])
        assoc = world.connect(server, [data.STUDY_FIND], attributes={"dimse_timeout": 1})
        answers = kit.outcome(lambda: assoc.send_c_find(match(PatientID="*"), data.STUDY_FIND))
        done.append(1)
        kit.until(lambda: assoc.is_aborted, what="the abort")
        return answers

    answers = kit.against_oracle(world, scenario)
    assert len(answers) == 3
    assert answers[-1] == ((), None)
