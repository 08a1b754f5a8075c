"""What this checkpoint reaches without anything of ours: the library's own model in a bare loop, scored every epoch.

AdamW, the learning rate falling to 0 in a line, random batches, all training rows, nothing held out, nothing tuned. The
dense model of the other commands should be no worse. Its best epoch is chosen on held-out training rows; the best one
here would be chosen on the very rows that are scored, so the last epoch is what compares. What those held-out rows cost
is seen without them, by --held-out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import (
    ONE_SEED,
    OWN_RESULTS,
    check_counts,
    check_seeds,
    chosen_device,
    models_of,
    run_command,
    source_of,
)
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import write_table
from benchmarks.runs import CorruptRecord, Record, RunStore, read_record

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.experiments import Experiment

KIND, TABLE = "plain_trial", "plain_trial"
EPOCHS = {"cola": 4, "mrpc": 4, "rte": 6, "stsb": 3, "sst2": 2}
OTHERWISE = 3  # epochs on other tasks
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 16, 5e-5, 0.01, 1.0


def trial(experiment: Experiment, epochs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and score.

    Returns:
        The metrics of a record: `epochs` has all scores of each split after each epoch, `splits` those after the last
        one and what each text came out as.
    """
    import torch
    import transformers

    from benchmarks.data import batches
    from benchmarks.experiment_data import evaluation_features, padding_id, training_features
    from benchmarks.models import load_model

    task, compute, pad_id = experiment.task, experiment.setting.compute, padding_id(experiment.model)
    rows = training_features(experiment)[0]
    scored = {split: evaluation_features(experiment, split) for split in task.eval_splits}
    torch.manual_seed(experiment.seed)
    model = load_model(experiment.model, task).to(compute.device)  # type: ignore[arg-type]  # stubs: no strings
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    updates = epochs * -(-len(rows) // BATCH_SIZE)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, updates)
    found: list[dict[str, dict[str, Any]]] = []
    for epoch in range(epochs):
        model.train()
        for batch in batches(rows, BATCH_SIZE, shuffle_seed=experiment.seed, epoch=epoch):
            with compute.autocast():
                loss = model(**_placed(batch, pad_id, experiment)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        found.append({split: _scored(model, features, experiment) for split, features in scored.items()})
        said = ", ".join(f"{task.metric} {100 * one['scores'][task.metric]:.1f}" for one in found[-1].values())
        say(f"{task.title}, seed {experiment.seed}, epoch {epoch + 1} of {epochs}: {said}")
    return {
        "title": task.title,
        "metric": task.metric,
        "score": next(iter(found[-1].values()))["scores"][task.metric],
        "splits": found[-1],
        "epochs": [{split: one["scores"] for split, one in epoch.items()} for epoch in found],
        "training_rows": len(rows),
    }


def _placed(features: Sequence[Any], pad_id: int, experiment: Experiment) -> dict[str, Any]:
    from benchmarks.data import collate

    return experiment.setting.compute.place(collate(features, pad_id))


def _scored(model: Any, features: Sequence[Any], experiment: Experiment) -> dict[str, Any]:
    """Scores, and outcomes of the texts as a record has them."""
    import numpy as np
    import torch

    from benchmarks.data import batches
    from benchmarks.experiment_data import padding_id
    from benchmarks.metrics import score
    from benchmarks.outcomes import described

    task, compute = experiment.task, experiment.setting.compute
    model.eval()
    said: list[float] = []
    for batch in batches(features, BATCH_SIZE):
        with torch.no_grad(), compute.autocast():
            logits = model(**_placed(batch, padding_id(experiment.model), experiment)).logits.float()
        said += (logits[:, 0] if task.kind == "regression" else logits.argmax(dim=-1)).tolist()
    labels = [feature["label"] for feature in features]
    return {"scores": score(task, said, labels), "texts": described(task.kind, np.array(said), labels)}


def frame_of(records: Iterable[Record]) -> pd.DataFrame:
    """One row per task, split and seed; scores in percent."""
    import pandas as pd

    rows = []
    for record in records:
        config, metrics = record["config"], record["metrics"]
        for split in metrics["epochs"][0]:
            every = [100 * epoch[split][metrics["metric"]] for epoch in metrics["epochs"]]
            rows.append(
                {
                    "task": metrics["title"],
                    "split": split,
                    "metric": metrics["metric"],
                    "seed": config["seed"],
                    "last": every[-1],
                    "best": max(every),
                    "epochs": " ".join(f"{score:.1f}" for score in every),
                    "training_rows": metrics["training_rows"],
                    "records": record["config_hash"],
                }
            )
    return pd.DataFrame(rows)


def read(root: Path) -> list[Record]:
    """The finished trials below a folder of results, by task and seed."""
    return finished(root, f"{KIND}/*/*.json")


def finished(root: Path, pattern: str) -> list[Record]:
    """Finished runs below a folder of results whose file, below `runs`, matches; by task and seed."""
    found = []
    for path in (root / "runs").glob(pattern):
        try:
            found.append(read_record(path))
        except CorruptRecord:
            continue  # `python -m benchmarks.runs verify` names them
    done = [record for record in found if record["status"] == "ok"]
    return sorted(done, key=lambda record: (record["config"]["task"], record["config"]["seed"]))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.plain_trial",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.plain_trial --data-dir data --tasks cola rte --seeds 42 43 44",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = ", ".join(f"{name} {count}" for name, count in EPOCHS.items())
    add = result.add_argument
    add("--data-dir", type=Path, metavar="DIR", required=True, help="folder with <task>/<split>.parquet|tsv|csv|jsonl")
    add("--tasks", nargs="+", metavar="TASK", default=list(EPOCHS), help=f"default: {' '.join(EPOCHS)}")
    add("--model", metavar="NAME_OR_PATH", help="pre-trained encoder; default: the embedded one")
    add("--seeds", nargs="+", type=int, metavar="N", default=list(ONE_SEED), help="default: 42")
    add("--epochs", type=int, metavar="N", help=f"default: {usual}, others {OTHERWISE}")
    add("--max-train-samples", type=int, metavar="N", help="train on N random rows per task; default: all")
    add("--max-eval-samples", type=int, metavar="N", help="score on N random rows per task; default: all")
    add("--held-out", action="store_true", help="leave out the rows by which the dense model's epoch is chosen")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: of autocast; default: float32")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="default: results/local")
    add("--force", action="store_true", help="train again what is there already")
    add("--quiet", action="store_true", help="no progress, only the result")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    experiments = _experiments(arguments)
    store = RunStore.open(arguments.results, force=arguments.force)
    console = open_console(quiet=arguments.json)
    progress = open_console(quiet=arguments.json or arguments.quiet)
    records: list[Record] = []
    for experiment in experiments:
        epochs = arguments.epochs or EPOCHS.get(experiment.task.name, OTHERWISE)
        extra = {"epochs": epochs, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "warmup": 0}
        extra |= {"weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_GRAD_NORM}
        extra |= {"max_eval_samples": arguments.max_eval_samples} | ({"held_out": True} if arguments.held_out else {})
        config = replace(
            experiment.config(), kind=KIND, method="stock", recipe=None, stages=(), options={}, extra=extra
        )
        record = store.run(config, lambda e=experiment, n=epochs: trial(e, n, progress.print))  # type: ignore[misc]
        if record["status"] != "ok":
            print(f"failed: {experiment.task.title}, seed {experiment.seed}: {record['error']}", file=sys.stderr)
            return 1
        records.append(record)
    frame = frame_of(records)
    print_table(_printed(frame), "A plain trial, percent", console)
    command = shlex.join(["python", "-m", "benchmarks.plain_trial", *(sys.argv[1:] if argv is None else argv)])
    paths = _write(frame, store.root, command)
    for path in paths:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), tables=paths, command=command)
    return 0


def _experiments(arguments: argparse.Namespace) -> list[Experiment]:
    """One per task and seed; only what names its rows and model is used.

    Raises:
        UserError: a value that cannot be used.
    """
    from benchmarks.experiments import Setting, plan
    from benchmarks.tasks import get_task
    from benchmarks.train import Compute

    check_counts(arguments, ("epochs", "max_train_samples", "max_eval_samples"))
    check_seeds(arguments.seeds)
    source = source_of("local", arguments.data_dir)
    tasks = [get_task(name, arguments.data_dir) for name in dict.fromkeys(arguments.tasks)]
    if odd := [task.title for task in tasks if task.kind not in ("classification", "regression")]:
        raise UserError(f"--tasks: {odd[0]} is neither a classification nor a regression, which are what is tried here")
    (model,) = models_of("local", arguments.model, ())
    setting = Setting(
        recipe="short",
        source=source,
        compute=Compute(device=chosen_device(arguments.device), dtype=arguments.dtype),
        max_train_samples=arguments.max_train_samples,
        max_eval_samples=arguments.max_eval_samples,
    )
    return [
        plan(setting, model, task, "dense", seed, held_out=arguments.held_out)
        for task in tasks
        for seed in arguments.seeds
    ]


def _printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    import pandas as pd

    return pd.DataFrame(
        {
            "Task": frame["task"],
            "Split": frame["split"],
            "Metric": frame["metric"],
            "Seed": frame["seed"],
            "Last epoch": frame["last"].map("{:.1f}".format),
            "Best epoch": frame["best"].map("{:.1f}".format),
            "Every epoch": frame["epochs"],
            "Training rows": frame["training_rows"],
        }
    )


def _write(frame: pd.DataFrame, root: Path, command: str) -> list[Path]:
    """Write the table (CSV, Markdown) below `root`; returns the paths."""
    assert __doc__ is not None
    body = _printed(frame).to_markdown(index=False, disable_numparse=True)
    parts = ["# A plain trial", f"Command: `{command}`", __doc__.strip(), body]
    return write_table(root / "tables", TABLE, frame, parts)


if __name__ == "__main__":
    sys.exit(run_command(main))
