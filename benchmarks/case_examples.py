"""Table 5's two examples, for reducers that earlier commands trained, and a pair that the paper does not have.

The texts are this project's own, on the paper's subjects: a film, judged, and a question on the early Normans. With a
data folder the rows of SST-2 and SQuAD v2 are taken in their place; which rows these are was written down without the
paper at hand. Results are plain JSON, from which the report draws Table 5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError
from benchmarks.files import replacing, writing
from benchmarks.token_view import MethodView, view_from

SCHEMA = 1
SHOWN = 3  # methods beside each other, unless some are named
# One of each kind first: a predictor, attention received, a policy.
PREFERRED = ("transkimmer", "ltp", "tr_bert", "power_bert", "lat", "top", "lot", "deebert", "pabee", "deformer")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One text, or a text and its question.

    Attributes:
        name: short. title, about: for people; `about` says what the paper's own example shows.
        texts: in the order of the command line. tasks: whose reducers are shown: those of the first that has any.
        row: SHA-256, cut to 16 digits, of the paper's row of the first task, its texts joined by a line break.
    """

    name: str
    title: str
    about: str
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    row: str = ""


EXAMPLES = (
    Example(
        name="sentence",
        title="A sentence, judged",
        about="In the paper's example (SST-2), articles and apostrophes leave first and only [CLS] reaches the end.",
        texts=(
            "The plot doesn't make a lot of sense and the jokes aren't new, but it's the warmest and funniest film of "
            "the year.",
        ),
        tasks=("sst2", "vader_sentiment"),
        row="d3101a640670fae1",
    ),
    Example(
        name="passage",
        title="A question on a passage",
        about="In the paper's example (SQuAD), the tokens of the answer stay to the end, the telling words of the "
        "question stay long, and the two pieces of “Francia” leave at the layers 4 and 6.",
        texts=(
            "Rollo led a band of Vikings who had plundered the towns along the Seine. In 911 the king of West Francia "
            "gave him land around Rouen, and in return he promised to keep other raiders away. The region was later "
            "called Normandy.",
            "Who led the Vikings along the Seine?",
        ),
        tasks=("squad_v2", "synthetic_squad_v2"),
        row="c33cd818a114efc7",
    ),
    Example(
        name="pair",
        title="Two sentences that say the same",
        about="The paper has no such example.",
        texts=(
            "The company said on Monday that it would close two of its plants by the end of the year.",
            "Two plants will be shut before the year is over, the company announced on Monday.",
        ),
        tasks=("mrpc",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An example and what each method did with it; `records` are the hashes of the runs that trained the methods."""

    name: str
    title: str
    about: str
    task: str
    texts: tuple[str, ...]
    views: tuple[MethodView, ...]
    records: tuple[str, ...]


def chosen(available: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The methods that are shown of those available: the wanted ones, else the first three by preference."""
    if wanted:
        return [name for name in wanted if name in available]
    ranked = sorted(available, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name))
    return ranked[:SHOWN]


def paper_row(example: Example, folder: Path) -> tuple[str, ...]:
    """The paper's row of an example, in the order of the command line; the example's own texts if it has none.

    Raises:
        UserError: the folder lacks the task or the row.
    """
    from benchmarks.data import DataSource, load_rows
    from benchmarks.tasks import get_task

    if not example.row:
        return example.texts
    task = get_task(example.tasks[0], folder)
    order = ("context", "question") if task.kind == "span_qa" else task.text_columns
    for split in dict.fromkeys((*task.eval_splits, task.train_split)):
        rows = load_rows(task, split, DataSource("data_dir", folder))
        columns = zip(*(rows[column] for column in order), strict=True)
        found = next((texts for texts in columns if row_hash(texts) == example.row), None)
        if found is not None:
            return tuple(text.strip() for text in found)
    raise UserError(f"--data-dir {folder}: {task.title} there lacks the paper's row; leave --data-dir out")


def where_from(example: Example, folder: Path | None) -> str:
    """A sentence on the texts that are shown."""
    if folder is None or not example.row:
        return "The text here is this project's own."
    return "The text here is a row of the data set, taken for the paper's without the paper at hand."


def row_hash(texts: Sequence[str]) -> str:
    """What names a row without its text."""
    return hashlib.sha256("\n".join(text.strip() for text in texts).encode()).hexdigest()[:16]


def write(path: Path, shown: Sequence[Shown], *, command: str, git: Mapping[str, Any]) -> None:
    """Write the examples as JSON, at once."""
    content = {"schema": SCHEMA, "command": command, "git": dict(git), "examples": [asdict(one) for one in shown]}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[str, list[Shown]]:
    """The command and the examples of a file that `write` wrote.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, and this version reads {SCHEMA}")
        return str(content["command"]), [_shown(one) for one in content["examples"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not what `python -m benchmarks.case_study --examples` writes ({type(error).__name__}: "
            f"{error}); run that again, or remove the file"
        ) from error


def _shown(one: Mapping[str, Any]) -> Shown:
    texts: dict[str, str] = {name: str(one[name]) for name in ("name", "title", "about", "task")}
    views = tuple(view_from(view) for view in one["views"])
    records = tuple(map(str, one["records"]))
    if len(records) != len(views):
        raise ValueError(f"{len(views)} views of {len(records)} records")
    return Shown(**texts, texts=tuple(map(str, one["texts"])), views=views, records=records)
