"""Which pynetdicom fastpdu works with."""

from __future__ import annotations

import pynetdicom

# The transport replaces internals of pynetdicom, so each release has to be tested before it is admitted
SUPPORTED = ("3.0.4",)


class IncompatibleError(ImportError):
    """The installed pynetdicom is not one that fastpdu has been tested with."""


def check() -> None:
    """Make sure that the installed pynetdicom is supported.

    Raises
    ------
    IncompatibleError
        If it is not; the message says which versions are.
    """
    if pynetdicom.__version__ not in SUPPORTED:
        raise IncompatibleError(
            f"fastpdu works with pynetdicom {', '.join(SUPPORTED)}, but {pynetdicom.__version__} is installed: "
            f"pip install 'pynetdicom=={SUPPORTED[-1]}', or a fastpdu that supports it"
        )
