"""Synthetic questions: spans are true, and nothing but the fact asked for decides."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.synthetic import FILLER_SENTENCES
from benchmarks.synthetic_questions import _KINDS, _NAMES, generate_questions
from benchmarks.tasks import TASKS

TASK = TASKS["synthetic_squad_v2"]


@pytest.fixture(scope="module")
def train():
    return generate_questions(3000, seed=1)


@pytest.fixture(scope="module")
def validation():
    return generate_questions(1000, seed=2)


def answerable(row):
    return bool(row["answers"]["text"])


def words_at(text, spans):
    return [text[start:end] for start, end in spans]


def sentences(row):
    """The sentences of a context; a full stop ends each, and only sentences."""
    return [f"{part}." for part in row["context"].rstrip(".").split(". ")]


def kind_of(sentence):
    """The kind of thing that a sentence says of a person; None for a filler."""
    for kind in _KINDS:
        pattern = re.escape(kind.statement).replace(r"\{name\}", r"(\w+)").replace(r"\{value\}", r"([\w ]+)")
        if match := re.fullmatch(pattern, sentence):
            return kind, match[1], match[2]
    return None


def asked_of(row):
    """The kind and the name that a question asks for."""
    marked = set(words_at(row["question"], row["relevant1"]))
    (kind,) = (kind for kind in _KINDS if kind.key in marked)
    (name,) = marked - {kind.key}
    return kind, name


def test_same_seed_same_rows():
    assert generate_questions(20, seed=5).to_list() == generate_questions(20, seed=5).to_list()
    assert generate_questions(20, seed=5)["context"][0] != generate_questions(20, seed=6)["context"][0]


def test_half_have_an_answer_in_random_order(train):
    kinds = [answerable(row) for row in train]
    assert sum(kinds) == 1500 and 70 < sum(kinds[:200]) < 130
    assert sum(answerable(row) for row in generate_questions(7, seed=0)) == 4


def test_rows_are_different_and_splits_share_none(train, validation):
    pairs = [set(zip(rows["question"], rows["context"], strict=True)) for rows in (train, validation)]
    assert [len(part) for part in pairs] == [3000, 1000]
    assert not pairs[0] & pairs[1]
    assert len({*train["id"], *validation["id"]}) == 4000


def test_excluded_questions_do_not_come_up():
    known = set(zip(*(generate_questions(5, seed=3)[name] for name in ("question", "context")), strict=True))
    again = generate_questions(5, seed=3, exclude=known)
    assert not known & set(zip(again["question"], again["context"], strict=True))


def test_answers_stand_where_they_are_said_to(train):
    for row in train.select(range(500)):
        for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(answer)] == answer


def test_spans_cover_the_deciding_words(train):
    for row in train.select(range(500)):
        kind, name = asked_of(row)
        assert name in _NAMES and row["question"] == kind.question.format(name=name)
        if answerable(row):
            assert words_at(row["context"], row["relevant2"]) == [name, *row["answers"]["text"]]
        else:
            assert row["relevant2"] == []


def test_the_context_tells_exactly_what_is_answered(train):
    """One sentence has both the name and the kind, and the answer, where there is one; else none has."""
    for row in train.select(range(500)):
        kind, name = asked_of(row)
        told = [fact[2] for sentence in sentences(row) if (fact := kind_of(sentence)) and fact[:2] == (kind, name)]
        assert told == row["answers"]["text"]


def test_name_and_kind_are_in_the_context_whether_or_not_there_is_an_answer(train):
    for row in train.select(range(500)):
        kind, name = asked_of(row)
        facts = list(filter(None, map(kind_of, sentences(row))))
        counts = Counter(fact[1] for fact in facts)
        assert len(set(counts.values())) == 1 and name in counts, "as much is said of each person"
        assert any(fact[0] == kind for fact in facts) and any(fact[0] != kind for fact in facts)


def test_passages_of_both_sorts_are_alike(train):
    """How many facts there are, of what kind, and how long the text is says nothing of the answer."""
    sorts = [[row for row in train if answerable(row) == sort] for sort in (True, False)]
    for measure in (
        lambda row: len(list(filter(None, map(kind_of, sentences(row))))),
        lambda row: sum(1 for s in sentences(row) if (fact := kind_of(s)) and fact[0] == asked_of(row)[0]),
        lambda row: len(row["context"]),
    ):
        one, other = (np.array([measure(row) for row in rows[:700]]) for rows in sorts)
        error = np.sqrt(one.var() / len(one) + other.var() / len(other))
        assert abs(one.mean() - other.mean()) < 3.5 * error


def test_fillers_say_nothing_of_people():
    words = set(re.findall(r"\w+", " ".join(FILLER_SENTENCES).lower()))
    assert not words & {word.lower() for word in (*_NAMES, *(value for kind in _KINDS for value in kind.values))}


def test_bags_of_words_do_not_tell_whether_there_is_an_answer(train, validation):
    def texts(rows):
        return [f"{row['question']} {row['context']}" for row in rows]

    vectorizer = CountVectorizer()
    model = LogisticRegression(max_iter=300)
    model.fit(vectorizer.fit_transform(texts(train)), [answerable(row) for row in train])
    accuracy = model.score(vectorizer.transform(texts(validation)), [answerable(row) for row in validation])
    assert 0.44 < accuracy < 0.56  # 0.06 is 3.8 standard errors of 1,000 coin flips


def test_some_contexts_need_windows_and_most_do_not(train):
    # Every word and every punctuation mark is one token, plus [CLS] and two [SEP].
    tokens = np.array([len(re.findall(r"\w+|[^\w\s]", f"{row['question']} {row['context']}")) + 3 for row in train])
    assert 0.02 < (tokens > TASK.sequence_length).mean() < 0.2 and tokens.max() < 2 * TASK.sequence_length


def test_columns_are_those_of_squad(train):
    assert set(train.column_names) == {"id", "title", "context", "question", "answers", "relevant1", "relevant2"}
    assert set(TASK.text_columns) | {TASK.label_column, *TASK.relevant_columns} <= set(train.column_names)
