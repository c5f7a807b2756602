"""Heat maps: what two or more settings do to one figure, as small multiples of one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["HeatMap", "Panel"]


@dataclass(frozen=True)
class Panel:
    """One of the small multiples.

    Attributes
    ----------
    title : str
        Above it.
    values : sequence of sequence of float or None
        One row of values for each row label; None: not measured.
    texts : sequence of sequence of str, optional
        What is written into the cells.
    """

    title: str
    values: Sequence[Sequence[float | None]]
    texts: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class HeatMap:
    """A chart of panels that share their axes and one logarithmic colour scale.

    Attributes
    ----------
    name : str
        Of the file, without the date.
    title : str
        Above the chart.
    panels : sequence of Panel
        Row by row.
    across : int
        How many panels stand side by side.
    rows, columns : sequence of str
        The labels of the axes of every panel.
    row_title, column_title : str
        What the axes are.
    scale : str
        What the colour means.
    cell : (float, float)
        Inches of one cell, across and down.
    more_is_better : bool
        Dark is bad: where the figure is low, or where it is high.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    across: int
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    scale: str
    cell: tuple[float, float] = (0.55, 0.36)
    more_is_better: bool = False

    def draw(self, path: Path, footer: str = "") -> None:
        """Draw the chart into a PNG file.

        Parameters
        ----------
        path : Path
            Where.
        footer : str
            One line below: where the figures come from.
        """
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        down = math.ceil(len(self.panels) / self.across)
        known = [v for p in self.panels for line in p.values for v in line if v is not None]
        low, high = (min(known), max(known)) if known else (1.0, 10.0)
        norm = LogNorm(low, max(high, low * 1.01))
        width = 2.2 + self.across * (0.35 + self.cell[0] * len(self.columns))
        height = 1.7 + down * (0.6 + self.cell[1] * len(self.rows))
        figure = Figure(figsize=(max(width, 7.0), height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, self.across, squeeze=False, sharex=True, sharey=True)
        name = "YlOrRd_r" if self.more_is_better else "YlOrRd"
        palette = colormaps[name].with_extremes(bad="#e8e8e8")
        image: Any = None
        for index, axes in enumerate(grid.flat):
            if index >= len(self.panels):
                axes.set_visible(False)
                continue
            panel = self.panels[index]
            values = [[math.nan if v is None else v for v in line] for line in panel.values]
            image = axes.imshow(values, norm=norm, cmap=palette, aspect="auto")
            axes.set_title(panel.title, fontsize=9, loc="left")
            axes.set_xticks(range(len(self.columns)), self.columns, fontsize=8)
            axes.set_yticks(range(len(self.rows)), self.rows, fontsize=8)
            axes.tick_params(length=0)
            for side in axes.spines.values():
                side.set_visible(False)
            for row, line in enumerate(panel.texts or ()):
                for column, text in enumerate(line):
                    value = panel.values[row][column]
                    shade = 0.0 if value is None else float(norm(value))
                    dark = (1 - shade if self.more_is_better else shade) > 0.6
                    axes.text(
                        column,
                        row,
                        text,
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if dark else "#202020",
                    )
        figure.supxlabel(
            f"{self.column_title}\n{footer}" if footer else self.column_title, fontsize=8
        )
        figure.supylabel(self.row_title, fontsize=9)
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        bar = figure.colorbar(image, ax=grid, shrink=0.8, aspect=30)
        bar.set_label(self.scale, fontsize=9)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.tick_params(labelsize=8)
        figure.savefig(path)
