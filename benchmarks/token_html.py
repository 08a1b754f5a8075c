"""Method views as HTML: cards that stand side by side, for a page of their own or inside a report.

Texts are untrusted: every value goes through jinja2's escaping. No script, no request, light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from jinja2 import Environment
from markupsafe import Markup

from benchmarks.case_examples import Shown
from benchmarks.token_view import Colour, MethodView, Piece, colour, ink

STYLE = """
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.view { border: 1px solid #8886; border-radius: .5rem; padding: .8rem 1rem; }
.view h3 { margin: 0; font-size: 1.05rem; }
.view .from { font-size: .8rem; opacity: .75; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.view .text { line-height: 1.9; margin: .5rem 0; overflow-wrap: anywhere; }
.view .word { display: inline-block; max-width: 100%; line-height: 1.6; margin-right: .15rem; }
.view .token { padding: .1rem .25rem; border-radius: .2rem; }
.view .token + .token { border-left: 2px dotted currentColor; border-top-left-radius: 0; border-bottom-left-radius: 0; }
.view .token sub { font-size: .65em; padding-left: .1em; }
.view table { border-collapse: collapse; font-size: .8rem; width: 100%; }
.view th { font-weight: normal; text-align: right; padding: 0 .5rem 0 0; white-space: nowrap; }
.view td { padding: .05rem 0; width: 100%; }
.view td span { display: inline-block; height: .7rem; background: #21918c; margin-right: .4rem; }
.legend { font-size: .85rem; line-height: 2; }
.legend span { padding: .1rem .4rem; border-radius: .2rem; margin-right: .2rem; white-space: nowrap; }
"""

_CARDS = """
<div class="views">
{% for view in views %}
<section class="view">
<h3>{{ view.title }}</h3>
<p class="from">{{ view.source }}</p>
<p><strong>{{ view.answer }}</strong>{{ facts(view) }}</p>
{% for words in parts(view) %}
<p class="text">
{% for word in words %}
<span class="word">
{%- for piece in word.pieces -%}
<span class="token" style="{{ paint(piece.left, view.layers) }}" title="{{ told(piece) }}">{{ piece.text }}
{%- if piece.left is not none %}<sub>{{ piece.left }}</sub>{% endif %}</span>
{%- endfor -%}
</span>
{% endfor %}
</p>
{% endfor %}
<table aria-label="share of tokens per layer">
{% for share in view.shares %}
<tr><th scope="row">layer {{ loop.index }}</th>
<td><span style="width: {{ '%.1f' | format(65 * share) }}%"></span>{{ '%.0f' | format(100 * share) }} %</td></tr>
{% endfor %}
</table>
</section>
{% endfor %}
</div>
"""

_LEGEND = """
<p class="legend">Dropped by layer
{% for layer in range(1, layers + 1) %}
<span style="{{ paint(layer, layers) }}">{{ layer }}</span>
{% endfor %}
<span style="{{ paint(none, layers) }}">stayed</span> &middot; sub-words of a word touch, with a dotted line between</p>
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heading }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
code { overflow-wrap: anywhere; }
{{ style }}
</style>
</head>
<body>
<h1>{{ heading }}</h1>
<p>Command: <code>{{ command }}</code></p>
{% for title, about, cards, legend in groups %}
{% if title %}
<h2>{{ title }}</h2>
<p>{{ about }}</p>
{% endif %}
{{ legend }}
{{ cards }}
{% endfor %}
</body>
</html>
"""


def _css(value: Colour) -> str:
    return f"rgb({value[0]}, {value[1]}, {value[2]})"


def _paint(left: int | None, layers: int) -> str:
    background = colour(left, layers)
    return f"background: {_css(background)}; color: {_css(ink(background))}"


def _told(piece: Piece) -> str:
    """What the pointer shows over a token."""
    text = "computed to the end" if piece.left is None else f"dropped by layer {piece.left}"
    return f"{text}; leapt over {', '.join(map(str, piece.leapt))}" if piece.leapt else text


def _facts(view: MethodView) -> str:
    parts = [f" \N{MIDDLE DOT} {view.tokens} tokens", f"{view.speedup:.2f}x fewer FLOPs"]
    parts += [f"left after layer {view.exit_layer}"] if view.exit_layer is not None else []
    parts += ["text cut to the model's length"] if view.truncated else []
    return ", ".join(parts)


def _parts(view: MethodView) -> list[list[object]]:
    """Words of each text; a special token closes the text before it, the first one opens the first text."""
    last, numbered = 0, []
    for word in view.words:
        last = word.part if word.part is not None else last
        numbered.append((last, word))
    return [[word for _, word in members] for _, members in groupby(numbered, lambda pair: pair[0])]


_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.globals |= {"paint": _paint, "told": _told, "facts": _facts, "parts": _parts}


def cards(views: Sequence[MethodView]) -> Markup:
    """One card per method, side by side; needs STYLE in the page."""
    return Markup(_ENVIRONMENT.from_string(_CARDS).render(views=views))


def legend(layers: int) -> Markup:
    """What the colours mean in a model of so many layers."""
    return Markup(_ENVIRONMENT.from_string(_LEGEND).render(layers=layers))


def page(views: Sequence[MethodView], *, heading: str, command: str) -> str:
    """A whole page of one text; it opens without a network."""
    return _page([("", "", views)], heading, command)


def examples_page(shown: Sequence[Shown], *, heading: str, command: str) -> str:
    """A whole page of several examples; it opens without a network."""
    return _page([(f"{one.title} ({one.task})", one.about, one.views) for one in shown], heading, command)


def _page(groups: Sequence[tuple[str, str, Sequence[MethodView]]], heading: str, command: str) -> str:
    drawn = [(title, about, cards(views), legend(max(view.layers for view in views))) for title, about, views in groups]
    return _ENVIRONMENT.from_string(_PAGE).render(heading=heading, command=command, style=Markup(STYLE), groups=drawn)
