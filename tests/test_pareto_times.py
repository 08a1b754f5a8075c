"""Score against measured time: what was timed of the runs of a figure, each way of timing in a panel of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import pareto
from benchmarks.cli import run_command
from benchmarks.comparable import read_comparisons
from benchmarks.pareto_times import time_rows
from benchmarks.runs import RunConfig, RunStore, make_record
from tests.written_records import write_record


def timed(
    results: Path, trained: str, *, machine: str = "A", started_at: str = "2026-01-02", threads: int = 1, **way: object
) -> None:
    """A record of `benchmarks.latency` in which the run `trained` is 1.5 times as fast as dense without padding."""
    against = {"none": {"flops": 2.0, "wall": [1.5, 1.4, 1.6]}}
    subjects = [{"key": "dense-unpadded", "against": against}, {"key": f"lat@sst2-lat-{trained}", "against": against}]
    extra = {"machine": machine, "batch_size": 32, "paddings": ["none"], "threads": threads}
    how = {"max_length": 64, "extra": extra} | way
    config = RunConfig(kind="latency", task="sst2", method="interleaved", backbone="b", data={}, seed=None, **how)
    record = make_record(config, started_at=started_at, wall_s=1.0, metrics={"subjects": subjects})
    RunStore(results).write(config, record)


def test_measured_times_stand_beside_where_there_are_any(tmp_path, capsys):
    write_record(tmp_path, "dense", score=0.9, speedup=1.0, task="sst2")
    record = write_record(tmp_path, "lat", score=0.88, speedup=2.0, task="sst2")
    timed(tmp_path, record["config_hash"])
    timed(tmp_path, record["config_hash"], machine="B", started_at="2026-01-01")
    assert run_command(pareto.main, ["--from-records", "--results", str(tmp_path), "--quiet"]) == 0
    dense, row = pd.read_csv(tmp_path / "tables" / "pareto-sst2-time.csv").to_dict("records")
    assert (dense["method"], dense["speedup"], dense["score"]) == ("dense", 1.0, 90.0)
    assert (row["speedup"], row["speedup_low"], row["speedup_high"], row["score"]) == (1.5, 1.4, 1.6, 88.0)
    assert row["machine"] == "A" and row["batch_size"] == 32 and row["flops_speedup"] == 2.0
    assert "Batch of 32, dense unpadded" in (tmp_path / "figures" / "pareto-sst2-time.svg").read_text()


@pytest.mark.parametrize(
    ("other", "titles"),
    [
        ({"dtype": "bfloat16"}, ("float32", "bfloat16")),
        ({"threads": 8}, ("1 threads", "8 threads")),
        ({"max_length": 32}, ("up to 64 tokens", "up to 32 tokens")),
    ],
)
def test_times_of_several_types_threads_or_lengths_stand_apart(tmp_path, other, titles):
    """Also a later record of another machine counts for nothing where nothing in it was trained."""
    write_record(tmp_path, "dense", score=0.9, speedup=1.0, task="sst2")
    record = write_record(tmp_path, "lat", score=0.88, speedup=2.0, task="sst2")
    timed(tmp_path, record["config_hash"])
    timed(tmp_path, record["config_hash"], started_at="2026-01-01", **other)
    timed(tmp_path, "0123456789ab", machine="B", started_at="2026-01-03", threads=2)
    rows = time_rows(read_comparisons(tmp_path)[0], tmp_path, ["none"])
    panels = [f"Batch of 32, dense unpadded, {title}" for title in titles]
    assert [(row["panel"], row["method"]) for row in rows] == [
        (panel, method) for panel in panels for method in ("dense", "lat")
    ]
    assert all(row["on_front"] for row in rows)
    changed = next(iter(other))
    assert [row[changed] for row in rows[2:]] == [other[changed]] * 2 and rows[0][changed] != other[changed]


def test_times_of_runs_that_are_gone_draw_nothing(tmp_path):
    write_record(tmp_path, "dense", score=0.9, speedup=1.0, task="sst2")
    write_record(tmp_path, "lat", score=0.88, speedup=2.0, task="sst2")
    timed(tmp_path, "0123456789ab")
    assert run_command(pareto.main, ["--from-records", "--results", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "tables" / "pareto-sst2.csv").exists()
    assert not (tmp_path / "tables" / "pareto-sst2-time.csv").exists()
