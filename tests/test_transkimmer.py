"""Transkimmer: numbers of the paper and invariants of the method notes; [3] is the third of these."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

import methods
from methods.attention import MaskedKeys, masked_attention
from methods.encoder import encode
from methods.transkimmer import SkimPredictor
from tests.tiny import labels_for, make_batch, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
# Table 2 of the paper: weight of the skim loss per task.
LAMBDA = {
    "cola": 0.3, "rte": 0.8, "qqp": 0.2, "mrpc": 0.5, "sst2": 0.3, "mnli": 0.2, "wnli": 0.5, "qnli": 0.1, "stsb": 0.3,
    "squad_v2": 0.8, "imdb": 0.5, "yelp": 0.5, "20news": 0.5,
}  # fmt: skip
# Epochs, learning rate, batch, AdamW's epsilon, warm-up and clip of the public training scripts.
SCRIPTS = dict.fromkeys(LAMBDA, (3, 2e-5, 64, 1e-6, 0.0, None)) | {
    "mrpc": (5, 2e-5, 64, 1e-6, 0.0, None),
    "wnli": (5, 2e-5, 64, 1e-6, 0.0, None),
    "squad_v2": (5, 3e-5, 64, 1e-6, 0.0, None),
    "20news": (5, 3e-5, 32, 1e-8, 0.1, 1.0),
    "yelp": (2, 3e-5, 32, 1e-8, 0.1, 1.0),
}


def biased(reducer, skim, keep):
    """Let every predictor say the same of every token: the logits `skim` and `keep`."""
    for predictor in reducer.predictors:
        torch.nn.init.zeros_(predictor[-1].weight)
        predictor[-1].bias.data = torch.tensor([skim, keep], dtype=predictor[-1].bias.dtype)
    return reducer


def base_model_cost(tokens, kept):
    """MACs of BERT-base (12 layers, 768 wide) with `tokens` read by predictor l and `kept` computed by layer l."""
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        reducer = methods.create("transkimmer", model)
    trace = methods.Trace(torch.ones(1, tokens[0], dtype=torch.bool), 12)
    for layer, count in enumerate(kept):
        n = torch.tensor([count])
        trace.record_attention(layer, torch.tensor([0]), n, n * n)
        trace.record_ffn(layer, torch.tensor([0]), n, torch.arange(count))
    head = 768 * 768 + 2 * 768
    layers = int(reducer.macs(trace)) - head
    return layers, sum(tokens) * reducer.predictors[0].macs_per_token


# Decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("attention", ["renormalised", "unnormalised"])
def test_keeping_every_token_gives_the_stock_model(mode, attention):
    """[1]"""
    reducer = biased(tiny_reducer("transkimmer"), -5.0, 5.0)
    reducer.set_options(skim_attention=attention)
    batch = make_batch()
    with torch.no_grad(), reducer.mode(mode):
        torch.testing.assert_close(reducer(**batch).logits, tiny_model("bert")(**batch).logits, **TIGHT)


def test_the_papers_equation_4_does_not_equal_removal():
    """[2] Literal skim attention loses the mass of skimmed keys."""
    reducer, batch = tiny_reducer("transkimmer"), make_batch()
    reducer.set_options(skim_attention="unnormalised")
    with torch.no_grad():
        packed = reducer(**batch)
        with reducer.mode("masked"):
            masked = reducer(**batch)
    skims = (packed.trace.keep_masks.sum(dim=2) < packed.trace.input_lengths.unsqueeze(1)).any(dim=1)
    difference = (packed.logits - masked.logits).abs().amax(dim=1)
    assert skims.any() and (difference[skims] > 1e-3).all()
    assert (difference[~skims] < 1e-9).all()


def test_epsilon_attention_is_near_removal_and_not_equal():
    """[2] The evaluation branch gives skimmed keys a small weight; harmless while scores are small, as at the start."""
    torch.manual_seed(1)
    reducer = methods.create("transkimmer", tiny_model("bert", initializer_range=0.02), skim_attention="epsilon")
    for predictor in reducer.predictors:
        torch.nn.init.normal_(predictor[-1].weight)
        torch.nn.init.zeros_(predictor[-1].bias)
    reducer.double().eval()
    batch = make_batch()
    with torch.no_grad():
        packed = reducer(**batch)
        with reducer.mode("masked"):
            difference = (packed.logits - reducer(**batch).logits).abs().max()
    assert packed.trace.ffn_tokens.sum() < 3 * batch["attention_mask"].sum()
    assert 1e-12 < difference < 1e-5


@pytest.mark.parametrize("how", ["masked", "packed", "train", "sampled"])
def test_kept_sets_are_nested_and_hold_the_first_token(how):
    """[3, 4] In every mode, decided or drawn."""
    reducer, batch = tiny_reducer("transkimmer"), make_batch()
    reducer.set_options(sample_in_eval=how == "sampled")
    reducer.train(how == "train")
    with torch.no_grad(), reducer.mode("packed" if how == "packed" else "masked"):
        trace = reducer(**batch).trace
    kept = trace.keep_masks
    assert kept[..., 0].all()
    assert not (kept[:, 1:] & ~kept[:, :-1]).any()
    assert (trace.ffn_tokens.diff(dim=1) <= 0).all() and trace.ffn_tokens[:, -1].sum() < kept[:, 0].sum()
    assert torch.equal(trace.attention_tokens, trace.ffn_tokens)


# Predictors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def initial_gaps():
    """Keep logit minus skim logit of twelve fresh predictors on 500 normalised states; (12, 500)."""
    torch.manual_seed(0)
    states = torch.nn.functional.layer_norm(torch.randn(500, 768), (768,))
    with torch.no_grad():
        logits = torch.stack([SkimPredictor(768, leading_norm=True)(states) for _ in range(12)])
    return (logits[..., 1] - logits[..., 0]).double()


def test_a_fresh_predictor_keeps_nearly_everything(initial_gaps):
    """[6] About one token-layer in 20,000 is skipped when sampling, none by argmax."""
    skip = torch.sigmoid(-initial_gaps)
    assert 2e-5 < skip.mean() < 1.5e-4 and (1 - skip).mean() >= 0.9998
    assert (1 - skip).prod(dim=0).mean() == pytest.approx(0.9994, abs=3e-4)
    assert (initial_gaps > 0).all()


def test_a_fresh_predictors_logits_are_ten_apart(initial_gaps):
    """[7]"""
    assert ((initial_gaps.mean(dim=1) - 10).abs() < 1.5).all()
    assert 0.3 < initial_gaps.std(dim=1).mean() < 0.6


def test_a_new_reducer_starts_from_the_papers_bias():
    """Section 3: -5 for skim, +5 for keep, with the initialiser's spread; wrapping must not reset it."""
    reducer = methods.create("transkimmer", tiny_model("bert"))
    biases = torch.stack([predictor[-1].bias for predictor in reducer.predictors]).double()
    torch.testing.assert_close(biases, torch.tensor([[-5.0, 5.0]] * 3).double(), atol=0.1, rtol=0)
    assert all(torch.equal(predictor[1].bias, torch.zeros(32)) for predictor in reducer.predictors)
    with torch.no_grad():
        trace = reducer.double()(**make_batch()).trace
    assert (trace.keep_ratios() == 1).all()


@pytest.mark.parametrize(("leading_norm", "parameters", "share"), [(True, 595_202, 0.0652), (False, 593_666, 0.0651)])
def test_predictor_parameters(leading_norm, parameters, share):
    """Section 3: with and without the leading norm; twelve of them against BERT-base's 109,482,240."""
    predictor = SkimPredictor(768, leading_norm=leading_norm)
    assert sum(p.numel() for p in predictor.parameters()) == parameters
    assert round(12 * parameters / 109_482_240, 4) == share
    assert isinstance(predictor[0], torch.nn.LayerNorm) is leading_norm
    reducer = methods.create("transkimmer", tiny_model("bert"), predictor_norm=leading_norm)
    assert len({id(p) for p in reducer.predictors}) == 3 and len(reducer.predictors[0]) == len(predictor)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["task", "skim"])
def test_each_loss_alone_reaches_every_predictor(term):
    """[8] With about 88 % kept; the first predictor learns through all later layers."""
    reducer = tiny_reducer("transkimmer").train()
    for predictor in reducer.predictors:
        predictor[-1].bias.data = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    batch = make_batch((12, 11, 10, 9))
    output = reducer(**batch, **labels_for(reducer, batch))
    assert 0.7 < output.trace.keep_ratios()[:, 0].mean() < 1
    output.losses[term].backward()
    for name, parameter in reducer.predictors.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_how_often_a_token_is_kept_does_not_depend_on_the_temperature(temperature):
    """[9] sigmoid(gap) within three standard errors, whatever tau."""
    model = tiny_model("bert", num_hidden_layers=1).float()
    reducer = biased(methods.create("transkimmer", model, temperature=temperature), 0.0, 1.0).train()
    batch, kept = make_batch((40,) * 256), 0
    with torch.no_grad():
        for _ in range(10):
            kept += int(reducer(**batch).trace.keep_masks[:, 0, 1:].sum())
    draws, expected = 10 * 256 * 39, torch.sigmoid(torch.tensor(1.0)).item()
    assert abs(kept / draws - expected) < 3 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("over", ["real", "padded"])
def test_the_skim_loss_is_the_mean_share_of_tokens_kept(over):
    """[10] 1 with all kept, 1/N with only [CLS]; its slope in one decision is 1 / (layers * N * batch)."""
    reducer, batch = tiny_reducer("transkimmer"), make_batch((9, 4))
    reducer.set_options(skim_loss_over=over, skim_weight=1.0)
    labels = torch.tensor([0, 1])
    width = torch.tensor([9.0, 4.0] if over == "real" else [9.0, 9.0])
    for bias, expected in (((-40.0, 40.0), 1.0), ((40.0, -40.0), float((1 / width).mean()))):
        loss = biased(reducer, *bias).train()(**batch, labels=labels).losses["skim"]
        assert loss.item() == pytest.approx(expected, rel=1e-6)  # float32
    inputs = reducer.check_inputs(**batch)
    state = encode(reducer, inputs, "masked", reducer.state_options())
    gates = [torch.ones(2, 9, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    state.notes["gates"] = gates
    reducer.skim_loss(state, inputs).backward()
    slope = (1 / (3 * 2 * width.double())).unsqueeze(1).expand(2, 9)
    expected = slope * batch["attention_mask"] if over == "real" else slope
    for gate in gates:
        torch.testing.assert_close(gate.grad, expected, **TIGHT)


def test_the_skim_loss_alone_learns_to_skim():
    """[11] At the paper's width, tau 1 and a constant rate of 2e-5."""
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=768, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    reducer = methods.create("transkimmer", transformers.BertForSequenceClassification(config), skim_weight=1.0).train()
    reducer.model.requires_grad_(False)
    optimizer = torch.optim.AdamW(reducer.predictors.parameters(), lr=2e-5, weight_decay=0)
    batch, labels = make_batch((8, 8)), torch.zeros(2, dtype=torch.long)
    ratios = []
    for _ in range(160):
        output = reducer(**batch, labels=labels)
        optimizer.zero_grad()
        output.losses["skim"].backward()
        optimizer.step()
        ratios.append((output.trace.ffn_tokens - 1).sum().item() / (2 * 7))  # of the tokens that may be skimmed
    assert ratios[0] == 1 and sum(ratios[-10:]) / 10 < 0.1


def test_the_skim_weight_rises_over_the_warm_up():
    reducer = tiny_reducer("transkimmer").train()
    reducer.set_options(skim_weight=0.8, skim_warmup=0.5)
    batch = make_batch()
    expected = {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.9: 1.0}
    for reducer.progress, share in expected.items():
        torch.manual_seed(0)
        output = reducer(**batch, **labels_for(reducer, batch))
        ratio = output.trace.keep_ratios().double().mean()
        assert output.losses["skim"].item() == pytest.approx(0.8 * share * ratio.item(), rel=1e-6)


def test_a_larger_skim_weight_computes_fewer_tokens():
    """The knob lambda: descent on undecided predictors; the task, which says nothing, does not pull."""
    batch, labels = make_batch((12, 9, 12, 7)), torch.tensor([0, 1, 1, 0])
    macs = []
    for weight in (0.0, 0.05, 0.2):
        reducer = tiny_reducer("transkimmer").train()
        reducer.set_options(skim_weight=weight)
        torch.nn.init.zeros_(reducer.model.classifier.weight)
        optimizer = torch.optim.SGD(reducer.predictors.parameters(), lr=0.03)
        for _ in range(20):
            optimizer.zero_grad()
            reducer(**batch, labels=labels).loss.backward()
            optimizer.step()
        with torch.no_grad():
            macs.append(int(reducer.eval().macs(reducer(**batch).trace).sum()))
    assert macs[0] > macs[1] > macs[2]


@pytest.mark.parametrize("task", LAMBDA)
def test_published_recipe(task):
    """Section 4.4: lambda per task (Table 2); settings of the public scripts; backbone and predictors together."""
    stub = SimpleNamespace(name=task, skim_weight=LAMBDA[task])
    reducer = tiny_reducer("transkimmer")
    assert reducer.task_options(stub) == {"skim_weight": LAMBDA[task]}
    (stage,) = reducer.stages(stub)
    (group,) = stage.groups
    assert stage.start == "pretrained" and stage.decay == "linear" and stage.select == "last"
    assert group.patterns == ("*",) and group.weight_decay == 0
    epochs, rate, batch_size, _, warmup, clip = SCRIPTS[task]
    assert (stage.epochs, group.learning_rate, stage.batch_size) == (epochs, rate, batch_size)
    assert (stage.warmup, stage.max_grad_norm) == (warmup, clip)


def test_published_adam_epsilon():
    """Section 4.4: 1e-8 in the classification script, the library default of 1e-6 in the others."""
    reducer = tiny_reducer("transkimmer")
    ours = {task: reducer.stages(SimpleNamespace(name=task, skim_weight=0.5))[0].adam_epsilon for task in SCRIPTS}
    assert ours == {task: script[3] for task, script in SCRIPTS.items()}


# Cost ----------------------------------------------------------------------------------------------------------------


def test_only_the_first_token_survives_a_skimming_bias():
    """[12] One predictor reads all tokens, then every layer and predictor reads one."""
    reducer, batch = biased(tiny_reducer("transkimmer"), 5.0, -5.0), make_batch((9, 4))
    with torch.no_grad():
        trace = reducer(**batch).trace
    assert (trace.ffn_tokens == 1).all()
    layer, predictor, head = 4 * 32 * 32 + 2 * 32 + 2 * 32 * 48, 32 * 32 + 2 * 32, 32 * 32 + 3 * 32
    expected = [3 * layer + (n + 2) * predictor + head for n in (9, 4)]
    assert reducer.macs(trace).tolist() == expected


@pytest.mark.parametrize(
    ("n", "layer", "dense", "predictors"),
    [
        (64, 459_276_288, 5.511, 0.454),
        (128, 931_135_488, 11.174, 0.908),
        (256, 1_912_602_624, 22.951, 1.817),
        (384, 2_944_401_408, 35.333, 2.725),
        (512, 4_026_531_840, 48.318, 3.633),
    ],
)
def test_cost_of_bert_base_when_everything_is_kept(n, layer, dense, predictors):
    """[13] and section 5: giga-MACs of the layers and of the predictors; the "speed-up" is then 0.92 to 0.93."""
    layers, overhead = base_model_cost([n] * 12, [n] * 12)
    assert layers == 12 * layer and overhead == 12 * n * 591_360
    assert (round(layers / 1e9, 3), round(overhead / 1e9, 3)) == (dense, predictors)
    assert 0.92 <= layers / (layers + overhead) < 0.935


@pytest.mark.parametrize(("n", "ceiling"), [(11, 10.3), (25, 21.5), (37, 29.8)], ids=["cola", "sst2", "wnli"])
def test_speed_up_has_a_ceiling(n, ceiling):
    """Section 5: all but [CLS] gone before layer 0. The printed ceilings do not charge for scoring [CLS], ours do."""
    dense, _ = base_model_cost([n] * 12, [n] * 12)
    layers, overhead = base_model_cost([n] + [1] * 11, [1] * 12)
    assert round(dense / (layers + overhead - 12 * 591_360), 1) == ceiling
    assert 0.92 < dense / (layers + overhead) / ceiling < 0.94


# Evaluation ----------------------------------------------------------------------------------------------------------


def test_texts_are_judged_alone_whatever_the_batch():
    """[14] Batch size 1 and 32: the same logits, tokens and cost."""
    reducer = tiny_reducer("transkimmer")
    lengths = tuple(1 + 7 * i % 20 for i in range(32))
    with torch.no_grad():
        together = reducer(**make_batch(lengths, padded_to=30))
        for row, length in enumerate(lengths):
            alone = reducer(**make_batch((length,)))
            torch.testing.assert_close(alone.logits[0], together.logits[row], **TIGHT)
            assert torch.equal(alone.trace.keep_masks[0], together.trace.keep_masks[row, :, :length])
            assert reducer.macs(alone.trace)[0] == reducer.macs(together.trace)[row]


@pytest.mark.parametrize("sampled", [False, True])
def test_evaluation_draws_only_if_asked(sampled):
    """[15] The public code samples at evaluation; ours takes the likelier choice."""
    reducer, batch = biased(tiny_reducer("transkimmer"), 0.0, 1.0), make_batch((20,) * 8)
    reducer.set_options(sample_in_eval=sampled)
    with torch.no_grad():
        first, second = reducer(**batch), reducer(**batch)
    assert torch.equal(first.logits, second.logits) is not sampled
    assert torch.equal(first.trace.keep_masks, second.trace.keep_masks) is not sampled
    assert first.trace.keep_masks[..., 1:].all() is not sampled


def test_attention_rows_of_survivors_sum_to_one():
    """[16] Renormalised; under equation 4 a row misses the mass that skimmed keys had."""
    query, key = torch.randn(2, 2, 6, 4, 8, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [4]])
    kept = real & torch.tensor([[True, False, True, True, False, True], [True, True, False, True, True, True]])

    def mass(normalisation, counted, allowed=kept):
        """Weight of every query on the `counted` keys; (batch, queries, heads)."""
        keys = MaskedKeys(allowed=allowed, visible=real, gate=allowed.double(), normalisation=normalisation)
        values = counted.double()[:, :, None, None].expand(2, 6, 4, 1)
        return masked_attention(query, key, values, keys)[0].squeeze(-1)

    torch.testing.assert_close(mass("renormalised", kept), torch.ones(2, 6, 4).double(), **TIGHT)
    assert (mass("renormalised", ~kept) == 0).all()
    lost = mass("renormalised", real & ~kept, allowed=real)
    torch.testing.assert_close(mass("unnormalised", kept), 1 - lost, **TIGHT)
    assert (lost > 0).all()


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be > 0, got 0.0; use a small one \(0.1\)"),
        ({"skim_weight": -0.1}, "skim_weight must be >= 0, got -0.1"),
        ({"skim_attention": "exact"}, "one of renormalised, unnormalised, epsilon, got 'exact'"),
        ({"skim_loss_over": "pads"}, "skim_loss_over must be 'real' or 'padded', got 'pads'"),
        ({"skimmed": "dropped"}, "skimmed must be 'forwarded' or 'discarded', got 'dropped'"),
        ({"lambda_": 0.5}, "transkimmer has no option 'lambda_'; its options: skim_weight, temperature"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("transkimmer", tiny_model("bert"), **options)


def test_a_later_option_leaves_the_name_of_older_runs_as_it_was():
    """Records from before `skimmed` name the run that is made today without it, composed ones too."""
    for name in ("transkimmer", "transkimmer+deebert"):
        options_class = methods.lookup(name).options_class
        options = options_class()
        assert "skimmed" in vars(options) and options.recorded().keys() == vars(options).keys() - {"skimmed"}
        assert options_class(skimmed="discarded").recorded()["skimmed"] == "discarded"
