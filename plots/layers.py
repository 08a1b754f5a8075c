"""Figure 4: tokens that each layer still computes, a panel per task, a line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.style import drawing, legend, legend_height, lines_of, look, panels

LEGEND_COLUMNS = 3
DODGE = 0.24  # layers over which the lines are spread, so that equal ones do not hide each other


def layer_figure(rows: Sequence[Mapping[str, Any]], *, columns: int = 1) -> Figure:
    """Draw tokens remaining over the layers.

    Args:
        rows: one per task, method and seed: "task" and "title" as printed, "method", "shares": (layers,) of a text's
            tokens that each layer computes, in [0, 1]. Several seeds give their mean with an error bar of one standard
            deviation.
        columns: panels beside each other; 1 is a column of a paper wide, more a page.
    Raises:
        ValueError: no rows, or lines of different length for one task and method.
    """
    if not rows:
        raise ValueError("nothing to draw: no rows")
    tasks, everything = list(dict.fromkeys(row["task"] for row in rows)), lines_of(rows)
    across = LEGEND_COLUMNS * min(columns, 2)
    with drawing():
        figure, axes = panels(len(tasks), columns=columns, extra=legend_height(len(everything), across))
        for panel, task in zip(axes, tasks, strict=True):
            mine = [row for row in rows if row["task"] == task]
            lines = lines_of(mine)
            for place, (title, method) in enumerate(lines.items()):
                shift = DODGE * (place / max(len(lines) - 1, 1) - 0.5)
                _line(panel, method, [row["shares"] for row in mine if row["title"] == title], shift)
            _frame(panel, task, max(len(row["shares"]) for row in mine))
        legend(figure, {title: look(method).key() for title, method in everything.items()}, columns=across)
    return figure


def _line(panel: Axes, method: str, seeds: Sequence[Sequence[float]], shift: float) -> None:
    if len({len(shares) for shares in seeds}) > 1:
        raise ValueError(f"{method}: seeds with different numbers of layers")
    percent, drawn = 100 * np.asarray(seeds, float), look(method)
    panel.errorbar(
        np.arange(1, percent.shape[1] + 1) + shift,
        percent.mean(axis=0),
        yerr=percent.std(axis=0, ddof=1) if len(percent) > 1 else None,
        linestyle=drawn.line,
        **drawn.marks(),
        **drawn.bars(),
    )


def _frame(panel: Axes, task: str, layers: int) -> None:
    panel.set_title(task, loc="left")
    panel.set_xlabel("Layer")
    panel.set_ylabel("Tokens remaining (%)")
    panel.set_ylim(-3, 105)
    panel.set_yticks(range(0, 101, 25))
    panel.set_xlim(0.7, layers + 0.3)
    panel.set_xticks(range(1, layers + 1))
