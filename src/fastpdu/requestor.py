"""Associations to a peer, as our own programs request them: who the peer is, and why there is none.

pynetdicom logs why an association does not come about. `request` raises it, as an `AssociationError`.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynetdicom import evt
    from pynetdicom.presentation import PresentationContext

    from fastpdu.association import AssociationMixin
    from fastpdu.options import TransportOptions


@dataclass(frozen=True)
class Peer:
    """Who is to be talked to, and how.

    Attributes
    ----------
    host : str
        Name or address.
    port : int
        TCP port.
    calling, called : str
        AE titles: ours and the peer's.
    connection_timeout, acse_timeout, dimse_timeout : float
        Seconds: for the TCP connection, for answers to association requests, for DIMSE responses.
    tls : ssl.SSLContext or None
        None: no TLS.
    """

    host: str
    port: int
    calling: str
    called: str
    connection_timeout: float = 10.0
    acse_timeout: float = 30.0
    dimse_timeout: float = 30.0
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "host": self.host,
            "port": self.port,
            "calling": self.calling,
            "called": self.called,
            "tls": self.tls is not None,
        }


@dataclass(frozen=True)
class Cause:
    """Why there is no association.

    Attributes
    ----------
    name : str
        A word for it.
    kind : str
        What it belongs to: ``"no-connection"``, ``"rejected"``, ``"aborted"``, ``"timeout"`` or ``"tls"``.
    is_transient : bool
        Whether it may be otherwise a little later.
    """

    name: str
    kind: str
    is_transient: bool = False


NO_HOST = Cause("no-host", "no-connection")
REFUSED = Cause("refused", "no-connection", is_transient=True)
UNREACHED = Cause("unreached", "no-connection", is_transient=True)
NO_ROUTE = Cause("no-route", "no-connection", is_transient=True)
NO_CONNECTION = Cause("no-connection", "no-connection", is_transient=True)
NOT_TRUSTED = Cause("not-trusted", "tls")
NO_TLS = Cause("no-tls", "tls")
REJECTED = Cause("rejected", "rejected")
CALLED_TITLE = Cause("called-title", "rejected")
CALLING_TITLE = Cause("calling-title", "rejected")
BUSY = Cause("busy", "rejected", is_transient=True)
NO_CONTEXT = Cause("no-context", "rejected")
NOT_DICOM = Cause("not-dicom", "aborted")
ABORTED = Cause("aborted", "aborted", is_transient=True)
CLOSED = Cause("closed", "aborted", is_transient=True)
CLOSED_TLS = Cause("closed-tls", "aborted", is_transient=True)
NO_ANSWER = Cause("no-answer", "timeout", is_transient=True)


class AssociationError(Exception):
    """There is no association with a peer.

    Parameters
    ----------
    message : str
        What happened.
    cause : Cause
        Which of the causes that is.
    """

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


def request(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    options: TransportOptions | None = None,
    *,
    limit: int | None = None,
    needs_all: bool = True,
    async_window: int | None = None,
    max_pdu: int | None = None,
) -> AssociationMixin:
    """Request an association on the fast transport.

    Parameters
    ----------
    peer : Peer
        With whom.
    contexts : sequence of PresentationContext
        What to propose, 128 at most.
    options : TransportOptions, optional
        How to move bytes. Where they do not say how long a peer may take no data, or take for a PDU, it is the time
        that it has for a response.
    limit : int, optional
        PDUs that we send are no longer than this, even if the peer takes longer ones (PS3.8 D.1, in bytes).
    needs_all : bool
        Whether all contexts have to be accepted. At least one has to.
    async_window : int, optional
        The window to offer (PS3.7 D.3.3.3), in place of that of `options`.
    max_pdu : int, optional
        The maximum length to announce (PS3.8 D.1, in bytes); by default that of `options`, or pynetdicom's.

    Returns
    -------
    Association
        Established.

    Raises
    ------
    AssociationError
        If it does not come about.
    """
    own = {"async_window": async_window}
    if max_pdu is not None:
        own["max_pdu"] = max_pdu
    return _Attempt(peer, limit).associate(
        contexts, needs_all, transport=_patient(options, peer.dimse_timeout), **own
    )


def _patient(options: TransportOptions | None, seconds: float) -> TransportOptions:
    """Return options that do not wait for ever in the middle of a message: there is no network timeout here."""
    from fastpdu.options import options_of

    known = options or options_of()
    return dataclasses.replace(
        known,
        send_timeout=known.send_timeout or seconds,
        pdu_timeout=known.pdu_timeout or seconds,
    )


def announced_limit(assoc: AssociationMixin) -> int | None:
    """Return the maximum length (PS3.8 D.1) that the peer has announced on an association of `request`."""
    ae: Any = assoc.ae
    attempt: _Attempt = ae.attempt
    return attempt.announced


class _Attempt:
    """One association request, and what became of it."""

    def __init__(self, peer: Peer, limit: int | None) -> None:
        self.peer = peer
        self.limit = limit
        self.failure: OSError | None = None  # of the connection
        self.events: set[str] = set()  # of the state machine (PS3.8 9.2)
        self.accepted = False
        self.announced: int | None = None

    def associate(
        self,
        contexts: Sequence[PresentationContext],
        needs_all: bool,
        **own: Any,
    ) -> AssociationMixin:
        """Return the association, established, or raise AssociationError."""
        from pynetdicom import evt

        peer = self.peer
        ae = _ae_class()(peer.calling)
        ae.attempt = self
        ae.connection_timeout = peer.connection_timeout
        ae.acse_timeout = peer.acse_timeout
        ae.dimse_timeout = peer.dimse_timeout
        # Only what we wait for ends an association, not a pause between two requests
        ae.network_timeout = None
        started = time.perf_counter()
        try:
            assoc: AssociationMixin = ae.associate(
                peer.host,
                peer.port,
                contexts=list(contexts),
                ae_title=peer.called,
                tls_args=None if peer.tls is None else (peer.tls, peer.host),
                evt_handlers=[
                    (evt.EVT_FSM_TRANSITION, self._on_transition),
                    (evt.EVT_ACCEPTED, self._on_accepted),
                ],
                **own,
            )
        except OSError as error:
            # The name does not resolve, or the system refuses a socket option
            self.failure = error
            raise self._no_connection() from error
        if not assoc.is_established:
            raise self._why_not(assoc, time.perf_counter() - started)
        missing = assoc.rejected_contexts
        if missing and needs_all:
            assoc.release()
            raise self._no_context(missing)
        return assoc

    def _on_transition(self, event: evt.Event) -> None:
        self.events.add(event.fsm_event)

    def _on_accepted(self, event: evt.Event) -> None:
        from pynetdicom import evt
        from pynetdicom.pdu_primitives import MaximumLengthNotification

        self.accepted = True
        # Who watches the state machine takes the association off the fast road
        event.assoc.unbind(evt.EVT_FSM_TRANSITION, self._on_transition)
        answer: Any = event.assoc.acceptor.primitive
        for item in answer.user_information:
            if isinstance(item, MaximumLengthNotification):
                self.announced = item.maximum_length_received
                if self.limit is not None:
                    most = item.maximum_length_received or self.limit
                    item.maximum_length_received = min(most, self.limit)

    # Why not ----------------------------------------------------------------------------------------------------

    def _why_not(self, assoc: AssociationMixin, waited: float) -> AssociationError:
        peer = self.peer
        # A handler hears of a transition after the primitive that it has brought about
        assoc.dul.wait_dead(1.0)
        if self.failure is not None:
            return self._no_connection()
        if assoc.is_rejected:
            return self._rejected(assoc.acceptor.primitive)
        if self.accepted and not assoc.accepted_contexts:
            return self._no_context(assoc.rejected_contexts)
        if "Evt19" in self.events:
            return AssociationError(
                f"{peer} answered with something that is not DICOM",
                NOT_DICOM,
            )
        if "Evt16" in self.events:
            return AssociationError(f"{peer} aborted the association request", ABORTED)
        if waited >= peer.acse_timeout * 0.99:
            return AssociationError(
                f"{peer} took the connection, and did not answer the association request within "
                f"{peer.acse_timeout:g} s",
                NO_ANSWER,
            )
        return AssociationError(
            f"{peer} closed the connection in place of an answer to the association request",
            # (with TLS 1.3 it is only now that it may refuse our certificate)
            CLOSED if peer.tls is None else CLOSED_TLS,
        )

    def _no_connection(self) -> AssociationError:
        peer, error = self.peer, self.failure
        if isinstance(error, ssl.SSLCertVerificationError):
            return AssociationError(
                f"the certificate of {peer} is not trusted: {error.verify_message}", NOT_TRUSTED
            )
        if isinstance(error, ssl.SSLError):
            return AssociationError(f"no TLS with {peer}: {error}", NO_TLS)
        if peer.tls is not None and isinstance(error, ConnectionResetError):
            # In the handshake: the peer does not want TLS, or its process has just ended
            cause = dataclasses.replace(NO_TLS, is_transient=True)
            return AssociationError(f"no TLS with {peer}: {error}", cause)
        if isinstance(error, socket.gaierror):
            cause = dataclasses.replace(
                NO_HOST, is_transient=error.errno == getattr(socket, "EAI_AGAIN", None)
            )
            return AssociationError(f"there is no host {peer.host!r}: {error.strerror}", cause)
        if isinstance(error, ConnectionRefusedError):
            return AssociationError(f"{peer} refuses the connection", REFUSED)
        if isinstance(error, TimeoutError):
            return AssociationError(
                f"no connection to {peer} within {peer.connection_timeout:g} s", UNREACHED
            )
        no_route = error is not None and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        return AssociationError(
            f"no connection to {peer}: {error}", NO_ROUTE if no_route else NO_CONNECTION
        )

    def _rejected(self, answer: Any) -> AssociationError:
        peer = self.peer
        source, reason = answer.result_source, answer.diagnostic
        text = f"{peer} rejected the association: {answer.reason_str.lower()} (source {source}, reason {reason})"
        cause = REJECTED
        if (source, reason) == (1, 7):
            cause = CALLED_TITLE
        elif (source, reason) == (1, 3):
            cause = CALLING_TITLE
        elif source == 3:
            cause = BUSY
        # PS3.8 9.3.4: 2 is rejected-transient
        if answer.result == 2:
            cause = dataclasses.replace(cause, is_transient=True)
        return AssociationError(text, cause)

    def _no_context(self, missing: Sequence[PresentationContext]) -> AssociationError:
        names = [context.abstract_syntax.name for context in missing if context.abstract_syntax]
        return AssociationError(
            f"{self.peer} accepts the association, but not {', '.join(dict.fromkeys(names))}",
            NO_CONTEXT,
        )


def _ae_class() -> Any:
    """Return an AE that tells an `_Attempt` why there was no connection: pynetdicom only logs it."""
    from pynetdicom.transport import AssociationSocket

    from fastpdu.ae import AE

    class _Socket(AssociationSocket):
        def _shutdown_socket(self) -> None:
            error = sys.exc_info()[1]
            # Called while connect() handles the error
            if isinstance(error, OSError) and not self._is_connected:
                ae: Any = self.assoc.ae
                ae.attempt.failure = error
            super()._shutdown_socket()

    class _AE(AE):
        attempt: _Attempt

        def _create_socket(self, *args: Any, **kwargs: Any) -> AssociationSocket:
            sock = super()._create_socket(*args, **kwargs)
            sock.__class__ = _Socket
            return sock

    return _AE
