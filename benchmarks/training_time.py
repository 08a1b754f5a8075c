"""Time of a training step of every method, stage by stage, against the stock model's, interleaved in one process.

A step is the forward and the backward pass of one batch, in train() and so in masked mode; the optimizer's update costs
everybody the same and is left out. The stock model runs eager attention, every subject trains what its stage trains.
Stages are those of the short recipe; some need more than one pass per step by definition (a teacher, several lengths,
samples of a policy). *Passes* says how many dense steps these come to, and the last column divides by them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import write_table
from benchmarks.runs import Record, RunConfig, RunStore

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from benchmarks.tasks import Task
    from benchmarks.train import Batch, Compute
    from methods import Stage, TokenReducer

KIND = "training_time"
TABLE = "training_time"
STOCK = "stock"
TASK = "vader_sentiment"  # whose recipe is taken; the tokens are random
LENGTHS, ROUNDS = (128, 120, 96, 64), 3
UPDATES = 100  # that a stage is told it lasts
WHOLE_STEP = 3.0  # forward passes that a dense step comes to


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that is timed.

    Attributes:
        key: unique. passes: dense steps that it comes to, as the recipe says. run: the step.
    """

    key: str
    method: str
    title: str
    stage: str
    passes: float
    run: Callable[[], object]


def steps(model: PreTrainedModel, batch: Batch, names: Sequence[str], task: Task, compute: Compute) -> Iterator[Step]:
    """The stock model's step, our engine's, and one of each stage of the methods `names` after the fine-tuning.

    Args:
        model: in train(); its weights are everybody's. batch: with labels.
    """
    import methods
    from methods.recipes import FINE_TUNE

    def step(of: Any, trained: Sequence[tuple[Any, bool]]) -> Callable[[], None]:
        def run() -> None:
            for parameter, trains in trained:
                parameter.requires_grad_(trains)
                parameter.grad = None
            with compute.autocast():
                loss = of(**batch).loss
            loss.backward()

        return run

    everything = [(parameter, True) for parameter in model.parameters()]
    yield Step(key=STOCK, method="dense", title="Dense, stock", stage="", passes=1.0, run=step(model, everything))
    for name in ("dense", *names):
        options = methods.lookup(name).task_options(task, "short")
        for number, stage in enumerate(methods.create(name, model, **options).stages(task, "short")):
            if not stage.epochs or (stage.name == FINE_TUNE and name != "dense"):
                continue  # searches do not train; everybody's fine-tuning is the dense model's
            reducer = _at_stage(methods.create(name, model, **options), task, number)
            trained = _trained(reducer, stage)
            passes = type(reducer).stage_work(stage, vars(reducer.options)).passes / WHOLE_STEP
            yield Step(
                key=f"{name}@{stage.name}",
                method=name,
                title=reducer.traits.title if name != "dense" else "Dense, our engine",
                stage=stage.name,
                passes=round(passes, 4),
                run=step(reducer, trained),
            )


def _at_stage(reducer: TokenReducer, task: Task, number: int) -> TokenReducer:
    """The reducer in the middle of its stage `number`, in train(); the stages before it were begun and ended."""
    stages = reducer.stages(task, "short")
    if stages[number].teacher is not None:
        reducer.set_teacher(reducer.model)
    for stage in stages[:number]:
        reducer.begin_stage(stage, UPDATES)
        reducer.end_stage(stage)
    reducer.begin_stage(stages[number], UPDATES)
    reducer.progress = 0.5
    return reducer.train()


def _trained(reducer: TokenReducer, stage: Stage) -> list[tuple[Any, bool]]:
    """Every parameter of the reducer, and whether the stage trains it."""
    from methods.recipes import assign_parameters

    owned = {id(one) for _, members in assign_parameters(reducer, stage.groups) for one in members}
    return [(parameter, id(parameter) in owned) for parameter in reducer.parameters()]


def measure(subjects: Sequence[Step], lengths: Sequence[int], device: str, rounds: int) -> dict[str, Any]:
    """The metrics of a record."""
    from benchmarks.timing import Ratio, interleave

    samples = interleave({one.key: one.run for one in subjects}, rounds=rounds, device=device)
    dense = samples[STOCK]
    return {
        "tokens": sum(lengths),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "subjects": [
            {
                "key": one.key,
                "method": one.method,
                "title": one.title,
                "stage": one.stage,
                "passes": one.passes,
                "wall_s": [round(value, 6) for value in samples[one.key].wall_s],
                "cpu_s": [round(value, 6) for value in samples[one.key].cpu_s],
                "wall": Ratio.of(samples[one.key].wall_s, dense.wall_s).as_list(),
                "cpu": Ratio.of(samples[one.key].cpu_s, dense.cpu_s).as_list(),
            }
            for one in subjects
        ],
    }


def frame_of(record: Record) -> pd.DataFrame:
    """One row per subject, numbers as numbers."""
    import pandas as pd

    rows = []
    for one in record["metrics"]["subjects"]:
        (wall, low, high), passes = one["wall"], one["passes"]
        rows.append(
            {
                "method": one["method"],
                "title": one["title"],
                "stage": one["stage"],
                "ms": 1000 * statistics.median(one["wall_s"]),
                "time_ratio": wall,
                "time_ratio_low": low,
                "time_ratio_high": high,
                "cpu_time_ratio": one["cpu"][0],
                "passes": passes,
                "time_per_pass": wall / passes,
                "records": record["config_hash"],
            }
        )
    return pd.DataFrame(rows)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    import pandas as pd

    spread = zip(frame["time_ratio"], frame["time_ratio_low"], frame["time_ratio_high"], strict=True)
    return pd.DataFrame(
        {
            "Method": frame["title"],
            "Stage": frame["stage"],
            "ms/step": frame["ms"].map("{:.0f}".format),
            "Time": [f"{ratio:.2f}x ({low:.2f}-{high:.2f})" for ratio, low, high in spread],
            "CPU": frame["cpu_time_ratio"].map("{:.2f}x".format),
            "Passes": frame["passes"].map("{:.2f}".format),
            "Time/passes": frame["time_per_pass"].map("{:.2f}x".format),
        }
    )


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.training_time",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.training_time --methods transkimmer power_bert --threads 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--lengths", nargs="+", type=int, metavar="N", default=list(LENGTHS), help="tokens of each text of the batch")
    add("--methods", nargs="+", metavar="METHOD", help="default: all")
    add("--threads", type=int, metavar="N", help="of torch; default: as many as torch takes")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: of autocast; default: float32")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--rounds", type=int, metavar="N", default=ROUNDS, help=f"steps of each subject that count; default: {ROUNDS}")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="default: results/local")
    add("--force", action="store_true", help="measure again what is there already")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    store = RunStore.open(arguments.results, force=arguments.force)
    record = taken(arguments, store)
    if record["status"] != "ok":
        print(f"failed: {record['error']}", file=sys.stderr)
        return 1
    console = open_console(quiet=arguments.json)
    frame = frame_of(record)
    print_table(printed(frame), "A training step against the stock model's", console)
    command = shlex.join(["python", "-m", "benchmarks.training_time", *(sys.argv[1:] if argv is None else argv)])
    paths = write(record, store.root, command)
    for path in paths:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), tables=paths, command=command)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if min(arguments.lengths) < 2 or max(arguments.lengths) > 512:
        raise UserError("--lengths takes 2 to 512 tokens")
    for flag in ("threads", "rounds"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")


def taken(arguments: argparse.Namespace, store: RunStore) -> Record:
    """The record that a command line asks for, measured where there is none."""
    _check(arguments)
    import torch

    import methods
    from benchmarks.cli import chosen_device
    from benchmarks.environment import machine
    from benchmarks.latency import RANDOM_SHAPE
    from benchmarks.strategy import check_methods
    from benchmarks.train import Compute

    check_methods(arguments.methods or ())
    device = chosen_device(arguments.device)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    names = arguments.methods or [name for name in methods.available() if name != "random"]
    skipped = {"dense", *(name for name in names if "single_text" in methods.lookup(name).traits.unsupported)}
    names = [name for name in dict.fromkeys(names) if name not in skipped]
    config = RunConfig(
        kind=KIND,
        task="random_texts",
        method="interleaved",
        backbone=RANDOM_SHAPE,
        data={},
        seed=0,
        dtype=arguments.dtype,
        device=device,
        extra={
            "lengths": arguments.lengths,
            "methods": names,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
            "machine": machine(device),
        },
    )

    compute = Compute(device=device, dtype=arguments.dtype)
    lengths, rounds = arguments.lengths, arguments.rounds
    return store.run(config, lambda: measure(steps_of(lengths, names, compute), lengths, device, rounds))


def steps_of(lengths: Sequence[int], names: Sequence[str], compute: Compute) -> list[Step]:
    """Steps on random weights of BERT-base's shape and random texts of `lengths`."""
    import torch
    import transformers

    from benchmarks.latency_profile import texts_of
    from benchmarks.tasks import get_task
    from methods.families import build_model

    torch.manual_seed(0)
    shape = transformers.AutoConfig.for_model("bert", attn_implementation="eager")
    model = build_model("BertForSequenceClassification", shape).to(compute.device).train()  # type: ignore[arg-type]
    ((_, batch),) = texts_of(lengths, shape.vocab_size).batches()
    batch = compute.place(batch | {"labels": torch.zeros(len(lengths), dtype=torch.long)})
    return list(steps(model, batch, names, get_task(TASK, None), compute))


def write(record: Record, root: Path, command: str) -> list[Path]:
    """Write the table (CSV, Markdown) below `root`; returns the paths."""
    frame, extra, load = frame_of(record), record["config"]["extra"], record["metrics"]["load_average"]
    where = f"Machine: {extra['machine']}, {extra['threads']} threads, {record['config']['dtype']}; random weights of "
    where += f"BERT-base's shape; texts of {', '.join(map(str, extra['lengths']))} tokens. Load averages at the end: "
    where += f"{' '.join(f'{value:.1f}' for value in load)}; above the threads, *CPU* is the column to read."
    assert __doc__ is not None
    parts = ["# A training step", f"Command: `{command}`", where, __doc__.strip()]
    parts.append(printed(frame).to_markdown(index=False, disable_numparse=True))
    return write_table(root / "tables", TABLE, frame, parts)


if __name__ == "__main__":
    sys.exit(run_command(main))
