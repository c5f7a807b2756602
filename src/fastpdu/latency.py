"""How long single operations took, summed up: `Latencies`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latencies:
    """Latencies of some operations, in seconds. Percentiles are by nearest rank: each is one that was measured.

    Attributes
    ----------
    count : int
        Operations.
    minimum, median, p90, p99, maximum, mean : float
        Seconds.
    """

    count: int
    minimum: float
    median: float
    p90: float
    p99: float
    maximum: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """Sum up what was measured.

        Parameters
        ----------
        seconds : sequence of float
            At least one latency.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not seconds:
            raise ValueError("there must be at least one latency")
        ordered = sorted(seconds)

        def rank(share: float) -> float:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(
            len(ordered),
            ordered[0],
            statistics.median(ordered),
            rank(0.90),
            rank(0.99),
            ordered[-1],
            statistics.fmean(ordered),
        )

    def as_dict(self) -> dict[str, float | int]:
        """Return the figures for JSON, in milliseconds."""
        return {
            "count": self.count,
            "min_ms": milliseconds(self.minimum),
            "median_ms": milliseconds(self.median),
            "p90_ms": milliseconds(self.p90),
            "p99_ms": milliseconds(self.p99),
            "max_ms": milliseconds(self.maximum),
            "mean_ms": milliseconds(self.mean),
        }

    def __str__(self) -> str:
        return (
            f"min {1e3 * self.minimum:.3g} ms, median {1e3 * self.median:.3g} ms, p90 {1e3 * self.p90:.3g} ms, "
            f"p99 {1e3 * self.p99:.3g} ms, max {1e3 * self.maximum:.3g} ms"
        )


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(1e3 * seconds, 3)
