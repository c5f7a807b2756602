"""The raw-socket floor: the same files over the same kind of socket, with no DICOM at all.

One thread reads each file into a buffer that it uses again and again, hands it to `sendall`, and
waits for a reply of 100 bytes, as a C-STORE-RSP has; another thread of the same process receives
with `recv_into` into a buffer of its own. Nothing in Python that moves these bytes and waits for an
answer can be faster, so it is what the other rows are measured by.

The floor of TLS is the same with both ends wrapped by the `ssl` module: the sender gives OpenSSL a whole file at a
time, the receiver takes the records where they stay.

The floor of a long link waits for one reply only, after the last file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from fastpdu.bench.errors import BenchError
from fastpdu.bench.series import Instance

__all__ = ["Lead", "TlsEnds", "digests_received", "measure", "stream"]

#: Contexts of the server and of the client.
TlsEnds: TypeAlias = tuple[ssl.SSLContext, ssl.SSLContext]
#: Returns the port to connect to, for that of the receiver.
Lead: TypeAlias = Callable[[int], int]

REPLY = bytes(100)
_BINARY = getattr(os, "O_BINARY", 0)


def _buffer(size: int) -> memoryview:
    """Return a buffer that begins with a page: elsewhere copies may be far slower (docs/measurements.md)."""
    return memoryview(mmap.mmap(-1, size))


def _read_file(path: str, view: memoryview) -> None:
    """Read a file that is as long as `view`."""
    if hasattr(os, "readv"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            got = os.readv(descriptor, [view])
        finally:
            os.close(descriptor)
    else:  # pragma: no cover - Windows
        with open(path, "rb", buffering=0) as file:
            got = file.readinto(view) or 0
    if got != len(view):
        raise BenchError(f"{path} changed while it was being measured")


def _secured(sock: socket.socket, tls: TlsEnds | None, *, server_side: bool) -> socket.socket:
    """Do the TLS handshake, if there is to be one; both ends do it at the same time."""
    if tls is None:
        return sock
    if server_side:
        return tls[0].wrap_socket(sock, server_side=True)
    return tls[1].wrap_socket(sock, server_hostname="localhost")


def _receive_exactly(connection: socket.socket, view: memoryview) -> None:
    got = 0
    size = len(view)
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise BenchError("the connection of the floor ended early")
        got += count


def _exchange(
    instances: Sequence[Instance],
    on_received: Callable[[memoryview], object],
    tls: TlsEnds | None = None,
    lead: Lead | None = None,
) -> float:
    """Send every file once; return the seconds it took. With `lead` only the last file is answered."""
    last = instances[-1]
    largest = max(item.size for item in instances)
    failure: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            try:
                accepted, _ = listener.accept()
                with _secured(accepted, tls, server_side=True) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    view = _buffer(largest)
                    for item in instances:
                        whole = view[: item.size]
                        _receive_exactly(connection, whole)
                        on_received(whole)
                        if lead is None or item is last:
                            connection.sendall(REPLY)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=serve, name="floor-receiver", daemon=True)
        thread.start()
        address = ("127.0.0.1", lead(port) if lead else port)
        with _secured(socket.create_connection(address), tls, server_side=False) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            view = _buffer(largest)
            reply = memoryview(bytearray(len(REPLY)))
            start = time.perf_counter()
            for item in instances:
                whole = view[: item.size]
                _read_file(item.path, whole)
                connection.sendall(whole)
                if lead is None or item is last:
                    _receive_exactly(connection, reply)
            elapsed = time.perf_counter() - start
        thread.join()
    if failure:
        raise failure[0]
    return elapsed


def measure(instances: Sequence[Instance], tls: TlsEnds | None = None) -> float:
    """Return the seconds that the files take.

    Parameters
    ----------
    instances : sequence of Instance
        The files.
    tls : (server's context, client's context), optional
        Send them over TLS; the handshake is not in the time.
    """
    return _exchange(instances, len, tls)


def stream(instances: Sequence[Instance], lead: Lead) -> float:
    """Return the seconds that the files take without a wait in between.

    Parameters
    ----------
    instances : sequence of Instance
        The files.
    lead : callable
        Returns the port to connect to, for that of the receiver: the way through a link.
    """
    return _exchange(instances, len, lead=lead)


def digests_received(
    instances: Sequence[Instance], tls: TlsEnds | None = None, lead: Lead | None = None
) -> list[bytes]:
    """Send the files and return the SHA-256 of what arrived of each; not for timing."""
    digests: list[bytes] = []
    _exchange(instances, lambda view: digests.append(hashlib.sha256(view).digest()), tls, lead=lead)
    return digests
