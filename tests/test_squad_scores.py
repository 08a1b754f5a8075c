"""SQuAD's scores by hand: the official script's rules, thresholds, and the `evaluate` metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.errors import UserError
from benchmarks.metrics import SquadV2
from benchmarks.squad import Answer, Passage
from benchmarks.squad_scores import best_threshold, exact_and_f1, normalised, score_answers, tuned_threshold

# Of `evaluate-v2.0.py`, worked out by hand: (said, right answers, exact, F1).
GOLDEN = {
    "same": ("Paris", ["Paris"], 1, 1),
    "case": ("PARIS", ["paris"], 1, 1),
    "articles": ("the Eiffel Tower", ["An Eiffel Tower"], 1, 1),
    "article inside a word stays": ("theatre", ["atre"], 0, 0),
    "punctuation": ("U.S. 'dollars'!", ["us dollars"], 1, 1),
    "hyphen joins": ("well-known", ["well known"], 0, 0),  # "wellknown" has no word in common
    "typographic quotes stay": ("\N{LEFT DOUBLE QUOTATION MARK}x", ["x"], 0, 0),
    "white space": ("  New \n York ", ["new york"], 1, 1),
    "article after punctuation goes": ("(the) end", ["end"], 1, 1),
    "two of three words": ("New York City", ["New York"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    "words count as often as they stand": ("ha ha", ["ha ha ha"], 0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
    "order does not matter to F1": ("York New", ["New York"], 0, 1),
    "nothing in common": ("Rome", ["Paris"], 0, 0),
    "best of several": ("October 1066", ["1066", "in October 1066", "autumn"], 0, 4 / 5),
    "exact with one, F1 with any": ("1066", ["in 1066", "1066"], 1, 1),
    "none said, none right": ("", [], 1, 1),
    "said, none right": ("Paris", [], 0, 0),
    "none said, one right": ("", ["Paris"], 0, 0),
    "articles alone are none": ("the", [], 1, 1),
    "a right answer of punctuation is none": ("", ["..."], 1, 1),
    "and others decide": ("", ["...", "Paris"], 0, 0),
    "articles said for a word": ("a", ["Paris"], 0, 0),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_exact_and_f1_by_hand(case):
    said, right, exact, f1 = GOLDEN[case]
    assert exact_and_f1(said, right) == (exact, pytest.approx(f1))


def test_normalised():
    assert normalised(" The U.S.A.,\ta  the-an An") == "usa thean"
    assert normalised("An a THE ?!") == ""


def answers(*rows: tuple[str, float, tuple[str, ...]]) -> list[Answer]:
    return [Answer(Passage("", right), text, margin) for text, margin, right in rows]


FOUR = answers(  # two with an answer, two without
    ("Paris", -2.0, ("Paris",)),
    ("New York City", 1.0, ("New York",)),
    ("Rome", -1.0, ()),
    ("Oslo", 3.0, ()),
)


def test_texts_with_and_without_an_answer_are_scored_apart():
    """At 0, the second says nothing (margin 1) and the third says Rome."""
    assert score_answers(FOUR) == pytest.approx(
        {
            "squad_exact": 2 / 4,
            "squad_f1": 2 / 4,
            "squad_has_answer_exact": 1 / 2,
            "squad_has_answer_f1": 1 / 2,
            "squad_no_answer": 1 / 2,
        }
    )


def test_the_tuned_threshold_is_scored_beside_zero():
    """Up to 1.0, the second is answered too: F1 1, 0.8, 0, 1."""
    found = score_answers(FOUR, 1.0)
    assert found["squad_f1"] == 2 / 4 and found["tuned_threshold"] == 1.0
    assert found["tuned_f1"] == pytest.approx(2.8 / 4) and found["tuned_has_answer_f1"] == pytest.approx(0.9)
    assert found["tuned_exact"] == 2 / 4 and found["tuned_no_answer"] == 1 / 2


def test_kinds_that_do_not_occur_are_left_out():
    assert "squad_no_answer" not in score_answers(FOUR[:2])
    assert set(score_answers(FOUR[2:])) == {"squad_exact", "squad_f1", "squad_no_answer"}


def test_tuned_threshold_by_hand():
    """F1 of answering the first k by margin: none 2, Paris 3, Rome 2, New York City 2.8, Oslo 1.8 of 4."""
    assert tuned_threshold(FOUR) == -2.0
    assert tuned_threshold([FOUR[0], FOUR[1], FOUR[3]]) == 1.0
    assert tuned_threshold(FOUR[2:]) == -2.0, "1 below all margins: nothing is to be answered"


def test_equal_margins_are_answered_together():
    assert best_threshold([1.0, 0.0], [0.5, 0.5], [True, False]) == (-0.5, 0.5)


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()).map(
            lambda row: row if row[2] else (row[0], 0.0, False)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_best_threshold_is_the_best_of_all(rows):
    margins, scores, has = zip(*rows, strict=True)

    def mean(threshold):
        return np.mean([score if margin <= threshold else not h for margin, score, h in rows])

    threshold, best = best_threshold(scores, margins, has)
    assert best == pytest.approx(mean(threshold))
    assert best == pytest.approx(max(mean(t) for t in (*margins, min(margins) - 1)))


def rows_for_metric(*rows: tuple[str, float, list[str]]) -> dict[str, list[dict]]:
    predictions, references = [], []
    for number, (text, doubt, right) in enumerate(rows):
        predictions.append({"id": str(number), "prediction_text": text, "no_answer_probability": doubt})
        references.append({"id": str(number), "answers": {"text": right, "answer_start": [0] * len(right)}})
    return {"predictions": predictions, "references": references}


METRIC_ROWS = rows_for_metric(
    ("Paris", 0.25, ["Paris", "the city of Paris"]),
    ("New York City", 0.75, ["New York"]),
    ("Rome", 0.5, []),
    ("", 1.0, []),
)


def test_squad_metric_by_hand():
    """Doubts in order: Paris (+1), Rome (-1), New York City (+0.8 F1, +0 exact), nothing said; from 2 of 4."""
    found = SquadV2(keep_in_memory=True).compute(**METRIC_ROWS)
    expected = {"exact": 50, "f1": 100 * 2.8 / 4, "total": 4}
    expected |= {"HasAns_exact": 50, "HasAns_f1": 90, "HasAns_total": 2}
    expected |= {"NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2}
    expected |= {"best_exact": 75, "best_exact_thresh": 0.25, "best_f1": 75, "best_f1_thresh": 0.25}
    assert found == pytest.approx(expected)


def test_squad_metric_with_a_threshold():
    found = SquadV2(keep_in_memory=True).compute(**METRIC_ROWS, no_answer_threshold=0.4)
    assert (found["exact"], found["f1"], found["HasAns_f1"], found["NoAns_f1"]) == (75, 75, 50, 100)


def test_squad_metric_in_batches(tmp_path):
    metric = SquadV2(cache_dir=str(tmp_path))
    for part in (slice(0, 3), slice(3, 4)):
        metric.add_batch(**{name: rows[part] for name, rows in METRIC_ROWS.items()})
    assert metric.compute()["f1"] == pytest.approx(70)


def test_squad_metric_without_unanswerable_questions():
    found = SquadV2(keep_in_memory=True).compute(**rows_for_metric(("a", 0.0, ["b"])))
    assert "NoAns_f1" not in found and found["HasAns_total"] == found["total"] == 1 and found["best_f1"] == 0


def test_ids_must_match():
    rows = rows_for_metric(("a", 0.0, ["b"]))
    rows["predictions"][0]["id"] = "other"
    with pytest.raises(UserError, match="one prediction with its id"):
        SquadV2(keep_in_memory=True).compute(**rows)
