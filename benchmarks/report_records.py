"""The report's appendix: environments, every record with what it takes to make it again, runs that failed."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from benchmarks.plain import canonical_json
from benchmarks.report_blocks import (
    Block,
    FoldBlock,
    HeadingBlock,
    ListBlock,
    RecordBlock,
    Row,
    Section,
    TableBlock,
    number,
    plain,
)
from benchmarks.report_data import Results
from benchmarks.runs import Record
from benchmarks.tasks import TASKS

ENVIRONMENT_LEAD = (
    "Where the numbers come from. FLOPs do not depend on the machine, scores hardly, seconds do. Load is the number of "
    "processes that wanted a core while a run was recorded."
)
RECORDS_LEAD = (
    "One entry per run: its configuration, seed, code revision, machine and command; a long value stands at the first "
    "run that has it. The whole record lies in the file that it names."
)
LONG = 120  # characters from which on a link is much shorter
VERSIONS = ("python", "torch", "transformers", "datasets", "numpy", "skimbench")


class Environments:
    """The distinct machines and versions of all records, numbered in the order in which they are met."""

    def __init__(self, all_results: Sequence[Results]) -> None:
        self.numbers: dict[str, int] = {}
        self.records: list[list[Record]] = []
        for results in all_results:
            for record in results.records.values():
                place = self.numbers.setdefault(self._key(record), len(self.numbers))
                if place == len(self.records):
                    self.records.append([])
                self.records[place].append(record)

    @staticmethod
    def _key(record: Record) -> str:
        return canonical_json({name: value for name, value in record["environment"].items() if name != "load_average"})

    def of(self, record: Record) -> int:
        """The number of a record's environment, from 1."""
        return self.numbers[self._key(record)] + 1


def environment_section(environments: Environments) -> Section | None:
    """One row per distinct environment."""
    rows = tuple(_environment_row(place, records) for place, records in enumerate(environments.records, 1))
    if not rows:
        return None
    block = TableBlock(
        caption=f"{len(rows)} {'environment' if len(rows) == 1 else 'environments'}.",
        columns=("No.", "Processor", "Cores", "Threads", "GPU", *VERSIONS, "Platform", "Revisions", "Load", "Records"),
        rows=rows,
        numeric=frozenset({2, 3}),
    )
    return Section("environment", "Environment", ENVIRONMENT_LEAD, (block,))


def _environment_row(place: int, records: Sequence[Record]) -> Row:
    about = records[0]["environment"]
    cpu, cuda = about.get("cpu") or {}, about.get("cuda") or {}
    loads = [record["environment"].get("load_average") for record in records]
    known = [load for load in loads if load is not None]
    revisions = sorted({_revision(record) for record in records})
    texts = (
        str(place),
        cpu.get("model"),
        cpu.get("cores"),
        about.get("threads"),
        cuda.get("device"),
        *(about.get(name) for name in VERSIONS),
        about.get("platform"),
        ", ".join(revisions),
        f"{min(known):.1f} to {max(known):.1f}" if known else None,
        len(records),
    )
    return Row(tuple(plain("" if text is None else str(text)) for text in texts))


def _revision(record: Record) -> str:
    git = record["git"]
    return f"{git.get('revision') or 'unknown'}{' (changed)' if git.get('dirty') else ''}"


def failed_section(all_results: Sequence[Results]) -> Section | None:
    """Runs that failed and files that are no records; None where all is well."""
    rows, lines = [], []
    for results in all_results:
        for run, record in results.records.items():
            if record["status"] == "failed":
                links = results.anchors(run)
                rows.append(Row((plain(run, links), *_place(record), plain(str(record["error"]), css="wrap"))))
        lines += [f"{results.root.name}/{place}: {reason}" for place, reason in results.unreadable]
    block = TableBlock(
        caption="These have no number in any table; the same command tries them again.",
        columns=("Record", "Kind", "Task", "Method", "Seed", "Error"),
        rows=tuple(rows),
    )
    blocks: list[Block] = [block] if rows else []
    blocks += [HeadingBlock("Not readable"), ListBlock(tuple(lines))] if lines else []
    return Section("failed", "Runs that failed", "", tuple(blocks)) if blocks else None


def _place(record: Record) -> tuple[Any, ...]:
    config = record["config"]
    return tuple(plain(str(config.get(name, ""))) for name in ("kind", "task", "method", "seed"))


def alone_section(all_results: Sequence[Results], linked: set[str]) -> Section | None:
    """Finished runs that no table of the page names."""
    rows = []
    for results in all_results:
        for run, record in results.records.items():
            if record["status"] == "ok" and results.anchor(run) not in linked:
                score, links = _score(record), results.anchors(run)
                shown = plain("") if score is None else number(str(score), "{:.1f}", links)
                rows.append(Row((plain(run, links), *_place(record), shown)))
    block = TableBlock(
        caption="A table names the runs that its command asked for; these are others, such as the dense models that "
        "methods start from.",
        columns=("Record", "Kind", "Task", "Method", "Seed", "Score"),
        rows=tuple(rows),
        numeric=frozenset({5}),
    )
    return Section("alone", "Runs in no table", "", (block,)) if rows else None


def _score(record: Record) -> float | None:
    """In percent; None for kinds of records that have none."""
    score = record["metrics"].get("score")
    return 100 * score if isinstance(score, int | float) else None


def records_section(all_results: Sequence[Results], environments: Environments) -> Section | None:
    """Every record, folded."""
    blocks: list[Block] = []
    first: dict[str, str] = {}
    for results in all_results:
        if not results.records:
            continue
        blocks += [HeadingBlock(f"{len(results.records)} records", results.title)] if len(all_results) > 1 else []
        blocks += [_record(results, run, record, environments, first) for run, record in results.records.items()]
    return Section("records", "Records", RECORDS_LEAD, tuple(blocks)) if blocks else None


def _record(results: Results, run: str, record: Record, environments: Environments, first: dict[str, str]) -> FoldBlock:
    """A record, folded; a long text stands at the first run that has it, as `first` says."""

    def once(text: str) -> str:
        if len(text) < LONG or first.setdefault(text, anchor) == anchor:
            return text
        return Markup('that of <a href="#{}">{}</a>').format(first[text], first[text].rpartition("-")[2])

    config, anchor = record["config"], f"run-{results.key}-{run}"
    title = TASKS[config["task"]].title if config.get("task") in TASKS else str(config.get("task"))
    score = _score(record)
    summary = [run, str(record["kind"]), title, str(config.get("method")), f"seed {config.get('seed')}"]
    summary += [f"{score:.1f}"] if score is not None else []
    summary += ["failed"] if record["status"] == "failed" else []
    commands = results.commands.get(run) or _commands_of_kind(results, record["kind"])
    facts = [("Command", once(" or ".join(commands) or "not named by any table here"))]
    facts += [("Error", str(record["error"]))] if record["error"] else []
    facts += [
        ("Seed", str(config.get("seed"))),
        ("Code", _revision(record)),
        ("Environment", f"No. {environments.of(record)}, load {record['environment'].get('load_average')}"),
        ("Started", f"{record['started_at'][:19]} UTC, {record['wall_s']:,.0f} s"),
        ("File", results.places[run]),
    ]
    shown = {name: once(_json(value)) for name, value in config.items() if name not in ("kind", "seed")}
    return FoldBlock(" \N{MIDDLE DOT} ".join(summary), (RecordBlock(tuple(facts), tuple(shown.items())),), anchor)


def _json(value: object) -> Markup:
    """For the text of an element, where quotes can stay as they are: there are many."""
    return Markup(html.escape(json.dumps(value), quote=False))


def _commands_of_kind(results: Results, kind: str) -> tuple[str, ...]:
    """The commands of tables that are named after a kind of record."""
    own = (table.command for table in results.tables.values() if table.name.partition("-")[0] == kind)
    return tuple(command for command in own if command)
