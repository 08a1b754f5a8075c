"""Questions on passages made by rule, in the form of SQuAD v2: where the answer stands is known, or that there is none.

A passage says things of some people ("Anna lives in Oslo. David plays the flute."), among sentences about nothing, in
random order. A question asks for one thing of one person. Of that kind of thing, the passage tells for some people
(the tellers) and not for the others, about whom it says as much of other kinds. Whether the person asked about is a
teller decides whether there is an answer, and nothing else does: passages, the words in them and how often each name
comes up are alike for both. So a reader has to find the sentence that has both the name and the kind. Passages of few
people are there to teach a model where to look; long ones are cut into windows.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.synthetic import FILLER_SENTENCES, Span, words

if TYPE_CHECKING:
    import datasets

_TELLERS, _OTHERS = (1, 2, 2, 3), (1, 2)  # people of a passage of either sort: drawn from these
_FACTS_PER_PERSON = (1, 1, 2)
_FEW_FILLERS, _MANY_FILLERS = (0, 2), (8, 12)  # fewest and most
_LONG_SHARE = 0.1  # of the passages have many fillers

_NAMES = words(  # each one token in the usual vocabularies
    "Anna David Laura Peter Maria Simon Julia Martin Clara Oscar Helen Victor Alice Frank Nina Paul Emma Lucas Sarah "
    "Thomas Rosa Henry Ellen Walter"
)


@dataclass(frozen=True)
class Kind:
    """One kind of thing that a passage says of people.

    Attributes:
        statement: with {name} and {value}. question: with {name}. key: the word of the question that names the kind.
        values: answers. qualities: words that may stand before a value and then belong to the answer.
    """

    statement: str
    question: str
    key: str
    values: tuple[str, ...]
    qualities: tuple[str, ...] = ()


_KINDS = (
    Kind(
        statement="{name} lives in {value}.",
        question="Where does {name} live?",
        key="live",
        values=words("Oslo Paris Rome Lima Cairo Delhi Boston Dublin Madrid Berlin Vienna Prague Tokyo Seoul Geneva"),
    ),
    Kind(
        statement="{name} works as a {value}.",
        question="What does {name} work as?",
        key="work",
        values=words("teacher doctor nurse baker lawyer farmer painter driver butcher carpenter tailor pilot clerk"),
    ),
    Kind(
        statement="{name} plays the {value}.",
        question="Which instrument does {name} play?",
        key="play",
        values=words("piano guitar drums violin flute trumpet harp cello organ clarinet"),
    ),
    Kind(
        statement="{name} keeps a {value}.",
        question="Which animal does {name} keep?",
        key="keep",
        values=words("dog cat horse goat sheep rabbit parrot duck pig turtle mouse donkey"),
        qualities=words("white brown black young lazy"),
    ),
    Kind(
        statement="{name} ordered {value}.",
        question="What did {name} order?",
        key="order",
        values=words("soup rice bread cheese salad chicken pasta fish beans potatoes"),
        qualities=words("cold hot fresh fried"),
    ),
)


@dataclass(frozen=True)
class Fact:
    """One thing said of a person."""

    name: str
    kind: Kind
    value: str

    def sentence(self) -> tuple[str, Span, Span]:
        """The fact as a sentence, and the spans of the name and of the value."""
        text = self.kind.statement.format(name=self.name, value=self.value)
        value = text.index(self.value, len(self.name))  # sentences begin with the name
        return text, (0, len(self.name)), (value, value + len(self.value))


@dataclass(frozen=True)
class Passage:
    """A text and where it states its facts.

    Attributes:
        kind: what a question will be about. tellers, others: people for whom the text says it, and for whom not.
        spans: of the name and the value of each fact.
    """

    text: str
    kind: Kind
    tellers: tuple[str, ...]
    others: tuple[str, ...]
    spans: dict[Fact, tuple[Span, Span]]


def make_passage(rng: random.Random) -> Passage:
    """As many facts of each person, and fillers, all in random order."""
    kind, *rest = rng.sample(_KINDS, len(_KINDS))
    tellers, others, each = rng.choice(_TELLERS), rng.choice(_OTHERS), rng.choice(_FACTS_PER_PERSON)
    people = rng.sample(_NAMES, tellers + others)
    facts = []
    for place, name in enumerate(people):
        kinds = rng.sample(rest, each)
        if place < tellers:
            kinds[0] = kind
        facts += [Fact(name, chosen, _value(chosen, rng)) for chosen in kinds]
    fewest, most = _MANY_FILLERS if rng.random() < _LONG_SHARE else _FEW_FILLERS
    parts: list[Fact | str] = [*facts, *rng.sample(FILLER_SENTENCES, rng.randint(fewest, most))]
    rng.shuffle(parts)
    spans: dict[Fact, tuple[Span, Span]] = {}
    text = ""
    for part in parts:
        start = len(text)
        if isinstance(part, str):
            text += f"{part} "
            continue
        sentence, told, answer = part.sentence()
        spans[part] = (_moved(told, start), _moved(answer, start))
        text += f"{sentence} "
    return Passage(text.strip(), kind, tuple(people[:tellers]), tuple(people[tellers:]), spans)


def _value(kind: Kind, rng: random.Random) -> str:
    value = rng.choice(kind.values)
    return f"{rng.choice(kind.qualities)} {value}" if kind.qualities and rng.random() < 0.5 else value


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def make_question(answerable: bool, rng: random.Random) -> dict[str, Any]:
    """One row, without its id."""
    passage = make_passage(rng)
    name = rng.choice(passage.tellers if answerable else passage.others)
    question = passage.kind.question.format(name=name)
    asked = [(start := question.index(part), start + len(part)) for part in (passage.kind.key, name)]
    row = {
        "title": "",
        "context": passage.text,
        "question": question,
        "answers": {"text": [], "answer_start": []},
        "relevant1": sorted(asked),
        "relevant2": [],
    }
    if answerable:
        fact = next(fact for fact in passage.spans if (fact.name, fact.kind) == (name, passage.kind))
        told, answer = passage.spans[fact]
        row["answers"] = {"text": [fact.value], "answer_start": [answer[0]]}
        row["relevant2"] = [told, answer]
    return row


def generate_questions(n: int, seed: int, *, exclude: Collection[tuple[str, str]] = ()) -> datasets.Dataset:
    """`n` different questions, half of them with an answer (one more if `n` is odd), in random order.

    Args:
        exclude: (question, context) pairs that must not come up, such as those of another split.
    Returns:
        Columns of SQuAD v2 (id, title, context, question, answers), and relevant1 and relevant2: the [start, end)
        character spans of the words that decide, in the question (the name and the kind) and in the context (the name
        and the answer; nothing where there is no answer).
    """
    import datasets

    rng = random.Random(seed)
    kinds = [i % 2 == 0 for i in range(n)]
    rng.shuffle(kinds)
    seen = set(exclude)
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        row = make_question(kinds[len(rows)], rng)
        if (row["question"], row["context"]) not in seen:
            seen.add((row["question"], row["context"]))
            rows.append({"id": f"{seed}-{len(rows)}", **row})
    spans = datasets.List(datasets.List(datasets.Value("int32")))
    text = datasets.Value("string")
    answers = {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int32"))}
    features = datasets.Features(
        id=text, title=text, context=text, question=text, answers=answers, relevant1=spans, relevant2=spans
    )
    return datasets.Dataset.from_list(rows, features=features)
