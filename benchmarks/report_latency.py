"""The report's part on measured time, from the CSV file of `latency`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from benchmarks.latency_table import TITLES
from benchmarks.report_blocks import (
    Block,
    Cell,
    HeadingBlock,
    MarkupBlock,
    Row,
    Section,
    TableBlock,
    number,
    plain,
    rounded,
)
from benchmarks.report_data import Results
from benchmarks.report_figures import drawing, figure_files, tables_below
from benchmarks.report_measured import tables_of
from benchmarks.tasks import TASKS

LEAD = (
    "Measured time, dense and method interleaved in one run. Read the time ratio with its quartiles, then realisation: "
    "the time ratio over the FLOPs ratio, 1 where all of the saving is seen by the clock. The bound is what the bare "
    "matrix products reach at the same sizes; overhead is what the engine adds to them."
)
NUMBERS = {  # of the table, by column: title and format
    "ms_per_text": ("ms per text", "{:.2f}"),
    "time_ratio": ("Time", "{:.2f}x"),
    "flops_ratio": ("FLOPs", "{:.2f}x"),
    "realisation": ("Realisation", "{:.2f}"),
    "bound": ("Bound", "{:.2f}"),
    "overhead": ("Overhead", "{:.2f}"),
    "peak_memory_mb": ("Memory, MB", "{:.1f}"),
}
NEEDED = ("time_ratio", "flops_ratio", "realisation")
SPREAD = ("time_ratio_low", "time_ratio_high")
SHARED = ("task", "machine", "threads", "dtype", "batch_size")  # by all rows of a table of the page
OTHERS = ("baseline", "title", "schedule", "records")


def latency_section(all_results: Sequence[Results]) -> Section | None:
    """Per batch size, every method against each dense baseline.

    Raises:
        UserError: a table lacks a column, or has a text where a number belongs.
    """
    blocks: list[Block] = []
    for results, table in tables_of(all_results, "latency"):
        if "time_ratio" not in table.columns:
            continue  # another table of the command: folded below
        columns = (*SHARED, *NUMBERS, *SPREAD, *OTHERS)
        rows = table.dicts(columns, numbers=(*NUMBERS, *SPREAD), needed=NEEDED)
        key = SHARED.index("batch_size")
        for shared, group in groupby(rows, lambda row: tuple(row[name] for name in SHARED)):
            task = TASKS[shared[0]].title if shared[0] in TASKS else shared[0]
            blocks.append(HeadingBlock(f"{task}, batch {shared[key]}", results.title))
            blocks.append(_times(results, shared, list(group)))
    for results in all_results:
        drawn = [drawing(results, path) for path in figure_files(results.root / "figures", "latency")]
        if drawn:
            blocks.append(MarkupBlock(Markup('<div class="drawings">{}</div>').format(Markup("").join(drawn))))
        blocks += tables_below(results, "latency")
    return Section("latency", "Latency", LEAD, tuple(blocks)) if blocks else None


def _times(results: Results, shared: tuple[str, ...], rows: Sequence[dict[str, str]]) -> TableBlock:
    _, machine, threads, dtype, _ = shared
    lines = []
    for row in rows:
        links = results.anchors(row["records"])
        names = (plain(row["title"]), plain(row["schedule"]), plain(TITLES.get(row["baseline"], row["baseline"])))
        cells = [number(row[name], form, links) for name, (_, form) in NUMBERS.items()]
        if all(row[name] for name in SPREAD):
            quartiles = (rounded(row[name], "{:.2f}", "speed") for name in SPREAD)
            place = list(NUMBERS).index("time_ratio")
            cells[place] = Cell((*cells[place].parts, *quartiles), links)
        lines.append(Row((*names, *cells)))
    titles = tuple(title for title, _ in NUMBERS.values())
    return TableBlock(
        caption=f"{machine}, {threads} {'thread' if threads == '1' else 'threads'}, {dtype}. Time: median and "
        "quartiles of the rounds' ratios.",
        columns=("Method", "At", "Against", *titles),
        rows=tuple(lines),
        numeric=frozenset(range(3, 3 + len(titles))),
    )
