"""The report's headline, Tables 3 and 4, from the CSV files of `glue` and `long`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.report_blocks import (
    Block,
    Cell,
    CommandBlock,
    FoldBlock,
    HeadingBlock,
    Part,
    Row,
    Section,
    TableBlock,
    TextBlock,
    number,
    plain,
    rounded,
    verbatim,
)
from benchmarks.report_data import Results, Table
from benchmarks.tables import DASH, PADDING_TITLES

COLUMNS = (
    "model", "method", "of", "title", "account", "padding", "task", "split", "metric", "measured", "spread", "seeds",
    "speedup", "unpadding_alone", "keep_ratio", "records", "reported", "reported_speedup", "difference",
    "speedup_difference", "reported_convention", "reported_flag",
)  # fmt: skip
NEEDED = ("measured", "speedup")
NUMBERS = (
    *NEEDED, "spread", "seeds", "keep_ratio", "reported", "reported_speedup", "difference", "speedup_difference",
)  # fmt: skip
HEADLINE = (
    "Each method beside the dense model and beside its twin that drops tokens at random at the same cost per layer. "
    "Read the score against both: a method that does not beat its twin has learned nothing about tokens. Speed-ups "
    "are dense over executed FLOPs with each text at its own length, so nothing is won by throwing padding away. With "
    "one seed, differences of a point or two say nothing. Every number leads to the record that made it."
)
SUITE_LEAD = (
    "A cell is the score in percent and how many times fewer FLOPs were executed. Compare the rows of one padding "
    "setting: with Batch and Sequence, the dense baseline is charged for padding too, and the row “Dense, unpadded” "
    "shows what removing padding alone gives."
)


@dataclass(frozen=True)
class SuiteTable:
    """The table of one command in one results folder."""

    results: Results
    table: Table
    rows: tuple[dict[str, str], ...]

    @property
    def title(self) -> str:
        """Which profile, and which of its sets of runs."""
        profile, _, suffix = self.table.name.partition("-")[2].partition("-")
        title = f"{profile} profile" if profile else self.table.name
        return f"{title}, {suffix.replace('_', ' ')}" if suffix else title


def suite_tables(all_results: Sequence[Results], name: str) -> Iterator[SuiteTable]:
    """The tables that a command (`glue`, `long`) wrote, in the order of the folders, those of embedded sets last.

    Raises:
        UserError: one lacks a column, or has a text where a number belongs.
    """
    for results in all_results:
        for table in sorted(results.tables.values(), key=lambda table: (table.name.endswith("-embedded"), table.name)):
            if table.name.partition("-")[0] == name and table.rows:
                yield SuiteTable(results, table, tuple(table.dicts(COLUMNS, numbers=NUMBERS, needed=NEEDED)))


# The headline ---------------------------------------------------------------------------------------------------------


def headline(suites: Sequence[SuiteTable]) -> Section | None:
    """Per task, each method without padding beside dense and random; None without tables."""
    blocks: list[Block] = []
    for suite in sorted(suites, key=lambda suite: suite.table.name.endswith("-embedded")):
        for split in dict.fromkeys(row["split"] for row in suite.rows):
            for model in dict.fromkeys(row["model"] for row in suite.rows):
                rows = [row for row in suite.rows if row["split"] == split and row["model"] == model]
                blocks += _compared(suite, rows)
    return Section("headline", "Headline", HEADLINE, tuple(blocks)) if blocks else None


def _compared(suite: SuiteTable, rows: Sequence[dict[str, str]]) -> list[Block]:
    """The comparison on one task with one encoder."""
    dense = next((row for row in rows if row["title"] == "Dense"), None)
    own = [row for row in rows if row["padding"] == "none" and not row["account"] and row["method"] != "dense"]
    twins = {row["of"]: row for row in own if row["of"]}
    compared = sorted((row for row in own if not row["of"]), key=lambda row: float(row["speedup"]))
    if dense is None or not compared:
        return []
    scale = _scale([row["measured"] for row in (dense, *own)])
    lines = [_dense_row(suite, dense, scale)]
    lines += [_method_row(suite, row, dense, twins.get(row["method"]), scale) for row in compared]
    beaten = [row for row in compared if row["method"] in twins and _ahead(row, twins[row["method"]]) > 0]
    judged = [row for row in compared if row["method"] in twins]
    seeds = "one seed" if dense["seeds"] == "1" else f"{dense['seeds']} seeds"
    caption = (
        f"{dense['metric'].replace('_', ' ').capitalize()} in percent, {seeds}. "
        f"{len(beaten)} of {len(judged)} methods are above their random twin. "
        "Full dot: the method; open dot: its twin; dashed line: the dense model. Tokens: share computed "
        "over all layers."
    )
    block = TableBlock(
        caption=caption,
        columns=("Method", "Score", "Speed-up", "", "vs dense", "Random", "vs random", "Tokens"),
        rows=tuple(lines),
        numeric=frozenset({1, 2, 4, 5, 6, 7}),
    )
    heading = HeadingBlock(f"{dense['task']}, {dense['model']}", f"{suite.results.title} {suite.title}".strip())
    return [heading, block]


def _ahead(row: dict[str, str], other: dict[str, str]) -> float:
    return float(row["measured"]) - float(other["measured"])


def _signed(difference: float) -> str:
    """With one decimal; a difference that rounds to 0 has no sign."""
    return f"{difference:+.1f}" if abs(difference) >= 0.05 else "0.0"


def _dense_row(suite: SuiteTable, dense: dict[str, str], scale: tuple[float, float]) -> Row:
    links = suite.results.anchors(dense["records"])
    strip = _strip(scale, dense=float(dense["measured"]), own=None, twin=None)
    score = number(dense["measured"], "{:.1f}", links)
    speed = number(dense["speedup"], "{:.2f}x", links)
    return Row((plain("Dense"), score, speed, Cell((), drawing=strip), *(plain("") for _ in range(4))))


def _method_row(
    suite: SuiteTable,
    row: dict[str, str],
    dense: dict[str, str],
    twin: dict[str, str] | None,
    scale: tuple[float, float],
) -> Row:
    links = suite.results.anchors(row["records"])
    css = "" if twin is None else "better" if _ahead(row, twin) > 0 else "worse"
    strip = _strip(
        scale,
        dense=float(dense["measured"]),
        own=float(row["measured"]),
        twin=float(twin["measured"]) if twin else None,
        css=css,
    )
    cells = [
        plain(row["title"]),
        Cell(_score(row), links),
        number(row["speedup"], "{:.2f}x", links),
        Cell((), drawing=strip),
        plain(_signed(_ahead(row, dense))),
        Cell(_score(twin), suite.results.anchors(twin["records"])) if twin else plain(DASH),
        plain(_signed(_ahead(row, twin)), css=css) if twin else plain(DASH),
        plain(f"{100 * float(row['keep_ratio']):.0f} %" if row["keep_ratio"] else DASH, links),
    ]
    return Row(tuple(cells))


def _scale(scores: Iterable[str]) -> tuple[float, float]:
    """Lowest and highest score, with some room."""
    values = [float(score) for score in scores]
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), 0.1)
    return low - room, high + room


def _strip(scale: tuple[float, float], *, dense: float, own: float | None, twin: float | None, css: str = "") -> Markup:
    """Scores on a line: the dense model, the method and its twin."""

    def place(score: float) -> str:
        return f"{4 + 168 * (score - scale[0]) / (scale[1] - scale[0]):.1f}"

    parts = [f'<line class="dense" x1="{place(dense)}" x2="{place(dense)}" y1="0" y2="18"/>']
    if own is not None and twin is not None:
        parts += [f'<line x1="{place(own)}" x2="{place(twin)}" y1="9" y2="9"/>']
        parts += [f'<circle cx="{place(twin)}" cy="9" r="3.4"/>']
    if own is not None:
        parts += [f'<circle class="own" cx="{place(own)}" cy="9" r="4"/>']
    return Markup(f'<svg class="strip {css}" viewBox="0 0 176 18" aria-hidden="true">{"".join(parts)}</svg>')


def _score(row: dict[str, str]) -> tuple[Part, ...]:
    spread = (rounded(row["spread"], "±{:.1f}", "speed"),) if row["spread"] and float(row["seeds"]) > 1 else ()
    return (rounded(row["measured"], "{:.1f}"), *spread)


# Tables 3 and 4 -------------------------------------------------------------------------------------------------------


def suite_section(anchor: str, title: str, suites: Sequence[SuiteTable]) -> Section | None:
    """One of the paper's tables: compact, then measured beside reported, then the whole file."""
    blocks: list[Block] = []
    for suite in suites:
        blocks.append(HeadingBlock(suite.title.capitalize(), suite.results.title))
        blocks.append(_compact(suite))
        if suite.table.command:
            blocks.append(CommandBlock(suite.table.command))
        reported = _reported(suite)
        if reported.rows:
            blocks.append(FoldBlock("Measured and reported", (TextBlock(REPORTED_NOTE), reported)))
        whole = verbatim(suite.table, suite.results, f"Every column of {suite.table.path.name}.", headings=0)
        blocks.append(FoldBlock(f"All numbers: {suite.table.path.name}", (whole,)))
    return Section(anchor, title, SUITE_LEAD, tuple(blocks)) if blocks else None


def _compact(suite: SuiteTable) -> TableBlock:
    """Rows (model, method, padding), a column per task, as the paper prints it."""
    tasks = tuple(dict.fromkeys(row["task"] for row in suite.rows))
    models = dict.fromkeys(row["model"] for row in suite.rows)
    cells = {(row["model"], row["title"], row["padding"], row["task"]): row for row in suite.rows}
    rows, before = [], ("", "")
    for key in dict.fromkeys((row["model"], row["title"], row["padding"]) for row in suite.rows):
        again = "again" if key[:2] == before else ""
        names = [plain(key[1], css=again), plain(PADDING_TITLES.get(key[2], key[2]))]
        names += [plain(key[0], css=again)] if len(models) > 1 else []
        found = [cells.get((*key, task)) for task in tasks]
        rows.append(Row((*names, *(_score_and_speed(suite, row) for row in found)), starts=not again))
        before = key[:2]
    named = ("Method", "Padding", "Model") if len(models) > 1 else ("Method", "Padding")
    return TableBlock(
        caption=f"{', '.join(models)}: score in percent, FLOPs speed-up.",
        columns=(*named, *tasks),
        rows=tuple(rows),
        file=f"{suite.results.key}/tables/{suite.table.path.name}#compact",
        headings=len(named),
    )


def _score_and_speed(suite: SuiteTable, row: dict[str, str] | None) -> Cell:
    if row is None:
        return plain(DASH)
    speed = rounded(row["speedup"], "{:.2f}x", "speed")
    return Cell((*_score(row), speed), suite.results.anchors(row["records"]))


REPORTED_NOTE = (
    "Mind the model and the data: a difference to the paper means something only where both are the paper's. The "
    "convention says what the printed number is; its flag, how surely it was read."
)


def _reported(suite: SuiteTable) -> TableBlock:
    rows = []
    for row in (row for row in suite.rows if row["reported"]):
        links = suite.results.anchors(row["records"])
        rows.append(
            Row(
                (
                    plain(row["title"]),
                    plain(PADDING_TITLES.get(row["padding"], row["padding"])),
                    plain(row["task"]),
                    number(row["measured"], "{:.1f}", links),
                    number(row["reported"], "{:g}"),
                    number(row["difference"], "{:+.1f}"),
                    number(row["speedup"], "{:.2f}x", links),
                    number(row["reported_speedup"], "{:g}x"),
                    number(row["speedup_difference"], "{:+.2f}"),
                    plain(row["reported_convention"]),
                    plain(row["reported_flag"]),
                )
            )
        )
    return TableBlock(
        caption="Measured here, reported by the paper, and the difference.",
        columns=(
            "Method", "Padding", "Task", "Measured", "Reported", "Difference",
            "Speed-up", "Reported speed-up", "Difference", "Convention", "Flag",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(3, 9)),
    )  # fmt: skip
