"""The application entity whose associations use the fast transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pynetdicom import ae as stock
from pynetdicom import transport as stock_transport

from fastpdu import compatibility
from fastpdu.association import upgrade
from fastpdu.options import TransportOptions
from fastpdu.transport import ServerMixin

if TYPE_CHECKING:
    from ssl import SSLContext

    from pynetdicom.association import Association
    from pynetdicom.transport import AddressInformation, AssociationSocket


class AE(stock.ApplicationEntity):
    """pynetdicom's `AE`, with every association on the fast transport. Nothing is patched.

    Parameters
    ----------
    ae_title : str, optional
        The AE title, by default ``"PYNETDICOM"``.
    transport : TransportOptions, optional
        How its associations move bytes.

    Raises
    ------
    fastpdu.IncompatibleError
        If the installed pynetdicom is not one that fastpdu supports.
    TypeError
        If `transport` is not a TransportOptions.
    """

    def __init__(
        self, ae_title: str = "PYNETDICOM", *, transport: TransportOptions | None = None
    ) -> None:
        compatibility.check()
        if transport is not None and not isinstance(transport, TransportOptions):
            raise TypeError(f"transport must be a TransportOptions, not {type(transport).__name__}")
        super().__init__(ae_title)
        self.transport = transport or TransportOptions()

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[SSLContext, str] | None,
    ) -> AssociationSocket:
        # The first thing that is done with a requestor's association
        upgrade(assoc, self.transport)
        return super()._create_socket(assoc, address, tls_args)

    def make_server(self, address: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an association server; see pynetdicom. Its associations use the fast transport."""
        # Arguments 5 and 6 of pynetdicom's method
        names = ("ae_title", "contexts", "ssl_context", "evt_handlers", "server_class")
        kwargs.update(zip(names, args, strict=False))
        kwargs["server_class"] = fast_server(
            kwargs.get("server_class") or stock_transport.AssociationServer
        )
        server = super().make_server(address, **kwargs)
        server.RequestHandlerClass = fast_request_handler(cast(Any, server.RequestHandlerClass))
        return server


def fast_server(server: type) -> type:
    """Return a subclass of a server class that does not wait for TLS handshakes while it accepts."""
    if issubclass(server, ServerMixin):
        return server
    if issubclass(ServerMixin, server):
        return ServerMixin
    # Behind the server in the order of resolution: what it overrides comes first
    return type(server.__name__, (server, ServerMixin), {"__module__": server.__module__})


def fast_request_handler(handler: Any) -> Any:
    """Return a subclass of a request handler class that puts its association on the fast transport."""
    if not hasattr(handler, "_create_association"):
        # Not pynetdicom's: it has its own way of making associations
        return handler

    class FastRequestHandler(handler):  # type: ignore[misc]
        def _create_association(self) -> Association:
            assoc = cast("Association", super()._create_association())
            upgrade(assoc, getattr(self.ae, "transport", TransportOptions()))
            return assoc

    FastRequestHandler.__name__ = handler.__name__
    return FastRequestHandler
