"""Presentation contexts of an acceptor: a copy for each association, made cheaply."""

from __future__ import annotations

import copy
from typing import Any

from pynetdicom.presentation import PresentationContext


class Contexts(list[PresentationContext]):
    """A list of presentation contexts, whose deep copy shares the UIDs in them: nobody can change those.

    pynetdicom makes such a copy for each association that it accepts, on the thread that accepts. With all storage SOP
    classes and transfer syntaxes it takes more than 100 ms.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> list[PresentationContext]:
        return [_copied(context, memo) for context in self]


def _copied(context: PresentationContext, memo: dict[int, Any]) -> PresentationContext:
    if type(context) is not PresentationContext:
        return copy.deepcopy(context, memo)
    made = copy.copy(context)
    made._transfer_syntax = list(context._transfer_syntax)
    return made
