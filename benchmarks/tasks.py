"""The tasks as data: where their rows come from, their columns, metric, input length and skim weight.

Lengths and skim weights are those of Table 2 of the Transkimmer paper. Hub revisions are pinned, so that a run years
from now reads the same rows. A folder of the user's own (`--data-dir`) becomes a task too: see `get_task`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError
from benchmarks.row_files import read_rows, split_files, split_names

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task; everything that loading, training and scoring need to know about it."""

    name: str  # also the folder in --data-dir
    title: str  # as the paper prints it
    kind: str  # classification | regression | span_qa
    group: str  # glue | long | embedded | user
    text_columns: tuple[str, ...]  # one text, or a pair in the order in which the encoder reads it
    label_column: str = "label"
    num_labels: int  # outputs of the head: classes; 1 for regression; start and end for span_qa
    label_names: tuple[str, ...] = ()  # name of each class id
    hub_id: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("validation",)
    metric: str  # the headline: matthews_correlation | f1 | accuracy | pearson | squad_f1
    sequence_length: int  # input length in tokens: `--padding sequence` pads to it, longer texts are cut to it
    average_length: float | None = None  # tokens per example as the paper prints it; None outside the paper
    skim_weight: float  # weight of the skim loss [lambda], "harmony coefficient" in Table 2
    relevant_columns: tuple[str, ...] = ()  # per text column: the [start, end) character spans that decide the label
    empty_text_ok: bool = False  # True where official rows are empty; elsewhere an empty text is an error
    note: str = ""  # what the numbers are worth; licence


_GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
_ENTAILMENT = ("entailment", "not_entailment")


def _glue(
    name: str,
    title: str,
    text_columns: tuple[str, ...],
    label_names: tuple[str, ...],
    sequence_length: int,
    average_length: float,
    skim_weight: float,
    *,
    metric: str = "accuracy",
    eval_splits: tuple[str, ...] = ("validation",),
    note: str = "",
) -> Task:
    """A GLUE task; no label names means regression."""
    return Task(
        name=name,
        title=title,
        kind="classification" if label_names else "regression",
        group="glue",
        text_columns=text_columns,
        num_labels=len(label_names) or 1,
        label_names=label_names,
        hub_id="nyu-mll/glue",
        hub_config=name,
        revision=_GLUE_REVISION,
        eval_splits=eval_splits,
        metric=metric,
        sequence_length=sequence_length,
        average_length=average_length,
        skim_weight=skim_weight,
        note=note,
    )


_SENTENCE = ("sentence",)
_PAIR = ("sentence1", "sentence2")

_GLUE_TASKS = (  # in the order of Table 3
    _glue("cola", "CoLA", _SENTENCE, ("unacceptable", "acceptable"), 64, 11, 0.3, metric="matthews_correlation"),
    _glue("rte", "RTE", _PAIR, _ENTAILMENT, 256, 64, 0.8),
    _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), 128, 30, 0.2),
    _glue("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), 128, 53, 0.5, metric="f1"),
    _glue("sst2", "SST-2", _SENTENCE, ("negative", "positive"), 64, 25, 0.3),
    _glue(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        128,
        39,
        0.2,
        eval_splits=("validation_matched", "validation_mismatched"),
    ),
    _glue(
        "wnli",
        "WNLI",
        _PAIR,
        ("not_entailment", "entailment"),
        128,
        37,
        0.5,
        note="0.563 is the majority class of the 71 validation rows: a score near it, and its speed-up, say nothing",
    ),
    _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, 128, 51, 0.1),
    _glue("stsb", "STS-B", _PAIR, (), 64, 31, 0.3, metric="pearson"),
)

_NEWSGROUPS = """
    alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x
    misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med
    sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc
"""

_LONG_TASKS = (  # in the order of Table 4
    Task(
        name="squad_v2",
        title="SQuAD v2.0",
        kind="span_qa",
        group="long",
        text_columns=("question", "context"),
        label_column="answers",
        num_labels=2,
        hub_id="rajpurkar/squad_v2",
        hub_config="squad_v2",
        revision="3ffb306f725f7d2ce8394bc1873b24868140c412",
        metric="squad_f1",
        sequence_length=384,
        average_length=152,
        skim_weight=0.8,
    ),
    Task(
        name="20news",
        title="20News",
        kind="classification",
        group="long",
        text_columns=("text",),
        num_labels=20,
        label_names=tuple(_NEWSGROUPS.split()),
        hub_id="SetFit/20_newsgroups",
        revision="f1b91292074e7cfb69be58b642d583ec262f30ed",
        eval_splits=("test",),
        metric="accuracy",
        sequence_length=512,
        average_length=551,
        skim_weight=0.5,
        empty_text_ok=True,
        note="headers, footers and quotes are removed, which leaves 300 train and 215 test posts empty; with them, "
        "accuracy is higher by ten points and more",
    ),
    Task(
        name="yelp",
        title="Yelp",
        kind="classification",
        group="long",
        text_columns=("text",),
        num_labels=5,
        label_names=("1 star", "2 star", "3 stars", "4 stars", "5 stars"),
        hub_id="Yelp/yelp_review_full",
        hub_config="yelp_review_full",
        revision="c1f9ee939b7d05667af864ee1cb066393154bf85",
        eval_splits=("test",),
        metric="accuracy",
        sequence_length=512,
        average_length=179,
        skim_weight=0.5,
    ),
    Task(
        name="imdb",
        title="IMDB",
        kind="classification",
        group="long",
        text_columns=("text",),
        num_labels=2,
        label_names=("neg", "pos"),
        hub_id="stanfordnlp/imdb",
        hub_config="plain_text",
        revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
        eval_splits=("test",),
        metric="accuracy",
        sequence_length=512,
        average_length=264,
        skim_weight=0.5,
        note="rows are sorted by class",
    ),
)

_EMBEDDED_TASKS = (  # small sets that need neither hub nor data folder: see benchmarks/embedded.py
    Task(
        name="vader_sentiment",
        title="VADER sentiment",
        kind="classification",
        group="embedded",
        text_columns=_SENTENCE,
        num_labels=2,
        label_names=("negative", "positive"),
        metric="accuracy",
        sequence_length=64,
        skim_weight=0.5,
        note="real: film-review sentences rated by people (Hutto and Gilbert 2014, MIT); the source sentences of "
        "SST-2, so a model trained on it must never be scored on SST-2",
    ),
    Task(
        name="vader_valence",
        title="VADER valence",
        kind="regression",
        group="embedded",
        text_columns=_SENTENCE,
        num_labels=1,
        metric="pearson",
        sequence_length=64,
        skim_weight=0.5,
        note="real: mean human valence in [-4, 4] of tweets, product reviews and editorials (Hutto and Gilbert 2014, "
        "MIT); shares no sentence with VADER sentiment",
    ),
    Task(
        name="synthetic_pair",
        title="Synthetic pair",
        kind="classification",
        group="embedded",
        text_columns=_PAIR,
        num_labels=2,
        label_names=_ENTAILMENT,
        metric="accuracy",
        sequence_length=128,
        skim_weight=0.1,
        relevant_columns=("relevant1", "relevant2"),
        note="made by rule (benchmarks/synthetic.py): shows whether a method keeps the words that decide, and nothing "
        "about language at large",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_GLUE_TASKS, *_LONG_TASKS, *_EMBEDDED_TASKS)}
GLUE: tuple[str, ...] = tuple(task.name for task in _GLUE_TASKS)
LONG: tuple[str, ...] = tuple(task.name for task in _LONG_TASKS)
EMBEDDED: tuple[str, ...] = tuple(task.name for task in _EMBEDDED_TASKS)


def get_task(name: str, data_dir: Path | None = None) -> Task:
    """The task called `name`: a built-in one, or else the folder `data_dir`/`name`.

    Raises:
        UserError: no such task or folder, or the folder's files are no task (it says which file or column is missing).
    """
    if name in TASKS:
        return TASKS[name]
    present = data_dir.iterdir() if data_dir is not None and data_dir.is_dir() else ()
    folders = sorted(path.name for path in present if path.is_dir())
    if data_dir is not None and name in folders:
        return _task_from_folder(data_dir / name)
    known = list(dict.fromkeys([*TASKS, *folders]))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    where = f" and no folder of that name in {data_dir}" if data_dir is not None else ""
    raise UserError(f"no task {name!r}{where}{hint} available: {', '.join(known)}")


_USER_TEXT_COLUMNS = (  # the first that a folder's files have is taken
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
)
_USER_EVAL_SPLITS = ("validation", "dev", "test")


def _task_from_folder(folder: Path) -> Task:
    """Describe a folder of the user's own: columns by name, labels and input length from the training rows.

    Whole or text labels are classes, labels with a fraction a regression; files with class names keep them.
    """
    splits = split_names(folder)
    eval_splits = [split for split in _USER_EVAL_SPLITS if split in splits]
    if "train" not in splits or not eval_splits:
        raise UserError(
            f"{folder} needs a train file and one of {', '.join(_USER_EVAL_SPLITS)} "
            f"(.parquet, .jsonl, .csv, .tsv); found: {', '.join(splits) or 'none'}"
        )
    rows = read_rows(split_files(folder, "train"))
    text_columns = next((names for names in _USER_TEXT_COLUMNS if set(names) <= set(rows.column_names)), None)
    if text_columns is None or "label" not in rows.column_names:
        raise UserError(
            f"{folder} needs a column 'label' and one of 'sentence', 'text', or a pair such as 'sentence1' with "
            f"'sentence2'; its train file has: {', '.join(rows.column_names)}"
        )
    names = _class_names(rows, folder)
    return Task(
        name=folder.name,
        title=folder.name,
        kind="classification" if names else "regression",
        group="user",
        text_columns=text_columns,
        num_labels=len(names) or 1,
        label_names=names,
        eval_splits=(eval_splits[0],),
        metric="accuracy" if names else "pearson",
        sequence_length=_input_length(rows, text_columns),
        skim_weight=0.5,
        note=f"from the folder {folder.name}; input length estimated from its texts",
    )


def _class_names(rows: datasets.Dataset, folder: Path) -> tuple[str, ...]:
    """Class names in the order of their ids: the files' own, or else the sorted labels; none for a regression."""
    stored = getattr(rows.features["label"], "names", None)
    if stored:
        return tuple(stored)
    values = [value for value in rows.unique("label") if value is not None]
    if any(isinstance(value, float) for value in values):
        return ()
    if len(values) < 2:
        raise UserError(f"{folder} has one class only, {values}: there is nothing to learn")
    return tuple(str(value) for value in sorted(values))


def _input_length(rows: datasets.Dataset, text_columns: tuple[str, ...]) -> int:
    """The smallest usual length that holds about 99 % of the texts, at 1.5 tokens a word and 3 special tokens."""
    texts = zip(*(rows[column] for column in text_columns), strict=True)
    words = sorted(sum(len(str(text).split()) for text in row) for row in texts)
    needed = 1.5 * words[int(0.99 * (len(words) - 1))] + 3
    return next((length for length in (64, 128, 256, 384) if needed <= length), 512)
