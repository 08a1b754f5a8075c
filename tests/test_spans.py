"""Training and evaluation of span models on windows: labels, answers per text, cost per text, retention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import methods
from benchmarks.data import tokenize
from benchmarks.evaluate import evaluate
from benchmarks.flops import CostTotals
from benchmarks.models import hub_model
from benchmarks.squad import read_answers
from benchmarks.squad_scores import tuned_threshold
from benchmarks.tables import Entry, answer_table, data_lines
from benchmarks.tasks import TASKS
from benchmarks.train import Compute, train_stage
from methods import ParameterGroup, Stage
from tests.test_squad import qa_rows, word_level
from tests.tiny import tiny_model

WORDS = [f"w{i}" for i in range(30)]
TASK = replace(TASKS["squad_v2"], stride=6, sequence_length=20, relevant_columns=("relevant1", "relevant2"))


@pytest.fixture(scope="module")
def features():
    """Windows of 24 texts of up to 40 words; w29 is the answer, and half of the texts do not have it."""
    rng = np.random.default_rng(0)
    tokenizer = word_level(*WORDS)
    rows = []
    for i in range(24):
        words = rng.choice(WORDS[:29], size=rng.integers(3, 40)).tolist()
        place = int(rng.integers(len(words)))
        words[place] = "w29" if i % 2 else words[place]
        context = " ".join(words)
        start = len(" ".join(words[:place])) + (place > 0)
        rows.append(("w0", context, ["w29"] if i % 2 else [], [[start, start + 3]] if i % 2 else []))
    made = qa_rows(*(row[:3] for row in rows))
    made = made.add_column("relevant1", [[[0, 2]]] * 24).add_column("relevant2", [row[3] for row in rows])
    return tokenize(made, TASK, tokenizer, max_length=TASK.sequence_length)


def span_reducer(name="transkimmer", **options):
    model = tiny_model("bert", "span_qa").float()
    torch.manual_seed(1)
    reducer = methods.create(name, model, **options)
    if name == "transkimmer":
        for predictor in reducer.predictors:
            torch.nn.init.normal_(predictor[-1].weight, std=1.0)
            predictor[-1].bias.data.copy_(torch.tensor([0.0, 0.7]))
    return reducer.eval()


def alone(reducer, feature):
    """Output of one window in a batch of its own."""
    names = ("input_ids", "token_type_ids")
    with torch.inference_mode():
        return reducer(**{name: torch.tensor([feature[name]]) for name in names})


def test_answers_are_those_of_every_window_alone(features):
    reducer = span_reducer()
    result = evaluate(reducer, features, TASK, 0, compute=Compute())
    outputs = [alone(reducer, feature) for feature in features]
    logits = [tuple(z[0].numpy() for z in (output.start_logits, output.end_logits)) for output in outputs]
    expected = read_answers(features, logits)
    assert len(features) > 24 == len(result.answers)
    assert [answer.text for answer in result.answers] == [answer.text for answer in expected]
    assert [answer.margin for answer in result.answers] == pytest.approx(
        [answer.margin for answer in expected], abs=1e-4
    )
    assert result.predictions.tolist() == [answer.said() for answer in result.answers]


def test_cost_is_summed_over_the_windows_of_a_text(features):
    reducer = span_reducer()
    cost = evaluate(reducer, features, TASK, 0, compute=Compute()).cost
    dense, method = np.zeros(24), np.zeros(24)
    for feature in features:
        trace = alone(reducer, feature).trace
        dense[feature["index"]] += int(reducer.backbone.dense_macs(trace.input_lengths))
        method[feature["index"]] += int(reducer.macs(trace))
    assert (cost["texts"], cost["sequences"]) == (24, len(features))
    found = cost["padding"]["none"]
    assert found["dense_gmacs_mean"] == pytest.approx(dense.mean() / 1e9)
    assert found["speedup"] == pytest.approx(dense.sum() / method.sum())
    assert found["speedup_mean_of_ratios"] == pytest.approx((dense / method).mean())
    assert cost["tokens_mean"] == pytest.approx(sum(len(f["input_ids"]) for f in features) / 24)
    padded = int(reducer.backbone.dense_macs(torch.tensor([20]))) * len(features) / dense.sum()
    assert cost["padding"]["sequence"]["speedup_of_unpadding_alone"] == pytest.approx(padded)


def test_totals_without_owners_take_each_sequence_for_a_text(features):
    reducer = span_reducer("dense")
    one, other = CostTotals(20), CostTotals(20)
    for number, feature in enumerate(features[:5]):
        trace = alone(reducer, feature).trace
        one.add(reducer, trace)
        other.add(reducer, trace, [number])
    assert one.summary() == other.summary() and one.summary()["texts"] == 5


def test_retention_counts_the_deciding_tokens_of_every_window(features):
    reducer = span_reducer()
    result = evaluate(reducer, features, TASK, 0, compute=Compute())
    kept, all_of_them = torch.zeros(3), 0
    for feature in features:
        relevant = torch.tensor(feature["relevant"])
        kept += alone(reducer, feature).trace.keep_masks[0][:, relevant].sum(dim=1)
        all_of_them += int(relevant.sum())
    assert result.retention == pytest.approx((kept / all_of_them).tolist(), abs=1e-6)
    assert 0 < min(result.retention) < 1


def test_a_model_learns_to_point_at_the_answer(features):
    """From the labels of its windows alone, dense and skimming: far above saying nothing, which scores 0.5."""
    stage = Stage(name="skim", epochs=25, groups=(ParameterGroup(learning_rate=5e-3),), batch_size=8)
    for name in ("dense", "transkimmer"):
        reducer = methods.create(name, fresh_model(), **({} if name == "dense" else {"skim_weight": 0.1}))
        train_stage(reducer, stage, features, 0, seed=1, compute=Compute())
        result = evaluate(reducer, features, TASK, 0, compute=Compute())
        assert result.scores["squad_f1"] > 0.9, name


def fresh_model():
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    return transformers.BertForQuestionAnswering(config)


def test_the_threshold_comes_from_other_rows(features):
    reducer = span_reducer("dense")
    half = [feature for feature in features if feature["index"] < 12]
    threshold = tuned_threshold(evaluate(reducer, half, TASK, 0, compute=Compute()).answers)
    rest = [feature for feature in features if feature["index"] >= 12]
    result = evaluate(reducer, rest, TASK, 0, compute=Compute(), threshold=threshold)
    said = [answer.text if answer.margin <= threshold else "" for answer in result.answers]
    right = [said == (answer.passage.answers or ("",))[0] for said, answer in zip(said, result.answers, strict=True)]
    assert result.scores["tuned_exact"] == pytest.approx(np.mean(right))
    assert result.scores["tuned_threshold"] == threshold != 0
    assert "tuned_f1" not in evaluate(reducer, rest, TASK, 0, compute=Compute()).scores


def span_entry(name: str, f1: float, tuned: float, task="squad_v2") -> Entry:
    scores = {"squad_f1": f1, "squad_exact": f1 / 2, "squad_has_answer_f1": 0.25, "tuned_f1": tuned}
    record = {
        "config_hash": name,
        "config": {"data": {"splits": {"train": {"rows": 1234}, "validation": {"rows": 50}}}, "seed": ord(name)},
        "metrics": {"metric": "squad_f1", "splits": {"validation": {"scores": scores}}},
    }
    return Entry(model=hub_model("BERT-base", "bert"), task=TASKS[task], method="dense", record=record)


def test_answer_table_averages_seeds_and_leaves_gaps():
    table = answer_table([span_entry("a", 0.5, 0.6), span_entry("b", 0.6, 0.8), span_entry("c", 0, 0, task="imdb")])
    zero, tuned = table.to_dict("records")
    assert (zero["Threshold"], zero["Exact"], zero["F1"], zero["HasAns F1"]) == ("0", 27.5, 55.0, 25.0)
    assert (tuned["Threshold"], tuned["F1"]) == ("Tuned", 70.0) and tuned["HasAns F1"] == "\N{EN DASH}"
    assert answer_table([span_entry("c", 0, 0, task="imdb")]).empty


def test_data_lines_say_once_how_many_rows_there_were():
    (line,) = data_lines([span_entry("a", 0.5, 0.6), span_entry("b", 0.6, 0.8)])
    assert line.startswith("SQuAD v2.0: 1,234 train, 50 validation rows (official: 130,319 and 11,873), at most 384")
    assert line.endswith("; seeds 97 98")
