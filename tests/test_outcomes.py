"""Outcomes of single texts in records, and the intervals made from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from benchmarks.metrics import score
from benchmarks.outcomes import COUNTS, PREDICTIONS, RESAMPLES, described, draws, interval, outcomes_of
from benchmarks.squad import Answer, Passage
from benchmarks.tasks import TASKS

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 200)
PREDICTED = np.where(RNG.random(200) < 0.8, LABELS, 1 - LABELS)
ONES = np.ones((1, 200))


def record(metric, *, texts=None, scores=None, count=200) -> dict:
    split = {"scores": scores or {}, "cost": {"texts": count}} | ({"texts": texts} if texts else {})
    return {"config_hash": "ab12", "metrics": {"metric": metric, "splits": {"validation": split}}}


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_the_score_of_all_texts_is_the_metric_itself(metric):
    found = outcomes_of(record(metric, texts=described("classification", PREDICTED, LABELS)))
    truth = {
        "accuracy": reference.accuracy_score,
        "f1": reference.f1_score,
        "matthews_correlation": reference.matthews_corrcoef,
    }[metric](LABELS, PREDICTED)
    assert found.source == PREDICTIONS
    assert found.scores(ONES) == pytest.approx([truth])


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_scores_of_a_binary_task_give_back_its_confusion(metric):
    scores = score(TASKS["mrpc"], PREDICTED, LABELS)
    found = outcomes_of(record(metric, scores=scores))
    assert found.source == COUNTS
    assert found.scores(ONES) == pytest.approx([scores[metric]])
    exact = outcomes_of(record(metric, texts=described("classification", PREDICTED, LABELS)))
    assert interval(found.resampled()) == pytest.approx(interval(exact.resampled()), abs=0.02)


def test_scores_that_no_confusion_has_give_no_interval():
    assert outcomes_of(record("f1", scores={"accuracy": 0.9, "f1": 0.5, "matthews_correlation": 0.9})) is None
    assert outcomes_of(record("pearson", scores={"pearson": 0.9})) is None
    assert outcomes_of(record("squad_f1", scores={"squad_f1": 0.9})) is None


@pytest.mark.parametrize("metric", ["matthews_correlation", "f1_macro"])
def test_a_metric_of_three_classes_is_no_sum_over_texts(metric):
    """Their accuracy is."""
    labels = np.where(LABELS + PREDICTED > 1, 2, LABELS)
    texts = described("classification", PREDICTED, labels)
    assert outcomes_of(record(metric, texts=texts)) is None
    assert outcomes_of(record("accuracy", texts=texts)).scores(ONES) == pytest.approx([(labels == PREDICTED).mean()])


def test_a_regression_by_another_metric_than_pearson_has_no_outcomes():
    assert outcomes_of(record("spearmanr", texts=described("regression", PREDICTED / 3, LABELS / 3))) is None


def test_values_keep_four_digits_of_a_regression():
    values, said = RNG.normal(size=200), RNG.normal(size=200)
    said = values + said / 2
    found = outcomes_of(record("pearson", texts=described("regression", said, values)))
    assert found.scores(ONES) == pytest.approx([stats.pearsonr(values, said)[0]], abs=1e-3)


def test_answers_keep_f1_and_exact():
    passage = Passage("the red fox", ("red fox",))
    answers = [Answer(passage, text, margin=-1.0) for text in ("red fox", "fox", "dog")]
    texts = described("span_qa", np.array([]), (), answers)
    assert texts == {"f1": "1 0.667 0", "exact": "100"}
    found = outcomes_of(record("squad_f1", texts=texts, count=3))
    assert found.scores(np.ones((1, 3))) == pytest.approx([(1 + 0.667 + 0) / 3])


def test_more_classes_than_digits_are_left_out():
    assert described("classification", np.array([36]), [0]) is None
    assert described("classification", np.array([35]), [0]) == {"labels": "0", "predicted": "z"}


def test_draws_hold_as_many_texts_and_are_the_same_each_time():
    first = draws(50).copy()
    draws.cache_clear()
    assert (draws(50) == first).all() and first.shape == (RESAMPLES, 50) and (first.sum(axis=1) == 50).all()


def test_intervals_are_those_of_scipy():
    found = outcomes_of(record("accuracy", texts=described("classification", PREDICTED, LABELS)))
    right = (PREDICTED == LABELS).astype(float)
    truth = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=4_000, rng=1).confidence_interval
    assert interval(found.resampled()) == pytest.approx((truth.low, truth.high), abs=0.012)


def test_records_without_texts_share_no_draws():
    one = record("accuracy", scores={"accuracy": 0.8})
    first, other = outcomes_of(one).resampled(), outcomes_of(one | {"config_hash": "cd34"}).resampled()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.2
