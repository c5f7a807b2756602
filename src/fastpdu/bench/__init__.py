"""Benchmarks: one module for each question that the project answers with figures.

`fastpdu bench` runs them, and so do the scripts in `benchmarks/`.
"""

from __future__ import annotations

#: Name of each benchmark; the module of this package has the same name.
QUESTIONS = (
    "ct1000",
    "disk",
    "small",
    "idle",
    "associations",
    "memory",
    "retrieve",
    "find",
    "large",
    "stall",
    "tls",
    "wan",
)
