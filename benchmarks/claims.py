"""The papers' claims, each with the rule that decides on it.

A verdict is a rule over measured differences and their intervals; results/CHANGES.md names the rules that changed after
numbers had been seen. Where the intervals allow both, it is "not decided".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from benchmarks.answers import (
    DASH,
    FAILS,
    HOLDS,
    NOTHING,
    OPEN,
    UNDECIDABLE,
    UNTESTED,
    Answer,
    Judge,
    admitted,
    admitted_at_speeds,
    by_count,
    of,
    place,
    selects_tokens,
)
from benchmarks.compared import FAMILY_LEVEL, Difference, Measured, holm
from benchmarks.equal_speed import AtSpeeds
from benchmarks.forwarding import Ways
from benchmarks.pareto_rows import OWN_SETTING
from benchmarks.rivals import ABOUT, RULE, better_than

FREE, LOSS = 1.5, 1.0  # "1.5x without loss", "under 1 %"
MOST = 0.75  # of the tasks: "almost everywhere"
SHUFFLES = 10_000


@dataclass(frozen=True)
class Claim:
    """A published claim and what the records say.

    Attributes:
        text: the claim, in own words. source: paper. judge: what decides on it. rule: how, for people.
    """

    text: str
    source: str
    judge: Judge
    rule: str = ""


def _against_dense(some: Sequence[Measured]) -> tuple[tuple[str, ...], ...]:
    """A table of one method, task by task, against the dense model."""
    losses = (one.against_dense.text if one.against_dense else DASH for one in some)
    rows = [
        (place(one, some), f"{one.score:.1f}", f"{one.speedup:.2f}x", loss)
        for one, loss in zip(some, losses, strict=True)
    ]
    return ("Task", "Score", "Speed-up", "Against dense"), *rows


def _named(labels: Iterable[str]) -> str:
    return ", ".join(labels) or "none"


def small_loss(found: Sequence[Measured]) -> Answer:
    """Losses against `LOSS` points: which are certainly larger, which certainly smaller."""
    mine = [(one, one.against_dense) for one in of(found, "transkimmer") if one.against_dense]
    if not mine:
        return NOTHING
    every = [one for one, _ in mine]
    beyond = [loss.beyond(-LOSS) for _, loss in mine]
    limit = holm([loss.p for loss in beyond])
    signs = [loss.judged(limit).decided_sign for loss in beyond]
    more, less = ([place(one, every) for one, sign in zip(every, signs, strict=True) if sign == s] for s in (-1, 1))
    verdict = HOLDS if len(less) >= MOST * len(mine) else FAILS if len(more) > (1 - MOST) * len(mine) else OPEN
    summary = (
        f"of {len(mine)} sets of runs the loss is certainly larger than {LOSS:g} point on {len(more)} "
        f"({_named(more)}), certainly smaller on {len(less)} ({_named(less)})"
    )
    return Answer(verdict, summary, _against_dense(every))


LOSS_RULE = (
    f"holds where the loss is certainly smaller than {LOSS:g} point in at least {100 * MOST:g} % of the sets of runs, "
    f"does not hold where it is certainly larger in more than {100 * (1 - MOST):g} %. Certain: by Holm's correction "
    f"over all of them, every seed on that side of {LOSS:g} point"
)


def free_on_mrpc(near: Sequence[AtSpeeds] = ()) -> Judge:
    """Judges by the `FREE_RULE`; besides its own settings, those of its sweep count."""

    def judge(found: Sequence[Measured]) -> Answer:
        own = [one for one in of(found, "transkimmer") if one.task.startswith("MRPC")]
        tried = [(one.label, one.score, one.speedup, one.against_dense) for one in own if one.against_dense]
        for one in near:
            mine = one.method == "transkimmer" and one.task.startswith("MRPC")
            for setting in one.every if mine else ():
                if setting.loss and setting.setting != OWN_SETTING:  # `own` has that one
                    tried.append((f"{one.task}, {setting.setting}", setting.score, setting.speedup, setting.loss))
        if not tried:
            return NOTHING
        tried.sort(key=lambda one: one[2])
        good = [speedup for *_, speedup, loss in tried if speedup >= FREE / ABOUT and loss.low > -LOSS]
        about = [loss for *_, speedup, loss in tried if FREE / ABOUT <= speedup <= FREE * ABOUT]
        slow = all(speedup < FREE / ABOUT for *_, speedup, _ in tried)
        bad = bool(about) and all(loss.high < -LOSS for loss in about)
        said = "; ".join(f"{loss.short} at {speedup:.2f}x" for *_, speedup, loss in _around(tried))
        rows = [(label, f"{score:.1f}", f"{speedup:.2f}x", loss.text) for label, score, speedup, loss in tried]
        return Answer(
            HOLDS if good else FAILS if bad or slow else OPEN,
            f"on either side of {FREE:g}x: {said}",
            (("Task", "Score", "Speed-up", "Against dense"), *rows),
        )

    return judge


FREE_RULE = (
    f"holds where a setting about {FREE:g} times faster, or more, loses less than {LOSS:g} point (its whole interval), "
    f"does not hold where each one at about {FREE:g}x certainly loses more, or none is that fast"
)
_Tried = tuple[str, float, float, Difference]


def _around(tried: Sequence[_Tried]) -> list[_Tried]:
    """Of settings by speed-up, the last below `FREE` and the first at or above it."""
    below, above = ([one for one in tried if (one[2] < FREE) == side] for side in (True, False))
    return [*below[-1:], *above[:1]]


SIGNS = {1: "above", 0: "·", -1: "below"}


def beats_random(found: Sequence[Measured]) -> Answer:
    """Which methods that choose tokens are certainly above a twin that drops at random at the same cost per layer."""
    some = [one for one in found if one.against_random and selects_tokens(one.method)]
    signs = {(one.title, place(one, found)): one.against_random.decided_sign for one in some if one.against_random}
    if not signs:
        return NOTHING
    above, below = (sum(sign == which for sign in signs.values()) for which in (1, -1))
    several = {(one.title, place(one, found)) for one in some if len(one.scores) > 1}
    of_several = sum(signs[one] == 1 for one in several)
    titles, labels = (list(dict.fromkeys(names)) for names in zip(*signs, strict=True))
    rows = [
        (label, *(SIGNS[signs[title, label]] if (title, label) in signs else DASH for title in titles))
        for label in labels
    ]
    return Answer(
        by_count(above, below, len(signs)),
        f"of {len(signs)} comparisons certainly above in {above}, certainly below in {below}; where several seeds have "
        f"to agree, above in {of_several} of {len(several)}, with one seed in {above - of_several} of "
        f"{len(signs) - len(several)}",
        (("Task", *titles), *rows),
    )


RANDOM_RULE = (
    "holds where the methods that choose tokens (no early exits, not DeFormer) are certainly above their twins in "
    "every comparison; does not hold where they are certainly below in more than above. A method trains two to four "
    "times as many updates as its twin: *A lead over random, and training* has twins that were trained as long"
)


def layers_differ(found: Sequence[Measured]) -> Answer:
    """Shares of tokens per layer that Transkimmer computes: do tasks differ more than seeds of one task do?"""
    mine = of(found, "transkimmer")
    tables = {one.table: [other for other in mine if other.table == one.table] for one in mine}
    if not any(len(table) > 1 for table in tables.values()):
        return NOTHING
    widest = max(_spread([one.shares for one in table]) for table in tables.values())
    seeds = max(_spread(one.seed_shares) for one in mine)
    tested = {name: p for name, table in tables.items() if (p := _by_chance(table)) is not None}
    said = ", ".join(f"p = {p:.4f} in {name}" for name, p in tested.items()) or "no task has several seeds"
    return Answer(
        HOLDS if tested and min(tested.values()) <= FAMILY_LEVEL / len(tested) else OPEN,
        f"largest difference of a layer between two tasks {100 * widest:.0f} points, between two seeds of one task "
        f"{100 * seeds:.0f}; tasks against seeds: {said}. The weight of the skim loss is set for each task, too",
        (
            ("Task", "Speed-up", "Tokens computed in each layer, percent"),
            *(
                (place(one, mine), f"{one.speedup:.2f}x", ", ".join(f"{100 * share:.0f}" for share in one.shares))
                for one in mine
            ),
        ),
    )


LAYERS_RULE = (
    "holds where, in a table, layers differ more between tasks than runs that are shuffled among its tasks do (tasks "
    f"of several seeds; {SHUFFLES:,} shuffles; Bonferroni over tables)"
)


def _spread(shares: Sequence[Sequence[float]]) -> float:
    """Largest difference between two in a layer."""
    return float(np.ptp(np.array(shares), axis=0).max())


def _by_chance(table: Sequence[Measured]) -> float | None:
    """p that runs shuffled among the tasks of several seeds differ as much between them; None with fewer than two."""
    groups = [np.array(one.seed_shares) for one in table if len(one.seed_shares) > 1]
    if len(groups) < 2:
        return None
    runs, sizes = np.concatenate(groups), [len(group) for group in groups]
    bounds = np.cumsum(sizes)[:-1]

    def between(some: NDArray[np.float64]) -> float:
        means = [part.mean(axis=0) for part in np.split(some, bounds)]
        return float(
            sum(size * ((mean - runs.mean(axis=0)) ** 2).sum() for size, mean in zip(sizes, means, strict=True))
        )

    rng, measured = np.random.default_rng(len(runs)), between(runs)
    as_far = sum(between(rng.permutation(runs)) >= measured - 1e-12 for _ in range(SHUFFLES))
    return (as_far + 1) / (SHUFFLES + 1)


def easier_skims_more(found: Sequence[Measured]) -> Answer:
    """Kendall's rank correlation of the dense model's score and Transkimmer's speed-up, in the table of most tasks."""
    tables = {one.table: [other for other in found if other.table == one.table] for one in found}
    found = max(tables.values(), key=lambda table: len(of(table, "dense")), default=[])
    mine = {(one.model, one.label): one for one in of(found, "transkimmer")}
    pairs = [(one, mine[one.model, one.label]) for one in of(found, "dense") if (one.model, one.label) in mine]
    if len(pairs) < 2:
        return NOTHING
    pairs.sort(key=lambda pair: -pair[0].score)
    order = kendalltau([dense.score for dense, _ in pairs], [own.speedup for _, own in pairs])
    decided = order.pvalue <= FAMILY_LEVEL
    return Answer(
        OPEN if not decided else HOLDS if order.statistic > 0 else FAILS,
        f"Kendall's tau {order.statistic:+.2f} over {len(pairs)} tasks, p = {order.pvalue:.2f}; the ease of a task "
        "is taken from the dense score, whose metric differs between tasks, as does the weight of the skim loss",
        (
            ("Task", "Dense", "Transkimmer's speed-up"),
            *((dense.label, f"{dense.score:.1f}", f"{own.speedup:.2f}x") for dense, own in pairs),
        ),
    )


EASIER_RULE = f"by Kendall's rank correlation in the table of most tasks: its sign, if p is at most {FAMILY_LEVEL:g}"


def headline(method: str, factor: float, near: Sequence[AtSpeeds] = ()) -> Judge:
    """Judges by the `HEADLINE_RULE`: by all settings that were measured."""

    def judge(found: Sequence[Measured]) -> Answer:
        mine = of(found, method)
        tried = [(one.label, one.score, one.speedup, one.against_dense) for one in mine]
        swept = [one for one in near if one.method == method]
        tried += [
            (one.task, s.score, s.speedup, s.loss) for one in swept for s in one.every if s.setting != OWN_SETTING
        ]
        if not tried:
            return NOTHING
        reached = [(loss, speedup) for *_, speedup, loss in tried if speedup >= factor]
        fine = [loss for loss, _ in reached if loss and loss.low > -LOSS]
        lost = [loss for loss, _ in reached if loss and loss.high < -LOSS]
        label, score, speedup, _ = max(tried, key=lambda one: one[2])
        verdict = UNTESTED if not reached else HOLDS if fine else FAILS if len(lost) == len(reached) else OPEN
        return Answer(
            verdict,
            f"no setting was made to reach it; the fastest of {len(tried)} measured ones: {speedup:.2f}x on {label}, "
            f"score {score:.1f}"
            if not reached
            else f"{len(reached)} of {len(tried)} measured settings reach it, {len(lost)} with a certain loss",
            _against_dense(mine),
        )

    return judge


HEADLINE_RULE = (
    f"in FLOPs; holds where a setting reaches the factor and loses less than {LOSS:g} point (its whole interval), does "
    "not hold where all that reach it lose more, is not tested where none reaches it"
)


def forwarding(ways: Sequence[Ways] = ()) -> Judge:
    """Judges by the `FORWARDING_RULE`."""

    def judge(found: Sequence[Measured]) -> Answer:
        table = [tuple(one.row.values()) for one in ways]
        shown = (tuple(ways[0].row), *table) if ways else ()
        known = [(one, one.difference) for one in ways if one.difference and min(one.speedups) > 1]
        if not known:
            tried = (
                f"of {len(ways)} trained both ways none skims enough to count"
                if ways
                else "none has been trained both ways"
            )
            return Answer(
                UNDECIDABLE,
                "on a text classified by its [CLS] no answer depends on it: nothing reads a state once it is "
                f"forwarded. Spans would tell (`python -m benchmarks.forwarding`); {tried}",
                shown,
            )
        limit = holm([difference.p for _, difference in known])
        signs = [difference.judged(limit).decided_sign for _, difference in known]
        return Answer(
            by_count(signs.count(1), signs.count(-1), len(signs)),
            f"certainly better on {signs.count(1)} of {len(signs)} span tasks, certainly worse on {signs.count(-1)}; "
            "heads over texts read no skimmed token, so that it makes no difference there",
            shown,
        )

    return judge


FORWARDING_RULE = (
    "holds where forwarding is certainly better, by Holm's correction, on every task that was trained both ways and "
    "skims, so that fewer FLOPs are executed than by the dense model; does not hold where it is certainly worse on "
    "more than it is better on"
)


def undecidable(why: str) -> Judge:
    """A claim that no record here could speak about."""
    return lambda found: Answer(UNDECIDABLE, why)


def claims(near: Sequence[AtSpeeds] = (), ways: Sequence[Ways] = ()) -> tuple[Claim, ...]:
    """All claims; `near` has the settings at about the same speed-ups, `ways` what was trained both ways."""
    reducers = ("power_bert", "lat", "ltp", "tr_bert", "lot", "top", "deebert", "pabee")
    paper = "Guan et al. 2022"
    return (
        Claim(
            "A method knows which tokens matter: it beats dropping at random at the same cost.",
            "all",
            beats_random,
            RANDOM_RULE,
        ),
        Claim("Transkimmer loses less than 1 % almost everywhere.", f"{paper}, Table 3", small_loss, LOSS_RULE),
        Claim("On MRPC about 1.5x comes for free.", f"{paper}, Figure 3", free_on_mrpc(near), FREE_RULE),
        Claim("Layers skim differently from task to task.", f"{paper}, Figure 4", layers_differ, LAYERS_RULE),
        Claim("Easier tasks skim more.", f"{paper}, on Figure 4", easier_skims_more, EASIER_RULE),
        Claim(
            "Reparameterised gates beat soft masks and reinforcement learning.",
            f"{paper}, Tables 1 and 3",
            better_than("ltp", "power_bert", "tr_bert", near=near),
            RULE,
        ),
        Claim(
            "Skimming tokens beats leaving early.",
            f"{paper}, Table 3",
            better_than("deebert", "pabee", near=near),
            RULE,
        ),
        Claim("Transkimmer beats all other reducers.", f"{paper}, abstract", better_than(*reducers, near=near), RULE),
        Claim("LoT: up to 25 times faster.", "Kim et al. 2023, abstract", headline("lot", 25.0, near), HEADLINE_RULE),
        Claim(
            "ToP: up to 7.4 times faster (by the clock).",
            "Li et al. 2023, abstract",
            headline("top", 7.4, near),
            HEADLINE_RULE,
        ),
        Claim(
            "Forwarding dropped tokens beats discarding them.",
            f"{paper}, Table 1",
            forwarding(ways),
            FORWARDING_RULE,
        ),
        Claim(
            "Skimming composes with DistilBERT and ALBERT.",
            f"{paper}, Table 3",
            undecidable(
                "it needs these checkpoints, which only the hub has; `python -m benchmarks.glue --profile paper` runs "
                "them"
            ),
        ),
    )


@dataclass(frozen=True)
class Judged:
    """A claim, its paper, the rule, and what the records say of it."""

    claim: str
    source: str
    rule: str
    answer: Answer


def judged(found: Sequence[Measured], near: Sequence[AtSpeeds] = (), ways: Sequence[Ways] = ()) -> list[Judged]:
    """Every claim, by what is `admitted`."""
    some, speeds = admitted(found), admitted_at_speeds(near, found)
    return [Judged(one.text, one.source, one.rule, one.judge(some)) for one in claims(speeds, ways)]
