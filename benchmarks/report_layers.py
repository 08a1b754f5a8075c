"""The report's part on what the layers kept, and the rows of Figure 4, from the records behind Tables 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Measured:
    """What one run of a method computed, per layer.

    Attributes:
        row: of the table that names the run. shares: of all tokens, in [0, 1]. retention: of the deciding tokens, where
            these are known. seconds: of training. first: whether it is the first seed of its row.
    """

    row: dict[str, str]
    run: str
    shares: tuple[float, ...]
    retention: tuple[float, ...]
    seconds: float | None
    first: bool


def measured(suite: SuiteTable) -> Iterator[Measured]:
    """The runs of all methods but the dense one, as the table has them; records without these numbers are skipped."""
    for row in suite.rows:
        if row["method"] == "dense" or row["padding"] != "none" or row["account"]:
            continue
        for place, run in enumerate(row["records"].split()):
            metrics = suite.results.records.get(run, {}).get("metrics", {})
            try:
                result = metrics["splits"][row["split"].partition("/")[2]]
                shares = tuple(map(float, result["cost"]["ffn_share"]))
                retention = tuple(map(float, result.get("retention") or ()))
                seconds = float(metrics["train_seconds"]) if "train_seconds" in metrics else None
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            if shares and len(retention) in (0, len(shares)):
                yield Measured(row, run, shares, retention, seconds, place == 0)


def _retention(suite: SuiteTable) -> TableBlock:
    found = [one for one in measured(suite) if one.first and one.retention]
    rows = [
        [
            Cell((Part(f"{100 * kept:.0f}", f"{kept}"), Part(f"/ {100 * share:.0f}", f"{share}", "speed")), links)
            for kept, share in zip(one.retention, one.shares, strict=True)
        ]
        for one in found
        for links in [suite.results.anchors(one.run)]
    ]
    caption = "Deciding tokens still computed / all tokens still computed, in percent, per layer."
    return _per_layer(caption, suite, found, (), rows)


def _computed(suite: SuiteTable) -> TableBlock:
    found = [one for one in measured(suite) if one.first]
    rows = []
    for one in found:
        links = suite.results.anchors(one.run)
        seconds = plain("" if one.seconds is None else f"{one.seconds:,.0f}", links if one.seconds is not None else ())
        rows.append([seconds, *(plain(f"{100 * share:.0f}", links) for share in one.shares)])
    caption = (
        "Seconds of training, and tokens whose feed-forward each layer computed, in percent of all tokens (first seed)."
    )
    return _per_layer(caption, suite, found, ("Training, s",), rows)


def _per_layer(
    caption: str, suite: SuiteTable, found: Sequence[Measured], before: tuple[str, ...], rows: Sequence[Sequence[Cell]]
) -> TableBlock:
    """A table with a column per layer of the deepest model; shallower ones leave the last ones empty."""
    several = len({row["model"] for row in suite.rows}) > 1
    names = ("Method", "Task", "Model") if several else ("Method", "Task")
    layers = max((len(one.shares) for one in found), default=0)
    width = len(before) + layers
    lines = []
    for one, cells in zip(found, rows, strict=True):
        named = [one.row["title"], one.row["task"], one.row["model"]][: len(names)]
        lines.append(Row((*map(plain, named), *cells, *(plain("") for _ in range(width - len(cells))))))
    return TableBlock(
        caption=caption,
        columns=(*names, *before, *(f"Layer {layer + 1}" for layer in range(layers))),
        rows=tuple(lines),
        numeric=frozenset(range(len(names), len(names) + width)),
    )


def layer_rows(suite: SuiteTable) -> list[dict[str, Any]]:
    """Figure 4's rows, one per task, method and seed: "task", "title", "method", "shares" of tokens per layer."""
    several = len({row["model"] for row in suite.rows}) > 1
    return [
        {
            "task": f"{one.row['task']}, {one.row['model']}" if several else one.row["task"],
            "title": one.row["title"],
            "method": one.row["method"],
            "shares": one.shares,
        }
        for one in measured(suite)
        if not one.row["of"]
    ]
