"""Operations of a forward pass: a GPU is given each by itself, and with small batches that is what takes time there."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from benchmarks.forced import Forced, geometric
from methods import packed
from methods.attention import padded_attention
from methods.packing import Lengths
from tests.tiny import make_batch, tiny_model

VIEWS = {
    "view", "_unsafe_view", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "t", "detach",
    "as_strided", "alias", "unflatten", "_reshape_alias", "split", "split_with_sizes", "narrow", "diagonal",
}  # fmt: skip
LAYERS, LENGTHS = 12, (32, 32, 20, 32, 32, 17, 32, 32)
# A layer's operations beyond those of the stock model, at most.
MOST = {
    "dense": 1, "tr_bert": 8, "transkimmer": 28, "deebert": 17, "pabee": 17, "ltp": 53, "power_bert": 64, "top": 68,
    "lat": 69, "lot": 87,
}  # fmt: skip


class Counted(TorchDispatchMode):
    """Counts what is computed in its block; looking at memory another way is no operation."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def per_layer(self) -> float:
        return self.found.total() / LAYERS


def as_on_a_gpu(query, key, value, lengths, key_lengths, *, bias, places, window, dropout, scores):
    """`packed_attention` takes these ways where the tensors are on a GPU; the kernel itself is one operation."""
    if scores or bias is not None:
        return padded_attention(query, key, value, lengths, key_lengths, bias, dropout, scores, places, window)
    for some in (lengths, key_lengths):
        assert Lengths.of(some, query.device).bounds.dtype == torch.int32
    return query.clone(), None, None


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model("bert", num_hidden_layers=LAYERS).bfloat16().eval()


@pytest.fixture(scope="module")
def stock(model):
    with torch.inference_mode(), Counted() as counted:
        model(**make_batch(LENGTHS))
    return counted.per_layer


@pytest.mark.parametrize("name", MOST)
def test_a_layer_takes_few_operations(name, model, stock, monkeypatch):
    monkeypatch.setattr(packed, "packed_attention", as_on_a_gpu)
    torch.manual_seed(0)
    reducer, batch = methods.create(name, model).eval(), make_batch(LENGTHS)
    lengths, run = torch.tensor(LENGTHS), lambda: reducer(**batch)
    with torch.inference_mode():
        if name != "dense":
            forced = Forced(reducer, geometric(0.9, LAYERS))
            forced.watch({key: value[:1] for key, value in batch.items()})
            forced.follow(forced.schedule_for(4.0, lengths))
            tables = forced.tables(
                batch["attention_mask"].bool(), [(i + 0.5) / len(LENGTHS) for i in range(len(LENGTHS))]
            )
            run = lambda: forced.run(batch, tables)  # noqa: E731
        with Counted() as counted:
            run()
    beyond = counted.per_layer - stock
    assert 0 < beyond <= MOST[name], counted.found.most_common(20)
