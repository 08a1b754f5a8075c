"""Tokenised rows and batches: what is cut and marked, padding, order."""

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from benchmarks.data import DataSource, batch_indices, batches, collate, load_rows, pad_token_id, tokenize
from benchmarks.errors import UserError
from benchmarks.tasks import TASKS
from tests.shared_data import shared_data

SST2, STSB = TASKS["sst2"], TASKS["stsb"]


def make_tokenizer(**options):
    """Whole words as tokens; "[CLS] a [SEP]" or "[CLS] a [SEP] b [SEP]"."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    options = {"pad_token": "[PAD]", "model_max_length": 16, "model_input_names": names, **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)


def message(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", ["cola", "stsb", "qnli"])
def test_real_glue_rows_become_a_batch(name):
    task = TASKS[name]
    rows = load_rows(task, task.eval_splits[-1], DataSource("data_dir", shared_data()), max_samples=40)
    features = tokenize(rows, task, make_tokenizer(model_max_length=512), max_length=task.sequence_length)
    batch = collate(features, 0, padding="sequence", length=task.sequence_length)
    assert batch["input_ids"].shape == (40, task.sequence_length)
    assert batch["labels"].tolist() == pytest.approx(list(rows["label"]))
    assert batch["labels"].is_floating_point() == (name == "stsb")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokenize_single_text(caplog):
    rows = datasets.Dataset.from_list([{"sentence": "a b", "label": 1}, {"sentence": "a b c d e", "label": 0}])
    with caplog.at_level("INFO"):
        features = tokenize(rows, SST2, make_tokenizer(), max_length=5)
    assert [feature["input_ids"] for feature in features] == [[2, 4, 5, 3], [2, 4, 5, 6, 3]]
    assert [(f["index"], f["label"], f["truncated"]) for f in features] == [(0, 1, False), (1, 0, True)]
    assert "sst2: 1 of 2 texts cut to 5 tokens" in caplog.text


def test_tokenize_cuts_the_longer_text_of_a_pair_first():
    rows = datasets.Dataset.from_list([{"sentence1": "a b c d e f", "sentence2": "g h", "label": 0.5}])
    (feature,) = tokenize(rows, STSB, make_tokenizer(), max_length=8)
    assert feature["input_ids"] == [2, 4, 5, 6, 3, 10, 11, 3]
    assert feature["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert feature["label"] == 0.5 and isinstance(feature["label"], float)


def test_the_texts_of_a_pair_can_be_told_apart_whatever_the_model_reads():
    """DistilBERT takes no token types, so its tokenizer gives none by itself; a single text needs none."""
    tokenizer = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    pair = datasets.Dataset.from_list([{"sentence1": "a b", "sentence2": "c", "label": 0.5}])
    single = datasets.Dataset.from_list([{"sentence": "a b", "label": 1}])
    assert tokenize(pair, STSB, tokenizer, max_length=8)[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert "token_type_ids" not in tokenize(single, SST2, tokenizer, max_length=8)[0]


def test_relevant_marks_the_tokens_of_the_spans():
    row = {"sentence1": "a b c", "sentence2": "d e", "label": 0, "relevant1": [[2, 3]], "relevant2": [[0, 1], [2, 3]]}
    (feature,) = tokenize(datasets.Dataset.from_list([row]), TASKS["synthetic_pair"], make_tokenizer(), max_length=16)
    #                                [CLS]  a      b     c      [SEP]  d     e     [SEP]
    assert feature["relevant"] == [False, False, True, False, False, True, True, False]
    plain = datasets.Dataset.from_list([{key: row[key] for key in ("sentence1", "sentence2", "label")}])
    assert "relevant" not in tokenize(plain, TASKS["synthetic_pair"], make_tokenizer(), max_length=16)[0]


def test_a_truncation_stored_in_the_tokenizer_file_has_no_effect():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    rows = datasets.Dataset.from_list([{"sentence": "a b c", "label": 1}])
    assert tokenize(rows, SST2, tokenizer, max_length=16)[0]["input_ids"] == [2, 4, 5, 6, 3]


def test_lengths_that_do_not_fit_are_refused():
    rows = datasets.Dataset.from_list([{"sentence": "a", "label": 1}])
    tokenizer = make_tokenizer()
    assert "input length 17 is beyond the 16" in message(lambda: tokenize(rows, SST2, tokenizer, max_length=17))
    assert "beside 2 special tokens" in message(lambda: tokenize(rows, SST2, tokenizer, max_length=2))


def test_pad_token_id():
    assert pad_token_id(make_tokenizer()) == 0
    assert "has no pad token; set one" in message(lambda: pad_token_id(make_tokenizer(pad_token=None)))


# --- batches ----------------------------------------------------------------------------------------------------------


def make_features(lengths):
    return [
        {
            "index": i,
            "input_ids": list(range(1, n + 1)),
            "token_type_ids": [1] * n,
            "label": i % 2,
            "truncated": False,
            "relevant": [j % 2 == 0 for j in range(n)],
        }
        for i, n in enumerate(lengths)
    ]


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(LENGTHS, st.sampled_from(["batch", "sequence"]), st.integers(0, 5))
def test_collate_round_trips(lengths, padding, extra):
    features = make_features(lengths)
    width = max(lengths) + (extra if padding == "sequence" else 0)
    batch = collate(features, 99, padding=padding, length=width, with_relevant=True)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (len(lengths), width),
        "attention_mask": (len(lengths), width),
        "labels": (len(lengths),),
        "token_type_ids": (len(lengths), width),
        "relevant": (len(lengths), width),
    }
    for i, feature in enumerate(features):
        real = batch["attention_mask"][i]
        assert real.tolist() == [True] * lengths[i] + [False] * (width - lengths[i])
        for name in ("input_ids", "token_type_ids", "relevant"):
            assert batch[name][i][real].tolist() == feature[name]
        assert set(batch["input_ids"][i][~real].tolist()) <= {99}
        assert not batch["token_type_ids"][i][~real].any() and not batch["relevant"][i][~real].any()


def test_collate_types():
    batch = collate(make_features([3, 2]), 0)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.long,
        "attention_mask": torch.bool,
        "labels": torch.long,
        "token_type_ids": torch.long,
    }
    regression = [{**feature, "label": 0.25} for feature in make_features([2, 2])]
    assert collate(regression, 0, padding="none")["labels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("lengths", "options", "part"),
    [
        ([2, 3], {"padding": "none"}, "padding 'none' needs equal lengths, got 2 to 3"),
        ([2, 3], {"padding": "sequence"}, "longest text of 3, got None"),
        ([2, 3], {"padding": "sequence", "length": 2}, "longest text of 3, got 2"),
        ([2, 3], {"padding": "left"}, "unknown padding 'left'; choose none, batch or sequence"),
    ],
)
def test_collate_refuses(lengths, options, part):
    assert part in message(lambda: collate(make_features(lengths), 0, **options))


@given(LENGTHS, st.integers(1, 5), st.sampled_from([None, 0, 7]), st.booleans())
def test_every_example_is_in_one_batch(lengths, batch_size, seed, by_length):
    chunks = batch_indices(lengths, batch_size, shuffle_seed=seed, by_length=by_length)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    assert all(0 < len(chunk) <= batch_size for chunk in chunks)
    assert len(chunks) == -(-len(lengths) // batch_size)
    assert chunks == batch_indices(lengths, batch_size, shuffle_seed=seed, by_length=by_length)


def test_order_depends_on_seed_and_epoch():
    lengths = [1] * 50
    orders = [batch_indices(lengths, 8, shuffle_seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert batch_indices(lengths, 8)[0] == list(range(8))


def test_by_length_pads_less():
    lengths = [1, 9] * 40

    def pads(chunks):
        return sum(max(lengths[i] for i in chunk) - lengths[j] for chunk in chunks for j in chunk)

    assert pads(batch_indices(lengths, 8)) == 40 * 8
    assert pads(batch_indices(lengths, 8, by_length=True)) == 0
    shuffled = batch_indices(lengths, 8, by_length=True, shuffle_seed=0)
    assert pads(shuffled) == 0
    assert [lengths[chunk[0]] for chunk in shuffled] != sorted(lengths[chunk[0]] for chunk in shuffled)


def test_batches_give_features_with_their_row_numbers():
    features = make_features([3, 1, 2])
    assert [[f["index"] for f in chunk] for chunk in batches(features, 2, by_length=True)] == [[1, 2], [0]]
    assert "got 0" in message(lambda: list(batches(features, 0)))
