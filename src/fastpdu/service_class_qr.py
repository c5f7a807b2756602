"""The services that answer with many responses as SCP: C-FIND, C-GET and C-MOVE.

What is answered, counted and logged is pynetdicom's own code. Here are its handlers' results before it sees them:
a path becomes something that it takes for a data set, and an ordinary match is sent at once.
"""

from __future__ import annotations

import logging
import os
from io import BytesIO
from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import service_class as stock
from pynetdicom._globals import STATUS_PENDING
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.service_class_n import UnifiedProcedureStepServiceClass
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CompositeInstanceRetrieveWithoutBulkDataGet,
    uid_to_service_class,
)

from fastpdu import engine, identifiers
from fastpdu.dimse import send_encoded
from fastpdu.dimse_messages import PROGRESS, Encoded, command_elements, encode_primitive
from fastpdu.dsutils import StoredFile
from fastpdu.service_class import operate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

# That of `Association._serve_request`
LOGGER = logging.getLogger("pynetdicom.association")

_REQUESTS = (C_FIND, C_GET, C_MOVE)
_SERVICES = (stock.QueryRetrieveServiceClass, UnifiedProcedureStepServiceClass)


class ServiceClassMixin(stock.ServiceClass):
    """What one of pynetdicom's service classes does differently here."""

    _finds = False
    # Of a C-FIND: how its matches are sent
    _matches: _Matches | None = None
    # Whether the files of a C-GET have to be decoded
    _removes_bulk_data = False
    # Of a C-GET or C-MOVE: how its responses are sent, as soon as there are results
    _responses: _Responses | None = None
    # What the handler has returned
    _results: Any = None

    def _c_find_scp(self, req: C_FIND, context: PresentationContext) -> None:
        """Serve a C-FIND request; see pynetdicom."""
        self._finds = True
        if not stock.LOGGER.isEnabledFor(logging.INFO):
            self._matches = _Matches(self, req, context)
        super()._c_find_scp(req, context)

    def _get_scp(self, req: C_GET, context: PresentationContext) -> None:
        """Serve a C-GET request; see pynetdicom."""
        self._removes_bulk_data = (
            context.abstract_syntax == CompositeInstanceRetrieveWithoutBulkDataGet
        )
        cast(Any, super())._get_scp(req, context)

    def _wrap_handler(self, handler: Iterator[Any]) -> Iterator[Any]:
        """Wrap a generator handler to catch exceptions; see pynetdicom."""
        self._results = handler
        results = cast("Iterator[Any]", super()._wrap_handler(handler))
        if self._matches is not None:
            return self._matches.send(results)
        if not self._finds:
            self._responses = _Responses(super().dimse, self.statuses)
        return self._with_files(results)

    @property
    def dimse(self) -> Any:
        """The DIMSE service provider; see pynetdicom."""
        return self._responses or super().dimse

    def validate_status(self, status: Any, rsp: Any) -> Any:
        """Validate a handler's status and set that of the response; see pynetdicom."""
        responses = self._responses
        if responses is None:
            return super().validate_status(status, rsp)
        if responses.stay_ordinary(status):
            return responses.pending(status, rsp)
        return super().validate_status(status, responses.primitive(rsp))

    def close_handler(self) -> None:
        """End a generator handler whose results nobody wants any more, at once and not when it is collected."""
        if isinstance(self._results, GeneratorType):
            self._results.close()

    def _with_files(self, results: Iterator[Any]) -> Iterator[Any]:
        """Put what pynetdicom takes for a data set in the place of each path."""
        for result, error in results:
            if error is None and isinstance(result, (tuple, list)) and len(result) == 2:
                status, item = result
                if _is_path(item):
                    yield (status, self._stored(item)), None
                    continue
            yield result, error

    def _stored(self, item: str | os.PathLike[Any]) -> Dataset:
        """Return a file as what pynetdicom can store."""
        try:
            # Once: what it says is the application's code
            path = os.fsdecode(os.fspath(item))
        except Exception as error:
            return StoredFile(repr(item), error)
        if self._removes_bulk_data:
            try:
                return dcmread(path)
            except Exception as error:
                return StoredFile(path, error)
        return StoredFile(path)


def _is_path(item: Any) -> bool:
    """Whether a handler means a file. A text that names none is what it is to pynetdicom: not a data set."""
    if isinstance(item, str):
        found = os.path.isfile(item)
        # (an empty one pynetdicom ignores)
        if not found and item:
            LOGGER.error("Unable to send %r: there is no such file", item)
        return found
    return isinstance(item, os.PathLike)


class _Matches:
    """Sends the ordinary matches of a C-FIND: one response for all, with another identifier each time.

    Parameters
    ----------
    service : ServiceClassMixin
        The service class.
    request : pynetdicom.dimse_primitives.C_FIND
        The request.
    context : pynetdicom.presentation.PresentationContext
        The presentation context that it came under.
    """

    def __init__(self, service: Any, request: C_FIND, context: PresentationContext) -> None:
        self._service = service
        self._context_id = cast(int, context.context_id)
        syntax = context.transfer_syntax[0]
        self._encodes = syntax.is_little_endian and not syntax.is_deflated
        self._implicit = syntax.is_implicit_VR
        response = C_FIND()
        response.MessageID = request.MessageID
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        self._response = response
        self._commands: dict[int, bytes] = {}

    def send(self, results: Iterator[Any]) -> Iterator[Any]:
        """Send matches until there is a result that pynetdicom has to see, and give it that."""
        ordinary = self._encodes
        for result, error in results:
            if ordinary and error is None and type(result) is tuple and len(result) == 2:
                if self._send(*result):
                    continue
                # Comments in a status data set go with all responses that follow
                ordinary = type(result[0]) is int
            yield result, error

    def _send(self, status: Any, match: Any) -> bool:
        service = self._service
        if (
            type(status) is not int
            or service.statuses.get(status, ("",))[0] != STATUS_PENDING
            or not service.assoc.is_established
        ):
            return False
        data = identifiers.encode(match, self._implicit)
        if not data:
            return False
        response = self._response
        response.Status = status
        # All responses with a status have the same command set
        command = self._commands.get(status)
        if command is None:
            response.Identifier = BytesIO(data)
            command = self._commands[status] = encode_primitive(response, self._context_id).command
        dimse = service.dimse
        if not send_encoded(dimse, self._context_id, Encoded(command, data)):
            response.Identifier = BytesIO(data)
            dimse.send_msg(response, self._context_id)
        return True


class _Pending:
    """A response that pynetdicom fills in after each sub-operation: plain attributes, for properties that check."""

    __slots__ = ("Identifier", *PROGRESS.values())

    Identifier: BytesIO | None
    Status: int | None

    def __init__(self) -> None:
        for keyword in self.__slots__:
            setattr(self, keyword, None)


class _Responses:
    """Sends the responses to a C-GET or C-MOVE: the pending ones differ in a few numbers, and are many.

    It stands where pynetdicom wants the DIMSE service provider.

    Parameters
    ----------
    dimse : pynetdicom.dimse.DIMSEServiceProvider
        The association's.
    statuses : dict of int and tuple
        The statuses of the service.
    """

    def __init__(self, dimse: Any, statuses: Any) -> None:
        self._dimse = dimse
        self._statuses = statuses
        self._are_ordinary = True
        self._pending = _Pending()
        # pynetdicom's response, and its command set
        self._response: Any = None
        self._elements: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dimse, name)

    def stay_ordinary(self, status: Any) -> bool:
        """Take note of a status; whether this and all before say that there is more, and nothing else."""
        if type(status) is not int or self._statuses.get(status, ("",))[0] != STATUS_PENDING:
            # Comments in a status data set go with all responses that follow
            self._are_ordinary = False
        return self._are_ordinary

    def pending(self, status: int, response: Any) -> _Pending:
        """Return the response for an ordinary result."""
        if self._response is None:
            self._response = response
            self._elements = command_elements(response)
        self._pending.Status = status
        return self._pending

    def primitive(self, response: Any) -> Any:
        """Return pynetdicom's response, with what it has filled in."""
        if response is not self._pending:
            return response
        for keyword in _Pending.__slots__:
            setattr(self._response, keyword, getattr(response, keyword))
        return self._response

    def send_msg(self, response: Any, context_id: int) -> None:
        """Send a response; see pynetdicom."""
        # (the last one is made from the last pending one)
        if not (
            response is self._pending
            and response.Identifier is None
            and self.stay_ordinary(response.Status)
            and self._send_pending(context_id)
        ):
            self._dimse.send_msg(self.primitive(response), context_id)

    def _send_pending(self, context_id: int) -> bool:
        """Send the pending response without a primitive, if that is possible."""
        elements = self._elements
        for element, keyword in PROGRESS.items():
            elements[element] = getattr(self._pending, keyword)
        try:
            message = Encoded(engine.encode_command(elements))
        except engine.CommandError:
            # More failures than the element can say: pydicom's to refuse
            return False
        return send_encoded(self._dimse, context_id, message)


def serve(assoc: Association, request: Any, context_id: int) -> bool:
    """Serve a C-FIND, C-GET or C-MOVE request like `Association._serve_request` does.

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
    if type(request) not in _REQUESTS or assoc._sent_release or not request.is_valid_request:
        return False
    context = assoc._accepted_cx.get(context_id)
    if context is None:
        return False
    sop_class = request.AffectedSOPClassUID
    # SOP Class Common Extended Negotiation may name another service (PS3.7 D.3.3.6)
    negotiated = assoc.acceptor.accepted_common_extended
    if sop_class in negotiated:
        sop_class = negotiated[sop_class][0]
    service = uid_to_service_class(sop_class)
    if not issubclass(service, _SERVICES):
        return False
    scp: Any = fast_class(service)(assoc)
    operate(assoc, scp.SCP, request, context)
    try:
        scp.close_handler()
    except Exception as error:
        # The operation is over: there is nobody to tell
        LOGGER.exception(error)
    return True


_FAST_CLASSES: dict[type[stock.ServiceClass], type[stock.ServiceClass]] = {}


def fast_class(service: type[stock.ServiceClass]) -> type[stock.ServiceClass]:
    """Return the subclass of a service class that does it our way."""
    if service not in _FAST_CLASSES:
        _FAST_CLASSES[service] = type(
            service.__name__, (ServiceClassMixin, service), {"__module__": service.__module__}
        )
    return _FAST_CLASSES[service]
