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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import latency, latency_profile, training_time
from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import writing
from benchmarks.runs import CorruptRecord, Record, RunConfig, RunStore, read_record

if TYPE_CHECKING:
    import pandas as pd

TABLE = "latency_targets"
TEXTS = "orange_20news"  # the longest that are embedded
LIGHT = ("transkimmer", "tr_bert", "lot", "deebert", "pabee")  # decide by hidden states
RANKING = ("power_bert", "lat", "ltp", "top")  # decide by attention received
SCHEDULES, DTYPES = ("2x", "4x", "6x"), ("float32", "bfloat16")
ATTENTION, TRAINING = "attention", "training"
ATTENTION_TOKENS, ATTENTION_ROUNDS = 512, 20
PROFILE_ROUNDS = 3
GPU_SHAPES, GPU_ROUNDS = ((32, 128), (128, 128), (32, 512), (128, 512)), 5  # texts, tokens of the longest
GPU_LEAST = 0.80  # realisation of every method


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that targets are read from.

    Attributes:
        name: as `--measure` takes it. title: as tables print it. arguments: of the command that measures it.
        device: that it is measured on. finds: fields of a record's configuration, "extra" among them, that make it the
            cell's.
    """

    name: str
    title: str
    arguments: tuple[str, ...] = ()
    kind: str = latency.KIND
    device: str = "cpu"
    finds: Mapping[str, Any]

    def has(self, record: Record) -> bool:
        """Whether a record is one of this cell."""
        config = record["config"]
        fields = config | config["extra"]
        known = (config["kind"], config["device"]) == (self.kind, self.device)
        return known and all(fields.get(name) == value for name, value in self.finds.items())


@dataclass(frozen=True, kw_only=True)
class Row:
    """A target and what was measured; `least` or `most` is the bound, the other is None."""

    cell: str
    title: str
    method: str
    name: str
    at: str
    quantity: str
    value: float
    cpu: float | None
    bound: float | None = None
    least: float | None = None
    most: float | None = None
    record: str = ""

    @property
    def met(self) -> bool:
        """Whether the wall clock is within the bound."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def target(self) -> str:
        """The bound as printed."""
        return f">= {self.least:.2f}" if self.least is not None else f"<= {self.most:.2f}"


def cells() -> dict[str, Cell]:
    """All cells, by name, in the order in which they are measured."""
    found = []
    shared: tuple[str, ...] = ("--tasks", TEXTS, "--threads", "1", "--device", "cpu", "--padding", "batch", "none")
    shared += ("--methods", *LIGHT, *RANKING, "--rounds", "3")
    single: dict[str, Any] = {
        "batch_size": 1,
        "max_length": 128,
        "threads": 1,
        "schedules": list(SCHEDULES),
        "dtype": "float32",
    }
    single["times_only"] = None  # overheads need the replays
    found.append(
        Cell(
            name="batch1",
            title="batch 1, 128 tokens, float32",
            arguments=(*shared, "--batch-sizes", "1", "--max-length", "128", "--texts", "8", "--schedule", *SCHEDULES),
            finds=single,
        )
    )
    for dtype in DTYPES:
        for size, length in ((32, 128), (8, 384)):
            for schedule in SCHEDULES:
                own = ("--batch-sizes", str(size), "--texts", str(size), "--max-length", str(length))
                found.append(
                    Cell(
                        name=f"batch{size}-{dtype}-{schedule}",
                        title=f"batch {size} x {length}, {dtype}",
                        arguments=(*shared, *own, "--dtype", dtype, "--schedule", schedule, "--times-only"),
                        finds={
                            "batch_size": size,
                            "max_length": length,
                            "threads": 1,
                            "schedules": [schedule],
                            "dtype": dtype,
                            "times_only": True,
                        },
                    )
                )
    found.append(
        Cell(
            name=TRAINING,
            title="training step, masked",
            arguments=("--threads", "1", "--device", "cpu"),
            kind=training_time.KIND,
            finds={"threads": 1, "dtype": "float32", "lengths": list(training_time.LENGTHS)},
        )
    )
    attention = f"attention with column means, {ATTENTION_TOKENS} tokens"
    found.append(Cell(name=ATTENTION, title=attention, kind="attention_time", finds={"tokens": ATTENTION_TOKENS}))
    found += map(_gpu_cell, GPU_SHAPES)
    return {cell.name: cell for cell in found}


def _gpu_cell(shape: tuple[int, int]) -> Cell:
    """Batches of one size on a GPU, every schedule in one run."""
    size, length = shape
    texts = ("--tasks", TEXTS, "--batch-sizes", str(size), "--texts", str(size), "--max-length", str(length))
    how = ("--device", "cuda", "--dtype", "bfloat16", "--padding", "batch", "none", "--rounds", str(GPU_ROUNDS))
    what = ("--methods", *LIGHT, *RANKING, "--schedule", *SCHEDULES, "--times-only")
    return Cell(
        name=f"gpu-batch{size}x{length}",
        title=f"batch {size} x {length}, bfloat16, GPU",
        arguments=(*texts, *how, *what),
        device="cuda",
        finds={"batch_size": size, "max_length": length, "dtype": "bfloat16"},
    )


def newest(root: Path, cell: Cell) -> Record | None:
    """The cell's last finished record below a results folder."""
    records = []
    for path in (root / "runs" / cell.kind).rglob("*.json"):
        try:
            record = read_record(path)
        except CorruptRecord:
            continue
        if record["status"] == "ok" and cell.has(record):
            records.append(record)
    return max(records, key=lambda record: record["started_at"], default=None)


def judged(cell: Cell, record: Record) -> Iterator[Row]:
    """The targets that a record of the cell decides."""
    shared: dict[str, Any] = {"cell": cell.name, "title": cell.title, "record": record["config_hash"]}
    if cell.name == ATTENTION:
        (wall, *_), (cpu, *_) = record["metrics"]["wall"], record["metrics"]["cpu"]
        yield Row(**shared, method="", name="", at="", quantity="time / plain", value=wall, cpu=cpu, most=1.25)
        return
    for subject in record["metrics"]["subjects"]:
        own = shared | {"method": subject["method"], "name": subject["title"]}
        if cell.name == TRAINING:
            if subject["key"] != training_time.STOCK:
                passes = subject["passes"]
                value, cpu = subject["wall"][0] / passes, subject["cpu"][0] / passes
                quantity = "time / passes of stock"
                yield Row(**own, at=subject["stage"], quantity=quantity, value=value, cpu=cpu, most=1.20)
        elif subject["key"] == "dense":
            against = subject["against"]["batch"]
            flops = 1.0 if cell.device == "cuda" else against["flops"]
            value, cpu = against["wall"][0] / flops, against["cpu"][0] / flops
            least, quantity = (0.98, "stock / time") if flops == 1 else (0.97, "gain / that of tokens")
            if cell.device == "cuda":
                least = 1.0
            yield Row(**own, at="unpadded", quantity=quantity, value=value, cpu=cpu, least=least)
        elif subject["method"] != "dense":
            yield _of_method(own, subject, cell)


def _of_method(own: Mapping[str, Any], subject: Mapping[str, Any], cell: Cell) -> Row:
    against = subject["against"]["none"]
    bound = against["bare_cpu"][0] / against["flops"] if "bare_cpu" in against else None
    if cell.name == "batch1":
        wall, cpu = (subject["overhead"][clock][0] for clock in ("wall", "cpu"))
        return Row(**own, at=subject["schedule"], quantity="overhead", value=wall, cpu=cpu, bound=bound, most=1.15)
    value, cpu = (against[clock][0] / against["flops"] for clock in ("wall", "cpu"))
    least = GPU_LEAST if cell.device == "cuda" else 0.90 if subject["method"] in RANKING else 0.95
    return Row(**own, at=subject["schedule"], quantity="realisation", value=value, cpu=cpu, bound=bound, least=least)


def measure_attention(store: RunStore) -> Record:
    """Attention of one text of BERT-base's width, with and without the scores, on one thread."""
    import torch

    from benchmarks.environment import environment
    from benchmarks.timing import Ratio, interleave

    torch.set_num_threads(1)
    extra = {"tokens": ATTENTION_TOKENS, "threads": 1, "machine": environment()["cpu"]["model"]}
    config = RunConfig(
        kind="attention_time", task="random_texts", method="scores", backbone="bert-base", data={}, seed=0, extra=extra
    )

    def compute() -> dict[str, Any]:
        with torch.inference_mode():
            samples = interleave(attention_runs(), rounds=ATTENTION_ROUNDS)
        plain, scored = samples["plain"], samples["scored"]
        return {
            "wall": Ratio.of(scored.wall_s, plain.wall_s).as_list(),
            "cpu": Ratio.of(scored.cpu_s, plain.cpu_s).as_list(),
        }

    return store.run(config, compute)


def attention_runs() -> dict[str, Callable[[], object]]:
    """What is compared."""
    import torch

    from methods.attention import packed_attention

    torch.manual_seed(0)
    query, key, value = torch.randn(3, ATTENTION_TOKENS, 12, 64).unbind()
    lengths = [ATTENTION_TOKENS]
    return {
        "plain": lambda: packed_attention(query, key, value, lengths, lengths),
        "scored": lambda: packed_attention(query, key, value, lengths, lengths, scores=True),
    }


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
    paths = [root / "tables" / f"{TABLE}.csv", root / "tables" / f"{TABLE}.md"]
    with writing(root / "tables"):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(paths[0], index=False)
        paths[1].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return paths


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
        runs = attention_runs()
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
    failed = [name for name in known if wanted is not None and name in (wanted or _measurable(known))]
    failed = [name for name in failed if not _measured(known[name], arguments, store)]
    records = {name: record for name, cell in known.items() if (record := newest(store.root, cell)) is not None}
    rows = [row for name, record in records.items() for row in judged(known[name], record)]
    from benchmarks import latency_table

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
    timed = [record for record in records.values() if record["config"]["kind"] == latency.KIND]
    paths = latency_table.write(timed, store.root, command) if timed else []
    paths = [*paths, *write(rows, absent, store.root, command)]
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


def _measured(cell: Cell, arguments: argparse.Namespace, store: RunStore) -> bool:
    """Whether a cell has its record now."""
    if cell.name == ATTENTION:
        return measure_attention(store)["status"] == "ok"
    command = training_time.main if cell.kind == training_time.KIND else latency.main
    force = ["--force"] if arguments.force else []
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        return command([*cell.arguments, "--results", str(arguments.results), *force]) == 0


if __name__ == "__main__":
    sys.exit(run_command(main))
