"""The targets of speed: what every case reached, by its records, and where the time goes in those that miss.

`--measure` takes the records first, cell by cell: each is a run of `benchmarks.latency` or `benchmarks.training_time`
of a few minutes, on one thread or on a GPU, and what is there already is not measured again. `--notes` profiles every
cell of a CPU with a miss, at the same shapes, and writes a page for each. Without either, the records that there are
get judged. Realisation is against the dense model without padding: time ratio over FLOPs ratio.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import attention_time, latency, latency_profile, training_time
from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import write_table
from benchmarks.latency_cells import ATTENTION, SCHEDULES, TRAINING, Cell, Row, cells, judged, newest
from benchmarks.runs import RunStore

if TYPE_CHECKING:
    import pandas as pd

TABLE = "latency_targets"
PROFILE_ROUNDS = 3


def frame_of(rows: Sequence[Row], root: Path) -> pd.DataFrame:
    """The table, as it is printed; a miss names its page below `root`, where there is one."""
    import pandas as pd

    on_gpu = {cell.name for cell in cells().values() if cell.device == "cuda"}

    def verdict(row: Row) -> str:
        page = f"notes/latency-{row.cell}.md"
        if not row.met and row.cell in on_gpu:
            return "missed"
        return "met" if row.met else f"missed, see {page}" if (root / page).is_file() else "missed, --notes profiles it"

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return pd.DataFrame(
        {
            "Case": [row.title for row in rows],
            "Method": [row.name for row in rows],
            "At": [row.at for row in rows],
            "Quantity": [row.quantity for row in rows],
            "Target": [row.target for row in rows],
            "Wall": [shown(row.value) for row in rows],
            "CPU": [shown(row.cpu) for row in rows],
            "Bound": [shown(row.bound) for row in rows],
            "Verdict": [verdict(row) for row in rows],
            "records": [row.record for row in rows],
        }
    )


NOTE = """\
*Wall* decides; *CPU* is the same from processor time, which does not see others on the machine. *Bound*: the
realisation of the bare matrix products and attention calls at the same sizes, where they were replayed: with few tokens
every weight is still read once, and no engine gets beyond that."""


def write(rows: Sequence[Row], absent: Sequence[str], root: Path, command: str) -> list[Path]:
    """Write the table (CSV, Markdown) below `root`; returns the paths."""
    frame, known = frame_of(rows, root), cells()
    parts = ["# Targets of speed", f"Command: `{command}`", NOTE]
    for device in ("cpu", "cuda"):
        if names := " ".join(name for name in absent if known[name].device == device):
            where = "on a machine with a CUDA device" if device == "cuda" else "on an idle machine"
            measure = f"python -m benchmarks.{TABLE} --results results --measure {names}"
            parts.append(f"Not measured yet; `{measure}`, {where}, measures these targets.")
    parts.append(frame.to_markdown(index=False, disable_numparse=True))
    return write_table(root / "tables", TABLE, frame, parts, float_format=None)


def note(cell: Cell, missed: Sequence[Row], folder: Path, command: str) -> Path:
    """Profile what missed in a cell, and write its page."""
    import torch

    torch.set_num_threads(1)
    wanted = list(dict.fromkeys(row.method for row in missed if row.method not in ("", "dense")))
    if cell.kind == latency.KIND:
        frame, text = _latency_profile(cell, wanted, list(dict.fromkeys(row.at for row in missed)))
    else:
        frame, text = _operators(cell, {(row.method, row.at) for row in missed})
    said = "; ".join(
        ": ".join(part for part in (f"{row.name} {row.at}".strip(), f"{row.quantity} {row.value:.2f}") if part)
        + f", target {row.target}"
        for row in missed
    )
    path = folder / f"latency-{cell.name}.md"
    latency_profile.write_page(path, f"Where the time goes: {cell.title}", command, f"Missed: {said}.\n\n{text}", frame)
    return path


def _latency_profile(cell: Cell, wanted: Sequence[str], at: Sequence[str]) -> tuple[pd.DataFrame, str]:
    from benchmarks.latency_measure import texts_of

    arguments = latency.parser().parse_args(cell.arguments)
    bench = latency.bench_of(arguments, arguments.tasks[0])
    texts = texts_of(bench, arguments.batch_sizes[0])
    texts = replace(texts, features=texts.features[: texts.batch_size])
    schedules = [schedule for schedule in SCHEDULES if schedule in at] or [arguments.schedule[-1]]
    frame = latency_profile.profile(bench.model, texts, wanted, schedules, PROFILE_ROUNDS)
    return frame, latency_profile.note_of(bench.dtype)


def _operators(cell: Cell, missed: set[tuple[str, str]]) -> tuple[pd.DataFrame, str]:
    """Processor time by torch operator, of the subjects that missed beside what they are compared with."""
    from benchmarks.train import Compute

    runs: dict[str, Callable[[], object]]
    if cell.name == ATTENTION:
        runs = attention_time.runs()
    else:
        kept = {training_time.STOCK} | {f"{method}@{stage}" for method, stage in missed}
        names = sorted({method for method, _ in missed} - {"dense"})
        found = training_time.steps_of(training_time.LENGTHS, names, Compute())
        runs = {step.key: step.run for step in found if step.key in kept}
    return latency_profile.operators(runs), "Milliseconds of processor time that torch's operators take themselves."


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.latency_targets",
        description=__doc__,
        epilog=f"example:\n  python -m benchmarks.latency_targets --measure batch1 {TRAINING} --notes\n"
        f"cells: {', '.join(cells())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--measure",
        nargs="*",
        metavar="CELL",
        help="measure these cells first where they lack a record; alone: all that this machine can",
    )
    add("--notes", action="store_true", help="profile the cells with a miss")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="default: results/local")
    add("--force", action="store_true", help="measure again what is there already")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 where a cell could not be measured."""
    arguments = parser().parse_args(argv)
    known, wanted = cells(), arguments.measure
    for name in wanted or ():
        if name not in known:
            raise UserError(f"--measure takes cells, {', '.join(known)}; got '{name}'")
    store = RunStore.open(arguments.results, force=arguments.force)
    chosen = [name for name in known if wanted is not None and name in (wanted or _measurable(known))]
    failed = [f"{name}: {error}" for name in chosen for error in _measure(known[name], store, quiet=arguments.json)]
    records = {name: record for name, cell in known.items() if (record := newest(store.root, cell)) is not None}
    rows = [row for name, record in records.items() for row in judged(known[name], record)]
    console = open_console(quiet=arguments.json)
    command = shlex.join(["python", "-m", f"benchmarks.{TABLE}", *(sys.argv[1:] if argv is None else argv)])
    if not rows:
        raise UserError(f"no cell has a record in {store.root}; --measure takes them")
    for name in records if arguments.notes else ():
        missed = [row for row in rows if row.cell == name and not row.met]
        if missed and known[name].device == "cpu":
            path = note(known[name], missed, store.root / "notes", command)
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
    frame = frame_of(rows, store.root)
    print_table(frame.drop(columns="records"), "Targets of speed", console)
    absent = [name for name in known if name not in records]
    paths = write(rows, absent, store.root, command)
    for path in paths:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), absent=absent, failures=failed, tables=paths, command=command)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _measurable(known: Mapping[str, Cell]) -> list[str]:
    """Names of the cells that this machine can measure."""
    import torch

    return [name for name, cell in known.items() if cell.device == "cpu" or torch.cuda.is_available()]


def _measure(cell: Cell, store: RunStore, *, quiet: bool) -> list[str]:
    """Take a cell's record where there is none; returns what failed."""
    if cell.kind == latency.KIND:
        return latency.taken(latency.parser().parse_args(cell.arguments), store, quiet=quiet)[1]
    if cell.kind == training_time.KIND:
        record = training_time.taken(training_time.parser().parse_args(cell.arguments), store)
    else:
        record = attention_time.measure(store)
    return [] if record["status"] == "ok" else [record["error"]]


if __name__ == "__main__":
    sys.exit(run_command(main))
