"""The papers' own numbers: `results/reported/<paper>.csv`, one row per cell, to stand beside what is measured here.

Columns: paper, table, backbone, method, padding, task, metric, value, speedup, convention, flag, note. `value` is a
score in percent unless the metric's name has a unit or the convention is "setting"; `speedup` is dense over method, 1
= no gain; empty means that the paper has none. `CONVENTIONS` and `FLAGS` say what the words in those two columns
mean. In table 3 of the Transkimmer paper only the CoLA and STS-B metric names are legible in the transcribed copy;
the others are taken as accuracy, MRPC as F1. The operating points a, b and c of the DeeBERT paper's main table are
the tables main_a to main_c. The table of PABEE's public README names no metric; MRPC is taken as F1, QQP as accuracy,
STS-B as Pearson.
"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

REPORTED = PROJECT_ROOT / "results" / "reported"
COLUMNS = (
    "paper", "table", "backbone", "method", "padding", "task", "metric",
    "value", "speedup", "convention", "flag", "note",
)  # fmt: skip

CONVENTIONS = {
    "flops": "score on the paper's evaluation split (GLUE, SQuAD: development); ratio of multiply-adds (torchprofile)",
    "flops_no_pads": "as flops, but the counter leaves padding out whatever the padding label says",
    "time_k80_test": "GLUE test-set score; ratio of wall-clock times on one NVIDIA K80, batch 128, fixed length",
    "time_p100_test": "GLUE test-set score; 1 / (1 - share of time saved) on one NVIDIA P100, batch 1, fixed length",
    "layers_test": "GLUE test-set score; all layers / mean number of layers run",
    "layers_dev": "development-set score; all layers / mean number of layers run",
    "score_dev": "development-set score; no speed figure",
    "score": "score on a split that the source does not name; no speed figure",
    "macs_fixed": "development-set score; ratio of multiply-adds, dense and method both at the fixed input length",
    "macs_formula": "development-set score; ratio of multiply-adds by formula at fractional lengths, nothing removed",
    "flops_cached": "development-set score; ratio of operations (TensorFlow profiler) at full slot lengths, batch 1, "
    "the cached text's lower layers not counted",
    "claim": "a headline figure of the text; what it holds for stands in the note",
    "speedup_dev": "development-set score; the source does not say how it measured its speed-up",
    "setting": "a setting or a property of the data, no result",
}
FLAGS = {
    "printed": "read in the source",
    "doubtful": "read in the source, but contradicted by other evidence: see the note",
    "filled": "in part illegible in the transcribed copy and filled from other evidence: see the note",
    "not_printed": "the paper has a dash here",
    "from_memory": "written down without the paper at hand: check before quoting",
    "cross_checked": "written down without the paper at hand, but another source agrees: see the note",
    "second_hand": "quoted by a third source, not checked against the paper: see the note",
}
# Checkpoints of the `paper` profile under the names that the papers print.
PRINTED_BACKBONE = {
    "bert-base-uncased": "bert-base",
    "roberta-base": "roberta-base",
    "distilbert-base-uncased": "distilbert-base",
    "albert-base-v2": "albert-base",
}


@dataclasses.dataclass(frozen=True)
class Reported:
    """One printed cell: `value` and `speedup` are None where the paper has none; see CONVENTIONS and FLAGS."""

    metric: str
    value: float | None
    speedup: float | None
    convention: str
    flag: str
    note: str


def load_reported(paper: str | None = None, folder: Path = REPORTED) -> "pd.DataFrame":
    """Return the reported numbers of one paper, or of all; texts are "" and numbers NaN where a cell is empty.

    Raises UserError if the paper has no file or a file lacks a column.
    """
    import pandas as pd

    files = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not files or (paper is not None and paper not in files):
        wanted = "no reported numbers" if paper is None else f"no reported numbers of {paper!r}"
        raise UserError(f"{wanted} in {folder}; there are: {', '.join(files) or 'none'}")
    texts = {name: str for name in COLUMNS if name not in ("value", "speedup")}
    frames = []
    for path in files.values() if paper is None else [files[paper]]:
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"value": [""], "speedup": [""]})
        if missing := [name for name in COLUMNS if name not in frame.columns]:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}")
        frames.append(frame[list(COLUMNS)])
    return pd.concat(frames, ignore_index=True)


def lookup(
    table: str,
    backbone: str,
    method: str,
    padding: str | None,
    task: str,
    *,
    metric: str | None = None,
    paper: str = "transkimmer",
) -> Reported | None:
    """Return one cell of a paper's table, or None if the paper has no such cell.

    Args:
        table: "2", "3", "4" or "text" (Transkimmer); the names in the CSV for other papers.
        backbone: as printed ("bert-base"), or a hub name in PRINTED_BACKBONE.
        padding: "none", "batch", "sequence" or None. A row that the paper prints without a label (baselines, early
            exit) answers every padding.
        metric: needed only where a table has several for the same cell.
    Raises:
        ValueError: if several metrics fit and `metric` is None.
    """
    cells = _cells(paper)
    backbone = PRINTED_BACKBONE.get(backbone, backbone)
    for label in dict.fromkeys((padding or "", "")):
        found = cells.get((table, backbone, method, label, task), {})
        if metric is None and len(found) > 1:
            raise ValueError(f"{paper}, table {table}, {method} on {task} has {', '.join(found)}; choose a metric")
        if found and (metric is None or metric in found):
            return found[metric or next(iter(found))]
    return None


@functools.cache
def _cells(paper: str) -> dict[tuple[str, str, str, str, str], dict[str, Reported]]:
    """Index one paper's rows by (table, backbone, method, padding, task), then by metric."""
    cells: dict[tuple[str, str, str, str, str], dict[str, Reported]] = {}
    for row in load_reported(paper).itertuples(index=False):
        key = (row.table, row.backbone, row.method, row.padding, row.task)
        value, speedup = (None if number != number else float(number) for number in (row.value, row.speedup))
        cells.setdefault(key, {})[row.metric] = Reported(row.metric, value, speedup, row.convention, row.flag, row.note)
    return cells
