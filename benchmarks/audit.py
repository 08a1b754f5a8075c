"""The published tables checked against their own arithmetic; Tables 1 and 2 regenerated.

Every finding sets a printed claim beside a computation on the papers' own numbers (results/reported). No model is
loaded and nothing is trained. With --data-dir, Table 2 shows the lengths of the data at hand beside the printed ones.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from benchmarks import (
    audit_lat_ltp,
    audit_pairs,
    audit_power_bert,
    audit_quoted,
    audit_routing,
    audit_top,
    audit_transkimmer,
)
from benchmarks.audit_findings import VERDICTS, Finding, Value
from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import write_table
from benchmarks.runs import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.properties import Lengths

# In the order of the report: the paper that the suite regenerates, rows it quotes, then the other papers' own.
MODULES = (
    audit_transkimmer,
    audit_quoted,
    audit_power_bert,
    audit_lat_ltp,
    audit_routing,
    audit_top,
    audit_pairs,
)
STYLES = {"holds": "green", "does not hold": "red", "unconfirmed": "yellow", "information": "cyan"}
PAPERS = {
    "transkimmer": "Transkimmer",
    "several": "Several papers",
    "power_bert": "PoWER-BERT",
    "lat": "LAT",
    "ltp": "LTP",
    "tr_bert": "TR-BERT",
    "lot": "LoT",
    "top": "ToP",
    "deformer": "DeFormer",
    "deebert": "DeeBERT",
    "pabee": "PABEE",
}
DASH = "\N{EN DASH}"


def all_findings() -> tuple[Finding, ...]:
    """Every finding, computed anew.

    Raises:
        UserError: results/reported lacks a number that a finding needs.
    """
    return tuple(compute() for module in MODULES for compute in module.FINDINGS)


def chosen(found: Sequence[Finding], names: Sequence[str] | None) -> tuple[Finding, ...]:
    """The findings called `names`, or of the papers called so; all without names.

    Raises:
        UserError: no finding and no paper of a name.
    """
    if not names:
        return tuple(found)
    known = [*PAPERS, *(finding.id for finding in found)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise UserError(f"no finding {name!r}{hint} papers: {', '.join(PAPERS)}; `--list` shows the findings")
    return tuple(finding for finding in found if finding.id in names or finding.paper in names)


def number_table(finding: Finding) -> pd.DataFrame:
    """A finding's figures as texts: each column with the decimals that its size asks for, fewer if they are all 0."""
    import pandas as pd

    columns = {name: column_texts(finding.column(name)) for name in finding.columns}
    return pd.DataFrame(columns, columns=list(finding.columns))


def column_texts(values: Sequence[Value]) -> list[str]:
    """The figures of one column as texts, see `number_table`."""
    floats = [abs(value) for value in values if isinstance(value, float)]
    largest = max(floats, default=0.0)
    most = 2 + sum(largest < size for size in (1, 0.1, 0.01)) if largest else 0
    decimals = next(d for d in range(most + 1) if d == most or all(abs(v - round(v, d)) < 1e-9 for v in floats))

    def text(value: Value) -> str:
        if value is None:
            return DASH
        if isinstance(value, str):
            return value
        return f"{value:,}" if isinstance(value, int) else f"{value:,.{decimals}f}"

    return [text(value) for value in values]


def summary_table(found: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding."""
    import pandas as pd

    rows = [
        {"Finding": item.id, "Paper": PAPERS[item.paper], "Claim": item.claim, "Verdict": item.verdict}
        for item in found
    ]
    return pd.DataFrame(rows)


def long_table(found: Sequence[Finding]) -> pd.DataFrame:
    """Every figure of every finding: finding, paper, verdict, flags, row (from 1), column, value."""
    import pandas as pd

    rows = [
        {
            "finding": item.id,
            "paper": item.paper,
            "verdict": item.verdict,
            "flags": " ".join(sorted(item.flags)),
            "row": number,
            "column": column,
            "value": f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value),
        }
        for item in found
        for number, row in enumerate(item.numbers, 1)
        for column, value in zip(item.columns, row, strict=True)
    ]
    return pd.DataFrame(rows)


def count_line(found: Sequence[Finding]) -> str:
    """How many findings have which verdict."""
    counts = ((verdict, sum(item.verdict == verdict for item in found)) for verdict in VERDICTS)
    return f"{len(found)} findings: " + ", ".join(f"{verdict} {count}" for verdict, count in counts)


def claim_label(finding: Finding) -> str:
    """What stands before a finding's claim, or before its subject where there is no claim to check."""
    return "About" if finding.holds is None else "Claim"


def print_finding(finding: Finding, console: Console) -> None:
    """One finding on the terminal."""
    style = STYLES[finding.verdict]
    console.print()
    console.print(f"[bold]{finding.id}[/]: [{style}]{finding.verdict}[/]", highlight=False)
    console.print(f"{claim_label(finding)}: {escape(finding.claim)}", highlight=False)
    console.print(f"Computed: {escape(finding.computation)}", highlight=False)
    print_table(number_table(finding), "", console)
    console.print(escape(finding.sentence), style=style, highlight=False)


def markdown(found: Sequence[Finding], command: str) -> str:
    """The audit as Markdown: a summary, then every finding under its paper."""
    parts = [
        "# The papers' tables against their own arithmetic",
        f"Command: `{command}`",
        summary_table(found).to_markdown(index=False),
        f"{count_line(found)}. Unconfirmed: the numbers were written down without the paper at hand.",
    ]
    for paper, name in PAPERS.items():
        own = [finding for finding in found if finding.paper == paper]
        parts += [f"## {name}"] if own else []
        for item in own:
            parts += [
                f"### {item.id}: {item.verdict}",
                f"{claim_label(item)}: {item.claim}",
                f"Computed: {item.computation}",
            ]
            parts += [number_table(item).to_markdown(index=False, disable_numparse=True), item.sentence]
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.audit",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.audit --findings transkimmer-averages lat",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--findings", nargs="+", metavar="NAME", help="show these findings, or those of these papers; write nothing")
    add("--list", action="store_true", help="one line per finding; write nothing")
    add(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="folder with <task>/<split>.*: measure the lengths of Table 2 on it",
    )
    add("--tasks", nargs="+", metavar="TASK", help="measure these; default: all of the paper that the folder has")
    add("--model", metavar="NAME_OR_PATH", help="its tokenizer measures the lengths; default: the embedded model")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="where tables go; default: results/local")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    console = open_console(quiet=arguments.json)
    found = chosen(all_findings(), arguments.findings)
    if not arguments.list:
        for finding in found:
            print_finding(finding, console)
        console.print()
    print_table(summary_table(found), "Summary", console)
    console.print(count_line(found), highlight=False)
    if arguments.list or arguments.findings:
        answer(arguments, findings=rows_of(summary_table(found)), figures=rows_of(long_table(found)))
        return 0
    command = shlex.join(["python", "-m", "benchmarks.audit", *(sys.argv[1:] if argv is None else argv)])
    measured, notes = _measure(arguments, console)
    store = RunStore.open(arguments.results)
    paths = write(found, measured, notes, folder=store.root / "tables", command=command, console=console)
    console.print(f"tables: {', '.join(str(path) for path in paths)}", highlight=False, soft_wrap=True)
    if store.is_scratch:
        console.print("the work tree has changes, so these tables are scratch: commit, then run again")
    answer(arguments, findings=rows_of(summary_table(found)), figures=rows_of(long_table(found)), tables=paths)
    return 0


def _measure(arguments: argparse.Namespace, console: Console) -> tuple[dict[str, Lengths], list[str]]:
    """Lengths of the data at hand and what they say of the printed ones; none without a folder."""
    folder, model = arguments.data_dir, arguments.model
    if folder is None:
        if model is not None or arguments.tasks is not None:
            raise UserError("--model and --tasks say how to measure --data-dir; give that, too")
        return {}, []
    from benchmarks.models import embedded_model, find_model, load_tokenizer
    from benchmarks.properties import measure_folder, remarks

    ref = find_model(model) if model else embedded_model("MiniLM-L6 (BERT's uncased word pieces)")

    def report(line: str) -> None:
        console.print(f"measured {line}", highlight=False)

    measured = measure_folder(folder, load_tokenizer(ref), arguments.tasks, report)
    return measured, remarks(measured, ref.title)


def write(
    found: Sequence[Finding],
    measured: dict[str, Lengths],
    notes: Sequence[str],
    *,
    folder: Path,
    command: str,
    console: Console,
) -> list[Path]:
    """Print Tables 1 and 2 and write all three tables as Markdown and CSV into `folder`; returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    from benchmarks.properties import design_table, shown, task_table

    one, two = design_table(), task_table(measured)
    print_table(shown(one), "Table 1: the methods by design", console)
    print_table(shown(two), "Table 2: the tasks", console)
    for note in notes:
        console.print(note, highlight=False)
    texts = {
        "audit": (markdown(found, command), long_table(found)),
        "table1": (_page("Table 1: the methods by design", one, [], command), one),
        "table2": (_page("Table 2: the tasks", two, notes, command), two),
    }
    written = (write_table(folder, name, frame, [text], float_format=None) for name, (text, frame) in texts.items())
    return [path for paths in written for path in reversed(paths)]


def _page(heading: str, frame: pd.DataFrame, notes: Sequence[str], command: str) -> str:
    from benchmarks.properties import shown

    table = shown(frame).to_markdown(index=False, disable_numparse=True)
    listed = ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join([f"# {heading}", f"Command: `{command}`", table, *listed])


if __name__ == "__main__":
    sys.exit(run_command(main))
