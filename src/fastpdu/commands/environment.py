"""The transport's options as the environment has them, for the commands that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastpdu.commands import CommandError

if TYPE_CHECKING:
    from fastpdu.options import TransportOptions


def options() -> TransportOptions:
    """Return the options of the ``FASTPDU_*`` variables.

    Raises
    ------
    CommandError
        If one has a value that cannot be used.
    """
    from fastpdu.options import TransportOptions

    try:
        return TransportOptions.from_environment()
    except ValueError as error:
        raise CommandError(
            f"an environment variable has a value that cannot be used: {error}",
            "unset it, or see docs/tuning.md for the values it can have",
            status=2,
        ) from error
