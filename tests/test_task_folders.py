"""Built-in tasks as a data folder has them: one file divided by articles, samples, bad answers."""

from __future__ import annotations

import json

import pytest

from benchmarks import glue
from benchmarks.cli import run_command
from benchmarks.data import DataSource, load_rows, split_rows
from benchmarks.errors import UserError
from benchmarks.task_folders import tasks_in
from benchmarks.tasks import GLUE, OFFICIAL_ROWS, TASKS, get_task
from tests.shared_data import shared_data
from tests.small_world import write_model, write_sentences

SQUAD = TASKS["squad_v2"]


def question(title="a", text="w1", start=0, context="w1 w2"):
    answers = {"text": [text], "answer_start": [start]} if text else {"text": [], "answer_start": []}
    return {"title": title, "question": "w3", "context": context, "answers": answers}


def write_squad(folder, split, rows):
    (folder / "squad_v2").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "squad_v2" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return DataSource("data_dir", folder)


# --- one file divided -------------------------------------------------------------------------------------------------


def test_a_lone_validation_file_is_divided_by_article_and_says_so(tmp_path):
    rows = [question(title=f"article {i % 8}") for i in range(80)]
    source = write_squad(tmp_path, "validation", rows)
    task = get_task("squad_v2", tmp_path)
    assert task.title == "SQuAD v2.0 (validation by title)" and task.divided == "validation"
    assert (task.train_split, task.eval_splits) == ("train", ("test",))
    train, test = (load_rows(task, split, source) for split in ("train", "test"))
    assert (len(train), len(test)) == (60, 20)
    assert not set(train["title"]) & set(test["title"])
    assert load_rows(task, "test", source).to_list() == test.to_list()
    some = load_rows(task, "test", source, max_samples=5)
    assert len(some) == 5 and set(some["title"]) <= set(test["title"])


def test_a_real_split_by_article():
    source = DataSource("data_dir", shared_data())
    if (shared_data("squad_v2") / "train.parquet").exists():
        pytest.skip("there is a training file, so nothing is divided")
    task = get_task("squad_v2", shared_data())
    train, test = (load_rows(task, split, source) for split in ("train", "test"))
    assert len(train) + len(test) == OFFICIAL_ROWS["squad_v2"][1]
    assert not set(train["title"]) & set(test["title"]) and not set(train["context"]) & set(test["context"])
    assert 0.2 < len(test) / (len(train) + len(test)) < 0.3
    for part in (train, test):
        assert 0.4 < sum(bool(answers["text"]) for answers in part["answers"]) / len(part) < 0.6


def test_with_a_training_file_nothing_is_divided(tmp_path):
    for split in ("train", "validation"):
        source = write_squad(tmp_path, split, [question()])
    task = get_task("squad_v2", tmp_path)
    assert task.divided is None and task.eval_splits == ("validation",)
    assert len(load_rows(task, "train", source)) == 1


def test_a_task_without_groups_is_never_divided(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "validation.csv").write_text("sentence,label\na,0\nb,1\n", encoding="utf-8")
    assert get_task("sst2", tmp_path).divided is None


def test_a_file_without_articles_cannot_be_divided(tmp_path):
    rows = [{name: value for name, value in question().items() if name != "title"} for _ in range(3)]
    source = write_squad(tmp_path, "validation", rows)
    with pytest.raises(UserError, match="lacks the column 'title'"):
        load_rows(get_task("squad_v2", tmp_path), "train", source)
    source = write_squad(tmp_path, "validation", [question(), question()])
    with pytest.raises(UserError, match="of 1 value\\(s\\) of 'title'; two are needed"):
        load_rows(get_task("squad_v2", tmp_path), "train", source)


def test_groups_stay_together_and_make_up_the_fraction(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"group": [f"g{i // 7}" for i in range(70)], "i": list(range(70))})
    rest, held_out = split_rows(rows, 0.25, seed=1, group_column="group")
    assert sorted([*rest["i"], *held_out["i"]]) == list(range(70)) and list(rest["i"]) == sorted(rest["i"])
    assert not set(rest["group"]) & set(held_out["group"]) and len(held_out) == 21  # 17.5 rows need three groups
    assert list(split_rows(rows, 0.25, seed=1, group_column="group")[1]["i"]) == list(held_out["i"])
    assert list(split_rows(rows, 0.25, seed=2, group_column="group")[1]["i"]) != list(held_out["i"])
    assert len(split_rows(rows, 0.99, seed=1, group_column="group")[0]) == 7, "one group at least is left"


# --- samples ----------------------------------------------------------------------------------------------------------


def test_fewer_rows_than_the_official_files_have_are_a_sample(tmp_path):
    folder = tmp_path / "glue" / "rte"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("sentence1,sentence2,label\na,b,0\n", encoding="utf-8")
    assert get_task("rte", tmp_path).title == "RTE (sample)"


@pytest.mark.parametrize(("name", "partial"), [("yelp", True), ("imdb", False), ("20news", False), ("mrpc", False)])
def test_shared_files_are_labelled_as_they_are(name, partial):
    shared_data(name) if name != "mrpc" else shared_data("glue", name)
    assert get_task(name, shared_data()).title == TASKS[name].title + (" (sample)" if partial else "")


def test_folders_that_are_not_there_change_nothing(tmp_path):
    assert get_task("yelp", tmp_path) is TASKS["yelp"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "parts"),
    [
        ({"text": ["w2"], "answer_start": [1]}, ["'w2' at 1", "'context' does not have it there"]),
        ({"text": ["w1"], "answer_start": [-5]}, ["'w1' at -5"]),
        ({"text": ["w1"], "answer_start": []}, ["equally long lists"]),
        ({"text": ["w1"], "answer_start": None}, ["equally long lists"]),
        ({"text": ["  "], "answer_start": [2]}, ["'  ' at 2", "an answer is a text"]),
        (None, ["equally long lists", "got None"]),
    ],
    ids=["elsewhere", "negative", "no_place", "null_place", "blank", "null"],
)
def test_answers_that_cannot_be_used_are_named(tmp_path, answers, parts):
    source = write_squad(tmp_path, "train", [question(), question() | {"answers": answers}])
    with pytest.raises(UserError) as caught:
        load_rows(SQUAD, "train", source)
    assert all(part in str(caught.value) for part in ["train.jsonl, row 2", "'answers'", *parts]), caught.value


def test_answers_of_another_type_are_named(tmp_path):
    rows = [question() | {"answers": "w1"}]
    with pytest.raises(UserError, match="row 1: 'answers' must have equally long lists 'text' and 'answer_start'"):
        load_rows(SQUAD, "train", write_squad(tmp_path, "train", rows))


def test_the_tasks_of_a_data_folder_are_those_that_are_there(tmp_path, capsys):
    """The built-in ones in their own order first; folders without rows are none. Costs that rows decide are null."""
    data = write_sentences(tmp_path / "data")
    assert tasks_in(data, GLUE) == ("mood",)
    shared = [
        "--profile",
        "local",
        "--model",
        str(write_model(tmp_path / "model")),
        "--dry-run",
        "--methods",
        "dense",
        "--json",
    ]
    assert run_command(glue.main, [*shared, "--data-dir", str(data)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"runs": [{"run": "mood: Dense on model, seed 42", "flops": None}]}
    for name in ("glue/sst2", "cola", "imdb", "angry", "pictures"):
        (data / name).mkdir(parents=True)
    for name in ("angry", "imdb"):
        (data / name / "train.csv").write_text("sentence,label\na,0\nb,1\n")
    assert tasks_in(data, GLUE) == ("cola", "sst2", "angry", "mood")
    assert run_command(glue.main, [*shared, "--data-dir", str(data / "pictures")]) == 2
    assert "pictures has no folder of a task of this command" in capsys.readouterr().err
