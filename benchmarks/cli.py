"""What all commands share: flags, profiles, how they fail and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import Parser, UserError
from benchmarks.place_flags import add_place_flags, chosen_place, device_elsewhere
from benchmarks.runs import RESULTS, RunStore
from benchmarks.team import current, joined

if TYPE_CHECKING:
    from benchmarks.data import DataSource
    from benchmarks.experiments import DenseTraining, Setting
    from benchmarks.models import ModelRef
    from benchmarks.places import Place
    from benchmarks.suite import Suite
    from benchmarks.tasks import Task
    from benchmarks.team import Team

PROFILES = ("embedded", "local", "paper")
PADDINGS = ("none", "batch", "sequence")
# Apart from the published records in results/, so that a first run computes and does not just read ours.
OWN_RESULTS = RESULTS / "local"
DTYPE_RULE = "default --dtype: bfloat16 where the processor has matrix units for it; in the paper profile float32"
# Not avx512_bf16: its dot products reach half the float32 rate on some processors.
BFLOAT16_FEATURE = "amx_bf16"
COUNTS = ("max_train_samples", "dense_train_samples", "dense_epochs", "max_eval_samples", "max_length")
PAPER_SEEDS, ONE_SEED = (42, 43, 44), (42,)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A command's checked arguments."""

    suite: Suite
    profile: str
    setting: Setting
    models: tuple[ModelRef, ...]
    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    paddings: tuple[str, ...]
    seeds: tuple[int, ...]
    results: Path
    place: Place
    force: bool
    retry_failed: bool
    dry_run: bool
    quiet: bool

    def setting_for(self, task: Task) -> Setting:
        """The setting of runs on `task`; in the embedded profile with the suite's numbers of rows unless given."""
        if self.profile != "embedded":
            return self.setting
        train_rows, eval_rows = self.suite.rows_of.get(task.name, self.suite.embedded_rows)
        return replace(
            self.setting,
            max_train_samples=self.setting.max_train_samples or train_rows,
            max_eval_samples=self.setting.max_eval_samples or eval_rows,
        )

    def store(self) -> RunStore:
        """The command's run store; made once, as it knows which records are its own."""
        return RunStore.open(self.results, force=self.force, retry_failed=self.retry_failed)


def parser(suite: Suite, *, unpadded: bool = False) -> argparse.ArgumentParser:
    """A parser with the shared flags; without --padding where all speed-ups of a command are `unpadded`."""
    defaults = [
        f"{rows}{''.join(f', {name} {of[place]}' for name, of in suite.rows_of.items())}"
        for place, rows in enumerate(suite.embedded_rows)
    ]
    result = Parser(
        prog=suite.program,
        description=suite.description,
        epilog=f"example:\n  {suite.program} {suite.example}\n\n{DTYPE_RULE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--profile", choices=PROFILES, help="what to run on; default: paper with a GPU and the hub, else embedded")
    add("--model", metavar="NAME_OR_PATH", help="pre-trained encoder (local profile; default there: the embedded one)")
    add("--data-dir", metavar="DIR", type=Path, help="folder with <task>/<split>.parquet|tsv|csv|jsonl (local profile)")
    add("--tasks", nargs="+", metavar="TASK", help="default: all of the profile; of --data-dir, all that are there")
    add("--methods", nargs="+", metavar="METHOD", help="default: all; dense is always run")
    if not unpadded:
        add("--padding", nargs="+", metavar="SETTING", help="none, batch, sequence; default: all")
    result.set_defaults(padding=["none"] if unpadded else list(PADDINGS))
    add("--seeds", nargs="+", type=int, metavar="N", help="default: 42, in the paper profile 42 43 44")
    add("--recipe", choices=("paper", "short"), help="training recipe; default: short, in the paper profile paper")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), help="of matrix products; default: see below")
    add_place_flags(result)
    add("--max-train-samples", type=int, metavar="N", help=f"train on N random rows per task; embedded: {defaults[0]}")
    add(
        "--dense-train-samples",
        type=int,
        metavar="N",
        help="train the dense model, from which methods start, on N random rows; default: as --max-train-samples",
    )
    add(
        "--dense-epochs",
        type=int,
        metavar="N",
        help="train the dense model N epochs; default: the recipe's",
    )
    add("--dense-learning-rate", type=float, metavar="R", help="of the dense model; default: the recipe's")
    add(
        "--dense-keep",
        choices=("last", "best"),
        default="last",
        help="which epoch of the dense model: the last (default), or the best on held-out training rows, which no "
        "method is trained on either",
    )
    add("--max-eval-samples", type=int, metavar="N", help=f"score on N random rows per task; embedded: {defaults[1]}")
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="cut texts, and pad `sequence`, to N tokens; default: the task's length",
    )
    add(
        "--results",
        type=Path,
        metavar="DIR",
        default=OWN_RESULTS,
        help="where records and tables go; default: results/local",
    )
    add("--force", action="store_true", help="compute again what is there already")
    add(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try again the runs that failed in an earlier command (default), or leave them so",
    )
    add("--dry-run", action="store_true", help="list the runs and what they cost, and stop")
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="show where an error came from")
    return result


def open_session(arguments: argparse.Namespace, suite: Suite) -> Session:
    """Check the shared flags.

    Raises:
        UserError: a value that cannot be used; it says which and what can.
    """
    if arguments.profile != "paper" and (arguments.profile or arguments.model or arguments.data_dir):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library asks: no run below needs the network
    import methods
    from benchmarks.experiments import Setting
    from benchmarks.train import Compute

    profile = arguments.profile or _default_profile(arguments)
    if getattr(arguments, "from_records", False):
        device = arguments.device or "cpu"  # computes nothing there
    else:
        device = device_elsewhere(arguments) or chosen_device(arguments.device)
    place = chosen_place(arguments, device)
    check_counts(arguments, COUNTS)
    for padding in arguments.padding:
        if padding not in PADDINGS:
            raise UserError(f"--padding takes {', '.join(PADDINGS)}, got '{padding}'")
    check_seeds(arguments.seeds or ())
    source = source_of(profile, arguments.data_dir)
    names = arguments.tasks or suite.tasks[profile]
    if profile == "local" and not arguments.tasks:
        from benchmarks.task_folders import tasks_in

        names = tasks_in(arguments.data_dir, names)
    wanted = arguments.methods or methods.available()
    for name in wanted:
        try:
            methods.lookup(name)
        except KeyError as error:
            raise UserError(str(error.args[0])) from error
    return Session(
        suite=suite,
        profile=profile,
        setting=Setting(
            recipe=arguments.recipe or ("paper" if profile == "paper" else "short"),
            source=source,
            compute=Compute(
                device=device, dtype=arguments.dtype or default_dtype(profile, device), processes=current().size
            ),
            max_train_samples=arguments.max_train_samples,
            max_eval_samples=arguments.max_eval_samples,
            dense=_dense_training(arguments),
        ),
        models=models_of(profile, arguments.model, tuple(suite.encoders)),
        tasks=tuple(_task(name, arguments) for name in dict.fromkeys(names)),
        methods=tuple(dict.fromkeys(("dense", *wanted))),
        paddings=tuple(padding for padding in PADDINGS if padding in arguments.padding),
        seeds=tuple(arguments.seeds or (PAPER_SEEDS if profile == "paper" else ONE_SEED)),
        results=arguments.results,
        place=place,
        force=arguments.force,
        retry_failed=arguments.retry_failed,
        dry_run=arguments.dry_run,
        quiet=arguments.quiet,
    )


def _dense_training(arguments: argparse.Namespace) -> DenseTraining | None:
    from benchmarks.experiments import DenseTraining

    samples, epochs, rate = arguments.dense_train_samples, arguments.dense_epochs, arguments.dense_learning_rate
    if rate is not None and not 0 < rate < 1:
        raise UserError(f"--dense-learning-rate takes a number between 0 and 1, such as 5e-5; got {rate:g}")
    if samples is not None and arguments.max_train_samples is not None and samples < arguments.max_train_samples:
        raise UserError(
            f"--dense-train-samples {samples} is less than --max-train-samples {arguments.max_train_samples}; methods "
            "train on rows that the dense model has seen"
        )
    if samples is None and epochs is None and rate is None and arguments.dense_keep == "last":
        return None
    return DenseTraining(samples=samples, epochs=epochs, learning_rate=rate, keep=arguments.dense_keep)


def check_from_records(arguments: argparse.Namespace) -> None:
    """Refuse a `--from-records`, which computes nothing, beside `--force`, which computes again."""
    if arguments.from_records and arguments.force:
        raise UserError("--from-records trains nothing and --force computes again: give one of them")


def check_counts(arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    """Refuse a count below 1; `flags` as attributes are named."""
    for flag in flags:
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that no generator takes, and one given twice."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds takes whole numbers from 0 to {2**32 - 1}, got {seed}")
        if seeds.count(seed) > 1:
            raise UserError(f"--seeds has {seed} twice; give each seed once")


def _task(name: str, arguments: argparse.Namespace) -> Task:
    from benchmarks.tasks import get_task

    task = get_task(name, arguments.data_dir)
    return replace(task, sequence_length=arguments.max_length) if arguments.max_length else task


def _default_profile(arguments: argparse.Namespace) -> str:
    if arguments.model or arguments.data_dir:
        return "local"
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return "embedded"
    from benchmarks.hub import hub_is_reachable

    return "paper" if hub_is_reachable() else "embedded"


def source_of(profile: str, data_dir: Path | None) -> DataSource:
    """Where a profile reads its rows.

    Raises:
        UserError: the folder is missing or not asked for.
    """
    from benchmarks.data import DataSource

    if profile == "local":
        if data_dir is None:
            raise UserError("the local profile needs --data-dir, a folder with <task>/<split>.parquet|tsv|csv|jsonl")
        if not data_dir.is_dir():
            raise UserError(f"--data-dir {data_dir} is not a folder")
        return DataSource("data_dir", data_dir)
    if data_dir is not None:
        raise UserError(f"the {profile} profile has its own data; use --profile local with --data-dir")
    return DataSource("embedded" if profile == "embedded" else "hub")


def models_of(profile: str, name: str | None, encoders: tuple[str, ...]) -> tuple[ModelRef, ...]:
    """The encoders of a profile; `name` is what `--model` says.

    Raises:
        UserError: the profile has its own.
    """
    from benchmarks.models import PAPER_MODELS, embedded_model, find_model, hub_model

    if name is not None:
        if profile == "embedded":
            raise UserError("the embedded profile has its own model; use --profile local with --model")
        return (find_model(name),)
    if profile == "paper":
        return tuple(hub_model(title, PAPER_MODELS[title]) for title in encoders)
    return (embedded_model(),)


def chosen_device(name: str | None) -> str:
    """The device that `--device` names, or the best there is; a UserError where it is not usable."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable CUDA device; use --device cpu")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(profile: str, device: str) -> str:
    """Of matrix products, unless given: see `DTYPE_RULE`."""
    import torch

    from benchmarks.environment import environment

    if profile == "paper":
        return "float32"
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if BFLOAT16_FEATURE in environment()["cpu"]["features"] else "float32"


def _help(team: Team) -> int:
    from benchmarks.running import help_train

    return help_train(team)


def run_command(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Call a command's main and turn what went wrong into one sentence and an exit status (1 failed, 2 bad usage)."""
    debug = "--debug" in (sys.argv if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with joined() as team:
            return command(argv) if team.leads else _help(team)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"error: {type(error).__name__}: {error}; add --debug to see where", file=sys.stderr)
        return 1
