"""`python -m benchmarks.glue` as a user calls it, on a tiny model and tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import methods
from benchmarks import sweep
from benchmarks.cli import open_session, parser, run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.glue import SUITE, main
from benchmarks.sweep import Outcome, recorded
from tests.small_world import write_model, write_sentences

# What the tiny task's single texts are for.
METHODS = {name for name in methods.available() if "single_text" not in methods.lookup(name).traits.unsupported}
METHODS -= {"random"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a model, data and results of one finished command, and its arguments."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data")
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
        arguments += ["--results", str(root / "results"), "--device", "cpu", "--quiet", "--jobs", "1"]
        assert run_command(main, arguments) == 0
        yield root, arguments


def records(root: Path) -> dict[str, dict]:
    """Relative path -> record, of all that the command wrote."""
    paths = sorted((root / "results").rglob("finetune/**/*.json"))
    return {str(path.relative_to(root)): json.loads(path.read_text()) for path in paths}


def tables(root: Path) -> Path:
    """The folder of the tables, wherever the state of the work tree sent them."""
    return next((root / "results").rglob("glue-local.csv")).parent


def test_every_method_has_a_row_and_random_follows_each(world):
    frame = pd.read_csv(tables(world[0]) / "glue-local.csv", keep_default_na=False)
    assert set(frame["method"]) == METHODS | {"random"}
    assert set(frame.loc[frame["method"] == "random", "of"]) == METHODS - {"dense"}
    assert {"none", "batch", "sequence", "baseline"} == set(frame["padding"])


def test_speedups_are_those_of_the_records(world):
    frame = pd.read_csv(tables(world[0]) / "glue-local.csv", keep_default_na=False)
    by_hash = {record["config_hash"]: record for record in records(world[0]).values()}
    for row in frame[~frame["padding"].isin(["baseline"])].to_dict("records"):
        cost = by_hash[row["records"]]["metrics"]["splits"]["validation"]["cost"]["padding"][row["padding"]]
        key = "speedup_of_unpadding_alone" if row["method"] == "dense" else "speedup"
        assert row["speedup"] == pytest.approx(cost[key], rel=1e-5)
        assert cost["speedup"] == pytest.approx(cost["dense_gmacs_mean"] / cost["method_gmacs_mean"])


def test_model_cards_say_what_the_records_say(world):
    by_hash = {record["config_hash"]: record for record in records(world[0]).values()}
    configs = sorted((world[0] / "home" / "checkpoints").glob("mood-*/config.json"))
    assert len(configs) == len(by_hash) > len(METHODS)
    for path in configs:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
        metrics = by_hash[facts["record"]]["metrics"]
        unpadded = metrics["splits"]["validation"]["cost"]["padding"]["none"]
        assert (facts["score"], facts["keep_ratio"]) == (metrics["score"], metrics["keep_ratio"])
        assert facts["dense_gflops"] / facts["gflops"] == pytest.approx(unpadded["speedup"])
        assert f"`{facts['record']}`" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_a_second_call_computes_nothing(world, capsys):
    root, arguments = world
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / "results").rglob("*.json")}
    assert run_command(main, arguments) == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / "results").rglob("*.json")}
    assert before == after
    assert "records:" in capsys.readouterr().out


def test_the_records_alone_give_the_same_table(world, capsys):
    root, arguments = world
    before = (tables(root) / "glue-local.csv").read_bytes()
    recorded = {path: path.stat().st_mtime_ns for path in (root / "results").rglob("*.json")}
    (tables(root) / "glue-local.csv").unlink()
    assert run_command(main, [*arguments, "--from-records"]) == 0
    assert (tables(root) / "glue-local.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (root / "results").rglob("*.json")} == recorded


class OfAGpu:
    """A store whose records are those of another, as if made on a GPU."""

    def __init__(self, store):
        self.store = store

    def settled(self, config):
        return self.store.settled(replace(config, device="cpu")) if config.device == "cuda" else None


def test_records_of_a_gpu_make_tables_on_a_machine_without_one(world):
    session = open_session(parser(SUITE).parse_args(world[1]), SUITE)
    on_cpu = recorded(session, session.store())
    on_gpu = recorded(session, OfAGpu(session.store()))
    assert on_cpu.entries and [one.record for one in on_gpu.entries] == [one.record for one in on_cpu.entries]
    assert not recorded(session, OfAGpu(session.store()), [("cpu", "float32"), ("cpu", "bfloat16")]).entries


def test_records_of_another_type_make_tables_whatever_is_this_machine_s_own(world):
    session = open_session(parser(SUITE).parse_args(world[1]), SUITE)
    own = session.setting.compute.dtype
    (other,) = {"float32", "bfloat16"} - {own}
    compute = replace(session.setting.compute, dtype=other)
    elsewhere = replace(session, setting=replace(session.setting, compute=compute))
    there, here = recorded(elsewhere, session.store()), recorded(session, session.store())
    assert there.entries and [one.record for one in there.entries] == [one.record for one in here.entries]
    assert not recorded(session, session.store(), [("cpu", other)]).entries


class Lacks(OfAGpu):
    """A store without one record."""

    def __init__(self, store, name):
        super().__init__(store)
        self.name = name

    def settled(self, config):
        return None if config.hash == self.name else self.store.settled(config)


def test_a_method_without_its_random_twin_stands_alone_and_that_is_said(world):
    session = open_session(parser(SUITE).parse_args(world[1]), SUITE)
    every = recorded(session, session.store())
    twins = [entry.record["config_hash"] for entry in every.entries if entry.of]
    twin = next(e for e in every.entries if e.of and twins.count(e.record["config_hash"]) == 1)  # of one method alone
    found = recorded(session, Lacks(session.store(), twin.record["config_hash"]))
    assert [entry.record for entry in found.entries] == [e.record for e in every.entries if e.of != twin.of]
    title = methods.lookup(twin.of).traits.title
    assert found.notes == [f"mood with model: no record of random dropping beside {title}"] and not every.notes


def test_a_second_set_of_runs_has_tables_of_its_own(world):
    before = (tables(world[0]) / "glue-local.csv").read_bytes()
    assert run_command(main, [*world[1], "--from-records", "--methods", "ltp", "--table-suffix", "few"]) == 0
    frame = pd.read_csv(tables(world[0]) / "glue-local-few.csv", keep_default_na=False)
    assert set(frame["method"]) == {"dense", "ltp"} and (tables(world[0]) / "glue-local.csv").read_bytes() == before
    for suffix in ("csv", "md", "tex"):
        (tables(world[0]) / f"glue-local-few.{suffix}").unlink()


def test_each_task_s_table_is_of_the_device_with_most_seeds_and_says_which(monkeypatch, world):
    session = open_session(parser(SUITE).parse_args(world[1]), SUITE)
    seeds = {"cuda": {"few": [42], "many": [42, 43], "none": []}, "cpu": {"few": [42, 43], "many": [42], "none": []}}

    def found(session, store, device, dtype):
        def entry(seed):
            return SimpleNamespace(record={"config": {"seed": seed}}, on=device)

        some = seeds[device] if dtype == "bfloat16" else {task: [] for task in seeds[device]}
        return {("model", task): Outcome(entries=[*map(entry, own)]) for task, own in some.items()}

    monkeypatch.setattr(sweep, "_recorded_with", found)
    outcome = recorded(session, session.store())
    assert [entry.on for entry in outcome.entries] == ["cpu", "cpu", "cuda", "cuda"]
    assert outcome.notes == ["Computed: many on a GPU in bfloat16; few on a CPU in bfloat16"]


def test_a_seed_that_lacks_records_is_left_out_of_the_table_and_said(world, capsys):
    root, arguments = world
    before = (tables(root) / "glue-local.csv").read_bytes()
    assert run_command(main, [*arguments, "--methods", "dense", "--seeds", "43"]) == 0
    assert run_command(main, [*arguments, "--from-records", "--seeds", "42", "43"]) == 0
    assert (tables(root) / "glue-local.csv").read_bytes() == before
    page = (tables(root) / "glue-local.md").read_text()
    assert "mood with model, seed 43: 9 of 10 methods lack a record" in page and "; seeds 42\n" in page
    capsys.readouterr()
    assert run_command(main, [*arguments, "--from-records", "--seeds", "44"]) == 2
    assert "no task has a record of every run" in capsys.readouterr().err
    for path in (root / "results").rglob("dense-*.json"):
        if json.loads(path.read_text())["config"]["seed"] == 43:
            path.unlink()


def test_markdown_and_latex_show_the_same_cells(world):
    markdown, latex = ((tables(world[0]) / f"glue-local.{suffix}").read_text() for suffix in ("md", "tex"))
    row = next(line for line in markdown.splitlines() if "| Dense " in line)
    cell = row.strip("|").split("|")[-1].strip()
    assert cell.endswith("1.00x") and cell in latex
    assert "python -m benchmarks.glue" in markdown


def test_a_corrupted_record_is_reported_and_computed_anew(world, caplog):
    root, arguments = world
    found = {path: json.loads(path.read_text()) for path in (root / "results").rglob("dense-*.json")}
    path, whole = next(pair for pair in found.items() if not pair[1]["config"]["extra"]["held_out"])
    path.write_text(path.read_text()[:100])
    assert run_command(main, [*arguments, "--methods", "dense"]) == 0
    again = json.loads(path.read_text())
    assert again["metrics"]["score"] == whole["metrics"]["score"]
    assert path.with_name(f"{path.name}.corrupt").exists() and "not readable as JSON" in caplog.text
    path.with_name(f"{path.name}.corrupt").unlink()


def test_the_same_seed_gives_the_same_numbers(world, tmp_path, monkeypatch):
    root, arguments = world
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    fresh = [*arguments, "--results", str(tmp_path / "results"), "--methods", "transkimmer"]
    assert run_command(main, fresh) == 0
    first, second = records(root), records(tmp_path)
    assert second
    for path, record in second.items():
        old, new = first[path]["metrics"], record["metrics"]
        assert old["splits"] == new["splits"] and old["training"][0]["loss_terms"] == new["training"][0]["loss_terms"]


def test_random_alone_has_a_schedule_of_its_own(world, tmp_path):
    assert run_command(main, [*world[1], "--results", str(tmp_path), "--methods", "random"]) == 0
    frame = pd.read_csv(next(tmp_path.rglob("glue-local.csv")), keep_default_na=False)
    assert set(frame["method"]) == {"dense", "random"} and set(frame["of"]) == {""}


def test_two_processes_give_the_numbers_of_one(world, tmp_path, monkeypatch):
    root, arguments = world
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_command(main, [*arguments, "--results", str(tmp_path / "results"), "--jobs", "2"]) == 0
    first, second = records(root), records(tmp_path)
    assert set(first) == set(second)
    for path, record in second.items():
        assert untimed(first[path]["metrics"]) == untimed(record["metrics"]), path


def untimed(metrics: dict) -> dict:
    """Metrics, kept tokens and losses, but for what a clock said."""
    training = [{key: value for key, value in stage.items() if key != "seconds"} for stage in metrics["training"]]
    return {key: value for key, value in metrics.items() if key != "train_seconds"} | {"training": training}


def test_bad_rows_met_by_a_process_end_in_one_sentence(world, tmp_path, capsys):
    data = write_sentences(tmp_path / "data")
    (data / "mood" / "train.csv").write_text("sentence,label\na film,0\nthe plot,1\n,1\n")
    arguments = [*world[1], "--data-dir", str(data), "--results", str(tmp_path / "r"), "--jobs", "2"]
    assert run_command(main, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "train.csv" in error and "row 3" in error


def test_one_failing_run_leaves_the_others(world, tmp_path, monkeypatch, capsys):
    from methods.transkimmer import Transkimmer

    def broken(self, state):
        raise FloatingPointError("on purpose")

    monkeypatch.setattr(Transkimmer, "before_layer", broken)
    arguments = [*world[1], "--results", str(tmp_path), "--methods", "transkimmer", "deebert"]
    assert run_command(main, arguments) == 1
    error = capsys.readouterr().err
    assert "failed: mood: Transkimmer" in error and "on purpose" in error
    statuses = {path.name.split("-")[0]: json.loads(path.read_text())["status"] for path in tmp_path.rglob("*.json")}
    assert statuses == {"dense": "ok", "deebert": "ok", "transkimmer": "failed"}
    assert "transkimmer" in methods.available()


def test_dry_run_of_the_paper_lists_every_run_without_network(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "benchmarks.glue",
        "--dry-run",
        "--profile",
        "paper",
        "--results",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment, check=True)
    lines = done.stdout.splitlines()
    for title in ("CoLA", "RTE", "QQP", "MRPC", "SST-2", "MNLI", "WNLI", "QNLI", "STS-B"):
        for seed in (42, 43, 44):
            assert any(line.startswith(f"{title}: Transkimmer on BERT-base, seed {seed}:") for line in lines)
    for model in ("RoBERTa-base", "DistilBERT", "ALBERT"):
        assert any(f"Transkimmer on {model}" in line for line in lines) and any(
            f"Dense on {model}" in line for line in lines
        )
    assert not any(line.startswith("STS-B: DeeBERT") for line in lines)  # regression has no entropy
    assert "in all" in lines[-1] and "PFLOPs" in lines[-1]
    assert not (tmp_path / "r").exists()


BAD_ARGUMENTS = {
    "unknown task": (["--tasks", "moood"], 2, ["no task 'moood'", "did you mean 'mood'"]),
    "unknown method": (["--methods", "transkimer"], 2, ["no method 'transkimer'", "did you mean 'transkimmer'"]),
    "misspelt padding": (["--padding", "batched"], 2, ["--padding takes none, batch, sequence", "'batched'"]),
    "missing model": (
        ["--model", "./no/such/folder"],
        2,
        ["there is no folder ./no/such/folder", "check --model"],
    ),
    "missing data folder": (["--data-dir", "/no/such/data"], 2, ["--data-dir /no/such/data is not a folder"]),
    "no samples": (["--max-train-samples", "0"], 2, ["--max-train-samples must be at least 1, got 0"]),
    "no such profile folder": (["--profile", "embedded"], 2, ["embedded profile has its own"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_end_in_one_sentence(world, case, capsys):
    extra, status, parts = BAD_ARGUMENTS[case]
    assert run_command(main, [*world[1], *extra]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error


def test_cuda_asked_for_and_absent(world, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run_command(main, [*world[1], "--device", "cuda"]) == 2
    assert "no usable CUDA device; use --device cpu" in capsys.readouterr().err


BAD_ROWS = {
    "no label column": ("sentence,mark\na film,1\n", ["lacks the column", "label"]),
    "label outside range": ("sentence,label\na film,0\nthe plot,1\nit was,7\n", ["7"]),
    "empty label": ("sentence,label\na film,0\nthe plot,\n", ["label", "row 2"]),
    "empty text": ("sentence,label\na film,0\n,1\n", ["row 2"]),
    "no rows": ("sentence,label\n", ["no rows"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(world, tmp_path, case, capsys):
    content, parts = BAD_ROWS[case]
    data = write_sentences(tmp_path / "data")
    (data / "mood" / "validation.csv").write_text(content)
    assert run_command(main, [*world[1], "--data-dir", str(data), "--results", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "validation.csv" in error
    for part in parts:
        assert part in error


def test_results_that_cannot_be_written(world, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run_command(main, [*world[1], "--results", str(blocked)]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_model_without_a_pad_token(world, tmp_path, capsys):
    model = write_model(tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = model / name
        if path.exists():
            settings = json.loads(path.read_text())
            settings.pop("pad_token", None)
            settings["pad_token"] = None
            path.write_text(json.dumps(settings))
    assert run_command(main, [*world[1], "--model", str(model), "--results", str(tmp_path / "r")]) == 2
    assert "no pad token" in capsys.readouterr().err


def test_an_unsupported_backbone(world, tmp_path, capsys):
    import transformers

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 19,
    }
    transformers.MPNetModel(transformers.MPNetConfig(**sizes)).save_pretrained(tmp_path / "mpnet")
    assert run_command(main, [*world[1], "--model", str(tmp_path / "mpnet"), "--results", str(tmp_path / "r")]) == 2
    assert "'mpnet' model; supported families: bert" in capsys.readouterr().err
