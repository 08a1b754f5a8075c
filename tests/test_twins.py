"""Twins trained as long as their methods: what is run, what is told apart, and what the page makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import findings, glue, twins
from benchmarks.cli import run_command
from benchmarks.compared import paired
from benchmarks.plain import plain
from benchmarks.runs import read_record
from benchmarks.twins import Twins, both_twins
from tests.small_world import write_model, write_sentences
from tests.written_records import run_config, write_record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins")
    write_sentences(root / "data")
    model = write_model(root / "model")
    given = ["--profile", "local", "--model", str(model), "--data-dir", str(root / "data"), "--device", "cpu"]
    return [*given, "--jobs", "1", "--quiet", "--tasks", "mood", "--max-train-samples", "40", "--max-length", "16"]


def test_both_twins_follow_one_schedule_and_differ_in_epochs_alone(world, tmp_path, capsys):
    """What `glue` has run is reused; the longer twins are all that is new."""
    methods_ = ["--methods", "transkimmer", "ltp"]
    arguments = [*world, "--results", str(tmp_path), "--seeds", "1", "2"]
    assert run_command(glue.main, [*arguments, *methods_, "random"]) == 0
    before = {path: path.read_text() for path in tmp_path.rglob("finetune/*/*.json")}
    capsys.readouterr()
    assert run_command(twins.main, [*arguments, *methods_, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [(row["Method"], row["Seeds"]) for row in summary["rows"]] == [("LTP", "1 2"), ("Transkimmer", "1 2")]
    after = {path: path.read_text() for path in tmp_path.rglob("finetune/*/*.json")}
    assert before.items() <= after.items()
    new = [read_record(path)["config"] for path in after.keys() - before.keys()]
    old = [read_record(path)["config"] for path in before if path.name.startswith("random-")]
    assert [one["method"] for one in new] == ["random"] * len(old) and len(old) >= 2
    for one in new:
        (usual,) = (o for o in old if (o["seed"], o["options"]) == (one["seed"], one["options"]))
        stages = [{**stage, "epochs": 2} for stage in usual["stages"]]
        assert one == {**usual, "stages": stages} and usual["stages"][0]["epochs"] == 0.5
    rows = {row["Method"]: row for row in summary["rows"]}
    recorded = {path.stem.rpartition("-")[2] for path in after}
    assert all(len(row["Records"].split()) == 6 and set(row["Records"].split()) <= recorded for row in rows.values())
    assert rows["LTP"]["Records"] in next(tmp_path.rglob("twins-local.csv")).read_text()


def test_what_is_asked_for_is_checked(world, capsys):
    assert run_command(twins.main, [*world, "--methods", "random"]) == 2
    assert "--methods: name at least one that has a twin" in capsys.readouterr().err
    assert run_command(twins.main, [*world, "--methods", "lat", "--dry-run", "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["runs"]
    assert [label.partition(": ")[2].partition(" on ")[0] for label in labels] == [
        "LAT",
        "Random",
        "Random, trained as long,",
    ]


def _drop(root, *, epochs, score, schedule=(0.9, 0.5, 0.25), **changes):
    usual = run_config("random", options={"keep_schedule": schedule}).stages
    stages = [{**stage, "epochs": epochs} for stage in plain(usual, "stages")]
    return write_record(root, "random", score=score, options={"keep_schedule": schedule}, stages=stages, **changes)


def _own(root, method, *, score, shares=(0.9, 0.5, 0.25), **changes):
    cost = {"texts": 40, "padding": {"none": {"speedup": 1.5}}, "cost_share": shares}
    split = {"scores": {"accuracy": score}, "cost": cost, "retention": None}
    return write_record(root, method, score=score, metrics={"splits": {"validation": split}}, **changes)


def test_a_twin_of_another_length_schedule_or_seed_is_no_twin(tmp_path):
    own = _own(tmp_path, "transkimmer", score=0.8)
    short, long = _drop(tmp_path, epochs=0.5, score=0.6), _drop(tmp_path, epochs=2, score=0.7)
    _drop(tmp_path, epochs=1, score=0.1)  # as long as nothing here
    _drop(tmp_path, epochs=2, score=0.2, seed=43)  # alone
    _own(tmp_path, "ltp", score=0.5, shares=(0.8, 0.5, 0.25))  # of another schedule
    records = [read_record(path) for path in (tmp_path / "runs").rglob("*.json")]
    (found,) = both_twins(records)
    assert (found.method, found.seeds, found.epochs) == ("Transkimmer", (42,), 2)
    assert (found.own, found.short, found.long) == ((80.0,), (60.0,), (pytest.approx(70.0),))
    assert found.records == tuple(record["config_hash"] for record in (own, short, long))
    assert found.differences == ()  # outcomes of single texts are unknown


def test_the_page_says_what_is_left_of_a_lead():
    drawn = np.random.default_rng(0).normal(0.0, 0.3, 2_000)

    def difference(points):
        return paired([points], [0.0], drawn + points)

    given = ("Method", (42,), 1.5, (80.0,), (70.0,), (75.0,), 2)
    some = [
        Twins("A", *given, difference(5.0), difference(4.0), difference(1.0), ("abc",)).judged(0.01),
        Twins("B", *given, difference(3.0), difference(0.1), difference(2.9), ("abd",)).judged(0.01),
    ]
    page = findings.report([], [], [], "command", (), some)
    assert "gains +1.9 points on average (+1.0 to +2.9); of 2 methods certainly above the usual twin 1 are" in page
    assert "## A lead over random" not in findings.report([], [], [], "command")
