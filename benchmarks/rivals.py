"""Transkimmer against other methods, task by task, at their own settings and at about the same speed-ups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.answers import DASH, NOTHING, Answer, Judge, by_count, of, place
from benchmarks.compared import Difference, Measured, holm, paired
from benchmarks.equal_speed import NEAR, SPEEDS, AtSpeeds, difference
from benchmarks.pareto_rows import OWN_SETTING

ABOUT = 1 + NEAR  # speed-ups whose ratio is at most this are no different


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
        """Better, and about as fast or faster."""
        return self.difference.decided_sign > 0 and self.own_speedup >= self.speedup / ABOUT

    @property
    def behind(self) -> bool:
        """Worse, and about as fast or slower."""
        return self.difference.decided_sign < 0 and self.own_speedup <= self.speedup * ABOUT


def better_than(*rivals: str, near: Sequence[AtSpeeds] = ()) -> Judge:
    """Judges by the `RULE`."""

    def judge(found: Sequence[Measured]) -> Answer:
        pairs = [*_own_pairs(found, rivals), *_near_pairs(near, rivals)]
        if not pairs:
            return NOTHING
        limit = holm([pair.difference.p for pair in pairs])
        pairs = [replace(pair, difference=pair.difference.judged(limit)) for pair in pairs]
        ahead, behind = sum(pair.ahead for pair in pairs), sum(pair.behind for pair in pairs)
        return Answer(
            by_count(ahead, behind, len(pairs)),
            f"of {len(pairs)} comparisons certainly better in {ahead} at about the rival's speed-up or a larger one, "
            f"certainly worse in {behind} at about the rival's or a smaller one",
            _matrix(pairs),
        )

    return judge


RULE = (
    "holds where Transkimmer is certainly better, at about the rival's speed-up or a larger one, in every comparison; "
    "does not hold where it is certainly worse, at about the rival's or a smaller one, in more comparisons than it is "
    f"better in. About: within {100 * NEAR:g} %. A setting that gives every text the same answer is not compared at "
    "a speed-up that was looked for"
)


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
    for own in of(found, "transkimmer"):
        for other in of(found, *rivals):
            if (other.table, other.model, other.task) != (own.table, own.model, own.task):
                continue
            if own.drawn is not None and other.drawn is not None:
                apart = paired(own.scores, other.scores, own.drawn - other.drawn)
                yield _Pair(apart, own.speedup, other.speedup, place(own, found), other.title)


def _near_pairs(near: Sequence[AtSpeeds], rivals: Sequence[str]) -> Iterator[_Pair]:
    """But for those of two own settings, which `_own_pairs` has, and of what answers nothing but one thing."""
    for own in near:
        for other in near:
            if own.method != "transkimmer" or other.method not in rivals or other.task != own.task:
                continue
            for speed, mine, theirs in zip(SPEEDS, own.settings, other.settings, strict=True):
                if mine is None or theirs is None or mine.constant or theirs.constant:
                    continue
                if mine.setting == theirs.setting == OWN_SETTING:
                    continue
                if apart := difference(mine.runs, theirs.runs):
                    yield _Pair(apart, mine.speedup, theirs.speedup, f"{own.task}, about {speed:g}x", other.title)
