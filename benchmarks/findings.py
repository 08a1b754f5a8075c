"""What the records say about the papers' claims: `results/FINDINGS.md`, every number from a record."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

from benchmarks.answers import DASH, by_task, common_title, unlearned
from benchmarks.beside import Beside, beside
from benchmarks.claims import Judged, judged
from benchmarks.cli import run_command
from benchmarks.comparable import Comparison, comparisons_around, finished_runs, read_comparisons
from benchmarks.compared import FAMILY_LEVEL, Difference, Measured, measured
from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.equal_speed import NEAR, SPEEDS, AtSpeeds, Operating, at_speeds
from benchmarks.errors import Parser
from benchmarks.files import writing
from benchmarks.forwarding import Ways, both_ways
from benchmarks.plain_trial import EPOCHS
from benchmarks.strategy import folders
from benchmarks.sweep import DEVICES
from benchmarks.tasks import TASKS
from benchmarks.twins import Twins, both_twins, summary

PROGRAM = "python -m benchmarks.findings"
METRICS = {"matthews_correlation": "100 times the Matthews correlation", "pearson": "100 times Pearson's", "f1": "F1"}


def comparisons(found: Sequence[Measured], source: Path) -> list[Comparison]:
    """The records of each task of `found`, and those below `source` that stand in one comparison with them."""
    around = [({name for one in some for name in one.records}, common_title(some)) for some in by_task(found)]
    return comparisons_around(source, around) if found else []


def report(
    found: Sequence[Measured],
    near: Sequence[AtSpeeds],
    trials: Sequence[Beside],
    command: str,
    ways: Sequence[Ways] = (),
    twins: Sequence[Twins] = (),
) -> str:
    """The page.

    Args:
        trials: the dense model beside plain trials of the checkpoint. ways: what forwards and discards. twins: methods
            beside random dropping that was trained as long as they were.
    """
    texts = {one.task: one.texts for one in found}
    tables = [[one for one in found if one.table == name] for name in dict.fromkeys(one.table for one in found)]
    models = ", ".join(dict.fromkeys(one.model for one in found))
    answers = judged(found, near, ways)
    lines = [
        "# What the records say about the papers' claims",
        "",
        f"Command: `{command}`",
        "",
        f"Measured with {models} on "
        + ", ".join(f"{task} ({count:,} texts)" for task, count in texts.items())
        + ", the methods by the short recipe on few training rows (the tables name the commands; where two have a "
        "task, its training rows tell them apart). The papers train BERT-base on whole training sets. So *here* means "
        "here: a claim that fails on a small model with little training may hold for theirs, and the reverse. The "
        "embedded sets show the machinery and judge no claim where real tasks have been measured.",
        "",
        f"Scores are in percent: {_metrics(found)}. *(sample)* after a task says that the files at hand have fewer "
        "rows than the official ones. Speed-ups are of executed FLOPs, without padding.",
        "",
        "A difference has its 95 % interval over draws of the evaluated texts, the same for both sides (paired "
        f"bootstrap); * marks those decided after Holm's correction over all of them, at {FAMILY_LEVEL:g} in all. "
        "Seeds of training are not in these intervals: where there are several, each one's own difference follows, and "
        "none is decided that has another sign with another seed. Where there is one seed, what is decided is decided "
        "for that training, on any texts; another one may end elsewhere, by several points on small tasks.",
        "",
        *_unlearned(found),
        "## The claims, in short",
        "",
        *_answers(answers),
        "",
        "## At a glance",
        "",
        "Score in percent, FLOPs speed-up, and in brackets the score of dropping at random at the same cost per layer, "
        "from the same dense model, after half an epoch (methods train one to three); * where the difference between "
        f"the two is decided. No brackets, or {DASH}: not measured.",
        "",
        *(line for table in tables for line in (f"### {table[0].table}", "", *_glance(table), "", _seeds(table), "")),
        f"The dense model seed by seed, those of runs without all methods included: {_dense_seeds(near)}. "
        "(Rows in brackets are those of the methods that start from it.) All these seeds take part in *At about*, too.",
        "",
        "## The claims, one by one",
        "",
        "Where Transkimmer stands against others, a cell is its score minus theirs, of the seeds that both have, and "
        "their speed-up; * marks what is certain: by Holm's correction over the comparisons of that claim, and with "
        "every seed. Of a task with two validation sets the first one counts. Two tables may have the same task, and "
        "the same setting may stand in several lines: comparisons are not independent of each other.",
        "",
    ]
    for one in answers:
        lines += [
            f"### {one.claim}",
            "",
            f"{one.source}. **{one.answer.verdict.capitalize()}**: {one.answer.summary}.",
            "",
        ]
        lines += [f"Rule: {one.rule}.", ""] if one.rule else []
        lines += [*_rows(one.answer.table), ""] if one.answer.table else []
    lines += [f"## At about {' and '.join(f'{speed:g}x' for speed in SPEEDS)}", "", *_at_speeds(near), ""]
    if rows := _more_rows(found):
        lines += ["## The same with more training rows", "", *rows, ""]
    lines += _trials(trials)
    lines += ["## A second look at what fell below random", "", *_second_look(found, near), ""]
    lines += _twins(twins)
    lines += ["## Every method against dense and against random", "", *_table(found), ""]
    return "\n".join(lines)


def _rows(table: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, the header being its first row."""
    header, *rows = table
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def _answers(answers: Sequence[Judged]) -> list[str]:
    rows = [
        (one.claim, one.source, f"**{one.answer.verdict.removesuffix(' here')}**", one.answer.summary)
        for one in answers
    ]
    return _rows([("Claim", "From", "Here", "Because"), *rows])


def _glance(found: Sequence[Measured]) -> list[str]:
    """One row per method, of each encoder where there are several; one column per task."""
    tasks = list(dict.fromkeys(one.task for one in found))
    several = len({one.model for one in found}) > 1
    rows: list[Sequence[str]] = [(*(["Model"] if several else []), "Method", *tasks)]
    for model, title in dict.fromkeys((one.model, one.title) for one in found):
        mine = {one.task: one for one in found if (one.model, one.title) == (model, title)}
        cells = (_cell(mine[task]) if task in mine else DASH for task in tasks)
        rows.append((*([model] if several else []), title, *cells))
    return _rows(rows)


def _seeds(table: Sequence[Measured]) -> str:
    """Which table, and how many seeds each task has."""
    counts = {one.task: len(one.scores) for one in table if one.method == "dense"}
    seeds = ", ".join(f"{task} {count}" for task, count in counts.items())
    return f"Seeds: {seeds}. `results/tables/{table[0].table}.md` has every padding setting, and which rows."


def _dense_seeds(near: Sequence[AtSpeeds]) -> str:
    dense = [one for one in near if one.method == "dense"]
    return "; ".join(f"{one.task} {', '.join(f'{score:.1f}' for score in one.every[0].scores)}" for one in dense)


def _metrics(found: Sequence[Measured]) -> str:
    """Which score each task has."""
    names: dict[str, list[str]] = {}
    for one in found:
        tasks = names.setdefault(METRICS.get(one.metric, one.metric), [])
        tasks += [] if one.task in tasks else [one.task]
    return "; ".join(f"{name} on {', '.join(tasks)}" for name, tasks in names.items())


def _unlearned(found: Sequence[Measured]) -> list[str]:
    """Tasks that no claim is judged by."""
    said = [
        f"{one.label} (dense {one.score:.1f}, one answer for all texts {one.trivial:.1f})" for one in unlearned(found)
    ]
    if not said:
        return []
    return [f"The dense model has not learned {', '.join(said)}: that is shown, and judges no claim.", ""]


def _trials(trials: Sequence[Beside]) -> list[str]:
    """The dense model beside plain trials."""
    if not trials:
        return []
    header = [
        "Task",
        "On",
        "Seeds",
        "Dense",
        "Plain trial",
        "Difference",
        "Without those rows",
        "Dense, all rows",
        "Difference",
        "Its best epoch",
        "Records",
    ]
    rows: list[Sequence[str]] = [header]
    for one in trials:
        every = (one.dense, one.last, one.fewer, one.whole, one.best)
        dense, last, fewer, whole, best = (" ".join(f"{score:.1f}" for score in some) or DASH for some in every)
        differences = (one.difference, one.whole_difference)
        difference, of_whole = (some.text if some else DASH for some in differences)
        seeds, records = " ".join(map(str, one.seeds)), " ".join(one.records)
        scores = (dense, last, difference, fewer, whole, of_whole, best)
        rows.append((one.title, DEVICES[one.device], seeds, *scores, records))
    return [
        "## The dense model beside a plain trial",
        "",
        "The dense model beside a plain trial of the same checkpoint, which it should not fall behind: the library's "
        "own model in a bare loop on all training rows, after its last epoch (`python -m benchmarks.plain_trial`). The "
        "dense model lacks those rows that choose its epoch, a tenth at most; *without those rows* is the trial that "
        "lacks them, too (`--held-out`), and *dense, all rows* the dense model that has them and keeps its last epoch. "
        "The best epoch is the trial's, chosen on the very texts that are scored. Trials train "
        f"{', '.join(f'{count} epochs on {name}' for name, count in _trial_epochs(trials))}; dense models five.",
        "",
        *_rows(rows),
        "",
        *_signs("Dense", [one.difference for one in trials]),
        *_signs("Dense on all rows", [one.whole_difference for one in trials]),
    ]


def _trial_epochs(trials: Sequence[Beside]) -> list[tuple[str, int]]:
    titles = {TASKS[name].title: count for name, count in EPOCHS.items()}
    return [(title, count) for title, count in titles.items() if any(one.title.startswith(title) for one in trials)]


def _signs(what: str, differences: Iterable[Difference | None]) -> list[str]:
    """How many of the differences to the trials are decided, and how many are below zero."""
    known = [one for one in differences if one]
    if not known:
        return []
    away = sum(not one.low <= 0 <= one.high for one in known)
    below = sum(one.points < 0 for one in known)
    return [
        f"{what}: zero lies outside {away} of {len(known)} intervals, and {below} of the differences are below it.",
        "",
    ]


def _cell(one: Measured) -> str:
    text = f"{one.score:.1f} {one.speedup:.2f}x"
    if one.random_score is None:
        return text
    star = "*" if one.against_random and one.against_random.decided else ""
    return f"{text} ({one.random_score:.1f}){star}"


def _table(found: Sequence[Measured]) -> list[str]:
    header = ("Task", "Method", "Speed-up", "Score", "Against dense", "Against random", "Records")
    rows: list[Sequence[str]] = [header]
    for one in found:
        loss, apart = (d.text if d else DASH for d in (one.against_dense, one.against_random))
        twin = apart if one.random_speedup is None else f"{apart} at {one.random_speedup:.2f}x"
        speed, score = f"{one.speedup:.2f}x", f"{one.score:.1f}"
        rows.append((one.label, one.title, speed, score, loss, twin, " ".join(one.records)))
    return _rows(rows)


def _at_speeds(near: Sequence[AtSpeeds]) -> list[str]:
    """Of each method the measured setting nearest to each of some speed-ups."""
    rows: list[Sequence[str]] = [("Task", "Method", *(f"About {speed:g}x" for speed in SPEEDS))]
    rows += [
        (one.task, one.title, *(_operating(setting, one.every) for setting in one.settings))
        for one in near
        if one.method != "dense"
    ]
    note = (
        f"Of each method the measured setting nearest to the speed-up, if within {100 * NEAR:g} %: score, difference "
        "to the dense model of the same seeds with its interval (of single comparisons), and the score of that random "
        "dropping, whosever twin, whose speed-up is nearest to the method's. Which setting is nearest is told by "
        "speed-ups on the scored texts, never by scores; *constant* marks one that gives all texts the same answer. "
        f"{DASH}: none of its settings, whose speed-ups are said, is near. `results/tables/pareto-*.md` have them all."
    )
    return [note, "", *_rows(rows)]


def _operating(one: Operating | None, every: Sequence[Operating]) -> str:
    if one is None:
        return f"{DASH} ({', '.join(f'{other.speedup:.2f}x' for other in every)})"
    loss = f", {one.loss.text}" if one.loss else ""
    beside = "" if one.random_score is None else f" (random {one.random_score:.1f} at {one.random_speedup:.2f}x)"
    seeds = f", {len(one.scores)} seeds" if len(one.scores) > 1 else ""
    constant = ", constant" if one.constant else ""
    return f"{one.score:.1f} at {one.speedup:.2f}x{seeds}{constant}{loss}{beside}"


def _second_look(found: Sequence[Measured], near: Sequence[AtSpeeds]) -> list[str]:
    """All measured settings, and seeds, of the methods that are certainly worse than dropping at random there."""
    worse = {
        (common_title(some), one.method)
        for some in by_task(found)
        for one in some
        if one.against_random and one.against_random.decided_sign < 0
    }
    lines = []
    for it in near:
        if (it.task, it.method) in worse:
            settings = (
                f"{one.setting}: {' and '.join(f'{score:.1f}' for score in one.scores)} at {one.speedup:.2f}x"
                for one in it.every
            )
            lines.append(f"- {it.task}, {it.title}: {'; '.join(settings)}")
    note = "All settings, seed by seed, of every method that is certainly worse than its random twin on a task."
    return [note, "", *lines] if lines else ["Nothing did."]


def _twins(twins: Sequence[Twins]) -> list[str]:
    """What of a lead over dropping at random is training."""
    if not twins:
        return []
    rows = [tuple(one.row.values()) for one in twins]
    return ["## A lead over random, and training", "", summary(twins), "", *_rows([tuple(twins[0].row), *rows]), ""]


def _more_rows(found: Sequence[Measured]) -> list[str]:
    """Of each method its loss with the fewest and with the most training rows, over the tasks measured with both."""
    runs = [one for one in found if one.against_dense is not None]
    rows = [("Model", "Method", "Tasks", "Fewer rows", "Against dense", "More rows", "Against dense")]
    for model, title in dict.fromkeys((one.model, one.title) for one in runs):
        mine = [one for one in runs if (one.model, one.title) == (model, title)]
        pairs = []
        for task, whole in dict.fromkeys((one.task, one.whole) for one in mine):
            own = sorted((one for one in mine if (one.task, one.whole) == (task, whole)), key=lambda one: one.rows)
            pairs += [(own[0], own[-1])] if len(own) > 1 else []
        if pairs:
            few, many = (_mean_loss(side) for side in zip(*pairs, strict=True))
            rows.append((model, title, ", ".join(one.task for one, _ in pairs), *few, *many))
    if len(rows) == 1:
        return []
    note = (
        "Each method's own setting, whose speed-up is not the same with both: points against the dense model and "
        "speed-up, mean and geometric mean over the tasks that both tables have. The two also differ in seeds and, "
        "where one was trained on a GPU, in that: what differs here is not due to rows alone."
    )
    return [note, "", *_rows(rows)]


def _mean_loss(some: Sequence[Measured]) -> tuple[str, str]:
    """Training rows with the speed-up, and the points against dense."""
    rows = sorted(one.rows for one in some)
    said = f"{rows[0]:,}" if rows[0] == rows[-1] else f"{rows[0]:,} to {rows[-1]:,}"
    points = mean(one.against_dense.points for one in some if one.against_dense)
    return f"{said}, {geometric_mean(one.speedup for one in some):.2f}x", f"{points:+.1f}"


def _plain(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows without the scores of single draws."""
    return [asdict(replace(one, drawn=None)) for one in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = Parser(
        prog=PROGRAM,
        description=(__doc__ or "").splitlines()[0],
        epilog=f"example:\n  {PROGRAM} --results results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    like = comparisons(found, source)
    near, ways = at_speeds(like), both_ways(read_comparisons(source))
    twins = both_twins(record for records in finished_runs(source).values() for record in records)
    command = f"{PROGRAM} --results {given.results}" if given.results else PROGRAM
    page = report(found, near, beside(source, like), command, ways, twins)
    with writing(path):
        path.write_text(page, encoding="utf-8")
    open_console(quiet=given.json).print(f"findings: {path}", highlight=False, soft_wrap=True)
    answer(given, rows=_plain(found), claims=[asdict(one) for one in judged(found, near, ways)], findings=path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
