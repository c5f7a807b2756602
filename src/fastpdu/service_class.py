"""The storage and verification services as SCP, without looking up again what the association knows."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from pynetdicom import _config, evt
from pynetdicom import service_class as stock
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.sop_class import uid_to_service_class

from fastpdu.dimse import send_encoded
from fastpdu.dimse_messages import encode_echo_response, encode_store_response, store_response
from fastpdu.filestore import Incoming, answered

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContextTuple

    from fastpdu.association import AssociationMixin
    from fastpdu.handler_threads import HandlerThreads

# That of `Association._serve_request`
LOGGER = logging.getLogger("pynetdicom.association")

_STORAGE, _VERIFICATION = stock.StorageServiceClass, stock.VerificationServiceClass
_STOCK_SCP, _STOCK_ECHO = _STORAGE.SCP, _VERIFICATION.SCP
_DEFAULT_ECHO_HANDLER = evt.get_default_handler(evt.EVT_C_ECHO)


def serve(assoc: AssociationMixin, request: Any, context_id: int) -> bool:
    """Serve a C-STORE or C-ECHO request like `Association._serve_request` and pynetdicom's service classes do.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association, on its own thread.
    request : pynetdicom.dimse_primitives.DIMSEPrimitive
        The request.
    context_id : int
        The presentation context ID that it came under.

    Returns
    -------
    bool
        False if pynetdicom's own code has to serve the request; nothing has been done then.
    """
    if type(request) is C_STORE:
        return _serve_store(assoc, request, context_id)
    return type(request) is C_ECHO and _serve_echo(assoc, request, context_id)


def _serve_echo(assoc: AssociationMixin, request: Any, context_id: int) -> bool:
    """Answer a C-ECHO request, if nobody has bound a handler that has to be asked."""
    handlers: Any = assoc._handlers
    return (
        not assoc._sent_release
        and request._message_id is not None
        and request._affected_sop_class_uid is not None
        and handlers.get(evt.EVT_C_ECHO, (None,))[0] is _DEFAULT_ECHO_HANDLER
        and _VERIFICATION.SCP is _STOCK_ECHO
        and _context(assoc, context_id, request._affected_sop_class_uid, _VERIFICATION) is not None
        and assoc.is_established
        and send_encoded(assoc.dimse, context_id, encode_echo_response(request))
    )


def _serve_store(assoc: AssociationMixin, request: Any, context_id: int) -> bool:
    context = _store_context(assoc, request, context_id)
    if context is None:
        return False
    operate(assoc, _store, assoc, assoc.dimse, request, context)
    answered(request)
    return True


def _store_context(
    assoc: AssociationMixin, request: Any, context_id: int
) -> PresentationContextTuple | None:
    """Return the context of a C-STORE request, None if pynetdicom's own code has to serve it."""
    if (
        assoc._sent_release
        or not is_store_request(request)
        or _config.UNRESTRICTED_STORAGE_SERVICE
        or _STORAGE.SCP is not _STOCK_SCP
    ):
        return None
    return _context(assoc, context_id, request._affected_sop_class_uid, _STORAGE)


def serve_beside(
    assoc: AssociationMixin, threads: HandlerThreads, request: Any, context_id: int
) -> bool:
    """Have a C-STORE request served on another thread; before any other than a C-ECHO, wait for those.

    Parameters
    ----------
    assoc : AssociationMixin
        The association, on its own thread.
    threads : HandlerThreads
        Its handlers' threads.
    request : pynetdicom.dimse_primitives.DIMSEPrimitive
        The request.
    context_id : int
        The presentation context ID that it came under.

    Returns
    -------
    bool
        False if the association's thread has to serve the request.
    """
    if type(request) is C_STORE:
        context = _store_context(assoc, request, context_id)
        if context is not None:
            # While it waits for a thread, handlers may use the association
            assoc._is_paused = True
            threads.run(_store_beside, assoc, request, context)
            assoc.resume_reactor()
            return True
    if type(request) is not C_ECHO:
        assoc.settle_handlers()
    return False


def _store_beside(assoc: AssociationMixin, request: Any, context: PresentationContextTuple) -> None:
    """Do what `operate` does for one of several requests: the association is not its own."""
    if not assoc.is_established:
        # It ended while the request waited for a thread
        if request._dataset_file:
            _remove_file(request._dataset_file)
        return
    with assoc._serving:
        try:
            _store(assoc, assoc.dimse, request, context)
        except Exception as error:
            LOGGER.exception(error)
            assoc.abort()
    answered(request)


def operate(assoc: Association, scp: Callable[..., None], *args: Any) -> None:
    """Run a service as SCP with what `Association._serve_request` does before and after.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association, on its own thread.
    scp : callable
        Serves the request.
    *args
        Its arguments.
    """
    try:
        assoc.dimse.cancel_req = {}
        # In case the handler calls one of the send_* methods, as a C-GET does
        assoc._is_paused = True
        scp(*args)
        assoc._is_paused = False
        assoc.dimse.cancel_req = {}
    except Exception as error:
        LOGGER.exception(error)
        assoc.abort()


def is_store_request(request: Any) -> bool:
    """`C_STORE.is_valid_request`, without the properties."""
    return (
        request._message_id is not None
        and request._affected_sop_class_uid is not None
        and request._affected_sop_instance_uid is not None
        and request._priority is not None
        and request._dataset is not None
    )


def _context(
    assoc: AssociationMixin, context_id: int, sop_class: Any, service: type[stock.ServiceClass]
) -> PresentationContextTuple | None:
    """Return the context of a request for a service, None if it is for another one or there is none."""
    known = assoc._service_contexts.get((context_id, sop_class, service))
    context = assoc._accepted_cx.get(context_id)
    if known is not None and known[0] is context:
        return known[1]
    if (
        context is None
        or assoc.acceptor.accepted_common_extended
        or uid_to_service_class(sop_class) is not service
    ):
        return None
    assoc._service_contexts[context_id, sop_class, service] = (context, context.as_tuple)
    return context.as_tuple


def _store(assoc: Any, dimse: Any, request: Any, context: PresentationContextTuple) -> None:
    """`StorageServiceClass.SCP`, with a response that takes over what the request has had checked."""
    context_id = context.context_id
    response = store_response(request)
    # What pynetdicom's `attempt` does
    assoc.abort = assoc._abort_nonblocking
    status: Any
    try:
        try:
            status = evt.trigger(assoc, evt.EVT_C_STORE, {"request": request, "context": context})
        finally:
            if request._dataset_file:
                _remove_file(request._dataset_file)
    except BaseException as error:
        assoc.abort = assoc._abort_blocking
        stock.LOGGER.error("Exception in handler bound to 'evt.EVT_C_STORE'")
        stock.LOGGER.exception(error)
        response.Status = 0xC211
        dimse.send_msg(response, context_id)
        return
    assoc.abort = assoc._abort_blocking
    if not assoc.is_established:
        # The handler has aborted or released it
        return
    encoded = encode_store_response(request, status)
    if encoded is not None and send_encoded(dimse, context_id, encoded):
        return
    dimse.send_msg(_STORAGE(assoc).validate_status(status, response), context_id)


def _remove_file(file: Any) -> None:
    """Remove the temporary file of a data set that was received to a file."""
    file.close()
    if isinstance(file, Incoming):
        return
    try:
        os.unlink(file.name)
    except OSError:
        # The handler has moved it away, or the platform does not delete files in use
        pass
