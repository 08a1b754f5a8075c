"""Labels of words (NER, parts of speech): words as tokens, tags from logits, and scores over entities or words.

A word is labelled, and read, at its first token, as BERT (Devlin et al., 2019, section 5.3) does. The words of a text
are joined by spaces, so that a model reads in training what `pipeline("token-classification")` gives it later.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from benchmarks.data import Feature

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from benchmarks.tasks import Task

logger = logging.getLogger(__name__)

KIND = "token_classification"
UNLABELLED = -100  # of tokens that stand for no word, as transformers has it
UNREAD = -1  # place, or tag, of a word that no token stands for
OUTSIDE = "O"
_PART = re.compile(r"([BIESLU])-(.+)")  # BIO, BIOES, BILOU
_BEGIN, _END = "BSU", "ESLU"


@dataclass(frozen=True)
class Words:
    """The words of a text of n tokens.

    Attributes:
        tags: class id of each word. places: position of its first token in [0, n), `UNREAD` where it was cut off.
    """

    tags: tuple[int, ...]
    places: tuple[int, ...]

    def labels(self, length: int) -> list[int]:
        """Class id of each of `length` tokens, `UNLABELLED` where none is asked for."""
        labels = [UNLABELLED] * length
        for place, tag in zip(self.places, self.tags, strict=True):
            if place != UNREAD:
                labels[place] = tag
        return labels

    def read(self, said: NDArray[Any]) -> list[int]:
        """Class id of each word from those of all tokens."""
        return [UNREAD if place == UNREAD else int(said[place]) for place in self.places]


def tag_features(
    rows: datasets.Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[Feature]:
    """One feature per row; words beyond `max_length` tokens are cut off, and count as not said."""
    features: list[Feature] = []
    for index, (words, tags) in enumerate(zip(rows[task.text_columns[0]], rows[task.label_column], strict=True)):
        encoded = tokenizer(" ".join(words), truncation=True, max_length=max_length)
        encoding = encoded.encodings[0]
        places = _places(words, encoding.offsets, encoding.sequence_ids)
        feature = Feature(
            index=index,
            input_ids=encoded["input_ids"],
            truncated=bool(encoding.overflowing),
            words=Words(tuple(map(int, tags)), tuple(places)),
        )
        if "token_type_ids" in encoded:
            feature["token_type_ids"] = encoded["token_type_ids"]
        features.append(feature)
    cut = sum(feature["truncated"] for feature in features)
    logger.info("%s: %d of %d texts cut to %d tokens", task.name, cut, len(features), max_length)
    return features


def _places(words: Sequence[str], offsets: Sequence[tuple[int, int]], texts: Sequence[int | None]) -> Iterator[int]:
    """Of each word, its first token; `offsets` are characters [start, end) in the words joined by spaces."""
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    places = [UNREAD] * len(words)
    for place, ((start, end), text) in enumerate(zip(offsets, texts, strict=True)):
        if text is None or end <= start:
            continue
        number = bisect_right(starts, end - 1) - 1  # the word of its last character: some tokens begin with a space
        if number < len(words) and end - 1 < starts[number] + len(words[number]) and places[number] == UNREAD:
            places[number] = place
    return iter(places)


# Scores ---------------------------------------------------------------------------------------------------------------


def has_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities by their parts (B-PER, I-PER, O), rather than being classes of words."""
    parts = [name for name in names if _PART.fullmatch(name)]
    return bool(parts) and all(name == OUTSIDE or name in parts for name in names)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first word and end of each entity, read as the CoNLL script does.

    B, S and U begin an entity; so does any other part that follows none of its type.
    """
    found: set[tuple[str, int, int]] = set()
    kind, first = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        match = _PART.fullmatch(tag)
        part, of = match.groups() if match else ("", "")
        if kind and (of != kind or part in _BEGIN):
            found.add((kind, first, place))
            kind = ""
        if of and not kind:
            kind, first = of, place
        if kind and part in _END:
            found.add((kind, first, place + 1))
            kind = ""
    return found


def score_tags(names: Sequence[str], said: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> dict[str, float]:
    """Accuracy over all words and, where tags mark entities, their precision, recall and F1 over all texts.

    Args:
        names: of the class ids. said, right: class ids of the words of each text; `UNREAD` is never right.
    """
    words = sum(map(len, right))
    hits = sum(a == b for x, y in zip(said, right, strict=True) for a, b in zip(x, y, strict=True))
    scores = {"accuracy": hits / words}
    if not has_entities(names):
        return scores
    found, wanted = ([entities(named(names, tags)) for tags in texts] for texts in (said, right))
    both = sum(len(a & b) for a, b in zip(found, wanted, strict=True))
    numbers = [sum(map(len, some)) for some in (found, wanted)]
    return scores | {
        "entity_precision": both / max(1, numbers[0]),
        "entity_recall": both / max(1, numbers[1]),
        "entity_f1": 2 * both / max(1, sum(numbers)),
    }


def named(names: Sequence[str], tags: Sequence[int]) -> list[str]:
    """The names of class ids; a word that was not read is outside of everything."""
    return [OUTSIDE if tag == UNREAD else names[tag] for tag in tags]
