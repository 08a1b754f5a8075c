"""The papers' numbers: cells against numbers typed here, and the papers' own arithmetic redone from the CSV."""

from __future__ import annotations

import pytest

from benchmarks.errors import UserError
from benchmarks.reported import COLUMNS, CONVENTIONS, FLAGS, REPORTED, load_reported, lookup

GLUE = ["cola", "rte", "qqp", "mrpc", "sst2", "mnli", "wnli", "qnli", "stsb"]


@pytest.mark.parametrize(
    ("cell", "value", "speedup", "flag"),
    [
        (("3", "bert-base", "dense", None, "cola"), 57.8, 1.0, "printed"),
        (("3", "bert-base", "transkimmer", "none", "rte"), 68.9, 2.85, "printed"),
        (("3", "bert-base", "transkimmer", "sequence", "cola"), 58.9, 18.9, "doubtful"),
        (("3", "bert-base", "transkimmer", "sequence", "qqp"), 90.8, 11.72, "printed"),
        (("3", "bert-base", "power_bert", "sequence", "qqp"), 90.2, 4.5, "doubtful"),
        (("3", "bert-base", "power_bert", "sequence", "mrpc"), 88.1, 2.7, "filled"),
        (("3", "bert-base", "deebert", None, "mnli"), 80.0, 1.59, "filled"),
        (("3", "bert-base", "lat", "sequence", "sst2"), 92.8, 2.9, "printed"),
        (("3", "bert-base", "lat", "sequence", "cola"), None, None, "not_printed"),
        (("3", "distilbert-base", "transkimmer", "none", "mrpc"), 87.8, 9.92, "printed"),
        (("3", "albert-base", "dense", None, "stsb"), 90.4, 0.99, "printed"),
        (("3", "roberta-base", "ltp", "batch", "qnli"), 92.0, 1.87, "printed"),
        (("3", "roberta-base", "transkimmer", "none", "wnli"), 56.3, 8.41, "printed"),
        (("4", "bert-base", "transkimmer", "none", "20news"), 86.1, 5.27, "printed"),
        (("4", "bert-base", "tr_bert", "none", "squad_v2"), 75.7, 2.08, "printed"),
        (("4", "bert-base", "deformer", "sequence", "squad_v2"), 71.4, 2.19, "printed"),
    ],
)
def test_cells_of_the_transkimmer_paper(cell, value, speedup, flag) -> None:
    found = lookup(*cell)
    assert (found.value, found.speedup, found.flag) == (value, speedup, flag)


def test_cells_of_the_other_papers() -> None:
    power = lookup("glue_test", "bert-base", "power_bert", "sequence", "rte", metric="accuracy", paper="power_bert")
    assert (power.value, power.speedup, power.flag) == (67.4, 3.4, "printed")
    time = lookup("glue_test", "bert-base", "dense", "sequence", "rte", metric="batch_latency_ms", paper="power_bert")
    assert (time.value, time.speedup) == (3993, None)
    exits = lookup("main_c", "bert-base", "deebert", "sequence", "sst2", paper="deebert")
    assert (exits.value, exits.speedup, exits.flag) == (91.5, 1.89, "from_memory")
    cells = {
        ("main", "roberta-base", "ltp", "none", "qqp", "gflops", "ltp"): (2.53, None, "from_memory"),
        ("main_dagger", "bert-base", "lat", "sequence", "sst2", "relative_macs", "lat"): (0.35, None, "cross_checked"),
        ("reruns", "bert-base", "tr_bert", "", "sst2", "accuracy", "tr_bert"): (92.1, None, "second_hand"),
        ("text", "bert-base", "lot", "", "any", "headline", "lot"): (None, 25, "printed"),
        ("readme", "bert-base", "top", "sequence", "cola", "matthews_correlation", "top"): (60.3, 10.39, "printed"),
        ("main", "bert-base", "deformer", "sequence", "qqp", "accuracy", "deformer"): (90.3, 2.0, "from_memory"),
    }
    for (*place, metric, paper), expected in cells.items():
        found = lookup(*place, metric=metric, paper=paper)
        assert (found.value, found.speedup, found.flag) == expected
    patient = lookup("readme", "albert-base-v2", "pabee", "none", "rte", paper="pabee")
    assert (patient.value, patient.speedup, patient.flag) == (80.1, 1.57, "printed")
    patience = lookup("readme", "albert-base", "pabee", None, "glue", metric="patience", paper="pabee")
    assert (patience.value, patience.flag) == (6, "from_memory")


def test_table_2() -> None:
    assert lookup("2", "", "transkimmer", None, "squad_v2").value == 0.8
    assert lookup("2", "", "", None, "rte", metric="input_length").value == 256
    assert lookup("2", "", "", None, "20news", metric="average_length").flag == "doubtful"
    with pytest.raises(ValueError, match="choose a metric"):
        lookup("2", "", "", None, "rte")


def test_hub_names_and_unlabelled_rows() -> None:
    assert lookup("3", "bert-base-uncased", "dense", "sequence", "cola").value == 57.8
    assert lookup("3", "bert-base", "transkimmer", "batch", "cola") is None
    assert lookup("3", "bert-base", "top", "none", "cola") is None


def test_every_file_keeps_to_the_columns_and_words() -> None:
    frame = load_reported()
    assert tuple(frame.columns) == COLUMNS and set(frame["paper"]) == {path.stem for path in REPORTED.glob("*.csv")}
    assert not frame.duplicated(["paper", "table", "backbone", "method", "padding", "task", "metric"]).any()
    assert set(frame["flag"]) == set(FLAGS) and set(frame["convention"]) - {""} == set(CONVENTIONS)
    assert set(frame["padding"]) == {"", "none", "batch", "sequence"}
    dashes = frame["flag"] == "not_printed"
    assert frame.loc[dashes, ["value", "speedup"]].isna().all(axis=None)
    assert frame.loc[~dashes, ["value", "speedup"]].notna().any(axis=1).all()
    explained = frame["flag"].isin(["doubtful", "filled", "cross_checked", "second_hand"]) | (
        frame["convention"] == "claim"
    )
    assert (frame.loc[explained, "note"] != "").all()


def test_table_3_and_4_are_complete() -> None:
    frame = load_reported("transkimmer")
    glue = frame[frame["table"] == "3"]
    assert set(glue["task"]) == set(GLUE)
    assert glue.groupby(["backbone", "method", "padding"]).size().to_list() == [9] * 13
    assert len(frame[frame["table"] == "4"]) == 6 * 4


@pytest.mark.parametrize(
    ("backbone", "padding", "stated", "from_cells"),
    [
        ("bert-base", "sequence", 10.97, 11.40),
        ("bert-base", "none", 2.81, 2.83),
        ("roberta-base", "none", 3.24, 3.24),
    ],
)
def test_stated_averages_against_their_cells(backbone, padding, stated, from_cells) -> None:
    """Only the RoBERTa average of the paper is the mean of the cells that it prints."""
    cells = [lookup("3", backbone, "transkimmer", padding, task).speedup for task in GLUE]
    average = lookup("text", backbone, "transkimmer", padding, "glue_mean")
    assert round(sum(cells) / len(cells), 2) == from_cells and average.speedup == stated
    assert (average.flag == "printed") == (stated == from_cells)


def test_power_bert_cells_are_test_scores_and_wall_clock_ratios() -> None:
    """All of them but QQP's score, which PoWER-BERT publishes as F1 70.2."""
    for task in set(GLUE) - {"wnli"}:
        metric = {"cola": "matthews_correlation", "qqp": "f1", "mrpc": "f1", "stsb": "spearmanr"}.get(task, "accuracy")
        quoted = lookup("3", "bert-base", "power_bert", "sequence", task)
        own, own_ms, dense_ms = (
            lookup("glue_test", "bert-base", method, "sequence", task, metric=name, paper="power_bert")
            for method, name in (
                ("power_bert", metric), ("power_bert", "batch_latency_ms"), ("dense", "batch_latency_ms")
            )
        )  # fmt: skip
        assert quoted.convention == "time_k80_test" and quoted.speedup == own.speedup
        assert dense_ms.value / own_ms.value == pytest.approx(own.speedup, abs=0.1)
        assert (quoted.value == own.value) == (task != "qqp")


def test_deebert_cells_are_one_over_the_time_left() -> None:
    for task, saving in {"sst2": 0.47, "qnli": 0.44, "rte": 0.33, "mrpc": 0.44, "mnli": 0.37}.items():
        quoted = lookup("3", "bert-base", "deebert", None, task)
        own = lookup("main_c", "bert-base", "deebert", "sequence", task, paper="deebert")
        assert quoted.convention == "time_p100_test" and quoted.value == own.value
        assert quoted.speedup == pytest.approx(1 / (1 - saving), abs=0.01) and own.speedup == round(1 / (1 - saving), 2)


def test_an_unknown_paper_is_named() -> None:
    with pytest.raises(UserError, match=r"'latt'.*there are: .*transkimmer"):
        load_reported("latt")
