"""Tables 1 and 2 of the Transkimmer paper: what the methods are, and what the tasks are like.

Table 1 is read from the methods' `Traits`, with what the paper prints otherwise beside it. Table 2 sets the paper's
average lengths beside those of the data at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError
from benchmarks.formulas import encoder_macs, padding_factor
from benchmarks.reported import lookup
from benchmarks.tasks import GLUE, LONG, TASKS, Task

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

DASH = "\N{EN DASH}"
TRAITS = {
    "Optimization": "optimization",
    "Decision input": "decision_input",
    "Removed tokens": "dropped",
    "Layer-wise strategy": "strategy",
}
# Table 1 of the Transkimmer paper, in the order of TRAITS.
PRINTED = {
    "power_bert": ("soft-masking", "attention", "discarded", "searched"),
    "lat": ("soft-masking", "attention", "forwarded", "searched"),
    "ltp": ("soft-masking", "attention", "discarded", "learned"),
    "tr_bert": ("reinforcement learning", "embedding", "forwarded", "searched"),
    "transkimmer": ("reparameterization", "embedding", "forwarded", "learned"),
}
ONE_LENGTH = 128  # tokens; see the finding transkimmer-sequence
_CHUNK = 1_000  # rows tokenised at a time


def design_table() -> pd.DataFrame:
    """Table 1: one row per method of this suite; a last column says where the paper prints something else."""
    import pandas as pd

    import methods

    rows = []
    for name in methods.available():
        traits = methods.lookup(name).traits
        own = {title: getattr(traits, field) for title, field in TRAITS.items()}
        pairs = zip(own.items(), PRINTED[name], strict=True) if name in PRINTED else ()
        differs = "; ".join(f"{title.lower()}: {text}" for (title, value), text in pairs if value != text)
        rows.append({"Method": traits.title, **own, "The paper prints": differs or ("the same" if pairs else DASH)})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Lengths:
    """Tokens per text of the rows that a task is scored on, special tokens included, nothing cut."""

    tokens: tuple[int, ...]

    def mean(self, cut: int | None = None) -> float:
        """Average tokens per text, of texts cut to `cut` tokens if it is given."""
        return sum(n if cut is None else min(n, cut) for n in self.tokens) / len(self.tokens)

    def quantile(self, share: float) -> int:
        """The least length that at least this share of the texts do not exceed."""
        ordered = sorted(self.tokens)
        return ordered[max(-int(-share * len(ordered) // 1), 1) - 1]

    def longer_than(self, length: int) -> float:
        """Share of texts above `length` tokens."""
        return sum(n > length for n in self.tokens) / len(self.tokens)

    def unpadding(self, length: int) -> float:
        """Dense MACs with every text at `length` over dense MACs with each at its own, cut to `length`."""
        return len(self.tokens) * encoder_macs(length) / sum(encoder_macs(min(n, length)) for n in self.tokens)


def measure(rows: datasets.Dataset, task: Task, tokenizer: PreTrainedTokenizerBase) -> Lengths:
    """Count the tokens of every row."""
    tokens: list[int] = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        encoded = tokenizer(*(chunk[column] for column in task.text_columns), truncation=False, verbose=False)
        tokens += [len(ids) for ids in encoded["input_ids"]]
    return Lengths(tuple(tokens))


def measure_folder(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Lengths]:
    """Lengths of the rows that tasks of the paper are scored on (MNLI: matched).

    Args:
        folder: <task>/<split>.* or glue/<task>/<split>.*, see `benchmarks.data`.
        tasks: default: all that the folder has.
        report: told a line for each task.
    Raises:
        UserError: no such folder, no task of the paper in it, or a name that is none.
    """
    from benchmarks.data import DataSource, load_rows

    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    present = [name for name in (*GLUE, *LONG) if (folder / name).is_dir() or (folder / "glue" / name).is_dir()]
    if not present:
        raise UserError(f"--data-dir {folder} has no folder of a task of the paper: {', '.join((*GLUE, *LONG))}")
    if wrong := [name for name in tasks or () if name not in (*GLUE, *LONG)]:
        raise UserError(f"{wrong[0]!r} is no task of the paper; --tasks takes {', '.join((*GLUE, *LONG))}")
    found = {}
    for name in dict.fromkeys(tasks or present):
        task = TASKS[name]
        found[name] = measure(load_rows(task, task.eval_splits[0], DataSource("data_dir", folder)), task, tokenizer)
        report(f"{task.title}: {len(found[name].tokens):,} texts ({task.eval_splits[0]})")
    return found


def task_table(measured: dict[str, Lengths]) -> pd.DataFrame:
    """Table 2: one row per task of the paper, measured columns empty where `measured` lacks it."""
    import pandas as pd

    return pd.DataFrame([_task_row(TASKS[name], measured.get(name)) for name in (*GLUE, *LONG)])


def _task_row(task: Task, lengths: Lengths | None) -> dict[str, str | int | float | None]:
    length, average = (_printed(task.name, metric) for metric in ("input_length", "average_length"))
    return {
        "Dataset": task.title,
        "Skim weight": task.skim_weight,
        "Input length": length,
        "Printed average": average,
        "Measured average": round(lengths.mean(), 1) if lengths else None,
        f"Measured, cut to {ONE_LENGTH}": round(lengths.mean(ONE_LENGTH), 1) if lengths else None,
        "99 % within": lengths.quantile(0.99) if lengths else None,
        "Longer %": round(100 * lengths.longer_than(length), 1) if lengths else None,
        "Unpadding alone": round(padding_factor(length, min(average, length)), 2),
        "By the data": round(lengths.unpadding(length), 2) if lengths else None,
        "Texts": len(lengths.tokens) if lengths else None,
    }


def _printed(task: str, metric: str) -> int:
    cell = lookup("2", "", "", None, task, metric=metric)
    assert cell is not None and cell.value is not None
    return int(cell.value)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's values as texts, missing ones as a dash."""

    def text(value: object) -> str:
        if value is None or value != value:
            return DASH
        return f"{value:g}" if isinstance(value, float) else str(value)

    return frame.astype(object).map(text)


def remarks(measured: dict[str, Lengths], tokenizer: str) -> list[str]:
    """What lengths measured with `tokenizer` say of the printed ones, a sentence each; none without measured ones."""
    if not measured:
        return []
    rounded, cut, other, beyond = [], [], [], []
    for name, lengths in measured.items():
        task, printed = TASKS[name].title, _printed(name, "average_length")
        if printed in (round(lengths.mean()), floor(lengths.mean())):
            rounded.append(task)
        elif printed in (round(lengths.mean(ONE_LENGTH)), floor(lengths.mean(ONE_LENGTH))):
            cut.append(f"{task} ({lengths.mean(ONE_LENGTH):.1f}; {lengths.mean():.1f} whole)")
        else:
            other.append(f"{task} ({printed} printed, {lengths.mean():.1f} measured)")
        if lengths.quantile(0.99) > _printed(name, "input_length"):
            beyond.append(f"{task} ({lengths.quantile(0.99):,} tokens)")
    return [
        f"Measured on the split that a task is scored on (MNLI: matched), uncut, with the tokenizer of {tokenizer}.",
        f"Printed averages are the measured ones, rounded or cut to whole tokens, for: {', '.join(rounded) or 'none'}.",
        f"They are those of texts cut to {ONE_LENGTH} tokens for: {', '.join(cut) or 'none'}.",
        f"They differ for: {', '.join(other) or 'none'}.",
        f"The input length does not hold 99 % of the texts for: {', '.join(beyond) or 'none'}.",
    ]
