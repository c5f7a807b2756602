"""The copies of presentation contexts that associations get."""

from __future__ import annotations

import copy
from typing import Any

from pynetdicom import StoragePresentationContexts, build_context
from pynetdicom.presentation import PresentationContext

from fastpdu import AE
from fastpdu.contexts import Contexts


def test_a_copy_is_equal_and_independent() -> None:
    contexts = Contexts(copy.deepcopy(StoragePresentationContexts[:3]))
    contexts[1].scu_role = contexts[1].scp_role = True
    made = copy.deepcopy(contexts)
    assert type(made) is list
    assert made == contexts
    made[0].transfer_syntax = ["1.2.3"]
    made[1].scu_role = False
    made[2].context_id = 5
    del made[2]._transfer_syntax[0]
    assert contexts[0].transfer_syntax == StoragePresentationContexts[0].transfer_syntax
    assert contexts[1].scu_role is True
    assert contexts[2].context_id is None
    assert contexts[2].transfer_syntax == StoragePresentationContexts[2].transfer_syntax


def test_a_class_of_the_users_own() -> None:
    class Own(PresentationContext):
        def __deepcopy__(self, memo: Any) -> Own:
            made = Own()
            made.abstract_syntax = "1.2.3.4"
            return made

    assert copy.deepcopy(Contexts([Own()]))[0].abstract_syntax == "1.2.3.4"


def test_the_contexts_of_an_ae() -> None:
    ae: Any = AE()
    ae.supported_contexts = StoragePresentationContexts[:2]
    ae.add_supported_context("1.2.840.10008.1.1")
    assert isinstance(ae.supported_contexts, list)
    assert len(ae.supported_contexts) == 3
    ae.remove_supported_context("1.2.840.10008.1.1")
    ae.supported_contexts = [build_context("1.2.840.10008.1.1")]
    assert "1.2.840.10008.1.1" in [cx.abstract_syntax for cx in ae.supported_contexts]
