"""Association control: room for associations, and an answer to every A-RELEASE request.

pynetdicom counts every connection against `AE.maximum_associations` from its first moment on, until the ACSE timeout if
its peer never asks for an association. Here those that have not asked yet make room, oldest first, for one that has.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import acse as stock
from pynetdicom.pdu_primitives import A_ASSOCIATE

from fastpdu import handler_threads, window
from fastpdu.dul import DULServiceProvider

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation
    from pynetdicom.transport import AssociationSocket

    from fastpdu.association import AssociationMixin

LOGGER = logging.getLogger("fastpdu.acse")

# Connections of one AE that may wait for their A-ASSOCIATE-RQ at the same time; each has two threads
HALF_OPEN = 128
# Seconds to wait for the end of those that make room
PATIENCE = 2.0


class ACSE(stock.ACSE):
    """pynetdicom's ACSE, which makes room before it counts.

    Attributes
    ----------
    release_due : bool
        Whether an A-RELEASE request has been taken from the queue and not been answered. pynetdicom's service classes
        take it from there when it comes during an operation, stop, and leave it at that.
    """

    release_due = False
    _is_requesting = False

    @property
    def socket(self) -> AssociationSocket | None:
        """The association's socket; see pynetdicom."""
        if self._is_requesting and super().socket is not None:
            return cast("AssociationSocket", _Answered(self.dul))
        return super().socket

    def _negotiate_as_requestor(self) -> None:
        self._is_requesting = True
        try:
            super()._negotiate_as_requestor()
        finally:
            self._is_requesting = False

    def is_release_requested(self) -> bool:
        """Return ``True`` if an A-RELEASE request has been received, until it is answered."""
        if super().is_release_requested():
            self.release_due = True
        return self.release_due

    def send_release(self, is_response: bool = False) -> None:
        """Send an A-RELEASE request or response; see pynetdicom."""
        if is_response:
            self.release_due = False
        super().send_release(is_response)

    def _check_async_ops(self) -> AsynchronousOperationsWindowNegotiation | None:
        """Check the user's response to an Asynchronous Operations request; see pynetdicom. Ours may allow some."""
        return window.answer(cast("AssociationMixin", self.assoc), super()._check_async_ops())

    def _negotiate_as_acceptor(self) -> None:
        try:
            make_room(self.assoc.ae)
            super()._negotiate_as_acceptor()
            assoc = cast("AssociationMixin", self.assoc)
            if assoc.is_established:
                assoc._handler_threads = handler_threads.threads_for(assoc)
        except Exception as error:
            # pynetdicom's thread would end here, and leave the peer without an answer
            LOGGER.error("The A-ASSOCIATE-RQ cannot be negotiated, aborting association")
            LOGGER.exception(error)
            self.assoc.abort()


class _Answered:
    """The socket of a requestor, as pynetdicom looks at it before it looks for the answer.

    By then the answer may have come: after an A-ASSOCIATE-RJ the connection is closed, and is not one that failed.
    """

    def __init__(self, dul: Any) -> None:
        self._dul = dul
        self._ready = dul.socket._ready

    @property
    def _is_connected(self) -> bool:
        return bool(self._dul.socket._is_connected) or any(
            isinstance(primitive, A_ASSOCIATE) for primitive in list(self._dul.to_user_queue.queue)
        )


def make_room(ae: ApplicationEntity) -> None:
    """Close as many connections without an A-ASSOCIATE-RQ as are too many for `AE.maximum_associations`.

    None is closed if that does not help: the associations themselves are too many.

    Parameters
    ----------
    ae : pynetdicom.ae.ApplicationEntity
        The acceptors' application entity.
    """
    acceptors, waiting = _acceptors(ae)
    excess = len(acceptors) - ae.maximum_associations
    if 0 < excess <= len(waiting):
        _close(waiting[:excess], "an association needs its place", time.monotonic() + PATIENCE)


def limit_half_open(ae: ApplicationEntity) -> None:
    """Close the oldest connections without an A-ASSOCIATE-RQ if there are more than `HALF_OPEN`.

    Parameters
    ----------
    ae : pynetdicom.ae.ApplicationEntity
        The acceptors' application entity.
    """
    _, waiting = _acceptors(ae)
    if len(waiting) > HALF_OPEN:
        _close(waiting[:-HALF_OPEN], "too many connections like it", time.monotonic())


def close_half_open(ae: ApplicationEntity, why: str) -> None:
    """Close all connections without an A-ASSOCIATE-RQ, and do not wait for their ends.

    Parameters
    ----------
    ae : pynetdicom.ae.ApplicationEntity
        The acceptors' application entity.
    why : str
        For the log.
    """
    _close(_acceptors(ae)[1], why, time.monotonic())


def _acceptors(ae: ApplicationEntity) -> tuple[list[Association], list[Association]]:
    """Return the acceptors of an AE, and those of them that have no A-ASSOCIATE-RQ, in the order of their start."""
    acceptors = [one for one in ae.active_associations if one.is_acceptor]
    return acceptors, [one for one in acceptors if _is_half_open(one)]


def _is_half_open(assoc: Association) -> bool:
    """Whether a connection waits for its A-ASSOCIATE-RQ, or has just ended without one."""
    return isinstance(assoc.dul, DULServiceProvider) and (
        assoc.requestor.primitive is None
        and assoc.dul.state_machine.current_state in ("Sta1", "Sta2")
    )


def _close(associations: list[Association], why: str, deadline: float) -> None:
    """Let ARTIM expire now (PS3.8 9.2.3, AA-2), and wait for the end of the associations until `deadline`."""
    for one in associations:
        if not cast(DULServiceProvider, one.dul).is_over:
            LOGGER.warning(
                "Closing the connection from %s, which has not requested an association: %s",
                one.requestor.address,
                why,
            )
        one.dul.artim_timer.timeout = -1
    for one in associations:
        # (its thread may be about to start)
        if one.is_alive():
            one.join(max(deadline - time.monotonic(), 0))
        if not _is_half_open(one):
            # Its A-ASSOCIATE-RQ came at the last moment. What the timer says may be somebody else's -1
            one.dul.artim_timer.timeout = one.acse_timeout
