"""The socket: tuning, the engine's connection for an association, and the server's accept path.

Replaces what ``pynetdicom.transport`` does with sockets; `AssociationSocket` itself stays pynetdicom's own.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import weakref
from collections import Counter
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pynetdicom import transport as stock

from fastpdu import engine
from fastpdu.handshakes import handshake
from fastpdu.options import options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

    from fastpdu.options import TransportOptions

LOGGER = logging.getLogger("fastpdu.transport")

# Signs of life that the kernel asks for, a third of `keepalive` apart
KEEPALIVE_PROBES = 3


class OptionError(OSError):
    """The system refuses a socket option that was asked for; the message names the option and the value."""


class _Setting(NamedTuple):
    """What an option does to a socket."""

    name: str
    level: int
    # The first that the platform has; if it has none, the option was refused when it was given, or can be left out
    constants: tuple[str, ...]
    convert: Callable[[Any], int | bytes] = int


_TCP, _SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
_SETTINGS = (
    _Setting("nodelay", _TCP, ("TCP_NODELAY",)),
    _Setting("send_buffer", _SOCKET, ("SO_SNDBUF",)),
    _Setting("receive_buffer", _SOCKET, ("SO_RCVBUF",)),
    _Setting("max_segment", _TCP, ("TCP_MAXSEG",)),
    _Setting("congestion_control", _TCP, ("TCP_CONGESTION",), str.encode),
    _Setting("keepalive", _SOCKET, ("SO_KEEPALIVE",), lambda seconds: 1),
    _Setting("keepalive", _TCP, ("TCP_KEEPIDLE", "TCP_KEEPALIVE")),
    _Setting("keepalive", _TCP, ("TCP_KEEPINTVL",), lambda s: max(s // KEEPALIVE_PROBES, 1)),
    _Setting("keepalive", _TCP, ("TCP_KEEPCNT",), lambda seconds: KEEPALIVE_PROBES),
    _Setting("user_timeout", _TCP, ("TCP_USER_TIMEOUT",), lambda s: max(round(s * 1000), 1)),
    _Setting("notsent_lowat", _TCP, ("TCP_NOTSENT_LOWAT",)),
)


def tune(sock: socket.socket, options: TransportOptions, *, connected: bool = False) -> None:
    """Set the socket options of an association, or of a server's socket, whose connections inherit them.

    Parameters
    ----------
    sock : socket.socket
        The socket. `quickack` is not set here: it is not sticky, and the engine sets it again and again.
    options : TransportOptions
        What to set.
    connected : bool, optional
        Whether it is too late for what is agreed when a connection is made.

    Raises
    ------
    OptionError
        If the system refuses an option that was asked for; the message names it.
    """
    if options.nodelay is None:
        try:
            sock.setsockopt(_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            # Not TCP (a Unix socket, a test double) or closed by the peer already: nothing to tune
            LOGGER.debug("TCP_NODELAY cannot be set on %r", sock)
    for setting in _SETTINGS:
        value = getattr(options, setting.name)
        if value is None or (connected and setting.name == "max_segment"):
            continue
        number = next((getattr(socket, c) for c in setting.constants if hasattr(socket, c)), None)
        if number is None:
            continue
        try:
            sock.setsockopt(setting.level, number, setting.convert(value))
        except OSError as error:
            raise OptionError(
                error.errno, f"the system refuses {setting.name}={value!r}: {error.strerror}"
            ) from error


def tunable(sock: object) -> bool:
    """Whether `sock` is a real socket: tests and applications put other objects in its place."""
    return isinstance(sock, socket.socket) and sock.fileno() >= 0


class _SerialSSLSocket(ssl.SSLSocket):
    """A non-blocking TLS socket that is used by one thread at a time.

    OpenSSL wants that, and CPython sees to it from 3.13 on. The engine has a lock of its own, but an application may
    send on the association's socket while the engine's thread is inside the very call that has woken it.
    """

    io_lock: threading.Lock

    def send(self, data: Any, flags: int = 0) -> int:
        with self.io_lock:
            return super().send(data, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        with self.io_lock:
            return super().recv_into(buffer, nbytes, flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        with self.io_lock:
            return super().recv(buflen, flags)


def connection_for(sock: socket.socket, options: TransportOptions) -> engine.Connection:
    """Return the engine's connection over a connected socket.

    Parameters
    ----------
    sock : socket.socket
        A connected socket, plain or TLS.
    options : TransportOptions
        The limits to set.

    Returns
    -------
    engine.Connection
        The connection.
    """
    if type(sock) is ssl.SSLSocket:
        sock.__class__ = _SerialSSLSocket
        cast(_SerialSSLSocket, sock).io_lock = threading.Lock()
    connection = engine.connect(sock)
    connection.quickack = options.quickack is not False
    connection.busy_wait = options.busy_wait is not False and _has_several_processors()
    connection.cork = options.cork
    connection.pack_command = options.pack_command
    connection.max_message = options.max_message
    ROADS.follow(connection)
    return connection


def _has_several_processors() -> bool:
    """Whether a thread of this process can wait while another one runs."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


class Roads:
    """Counts the messages of this process by the road that they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()
        self._live: weakref.WeakSet[engine.Connection] = weakref.WeakSet()

    def follow(self, connection: engine.Connection) -> None:
        """Count the messages of `connection` from now on."""
        with self._lock:
            self._live.add(connection)

    def end(self, connection: engine.Connection) -> None:
        """Keep the counts of a connection that ends."""
        with self._lock:
            if connection in self._live:
                self._live.discard(connection)
                self._ended["fast_sent"] += connection.messages_sent
                self._ended["fast_received"] += connection.messages_received

    def count(self, road: str, own: Counter[str]) -> None:
        """Count a message that took the stock road, in all and for its association."""
        with self._lock:
            self._ended[road] += 1
            own[road] += 1

    def totals(self) -> dict[str, int]:
        """Return the counts so far."""
        with self._lock:
            live = list(self._live)
            found = {
                name: self._ended[name]
                for name in ("fast_sent", "stock_sent", "fast_received", "stock_received")
            }
        found["fast_sent"] += sum(c.messages_sent for c in live)
        found["fast_received"] += sum(c.messages_received for c in live)
        return found


ROADS = Roads()


def road_counters() -> dict[str, int]:
    """Return how many DIMSE messages this process moved, by direction and road.

    Returns
    -------
    dict of str to int
        ``fast_sent``, ``stock_sent``, ``fast_received`` and ``stock_received``. The stock road is pynetdicom's own,
        PDU by PDU, taken while somebody watches the PDUs of an association (docs/switching-on.md).
    """
    return ROADS.totals()


# The server: its options, and TLS handshakes off the accept path ------------------------------------------------


def listen(server: stock.AssociationServer) -> None:
    """Tune a server's socket before it listens: `AssociationServer.server_activate`.

    Raises
    ------
    OptionError
        If the system refuses an option.
    """
    sock: Any = server.socket
    if tunable(sock):
        # (servers of other kinds have no AE)
        tune(sock, options_of(server, getattr(server, "ae", None)))
    TCPServer.server_activate(server)


def accept(server: stock.AssociationServer) -> tuple[socket.socket, Any]:
    """Accept a connection without waiting for its TLS handshake: `AssociationServer.get_request`."""
    client, address = server.socket.accept()  # type: ignore[union-attr]
    if server.ssl_context:
        client = server.ssl_context.wrap_socket(
            client, server_side=True, do_handshake_on_connect=False
        )
    return client, address


def finish_request(server: stock.AssociationServer, client: Any, address: Any) -> None:
    """Hand an accepted connection to the request handler once it is secured: `AssociationServer.finish_request`."""
    if isinstance(client, ssl.SSLSocket) and not isinstance(server, ThreadingMixIn):
        # This server has no thread per request: a silent peer must not stop the others
        threading.Thread(
            target=_secure_and_handle, args=(server, client, address), daemon=True
        ).start()
    else:
        _secure_and_handle(server, client, address)


def _secure_and_handle(server: stock.AssociationServer, client: Any, address: Any) -> None:
    if not handshake(server, client):
        return
    try:
        server.RequestHandlerClass(client, address, server)
    except OptionError as error:
        # The socket that listens has taken them, so this one is dead already, or they were changed since
        LOGGER.error("A connection from %s was refused: %s", address[0], error)
        client.close()


class ServerMixin(stock.AssociationServer):
    """An association server that does not wait for a peer while it accepts the next one.

    Attributes
    ----------
    transport : TransportOptions or None
        How its associations move bytes; None leaves that to the AE.
    """

    transport: TransportOptions | None = None

    def server_activate(self) -> None:
        """Listen; see `listen`."""
        listen(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; see `accept`."""
        return accept(self)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection; see `finish_request`."""
        finish_request(self, request, client_address)


def upgradable(assoc: Association) -> bool:
    """Whether the transport of an association can still be replaced: nothing has been started."""
    return not assoc._started_dul and not assoc.dul.is_alive()
