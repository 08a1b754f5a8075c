"""Rows: what is read, what is refused and how it is said, what is held out."""

import json
import tracemalloc
from dataclasses import replace

import datasets
import numpy as np
import pytest

from benchmarks.data import DataSource, load_rows, split_rows
from benchmarks.errors import UserError
from benchmarks.tasks import TASKS, get_task
from tests.shared_data import shared_data

SST2, STSB, RTE = TASKS["sst2"], TASKS["stsb"], TASKS["rte"]


def write_task(root, name="sst2", split="train", suffix=".jsonl", rows=(), text=None):
    """Write rows (dicts) as JSON Lines, or `text` as it is, to <root>/<name>/<split><suffix>."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    content = text if text is not None else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}{suffix}").write_text(content, encoding="utf-8")
    return DataSource("data_dir", root)


def sentences(*labels):
    return [{"sentence": f"text {i}", "label": label} for i, label in enumerate(labels)]


def message(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli", "wnli", "qnli"])
def test_real_glue_rows_load(name):
    task = TASKS[name]
    rows = load_rows(task, task.eval_splits[-1], DataSource("data_dir", shared_data()), max_samples=40)
    assert len(rows) == 40
    assert all(isinstance(label, float if name == "stsb" else int) for label in rows["label"])


def test_a_subset_of_a_sorted_set_has_all_classes():
    rows = load_rows(TASKS["imdb"], "train", DataSource("data_dir", shared_data()), max_samples=200)
    assert 60 < sum(rows["label"]) < 140  # the first 12,500 rows are all of class 0


def test_20news_keeps_its_empty_posts():
    rows = load_rows(TASKS["20news"], "test", DataSource("data_dir", shared_data()))
    assert (len(rows), sum(not text.strip() for text in rows["text"])) == (7532, 215)


def test_squad_rows_load():
    rows = load_rows(TASKS["squad_v2"], "validation", DataSource("data_dir", shared_data()), max_samples=3)
    assert set(rows[0]["answers"]) == {"text", "answer_start"}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".jsonl", '{"sentence": "NA", "label": 1}\n\n{"sentence": "say \\"hi\\", ok", "label": 0}\n'),
        (".csv", 'sentence,label\nNA,1\n"say ""hi"", ok",0\n'),
        (".tsv", 'sentence\tlabel\nNA\t1\nsay "hi", ok\t0\n'),
        (".tsv", '\ufeffsentence\tlabel\r\nNA\tpositive\r\nsay "hi", ok\tnegative\r\n'),
    ],
    ids=["jsonl", "csv", "tsv", "tsv_names_bom_crlf"],
)
def test_text_formats_give_the_same_rows(tmp_path, suffix, text):
    rows = load_rows(SST2, "train", write_task(tmp_path, suffix=suffix, text=text))
    assert list(rows["sentence"]) == ["NA", 'say "hi", ok']
    assert list(rows["label"]) == [1, 0]


def test_rows_are_found_below_glue_too(tmp_path):
    write_task(tmp_path / "glue", rows=sentences(1, 0))
    assert list(load_rows(SST2, "train", DataSource("data_dir", tmp_path))["label"]) == [1, 0]


def test_shards_are_read_in_order(tmp_path):
    (tmp_path / "sst2").mkdir()
    for i in range(2):
        part = datasets.Dataset.from_dict({"sentence": [f"text {i}"], "label": [i]})
        part.to_parquet(tmp_path / "sst2" / f"train-0000{i}-of-00002.parquet")
    source = DataSource("data_dir", tmp_path)
    assert list(load_rows(SST2, "train", source)["sentence"]) == ["text 0", "text 1"]
    (tmp_path / "sst2" / "train-00000-of-00002.parquet").unlink()
    assert "1 of the 2 shards" in message(lambda: load_rows(SST2, "train", source))


def test_class_names_of_the_file_decide_over_its_ids(tmp_path):
    names = datasets.ClassLabel(names=["not_entailment", "entailment"])  # WNLI's order, not RTE's
    value = datasets.Value("string")
    rows = datasets.Dataset.from_dict(
        {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]},
        features=datasets.Features(sentence1=value, sentence2=value, label=names),
    )
    (tmp_path / "rte").mkdir()
    rows.to_parquet(tmp_path / "rte" / "train.parquet")
    loaded = load_rows(RTE, "train", DataSource("data_dir", tmp_path))
    assert list(loaded["label"]) == [1, 0]
    assert loaded.features["label"].names == ["entailment", "not_entailment"]


def test_numbers_that_name_classes_become_ids(tmp_path):
    rows = [{"text": "a", "label": 5}, {"text": "b", "label": 1}, {"text": "c", "label": 3}]
    for split in ("train", "test"):
        source = write_task(tmp_path, "stars", split, rows=rows)
    assert list(load_rows(get_task("stars", tmp_path), "test", source)["label"]) == [2, 0, 1]
    write_task(tmp_path, "stars", "test", rows=[{"text": "a", "label": 0}])
    assert "label 0 is not a class" in message(lambda: load_rows(get_task("stars", tmp_path), "test", source))


def test_max_samples_is_seeded_and_nested(tmp_path):
    source = write_task(tmp_path, rows=sentences(*[0, 1] * 50))
    ten, twenty, again, other = (
        list(load_rows(SST2, "train", source, max_samples=n, seed=seed)["sentence"])
        for n, seed in ((10, 1), (20, 1), (10, 1), (10, 2))
    )
    assert ten == again == twenty[:10] != other
    assert len(set(twenty)) == 20
    assert len(load_rows(SST2, "train", source, max_samples=1000)) == 100


def test_embedded_rows_come_from_the_home(tmp_path, monkeypatch):
    write_task(tmp_path / "data", "vader_sentiment", rows=sentences(1, 0))
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    assert len(load_rows(TASKS["vader_sentiment"], "train", DataSource("embedded"))) == 2
    assert "reproduce.sh setup" in message(lambda: load_rows(TASKS["vader_valence"], "train", DataSource("embedded")))


def test_hub_rows_are_asked_for_with_the_pinned_revision(monkeypatch):
    asked = {}

    def load_dataset(*args, **options):
        asked.update(args=args, **options)
        return datasets.Dataset.from_list([{"sentence": "", "label": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_rows(SST2, "train", DataSource("hub"))) == 1  # official rows are taken as they are
    assert asked == {"args": ("nyu-mll/glue", "sst2"), "split": "train", "revision": SST2.revision}


def test_a_hub_that_is_out_of_reach_is_a_user_error(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("offline mode is enabled\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = message(lambda: load_rows(SST2, "train", DataSource("hub")))
    assert all(part in text for part in ["nyu-mll/glue (sst2, train)", "offline mode is enabled", "--data-dir"])
    text = message(lambda: load_rows(TASKS["vader_valence"], "train", DataSource("hub")))
    assert "vader_valence is not on the hub" in text


# --- refusing ---------------------------------------------------------------------------------------------------------

GOOD = sentences(0, 1)


@pytest.mark.parametrize(
    ("task", "suffix", "rows", "parts"),
    [
        (SST2, ".jsonl", "", ["has no rows"]),
        (SST2, ".csv", "", ["has no rows"]),
        (SST2, ".csv", "sentence,label\n", ["has no rows"]),
        (SST2, ".jsonl", [{"text": "a", "label": 1}], ["lacks the column 'sentence'", "it has: text, label"]),
        (SST2, ".jsonl", [{"sentence": "a"}], ["lacks the column 'label'"]),
        (SST2, ".jsonl", [*GOOD, {"sentence": "  ", "label": 1}], ["row 3", "'sentence' is empty ('  ')"]),
        (SST2, ".jsonl", [*GOOD, {"sentence": None, "label": 1}], ["row 3", "'sentence' must be text, got None"]),
        (SST2, ".jsonl", [{"sentence": 7, "label": 1}], ["row 1", "'sentence' must be text, got 7"]),
        (SST2, ".jsonl", [*GOOD, {"sentence": 7, "label": 1}], ["row 3", "'sentence' holds 7", "use one type"]),
        (SST2, ".jsonl", [*GOOD, {"sentence": "a", "label": None}], ["row 3", "label in 'label' is empty"]),
        (SST2, ".jsonl", [*GOOD, {"sentence": "a", "label": 2}], ["row 3", "label 2 is not a class of sst2"]),
        (SST2, ".jsonl", [{"sentence": "a", "label": -1}], ["row 1", "label -1", "hidden labels"]),
        (SST2, ".jsonl", [{"sentence": "a", "label": "good"}], ["row 1", "label 'good'", "negative, positive"]),
        (SST2, ".jsonl", [{"sentence": "a", "label": 0.5}], ["row 1", "label 0.5"]),
        (SST2, ".tsv", "sentence\tlabel\na\t1\nb\t\n", ["row 2", "label in 'label' is empty"]),
        (SST2, ".tsv", "sentence\tlabel\na\t1\nb c\n", ["line 3", "1 fields, the header has 2"]),
        (SST2, ".csv", 'sentence,label\n"a,1\n', ["line 2", "not CSV"]),
        (SST2, ".csv", "label,label\n1,1\n", ["names a column twice: label, label"]),
        (SST2, ".jsonl", '{"sentence": "a", "label": 1}\n{"sent', ["line 2", "not JSON"]),
        (SST2, ".jsonl", "[1, 2]\n", ["line 1", "expected an object"]),
        (SST2, ".parquet", "no parquet", ["cannot be read"]),
        (STSB, ".jsonl", [{"sentence1": "a", "sentence2": "b", "label": None}], ["row 1", "label in 'label' is empty"]),
        (STSB, ".tsv", "sentence1\tsentence2\tlabel\na\tb\t1.5\na\tb\tnan\n", ["row 2", "label nan", "finite number"]),
        (STSB, ".tsv", "sentence1\tsentence2\tlabel\na\tb\thigh\n", ["row 1", "label 'high'", "finite number"]),
    ],
)
def test_unusable_rows_are_named(tmp_path, task, suffix, rows, parts):
    content = {"text": rows} if isinstance(rows, str) else {"rows": rows}
    source = write_task(tmp_path, task.name, suffix=suffix, **content)
    text = message(lambda: load_rows(task, "train", source))
    assert all(part in text for part in [str(tmp_path / task.name / f"train{suffix}"), *parts]), text


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    source = write_task(tmp_path, suffix=".csv", text="")
    (tmp_path / "sst2" / "train.csv").write_bytes(b"sentence,label\ncaf\xe9,1\n")
    assert "train.csv is not UTF-8 text (byte 18)" in message(lambda: load_rows(SST2, "train", source))


def test_missing_folders_splits_and_doubles_are_named(tmp_path):
    source = DataSource("data_dir", tmp_path)
    text = message(lambda: load_rows(SST2, "train", source))
    assert f"no folder {tmp_path / 'sst2'} or {tmp_path / 'glue' / 'sst2'}; check --data-dir" in text
    write_task(tmp_path, rows=GOOD)
    text = message(lambda: load_rows(SST2, "validation", source))
    assert all(part in text for part in ["split 'validation'", ".jsonl", "the splits there: train"])
    write_task(tmp_path, suffix=".csv", text="sentence,label\na,1\n")
    assert "more than once: train.csv, train.jsonl" in message(lambda: load_rows(SST2, "train", source))


def test_a_data_dir_source_needs_its_folder():
    with pytest.raises(ValueError, match="need the path"):
        DataSource("data_dir")


def test_a_number_of_samples_below_one_is_refused(tmp_path):
    source = write_task(tmp_path, rows=GOOD)
    assert "got 0" in message(lambda: load_rows(SST2, "train", source, max_samples=0))


def test_a_task_may_allow_empty_texts(tmp_path, caplog):
    source = write_task(tmp_path, rows=[*GOOD, {"sentence": "", "label": 1}])
    with caplog.at_level("INFO"):
        assert len(load_rows(replace(SST2, empty_text_ok=True), "train", source)) == 3
    assert "1 empty texts kept" in caplog.text


# --- held-out rows ----------------------------------------------------------------------------------------------------


def test_split_rows_partitions_the_rows():
    rows = datasets.Dataset.from_dict({"i": list(range(100))})
    rest, held_out = split_rows(rows, 0.2, seed=3)
    assert (len(rest), len(held_out)) == (80, 20)
    assert sorted([*rest["i"], *held_out["i"]]) == list(range(100))
    assert list(held_out["i"]) == sorted(held_out["i"])
    assert list(split_rows(rows, 0.2, seed=3)[1]["i"]) == list(held_out["i"])
    assert list(split_rows(rows, 0.2, seed=4)[1]["i"]) != list(held_out["i"])


@pytest.mark.parametrize(("fraction", "sizes"), [(0.01, (1, 1)), (0.99, (1, 1))])
def test_split_rows_leaves_neither_part_empty(fraction, sizes):
    parts = split_rows(datasets.Dataset.from_dict({"i": [0, 1]}), fraction, seed=0)
    assert tuple(map(len, parts)) == sizes


@pytest.mark.parametrize(("n", "fraction", "part"), [(9, 0, "got 0"), (9, 1.0, "got 1.0"), (1, 0.5, "two are needed")])
def test_split_rows_refuses(n, fraction, part):
    rows = datasets.Dataset.from_dict({"i": list(range(n))})
    assert part in message(lambda: split_rows(rows, fraction, seed=0))


def test_rows_of_one_text_stay_together_and_take_little_memory():
    """Numbered as numpy numbers them, where every text would take the room of the longest one."""
    texts = [f"text {i * 7 % 20}" for i in range(200)]
    numbers = np.unique(texts, return_inverse=True)[1].tolist()
    rows = datasets.Dataset.from_dict({"i": list(range(200)), "text": texts, "number": numbers})
    held_out = [list(split_rows(rows, 0.2, 3, group)[1]["i"]) for group in ("text", "number")]
    assert held_out[0] == held_out[1] and len(held_out[0]) == 40
    long = datasets.Dataset.from_dict({"text": [*texts, "word " * 20_000]})
    tracemalloc.start()
    try:
        split_rows(long, 0.2, 3, "text")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
