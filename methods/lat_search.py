"""Which lengths per layer score best at their cost: the evolutionary search of the Length-Adaptive Transformer.

Pure: models appear only as two functions, what a configuration costs and how it does.
Departures from the public code, whose front is wrong in two ways: full length has no seat of its own there (`Found`
carries it apart), and of two configurations that cost the same the better one stays. Its seeds are spread over what 12
layers of 384 tokens keep, whatever the model; ours over what the model does. Proposals are bounded in number, so that
a small space ends the search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from methods.recipes import Trial

Configuration = tuple[int, ...]  # tokens that each layer keeps, non-increasing [l_1 .. l_L]
LEAST = 2  # tokens that a layer keeps at least
MAX_TRIES = 50  # proposals per accepted mutant or crossover
PRECISION = 1e-12  # of the seeds' ratios


@dataclass(frozen=True, kw_only=True)
class Space:
    """The configurations of one model: full length [N], layers [L], and the ratio [p] that bounds the smallest one."""

    length: int
    layers: int
    drop: float

    @property
    def full(self) -> Configuration:
        """Nothing dropped."""
        return (self.length,) * self.layers

    @property
    def smallest(self) -> Configuration:
        """Every layer drops as much as it may."""
        return length_drop(self, self.drop)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How far to search: [G] iterations with so many mutants [n_m] and crossovers [n_c] each, after so many seeds.

    `mutation` is the probability that a mutant's layer is drawn anew [p_m].
    """

    iterations: int
    seeds: int
    mutants: int
    crossovers: int
    mutation: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that was tried: its cost as the search counts it, its score and speed-up in the trial."""

    configuration: Configuration
    macs: int
    score: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of a search.

    Attributes:
        front: no member is dominated; macs and scores both rise strictly.
        full: full length, for reference; on the front only if nothing cheaper is as good.
        areas: `front_area` after the seeds, then after each iteration.
        tried: configurations scored.
    """

    front: tuple[Candidate, ...]
    full: Candidate
    areas: tuple[float, ...]
    tried: int

    def choose(self, rule: str, *, tolerance: float, speedup: float) -> Candidate:
        """The operating point on the front.

        Args:
            rule: "cheapest" that scores at least what full length does less `tolerance`; "best" score; or "speedup":
                the best score at a speed-up of at least `speedup`, or, where none reaches it, the cheapest.
        """
        if rule == "best":
            return self.front[-1]
        if rule == "cheapest":
            return next(c for c in self.front if c.score >= self.full.score - tolerance)
        fast = [c for c in self.front if c.speedup >= speedup]
        return (fast or self.front[:1])[-1]

    def record(self, chosen: Candidate) -> dict[str, Any]:
        """Plain data: the front, full length, which one was chosen, and how the search went."""

        def entry(candidate: Candidate) -> dict[str, Any]:
            return vars(candidate) | {"macs_share": candidate.macs / self.full.macs}

        front = [entry(candidate) for candidate in self.front]
        ends = {"chosen": entry(chosen), "full": entry(self.full)}
        return ends | {"front": front, "areas": self.areas, "tried": self.tried}


def length_drop(
    space: Space,
    ratio: float,
    *,
    draw: Callable[[int, int], int] = lambda least, most: least,
    skipped: Iterable[int] = (),
) -> Configuration:
    """The configuration whose layers each keep `draw(ceil(l * (1 - ratio)), l)` of the l tokens before them.

    Args:
        draw: by default the least, which gives the smallest configuration. skipped: layers that leave l as it is.
    """
    length, counts, passed = space.length, [], frozenset(skipped)
    for layer in range(space.layers):
        if layer not in passed:
            least = math.ceil(length * (1 - ratio) - 1e-9)  # 0.8 * 35 must not become 29 by float error
            length = max(LEAST, draw(least, length))
        counts.append(length)
    return tuple(counts)


def seed_ratios(space: Space, count: int) -> list[float]:
    """Ratios in (0, drop), largest first, whose configurations keep evenly spaced numbers of tokens in all."""
    total, least = sum(space.full), sum(space.smallest)
    return [_ratio_keeping(space, least + (total - least) * step / (count + 1)) for step in range(1, count + 1)]


def _ratio_keeping(space: Space, tokens: float) -> float:
    low, high = 0.0, 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(length_drop(space, middle)) > tokens else (low, middle)
    return high


def mutate(parent: Configuration, length: int, probability: float, rng: random.Random) -> Configuration:
    """Draw layers anew, each between the parent's next layer and the child's last one."""
    child: list[int] = []
    for own, least in zip(parent, (*parent[1:], LEAST), strict=True):
        most = child[-1] if child else length
        child.append(rng.randint(least, most) if rng.random() < probability else own)
    return tuple(child)


def cross(first: Configuration, second: Configuration) -> Configuration:
    """Mean of two configurations, layer by layer, rounded up."""
    return tuple((a + b + 1) // 2 for a, b in zip(first, second, strict=True))


def pareto_front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other beats or equals at the same or a lower cost, cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.macs, -c.score, c.configuration)):
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
    return tuple(front)


def front_area(front: Sequence[Candidate], smallest: int, full: int) -> float:
    """Mean over costs from `smallest` to `full` MACs of the best score at each cost; never falls as a front grows."""
    if full == smallest:
        return front[-1].score
    ends = [*(c.macs for c in front[1:]), full]
    return sum((end - c.macs) * c.score for c, end in zip(front, ends, strict=True)) / (full - smallest)


class _Tried:
    """Everything scored so far, each configuration once."""

    def __init__(self, macs: Callable[[Configuration], int], trial: Callable[[Configuration], Trial]) -> None:
        self.macs, self._trial = macs, trial
        self._known: dict[Configuration, Candidate] = {}

    def add(self, configuration: Configuration) -> Candidate:
        if configuration not in self._known:
            cost, trial = self.macs(configuration), self._trial(configuration)
            self._known[configuration] = Candidate(
                configuration=configuration, macs=cost, score=trial.score, speedup=trial.speedup
            )
        return self._known[configuration]

    def front(self) -> tuple[Candidate, ...]:
        return pareto_front(self._known.values())

    def __len__(self) -> int:
        return len(self._known)


def search(
    space: Space,
    budget: Budget,
    *,
    macs: Callable[[Configuration], int],
    trial: Callable[[Configuration], Trial],
    rng: random.Random,
) -> Found:
    """Search for the front of score against cost.

    Args:
        macs: what the front minimises; called on many more configurations than `trial`.
        trial: how a configuration does, a larger score being better; called once per configuration tried.
    """
    tried = _Tried(macs, trial)
    smallest, full = tried.add(space.smallest), tried.add(space.full)
    for ratio in seed_ratios(space, budget.seeds):
        tried.add(length_drop(space, ratio))
    areas = [front_area(tried.front(), smallest.macs, full.macs)]
    for _ in range(budget.iterations):
        pool = [candidate.configuration for candidate in tried.front()]
        bounds = (smallest.macs, full.macs)
        _grow(pool, budget.mutants, lambda p: mutate(rng.choice(p), space.length, budget.mutation, rng), tried, bounds)
        if len(pool) > 1:
            _grow(pool, budget.crossovers, lambda p: cross(*rng.sample(p, 2)), tried, bounds)
        areas.append(front_area(tried.front(), *bounds))
    return Found(front=tried.front(), full=full, areas=tuple(areas), tried=len(tried))


def _grow(
    pool: list[Configuration],
    wanted: int,
    propose: Callable[[list[Configuration]], Configuration],
    tried: _Tried,
    bounds: tuple[int, int],
) -> None:
    """Put `wanted` proposals into the pool, where they may be parents at once, if as many new ones can be found."""
    target = len(pool) + wanted
    for _ in range(MAX_TRIES * wanted):
        if len(pool) == target:
            return
        proposal = propose(pool)
        if proposal not in pool and bounds[0] <= tried.macs(proposal) <= bounds[1]:
            tried.add(proposal)
            pool.append(proposal)
