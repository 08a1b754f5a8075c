"""What a method did with each token of one text: the data behind Table 5, on the terminal and in HTML.

A `MethodView` is plain data; nothing that draws it needs a model. Layers are counted from 1, as in figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.errors import UserError
from methods import TokenReducer

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LONGEST_ANSWER = 30  # tokens
MOST_LAYERS = 1_000  # that a view from a file may have
# Light to dark, so that it also reads without colour; from the viridis map, first to leave lightest.
_ANCHORS = ((253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Piece:
    """One token: its text as it stands in the input, and for each layer run whether it was computed there."""

    text: str
    computed: tuple[bool, ...]

    @property
    def left(self) -> int | None:
        """The layer that dropped it: the first from which on it was not computed; None if it stayed to the end."""
        last = max((layer for layer, ran in enumerate(self.computed, 1) if ran), default=0)
        return last + 1 if last < len(self.computed) else None

    @property
    def leapt(self) -> tuple[int, ...]:
        """Layers that it was not computed in although a later one computed it again."""
        end = len(self.computed) + 1 if self.left is None else self.left
        return tuple(layer for layer, ran in enumerate(self.computed, 1) if not ran and layer < end)


@dataclass(frozen=True)
class Word:
    """The sub-words of one word, merged; `part` is the text it stands in, 0 or 1, None for a special token."""

    pieces: tuple[Piece, ...]
    part: int | None


@dataclass(frozen=True, kw_only=True)
class MethodView:
    """One method on one text.

    Attributes:
        title: the method as the papers print it. source: where its weights lie, for people.
        words: in input order. answer: what the model says of the text.
        shares: of the text's tokens, computed by each layer. layers: of the model.
        exit_layer: the layer after which the text left; None if it ran to the end.
        speedup: dense MACs over executed MACs, without padding. truncated: whether the text was cut.
    """

    title: str
    source: str
    words: tuple[Word, ...]
    answer: str
    shares: tuple[float, ...]
    layers: int
    exit_layer: int | None
    speedup: float
    truncated: bool

    @property
    def tokens(self) -> int:
        """Tokens of the text, special ones included."""
        return sum(len(word.pieces) for word in self.words)


def view_from(data: Mapping[str, Any]) -> MethodView:
    """A view from what `dataclasses.asdict` made of it.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    words = tuple(
        Word(
            tuple(Piece(str(piece["text"]), tuple(map(bool, piece["computed"]))) for piece in word["pieces"]),
            None if word["part"] is None else int(word["part"]),
        )
        for word in data["words"]
    )
    layers, exit_layer = int(data["layers"]), data["exit_layer"]
    view = MethodView(
        **{name: str(data[name]) for name in ("title", "source", "answer")},
        words=words,
        shares=tuple(map(float, data["shares"])),
        layers=layers,
        exit_layer=None if exit_layer is None else int(exit_layer),
        speedup=float(data["speedup"]),
        truncated=bool(data["truncated"]),
    )
    if not 1 <= layers <= MOST_LAYERS or any(len(piece.computed) > layers for word in words for piece in word.pieces):
        raise ValueError(f"a view of {layers} layers whose tokens ran through more")
    return view


def colour(left: int | None, layers: int) -> Colour:
    """Background of a token that layer `left` of `layers` dropped; the darkest for one that stayed."""
    place = 1.0 if left is None else (left - 1) / layers
    step, share = divmod(place * (len(_ANCHORS) - 1), 1)
    low, high = _ANCHORS[int(step)], _ANCHORS[min(int(step) + 1, len(_ANCHORS) - 1)]
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def ink(background: Colour) -> Colour:
    """Black or white, whichever stands out more from `background` (contrast by WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def look(
    reducer: TokenReducer,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    second: str | None = None,
    *,
    source: str = "",
    labels: Sequence[str] = (),
) -> MethodView:
    """Run `reducer`, packed, on one text, or on a pair.

    Args:
        text, second: a pair is read in this order, but for span heads `second` is the question asked of `text`, which
            is read first.
        source: where the reducer came from. labels: names of the classes; default: the model's own.
    Raises:
        UserError: no text, a span head without a question, or a tokenizer of another model.
    """
    texts = _texts(reducer, text, second)
    backbone = reducer.backbone
    if len(tokenizer) > backbone.config.vocab_size:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has {len(tokenizer):,} tokens, {source or 'the model'} only "
            f"{backbone.config.vocab_size:,}; name the model that it was trained from with --model"
        )
    longest = min(tokenizer.model_max_length, backbone.max_length)
    whole = tokenizer(*texts, truncation=False, verbose=False)
    encoding = tokenizer(*texts, truncation="longest_first", max_length=longest, return_tensors="pt")
    inputs = {name: encoding[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding}
    reducer.eval()
    with torch.inference_mode():
        output = reducer(**inputs)
    trace = output.trace
    ran = int(trace.exit_layers[0]) + 1
    dense = reducer.backbone.dense_macs(trace.input_lengths)
    return MethodView(
        title=reducer.traits.title,
        source=source,
        words=_words(encoding, texts, trace.keep_masks[0, :ran].T.tolist()),
        answer=_span(output, encoding, texts) if backbone.head == "span_qa" else _class(reducer, output, labels),
        shares=tuple(trace.keep_ratios()[0].tolist()),
        layers=backbone.num_layers,
        exit_layer=ran if bool(trace.exited[0]) else None,
        speedup=float(dense[0] / reducer.macs(trace)[0]),
        truncated=len(whole["input_ids"]) > encoding["input_ids"].shape[1],
    )


def _texts(reducer: TokenReducer, text: str, second: str | None) -> tuple[str, ...]:
    """The texts in the order in which the encoder reads them."""
    if not text.strip() or (second is not None and not second.strip()):
        raise UserError("the text is empty; give some words, in quotes")
    if reducer.backbone.head == "token_classification":
        raise UserError("a case study shows one answer for a text; this reducer labels each token")
    if reducer.backbone.head == "span_qa":
        if second is None:
            raise UserError('a question-answering model needs a question: ... "text" "question"')
        return second, text
    return (text,) if second is None else (text, second)


def _words(encoding: BatchEncoding, texts: Sequence[str], computed: Sequence[Sequence[bool]]) -> tuple[Word, ...]:
    """Tokens merged into words; `computed` is (tokens, layers run)."""
    inner = encoding[0]
    tokens = zip(inner.word_ids, inner.sequence_ids, inner.offsets, inner.tokens, computed, strict=True)

    def word_of(indexed: tuple[int, Any]) -> tuple[Any, ...]:
        place, (word, part, *_) = indexed
        return (part, word) if word is not None else (None, place)

    words = []
    for (part, _), members in groupby(enumerate(tokens), word_of):
        pieces = [
            Piece(token if part is None else texts[part][start:end].strip() or token, tuple(layers))
            for _, (_, _, (start, end), token, layers) in members
        ]
        words.append(Word(tuple(pieces), part))
    return tuple(words)


def _class(reducer: TokenReducer, output: Any, labels: Sequence[str]) -> str:
    """What the model says of the text: a class with its probability, or a value."""
    logits = output.logits[0].float()
    if reducer.backbone.head == "regression":
        return f"{float(logits[0]):.2f}"
    best = int(logits.argmax())
    names: dict[Any, str] = dict(reducer.config.id2label or {})
    name = labels[best] if labels else names.get(best, f"class {best}")
    return f"{name} ({100 * float(logits.softmax(dim=0)[best]):.0f} %)"


def _span(output: Any, encoding: BatchEncoding, texts: Sequence[str]) -> str:
    """The best span of the text, in its own words, or "no answer" where [CLS] scores higher."""
    inner, start, end = encoding[0], output.start_logits[0].float(), output.end_logits[0].float()
    places = [i for i, part in enumerate(inner.sequence_ids) if part == 1]
    spans = [(float(start[i] + end[j]), i, j) for i in places for j in places if i <= j < i + LONGEST_ANSWER]
    score, first, last = max(spans)
    if float(start[0] + end[0]) >= score:
        return "no answer"
    return texts[1][inner.offsets[first][0] : inner.offsets[last][1]]
