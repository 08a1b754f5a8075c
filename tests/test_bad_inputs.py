"""Bad input of every command ends in one sentence that says what and where, with its exit status; never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import (
    accelerate,
    as_released,
    audit,
    case_study,
    embedded,
    experiment_data,
    glue,
    latency,
    latency_targets,
    long,
    pareto,
    plain_trial,
    plan,
    regression,
    report,
    runs_command,
    strategy,
    training_time,
)
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.runs import RunStore
from tests.report_page import write_suite
from tests.small_world import write_model, write_sentences
from tests.test_runs import config, record_of
from tests.tiny import tiny_reducer

COMMANDS = {
    "glue": glue.main,
    "long": long.main,
    "as_released": as_released.main,
    "audit": audit.main,
    "case_study": case_study.main,
    "report": report.main,
    "plan": plan.main,
    "runs": runs_command.main,
    "latency": latency.main,
    "latency_targets": latency_targets.main,
    "regression": regression.main,
    "strategy": strategy.main,
    "plain_trial": plain_trial.main,
    "training_time": training_time.main,
    "pareto": pareto.main,
    "embedded": embedded.main,
    "accelerate": accelerate.main,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A model, data and a results folder with one record: what the cases below spoil, one thing at a time."""
    root = tmp_path_factory.mktemp("good")
    write_model(root / "model")
    write_sentences(root / "data", rows=16)
    (root / "results").mkdir()
    RunStore(root / "results").write(config(), record_of(config()))
    torch.manual_seed(0)
    tiny_reducer("transkimmer").save_pretrained(root / "reducer")
    return root


@pytest.fixture
def spoilt(good, tmp_path, monkeypatch) -> Path:
    """A copy of it."""
    shutil.copytree(good, tmp_path / "w")
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "w")
    for cache in ("_rows", "_features", "_split_identity", "padding_id"):  # the cases share names of folders
        getattr(experiment_data, cache).cache_clear()
    return tmp_path / "w"


Spoil = Callable[[Path], object]
LOCAL = ["--profile", "local", "--model", "model", "--data-dir", "data", "--tasks", "mood", "--results", "r"]
LOCAL += ["--device", "cpu", "--quiet", "--jobs", "1", "--methods", "dense"]
RAY = [*LOCAL[:-4], "--executor", "ray", "--methods", "dense"]


def write(place: str, content: str | bytes) -> Spoil:
    """Write a file, below the folder of the case."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: ((root / place).parent.mkdir(parents=True, exist_ok=True), (root / place).write_bytes(data))


def remove(place: str) -> Spoil:
    return lambda root: shutil.rmtree(root / place) if (root / place).is_dir() else (root / place).unlink()


def edit_json(place: str, **changes: object) -> Spoil:
    def change(root: Path) -> None:
        path = root / place
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def rows(content: str | bytes, split: str = "train", suffix: str = "csv") -> Spoil:
    """Other rows of one split."""

    def change(root: Path) -> None:
        (root / "data" / "mood" / f"{split}.csv").unlink()
        write(f"data/mood/{split}.{suffix}", content)(root)

    return change


def parquet(root: Path) -> None:
    rows(b"PAR1 and nothing else", suffix="parquet")(root)


TRIED = ["--data-dir", "data", "--model", "model", "--tasks", "mood", "--results", "r"]
TIMED = ["--model", "model", "--data-dir", "data", "--tasks", "mood", "--device", "cpu", "--quiet", "--results", "r"]
Case = tuple[str, list[str], Spoil | None, list[str]]
ARGUMENTS: dict[str, Case] = {
    f"{command}: {what}": (command, arguments, None, parts)
    for command in ("glue", "long", "as_released")
    for what, arguments, parts in (
        ("unknown flag", ["--taks", "sst2"], ["unrecognized arguments: --taks", "--help"]),
        ("unknown profile", ["--profile", "papr"], ["--profile", "'papr'", "embedded"]),
        ("seed that is no number", [*LOCAL, "--seeds", "one"], ["--seeds", "invalid int value: 'one'"]),
        ("flag without its value", [*LOCAL, "--methods"], ["--methods", "expected at least one argument"]),
    )
} | {
    "latency: no text": ("latency", [*TIMED, "--texts", "0"], None, ["--texts must be at least 1, got 0"]),
    "latency: no batch": ("latency", [*TIMED, "--batch-sizes", "4", "0"], None, ["--batch-sizes", "got 0"]),
    "latency: no round": ("latency", [*TIMED, "--rounds", "0"], None, ["--rounds must be at least 1, got 0"]),
    "latency: a speed-up without x": ("latency", [*TIMED, "--schedule", "4"], None, ["--schedule", "got '4'", "4x"]),
    "latency: a speed-up below 1": ("latency", [*TIMED, "--schedule", "0.5x"], None, ["--schedule", "got '0.5x'"]),
    "latency: a share above 1": ("latency", [*TIMED, "--schedule", "1,2,1"], None, ["--schedule", "got '1,2,1'"]),
    "latency: a share too few": ("latency", [*TIMED, "--schedule", "1,0.5"], None, ["2 shares for 3 layers"]),
    "latency: unknown method": ("latency", [*TIMED, "--methods", "lpt"], None, ["did you mean 'ltp'"]),
    "plain_trial: no data": ("plain_trial", [], None, ["--data-dir"]),
    "plain_trial: no folder": ("plain_trial", ["--data-dir", "none"], None, ["--data-dir none is not a folder"]),
    "plain_trial: no epoch": ("plain_trial", [*TRIED, "--epochs", "0"], None, ["--epochs must be at least 1, got 0"]),
    "plain_trial: a seed twice": ("plain_trial", [*TRIED, "--seeds", "1", "1"], None, ["--seeds has 1 twice"]),
    "plain_trial: unknown task": ("plain_trial", [*TRIED, "--tasks", "moood"], None, ["no task 'moood'"]),
    "plain_trial: spans": ("plain_trial", [*TRIED, "--tasks", "squad_v2"], None, ["neither a classification"]),
    "training_time: a text of one token": ("training_time", ["--lengths", "1"], None, ["--lengths takes 2 to 512"]),
    "training_time: no round": ("training_time", ["--rounds", "0"], None, ["--rounds must be at least 1, got 0"]),
    "training_time: unknown method": ("training_time", ["--methods", "lpt"], None, ["did you mean 'ltp'"]),
    "latency_targets: unknown cell": (
        "latency_targets",
        ["--measure", "batch2"],
        None,
        ["--measure takes", "'batch2'"],
    ),
    "latency_targets: nothing measured": ("latency_targets", ["--results", "r"], None, ["no cell has a record in"]),
    "latency: unknown peer": (
        "latency",
        [*TIMED, "--peers", "onnx"],
        None,
        ["--peers takes onnxruntime", "got 'onnx'"],
    ),
    "latency: unknown padding": ("latency", [*TIMED, "--padding", "all"], None, ["--padding takes none, batch"]),
    "latency: no reducer there": ("latency", [*TIMED, "--reducer", "data"], None, ["cannot load the reducer data"]),
    "latency: nothing trained": ("latency", [*TIMED, "--trained"], None, ["no trained reducer of mood"]),
    "latency: trained and named": ("latency", [*TIMED, "--trained", "--reducer", "reducer"], None, ["leave it out"]),
    "latency: data folder missing": (
        "latency",
        ["--data-dir", "nowhere"],
        None,
        ["nowhere is not a folder"],
    ),
    "latency: texts that are not embedded": ("latency", ["--tasks", "sst2"], None, ["not embedded", "--data-dir"]),
    "regression: unknown case": ("regression", ["--cases", "skim"], None, ["no case 'skim'", "transkimmer"]),
    "glue: negative seed": ("glue", [*LOCAL, "--seeds", "-1"], None, ["--seeds", "-1"]),
    "glue: huge seed": ("glue", [*LOCAL, "--seeds", str(2**80)], None, ["--seeds", str(2**80)]),
    "glue: a seed twice": ("glue", [*LOCAL, "--seeds", "3", "3"], None, ["--seeds has 3 twice"]),
    "glue: unknown task": ("glue", [*LOCAL, "--tasks", "moood"], None, ["no task 'moood'", "did you mean 'mood'"]),
    "glue: empty task": ("glue", [*LOCAL, "--tasks", ""], None, ["no task ''", "available"]),
    "glue: a path as task": ("glue", [*LOCAL, "--tasks", "../data/mood"], None, ["no task '../data/mood'"]),
    "glue: unknown method": ("glue", [*LOCAL, "--methods", "transkimer"], None, ["did you mean 'transkimmer'"]),
    "glue: composition of two reducers": (
        "glue",
        [*LOCAL, "--methods", "power_bert+transkimmer"],
        None,
        ["no composition", "one token reducer and one early exit"],
    ),
    "glue: misspelt padding": ("glue", [*LOCAL, "--padding", "batched"], None, ["--padding takes none, batch"]),
    "glue: no jobs": ("glue", [*LOCAL, "--jobs", "0"], None, ["--jobs must be at least 1, got 0"]),
    "glue: unknown executor": ("glue", [*LOCAL, "--executor", "slurm"], None, ["--executor", "'slurm'", "ray"]),
    "glue: address without Ray": ("glue", [*LOCAL, "--address", "auto"], None, ["--address is for --executor ray"]),
    "glue: GPUs without Ray": ("glue", [*LOCAL, "--gpus-per-run", "1"], None, ["--gpus-per-run is for --executor ray"]),
    "glue: address of another form": ("glue", [*RAY, "--address", "ray://head"], None, ["auto, local or HOST:PORT"]),
    "glue: port out of range": (
        "glue",
        [*RAY, "--address", "127.0.0.1:99999"],
        None,
        ["127.0.0.1:99999: nobody listens"],
    ),
    "glue: nobody at the address": ("glue", [*RAY, "--address", "127.0.0.1:1"], None, ["127.0.0.1:1: nobody listens"]),
    "glue: no CPU": ("glue", [*RAY, "--cpus-per-run", "0"], None, ["--cpus-per-run must be above 0, got 0"]),
    "glue: CPUs that are no number": ("glue", [*RAY, "--cpus-per-run", "nan"], None, ["--cpus-per-run", "got nan"]),
    "glue: one and a half CPUs": ("glue", [*RAY, "--cpus-per-run", "1.5"], None, ["whole number, got 1.5"]),
    "glue: fewer than no GPUs": ("glue", [*RAY, "--gpus-per-run", "-1"], None, ["--gpus-per-run must be 0 or more"]),
    "glue: GPUs for runs on a CPU": ("glue", [*RAY, "--gpus-per-run", "1"], None, ["--gpus-per-run with --device cpu"]),
    "glue: no GPU for runs on one": (
        "glue",
        [*RAY, "--device", "cuda", "--gpus-per-run", "0"],
        None,
        ["--gpus-per-run 0 with --device cuda", "0.5"],
    ),
    "glue: no rows": ("glue", [*LOCAL, "--max-train-samples", "0"], None, ["--max-train-samples must be at least 1"]),
    "glue: no epochs": ("glue", [*LOCAL, "--dense-epochs", "0"], None, ["--dense-epochs must be at least 1, got 0"]),
    "glue: fewer rows for the dense model": (
        "glue",
        [*LOCAL, "--max-train-samples", "9", "--dense-train-samples", "8"],
        None,
        ["--dense-train-samples 8 is less than --max-train-samples 9"],
    ),
    "glue: fewer than no rows": ("glue", [*LOCAL, "--max-eval-samples", "-5"], None, ["--max-eval-samples", "got -5"]),
    "glue: too short": ("glue", [*LOCAL, "--max-length", "2"], None, ["no room for text"]),
    "glue: too long": ("glue", [*LOCAL, "--max-length", "4096"], None, ["beyond the 80 tokens", "--max-length 80"]),
    "glue: device": ("glue", [*LOCAL, "--device", "tpu"], None, ["--device", "'tpu'"]),
    "glue: dtype": ("glue", [*LOCAL, "--dtype", "float8"], None, ["--dtype", "'float8'", "bfloat16"]),
    "glue: recipe": ("glue", [*LOCAL, "--recipe", "long"], None, ["--recipe", "'long'"]),
    "glue: no data": ("glue", ["--profile", "local"], None, ["local profile needs --data-dir"]),
    "glue: model of the embedded profile": ("glue", ["--profile", "embedded", "--model", "model"], None, ["own model"]),
    "glue: data of the embedded profile": ("glue", ["--profile", "embedded", "--data-dir", "data"], None, ["own data"]),
    "glue: data of the paper": ("glue", ["--profile", "paper", "--data-dir", "data"], None, ["paper profile has its"]),
    "glue: no data folder": ("glue", [*LOCAL, "--data-dir", "nowhere"], None, ["nowhere is not a folder"]),
    "glue: a file as data folder": ("glue", [*LOCAL, "--data-dir", "model/config.json"], None, ["is not a folder"]),
    "glue: no model folder": ("glue", [*LOCAL, "--model", "./nowhere"], None, ["no model at", "config.json"]),
    "glue: task that the folder lacks": ("glue", [*LOCAL, "--tasks", "sst2"], None, ["no rows of sst2", "--data-dir"]),
    "long: nothing that the folder has": ("long", [*LOCAL, "--tasks", "imdb"], None, ["no rows of imdb", "--data-dir"]),
    "as_released: nothing to compare": ("as_released", LOCAL, None, ["none of the chosen methods"]),
    "audit: unknown finding": ("audit", ["--findings", "lta"], None, ["lta", "lat"]),
    "audit: unknown flag": ("audit", ["--all"], None, ["unrecognized arguments: --all", "--help"]),
    "audit: no data folder": ("audit", ["--data-dir", "nowhere"], None, ["nowhere is not a folder"]),
    "audit: model without data": ("audit", ["--model", "model"], None, ["give that, too"]),
    "audit: unknown task": (
        "audit",
        ["--data-dir", "data", "--tasks", "mood"],
        None,
        ["--data-dir data has no folder"],
    ),
    "case_study: no text": ("case_study", [], None, ["give a text, in quotes, or --examples", "--help"]),
    "case_study: text and examples": ("case_study", ["a", "--examples"], None, ["own texts", "leave the text out"]),
    "case_study: reducer and examples": (
        "case_study",
        ["--examples", "--reducer", "reducer"],
        None,
        ["leave --reducer out"],
    ),
    "case_study: data without examples": ("case_study", ["a", "--data-dir", "data"], None, ["--data-dir is for"]),
    "case_study: examples of nothing": (
        "case_study",
        ["--examples", "--model", "model", "--results", "r"],
        None,
        ["no trained reducer for any example"],
    ),
    "case_study: examples without data": (
        "case_study",
        ["--examples", "--data-dir", "nowhere", "--results", "r"],
        None,
        ["nowhere is not a folder"],
    ),
    "case_study: blank text": ("case_study", ["  "], None, ["the text is empty"]),
    "case_study: blank question": ("case_study", ["a film", " "], None, ["the text is empty"]),
    "case_study: no Unicode": ("case_study", ["good \udcff", "--model", "model"], None, ["not Unicode", "UTF-8"]),
    "case_study: unknown task": (
        "case_study",
        ["a film", "--task", "sst3", "--model", "model"],
        None,
        ["no task 'sst3'"],
    ),
    "case_study: nothing trained": ("case_study", ["a film", "--model", "model"], None, ["no trained reducer", "make"]),
    "case_study: no reducer": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "nowhere"],
        None,
        ["no reducer at nowhere"],
    ),
    "case_study: task with reducer": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "reducer", "--task", "sst2"],
        None,
        ["leave it out with --reducer"],
    ),
    "case_study: a model as reducer": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "model"],
        None,
        ["cannot load the reducer model", "not a saved reducer"],
    ),
    "plan: unknown suite": ("plan", ["--suites", "glu"], None, ["--suites", "'glu'", "long"]),
    "plan: no GPU": ("plan", ["--gpus", "0"], None, ["--gpus must be at least 1, got 0"]),
    "plan: GPUs that are no number": ("plan", ["--gpus", "all"], None, ["--gpus", "'all'"]),
    "plan: no folder": ("plan", ["--records", "nowhere"], None, ["--records nowhere is not a folder"]),
    "plan: folder without trainings": (
        "plan",
        ["--records", "results", "--device", "cpu"],
        None,
        ["no dense training with float32 on cpu"],
    ),
    "plan: unknown method": ("plan", ["--methods", "lta", "--records", "results"], None, ["no method 'lta'"]),
    "runs: no action": ("runs", [], None, ["list|show|verify|gc", "--help"]),
    "runs: unknown action": ("runs", ["prune"], None, ["'prune'", "--help"]),
    "runs: no folder": ("runs", ["list", "--results", "nowhere"], None, ["--results nowhere is not a folder"]),
    "runs: folder without records": ("runs", ["list", "--results", "data"], None, ["no records in data"]),
    "runs: folder above the records": ("runs", ["list", "--results", "."], None, ["there are some in results"]),
    "runs: unknown hash": ("runs", ["show", "abc", "--results", "results"], None, ["'abc': no run has this hash"]),
    "runs: empty hash": ("runs", ["show", "", "--results", "results"], None, ["''", "list"]),
    "runs: unknown status": ("runs", ["list", "--status", "bad"], None, ["--status", "'bad'"]),
    "runs: unknown task": ("runs", ["list", "--task", "x", "--results", "results"], None, ["task 'x'; there is rte"]),
    "runs: unknown method": ("runs", ["list", "--method", "x", "--results", "results"], None, ["there is ltp"]),
    "strategy: no records": ("strategy", ["--results", "data"], None, ["no finished runs in", "--results"]),
    "strategy: unknown method": ("strategy", ["--methods", "ltpp"], None, ["no method 'ltpp'", "mean 'ltp'"]),
    "strategy: random has no curve": ("strategy", ["--methods", "random"], None, ["the method that it follows"]),
    "strategy: unknown flag": ("strategy", ["--all"], None, ["unrecognized arguments: --all", "--help"]),
    "report: no folder": ("report", ["--results", "nowhere"], None, ["--results nowhere is not a folder"]),
    "report: nothing in it": (
        "report",
        ["--results", "data", "--own-only"],
        None,
        ["no records and no tables in data"],
    ),
    "report: unknown flag": ("report", ["--all"], None, ["unrecognized arguments: --all", "--help"]),
    "pareto: no points": ("pareto", [*LOCAL, "--points", "0"], None, ["--points must be at least 1, got 0"]),
    "pareto: a speed-up that is none": ("pareto", [*LOCAL, "--speedups", "1"], None, ["--speedups must be above 1"]),
    "pareto: no budget": ("pareto", [*LOCAL, "--budget", "0"], None, ["--budget is in minutes", "more than 0"]),
    "pareto: budget that is no number": ("pareto", [*LOCAL, "--budget", "long"], None, ["--budget", "'long'"]),
    "pareto: unknown task": ("pareto", [*LOCAL, "--dataset", "moood"], None, ["no task 'moood'"]),
    "pareto: no records": ("pareto", ["--from-records", "--results", "data"], None, ["no finished runs in data"]),
    "pareto: no records of a task": (
        "pareto",
        ["--from-records", "--results", "data", "--dataset", "mood"],
        None,
        ["no finished runs in"],
    ),
    "pareto: records and none": (
        "pareto",
        ["--from-records", "--force"],
        None,
        ["--from-records", "--force", "one of"],
    ),
    "glue: records and none": ("glue", [*LOCAL, "--from-records", "--force"], None, ["--from-records", "--force"]),
    "pareto: no stand-in": ("pareto", ["--profile", "embedded", "--dataset", "imdb"], None, ["nor a stand-in for it"]),
    "embedded: unknown task": ("embedded", ["--tasks", "sst2"], None, ["--tasks", "'sst2'", "vader_sentiment"]),
}

OWN = ["--model", "model", "--task-data", "data/mood/train.csv", "--results", "r", "--device", "cpu", "--quiet"]


def own(content: str, *arguments: str) -> tuple[list[str], Spoil]:
    """Other rows of the user's own file."""
    return [*OWN, *arguments], rows(content)


TEXTS = "".join(f"a film {i},{i % 2}\n" for i in range(40))
ASKED = "question,context,answer\n" + "what,a b,b\n" * 40
PLACED = "question,context,answer,start\n" + "what,a b,b,2\n" * 40
ARGUMENTS |= {
    f"accelerate: {what}": ("accelerate", arguments, spoil, parts)
    for what, (arguments, spoil), parts in (
        ("no rows", ([], None), ["required: --task-data", "--help"]),
        ("no such file", ([*OWN, "--task-data", "x.csv"], None), ["no file x.csv"]),
        ("a folder as file", ([*OWN, "--task-data", "data"], None), ["no file data"]),
        ("another format", ([*OWN, "--task-data", "model/config.json"], None), ["none of .parquet, .jsonl"]),
        ("too few rows", ([*OWN], None), ["16 rows", "at least 40"]),
        ("target of one", ([*OWN, "--target-speedup", "1"], None), ["--target-speedup", "greater than 1"]),
        ("target that is none", ([*OWN, "--target-speedup", "nan"], None), ["--target-speedup", "got nan"]),
        ("infinite target", ([*OWN, "--target-speedup", "inf"], None), ["--target-speedup", "got inf"]),
        ("unknown method", ([*OWN, "--method", "transkimer"], None), ["did you mean 'transkimmer'"]),
        ("method without a knob", ([*OWN, "--method", "deformer"], None), ["nothing to choose", "use deebert, lat"]),
        ("no trials", ([*OWN, "--trials", "0"], None), ["--trials must be at least 1"]),
        ("negative seed", ([*OWN, "--seed", "-1"], None), ["--seed", "-1"]),
        ("no such column", own(f"sentence,label\n{TEXTS}", "--label-column", "mark"), ["no column 'mark'", "sentence"]),
        ("no label", own(f"sentence,mark\n{TEXTS}"), ["none of its columns (sentence, mark)", "--label-column"]),
        ("two texts", own(f"a,b,label\n{TEXTS.replace(',', ',c,')}"), ["which of a, b, label", "--text-columns"]),
        ("one class", own("text,label\n" + "a,1\n" * 40), ["one class only"]),
        ("labels that are names", own("text,label\n" + "".join(f"a,n{i}\n" for i in range(40))), ["--regression"]),
        ("empty text", own(f"text,label\n{TEXTS} ,1\n"), ["train.csv, row 41", "empty"]),
        ("empty label", own(f"text,label\n{TEXTS}b,\n"), ["train.csv, row 41", "is empty"]),
        ("values that are none", own(f"text,label\n{TEXTS}b,\n", "--regression"), ["row 41", "finite number"]),
        ("words without tags", own("words,tags\n" + "a b,X Y\n" * 40 + "a b,X\n"), ["row 41", "2 words", "1 tags"]),
        ("no words", own("words,tags\n" + "a b,X Y\n" * 40 + ",X\n"), ["row 41", "'words' is empty"]),
        ("one tag", own("words,tags\n" + "a b,X X\n" * 40), ["one tag only", "nothing to learn"]),
        (
            "method that cannot do tags",
            own("words,tags\n" + "".join(f"a b{i},X Y\n" for i in range(40)), "--method", "deebert"),
            ["deebert cannot do this task (token_classification)", "one prediction"],
        ),
        ("answer that is nowhere", own(f"{ASKED}what,a b,c\n"), ["row 41", "'c' does not stand in 'context'"]),
        ("answers to a text", own("text,answers\na,b\n"), ["need a question and a context", "--text-columns"]),
        (
            "answer elsewhere",
            own(f"{PLACED}what,a b,b,0\n"),
            ["row 41", "has 'b' at 0"],
        ),
        ("place that is none", own(f"{PLACED}what,a b,b,x\n"), ["row 41", "'start' must be the place", "'x'"]),
        ("method that cannot do values", own(f"text,label\n{TEXTS}b,0.5\n", "--method", "deebert"), ["regression"]),
        ("output that is something else", own(f"text,label\n{TEXTS}", "--output", "data"), ["is no saved model"]),
        (
            "validation without the column",
            own(f"text,label\n{TEXTS}", "--validation", "data/mood/validation.csv"),
            ["validation.csv lacks the column 'text'"],
        ),
    )
}

CONFIG = "model/config.json"
REPORT = ["--results", "results", "--own-only"]
FILES: dict[str, Case] = {
    "model without weights": ("glue", LOCAL, remove("model/model.safetensors"), ["model.safetensors is missing"]),
    "model without configuration": ("glue", LOCAL, remove(CONFIG), ["config.json is missing"]),
    "model whose configuration is no JSON": ("glue", LOCAL, write(CONFIG, "{"), ["not a model configuration"]),
    "model whose configuration is a list": ("glue", LOCAL, write(CONFIG, "[]"), ["not a model configuration"]),
    "model without a type": ("glue", LOCAL, write(CONFIG, "{}"), ["not a model configuration"]),
    "model of another family": ("glue", LOCAL, edit_json(CONFIG, model_type="mpnet"), ["'mpnet' model; supported"]),
    "model with cut weights": ("glue", LOCAL, write("model/model.safetensors", b"\x10"), ["cannot load the model"]),
    "model whose weights have other shapes": (
        "glue",
        LOCAL,
        edit_json(CONFIG, hidden_size=64),
        ["cannot load the model"],
    ),
    "model without tokenizer": ("glue", LOCAL, remove("model/tokenizer.json"), ["tokenizer"]),
    "tokenizer that is no JSON": ("glue", LOCAL, write("model/tokenizer.json", "{"), ["cannot load the tokenizer"]),
    "tokenizer without pad token": (
        "glue",
        LOCAL,
        edit_json("model/tokenizer_config.json", pad_token=None),
        ["no pad token"],
    ),
    "no training rows": ("glue", LOCAL, rows("sentence,label\n"), ["train.csv", "no rows"]),
    "empty file": ("glue", LOCAL, rows(""), ["train.csv"]),
    "no such split": ("glue", LOCAL, remove("data/mood/train.csv"), ["needs a train file", "found: validation"]),
    "a split twice": ("glue", LOCAL, write("data/mood/train.tsv", "sentence\tlabel\na\t0\n"), ["more than once"]),
    "one class only": ("glue", LOCAL, rows("sentence,label\na,0\nb,0\n"), ["one class only"]),
    "no text column": ("glue", LOCAL, rows("words,label\na,0\nb,1\n"), ["needs a column 'label' and one of"]),
    "no label column": ("glue", LOCAL, rows("sentence,mark\na,0\nb,1\n"), ["needs a column 'label'", "mark"]),
    "a column twice": ("glue", LOCAL, rows("sentence,label,label\na,0,1\n"), ["names a column twice"]),
    "a field too many": ("glue", LOCAL, rows("sentence,label\na,0\nb,c,1\n"), ["line 3", "3 fields"]),
    "unclosed quotation": ("glue", LOCAL, rows('sentence,label\na,0\n"b,1\n'), ["not CSV"]),
    "empty text": ("glue", LOCAL, rows("sentence,label\na,0\n,1\n"), ["row 2", "empty"]),
    "empty label": ("glue", LOCAL, rows("sentence,label\na,0\nb,1\nc,\n"), ["row 3", "label"]),
    "label out of range": ("glue", LOCAL, rows("sentence,label\na,7\n", "validation"), ["row 1", "label 7"]),
    "label that is no number": ("glue", LOCAL, rows("sentence,label\na,0.5\nb,nan\n"), ["row 2", "finite"]),
    "text that is not UTF-8": ("glue", LOCAL, rows(b"sentence,label\na,0\n\xff\xfe,1\n"), ["not UTF-8"]),
    "JSON lines that are cut off": ("glue", LOCAL, rows('{"sentence": "a"', suffix="jsonl"), ["line 1: not JSON"]),
    "JSON lines of numbers": ("glue", LOCAL, rows("1\n2\n", suffix="jsonl"), ["line 1: expected an object"]),
    "JSON text that is a number": (
        "glue",
        LOCAL,
        rows('{"sentence": 3, "label": 0}\n{"sentence": 4, "label": 1}\n', suffix="jsonl"),
        ["row 1", "must be text, got 3"],
    ),
    "mixed labels": (
        "glue",
        LOCAL,
        rows('{"sentence": "a", "label": 0}\n{"sentence": "b", "label": "x"}\n', suffix="jsonl"),
        ["column 'label' holds 'x'"],
    ),
    "no Parquet": ("glue", LOCAL, parquet, ["train.parquet cannot be read"]),
    "shards that are missing": (
        "glue",
        LOCAL,
        lambda root: (root / "data/mood/train.csv").rename(root / "data/mood/train-00000-of-00002.csv"),
        ["1 of the 2 shards"],
    ),
    "a file in the place of the results": ("glue", LOCAL, write("r", ""), ["cannot write", "make its folder writable"]),
    "tables that cannot be written": ("audit", ["--results", "r"], write("r", ""), ["cannot write"]),
    "a page that cannot be written": (
        "case_study",
        ["the film was good", "--model", "model", "--reducer", "reducer", "--output", "r/page.html"],
        write("r", ""),
        ["cannot write r/page.html", "another --output"],
    ),
    "a reducer with cut weights": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "reducer"],
        write("reducer/model.safetensors", b"\x10"),
        ["cannot load the reducer reducer"],
    ),
    "a reducer whose configuration is no JSON": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "reducer"],
        write("reducer/config.json", "{"),
        ["cannot load the reducer reducer"],
    ),
    "a report that cannot be written": (
        "report",
        [*REPORT, "--output", "r/x.html"],
        write("r", ""),
        ["cannot write r"],
    ),
    "a table of the report with a field too many": (
        "report",
        REPORT,
        write("results/tables/glue-x.csv", "a,b\n1,2,3\n"),
        ["glue-x.csv, row 2: 3 fields under 2 columns", "rerun"],
    ),
    "a table of the report without its columns": (
        "report",
        REPORT,
        write("results/tables/glue-x.csv", "model,method\nx,ltp\n"),
        ["glue-x.csv lacks the columns of, title", "rerun"],
    ),
    "a table of the report with a score that is no number": (
        "report",
        REPORT,
        lambda root: write_suite(root / "results", measured="high"),
        ["glue-local.csv, row 2: measured is 'high', not a number", "rerun"],
    ),
    "a case study of the report that is no JSON": (
        "report",
        REPORT,
        write("results/tables/case_study.json", "{"),
        ["case_study.json is not what", "--examples"],
    ),
    "a case study of the report that is something else": (
        "report",
        REPORT,
        write("results/tables/case_study.json", '{"schema": 1, "command": "", "examples": [{"views": 3}]}'),
        ["case_study.json is not what", "KeyError"],
    ),
    "a figure of the report that is cut off": (
        "report",
        REPORT,
        write("results/figures/strategy-rte.svg", "<svg"),
        ["strategy-rte.svg is not readable as SVG", "rerun"],
    ),
    "an empty table of the report": ("report", REPORT, write("results/tables/x.csv", ""), ["x.csv is empty"]),
    "a table of the report that is not UTF-8": (
        "report",
        REPORT,
        write("results/tables/x.csv", b"a\n\xff\n"),
        ["x.csv is not a readable CSV file", "rerun"],
    ),
    "a table of the audit without its columns": (
        "report",
        REPORT,
        write("results/tables/audit.csv", "finding\nx\n"),
        ["audit.csv lacks the columns paper"],
    ),
    "a record that is cut off": (
        "runs",
        ["show", config().hash, "--results", "results"],
        write(f"results/runs/train/rte/ltp-{config().hash}.json", "{"),
        ["not readable as JSON", "rerun its command"],
    ),
}
CASES = ARGUMENTS | FILES


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_sentence(spoilt, case, capsys, monkeypatch):
    command, arguments, spoil, parts = CASES[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if spoil is not None:
        spoil(spoilt)
    assert run_command(COMMANDS[command], arguments) == 2
    said = capsys.readouterr().err
    error = said.strip().splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in said and said.count("error: ") == 1
    for part in parts:
        assert part in error


def test_there_are_enough_cases():
    assert len(CASES) >= 60


def test_debug_shows_where_an_error_came_from(spoilt):
    with pytest.raises(Exception, match="no task 'moood'"):
        run_command(glue.main, [*LOCAL, "--tasks", "moood", "--debug"])


def test_a_defect_of_ours_is_one_line_too(capsys):
    assert run_command(lambda argv: 1 / 0, []) == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero; add --debug to see where\n"


SHELL = {
    "unknown target": (["gleu"], {}, 2, "unknown target 'gleu'; the targets are setup, glue"),
    "no interpreter": (["glue"], {"NO_INSTALL": "1", "PYTHON": "/no/python", "PATH": "{bare}"}, 1, "set PYTHON to one"),
}


@pytest.mark.parametrize("case", SHELL)
def test_the_script_says_what_is_wrong(case, tmp_path):
    arguments, settings, status, part = SHELL[case]
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = os.environ | {name: value.format(bare=tmp_path) for name, value in settings.items()}
    command = [str(PROJECT_ROOT / "reproduce.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == status and part in done.stderr and done.stderr.count("\n") == 1
