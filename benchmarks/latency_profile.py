"""Where a pass's time goes: each kind of call recorded, then replayed alone; what is left is decisions and Python.

Times are of the processor, the least of interleaved rounds, on one thread: they hold on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import writing
from benchmarks.runs import RESULTS

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from benchmarks.latency_subjects import Texts

PAGE = RESULTS / "notes" / "latency.md"
REST = "Rest"
OPERATORS = 15  # shown
NOTE = """\
Random weights of BERT-base's shape, one thread, {dtype}. Each kind of call is recorded during a pass and replayed
alone at the same shapes; *Rest* is the pass less all of them: decisions, ranks, scores beyond plain attention, counting
and Python. *Overhead* is the pass over its matrix products and attention; *Bound* is the realisation of these alone:
with few tokens, every weight is still read once, and a product costs more per multiply-add."""


def note_of(dtype: str) -> str:
    """What the columns of `profile` are."""
    return NOTE.format(dtype=dtype)


def kinds() -> dict[str, set[Callable[..., Any]]]:
    """Functions by kind."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from benchmarks.bare import PRODUCTS

    return {
        "Products": PRODUCTS,
        "Activations": {F.gelu, torch.tanh, Tensor.tanh},
        "Norms": {F.layer_norm, torch.layer_norm},
        "Residuals": {Tensor.add, Tensor.__add__, torch.add},
        "Rows moved": {
            Tensor.index_select, Tensor.index_copy, Tensor.index_copy_, Tensor.copy_, Tensor.contiguous, torch.cat,
        },
    }  # fmt: skip


def texts_of(lengths: Sequence[int], vocabulary: int) -> Texts:
    """One batch of random tokens."""
    import torch

    from benchmarks.data import Feature
    from benchmarks.latency_subjects import Texts

    generator = torch.Generator().manual_seed(0)
    features = [
        Feature(
            index=place,
            input_ids=torch.randint(vocabulary // 2, vocabulary, (length,), generator=generator).tolist(),
            label=0,
            truncated=False,
        )
        for place, length in enumerate(lengths)
    ]
    return Texts(features=features, pad_id=0, batch_size=len(lengths), sequence_length=max(lengths), device="cpu")


def profile(
    model: PreTrainedModel, texts: Texts, methods: Sequence[str], schedules: Sequence[str], rounds: int
) -> pd.DataFrame:
    """Milliseconds by kind, one row per subject."""
    import pandas as pd
    import torch

    from benchmarks import latency_subjects
    from benchmarks.bare import record
    from benchmarks.timing import interleave

    wanted = kinds()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        subjects = [*latency_subjects.stock_subjects(model, texts, ()), latency_subjects.unpadded_subject(model, texts)]
        subjects += [
            latency_subjects.forced_subject(name, model, texts, schedule) for schedule in schedules for name in methods
        ]
        runs = {
            (subject.key, kind): record(subject.run, functions).replay
            for subject in subjects
            for kind, functions in wanted.items()
        } | {(subject.key, "Pass"): subject.run for subject in subjects}
        samples = interleave({f"{key} {kind}": run for (key, kind), run in runs.items()}, rounds=rounds)
    dense = next(subject for subject in subjects if subject.key == latency_subjects.UNPADDED)
    least = {name: min(one.cpu_s) * 1000 for name, one in samples.items()}
    for subject in subjects:
        spent = {kind: least[f"{subject.key} {kind}"] for kind in ("Pass", *wanted)}
        flops = dense.macs / subject.macs
        rows.append(
            {
                "Method": subject.title,
                "At": subject.schedule,
                **{f"{kind}, ms" if kind == "Pass" else kind: f"{value:.1f}" for kind, value in spent.items()},
                REST: f"{spent['Pass'] - sum(spent[kind] for kind in wanted):.1f}",
                "Overhead": f"{spent['Pass'] / spent['Products']:.2f}",
                "FLOPs": f"{flops:.2f}x",
                "Realisation": f"{least[f'{dense.key} Pass'] / spent['Pass'] / flops:.2f}",
                "Bound": f"{least[f'{dense.key} Products'] / spent['Products'] / flops:.2f}",
            }
        )
    return pd.DataFrame(rows)


def operators(runs: Mapping[str, Callable[[], object]]) -> pd.DataFrame:
    """Milliseconds of the processor that torch's operators take themselves, a column per run, each run once before.

    Rows are the operators in which the last run differs most from the first.
    """
    import pandas as pd
    import torch

    columns = {}
    for name, run in runs.items():
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
            run()
        columns[name] = {event.key: event.self_cpu_time_total / 1000 for event in profiler.key_averages()}
    frame = pd.DataFrame(columns).fillna(0.0)
    apart = (frame.iloc[:, -1] - frame.iloc[:, 0]).abs().sort_values(ascending=False)
    shown = frame.loc[apart.index[:OPERATORS]]
    shown.loc["all"] = frame.sum()
    return shown.map("{:.1f}".format).reset_index(names="Operator")


def write_page(path: Path, heading: str, command: str, text: str, frame: pd.DataFrame) -> None:
    """Write a note in Markdown: what was profiled, on which machine, under which load."""
    from benchmarks.environment import environment

    machine = f"{environment()['cpu']['model']}; load average at the end: {os.getloadavg()[0]:.1f}."
    table = frame.to_markdown(index=False, disable_numparse=True)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"# {heading}", f"Command: `{command}`", machine, text, table]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.latency_profile",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.latency_profile --lengths 128 --schedule 2x 4x 6x",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--lengths", nargs="+", type=int, metavar="N", default=[128], help="tokens of each text of the batch")
    add("--methods", nargs="+", metavar="METHOD", help="default: all")
    add("--schedule", nargs="+", metavar="S", default=["4x"], help="as in benchmarks.latency; default: 4x")
    add("--rounds", type=int, metavar="N", default=10, help="of which the least counts; default: 10")
    add("--output", type=Path, metavar="FILE", default=PAGE, help="default: results/notes/latency.md")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    import torch
    import transformers

    import methods
    from benchmarks.latency_subjects import speedup_of
    from benchmarks.strategy import check_methods
    from methods.families import build_model

    if min(arguments.lengths) < 1 or max(arguments.lengths) > 512 or arguments.rounds < 1:
        raise UserError("--lengths takes 1 to 512 tokens, --rounds 1 or more")
    for schedule in arguments.schedule:
        speedup_of(schedule)
    check_methods(arguments.methods or ())
    names = arguments.methods or [
        name
        for name in methods.available()
        if name != "dense" and "single_text" not in methods.lookup(name).traits.unsupported
    ]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("bert")
    model = build_model("BertForSequenceClassification", config).eval()
    texts = texts_of(arguments.lengths, config.vocab_size)
    frame = profile(model, texts, names, arguments.schedule, arguments.rounds)
    heading = f"Where the time goes: a batch of {len(arguments.lengths)}, {sum(arguments.lengths)} tokens"
    console = open_console(quiet=arguments.json)
    print_table(frame, heading, console)
    command = shlex.join(["python", "-m", "benchmarks.latency_profile", *(sys.argv[1:] if argv is None else argv)])
    write_page(arguments.output, heading, command, note_of("float32"), frame)
    console.print(f"written: {arguments.output}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), page=arguments.output, command=command)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
