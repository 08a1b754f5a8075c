"""Operating points from records: scores with intervals, speed-ups, fronts and hypervolumes, per padding setting."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

import methods
from benchmarks.comparable import Comparison, first_split, has_recipe_options, operating_points, own_settings
from benchmarks.experiments import TURNED_KIND
from benchmarks.outcomes import PREDICTIONS, interval, outcomes_of
from benchmarks.pareto_runs import setting_text
from benchmarks.runs import Record
from plots.style import lines_of

OWN_SETTING = "recipe"
UNPADDED = "Dense, unpadded"
WORST_DROP = 10.0  # points of score below the dense model's: where hypervolume begins, at a speed-up of 1
VOLUME_DRAWS = 200  # of the draws, for intervals of hypervolumes
MEASURED_METRIC = {"squad_f1": "f1"}  # as the papers call it


@dataclass(frozen=True)
class Point:
    """One setting of a method, all seeds.

    Attributes:
        resampled: (draws,) scores in percent of texts (and, of several, seeds) drawn anew; None if unknown.
    """

    method: str
    title: str
    setting: str
    records: tuple[Record, ...]
    resampled: NDArray[np.float64] | None
    interval_from: str

    @property
    def score(self) -> float:
        """Mean over seeds, percent."""
        return 100 * float(np.mean([record["metrics"]["score"] for record in self.records]))

    def interval(self) -> tuple[float | None, float | None]:
        """Of the score, percent."""
        return (None, None) if self.resampled is None else interval(self.resampled)

    @property
    def seeds(self) -> frozenset[int]:
        """Of the runs."""
        return frozenset(record["config"]["seed"] for record in self.records)

    def speedups(self, padding: str, key: str = "speedup") -> list[float]:
        """Of each seed."""
        return [first_split(record)["cost"]["padding"][padding][key] for record in self.records]


def points_of(comparison: Comparison) -> list[Point]:
    """All operating points, by method and speed-up."""
    records = operating_points(comparison.records)
    own = {record["config_hash"] for record in own_settings(records)}
    others = {record["config"]["method"] for record in records if record["config_hash"] not in own}
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        config = record["config"]
        is_own = record["config_hash"] in own and (config["method"] not in others or has_recipe_options(config))
        setting = OWN_SETTING if is_own else setting_of(record)
        groups.setdefault((record["config"]["method"], setting), []).append(record)
    points = [_point(method, setting, records) for (method, setting), records in groups.items()]
    places = {
        name: place for place, name in enumerate(lines_of({"title": p.title, "method": p.method} for p in points))
    }
    return sorted(points, key=lambda point: (places[point.title], np.mean(point.speedups("none")), point.setting))


def setting_of(record: Record) -> str:
    """The setting of a run, for people."""
    config = record["config"]
    if record["kind"] == TURNED_KIND:
        return setting_text(config["extra"]["swept"], config["extra"]["setting"])
    swept = methods.lookup(config["method"]).sweep
    if swept is None or not swept.retrains:
        return OWN_SETTING
    return setting_text(swept.option, config["options"][swept.option])


def _point(method: str, setting: str, records: Sequence[Record]) -> Point:
    found = [outcomes_of(record) for record in records]
    known = [one for one in found if one is not None]
    title = methods.lookup(method).traits.title
    if len(known) < len(records):
        return Point(method, title, setting, tuple(records), None, "")
    resampled = np.stack([100 * one.resampled() for one in known])
    source = PREDICTIONS if all(one.source == PREDICTIONS for one in known) else known[0].source
    if len(records) > 1:
        seeds = np.random.default_rng(len(records)).integers(0, len(records), resampled.shape)
        resampled, source = np.take_along_axis(resampled, seeds, axis=0), f"{source}, seeds"
    return Point(method, title, setting, tuple(records), resampled.mean(axis=0), source)


def pareto_rows(comparison: Comparison, paddings: Sequence[str]) -> list[dict[str, Any]]:
    """One row per point and padding setting, with flags of the fronts.

    The dense model stands at 1 in every setting; where there is padding, "Dense, unpadded" is what removing it alone
    gives.
    """
    rows = []
    points = points_of(comparison)
    for padding in paddings:
        mine = [_row(comparison, point, padding, point.title, "speedup") for point in points]
        dense = [point for point in points if point.method == "dense"]
        for row in mine:
            if row["method"] == "dense":
                row |= {"speedup": 1.0, "speedup_low": None, "speedup_high": None}
        if padding != "none":
            mine += [_row(comparison, p, padding, UNPADDED, "speedup_of_unpadding_alone") for p in dense]
        flag_front(mine, "on_front")
        for title in dict.fromkeys(row["title"] for row in mine):
            flag_front([row for row in mine if row["title"] == title], "on_own_front")
        rows += mine
    return rows


def _row(comparison: Comparison, point: Point, padding: str, title: str, key: str) -> dict[str, Any]:
    speeds = point.speedups(padding, key)
    low, high = point.interval()
    return {
        "task": comparison.task,
        "metric": comparison.metric,
        "method": point.method,
        "title": title,
        "hollow": title == UNPADDED,
        "setting": point.setting,
        "seeds": len(point.records),
        "padding": padding,
        "speedup": float(np.mean(speeds)),
        "speedup_low": min(speeds) if len(speeds) > 1 else None,
        "speedup_high": max(speeds) if len(speeds) > 1 else None,
        "score": point.score,
        "score_low": low,
        "score_high": high,
        "interval_from": point.interval_from,
        "records": " ".join(record["config_hash"] for record in point.records),
    }


def flag_front(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Mark the rows that no other one beats in score and speed-up."""
    values = np.array([(row["speedup"], row["score"]) for row in rows])
    for row, best in zip(rows, moocore.is_nondominated(values, maximise=True, keep_weakly=True), strict=True):
        row[name] = bool(best)


def hypervolumes(comparison: Comparison, paddings: Sequence[str]) -> list[dict[str, Any]]:
    """Per padding setting and method: the area that its points dominate, in points of score times speed-ups above 1.

    It begins at a speed-up of 1 and `WORST_DROP` points below the dense model, so that what loses more counts for
    nothing. Intervals are over draws of texts, the dense model's included.
    """
    points = points_of(comparison)
    dense = [point for point in points if point.method == "dense"]
    others = [point for point in points if point.method != "dense"]
    if not dense or not others:
        return []
    draws = _drawn(points)
    rows = []
    for padding in paddings:
        for method in dict.fromkeys(point.method for point in others):
            mine = [point for point in others if point.method == method]
            speeds = [float(np.mean(point.speedups(padding))) for point in mine]
            found = _volume(speeds, [point.score for point in mine], dense[0].score)
            row: dict[str, Any] = {"task": comparison.task, "padding": padding, "method": method}
            row |= {"title": mine[0].title}
            row |= {"points": len(mine), "hypervolume": found, "hypervolume_low": None, "hypervolume_high": None}
            if draws is not None:
                places = [points.index(point) for point in mine]
                base = draws[points.index(dense[0])]
                volumes = [_volume(speeds, draws[places, i], base[i]) for i in range(draws.shape[1])]
                row["hypervolume_low"], row["hypervolume_high"] = interval(np.array(volumes))
            rows.append(row)
    return rows


def _drawn(points: Sequence[Point]) -> NDArray[np.float64] | None:
    """(points, draws) scores; None where any is unknown."""
    known = [point.resampled[:VOLUME_DRAWS] for point in points if point.resampled is not None]
    return np.stack(known) if len(known) == len(points) else None


def _volume(speeds: Sequence[float], scores: Iterable[float], dense: float) -> float:
    values = np.array(list(zip(speeds, scores, strict=True)))
    return float(moocore.hypervolume(values, ref=(1.0, dense - WORST_DROP), maximise=True))


@functools.cache
def _printed() -> list[Mapping[str, Any]]:
    from benchmarks.reported import load_reported

    frame = load_reported("transkimmer")
    kept = frame[frame["table"].isin(("3", "4")) & (frame["backbone"] == "bert-base") & (frame["method"] != "dense")]
    kept = kept[kept["convention"].str.startswith("flops")]  # no times on an axis of FLOPs
    return kept[kept["value"].notna() & kept["speedup"].notna()].to_dict("records")


def reported_rows(comparison: Comparison, paddings: Sequence[str]) -> list[dict[str, Any]]:
    """What the Transkimmer paper prints for BERT-base on this task, in the same form; an unlabelled padding is any."""
    metric = MEASURED_METRIC.get(comparison.metric, comparison.metric)
    rows = []
    for cell in _printed():
        if cell["task"] == comparison.task and cell["metric"] == metric:
            fitting = [padding for padding in paddings if cell["padding"] in ("", padding)]
            common = {"method": cell["method"], "speedup": cell["speedup"], "score": cell["value"]}
            rows += [common | {"padding": padding} for padding in fitting]
    return rows
