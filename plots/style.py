"""How every figure looks: one colour and one marker per method, sizes for a column of a paper, files that are the same
wherever they are drawn.

Colours stay apart for readers with deuteranopia and protanopia, and the marker says it again. Text stays text in SVG
and PDF.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLUMN, PAGE = 3.3, 6.8  # inches: one column of a two-column paper, both of them
GOLDEN = 0.62  # height of a panel over its width
FORMATS = ("svg", "png", "pdf")
INK, GRID, SHADE = "#222222", "#dddddd", "#bbbbbb"
# A date or a program's version in the file would make two drawings of the same data differ.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
RC: Any = {  # dict of matplotlib's settings, whose names it types one by one
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "skimbench",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    colour: str
    marker: str
    line: Literal["-", "--", "-."] = "-"

    def marks(self, *, hollow: bool = False) -> dict[str, Any]:
        """Keywords of matplotlib for this method's points."""
        thin = self.marker in "xX+P*"  # marks that a white edge would eat up
        filling = {"markerfacecolor": "white", "markeredgecolor": self.colour, "markeredgewidth": 0.8}
        if not hollow:
            filling = {"markeredgecolor": self.colour if thin else "white", "markeredgewidth": 0.3}
        size = 5.5 if self.marker == "*" else 3.8 if thin else 3.6
        return {"color": self.colour, "marker": self.marker, "markersize": size, **filling}

    def bars(self) -> dict[str, Any]:
        """Keywords of `Axes.errorbar` for its error bars: light, as many cross."""
        return {"ecolor": (self.colour, 0.5), "elinewidth": 0.7, "capsize": 0}

    def key(self, *, hollow: bool = False) -> Line2D:
        """This method in a legend."""
        return Line2D([], [], linestyle="" if hollow else self.line, **self.marks(hollow=hollow))


LOOKS: dict[str, Look] = {
    "dense": Look("#000000", "*"),
    "transkimmer": Look("#d55e00", "o"),
    "power_bert": Look("#065381", "s"),
    "lat": Look("#11652a", "^"),
    "ltp": Look("#c146bb", "D"),
    "lot": Look("#eab200", "v"),
    "top": Look("#332288", "P"),
    "tr_bert": Look("#35a5f6", "X"),
    "deebert": Look("#5d1941", "<"),
    "pabee": Look("#eb535a", ">"),
    "deformer": Look("#a3a238", "h"),
    "random": Look("#888888", "d", "--"),
}
RATIO_TICKS = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8),
    (0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5),
    (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24),
    (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
    (0.1, 0.3, 1, 3, 10, 30, 100),
)
_OTHERS = (
    "#44aa99",
    "#994455",
    "#6699cc",
    "#997700",
    "#ee99aa",
    "#225555",
)  # of methods that have no look of their own
_OTHER_MARKERS = ("p", "H", "8", "o", "s", "^")


def look(method: str) -> Look:
    """The method's look; one that is not listed gets its own from its name, the same in every figure."""
    if method in LOOKS:
        return LOOKS[method]
    number = zlib.crc32(method.encode())
    return Look(_OTHERS[number % len(_OTHERS)], _OTHER_MARKERS[number // len(_OTHERS) % len(_OTHER_MARKERS)], "-.")


def lines_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Title -> method of the lines in `rows`, each once, in the order of `LOOKS`, others behind by name."""
    places = {name: place for place, name in enumerate(LOOKS)}
    found = {row["title"]: row["method"] for row in rows}
    return dict(sorted(found.items(), key=lambda line: (places.get(line[1], len(places)), line[1])))


@contextmanager
def drawing() -> Iterator[None]:
    """The settings that figures are made and saved under, whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def panels(count: int, *, columns: int = 1, extra: float = 0.0, height: float = GOLDEN) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, a column wide or, with several columns, a page; unused places stay empty.

    Args:
        extra: inches of height for a legend above them. height: of a panel, over its width.
    """
    rows = -(-count // columns)
    width = COLUMN if columns == 1 else PAGE
    figure = Figure(figsize=(width, rows * width / columns * height + extra), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def legend(figure: Figure, handles: Mapping[str, Artist], *, columns: int) -> None:
    """One legend above all panels, beside no data."""
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(columns, len(handles)),
        handlelength=1.8,
        columnspacing=1.2,
        labelspacing=0.3,
    )


def legend_height(entries: int, columns: int) -> float:
    """Inches that `legend` takes."""
    return 0.14 * -(-entries // columns) + 0.12


def ratio_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic x axis of ratios from `low` to `high` with a handful of round ticks: 1x, 2x, 4x."""
    low, high = low / 1.06, high * 1.08
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_ratio_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}x"))


def _ratio_ticks(low: float, high: float) -> list[float]:
    """The ticks of the finest of `RATIO_TICKS` whose labels have room."""
    for scale in RATIO_TICKS:
        ticks = [tick for tick in scale if low <= tick <= high]
        roomy = all(math.log(b / a) > math.log(high / low) / 9 for a, b in pairwise(ticks))
        if roomy and scale[-1] * 1.1 > high and scale[0] / 1.1 < max(low, 1.0):
            return ticks
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write `name`.svg, .png and .pdf into `folder`; the same figure gives the same bytes. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with drawing():
        for suffix in formats:
            content = io.BytesIO()
            figure.savefig(content, format=suffix, metadata=METADATA[suffix])
            paths.append(folder / f"{name}.{suffix}")
            paths[-1].write_bytes(content.getvalue())
    return paths
