"""Score against measured time: what was timed of the runs of a figure, each way of timing in a panel of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks import pareto
from benchmarks.cli import run_command
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


def test_times_of_runs_that_are_gone_draw_nothing(tmp_path):
    write_record(tmp_path, "dense", score=0.9, speedup=1.0, task="sst2")
    write_record(tmp_path, "lat", score=0.88, speedup=2.0, task="sst2")
    timed(tmp_path, "0123456789ab")
    assert run_command(pareto.main, ["--from-records", "--results", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "tables" / "pareto-sst2.csv").exists()
    assert not (tmp_path / "tables" / "pareto-sst2-time.csv").exists()
