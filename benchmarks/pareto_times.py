"""Score against measured time: what `benchmarks.latency --trained` timed of the runs of a figure."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparable import Comparison
from benchmarks.pareto_rows import Point, flag_front, points_of
from benchmarks.runs import CorruptRecord, Record, read_record

log = logging.getLogger(__name__)

LATENCY = "latency"  # kind of the records
DENSE: Mapping[str, Any] = {"wall": (1.0, None, None), "flops": 1.0}
PANELS = {  # the dense model that time is compared with
    "none": "Batch of {}, dense unpadded",
    "batch": "Batch of {}, dense padded to the batch",
    "sequence": "Batch of {}, dense padded to the task's length",
}
WAYS = {"dtype": "{}", "threads": "{} threads", "max_length": "up to {} tokens"}  # of timing, as panels name them


def time_rows(comparison: Comparison, results: Path, paddings: Sequence[str]) -> list[dict[str, Any]]:
    """One row per timed run, way of timing and padding of the dense model, which stands at 1; empty without records.

    Times of several machines are not mixed: those of the one timed last count. Those of several types, numbers of
    threads or lengths are panels of their own.
    """
    points = points_of(comparison)
    trained = {record["config_hash"]: point for point in points for record in point.records}
    panels: dict[str, list[dict[str, Any]]] = {}
    records = list(_of_one_machine(comparison.task, _latency_records(comparison.task, results, trained)))
    ways = [_way(record) for record in records]
    several = [name for name in WAYS if len({way[name] for way in ways}) > 1]
    for record, way in zip(records, ways, strict=True):
        extra = record["config"]["extra"]
        for padding in [padding for padding in paddings if padding in extra["paddings"]]:
            panel = ", ".join(
                [PANELS[padding].format(extra["batch_size"]), *(WAYS[name].format(way[name]) for name in several)]
            )
            common = {"task": comparison.task, "panel": panel, "batch_size": extra["batch_size"], "padding": padding}
            common |= {"machine": extra["machine"], **way}
            dense = [common | _row(point, DENSE, "") for point in points if point.method == "dense"]
            panels.setdefault(panel, dense).extend(
                common | _row(trained[run], subject["against"][padding], f"{record['config_hash']} {run}")
                for subject in record["metrics"]["subjects"]
                if (run := _trained_run(subject["key"])) in trained
            )
    for rows in panels.values():
        flag_front(rows, "on_front")
    return [row for rows in panels.values() for row in rows]


def _row(point: Point, against: Mapping[str, Any], records: str) -> dict[str, Any]:
    (ratio, low, high), (score_low, score_high) = against["wall"], point.interval()
    return {
        "method": point.method,
        "title": point.title,
        "setting": point.setting,
        "speedup": ratio,
        "speedup_low": low,
        "speedup_high": high,
        "flops_speedup": against["flops"],
        "score": point.score,
        "score_low": score_low,
        "score_high": score_high,
        "records": records or " ".join(record["config_hash"] for record in point.records),
    }


def _trained_run(key: str) -> str:
    """Hash of the run that trained a timed reducer: the end of its folder's name."""
    return key.rpartition("-")[2]


def _way(record: Record) -> dict[str, Any]:
    """How a record was timed, as `WAYS` names it."""
    fields = record["config"] | record["config"]["extra"]
    return {name: fields[name] for name in WAYS}


def _of_one_machine(task: str, records: Iterable[Record]) -> Iterator[Record]:
    """Those of the machine timed last, which come first; others are told of."""
    kept = None
    for record in sorted(records, key=lambda record: record["started_at"], reverse=True):
        machine = record["config"]["extra"]["machine"]
        kept = kept or machine
        if machine == kept:
            yield record
        else:
            log.warning("%s: times on %s count; one of %s is left out", task, kept, machine)


def _latency_records(task: str, results: Path, trained: Container[str]) -> Iterator[Record]:
    """Finished records in which one of the runs `trained` was timed."""
    for path in sorted((results / "runs" / LATENCY / task).glob("*.json")):
        try:
            record = read_record(path)
        except CorruptRecord:
            continue
        keys = [subject["key"] for subject in record["metrics"].get("subjects", ())]
        if record["status"] == "ok" and any(_trained_run(key) in trained for key in keys):
            yield record
