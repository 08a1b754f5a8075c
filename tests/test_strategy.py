"""`python -m benchmarks.strategy`: curves and areas are those of the records, and only of comparable ones."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks import figures
from benchmarks.cli import run_command
from benchmarks.comparable import read_comparisons
from benchmarks.strategy import main
from tests.written_records import write_record


@pytest.fixture
def results(tmp_path):
    write_record(tmp_path, "dense", shares=(1.0, 1.0, 1.0), speedup=1.0)
    write_record(tmp_path, "transkimmer", shares=(1.0, 0.5, 0.3), speedup=1.6)
    write_record(tmp_path, "transkimmer", shares=(0.8, 0.5, 0.3), speedup=1.8, seed=43)
    write_record(tmp_path, "lat", shares=(0.9, 0.6, 0.3), speedup=1.7)
    write_record(tmp_path, "random", shares=(0.9, 0.6, 0.3), options={"keep_schedule": (0.9, 0.6, 0.3)})
    return tmp_path


def table(results) -> pd.DataFrame:
    return pd.read_csv(results / "tables" / "strategy.csv").set_index("method")


def run(results, *arguments) -> int:
    return run_command(main, ["--results", str(results), "--quiet", *arguments])


def test_the_table_has_shares_area_and_flops_of_the_records(results):
    assert run(results) == 0
    frame = table(results)
    assert list(frame.index) == ["dense", "transkimmer", "lat"]
    row = frame.loc["transkimmer"]
    assert row[["layer_1", "layer_2", "layer_3"]].tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert row["area"] == pytest.approx(1.7 / 3, rel=1e-5) and row["seeds"] == 2
    assert row["flops_ratio"] == pytest.approx((1 / 1.6 + 1 / 1.8) / 2, rel=1e-5)
    assert len(row["records"].split()) == 2


def test_figures_are_written_for_each_task_and_for_all(results):
    write_record(results, "lat", task="sst2")
    assert run(results) == 0
    names = {path.name for path in (results / "figures").iterdir()}
    assert names == {
        f"{name}.{suffix}"
        for name in ("strategy", "strategy-mood", "strategy-sst2")
        for suffix in ("svg", "png", "pdf")
    }


def test_points_of_a_sweep_and_starting_points_are_no_lines(results):
    write_record(results, "transkimmer", shares=(0.1, 0.1, 0.1), options={"skim_weight": 4.0})
    held = {"max_eval_samples": None, "eval_batch_size": 32, "held_out": True}
    write_record(results, "dense", shares=(0.5, 0.5, 0.5), extra=held)
    assert run(results) == 0
    assert table(results).loc["transkimmer", "layer_1"] == pytest.approx(0.9)
    assert table(results).loc["dense", "layer_1"] == 1.0


def test_runs_on_other_rows_are_left_out_and_said(results, capsys):
    other = {"source": "data_dir", "splits": {"train": {"rows": 7}, "validation": {"rows": 40}}}
    write_record(results, "ltp", data=other)
    assert run_command(main, ["--results", str(results)]) == 0
    assert "ltp" not in table(results).index
    assert "1 runs on other rows, encoders or recipes are left out" in capsys.readouterr().out
    assert "are left out" in (results / "tables" / "strategy.md").read_text()


def test_records_of_an_earlier_recipe_have_a_figure_of_their_own(tmp_path):
    old = [{"name": "fine_tune", "epochs": 99}]
    write_record(tmp_path, "dense", speedup=1.0, stages=old)
    write_record(tmp_path, "lat", shares=(0.9, 0.6, 0.3), stages=old, options={"speedup": 1.7})
    write_record(tmp_path, "lat", shares=(0.1, 0.1, 0.1))
    assert run(tmp_path) == 0
    assert table(tmp_path)["layer_1"].to_dict() == pytest.approx({"dense": 1.0, "lat": 0.9})


def test_tasks_and_methods_are_chosen_by_name(results):
    write_record(results, "lat", task="sst2")
    assert run(results, "--tasks", "mood", "--methods", "lat") == 0
    frame = pd.read_csv(results / "tables" / "strategy.csv")
    assert frame[["task", "method"]].to_numpy().tolist() == [["mood", "lat"]]


def test_a_divided_or_partial_data_set_says_so_in_its_title(tmp_path):
    rows = {"train": {"rows": 90}, "test": {"rows": 40}}
    write_record(tmp_path, "lat", task="squad_v2", data={"splits": rows, "divided": "validation", "by": "title"})
    write_record(tmp_path, "lat", task="sst2", max_train_samples=90)
    titles = {comparison.task: comparison.title for comparison in read_comparisons(tmp_path)}
    assert titles == {"squad_v2": "SQuAD v2.0 (validation by title)", "sst2": "SST-2 (sample)"}


def test_both_figures_are_drawn_by_one_command(results):
    assert run_command(figures.main, ["--results", str(results), "--quiet"]) == 0
    assert {"strategy-mood.svg", "pareto-mood.svg"} <= {path.name for path in (results / "figures").iterdir()}


def test_starting_points_alone_are_no_figure(tmp_path, capsys):
    write_record(tmp_path, "dense", extra={"max_eval_samples": None, "eval_batch_size": 32, "held_out": True})
    assert run(tmp_path) == 2
    assert "no finished runs of a method at its own setting in" in capsys.readouterr().err


def test_unreadable_and_failed_records_are_passed_over(results):
    (results / "runs" / "finetune" / "mood" / "top-000000000000.json").write_text("{")
    assert run(results) == 0 and "top" not in table(results).index
