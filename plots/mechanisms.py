"""The pictures in `docs/concepts.md`: what becomes of tokens that a layer does not compute.

`python -m plots.mechanisms` draws them from the patterns below, not from a trained model: they show rules, not results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import Parser
from benchmarks.files import replacing, writing

FOLDER = PROJECT_ROOT / "docs" / "pictures"
CELL, GAP, TOP, LEFT = (64, 26), (8, 22), 34, 92
COMPUTED, CACHED, PALE, INK, LINE = "#2f6f9f", "#9fb8c8", "#eef1f4", "#1b1f24", "#8a949e"
TEXT = ("[CLS]", "the", "film", "was", "truly", "great", "[SEP]")
PAIR = ("[CLS]", "who", "won", "[SEP]", "the", "race", "went", "to", "Ada", "[SEP]")


@dataclass
class Drawing:
    """SVG parts; layer 1 stands at the bottom, the output above the last."""

    title: str
    columns: int
    layers: int
    parts: list[str] = field(default_factory=list)

    def x(self, column: int) -> int:
        """Left edge of a token's column."""
        return LEFT + column * (CELL[0] + GAP[0])

    def y(self, layer: int) -> int:
        """Upper edge of a layer's row; 0 is the input, `layers` + 1 the output."""
        return TOP + (self.layers + 1 - layer) * (CELL[1] + GAP[1])

    def box(self, column: int, layer: int, fill: str, label: str = "", ink: str = "#ffffff") -> None:
        """One token in one layer."""
        x, y = self.x(column), self.y(layer)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL[0]}" height="{CELL[1]}" rx="5" fill="{fill}" stroke="{LINE}"/>'
        )
        if label:
            self.text(x + CELL[0] / 2, y + CELL[1] / 2 + 4, label, ink=ink, anchor="middle")

    def text(self, x: float, y: float, label: str, *, ink: str = INK, anchor: str = "start") -> None:
        """A line of text."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" fill="{ink}" text-anchor="{anchor}">{label}</text>')

    def rise(self, column: int, low: int, high: int, *, dashed: bool = False) -> None:
        """An arrow from the top of a token in one layer to its bottom in a higher one."""
        x, start, end = self.x(column) + CELL[0] / 2, self.y(low), self.y(high) + CELL[1] + 3
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x:g}" y1="{start}" x2="{x:g}" y2="{end:g}" stroke="{INK}"{dash} marker-end="url(#arrow)"/>'
        )

    def cross(self, column: int, layer: int) -> None:
        """Where a token ends, above a layer."""
        x, y = self.x(column) + CELL[0] / 2, self.y(layer) - 10
        self.parts.append(
            f'<path d="M{x - 5:g} {y - 5:g} l10 10 m0 -10 l-10 10" stroke="#b3261e" stroke-width="2" fill="none"/>'
        )

    def frame(self, names: Sequence[str]) -> None:
        """The input's tokens and the names of the rows."""
        for column, name in enumerate(names):
            self.box(column, 0, PALE, name, INK)
        for layer in range(self.layers + 2):
            said = "input" if layer == 0 else "output" if layer > self.layers else f"layer {layer}"
            self.text(12, self.y(layer) + CELL[1] / 2 + 4, said)

    def svg(self) -> str:
        """The whole picture."""
        width, height = self.x(self.columns) + 8, self.y(0) + CELL[1] + 14
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="13" role="img" aria-label="{self.title}">'
        )
        arrow = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
        )
        back = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
        return "\n".join(
            [head, arrow, back, f'<text x="12" y="22" font-weight="bold">{self.title}</text>', *self.parts, "</svg>\n"]
        )


def stacked(title: str, last: Sequence[int], *, forwarded: bool) -> Drawing:
    """Tokens that leave for good: `last` has the last layer that computes each; then carried to the output, or lost."""
    layers = max(last)
    drawing = Drawing(title, len(last), layers)
    drawing.frame(TEXT)
    for column, end in enumerate(last):
        for layer in range(1, end + 1):
            drawing.rise(column, layer - 1, layer)
            drawing.box(column, layer, COMPUTED)
        if end == layers or forwarded:
            drawing.rise(column, end, layers + 1, dashed=end < layers)
            drawing.box(column, layers + 1, PALE, TEXT[column], INK)
        else:
            drawing.cross(column, end)
    return drawing


def keep() -> Drawing:
    """Nothing dropped."""
    return stacked("dense: every layer computes every token", (4,) * len(TEXT), forwarded=True)


def forward() -> Drawing:
    """Dropped tokens keep their last state, which goes to the output."""
    return stacked("forwarded: a dropped token is carried on to the output", (4, 1, 3, 1, 4, 4, 2), forwarded=True)


def discard() -> Drawing:
    """Dropped tokens are lost."""
    return stacked("discarded: a dropped token is lost", (4, 1, 3, 1, 4, 4, 2), forwarded=False)


def leap() -> Drawing:
    """Tokens leap over a layer and are back at the next."""
    computes = ((1, 2, 3, 4), (1, 4), (1, 2, 4), (3,), (1, 2, 3, 4), (1, 3, 4), (2, 4))
    drawing = Drawing("leaping: a token may skip a layer and be back at the next", len(TEXT), 4)
    drawing.frame(TEXT)
    for column, own in enumerate(computes):
        stops = (0, *own, 5)
        for low, high in pairwise(stops):
            drawing.rise(column, low, high, dashed=high - low > 1)
        for layer in own:
            drawing.box(column, layer, COMPUTED)
        drawing.box(column, 5, PALE, TEXT[column], INK)
    return drawing


def exits() -> Drawing:
    """The whole text leaves after a layer whose off-ramp is sure."""
    drawing = Drawing("exit: the whole text leaves as soon as an off-ramp is sure", len(TEXT) + 3, 4)
    drawing.frame(TEXT)
    for layer in range(1, 5):
        for column in range(len(TEXT)):
            if layer <= 2:
                drawing.rise(column, layer - 1, layer)
            drawing.box(column, layer, COMPUTED if layer <= 2 else "#ffffff")
        if layer <= 2:
            said = "unsure: go on" if layer == 1 else "sure: answer"
            drawing.text(drawing.x(len(TEXT)) + 6, drawing.y(layer) + CELL[1] / 2 + 4, f"off-ramp {said}")
    for layer in (3, 4):
        drawing.text(drawing.x(len(TEXT)) + 6, drawing.y(layer) + CELL[1] / 2 + 4, "never computed")
    drawing.text(drawing.x(0), drawing.y(5) + CELL[1] / 2 + 4, "that of the off-ramp after layer 2")
    return drawing


def segments() -> Drawing:
    """Two texts that do not see each other in the lower layers; one may come from a cache."""
    drawing = Drawing("segments: below, two texts stay apart, and one may come from a cache", len(PAIR), 4)
    drawing.frame(PAIR)
    for column, name in enumerate(PAIR):
        for layer in range(1, 5):
            drawing.rise(column, layer - 1, layer)
            drawing.box(column, layer, CACHED if column > 3 and layer <= 3 else COMPUTED)
        drawing.rise(column, 4, 5)
        drawing.box(column, 5, PALE, name, INK)
    x, bottom, top = drawing.x(4) - GAP[0] / 2, drawing.y(0) + CELL[1], drawing.y(3) - 8
    drawing.parts.append(
        f'<line x1="{x:g}" y1="{bottom}" x2="{x:g}" y2="{top}" stroke="#b3261e" stroke-width="3" '
        'stroke-dasharray="2 3"/>'
    )
    return drawing


def modes() -> Drawing:
    """A batch of two texts, masked as in training and packed as in inference."""
    drawing = Drawing("one layer, two texts: masked in training, packed in inference", 8, 3)
    rows = (("[CLS]", "a", "fine", "film", "[SEP]"), ("[CLS]", "bad", "[SEP]"))
    kept = ((0, 2, 3), (0, 1))
    drawing.text(12, drawing.y(4) + 18, "masked: a rectangle")
    drawing.text(12, drawing.y(1) + 18, "packed: survivors only")
    for place, (row, stays) in enumerate(zip(rows, kept, strict=True)):
        for column in range(5):
            real = column < len(row)
            fill = COMPUTED if column in stays and real else PALE
            label = row[column] if real else "[PAD]"
            drawing.box(column + 1, 3 - place, fill, label, "#ffffff" if fill == COMPUTED else LINE)
    flat = [row[column] for row, stays in zip(rows, kept, strict=True) for column in stays]
    for column, name in enumerate(flat):
        drawing.box(column + 1, 0, COMPUTED, name)
    drawing.text(drawing.x(len(flat) + 1) + 6, drawing.y(0) + 17, "text 1: 3, text 2: 2")
    return drawing


PICTURES = {
    "keep": keep,
    "forward": forward,
    "discard": discard,
    "leap": leap,
    "exit": exits,
    "segments": segments,
    "modes": modes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write every picture; returns the exit status."""
    parser = Parser(
        prog="python -m plots.mechanisms",
        description=__doc__,
        epilog="example:\n  python -m plots.mechanisms --output pictures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, metavar="DIR", default=FOLDER, help="default: docs/pictures")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    folder = parser.parse_args(argv).output
    for name, draw in PICTURES.items():
        path = folder / f"{name}.svg"
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(draw().svg(), encoding="utf-8")
    print(f"{len(PICTURES)} pictures in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
