"""The gate against slow-downs: every method and packing primitive, timed against a reference beside it.

A case's ratio is its processor time over that of its reference (the dense model without padding, or a matrix product),
the least of many interleaved rounds, on one thread; a short case is repeated until a round has taken about as long as
the reference's. It is compared with the baseline of the same device class in results/regression; a case that lost more
than 10 % is measured again before it fails. Counts (multiply-adds, tokens per layer) do not depend on the machine and
must be equal.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table
from benchmarks.errors import Parser, UserError
from benchmarks.files import replacing, writing
from benchmarks.runs import RESULTS, utc_now

if TYPE_CHECKING:
    import pandas as pd

FOLDER = RESULTS / "regression"
COUNTS = "counts.json"
TOLERANCE = 0.10  # of a ratio
ROUNDS, ATTEMPTS, SHOWN = 20, 3, 5
LEAST_S, MOST_TIMES = 1e-6, 100  # of a case that is repeated within a round


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something whose speed is guarded.

    Attributes:
        run: what is timed. reference: what its time is divided by.
        counts: what it computes, whole numbers that are the same everywhere.
    """

    name: str
    run: Callable[[], object]
    reference: Callable[[], object]
    counts: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a case; `baseline` is None where the device class has none yet."""

    name: str
    ratio: float
    baseline: float | None
    problem: str = ""


def measure(case: Case, rounds: int = ROUNDS) -> float:
    """The case's ratio now."""
    from benchmarks.timing import interleave

    tried = interleave({"run": case.run, "reference": case.reference}, rounds=3)
    times = round(min(tried["reference"].cpu_s) / max(min(tried["run"].cpu_s), LEAST_S))
    times = min(MOST_TIMES, max(1, times))

    def run() -> None:
        for _ in range(times):
            case.run()

    samples = interleave({"run": run, "reference": case.reference}, rounds=rounds, warm_up=2)
    return min(samples["run"].cpu_s) / times / min(samples["reference"].cpu_s)


def judge(
    case: Case,
    baseline: float | None,
    counts: Mapping[str, Any] | None,
    *,
    ratio: Callable[[Case], float] = measure,
    attempts: int = ATTEMPTS,
) -> Verdict:
    """Compare a case with what is stored: counts exactly, the ratio to 10 %, the best of some attempts.

    Args:
        counts: those stored, None where there are none.
    """
    if counts is not None and dict(counts) != dict(case.counts):
        changed = [name for name in {*counts, *case.counts} if counts.get(name) != case.counts.get(name)]
        return Verdict(case.name, ratio(case), baseline, f"counts changed: {', '.join(sorted(changed))}")
    best = ratio(case)
    while baseline is not None and best > baseline * (1 + TOLERANCE) and attempts > 1:
        best, attempts = min(best, ratio(case)), attempts - 1
    if baseline is None or best <= baseline * (1 + TOLERANCE):
        return Verdict(case.name, best, baseline)
    return Verdict(case.name, best, baseline, f"slower by {100 * (best / baseline - 1):.0f} %")


def device_class() -> str:
    """What a baseline holds for: the processor's model and the features that decide speed."""
    from benchmarks.environment import environment

    cpu = environment()["cpu"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join([cpu["model"], *cpu["features"]]).lower()).strip("-")


def read(path: Path) -> dict[str, Any]:
    """A stored file, empty where there is none.

    Raises:
        UserError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not readable ({error}); restore it, or delete it and run with --update") from error


def update(folder: Path, cases: Sequence[Case], verdicts: Sequence[Verdict]) -> None:
    """Make what was measured the baseline of this device class, and keep it in its history."""
    from benchmarks.environment import git_state

    path = folder / f"{device_class()}.json"
    ratios = {verdict.name: round(verdict.ratio, 4) for verdict in verdicts}
    entry = {"at": utc_now()[:10], "revision": git_state()["revision"], "ratios": ratios}
    stored = read(path)
    _write(path, {"ratios": stored.get("ratios", {}) | ratios, "history": [*stored.get("history", []), entry]})
    _write(folder / COUNTS, read(folder / COUNTS) | {case.name: dict(case.counts) for case in cases})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def table(verdicts: Sequence[Verdict], history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Ratios now, as stored, and at the last updates."""
    import pandas as pd

    rows = []
    for verdict in verdicts:
        change = "" if verdict.baseline is None else f"{100 * (verdict.ratio / verdict.baseline - 1):+.0f} %"
        baseline = "" if verdict.baseline is None else f"{verdict.baseline:.3f}"
        row = {"Case": verdict.name, "Ratio": f"{verdict.ratio:.3f}", "Baseline": baseline, "Change": change}
        for entry in history[-SHOWN:]:
            past = entry["ratios"].get(verdict.name)
            row[f"{entry['at']} {entry['revision']}"] = "" if past is None else f"{past:.3f}"
        rows.append(row | {"Verdict": verdict.problem or "ok"})
    return pd.DataFrame(rows)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.regression",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.regression --cases transkimmer segment_rank",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--cases", nargs="+", metavar="CASE", help="default: all")
    add("--update", action="store_true", help="store what is measured as the baseline of this device class")
    add("--folder", type=Path, metavar="DIR", default=FOLDER, help="of the baselines; default: results/regression")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 where a case lost speed or changed its counts."""
    arguments = parser().parse_args(argv)
    import torch

    from benchmarks.regression_cases import cases

    torch.set_num_threads(1)
    known = {case.name: case for case in cases()}
    for name in arguments.cases or ():
        if name not in known:
            raise UserError(f"no case '{name}'; there are: {', '.join(known)}")
    stored = read(arguments.folder / f"{device_class()}.json")
    counts = read(arguments.folder / COUNTS)
    chosen = [known[name] for name in dict.fromkeys(arguments.cases or known)]
    baselines = {} if arguments.update else stored.get("ratios", {})
    with torch.inference_mode():
        verdicts = [
            judge(case, baselines.get(case.name), None if arguments.update else counts.get(case.name))
            for case in chosen
        ]
    console = open_console(quiet=arguments.json)
    print_table(table(verdicts, stored.get("history", [])), f"Speed on {device_class()}", console)
    if arguments.update:
        update(arguments.folder, chosen, verdicts)
        console.print(f"stored: {arguments.folder / device_class()}.json", highlight=False, soft_wrap=True)
    elif not stored:
        console.print("no baseline for this device class yet; `--update` stores one", highlight=False)
    answer(arguments, cases=list(map(vars, verdicts)), device=device_class(), updated=arguments.update)
    failed = [verdict for verdict in verdicts if verdict.problem]
    for verdict in failed:
        print(f"failed: {verdict.name}: {verdict.problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
