"""DeFormer's cache: states computed beforehand change nothing but the cost; [4] is the fourth invariant of the method
notes."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

import methods
from methods.passage_cache import PassageCache
from methods.testing.promises import executed_macs
from tests.pair_batches import PAIRS, pair_batch
from tests.tiny import FAMILIES, HEADS, labels_for, logits_of, tiny_model
from tests.told import TIGHT, agree, run

OTHERS = (((6, 5), (16, 3)), ((7, 3), (12, 8)))  # a passage not among `PAIRS`, and one that is


def deformer(family="bert", head="classification", **options):
    return methods.create("deformer", tiny_model(family, head), **options).double().eval()


def batch_of(reducer, pairs=PAIRS, **layout):
    return pair_batch(pairs, pad_id=reducer.backbone.config.pad_token_id, **layout)


def warm(reducer, batch):
    """A copy of the reducer with every passage of the batch in its cache."""
    copied = copy.deepcopy(reducer)
    copied.precompute(batch)
    return copied


def passage_tokens(batch, side):
    """(batch, seq_len) bool, the real tokens of the cached side."""
    second = batch["token_type_ids"] == 1
    return (second if side == "second" else ~second) & batch["attention_mask"].bool()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["first", "second"])
def test_a_warm_cache_changes_no_logit(side, family, head):
    """[4] In both modes, at every split, the side that holds [CLS] included; padding to slots as well."""
    for split in (1, 2, 3):
        reducer = deformer(family, head, split=split, cached_side=side)
        for layout in ({}, {"slots": (7, 9)}):
            batch = batch_of(reducer, **layout)
            expected, mask = agree(reducer, batch), batch["attention_mask"]
            found = agree(warm(reducer, batch), batch)
            torch.testing.assert_close(logits_of(found, mask), logits_of(expected, mask), **TIGHT)
            spared = split * passage_tokens(batch, side).sum()
            assert found.trace.ffn_tokens.sum() == expected.trace.ffn_tokens.sum() - spared
            assert torch.equal(found.trace.keep_masks[:, split:], expected.trace.keep_masks[:, split:])


@pytest.mark.parametrize("side", ["first", "second"])
def test_passages_that_the_cache_lacks_are_computed(side):
    """Hits and misses in one batch, neighbours of either kind; the other side's own lower layers always run."""
    reducer = deformer(cached_side=side)
    known, batch = batch_of(reducer, PAIRS[1:4]), batch_of(reducer, PAIRS + OTHERS)
    output = agree(warm(reducer, known), batch)
    torch.testing.assert_close(output.logits, agree(reducer, batch).logits, **TIGHT)
    hit = [False, True, True, True, False, False, side == "second"]
    own = (~passage_tokens(batch, side) & batch["attention_mask"].bool()).sum(dim=1)
    expected = torch.where(torch.tensor(hit), own, batch["attention_mask"].sum(dim=1))
    assert torch.equal(output.trace.ffn_tokens[:, 0], expected)


@pytest.mark.parametrize("side", ["first", "second"])
def test_no_cached_token_enters_a_lower_layer(side):
    """[12] Counted at the layers' own modules: below the split only the other side, above it all tokens."""
    reducer = deformer(cached_side=side)
    batch, rows = batch_of(reducer), []
    reducer.precompute(batch)
    for layer in reducer.model.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.intermediate.dense):
            part.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[-2]))
    run(reducer, batch, "packed")
    every = int(batch["attention_mask"].sum())
    own = every - int(passage_tokens(batch, side).sum())
    assert rows == [own] * 4 + [every] * 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_what_is_executed_is_what_is_charged(head, family):
    """With a warm cache the trace gives the published account, and filling it cost the rest; torch counts the same."""
    reducer = deformer(family, head)
    batch = batch_of(reducer, PAIRS[:3])  # no two passages alike
    spent = reducer.precompute(batch)
    executed, trace = executed_macs(reducer, batch)
    assert int(reducer.macs(trace).sum()) == executed == int(reducer.online_macs(trace).sum())
    assert spent == int(reducer.offline_macs(trace).sum())
    length = torch.full((3,), 20)
    assert torch.equal(reducer.macs(trace, "sequence", 20), reducer.online_macs(trace, length))


def test_each_passage_is_computed_once():
    """Two pairs share one; filling again, or with other first texts, costs nothing."""
    reducer, batch = deformer(), pair_batch()
    single = [deformer().precompute(pair_batch(PAIRS[i : i + 1])) for i in (0, 1, 2, 4)]
    assert reducer.precompute(batch) == sum(single) and len(reducer.cache) == 4
    assert reducer.precompute(batch) == 0 == reducer.precompute(pair_batch(OTHERS[1:]))
    assert reducer.cache.tokens == 5 + 8 + 2 + 7


def test_other_weights_splits_or_windows_never_find_an_entry():
    """[15] Nor do other token types or positions; the first text, the head and the upper layers play no part."""
    reducer, batch = deformer(split=2), pair_batch(PAIRS[:1])
    reducer.precompute(batch)

    def hit(candidate=reducer, batch=batch):
        candidate.cache = reducer.cache
        return int(run(candidate, batch, "packed").trace.ffn_tokens[0, 0]) < int(batch["attention_mask"].sum())

    assert hit() and hit(batch=pair_batch((((9, 3), PAIRS[0][1]),)))
    window = {name: table[:, [0, 1, 2, 3, 5, 6, 7, 8]] for name, table in batch.items()}  # one token later
    assert not hit(batch=window)
    assert not hit(deformer(split=1)) and not hit(deformer(split=2, restart_positions=False))
    with torch.no_grad():
        reducer.model.classifier.weight += 1
        reducer.model.bert.encoder.layer[2].output.dense.weight += 1
    assert hit()
    with torch.no_grad():
        reducer.model.bert.encoder.layer[1].output.dense.bias[3] += 1e-6
    assert not hit()


def test_training_makes_entries_stale_and_reads_none():
    """Fused optimizers, which torch's count of changes does not see, included."""
    reducer, batch = deformer(), pair_batch()
    reducer.precompute(batch)
    optimizer = torch.optim.AdamW(reducer.parameters(), lr=1e-3, fused=True)
    output = reducer.train()(**batch, **labels_for(reducer, batch))
    assert torch.equal(output.trace.ffn_tokens[:, 0], batch["attention_mask"].sum(dim=1))
    output.loss.backward()
    optimizer.step()
    tokens = run(reducer.eval(), batch, "packed").trace.ffn_tokens
    assert torch.equal(tokens[:, 0], batch["attention_mask"].sum(dim=1))
    with pytest.raises(ValueError, match=r"call eval\(\) before precompute"):
        reducer.train().precompute(batch)


def test_loading_other_weights_makes_entries_stale():
    """In place, and by another precision."""
    reducer, batch = deformer(), pair_batch()
    reducer.precompute(batch)
    weights = {name: weight.clone() for name, weight in reducer.state_dict().items()}
    reducer.load_state_dict(weights)  # the same values
    assert int(run(reducer, batch, "packed").trace.ffn_tokens.sum()) < 3 * int(batch["attention_mask"].sum())
    for change in (
        lambda: reducer.float(),
        lambda: reducer.double().model.load_state_dict(tiny_model("bert", seed=1).state_dict()),
    ):
        change()
        assert int(run(reducer, batch, "packed").trace.ffn_tokens.sum()) == 3 * int(batch["attention_mask"].sum())


def test_half_precision_halves_the_size_and_hardly_moves_the_logits():
    reducer, batch = deformer().float(), pair_batch()
    expected = run(reducer, batch, "packed").logits
    sizes = {}
    for dtype in (None, torch.float16):
        reducer.cache = PassageCache(dtype)
        reducer.precompute(batch)
        sizes[dtype] = reducer.cache.nbytes
        tolerance = 1e-5 if dtype is None else 2e-2
        torch.testing.assert_close(run(reducer, batch, "packed").logits, expected, rtol=0, atol=tolerance)
    assert sizes[None] == 2 * sizes[torch.float16] == 22 * 32 * 4
    assert repr(reducer.cache) == "PassageCache(4 passages, 22 tokens, 0.00 MB)"


def test_a_passage_of_squad_takes_0_90_mb():
    """Section 4: 293 tokens of 768 numbers."""
    cache = PassageCache()
    cache.put("window", torch.zeros(293, 768))
    assert round(cache.nbytes / 1e6, 2) == 0.90


def test_a_saved_cache_serves_a_loaded_model(tmp_path):
    reducer, batch = deformer(), pair_batch()
    reducer.precompute(batch)
    reducer.cache.save(tmp_path / "passages.safetensors")
    reducer.save_pretrained(tmp_path / "model")
    loaded = methods.load(tmp_path / "model").double().eval()
    loaded.cache = PassageCache.load(tmp_path / "passages.safetensors")
    output, expected = (run(one, batch, "packed") for one in (loaded, reducer))
    assert torch.equal(output.logits, expected.logits)
    assert (
        torch.equal(output.trace.ffn_tokens, expected.trace.ffn_tokens) and loaded.cache.nbytes == reducer.cache.nbytes
    )


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=r"weights.safetensors is not a passage cache; write one with PassageCache.save"
    ):
        PassageCache.load(path)


def test_texts_that_stand_alone_are_never_cached():
    reducer, batch = deformer(single_texts=True, cached_side="first"), pair_batch()
    batch["token_type_ids"][1:3] = 0
    reducer.precompute(batch)
    assert len(reducer.cache) == 2  # pairs 0 and 4 have one first text
    tokens = agree(reducer, batch).trace.ffn_tokens[:, 0]
    assert tokens.tolist() == [5, 11, 8, 8, 7]


def test_a_joint_model_has_nothing_to_cache():
    reducer, batch = deformer(split=0), pair_batch()
    assert reducer.precompute(batch) == 0 and len(reducer.cache) == 0
    assert torch.equal(run(reducer, batch, "packed").logits, run(deformer(split=0), batch, "packed").logits)


class Adapters(torch.nn.Module):
    """A layer with two adapters, which tells of them as PEFT's do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.active_adapters, self.disable_adapters = inner, ["one"], False
        self.scales = torch.nn.ParameterDict({"one": torch.tensor(1.5), "two": torch.tensor(-2.0)})

    def forward(self, hidden):
        scale = 1.0 if self.disable_adapters else self.scales[self.active_adapters[0]]
        return self.inner(hidden) * scale


def test_states_of_one_adapter_are_not_those_of_another():
    """Switched or turned off in evaluation; back again, the states of before are found."""
    reducer, batch = deformer(), pair_batch()
    own = reducer.model.bert.encoder.layer[0].attention.self
    own.query = adapters = Adapters(own.query)
    reducer.eval().precompute(batch)
    for active, disabled in (("two", False), ("two", True), ("one", False)):
        adapters.active_adapters, adapters.disable_adapters = [active], disabled
        warmed = run(reducer, batch, "packed").logits
        spent, cache = reducer.precompute(batch), reducer.cache
        assert (spent == 0) == (active == "one")
        reducer.cache = None
        torch.testing.assert_close(warmed, run(reducer, batch, "packed").logits, **TIGHT)
        reducer.cache = cache


def test_weights_that_were_loaded_in_inference_mode(tmp_path):
    """Torch counts none of their changes, and refuses to say so."""
    deformer().save_pretrained(tmp_path)
    batch = pair_batch()
    with torch.inference_mode():
        loaded = methods.load(tmp_path).eval()
        assert loaded.precompute(batch) > 0 == loaded.precompute(batch)
