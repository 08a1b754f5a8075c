"""A user's own rows as a task: how columns, labels, tags and answers are read, and what is set aside to score on."""

from __future__ import annotations

import json

import datasets
import pytest

from benchmarks import accelerate, experiment_data
from benchmarks.cli import run_command
from benchmarks.data import load_rows
from benchmarks.errors import UserError
from benchmarks.own_rows import own_task
from benchmarks.row_files import numbers
from tests.small_world import write_model


def write(path, header, rows, separator=","):
    lines = [separator.join(header), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(own, split):
    return load_rows(own.task, split, own.source)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_columns_are_found_by_name_and_words_are_labels(tmp_path):
    rows = [(i, f"text {i}", "good" if i % 3 else "bad") for i in range(60)]
    own = own_task(write(tmp_path / "my reviews.csv", ("id", "Review", "Sentiment"), rows), home=tmp_path / "h")
    assert own.columns == ("Review", "Sentiment") and own.task.name == "own_my_reviews"
    assert (own.task.kind, own.task.label_names, own.task.text_columns) == (
        "classification",
        ("bad", "good"),
        ("sentence",),
    )
    assert (own.train_rows, own.score_rows) == (48, 12)
    train, score = rows_of(own, "train"), rows_of(own, "test")
    said = {row["sentence"]: row["label"] for row in (*train, *score)}
    assert said == {f"text {i}": int(i % 3 > 0) for i in range(60)}
    counts = score["label"].count(1), score["label"].count(0)
    assert own.commonest == max(counts) / 12


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        (["0", "-3", "+12", "", " 7 "], [0, -3, 12, None, 7]),
        (["1", "0.5", "-.5e-3", "2E1", "3."], [1.0, 0.5, -0.0005, 20.0, 3.0]),
        (["0_0", "1_0"], ["0_0", "1_0"]),
        (["007", "7"], ["007", "7"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["nan", "yes", ""], ["nan", "yes", None]),
        (["1", "\N{ARABIC-INDIC DIGIT TWO}"], ["1", "\N{ARABIC-INDIC DIGIT TWO}"]),
        (["1", "1e"], ["1", "1e"]),
    ],
)
def test_labels_are_numbers_where_they_are_written_as_such(tmp_path, fields, read):
    assert numbers(fields) == read and [type(value) for value in numbers(fields)] == [type(value) for value in read]
    if isinstance(read[0], str):
        rows = [(f"t {i}", fields[i % 2]) for i in range(60)]
        assert own_task(write(tmp_path / "r.csv", ("text", "label"), rows), home=tmp_path).task.label_names == tuple(
            sorted(fields[:2])
        )


@pytest.mark.parametrize("column", ["label", "target"])
def test_labels_beyond_64_bits_are_classes_or_values(tmp_path, column):
    path = write(tmp_path / "r.csv", ("text", column), [(f"t {i}", 10**20 if i % 2 else i % 4) for i in range(60)])
    assert own_task(path, home=tmp_path).task.label_names == ("0", "2", str(10**20))
    assert max(rows_of(own_task(path, values=True, home=tmp_path), "train")["label"]) == 1e20


def test_truth_values_are_called_alike_in_every_format(tmp_path):
    rows = [(f"t {i}", bool(i % 2)) for i in range(60)]
    jsonl = tmp_path / "j.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [v for _, v in rows]}).to_parquet(
        str(tmp_path / "p.parquet")
    )
    csv = write(tmp_path / "c.csv", ("text", "label"), rows)
    caps = write(tmp_path / "u.csv", ("text", "target"), [(text, str(label).upper()) for text, label in rows])
    for path in (csv, caps, jsonl, tmp_path / "p.parquet"):
        own = own_task(path, home=tmp_path / "h")
        assert own.task.label_names == ("false", "true")
        assert all(row["label"] == int(row["sentence"][2:]) % 2 for row in rows_of(own, "test"))
    part = write(tmp_path / "v.csv", ("text", "label"), [("new", "True")])
    assert rows_of(own_task(tmp_path / "p.parquet", part, home=tmp_path), "test")["label"][:] == [1]


def test_numbers_beside_nan_are_what_a_check_refuses(tmp_path):
    for name in ("label", "target"):
        rows = [(f"t {i}", ("0", "1", "nan")[i % 3]) for i in range(60)]
        with pytest.raises(UserError, match="row 3: label nan of r must be a finite number"):
            own_task(write(tmp_path / "r.csv", ("text", name), rows), home=tmp_path)


def test_a_pair_in_tsv_and_labels_with_a_fraction(tmp_path):
    rows = [(f"a {i}", f"b {i}", i / 7) for i in range(50)]
    own = own_task(write(tmp_path / "p.tsv", ("premise", "hypothesis", "score"), rows, "\t"), home=tmp_path)
    assert own.columns == ("premise", "hypothesis", "score") and own.task.kind == "regression"
    assert own.task.text_columns == ("sentence1", "sentence2") and own.commonest is None
    assert sorted(rows_of(own, "train")["label"])[0] in (0.0, 1 / 7)


@pytest.mark.parametrize("values", [False, True])
def test_whole_labels_are_classes_unless_said_otherwise(tmp_path, values):
    lines = [json.dumps({"text": f"t {i}", "stars": i % 5 + 1}) for i in range(50)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines), encoding="utf-8")
    own = own_task(tmp_path / "r.jsonl", values=values, home=tmp_path)
    assert own.task.kind == ("regression" if values else "classification")
    assert own.task.label_names == (() if values else ("1", "2", "3", "4", "5"))


def test_class_names_of_parquet_keep_their_order(tmp_path):
    feature = datasets.ClassLabel(names=["no", "maybe", "ay"])
    features = datasets.Features(text=datasets.Value("string"), label=feature)
    rows = {"text": [f"t {i}" for i in range(60)], "label": [i % 3 for i in range(60)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "p.parquet"))
    own = own_task(tmp_path / "p.parquet", home=tmp_path)
    assert own.task.label_names == ("no", "maybe", "ay")
    assert all(row["label"] == int(row["sentence"][2:]) % 3 for row in rows_of(own, "test"))


def test_copies_of_a_text_never_stand_on_both_sides(tmp_path):
    rows = [(f"text {i % 70}", i % 2) for i in range(100)]
    own = own_task(write(tmp_path / "r.csv", ("text", "label"), rows), home=tmp_path)
    train, score = (set(rows_of(own, split)["sentence"]) for split in ("train", "test"))
    assert len(train) + len(score) == 70 and not train & score and own.task.group_column == "sentence"


@pytest.mark.parametrize("copies", [2, 3, 12])
def test_copies_stay_on_one_side_however_many_there_are(tmp_path, copies):
    """Of single texts, of pairs whose first text is asked about again and again, and of questions on few contexts."""
    texts = [(f"t {i % (120 // copies)}", i % 2) for i in range(120)]
    pairs = [(f"a {i % 4}", f"b {i % (120 // copies)}", i % 2) for i in range(120)]
    asked = [(f"q {i % (120 // copies)}", f"so {i % 4} it is", "it") for i in range(120)]
    files = {
        write(tmp_path / "t.csv", ("text", "label"), texts): ("sentence",),
        write(tmp_path / "p.csv", ("text_a", "text_b", "label"), pairs): ("sentence1", "sentence2"),
        write(tmp_path / "q.csv", ("question", "context", "answer"), asked): ("question", "context"),
    }
    for path, columns in files.items():
        own = own_task(path, home=tmp_path / "h")
        train, score = ({tuple(row[c] for c in columns) for row in rows_of(own, part)} for part in ("train", "test"))
        assert train and score and not train & score and own.train_rows + own.score_rows == 120
        assert own.task.group_column == (columns[0] if len(columns) == 1 else "both")
        held = experiment_data.split_rows(rows_of(own, "train"), 0.1, 42, own.task.group_column)
        train, chosen = ({tuple(row[c] for c in columns) for row in part} for part in held)
        assert not train & chosen


def test_rows_that_are_scored_on_are_not_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    train = write(tmp_path / "train.csv", ("text", "label"), [(f"t {i % 30}", "ab"[i % 2]) for i in range(40)])
    other = write(tmp_path / "dev.csv", ("text", "label"), [("t 3", "a"), ("t 29", "b"), ("new", "b")])
    own = own_task(train, other, home=tmp_path)
    assert (own.train_rows, own.left_out, own.score_rows) == (37, 3, 3)
    assert not {"t 3", "t 29"} & set(rows_of(own, "train")["sentence"])
    said = "3 of 40 rows to train on are also among those to score on, and are left out of training"
    given = ["--task-data", train, "--validation", other, "--model", write_model(tmp_path / "m"), "--dry-run"]
    assert run_command(accelerate.main, list(map(str, given))) == 0 and said in capsys.readouterr().out
    with pytest.raises(UserError, match=r"all 40 rows of .*train\.csv are also in .*train\.csv, so none is left"):
        own_task(train, train, home=tmp_path)


@pytest.mark.parametrize(("different", "said"), [(1, "1 different text,"), (2, "2 different texts,")])
def test_copies_of_too_few_texts_are_refused(tmp_path, different, said):
    rows = write(tmp_path / "r.csv", ("text", "label"), [(f"t {i % different}", i % 2) for i in range(60)])
    with pytest.raises(UserError, match=rf"r\.csv: its 60 rows have {said} .* at least 3 are needed to train, choose"):
        own_task(rows, home=tmp_path)


@pytest.mark.parametrize("name", ["r.CSV", "r.Tsv"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, name):
    rows = [(f"t {i}", "ab"[i % 2]) for i in range(50)]
    path = write(tmp_path / name, ("text", "label"), rows, "," if name == "r.CSV" else "\t")
    assert own_task(path, home=tmp_path).train_rows == 40


def test_a_validation_file_is_what_is_scored_on(tmp_path):
    train = write(tmp_path / "train.csv", ("text", "label"), [(f"t {i}", "ab"[i % 2]) for i in range(20)])
    other = write(tmp_path / "dev.csv", ("label", "text"), [("b", "v 1"), ("a", "v 2")])
    own = own_task(train, other, home=tmp_path)
    assert (own.train_rows, own.score_rows) == (20, 2)
    assert rows_of(own, "test").to_list() == [{"sentence": "v 1", "label": 1}, {"sentence": "v 2", "label": 0}]
    write(tmp_path / "dev.csv", ("label", "text"), [("b", "v 1"), ("c", "v 2")])
    with pytest.raises(UserError, match=r"dev\.csv, row 2: the label in 'label' 'c' is none of a, b"):
        own_task(train, other, home=tmp_path)


def test_named_columns_win(tmp_path):
    rows = [(f"t {i}", f"u {i}", i % 2, "xy"[i % 2]) for i in range(40)]
    path = write(tmp_path / "r.csv", ("text", "other", "label", "kind"), rows)
    own = own_task(path, text_columns=("other",), label_column="kind", home=tmp_path)
    assert own.columns == ("other", "kind") and own.task.label_names == ("x", "y")


# --- rows whose words have tags, and answers in a context -------------------------------------------------------------


def tagged(number):
    """A sentence of words and tags; a name stands at another place in each."""
    words = ["it", "was", f"w{number}", "Ann", "Lee", "and", "Rio"]
    tags = ["O", "O", "O", "B-PER", "I-PER", "O", "B-LOC"]
    return words[: 5 + number % 3], tags[: 5 + number % 3]


def test_tags_are_told_by_their_name_or_type(tmp_path):
    lines = [tagged(i) for i in range(50)]
    written = [(" ".join(words), " ".join(tags)) for words, tags in lines]
    jsonl = tmp_path / "j.jsonl"
    jsonl.write_text("\n".join(json.dumps({"labels": t, "tokens": w, "text": " ".join(w)}) for w, t in lines))
    ids = ("B-PER", "I-PER", "B-LOC", "O")
    tags = datasets.List(datasets.ClassLabel(names=list(ids)))
    text = datasets.Value("string")
    datasets.Dataset.from_dict(
        {"tokens": [w for w, _ in lines], "ner_tags": [[ids.index(tag) for tag in t] for _, t in lines]},
        features=datasets.Features(tokens=datasets.List(text), ner_tags=tags),
    ).to_parquet(str(tmp_path / "p.parquet"))
    files = {
        write(tmp_path / "c.csv", ("sentence", "ner_tags"), written): {},
        write(tmp_path / "t.tsv", ("sentence", "who"), written, "\t"): {"label_column": "who", "tags": True},
        jsonl: {},
        tmp_path / "p.parquet": {},
    }
    for path, settings in files.items():
        own = own_task(path, home=tmp_path / "h", **settings)
        kept = path.suffix == ".parquet"
        assert own.task.kind == "token_classification" and own.task.metric == "entity_f1" and own.commonest is None
        assert own.task.label_names == (ids if kept else ("O", "B-LOC", "B-PER", "I-PER"))
        rows = [row for split in ("train", "test") for row in rows_of(own, split)]
        names = own.task.label_names
        assert sorted((row["words"], [names[tag] for tag in row["tags"]]) for row in rows) == sorted(lines)


def test_classes_of_words_and_a_file_to_score_on(tmp_path):
    rows = [(f"dogs bark w{i}", "NOUN VERB X") for i in range(40)]
    train = write(tmp_path / "a.csv", ("words", "pos_tags"), rows)
    other = write(tmp_path / "b.csv", ("words", "pos_tags"), [("cats sleep", "NOUN VERB")])
    own = own_task(train, other, home=tmp_path)
    assert (own.task.metric, own.commonest, own.score_rows) == ("accuracy", 0.5, 1)
    write(tmp_path / "b.csv", ("words", "pos_tags"), [("cats sleep", "NOUN ADV")])
    with pytest.raises(UserError, match=r"b\.csv, row 1: the tag 'ADV' in 'pos_tags' is none of NOUN, VERB, X"):
        own_task(train, other, home=tmp_path)


@pytest.mark.parametrize("layout", ["squad", "places", "texts"])
def test_answers_in_three_layouts(tmp_path, layout):
    """Text and place in one column or two, or the text alone, whose first place counts; empty where there is none."""
    rows = []
    for i in range(60):
        context, answer = f"so {i // 3} it was the film of the year {i // 3}", "the" if i % 2 else ""
        start = context.rindex(answer) if layout != "texts" else context.index(answer)
        rows.append({"question": f"what {i}", "context": context, "answer": answer, "answer_start": start})
    if layout == "squad":
        for row in rows:
            answer, start = row.pop("answer"), row.pop("answer_start")
            row["answers"] = {"text": [answer] if answer else [], "answer_start": [start] if answer else []}
        path = tmp_path / "q.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        columns = ("question", "context", "answer", "answer_start")[: 4 if layout == "places" else 3]
        path = write(tmp_path / "q.csv", columns, [[row[name] for name in columns] for row in rows])
    own = own_task(path, home=tmp_path)
    assert (own.task.kind, own.task.metric, own.task.group_column) == ("span_qa", "squad_f1", "context")
    train, score = rows_of(own, "train"), rows_of(own, "test")
    assert not set(train["context"]) & set(score["context"])
    for row in (*train, *score):
        asked = int(row["question"].split()[1]) % 2
        place = (row["context"].index if layout == "texts" else row["context"].rindex)("the")
        assert row["answers"] == {"text": ["the"] * asked, "answer_start": [place] * asked}


def test_a_yes_or_no_about_a_passage_is_a_class_where_the_user_says_so(tmp_path):
    rows = [(f"q {i}", "some passage", ("no", "yes")[i % 2]) for i in range(40)]
    path = write(tmp_path / "b.csv", ("question", "passage", "answer"), rows)
    assert own_task(path, label_column="answer", home=tmp_path).task.kind == "classification"
    with pytest.raises(UserError, match=r"row 1: the answer 'no' does not stand in 'passage'; if answers are cl"):
        own_task(path, home=tmp_path)
