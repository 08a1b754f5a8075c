"""Figures inside the report: taken from files or drawn from records, and harmless whatever the file holds."""

from __future__ import annotations

from pathlib import Path

import html5lib
import pytest

from benchmarks.errors import UserError
from benchmarks.report import build, read_all
from benchmarks.report_svg import inline
from benchmarks.runs import RESULTS
from tests.report_page import Page, write_suite

SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">{}</svg>'


def figure(tmp_path: Path, inside: str) -> str:
    path = tmp_path / "figure.svg"
    path.write_text(SVG.format(inside), encoding="utf-8")
    return str(inline(path, prefix="a-", label='what "it" shows'))


def test_names_are_new_ones_wherever_they_are_used(tmp_path) -> None:
    text = figure(
        tmp_path, '<defs><path id="m" d="M 0 0"/></defs><use xlink:href="#m"/><g clip-path="url(#m)" id="g"/>'
    )
    assert 'id="a-0"' in text and 'href="#a-0"' in text and 'clip-path="url(#a-0)"' in text
    assert text.count("id=") == 1  # nothing refers to the other one
    assert '"#m"' not in text and "xlink" not in text


@pytest.mark.parametrize(
    "inside",
    [
        "<script>bad()</script>",
        "<g><script>bad()</script></g>",
        "<style>* { background: url(http://bad) }</style>",
        "<foreignObject><p>bad</p></foreignObject>",
        '<a href="http://bad"><text>bad</text></a>',
        '<image href="http://bad"/>',
        '<use href="http://bad#x"/>',
        '<rect style="fill: url(http://bad)"/>',
        '<rect onclick="bad()" onLoad="bad()"/>',
        "<text>x</text><!-- bad -->",
        "<metadata>bad</metadata>",
    ],
)
def test_nothing_runs_and_nothing_is_fetched(tmp_path, inside) -> None:
    assert "bad" not in figure(tmp_path, inside)


def test_texts_are_escaped_and_kept(tmp_path) -> None:
    text = figure(tmp_path, "<text>a &lt;b&gt; <tspan>c&amp;d</tspan> e</text>")
    assert "a &lt;b&gt; <tspan>c&amp;d</tspan> e</text>" in text
    assert "what &#34;it&#34; shows" in text


def test_coordinates_are_shortened(tmp_path) -> None:
    text = figure(tmp_path, '<path d="M 1.23456 -7.5\nL 0.0004 3"/>')
    assert 'd="M 1.23 -7.5 L 0.00 3"' in text


def test_what_all_of_a_group_say_is_said_once(tmp_path) -> None:
    bar = '<path d="M {} 0 L 1 1" style="stroke: red" clip-path="url(#c)"/>'
    text = figure(tmp_path, f'<defs><path id="c" d="M 0 0"/></defs><g>{bar.format(2)}{bar.format(3)}</g>')
    group = '<g style="stroke: red" clip-path="url(#a-0)"><path d="M 2 0 L 1 1"/><path d="M 3 0 L 1 1"/></g>'
    assert group in text


@pytest.mark.parametrize(
    "inside",
    [
        '<g><path d="M 0 0" style="fill: red"/><path d="M 1 1"/></g>',
        '<g><path d="M 0 0" style="fill: red"/><path d="M 1 1" style="fill: blue"/></g>',
        '<g style="fill: blue"><path d="M 0 0" style="fill: red"/><path d="M 1 1" style="fill: red"/></g>',
        '<g><path d="M 0 0" style="opacity: 0.5"/><path d="M 1 1" style="opacity: 0.5"/></g>',
        '<g><path d="M 0 0" style="fill: red" transform="scale(2)"/><path d="M 1 1" style="fill: red"/></g>',
    ],
)
def test_what_a_group_cannot_say_for_all_stays(tmp_path, inside) -> None:
    assert inside in figure(tmp_path, inside)


@pytest.mark.parametrize("content", ["", "<svg", "<html/>", "no markup"])
def test_a_file_that_is_no_figure(tmp_path, content) -> None:
    path = tmp_path / "figure.svg"
    path.write_text(content)
    with pytest.raises(UserError, match=r"figure.svg .*rerun the command that draws it"):
        inline(path, prefix="", label="")


def test_published_figures_are_on_the_page() -> None:
    """One per task, in place of the one that has all of them; nothing of an axis is lost."""
    text = build(read_all(RESULTS, published=True))
    page = Page(text)
    files = sorted((RESULTS / "figures").glob("strategy-*.svg"))
    figures = [part for part in page.root.iter("figure") if part.get("class") == "drawing"]
    assert files and "figure4" in page.sections and len(figures) >= len(files)
    mine = [part for part in figures if "tokens per layer" in "".join(part.find("figcaption").itertext())]
    for path, part in zip(files, mine, strict=True):
        drawn = html5lib.parse(path.read_text(encoding="utf-8"), namespaceHTMLElements=False)
        for tag in ("text", "path", "use"):
            wanted = [one for one in drawn.iter() if str(one.tag).rpartition("}")[2] == tag]
            assert len([one for one in part.iter() if str(one.tag).rpartition("}")[2] == tag]) == len(wanted) > 0


def test_figure_4_is_drawn_from_the_records_where_no_file_is(tmp_path) -> None:
    page = Page(build(read_all(write_suite(tmp_path), published=False)))
    (drawn,) = [part for part in page.root.iter("figure") if part.get("class") == "drawing"]
    said = "".join(drawn.itertext())
    assert said.startswith("Mood: tokens per layer") and "Tokens remaining (%)" in said and "LTP" in said
    assert "Random" not in said and not (tmp_path / "figures").exists()
