"""Curves: what one figure becomes as something grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Curve", "Curves"]

_COLORS = ("#0b6e99", "#4aa5c9", "#6b7680", "#b8c1c8")


@dataclass(frozen=True)
class Curve:
    """One of several curves.

    Attributes
    ----------
    label : str
        What it is.
    points : sequence of (float, float)
        The points, in order.
    dashed : bool
        It is what the others are compared with.
    """

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Curves:
    """A chart of curves over a linear axis; the figure's axis is logarithmic.

    Attributes
    ----------
    name : str
        Of the file, without the date.
    title : str
        Above the chart.
    curves : sequence of Curve
        In the order of the legend.
    x_title, y_title : str
        What the axes are.
    """

    name: str
    title: str
    curves: Sequence[Curve]
    x_title: str
    y_title: str

    def draw(self, path: Path, footer: str = "") -> None:
        """Draw the chart into a PNG file.

        Parameters
        ----------
        path : Path
            Where.
        footer : str
            One line below: where the figures come from.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter

        figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_yscale("log")
        for index, curve in enumerate(self.curves):
            x, y = zip(*curve.points, strict=True)
            axes.plot(
                x,
                y,
                label=curve.label,
                color="#202020" if curve.dashed else _COLORS[index % len(_COLORS)],
                linestyle="--" if curve.dashed else "-",
                linewidth=1.5 if curve.dashed else 2,
                marker="" if curve.dashed else "o",
                zorder=4 if curve.dashed else 3,
            )
            axes.annotate(
                f"{y[-1]:.3g}",
                (x[-1], y[-1]),
                xytext=(8, -8 if curve.dashed else 4),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xticks(sorted({x for curve in self.curves for x, _ in curve.points}))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(self.x_title, fontsize=9)
        axes.set_ylabel(self.y_title, fontsize=9)
        axes.margins(x=0.06, y=0.12)
        axes.grid(which="both", axis="y", alpha=0.25)
        axes.tick_params(labelsize=9)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(fontsize=9, frameon=False, loc="center right")
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(footer, fontsize=7, color="#606060")
        figure.savefig(path)
