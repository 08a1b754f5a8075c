"""Labels of words: which tokens stand for them, what entities are, and how they are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from benchmarks.data import collate
from benchmarks.tags import UNLABELLED, UNREAD, Words, _places, entities, has_entities, score_tags, tag_features
from tests.small_world import write_model


def test_a_word_is_labelled_at_its_first_token():
    words = ["Jo", "lives", "in", "Rio"]  # "Jo lives in Rio", split as a word-piece tokenizer does
    offsets = [(0, 0), (0, 1), (1, 2), (3, 8), (9, 11), (12, 15), (0, 0)]
    texts = [None, 0, 0, 0, 0, 0, None]
    assert list(_places(words, offsets, texts)) == [1, 3, 4, 5]
    begun_by_a_space = [(0, 0), (0, 2), (2, 8), (8, 9), (9, 11), (11, 15), (0, 0)]
    assert list(_places(words, begun_by_a_space, texts)) == [1, 2, 4, 5]
    assert list(_places(words, offsets[:4], texts[:4])) == [1, 3, UNREAD, UNREAD]


def test_words_give_labels_and_read_tokens():
    words = Words(tags=(2, 0, 1), places=(1, 3, UNREAD))
    assert words.labels(5) == [UNLABELLED, 2, UNLABELLED, 0, UNLABELLED]
    assert words.read(np.array([9, 4, 9, 5, 9])) == [4, 5, UNREAD]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O B-LOC", {("PER", 1, 3), ("LOC", 4, 5)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("S-PER S-PER B-LOC I-LOC E-LOC O", {("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 5)}),
        ("U-PER B-LOC L-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)}),
        ("O O", set()),
    ],
)
def test_entities_are_read_as_the_conll_script_does(tags, found):
    assert entities(tags.split()) == found


def test_scores_by_hand():
    names = ("O", "B-PER", "I-PER", "B-LOC")
    right = [[1, 2, 0, 3], [0, 0]]
    said = [[1, 2, 3, 0], [1, UNREAD]]
    assert has_entities(names)
    scores = score_tags(names, said, right)
    assert scores == {
        "accuracy": pytest.approx(2 / 6),
        "entity_precision": pytest.approx(1 / 3),
        "entity_recall": pytest.approx(1 / 2),
        "entity_f1": pytest.approx(2 / 5),
    }
    assert score_tags(names, [[0, 0]], [[0, 0]]) == {
        "accuracy": 1.0, "entity_precision": 0.0, "entity_recall": 0.0, "entity_f1": 0.0,
    }  # fmt: skip


def test_classes_of_words_have_an_accuracy_only():
    names = ("NOUN", "S-BAR", "VERB")
    assert not has_entities(names)
    assert score_tags(names, [[0, 1], [2]], [[0, 2], [2]]) == {"accuracy": pytest.approx(2 / 3)}


def test_features_carry_words_and_batches_their_labels(tmp_path):
    from benchmarks.tasks import Task

    tokenizer = transformers.AutoTokenizer.from_pretrained(write_model(tmp_path / "model"))
    task = Task(
        name="t", title="t", kind="token_classification", group="user", text_columns=("words",), label_column="tags",
        num_labels=2, label_names=("O", "B-X"), metric="entity_f1", sequence_length=8, skim_weight=0.5,
    )  # fmt: skip
    rows = {"words": [["the", "film", "was", "good"], ["it"]], "tags": [[0, 1, 0, 1], [1]]}
    features = tag_features(rows, task, tokenizer, max_length=5)  # type: ignore[arg-type]
    assert [feature["words"].places for feature in features] == [(1, 2, 3, UNREAD), (1,)]
    assert [feature["truncated"] for feature in features] == [True, False]
    batch = collate(features, 0)
    no = UNLABELLED
    assert batch["labels"].tolist() == [[no, 0, 1, 0, no], [no, 1, no, no, no]]
    assert batch["labels"].dtype == torch.long and batch["attention_mask"].sum().item() == 8
