"""Scores of answers by the rules of SQuAD's official script, and the threshold below which a model says "no answer".

Two answers are compared without case, punctuation, the articles a, an and the, and surplus white space. *Exact* is
whether what is left is the same; *F1* is over its words, and is 1 or 0 where one side has none. Of several right
answers, the nearest counts. A text without an answer is right if, and only if, none is given.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from benchmarks.squad import Answer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(answer: str) -> str:
    """What is compared of an answer; "" if nothing is left of it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_and_f1(answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Exact and F1, in [0, 1], of an answer ("" for none) to a question with these `right` answers (none: none)."""
    golds = [gold for gold in map(normalised, right) if gold] or [""]
    said = normalised(answer)
    return float(said in golds), max(_f1(said.split(), gold.split()) for gold in golds)


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def score_answers(answers: Sequence[Answer], tuned: float | None = None) -> dict[str, float]:
    """Scores of all texts in [0, 1]: `squad_*` at the threshold 0 and, where one is given, `tuned_*` at that one.

    Of each kind, exact and f1; has_answer_exact and has_answer_f1 of the texts with an answer; no_answer of the others,
    right or not. What no text stands for is left out. `tuned_threshold` is the threshold itself.
    """
    scores = _summary(answers, 0.0, "squad")
    if tuned is not None:
        scores |= _summary(answers, tuned, "tuned") | {"tuned_threshold": tuned}
    return scores


def _summary(answers: Sequence[Answer], threshold: float, prefix: str) -> dict[str, float]:
    pairs = np.array([exact_and_f1(answer.said(threshold), answer.passage.answers) for answer in answers])
    has = np.array([bool(answer.passage.answers) for answer in answers])
    means = dict(zip(("exact", "f1"), pairs.mean(axis=0), strict=True))
    if has.any():
        means |= zip(("has_answer_exact", "has_answer_f1"), pairs[has].mean(axis=0), strict=True)
    if not has.all():
        means["no_answer"] = pairs[~has, 0].mean()
    return {f"{prefix}_{name}": float(mean) for name, mean in means.items()}


def tuned_threshold(answers: Sequence[Answer]) -> float:
    """The threshold with the best F1 on these (held-out) texts."""
    f1 = [exact_and_f1(answer.text, answer.passage.answers)[1] for answer in answers]
    has = [bool(answer.passage.answers) for answer in answers]
    return best_threshold(f1, [answer.margin for answer in answers], has)[0]


def best_threshold(scores: ArrayLike, margins: ArrayLike, has_answer: ArrayLike) -> tuple[float, float]:
    """The threshold with the best mean score, and that score.

    Args:
        scores: (n,) exact or F1 of each text if it is answered. margins: (n,) see `benchmarks.squad.Answer`.
        has_answer: (n,) bool.
    Returns:
        The threshold (the largest margin that is still answered; 1 below all margins if it is best to answer nothing)
        and the mean score. Of equally good ones, the lowest.
    """
    values, has = np.asarray(margins, float), np.asarray(has_answer, bool)
    order = np.argsort(values, kind="stable")
    nothing = float((~has).sum())
    totals = nothing + np.cumsum((np.asarray(scores, float) - ~has)[order])  # what answering up to here brings
    last_of_equal = np.append(np.diff(values[order]) > 0, True)
    totals = np.where(last_of_equal, totals, -np.inf)
    best = int(totals.argmax())
    if totals[best] <= nothing:
        return float(values.min()) - 1, nothing / len(has)
    return float(values[order][best]), float(totals[best]) / len(has)
