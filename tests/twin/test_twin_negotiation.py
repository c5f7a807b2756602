"""What is negotiated, and maximum lengths in both directions."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import data, kit
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

CTX = [(data.CT, data.EXPLICIT), (data.VERIFICATION, data.EXPLICIT)]


@pytest.mark.parametrize("size", [0, 7, 8, 4096, 16382, 1 << 20], ids=lambda size: f"pdu{size}")
@pytest.mark.parametrize("side", ["scu", "scp"])
def test_maximum_length(world: kit.World, side: str, size: int) -> None:
    """Both directions: a store, and C-FIND responses that are larger than a PDU."""
    payload = 600 if size in (7, 8) else 300_000
    got: list[str] = []

    def store(event: evt.Event) -> int:
        got.append(kit.sha(event.request.DataSet.getvalue()))
        return 0

    def find(event: evt.Event) -> Any:
        for number in range(3):
            yield 0xFF00, data.query(PatientID=str(number), PatientComments="c" * payload)
        yield 0x0000, None

    contexts = [*CTX, (data.STUDY_FIND, data.EXPLICIT)]
    other = {"scu": "scp", "scp": "scu"}[side]
    sizes = {side: size, other: 16382}
    server = world.serve(
        contexts,
        [(evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find)],
        attributes={"maximum_pdu_size": sizes["scp"]},
    )
    assoc = world.connect(server, contexts, max_pdu=sizes["scu"])
    acceptor = server.one()
    assert assoc.acceptor.maximum_length == acceptor.acceptor.maximum_length == sizes["scp"]
    assert acceptor.requestor.maximum_length == assoc.requestor.maximum_length == sizes["scu"]
    assert acceptor.dimse.maximum_pdu_size == sizes["scu"]
    assert assoc.dimse.maximum_pdu_size == sizes["scp"]
    with kit.road_delta() as delta:
        image = data.image(1, payload)
        assert assoc.send_c_store(image).Status == 0
        ask = data.query(PatientComments="q" * payload)
        answers = list(assoc.send_c_find(ask, data.STUDY_FIND))
    assert len(got) == 1
    assert [len(answer.PatientComments) for _, answer in answers[:3]] == [payload] * 3
    assert delta["stock_sent"] == delta["stock_received"] == 0


@pytest.mark.parametrize("size", [0, 7, 16382])
def test_fragments_on_the_wire(world: kit.World, size: int) -> None:
    """A recorder at the receiver sees the same PDUs from a fast sender as from a stock one."""

    def scenario(world: kit.World, size: int) -> Any:
        pdus: list[str] = []
        server = world.serve(
            CTX,
            [
                (evt.EVT_C_STORE, lambda event: 0),
                (evt.EVT_DATA_RECV, lambda event: pdus.append(bytes(event.data).hex())),
            ],
            attributes={"maximum_pdu_size": size},
        )
        assoc = world.connect(server, CTX)
        for number in (0, 2, 100, 16376 * 2):
            if size != 7 or number < 1000:
                assert assoc.send_c_store(data.image(1, number)).Status == 0
        assoc.release()
        server.quiet()
        return pdus

    kit.against_oracle(world, scenario, size)


def test_role_selection(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        results = []
        for acceptor_roles in ((True, True), (True, False), (False, True)):
            ae = kit.make_ae(world.scp, "SCP")
            ae.add_supported_context(
                data.CT, data.EXPLICIT, scu_role=acceptor_roles[0], scp_role=acceptor_roles[1]
            )
            server = world.serve([], [(evt.EVT_C_STORE, lambda event: 0)], ae=ae)
            for roles in ((True, True), (True, False), (False, True)):
                assoc = world.connect(
                    server,
                    [(data.CT, data.EXPLICIT)],
                    [(evt.EVT_C_STORE, lambda event: 0)],
                    ext_neg=[build_role(data.CT, scu_role=roles[0], scp_role=roles[1])],
                    established=None,
                )
                found = [(cx.as_scu, cx.as_scp) for cx in assoc.accepted_contexts]
                there = back = None
                if assoc.is_established:
                    there = kit.outcome(lambda: assoc.send_c_store(data.image(1)))
                    acceptor = server.one()
                    back = kit.outcome(lambda: acceptor.send_c_store(data.image(2)))
                    assoc.release()
                    server.quiet()
                results.append((acceptor_roles, roles, found, there, back))
        return results

    results = kit.against_oracle(world, scenario)
    assert any(back == (("Status", "0"),) for *_, back in results)


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_user_identity(world: kit.World, kind: int, accept: bool) -> None:
    def scenario(world: kit.World, kind: int, accept: bool) -> Any:
        seen: list[Any] = []

        def handler(event: evt.Event) -> Any:
            seen.append((event.user_id_type, event.primary_field, event.secondary_field))
            return accept, b"token" * 10

        identity = UserIdentityNegotiation()
        identity.user_identity_type = kind
        identity.primary_field = b"user" * 300
        if kind == 2:
            identity.secondary_field = b"secret"
        identity.positive_response_requested = True
        server = world.serve(CTX, [(evt.EVT_USER_ID, handler), (evt.EVT_C_ECHO, lambda event: 0)])
        assoc = world.connect(server, CTX, ext_neg=[identity], established=accept)
        reply = assoc.acceptor.user_identity
        echo = kit.outcome(assoc.send_c_echo)
        return seen, assoc.is_rejected, reply and reply.server_response, echo

    kit.against_oracle(world, scenario, kind, accept)


def test_extended_negotiation(world: kit.World) -> None:
    def scenario(world: kit.World) -> Any:
        seen: list[Any] = []

        def extended(event: evt.Event) -> Any:
            seen.append(event.app_info)
            return {uid: b"\x01\x00" + info for uid, info in event.app_info.items()}

        def common(event: evt.Event) -> Any:
            seen.append(sorted(event.items))
            return event.items

        def window(event: evt.Event) -> Any:
            seen.append((event.nr_invoked, event.nr_performed))
            return event.nr_invoked, event.nr_performed

        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = UID(data.CT)
        item.service_class_application_information = b"\x02\x01\x00"
        shared = SOPClassCommonExtendedNegotiation()
        shared.sop_class_uid = UID(data.CT)
        shared.service_class_uid = UID("1.2.840.10008.4.2")
        shared.related_general_sop_class_identification = [UID(data.MR)]
        ops = AsynchronousOperationsWindowNegotiation()
        ops.maximum_number_operations_invoked = 5
        ops.maximum_number_operations_performed = 3
        server = world.serve(
            CTX,
            [
                (evt.EVT_SOP_EXTENDED, extended),
                (evt.EVT_SOP_COMMON, common),
                (evt.EVT_ASYNC_OPS, window),
                (evt.EVT_C_ECHO, lambda event: 0),
            ],
        )
        assoc = world.connect(server, CTX, ext_neg=[item, shared, ops])
        acceptor = server.one()
        return (
            seen,
            {str(uid): info for uid, info in assoc.acceptor.sop_class_extended.items()},
            assoc.acceptor.asynchronous_operations,
            acceptor.requestor.asynchronous_operations,
            sorted(map(str, acceptor.requestor.sop_class_common_extended)),
            kit.outcome(assoc.send_c_echo),
        )

    kit.against_oracle(world, scenario)


def test_128_contexts(world: kit.World) -> None:
    """All odd context ids from 1 to 255, each used once."""
    contexts = [(f"1.2.3.{number}", data.EXPLICIT) for number in range(127)]
    contexts.append((data.CT, data.EXPLICIT))
    seen: list[int] = []

    def handler(event: evt.Event) -> int:
        seen.append(event.context.context_id)
        return 0

    server = world.serve(contexts, [(evt.EVT_C_STORE, handler)])
    assoc = world.connect(server, contexts)
    assert [cx.context_id for cx in assoc.accepted_contexts] == list(range(1, 256, 2))
    assert assoc.send_c_store(data.image(1)).Status == 0
    assert seen == [255]


def test_identification(world: kit.World) -> None:
    """AE titles and implementation identification, as configured, at both ends."""

    def scenario(world: kit.World) -> Any:
        server = world.serve(CTX, attributes={"implementation_version_name": "THERE"})
        ae = kit.make_ae(world.scu, "CALLER", implementation_class_uid="1.2.3.4")
        assoc = world.connect(server, CTX, ae=ae, ae_title="CALLED")
        acceptor = server.one()
        return (
            str(acceptor.requestor.implementation_class_uid),
            acceptor.requestor.implementation_version_name,
            str(assoc.acceptor.implementation_class_uid),
            assoc.acceptor.implementation_version_name,
            acceptor.requestor.ae_title,
            assoc.acceptor.ae_title,
            acceptor.requestor.primitive.called_ae_title,
        )

    kit.against_oracle(world, scenario)
