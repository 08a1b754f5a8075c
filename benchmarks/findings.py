"""What the records say about the papers' claims: `results/FINDINGS.md`, every number from a record.

A verdict is a rule over measured differences and their intervals, written down here before the numbers were there.
Where the intervals allow both, it is "not decided".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from benchmarks.cli import run_command
from benchmarks.compared import FAMILY_LEVEL, Measured, measured, paired
from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.equal_speed import NEAR, SPEEDS, Operating, at_speeds
from benchmarks.errors import Parser
from benchmarks.files import writing
from benchmarks.strategy import folders

PROGRAM = "python -m benchmarks.findings"
FREE, LOSS = 1.5, 1.0  # "1.5x without loss", "under 1 %"
DASH = "–"  # noqa: RUF001
HOLDS, FAILS, OPEN, ABSENT = "holds here", "does not hold here", "not decided here", "not measured here"


@dataclass(frozen=True)
class Claim:
    """A published claim and what the records say.

    Attributes:
        text: the claim, in own words. source: paper. judge: all that was measured -> verdict and evidence, in items.
    """

    text: str
    source: str
    judge: Callable[[Sequence[Measured]], tuple[str, list[str]]]


def _of(found: Iterable[Measured], *names: str) -> list[Measured]:
    return [one for one in found if one.method in names]


def _said(one: Measured) -> str:
    """One method on one task, in words."""
    text = f"{one.task}: {one.title} {one.score:.1f} at {one.speedup:.2f}x"
    return text + (f", {one.against_dense.text} against dense" if one.against_dense else "")


def small_loss(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Holds where the interval of the loss ends below `LOSS` on every task; fails where it begins above on one."""
    mine = [one for one in _of(found, "transkimmer") if one.against_dense]
    if not mine:
        return ABSENT, []
    losses = [one.against_dense for one in mine if one.against_dense]
    if any(loss.high < -LOSS for loss in losses):
        return FAILS, [_said(one) for one in mine]
    return HOLDS if all(loss.low > -LOSS for loss in losses) else OPEN, [_said(one) for one in mine]


def free_on_mrpc(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Holds where Transkimmer is `FREE` times faster on MRPC and its loss is certainly below `LOSS`.

    A certain loss fails it at about that speed-up only: one at a much larger speed-up says nothing.
    """
    mine = [one for one in _of(found, "transkimmer") if one.task.startswith("MRPC") and one.against_dense]
    if not mine:
        return ABSENT, []
    fast = [one for one in mine if one.speedup >= FREE]
    good = [one for one in fast if one.against_dense and one.against_dense.low > -LOSS]
    about = [one for one in fast if one.speedup <= FREE * (1 + NEAR)]
    bad = [one for one in about if one.against_dense and one.against_dense.high < -LOSS]
    return (HOLDS if good else FAILS if bad or not fast else OPEN), [_said(one) for one in mine]


def better_than(*rivals: str) -> Callable[[Sequence[Measured]], tuple[str, list[str]]]:
    """Transkimmer against `rivals`, pair by pair on each task: who computes less, and who scores better."""

    def judge(found: Sequence[Measured]) -> tuple[str, list[str]]:
        lines, ahead, behind, pairs = [], 0, 0, 0
        for own in _of(found, "transkimmer"):
            for other in _of(found, *rivals):
                if (other.table, other.task) != (own.table, own.task) or own.drawn is None or other.drawn is None:
                    continue
                difference = paired(own.score - other.score, own.drawn - other.drawn)
                slower, faster = own.speedup < other.speedup / (1 + NEAR), own.speedup > other.speedup * (1 + NEAR)
                pairs += 1
                ahead += difference.low > 0 and not slower
                behind += difference.high < 0 and not faster
                at = f"at {own.speedup:.2f}x against {other.speedup:.2f}x"
                lines.append(f"{own.task}, {other.title}: {difference.text} {at}")
        if not pairs:
            return ABSENT, []
        note = (
            f"certainly better at no lower speed in {ahead} of {pairs} comparisons, certainly worse at no higher speed "
            f"in {behind} (intervals of single comparisons)"
        )
        verdict = HOLDS if ahead == pairs else FAILS if behind > ahead else OPEN
        return verdict, [note, *lines]

    return judge


def beats_random(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Which methods are certainly above a twin that drops at random at the same cost per layer."""
    judged = [one for one in found if one.against_random]
    if not judged:
        return ABSENT, []
    above = [one for one in judged if one.against_random and one.against_random.decided_sign > 0]
    below = [one for one in judged if one.against_random and one.against_random.decided_sign < 0]
    lines = [f"above: {_names(above)}", f"below: {_names(below)}"]
    lines.append(f"not decided: {_names([one for one in judged if one not in above and one not in below])}")
    return (HOLDS if len(above) == len(judged) else OPEN if not below else FAILS), lines


def _names(some: Sequence[Measured]) -> str:
    return ", ".join(f"{one.title} ({one.task})" for one in some) or "none"


def layers_differ(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Shares of tokens per layer that Transkimmer computes, task by task; the claim is about their differing at all."""
    mine = _of(found, "transkimmer")
    if len(mine) < 2:
        return ABSENT, []
    lines = [f"{one.task}: {', '.join(f'{100 * share:.0f}' for share in one.shares)} % per layer" for one in mine]
    widest = max(abs(a - b) for one in mine for two in mine for a, b in zip(one.shares, two.shares, strict=True))
    note = f"largest difference of a layer between tasks: {100 * widest:.0f} points"
    return HOLDS if widest > 0.1 else FAILS, [note, *lines]


def easier_skims_more(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Kendall's rank correlation, over tasks, of the dense model's score and Transkimmer's speed-up."""
    mine = {(one.model, one.task): one for one in _of(found, "transkimmer")}
    pairs = [(one, mine[one.model, one.task]) for one in _of(found, "dense") if (one.model, one.task) in mine]
    if len(pairs) < 2:
        return ABSENT, []
    pairs.sort(key=lambda pair: -pair[0].score)
    order = kendalltau([dense.score for dense, _ in pairs], [own.speedup for _, own in pairs])
    note = (
        f"rank correlation {order.statistic:+.2f} over {len(pairs)} tasks, p = {order.pvalue:.2f}; how easy a task is "
        "is taken from the dense score, whose metric differs between tasks, as does the weight of the skim loss"
    )
    lines = [f"{dense.task}: dense {dense.score:.1f}, Transkimmer {own.speedup:.2f}x" for dense, own in pairs]
    decided = order.pvalue <= FAMILY_LEVEL
    return (OPEN if not decided else HOLDS if order.statistic > 0 else FAILS), [note, *lines]


def headline(method: str, factor: float) -> Callable[[Sequence[Measured]], tuple[str, list[str]]]:
    """Whether a method reaches its headline factor, in FLOPs, on any task without a decided loss."""

    def judge(found: Sequence[Measured]) -> tuple[str, list[str]]:
        mine = _of(found, method)
        if not mine:
            return ABSENT, []
        reached = [one for one in mine if one.speedup >= factor]
        fine = [one for one in reached if one.against_dense and not one.against_dense.decided]
        return HOLDS if fine else OPEN if reached else FAILS, [_said(one) for one in mine]

    return judge


def absent(why: str) -> Callable[[Sequence[Measured]], tuple[str, list[str]]]:
    """A claim that no record speaks about."""
    return lambda found: (ABSENT, [why])


CLAIMS = (
    Claim("A method knows which tokens matter: it beats dropping at random at the same cost.", "all", beats_random),
    Claim("Transkimmer loses less than 1 % almost everywhere.", "Guan et al. 2022, Table 3", small_loss),
    Claim("On MRPC about 1.5x comes for free.", "Guan et al. 2022, Figure 3", free_on_mrpc),
    Claim("Layers skim differently from task to task.", "Guan et al. 2022, Figure 4", layers_differ),
    Claim("Easier tasks skim more.", "Guan et al. 2022, on Figure 4", easier_skims_more),
    Claim(
        "Reparameterised gates beat soft masks and reinforcement learning.",
        "Guan et al. 2022, Tables 1 and 3",
        better_than("ltp", "power_bert", "tr_bert"),
    ),
    Claim("Skimming tokens beats leaving early.", "Guan et al. 2022, Table 3", better_than("deebert", "pabee")),
    Claim(
        "Transkimmer beats all other reducers.",
        "Guan et al. 2022, abstract",
        better_than("power_bert", "lat", "ltp", "tr_bert", "lot", "top", "deformer", "deebert", "pabee"),
    ),
    Claim("LoT: up to 25 times faster.", "Kim et al. 2023, abstract", headline("lot", 25.0)),
    Claim("ToP: up to 7.4 times faster (by the clock).", "Li et al. 2023, abstract", headline("top", 7.4)),
    Claim(
        "Forwarding dropped tokens beats discarding them.",
        "Guan et al. 2022, Table 1",
        absent(
            "on a text classified by its [CLS] no answer depends on it: nothing reads a state once it is forwarded. "
            "Spans and tags would tell; no method was trained both ways on them"
        ),
    ),
    Claim(
        "Skimming composes with DistilBERT and ALBERT.",
        "Guan et al. 2022, Table 3",
        absent(
            "it needs these checkpoints, which only the hub has; `python -m benchmarks.glue --profile paper` runs them"
        ),
    ),
)


@dataclass(frozen=True)
class Judged:
    """A claim, its paper, what the records say of it, and why."""

    claim: str
    source: str
    verdict: str
    evidence: list[str]


def judged(found: Sequence[Measured]) -> list[Judged]:
    """Every claim."""
    return [Judged(claim.text, claim.source, *claim.judge(found)) for claim in CLAIMS]


def report(found: Sequence[Measured], command: str, source: Path) -> str:
    """The page; settings beside the methods' own are read below `source`."""
    texts = {one.task: one.texts for one in found}
    models = ", ".join(dict.fromkeys(one.model for one in found))
    seeds = sorted({one.seeds for one in found})
    lines = [
        "# What the records say about the papers' claims",
        "",
        f"Command: `{command}`",
        "",
        f"Measured with {models}, {' or '.join(map(str, seeds))} seed(s) a run, on "
        + ", ".join(f"{task} ({count:,} texts)" for task, count in texts.items())
        + ", the methods by the short recipe on few training rows (the tables name the commands). The papers "
        "train BERT-base on whole training sets. So *here* means here: a claim that fails on a small model with little "
        "training may hold for theirs, and the reverse. The embedded sets show the machinery and judge no claim where "
        "real tasks have been measured.",
        "",
        "A difference has its 95 % interval over draws of the evaluated texts, the same for both sides (paired "
        f"bootstrap); * marks those decided after Holm's correction over all of them, at {FAMILY_LEVEL:g} in all. "
        "Seeds of training are not in these intervals. Speed-ups are of executed FLOPs, without padding.",
        "",
        "## At a glance",
        "",
        "Score in percent, FLOPs speed-up, and in brackets the score of dropping at random at the same cost per layer; "
        "* where the difference between the two is decided.",
        "",
        *_glance(found),
        "",
        "## Claims",
        "",
    ]
    for one in judged(found):
        lines += [f"### {one.claim}", "", f"{one.source}. **{one.verdict.capitalize()}.**", ""]
        lines += [*(f"- {item}" for item in one.evidence), ""]
    lines += [f"## At about {' and '.join(f'{speed:g}x' for speed in SPEEDS)}", "", *_at_speeds(found, source), ""]
    lines += ["## Every method against dense and against random", "", *_table(found), ""]
    return "\n".join(lines)


def _glance(found: Sequence[Measured]) -> list[str]:
    """One row per encoder and method, one column per task."""
    tasks = list(dict.fromkeys(one.task for one in found))
    rows = [("Model", "Method", *tasks), ("---",) * (len(tasks) + 2)]
    for model, title in dict.fromkeys((one.model, one.title) for one in found):
        mine = {one.task: one for one in found if (one.model, one.title) == (model, title)}
        rows.append((model, title, *(_cell(mine[task]) if task in mine else DASH for task in tasks)))
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(one: Measured) -> str:
    text = f"{one.score:.1f} {one.speedup:.2f}x"
    if one.random_score is None:
        return text
    star = "*" if one.against_random and one.against_random.decided else ""
    return f"{text} ({one.random_score:.1f}){star}"


def _table(found: Sequence[Measured]) -> list[str]:
    header = ("Task", "Method", "Speed-up", "Score", "Against dense", "Against random", "Records")
    rows = [header, ("---",) * len(header)]
    for one in found:
        differences = (d.text if d else DASH for d in (one.against_dense, one.against_random))
        speed, score = f"{one.speedup:.2f}x", f"{one.score:.1f}"
        rows.append((one.task, one.title, speed, score, *differences, " ".join(one.records)))
    return [f"| {' | '.join(row)} |" for row in rows]


def _at_speeds(found: Sequence[Measured], source: Path) -> list[str]:
    """Of each method the measured setting nearest to each of some speed-ups."""
    rows: list[Sequence[str]] = [("Task", "Method", *(f"About {speed:g}x" for speed in SPEEDS))]
    rows.append(("---",) * (2 + len(SPEEDS)))
    titles = tuple(dict.fromkeys(one.task for one in found))
    rows += [(task, method, *map(_operating, those)) for task, method, those in at_speeds(source, titles)]
    note = (
        f"Of each method the measured setting nearest to the speed-up, if within {100 * NEAR:g} %: score and "
        "difference to the dense model with its interval (of single comparisons), and the score of random dropping at "
        f"about the same speed-up. {DASH}: no such setting was measured; `results/tables/pareto-*.md` have them all."
    )
    return [note, "", *(f"| {' | '.join(row)} |" for row in rows)]


def _operating(one: Operating | None) -> str:
    if one is None:
        return DASH
    loss = f", {one.loss.text}" if one.loss else ""
    beside = "" if one.random_score is None else f" (random {one.random_score:.1f} at {one.random_speedup:.2f}x)"
    seeds = f", {one.seeds} seeds" if one.seeds > 1 else ""
    return f"{one.score:.1f} at {one.speedup:.2f}x{seeds}{loss}{beside}"


def _plain(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows without the scores of single draws."""
    return [asdict(replace(one, drawn=None)) for one in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="default: results/local, else the published records",
    )
    add_json_flag(parser)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    given = parser.parse_args(argv)
    source, target = folders(given.results)
    path = target / "FINDINGS.md"
    found = measured(source)
    page = report(found, f"{PROGRAM} --results {given.results}" if given.results else PROGRAM, source)
    with writing(path):
        path.write_text(page, encoding="utf-8")
    open_console(quiet=given.json).print(f"findings: {path}", highlight=False, soft_wrap=True)
    answer(given, rows=_plain(found), claims=list(map(vars, judged(found))), findings=path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
