"""The asynchronous operations window: how many operations may be outstanding at a time (PS3.7 D.3.3.3).

Both numbers of the item are the requestor's in either direction: *Invoked* is what the requestor may invoke and the
acceptor performs, *Performed* the other way round. The acceptor may only lower them. No item means one at a time,
0 no limit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pynetdicom.association import ServiceUser

    from fastpdu.association import AssociationMixin

LOGGER = logging.getLogger("fastpdu.window")

# Without negotiation, one operation at a time
SYNCHRONOUS = 1
# Operations in flight where the standard knows no limit (0)
UNLIMITED = 256
# The largest number that the item has room for
MOST = 65535


def offer(assoc: AssociationMixin) -> None:
    """Offer the window of the association's options, as requestor and before the negotiation.

    None is offered to a peer that is excluded, nor if the user has offered one (``associate(ext_neg=...)``).

    Parameters
    ----------
    assoc : AssociationMixin
        The association.
    """
    window = assoc._transport_options.async_window
    local = assoc.requestor
    if (
        window is not None
        and window > SYNCHRONOUS
        and _item_of(local) is None
        and not _is_excluded(assoc, assoc.acceptor.ae_title)
    ):
        # We perform nothing that the peer could invoke more than one of
        local.add_negotiation_item(_item(window, SYNCHRONOUS))


def answer(
    assoc: AssociationMixin, item: AsynchronousOperationsWindowNegotiation | None
) -> AsynchronousOperationsWindowNegotiation | None:
    """Answer a window that the requestor has offered.

    Parameters
    ----------
    assoc : AssociationMixin
        The association, as acceptor and before its answer.
    item : AsynchronousOperationsWindowNegotiation or None
        What pynetdicom would answer: it supports none.

    Returns
    -------
    AsynchronousOperationsWindowNegotiation or None
        The answer; `item` if the options do not allow a window, or not for this peer.
    """
    window = assoc._transport_options.async_window
    if (
        window is None
        or window <= SYNCHRONOUS
        or _is_excluded(assoc, assoc.requestor.primitive.calling_ae_title)  # type: ignore[union-attr]
    ):
        return item
    invoked, performed = assoc.requestor.asynchronous_operations
    return _item(_lower(invoked, window), _lower(performed, window))


def invoked(assoc: AssociationMixin) -> int:
    """Return how many operations we may have outstanding, 1 if nothing was negotiated."""
    return _negotiated(assoc, not assoc.is_requestor)


def performed(assoc: AssociationMixin) -> int:
    """Return how many operations the peer may have outstanding, 1 if nothing was negotiated."""
    return _negotiated(assoc, assoc.is_requestor)


def excluded_titles(titles: Iterable[str] | None) -> frozenset[str]:
    """Return AE titles as they are compared.

    Parameters
    ----------
    titles : iterable of str or None
        The titles; leading and trailing spaces have no meaning.

    Raises
    ------
    TypeError
        If it is a single str, or has something else in it.
    """
    if isinstance(titles, (str, bytes)):
        raise TypeError(f"async_window_excluded must be a set of AE titles, not {titles!r}")
    found = frozenset(titles or ())
    for title in found:
        if not isinstance(title, str):
            raise TypeError(f"async_window_excluded must hold AE titles (str), not {title!r}")
    return frozenset(title.strip() for title in found)


def _negotiated(assoc: AssociationMixin, second: bool) -> int:
    """Return one of the two negotiated numbers: *Performed* if `second`."""
    offered, accepted = _item_of(assoc.requestor), _item_of(assoc.acceptor)
    if offered is None or accepted is None or assoc.acceptor.writeable:
        return SYNCHRONOUS
    numbers = _numbers(offered), _numbers(accepted)
    # An acceptor must not raise them; one that does is not believed
    lowest = _lower(numbers[0][second], numbers[1][second])
    return min(lowest or UNLIMITED, MOST)


def _is_excluded(assoc: AssociationMixin, title: str | None) -> bool:
    # (pynetdicom's own AE may have anything there)
    excluded = excluded_titles(getattr(assoc.ae, "async_window_excluded", None))
    return (title or "").strip() in excluded


def _item(invoked: int, performed: int) -> AsynchronousOperationsWindowNegotiation:
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = invoked
    item.maximum_number_operations_performed = performed
    return item


def _item_of(user: ServiceUser) -> AsynchronousOperationsWindowNegotiation | None:
    """Return the item that a side has sent, or is to send; `ServiceUser.asynchronous_operations` cannot say that."""
    items: Any = (
        user._ext_neg[AsynchronousOperationsWindowNegotiation]
        if user.writeable
        else user.user_information
    )
    for item in items:
        if isinstance(item, AsynchronousOperationsWindowNegotiation):
            return item
    return None


def _numbers(item: AsynchronousOperationsWindowNegotiation) -> tuple[int, int]:
    return item.maximum_number_operations_invoked, item.maximum_number_operations_performed


def _lower(one: int, other: int) -> int:
    """Return the lower of two numbers of operations, of which 0 is the highest."""
    return min(one, other) if one and other else one or other
