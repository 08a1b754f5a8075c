"""The papers' claims, each with the rule that decides on it.

A verdict is a rule over measured differences and their intervals; results/CHANGES.md names the rules that changed after
numbers had been seen. Where the intervals allow both, it is "not decided".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from scipy.stats import kendalltau

from benchmarks.compared import FAMILY_LEVEL, Difference, Measured, holm, paired
from benchmarks.equal_speed import NEAR, SPEEDS, AtSpeeds
from benchmarks.forwarding import Ways
from benchmarks.pareto_rows import OWN_SETTING

FREE, LOSS = 1.5, 1.0  # "1.5x without loss", "under 1 %"
ABOUT = 1 + NEAR  # speed-ups whose ratio is at most this are no different
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided here"
ABSENT, UNDECIDABLE = "not measured here", "not decidable here"


@dataclass(frozen=True)
class Answer:
    """What the records say of a claim.

    Attributes:
        summary: why, in a line. table: the evidence; its header first.
    """

    verdict: str
    summary: str = ""
    table: tuple[tuple[str, ...], ...] = ()


Judge = Callable[[Sequence[Measured]], Answer]  # of all that was measured
NOTHING = Answer(ABSENT, "no record of it")
DASH = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Claim:
    """A published claim and what the records say.

    Attributes:
        text: the claim, in own words. source: paper. judge: what decides on it.
    """

    text: str
    source: str
    judge: Judge


def _of(found: Iterable[Measured], *names: str) -> list[Measured]:
    return [one for one in found if one.method in names]


def _place(one: Measured, some: Iterable[Measured]) -> str:
    """The task, and where `some` have several encoders, that."""
    return one.label if len({other.model for other in some}) == 1 else f"{one.label}, {one.model}"


def _against_dense(some: Sequence[Measured]) -> tuple[tuple[str, ...], ...]:
    """A table of one method, task by task, against the dense model."""
    losses = (one.against_dense.text if one.against_dense else DASH for one in some)
    rows = [
        (_place(one, some), f"{one.score:.1f}", f"{one.speedup:.2f}x", loss)
        for one, loss in zip(some, losses, strict=True)
    ]
    return ("Task", "Score", "Speed-up", "Against dense"), *rows


def _named(labels: Iterable[str]) -> str:
    return ", ".join(labels) or "none"


def small_loss(found: Sequence[Measured]) -> Answer:
    """Holds where the interval of the loss ends below `LOSS` on every task; fails where it begins above on one."""
    mine = [(one, one.against_dense) for one in _of(found, "transkimmer") if one.against_dense]
    if not mine:
        return NOTHING
    every = [one for one, _ in mine]
    more = [_place(one, every) for one, loss in mine if loss.high < -LOSS]
    less = [_place(one, every) for one, loss in mine if loss.low > -LOSS]
    verdict = FAILS if more else HOLDS if len(less) == len(mine) else OPEN
    summary = f"the loss's interval lies above {LOSS:g} point on {_named(more)}, below it on {_named(less)}"
    return Answer(verdict, summary, _against_dense(every))


def free_on_mrpc(near: Sequence[AtSpeeds] = ()) -> Judge:
    """Holds where Transkimmer is about `FREE` times faster on MRPC, or more, and its loss is certainly below `LOSS`.

    A certain loss fails it at about that speed-up only: one at a much larger speed-up says nothing. Besides its own
    setting, that counts which is nearest to `FREE`, where one was measured.
    """

    def judge(found: Sequence[Measured]) -> Answer:
        own = [one for one in _of(found, "transkimmer") if one.task.startswith("MRPC")]
        tried = [(one.label, one.score, one.speedup, one.against_dense) for one in own if one.against_dense]
        for one in near:
            setting = one.settings[SPEEDS.index(FREE)]
            mine = one.method == "transkimmer" and one.task.startswith("MRPC")
            if mine and setting and setting.loss and setting.setting != OWN_SETTING:  # `own` has that one
                tried.append((f"{one.task}, {setting.setting}", setting.score, setting.speedup, setting.loss))
        if not tried:
            return NOTHING
        good = [speedup for *_, speedup, loss in tried if speedup >= FREE / ABOUT and loss.low > -LOSS]
        about = [loss for *_, speedup, loss in tried if FREE / ABOUT <= speedup <= FREE * ABOUT]
        slow = all(speedup < FREE / ABOUT for *_, speedup, _ in tried)
        bad = any(loss.high < -LOSS for loss in about)
        _, _, speedup, loss = min(tried, key=lambda one: abs(one[2] - FREE))
        rows = [(label, f"{score:.1f}", f"{speedup:.2f}x", loss.text) for label, score, speedup, loss in tried]
        return Answer(
            HOLDS if good else FAILS if bad or slow else OPEN,
            f"nearest to {FREE:g}x: {loss.short} at {speedup:.2f}x",
            (("Task", "Score", "Speed-up", "Against dense"), *rows),
        )

    return judge


@dataclass(frozen=True)
class _Pair:
    """Transkimmer against another method on a task, at which speed-up, and the speed-ups of both."""

    difference: Difference
    own_speedup: float
    speedup: float
    where: str
    rival: str

    @property
    def ahead(self) -> bool:
        """Better, and not slower."""
        return self.difference.decided_sign > 0 and self.own_speedup >= self.speedup / ABOUT

    @property
    def behind(self) -> bool:
        """Worse, and not faster."""
        return self.difference.decided_sign < 0 and self.own_speedup <= self.speedup * ABOUT


def better_than(*rivals: str, near: Sequence[AtSpeeds] = ()) -> Judge:
    """Transkimmer against `rivals` on each task, at the methods' own settings and at those nearest to some speed-ups.

    Holds where it is certainly better at no lower speed in every pair; fails where it is certainly worse at no higher
    speed in more pairs than it is better in. Certain is what is left after Holm's correction over all these pairs.
    """

    def judge(found: Sequence[Measured]) -> Answer:
        pairs = [*_own_pairs(found, rivals), *_near_pairs(near, rivals)]
        if not pairs:
            return NOTHING
        limit = holm([pair.difference.p for pair in pairs])
        pairs = [replace(pair, difference=pair.difference.judged(limit)) for pair in pairs]
        ahead, behind = sum(pair.ahead for pair in pairs), sum(pair.behind for pair in pairs)
        return Answer(
            HOLDS if ahead == len(pairs) else FAILS if behind > ahead else OPEN,
            f"certainly better at no lower speed in {ahead} of {len(pairs)} comparisons, certainly worse at no higher "
            f"speed in {behind}",
            _matrix(pairs),
        )

    return judge


def _matrix(pairs: Sequence[_Pair]) -> tuple[tuple[str, ...], ...]:
    """Transkimmer minus each rival: a row for each of its settings on a task, a column for each rival."""
    rivals = list(dict.fromkeys(pair.rival for pair in pairs))
    rows = []
    for where, speedup in dict.fromkeys((pair.where, pair.own_speedup) for pair in pairs):
        mine = {pair.rival: pair for pair in pairs if (pair.where, pair.own_speedup) == (where, speedup)}
        cells = (f"{mine[r].difference.short} at {mine[r].speedup:.2f}x" if r in mine else DASH for r in rivals)
        rows.append((where, f"{speedup:.2f}x", *cells))
    return ("Task", "Transkimmer at", *rivals), *rows


def _own_pairs(found: Sequence[Measured], rivals: Sequence[str]) -> Iterator[_Pair]:
    for own in _of(found, "transkimmer"):
        for other in _of(found, *rivals):
            if (other.table, other.model, other.task) != (own.table, own.model, own.task):
                continue
            if own.drawn is not None and other.drawn is not None:
                difference = paired(own.scores, other.scores, own.drawn - other.drawn)
                yield _Pair(difference, own.speedup, other.speedup, _place(own, found), other.title)


def _near_pairs(near: Sequence[AtSpeeds], rivals: Sequence[str]) -> Iterator[_Pair]:
    """But for those of two own settings, which `_own_pairs` has."""
    for own in near:
        for other in near:
            if own.method != "transkimmer" or other.method not in rivals or other.task != own.task:
                continue
            for speed, mine, theirs in zip(SPEEDS, own.settings, other.settings, strict=True):
                if mine and theirs and mine.setting == theirs.setting == OWN_SETTING:
                    continue
                if mine and theirs and mine.drawn is not None and theirs.drawn is not None:
                    difference = paired(mine.scores, theirs.scores, mine.drawn - theirs.drawn)
                    where = f"{own.task}, about {speed:g}x"
                    yield _Pair(difference, mine.speedup, theirs.speedup, where, other.title)


SIGNS = {1: "above", 0: "·", -1: "below"}


def beats_random(found: Sequence[Measured]) -> Answer:
    """Which methods are certainly above a twin that drops at random at the same cost per layer."""
    signs = {(one.title, _place(one, found)): one.against_random.decided_sign for one in found if one.against_random}
    if not signs:
        return NOTHING
    above, below = (sum(sign == which for sign in signs.values()) for which in (1, -1))
    titles, labels = (list(dict.fromkeys(names)) for names in zip(*signs, strict=True))
    rows = [
        (label, *(SIGNS[signs[title, label]] if (title, label) in signs else DASH for title in titles))
        for label in labels
    ]
    return Answer(
        HOLDS if above == len(signs) else OPEN if not below else FAILS,
        f"certainly above in {above} of {len(signs)} comparisons, certainly below in {below}",
        (("Task", *titles), *rows),
    )


def layers_differ(found: Sequence[Measured]) -> Answer:
    """Shares of tokens per layer that Transkimmer computes, task by task; the claim is about their differing at all."""
    mine = _of(found, "transkimmer")
    if len(mine) < 2:
        return NOTHING
    widest = max(abs(a - b) for one in mine for two in mine for a, b in zip(one.shares, two.shares, strict=True))
    return Answer(
        HOLDS if widest > 0.1 else FAILS,
        f"largest difference of a layer between tasks: {100 * widest:.0f} points",
        (
            ("Task", "Speed-up", "Tokens computed in each layer, percent"),
            *(
                (_place(one, mine), f"{one.speedup:.2f}x", ", ".join(f"{100 * share:.0f}" for share in one.shares))
                for one in mine
            ),
        ),
    )


def easier_skims_more(found: Sequence[Measured]) -> Answer:
    """Kendall's rank correlation of the dense model's score and Transkimmer's speed-up, in the table of most tasks."""
    tables = {one.table: [other for other in found if other.table == one.table] for one in found}
    found = max(tables.values(), key=lambda table: len(_of(table, "dense")), default=[])
    mine = {(one.model, one.label): one for one in _of(found, "transkimmer")}
    pairs = [(one, mine[one.model, one.label]) for one in _of(found, "dense") if (one.model, one.label) in mine]
    if len(pairs) < 2:
        return NOTHING
    pairs.sort(key=lambda pair: -pair[0].score)
    order = kendalltau([dense.score for dense, _ in pairs], [own.speedup for _, own in pairs])
    decided = order.pvalue <= FAMILY_LEVEL
    return Answer(
        OPEN if not decided else HOLDS if order.statistic > 0 else FAILS,
        f"rank correlation {order.statistic:+.2f} over {len(pairs)} tasks, p = {order.pvalue:.2f}; the ease of a task "
        "is taken from the dense score, whose metric differs between tasks, as does the weight of the skim loss",
        (
            ("Task", "Dense", "Transkimmer's speed-up"),
            *((dense.label, f"{dense.score:.1f}", f"{own.speedup:.2f}x") for dense, own in pairs),
        ),
    )


def headline(method: str, factor: float) -> Judge:
    """Whether a method reaches its headline factor, in FLOPs, on any task without a decided loss."""

    def judge(found: Sequence[Measured]) -> Answer:
        mine = _of(found, method)
        if not mine:
            return NOTHING
        reached = [one for one in mine if one.speedup >= factor]
        fine = [one for one in reached if one.against_dense and not one.against_dense.decided]
        fastest = max(mine, key=lambda one: one.speedup)
        return Answer(
            HOLDS if fine else OPEN if reached else FAILS,
            f"fastest: {fastest.speedup:.2f}x on {fastest.label}",
            _against_dense(mine),
        )

    return judge


def forwarding(ways: Sequence[Ways] = ()) -> Judge:
    """Whether Transkimmer is certainly better, by Holm's correction, where skimmed tokens are forwarded.

    Holds where it is on every task that was trained both ways; fails where it is certainly worse on one.
    """

    def judge(found: Sequence[Measured]) -> Answer:
        known = [(one, one.difference) for one in ways if one.difference]
        if not known:
            return Answer(
                UNDECIDABLE,
                "on a text classified by its [CLS] no answer depends on it: nothing reads a state once it is "
                "forwarded. Spans would tell (`python -m benchmarks.forwarding`); none has been trained both ways",
            )
        limit = holm([difference.p for _, difference in known])
        signs = [difference.judged(limit).decided_sign for _, difference in known]
        header, rows = tuple(known[0][0].row), [tuple(one.row.values()) for one, _ in known]
        return Answer(
            FAILS if -1 in signs else HOLDS if 0 not in signs else OPEN,
            f"certainly better on {signs.count(1)} of {len(signs)} span tasks, certainly worse on {signs.count(-1)}; "
            "heads over texts read no skimmed token, so that it makes no difference there",
            (header, *rows),
        )

    return judge


def undecidable(why: str) -> Judge:
    """A claim that no record here could speak about."""
    return lambda found: Answer(UNDECIDABLE, why)


def claims(near: Sequence[AtSpeeds] = (), ways: Sequence[Ways] = ()) -> tuple[Claim, ...]:
    """All claims; `near` has the settings at about the same speed-ups, `ways` what was trained both ways."""
    return (
        Claim("A method knows which tokens matter: it beats dropping at random at the same cost.", "all", beats_random),
        Claim("Transkimmer loses less than 1 % almost everywhere.", "Guan et al. 2022, Table 3", small_loss),
        Claim("On MRPC about 1.5x comes for free.", "Guan et al. 2022, Figure 3", free_on_mrpc(near)),
        Claim("Layers skim differently from task to task.", "Guan et al. 2022, Figure 4", layers_differ),
        Claim("Easier tasks skim more.", "Guan et al. 2022, on Figure 4", easier_skims_more),
        Claim(
            "Reparameterised gates beat soft masks and reinforcement learning.",
            "Guan et al. 2022, Tables 1 and 3",
            better_than("ltp", "power_bert", "tr_bert", near=near),
        ),
        Claim(
            "Skimming tokens beats leaving early.",
            "Guan et al. 2022, Table 3",
            better_than("deebert", "pabee", near=near),
        ),
        Claim(
            "Transkimmer beats all other reducers.",
            "Guan et al. 2022, abstract",
            better_than("power_bert", "lat", "ltp", "tr_bert", "lot", "top", "deformer", "deebert", "pabee", near=near),
        ),
        Claim("LoT: up to 25 times faster.", "Kim et al. 2023, abstract", headline("lot", 25.0)),
        Claim("ToP: up to 7.4 times faster (by the clock).", "Li et al. 2023, abstract", headline("top", 7.4)),
        Claim(
            "Forwarding dropped tokens beats discarding them.",
            "Guan et al. 2022, Table 1",
            forwarding(ways),
        ),
        Claim(
            "Skimming composes with DistilBERT and ALBERT.",
            "Guan et al. 2022, Table 3",
            undecidable(
                "it needs these checkpoints, which only the hub has; `python -m benchmarks.glue --profile paper` runs "
                "them"
            ),
        ),
    )


@dataclass(frozen=True)
class Judged:
    """A claim, its paper, and what the records say of it."""

    claim: str
    source: str
    answer: Answer


def judged(found: Sequence[Measured], near: Sequence[AtSpeeds] = (), ways: Sequence[Ways] = ()) -> list[Judged]:
    """Every claim."""
    return [Judged(claim.text, claim.source, claim.judge(found)) for claim in claims(near, ways)]
