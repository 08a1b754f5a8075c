"""What the accounting of an evaluation costs."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.evaluate import BATCH_SIZE
from benchmarks.flops import CostTotals
from tests.tiny import make_batch, tiny_reducer


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
