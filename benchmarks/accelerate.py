"""Make an encoder faster on your own rows: train it dense, then with a method whose knob is turned until it computes a
wished-for number of times fewer FLOPs; print what was gained and lost, and save the result.

The file is Parquet, JSON Lines, CSV or TSV with a text (or a pair) and a label, with words and their tags, or with a
question, a context and the answer in it: columns are found by name. Part of the rows is never trained on: the knob is
chosen on one part of those, the result is scored and timed on another, or on --validation. DeeBERT, PABEE and LAT are
trained once, whatever the target; the others once per trial.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import DTYPE_RULE, OWN_RESULTS, chosen_device, default_dtype, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table
from benchmarks.errors import Parser, UserError
from benchmarks.progress import RunProgress
from benchmarks.runs import RunStore

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.acceleration import Goal, Outcome
    from benchmarks.models import ModelRef

PROGRAM = "python -m benchmarks.accelerate"
SUMMARY = "accelerate.json"  # as `benchmarks.acceleration.save` calls it: its folders may be written again
AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "span_qa": "AutoModelForQuestionAnswering",
    "token_classification": "AutoModelForTokenClassification",
}
MIN_UPDATES = 150  # per stage that trains: a few hundred rows are passed over more often than the recipe says


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog=f"example:\n  {PROGRAM} --task-data reviews.csv --target-speedup 1.5 --output faster\n\n{DTYPE_RULE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--task-data", type=Path, metavar="FILE", required=True, help="your rows")
    add(
        "--validation",
        type=Path,
        metavar="FILE",
        help="rows to score on, not trained on; default: a fifth of --task-data",
    )
    add("--model", metavar="NAME_OR_PATH", help="pre-trained encoder; default: the embedded one")
    add("--method", metavar="METHOD", default="transkimmer", help="default: transkimmer")
    add("--target-speedup", type=float, metavar="X", default=2.0, help="times fewer FLOPs, unpadded; default: 2")
    add("--output", type=Path, metavar="DIR", help="where the model goes; default: results/local/models/FILE-METHOD")
    add("--text-columns", nargs="+", metavar="COLUMN", help="one, or both of a pair; default: found by name")
    add("--label-column", metavar="COLUMN", help="default: found by name")
    add("--regression", action="store_true", help="whole labels are values to predict, not classes")
    add("--tags", action="store_true", help="the label has a tag for each word of the text, with spaces between")
    add("--recipe", choices=("paper", "short"), default="short", help="of training; default: short")
    add("--trials", type=int, metavar="N", default=6, help="trainings of the method at most; default: 6")
    add("--max-length", type=int, metavar="N", help="cut texts to N tokens; default: what nearly all texts need")
    add("--seed", type=int, metavar="N", default=42, help="default: 42")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), help="of matrix products; default: see below")
    add("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="of the records; default: results/local")
    add("--force", action="store_true", help="compute again what is there already")
    add("--dry-run", action="store_true", help="say how the rows are read and what would be trained, and stop")
    add_json_flag(result)
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 where the target was not reached."""
    arguments = parser().parse_args(argv)
    if arguments.model is None or Path(arguments.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing below needs the network
    goal = _goal(arguments)
    output = arguments.output or arguments.results / "models" / f"{goal.own.task.title}-{goal.method}"
    _check_output(output, goal.model)
    for flag, folder in (("--output", output), ("--results", arguments.results)):
        _check_writable(flag, folder)
    console = open_console(quiet=arguments.json)
    console.print(_introduction(goal), highlight=False)
    if arguments.dry_run:
        answer(arguments, **_plan(goal), output=output)
        return 0
    from benchmarks.acceleration import accelerate, save

    store = RunStore.open(arguments.results, force=arguments.force)
    with RunProgress(goal.units, quiet=arguments.quiet or arguments.json) as progress:
        outcome = accelerate(goal, store, progress)
    if outcome.record["status"] != "ok":
        print(f"failed: {outcome.record['error']}", file=sys.stderr)
        return 1
    command = shlex.join([*PROGRAM.split(), *(sys.argv[1:] if argv is None else argv)])
    summary = save(goal, outcome, output, command)
    _report(goal, outcome, output, store, console)
    answer(arguments, **summary, output=output)
    if not summary["reached"]:
        print(f"{shortfall(goal, outcome)}; that model is saved in {output}", file=sys.stderr)
    return 0 if summary["reached"] else 1


# Arguments ------------------------------------------------------------------------------------------------------------


def _goal(arguments: argparse.Namespace) -> Goal:
    """Check the arguments.

    Raises:
        UserError: one cannot be used.
    """
    for flag in ("trials", "max_length"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")
    if not 1 < arguments.target_speedup < float("inf"):
        raise UserError(f"--target-speedup must be a number greater than 1, got {arguments.target_speedup:g}")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed takes a whole number from 0 to {2**32 - 1}, got {arguments.seed}")
    import methods
    from benchmarks.acceleration import Goal
    from benchmarks.experiments import Setting, supports
    from benchmarks.models import load_tokenizer
    from benchmarks.own_rows import own_task
    from benchmarks.train import Compute

    try:
        knob = methods.lookup(arguments.method).traits.knob
    except KeyError as error:
        raise UserError(str(error.args[0])) from error
    if knob is None:
        able = [name for name in methods.available() if methods.lookup(name).traits.knob]
        raise UserError(f"--method {arguments.method} has nothing to choose a speed-up with; use {', '.join(able)}")
    texts = tuple(arguments.text_columns) if arguments.text_columns else None
    own = own_task(
        arguments.task_data,
        arguments.validation,
        text_columns=texts,
        label_column=arguments.label_column,
        values=arguments.regression,
        tags=arguments.tags,
    )
    if (reason := supports(arguments.method, own.task)) is not None:
        raise UserError(f"--method {arguments.method} cannot do this task ({own.task.kind}): {reason}")
    model = _model(arguments.model)
    length = arguments.max_length or min(own.task.sequence_length, load_tokenizer(model).model_max_length)
    device = chosen_device(arguments.device)
    return Goal(
        own=replace(own, task=replace(own.task, sequence_length=length)),
        model=model,
        setting=Setting(
            recipe=arguments.recipe,
            source=own.source,
            compute=Compute(device=device, dtype=arguments.dtype or default_dtype("local", device)),
            min_updates=MIN_UPDATES,
        ),
        method=arguments.method,
        target=arguments.target_speedup,
        seed=arguments.seed,
        trials=arguments.trials,
    )


def _model(name: str | None) -> ModelRef:
    from benchmarks.models import embedded_model, find_model

    return embedded_model() if name is None else find_model(name)


def _check_output(folder: Path, model: ModelRef) -> None:
    """Refuse, before anything is trained, the given encoder's own folder and whatever this command did not write."""
    if model.is_folder and folder.resolve() == Path(model.source).resolve():
        raise UserError(f"--output {folder} is the folder of --model, which would be overwritten; choose another one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder that is new or empty")
    if folder.exists() and any(folder.iterdir()) and not (folder / SUMMARY).is_file():
        raise UserError(
            f"--output {folder} holds files that this command did not write (there is no {SUMMARY}); give a folder "
            "that is new or empty"
        )


def _check_writable(flag: str, folder: Path) -> None:
    """Refuse a folder that cannot be made, or not be written to."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"{flag} {folder} cannot be used: {there} {reason}; choose another folder")


# What is said ---------------------------------------------------------------------------------------------------------


def _plan(goal: Goal) -> dict[str, Any]:
    """How the rows are read and what would be trained, as `--json` says it of a dry run."""
    from benchmarks.experiment_data import evaluation_features
    from benchmarks.models import replaced_head

    own = goal.own
    features = evaluation_features(goal.experiment("dense"), own.task.eval_splits[0])  # refuses a --max-length, too
    return {
        "task": own.task.title,
        "kind": own.task.kind,
        "columns": list(own.columns),
        "classes": list(own.task.label_names),
        "metric": own.task.metric,
        "max_length": own.task.sequence_length,
        "longer_rows": None if own.task.kind == "span_qa" else sum(feature["truncated"] for feature in features),
        "train_rows": own.train_rows,
        "score_rows": own.score_rows,
        "left_out_rows": own.left_out,
        "model": goal.model.title,
        "replaced_head": replaced_head(goal.model, own.task),
        "method": goal.method,
        "target_speedup": goal.target,
        "trials": goal.trials,
    }


def _introduction(goal: Goal) -> str:
    said, (*texts, label) = _plan(goal), goal.own.columns
    answers = "answers in a context" if said["kind"] == "span_qa" else "values"
    lines = [
        f"{said['task']}: {' and '.join(texts)} -> {label} ({', '.join(said['classes']) or answers}), texts cut to "
        f"{said['max_length']} tokens; {said['train_rows']} rows to train and choose on, {said['score_rows']} others "
        "to score on"
    ]
    if said["longer_rows"]:
        lines.append(f"{said['longer_rows']} of {said['score_rows']} texts to score on are longer, and are cut")
    if said["left_out_rows"]:
        lines.append(
            f"{said['left_out_rows']} of {said['train_rows'] + said['left_out_rows']} rows to train on are also among "
            "those to score on, and are left out of training"
        )
    lines.append(f"{said['model']}, {said['method']}, {said['target_speedup']:g}x fewer FLOPs wished for")
    return "\n".join([*lines, *filter(None, [said["replaced_head"]])])


def _report(goal: Goal, outcome: Outcome, output: Path, store: RunStore, console: Console) -> None:
    """What was gained and lost, and where everything is."""
    import pandas as pd

    from benchmarks.acceleration import short

    said = outcome.record["metrics"]
    dense, reduced = said["dense"], said["reduced"]
    rows: list[tuple[str, ...]] = [
        (f"{said['metric']}, percent", *(f"{100 * one['score']:.1f}" for one in (dense, reduced)), _change(said)),
        (
            "GFLOPs per text",
            *(f"{2 * one['gmacs_mean']:.3g}" for one in (dense, reduced)),
            f"{reduced['speedup']:.2f}x",
        ),
    ]
    for size, timed in said["time"].items():
        faster, times = timed["speedup"], timed["ms_per_text"]
        spread = f"{faster['median']:.2f}x ({faster['lowest']:.2f} to {faster['highest']:.2f})"
        rows.append((f"ms per text, batch {size}", f"{times['dense']:.2f}", f"{times['reduced']:.2f}", spread))
    frame = pd.DataFrame(rows, columns=["", "Dense", "Reduced", "Change"])
    print_table(frame, f"On {goal.own.score_rows} rows that neither training nor choosing saw", console)
    stock = ", ".join(
        f"{timed['speedup_over_stock']['median']:.2f}x in batches of {size}" for size, timed in said["time"].items()
    )
    lines = [f"time against the stock model with padding: {stock}"]
    if said["commonest_class"] is not None:
        lines.append(f"always the commonest class: {100 * said['commonest_class']:.1f} percent right")
    chosen = ", ".join(f"{name} {short(value)}" for name, value in said["options"].items())
    lines += [
        f"chosen: {chosen}, trials: {len(said['trials'])}; {said['held_out']['speedup']:.2f}x on held-out rows",
        f"model: {output} (methods.load, or {AUTO_CLASSES[goal.own.task.kind]} after `import methods`)",
        f"record: {store.path(_config(outcome))}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _config(outcome: Outcome) -> Any:
    from benchmarks.runs import RunConfig

    return RunConfig(**outcome.record["config"])


def _change(said: dict[str, Any]) -> str:
    return f"{100 * (said['reduced']['score'] - said['dense']['score']):+.1f} points"


def shortfall(goal: Goal, outcome: Outcome) -> str:
    """Why the target was not met, and what was."""
    said = outcome.record["metrics"]
    reached = f"{said['reduced']['speedup']:.2f}x on the rows to score on"
    speedups = [point.speedup for point in outcome.points]
    least, most, wished = min(speedups), max(speedups), f"{goal.target:g}x"
    trials = f"{len(speedups)} trial(s)"
    if least > goal.target:
        nearest = f"the nearest, {said['held_out']['speedup']:.2f}x on held-out rows"
        return f"every one of {trials} was faster than {wished}; {nearest}, is {reached}"
    if most < goal.target:
        best = f"the most of {trials} was {most:.2f}x"
        return f"target not reached: {wished} is beyond {goal.method} here, {best}, {reached}"
    nearest = f"the nearest of {trials} to {wished} was {said['held_out']['speedup']:.2f}x (the most {most:.2f}x)"
    return f"target not reached: {nearest}, {reached}"


if __name__ == "__main__":
    sys.exit(run_command(main))
