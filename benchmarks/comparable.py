"""Records that may stand in one figure: of one task, on the same rows, encoder, input length, recipe and arithmetic.

A recipe that has changed since is another one.

What differs between them is the method, its setting, and the seed. Nothing is trained or read here but records, so that
figures can be drawn anew wherever these lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import methods
from benchmarks.errors import UserError
from benchmarks.experiments import KIND, TURNED_KIND, DenseTraining
from benchmarks.plain import canonical_json, plain
from benchmarks.runs import CorruptRecord, Record, read_record
from benchmarks.tasks import OFFICIAL_ROWS, TASKS
from methods.families import SPECS

USER_SKIM_WEIGHT = 0.5  # of tasks that are folders of the user's


@dataclass(frozen=True)
class Comparison:
    """The comparable records of one task.

    Attributes:
        records: finished ones, sorted by method and seed. others: how many of this task fit no figure with them.
        label: a title of its own, where several comparisons of a task stand side by side.
    """

    task: str
    records: tuple[Record, ...]
    others: int = 0
    label: str = ""

    @property
    def title(self) -> str:
        """The task as tables print it, with a word on rows that are not the official split."""
        return self.label or task_title(self.task, self.records[0])

    @property
    def metric(self) -> str:
        """Name of the headline score."""
        return str(self.records[0]["metrics"]["metric"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(sorted({record["config"]["seed"] for record in self.records}))

    def of(self, method: str) -> tuple[Record, ...]:
        """Records of one method."""
        return tuple(record for record in self.records if record["config"]["method"] == method)

    def narrowed(self, names: Sequence[str]) -> Comparison:
        """Only these methods."""
        return replace(self, records=tuple(r for r in self.records if r["config"]["method"] in names))


def task_title(name: str, record: Record) -> str:
    """The title of a task, with a word on rows that are not the official ones, as the commands that train print it."""
    title, config = TASKS[name].title if name in TASKS else name, record["config"]
    data = config["data"]
    if "divided" in data:
        return f"{title} ({data['divided']} by {data['by']})"
    train, *others = (split["rows"] for split in data["splits"].values())
    extra, limit = config["extra"], config["max_train_samples"]
    limits = (limit and max(limit, extra.get("dense_train_samples") or 0), extra.get("max_eval_samples"))
    official = OFFICIAL_ROWS.get(name, (0, 0))
    sizes = zip((train, sum(others)), limits, official, strict=True)
    partial = any(rows < everything and (limit is None or rows < limit) for rows, limit, everything in sizes)
    return f"{title} (sample)" if partial else title


def first_split(record: Record) -> Mapping[str, Any]:
    """Scores and cost on the split that the record's score is of."""
    return next(iter(record["metrics"]["splits"].values()))


def read_comparisons(results: Path, tasks: Sequence[str] = ()) -> list[Comparison]:
    """The largest set of comparable records of each task below `results`/runs, in the order of `tasks` or of `TASKS`.

    Raises:
        UserError: no finished records, or none of a task that was asked for; it says what there is.
    """
    found = finished_runs(results)
    places = {name: place for place, name in enumerate(TASKS)}
    known = sorted(found, key=lambda name: (places.get(name, len(places)), name))
    if missing := [name for name in tasks if name not in found]:
        raise UserError(f"no finished runs of task '{missing[0]}' in {results / 'runs'}; there are: {', '.join(known)}")
    return [_largest(name, found[name]) for name in tasks or known]


def comparisons_around(results: Path, some: Iterable[tuple[Collection[str], str]]) -> list[Comparison]:
    """The comparable records around each of some: the set that has most of its hashes.

    Args:
        some: hashes of records of a task, and its title.
    Raises:
        UserError: no finished records.
    """
    sets = [(task, _in_order(own)) for task, records in finished_runs(results).items() for own in _sets(records)]
    found = []
    for hashes, label in some:
        task, own = max(sets, key=lambda one: sum(record["config_hash"] in hashes for record in one[1]))
        found.append(Comparison(task, own, label=label))
    return found


def finished_runs(results: Path) -> dict[str, list[Record]]:
    """Finished runs below `results`/runs by task."""
    found: dict[str, list[Record]] = {}
    for kind in (KIND, TURNED_KIND):
        for path in sorted((results / "runs" / kind).glob("*/*.json")):
            try:
                record = read_record(path)
            except CorruptRecord:
                continue  # `python -m benchmarks.runs verify` names them
            if record["status"] == "ok":
                found.setdefault(record["config"]["task"], []).append(record)
    if not found:
        raise UserError(f"no finished runs in {results / 'runs'}; run ./reproduce.sh glue first, or name --results")
    return found


def _largest(task: str, records: Sequence[Record]) -> Comparison:
    """Of the sets of comparable records, that with most methods, then most records, then the newest one."""

    def size(group: list[Record]) -> tuple[int, int, str]:
        return len({r["config"]["method"] for r in group}), len(group), max(r["started_at"] for r in group)

    best = max(_sets(records), key=size)
    return Comparison(task, _in_order(best), len(records) - len(best))


def _sets(records: Iterable[Record]) -> list[list[Record]]:
    """The records of a task in sets of comparable ones."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_common(record["config"]), []).append(record)
    return list(groups.values())


def _in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda record: (record["config"]["method"], record["config"]["seed"])))


def _common(config: Mapping[str, Any]) -> str:
    """What the runs of one figure share."""
    return canonical_json({**conditions(config), "current": is_current(config)})


def conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs must share to be compared, whatever their recipes: rows, encoder, arithmetic, the dense model's."""
    names = ("task", "data", "backbone", "recipe", "max_length", "max_train_samples", "dtype", "device")
    others = {"rows": config["extra"].get("max_eval_samples")}
    others |= dense.described() if (dense := DenseTraining.of(config["extra"])) else {}
    return {name: config[name] for name in names} | others


def own_settings(records: Iterable[Record]) -> list[Record]:
    """Trained runs at their method's own setting: no points of a sweep, no dense models that only others start from.

    It is the recipe's, or, where none has that (records of an earlier recipe), that of the method's first run.
    """
    trained: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == KIND and not _is_start(record["config"]):
            trained.setdefault(record["config"]["method"], []).append(record)
    return [record for runs in trained.values() for record in runs if _setting(record) == _own(runs)]


def _is_start(config: Mapping[str, Any]) -> bool:
    """Whether a dense run holds rows out for others' sake, not for its own: a threshold on spans, the best epoch."""
    extra, dense = config["extra"], DenseTraining.of(config["extra"])
    own = "stride" in extra or (dense is not None and dense.holds_out)
    return config["method"] == "dense" and extra["held_out"] and not own


def _setting(record: Record) -> str:
    """What sets a run apart from others of its method: options, of the dense model its stages."""
    config = record["config"]
    return canonical_json(config["stages"] if config["method"] == "dense" else config["options"])


def _own(runs: Sequence[Record]) -> str:
    by_recipe = [record for record in runs if has_recipe_options(record["config"])]
    return _setting(min(by_recipe or runs, key=lambda record: record["started_at"]))


def has_recipe_options(config: Mapping[str, Any]) -> bool:
    """Whether a run has the options that its recipe sets today."""
    cls = methods.lookup(config["method"])
    options = cls.options_class(**cls.task_options(described(config), config["recipe"]))
    return canonical_json(options.recorded()) == canonical_json(config["options"])


def operating_points(records: Sequence[Record]) -> list[Record]:
    """Runs that differ from their method's own setting in what its sweep turns at most."""
    own = own_settings(records)
    models = {record["config_hash"] for record in own}
    fixed = {record["config"]["method"]: _unswept(record["config"]) for record in own}
    points = []
    for record in records:
        config = record["config"]
        if record["kind"] == TURNED_KIND:
            fits = config["extra"]["trained"] in models
        else:
            fits = config["method"] in fixed and _unswept(config) == fixed[config["method"]]
            fits = fits and (config["method"] != "dense" or record["config_hash"] in models)
        points += [record] if fits else []
    return points


def _unswept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a sweep leaves as they are."""
    cls, options = methods.lookup(config["method"]), config["options"]
    swept = cls.sweep_options(1.0, options, 1) if cls.sweep is not None and cls.sweep.retrains else {}
    return {name: value for name, value in options.items() if name not in swept}


def described(config: Mapping[str, Any]) -> SimpleNamespace:
    """The task of a run, as far as recipes read it."""
    known = TASKS.get(config["task"])
    return SimpleNamespace(
        name=config["task"],
        kind=known.kind if known else None,
        sequence_length=config["max_length"],
        skim_weight=known.skim_weight if known else USER_SKIM_WEIGHT,
    )


def is_current(config: Mapping[str, Any]) -> bool:
    """Whether a run was trained in the stages that its recipe has today, whatever the family of its encoder."""
    cls, task, dense = methods.lookup(config["method"]), described(config), DenseTraining.of(config["extra"])
    planned = (cls.recipe_stages(task, config["recipe"], family) for family in SPECS)
    return any(plain(dense.stages(stages) if dense else stages, "stages") == config["stages"] for stages in planned)
