"""The report's part on what the layers kept, and the rows of Figure 4, from the records behind Tables 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.report_blocks import Block, Cell, HeadingBlock, ListBlock, Part, Row, Section, TableBlock, plain
from benchmarks.report_suites import SuiteTable
from benchmarks.tables import KEEP_NOTE

RETENTION_LEAD = (
    "What stays when tokens go. Where the deciding words are known (synthetic tasks), the share of them that each "
    "layer still computes stands beside the share of all tokens; a method that knows what matters keeps the first "
    "high while the second falls."
)


def retention_section(suites: Sequence[SuiteTable]) -> Section | None:
    """Deciding tokens, then shares of tokens and seconds of training per method and task."""
    blocks: list[Block] = []
    for suite in suites:
        retention, computed = _retention(suite), _computed(suite)
        if not computed.rows:
            continue
        blocks.append(HeadingBlock(f"{_command_title(suite)}, {suite.title}", suite.results.title))
        blocks += [retention] if retention.rows else []
        blocks += [computed, ListBlock((KEEP_NOTE,))]
    return Section("retention", "What the layers kept", RETENTION_LEAD, tuple(blocks)) if blocks else None


def _command_title(suite: SuiteTable) -> str:
    return {"glue": "Table 3", "long": "Table 4"}[suite.table.name.partition("-")[0]]


def _methods(suite: SuiteTable) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """The row of each method and task without padding, and the hashes of those of its records that are there."""
    for row in suite.rows:
        if row["method"] != "dense" and row["padding"] == "none" and not row["account"]:
            runs = tuple(run for run in row["records"].split() if run in suite.results.records)
            if runs:
                yield row, runs


def _retention(suite: SuiteTable) -> TableBlock:
    rows, layers = [], 0
    for row, runs in _methods(suite):
        split = row["split"].partition("/")[2]
        result = suite.results.records[runs[0]]["metrics"]["splits"].get(split, {})
        if not result.get("retention"):
            continue
        pairs = list(zip(result["retention"], result["cost"]["ffn_share"], strict=True))
        layers = max(layers, len(pairs))
        links = suite.results.anchors(runs[0])
        shares = (
            Cell((Part(f"{100 * kept:.0f}", f"{kept}"), Part(f"/ {100 * share:.0f}", f"{share}", "speed")), links)
            for kept, share in pairs
        )
        rows.append(Row((plain(row["title"]), plain(row["task"]), *shares)))
    return TableBlock(
        caption="Deciding tokens still computed / all tokens still computed, in percent, per layer.",
        columns=("Method", "Task", *(f"Layer {layer + 1}" for layer in range(layers))),
        rows=tuple(rows),
        numeric=frozenset(range(2, 2 + layers)),
    )


def _computed(suite: SuiteTable) -> TableBlock:
    rows, layers = [], 0
    for row, runs in _methods(suite):
        metrics = suite.results.records[runs[0]]["metrics"]
        result = metrics["splits"].get(row["split"].partition("/")[2])
        if result is None:
            continue
        links = suite.results.anchors(runs[0])
        shares = [plain(f"{100 * share:.0f}", links) for share in result["cost"]["ffn_share"]]
        layers = max(layers, len(shares))
        seconds = plain(f"{metrics['train_seconds']:,.0f}", links)
        rows.append(Row((plain(row["title"]), plain(row["task"]), seconds, *shares)))
    return TableBlock(
        caption="Seconds of training, and tokens whose feed-forward each layer computed, in percent of all tokens"
        " (first seed).",
        columns=("Method", "Task", "Training, s", *(f"Layer {layer + 1}" for layer in range(layers))),
        rows=tuple(rows),
        numeric=frozenset(range(2, 3 + layers)),
    )


def layer_rows(suite: SuiteTable) -> list[dict[str, Any]]:
    """Figure 4's rows, one per task, method and seed: "task", "title", "method", "shares" of tokens per layer."""
    rows: list[dict[str, Any]] = []
    for row, runs in _methods(suite):
        split = row["split"].partition("/")[2]
        for run in runs if not row["of"] else ():
            result = suite.results.records[run]["metrics"]["splits"].get(split)
            if result is not None:
                about = {"task": row["task"], "title": row["title"], "method": row["method"]}
                rows.append(about | {"shares": result["cost"]["ffn_share"]})
    return rows
