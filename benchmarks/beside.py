"""The dense model of the tables beside the plain trial of the same checkpoint, which it should not fall behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.comparable import Comparison, conditions, own_settings, task_title
from benchmarks.compared import Difference, difference_of
from benchmarks.experiments import KIND as TRAINED
from benchmarks.experiments import DenseTraining
from benchmarks.plain import content_hash
from benchmarks.plain_trial import EPOCHS, OTHERWISE, finished, read
from benchmarks.runs import Record


@dataclass(frozen=True)
class Beside:
    """The dense model of one task beside the plain trials of the same seeds.

    Attributes:
        dense, last: percent, of each seed; the trials' after their last epoch. No dense ones where those hold nothing
            out: `whole` has them. best: that of the trials' best epoch, chosen on the very texts that are scored.
            fewer: as `last`, of trials without the rows that choose the dense model's epoch. whole: of dense models of
            all rows and as many epochs, the last one kept. Each of these two is empty unless every seed has one.
        difference, whole_difference: dense or whole minus last; None where outcomes of texts are unknown.
        device: of both, "cpu" or "cuda". records: of the trials and of `whole`, by hash.
    """

    title: str
    device: str
    metric: str
    seeds: tuple[int, ...]
    dense: tuple[float, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    fewer: tuple[float, ...]
    whole: tuple[float, ...]
    difference: Difference | None
    whole_difference: Difference | None
    records: tuple[str, ...]


def beside(source: Path, comparisons: Iterable[Comparison]) -> list[Beside]:
    """Of each comparison the dense model beside the trials below a folder of results, where there are any.

    Dense models of all rows that stand in none of the comparisons follow. Trials of another length, or on N rows, are
    left out.
    """
    trials = [record for record in read(source) if _is_usual(record["config"])]
    whole = [record for record in finished(source, f"{TRAINED}/*/dense-*.json") if not _held_out(record)]
    found = [one for comparison in comparisons if (one := _beside(comparison, trials, whole)) is not None]
    found = [one for one in found if one.dense or not any(_told(one, other) for other in found if other.dense)]
    others = [one for some in _alone(whole) if (one := _beside(some, trials, whole)) is not None]
    return found + [one for one in others if not any(_told(one, other) for other in found)]


def _told(one: Beside, other: Beside) -> bool:
    """Whether all of `one` stands in `other`."""
    return set(one.records) <= set(other.records)


def _alone(whole: Iterable[Record]) -> Iterator[Comparison]:
    """Dense models of all rows by what they share, whether or not methods started from them."""
    sets: dict[str, list[Record]] = {}
    for record in whole:
        config = record["config"]
        dense = DenseTraining.of(config["extra"])
        if dense is not None and dense.samples is not None and config["max_train_samples"] is not None:
            sets.setdefault(content_hash(conditions(config)), []).append(record)
    for records in sets.values():
        task, dtype = records[0]["config"]["task"], records[0]["config"]["dtype"]
        yield Comparison(task, tuple(records), label=f"{task_title(task, records[0])} ({dtype}, in no table)")


def _beside(comparison: Comparison, trials: Sequence[Record], whole: Sequence[Record]) -> Beside | None:
    dense = {r["config"]["seed"]: r for r in own_settings(comparison.records) if r["config"]["method"] == "dense"}
    training = {seed: DenseTraining.of(record["config"]["extra"]) for seed, record in dense.items()}

    def like_dense(some: Iterable[Record]) -> dict[int, Record]:
        own = [r for r in some if r["config"]["task"] == comparison.task and r["config"]["seed"] in dense]
        return {r["config"]["seed"]: r for r in own if _conditions(r) == _conditions(dense[r["config"]["seed"]])}

    def keeps_last(record: Record) -> bool:
        own, other = DenseTraining.of(record["config"]["extra"]), training.get(record["config"]["seed"])
        return own is not None and other is not None and own == replace(other, keep="last")

    mine = like_dense(record for record in trials if not _held_out(record))
    without = like_dense(record for record in trials if _held_out(record))
    last_kept = like_dense(record for record in whole if keeps_last(record))
    if not mine:
        return None
    split = next(iter(next(iter(mine.values()))["metrics"]["splits"]))
    usual = list(mine.values())
    ours = [dense[seed] for seed in mine if (chosen := training[seed]) is None or chosen.holds_out]
    fewer, kept = ([some[seed] for seed in mine] if mine.keys() <= some.keys() else [] for some in (without, last_kept))
    return Beside(
        title=comparison.title,
        device=usual[0]["config"]["device"],
        metric=comparison.metric,
        seeds=tuple(mine),
        dense=_scores(ours),
        last=_scores(usual),
        best=tuple(max(100 * epoch[split][comparison.metric] for epoch in r["metrics"]["epochs"]) for r in usual),
        fewer=_scores(fewer),
        whole=_scores(kept),
        difference=difference_of(ours, usual) if ours else None,
        whole_difference=difference_of(kept, usual) if kept else None,
        records=tuple(record["config_hash"] for record in (*usual, *fewer, *kept)),
    )


def _scores(records: Iterable[Record]) -> tuple[float, ...]:
    return tuple(100 * record["metrics"]["score"] for record in records)


def _is_usual(config: Mapping[str, Any]) -> bool:
    return config["max_train_samples"] is None and config["extra"]["epochs"] == EPOCHS.get(config["task"], OTHERWISE)


def _held_out(record: Record) -> bool:
    return bool(record["config"]["extra"].get("held_out"))


def _conditions(record: Record) -> list[Any]:
    """What a trial shares with the dense model that it stands beside: checkpoint, precision, and the rows scored."""
    config = record["config"]
    shared = [config[name] for name in ("backbone", "dtype", "device", "max_length")]
    return shared + [config["data"]["splits"][name] for name in record["metrics"]["splits"]]
