"""`fastpdu send` and `fastpdu recv` as processes: what survives kills, signals and restarts of either."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import data, kit, peers, programs
from helpers.pem import Pem
from pynetdicom import evt

pytestmark = pytest.mark.skipif("fast" not in kit.KINDS, reason="of the fast transport only")

COUNT = 120
# So slow that a test can interfere, with files of 20 KB
RATE = ("--rate", "1M")
EAGER = ("--retry-delay", 0.1, "--retries", 100)


# What runs before `fastpdu`: from then on the kernel gives signals to another thread than the main one, as it may if
# threads begin or end at that moment
ELSEWHERE = """
import signal, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
"""
needs_sigmask = pytest.mark.skipif(
    not hasattr(signal, "pthread_sigmask"), reason="needs pthread_sigmask"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with CT files."""
    path = tmp_path_factory.mktemp("source")
    files = data.Files(path)
    for number in range(COUNT):
        files.made(number, 20_000)
    return path


def journaled(path: Path) -> list[str]:
    """The UIDs in a journal."""
    _, *lines = path.read_bytes().split(b"\n")
    # a process that was killed may have cut the last one
    return [json.loads(line)["uid"] for line in lines[:-1]]


def contents(directory: Path) -> dict[str, bytes]:
    """The data sets of the files in a directory by SOP Instance UID; nothing else may be there."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_file():
            assert path.suffix == ".dcm", path
            found[path.stem] = data.payload(path)
    return found


def sent(source: Path) -> dict[str, bytes]:
    return {
        f"{data.ROOT}7.{path.name.split('_')[0]}": data.payload(path) for path in source.iterdir()
    }


def test_everything_arrives_unchanged(source: Path, tmp_path: Path) -> None:
    with programs.receiver(tmp_path / "out") as receiver:
        status, report, err = programs.send(receiver.port, source, "--associations", 3)
        assert (status, err) == (0, "")
        assert report["sent"] == COUNT
        assert report["peer"]["port"] == receiver.port
        assert receiver.stop() == 0
    assert contents(tmp_path / "out") == sent(source)
    (stopped,) = receiver.of("stopped")
    assert (stopped["files"], stopped["refused"]) == (COUNT, 0)
    assert stopped["bytes"] == sum(map(len, sent(source).values()))
    assert len(receiver.of("stored")) == COUNT
    assert len(receiver.of("accepted")) == len(receiver.of("closed")) == report["associations"]


# Kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("associations", "window"), [(1, 1), (3, 1), (2, 8)])
def test_a_sender_that_is_killed_goes_on(
    source: Path, tmp_path: Path, associations: int, window: int
) -> None:
    journal = tmp_path / "journal"
    options = ("--resume", journal, "--associations", associations, "--window", window)
    with programs.receiver(tmp_path / "out") as receiver:
        process = programs.start_send(receiver.port, source, *options, *RATE)
        kit.until(lambda: len(receiver.of("stored")) >= COUNT // 3, what="a third of the files")
        process.kill()
        process.communicate()
        acknowledged = journaled(journal)
        assert COUNT // 4 < len(acknowledged) < COUNT
        status, report, err = programs.send(receiver.port, source, *options)
        assert (status, err) == (0, "")
        assert receiver.stop() == 0
    assert (report["already_sent"], report["sent"]) == (
        len(acknowledged),
        COUNT - len(acknowledged),
    )
    assert contents(tmp_path / "out") == sent(source)
    arrivals = Counter(event["sop_instance_uid"] for event in receiver.of("stored"))
    assert {uid: arrivals[uid] for uid in acknowledged} == dict.fromkeys(acknowledged, 1)
    # what was stored and whose answer had not been noted, and nothing else, came twice
    assert sum(arrivals.values()) - COUNT <= associations * window
    assert Counter(journaled(journal)) == dict.fromkeys(sent(source), 1)


@pytest.mark.parametrize("associations", [1, 3])
def test_a_receiver_that_is_killed_and_started_again(
    source: Path, tmp_path: Path, associations: int
) -> None:
    options = ("--resume", tmp_path / "journal", "--associations", associations)
    with programs.receiver(tmp_path / "out") as receiver:
        port = receiver.port
        process = programs.start_send(port, source, *options, *RATE, *EAGER, "--json")
        kit.until(lambda: len(receiver.of("stored")) >= COUNT // 3, what="a third of the files")
        receiver.stop(signal.SIGKILL)
    # the sender meets a port at which nobody listens
    journal = len(journaled(tmp_path / "journal"))
    with programs.receiver(tmp_path / "out", port=port) as again:
        status, report, err = programs.finish(process)
        assert status == 0, err
        assert again.stop() == 0
    assert report["sent"] == COUNT
    assert report["associations"] > associations
    assert "trying again" in err
    for part in (tmp_path / "out").glob(".fastpdu-*.part"):
        # (what a process that is killed leaves behind)
        part.unlink()
    assert contents(tmp_path / "out") == sent(source)
    assert len(again.of("stored")) <= COUNT - journal + associations


def test_a_receiver_that_is_stopped_and_started_again(source: Path, tmp_path: Path) -> None:
    with programs.receiver(tmp_path / "out") as receiver:
        port = receiver.port
        process = programs.start_send(port, source, *RATE, *EAGER, "--json")
        kit.until(lambda: len(receiver.of("stored")) >= COUNT // 3, what="a third of the files")
        assert receiver.stop(signal.SIGTERM) == 0
    with programs.receiver(tmp_path / "out", port=port) as again:
        status, report, err = programs.finish(process)
        assert (status, report["sent"]) == (0, COUNT), err
        assert again.stop() == 0
    assert contents(tmp_path / "out") == sent(source)


# Signals to the sender ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_sender_that_is_stopped(source: Path, tmp_path: Path, number: int, expected: int) -> None:
    journal = tmp_path / "journal"
    options = ("--resume", journal, "--associations", 2)
    with programs.receiver(tmp_path / "out") as receiver:
        process = programs.start_send(receiver.port, source, *options, *RATE, "--json")
        kit.until(lambda: len(receiver.of("stored")) >= COUNT // 3, what="a third of the files")
        process.send_signal(number)
        status, report, err = programs.finish(process)
        assert status == report["exit_status"] == expected
        assert "the same command goes on" in err
        assert report["is_cancelled"]
        assert report["failed"] == 0
        # what was on its way was answered, and released, not aborted
        assert receiver.stop() == 0
        acknowledged = journaled(journal)
        assert report["sent"] == len(acknowledged) == len(receiver.of("stored")) < COUNT
    with programs.receiver(tmp_path / "out") as receiver:
        # (a journal is of one destination)
        status, _, err = programs.send(receiver.port, source, *options)
        assert status == 2
        assert "is the journal of sending to" in err


def blocking(world: kit.World, release: threading.Event) -> kit.Server:
    """A storage SCP that does not answer until it is allowed to."""

    def handler(event: evt.Event) -> int:
        release.wait(60)
        return 0

    return world.serve([(data.CT, [data.EXPLICIT])], [(evt.EVT_C_STORE, handler)])


@pytest.fixture
def world() -> Iterator[kit.World]:
    with kit.world_of("fast", "fast") as made:
        yield made


@pytest.mark.parametrize(
    "before",
    ["", pytest.param(ELSEWHERE, marks=needs_sigmask)],
    ids=["", "main thread not interrupted"],
)
def test_a_second_signal_does_not_wait(world: kit.World, source: Path, before: str) -> None:
    release = threading.Event()
    server = blocking(world, release)
    process = programs.start_send(server.port, source, "--json", "-td", 300, before=before)
    try:
        kit.until(lambda: server.associations and server.one().is_established)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        status, report, _ = programs.finish(process, 30)
        assert (status, report["sent"]) == (130, 0)
    finally:
        release.set()


def test_a_second_signal_while_an_association_is_requested(source: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(kit.DEADLINE)
        process = programs.start_send(listener.getsockname()[1], source, "--json", "-ta", 300)
        connection, _ = listener.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGINT)
            status, report, _ = programs.finish(process, kit.DEADLINE)
    assert (status, report["sent"]) == (130, 0)


def test_a_signal_while_stdin_is_waited_for(source: Path, tmp_path: Path) -> None:
    with programs.receiver(tmp_path / "out") as receiver:
        process = programs.start_send(receiver.port, "-", "--json")
        assert process.stdin is not None
        process.stdin.write(f"{next(source.iterdir())}\n")
        process.stdin.flush()
        kit.until(lambda: receiver.of("stored"))
        process.send_signal(signal.SIGINT)
        process.wait(30)
        status, report, _ = programs.finish(process)
        assert (status, report["sent"]) == (130, 1)


# Paths on stdin -------------------------------------------------------------------------------------------------


def test_given_up_while_stdin_is_waited_for(source: Path) -> None:
    """Nobody listens: the program ends, though there may be more paths to come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = programs.start_send(port, "-", "--json", "--retries", 0)
    assert process.stdin is not None
    process.stdin.write(f"{next(source.iterdir())}\n")
    process.stdin.flush()
    assert process.wait(30) == 3
    assert programs.finish(process)[1]["sent"] == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_closed_stdin_has_no_paths(source: Path, tmp_path: Path) -> None:
    with programs.receiver(tmp_path / "out") as receiver:
        command = [*programs.FASTPDU, "send", "127.0.0.1", str(receiver.port), "-"]
        done = subprocess.run(
            ["sh", "-c", '"$@" <&-', "sh", *command],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 1
    assert "no DICOM file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs os.set_blocking")
def test_a_stdin_that_does_not_block(source: Path, tmp_path: Path) -> None:
    """What comes late is read as well."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    first, second, *_ = source.iterdir()
    with programs.receiver(tmp_path / "out") as receiver:
        process = subprocess.Popen(
            [*programs.FASTPDU, "send", "127.0.0.1", str(receiver.port), "-", "--json"],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(reading)
        os.write(writing, os.fsencode(first) + b"\n")
        kit.until(lambda: receiver.of("stored"))
        os.write(writing, os.fsencode(second) + b"\n")
        os.close(writing)
        status, report, _ = programs.finish(process, 30)
    assert (status, report["sent"]) == (0, 2)


# Signals to the receiver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_a_receiver_that_is_stopped(source: Path, tmp_path: Path, number: int) -> None:
    journal = tmp_path / "journal"
    options = ("--resume", journal, "--associations", 3, "--retries", 0)
    with programs.receiver(tmp_path / "out") as receiver:
        process = programs.start_send(receiver.port, source, *options, *RATE, "--json")
        kit.until(lambda: len(receiver.of("stored")) >= COUNT // 3, what="a third of the files")
        assert receiver.stop(number) == 0
        status, report, _ = programs.finish(process)
    assert status in (3, 5, 1)
    assert report["sent"] == len(journaled(journal)) < COUNT
    # what was acknowledged is there, whole, and nothing half
    stored = contents(tmp_path / "out")
    everything = sent(source)
    assert set(journaled(journal)) <= set(stored)
    assert all(everything[uid] == content for uid, content in stored.items())
    (stopped,) = receiver.of("stopped")
    assert stopped["files"] == len(receiver.of("stored"))
    assert len(receiver.of("accepted")) == len(receiver.of("closed"))


# What follows runs in the receiver's process
SLOW = """
import time
from fastpdu.filestore import FileStore
commit = FileStore._commit
def slow(self, incoming):
    print('{"event": "slow"}', flush=True)
    time.sleep(SECONDS)
    return commit(self, incoming)
FileStore._commit = slow
"""


def test_a_receiver_finishes_what_it_has_begun(source: Path, tmp_path: Path) -> None:
    path = next(source.iterdir())
    before = SLOW.replace("SECONDS", "1.5")
    with programs.receiver(tmp_path / "out", before=before) as receiver:
        process = programs.start_send(receiver.port, path, "--json")
        kit.until(lambda: receiver.of("slow"))
        assert receiver.stop() == 0
        status, report, _ = programs.finish(process)
    assert (status, report["sent"]) == (0, 1)
    assert len(contents(tmp_path / "out")) == 1


def test_a_receiver_that_is_stopped_waits_for_no_request(source: Path, tmp_path: Path) -> None:
    """A connection without an A-ASSOCIATE-RQ does not keep it alive."""
    with (
        programs.receiver(tmp_path / "out", "--acse-timeout", 300) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)) as silent,
    ):
        # accepted, and not only by the kernel
        assert programs.send(receiver.port, next(source.iterdir()))[0] == 0
        assert receiver.stop() == 0
        silent.settimeout(kit.DEADLINE)
        assert silent.recv(1) == b""


def test_a_receiver_that_is_stopped_twice_does_not(source: Path, tmp_path: Path) -> None:
    path = next(source.iterdir())
    before = SLOW.replace("SECONDS", "60")
    with programs.receiver(tmp_path / "out", before=before) as receiver:
        process = programs.start_send(receiver.port, path, "--retries", 0, "--json")
        kit.until(lambda: receiver.of("slow"))
        receiver.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            receiver.process.wait(0.5)
        assert receiver.stop(signal.SIGINT) == 128 + signal.SIGTERM
        status, report, _ = programs.finish(process)
    assert status != 0
    assert report["sent"] == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_receiver_that_was_started_to_ignore_interrupts(tmp_path: Path) -> None:
    """As a shell starts what it runs in the background: SIGINT is meant for others."""
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with programs.receiver(tmp_path / "out", before=before) as receiver:
        assert receiver.port
        receiver.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            receiver.process.wait(0.5)
        assert receiver.stop(signal.SIGTERM) == 0


@needs_sigmask
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_a_receiver_whose_main_thread_is_not_interrupted(tmp_path: Path, number: int) -> None:
    with programs.receiver(tmp_path / "out", before=ELSEWHERE) as receiver:
        assert receiver.port
        assert receiver.stop(number) == 0


# Many at once ---------------------------------------------------------------------------------------------------


def test_many_senders(tmp_path: Path, source: Path) -> None:
    paths = sorted(source.iterdir())
    layout = "{CallingAETitle}/{SOPInstanceUID}.dcm"
    with programs.receiver(tmp_path / "out", "--layout", layout) as receiver:
        import fastpdu

        reports: list[fastpdu.sender.Report] = []

        def work(number: int) -> None:
            sender = fastpdu.Sender("127.0.0.1", receiver.port, ae_title=f"S{number}")
            reports.append(sender.send(paths[: number + 1]))

        assert receiver.port
        threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert receiver.stop() == 0
    assert all(report.is_success for report in reports)
    assert sum(report.sent for report in reports) == len(receiver.of("stored")) == 30 * 31 // 2
    for number in range(30):
        found = contents(tmp_path / "out" / f"S{number}")
        assert sorted(found.values()) == sorted(map(data.payload, paths[: number + 1]))


# TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Pem(tmp_path_factory.mktemp("pem"))


def test_tls(source: Path, tmp_path: Path, pem: Pem) -> None:
    with programs.receiver(
        tmp_path / "out", "--cert", pem.certificate, "--key", pem.key
    ) as receiver:
        assert receiver.of("listening") or receiver.port
        status, report, err = programs.send(receiver.port, source, "--cacert", pem.ca)
        assert (status, report["sent"]) == (0, COUNT), err
        status, report, err = programs.send(receiver.port, source, "--cacert", pem.other_ca)
        assert (status, report["sent"]) == (7, 0)
        assert "not trusted" in err
        status, report, _ = programs.send(receiver.port, source, "--retries", 0, "-ta", 2)
        assert status in (3, 5, 6)
        assert report["sent"] == 0
        assert receiver.stop() == 0
    assert contents(tmp_path / "out") == sent(source)


def test_mutual_tls(source: Path, tmp_path: Path, pem: Pem) -> None:
    options = ("--cert", pem.certificate, "--key", pem.key, "--cacert", pem.ca)
    with programs.receiver(tmp_path / "out", *options) as receiver:
        known = ("--cacert", pem.ca, "--cert", pem.client, "--key", pem.client_key)
        status, report, err = programs.send(
            receiver.port, source, *known, "--associations", 2, "--window", 4
        )
        assert (status, report["sent"]) == (0, COUNT), err
        status, report, err = programs.send(
            receiver.port, source, "--cacert", pem.ca, "--retries", 0
        )
        assert (status, report["sent"]) == (5, 0)
        assert "--cert" in err
        assert receiver.stop() == 0
    assert contents(tmp_path / "out") == sent(source)


# What is shown --------------------------------------------------------------------------------------------------


def on_terminal(command: list[str]) -> tuple[subprocess.Popen[bytes], Any]:
    """Start a program whose stderr is a terminal; the process and a function that returns what it has shown."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=programs.PREEXEC,
    )
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(ours, 65536))
            except OSError:
                break
            if not shown[-1]:
                break
        os.close(ours)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def text() -> str:
        if process.poll() is not None:
            reader.join(5)
        return b"".join(shown).decode()

    return process, text


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_sees_how_far_it_is(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    port = peers.free_port()
    receiving, received = on_terminal([*programs.FASTPDU, "recv", str(port), str(tmp_path / "out")])
    sending = None
    try:
        assert receiving.stdout is not None
        assert b"listens" in receiving.stdout.readline()
        command = ["send", "127.0.0.1", str(port), str(source), "--associations", "2", *RATE]
        sending, seen = on_terminal([*programs.FASTPDU, *command])
        out, _ = sending.communicate(timeout=60)
        assert sending.returncode == 0, seen()
        assert f"{COUNT} sent" in out.decode()
        text = seen()
        for word in (f"of {COUNT} files", "/s", "to go", "#1", "#2"):
            assert word in text
        receiving.send_signal(signal.SIGINT)
        out, _ = receiving.communicate(timeout=30)
        assert receiving.returncode == 0
        assert f"{COUNT} stored" in out.decode()
        assert "2 associations" in received()
        assert "FASTPDU" in received()
    finally:
        for process in (receiving, sending):
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()
