"""Synthetic pairs: what the rule promises, and that nothing but the rule decides."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.synthetic import generate_pairs
from benchmarks.tasks import TASKS


@pytest.fixture(scope="module")
def train():
    return generate_pairs(3000, seed=1)


@pytest.fixture(scope="module")
def validation():
    return generate_pairs(1000, seed=2)


def words_at(text, spans):
    return [text[start:end] for start, end in spans]


def test_same_seed_same_rows():
    assert generate_pairs(20, seed=5).to_list() == generate_pairs(20, seed=5).to_list()
    assert generate_pairs(20, seed=5)["sentence1"][0] != generate_pairs(20, seed=6)["sentence1"][0]


def test_labels_are_balanced_and_named(train):
    assert Counter(train["label"]) == {0: 1500, 1: 1500}
    assert Counter(generate_pairs(7, seed=0)["label"]) == {0: 4, 1: 3}
    assert tuple(train.features["label"].names) == TASKS["synthetic_pair"].label_names
    assert 0.4 < np.mean(train["label"][:200]) < 0.6, "in random order"


def test_rows_are_different_and_splits_share_none(train, validation):
    pairs = [set(zip(rows["sentence1"], rows["sentence2"], strict=True)) for rows in (train, validation)]
    assert [len(part) for part in pairs] == [3000, 1000]
    assert not pairs[0] & pairs[1]


def test_excluded_pairs_do_not_come_up():
    first = generate_pairs(5, seed=3)
    known = set(zip(first["sentence1"], first["sentence2"], strict=True))
    again = generate_pairs(5, seed=3, exclude=known)
    assert not known & set(zip(again["sentence1"], again["sentence2"], strict=True))


def test_spans_cover_person_and_value_and_decide_the_label(train):
    for row in train.select(range(500)):
        person, value = words_at(row["sentence1"], row["relevant1"])
        claimed_person, claimed_value = words_at(row["sentence2"], row["relevant2"])
        assert person == claimed_person
        assert (value == claimed_value) == (row["label"] == 0)
        start, end = row["relevant1"][0][0], row["relevant1"][1][1]
        assert "." not in row["sentence1"][start:end], "in one sentence"


def test_the_claimed_value_is_in_the_premise_whatever_the_label(train):
    for row in train.select(range(500)):
        words = row["sentence1"].replace(".", "").split()
        person, value = words_at(row["sentence2"], row["relevant2"])
        assert words.count(value) == 1
        assert words.count(person) == 2  # one sentence for each of the two attributes


@pytest.mark.parametrize("pair", [False, True], ids=["hypothesis_alone", "both_sentences"])
def test_bags_of_words_are_at_chance(train, validation, pair):
    def texts(rows):
        if not pair:
            return list(rows["sentence2"])
        return [f"{premise} {claim}" for premise, claim in zip(rows["sentence1"], rows["sentence2"], strict=True)]

    vectorizer = CountVectorizer()
    model = LogisticRegression(max_iter=300).fit(vectorizer.fit_transform(texts(train)), train["label"])
    accuracy = model.score(vectorizer.transform(texts(validation)), validation["label"])
    assert 0.44 < accuracy < 0.56  # 0.06 is 3.8 standard errors of 1,000 coin flips


def test_texts_fit_the_input_length(train):
    words = [len(a.split()) + len(b.split()) for a, b in zip(train["sentence1"], train["sentence2"], strict=True)]
    full_stops = 11  # at most: six facts, four fillers, one hypothesis
    assert max(words) + full_stops + 3 <= TASKS["synthetic_pair"].sequence_length
