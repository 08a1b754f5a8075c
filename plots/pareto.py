"""Figure 3: score against speed-up, a panel per padding setting, and what nothing measured beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from plots.style import SHADE, Look, drawing, legend, legend_height, lines_of, look, panels, ratio_axis

LEGEND_COLUMNS = 3
HEIGHT = 0.74  # of a panel, over its width
FRONT_TITLE = "Front of all"
FRONT: dict[str, Any] = {"color": SHADE, "linewidth": 3.0, "solid_capstyle": "round", "solid_joinstyle": "round"}
PADDING_TITLES = {
    "none": "No padding",
    "batch": "Padded to the longest of the batch",
    "sequence": "Padded to the task's length",
}


def pareto_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    score: str = "Score (%)",
    speed: str = "FLOPs speed-up",
    reported: Sequence[Mapping[str, Any]] = (),
    reported_title: str = "reported",
    columns: int = 1,
    lowest: float | None = None,
) -> Figure:
    """Draw operating points, a line through those of each method, and the front of all.

    Args:
        rows: one per point and panel: "panel" (a padding setting, or any title), "method", "title" as printed,
            "speedup" (dense over method, > 0), "score" in percent, "on_front"; where known, the ends of error bars
            "score_low", "score_high", "speedup_low", "speedup_high" (None or absent: no bar). Points of a title are
            joined in the given order, unless they are "hollow".
        score, speed: labels of the axes.
        reported: printed points in the same form, drawn hollow and not joined.
        columns: panels beside each other; 1 is a column of a paper wide, more a page.
        lowest: score at which the axis ends, if points lie lower; each panel says how many it does not show.
    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to draw: no rows")
    shown, lines = list(dict.fromkeys(row["panel"] for row in rows)), lines_of(rows)
    hollow = {row["title"] for row in rows if row.get("hollow")}
    named = {title: look(method).key(hollow=title in hollow) for title, method in lines.items()}
    named[FRONT_TITLE] = Line2D([], [], **FRONT)
    if reported:
        named[reported_title] = Look("#555555", "o").key(hollow=True)
    across = LEGEND_COLUMNS * min(columns, 2)
    with drawing():
        figure, axes = panels(len(shown), columns=columns, extra=legend_height(len(named), across), height=HEIGHT)
        for panel, name in zip(axes, shown, strict=True):
            mine, printed = ([row for row in some if row["panel"] == name] for some in (rows, reported))
            _front(panel, mine)
            for title, method in reversed(lines.items()):
                if points := [row for row in mine if row["title"] == title]:
                    _points(panel, method, points, hollow=title in hollow)
            for row in printed:
                _points(panel, row["method"], [row], hollow=True)
            speeds = [row["speedup"] for row in (*mine, *printed)]
            ratio_axis(panel, min(1.0, *speeds), max(1.2, *speeds))
            panel.set_title(PADDING_TITLES.get(name, name), loc="left")
            panel.set_xlabel(speed)
            panel.set_ylabel(score)
            _cut(panel, mine, lowest)
            panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        legend(figure, named, columns=across)
    return figure


def _points(panel: Axes, method: str, points: Sequence[Mapping[str, Any]], *, hollow: bool = False) -> None:
    drawn = look(method)
    panel.errorbar(
        [row["speedup"] for row in points],
        [row["score"] for row in points],
        xerr=_bars(points, "speedup"),
        yerr=_bars(points, "score"),
        linestyle="" if hollow else drawn.line,
        linewidth=0.8,
        zorder=3,
        **drawn.marks(hollow=hollow),
        **drawn.bars(),
    )


def _bars(points: Sequence[Mapping[str, Any]], name: str) -> list[list[float]] | None:
    """Lengths of the error bars downwards and upwards; None if no point has any."""
    ends = [[row.get(f"{name}_low"), row.get(f"{name}_high")] for row in points]
    if all(low is None or high is None for low, high in ends):
        return None
    middles = [row[name] for row in points]
    pairs = [
        (0.0, 0.0) if low is None or high is None else (max(middle - low, 0.0), max(high - middle, 0.0))
        for middle, (low, high) in zip(middles, ends, strict=True)
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


def _cut(panel: Axes, rows: Sequence[Mapping[str, Any]], lowest: float | None) -> None:
    """End the axis at `lowest`, and say how many points lie below."""
    below = 0 if lowest is None else sum(row["score"] < lowest for row in rows)
    if below:
        panel.set_ylim(bottom=lowest)
        text = f"{below} point{'s' if below > 1 else ''} below {lowest:.0f}"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        panel.text(0.02, 0.02, text, transform=panel.transAxes, fontsize="small", style="italic", bbox=box, zorder=5)


def _front(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The staircase below and left of which every point is beaten."""
    best = sorted(((row["speedup"], row["score"]) for row in rows if row["on_front"]), reverse=True)
    corners = best[:1]
    for speedup, score in best[1:]:  # slower: first the same score, then the step up to a better one
        corners += [(speedup, corners[-1][1]), (speedup, score)]
    panel.plot([speedup for speedup, _ in corners], [score for _, score in corners], zorder=1, **FRONT)
