"""ToP in training: rank distillation, losses, recipe; [5] is the fifth invariant of the method notes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import methods
from benchmarks.train import Compute, train_stage
from methods import Stage
from methods.packing import masked_rank
from methods.ranking import arp2
from tests.test_top import TIGHT, decided
from tests.test_training import features
from tests.tiny import FAMILIES, HEADS, batch_for, labels_for, logits_of, make_batch, tiny_model

# Section 3: bins, ranked tokens, warm-up epochs, epochs, target sparsity.
PUBLISHED = {
    "cola": (20, 10, 50, 100, 0.43),
    "rte": (100, 20, 50, 80, 0.59),
    "qqp": (50, 20, 10, 40, 0.65),
    "mrpc": (50, 20, 150, 200, 0.67),
    "sst2": (25, 20, 10, 40, 0.40),
    "mnli": (50, 20, 10, 40, 0.50),
    "qnli": (50, 20, 10, 40, 0.58),
    "stsb": (30, 20, 50, 150, 0.70),
}


# Ranking loss --------------------------------------------------------------------------------------------------------


def ranked(count, width=None):
    return torch.arange(width or count).expand(1, -1) < count


@pytest.mark.parametrize(("top", "value"), [(20, 3.325), (10, 1.65)])
def test_ranking_loss_at_equal_scores(top, value):
    """[11] (TOPK^2 - 1) / (6 TOPK), whatever the teacher says."""
    target = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    loss = arp2(torch.full((3, 40), 0.3), target, torch.ones(3, 40, dtype=torch.bool), top)
    assert loss.item() == pytest.approx(value, rel=1e-5)


def test_ranking_loss_follows_the_order():
    """[11] A constant changes nothing; the teacher's order costs less than its reverse; section 2.8 by hand."""
    target = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).double()
    valid = torch.ones(1, 4, dtype=torch.bool)
    scores = torch.tensor([[0.5, 0.1, 0.7, 0.2]]).double()
    loss = arp2(scores, target, valid, 3)
    torch.testing.assert_close(arp2(scores + 5, target, valid, 3), loss, **TIGHT)
    assert arp2(target, target, valid, 4) < arp2(-target, target, valid, 4)
    pairs = {(1, 2): 1, (2, 3): 1, (1, 3): 2}  # the best three are the tokens 1, 2, 3
    terms = [apart * torch.log2(1 + torch.exp(scores[0, j] - scores[0, i])).item() for (i, j), apart in pairs.items()]
    assert loss.item() == pytest.approx(sum(terms) / 9, rel=1e-9)


def test_short_texts_rank_what_they_have():
    """Padding and batch mates change nothing; as released, pads fill the places up to TOPK with score 0."""
    scores, target = torch.rand(2, 1, 6, generator=torch.Generator().manual_seed(1)).double()
    alone = arp2(scores, target, ranked(6), 20)
    wide = (torch.cat((x, torch.zeros(1, 5).double()), dim=1) for x in (scores, target))
    padded = list(wide)
    torch.testing.assert_close(arp2(*padded, ranked(6, 11), 20), alone, **TIGHT)
    released = arp2(*padded, ranked(6, 11), 8, pads=~ranked(6, 11))
    place = masked_rank(target, ranked(6))[0]
    grade = torch.cat((6 - place, torch.zeros(2)))
    score = torch.cat((scores[0], torch.zeros(2).double()))
    terms = [
        (grade[i] - grade[j]) * torch.log2(1 + torch.exp(score[j] - score[i]))
        for i in range(8)
        for j in range(8)
        if grade[i] > grade[j]
    ]
    torch.testing.assert_close(released, sum(terms) / 64, **TIGHT)


def test_a_text_of_one_token_has_no_order():
    empty = torch.zeros(1, 4, dtype=torch.bool)
    scores = torch.rand(1, 4).requires_grad_()
    loss = arp2(scores, torch.rand(1, 4), empty, 20)
    loss.backward()
    assert loss.item() == 0 and (scores.grad == 0).all()


# Training ------------------------------------------------------------------------------------------------------------


def fresh(head="classification", family="bert", layers=3, **options):
    """ToP in training mode on a tiny model without dropout, a copy of which is the teacher."""
    sizes = {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
    none = ("dropout", "attention_dropout") if family == "distilbert" else ()
    none = none or ("hidden_dropout_prob", "attention_probs_dropout_prob")
    model = tiny_model(family, head, **sizes, **dict.fromkeys(none, 0.0))
    torch.manual_seed(4)
    return methods.create("top", model, **({"bins": 5, "first_location": 1} | options)).double().train()


def losses_of(reducer, batch=None):
    batch = batch or batch_for(reducer)
    return reducer(**batch, **labels_for(reducer, batch)).losses


def train(reducer, updates, *, rate=0.1, model_rate=1e-3, on_update=lambda: None):
    """That many updates of the pruning stage."""
    stage = reducer.stages(SimpleNamespace(name="sst2"), "short")[0]
    groups = tuple(
        replace(group, learning_rate=own)
        for group, own in zip(stage.groups, (rate, rate, rate, model_rate), strict=True)
    )
    stage = stage.but(epochs=0.01, min_updates=updates, groups=groups, batch_size=8)
    return train_stage(reducer, stage, features(16), 0, seed=1, compute=Compute(), on_update=lambda rows: on_update())


def soft_by_hand(model, ids, rows, gates, first, head):
    """Section 2.4 for one text without padding, with the stock model's own layers: its last hidden states."""
    hidden = model.bert.embeddings(ids)
    last, alive, received = hidden, torch.ones(ids.shape[1], dtype=torch.bool), None
    for index, layer in enumerate(model.bert.encoder.layer):
        if index >= first:
            ranked = [token for token in range(1, len(alive)) if alive[token]]
            order = sorted(ranked, key=lambda token, received=received: -received[token].item())
            scale = alive.double()
            for rank, token in enumerate(order):
                z = rows[index - first][rank * len(rows[0]) // len(order)]
                scale[token] = 1 - (1 - z) * float(gates[index - first] > 0)
            last = torch.where(alive.unsqueeze(1), hidden, last)
            hidden, alive = hidden * scale.unsqueeze(1), scale > 0
        own = layer.attention.self
        query, key = (f(hidden)[0].unflatten(1, (4, 8)).transpose(0, 1) for f in (own.query, own.key))
        received = (query @ key.transpose(1, 2) / 8**0.5).softmax(dim=-1).sum(dim=1).mean(dim=0)
        hidden = layer(hidden)
    return torch.where(alive.unsqueeze(1), hidden, last) if head == "span_qa" else hidden


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_training_scales_and_hides_nothing(mode, head, monkeypatch):
    """Section 2.4: by rank among survivors; what had 0 before stays at 0, yet is attended to; a gate is hard."""
    rows = torch.tensor([[0.9, 0.0, 0.6, 1.0, 0.0], [0.0] * 5, [1.0, 0.3, 0.7, 0.0, 0.0]])
    gates = torch.tensor([0.7, 0.0, 1.0])
    monkeypatch.setattr("methods.top.sample", lambda loga: (rows if loga.dim() == 2 else gates).to(loga))
    reducer, batch = fresh(head, layers=4), make_batch((12,))
    model = tiny_model("bert", head, num_hidden_layers=4)
    with torch.no_grad(), reducer.mode(mode):
        output = reducer(**batch)
        hidden = soft_by_hand(model, batch["input_ids"], rows, gates, 1, head)
        expected = model.qa_outputs(hidden) if head == "span_qa" else model.classifier(model.bert.pooler(hidden))
    torch.testing.assert_close(logits_of(output, batch["attention_mask"]), expected, **TIGHT)
    assert (output.trace.attention_tokens == 12).all()


def test_a_sample_gate_passes_its_gradient():
    """Section 2.4: hard forward, identity gradient; the constraint reaches every variable as well."""
    reducer = fresh()
    reducer.rank_loga.data.zero_()
    reducer.gate_loga.data.zero_()
    torch.manual_seed(0)
    losses = losses_of(reducer)
    (task,) = torch.autograd.grad(losses["distillation"], reducer.gate_loga, retain_graph=True)
    assert (task != 0).any()
    reducer.lambda_1.data.fill_(1.0)
    for gradient in torch.autograd.grad(losses_of(reducer)["constraint"], [reducer.gate_loga, reducer.rank_loga]):
        assert (gradient != 0).all()


@pytest.mark.parametrize("rate", [0.5, 50.0])
def test_variables_stay_in_their_range(rate):
    """[5] After every update, however large."""
    reducer, ranges = fresh(), []

    def look():
        for loga in (reducer.rank_loga, reducer.gate_loga):
            ranges.append(loga.detach().abs().max().item())

    train(reducer, 6, rate=rate, on_update=look)
    assert len(ranges) == 12 and max(ranges) <= 4.6052


def test_only_early_layers_learn_from_ranks():
    """[12] Neither the teacher nor layers above index 3 get a gradient; of layer 3, only what scores are made of."""
    reducer = fresh(layers=12, first_location=2)
    teacher = reducer.teacher
    reducer.model.bert.encoder.layer[1].attention.self.query.weight.data.mul_(2)  # not the teacher's any more
    reducer.progress = 0.0
    losses_of(reducer)["ranking"].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    moved = {n for n, p in reducer.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    layers = {int(name.split(".")[4]) for name in moved if "encoder.layer" in name}
    assert layers == {0, 1, 2, 3}
    assert all(".self.query." in name or ".self.key." in name for name in moved if "encoder.layer.3." in name)
    assert not any("classifier" in name or "pooler" in name for name in moved)


def test_multipliers_climb():
    """[13] lambda1 falls as long as the target is missed, lambda2 never does."""
    reducer = fresh(target_sparsity=0.95, constraint_warmup=0.0)
    seen = [(0.0, 0.0)]
    train(reducer, 25, on_update=lambda: seen.append((reducer.lambda_1.item(), reducer.lambda_2.item())))
    first, second = torch.tensor(seen).T
    assert len(first) == 26 and not reducer.selectable()
    assert (first.diff() < 0).all() and (second.diff() > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_frozen(family):
    """[14]"""
    reducer = fresh(family=family)
    before = {name: tensor.clone() for name, tensor in reducer.state_dict().items()}
    train(reducer, 2)
    same = {name for name, tensor in reducer.state_dict().items() if torch.equal(tensor, before[name])}
    embeddings = {name for name in before if ".embeddings." in name}
    assert embeddings and embeddings <= same
    assert not [name for name, _ in reducer.named_parameters() if name in same - embeddings and "key.bias" not in name]


@pytest.mark.parametrize("head", HEADS)
def test_terms_of_the_loss(head):
    """Section 2.9: 4 KL(teacher || student) at temperature 2, mean over start and end or tokens; values by MSE."""
    reducer = fresh(head)
    batch, output = batch_for(reducer), reducer.model.qa_outputs if head == "span_qa" else reducer.model.classifier
    if head != "regression":
        assert losses_of(reducer, batch)["distillation"].item() == pytest.approx(0.0, abs=1e-6)  # its own teacher
    before = logits_of(reducer.eval()(**batch), batch["attention_mask"]).detach()
    assert reducer.teacher is not None
    output.weight.data.mul_(1.5)
    after = logits_of(reducer(**batch), batch["attention_mask"]).detach()
    terms = losses_of(reducer.train(), batch)
    if head == "regression":
        expected = F.mse_loss(after[:, 0], labels_for(reducer, batch)["labels"])
        assert set(terms) == {"task", "constraint", "ranking"} and terms["task"].item() == pytest.approx(
            expected.item()
        )
        return
    divergences = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        own = [(before[row], after[row])]
        if head == "span_qa":
            own = [(before[row, :length, which], after[row, :length, which]) for which in (0, 1)]
        elif head == "token_classification":
            own = list(zip(before[row, :length], after[row, :length], strict=True))
        for teacher, student in own:
            p, q = (teacher / 2).softmax(dim=0), (student / 2).softmax(dim=0)
            divergences.append(4 * (p * (p / q).log()).sum())
    assert set(terms) == {"distillation", "constraint", "ranking"}
    assert terms["distillation"].item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)


def test_labels_of_several_classes_are_learned_from():
    """A softmax over labels that do not exclude each other has no meaning to distil."""
    reducer, batch = fresh(), make_batch()
    assert set(reducer(**batch, labels=torch.ones(5, 3)).losses) == {"task", "constraint", "ranking"}


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)])
def test_the_target_rises_while_ranking_fades(progress, share):
    """Sections 2.7 and 2.9: t = target * min(1, step / warm-up); alpha * max(0.01, 1 - step / warm-up)."""
    reducer = fresh(layers=6, first_location=2, target_sparsity=0.5, constraint_warmup=0.4, ranking_weight=0.3)
    reducer.lambda_1.data.fill_(-2.0)
    reducer.lambda_2.data.fill_(3.0)
    reducer.progress, batch = progress, make_batch()
    terms = losses_of(reducer, batch)
    excess = reducer.sparsity(reducer.kept_shares(), batch["attention_mask"].sum(dim=1)).mean() - 0.5 * share
    torch.testing.assert_close(terms["constraint"], -2 * excess + 3 * excess**2, **TIGHT)
    eager = tiny_model("bert", num_hidden_layers=6, attn_implementation="eager")
    with torch.no_grad():
        attentions = eager(**batch, output_attentions=True).attentions
    mask = batch["attention_mask"]
    votes = [(attentions[layer].mean(dim=1) * mask.unsqueeze(2)).sum(dim=1) / mask.sum(1, True) for layer in (1, 5)]
    ranked = mask.bool() & (torch.arange(12) > 0)
    expected = 0.3 * max(0.01, 1 - share) * arp2(votes[0], votes[1], ranked, 20)
    torch.testing.assert_close(terms["ranking"], expected, **TIGHT)


def test_only_a_pattern_that_reaches_the_target_is_selected():
    """Pitfall 8: checked at every selection, on the lengths of the training texts, within the tolerance."""
    reducer = decided(("10000", "11111"), target_sparsity=0.4)
    assert not reducer.selectable()  # nothing was trained on
    reducer.begin_stage(Stage(name="prune"), 1)
    losses_of(reducer.train())
    assert reducer.state_dict()["texts"].nonzero().flatten().tolist() == [1, 4, 7, 9, 12]  # part of a checkpoint
    lengths = make_batch()["attention_mask"].sum(dim=1)
    saved = reducer.sparsity(reducer.kept_shares(decided=True), lengths).mean().item()
    for target, selectable in ((saved - 0.001, True), (saved + 0.009, True), (saved + 0.011, False)):
        reducer.set_options(target_sparsity=target)
        assert reducer.selectable() == selectable
    reducer.set_options(target_sparsity=saved + 0.001, tolerance=0.0)
    assert not reducer.selectable()
    reducer.gate_loga.data[0] = -4.0  # a later pattern that misses it
    reducer.set_options(target_sparsity=saved)
    assert not reducer.selectable()


def test_a_saved_reducer_goes_on_training(tmp_path):
    """Pattern and multipliers are weights like others."""
    reducer = fresh()
    train(reducer, 3)
    reducer.save_pretrained(tmp_path)
    loaded = methods.load(tmp_path)
    for name in ("rank_loga", "gate_loga", "lambda_1", "lambda_2"):
        assert torch.equal(getattr(loaded, name), getattr(reducer, name))
    train(loaded.train(), 2)
    assert loaded.lambda_2 > reducer.lambda_2


def test_packed_mode_does_not_train():
    reducer = fresh()
    with reducer.mode("packed"), pytest.raises(ValueError, match="train in masked mode"):
        losses_of(reducer)


def test_a_higher_target_executes_fewer_macs():
    """The trade-off knob: learned patterns on a toy task."""
    costs = []
    for target in (0.1, 0.35, 0.6):
        reducer = fresh(target_sparsity=target, constraint_warmup=0.3).float()
        train(reducer, 80, rate=0.25)
        with torch.no_grad():
            trace = reducer(**make_batch((31, 31, 26, 21))).trace
        costs.append(int(reducer.macs(trace).sum()))
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3


# Recipe --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_recipe(task):
    """Section 3."""
    bins, ranked, warmup, epochs, target = PUBLISHED[task]
    stub = SimpleNamespace(name=task)
    assert methods.lookup("top").task_options(stub) == {
        "bins": bins,
        "ranked_tokens": ranked,
        "constraint_warmup": warmup / epochs,
        "target_sparsity": target,
    }
    teach, prune = methods.lookup("top").recipe_stages(stub)
    assert (teach.name, teach.start, teach.groups[0].learning_rate) == ("fine_tune", "pretrained", 2e-5)
    assert teach.epochs == (10 if task in ("mrpc", "rte", "stsb", "cola") else 3)
    assert (prune.start, prune.teacher, prune.select, prune.epochs) == ("previous", "previous", "best", epochs)
    assert (prune.batch_size, prune.warmup, prune.decay, prune.max_grad_norm) == (32, 0.0, "linear", 1.0)
    assert [group.learning_rate for group in prune.groups] == [0.02, 0.02, 0.02, 1e-5]
    assert [group.maximize for group in prune.groups] == [False, True, True, False]
    assert [group.clipped for group in prune.groups] == [False, False, False, True]
    assert [group.decay for group in prune.groups] == ["constant", "constant", "constant", None]


def test_outside_a_stage_multipliers_climb_under_any_descent():
    """One update is the one by gradient ascent on the constraint as it is written, bit by bit; a stage has it so."""
    ends = []
    for stage in (None, "prune"):
        reducer = fresh(target_sparsity=0.5, constraint_warmup=0.0).float()
        reducer.stage = stage
        reducer.lambda_1.data.fill_(-0.2)
        reducer.lambda_2.data.fill_(0.3)
        own, multipliers = [reducer.rank_loga, reducer.gate_loga], [reducer.lambda_1, reducer.lambda_2]
        optimizer = torch.optim.AdamW(
            [{"params": own}, {"params": multipliers, "maximize": stage is not None}],
            lr=0.02,
            weight_decay=0.0,
            fused=True,
        )
        loss = losses_of(reducer, make_batch())["constraint"]
        loss.backward()
        optimizer.step()
        ends.append((loss.detach(), *own, *multipliers))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert ends[0][3] < -0.2 and ends[0][4] > 0.3
