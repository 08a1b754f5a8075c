"""The command that makes a model faster on a user's own rows: how a speed-up is found, and the whole."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
import transformers

import methods
from benchmarks import accelerate, acceleration, experiment_data
from benchmarks.cli import run_command
from benchmarks.environment import machine
from benchmarks.own_rows import own_task
from benchmarks.runs import load_runs
from benchmarks.speed_search import NEAR, Point, choose, search
from benchmarks.timing import Samples, ratio_range
from benchmarks.train import Compute
from tests.small_world import BAD, GOOD, NEUTRAL, write_model, write_questions, write_sentences
from tests.test_own_rows import rows_of, write

# --- search -----------------------------------------------------------------------------------------------------------


def followed(curve, target, **settings):
    return search(target, lambda p: Point(speedup=curve(p), score=1 - p), **({"start": 0.5, "trials": 20} | settings))


@pytest.mark.parametrize("target", [1.1, 1.5, 2.0, 3.5])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "curve", [lambda p: 1 + 3 * p, lambda p: math.exp(2 * p), lambda p: 1 + 4 * p**6], ids=["line", "exp", "late"]
)
def test_a_speedup_is_found_from_any_start(curve, start, target):
    points = followed(curve, target, start=start)
    assert list(points.values())[-1].distance(target) <= 0.05 and len(points) <= 10


def test_a_target_beyond_the_method_ends_soon_and_at_the_most_it_can():
    points = followed(lambda p: 1 + p, 50)
    assert list(points) == [0.5, 1.0] and choose(points.values(), 50).speedup == 2.0
    assert list(followed(lambda p: 2 + p, 1.2)) == [0.5, 0.25, 0.0]


def test_a_step_ends_the_search_and_the_nearer_side_is_chosen():
    points = followed(lambda p: 1.0 if p < 0.3 else 4.0, 2.5)
    assert len(points) <= 20 and choose(points.values(), 2.5).speedup == 4.0


def test_trials_are_not_exceeded():
    assert len(followed(lambda p: 1 + 4 * p**6, 1.5, start=0.0, trials=3)) == 3


def test_among_those_near_the_target_the_best_score_is_chosen():
    points = [Point(speedup=s, score=q) for s, q in ((1.45, 0.8), (1.6, 0.9), (1.5, 0.7), (1.0, 1.0))]
    assert choose(points, 1.5) is points[1] and points[3].distance(1.5) > NEAR


# --- times ------------------------------------------------------------------------------------------------------------


def test_a_speedup_has_the_range_of_its_rounds():
    assert ratio_range([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0}


def test_the_time_of_a_text_is_that_of_all_its_windows(monkeypatch):
    """Four windows each; the stopwatch says two seconds for every pass."""
    passes: dict[str, int] = {}
    features = [{"index": i // 4, "input_ids": [2, 5, 3], "label": 0, "truncated": False} for i in range(4 * 200)]

    def way(name):
        def run(**batch):
            passes[name] = passes.get(name, 0) + len(batch["input_ids"])

        return run

    def stopwatch(runs, **_):
        for run in runs.values():
            run()
        return {name: Samples([2.0], [2.0]) for name in runs}

    monkeypatch.setattr(acceleration, "interleave", stopwatch)
    monkeypatch.setattr(acceleration, "padding_id", lambda model: 0)
    dense, reduced = way("dense"), way("reduced")
    dense.model = SimpleNamespace(eval=lambda: way("stock"))
    goal = SimpleNamespace(setting=SimpleNamespace(compute=Compute()), model=None)
    for size, texts in acceleration.TIMED_TEXTS.items():
        passes.clear()
        said = acceleration._timed(goal, dense, reduced, features, size)
        assert said["texts"] == texts and set(passes.values()) == {4 * texts}
        assert said["ms_per_text"] == dict.fromkeys(("stock", "dense", "reduced"), 2000 / texts)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(accelerate, "MIN_UPDATES", 40)
    for cache in ("_rows", "_features", "_split_identity", "padding_id"):
        getattr(experiment_data, cache).cache_clear()
    write_model(tmp_path / "model")
    write_sentences(tmp_path / "data", rows=128)
    return tmp_path


def call(world, *arguments):
    shared = ["--model", world / "model", "--task-data", world / "data/mood/train.csv", "--output", world / "out"]
    return run_command(accelerate.main, list(map(str, [*shared, "--results", world / "r", *arguments])))


def test_a_target_is_reached_and_the_saved_model_is_what_was_measured(world, capsys):
    assert call(world, "--target-speedup", "1.4", "--method", "lat", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["reached"] and abs(said["reduced"]["speedup"] / 1.4 - 1) <= NEAR
    assert said["columns"] == ["sentence", "label"] and 0 < said["commonest_class"] < 1
    assert said["time"].keys() == {"1", "32"} and said["time"]["1"]["ms_per_text"].keys() == {
        "stock",
        "dense",
        "reduced",
    }
    assert said == json.loads((world / "out" / "accelerate.json").read_text()) | {"output": said["output"]}
    reducer = methods.load(str(world / "out")).eval()
    assert reducer.config.id2label == {0: "0", 1: "1"} and reducer.options.length_configuration is not None
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(world / "out").eval()
    card = (world / "out" / "README.md").read_text()
    assert said["record"] in card and f"{said['reduced']['score']:.4g} (dense: " in card
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "out")
    batch = tokenizer(["the film was great"], return_tensors="pt")
    output = reducer(**batch)
    assert torch.equal(loaded(**batch).logits, output.logits)
    assert int(output.trace.ffn_tokens[0, -1]) < int(output.trace.input_lengths[0])
    frame = load_runs(next((world / "r").rglob("runs")).parent)
    assert set(frame["kind"]) == {"finetune", "accelerate"} and set(frame["status"]) == {"ok"}


def tagged_rows(path):
    """The one loaded word of a sentence is an entity; its kind is in the word."""
    rng = random.Random(0)
    rows = []
    for i in range(128):
        words = rng.choices(NEUTRAL, k=rng.randint(3, 9))
        tags = ["O"] * len(words)
        place = rng.randint(0, len(words))
        words.insert(place, rng.choice((BAD, GOOD)[i % 2]))
        tags.insert(place, ("B-BAD", "B-GOOD")[i % 2])
        rows.append((" ".join(words), " ".join(tags)))
    return write(path, ("sentence", "ner_tags"), rows)


def test_a_tagger_is_made_faster_and_names_entities(world, capsys):
    path = tagged_rows(world / "names.csv")
    status = call(world, "--task-data", path, "--target-speedup", "1.3", "--method", "lat", "--json")
    said = json.loads(capsys.readouterr().out)
    assert status == 0 and said["reached"] and said["metric"] == "entity_f1" and said["columns"][-1] == "ner_tags"
    assert said["commonest_class"] is None and 0 < said["reduced"]["score"] < 1
    loaded = transformers.AutoModelForTokenClassification.from_pretrained(world / "out")
    assert loaded.config.id2label == {0: "O", 1: "B-BAD", 2: "B-GOOD"} and loaded.method_name == "lat"
    tag = transformers.pipeline("token-classification", model=str(world / "out"), ignore_labels=[])
    rows, names = rows_of(own_task(path), "test"), loaded.config.id2label
    found = [{(place, token["entity"]) for place, token in enumerate(tag(text))} for text in rows["text"]]
    right = [{(place, names[one]) for place, one in enumerate(tags)} for tags in rows["tags"]]
    found, right = ([{one for one in row if one[1] != "O"} for row in rows] for rows in (found, right))
    both = sum(len(a & b) for a, b in zip(found, right, strict=True))
    assert said["reduced"]["score"] == pytest.approx(2 * both / sum(map(len, (*found, *right))))


def test_a_reader_is_made_faster(world, capsys):
    rows = [json.loads(line) for line in (write_questions(world) / "squad_v2/validation.jsonl").open()]
    lines = [
        (row["question"], f"{row['context']} {i}", *(part[0] if part else "" for part in row["answers"].values()))
        for i, row in enumerate(rows)
    ]
    path = write(world / "asked.csv", ("question", "context", "answer", "start"), lines)
    call(world, "--task-data", path, "--target-speedup", "1.3", "--method", "lat", "--quiet", "--max-length", "32")
    said = json.loads((world / "out" / accelerate.SUMMARY).read_text())
    assert said["metric"] == "squad_f1" and said["columns"] == ["question", "context", "answer"]
    assert f"On {own_task(path).score_rows} rows that neither" in capsys.readouterr().out  # not windows
    assert 0 < said["dense"]["score"] <= 1 and said["reduced"]["speedup"] > 1.1
    loaded = transformers.AutoModelForQuestionAnswering.from_pretrained(world / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "out")
    batch = tokenizer("was it a good plot", "the film was great", return_tensors="pt")
    assert loaded(**batch).start_logits.shape == batch["input_ids"].shape


def test_an_impossible_target_says_so_and_what_was_reached(world, capsys):
    assert call(world, "--target-speedup", "400", "--method", "deebert", "--quiet") == 1
    captured = capsys.readouterr()
    line = captured.err.strip()
    assert line.count("\n") == 0 and line.startswith("target not reached: 400x is beyond deebert here")
    assert "trial(s) was" in line and str(world / "out") in line
    assert "accuracy, percent" in captured.out and (world / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ((1.45, 3.0), "every one of 2 trial(s) was faster than 1.2x; the nearest, 1.45x on held-out rows, is 1.40x on"),
        ((1.01, 2.99), "target not reached: the nearest of 2 trial(s) to 1.2x was 1.01x (the most 2.99x), 1.40x on"),
        ((1.0, 1.05), "target not reached: 1.2x is beyond lat here, the most of 2 trial(s) was 1.05x, 1.40x on"),
    ],
)
def test_what_was_not_met_is_said_as_it_is(speedups, said):
    points = [Point(speedup=speedup, score=0.5) for speedup in speedups]
    metrics = {"reduced": {"speedup": 1.4}, "held_out": {"speedup": choose(points, 1.2).speedup}}
    goal = SimpleNamespace(target=1.2, method="lat")
    outcome = SimpleNamespace(points=points, record={"metrics": metrics})
    assert accelerate.shortfall(goal, outcome) == f"{said} the rows to score on"


def test_a_learned_method_is_trained_once_per_trial_and_never_again(world, capsys, monkeypatch):
    arguments = ("--target-speedup", "1.3", "--trials", "2", "--method", "power_bert", "--json")
    status = call(world, *arguments)
    first = json.loads(capsys.readouterr().out)
    assert len(first["trials"]) <= 2 and {"search_weight"} == set(first["options"])
    frame = load_runs(next((world / "r").rglob("runs")).parent)
    assert (frame["config.method"] == "power_bert").sum() == len(first["trials"]) + 1
    assert call(world, *arguments) == status
    second = json.loads(capsys.readouterr().out)
    assert second["trials"] == first["trials"] and second["time"] == first["time"]  # read from the record
    monkeypatch.setattr(acceleration, "machine", lambda device: "another one")
    assert call(world, *arguments) == status
    third = json.loads(capsys.readouterr().out)
    assert third["trials"] == first["trials"] and third["record"] != first["record"]  # times are of this machine
    extra = {record["config"]["extra"]["machine"]: record["config"]["extra"] for record in compared(world)}
    assert extra.keys() == {machine("cpu"), "another one"} and {one["threads"] for one in extra.values()} == {
        torch.get_num_threads()
    }


def compared(world) -> list[dict]:
    return [json.loads(path.read_text()) for path in (world / "r").rglob("runs/accelerate/**/*.json")]


@pytest.mark.parametrize("limit", [2.0, 0.0], ids=["the last ones", "all"])
def test_a_training_that_fails_is_left_out_of_the_choice(limit, monkeypatch):
    """Made-up trainings: twice the speed-up per quarter of pressure, and no finite loss above a speed-up of `limit`."""
    knob = methods.lookup("power_bert").traits.knob
    usual, said = knob.at(0.25), []

    def trained(experiment, *_):
        if (speedup := 2 ** (4 * knob.pressure(experiment.options[knob.option]) - 1)) > limit:
            raise RuntimeError("the loss is not finite")
        return speedup

    def experiment(method, **options):
        return SimpleNamespace(options=options)

    goal = SimpleNamespace(method="power_bert", knob=knob, usual=usual, target=1.9, trials=6, experiment=experiment)
    progress = SimpleNamespace(say=said.append, start_run=lambda label: None, advance=None)
    monkeypatch.setattr(acceleration, "trained", trained)
    monkeypatch.setattr(acceleration, "_point", lambda goal, experiment, speedup, *_: Point(speedup=speedup, score=0.5))
    if not limit:
        with pytest.raises(RuntimeError, match="not finite"):
            acceleration._train_anew(goal, None, progress)
        return
    _, reducer, points = acceleration._train_anew(goal, None, progress)
    assert said and all(point.speedup <= limit for point in points) and len(points) + len(said) <= 6
    assert reducer == choose(points, 1.9).speedup and 1.9 / (1 + NEAR) <= reducer <= limit


def test_a_dry_run_says_how_the_rows_are_read(world, capsys):
    assert call(world, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "sentence -> label (0, 1)" in said and "transkimmer" in said and not (world / "out").exists()
    assert "are longer" not in said
    assert call(world, "--dry-run", "--max-length", "8") == 0
    texts = [row.split() for row in rows_of(own_task(world / "data/mood/train.csv"), "test")["sentence"]]
    longer = sum(len(words) > 6 for words in texts)
    assert f"{longer} of {len(texts)} texts to score on are longer, and are cut" in capsys.readouterr().out
    assert call(world, "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["columns"] == ["sentence", "label"] and said["classes"] == ["0", "1"] and said["left_out_rows"] == 0
    assert said["train_rows"] + said["score_rows"] == 128 and said["output"] == str(world / "out")


def test_a_folder_that_the_command_wrote_may_be_written_again_and_no_other(world, capsys):
    assert accelerate.SUMMARY == acceleration.SUMMARY
    (world / "out").mkdir()
    assert call(world, "--dry-run") == 0
    (world / "out" / "config.json").write_text("{}")
    assert call(world, "--dry-run") == 2 and "holds files that this command did not write" in capsys.readouterr().err
    (world / "out" / accelerate.SUMMARY).write_text("{}")
    assert call(world, "--dry-run") == 0
