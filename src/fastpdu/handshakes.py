"""TLS handshakes with a deadline: those of a requestor, and those of a server, off its accept path.

A peer that connects and then says nothing, or one byte a minute, holds up nobody but itself.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from pynetdicom import transport as stock

LOGGER = logging.getLogger("fastpdu.transport")

# The requestor --------------------------------------------------------------------------------------------------


class _DeadlineSSLSocket(ssl.SSLSocket):
    """A requestor's TLS socket until its handshake; `deadline` seconds are enough for that."""

    deadline: float | None

    def do_handshake(self, block: bool = False) -> None:
        self.__class__ = ssl.SSLSocket  # type: ignore[assignment]
        if self.gettimeout() is not None:
            self.do_handshake(block)
            return
        self.settimeout(self.deadline)
        try:
            self.do_handshake(block)
        except TimeoutError as error:
            raise TimeoutError(
                f"the peer has not completed the TLS handshake within {self.deadline} s"
            ) from error
        finally:
            self.settimeout(None)


class _DeadlineContext(NamedTuple):
    """What `AssociationSocket.connect` needs of a TLS context."""

    context: ssl.SSLContext
    deadline: float | None

    def wrap_socket(self, sock: socket.socket, **kwargs: Any) -> ssl.SSLSocket:
        try:
            wrapped = self.context.wrap_socket(sock, **kwargs)
        except ValueError as error:
            # pynetdicom takes nothing but an OSError for a connection that did not come about
            raise OSError(
                errno.EINVAL, f"tls_args do not fit: {error}; they are (context, name of the peer)"
            ) from error
        if type(wrapped) is ssl.SSLSocket:
            wrapped.__class__ = _DeadlineSSLSocket
            cast(_DeadlineSSLSocket, wrapped).deadline = self.deadline
        return wrapped


class RequestorSocket(stock.AssociationSocket):
    """A requestor's socket that does not wait for a TLS handshake for ever.

    Stock's is bounded by the connection timeout, which is None unless it was set.
    """

    def connect(self, primitive: Any) -> None:
        """Connect to the peer; see pynetdicom. A TLS handshake may take as long as the ACSE timeout says."""
        args = self.tls_args
        if args is not None:
            deadline = _DeadlineContext(args[0], self.assoc.acse_timeout)
            self._tls_args = (cast(ssl.SSLContext, deadline), args[1])
        try:
            super().connect(primitive)
        finally:
            self._tls_args = args


def with_deadline(holder: object) -> None:
    """Give the TLS handshake of a requestor a deadline: `holder` is its `AssociationSocket`, not connected yet."""
    if type(holder) is stock.AssociationSocket:
        holder.__class__ = RequestorSocket


# The server -----------------------------------------------------------------------------------------------------


class Handshakes:
    """The connections of a server that are in their TLS handshake: a bounded number, each of which has a thread."""

    #: One more, and the oldest is closed. As many as there may be connections without an association.
    MOST = 128

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, socket.socket] = {}

    @contextmanager
    def one(self, client: socket.socket) -> Iterator[None]:
        """Be one of them for the duration of a ``with`` block."""
        with self._lock:
            while len(self._waiting) >= self.MOST:
                oldest = self._waiting.pop(next(iter(self._waiting)))
                LOGGER.warning("More than %d TLS handshakes at once: the oldest ends", self.MOST)
                with suppress(OSError):
                    # Its thread finds the end of the stream
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._waiting[id(client)] = client
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(id(client), None)


_handshakes: weakref.WeakKeyDictionary[object, Handshakes] = weakref.WeakKeyDictionary()
_handshakes_lock = threading.Lock()


def handshake(server: stock.AssociationServer, client: object) -> bool:
    """Do the TLS handshake of an accepted connection, within the AE's ACSE timeout.

    Parameters
    ----------
    server : pynetdicom.transport.AssociationServer
        The server that accepted it.
    client : socket.socket
        The connection; a plain one needs nothing.

    Returns
    -------
    bool
        False if it failed; the connection is then closed.
    """
    if not isinstance(client, ssl.SSLSocket):
        return True
    with _handshakes_lock:
        handshakes = _handshakes.setdefault(server, Handshakes())
    try:
        with handshakes.one(client):
            client.settimeout(server.ae.acse_timeout)
            client.do_handshake()
            client.settimeout(None)
    except (OSError, ValueError) as error:
        LOGGER.warning("TLS handshake with a requestor failed: %s", error)
        # Not shut down first: a peer that did not speak TLS at all gets a reset, not our alert as a PDU
        client.close()
        return False
    return True
