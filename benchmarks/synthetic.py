"""Sentence pairs made by rule, whose deciding words are known: did a method keep what matters?

A premise states one value of each of two attributes for each of three people, among sentences about nothing, in random
order. The hypothesis names one person and a value of one attribute: that person's own ("entailment") or another's
("not_entailment"). So person and value are in the premise whatever the label and as likely under either, and only the
one sentence that joins person and attribute decides.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

Span = tuple[int, int]  # [start, end) characters

LABEL_NAMES = ("entailment", "not_entailment")
_PEOPLE_PER_PREMISE = 3
_ATTRIBUTES_PER_PREMISE = 2
_FILLERS_PER_PREMISE = (2, 4)  # fewest and most


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words(
    "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nick Olivia Paul Rachel Sam Tina Victor "
    "Alice Brian Diana Eric Helen Ivan Julia Kevin Laura Martin Nina Oscar Peter Rosa Simon Teresa"
)


@dataclass(frozen=True)
class Attribute:
    """Something that a person has exactly one of: `<person> <phrase> <value><ending>.`"""

    phrases: tuple[str, ...]  # ways to say it; premise and hypothesis each draw one
    values: tuple[str, ...]
    ending: str = ""


_ATTRIBUTES = (
    Attribute(
        ("lives in", "has a house in"),
        _words("Paris London Rome Berlin Madrid Vienna Oslo Dublin Lisbon Prague Moscow Cairo Boston Chicago"),
    ),
    Attribute(
        ("works as a", "has a job as a"),
        _words("doctor teacher lawyer farmer baker painter pilot nurse singer writer driver judge cook soldier"),
    ),
    Attribute(
        ("owns a", "takes care of a"),
        _words("dog cat horse cow goat sheep rabbit parrot duck pig snake turtle mouse donkey"),
    ),
    Attribute(
        ("bought", "paid for"),
        _words("two three four five six seven eight nine ten eleven twelve twenty thirty forty"),
        ending=" tickets",
    ),
    Attribute(
        ("arrives on", "comes back on"),
        _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    ),
)

_FILLERS = (
    "It had been raining since the early morning.",
    "The meeting took much longer than planned.",
    "Nobody remembered who had left the window open.",
    "There was fresh coffee on the table.",
    "The old clock in the hall had stopped again.",
    "Most of the letters had already been answered.",
    "A long list of names was pinned to the wall.",
    "The radio played quietly in the next room.",
    "Some of the chairs were still missing.",
    "The report was read aloud and then put away.",
    "Outside, the street was almost empty.",
    "Everyone agreed that the summer had been short.",
)


@dataclass(frozen=True)
class Fact:
    """One person's value of one attribute."""

    person: str
    attribute: Attribute
    value: str

    def sentence(self, rng: random.Random) -> tuple[str, list[Span]]:
        """The fact in one of its phrasings, and the spans of person and value in it."""
        before = f"{self.person} {rng.choice(self.attribute.phrases)} "
        spans = [(0, len(self.person)), (len(before), len(before) + len(self.value))]
        return f"{before}{self.value}{self.attribute.ending}.", spans


@dataclass(frozen=True)
class Paragraph:
    """A text, the facts that it states, and where it states them."""

    text: str
    spans: dict[Fact, list[Span]]  # of person and value


def make_paragraph(rng: random.Random) -> Paragraph:
    """Facts about a few people, one value per person and attribute, among fillers, all in random order."""
    people = rng.sample(_PEOPLE, _PEOPLE_PER_PREMISE)
    facts = [
        Fact(person, attribute, value)
        for attribute in rng.sample(_ATTRIBUTES, _ATTRIBUTES_PER_PREMISE)
        for person, value in zip(people, rng.sample(attribute.values, len(people)), strict=True)
    ]
    fillers = rng.sample(_FILLERS, rng.randint(*_FILLERS_PER_PREMISE))
    parts: list[tuple[str, list[Span], Fact | None]] = [(*fact.sentence(rng), fact) for fact in facts]
    parts += [(filler, [], None) for filler in fillers]
    rng.shuffle(parts)
    spans: dict[Fact, list[Span]] = {}
    start = 0
    for sentence, local, fact in parts:
        if fact is not None:
            spans[fact] = [(start + first, start + stop) for first, stop in local]
        start += len(sentence) + 1  # the space between sentences
    return Paragraph(" ".join(sentence for sentence, _, _ in parts), spans)


def make_pair(label: int, rng: random.Random) -> dict[str, Any]:
    """One row with the given label (0 entailment, 1 not), without its idx."""
    paragraph = make_paragraph(rng)
    facts = list(paragraph.spans)
    asked = rng.choice(facts)
    if label == LABEL_NAMES.index("entailment"):
        claim = asked
    else:
        others = [fact for fact in facts if fact.attribute == asked.attribute and fact.person != asked.person]
        claim = Fact(asked.person, asked.attribute, rng.choice(others).value)
    hypothesis, spans = claim.sentence(rng)
    return {
        "sentence1": paragraph.text,
        "sentence2": hypothesis,
        "label": label,
        "relevant1": paragraph.spans[asked],
        "relevant2": spans,
    }


def generate_pairs(n: int, seed: int, *, exclude: Collection[tuple[str, str]] = ()) -> datasets.Dataset:
    """`n` different pairs, half of each label (one more entailment if `n` is odd), in random order.

    Args:
        exclude: (premise, hypothesis) pairs that must not come up, such as those of another split.
    Returns:
        Columns sentence1 (premise), sentence2 (hypothesis), label (class names attached), relevant1 and relevant2 (the
        [start, end) character spans of the deciding words in each sentence: person and value), idx.
    """
    import datasets

    rng = random.Random(seed)
    labels = [i % 2 for i in range(n)]
    rng.shuffle(labels)
    seen = set(exclude)
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        row = make_pair(labels[len(rows)], rng)
        if (row["sentence1"], row["sentence2"]) not in seen:
            seen.add((row["sentence1"], row["sentence2"]))
            rows.append({**row, "idx": len(rows)})
    spans = datasets.List(datasets.List(datasets.Value("int32")))
    text = datasets.Value("string")
    features = datasets.Features(
        sentence1=text,
        sentence2=text,
        label=datasets.ClassLabel(names=list(LABEL_NAMES)),
        relevant1=spans,
        relevant2=spans,
        idx=datasets.Value("int32"),
    )
    return datasets.Dataset.from_list(rows, features=features)
