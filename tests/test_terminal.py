"""What commands print for programs and shells: JSON alone on standard output, quiet ones, completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import transformers

import methods
from benchmarks import (
    as_released,
    audit,
    case_study,
    completion,
    experiment_data,
    figures,
    findings,
    glue,
    latency,
    pareto,
    plan,
    regression,
    report,
    runs_command,
    strategy,
)
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.runs import load_runs
from tests.small_world import write_model, write_sentences

LOCAL = ["--profile", "local", "--model", "model", "--data-dir", "data", "--tasks", "mood", "--results", "r"]
LOCAL += ["--device", "cpu", "--jobs", "1", "--methods", "dense"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for cache in ("_rows", "_features", "_split_identity", "padding_id"):
        getattr(experiment_data, cache).cache_clear()
    write_model(tmp_path / "model")
    write_sentences(tmp_path / "data", rows=16)
    return tmp_path


def said(capsys, main, *arguments):
    """Status and what standard output says, which has to be JSON as a whole."""
    status = run_command(main, list(arguments))
    return status, json.loads(capsys.readouterr().out)


def test_a_table_command_gives_its_rows_and_where_everything_is(world, capsys):
    status, summary = said(capsys, glue.main, *LOCAL, "--json")
    assert status == 0 and summary["failures"] == []
    row = next(row for row in summary["rows"] if row["method"] == "dense" and row["padding"] == "baseline")
    frame = load_runs(next((world / "r").rglob("runs")).parent)
    assert row["measured"] == pytest.approx(100 * frame["metrics.score"].iloc[0]) and row["speedup"] == 1
    assert all((world / path).is_file() for path in summary["tables"]) and (world / summary["records"]).is_dir()
    assert run_command(glue.main, [*LOCAL, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == summary["rows"] and captured.err == ""  # nothing but the summary


def test_quiet_leaves_the_result(world, capsys):
    assert run_command(glue.main, [*LOCAL, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "tables: " in captured.out and "records: " in captured.out and captured.err == ""


@pytest.mark.parametrize("command", ["strategy", "pareto"])
def test_quiet_leaves_where_the_outputs_are(records, monkeypatch, capsys, command):
    main, arguments, _ = SUMMARIES[command]
    monkeypatch.chdir(records)
    assert run_command(main, [*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [
        "tables",
        "figures (also as PNG and PDF)",
    ]
    assert captured.err == ""


def test_a_plan_is_json_too(world, capsys):
    status, summary = said(capsys, glue.main, *LOCAL[:-1], "dense", "ltp", "--json", "--dry-run")
    assert status == 0 and [run["run"].partition(":")[0] for run in summary["runs"]] == ["mood", "mood"]
    status, summary = said(capsys, as_released.main, *LOCAL[:-1], "ltp", "--json", "--dry-run")
    assert status == 0 and len(summary["runs"]) == 1 and "LTP" in summary["runs"][0]


def test_audit_and_records_are_json_too(capsys):
    status, summary = said(capsys, audit.main, "--list", "--json")
    assert status == 0 and len(summary["findings"]) > 10 and {"finding", "value"} <= set(summary["figures"][0])
    published = str(PROJECT_ROOT / "results")
    status, summary = said(capsys, runs_command.main, "list", "--results", published, "--method", "ltp", "--json")
    assert status == 0 and {record["config.method"] for record in summary["records"]} == {"ltp"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A copy of the published records and tables, a model and a reducer."""
    root = tmp_path_factory.mktemp("records")
    for part in ("runs", "tables"):
        shutil.copytree(PROJECT_ROOT / "results" / part, root / "results" / part)
    write_model(root / "model")
    write_sentences(root / "data", rows=16)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(root / "model")
    methods.create("random", model).save_pretrained(root / "reducer")
    return root


def in_table(key, column, name):
    """A check: the rows under `key` have, in `column`, what the CSV file among the tables called `name` has."""

    def check(summary):
        part = summary["tasks"][0] if key == "points" else summary
        written = pd.read_csv(next(path for path in part["tables"] if path.endswith(name)))
        assert [row[column] for row in part[key]] == pytest.approx(list(written[column]), rel=1e-4)

    return check


def in_page(summary):
    page = Path(summary["findings"]).read_text(encoding="utf-8")
    assert len(summary["rows"]) > 10 and all(f"| {row['score']:.1f} |" in page for row in summary["rows"])
    assert all(f"### {claim['claim']}" in page for claim in summary["claims"])


def of_both(summary):
    in_table("rows", "area", "strategy.csv")(summary["strategy"])
    in_table("points", "score", "pareto-mrpc.csv")(summary["pareto"])


def of_one_text(summary):
    view = summary["views"][0]
    assert len(view["shares"]) == view["layers"] == 3 and view["speedup"] > 1
    assert f"{view['speedup']:.2f}" in Path(summary["page"]).read_text(encoding="utf-8")


ON = ["--results", "results"]
TIMED = "--model model --data-dir data --tasks mood --texts 4 --rounds 1 --batch-sizes 1 --methods random --results r"
SUMMARIES = {
    "strategy": (strategy.main, [*ON, "--tasks", "mrpc"], in_table("rows", "area", "strategy.csv")),
    "pareto": (
        pareto.main,
        [*ON, "--from-records", "--dataset", "mrpc", "--padding", "none"],
        in_table("points", "score", "pareto-mrpc.csv"),
    ),
    "figures": (figures.main, [*ON, "--tasks", "mrpc", "--methods", "dense", "ltp"], of_both),
    "report": (report.main, [*ON, "--own-only"], lambda said: Path(said["report"]).stat().st_size == said["bytes"]),
    "findings": (findings.main, ON, in_page),
    "case_study": (
        case_study.main,
        ["the film was good", "--reducer", "reducer", "--model", "model", "--output", "page.html"],
        of_one_text,
    ),
    "latency": (latency.main, TIMED.split(), in_table("rows", "ms_per_text", "latency.csv")),
    "plan": (
        plan.main,
        ["--records", "results", "--suites", "glue", "--gpus", "1", "2"],
        lambda said: said["suites"]["glue"]["seconds_by_devices"]["1"] > said["suites"]["glue"]["flops"] / 1e15,
    ),
    "regression": (
        regression.main,
        ["--cases", "segment_rank", "--update", "--folder", "gate"],
        lambda said: said["updated"] and [case["name"] for case in said["cases"]] == ["segment_rank"],
    ),
}


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_command_says_in_json_what_its_table_says(records, monkeypatch, capsys, command):
    main, arguments, check = SUMMARIES[command]
    monkeypatch.chdir(records)
    monkeypatch.setenv("SKIMBENCH_HOME", str(records / "home"))
    assert run_command(main, [*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert check(json.loads(captured.out)) in (None, True)


def test_bad_input_is_no_json_and_a_sentence(capsys):
    assert run_command(audit.main, ["--findings", "lta", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    path = tmp_path_factory.mktemp("shell") / "completion"
    path.write_text(completion.script(completion.commands(), ["glue", "long", "test"]), encoding="utf-8")
    return path


def completed(script, *words):
    """What bash would offer for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f'source "{script}"; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _skimbench; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_modules_flags_and_values_are_completed(script):
    assert completed(script, "python", "-m", "benchmarks.acc") == ["benchmarks.accelerate"]
    assert completed(script, "python", "-m", "benchmarks.accelerate", "--ta") == [
        "--task-data",
        "--target-speedup",
        "--tags",
    ]
    assert completed(script, "python", "-m", "benchmarks.glue", "--methods", "trans") == ["transkimmer"]
    assert completed(script, "python", "-m", "benchmarks.glue", "--profile", "") == ["embedded", "local", "paper"]
    assert completed(script, "./reproduce.sh", "l") == ["long"]
    assert "--dry-run" in completed(script, "./reproduce.sh", "long", "--d")
    assert completed(script, "python", "other.py", "--x") == []


def test_every_command_is_completed_and_the_script_is_printed(capsys):
    found = completion.commands()
    entry = 'if __name__ == "__main__":'
    for package in ("benchmarks", "plots"):
        modules = {path for path in (PROJECT_ROOT / package).glob("*.py") if entry in path.read_text("utf-8")}
        assert {f"{package}.{path.stem}" for path in modules} <= set(found)
    assert run_command(completion.main, ["zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("autoload") and "glue long" in printed and "benchmarks.accelerate" in printed


def test_no_library_warns_where_a_command_starts(world):
    """A fresh process, as a user has it: standard error stays empty."""
    command = [sys.executable, "-m", "benchmarks.glue", *LOCAL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(world))
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["failures"] == []


def environment(world):
    return os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "SKIMBENCH_HOME": str(world / "home")}
