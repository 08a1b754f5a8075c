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
from benchmarks.pareto_rows import OWN_SETTING

FREE, LOSS = 1.5, 1.0  # "1.5x without loss", "under 1 %"
ABOUT = 1 + NEAR  # speed-ups whose ratio is at most this are no different
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided here"
ABSENT, UNDECIDABLE = "not measured here", "not decidable here"


Judge = Callable[[Sequence[Measured]], tuple[str, list[str]]]  # all that was measured -> verdict and evidence


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


def _said(one: Measured) -> str:
    """One method on one task, in words."""
    text = f"{one.label}: {one.title} {one.score:.1f} at {one.speedup:.2f}x"
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


def free_on_mrpc(near: Sequence[AtSpeeds] = ()) -> Judge:
    """Holds where Transkimmer is about `FREE` times faster on MRPC, or more, and its loss is certainly below `LOSS`.

    A certain loss fails it at about that speed-up only: one at a much larger speed-up says nothing. Besides its own
    setting, that counts which is nearest to `FREE`, where one was measured.
    """

    def judge(found: Sequence[Measured]) -> tuple[str, list[str]]:
        own = [one for one in _of(found, "transkimmer") if one.task.startswith("MRPC") and one.against_dense]
        tried = [(one.speedup, one.against_dense, _said(one)) for one in own]
        for one in near:
            setting = one.settings[SPEEDS.index(FREE)]
            if one.method == "transkimmer" and one.task.startswith("MRPC") and setting and setting.loss:
                said = f"{one.task}: {one.title} {setting.score:.1f} at {setting.speedup:.2f}x ({setting.setting})"
                tried.append((setting.speedup, setting.loss, f"{said}, {setting.loss.text} against dense"))
        if not tried:
            return ABSENT, []
        losses = [(speedup, loss) for speedup, loss, _ in tried if loss]
        good = [speedup for speedup, loss in losses if speedup >= FREE / ABOUT and loss.low > -LOSS]
        about = [loss for speedup, loss in losses if FREE / ABOUT <= speedup <= FREE * ABOUT]
        slow = all(speedup < FREE / ABOUT for speedup, _ in losses)
        bad = any(loss.high < -LOSS for loss in about)
        return (HOLDS if good else FAILS if bad or slow else OPEN), list(dict.fromkeys(said for *_, said in tried))

    return judge


@dataclass(frozen=True)
class _Pair:
    """Transkimmer against another method on a task, and the speed-ups of both."""

    difference: Difference
    own_speedup: float
    speedup: float
    said: str

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

    def judge(found: Sequence[Measured]) -> tuple[str, list[str]]:
        pairs = [*_own_pairs(found, rivals), *_near_pairs(near, rivals)]
        if not pairs:
            return ABSENT, []
        limit = holm([pair.difference.p for pair in pairs])
        pairs = [replace(pair, difference=pair.difference.judged(limit)) for pair in pairs]
        ahead, behind = sum(pair.ahead for pair in pairs), sum(pair.behind for pair in pairs)
        note = (
            f"certainly better at no lower speed in {ahead} of {len(pairs)} comparisons, certainly worse at no higher "
            f"speed in {behind} (* marks what is certain: by Holm's correction over these comparisons, with every seed)"
        )
        verdict = HOLDS if ahead == len(pairs) else FAILS if behind > ahead else OPEN
        at = (f"at {pair.own_speedup:.2f}x against {pair.speedup:.2f}x" for pair in pairs)
        return verdict, [note, *(f"{p.said}: {p.difference.text} {a}" for p, a in zip(pairs, at, strict=True))]

    return judge


def _own_pairs(found: Sequence[Measured], rivals: Sequence[str]) -> Iterator[_Pair]:
    for own in _of(found, "transkimmer"):
        for other in _of(found, *rivals):
            if (other.table, other.task) == (own.table, own.task) and own.drawn is not None and other.drawn is not None:
                difference = paired(own.scores, other.scores, own.drawn - other.drawn)
                yield _Pair(difference, own.speedup, other.speedup, f"{own.label}, {other.title}")


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
                    said = f"about {speed:g}x, {own.task}, {other.title}"
                    yield _Pair(difference, mine.speedup, theirs.speedup, said)


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
    return ", ".join(f"{one.title} ({one.label})" for one in some) or "none"


def layers_differ(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Shares of tokens per layer that Transkimmer computes, task by task; the claim is about their differing at all."""
    mine = _of(found, "transkimmer")
    if len(mine) < 2:
        return ABSENT, []
    lines = [f"{one.label}: {', '.join(f'{100 * share:.0f}' for share in one.shares)} % per layer" for one in mine]
    widest = max(abs(a - b) for one in mine for two in mine for a, b in zip(one.shares, two.shares, strict=True))
    note = f"largest difference of a layer between tasks: {100 * widest:.0f} points"
    return HOLDS if widest > 0.1 else FAILS, [note, *lines]


def easier_skims_more(found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Kendall's rank correlation of the dense model's score and Transkimmer's speed-up, in the table of most tasks."""
    tables = {one.table: [other for other in found if other.table == one.table] for one in found}
    found = max(tables.values(), key=lambda table: len(_of(table, "dense")), default=[])
    mine = {(one.model, one.label): one for one in _of(found, "transkimmer")}
    pairs = [(one, mine[one.model, one.label]) for one in _of(found, "dense") if (one.model, one.label) in mine]
    if len(pairs) < 2:
        return ABSENT, []
    pairs.sort(key=lambda pair: -pair[0].score)
    order = kendalltau([dense.score for dense, _ in pairs], [own.speedup for _, own in pairs])
    note = (
        f"rank correlation {order.statistic:+.2f} over {len(pairs)} tasks, p = {order.pvalue:.2f}; how easy a task is "
        "is taken from the dense score, whose metric differs between tasks, as does the weight of the skim loss"
    )
    lines = [f"{dense.label}: dense {dense.score:.1f}, Transkimmer {own.speedup:.2f}x" for dense, own in pairs]
    decided = order.pvalue <= FAMILY_LEVEL
    return (OPEN if not decided else HOLDS if order.statistic > 0 else FAILS), [note, *lines]


def headline(method: str, factor: float) -> Judge:
    """Whether a method reaches its headline factor, in FLOPs, on any task without a decided loss."""

    def judge(found: Sequence[Measured]) -> tuple[str, list[str]]:
        mine = _of(found, method)
        if not mine:
            return ABSENT, []
        reached = [one for one in mine if one.speedup >= factor]
        fine = [one for one in reached if one.against_dense and not one.against_dense.decided]
        return HOLDS if fine else OPEN if reached else FAILS, [_said(one) for one in mine]

    return judge


def undecidable(why: str) -> Judge:
    """A claim that no record here could speak about."""
    return lambda found: (UNDECIDABLE, [why])


def claims(near: Sequence[AtSpeeds] = ()) -> tuple[Claim, ...]:
    """All claims; `near` has the settings at about the same speed-ups."""
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
            undecidable(
                "on a text classified by its [CLS] no answer depends on it: nothing reads a state once it is "
                "forwarded. Spans and tags would tell; no method was trained both ways on them"
            ),
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
    """A claim, its paper, what the records say of it, and why."""

    claim: str
    source: str
    verdict: str
    evidence: list[str]


def judged(found: Sequence[Measured], near: Sequence[AtSpeeds] = ()) -> list[Judged]:
    """Every claim."""
    return [Judged(claim.text, claim.source, *claim.judge(found)) for claim in claims(near)]
