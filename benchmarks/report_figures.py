"""The report's Figures 3 and 4: the SVG files that `pareto` and `strategy` drew, with the numbers behind them."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks.report_blocks import Block, CommandBlock, FoldBlock, HeadingBlock, MarkupBlock, Section, verbatim
from benchmarks.report_data import Results, command_of
from benchmarks.report_layers import layer_rows
from benchmarks.report_suites import SuiteTable
from benchmarks.report_svg import inline
from benchmarks.tasks import TASKS

LEADS = {
    "pareto": "Score against FLOPs speed-up, a panel per padding setting; error bars hold the middle 95 % of resampled "
    "evaluations. Read which method lies on the grey front, and how far random dropping lies below it; where error "
    "bars overlap, nothing is decided.",
    "strategy": "Tokens that each layer still computes. Read where a method drops its tokens: early drops save most. "
    "The area under a curve would be the share of FLOPs if every token cost the same and nothing were added.",
}
TITLES = {"pareto": "Figure 3: score against speed-up", "strategy": "Figure 4: tokens per layer"}


def figure_section(
    all_results: Sequence[Results], anchor: str, command: str, suites: Sequence[SuiteTable] = ()
) -> Section | None:
    """The figures of one command in every folder, its tables folded below them.

    Args:
        suites: from whose records Figure 4 is drawn where a folder has no file of it.
    """
    blocks: list[Block] = []
    for results in all_results:
        own: list[Block] = []
        drawn = [drawing(results, path) for path in figure_files(results.root / "figures", command)]
        if not drawn:
            drawn = [one for suite in suites if suite.results is results for one in _layers_drawn(suite)]
        if drawn:
            own.append(MarkupBlock(Markup('<div class="drawings">{}</div>').format(Markup("").join(drawn))))
        own += tables_below(results, command)
        if own and len(all_results) > 1:
            blocks.append(HeadingBlock(results.title.capitalize()))
        blocks += own
    return Section(anchor, TITLES[command], LEADS[command], tuple(blocks)) if blocks else None


def tables_below(results: Results, command: str) -> list[Block]:
    """Every table of a command, folded, and each command line once."""
    own = [table for table in results.tables.values() if command_of(table) == command]
    folds: list[Block] = [
        FoldBlock(f"All numbers: {table.path.name}", (verbatim(table, results, f"{table.path.name}.", headings=0),))
        for table in own
    ]
    lines = dict.fromkeys(table.command for table in own if table.command)
    return [*folds, *map(CommandBlock, lines)]


def figure_files(folder: Path, command: str) -> list[Path]:
    """The SVG files of a command; the one of all tasks only where there are none of single tasks."""
    single = sorted(folder.glob(f"{command}-*.svg"))
    return single or sorted(folder.glob(f"{command}.svg"))


def drawing(results: Results, path: Path, shown: str = "") -> Markup:
    """One figure with its caption; `shown` is the task where the file's name does not say it."""
    command, _, task = path.stem.partition("-")
    shown = shown or (TASKS[task].title if task in TASKS else task.replace("_", " ")) or "All tasks"
    caption = f"{shown}: {TITLES.get(command, command).partition(': ')[2] or command}"
    svg = inline(path, prefix=f"f{zlib.crc32(f'{results.key}-{path.stem}'.encode()):08x}-", label=caption)
    return Markup('<figure class="drawing"><figcaption>{}</figcaption>{}</figure>').format(caption, svg)


def _layers_drawn(suite: SuiteTable) -> list[Markup]:
    """Figure 4 from the records behind a table, a figure per task."""
    from plots.layers import layer_figure
    from plots.style import save

    rows = layer_rows(suite)
    with tempfile.TemporaryDirectory() as folder:
        return [
            drawing(suite.results, save(layer_figure(own), Path(folder), f"strategy-{place}", ("svg",))[0], task)
            for place, task in enumerate(dict.fromkeys(row["task"] for row in rows))
            for own in [[row for row in rows if row["task"] == task]]
        ]
