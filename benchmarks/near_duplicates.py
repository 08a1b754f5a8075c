"""Groups of sentences that must not be split between training and validation."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence

_NOT_WORDS = re.compile(r"https?\S+|@\w+")  # links and mentions
_WORD = re.compile(r"[^\W\d_]+")
_FEWEST_WORDS = 4  # shorter sentences are only grouped with equal ones: "a good film", "a bad film"


def duplicate_groups(texts: Sequence[str], documents: Sequence[Hashable | None]) -> list[int]:
    """Group texts that are near-duplicates or come from one document; groups join where they share a text.

    Near-duplicates have the same words (case, digits, punctuation, links and mentions aside), or, from four words on,
    differ in one word added, removed or replaced.

    Args:
        texts: n sentences.
        documents: n document names; None for a sentence that stands alone.
    Returns:
        n group numbers; a group's number is the position of its first text.
    """
    parents = list(range(len(texts)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    first_with: dict[Hashable, int] = {}
    for i, (text, document) in enumerate(zip(texts, documents, strict=True)):
        for key in _keys(text, document):
            one, other = root(i), root(first_with.setdefault(key, i))
            parents[max(one, other)] = min(one, other)
    return [root(i) for i in range(len(texts))]


def _keys(text: str, document: Hashable | None) -> Iterator[Hashable]:
    """What two sentences of one group have in common: a document, or the words with at most one of them left out."""
    if document is not None:
        yield ("document", document)
    words = _WORD.findall(_NOT_WORDS.sub(" ", text).lower())
    if words:
        yield " ".join(words)
    if len(words) >= _FEWEST_WORDS:
        for left_out in range(len(words)):
            yield " ".join(words[:left_out] + words[left_out + 1 :])
