"""Types of command-line values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def row_names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a type that reads some of the known names, separated by commas."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no row {name!r}; there are {', '.join(known)}")
        if not names:
            raise argparse.ArgumentTypeError("no row is named")
        # In the order of the table, each once.
        return [name for name in known if name in names]

    return read
