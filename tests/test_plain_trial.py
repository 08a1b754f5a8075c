"""The plain trial: it learns, one seed gives one result, and the page of findings says what it gave."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks import findings, plain_trial
from benchmarks.beside import beside
from benchmarks.cli import run_command
from benchmarks.comparable import comparisons_around, read_comparisons
from benchmarks.experiment_data import training_features
from benchmarks.experiments import DenseTraining
from benchmarks.tasks import get_task
from methods import lookup
from tests.small_world import write_model, write_sentences
from tests.written_records import write_record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain_trial")
    model, data = write_model(root / "model"), write_sentences(root / "data", rows=96)
    grades = data / "grade"
    grades.mkdir()
    for split in ("train", "validation"):
        rows = pd.read_csv(data / "mood" / f"{split}.csv")
        rows.assign(label=rows["label"] * 2.5 + rows["sentence"].str.len() / 100).to_csv(grades / f"{split}.csv")
    return ["--model", str(model), "--data-dir", str(data), "--device", "cpu", "--quiet"]


def tried(world, results, *arguments):
    assert run_command(plain_trial.main, [*world, "--results", str(results), *arguments]) == 0
    return plain_trial.read(results / "scratch") or plain_trial.read(results)


def test_it_learns_what_can_be_learnt(world, tmp_path, monkeypatch):
    monkeypatch.setattr(plain_trial, "LEARNING_RATE", 2e-3)
    (record,) = tried(world, tmp_path, "--tasks", "mood", "--epochs", "20")
    scores = [epoch["validation"]["accuracy"] for epoch in record["metrics"]["epochs"]]
    assert len(scores) == 20 and scores[-1] > 0.95 and record["metrics"]["training_rows"] == 96
    assert record["config"]["extra"]["learning_rate"] == 2e-3
    assert record["metrics"]["splits"]["validation"]["scores"]["accuracy"] == record["metrics"]["score"] == scores[-1]


def test_a_seed_gives_one_result_and_is_tried_once(world, tmp_path, capsys):
    arguments = ["--tasks", "mood", "grade", "--epochs", "1", "--max-train-samples", "32"]
    first = tried(world, tmp_path / "a", *arguments, "--seeds", "1", "2")
    assert [(r["config"]["task"], r["config"]["seed"]) for r in first] == [
        *(("grade", seed) for seed in (1, 2)),
        *(("mood", seed) for seed in (1, 2)),
    ]
    again = tried(world, tmp_path / "b", *arguments, "--seeds", "2")
    assert [r["metrics"]["epochs"] for r in again] == [first[1]["metrics"]["epochs"], first[3]["metrics"]["epochs"]]
    assert first[0]["metrics"]["epochs"] != first[1]["metrics"]["epochs"]
    capsys.readouterr()
    kept = tried(world, tmp_path / "b", *arguments, "--seeds", "2", "--json")
    assert [r["started_at"] for r in kept] == [r["started_at"] for r in again]
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["task"], row["metric"]) for row in rows] == [("mood", "accuracy"), ("grade", "pearson")]
    (table,) = (tmp_path / "b").rglob("plain_trial.md")
    assert "| mood   | validation | accuracy | 2 " in table.read_text()


def test_held_out_are_the_rows_by_which_the_dense_model_is_chosen(world, tmp_path):
    """Token by token, of a dense model that has more rows than the methods."""
    arguments = plain_trial.parser().parse_args([*world, "--tasks", "mood", "--held-out"])
    (experiment,) = plain_trial._experiments(arguments)
    dense = DenseTraining(samples=30_000, epochs=5, keep="best")
    other = replace(experiment, setting=replace(experiment.setting, dense=dense, max_train_samples=32))
    left, held_out = training_features(experiment)
    assert (left, held_out) == training_features(other) and len(left) + len(held_out) == 96 and held_out
    (record,) = tried(world, tmp_path, "--tasks", "mood", "--held-out", "--epochs", "1")
    assert record["config"]["extra"]["held_out"] and record["metrics"]["training_rows"] == len(left)


def test_the_dense_model_stands_beside_the_trials_of_its_seeds(tmp_path):
    """Of 40 texts the dense model gets 4 less with one seed, and as many with the other; a third has no trial."""
    labels = "01" * 20
    of = {"max_eval_samples": None, "held_out": True, "dense_train_samples": None, "dense_epochs": 3}
    write_record(tmp_path, "ltp", extra=of)  # makes its comparison the larger one
    recipe = lookup("dense").recipe_stages(get_task("mrpc"), "short")
    best = DenseTraining.of(of).stages(recipe)
    for seed, wrong in ((42, 4), (43, 0), (44, 8)):
        texts = {"labels": labels, "predicted": labels[: 40 - wrong] + "10" * (wrong // 2)}
        write_record(
            tmp_path, "dense", speedup=1.0, score=1 - wrong / 40, texts=texts, seed=seed, extra=of, stages=best
        )
        perfect = {"score": 1.0, "texts": {"labels": labels, "predicted": labels}}
        for other in ({}, {"dense_epochs": 4}, {"held_out": True}):
            extra = of | {"held_out": False, "dense_keep": "last"} | other
            stages = DenseTraining.of(extra).stages(recipe)
            write_record(tmp_path, "dense", seed=seed, extra=extra, stages=stages, **perfect if not other else {})
    for seed, epochs in ((42, (0.5, 1.0)), (43, (1.0, 1.0))):
        perfect = {"scores": {"accuracy": 1.0}, "texts": {"labels": labels, "predicted": labels}}
        metrics = {"splits": {"validation": perfect}, "training_rows": 96, "title": "mood"}
        metrics |= {"score": 1.0, "epochs": [{"validation": {"accuracy": score}} for score in epochs]}
        trial = {"metrics": metrics, "kind": plain_trial.KIND, "seed": seed, "extra": {"epochs": plain_trial.OTHERWISE}}
        write_record(tmp_path, "dense", **trial)
        for other in ({"backbone": "sha256:cd"}, {"max_train_samples": 9}, {"extra": {"epochs": 1}}):
            write_record(tmp_path, "dense", **trial | other)  # trials of something else
        without = {"extra": trial["extra"] | {"held_out": True}, "metrics": metrics | {"score": epochs[0]}}
        write_record(tmp_path, "dense", **trial | without)
    (found,) = beside(tmp_path, read_comparisons(tmp_path))
    assert (found.title, found.seeds, found.dense, found.last) == ("mood", (42, 43), (90.0, 100.0), (100.0, 100.0))
    assert (
        found.best == (100.0, 100.0)
        and found.fewer == (50.0, 100.0)
        and found.difference.points == -5.0
        and found.difference.by_seed == (-10.0, 0.0)
    )
    assert found.difference.judged(1.0).decided_sign == -1
    assert found.difference.low < -5.0 < found.difference.high <= 0.0
    page = findings.report([], [], [found], "command")
    assert found.whole == (100.0, 100.0) and found.whole_difference.by_seed == (0.0, 0.0)
    row = ("mood", "a CPU", "42 43", "90.0 100.0", "100.0 100.0", found.difference.text, "50.0 100.0", "100.0 100.0")
    row = (*row, found.whole_difference.text, "100.0 100.0")
    assert f"| {' | '.join(row)} | {' '.join(found.records)} |" in page
    assert len(set(found.records)) == 6
    assert "lain trial" not in findings.report([], [], [], "command")
    assert beside(tmp_path / "nothing", read_comparisons(tmp_path)) == []
    around = [({name}, "") for name in (found.records[-1], read_comparisons(tmp_path)[0].records[0]["config_hash"])]
    whole, usual = comparisons_around(tmp_path, around)
    (alone,) = beside(tmp_path, [whole])
    assert (alone.dense, alone.difference, alone.whole) == ((), None, (100.0, 100.0))
    assert alone.whole_difference == found.whole_difference
    assert beside(tmp_path, [whole, usual]) == [found]  # said there
