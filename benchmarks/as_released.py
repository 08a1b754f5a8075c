"""What published code computes against honest removal: the same trained weights, run both ways on the same texts.

Most published code hides tokens instead of removing them, some of it so that the result differs, and counts the tokens
as saved. Each method names the options that restore its released behaviour (`Traits.as_released`); this command sets
them on the trained model and prints what they do to logits, predictions and score, and how many times fewer FLOPs each
way really executes. Released code that draws decisions at evaluation is run five times; code that does remove tokens
(`Traits.released_removes`), but others than each text's own, is charged for those it keeps.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.cli import Session, open_session, parser, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import UserError
from benchmarks.files import write_table
from benchmarks.suite import Suite, drop_missing_tasks
from benchmarks.sweep import completed, planned, planned_jobs
from benchmarks.tasks import EMBEDDED, GLUE

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.data import Feature
    from benchmarks.experiments import Experiment
    from benchmarks.runs import Record, RunConfig, RunStore
    from methods import TokenReducer

KIND = "as_released"
DRAWS = 5  # passes of code that decides at random
SUITE = Suite(
    name="as_released",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --tasks sst2 mrpc --max-train-samples 4000",
    table="3",
    tasks={"embedded": EMBEDDED, "local": GLUE, "paper": GLUE},
    encoders={"BERT-base": None},
    embedded_rows=(1_000, 500),
)


@dataclass(frozen=True)
class Outputs:
    """What a split gives: logits (texts, labels) float32, and MACs over all texts, dense and executed."""

    logits: torch.Tensor
    dense_macs: int
    executed_macs: int

    @property
    def speedup(self) -> float:
        """Dense over executed."""
        return self.dense_macs / self.executed_macs


def compared(experiment: Experiment) -> bool:
    """Whether the method's released code computes something else, on a task whose texts have one answer each."""
    import methods

    return bool(methods.lookup(experiment.method).traits.as_released) and experiment.task.kind != "span_qa"


def comparison(experiment: Experiment) -> RunConfig:
    """What decides the result of a comparison."""
    import methods

    released = dict(methods.lookup(experiment.method).traits.as_released)
    extra = {"trained": experiment.config().hash, "released": released, "draws": DRAWS}
    return replace(experiment.config(), kind=KIND, extra=extra)


def compare(experiment: Experiment, store: RunStore) -> Record:
    """The record of one comparison; the method is trained first where no weights of it are there."""
    from benchmarks.running import trained

    return store.run(comparison(experiment), lambda: _compute(experiment, trained(experiment, store)))


def train(experiments: Sequence[Experiment], session: Session, store: RunStore) -> dict[str, str]:
    """Train what is still to compare; the error of each training that failed, by hash."""
    missing = [one for one in experiments if store.settled(comparison(one)) is None]
    wanted = {one.config().hash for one in missing}
    alone = replace(session, methods=tuple(name for name in session.methods if name != "random"))  # no twins
    jobs = [replace(job, weights=job.weights or job.key in wanted) for job in planned_jobs(alone, missing, store)]
    failed = {}
    for job, record, progress in completed(session, store, jobs):
        if record["status"] == "ok":
            progress.say(f"{job.label}: trained")
        elif job.key in wanted:
            failed[job.key] = f"{job.label}: {record['error']}"
    return failed


def _compute(experiment: Experiment, reducer: TokenReducer) -> dict[str, Any]:
    import numpy as np
    import torch

    from benchmarks.experiment_data import evaluation_features
    from benchmarks.metrics import score

    task = experiment.task
    features = evaluation_features(experiment, task.eval_splits[0])
    labels = [feature["label"] for feature in features]
    reducer.to(experiment.setting.compute.device)  # type: ignore[arg-type]  # as in `TokenReducer.around`
    honest = run_split(reducer, features, experiment, released=False)
    torch.manual_seed(experiment.seed)
    draws = [run_split(reducer, features, experiment, released=True) for _ in range(2)]
    if not torch.equal(draws[0].logits, draws[1].logits):
        draws += [run_split(reducer, features, experiment, released=True) for _ in range(DRAWS - 2)]
    else:
        draws = draws[:1]

    def scored(outputs: Outputs) -> float:
        return score(task, predictions(outputs, task.kind), labels)[task.metric]

    scores = [scored(outputs) for outputs in draws]
    gaps = [(outputs.logits - honest.logits).abs() for outputs in draws]
    return {
        "metric": task.metric,
        "honest": {"score": scored(honest), "speedup": honest.speedup},
        "released": {
            "draws": len(draws),
            "score": float(np.mean(scores)),
            "score_range": [min(scores), max(scores)],
            "speedup": float(np.mean([outputs.speedup for outputs in draws])),
        },
        "logit_gap_mean": float(torch.stack([gap.mean() for gap in gaps]).mean()),
        "logit_gap_max": float(torch.stack([gap.max() for gap in gaps]).max()),
        "logit_size_mean": float(honest.logits.abs().mean()),
        "predictions_changed": _changed(honest, draws, task.kind),
    }


def run_split(reducer: TokenReducer, features: Sequence[Feature], experiment: Experiment, *, released: bool) -> Outputs:
    """Run all texts in the batches of an evaluation: packed, or as the released code does, masked."""
    import torch

    from benchmarks.data import batches, collate
    from benchmarks.evaluate import BATCH_SIZE
    from benchmarks.experiment_data import padding_id

    compute, pad_id, options = experiment.setting.compute, padding_id(experiment.model), reducer.options
    if released:
        reducer.set_options(**reducer.traits.as_released)
    logits, dense, executed = [], 0, 0
    try:
        with torch.inference_mode(), reducer.mode("masked" if released else "packed"), compute.autocast():
            for chunk in batches(features, BATCH_SIZE):
                batch = compute.place(collate(chunk, pad_id))
                del batch["labels"]
                output = reducer(**batch)
                trace = output.trace
                logits.append(output.logits.float().cpu())
                full = reducer.backbone.dense_macs(trace.input_lengths)
                dense += int(full.sum())
                masked = released and not reducer.traits.released_removes
                executed += int((full + trace.overhead_macs).sum() if masked else reducer.macs(trace).sum())
    finally:
        reducer.set_options(**vars(options))
    return Outputs(torch.cat(logits), dense, executed)


def predictions(outputs: Outputs, kind: str) -> Any:
    """Class ids, or values of a regression; (texts,)."""
    return (outputs.logits.squeeze(-1) if kind == "regression" else outputs.logits.argmax(dim=-1)).numpy()


def _changed(honest: Outputs, draws: Sequence[Outputs], kind: str) -> float | None:
    """Share of texts whose class changes, over all draws; None for a regression."""
    if kind == "regression":
        return None
    own = predictions(honest, kind)
    return float(sum((predictions(outputs, kind) != own).mean() for outputs in draws) / len(draws))


def comparison_table(records: Sequence[tuple[Experiment, Record]]) -> pd.DataFrame:
    """One row per method and task."""
    import pandas as pd

    import methods

    rows = [
        table_row(methods.lookup(experiment.method).traits.title, experiment.task.title, record["metrics"])
        for experiment, record in records
    ]
    return pd.DataFrame(rows)


def table_row(method: str, task: str, metrics: Mapping[str, Any]) -> dict[str, str]:
    """A record's line in the table, by column."""
    honest, released = metrics["honest"], metrics["released"]
    changed = metrics["predictions_changed"]
    low, high = (100 * value for value in released["score_range"])
    return {
        "Method": method,
        "Task": task,
        "Removed": f"{100 * honest['score']:.1f} {honest['speedup']:.2f}x",
        "As released": f"{100 * released['score']:.1f} {released['speedup']:.2f}x",
        "Range of draws": f"{low:.1f} to {high:.1f}" if released["draws"] > 1 else "",
        "Predictions changed": "" if changed is None else f"{100 * changed:.1f} %",
        "Mean logit gap": f"{metrics['logit_gap_mean']:.3g} of {metrics['logit_size_mean']:.3g}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    flags = parser(SUITE, unpadded=True)
    add_json_flag(flags)
    arguments = flags.parse_args(argv)
    session = open_session(arguments, SUITE)
    session = replace(session, quiet=session.quiet or arguments.json)
    console = open_console(quiet=arguments.json)
    experiments = [experiment for experiment in planned(session) if compared(experiment)]
    if not experiments:
        raise UserError("none of the chosen methods has released code that computes anything else on these tasks")
    if session.dry_run:
        for experiment in experiments:
            console.print(f"{experiment.label}: trained where no run is there, then run both ways", highlight=False)
        answer(arguments, runs=[experiment.label for experiment in experiments])
        return 0
    session = drop_missing_tasks(session, console)
    store = session.store()
    experiments = [experiment for experiment in experiments if experiment.task in session.tasks]
    failed = train(experiments, session, store)
    records, failures = [], list(failed.values())
    for experiment in experiments:
        if experiment.config().hash in failed:
            continue
        record = compare(experiment, store)
        if record["status"] == "ok":
            records.append((experiment, record))
        else:
            failures.append(f"{experiment.label}: {record['error']}")
    frame = comparison_table(records)
    print_table(frame, "Score in percent and FLOPs speed-up without padding: tokens removed, and as released", console)
    command = shlex.join(["python", "-m", "benchmarks.as_released", *(argv or sys.argv[1:])])
    path = None if frame.empty else write(frame, store, session.profile, command)
    if path is not None:
        console.print(f"table: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), failures=failures, table=path, command=command)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def write(frame: pd.DataFrame, store: RunStore, profile: str, command: str) -> str:
    """Write the table as Markdown and CSV; returns the Markdown file's path."""
    parts = [f"# As released, {profile} profile", frame.to_markdown(index=False), f"Command: `{command}`"]
    return str(write_table(store.root / "tables", f"as_released-{profile}", frame, parts, float_format=None)[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
