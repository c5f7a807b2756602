"""The application entity whose associations use the fast transport."""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import ae as stock
from pynetdicom import transport as stock_transport

from fastpdu import compatibility, window
from fastpdu.association import upgrade
from fastpdu.contexts import Contexts
from fastpdu.options import TransportOptions, checked, options_of
from fastpdu.transport import ServerMixin

# The options that a call has for the association, or the server, that it is about to make
_for_association: ContextVar[TransportOptions | None] = ContextVar("_for_association", default=None)
_for_server: ContextVar[TransportOptions | None] = ContextVar("_for_server", default=None)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ssl import SSLContext

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext
    from pynetdicom.transport import AddressInformation, AssociationSocket


class AE(stock.ApplicationEntity):
    """pynetdicom's `AE`, with every association on the fast transport. Nothing is patched.

    Parameters
    ----------
    ae_title : str, optional
        The AE title, by default ``"PYNETDICOM"``.
    transport : TransportOptions, optional
        How its associations move bytes, by default as `fastpdu.install` was told, if it was called.
    async_window : int, optional
        The asynchronous operations window, in place of that of `transport`; see `TransportOptions`.
    async_window_excluded : iterable of str, optional
        AE titles of peers to which no window is offered, nor granted.
    handler_threads : int, optional
        Handlers of one association that may run at the same time, in place of those of `transport`; see
        `TransportOptions`.

    Raises
    ------
    fastpdu.IncompatibleError
        If the installed pynetdicom is not one that fastpdu supports.
    TypeError, ValueError
        If an argument is not what it is to be; the message names it.
    """

    def __init__(
        self,
        ae_title: str = "PYNETDICOM",
        *,
        transport: TransportOptions | None = None,
        async_window: int | None = None,
        async_window_excluded: Iterable[str] | None = None,
        handler_threads: int | None = None,
    ) -> None:
        compatibility.check()
        self._transport = checked(transport)
        # Options that have arguments of their own, where these were given
        self._own: dict[str, Any] = {}
        self.async_window = async_window
        self.handler_threads = handler_threads
        self.async_window_excluded = async_window_excluded
        super().__init__(ae_title)

    @property
    def transport(self) -> TransportOptions:
        """How associations from now on move bytes; None leaves that to `fastpdu.install` and the defaults."""
        return _with(self._transport or options_of(), self._own)

    @transport.setter
    def transport(self, value: TransportOptions | None) -> None:
        self._transport = checked(value)

    @property
    def async_window(self) -> int | None:
        """The asynchronous operations window of associations from now on; None leaves that to `transport`."""
        return self._own.get("async_window")

    @async_window.setter
    def async_window(self, value: int | None) -> None:
        self._own = _chosen(self._own, async_window=value)

    @property
    def handler_threads(self) -> int | None:
        """Handlers that may run at the same time, for associations from now on; None leaves that to `transport`."""
        return self._own.get("handler_threads")

    @handler_threads.setter
    def handler_threads(self, value: int | None) -> None:
        self._own = _chosen(self._own, handler_threads=value)

    @property
    def async_window_excluded(self) -> frozenset[str]:
        """AE titles of peers to which no window is offered, nor granted; any iterable of them may be set."""
        return self._async_window_excluded

    @async_window_excluded.setter
    def async_window_excluded(self, value: Iterable[str] | None) -> None:
        self._async_window_excluded = window.excluded_titles(value)

    @property
    def supported_contexts(self) -> list[PresentationContext]:
        """The presentation contexts of an acceptor; see pynetdicom."""
        return Contexts(super().supported_contexts)

    @supported_contexts.setter
    def supported_contexts(self, contexts: list[PresentationContext]) -> None:
        stock.ApplicationEntity.supported_contexts.fset(self, contexts)  # type: ignore[attr-defined]

    def associate(
        self,
        *args: Any,
        transport: TransportOptions | None = None,
        async_window: int | None = None,
        **kwargs: Any,
    ) -> Association:
        """Request an association with a remote AE; see pynetdicom.

        Parameters
        ----------
        *args, **kwargs
            As for pynetdicom's ``AE.associate``.
        transport : TransportOptions, optional
            How this association moves bytes, in place of `AE.transport`.
        async_window : int, optional
            The window that is offered, in place of `AE.async_window` and that of `transport`; 1: none.

        Raises
        ------
        OSError
            If the system refuses one of the options; the message names it.
        """
        token = _for_association.set(self._options(transport, async_window=async_window))
        try:
            return super().associate(*args, **kwargs)
        finally:
            _for_association.reset(token)

    def _options(self, transport: TransportOptions | None, **own: Any) -> TransportOptions | None:
        """Return the options of a call, None if it has none."""
        options, own = checked(transport), _chosen({}, **own)
        return _with(options or self.transport, own) if own else options

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[SSLContext, str] | None,
    ) -> AssociationSocket:
        # The first thing that is done with a requestor's association
        upgrade(assoc, _for_association.get() or self.transport)
        return super()._create_socket(assoc, address, tls_args)

    def start_server(
        self,
        *args: Any,
        transport: TransportOptions | None = None,
        async_window: int | None = None,
        handler_threads: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start the AE as an association acceptor; see pynetdicom.

        Parameters
        ----------
        *args, **kwargs
            As for pynetdicom's ``AE.start_server``.
        transport : TransportOptions, optional
            How the associations of this server move bytes, in place of `AE.transport`.
        async_window, handler_threads : int, optional
            Those of this server, in place of `AE.async_window`, `AE.handler_threads` and those of `transport`.

        Raises
        ------
        OSError
            If the system refuses one of the options; the message names it.
        """
        token = _for_server.set(
            self._options(transport, async_window=async_window, handler_threads=handler_threads)
        )
        try:
            return super().start_server(*args, **kwargs)
        finally:
            _for_server.reset(token)

    def make_server(
        self,
        address: Any,
        *args: Any,
        transport: TransportOptions | None = None,
        async_window: int | None = None,
        handler_threads: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return an association server; see pynetdicom. Its associations use the fast transport.

        Parameters
        ----------
        address, *args, **kwargs
            As for pynetdicom's ``AE.make_server``.
        transport : TransportOptions, optional
            How the associations of this server move bytes, in place of `AE.transport`.
        async_window, handler_threads : int, optional
            Those of this server, in place of `AE.async_window`, `AE.handler_threads` and those of `transport`.

        Raises
        ------
        OSError
            If the system refuses one of the options; the message names it.
        """
        # Arguments 5 and 6 of pynetdicom's method
        names = ("ae_title", "contexts", "ssl_context", "evt_handlers", "server_class")
        kwargs.update(zip(names, args, strict=False))
        options = (
            self._options(transport, async_window=async_window, handler_threads=handler_threads)
            or _for_server.get()
        )
        # A server that blocks goes on inside the call: not for what its handlers do
        _for_server.set(None)
        kwargs["server_class"] = fast_server(
            kwargs.get("server_class") or stock_transport.AssociationServer, options
        )
        server = super().make_server(address, **kwargs)
        server.RequestHandlerClass = fast_request_handler(cast(Any, server.RequestHandlerClass))
        return server


def _chosen(known: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the known choices with others in their place; None is no choice. They are checked."""
    chosen = {name: value for name, value in {**known, **options}.items() if value is not None}
    TransportOptions(**chosen)
    return chosen


def _with(options: TransportOptions, own: dict[str, Any]) -> TransportOptions:
    """Return options with some replaced."""
    return dataclasses.replace(options, **own) if own else options


def fast_server(server: type, options: TransportOptions | None = None) -> type:
    """Return a subclass of a server class that does not wait for TLS handshakes while it accepts.

    Parameters
    ----------
    server : type
        The server class.
    options : TransportOptions, optional
        The options of the server. They are needed before its ``__init__`` is done, whose arguments are its own.
    """
    if issubclass(server, ServerMixin):
        fast = server
    elif issubclass(ServerMixin, server):
        fast = ServerMixin
    else:
        # Behind the server in the order of resolution: what it overrides comes first
        fast = type(server.__name__, (server, ServerMixin), {"__module__": server.__module__})
    if options is None:
        return fast
    return type(fast.__name__, (fast,), {"__module__": fast.__module__, "transport": options})


def fast_request_handler(handler: Any) -> Any:
    """Return a subclass of a request handler class that puts its association on the fast transport."""
    if not hasattr(handler, "_create_association"):
        # Not pynetdicom's: it has its own way of making associations
        return handler

    class FastRequestHandler(handler):  # type: ignore[misc]
        def _create_association(self) -> Association:
            assoc = cast("Association", super()._create_association())
            upgrade(assoc, options_of(self.server, self.ae))
            return assoc

    FastRequestHandler.__name__ = handler.__name__
    return FastRequestHandler
