"""Scores against values worked out by hand."""

import math
import subprocess
import sys
import warnings

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.errors import UserError
from benchmarks.metrics import GLUE_METRICS, Glue, score
from benchmarks.tasks import GLUE, TASKS

# Eight cases: 3 true positives, 2 true negatives, 1 false positive, 2 false negatives.
PREDICTIONS = [1, 1, 1, 0, 0, 1, 0, 0]
REFERENCES = [1, 1, 1, 0, 0, 0, 1, 1]
ACCURACY = 5 / 8
F1 = 2 * 3 / (2 * 3 + 1 + 2)
MATTHEWS = (3 * 2 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))

# Deviations from the means: predictions (-1.5, -0.5, 0.5, 1.5), references (-2, 0, -1, 3).
NUMBERS = [1.0, 2.0, 3.0, 4.0]
TARGETS = [1.0, 3.0, 2.0, 6.0]
PEARSON = (3.0 + 0.0 - 0.5 + 4.5) / math.sqrt(5.0 * 14.0)
SPEARMAN = 1 - 6 * (0 + 1 + 1 + 0) / (4 * (16 - 1))
MSE = (0 + 1 + 1 + 4) / 4

GLUE_CASES = {
    "cola": (PREDICTIONS, REFERENCES, {"matthews_correlation": MATTHEWS}),
    "mrpc": (PREDICTIONS, REFERENCES, {"accuracy": ACCURACY, "f1": F1}),
    "qqp": (PREDICTIONS, REFERENCES, {"accuracy": ACCURACY, "f1": F1}),
    "stsb": (NUMBERS, TARGETS, {"pearson": PEARSON, "spearmanr": SPEARMAN}),
    "mnli": ([0, 1, 2, 2], [0, 2, 1, 2], {"accuracy": 0.5}),
    "mnli_matched": ([0, 1, 2, 2], [0, 2, 1, 2], {"accuracy": 0.5}),
    "mnli_mismatched": ([0, 1, 2, 2], [0, 2, 1, 2], {"accuracy": 0.5}),
    **{name: (PREDICTIONS, REFERENCES, {"accuracy": ACCURACY}) for name in ("sst2", "qnli", "rte", "wnli")},
}


def test_all_configurations_are_covered():
    assert set(GLUE_CASES) == set(GLUE_METRICS) == {*GLUE, "mnli_matched", "mnli_mismatched"}


@pytest.mark.parametrize("name", GLUE_CASES)
def test_glue_metric_by_hand(name):
    predictions, references, expected = GLUE_CASES[name]
    found = Glue(config_name=name, keep_in_memory=True).compute(predictions=predictions, references=references)
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())


def test_glue_metric_in_batches(tmp_path):
    metric = Glue(config_name="mrpc", cache_dir=str(tmp_path))
    for start in (0, 3, 6):
        part = slice(start, start + 3)
        metric.add_batch(predictions=np.array(PREDICTIONS)[part], references=np.array(REFERENCES)[part])
    assert metric.compute() == pytest.approx({"accuracy": ACCURACY, "f1": F1})


def test_glue_metric_combines(tmp_path):
    combined = evaluate.combine([Glue(config_name=name, cache_dir=str(tmp_path)) for name in ("mrpc", "cola")])
    found = combined.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == pytest.approx({"accuracy": ACCURACY, "f1": F1, "matthews_correlation": MATTHEWS})


@pytest.mark.parametrize("options", [{}, {"config_name": "ax"}])
def test_unknown_glue_configurations_are_refused(options):
    with pytest.raises(UserError, match=r"no GLUE metric '(default|ax)'; choose config_name from cola, sst2"):
        Glue(**options)


def test_scoring_does_not_import_the_hub_libraries():
    code = "import sys, benchmarks.metrics; print({'evaluate', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_score_of_two_classes():
    expected = {"accuracy": ACCURACY, "f1": F1, "matthews_correlation": MATTHEWS}
    assert score(TASKS["vader_sentiment"], PREDICTIONS, REFERENCES) == pytest.approx(expected)


def test_score_of_more_classes():
    # F1 by class: 2/3 (one right, one predicted in vain), 0, 2/3.
    found = score(TASKS["mnli"], [0, 0, 2, 2], [0, 1, 2, 1])
    # Matthews for more classes: (c s - p.t) / sqrt((s^2 - p.p)(s^2 - t.t)), p = (2, 0, 2), t = (1, 2, 1), c = 2, s = 4.
    matthews = (2 * 4 - 4) / math.sqrt((16 - 8) * (16 - 6))
    assert found == pytest.approx({"accuracy": 0.5, "f1_macro": 4 / 9, "matthews_correlation": matthews})


def test_score_of_a_regression():
    found = score(TASKS["vader_valence"], NUMBERS, TARGETS)
    assert found == pytest.approx({"pearson": PEARSON, "spearmanr": SPEARMAN, "mse": MSE})


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.kind != "span_qa"], ids=lambda t: t.name)
def test_the_headline_metric_is_among_the_scores(task):
    assert task.metric in score(task, [0, 1, 0], [0, 1, 1])


@pytest.mark.parametrize("name", ["stsb", "cola"])
@pytest.mark.parametrize("constant", ["predictions", "references"])
def test_constant_values_give_zero_and_no_warning(name, constant):
    varied, flat = [0, 1, 1, 0], [1, 1, 1, 1]
    pair = (flat, varied) if constant == "predictions" else (varied, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(TASKS[name], *pair)
        official = Glue(config_name=name, keep_in_memory=True).compute(predictions=pair[0], references=pair[1])
    for key in ("matthews_correlation",) if name == "cola" else ("pearson", "spearmanr"):
        assert found[key] == official[key] == 0.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_scores_stay_in_range(pairs):
    predictions, references = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(TASKS["cola"], predictions, references)
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["f1"] <= 1 and -1 <= found["matthews_correlation"] <= 1


@pytest.mark.parametrize(
    ("name", "predictions", "references", "text"),
    [
        ("sst2", [], [], r"non-empty lists, got \(0,\) and \(0,\)"),
        ("sst2", [0, 1], [0], r"got \(2,\) and \(1,\)"),
        ("sst2", [[0.1, 0.9]], [[0, 1]], r"got \(1, 2\)"),
        ("sst2", [0, 2], [0, 1], "predictions must be class ids from 0 to 1"),
        ("sst2", [0, 1], [0, -1], "references must be class ids from 0 to 1"),
        ("sst2", [0.5, 1], [0, 1], "predictions must be class ids"),
        ("stsb", [math.nan, 1.0, math.inf], [1.0, 2.0, 3.0], "2 of 3 predictions are not finite"),
        ("squad_v2", [0], [0], "scored from texts and spans"),
    ],
)
def test_what_cannot_be_scored_is_refused(name, predictions, references, text):
    with pytest.raises(ValueError, match=text):
        score(TASKS[name], predictions, references)
