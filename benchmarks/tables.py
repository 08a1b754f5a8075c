"""Tables from records: Table 3 (and its kind) as data, for the terminal, as Markdown, CSV and LaTeX.

One row per model, method and padding; one column per task; a cell is "score speed-up". A second table sets measured
beside reported. Scores are in percent, as the papers print them; speed-ups are dense MACs over method MACs, as
`benchmarks.flops` says. Where a method has other accounts of its cost (`TokenReducer.extra_costs`), each is a row of
its own that names what it leaves out or assumes; the published speed-up stands beside the account that it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import methods
from benchmarks.console import print_table as print_table  # beside the tables that it prints
from benchmarks.files import write_table
from benchmarks.models import ModelRef
from benchmarks.reported import Reported, lookup
from benchmarks.runs import Record
from benchmarks.tasks import OFFICIAL_ROWS, Task

DASH = "\N{EN DASH}"
PADDING_TITLES = {"none": "No", "batch": "Batch", "sequence": "Sequence", "baseline": DASH}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished run and where it stands in a table.

    Attributes:
        of: the method whose measured schedule a random run follows; empty otherwise.
    """

    model: ModelRef
    task: Task
    method: str
    record: Record
    of: str = ""

    @property
    def title(self) -> str:
        """Name of the row."""
        title = methods.lookup(self.method).traits.title
        return f"{title}, schedule of {methods.lookup(self.of).traits.title}" if self.of else title


def long_table(entries: Iterable[Entry], paddings: Sequence[str], *, table: str) -> pd.DataFrame:
    """One row per model, method, padding, task and evaluation split, seeds averaged.

    Args:
        table: number of the paper's table that the reported values come from ("3").
    """
    rows = [row for entry in entries for row in _rows(entry, paddings)]
    if not rows:
        return pd.DataFrame()
    keys = ["model", "method", "of", "title", "account", "padding", "task", "split", "metric"]
    frame = pd.DataFrame(rows)
    grouped = frame.groupby(keys, sort=False, dropna=False)
    result = grouped.agg(
        measured=("score", "mean"),
        spread=("score", "std"),
        seeds=("score", "size"),
        speedup=("speedup", "mean"),
        speedup_mean_of_ratios=("speedup_mean_of_ratios", "mean"),
        unpadding_alone=("unpadding_alone", "mean"),
        keep_ratio=("keep_ratio", "mean"),
        records=("record", lambda hashes: " ".join(dict.fromkeys(hashes))),
    ).reset_index()
    result["measured"] = result["measured"].round(4)  # as the CSV has it, so that whoever reads that prints the same
    reported = [_reported(row, table) for row in result.to_dict("records")]
    result["reported"] = [cell.value if cell else None for cell in reported]
    result["reported_speedup"] = [cell.speedup if cell else None for cell in reported]
    result["difference"] = result["measured"] - pd.to_numeric(result["reported"])
    result["speedup_difference"] = result["speedup"] - pd.to_numeric(result["reported_speedup"])
    result["reported_convention"] = [cell.convention if cell else "" for cell in reported]
    result["reported_flag"] = [cell.flag if cell else "" for cell in reported]
    return result


def _rows(entry: Entry, paddings: Sequence[str]) -> list[dict[str, Any]]:
    metrics = entry.record["metrics"]
    rows = []
    for split, result in metrics["splits"].items():
        common = {
            "model": entry.model.title,
            "method": entry.method,
            "of": entry.of,
            "task": entry.task.title if len(metrics["splits"]) == 1 else f"{entry.task.title} {split.split('_')[-1]}",
            "split": f"{entry.task.name}/{split}",
            "metric": metrics["metric"],
            "account": "",
            "score": 100 * result["scores"][metrics["metric"]],
            "keep_ratio": result["cost"]["keep_ratio"],
            "record": entry.record["config_hash"],
        }
        costs = result["cost"]["padding"]
        if entry.method == "dense":
            rows.append(common | _speed("Dense", "baseline", None))
            padded = [padding for padding in paddings if padding != "none"]
            rows += [
                common | _speed("Dense, unpadded", padding, costs[padding], "speedup_of_unpadding_alone")
                for padding in padded
            ]
        else:
            accounts = dict.fromkeys(name for padding in paddings for name in costs[padding].get("extra", ()))
            rows += [common | _speed(entry.title, padding, costs[padding]) for padding in paddings]
            rows += [
                common | {"account": name} | _speed(f"{entry.title}, {name}", padding, costs[padding], account=name)
                for name in accounts
                for padding in paddings
            ]
    return rows


def _speed(
    title: str, padding: str, cost: dict[str, Any] | None, key: str = "speedup", account: str = ""
) -> dict[str, Any]:
    if cost is None:
        one = {"speedup": 1.0, "speedup_mean_of_ratios": 1.0, "unpadding_alone": 1.0}
        return {"title": title, "padding": padding, **one}
    speeds = cost["extra"][account] if account else cost
    return {
        "title": title,
        "padding": padding,
        "speedup": speeds[key],
        "speedup_mean_of_ratios": speeds["speedup_mean_of_ratios"] if key == "speedup" else None,
        "unpadding_alone": cost["speedup_of_unpadding_alone"],
    }


def _reported(row: dict[str, Any], table: str) -> Reported | None:
    published = methods.lookup(row["method"]).traits.published_cost
    if row["of"] or row["title"] == "Dense, unpadded" or row["account"] != published:
        return None
    task = str(row["split"]).split("/")[0]
    backbone = str(row["model"]).lower()
    backbone = {"distilbert": "distilbert-base", "albert": "albert-base"}.get(backbone, backbone)
    known = backbone if backbone in ("bert-base", "roberta-base", "distilbert-base", "albert-base") else "bert-base"
    return lookup(table, known, str(row["method"]), None if row["padding"] == "baseline" else str(row["padding"]), task)


def cell_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The compact table: rows (Model, Method, Padding), a column per task, cells "score speed-up"."""
    shown = frame.assign(
        cell=[_cell(row) for row in frame.to_dict("records")],
        Model=frame["model"],
        Method=frame["title"],
        Padding=frame["padding"].map(PADDING_TITLES),
    )
    order = shown.drop_duplicates(["Model", "Method", "Padding"])[["Model", "Method", "Padding"]]
    tasks = list(dict.fromkeys(shown["task"]))
    wide = shown.pivot_table(
        index=["Model", "Method", "Padding"], columns="task", values="cell", aggfunc="first", sort=False
    )
    return wide.reindex(index=pd.MultiIndex.from_frame(order), columns=tasks).fillna(DASH).reset_index()


def _cell(row: dict[str, Any]) -> str:
    spread = f"±{row['spread']:.1f}" if row["seeds"] > 1 and pd.notna(row["spread"]) else ""
    return f"{row['measured']:.1f}{spread} {row['speedup']:.2f}x"


def _tenths(value: float) -> float:
    """Rounded as a cell prints it, which pandas does not where a half lies between."""
    return float(f"{value:.1f}")


def comparison_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Measured / reported / difference, where the paper has a number."""
    if frame.empty:
        return frame
    known = frame[frame["reported"].notna()]
    return pd.DataFrame(
        {
            "Model": known["model"],
            "Method": known["title"],
            "Padding": known["padding"].map(PADDING_TITLES),
            "Task": known["task"],
            "Measured": known["measured"].map(_tenths),
            "Reported": known["reported"],
            "Difference": known["difference"].map(_tenths),
            "Speed-up": known["speedup"].round(2),
            "Reported speed-up": known["reported_speedup"],
            "Speed-up difference": known["speedup_difference"].round(2),
            "Reported as": known["reported_convention"],
            "Flag": known["reported_flag"],
        }
    )


KEEP_NOTE = (
    "Share of tokens whose feed-forward was computed, over all layers, and seconds of training on the machine and "
    "under the load of the run (what it starts from, such as the dense model, not among them); seeds averaged."
)


def keep_table(entries: Iterable[Entry]) -> pd.DataFrame:
    """One row per method, keep ratio and seconds of training per task."""
    rows = []
    for entry in entries:
        metrics = entry.record["metrics"]
        about = {"Model": entry.model.title, "Method": entry.title}
        rows.append(about | {"column": f"{entry.task.title}: keep ratio", "value": metrics["keep_ratio"], "digits": 2})
        rows.append(about | {"column": f"{entry.task.title}: s", "value": metrics["train_seconds"], "digits": 0})
    if not rows:
        return pd.DataFrame()
    means = pd.DataFrame(rows).groupby(["Model", "Method", "column"], sort=False).mean().reset_index()
    means["cell"] = [f"{row.value:.{int(row.digits)}f}" for row in means.itertuples()]
    columns = list(dict.fromkeys(means["column"]))
    order = pd.MultiIndex.from_frame(means[["Model", "Method"]].drop_duplicates())
    wide = means.pivot_table(index=["Model", "Method"], columns="column", values="cell", aggfunc="first", sort=False)
    return wide.reindex(index=order, columns=columns).fillna(DASH).rename_axis(columns=None).reset_index()


def retention_table(entries: Iterable[Entry]) -> pd.DataFrame:
    """Per layer, share of the deciding tokens still computed beside the share of all tokens, in percent."""
    rows = []
    for entry in entries:
        for result in entry.record["metrics"]["splits"].values():
            if result["retention"] is None or entry.method == "dense":
                continue
            pairs = zip(result["retention"], result["cost"]["ffn_share"], strict=True)
            layers = {
                f"Layer {i + 1}": f"{100 * kept:.0f} / {100 * share:.0f}" for i, (kept, share) in enumerate(pairs)
            }
            rows.append({"Task": entry.task.title, "Method": entry.title, **layers})
    return pd.DataFrame(rows).drop_duplicates(["Task", "Method"]) if rows else pd.DataFrame()


ANSWER_COLUMNS = {  # of `answer_table`: the scores without "squad_" or "tuned_"
    "exact": "Exact",
    "f1": "F1",
    "has_answer_exact": "HasAns exact",
    "has_answer_f1": "HasAns F1",
    "no_answer": "NoAns",
}
ANSWER_NOTE = (
    "Exact and F1 of all texts, of those with an answer and of those without (right or not), in percent; seeds "
    "averaged. Tuned: with the threshold of no answer that is best on held-out training rows, instead of 0."
)


def answer_table(entries: Iterable[Entry]) -> pd.DataFrame:
    """Span tasks: what the headline F1 is made of, at the threshold 0 and at the tuned one."""
    rows = []
    for entry in entries:
        for result in entry.record["metrics"]["splits"].values() if entry.task.kind == "span_qa" else ():
            for prefix, rule in (("squad", "0"), ("tuned", "Tuned")):
                scores = {
                    title: 100 * result["scores"][f"{prefix}_{name}"]
                    for name, title in ANSWER_COLUMNS.items()
                    if f"{prefix}_{name}" in result["scores"]
                }
                row = {"Model": entry.model.title, "Task": entry.task.title, "Method": entry.title, "Threshold": rule}
                rows.append(row | scores)
    if not rows:
        return pd.DataFrame()
    means = pd.DataFrame(rows).groupby(["Model", "Task", "Method", "Threshold"], sort=False).mean()
    rounded = means.round(1).astype(object)
    return rounded.where(means.notna(), DASH).reset_index()


def data_lines(entries: Sequence[Entry]) -> list[str]:
    """One sentence per task: which rows, how many of the official ones, and the seeds of its runs."""
    seeds: dict[str, list[int]] = {}
    for entry in entries:
        seeds.setdefault(entry.task.title, []).append(entry.record["config"]["seed"])
    lines = []
    for entry in entries:
        data = entry.record["config"]["data"]
        splits = ", ".join(f"{split['rows']:,} {name}" for name, split in data["splits"].items())
        known = OFFICIAL_ROWS.get(entry.task.name, ())
        official = f" (official: {' and '.join(f'{rows:,}' for rows in known)})" if known else ""
        divided = f"; the {data['divided']} file, divided by {data['by']}" if "divided" in data else ""
        note = f"; {entry.task.note}" if entry.task.note else ""
        rows = f"{splits} rows{official}, at most {entry.task.sequence_length} tokens"
        drawn = " ".join(map(str, sorted(set(seeds[entry.task.title]))))
        lines.append(f"{entry.task.title}: {rows}{divided}{note}; seeds {drawn}")
    return list(dict.fromkeys(lines))


def against_random(frame: pd.DataFrame) -> list[str]:
    """One sentence per method and task: is it better than random dropping at the same cost?"""
    lines = []
    for row in frame[(frame["of"] != "") & (frame["padding"] == "none")].to_dict("records"):
        same = (frame["method"] == row["of"]) & (frame["split"] == row["split"]) & (frame["model"] == row["model"])
        method = frame[same & (frame["of"] == "") & (frame["account"] == "") & (frame["padding"] == "none")]
        if method.empty:
            continue
        found = method.iloc[0]
        verdict = "beats" if found["measured"] > row["measured"] else "does NOT beat"
        lines.append(
            f"{row['task']}: {found['title']} ({found['measured']:.1f} at {found['speedup']:.2f}x) {verdict} "
            f"random dropping ({row['measured']:.1f} at {row['speedup']:.2f}x)"
        )
    return lines


def write_tables(
    folder: Path,
    name: str,
    frame: pd.DataFrame,
    entries: Sequence[Entry],
    *,
    heading: str,
    command: str,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write `name`.csv (everything), `name`.md and `name`.tex (what people read) into `folder`; returns the paths."""
    cells, comparison, retention = cell_table(frame), comparison_table(frame), retention_table(entries)
    answers = answer_table(entries)
    parts = [f"# {heading}", f"Command: `{command}`", cells.to_markdown(index=False)]
    if not comparison.empty:
        parts += ["## Measured and reported", comparison.to_markdown(index=False)]
    if not answers.empty:
        parts += ["## Answers", ANSWER_NOTE, answers.to_markdown(index=False)]
    if not retention.empty:
        note = "Share of the tokens that decide the label still computed / share of all tokens, in percent, per layer."
        parts += ["## Retention", note, retention.to_markdown(index=False)]
    parts += ["## Tokens kept, and training", KEEP_NOTE, keep_table(entries).to_markdown(index=False)]
    random = against_random(frame)
    if random:
        parts += ["## Against random dropping at the same cost", "\n".join(f"- {line}" for line in random)]
    parts += ["## Data", "\n".join(f"- {line}" for line in data_lines(entries))]
    if notes:
        parts += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    paths = [*write_table(folder, name, frame, parts), folder / f"{name}.tex"]
    paths[-1].write_text(cells.style.hide(axis="index").to_latex(hrules=True), encoding="utf-8")
    return paths
