"""Errors that a benchmark reports in one sentence instead of a traceback."""

from __future__ import annotations

from fastpdu.commands import CommandError


class BenchError(CommandError):
    """A measurement could not be made, or its result cannot be trusted."""


class LostResponse(BenchError):
    """A request was not answered in time, or its response was lost on this side."""
