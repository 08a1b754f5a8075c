"""The report's Tables 1 and 2 and its audit: what the papers print, checked, from the CSV files of `audit`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.audit import PAPERS, all_findings, claim_label, column_texts, long_table
from benchmarks.audit_findings import Finding, Value
from benchmarks.report_blocks import (
    Block,
    Cell,
    CommandBlock,
    FoldBlock,
    HeadingBlock,
    ListBlock,
    Part,
    Row,
    Section,
    TableBlock,
    TextBlock,
    plain,
    verbatim,
)
from benchmarks.report_data import Results, Table, is_number

LEADS = {
    "table1": "What each method is: how it is trained, what it decides on, what becomes of the tokens it drops.",
    "table2": "How long the texts are, as the paper prints it and as measured here. An input length far above the "
    "average is what makes padded speed-ups large.",
}
TITLES = {"table1": "Table 1: the methods", "table2": "Table 2: the tasks"}
AUDIT_LEAD = (
    "Claims of the papers beside a computation on their own printed numbers. Read the verdict, then open the finding "
    "for its numbers; unconfirmed findings rest on numbers that were written down without the paper at hand."
)
AUDIT_COLUMNS = ("finding", "paper", "verdict", "flags", "row", "column", "value")
VERDICT_STYLE = {"holds": "better", "does not hold": "worse"}


def first_table(all_results: Sequence[Results], name: str) -> tuple[Results, Table] | None:
    """The first folder's table of a name."""
    return next(((results, results.tables[name]) for results in all_results if name in results.tables), None)


def paper_table(all_results: Sequence[Results], name: str) -> Section | None:
    """Table 1 or 2 as its file has it."""
    found = first_table(all_results, name)
    if found is None:
        return None
    results, table = found
    blocks: list[Block] = [verbatim(table, results, TITLES[name])]
    blocks += [CommandBlock(table.command)] if table.command else []
    blocks += [ListBlock(table.remarks)] if table.remarks else []
    return Section(name, TITLES[name], LEADS[name], tuple(blocks))


def audit_section(all_results: Sequence[Results]) -> Section | None:
    """A summary of all findings, and each of them behind a line that opens it."""
    found = first_table(all_results, "audit")
    if found is None:
        return None
    results, table = found
    rows = table.dicts(AUDIT_COLUMNS)
    computed = {finding.id: finding for finding in all_findings()}
    fresh = {key: list(group) for key, group in groupby(_long(computed.values()), lambda row: row["finding"])}
    summary: list[Row] = []
    folds: dict[str, list[Block]] = {}
    for name, group in groupby(rows, lambda row: row["finding"]):
        own = list(group)
        finding = computed.get(name) if own == fresh.get(name) else None
        folds.setdefault(own[0]["paper"], []).append(_finding(results, name, own, finding))
        summary.append(_summary_row(name, own, finding))
    blocks: list[Block] = [
        TableBlock(
            caption=f"{len(summary)} findings. {'; '.join(_counts(rows))}.",
            columns=("Claim", "Verdict", "Paper", "Finding"),
            rows=tuple(summary),
        )
    ]
    blocks += [CommandBlock(table.command)] if table.command else []
    for paper, members in folds.items():
        blocks += [HeadingBlock(PAPERS.get(paper, paper)), *members]
    return Section("audit", "The papers' tables, checked", AUDIT_LEAD, tuple(blocks))


def _long(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """What the file would say of findings that are computed now."""
    return long_table(tuple(findings)).astype(str).to_dict("records")


def _counts(rows: Sequence[dict[str, str]]) -> list[str]:
    verdicts = list({row["finding"]: row["verdict"] for row in rows}.values())
    return [f"{verdict.capitalize()}: {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts)]


def _summary_row(name: str, rows: Sequence[dict[str, str]], finding: Finding | None) -> Row:
    verdict, links = rows[0]["verdict"], (f"finding-{name}",)
    return Row(
        (
            plain(finding.claim if finding else name, links, css="wrap"),
            plain(verdict, css=VERDICT_STYLE.get(verdict, "")),
            plain(PAPERS.get(rows[0]["paper"], rows[0]["paper"])),
            plain(name, links),
        )
    )


def _finding(results: Results, name: str, rows: Sequence[dict[str, str]], finding: Finding | None) -> FoldBlock:
    """One finding: its words where they belong to these numbers, and its table."""
    blocks: list[Block] = []
    if finding is None:
        blocks.append(TextBlock("Another version of this project wrote these numbers: its words are in audit.md."))
    else:
        blocks += [TextBlock(finding.claim, claim_label(finding)), TextBlock(finding.computation, "Computed")]
    blocks.append(_numbers(results, name, rows))
    blocks += [TextBlock(finding.sentence)] if finding else []
    return FoldBlock(f"{name}: {rows[0]['verdict']}", tuple(blocks), f"finding-{name}")


def _numbers(results: Results, name: str, rows: Sequence[dict[str, str]]) -> TableBlock:
    """The figures of a finding, each column with as many decimals as its size asks for."""
    lines = [list(group) for _, group in groupby(rows, lambda row: row["row"])]
    columns = tuple(row["column"] for row in lines[0])
    cells: list[list[Cell]] = []
    for place in range(len(columns)):
        values = [line[place]["value"] for line in lines]
        cells.append(
            [Cell((Part(text, value),)) for text, value in zip(column_texts(_typed(values)), values, strict=True)]
        )
    numeric = frozenset(
        place for place in range(len(columns)) if any(is_number(line[place]["value"]) for line in lines)
    )
    return TableBlock(
        caption=f"Numbers of {name}.",
        columns=columns,
        rows=tuple(Row(row) for row in zip(*cells, strict=True)),
        file=f"{results.key}/tables/audit.csv#{name}",
        numeric=numeric,
    )


def _typed(values: Sequence[str]) -> list[Value]:
    def typed(text: str) -> Value:
        if not text:
            return None
        if text.lstrip("-").isdecimal():
            return int(text)
        return float(text) if is_number(text) else text

    return [typed(text) for text in values]
