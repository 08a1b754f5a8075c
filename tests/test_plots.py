"""Figures: every method has one look everywhere, files are the same each time, what is given is what is drawn."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import methods
from plots.layers import layer_figure
from plots.pareto import FRONT_TITLE, pareto_figure
from plots.style import COLUMN, FORMATS, LOOKS, PAGE, lines_of, look, ratio_axis, save

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SEEN = {
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
}
TO_XYZ = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)))


def lab(colour: str, seen: str | None = None) -> np.ndarray:
    """CIELAB coordinates of "#rrggbb", as seen by a reader."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if seen:
        linear = np.clip(np.array(SEEN[seen]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ linear / (0.9505, 1.0, 1.089), 1e-6))
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))


def rows(**changes) -> list[dict]:
    one = {"task": "Mood", "method": "lat", "title": "LAT", "shares": (1.0, 0.5, 0.25)}
    return [one | changes, one | changes | {"method": "transkimmer", "title": "Transkimmer", "shares": (0.9, 0.9, 0.1)}]


def points(panel: str = "none") -> list[dict]:
    pairs = [("lat", 1.5, 80.0, True), ("lat", 2.5, 70.0, True), ("transkimmer", 2.0, 69.0, False)]
    return [
        {"panel": panel, "method": name, "title": methods.lookup(name).traits.title, "speedup": speed, "score": score,
         "score_low": score - 2, "score_high": score + 1, "on_front": front}
        for name, speed, score, front in pairs
    ]  # fmt: skip


def drawn(axes, method: str) -> np.ndarray:
    """Points (n, 2) of a method's line in a panel."""
    lines = [line for line in axes.lines if line.get_color() == look(method).colour and line.get_marker() != "|"]
    return np.vstack([line.get_xydata() for line in lines if line.get_marker() == look(method).marker])


@pytest.mark.parametrize("seen", [None, "deuteranopia", "protanopia"])
def test_looks_are_told_apart(seen):
    for one, other in itertools.combinations(LOOKS.values(), 2):
        assert one.marker != other.marker
        assert np.linalg.norm(lab(one.colour, seen) - lab(other.colour, seen)) > (30 if seen is None else 12)


def test_every_method_has_its_own_look_and_shows_on_white():
    assert set(LOOKS) == set(methods.available())
    for drawn_as in LOOKS.values():
        assert lab(drawn_as.colour)[0] < 80


def test_a_new_method_has_one_look_everywhere():
    assert look("my_method") == look("my_method") != look("transkimmer")
    assert list(lines_of([*rows(), rows()[0] | {"method": "my_method", "title": "Mine"}]).values())[-1] == "my_method"


@pytest.mark.parametrize("suffix", FORMATS)
def test_two_drawings_of_the_same_data_are_the_same_file(tmp_path, suffix):
    for name in ("a", "b"):
        save(pareto_figure(points(), reported=[points()[0]]), tmp_path / name, "figure", (suffix,))
    assert (tmp_path / "a" / f"figure.{suffix}").read_bytes() == (tmp_path / "b" / f"figure.{suffix}").read_bytes()


def test_svg_has_text_as_text_and_no_date(tmp_path):
    svg = save(layer_figure(rows(task="A & B")), tmp_path, "figure", ("svg",))[0].read_text()
    assert "A &amp; B" in svg and "Tokens remaining (%)" in svg and "Transkimmer" in svg
    assert "<dc:date>" not in svg and not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons)", svg)


def test_the_user_s_own_settings_of_matplotlib_change_nothing(tmp_path):
    import matplotlib

    plain = save(layer_figure(rows()), tmp_path, "plain", ("svg",))[0].read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert save(layer_figure(rows()), tmp_path, "other", ("svg",))[0].read_bytes() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_layer_figure_draws_the_given_shares_in_percent():
    (axes,) = layer_figure(rows()).axes
    assert np.allclose(drawn(axes, "lat")[:, 1], (100, 50, 25))
    assert np.allclose(drawn(axes, "transkimmer")[:, 1], (90, 90, 10))
    assert np.allclose(drawn(axes, "lat")[:, 0].round(), (1, 2, 3))


def test_seeds_are_averaged_with_an_error_bar():
    one, other = rows()[0], rows(shares=(1.0, 0.7, 0.45))[0]
    (axes,) = layer_figure([one, other]).axes
    assert np.allclose(drawn(axes, "lat")[:, 1], (100, 60, 35))
    (bars,) = axes.containers[0].lines[2]
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    assert np.allclose(lengths, 2 * np.array((0, np.sqrt(200), np.sqrt(200))))


def test_a_panel_per_task_at_the_width_of_a_column_or_a_page():
    tasks = [row for name in "abc" for row in rows(task=name)]
    one, two = layer_figure(tasks), layer_figure(tasks, columns=2)
    assert [len(figure.axes) for figure in (one, two)] == [3, 3]
    assert [figure.get_figwidth() for figure in (one, two)] == [COLUMN, PAGE]


def test_pareto_figure_draws_points_bars_reported_ones_and_the_front():
    reported = [{"panel": "none", "method": "transkimmer", "speedup": 3.0, "score": 90.0}]
    figure = pareto_figure(points() + points("sequence"), reported=reported, reported_title="printed")
    first, second = figure.axes
    assert np.allclose(drawn(first, "lat"), ((1.5, 80), (2.5, 70)))
    assert [3.0, 90.0] in drawn(first, "transkimmer").tolist() and [3.0, 90.0] not in drawn(
        second, "transkimmer"
    ).tolist()
    front = next(line for line in first.lines if line.get_linewidth() == 3.0).get_xydata()
    assert front.tolist() == [[2.5, 70.0], [1.5, 70.0], [1.5, 80.0]]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["Transkimmer", "LAT", FRONT_TITLE, "printed"]


def test_points_below_the_axis_are_counted_in_the_panel():
    panel = pareto_figure(points(), lowest=69.5).axes[0]
    assert panel.get_ylim()[0] == 69.5 and [text.get_text() for text in panel.texts] == ["1 point below 70"]
    assert not pareto_figure(points(), lowest=60.0).axes[0].texts


@pytest.mark.parametrize(("low", "high"), [(1, 1.02), (1, 1.3), (1, 3), (0.7, 2), (1, 11), (0.2, 40), (1, 900)])
def test_ratio_axes_have_a_few_round_ticks_with_room(low, high):
    axes = pareto_figure(points()).axes[0]
    ratio_axis(axes, low, high)
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert 1 <= len(ticks) <= 8 and all(tick == float(f"{tick:.2g}") for tick in ticks)
    gaps = np.diff(np.log(ticks)) / np.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    assert all(gaps > 1 / 10)


@pytest.mark.parametrize("draw", [layer_figure, pareto_figure])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([])


def test_no_text_lies_outside_the_figure_or_on_the_legend(tmp_path):
    everything = [row for name in methods.available() for row in points() for row in [row | {"method": name}]]
    everything = [row | {"title": methods.lookup(row["method"]).traits.title} for row in everything]
    figure = pareto_figure(everything, reported=everything[:1], reported_title="reported, BERT-base")
    save(figure, tmp_path, "figure", ("png",))
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert legend.x0 >= whole.x0 and legend.x1 <= whole.x1 and legend.y1 <= whole.y1
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.y1 <= legend.y0 and box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1
