"""A dense model trained on more rows and longer than the methods: shared by all, its best epoch kept, no row leaked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks import glue
from benchmarks.cli import open_session, parser, run_command
from benchmarks.comparable import is_current, own_settings, read_comparisons
from benchmarks.experiment_data import training_features
from benchmarks.experiments import DenseTraining, starting_points, work
from benchmarks.sweep import planned
from benchmarks.train import updates_of
from tests.small_world import write_model, write_sentences

METHODS = ("transkimmer", "lat", "ltp", "deebert")
ROWS, METHOD_ROWS, DENSE_ROWS, EPOCHS = 80, 16, 60, 2


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("dense")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data", rows=ROWS)
        shared = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood", "--quiet"]
        shared += ["--results", str(root / "results"), "--device", "cpu", "--jobs", "1", "--methods", *METHODS]
        shared += ["--max-train-samples", str(METHOD_ROWS), "--dense-train-samples", str(DENSE_ROWS)]
        yield [*shared, "--dense-epochs", str(EPOCHS), "--dense-keep", "best"]


@pytest.fixture(scope="module")
def runs(arguments):
    session = open_session(parser(glue.SUITE).parse_args(arguments), glue.SUITE)
    return {experiment.method: experiment for experiment in planned(session)}


def counted(features) -> Counter[str]:
    return Counter(json.dumps(feature["input_ids"]) for feature in features)


def test_every_method_starts_from_the_dense_model_of_the_table(runs):
    dense = runs["dense"].config().hash
    for name in METHODS:
        assert {start.config().hash for start in starting_points(runs[name])} == {dense}, name


def test_methods_train_on_some_rows_of_the_dense_model_and_none_that_it_holds_out(runs):
    seen, held_out = training_features(runs["dense"])
    assert (len(seen), len(held_out)) == (54, 6)
    for name in METHODS:
        rows, kept_from_it = training_features(runs[name])
        assert len(rows) == METHOD_ROWS and kept_from_it == held_out, name
        assert counted(rows) <= counted(seen), name


def test_more_rows_for_methods_contain_the_fewer(runs):
    one = runs["transkimmer"]
    more = replace(one, setting=replace(one.setting, max_train_samples=2 * METHOD_ROWS))
    few, many = training_features(one)[0], training_features(more)[0]
    assert len(many) == 2 * METHOD_ROWS and many[:METHOD_ROWS] == few


def test_the_best_of_the_epochs_asked_for_is_kept(runs):
    (stage,) = runs["dense"].stages
    assert (stage.epochs, stage.select) == (EPOCHS, "best")
    assert [one for one in runs["deebert"].stages if one.name == stage.name] == [stage]


def test_work_is_that_of_the_rows_trained_on(runs):
    for name, rows in (("dense", 54), ("transkimmer", METHOD_ROWS)):
        one = runs[name]
        units = sum(3 * stage.batch_size * updates_of(stage, rows) for stage in one.stages)
        scored = EPOCHS * 6 if name == "dense" else 0
        assert work(one, DENSE_ROWS, 0) == units + scored, name


def test_records_stand_in_one_comparison_apart_from_those_of_another_dense_model(arguments, runs, tmp_path):
    results = tmp_path / "results"
    arguments = [*arguments, "--results", str(results), "--methods", "ltp"]
    assert run_command(glue.main, arguments) == 0
    plain = arguments[: arguments.index("--dense-train-samples")]
    assert run_command(glue.main, [*plain, "--results", str(results), "--methods", "dense"]) == 0
    (found,) = read_comparisons(next(results.rglob("finetune")).parents[1])  # in scratch, if the work tree has changes
    names = [record["config"]["method"] for record in found.records]
    assert names == ["dense", "ltp"] and found.others == 1
    assert [record["config"]["method"] for record in own_settings(found.records)] == names
    for record in found.records:
        assert is_current(record["config"])
        assert DenseTraining.of(record["config"]["extra"]) == DenseTraining(
            samples=DENSE_ROWS, epochs=EPOCHS, keep="best"
        )
    assert found.records[0]["config_hash"] == runs["dense"].config().hash


def test_without_the_flags_the_dense_model_trains_as_ever(arguments):
    plain = arguments[: arguments.index("--dense-train-samples")]
    session = open_session(parser(glue.SUITE).parse_args(plain), glue.SUITE)
    dense = planned(session)[0]
    assert not dense.held_out and not DenseTraining.of(dense.config().extra)
    assert len(training_features(dense)[0]) == METHOD_ROWS


def test_a_learning_rate_of_its_own_is_the_dense_model_s_alone(arguments, runs):
    session = open_session(parser(glue.SUITE).parse_args([*arguments, "--dense-learning-rate", "3e-4"]), glue.SUITE)
    faster = {experiment.method: experiment for experiment in planned(session)}
    assert [group.learning_rate for group in faster["dense"].stages[0].groups] == [3e-4]
    assert runs["dense"].stages[0].groups[0].learning_rate != 3e-4
    for name in METHODS:
        own = [[stage for stage in some[name].stages if stage.name != "fine_tune"] for some in (runs, faster)]
        assert own[0] == own[1], name
        assert starting_points(faster[name])[0].config().hash == faster["dense"].config().hash
    assert "dense_learning_rate" not in runs["dense"].config().extra
    extra = faster["dense"].config().extra
    assert DenseTraining.of(extra) == DenseTraining(samples=DENSE_ROWS, epochs=EPOCHS, learning_rate=3e-4, keep="best")
    assert is_current(faster["ltp"].config().as_dict())


def test_where_the_last_epoch_is_kept_only_a_search_holds_rows_out(arguments, runs):
    """As it is unless `--dense-keep best` is asked for."""
    session = open_session(parser(glue.SUITE).parse_args(arguments[:-2]), glue.SUITE)
    last = {experiment.method: experiment for experiment in planned(session)}
    assert {name: one.held_out for name, one in last.items()} == {
        "dense": False, "transkimmer": False, "ltp": False, "deebert": False, "lat": True
    }  # fmt: skip
    seen, held_out = training_features(last["dense"])
    assert (len(seen), len(held_out)) == (DENSE_ROWS, 0)
    assert [(stage.epochs, stage.select) for stage in last["dense"].stages] == [(EPOCHS, "last")]
    for name in METHODS:
        rows = counted(training_features(last[name])[0])
        (start,) = {start.config().hash: start for start in starting_points(last[name])}.values()
        assert rows <= counted(training_features(start)[0]), name
        assert (start.config().hash == last["dense"].config().hash) == (name != "lat"), name
    assert training_features(last["lat"])[1] == training_features(runs["lat"])[1]
    extra = last["dense"].config().extra
    assert DenseTraining.of(extra) == DenseTraining(samples=DENSE_ROWS, epochs=EPOCHS)
    assert "dense_keep" not in runs["dense"].config().extra
    trained = [last["dense"], last["ltp"], *starting_points(last["lat"])[:1]]
    records = [{"kind": "finetune", "config": one.config().as_dict(), "started_at": ""} for one in trained]
    assert own_settings(records) == records[:2] and all(is_current(record["config"]) for record in records)
