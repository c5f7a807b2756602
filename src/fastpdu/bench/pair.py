"""Both ends of an association in this process, over the transport that a row is about."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

import fastpdu
from fastpdu.bench.errors import BenchError, LostResponse
from fastpdu.bench.series import Instance

__all__ = [
    "DEFAULT_PDU",
    "associate",
    "retrieve",
    "rides_fastpdu",
    "scp",
    "send",
    "send_many",
    "transport",
]

DEFAULT_PDU = 16382
TRANSPORTS = ("fastpdu", "stock")

Handler = Callable[[Any], int]
Contexts = Sequence[tuple[str, str]]


@contextlib.contextmanager
def transport(name: str, options: fastpdu.TransportOptions | None = None) -> Iterator[None]:
    """Choose the transport of the AEs that are made in the `with` block.

    Parameters
    ----------
    name : str
        "fastpdu" or "stock".
    options : TransportOptions, optional
        The options of fastpdu; by default those of the FASTPDU_* environment variables.
    """
    if name == "stock":
        if fastpdu.is_installed():
            raise BenchError(
                "stock pynetdicom cannot be measured while fastpdu is installed",
                "run the benchmark without `fastpdu run` and without fastpdu.install()",
            )
        yield
    else:
        with fastpdu.installed(options or fastpdu.TransportOptions.from_environment()):
            yield


def rides_fastpdu(association: Association) -> bool:
    """Return whether an association really uses the fast transport.

    A row that says "fastpdu" and was measured over stock pynetdicom would be the worst of errors.
    """
    return type(association.dul).__module__.startswith("fastpdu")


@contextlib.contextmanager
def scp(
    handler: Handler | None,
    contexts: Contexts = (),
    *,
    pdu: int = DEFAULT_PDU,
    maximum: int = 10,
    handlers: Sequence[Any] = (),
    destination: Contexts = (),
    roles: bool = False,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Run a storage and verification SCP on a free port.

    Parameters
    ----------
    handler : callable or None
        The EVT_C_STORE handler.
    contexts : sequence of (SOP class, transfer syntax)
        What is accepted beside Verification.
    pdu : int
        The maximum PDU length that is announced.
    maximum : int
        How many associations may be open at once.
    handlers : sequence of (event, handler)
        Other handlers.
    destination : sequence of (SOP class, transfer syntax)
        What is proposed to the destination of a C-MOVE.
    roles : bool
        Whether the requestor may be SCP of the contexts, as C-GET needs it.
    tls : ssl.SSLContext, optional
        Accept TLS connections.

    Yields
    ------
    int
        The port.
    """
    entity = AE(ae_title="BENCH-SCP")
    entity.maximum_pdu_size = pdu
    entity.maximum_associations = maximum
    # Armed as in an application, but not so short that a busy machine ends a slow row.
    entity.network_timeout = 600
    entity.acse_timeout = 120
    entity.dimse_timeout = 120
    entity.add_supported_context(Verification)
    for sop_class, syntax in contexts:
        role = True if roles else None
        entity.add_supported_context(sop_class, syntax, scu_role=role, scp_role=role)
    for sop_class, syntax in destination:
        entity.add_requested_context(sop_class, syntax)
    bound = list(handlers)
    if handler is not None:
        bound.append((evt.EVT_C_STORE, handler))
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=bound, ssl_context=tls)
    if server is None or server.socket is None:
        raise BenchError("the SCP did not start")
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        entity.shutdown()


def associate(
    port: int,
    contexts: Contexts = (),
    *,
    pdu: int = DEFAULT_PDU,
    title: str = "BENCH-SCU",
    called: str = "ANY-SCP",
    fast: bool | None = None,
    handler: Handler | None = None,
    tls: ssl.SSLContext | None = None,
    dimse_timeout: float = 120,
) -> Association:
    """Open an association to an SCP of `scp`.

    Parameters
    ----------
    port : int
        Where it listens.
    contexts : sequence of (SOP class, transfer syntax)
        What is proposed; nothing: Verification.
    pdu : int
        The maximum PDU length that is announced.
    title : str
        The calling AE title.
    called : str
        The called AE title.
    fast : bool, optional
        Make sure that the association uses the fast transport, or that it does not.
    handler : callable, optional
        The EVT_C_STORE handler of a C-GET: the SCP role is asked for.
    tls : ssl.SSLContext, optional
        Connect with TLS; the certificate of the SCP is one for "localhost".
    dimse_timeout : float
        Seconds to wait for a response.

    Returns
    -------
    Association
        It is established.
    """
    entity = AE(ae_title=title)
    entity.network_timeout = 600
    entity.acse_timeout = 120
    entity.dimse_timeout = dimse_timeout
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    if not contexts:
        entity.add_requested_context(Verification)
    roles = {sop_class for sop_class, _ in contexts} if handler is not None else ()
    association = entity.associate(
        "127.0.0.1",
        port,
        ae_title=called,
        max_pdu=pdu,
        ext_neg=[build_role(sop_class, scu_role=True, scp_role=True) for sop_class in roles],
        evt_handlers=[] if handler is None else [(evt.EVT_C_STORE, handler)],
        tls_args=None if tls is None else (tls, "localhost"),
    )
    if not association.is_established:
        raise BenchError("the SCP did not accept the association")
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }
    missing = set(contexts) - accepted
    if missing:
        association.abort()
        raise BenchError(f"the SCP did not accept {sorted(missing)[0]}")
    if fast is not None and rides_fastpdu(association) != fast:
        association.abort()
        wrong, right = ("stock pynetdicom", "fastpdu") if fast else ("fastpdu", "stock pynetdicom")
        raise BenchError(f"the association uses {wrong}, this row is about {right}")
    return association


def send(association: Association, instances: Sequence[Instance]) -> float:
    """Send files one after the other, as a plain application does.

    Parameters
    ----------
    association : Association
        An established association.
    instances : sequence of Instance
        The files.

    Returns
    -------
    float
        The seconds from the first request to the last response.
    """
    paths = [instance.path for instance in instances]
    start = time.perf_counter()
    for path in paths:
        status = association.send_c_store(path)
        if not status or status.Status != 0x0000:
            raise BenchError(f"{path} was not stored: {_describe(status)}")
    return time.perf_counter() - start


def send_many(association: Association, instances: Sequence[Instance], window: int) -> float:
    """Send files with `send_c_store_many`.

    Parameters
    ----------
    association : Association
        An established association over fastpdu.
    instances : sequence of Instance
        The files.
    window : int
        The operations that have to be allowed at a time.

    Returns
    -------
    float
        The seconds from the first request to the last response.
    """
    many: Any = association
    if many.async_window != window:
        raise BenchError(
            f"the SCP agreed to {many.async_window} operations at a time, not {window}"
        )
    paths = [instance.path for instance in instances]
    answered = 0
    start = time.perf_counter()
    for result in many.send_c_store_many(paths):
        if result.error is not None:
            raise result.error
        if result.status.get("Status") != 0x0000:
            raise BenchError(f"{result.item} was not stored: {_describe(result.status)}")
        answered += 1
    elapsed = time.perf_counter() - start
    if answered != len(paths):
        raise BenchError(f"{answered} of {len(paths)} files have a result")
    return elapsed


def _describe(status: Any) -> str:
    return f"status 0x{status.Status:04X}" if status else "no response"


def echo(association: Association, count: int) -> float:
    """Send C-ECHO requests one after the other; return the seconds they took."""
    start = time.perf_counter()
    for _ in range(count):
        status = association.send_c_echo()
        if not status:
            raise LostResponse("a C-ECHO has no response")
        if status.Status != 0x0000:
            raise BenchError(f"C-ECHO failed: {_describe(status)}")
    return time.perf_counter() - start


def retrieve(association: Association, *, moves: bool) -> tuple[float, Dataset]:
    """Retrieve all that the archive has.

    Parameters
    ----------
    association : Association
        An established association with an SCP whose handler knows what to do.
    moves : bool
        C-MOVE; else C-GET.

    Returns
    -------
    float, pydicom.dataset.Dataset
        The seconds from the request to the last response, and its status.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = "1.2.3"
    status = Dataset()
    start = time.perf_counter()
    if moves:
        responses = association.send_c_move(
            identifier, "BENCH-SCP", StudyRootQueryRetrieveInformationModelMove
        )
    else:
        responses = association.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet)
    for status, _ in responses:  # noqa: B007
        pass
    return time.perf_counter() - start, status
