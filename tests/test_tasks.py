"""Tasks: the paper's numbers, the columns of the real files, tasks made from a folder, messages for wrong names."""

import re

import datasets
import pytest

from benchmarks.errors import UserError
from benchmarks.row_files import read_rows, split_files
from benchmarks.tasks import EMBEDDED, EMBEDDED_LONG, GLUE, LONG, TASKS, get_task
from tests.shared_data import shared_data

TABLE_2 = {  # average sample length, input length, harmony coefficient; typed from the paper
    "cola": (11, 64, 0.3),
    "rte": (64, 256, 0.8),
    "qqp": (30, 128, 0.2),
    "mrpc": (53, 128, 0.5),
    "sst2": (25, 64, 0.3),
    "mnli": (39, 128, 0.2),
    "wnli": (37, 128, 0.5),
    "qnli": (51, 128, 0.1),
    "stsb": (31, 64, 0.3),
    "squad_v2": (152, 384, 0.8),
    "imdb": (264, 512, 0.5),
    "yelp": (179, 512, 0.5),
    "20news": (551, 512, 0.5),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_lengths_and_skim_weight_are_those_of_table_2(name):
    task = TASKS[name]
    assert (task.average_length, task.sequence_length, task.skim_weight) == TABLE_2[name]


def test_groups_are_in_the_order_of_the_tables():
    assert GLUE == ("cola", "rte", "qqp", "mrpc", "sst2", "mnli", "wnli", "qnli", "stsb")
    assert LONG == ("squad_v2", "20news", "yelp", "imdb")
    assert EMBEDDED == ("vader_sentiment", "vader_valence", "synthetic_pair")
    assert EMBEDDED_LONG == ("synthetic_squad_v2", "orange_20news")
    assert tuple(TASKS) == GLUE + LONG + EMBEDDED + EMBEDDED_LONG


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_consistent(task):
    expected = {"classification": len(task.label_names), "regression": 1, "span_qa": 2}
    assert task.num_labels == expected[task.kind]
    assert len(set(task.label_names)) == len(task.label_names)
    metrics = {"regression": ("pearson",), "span_qa": ("squad_f1",)}
    assert task.metric in metrics.get(task.kind, ("accuracy", "f1", "matthews_correlation"))
    assert len(task.relevant_columns) in (0, len(task.text_columns))
    if task.group == "embedded":
        assert task.hub_id is None
    else:
        assert re.fullmatch(r"[\w-]+/[\w-]+", task.hub_id), "with its owner"
        assert re.fullmatch(r"[0-9a-f]{40}", task.revision), "pinned"


@pytest.mark.parametrize("name", GLUE + LONG)
def test_columns_and_class_names_are_those_of_the_real_files(name):
    task = TASKS[name]
    folder = shared_data("glue", name) if name in GLUE else shared_data(name)
    for split in task.eval_splits:
        features = read_rows(split_files(folder, split)).features
        assert {*task.text_columns, task.label_column} <= set(features)
        assert tuple(getattr(features[task.label_column], "names", ())) == task.label_names


def write_csv(folder, split, header, rows):
    folder.mkdir(exist_ok=True)
    lines = [",".join(header), *(",".join(str(field) for field in row) for row in rows)]
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_folder_with_text_labels_is_a_classification_task(tmp_path):
    for split in ("train", "test"):
        write_csv(tmp_path / "mood", split, ("text", "label"), [("so good", "up"), ("so bad", "down"), ("ok", "up")])
    task = get_task("mood", tmp_path)
    assert (task.name, task.group, task.kind, task.num_labels) == ("mood", "user", "classification", 2)
    assert task.label_names == ("down", "up")
    assert (task.text_columns, task.eval_splits, task.metric) == (("text",), ("test",), "accuracy")
    assert task.sequence_length == 64


def test_whole_number_labels_are_classes_in_numeric_order(tmp_path):
    for split in ("train", "validation"):
        write_csv(tmp_path / "stars", split, ("premise", "hypothesis", "label"), [("a", "b", i) for i in (10, 2, 1)])
    task = get_task("stars", tmp_path)
    assert task.label_names == ("1", "2", "10")
    assert task.text_columns == ("premise", "hypothesis")
    assert task.eval_splits == ("validation",)


def test_labels_with_a_fraction_are_a_regression(tmp_path):
    for split in ("train", "dev"):
        write_csv(tmp_path / "grade", split, ("sentence", "label"), [("a b", 0.5), ("c d", 2)])
    task = get_task("grade", tmp_path)
    assert (task.kind, task.num_labels, task.label_names, task.metric) == ("regression", 1, (), "pearson")


def test_input_length_of_a_folder_fits_its_texts(tmp_path):
    for split in ("train", "test"):
        write_csv(tmp_path / "long", split, ("text", "label"), [("word " * 150, i) for i in (0, 1)])
    assert get_task("long", tmp_path).sequence_length == 256  # 1.5 * 150 + 3 = 228


def test_class_names_stored_in_parquet_are_kept(tmp_path):
    label = datasets.ClassLabel(names=["no", "maybe", "yes"])
    features = datasets.Features(sentence=datasets.Value("string"), label=label)
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 2]}, features=features)
    (tmp_path / "poll").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "poll" / f"{split}.parquet")
    assert get_task("poll", tmp_path).label_names == ("no", "maybe", "yes")


def test_a_built_in_name_wins_over_a_folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    assert get_task("sst2", tmp_path) is TASKS["sst2"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sst-2", ["no task 'sst-2'", "did you mean 'sst2'?", "cola", "synthetic_pair"]),
        ("moods", ["no task 'moods'", "no folder of that name in", "did you mean 'mood'?"]),
        ("../mood", ["no task '../mood'"]),
        ("zzzzzz", ["no task 'zzzzzz'", "available: cola, rte"]),
    ],
)
def test_unknown_names_say_what_there_is(tmp_path, name, parts):
    (tmp_path / "mood").mkdir()
    with pytest.raises(UserError) as caught:
        get_task(name, tmp_path)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, ["needs a train file", "found: none"]),
        ({"train": ("text", "label")}, ["one of validation, dev, test", "found: train"]),
        ({"train": ("text", "target"), "test": ("text", "target")}, ["needs a column 'label'", "has: text, target"]),
        ({"train": ("body", "label"), "test": ("body", "label")}, ["'sentence', 'text'", "has: body, label"]),
        ({"train": ("text", "label"), "test": ("text", "label")}, ["one class only", "'same'"]),
    ],
    ids=["empty", "no_eval", "no_label", "no_text", "one_class"],
)
def test_a_folder_that_is_no_task_says_why(tmp_path, files, parts):
    (tmp_path / "mine").mkdir()
    for split, header in files.items():
        write_csv(tmp_path / "mine", split, header, [("a", "same"), ("b", "same")])
    with pytest.raises(UserError) as caught:
        get_task("mine", tmp_path)
    assert all(part in str(caught.value) for part in [str(tmp_path / "mine"), *parts])
