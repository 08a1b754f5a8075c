"""Time ratio against FLOPs ratio: on the diagonal, all of the computation saved is time saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from plots.style import SHADE, drawing, legend, legend_height, lines_of, look, panels

LEGEND_COLUMNS = 3


def latency_figure(rows: Sequence[Mapping[str, Any]], *, columns: int = 2) -> Figure:
    """Draw a panel per cell, with error bars over rounds.

    Args:
        rows: one per subject and panel: "panel" (its title), "method", "title" as printed, "flops_ratio", and
            "time_ratio" with its quartiles "time_ratio_low" and "time_ratio_high".
        columns: panels beside each other; 1 is a column of a paper wide, more a page.
    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to draw: no rows")
    shown, lines = list(dict.fromkeys(row["panel"] for row in rows)), lines_of(rows)
    across = LEGEND_COLUMNS * min(columns, 2)
    with drawing():
        figure, axes = panels(len(shown), columns=columns, extra=legend_height(len(lines), across))
        for panel, name in zip(axes, shown, strict=True):
            mine = [row for row in rows if row["panel"] == name]
            highest = 1.05 * max(max(row["flops_ratio"], row["time_ratio_high"]) for row in mine)
            panel.plot([0, highest], [0, highest], color=SHADE, linewidth=1.0, zorder=1)
            for title, method in lines.items():
                points = [row for row in mine if row["title"] == title]
                sides = [[row["time_ratio"] - row["time_ratio_low"] for row in points]]
                sides.append([row["time_ratio_high"] - row["time_ratio"] for row in points])
                panel.errorbar(
                    [row["flops_ratio"] for row in points],
                    [row["time_ratio"] for row in points],
                    yerr=sides,
                    linestyle="",
                    zorder=3,
                    **look(method).marks(),
                    **look(method).bars(),
                )
            panel.set(xlim=(0, highest), ylim=(0, highest), xlabel="FLOPs ratio", ylabel="Time ratio")
            panel.set_title(name, loc="left")
        legend(figure, {title: look(method).key() for title, method in lines.items()}, columns=across)
    return figure
