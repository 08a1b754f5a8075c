"""Score against measured time: what `benchmarks.latency --trained` timed of the runs of a figure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
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


def time_rows(comparison: Comparison, results: Path, paddings: Sequence[str]) -> list[dict[str, Any]]:
    """One row per timed run, batch size and padding of the dense model, which stands at 1; empty without records.

    Times of several machines are not mixed: those of the one timed last count.
    """
    records = list(_latency_records(comparison.task, results))
    if not records:
        return []
    machine = max(records, key=lambda record: record["started_at"])["config"]["extra"]["machine"]
    points = points_of(comparison)
    trained = {record["config_hash"]: point for point in points for record in point.records}
    panels: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        extra = record["config"]["extra"]
        if extra["machine"] != machine:
            log.warning("%s: times on %s count; one of %s is left out", comparison.task, machine, extra["machine"])
            continue
        for padding in [padding for padding in paddings if padding in extra["paddings"]]:
            panel = PANELS[padding].format(extra["batch_size"])
            common = {"task": comparison.task, "panel": panel, "batch_size": extra["batch_size"], "padding": padding}
            common |= {"machine": machine}
            found = [
                common | _row(trained[run], subject["against"][padding], f"{record['config_hash']} {run}")
                for subject in record["metrics"]["subjects"]
                if (run := _trained_run(subject["key"])) in trained
            ]
            if found:
                dense = [common | _row(point, DENSE, "") for point in points if point.method == "dense"]
                panels.setdefault(panel, dense).extend(found)
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


def _latency_records(task: str, results: Path) -> Iterator[Record]:
    for path in sorted((results / "runs" / LATENCY / task).glob("*.json")):
        try:
            record = read_record(path)
        except CorruptRecord:
            continue
        if record["status"] == "ok":
            yield record
