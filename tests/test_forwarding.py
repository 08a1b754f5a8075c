"""Forwarding against discarding: one dense model, two trainings, and what the page of findings makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import answers, claims, findings, forwarding
from benchmarks.cli import run_command
from benchmarks.comparable import read_comparisons
from benchmarks.compared import paired
from benchmarks.forwarding import Ways, both_ways
from benchmarks.runs import read_record
from tests.small_world import write_model, write_questions, write_sentences
from tests.written_records import write_record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("forwarding")
    write_questions(root / "data")
    write_sentences(root / "data")
    model = write_model(root / "model")
    given = ["--profile", "local", "--model", str(model), "--data-dir", str(root / "data"), "--device", "cpu"]
    return [*given, "--jobs", "1", "--quiet", "--max-train-samples", "32", "--max-length", "32"]


def test_both_ways_start_from_one_dense_model_and_differ_in_the_option_alone(world, tmp_path, capsys):
    arguments = [*world, "--results", str(tmp_path), "--seeds", "1", "2", "--json"]
    assert run_command(forwarding.main, arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    (row,) = summary["rows"]
    assert (row["Task"], row["Seeds"], row["Metric"]) == ("SQuAD v2.0 (validation by title)", "1 2", "squad_f1")
    paths = {path.stem.rpartition("-")[2]: path for path in tmp_path.rglob("transkimmer-*.json")}
    assert paths.keys() == set(row["Records"].split()) and len(paths) == 4
    records = [read_record(paths[name]) for name in row["Records"].split()]
    told = [(record["config"]["seed"], record["config"]["options"].get("skimmed")) for record in records]
    assert told == [(1, None), (2, None), (1, "discarded"), (2, "discarded")]
    first, other = records[0]["config"], records[2]["config"]
    assert {**first, "options": {**first["options"], "skimmed": "discarded"}} == other
    assert row["Records"] in next(tmp_path.rglob("forwarding-local.md")).read_text()
    (found,) = both_ways(read_comparisons(next(tmp_path.rglob("finetune")).parents[1]))
    assert " ".join(found.records) == row["Records"] and found.row == row


def test_only_tasks_with_spans_and_only_transkimmer(world, capsys):
    assert run_command(forwarding.main, [*world, "--tasks", "mood"]) == 2
    assert "mood has no spans to find" in capsys.readouterr().err
    assert run_command(forwarding.main, [*world, "--methods", "ltp"]) == 2
    assert "only transkimmer is trained both ways" in capsys.readouterr().err
    assert run_command(forwarding.main, [*world, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("Transkimmer") == 2


def test_a_discarding_run_is_no_setting_of_the_sweep(tmp_path):
    """It stands beside Transkimmer's own run of its seed, and is not taken for it."""
    own = write_record(tmp_path, "transkimmer", score=0.8)
    other = write_record(tmp_path, "transkimmer", score=0.7, options={"skimmed": "discarded"})
    write_record(tmp_path, "transkimmer", score=0.6, options={"skimmed": "discarded"}, seed=43)  # alone
    write_record(tmp_path, "transkimmer", score=0.5, options={"skimmed": "discarded", "skim_weight": 3.0})
    (found,) = both_ways(read_comparisons(tmp_path))
    assert (found.seeds, found.forwarded, found.discarded) == ((42,), (80.0,), (pytest.approx(70.0),))
    assert found.records == (own["config_hash"], other["config_hash"]) and found.difference is None


@pytest.mark.parametrize(
    ("points", "verdict"),
    [((3.0,), "HOLDS"), ((3.0, 0.1), "OPEN"), ((3.0, -3.0), "OPEN"), ((3.0, -3.0, -3.0), "FAILS"), ((), "UNDECIDABLE")],
)
def test_the_claim_needs_a_certain_difference_everywhere(points, verdict):
    drawn = np.random.default_rng(0).normal(0.0, 0.3, 2_000)
    ways = [
        Ways("SQuAD", "f1", (42,), (60.0 + p,), (60.0,), (1.5, 1.5), paired([p], [0.0], drawn + p), ("abc",))
        for p in points
    ]
    assert claims.forwarding(ways)([]).verdict == getattr(answers, verdict)
    page = findings.report([], [], [], "command", ways)
    assert ("| SQuAD | f1 | 42 | 63.0 at 1.50x | 60.0 at 1.50x |" in page) == bool(points)


def test_a_pair_that_skims_nothing_judges_nothing_and_is_shown():
    drawn = np.random.default_rng(0).normal(0.0, 0.3, 2_000)
    apart = paired([3.0], [0.0], drawn + 3.0)
    answer = claims.forwarding([Ways("SQuAD", "f1", (42,), (63.0,), (60.0,), (0.93, 1.2), apart, ("abc",))])([])
    assert answer.verdict == answers.UNDECIDABLE and "of 1 trained both ways none skims" in answer.summary
    assert "63.0 at 0.93x" in answer.table[1]
