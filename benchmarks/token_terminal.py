"""Method views on a terminal: each token in the colour, and with the number, of the layer that dropped it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from benchmarks.token_view import Colour, MethodView, Piece, colour, ink

ACROSS = 3  # methods beside each other
BARS = " ▁▂▃▄▅▆▇█"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
JOINT = "\N{MIDDLE DOT}"  # between the sub-words of a word


def _style(background: Colour) -> Style:
    return Style(color=Color.from_rgb(*ink(background)), bgcolor=Color.from_rgb(*background))


def _piece(piece: Piece, layers: int) -> tuple[str, Style]:
    number = "" if piece.left is None else str(piece.left).translate(SUBSCRIPTS)
    return f"{piece.text}{number}", _style(colour(piece.left, layers))


def drawn(view: MethodView) -> Text:
    """The text of a view: each token in its colour and with the number of the layer that dropped it."""
    text = Text()
    for word in view.words:
        for place, piece in enumerate(word.pieces):
            if place:
                text.append(JOINT)
            text.append(*_piece(piece, view.layers))
        text.append(" ")
    return text


def facts(view: MethodView) -> Text:
    """What stands under the text: tokens, cost, the share of tokens that each layer computed."""
    bars = "".join(BARS[round(share * (len(BARS) - 1))] for share in view.shares)
    lines = [f"{view.answer}, {view.tokens} tokens, {view.speedup:.2f}x fewer FLOPs"]
    lines += [f"left after layer {view.exit_layer}"] if view.exit_layer is not None else []
    lines += ["the text was cut to the model's length"] if view.truncated else []
    lines.append(f"computed per layer {bars} {' '.join(f'{100 * share:.0f}' for share in view.shares)} %")
    return Text("\n".join(lines))


def show(views: Sequence[MethodView], console: Console) -> None:
    """All views, some beside each other, and what the colours mean."""
    for start in range(0, len(views), ACROSS):
        row = views[start : start + ACROSS]
        table = Table(box=box.ROUNDED, expand=True)
        for view in row:
            table.add_column(view.title, ratio=1)
        table.add_row(*(Text(view.source, style="dim", overflow="fold") for view in row))
        table.add_row(*(drawn(view) for view in row))
        table.add_row(*(facts(view) for view in row))
        console.print(table)
    layers = max(view.layers for view in views)
    legend = Text("dropped by layer ")
    for layer in range(1, layers + 1):
        legend.append(f" {layer} ", _style(colour(layer, layers)))
    legend.append(" stayed ", _style(colour(None, layers)))
    console.print(legend + Text(f"  {JOINT} between sub-words of a word"))
