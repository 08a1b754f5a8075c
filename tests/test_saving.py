"""What is saved is loaded whole or refused: weights, sizes and what the two configurations say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import methods
from tests.tiny import tiny_model, tiny_reducer

QUERY = "model.bert.encoder.layer.0.attention.self.query.weight"


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [QUERY, "predictors.1.2.bias"])
def test_a_checkpoint_that_lacks_a_weight_is_refused(name, tmp_path):
    """Of the stock model or of the method: neither may be what lay in memory."""
    tiny_reducer("transkimmer").save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop(name))
    for load in (methods.load, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(ValueError, match=f"does not hold these weights of the reducer.*: {re.escape(name)}$"):
            load(tmp_path)


def test_a_weight_of_another_shape_is_refused_even_where_it_could_be_ignored(tmp_path):
    tiny_reducer("transkimmer").save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.update({QUERY: torch.zeros(2, 3)}))
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=re.escape(f"shape: {QUERY} ((2, 3) instead of (32, 32))")):
            methods.load(tmp_path, **options)


def test_a_message_names_a_few_weights_and_counts_the_others(tmp_path):
    tiny_reducer("dense").save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: [weights.pop(name) for name in sorted(weights)[:12]])
    with pytest.raises(ValueError, match=r", .* and 2 more$"):
        methods.load(tmp_path)


def test_what_was_loaded_is_told_where_asked(tmp_path):
    reducer = tiny_reducer("dense")
    reducer.save_pretrained(tmp_path)
    loaded, told = methods.load(tmp_path, output_loading_info=True)
    assert type(loaded) is type(reducer) and not told["missing_keys"] and not told["mismatched_keys"]


def test_a_subfolder_gives_its_own_options(tmp_path):
    for folder, threshold in ((tmp_path, 0.9), (tmp_path / "sub", 0.1)):
        methods.create("deebert", tiny_model("bert"), threshold=threshold).save_pretrained(folder)
    assert methods.load(tmp_path, subfolder="sub").options.threshold == 0.1
    assert methods.load(tmp_path).options.threshold == 0.9


def test_the_configuration_is_looked_for_where_the_weights_are(monkeypatch, tmp_path):
    asked = {"revision": "v2", "token": "t", "cache_dir": str(tmp_path), "local_files_only": True}
    seen = {}

    def read(path, **keywords):
        seen.update(keywords)
        raise OSError

    monkeypatch.setattr(methods.ReducerConfig, "from_pretrained", read)
    with pytest.raises(ValueError, match="nor one on the hub"):
        methods.load("some/reducer", dtype=torch.float32, **asked)
    assert seen == asked


def test_a_model_of_more_tokens_is_loaded(tmp_path):
    """Resized through the reducer or the stock model."""
    for number, part in enumerate(("reducer", "model")):
        reducer = tiny_reducer("transkimmer")
        (reducer if part == "reducer" else reducer.model).resize_token_embeddings(64)
        reducer.save_pretrained(tmp_path / str(number))
        loaded = methods.load(tmp_path / str(number)).eval()
        assert loaded.get_input_embeddings().weight.shape == (64, 32) and loaded.model.config.vocab_size == 64
        ids = torch.tensor([[1, 63, 5]])
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids).logits, reducer(input_ids=ids).logits)


def test_what_from_pretrained_is_told_of_labels_holds(tmp_path):
    methods.create("dense", tiny_model("bert").float()).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, problem_type="regression").eval()
    assert loaded.backbone.head == "regression" and loaded.model.config.problem_type == "regression"
    batch, values = {"input_ids": torch.tensor([[1, 5, 6]])}, torch.tensor([[0.5, 2.0, -1.0]])
    with torch.no_grad():
        stock = loaded.model(**batch, labels=values).loss
        torch.testing.assert_close(loaded(**batch, labels=values).loss, stock)
    names = {0: "x", 1: "y", 2: "z"}
    named = AutoModelForSequenceClassification.from_pretrained(tmp_path, id2label=names)
    assert named.config.id2label == names == named.model.config.id2label
    with pytest.raises(ValueError, match=r"model.classifier.bias \(\(3,\) instead of \(5,\)\)"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_an_attention_implementation_may_be_named(kind, tmp_path):
    reducer = tiny_reducer("transkimmer")
    reducer.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=kind).eval()
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, reducer(input_ids=ids).logits)


def test_what_from_pretrained_does_not_take_is_said(tmp_path):
    methods.create("deebert", tiny_model("bert")).save_pretrained(tmp_path)
    for load in (methods.load, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(ValueError, match="threshold is an option of deebert: load the reducer, then call set_opt"):
            load(tmp_path, threshold=0.5)
        with pytest.raises(ValueError, match="hidden_dropout_prob is the stock model's: set it in its configuration"):
            load(tmp_path, hidden_dropout_prob=0.0)


def test_arrays_are_options_like_lists(tmp_path):
    lat = methods.create("lat", tiny_model("bert"), length_configuration=np.array([8, 4, 2]), max_length=12)
    assert lat.options.length_configuration == (8, 4, 2)
    reducer = methods.create("deebert", tiny_model("bert"), threshold=np.float32(0.5))
    reducer.set_options(threshold=torch.tensor(0.25))
    reducer.save_pretrained(tmp_path)
    assert methods.load(tmp_path).options.threshold == 0.25
