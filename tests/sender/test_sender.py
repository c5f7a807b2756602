"""`fastpdu.Sender`: what is sent, how, and what becomes of what cannot be."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers, raw
from helpers.counting import Counting
from pydicom.uid import JPEG2000Lossless
from pynetdicom import evt

import fastpdu
from fastpdu.sender import JournalError, Progress, Report

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")
Folder = Callable[..., Path]


def sender(port: int, **kwargs: Any) -> fastpdu.Sender:
    kwargs = {"retries": 3, "retry_delay": 0.02, "dimse_timeout": 20, **kwargs}
    return fastpdu.Sender("127.0.0.1", port, **kwargs)


def uids(count: int) -> set[str]:
    return {f"{data.ROOT}7.{number}" for number in range(count)}


def test_files_arrive_as_they_are(counting: Counting, folder: Folder) -> None:
    path = folder(12, 3001)
    report = sender(counting.port).send(path)
    assert report.is_success
    assert (report.found, report.sent, report.failed, report.skipped) == (12, 12, 0, 0)
    assert report.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert counting.seen == dict.fromkeys(uids(12), 1)
    sent = sorted(counting.datasets.values())
    assert sent == sorted(data.payload(file) for file in path.iterdir())


@pytest.mark.parametrize("associations", [1, 4])
def test_associations_share_the_work(counting: Counting, folder: Folder, associations: int) -> None:
    counting.answer = lambda event: time.sleep(0.002) or 0
    report = sender(counting.port, associations=associations).send(folder(60))
    assert report.sent == 60
    assert report.associations == associations
    assert counting.seen == dict.fromkeys(uids(60), 1)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        (8, None),
        (8, fastpdu.TransportOptions(async_window=2)),
        (None, fastpdu.TransportOptions(async_window=8)),
    ],
)
def test_a_window_is_used(scp: kit.World, folder: Folder, window: Any, options: Any) -> None:
    """The peer answers when it has eight requests: with fewer on their way it never would."""

    counting = Counting(
        scp, [(data.CT, [data.EXPLICIT])], attributes={"async_window": 8, "handler_threads": 8}
    )
    together = threading.Barrier(8)

    def answer(event: evt.Event) -> int:
        together.wait(15)
        return 0

    counting.answer = answer
    report = sender(counting.port, window=window, transport=options).send(folder(40))
    assert report.is_success
    assert counting.seen == dict.fromkeys(uids(40), 1)


def test_a_window_that_the_peer_does_not_know(counting: Counting, folder: Folder) -> None:
    busy = threading.Lock()

    def answer(event: evt.Event) -> int:
        assert busy.acquire(blocking=False)
        time.sleep(0.002)
        busy.release()
        return 0

    counting.answer = answer
    report = sender(counting.port, window=8).send(folder(20))
    assert report.is_success
    assert counting.seen == dict.fromkeys(uids(20), 1)


@pytest.mark.parametrize("window", [1, 4])
def test_a_lost_association_with_many_on_their_way(
    scp: kit.World, folder: Folder, window: int
) -> None:

    counting = Counting(scp, [(data.CT, [data.EXPLICIT])], attributes={"async_window": 4})

    def answer(event: evt.Event) -> int:
        if counting.total in (10, 25):
            event.assoc.abort()
        return 0

    counting.answer = answer
    report = sender(counting.port, window=window, associations=2).send(folder(40))
    assert report.is_success
    assert report.sent == 40
    assert set(counting.seen) == uids(40)
    # a file is sent again if it may have been on its way, and none else
    assert counting.total - 40 <= 2 * window


def test_the_maximum_length_is_announced(scp: kit.World, folder: Folder) -> None:
    lengths: list[int] = []
    server = scp.serve(
        [(data.CT, [data.EXPLICIT])],
        [
            (evt.EVT_C_STORE, lambda event: 0),
            (evt.EVT_ACCEPTED, lambda event: lengths.append(event.assoc.requestor.maximum_length)),
        ],
    )
    for max_pdu in (None, 65536, 0):
        assert sender(server.port, max_pdu=max_pdu).send(folder(1)).is_success
    assert lengths == [16382, 65536, 0]


def test_no_more_associations_than_files(counting: Counting, folder: Folder) -> None:
    report = sender(counting.port, associations=8).send(folder(2))
    assert report.sent == 2
    assert report.associations <= 2


def test_an_iterator_and_nested_directories(
    counting: Counting, folder: Folder, tmp_path: Path
) -> None:
    first = folder(3, name="in")
    (tmp_path / "in" / "below" / "deeper").mkdir(parents=True)
    data.Files(tmp_path / "in" / "below" / "deeper").made(77)
    single = data.Files(tmp_path).made(88)

    def paths() -> Iterator[Path]:
        yield first
        yield single

    report = sender(counting.port).send(paths())
    assert report.sent == 5
    assert {f"{data.ROOT}7.77", f"{data.ROOT}7.88"} < set(counting.seen)


def test_nothing(counting: Counting, tmp_path: Path) -> None:
    report = sender(counting.port).send(tmp_path)
    assert report.is_success
    assert (report.found, report.associations) == (0, 0)


# What is no DICOM file, or cannot be read -----------------------------------------------------------------------


def test_other_files_are_skipped(counting: Counting, folder: Folder) -> None:
    path = folder(3)
    files = data.Files(path)
    files.not_dicom()
    files.empty()
    os.mkfifo(path / "pipe")
    (path / "loop").symlink_to(path, target_is_directory=True)
    report = sender(counting.port).send(path)
    assert report.is_success
    assert (report.sent, report.skipped) == (3, 4)
    assert {Path(one.path).name: one.reason for one in report.skips} == {
        "not_dicom.dcm": "not a DICOM file",
        "empty.dcm": "empty",
        "pipe": "not a regular file",
        "loop": "a symbolic link to a directory",
    }


def test_dicomdir_is_skipped(counting: Counting) -> None:
    import pydicom.data

    path = pydicom.data.get_testdata_file("DICOMDIR", read=False)
    report = sender(counting.port).send(str(path))
    assert [one.reason for one in report.skips] == ["a DICOMDIR"]


def test_strict(counting: Counting, folder: Folder) -> None:
    path = folder(2)
    data.Files(path).not_dicom()
    report = sender(counting.port, strict=True).send(path)
    assert not report.is_success
    assert (report.sent, report.failed, report.skipped) == (2, 1, 0)
    assert report.failures[0].kind == "not-dicom"


def test_files_that_cannot_be_read(counting: Counting, folder: Folder, tmp_path: Path) -> None:
    path = folder(2)
    (path / "dangling.dcm").symlink_to(tmp_path / "nowhere")
    report = sender(counting.port).send([path, tmp_path / "missing.dcm"])
    assert not report.is_success
    assert (report.sent, report.failed) == (2, 2)
    assert {one.kind for one in report.failures} == {"unreadable"}
    assert "No such file" in report.failures[0].reason


def test_a_file_that_vanishes_after_it_was_found(counting: Counting, folder: Folder) -> None:
    files = sorted(folder(6).iterdir())
    gone: list[Path] = []

    def answer(event: evt.Event) -> int:
        if not gone:
            gone.append(files[-1])
            files[-1].unlink()
        return 0

    counting.answer = answer
    report = sender(counting.port).send(files)
    # (its head has been read before the first one was answered, or not)
    assert (report.sent, report.failed) == (5, 1)
    assert report.failures[0].kind == "unreadable"
    assert report.failures[0].path == str(files[-1])


# Presentation contexts ------------------------------------------------------------------------------------------


def test_one_transfer_syntax_for_each_context(counting: Counting, folder: Folder) -> None:
    folder(3)
    folder(3, syntax=data.IMPLICIT)
    path = folder(2, sop_class=data.MR)
    report = sender(counting.port).send(path)
    # two files of each UID, which differ in their transfer syntax
    assert report.sent == 8
    assert report.associations == 1
    assert sorted(counting.proposed[0]) == [
        (data.CT, [data.IMPLICIT]),
        (data.CT, [data.EXPLICIT]),
        (data.MR, [data.EXPLICIT]),
    ]


def test_what_the_peer_does_not_accept_fails(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.CT, [data.EXPLICIT])])
    folder(3)
    path = folder(2, syntax=data.IMPLICIT)
    report = sender(counting.port).send(path)
    assert (report.sent, report.failed) == (3, 2)
    for failure in report.failures:
        assert failure.kind == "context"
        assert failure.attempts == 0
        assert failure.reason == (
            "the peer does not accept CT Image Storage in Implicit VR Little Endian"
        )
    assert set(counting.syntaxes.values()) == {data.EXPLICIT}


@pytest.mark.parametrize("element", ["SOPClassUID", "TransferSyntaxUID"])
def test_a_uid_that_cannot_be_proposed(counting: Counting, folder: Folder, element: str) -> None:
    """It is not in the way of the other files."""
    path = folder(3)
    file = path / "other.dcm"
    content = next(path.iterdir()).read_bytes()
    uid = (data.CT if element == "SOPClassUID" else data.EXPLICIT).encode()
    assert uid in content
    file.write_bytes(content.replace(uid, uid[:-1] + b"\xe9"))
    report = sender(counting.port).send(path)
    assert report.given_up is None
    assert report.sent == 3
    (failure,) = report.failures
    assert (failure.path, failure.kind) == (str(file), "context")
    assert "is not a UID" in failure.reason


def test_nothing_is_accepted(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.MR, [data.EXPLICIT])])
    report = sender(counting.port).send(folder(3))
    assert (report.sent, report.failed) == (0, 3)
    assert {failure.kind for failure in report.failures} == {"context"}
    assert report.given_up is None


def test_transcoding(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.CT, [data.IMPLICIT])])
    report = sender(counting.port, transcode=True).send(folder(3))
    assert report.sent == 3
    assert set(counting.syntaxes.values()) == {data.IMPLICIT}


def test_compressed_is_never_transcoded(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.CT, [data.EXPLICIT, data.IMPLICIT])])
    path = folder(1)
    file = next(path.iterdir())
    content = file.read_bytes()
    old, new = data.EXPLICIT.encode(), str(JPEG2000Lossless).encode()
    # one transfer syntax in place of the other, with its length and that of the group
    at = content.index(b"\x02\x00\x10\x00UI")
    length = len(old) + len(old) % 2
    padded = new + b"\0" * (len(new) % 2)
    content = (
        content[: at + 6] + len(padded).to_bytes(2, "little") + padded + content[at + 8 + length :]
    )
    group = int.from_bytes(content[140:144], "little") + len(padded) - length
    file.write_bytes(content[:140] + group.to_bytes(4, "little") + content[144:])
    report = sender(counting.port, transcode=True).send(path)
    assert (report.sent, report.failed) == (0, 1)
    assert "JPEG 2000" in report.failures[0].reason


def test_more_kinds_of_files_than_an_association_has_contexts(
    scp: kit.World, tmp_path: Path
) -> None:
    from pynetdicom import AllStoragePresentationContexts

    classes = [str(cx.abstract_syntax) for cx in AllStoragePresentationContexts][:150]
    counting = Counting(scp, [(sop_class, [data.EXPLICIT]) for sop_class in classes])
    files = data.Files(tmp_path)
    for number, sop_class in enumerate(classes):
        files.made(number, 100, sop_class=sop_class)
    report = sender(counting.port).send(tmp_path)
    assert report.sent == 150
    assert counting.seen == dict.fromkeys(uids(150), 1)
    assert all(len(proposed) <= 128 for proposed in counting.proposed)
    assert len(counting.proposed) >= 2


# What is tried again, and what is not ---------------------------------------------------------------------------


def test_no_room_for_a_moment(counting: Counting, folder: Folder) -> None:
    counting.answer = lambda event: 0xA700 if counting.total <= 2 else 0
    report = sender(counting.port).send(folder(5))
    assert report.is_success
    assert report.sent == 5
    assert report.retries == 2
    assert counting.stored == dict.fromkeys(uids(5), 1)


def test_no_room_at_all(counting: Counting, folder: Folder) -> None:
    counting.answer = lambda event: 0xA700
    report = sender(counting.port, retries=2).send(folder(20))
    assert report.sent == 0
    assert report.given_up is not None
    assert "0xA700" in report.given_up.message
    assert not report.is_complete
    assert report.failed + report.not_sent == 20


def test_no_room_for_one_file(counting: Counting, folder: Folder) -> None:
    bad = f"{data.ROOT}7.2"
    counting.answer = lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == bad else 0
    report = sender(counting.port, retries=2).send(folder(30))
    assert (report.sent, report.failed) == (29, 1)
    (failure,) = report.failures
    assert (failure.kind, failure.status, failure.attempts) == ("status", 0xA700, 3)
    assert failure.sop_instance_uid == bad
    assert counting.seen[bad] == 3


def test_permanent_failures_are_not_tried_again(counting: Counting, folder: Folder) -> None:
    counting.answer = lambda event: 0xC123
    report = sender(counting.port).send(folder(4))
    assert (report.sent, report.failed, report.retries) == (0, 4, 0)
    assert report.failures[0].status == 0xC123
    assert counting.seen == dict.fromkeys(uids(4), 1)
    json.dumps(report.as_dict())


def test_warnings_are_sent(counting: Counting, folder: Folder) -> None:
    counting.answer = lambda event: 0xB007
    report = sender(counting.port).send(folder(3))
    assert report.is_success
    assert (report.sent, report.warnings) == (3, 3)


def test_a_lost_association(counting: Counting, folder: Folder) -> None:
    def answer(event: evt.Event) -> int:
        if counting.total in (4, 11):
            event.assoc.abort()
        return 0

    counting.answer = answer
    report = sender(counting.port).send(folder(20))
    assert report.is_success
    assert report.sent == 20
    assert report.associations == 3
    assert set(counting.seen) == uids(20)
    # what was not answered was sent again, and nothing else
    assert counting.total == 22


@pytest.mark.parametrize("window", [1, 4])
def test_a_lost_association_without_a_second_attempt(
    scp: kit.World, folder: Folder, window: int
) -> None:
    """What was on its way is lost; what was not has done nothing wrong."""
    counting = Counting(scp, [(data.CT, [data.EXPLICIT])], attributes={"async_window": 4})

    def answer(event: evt.Event) -> int:
        if counting.total == 10:
            event.assoc.abort()
        return 0

    counting.answer = answer
    report = sender(counting.port, window=window, retries=0).send(folder(60))
    assert {failure.kind for failure in report.failures} == {"lost"}
    assert report.failed <= window
    assert report.sent == 9
    assert report.given_up is not None


def test_a_file_that_the_peer_cannot_bear(counting: Counting, folder: Folder) -> None:
    bad = f"{data.ROOT}7.3"

    def answer(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            event.assoc.abort()
        return 0

    counting.answer = answer
    report = sender(counting.port, retries=2).send(folder(10))
    assert (report.sent, report.failed) == (9, 1)
    (failure,) = report.failures
    assert (failure.kind, failure.sop_instance_uid, failure.attempts) == ("lost", bad, 3)


def test_refused_until_it_is_given_up(folder: Folder) -> None:
    report = sender(peers.free_port(), retries=2).send(folder(3))
    assert report.given_up is not None
    assert report.given_up.cause is not None
    assert report.given_up.cause.name == "refused"
    assert (report.sent, report.not_sent) == (0, 3)
    assert not report.is_success


def test_a_receiver_that_comes_late(scp: kit.World, folder: Folder) -> None:

    port = peers.free_port()
    late: list[Any] = []

    def start() -> None:
        ae = kit.make_ae("fast", "LATE")
        ae.add_supported_context(data.CT, [data.EXPLICIT])
        server = ae.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)]
        )
        late.append(kit.Server("fast", ae, server))  # type: ignore[arg-type]
        scp.servers.append(late[0])

    timer = threading.Timer(0.3, start)
    timer.start()
    try:
        report = sender(port, retries=50, retry_delay=0.05, retry_delay_max=0.1).send(folder(3))
    finally:
        timer.join()
    assert report.is_success
    assert report.sent == 3


def test_no_such_host_is_given_up_at_once(folder: Folder) -> None:
    report = fastpdu.Sender("no-such-host.invalid", 104, retries=10**6).send(folder(1))
    assert report.given_up is not None
    assert report.given_up.cause is not None
    assert report.given_up.cause.kind == "no-connection"


def rejecting(result: int, source: int, reason: int, counts: list[int]) -> raw.Acceptor:
    def script(peer: raw.Peer) -> None:
        peer.expect(raw.ASSOCIATE_RQ)
        counts.append(1)
        peer.send(raw.pdu(raw.ASSOCIATE_RJ, bytes([0, result, source, reason])))
        peer.at_end()

    return raw.Acceptor(script)


def test_a_permanent_rejection(folder: Folder) -> None:
    counts: list[int] = []
    with rejecting(1, 1, 7, counts) as acceptor:
        report = sender(acceptor.address[1]).send(folder(2))
    assert counts == [1]
    assert report.given_up is not None
    assert report.given_up.cause is not None
    assert report.given_up.cause.name == "called-title"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_more_associations_than_the_peer_takes(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.CT, [data.EXPLICIT])], attributes={"maximum_associations": 2})
    counting.answer = lambda event: time.sleep(0.005) or 0
    report = sender(counting.port, associations=6, retries=10**4).send(folder(100))
    assert report.is_success
    assert report.sent == 100
    assert counting.seen == dict.fromkeys(uids(100), 1)


def test_no_answer_in_time(scp: kit.World, folder: Folder) -> None:

    counting = Counting(scp, [(data.CT, [data.EXPLICIT])])
    release = threading.Event()

    def answer(event: evt.Event) -> int:
        if counting.total == 1:
            release.wait(20)
        return 0

    counting.answer = answer
    try:
        report = sender(counting.port, dimse_timeout=0.3).send(folder(3))
    finally:
        release.set()
    assert report.is_success
    assert counting.seen[next(iter(counting.seen))] == 2


@pytest.mark.parametrize("is_reading", [False, True])
def test_a_peer_that_stops(folder: Folder, is_reading: bool) -> None:
    """In the middle of a request, or of its response: that is no answer in time, too."""
    over = threading.Event()

    def script(peer: raw.Peer) -> None:
        raw.accept(peer, accepted=((1, data.EXPLICIT),))
        if is_reading:
            peer.message()
            peer.send(raw.p_data(raw.pdv(1, raw.LAST_COMMAND, bytes(100)))[:20])
        over.wait(kit.DEADLINE)

    with raw.Acceptor(script) as acceptor:
        acceptor.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        made = sender(
            acceptor.address[1],
            dimse_timeout=0.3,
            retries=0,
            transport=fastpdu.TransportOptions(send_buffer=65536),
        )
        ended: list[Report] = []
        thread = threading.Thread(
            target=lambda path: ended.append(made.send(path)), args=(folder(1, 2_000_000),)
        )
        thread.start()
        thread.join(kit.DEADLINE / 2)
        is_hanging = thread.is_alive()
        over.set()
        thread.join(kit.DEADLINE)
    assert not is_hanging
    (failure,) = ended[0].failures
    assert failure.kind == "lost"


# Cancelling, progress, rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
def test_cancel(counting: Counting, folder: Folder, at_once: bool) -> None:
    path = folder(200)
    made = sender(counting.port, associations=2)

    def answer(event: evt.Event) -> int:
        if counting.total == 20:
            made.cancel(at_once=at_once)
        return 0

    counting.answer = answer
    report = made.send(path)
    assert report.is_cancelled
    assert not report.is_complete
    assert not report.is_success
    assert report.failed == 0
    assert report.sent < 200
    if not at_once:
        # what was on its way was answered, and counted
        assert report.sent == counting.total
    # and it can be used again
    assert made.send(path).sent == 200


def test_cancel_comes_too_late(counting: Counting, folder: Folder) -> None:
    """The run after it is not that one; a first one that is about to begin is."""
    path = folder(5)
    made = sender(counting.port)
    made.cancel()
    assert made.send(path).is_cancelled
    assert made.send(path).sent == 5
    made.cancel()
    report = made.send(path)
    assert not report.is_cancelled
    assert report.sent == 5


def test_cancel_while_nothing_comes(counting: Counting, folder: Folder) -> None:
    made = sender(counting.port)
    files = list(folder(2).iterdir())

    def paths() -> Iterator[Path]:
        yield files[0]
        kit.until(lambda: counting.total == 1)
        made.cancel()
        yield files[1]

    report = made.send(paths())
    assert report.is_cancelled
    assert report.sent == 1


def test_cancel_while_waiting_for_the_next_attempt(folder: Folder) -> None:
    made = sender(peers.free_port(), retries=10, retry_delay=100, retry_delay_max=100)
    threading.Timer(0.3, made.cancel).start()
    report = made.send(folder(2))
    assert report.is_cancelled
    assert report.not_sent == 2


def test_an_error_of_the_iterator(counting: Counting, folder: Folder, tmp_path: Path) -> None:
    def paths() -> Iterator[Path]:
        yield folder(1)
        raise LookupError("no more")

    made = sender(counting.port, journal=tmp_path / "journal")
    with pytest.raises(LookupError):
        made.send(paths())
    counting.server.quiet()
    assert made.send(folder(1)).found == 1


def test_one_run_at_a_time(counting: Counting, folder: Folder) -> None:
    made = sender(counting.port)
    raised: list[type[Exception]] = []

    def answer(event: evt.Event) -> int:
        try:
            made.send(folder(1))
        except RuntimeError as error:
            raised.append(type(error))
        return 0

    counting.answer = answer
    made.send(folder(1))
    assert raised == [RuntimeError]


def test_progress(counting: Counting, folder: Folder) -> None:
    told: list[Progress] = []
    made = sender(counting.port, associations=2, on_progress=told.append)
    assert made.progress() is None
    path = folder(50)
    data.Files(path).not_dicom()
    report = made.send(path)
    last = told[-1]
    assert (last.found, last.sent, last.skipped, last.is_complete) == (51, 50, 1, True)
    assert last.bytes == report.bytes
    assert last.bytes_done == sum(file.stat().st_size for file in path.iterdir())
    assert sum(one.sent for one in last.associations) == 50
    assert {one.state for one in last.associations} == {"closed"}
    assert [one.sent for one in told] == sorted(one.sent for one in told)
    assert made.progress() is not None


def test_an_error_in_the_callback_ends_nothing(counting: Counting, folder: Folder) -> None:
    def fail(progress: Progress) -> None:
        raise RuntimeError("not today")

    assert sender(counting.port, on_progress=fail).send(folder(3)).sent == 3


def test_rate(counting: Counting, folder: Folder) -> None:
    # 20 files of 20 KB at 400 KB/s cannot take less than 0.7 s: a quarter of a second is a burst, the
    # last file is not waited for
    report = sender(counting.port, associations=3, rate=400_000).send(folder(20, 20_000))
    assert report.sent == 20
    assert report.seconds > 0.6


# The journal ----------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_is_not_sent_again(
    counting: Counting, folder: Folder, tmp_path: Path
) -> None:
    path = folder(20)
    bad = f"{data.ROOT}7.5"
    counting.answer = lambda event: 0xC000 if event.request.AffectedSOPInstanceUID == bad else 0
    made = sender(counting.port, journal=tmp_path / "journal")
    assert made.send(path).sent == 19
    counting.answer = lambda event: 0
    folder(23)
    report = made.send(path)
    assert (report.sent, report.already_sent) == (4, 19)
    assert counting.stored == dict.fromkeys(uids(23), 1)


def test_a_changed_file_is_sent_again(counting: Counting, folder: Folder, tmp_path: Path) -> None:
    path = folder(2)
    made = sender(counting.port, journal=tmp_path / "journal")
    made.send(path)
    os.utime(next(path.iterdir()), ns=(1, 1))
    report = made.send(path)
    assert (report.sent, report.already_sent) == (1, 1)


def test_the_same_file_twice(counting: Counting, folder: Folder, tmp_path: Path) -> None:
    path = folder(2)
    report = sender(counting.port, journal=tmp_path / "journal").send([path, path])
    assert (report.found, report.sent, report.duplicates) == (4, 2, 2)
    assert report.is_success


def test_a_journal_in_use(counting: Counting, folder: Folder, tmp_path: Path) -> None:
    made = sender(counting.port, journal=tmp_path / "journal")
    other = sender(counting.port, journal=tmp_path / "journal")
    raised: list[str] = []

    def answer(event: evt.Event) -> int:
        try:
            other.send(folder(1))
        except JournalError as error:
            raised.append(str(error))
        return 0

    counting.answer = answer
    made.send(folder(1))
    assert len(raised) == 1
    assert "in use" in raised[0]


def test_a_journal_that_cannot_be_written(
    counting: Counting, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastpdu.sender.journal import Journal

    def fail(self: Journal, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "acknowledged", fail)
    report: Report = sender(counting.port, journal=tmp_path / "journal").send(folder(50))
    assert report.given_up is not None
    assert "journal" in report.given_up.message
    # what could not be noted was sent all the same
    assert report.sent == counting.total < 50


# Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"port": 0}, ValueError, "port"),
        ({"port": "104"}, TypeError, "port"),
        ({"host": ""}, TypeError, "host"),
        ({"associations": 0}, ValueError, "associations"),
        ({"window": True}, TypeError, "window"),
        ({"retries": -1}, ValueError, "retries"),
        ({"max_pdu": 3}, ValueError, "max_pdu"),
        ({"rate": 0}, ValueError, "rate"),
        ({"retry_delay": "soon"}, TypeError, "retry_delay"),
        ({"dimse_timeout": float("inf")}, ValueError, "dimse_timeout"),
        ({"tls": True}, TypeError, "tls"),
        ({"ae_title": "SEVENTEEN LETTERS"}, ValueError, "ae_title"),
        ({"called_ae_title": 5}, TypeError, "called_ae_title"),
        ({"on_progress": 5}, TypeError, "on_progress"),
        ({"transport": {}}, TypeError, "transport"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fastpdu.Sender(**{"host": "localhost", "port": 104, **changes})


def test_paths_that_are_none(counting: Counting) -> None:
    with pytest.raises(TypeError, match="PathLike"):
        sender(counting.port).send([5])  # type: ignore[list-item]


def test_a_peer_that_speaks_something_else(folder: Folder) -> None:
    def script(peer: raw.Peer) -> None:
        peer.sock.recv(65536)
        peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        peer.at_end()

    with raw.Acceptor(script) as acceptor:
        report = sender(acceptor.address[1]).send(folder(1))
    assert report.given_up is not None
    assert "not DICOM" in report.given_up.message
