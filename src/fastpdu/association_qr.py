"""The responses to C-FIND, C-GET and C-MOVE as SCU: the pending ones, read without pydicom's detours.

What ends an operation, and everything unusual, goes to pynetdicom's own generators.
"""

from __future__ import annotations

import logging
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.association import LOGGER
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode, pretty_dataset
from pynetdicom.sop_class import RepositoryQuery  # type: ignore[attr-defined]
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from fastpdu import dsutils, identifiers
from fastpdu.dimse import DIMSEServiceProvider, send_encoded
from fastpdu.dimse_messages import (
    C_FIND_RSP,
    C_GET_RSP,
    C_MOVE_RSP,
    STATUS,
    Pending,
    encode_store_response,
    store_response,
)
from fastpdu.service_class import is_store_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.uid import UID
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContextTuple

    from fastpdu.association import AssociationMixin

# pynetdicom's decoder tells it what it does
_DECODING_LOGGER = logging.getLogger("pynetdicom.dsutils")
_MATCHES = frozenset({C_FIND_RSP})
_SUB_OPERATIONS = frozenset({C_GET_RSP, C_MOVE_RSP})


def pending_matches(
    assoc: Association, transfer_syntax: UID, query_model: UID
) -> Iterator[tuple[Dataset, Dataset | None]]:
    """Wrap the pending responses to a C-FIND request like `Association._wrap_find_responses`.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association.
    transfer_syntax : pydicom.uid.UID
        That of the identifiers.
    query_model : pydicom.uid.UID
        The request's SOP class.

    Yields
    ------
    tuple of (pydicom.dataset.Dataset, pydicom.dataset.Dataset or None)
        Status and identifier. At the end the next message is one that pynetdicom's own code has to deal with.
    """
    dimse = assoc.dimse
    if query_model == RepositoryQuery or not isinstance(dimse, DIMSEServiceProvider):
        return
    implicit = transfer_syntax.is_implicit_VR
    little = transfer_syntax.is_little_endian
    deflated = transfer_syntax.is_deflated
    decodes = little and not deflated and not _DECODING_LOGGER.isEnabledFor(logging.DEBUG)
    # At that level the responses are numbered
    while not LOGGER.isEnabledFor(logging.INFO):
        item = dimse.get_pending(_MATCHES, progress=False)
        response = item[1]
        if type(response) is not Pending:
            dimse.put_back(item)
            return
        # Numbers of sub-operations are no part of it, should there be any
        status = dsutils.status_dataset(response.numbers[STATUS])
        identifier = None
        with assoc.lock:
            try:
                if decodes:
                    identifier = identifiers.decode(response.identifier, implicit)
                if identifier is None:
                    identifier = decode(BytesIO(response.identifier), implicit, little, deflated)
                    if identifier and _config.LOG_RESPONSE_IDENTIFIERS:
                        # Not logged, but this is where pynetdicom sees values that cannot be converted
                        list(pretty_dataset(identifier))
            except Exception as error:
                LOGGER.error("Failed to decode the received Identifier dataset")
                LOGGER.exception(error)
                # As pynetdicom does, which yields it once more
                yield status, None
        yield status, identifier


def pending_sub_operations(assoc: Association) -> Iterator[tuple[Dataset, None]]:
    """Serve the sub-operations of a C-GET or C-MOVE request, and wrap its pending responses.

    Like `Association._wrap_get_move_responses`.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association.

    Yields
    ------
    tuple of (pydicom.dataset.Dataset, None)
        The status. At the end the next message is one that pynetdicom's own code has to deal with.
    """
    dimse = assoc.dimse
    if not isinstance(dimse, DIMSEServiceProvider):
        return
    while not LOGGER.isEnabledFor(logging.INFO):
        item = dimse.get_pending(_SUB_OPERATIONS, progress=True)
        message = item[1]
        if type(message) is C_STORE:
            assoc._c_store_scp(message)
        elif type(message) is Pending:
            yield dsutils.pending_dataset(message.numbers), None
        else:
            dimse.put_back(item)
            return


def serve_sub_operation(assoc: AssociationMixin, request: Any) -> bool:
    """Serve a C-STORE request of a C-GET's peer like `Association._c_store_scp`.

    Parameters
    ----------
    assoc : pynetdicom.association.Association
        The association, on the thread that waits for the C-GET's responses.
    request : pynetdicom.dimse_primitives.C_STORE
        The request.

    Returns
    -------
    bool
        False if pynetdicom's own code has to serve the request; nothing has been done then.
    """
    context = _store_context(assoc, request)
    if context is None:
        return False
    context_id = context.context_id
    response = store_response(request)
    try:
        status = evt.trigger(assoc, evt.EVT_C_STORE, {"request": request, "context": context})
    except Exception as error:
        LOGGER.error("Exception in the handler bound to 'evt.EVT_C_STORE'")
        LOGGER.exception(error)
        response.Status = 0xC211
    else:
        encoded = encode_store_response(request, status)
        if encoded is not None and send_encoded(assoc.dimse, context_id, encoded):
            return True
        _set_status(response, status)
    assoc.dimse.send_msg(response, context_id)
    return True


def _store_context(assoc: AssociationMixin, request: Any) -> PresentationContextTuple | None:
    """Return the context of a C-STORE sub-operation, None if pynetdicom's own code has to serve it."""
    if not is_store_request(request):
        return None
    context_id, sop_class = request._context_id, request._affected_sop_class_uid
    context = assoc._accepted_cx.get(context_id)
    # (the association is the requestor: as acceptor it has others here)
    known = assoc._service_contexts.get((context_id, sop_class, None))
    if known is not None and known[0] is context:
        return known[1]
    if context is None or context.as_scp is not True or context.abstract_syntax != sop_class:
        return None
    assoc._service_contexts[context_id, sop_class, None] = (context, context.as_tuple)
    return context.as_tuple


def _set_status(response: Any, status: Any) -> None:
    """Take over what a handler has returned, with pynetdicom's words about what is wrong with it."""
    if isinstance(status, Dataset):
        if "Status" in status:
            for element in status:
                if hasattr(response, element.keyword):
                    setattr(response, element.keyword, element.value)
                else:
                    LOGGER.warning(
                        "Status dataset returned from the EVT_C_STORE handler contained an unsupported element "
                        f"'{element.keyword}'"
                    )
        else:
            LOGGER.error("The EVT_C_STORE handler returned a Dataset without a 'Status' element")
            response.Status = 0xC001
    elif isinstance(status, int):
        response.Status = status
    else:
        LOGGER.error("Invalid status returned by the EVT_C_STORE handler")
        response.Status = 0xC002
    if response.Status not in STORAGE_SERVICE_CLASS_STATUS:
        LOGGER.warning(
            f"Unknown status value returned by the EVT_C_STORE handler: 0x{response.Status:04X}"
        )
