"""Sentence pairs made by rule, whose deciding words are known: did a method keep what matters?

A premise says of some things that a house has them and of as many that it has not ("The house has no piano."), among
sentences about nothing, in random order. The hypothesis says of one of them that the house has it; the label is
whether the premise says so. So the thing is in the premise whatever the label, "a" and "no" are there equally often,
and only the word before the thing decides. Premises state two or four facts: the short ones teach a model
where to look, without them a small encoder does not learn the long ones in a few thousand examples.
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
_FACTS_OF_EACH_KIND = (1, 1, 1, 2)  # things that the house has, and as many that it has not: drawn from these
_FILLERS = (1, 2)  # fewest and most


def words(text: str) -> tuple[str, ...]:
    """The words of a text, for lists of them."""
    return tuple(text.split())


_THINGS = words(  # each one token in the usual vocabularies, none starts with a vowel
    "piano guitar drum violin flute trumpet lamp chair table bed mirror desk clock carpet hammer knife ladder rope "
    "bucket shovel bottle cup plate bowl spoon basket car bicycle boat truck tractor pool garden fountain bench tree "
    "dog cat horse cow goat sheep rabbit parrot duck pig snake turtle mouse donkey"
)
_FORMS = (  # before and after "a piano" or "no piano"
    ("The house has", ""),
    ("There is", " here"),
    ("It comes with", ""),
    ("You will find", " inside"),
)
_OPENINGS = ("Luckily,", "As expected,", "This year,", "So far,", "Of course,", "As before,")
FILLER_SENTENCES = (
    "It had been raining since the early morning.",
    "The meeting took much longer than planned.",
    "Somebody must have left the door open.",
    "Fresh coffee was on its way.",
    "The train to the city was late again.",
    "Most of the letters had already been answered.",
    "Several names were still missing from the list.",
    "The radio played quietly in another room.",
    "Some of the guests had gone home early.",
    "The report was read aloud and then put away.",
    "Outside, the street was almost empty.",
    "Everyone agreed that the summer had been short.",
)


@dataclass(frozen=True)
class Fact:
    """Whether the house has a thing."""

    thing: str
    present: bool

    def sentence(self, rng: random.Random, *, opening: bool = False) -> tuple[str, list[Span]]:
        """The fact in one of its forms, perhaps after an opening; and the spans of "a" or "no" and of the thing."""
        before, after = rng.choice(_FORMS)
        if opening and rng.random() < 0.5:
            before = f"{rng.choice(_OPENINGS)} {before[0].lower()}{before[1:]}"
        article = "a" if self.present else "no"
        start = len(before) + 1
        thing = start + len(article) + 1
        return (
            f"{before} {article} {self.thing}{after}.",
            [(start, start + len(article)), (thing, thing + len(self.thing))],
        )


@dataclass(frozen=True)
class Paragraph:
    """A text, the facts that it states, and where it states them."""

    text: str
    spans: dict[Fact, list[Span]]  # of "a" or "no", and of the thing


def make_paragraph(rng: random.Random) -> Paragraph:
    """Facts, half of them of presence, and fillers, all in random order."""
    of_each = rng.choice(_FACTS_OF_EACH_KIND)
    facts = [Fact(thing, i < of_each) for i, thing in enumerate(rng.sample(_THINGS, 2 * of_each))]
    parts: list[tuple[str, list[Span], Fact | None]] = [(*fact.sentence(rng, opening=True), fact) for fact in facts]
    parts += [(filler, [], None) for filler in rng.sample(FILLER_SENTENCES, rng.randint(*_FILLERS))]
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
    asked = rng.choice([fact for fact in paragraph.spans if fact.present == (label == 0)])
    hypothesis, spans = Fact(asked.thing, present=True).sentence(rng)
    return {
        "sentence1": paragraph.text,
        "sentence2": hypothesis,
        "label": label,
        "relevant1": paragraph.spans[asked],
        "relevant2": spans[1:],  # the thing: "a" is in every hypothesis
    }


def generate_pairs(n: int, seed: int, *, exclude: Collection[tuple[str, str]] = ()) -> datasets.Dataset:
    """`n` different pairs, half of each label (one more entailment if `n` is odd), in random order.

    Args:
        exclude: (premise, hypothesis) pairs that must not come up, such as those of another split.
    Returns:
        Columns sentence1 (premise), sentence2 (hypothesis), label (class names attached), relevant1 and relevant2 (the
        [start, end) character spans of the deciding words in each sentence), idx.
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
