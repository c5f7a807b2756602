"""Association ends of either kind (stock pynetdicom, fastpdu), and waiting for things to happen.

``FASTPDU_TEST_KINDS=stock`` leaves out every fast end: that is the run which shows that a test
describes pynetdicom, not us.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pynetdicom
from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

T = TypeVar("T")

KINDS: tuple[str, ...] = tuple(os.environ.get("FASTPDU_TEST_KINDS", "stock,fast").split(","))
PAIRS: list[tuple[str, str]] = [(scu, scp) for scu in KINDS for scp in KINDS]
PAIR_IDS: list[str] = [f"{scu}-{scp}" for scu, scp in PAIRS]
DEADLINE = 20.0


def until(condition: Callable[[], T], timeout: float = DEADLINE, what: str = "") -> T:
    """Poll `condition` until it is true; fail the test when it does not become so."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(0.002)


def sha(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def make_ae(kind: str, ae_title: str = "TWIN", **attributes: Any) -> pynetdicom.AE:
    """An application entity of one kind with the timeouts that a test can afford."""
    ae = ae_class(kind)(ae_title=ae_title)
    ae.acse_timeout = 20
    ae.dimse_timeout = 20
    ae.network_timeout = 20
    ae.connection_timeout = 10
    for name, value in attributes.items():
        setattr(ae, name, value)
    return ae


def ae_class(kind: str) -> type[pynetdicom.AE]:
    if kind == "stock":
        return pynetdicom.AE
    import fastpdu

    return fastpdu.AE


def is_fast(assoc: Association) -> bool:
    """Whether this association runs on the fast transport."""
    return type(assoc.dul).__module__.startswith("fastpdu")


def mend(assoc: Association) -> None:
    """Give back what a stock reactor takes from a waiting ``send_*`` call.

    pynetdicom 3.0.4 sets ``_is_paused`` before it looks at the checkpoint: a ``send_*`` call may go
    on while the reactor still has a ``get_msg`` before it. A peer that answers within microseconds
    (ours, or a bare socket) loses its response to that, and the call ends by the DIMSE timeout.
    """
    if is_fast(assoc):
        return
    serve = assoc._serve_request

    def give_back(msg: Any, context_id: int) -> None:
        if msg.MessageIDBeingRespondedTo is None:
            serve(msg, context_id)
        else:
            assoc.dimse.msg_queue.put((context_id, msg))

    assoc._serve_request = give_back  # type: ignore[method-assign]


def roads() -> dict[str, int]:
    """The counters of both roads in this process (all zero while there is no fast end)."""
    if "fast" not in KINDS:
        return dict.fromkeys(("fast_sent", "stock_sent", "fast_received", "stock_received"), 0)
    from fastpdu.transport import road_counters

    return dict(road_counters())


@contextmanager
def road_delta() -> Iterator[dict[str, int]]:
    """Counts the messages of each road; the dict is filled when the block ends."""
    delta: dict[str, int] = {}
    before = roads()
    yield delta
    after = roads()
    # the sender counts a message when its last byte has left: the receiver may be quicker
    while "fast" in KINDS:
        time.sleep(0.01)
        if (again := roads()) == after:
            break
        after = again
    delta.update({name: value - before[name] for name, value in after.items()})


def status_of(rsp: Dataset) -> tuple[tuple[str, str], ...]:
    """A status Dataset as comparable values; () when the peer did not answer."""
    return tuple((elem.keyword, str(elem.value)) for elem in rsp)


def outcome(call: Callable[[], Any]) -> Any:
    """What a ``send_*`` call came to: its status, or the exception with its text."""
    try:
        result = call()
    except Exception as exc:
        return (type(exc).__name__, str(exc))
    if result is None:
        return None
    if isinstance(result, Dataset):
        return status_of(result)
    if isinstance(result, tuple):
        return tuple(
            status_of(item) if isinstance(item, Dataset) else dataset_key(item) for item in result
        )
    return [
        (status_of(status), dataset_key(identifier)) for status, identifier in result
    ]  # the iterator of send_c_find and friends


def dataset_key(dataset: Dataset | None) -> Any:
    return None if dataset is None else dataset.to_json()


def thread_kind(assoc: Association | None = None) -> str:
    """Which of the threads of surface section 5.1 runs this (a handler, of `assoc`)."""
    from pynetdicom.dul import DULServiceProvider

    thread = threading.current_thread()
    if assoc is not None and thread.name == assoc.dul.name:
        return "dul"
    if isinstance(thread, Association):
        return "association"
    if isinstance(thread, DULServiceProvider):
        return "dul"
    if thread is threading.main_thread():
        return "user"
    if "process_request" in thread.name:
        return "server"
    return "user" if thread.name.startswith("user") else "other"


@dataclass
class Server:
    """One running SCP."""

    kind: str
    ae: pynetdicom.AE
    server: ThreadedAssociationServer
    host: str = "127.0.0.1"

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def address(self) -> tuple[str, int]:
        return (self.host, self.port)

    @property
    def associations(self) -> list[Association]:
        return self.server.active_associations

    def one(self) -> Association:
        """The acceptor's side of the only association, once it is established."""
        assoc = until(
            lambda: next((a for a in self.associations if a.is_established), None),
            what="an established acceptor",
        )
        mend(assoc)
        return assoc

    def quiet(self) -> None:
        """Wait until no association is left."""
        until(lambda: not self.associations, what="the end of the acceptor's associations")

    def shutdown(self) -> None:
        """Stop, without waiting for the half second that ``serve_forever`` may sleep."""
        thread = threading.Thread(target=self.server.shutdown, name="shutdown")
        thread.start()
        thread.join(0.01)
        if thread.is_alive() and getattr(self.server, "_BaseServer__shutdown_request", False):
            import socket

            with suppress(OSError):
                socket.create_connection((self.host, self.port), timeout=1).close()
        thread.join(DEADLINE)
        assert not thread.is_alive(), "server.shutdown() hangs"


@dataclass
class World:
    """Both ends of a test, and everything that has to be stopped after it."""

    scu: str
    scp: str
    servers: list[Server] = field(default_factory=list)
    aes: list[pynetdicom.AE] = field(default_factory=list)
    assocs: list[Association] = field(default_factory=list)
    before: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))

    @property
    def fast_ends(self) -> int:
        return (self.scu, self.scp).count("fast")

    def serve(
        self,
        contexts: Any = (),
        handlers: Any = (),
        *,
        host: str = "127.0.0.1",
        roles: bool = False,
        ae: pynetdicom.AE | None = None,
        attributes: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Server:
        """Start an SCP; `contexts`: (abstract syntax, transfer syntaxes) or UIDs."""
        ae = ae or make_ae(self.scp, "SCP", **(attributes or {}))
        self.aes.append(ae)
        for item in contexts:
            abstract, transfer = item if isinstance(item, tuple) else (item, None)
            options = {"scp_role": True, "scu_role": True} if roles else {}
            if transfer is None:
                ae.add_supported_context(abstract, **options)
            else:
                ae.add_supported_context(abstract, transfer, **options)
        server = ae.start_server((host, 0), block=False, evt_handlers=list(handlers), **kwargs)
        assert server is not None
        wrapped = Server(self.scp, ae, server, host)
        self.servers.append(wrapped)
        return wrapped

    def connect(
        self,
        server: Server | tuple[str, int],
        contexts: Any = (),
        handlers: Any = (),
        *,
        ae: pynetdicom.AE | None = None,
        attributes: dict[str, Any] | None = None,
        established: bool | None = True,
        **kwargs: Any,
    ) -> Association:
        """Associate; with ``established=None`` the outcome is left to the test."""
        if ae is None:
            ae = make_ae(self.scu, "SCU", **(attributes or {}))
        self.aes.append(ae)
        for item in contexts:
            abstract, transfer = item if isinstance(item, tuple) else (item, None)
            if transfer is None:
                ae.add_requested_context(abstract)
            else:
                ae.add_requested_context(abstract, transfer)
        host, port = server.address if isinstance(server, Server) else server
        assoc = ae.associate(host, port, evt_handlers=list(handlers), **kwargs)
        mend(assoc)
        self.assocs.append(assoc)
        if established is not None:
            assert assoc.is_established is established
            assert not established or is_fast(assoc) == (self.scu == "fast")
        return assoc

    def close(self) -> None:
        """Stop everything, and check that no thread stays behind."""
        for assoc in self.assocs:
            if assoc.is_established:
                assoc.release()
        for assoc in self.assocs:
            if assoc.is_established:
                assoc.abort()
        for server in self.servers:
            for assoc in server.associations:
                if assoc.is_established:
                    assoc.abort()
            server.shutdown()
        until(
            lambda: not [t for t in set(threading.enumerate()) - self.before if t.is_alive()],
            what=f"the end of all threads: {set(threading.enumerate()) - self.before}",
        )


@contextmanager
def world_of(scu: str, scp: str) -> Iterator[World]:
    world = World(scu, scp)
    try:
        yield world
    finally:
        world.close()


ORACLES: list[Path] = []  # the directory in which the workers of a test run share what stock did


def oracle(scenario: Callable[..., Any], *args: Any) -> Any:
    """What `scenario` comes to on two stock ends; run once per test run."""
    key = f"{scenario.__module__}.{scenario.__qualname__}{args!r}"
    kept = ORACLES[0] / sha(key.encode())
    if not kept.exists():
        with world_of("stock", "stock") as made:
            result = scenario(made, *args)
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(result))
        part.replace(kept)
    return pickle.loads(kept.read_bytes())


def against_oracle(world: World, scenario: Callable[..., Any], *args: Any) -> Any:
    """Run `scenario` on this pair; it must come to the same as on two stock ends."""
    expected = oracle(scenario, *args)
    result = scenario(world, *args)
    if result != expected:
        raise AssertionError("not as on stock: " + difference(expected, result))
    return result


def difference(stock: Any, here: Any, path: str = "result") -> str:
    """Where two results first differ, in words."""
    if type(stock) is type(here) and isinstance(stock, dict):
        for name in {**stock, **here}:
            if stock.get(name) != here.get(name):
                return difference(stock.get(name), here.get(name), f"{path}[{name!r}]")
    if type(stock) is type(here) and isinstance(stock, (list, tuple)):
        for index, (one, other) in enumerate(zip(stock, here, strict=False)):
            if one != other:
                return difference(one, other, f"{path}[{index}]")
        return (
            f"{path}: stock has {len(stock)} items, here {len(here)}\n{stock!s:.700}\n{here!s:.700}"
        )
    return f"{path}\nstock: {stock!s:.700}\nhere:  {here!s:.700}"


class Checks:
    """Assertions inside handlers run on other threads: collect them, raise them here."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.seen = 0

    def __call__(self, function: Callable[..., T]) -> Callable[..., T]:
        def wrapped(*args: Any) -> T:
            self.seen += 1
            try:
                return function(*args)
            except BaseException as exc:
                self.failures.append(exc)
                raise

        return wrapped

    def verify(self, seen: int | None = None) -> None:
        if self.failures:
            raise self.failures[0]
        if seen is not None:
            assert self.seen == seen
