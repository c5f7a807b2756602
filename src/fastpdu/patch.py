"""Switching the fast transport on and off for a whole process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pynetdicom import association as stock_association
from pynetdicom import transport as stock_transport

from fastpdu import compatibility
from fastpdu.association import AssociationMixin, upgrade
from fastpdu.options import (
    TransportOptions,
    checked,
    options_of,
    process_wide,
    set_process_wide,
)
from fastpdu.transport import ServerMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_originals: list[tuple[Any, str, Any]] = []
_MISSING = object()


def install(options: TransportOptions | None = None) -> None:
    """Put every association that this process opens or accepts from now on on the fast transport.

    Calling it again only replaces the options.

    Parameters
    ----------
    options : TransportOptions, optional
        How to move bytes, where an AE has no options of its own (an attribute ``transport``).

    Raises
    ------
    fastpdu.IncompatibleError
        If the installed pynetdicom is not one that fastpdu supports.
    TypeError
        If `options` is not a TransportOptions.
    """
    options = checked(options, "options")
    compatibility.check()
    with _lock:
        first = process_wide() is None
        set_process_wide(options or TransportOptions())
        if first:
            _patch()


def uninstall() -> None:
    """Back to stock: associations from now on use pynetdicom's own transport. Idempotent."""
    with _lock:
        if process_wide() is None:
            return
        set_process_wide(None)
        while _originals:
            owner, name, value = _originals.pop()
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def is_installed() -> bool:
    """Return whether `install` is in force."""
    return process_wide() is not None


@contextmanager
def installed(options: TransportOptions | None = None) -> Iterator[None]:
    """Install the fast transport for the duration of a ``with`` block.

    Parameters
    ----------
    options : TransportOptions, optional
        How to move bytes.
    """
    before = process_wide()
    install(options)
    try:
        yield
    finally:
        if before is None:
            uninstall()
        else:
            install(before)


def _replace(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, owner.__dict__.get(name, _MISSING)))
    setattr(owner, name, value)


def _patch() -> None:
    """Hook the places that everything goes through: making an association, listening, accepting a connection."""
    original_init = stock_association.Association.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        if is_installed() and not isinstance(self, AssociationMixin):
            upgrade(self, options_of(self.ae))

    __init__.__doc__ = original_init.__doc__
    _replace(stock_association.Association, "__init__", __init__)
    for name in ("server_activate", "get_request", "finish_request"):
        _replace(stock_transport.AssociationServer, name, getattr(ServerMixin, name))
