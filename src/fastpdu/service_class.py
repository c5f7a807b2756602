"""The storage service as SCP, without looking up again what the association knows."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import _config, evt
from pynetdicom import service_class as stock
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import uid_to_service_class

if TYPE_CHECKING:
    from pynetdicom.association import Association

# That of `Association._serve_request`
LOGGER = logging.getLogger("pynetdicom.association")

_STORAGE = stock.StorageServiceClass
_STOCK_SCP = _STORAGE.SCP


def serve_store(assoc: Association, request: Any, context_id: int) -> bool:
    """Serve a C-STORE request like `Association._serve_request` and `StorageServiceClass.SCP` do.

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
    if type(request) is not C_STORE or assoc._sent_release or not request.is_valid_request:
        return False
    context = assoc._accepted_cx.get(context_id)
    if (
        context is None
        or _config.UNRESTRICTED_STORAGE_SERVICE
        or assoc.acceptor.accepted_common_extended
    ):
        return False
    if (
        _service_of(assoc, cast(str, request.AffectedSOPClassUID)) is not _STORAGE
        or _STORAGE.SCP is not _STOCK_SCP
    ):
        return False
    service = _STORAGE(assoc)
    try:
        assoc.dimse.cancel_req = {}
        # In case the handler calls one of the send_* methods
        assoc._is_paused = True
        _serve(service, request, context)
        assoc._is_paused = False
        assoc.dimse.cancel_req = {}
    except Exception as error:
        LOGGER.exception(error)
        assoc.abort()
    return True


def _service_of(assoc: Any, sop_class: str) -> type[stock.ServiceClass]:
    """Return the service class of a SOP class, looked up once for an association."""
    service = assoc._service_cache.get(sop_class)
    if service is None:
        service = assoc._service_cache[sop_class] = uid_to_service_class(sop_class)
    return cast("type[stock.ServiceClass]", service)


def _serve(service: stock.StorageServiceClass, request: Any, context: Any) -> None:
    """`StorageServiceClass.SCP`, with a response that takes over what the request has had checked."""
    assoc, dimse = service.assoc, service.dimse
    response = C_STORE()
    response._message_id = response._message_id_being_responded_to = request._message_id
    response._affected_sop_instance_uid = request._affected_sop_instance_uid
    response._affected_sop_class_uid = request._affected_sop_class_uid
    status: Any = None
    with stock.attempt(response, dimse, context.context_id, assoc) as attempt:
        attempt.error_msg = "Exception in handler bound to 'evt.EVT_C_STORE'"
        attempt.error_status = 0xC211
        try:
            status = evt.trigger(
                assoc, evt.EVT_C_STORE, {"request": request, "context": context.as_tuple}
            )
        finally:
            _remove_file(request)
    # The handler raised, aborted or released
    if not attempt.success or not assoc.is_established:
        return
    dimse.send_msg(service.validate_status(status, response), context.context_id)


def _remove_file(request: Any) -> None:
    """Remove the temporary file of a data set that was received to a file."""
    if request._dataset_file:
        request._dataset_file.close()
        try:
            os.unlink(request._dataset_file.name)
        except OSError:
            # The handler has moved it away, or the platform does not delete files in use
            pass
