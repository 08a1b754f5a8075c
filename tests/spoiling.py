"""Ways to spoil a folder that commands read, for cases of bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Spoil = Callable[[Path], object]
Case = tuple[str, list[str], Spoil | None, list[str]]  # command, arguments, what is spoilt first, parts of the message
LOCAL = ["--profile", "local", "--model", "model", "--data-dir", "data", "--tasks", "mood", "--results", "r"]
LOCAL += ["--device", "cpu", "--quiet", "--jobs", "1", "--methods", "dense"]
RAY = [*LOCAL[:-4], "--executor", "ray", "--methods", "dense"]


def write(place: str, content: str | bytes) -> Spoil:
    """Write a file, below the folder of the case."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: ((root / place).parent.mkdir(parents=True, exist_ok=True), (root / place).write_bytes(data))


def remove(place: str) -> Spoil:
    return lambda root: shutil.rmtree(root / place) if (root / place).is_dir() else (root / place).unlink()


def edit_json(place: str, **changes: object) -> Spoil:
    def change(root: Path) -> None:
        path = root / place
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def rows(content: str | bytes, split: str = "train", suffix: str = "csv") -> Spoil:
    """Other rows of one split."""

    def change(root: Path) -> None:
        (root / "data" / "mood" / f"{split}.csv").unlink()
        write(f"data/mood/{split}.{suffix}", content)(root)

    return change


def parquet(root: Path) -> None:
    rows(b"PAR1 and nothing else", suffix="parquet")(root)
