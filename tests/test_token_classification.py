"""Labels of single tokens: what reaches the head, what is learnt from, and how transformers uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import methods
from benchmarks.errors import UserError
from benchmarks.token_view import look
from methods.distillation import softened_divergence
from tests.cases import CASES
from tests.small_world import write_model
from tests.tiny import FAMILIES, batch_for, labels_for, logits_of, tiny_model, tiny_reducer
from tests.told import Told, at, run, table

HEAD = "token_classification"
ABLE = [name for name in CASES if HEAD not in methods.lookup(name).traits.unsupported]


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_token_that_was_dropped_reaches_the_head_at_its_place_with_its_last_state(build, mode):
    """Each layer drops other tokens; a token's logits are the head's on the output of the last layer that ran it."""
    reducer = build(Told, head=HEAD)
    batch = batch_for(reducer)
    keeps = [table(*batch["input_ids"].shape, share=0.7, seed=seed) for seed in range(3)]
    entered: list[torch.Tensor] = []

    def drop(state):
        if state.mode == "masked":
            entered.append(state.hidden.clone())
        return methods.Decision(keep=at(state, keeps[state.layer]))

    reducer.plan = {("before_layer", layer): drop for layer in range(3)}
    last = run(reducer, batch, "masked")
    real = batch["attention_mask"].bool()
    alive = real.clone()
    for layer, keep in enumerate(keeps):
        keep[:, 0] = True
        stopped = alive & ~keep
        expected = reducer.model.classifier(entered[layer])
        torch.testing.assert_close(run(reducer, batch, mode).logits[stopped], expected[stopped])
        assert stopped.any()
        alive &= keep
    assert last.logits.shape == (5, 12, 3)
    assert (last.logits[~real] == torch.finfo(torch.float64).min).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_stock_model_s(family):
    """The mean over all labelled tokens of the batch, whatever the lengths."""
    reducer = tiny_reducer("dense", family, HEAD)
    batch = batch_for(reducer)
    labels = labels_for(reducer, batch)
    with torch.no_grad():
        loss, stock = reducer(**batch, **labels).loss, tiny_model(family, HEAD)(**batch, **labels).loss
    torch.testing.assert_close(loss.double(), stock, rtol=1e-6, atol=1e-6)


def test_a_batch_without_labelled_tokens_has_no_loss():
    reducer = tiny_reducer("dense", head=HEAD)
    batch = batch_for(reducer)
    assert reducer(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss.item() == 0.0


def test_labels_of_another_shape_are_refused():
    reducer = tiny_reducer("dense", head=HEAD)
    batch = batch_for(reducer)
    for labels in (torch.zeros(5, dtype=torch.long), torch.zeros(5, 11, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"labels are \(5.*\) but input_ids is \(5, 12\)"):
            reducer(**batch, labels=labels)


@pytest.mark.parametrize("name", ABLE)
def test_padding_changes_no_training_loss(name):
    """Methods that draw draw alike for texts of one length, and pads are neither taught nor learnt from."""
    losses = []
    for padded_to in (None, 20):
        reducer = tiny_reducer(name, head=HEAD)
        for module in reducer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if name in ("transkimmer", "lot", "tr_bert", "top", "lat"):
            reducer.eval()  # no draws of decisions, whose number depends on the width; their lessons are tested below
        batch = batch_for(reducer, (9, 7), padded_to=padded_to)
        reducer.set_teacher(tiny_model("bert", HEAD, seed=5))
        losses.append(reducer(**batch, **labels_for(reducer, batch)).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_pads_teach_nothing():
    """Distillation, LAT's lesson and TR-BERT's soft loss are means over real tokens."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3) for _ in range(2))
    real = torch.arange(5) < torch.tensor([[5], [3]])
    lowest = torch.finfo(torch.float32).min
    padded = [torch.nn.functional.pad(x.masked_fill(~real.unsqueeze(2), lowest), (0, 0, 0, 4), value=lowest)
              for x in (student, teacher)]  # fmt: skip
    wide = torch.nn.functional.pad(real, (0, 4))
    by_hand = (teacher.softmax(2) * (teacher.log_softmax(2) - student.log_softmax(2))).sum(2)[real].mean()
    torch.testing.assert_close(softened_divergence(*padded, 1.0, HEAD, wide), by_hand)
    lat = tiny_reducer("lat", head=HEAD)
    inputs = lat.check_inputs(torch.ones(2, 9, dtype=torch.long), wide)
    torch.testing.assert_close(lat.lesson(*padded, inputs), by_hand)
    crossed = -(teacher.softmax(2) * student.log_softmax(2)).sum(2)
    rows = (crossed * real).sum(1) / real.sum(1)
    torch.testing.assert_close(tiny_reducer("tr_bert", head=HEAD).soft_loss(*padded, real=wide), rows)


def test_saliency_is_taken_of_the_gold_labels_of_all_labelled_tokens():
    reducer = tiny_reducer("lot", head=HEAD)
    logits = torch.arange(12.0).view(1, 4, 3)
    assert reducer.gold(logits, torch.tensor([[-100, 2, 0, -100]])).tolist() == [5.0 + 6.0]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(ABLE)))
def test_methods_that_cannot_say_why(name):
    with pytest.raises(ValueError, match=f"{name} does not support token_classification: .*(discarded|one prediction)"):
        methods.create(name, tiny_model("bert", HEAD), **CASES[name].options)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_pipeline_names_entities(tmp_path, batch_size):
    folder = write_model(tmp_path / "model")
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification.from_pretrained(folder, num_labels=3)
    torch.nn.init.normal_(model.classifier.weight)
    reducer = methods.create("transkimmer", model)
    CASES["transkimmer"].undecided(reducer)
    reducer.save_pretrained(tmp_path / "tagger")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tagger")
    tag = transformers.pipeline("token-classification", model=str(tmp_path / "tagger"), ignore_labels=[])
    texts = ["the film was good", "it was a great story and the plot was awful"]
    found = tag(texts, batch_size=batch_size)
    assert tag.model.method_name == "transkimmer"
    for text, tokens in zip(texts, found, strict=True):
        encoding = tag.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = reducer.eval()(**encoding).logits[0]
        assert [token["word"] for token in tokens] == text.split()
        expected = logits[1:-1].argmax(dim=1).tolist()
        assert [token["entity"] for token in tokens] == [f"LABEL_{label}" for label in expected]


def test_trainer_learns_labels_of_tokens(tmp_path):
    """A tiny model learns to tell odd tokens from even ones, skimming the while."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=2
    )
    reducer = methods.create("transkimmer", transformers.BertForTokenClassification(config), skim_weight=0.1)
    rng = np.random.default_rng(0)
    data = []
    for _ in range(64):
        ids = rng.integers(5, 20, size=8)
        data.append({"input_ids": ids.tolist(), "attention_mask": [1] * 8, "labels": [-100, *(ids[1:] % 2).tolist()]})
    args = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, num_train_epochs=10,
        per_device_train_batch_size=8, learning_rate=5e-3,
    )  # fmt: skip

    def compute_metrics(prediction):
        labelled = prediction.label_ids >= 0
        return {"right": float((prediction.predictions.argmax(axis=2) == prediction.label_ids)[labelled].mean())}

    training = transformers.Trainer(reducer, args, train_dataset=data, compute_metrics=compute_metrics)
    training.train()
    assert training.evaluate(data)["eval_right"] > 0.95


def test_a_case_study_of_a_tagger_is_refused():
    with pytest.raises(UserError, match="this reducer labels each token"):
        look(tiny_reducer("dense", head=HEAD), None, "some text")  # type: ignore[arg-type]


def test_tokens_are_charged_by_the_head():
    reducer = tiny_reducer("dense", head=HEAD)
    batch = batch_for(reducer, (7,))
    with torch.no_grad():
        output = reducer(**batch)
    assert int(reducer.backbone.head_macs(torch.tensor([7]))) == 7 * 32 * 3
    assert logits_of(output, batch["attention_mask"]).shape == (1, 7, 3)
