"""What the accounting of an evaluation costs."""

from __future__ import annotations

import time

import pytest
import torch

import methods
from benchmarks.evaluate import BATCH_SIZE
from benchmarks.flops import CostTotals
from methods import Trace
from tests.tiny import make_batch, tiny_model, tiny_reducer


@pytest.mark.parametrize("name", ["dense", "transkimmer", "power_bert", "deebert"])
def test_ten_thousand_texts_are_accounted_in_a_second(name):
    """Of processor time, all three paddings, the summary included."""
    reducer = tiny_reducer(name)
    batch = make_batch((9, 4, 12, 7) * (BATCH_SIZE // 4))
    with torch.inference_mode():
        trace = reducer(**batch).trace
        start = time.process_time()
        totals = CostTotals(sequence_length=40)
        for _ in range(10_000 // BATCH_SIZE):
            totals.add(reducer, trace)
        summary = totals.summary()
        spent = time.process_time() - start
    assert summary["texts"] == 10_000 // BATCH_SIZE * BATCH_SIZE
    assert spent < 1.0


def test_tracing_and_accounting_take_less_than_a_hundredth_of_an_evaluation(monkeypatch):
    """Of processor time, on a model as wide as a small real one; the best of three batches."""
    spent = 0.0

    def clocked(function):
        def run(*arguments, **named):
            nonlocal spent
            start = time.process_time()
            result = function(*arguments, **named)
            spent += time.process_time() - start
            return result

        return run

    for name in ("__init__", "record_attention", "record_ffn"):
        monkeypatch.setattr(Trace, name, clocked(getattr(Trace, name)))
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    reducer = methods.create("dense", tiny_model("bert", **sizes).float()).eval()
    totals, batch, shares = CostTotals(sequence_length=40), make_batch((40,) * BATCH_SIZE), []
    account = clocked(totals.add)
    with torch.inference_mode():
        for _ in range(3):
            spent, start = 0.0, time.process_time()
            account(reducer, reducer(**batch).trace)
            shares.append(spent / (time.process_time() - start))
    assert 0 < min(shares) < 0.01
