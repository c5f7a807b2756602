"""`fastpdu bench`: what the transport does on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from fastpdu.bench import command


def main(argv: Sequence[str], prog: str) -> int:
    """Run a benchmark."""
    return command.main(argv, prog=prog)
