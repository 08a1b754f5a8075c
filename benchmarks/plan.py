"""How long the paper profile takes on so many devices, from a throughput measured here or by earlier runs.

    python -m benchmarks.plan                              # a short measurement on this device, then 1 to 64 of them
    python -m benchmarks.plan --suites glue --gpus 4 --records results/local

Runs start in the order of the executor, the longest first, each when those that it needs have ended; one device takes
one run at a time. Start-up, downloads and reading come on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli import Session, chosen_device, open_session, parser, run_command
from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.costs import Expected, expected_runs, makespan
from benchmarks.errors import Parser, UserError
from benchmarks.formulas import BERT_BASE, encoder_macs
from benchmarks.progress import duration

if TYPE_CHECKING:
    from benchmarks.suite import Suite

LENGTHS = (32, 128, 512)  # tokens at which throughput is measured: short texts keep a device less busy
BATCH_SIZES = {"cuda": 32, "cpu": 2}  # a CPU is as busy with few
LEAST_UPDATES, LEAST_S = 3, 1.0
PASSES = 3  # a training update in forward passes


@dataclass(frozen=True)
class Throughput:
    """FLOP/s of training, by length in tokens, and where it comes from."""

    rates: dict[int, float]
    source: str

    def seconds(self, run: Expected) -> float:
        """What a run takes at the rate of the next longer length that is known."""
        longer = [length for length in sorted(self.rates) if length >= run.tokens]
        return run.flops / self.rates[longer[0] if longer else max(self.rates)]

    def __str__(self) -> str:
        rates = [(f" at {length} tokens" if length else "", rate / 1e12) for length, rate in self.rates.items()]
        return f"{', '.join(f'{rate:.3g} TFLOP/s{where}' for where, rate in rates)} ({self.source})"


def measure(device: str, dtype: str) -> Throughput:
    """Time training updates of a BERT-base with random weights, which cost what trained ones do."""
    import torch
    import transformers

    from benchmarks.train import Compute

    compute = Compute(device=device, dtype=dtype)
    model = transformers.BertForSequenceClassification(transformers.BertConfig()).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def update(length: int) -> None:
        ids = torch.full((BATCH_SIZES[device], length), 7, device=device)
        with compute.autocast():
            loss = model(input_ids=ids, labels=torch.zeros(len(ids), dtype=torch.long, device=device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    rates = {}
    for length in LENGTHS:
        update(length)
        median = statistics.median(timed(lambda length=length: update(length)))  # type: ignore[misc]
        rates[length] = PASSES * 2 * encoder_macs(length, BERT_BASE) * BATCH_SIZES[device] / median
    return Throughput(rates, f"measured now: BERT-base, {dtype}, batches of {BATCH_SIZES[device]} on this {device}")


def timed(update: Callable[[], None]) -> list[float]:
    """Seconds of each call, some and for some time."""
    seconds: list[float] = []
    while len(seconds) < LEAST_UPDATES or sum(seconds) < LEAST_S:
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    return seconds


def recorded(folder: Path, device: str, dtype: str) -> Throughput:
    """The mean over the dense trainings in a results folder.

    Raises:
        UserError: there are none of this device and dtype.
    """
    from benchmarks.experiments import KIND
    from benchmarks.runs import CorruptRecord, read_record

    flops = seconds = 0.0
    paths = sorted((folder / "runs" / KIND).glob("*/dense-*.json"))
    for path in paths:
        try:
            record = read_record(path)
        except CorruptRecord:
            continue
        config = record["config"]
        if record["status"] != "ok" or (config["device"], config["dtype"]) != (device, dtype):
            continue
        cost = next(iter(record["metrics"]["splits"].values()))["cost"]["padding"]["none"]
        batch_size = config["stages"][0]["batch_size"]
        updates = sum(stage["updates"] for stage in record["metrics"]["training"])
        flops += PASSES * 2e9 * cost["dense_gmacs_mean"] * batch_size * updates
        seconds += record["metrics"]["train_seconds"]
    if not seconds:
        raise UserError(f"--records {folder}: no dense training with {dtype} on {device} among the records there")
    return Throughput({0: flops / seconds}, f"dense trainings with {dtype} on {device} in {folder}")


def flags() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="python -m benchmarks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--suites", nargs="+", choices=("glue", "long"), default=["glue", "long"], help="default: both")
    add("--gpus", nargs="+", type=int, metavar="N", default=[1, 2, 4, 8, 16, 32, 64], help="devices to plan for")
    add("--records", type=Path, metavar="DIR", help="results folder to take the throughput from; default: measure")
    add("--methods", nargs="+", metavar="METHOD", help="default: all")
    add("--seeds", nargs="+", metavar="N", help="default: 42 43 44")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32, as the profile")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def planned_session(suite: Suite, arguments: argparse.Namespace) -> Session:
    """The paper profile of a suite."""
    given = ["--profile", "paper", "--dtype", arguments.dtype, "--device", "cpu"]  # nothing is run
    for name in ("methods", "seeds"):
        if values := getattr(arguments, name):
            given += [f"--{name}", *values]
    return open_session(parser(suite).parse_args(given), suite)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from benchmarks import glue, long

    arguments = flags().parse_args(argv)
    for count in arguments.gpus:
        if count < 1:
            raise UserError(f"--gpus must be at least 1, got {count}")
    if arguments.records is not None and not arguments.records.is_dir():
        raise UserError(f"--records {arguments.records} is not a folder")
    suites = {"glue": glue.SUITE, "long": long.SUITE}
    sessions = {name: planned_session(suites[name], arguments) for name in dict.fromkeys(arguments.suites)}
    device = chosen_device(arguments.device)
    where = (arguments.records, device, arguments.dtype)
    throughput = recorded(*where) if arguments.records else measure(device, arguments.dtype)
    console, planned = open_console(quiet=arguments.json), {}
    console.print(f"throughput: {throughput}", highlight=False, soft_wrap=True)
    for name, session in sessions.items():
        runs = expected_runs(session)
        total = sum(run.flops for run in runs)
        console.print(f"{name}: {len(runs)} runs, {total / 1e15:.3g} PFLOPs", highlight=False)
        seconds = {count: makespan(runs, count, throughput.seconds) for count in sorted(set(arguments.gpus))}
        for count, needed in seconds.items():
            console.print(f"  {count:3d} x this device: {duration(needed)}", highlight=False)
        planned[name] = {"runs": len(runs), "flops": total, "seconds_by_devices": seconds}
    answer(arguments, throughput=str(throughput), suites=planned)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
