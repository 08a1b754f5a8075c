"""Extractive questions on long contexts: windows that an encoder can read, and answers from its logits.

After the SQuAD script of Devlin et al. (BERT, 2019), which the papers here use: a context is cut into overlapping
windows, each with the question before it; a window that does not hold the whole answer is labelled with its [CLS]. An
answer is the span with the highest sum of start and end logits over all windows of its context; "no answer" scores the
sum of the [CLS] logits, in the window where that is lowest. A token that several windows hold can start an answer only
in the one that shows most of its surroundings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Feature, relevant_tokens

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from benchmarks.tasks import Task

logger = logging.getLogger(__name__)

MAX_QUESTION = 64  # tokens that are read of a question; never more than half a window
N_BEST = 20  # starts, and ends, that are considered in each window
MAX_ANSWER = 30  # tokens of an answer
CLS = 0  # position of [CLS], where "no answer" points


@dataclass(frozen=True)
class Passage:
    """A context and the answers to its question: different people's, of which any is right; none if it has none."""

    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """What a window of n tokens knows about its context.

    Attributes:
        answer: first and last token of the answer, for training; (CLS, CLS) if it is not wholly in the window.
        offsets: (n, 2) int32, [start, end) characters of each token in the context; (-1, -1) for all other tokens.
        starts: (n,) bool, tokens of the context that no other window shows better: where an answer may start.
    """

    passage: Passage
    answer: tuple[int, int]
    offsets: NDArray[np.int32]
    starts: NDArray[np.bool_]


def windows(
    rows: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    spans: Sequence[str] = (),
) -> list[Feature]:
    """Features of all windows, in the order of the rows.

    Args:
        task: its text columns are the question and the context; `task.stride` tokens lie between the starts of two
            windows, or fewer, so that a quarter of a window at least overlaps the next.
        max_length: tokens of a window, question and special tokens included.
        spans: columns with the [start, end) spans that decide, in the question and in the context; or none.
    """
    question_column, context_column = task.text_columns
    features: list[Feature] = []
    for index, row in enumerate(rows):
        question = _cut(row[question_column], tokenizer, max_length)
        passage = Passage(row[context_column], tuple(row[task.label_column]["text"]))
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        room = max_length - asked - tokenizer.num_special_tokens_to_add(pair=True)
        overlap = max(room - task.stride, room // 4)
        encoded = tokenizer(
            question,
            passage.context,
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_token_type_ids=True,  # as in `benchmarks.data.tokenize`
        )
        parts = encoded.encodings
        for part, window in zip(parts, _windows(parts, passage, row[task.label_column], room - overlap), strict=True):
            feature = Feature(index=index, input_ids=part.ids, truncated=len(parts) > 1, window=window)
            feature["token_type_ids"] = part.type_ids
            if spans:
                feature["relevant"] = relevant_tokens(part, [row[column] for column in spans])
            features.append(feature)
    logger.info("%s: %d windows of %d texts", task.name, len(features), len(rows))
    return features


def _cut(question: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """The question, or its beginning where it is too long."""
    limit = min(MAX_QUESTION, max_length // 2)
    ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(ends) <= limit else question[: ends[limit - 1][1]]


def _windows(parts: Sequence[Any], passage: Passage, answers: dict[str, Any], step: int) -> list[Window]:
    """One per encoded part; part k begins `step` * k tokens into the context."""
    contexts = [np.flatnonzero([text == 1 for text in part.sequence_ids]) for part in parts]  # positions in the part
    held = [(step * k, step * k + len(positions)) for k, positions in enumerate(contexts)]  # [first, last) of context
    offsets = [np.asarray(part.offsets, dtype=np.int32) for part in parts]
    context = np.full((max(last for _, last in held), 2), -1, dtype=np.int32)  # offsets of the context's own tokens
    for (first, last), positions, characters in zip(held, contexts, offsets, strict=True):
        context[first:last] = characters[positions]
    answer = _answer_tokens(context, answers)
    best = _best_windows(held)
    made = []
    for k, ((first, last), positions, characters) in enumerate(zip(held, contexts, offsets, strict=True)):
        inside, starts = np.full_like(characters, -1), np.zeros(len(characters), dtype=bool)
        inside[positions] = characters[positions]
        starts[positions] = best[first:last] == k
        label = (CLS, CLS)
        if answer is not None and first <= answer[0] and answer[1] < last:
            label = (int(positions[answer[0] - first]), int(positions[answer[1] - first]))
        made.append(Window(passage, label, inside, starts))
    return made


def _answer_tokens(context: NDArray[np.int32], answers: dict[str, Any]) -> tuple[int, int] | None:
    """First and last of the context's tokens that overlap the first answer; None without an answer."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    covered = np.flatnonzero((context[:, 0] < start + len(answers["text"][0])) & (context[:, 1] > start))
    return (int(covered[0]), int(covered[-1])) if len(covered) else None


def _best_windows(held: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """For each token of a context, the window that shows most on the poorer side of it; the longer one if equal.

    Args:
        held: [first, last) tokens of each window.
    """
    tokens = np.arange(max(last for _, last in held))
    shown = [
        np.where(
            (tokens >= first) & (tokens < last),
            np.minimum(tokens - first, last - 1 - tokens) + 0.01 * (last - first),
            -1,
        )
        for first, last in held
    ]
    return np.argmax(shown, axis=0)


@dataclass(frozen=True)
class Answer:
    """What a model says of one text.

    Attributes:
        passage: with what would have been right.
        text: the best span; "" if none is possible.
        margin: score of "no answer" minus that of the span (0 if there is none); where it is above the threshold, the
            model says that there is no answer.
    """

    passage: Passage
    text: str
    margin: float

    def said(self, threshold: float = 0.0) -> str:
        """The answer given; "" for none."""
        return "" if self.margin > threshold else self.text


def read_answers(
    features: Sequence[Feature], logits: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]
) -> list[Answer]:
    """One answer per text, in the order of the rows.

    Args:
        features: windows, those of one text in a row.
        logits: start and end logits (n,) of each; more than n are padding.
    """
    pairs = zip(features, logits, strict=True)
    return [
        _read([(f["window"], *z) for f, z in group]) for _, group in groupby(pairs, key=lambda pair: pair[0]["index"])
    ]


def _read(parts: Sequence[tuple[Window, NDArray[np.floating], NDArray[np.floating]]]) -> Answer:
    passage = parts[0][0].passage
    nothing = min(float(start[CLS]) + float(end[CLS]) for _, start, end in parts)
    spans = [(span, window) for window, start, end in parts if (span := best_span(window, start, end)) is not None]
    if not spans:
        return Answer(passage, "", 0.0)
    (score, first, last), window = max(spans, key=lambda found: found[0][0])
    text = passage.context[window.offsets[first, 0] : window.offsets[last, 1]]
    return Answer(passage, text, nothing - score)


def best_span(window: Window, start: NDArray[np.floating], end: NDArray[np.floating]) -> tuple[float, int, int] | None:
    """Score, first and last token of the best span among the 20 best starts and ends; None if none of them fit."""
    firsts, lasts = (
        places[np.argsort(-scores[places], kind="stable")[:N_BEST]]
        for places, scores in ((np.flatnonzero(window.starts), start), (np.flatnonzero(window.offsets[:, 1] > 0), end))
    )
    length = lasts[None, :] - firsts[:, None] + 1
    scores = start[firsts].astype(np.float64)[:, None] + end[lasts].astype(np.float64)[None, :]
    scores = np.where((length >= 1) & (length <= MAX_ANSWER), scores, -np.inf)
    if not scores.size or scores.max() == -np.inf:
        return None
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), int(firsts[first]), int(lasts[last])
