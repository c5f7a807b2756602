"""Whether somebody is to see each P-DATA PDU of an association, or has replaced what handles them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pynetdicom import _handlers, evt, fsm

if TYPE_CHECKING:
    from fastpdu.dul import DULServiceProvider

_DT_1, _DT_2 = fsm.ACTIONS["DT-1"], fsm.ACTIONS["DT-2"]
_METHODS = frozenset(
    {"_read_pdu_data", "_decode_pdu", "_send", "_is_transport_event", "_process_recv_primitive"}
)
_SOCKET_METHODS = frozenset({"send", "recv", "ready"})
# Any of these handlers sees each PDU
_PDU_EVENTS = (evt.EVT_FSM_TRANSITION, evt.EVT_DATA_RECV, evt.EVT_DATA_SENT)
# ... and these do if they are more than pynetdicom's own, which do nothing for P-DATA
_DEFAULTED_PDU_EVENTS = (
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)


class PduWatch:
    """Looks for watchers of an association's PDUs.

    It is asked for each message, so an answer of "nobody" holds until one of the things changes that it was made
    of: what is bound, replaced objects, and the number of attributes that the objects have.

    Parameters
    ----------
    dul : DULServiceProvider
        The association's service provider.
    """

    __slots__ = ("_actions", "_dul", "_made_of")

    def __init__(self, dul: DULServiceProvider) -> None:
        self._dul = dul
        self._actions = fsm.ACTIONS
        self._made_of: tuple[Any, ...] | None = None

    def is_on(self) -> bool:
        """Return whether somebody is to see each P-DATA PDU, or has replaced what handles them."""
        dul = self._dul
        assoc: Any = dul._assoc
        machine, holder, actions = dul.state_machine, dul.socket, self._actions
        made_of = (
            assoc.bindings,
            machine,
            len(machine.__dict__),
            len(dul.__dict__),
            holder,
            len(holder.__dict__) if holder is not None else 0,
            actions["DT-1"],
            actions["DT-2"],
        )
        if made_of == self._made_of:
            return False
        if self._look():
            self._made_of = None
            return True
        self._made_of = made_of
        return False

    def _look(self) -> bool:
        dul = self._dul
        machine = dul.state_machine
        if type(machine) is not fsm.StateMachine or len(machine.__dict__) > 2:
            return True
        if self._actions["DT-1"] is not _DT_1 or self._actions["DT-2"] is not _DT_2:
            return True
        bound = cast(Any, dul._assoc._handlers).get
        for event in _PDU_EVENTS:
            if bound(event):
                return True
        for event, default in _DEFAULTED_PDU_EVENTS:
            handlers = bound(event)
            if handlers and (len(handlers) > 1 or handlers[0][0] is not default):
                return True
        return not _METHODS.isdisjoint(dul.__dict__) or self.is_on_socket()

    def is_on_socket(self) -> bool:
        """Return whether somebody has replaced what the association's socket does."""
        return not _SOCKET_METHODS.isdisjoint(getattr(self._dul.socket, "__dict__", ()))
