"""Rows for the examples: made-up one-sentence reviews whose adjective decides the label."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import transformers

GOOD = ("charming", "brilliant", "funny", "moving", "superb", "delightful")
BAD = ("dull", "clumsy", "tedious", "awful", "lifeless", "shallow")
SUBJECTS = ("the film", "this story", "the plot", "her performance", "the last act", "his first novel")
FILLERS = ("on the whole", "if you ask me", "for two hours", "from start to end", "in the second half", "once again")


def quiet() -> None:
    """No word from transformers that a new head is new, and no bars."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def reviews(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` rows of (text, "good" or "bad"), half of each."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label, words = ("good", GOOD) if number % 2 else ("bad", BAD)
        parts = [rng.choice(FILLERS), rng.choice(SUBJECTS), "is", rng.choice(words), rng.choice(FILLERS)]
        rows.append((" ".join(parts), label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A file with the columns `text` and `label`; returns its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path
