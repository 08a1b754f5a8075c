"""Wall-clock time of every method against dense models on real texts, interleaved in one process.

Stock transformers (padded to the batch, and in batches sorted by length), our engine keeping everything, and the
methods, trained (--trained, --reducer) or forced to a schedule on random weights of BERT-base's shape. Realisation is
the ratio of times over the ratio of FLOPs: 1 where all of the saving is time saved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli import OWN_RESULTS, PADDINGS, run_command
from benchmarks.console import add_json_flag, answer, open_console, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.runs import Record, RunConfig, RunStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmarks.data import DataSource
    from benchmarks.latency_subjects import Texts
    from benchmarks.models import ModelRef
    from benchmarks.tasks import Task
    from methods import TokenReducer

KIND = "latency"
RANDOM_SHAPE = "random:bert-base"
SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads")
BATCH_SIZES, SCHEDULES, ROUNDS = (1, 32), ("4x",), 4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A command's checked arguments and what they name."""

    task: Task
    source: DataSource
    tokens: ModelRef  # whose tokenizer reads the texts
    model: PreTrainedModel
    identity: str
    methods: tuple[str, ...]
    reducers: Mapping[str, TokenReducer]  # by the key of their subject
    schedules: tuple[str, ...]
    paddings: tuple[str, ...]
    rounds: int
    threads: int
    texts: int | None
    dtype: str
    device: str
    peers: tuple[str, ...] = ()
    absent_peers: tuple[tuple[str, str], ...] = ()  # asked for, and why they cannot run here
    times_only: bool = False

    def config(self, texts: Texts) -> RunConfig:
        """All that decides what is timed, the machine's kind included."""
        from benchmarks.data import count_texts
        from benchmarks.environment import machine

        ids = json.dumps([feature["input_ids"] for feature in texts.features])
        return RunConfig(
            kind=KIND,
            task=self.task.name,
            method="interleaved",
            backbone=self.identity,
            data={
                "source": self.source.kind,
                "revision": self.task.revision,
                "texts": count_texts(texts.features),
                "sha256": hashlib.sha256(ids.encode()).hexdigest()[:16],
            },
            seed=None,
            max_length=self.task.sequence_length,
            dtype=self.dtype,
            device=self.device,
            extra={
                "batch_size": texts.batch_size,
                "methods": self.methods,
                "reducers": list(self.reducers),
                "schedules": self.schedules,
                "paddings": self.paddings,
                "rounds": self.rounds,
                "threads": self.threads,
                "machine": machine(self.device),
                **({"peers": self.peers} if self.peers else {}),
                **({"times_only": True} if self.times_only else {}),
            },
        )


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.latency --batch-sizes 1 32 --schedule 2x 4x 6x --threads 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--model",
        metavar="NAME_OR_PATH",
        help="encoder to time, or whose tokenizer reads for a --reducer without one; "
        "default: random weights of BERT-base's shape",
    )
    add("--data-dir", metavar="DIR", type=Path, help="folder with <task>/<split>.*; default: the embedded texts")
    add("--tasks", nargs="+", metavar="TASK", default=["vader_sentiment"], help="whose texts; default: vader_sentiment")
    add("--max-length", type=int, metavar="N", help="cut texts, and pad `sequence`, to N tokens; default: the task's")
    add("--methods", nargs="+", metavar="METHOD", help="forced to --schedule; default: all")
    add("--schedule", nargs="+", metavar="S", default=list(SCHEDULES), help="speed-ups (4x) or shares (1,0.8,...)")
    add("--reducer", nargs="+", metavar="DIR", type=Path, help="time trained reducers instead, as they are")
    add("--trained", action="store_true", help="the same with the newest ones that a command left for the task")
    add("--peers", nargs="*", metavar="PEER", help="time other dense ways, too: onnxruntime, ...; alone: all there are")
    add("--times-only", action="store_true", help="no replays of bare products, no memory: half the time")
    add("--batch-sizes", nargs="+", type=int, metavar="N", default=list(BATCH_SIZES), help="default: 1 32")
    add("--texts", type=int, metavar="N", help="texts per pass; default: two batches, at least 8")
    add(
        "--padding",
        nargs="+",
        metavar="SETTING",
        default=["batch", "none"],
        help="of the dense baseline: none, batch, sequence; default: batch none",
    )
    add("--threads", type=int, metavar="N", help="of torch; default: as many as torch takes")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and states; default: float32")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--rounds", type=int, metavar="N", default=ROUNDS, help=f"passes of each subject that count; default: {ROUNDS}")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="default: results/local")
    add("--force", action="store_true", help="measure again what is there already")
    add_json_flag(result)
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    from benchmarks import latency_table

    store = RunStore.open(arguments.results, force=arguments.force)
    console = open_console(quiet=arguments.json)
    records, failures = taken(arguments, store, quiet=arguments.json)
    paths = []
    command = shlex.join(["python", "-m", "benchmarks.latency", *(sys.argv[1:] if argv is None else argv)])
    if records:
        latency_table.show(records, console)
        paths = latency_table.write(records, store.root, command)
        console.print(f"tables and figure: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
        console.print(f"records: {store.root / 'runs' / KIND}", highlight=False, soft_wrap=True)
    rows = rows_of(latency_table.frame_of(records)) if records else []
    answer(arguments, rows=rows, failures=failures, tables=paths, records=store.root / "runs" / KIND, command=command)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def taken(arguments: argparse.Namespace, store: RunStore, *, quiet: bool = False) -> tuple[list[Record], list[str]]:
    """The records that a command line asks for, measured where there are none, and what failed."""
    _check(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that sees memory logs its start and stop otherwise
    if arguments.model is None or Path(arguments.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    console = open_console(quiet=quiet)
    records, failures = [], []
    for name in dict.fromkeys(arguments.tasks):
        bench = bench_of(arguments, name)
        console.print(_introduction(bench), highlight=False)
        for batch_size in dict.fromkeys(arguments.batch_sizes):
            record = measure(bench, batch_size, store, quiet=arguments.quiet or quiet)
            if record["status"] == "ok":
                records.append(record)
            else:
                failures.append(f"{bench.task.title}, batch {batch_size}: {record['error']}")
    return records, failures


def _check(arguments: argparse.Namespace) -> None:
    from benchmarks.latency_peers import check_peers
    from benchmarks.latency_subjects import speedup_of

    for flag in ("max_length", "texts", "threads", "rounds"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")
    if min(arguments.batch_sizes) < 1:
        raise UserError(f"--batch-sizes must be at least 1, got {min(arguments.batch_sizes)}")
    for padding in arguments.padding:
        if padding not in PADDINGS:
            raise UserError(f"--padding takes {', '.join(PADDINGS)}, got '{padding}'")
    check_peers(arguments.peers or ())
    for schedule in arguments.schedule:
        speedup_of(schedule)
    if arguments.data_dir is not None and not arguments.data_dir.is_dir():
        raise UserError(f"--data-dir {arguments.data_dir} is not a folder")
    if arguments.trained and arguments.reducer:
        raise UserError("--trained finds reducers itself; leave it out with --reducer")
    forced = "methods" if arguments.methods else "schedule" if arguments.schedule != list(SCHEDULES) else None
    if forced and (arguments.trained or arguments.reducer):
        raise UserError(f"trained reducers are timed as they are; leave --{forced} out with --trained and --reducer")


def bench_of(arguments: argparse.Namespace, task_name: str) -> Bench:
    """What the flags ask for, on the texts of a task: models loaded, placed and in eval()."""
    import dataclasses

    import torch
    from torch import nn

    from benchmarks.cli import chosen_device
    from benchmarks.data import DataSource
    from benchmarks.embedded import ensure_embedded, skimbench_home
    from benchmarks.latency_peers import PEERS, absences
    from benchmarks.models import embedded_model, find_model, load_model
    from benchmarks.tasks import EMBEDDED, EMBEDDED_LONG, get_task

    device = chosen_device(arguments.device)
    task = get_task(task_name, arguments.data_dir)
    task = dataclasses.replace(task, sequence_length=arguments.max_length) if arguments.max_length else task
    embedded = arguments.data_dir is None
    if embedded:
        if task.name not in (*EMBEDDED, *EMBEDDED_LONG):
            raise UserError(
                f"the texts of {task.name} are not embedded; give --data-dir, or one of {', '.join(EMBEDDED)}"
            )
        if ensure_embedded(skimbench_home(), [task.name])[task.name] is None:
            raise UserError(f"the texts of {task.name} could not be had; run ./reproduce.sh setup with a network once")
    tokens = find_model(arguments.model) if arguments.model else embedded_model()
    identity = tokens.identity
    reducers = _reducers(arguments, task, tokens)
    if arguments.reducer:
        beside = _tokens(reducers, tokens, named=arguments.model is not None)
        tokens, identity = beside, identity if arguments.model else beside.identity
    torch.manual_seed(0)
    if reducers:
        model = reducers[0][1].model
    elif arguments.model:
        model = load_model(tokens, task)
    else:
        model, identity = _random_model(task), RANDOM_SHAPE
    _check_fit(model, reducers, arguments.schedule)
    peers = () if arguments.peers is None else tuple(dict.fromkeys(arguments.peers)) or PEERS
    absent = absences(peers, device)
    dtype = getattr(torch, arguments.dtype)
    for module in (model, *(reducer for _, reducer in reducers)):
        nn.Module.to(module, device=device, dtype=dtype).eval()
    return Bench(
        task=task,
        source=DataSource("embedded") if embedded else DataSource("data_dir", arguments.data_dir),
        tokens=tokens,
        model=model,
        identity=identity,
        methods=() if reducers else _methods(arguments.methods, task),
        reducers={_key(*one): one[1] for one in reducers},
        schedules=() if reducers else tuple(dict.fromkeys(arguments.schedule)),
        paddings=tuple(padding for padding in PADDINGS if padding in arguments.padding),
        rounds=arguments.rounds,
        threads=torch.get_num_threads(),
        texts=arguments.texts,
        dtype=arguments.dtype,
        device=device,
        peers=tuple(peer for peer in peers if peer not in absent),
        absent_peers=tuple(absent.items()),
        times_only=arguments.times_only,
    )


def _check_fit(model: PreTrainedModel, reducers: Sequence[tuple[Path, TokenReducer]], schedules: Sequence[str]) -> None:
    """Refuse shares that are not one per layer, and reducers whose dense model is another."""
    import methods

    backbone = methods.create("dense", model).backbone
    for schedule in schedules:
        if "," in schedule and len(schedule.split(",")) != backbone.num_layers:
            raise UserError(
                f"--schedule {schedule} has {len(schedule.split(','))} shares for {backbone.num_layers} layers"
            )
    for folder, reducer in reducers:
        if any(getattr(reducer.backbone, size) != getattr(backbone, size) for size in SIZES):
            raise UserError(f"the reducer {folder} is on a model of other sizes than {reducers[0][0]}; time them apart")


def _random_model(task: Task) -> PreTrainedModel:
    import transformers

    head = "QuestionAnswering" if task.kind == "span_qa" else "SequenceClassification"
    config = transformers.AutoConfig.for_model("bert", num_labels=task.num_labels)
    return getattr(transformers, f"BertFor{head}")(config)


def _methods(wanted: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    import methods
    from benchmarks.experiments import supports

    names = wanted or methods.available()
    for name in names:
        try:
            methods.lookup(name)
        except KeyError as error:
            raise UserError(str(error.args[0])) from error
    return tuple(name for name in dict.fromkeys(names) if name != "dense" and supports(name, task) is None)


def _reducers(arguments: argparse.Namespace, task: Task, model: ModelRef) -> list[tuple[Path, TokenReducer]]:
    import methods
    from benchmarks.case_study import checkpoints
    from benchmarks.embedded import skimbench_home

    folders = list(arguments.reducer or ())
    if arguments.trained:
        found = checkpoints(skimbench_home(), model, pair=len(task.text_columns) == 2, task=task)
        folders = [checkpoint.folder for checkpoint in found]
        if not folders:
            raise UserError(
                f"no trained reducer of {task.name} in {skimbench_home() / 'checkpoints'}; train some first"
            )
    loaded = []
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise UserError(f"cannot load the reducer {folder}: give a folder that `save_pretrained` wrote")
        try:
            loaded.append((folder, methods.load(str(folder))))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"cannot load the reducer {folder}: {error}") from error
    return loaded


def _tokens(reducers: Sequence[tuple[Path, TokenReducer]], model: ModelRef, *, named: bool) -> ModelRef:
    """Whose tokenizer reads the texts for all reducers; see `benchmarks.models.beside_reducer`."""
    from benchmarks.models import beside_reducer, load_tokenizer

    first, *others = (beside_reducer(*one, model, named=named) for one in reducers)
    words = load_tokenizer(first).get_vocab()
    for other in others:
        if other != first and load_tokenizer(other).get_vocab() != words:
            raise UserError(f"the tokenizers of {first.source} and {other.source} differ; time their reducers apart")
    return first


def _key(folder: Path, reducer: TokenReducer) -> str:
    """Tells a saved reducer from all others, those of the same folder at another time included; its name is the end."""
    from benchmarks.models import saved_identity

    return f"{reducer.method_name}@{saved_identity(folder)}/{folder.name}"


def _introduction(bench: Bench) -> str:
    weights = (
        "random weights of BERT-base's shape, so times only" if bench.identity == RANDOM_SHAPE else bench.tokens.title
    )
    absent = "".join(f"; {peer} is left out: {reason}" for peer, reason in bench.absent_peers)
    return f"{bench.task.title}: {weights}; {bench.dtype}, {bench.threads} threads, {bench.device}{absent}"


def measure(bench: Bench, batch_size: int, store: RunStore, *, quiet: bool = False) -> Record:
    """The record of one batch size; measured if there is none."""
    from benchmarks.latency_measure import compute, texts_of

    texts = texts_of(bench, batch_size)
    return store.run(bench.config(texts), lambda: compute(bench, texts, quiet=quiet))


if __name__ == "__main__":
    sys.exit(run_command(main))
