"""A tiny model with a tokenizer and a tiny data folder on disk, for commands run as a user runs them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers

from tests.tiny import tiny_config

GOOD, BAD, NEUTRAL = (
    ("good", "great", "fine"),
    ("bad", "poor", "awful"),
    ("the", "film", "was", "a", "plot", "story", "and", "it"),
)
WORDS = (*GOOD, *BAD, *NEUTRAL)


def write_model(folder: Path) -> Path:
    """A three-layer BERT with a word-level vocabulary; returns the folder."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = transformers.BertTokenizerFast(vocab=words, model_max_length=80)
    assert tokenizer.tokenize("The film was good") == ["the", "film", "was", "good"]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_config("bert", vocab_size=len(vocabulary), initializer_range=0.1, max_position_embeddings=80)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_sentences(
    folder: Path,
    *,
    rows: int = 96,
    seed: int = 0,
    task: str = "mood",
    split: str = "validation",
    column: str = "sentence",
) -> Path:
    """`folder`/`task`/{train,`split`}.csv: sentences whose one loaded word decides the label; returns `folder`."""
    for name, count, offset in (("train", rows, 0), (split, rows // 2, 1)):
        rng = random.Random(seed + offset)
        lines = [f"{column},label"]
        for i in range(count):
            label = i % 2
            words = rng.choices(NEUTRAL, k=rng.randint(2, 9))
            words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label else BAD))
            lines.append(f"{' '.join(words)},{label}")
        path = folder / task / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_questions(folder: Path, *, rows: int = 80, articles: int = 8, seed: int = 0) -> Path:
    """`folder`/squad_v2/validation.jsonl alone: the one loaded word of a context is the answer, or there is none."""
    rng = random.Random(seed)
    lines = []
    for i in range(rows):
        words = rng.choices(NEUTRAL, k=rng.randint(4, 60))
        answers: dict[str, list] = {"text": [], "answer_start": []}
        if i % 2:
            place, answer = rng.randrange(len(words)), rng.choice(GOOD)
            words.insert(place, answer)
            answers = {"text": [answer], "answer_start": [len(" ".join(words[:place])) + (place > 0)]}
        row = {"id": str(i), "title": f"article {i % articles}", "question": "was it a good plot"}
        lines.append(json.dumps(row | {"context": " ".join(words), "answers": answers}))
    path = folder / "squad_v2" / "validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
