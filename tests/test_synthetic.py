"""Synthetic pairs: what the rule promises, and that nothing but the rule decides."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.synthetic import _THINGS, FILLER_SENTENCES, generate_pairs
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


def test_spans_cover_the_deciding_words(train):
    for row in train.select(range(500)):
        article, thing = words_at(row["sentence1"], row["relevant1"])
        assert words_at(row["sentence2"], row["relevant2"]) == [thing]
        assert article == ("a" if row["label"] == 0 else "no")
        assert f" {article} {thing}" in row["sentence1"]
        assert f" a {thing}" in row["sentence2"]


def test_the_premise_holds_both_answers_whatever_the_label(train):
    for row in train.select(range(500)):
        words = re.findall(r"\w+", row["sentence1"])
        followed = Counter(article for article, thing in pairwise(words) if thing in _THINGS and article in ("a", "no"))
        assert followed["a"] == followed["no"] in (1, 2, 3)
        (thing,) = words_at(row["sentence2"], row["relevant2"])
        assert words.count(thing) == 1


def test_fillers_say_nothing_about_things():
    words = set(re.findall(r"\w+", " ".join(FILLER_SENTENCES).lower()))
    assert not words & {*_THINGS, "no"}


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
    # Upper bound: every word and every punctuation mark is one token, plus [CLS] and two [SEP].
    tokens = [len(re.findall(r"\w+|[^\w\s]", f"{row['sentence1']} {row['sentence2']}")) + 3 for row in train]
    assert max(tokens) <= TASKS["synthetic_pair"].sequence_length
