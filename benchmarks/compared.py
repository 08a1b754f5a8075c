"""Each method of the published tables against the dense model and its random twin, text by text, with intervals."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.errors import UserError
from benchmarks.experiments import DenseTraining
from benchmarks.outcomes import PREDICTIONS, interval, outcomes_of
from benchmarks.runs import Record, read_record

FAMILY_LEVEL = 0.05  # chance that any difference called decided is none, over all that are judged (Holm)


@dataclass(frozen=True)
class Difference:
    """Score of one model minus that of another on the same texts, in points.

    Attributes:
        low, high: 95 % interval over draws of the texts. p: two-sided, of a normal distribution as wide as these draws.
        decided: after Holm's correction; never where one seed's difference is of the other sign.
        by_seed: each seed's own difference, where there are several. width: standard deviation over the draws.
    """

    points: float
    low: float
    high: float
    p: float
    decided: bool = False
    by_seed: tuple[float, ...] = ()
    width: float = 0.0

    def judged(self, limit: float) -> Difference:
        """Decided if p is at most `limit` and no seed has the other sign than their mean."""
        agree = all(own * self.points >= 0 for own in self.by_seed)
        return replace(self, decided=agree and self.p <= limit)

    def beyond(self, margin: float) -> Difference:
        """How far the difference is from `margin` points instead of from none."""
        return replace(
            self,
            points=self.points - margin,
            low=self.low - margin,
            high=self.high - margin,
            p=_two_sided(self.points - margin, self.width),
            decided=False,
            by_seed=tuple(own - margin for own in self.by_seed),
        )

    @property
    def decided_sign(self) -> int:
        """1 or -1 if decided, else 0."""
        return 0 if not self.decided else 1 if self.points > 0 else -1

    @property
    def text(self) -> str:
        """As tables print it; a star if decided, then the seeds."""
        seeds = f" (seeds {', '.join(f'{own:+.1f}' for own in self.by_seed)})" if self.by_seed else ""
        return f"{self.short}{seeds}"

    @property
    def short(self) -> str:
        """Without the seeds."""
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{'*' if self.decided else ''}"


@dataclass(frozen=True)
class Measured:
    """One method on one task, without padding.

    Attributes:
        rows: training rows of the methods, held-out ones among them. whole: the dense model that they start from has
            all rows, none held out. note: of these what tells the tables apart that have the task.
        split: task and split by name, "mnli/validation_matched". scores: percent, of each seed; score: their mean.
        random_score, random_speedup: of its random twin, None without one. shares: of the tokens, that each layer
            computes; seed_shares: of each seed. trivial: the best score of giving every text the same answer.
        drawn: (draws,) scores on texts drawn anew; None where the outcomes of single texts are unknown, and then the
            differences too.
    """

    table: str
    task: str
    split: str
    metric: str
    model: str
    method: str
    title: str
    score: float
    scores: tuple[float, ...]
    speedup: float
    shares: tuple[float, ...]
    texts: int
    records: tuple[str, ...]
    drawn: NDArray[np.float64] | None = field(compare=False, repr=False)
    random_score: float | None = None
    random_speedup: float | None = None
    seed_shares: tuple[tuple[float, ...], ...] = ()
    trivial: float | None = None
    against_dense: Difference | None = None
    against_random: Difference | None = None
    rows: int = 0
    whole: bool = False
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Table, encoder and task by name: what the splits of a task share."""
        return self.table, self.model, self.split.partition("/")[0]

    @property
    def label(self) -> str:
        """The task, with what tells tables apart."""
        return f"{self.task} ({self.note})" if self.note else self.task


def measured(results: Path) -> list[Measured]:
    """All methods of all Tables 3 and 4 below `results`, dense models first, with differences that are corrected for
    being many. The embedded sets count where there is nothing else.

    Raises:
        UserError: no table, or one whose records are not there.
    """
    rows = [row for path in _tables(results) for row in _read(path)]
    if not rows:
        raise UserError(
            f"no table of scores in {results / 'tables'}; run ./reproduce.sh glue --results {results} first"
        )
    records = {path.stem.rpartition("-")[2]: path for path in (results / "runs" / "finetune").glob("*/*.json")}
    draws = _Draws(records)
    found = []
    for row in rows:
        if row["of"] or row["account"] or row["padding"] not in ("none", "baseline"):
            continue
        same = [other for other in rows if _place(other) == _place(row)]
        dense = next(other for other in same if other["method"] == "dense" and other["padding"] == "baseline")
        twin = next((o for o in same if o["of"] == row["method"] and o["padding"] == "none"), None)
        found.append(_one(row, dense, twin, draws))
    return _corrected([replace(one, note=_note(one, found)) for one in found])


def _note(one: Measured, found: Sequence[Measured]) -> str:
    """What of its training tells a table apart from others that have the task."""
    others = [other for other in found if other.task == one.task and other.table != one.table]
    if not others:
        return ""
    alike = one.whole and any(other.rows == one.rows for other in others)
    return rows_note(one.rows, whole=alike)


def rows_note(rows: int, *, whole: bool) -> str:
    """What a title says of training rows, those of the methods and whether the dense model has more."""
    return f"{rows:,} rows{', dense on all' if whole else ''}"


def _tables(results: Path) -> list[Path]:
    """Embedded sets show the machinery; they count only where nothing else was measured."""
    found = [path for suite in ("glue", "long") for path in (results / "tables").glob(f"{suite}-*.csv")]
    found.sort(key=lambda path: path.stem)
    return [path for path in found if not path.stem.endswith("-embedded")] or found


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row | {"table": path.stem} for row in csv.DictReader(file)]


def _place(row: Mapping[str, str]) -> tuple[str, ...]:
    return row["table"], row["model"], row["split"], row["metric"]


class _Draws:
    """Records and their scores on the texts drawn anew, read once."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._records: dict[str, Record] = {}
        self._drawn: dict[tuple[str, str], NDArray[np.float64] | None] = {}

    def record(self, name: str) -> Record:
        if name not in self._paths:
            raise UserError(f"the record {name} of a table is not there; rerun the command that the table names")
        if name not in self._records:
            self._records[name] = read_record(self._paths[name])
        return self._records[name]

    def of(self, row: Mapping[str, str]) -> NDArray[np.float64] | None:
        """(draws,) percent, seeds averaged; None unless the outcome of each text is known."""
        drawn = [self._of_record(name, _split(row)) for name in row["records"].split()]
        known = [one for one in drawn if one is not None]
        return np.mean(known, axis=0) if len(known) == len(drawn) else None

    def _of_record(self, name: str, split: str) -> NDArray[np.float64] | None:
        if (name, split) not in self._drawn:
            outcomes = outcomes_of(self.record(name), split)
            known = outcomes is not None and outcomes.source == PREDICTIONS
            self._drawn[name, split] = 100 * outcomes.resampled() if outcomes is not None and known else None
        return self._drawn[name, split]

    def scores(self, row: Mapping[str, str]) -> tuple[float, ...]:
        """Percent, of each seed."""
        results = (self.record(name)["metrics"]["splits"][_split(row)] for name in row["records"].split())
        return tuple(100 * result["scores"][row["metric"]] for result in results)


def _split(row: Mapping[str, str]) -> str:
    """The name of a row's split, as records have it."""
    return row["split"].rpartition("/")[2]


def _one(row: Mapping[str, str], dense: Mapping[str, str], twin: Mapping[str, str] | None, draws: _Draws) -> Measured:
    names = tuple(row["records"].split())
    costs = [draws.record(name)["metrics"]["splits"][_split(row)]["cost"] for name in names]
    itself = row["method"] == "dense"
    return Measured(
        table=row["table"],
        task=row["task"],
        split=row["split"],
        metric=row["metric"],
        model=row["model"],
        method=row["method"],
        title=row["title"],
        score=float(row["measured"]),
        scores=draws.scores(row),
        speedup=float(row["speedup"]),
        shares=tuple(float(share) for share in np.mean([cost["ffn_share"] for cost in costs], axis=0)),
        seed_shares=tuple(tuple(map(float, cost["ffn_share"])) for cost in costs),
        trivial=_trivial(row["metric"], draws.record(names[0])["metrics"]["splits"][_split(row)]),
        texts=costs[0]["texts"],
        rows=_training_rows(draws.record(names[0])),
        whole=starts_whole(draws.record(names[0])),
        records=names,
        drawn=draws.of(row),
        random_score=None if twin is None else float(twin["measured"]),
        random_speedup=None if twin is None else float(twin["speedup"]),
        against_dense=None if itself else _difference(row, dense, draws),
        against_random=None if twin is None else _difference(row, twin, draws),
    )


def _trivial(metric: str, result: Mapping[str, Any]) -> float | None:
    """The best score, in percent, of one answer for all texts; None where the labels are unknown."""
    labels = result.get("texts", {}).get("labels")
    if metric in ("pearson", "matthews_correlation"):
        return 0.0
    if not labels or metric not in ("accuracy", "f1"):
        return None
    positive = labels.count("1") / len(labels)
    share = max(labels.count(one) for one in set(labels)) / len(labels)
    return 100 * (2 * positive / (1 + positive) if metric == "f1" else share)


def _training_rows(record: Record) -> int:
    config = record["config"]
    rows = int(next(iter(config["data"]["splits"].values()))["rows"])
    return min(rows, config["max_train_samples"] or rows)


def starts_whole(record: Record) -> bool:
    """Whether the dense model that a run starts from has all rows, none held out."""
    dense = DenseTraining.of(record["config"]["extra"])
    return dense is not None and not dense.holds_out


def _difference(row: Mapping[str, str], other: Mapping[str, str], draws: _Draws) -> Difference | None:
    mine, theirs = draws.of(row), draws.of(other)
    if mine is None or theirs is None:
        return None
    return paired(draws.scores(row), draws.scores(other), mine - theirs)


def paired(mine: Sequence[float], theirs: Sequence[float], drawn: NDArray[np.float64]) -> Difference:
    """The difference of two mean scores, in points, with what its draws (draws,) say about it.

    Args:
        mine, theirs: percent, of each seed; seed by seed they are compared where both have as many.
    """
    points, (low, high), width = float(np.mean(mine) - np.mean(theirs)), interval(drawn), float(np.std(drawn))
    by_seed = (
        tuple(own - other for own, other in zip(mine, theirs, strict=True)) if len(mine) == len(theirs) > 1 else ()
    )
    return Difference(points, low, high, _two_sided(points, width), by_seed=by_seed, width=width)


def _two_sided(points: float, width: float) -> float:
    """p of a normal distribution."""
    return float(2 * norm.sf(abs(points) / width)) if width else float(points == 0)


def difference_of(ours: Sequence[Record], theirs: Sequence[Record]) -> Difference | None:
    """Mean score of some runs minus that of others of the same seeds; None where outcomes of texts are unknown."""
    drawn = []
    for some in (ours, theirs):
        known = [one.resampled() for record in some if (one := outcomes_of(record)) and one.source == PREDICTIONS]
        if len(known) < len(some):
            return None
        drawn.append(100 * np.mean(known, axis=0))
    mine, others = ([100 * record["metrics"]["score"] for record in some] for some in (ours, theirs))
    return paired(mine, others, drawn[0] - drawn[1])


def _corrected(found: Sequence[Measured]) -> list[Measured]:
    """Holm's step-down over all differences."""
    every = [d for one in found for d in (one.against_dense, one.against_random) if d is not None]
    limit = holm([difference.p for difference in every])

    def judged(difference: Difference | None) -> Difference | None:
        return None if difference is None else difference.judged(limit)

    return [
        replace(one, against_dense=judged(one.against_dense), against_random=judged(one.against_random))
        for one in found
    ]


def holm(values: Sequence[float], level: float = FAMILY_LEVEL) -> float:
    """Largest p that Holm's step-down procedure still rejects; -1 if none."""
    limit, ordered = -1.0, sorted(values)
    for place, p in enumerate(ordered):
        if p > level / (len(ordered) - place):
            break
        limit = p
    return limit
