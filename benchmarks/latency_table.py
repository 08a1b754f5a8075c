"""The table and the figure of `benchmarks.latency`, from its records."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.console import print_table
from benchmarks.files import write_table, writing
from benchmarks.runs import Record

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = {"wall": [None], "cpu": [None]}  # overhead of what runs outside of torch, or where only times are taken
TITLES = {"none": "dense, unpadded", "batch": "stock, batch", "sequence": "stock, sequence"}
NOTE = """\
Times are medians of interleaved passes; a time ratio is the median of the rounds' ratios, its quartiles behind it.
*Against*: the dense model in stock transformers padded to the batch or to the task's length, or in our engine without
padding. *FLOPs*: its executed multiply-adds over the method's. *Real.*, the realisation: time ratio / FLOPs ratio;
*CPU*: the same from processor time, which does not see others on the machine. *Bound*: the realisation of the bare
matrix products and attention calls alone, replayed at the same sizes. *Over.*, the engine's overhead: time / time of
that replay. *MB*: the most memory that a pass holds above the weights. These three are empty where only times were
taken, and for what runs outside of torch."""


def frame_of(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, baseline and subject, numbers as numbers."""
    return pd.DataFrame([row for record in records for row in _rows(record)])


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    config, metrics = record["config"], record["metrics"]
    for subject in metrics["subjects"]:
        for padding in config["extra"]["paddings"]:
            against = subject["against"][padding]
            flops, wall, cpu = against["flops"], against["wall"], against["cpu"]
            peak, overhead = subject["peak_memory_bytes"], subject.get("overhead", UNKNOWN)
            milliseconds = 1000 * statistics.median(subject["wall_s"])
            yield {
                "task": config["task"],
                "backbone": config["backbone"],
                "machine": config["extra"]["machine"],
                "threads": config["extra"]["threads"],
                "dtype": config["dtype"],
                "batch_size": config["extra"]["batch_size"],
                "max_length": config["max_length"],
                "baseline": padding,
                "key": subject["key"],
                "method": subject["method"],
                "title": subject["title"],
                "schedule": subject["schedule"],
                "ms_per_text": milliseconds / metrics["texts"],
                "tokens_per_s": 1000 * metrics["tokens"] / milliseconds,
                "time_ratio": wall[0],
                "time_ratio_low": wall[1],
                "time_ratio_high": wall[2],
                "flops_ratio": flops,
                "realisation": wall[0] / flops,
                "cpu_time_ratio": cpu[0],
                "cpu_realisation": cpu[0] / flops,
                "bound": against["bare_cpu"][0] / flops if "bare_cpu" in against else None,
                "overhead": overhead["wall"][0],
                "cpu_overhead": overhead["cpu"][0],
                "peak_memory_mb": None if peak is None else peak / 1e6,
                "records": record["config_hash"],
            }


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""

    def column(pattern: str, *names: str) -> list[str]:
        rows = frame[list(names)].itertuples(index=False)
        return ["" if any(pd.isna(value) for value in row) else pattern.format(*row) for row in rows]

    several = {"task": "Texts", "dtype": "Type", "max_length": "Length"}
    texts = {title: frame[name] for name, title in several.items() if frame[name].nunique() > 1}
    return pd.DataFrame(
        {
            **texts,
            "Batch": frame["batch_size"],
            "Against": frame["baseline"].map(TITLES),
            "Method": frame["title"],
            "At": frame["schedule"],
            "ms/text": column("{:.2f}", "ms_per_text"),
            "Tokens/s": column("{:.0f}", "tokens_per_s"),
            "Time": column("{:.2f}x ({:.2f}-{:.2f})", "time_ratio", "time_ratio_low", "time_ratio_high"),
            "FLOPs": column("{:.2f}x", "flops_ratio"),
            "Real.": column("{:.2f}", "realisation"),
            "CPU": column("{:.2f}", "cpu_realisation"),
            "Bound": column("{:.2f}", "bound"),
            "Over.": column("{:.2f}", "overhead"),
            "MB": column("{:.1f}", "peak_memory_mb"),
        }
    )


def show(records: Sequence[Record], console: Console) -> None:
    """Print the table."""
    print_table(printed(frame_of(records)), "Time against FLOPs", console)


def write(records: Sequence[Record], root: Path, command: str) -> list[Path]:
    """Write the table `latency` (CSV, Markdown) and the figure below `root`; returns the paths, of the figure's SVG."""
    from plots.latency import latency_figure
    from plots.style import save

    frame = frame_of(records)
    machine = f"Machine: {frame['machine'].iloc[0]}, {frame['threads'].iloc[0]} threads, "
    machine += f"{', '.join(frame['dtype'].unique())}; weights: {frame['backbone'].iloc[0]}."
    if loads := [record["metrics"]["load_average"] for record in records if "load_average" in record["metrics"]]:
        cells = "; ".join(" ".join(f"{value:.1f}" for value in load) for load in loads)
        machine += (
            f" Load averages (1, 5, 15 minutes) at the end of each cell: {cells}. Where they exceed the threads, "
        )
        machine += "others ran too, and *CPU* is the column to read."
    absent = {
        key: why for record in records for key, why in record["metrics"].get("peers", {}).get("absent", {}).items()
    }
    if absent:
        machine += " Left out: " + "; ".join(f"{peer}, {reason}" for peer, reason in absent.items()) + "."
    parts = ["# Time against FLOPs", f"Command: `{command}`", machine, NOTE, printed(frame).to_markdown(index=False)]
    paths = write_table(root / "tables", "latency", frame, parts)
    with writing(root / "figures"):
        return paths + save(latency_figure(_points(frame)), root / "figures", "latency")[:1]


def _points(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What the figure shows: a panel per texts, batch size and baseline."""
    forms = {"task": "{}", "dtype": "{}", "max_length": "up to {} tokens"}
    several = {name: form for name, form in forms.items() if frame[name].nunique() > 1}
    rows = [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
    for row in rows:
        panel = f"Batch {row['batch_size']}, against {TITLES[row['baseline']]}"
        row["panel"] = ", ".join([*(several[name].format(row[name]) for name in several), panel])
    return rows
