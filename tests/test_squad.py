"""Windows over long contexts, token positions of answers, and answers read from logits."""

from __future__ import annotations

import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from benchmarks.data import DataSource, collate, load_rows, tokenize
from benchmarks.errors import UserError
from benchmarks.squad import MAX_ANSWER, MAX_QUESTION, N_BEST, Passage, Window, best_span, read_answers
from benchmarks.squad_scores import score_answers
from benchmarks.tasks import TASKS
from tests.shared_data import shared_data

TASK = replace(TASKS["squad_v2"], stride=4)
WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture(scope="module")
def bert():
    """One token per word; `w7s` is the two tokens w7 and ##s."""
    return word_level("##s", ".", "?", *WORDS)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """Byte-level pieces, two separators between question and context, no token types."""
    folder = tmp_path_factory.mktemp("roberta")
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([" ".join(WORDS[:40])], vocab_size=320, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    return transformers.RobertaTokenizerFast(**files, model_max_length=512)


def word_level(*words):
    """A BERT tokenizer with these words, lower-cased, and no others."""
    lines = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(lines)}, model_max_length=512)


def qa_rows(*rows, **columns):
    """Rows of (question, context, answers), an answer being its words: its first place in the context is found."""
    made = []
    for question, context, answers in rows:
        starts = [re.search(rf"\b{re.escape(answer)}", context).start() for answer in answers]
        made.append(
            {"question": question, "context": context, "answers": {"text": answers, "answer_start": starts}} | columns
        )
    return datasets.Dataset.from_list(made)


def windows_of(tokenizer, *rows, max_length=16, task=TASK):
    return tokenize(qa_rows(*rows), task, tokenizer, max_length=max_length)


def context_of(feature):
    """The words of the context that a window shows, in order."""
    window = feature["window"]
    return [window.passage.context[start:end] for start, end in window.offsets if end > 0]


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_short_context_is_one_window(bert):
    (feature,) = windows_of(bert, ("w1 w2?", "w3 w4. w5", ["w4"]))
    tokens = bert.convert_ids_to_tokens(feature["input_ids"])
    assert tokens == ["[CLS]", "w1", "w2", "?", "[SEP]", "w3", "w4", ".", "w5", "[SEP]"]
    assert feature["token_type_ids"] == [0] * 5 + [1] * 5
    assert feature["window"].answer == (6, 6) and not feature["truncated"] and feature["index"] == 0
    assert context_of(feature) == ["w3", "w4", ".", "w5"]
    assert feature["window"].starts.tolist() == [False] * 5 + [True] * 4 + [False]


def test_windows_by_hand(bert):
    """16 tokens, 4 special or asked: 12 of the context in each window, a new one every 4."""
    context = " ".join(WORDS[:22])
    features = windows_of(bert, ("w1", context, ["w9 w10"]))
    assert [context_of(feature) for feature in features] == [WORDS[0:12], WORDS[4:16], WORDS[8:20], WORDS[12:22]]
    assert [feature["window"].answer for feature in features] == [(12, 13), (8, 9), (4, 5), (0, 0)]
    assert all(len(feature["input_ids"]) <= 16 and feature["truncated"] for feature in features)


def test_a_window_with_part_of_the_answer_points_to_cls(bert):
    features = windows_of(bert, ("w1", " ".join(WORDS[:22]), ["w11 w12"]))
    assert [feature["window"].answer for feature in features] == [(0, 0), (10, 11), (6, 7), (0, 0)]


def test_a_text_without_an_answer_points_to_cls_everywhere(bert):
    features = windows_of(bert, ("w1", " ".join(WORDS[:22]), []))
    assert {feature["window"].answer for feature in features} == {(0, 0)}


def test_answers_within_words_take_whole_tokens(bert):
    (feature,) = windows_of(bert, ("w1", "w3 w40s w5", ["w40s"]))
    assert feature["window"].answer == (4, 5)  # w40 ##s
    row = qa_rows(("w1", "w3 w40s w5", ["w40s"])).to_list()[0]
    row["answers"] = {"text": ["40s w"], "answer_start": [4]}
    (feature,) = tokenize(datasets.Dataset.from_list([row]), TASK, bert, max_length=16)
    assert feature["window"].answer == (4, 6)


def test_the_first_of_several_answers_is_learnt(bert):
    (feature,) = windows_of(bert, ("w1", "w3 w4 w5", ["w5", "w3"]))
    assert feature["window"].answer == (5, 5) and feature["window"].passage.answers == ("w5", "w3")


def test_a_token_may_start_an_answer_where_most_of_its_surroundings_are_seen(bert):
    """Token 11 is last in window 0 (nothing after it), has 4 after it in window 1 and 3 before it in window 2."""
    features = windows_of(bert, ("w1", " ".join(WORDS[:22]), []))
    starting = [
        [word for word, start in zip(context_of(f), f["window"].starts[3:-1], strict=True) if start] for f in features
    ]
    assert starting == [WORDS[0:8], WORDS[8:12], WORDS[12:16], WORDS[16:22]]


def test_rows_are_told_apart(bert):
    features = windows_of(bert, ("w1", " ".join(WORDS[:22]), []), ("w2", "w3", ["w3"]))
    assert [feature["index"] for feature in features] == [0, 0, 0, 0, 1]


def test_a_long_question_is_cut_and_leaves_half_of_the_window(bert):
    features = windows_of(bert, (" ".join(WORDS[:50]), " ".join(WORDS[60:80]), ["w70"]))
    assert all(bert.convert_ids_to_tokens(f["input_ids"])[1:9] == WORDS[:8] for f in features)
    assert all(len(f["input_ids"]) <= 16 for f in features)
    (feature,) = windows_of(bert, (" ".join(WORDS[:90]), "w9", ["w9"]), max_length=384)
    assert len(feature["input_ids"]) == MAX_QUESTION + 4


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 150), max_length=st.integers(8, 60), stride=st.integers(1, 80), place=st.floats(0, 1))
def test_windows_cover_the_context(bert, length, max_length, stride, place):
    words = WORDS[:length]
    answer = words[int(place * (length - 1))]
    rows = qa_rows(("w1", " ".join(words), [answer]))
    features = tokenize(rows, replace(TASK, stride=stride), bert, max_length=max_length)
    shown = [context_of(feature) for feature in features]
    room = max_length - 4
    firsts = [words.index(part[0]) for part in shown]
    assert firsts[0] == 0 and shown[-1][-1] == words[-1]
    assert all(part == words[first : first + room] for part, first in zip(shown, firsts, strict=True))
    steps = np.diff(firsts)
    assert (steps == min(stride, room - room // 4)).all()
    own = [
        words.index(word)
        for part, feature in zip(shown, features, strict=True)
        for word, start in zip(part, feature["window"].starts[3:-1], strict=True)
        if start
    ]
    assert sorted(own) == list(range(length)), "every token is in exactly one window's share"
    for part, feature in zip(shown, features, strict=True):
        assert feature["window"].answer == ((part.index(answer) + 3,) * 2 if answer in part else (0, 0))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_labelled_tokens_spell_the_answer(name, request):
    tokenizer = request.getfixturevalue(name)
    rows = qa_rows(("w1 w2?", " ".join(WORDS[:40]), ["w17 w18 w19"]))
    features = tokenize(rows, replace(TASK, stride=8), tokenizer, max_length=40)
    assert len(features) > 1 and any(features[0]["token_type_ids"]) == (name == "bert")
    spelt = []
    for feature in features:
        first, last = feature["window"].answer
        if first:
            offsets, context = feature["window"].offsets, feature["window"].passage.context
            spelt.append(context[offsets[first, 0] : offsets[last, 1]].strip())
    assert spelt and set(spelt) == {"w17 w18 w19"}


def test_relevant_spans_follow_the_windows(bert):
    rows = qa_rows(("w1 w2", " ".join(WORDS[:12]), ["w9"]), relevant1=[[0, 2]], relevant2=[[27, 29]])
    task = replace(TASK, relevant_columns=("relevant1", "relevant2"))
    features = tokenize(rows, task, bert, max_length=12)
    marked = [
        [token for token, on in zip(bert.convert_ids_to_tokens(f["input_ids"]), f["relevant"], strict=True) if on]
        for f in features
    ]
    assert marked[0] == ["w1"] and marked[-1] == ["w1", "w9"]


def test_batches_of_windows_have_positions_for_labels(bert):
    features = windows_of(bert, ("w1", " ".join(WORDS[:22]), ["w9 w10"]))
    batch = collate(features, 0)
    assert batch["start_positions"].tolist() == [12, 8, 4, 0] and batch["end_positions"].tolist() == [13, 9, 5, 0]
    assert "labels" not in batch


def test_a_length_that_leaves_no_room_is_refused(bert):
    with pytest.raises(UserError, match="no room for text"):
        windows_of(bert, ("w1", "w2", ["w2"]), max_length=3)


# --- answers ----------------------------------------------------------------------------------------------------------


def window(words, *, before=2, starts=None, answers=(), passage=None):
    """A window of [CLS], `before` - 1 other tokens and these words of a context."""
    context = " ".join(words)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.full((before + len(words), 2), -1, dtype=np.int32)
    offsets[before:] = np.stack((ends - [len(word) for word in words], ends), axis=1)
    allowed = np.zeros(len(offsets), dtype=bool)
    allowed[before:] = True if starts is None else starts
    return Window(passage or Passage(context, answers), (0, 0), offsets, allowed)


def logits(length, **values):
    """Zeros, with `at3=5.0` at position 3."""
    result = np.zeros(length, dtype=np.float32)
    for place, value in values.items():
        result[int(place[2:])] = value
    return result


def read(*parts):
    """The answer of one text from (window, start logits, end logits)."""
    features = [{"index": 0, "window": part[0]} for part in parts]
    (answer,) = read_answers(features, [part[1:] for part in parts])
    return answer


ABC = window(["a", "b", "c", "d"])


def test_the_best_span_by_hand():
    assert best_span(ABC, logits(6, at3=5.0), logits(6, at4=4.0)) == (9.0, 3, 4)
    answer = read((ABC, logits(6, at0=1.0, at3=5.0), logits(6, at0=2.0, at4=4.0)))
    assert (answer.text, answer.margin) == ("b c", 3.0 - 9.0) and answer.said() == "b c"
    assert answer.said(-6.0) == "b c" and answer.said(-6.5) == ""


def test_question_and_special_tokens_are_no_answer():
    assert read((ABC, logits(6, at1=9.0, at3=1.0), logits(6, at1=9.0, at3=1.0))).text == "b"


def test_an_answer_does_not_end_before_it_starts():
    """Position 5 then 2 would score 10; best is 5 to 5 or 2 to 2 with 5, the first found."""
    found = best_span(ABC, logits(6, at5=5.0), logits(6, at2=5.0))
    assert found[0] == 5.0 and found[1] <= found[2]


def test_an_answer_has_at_most_thirty_tokens():
    long = window([f"x{i}" for i in range(60)])
    start, end = logits(62, at2=5.0), logits(62)
    end[2 + MAX_ANSWER] = 5.0  # would be 31 tokens
    score, first, last = best_span(long, start, end)
    assert score == 5.0 and last - first + 1 <= MAX_ANSWER
    end[1 + MAX_ANSWER] = 4.0
    assert best_span(long, start, end) == (9.0, 2, 1 + MAX_ANSWER)


def test_only_the_best_starts_and_ends_are_paired():
    """All good starts stand after all good ends: no pair of the 20 best fits, so there is no answer."""
    far = window([f"x{i}" for i in range(60)])
    start, end = logits(62), logits(62)
    start[-N_BEST:], end[2 : 2 + N_BEST] = 5.0, 5.0
    assert best_span(far, start, end) is None
    answer = read((far, start, end))
    assert (answer.text, answer.margin, answer.said()) == ("", 0.0, "")


def test_windows_of_a_text_compete_and_the_lowest_null_score_counts():
    passage = Passage("a b c d", ())
    first, second = (window(["a", "b", "c", "d"], passage=passage) for _ in range(2))
    answer = read((first, logits(6, at0=9.0, at2=3.0), logits(6)), (second, logits(6, at0=1.0, at4=4.0), logits(6)))
    assert (answer.text, answer.margin) == ("c", 1.0 - 4.0)


def test_a_start_counts_only_where_the_window_shows_it_best():
    elsewhere = window(["a", "b", "c", "d"], starts=[True, True, False, False])
    assert read((elsewhere, logits(6, at4=9.0, at2=1.0), logits(6))).text.startswith("a")
    assert best_span(window(["a"], starts=[False]), logits(3), logits(3)) is None


def test_padding_behind_a_window_is_not_read():
    start, end = logits(9, at3=1.0, at8=9.0), logits(9, at3=1.0, at8=9.0)
    assert read((ABC, start, end)).text == "b"


def test_each_text_has_one_answer_in_order():
    one, other = window(["a", "b"]), window(["c", "d"])
    features = [{"index": 0, "window": one}, {"index": 1, "window": other}]
    pairs = [(logits(4, at2=1.0), logits(4, at2=1.0)), (logits(4, at3=1.0), logits(4, at3=1.0))]
    assert [answer.text for answer in read_answers(features, pairs)] == ["a", "d"]


def test_real_questions_come_out_right_if_the_model_is():
    """Logits that point at the labels give the first gold answer, but for answers that begin or end inside a token."""
    rows = load_rows(TASKS["squad_v2"], "validation", DataSource("data_dir", shared_data()), max_samples=150)
    texts = " ".join((*rows["question"], *rows["context"])).lower()
    tokenizer = word_level(*re.findall(r"\w+|[^\w\s]", texts))
    features = tokenize(rows, replace(TASKS["squad_v2"], stride=64), tokenizer, max_length=128)
    assert len(features) > len(rows)
    pairs = []
    for feature in features:
        first, last = feature["window"].answer
        size = len(feature["input_ids"])
        pairs.append((logits(size, **{f"at{first}": 5.0}), logits(size, **{f"at{last}": 5.0})))
    scores = score_answers(read_answers(features, pairs))
    assert scores["squad_no_answer"] == 1.0
    assert scores["squad_has_answer_exact"] > 0.95 and scores["squad_has_answer_f1"] > 0.98
