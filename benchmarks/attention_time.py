"""What attention pays for handing out its scores: the time of one text of BERT-base's width with and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.runs import Record, RunConfig, RunStore

KIND = "attention_time"
TOKENS, ROUNDS = 512, 20


def measure(store: RunStore) -> Record:
    """Attention of one text of BERT-base's width, with and without the scores, on one thread."""
    import torch

    from benchmarks.environment import machine
    from benchmarks.timing import Ratio, interleave

    torch.set_num_threads(1)
    extra = {"tokens": TOKENS, "threads": 1, "machine": machine("cpu")}
    config = RunConfig(
        kind=KIND, task="random_texts", method="scores", backbone="bert-base", data={}, seed=0, extra=extra
    )

    def compute() -> dict[str, Any]:
        with torch.inference_mode():
            samples = interleave(runs(), rounds=ROUNDS)
        plain, scored = samples["plain"], samples["scored"]
        return {
            "wall": Ratio.of(scored.wall_s, plain.wall_s).as_list(),
            "cpu": Ratio.of(scored.cpu_s, plain.cpu_s).as_list(),
        }

    return store.run(config, compute)


def runs() -> dict[str, Callable[[], object]]:
    """What is compared."""
    import torch

    from methods.attention import packed_attention

    torch.manual_seed(0)
    query, key, value = torch.randn(3, TOKENS, 12, 64).unbind()
    lengths = [TOKENS]
    return {
        "plain": lambda: packed_attention(query, key, value, lengths, lengths),
        "scored": lambda: packed_attention(query, key, value, lengths, lengths, scores=True),
    }
