"""LAT's search by itself: invariants of the method notes; [14] is the fourteenth. Fronts are checked with moocore."""

from __future__ import annotations

import random

import moocore
import numpy as np
import pytest

from methods import Trial
from methods.lat_search import (
    LEAST,
    Budget,
    Candidate,
    Found,
    Space,
    cross,
    front_area,
    length_drop,
    mutate,
    pareto_front,
    search,
    seed_ratios,
)

BUDGET = Budget(iterations=6, seeds=5, mutants=8, crossovers=8, mutation=0.5)
SPACE = Space(length=64, layers=6, drop=0.2)
# Section 4.3: the smallest configuration of L layers and N tokens.
SMALLEST = {
    (12, 64): (52, 42, 34, 28, 23, 19, 16, 13, 11, 9, 8, 7),
    (12, 128): (103, 83, 67, 54, 44, 36, 29, 24, 20, 16, 13, 11),
    (12, 256): (205, 164, 132, 106, 85, 68, 55, 44, 36, 29, 24, 20),
    (12, 384): (308, 247, 198, 159, 128, 103, 83, 67, 54, 44, 36, 29),
    (12, 512): (410, 328, 263, 211, 169, 136, 109, 88, 71, 57, 46, 37),
    (6, 128): (103, 83, 67, 54, 44, 36),
    (6, 384): (308, 247, 198, 159, 128, 103),
}
# Section 4.1: ratios of the public code's 20 seeds.
RATIOS = [
    *(0.1806, 0.1637, 0.1484, 0.1350, 0.1224, 0.1111, 0.0996, 0.0906, 0.0807, 0.0723),
    *(0.0642, 0.0556, 0.0489, 0.0417, 0.0353, 0.0292, 0.0233, 0.0172, 0.0112, 0.0055),
]


def candidates(*pairs):
    """Of (macs, score) pairs; the configuration numbers them."""
    return [
        Candidate(configuration=(number + LEAST,), macs=macs, score=score, speedup=100 / macs)
        for number, (macs, score) in enumerate(pairs)
    ]


def tokens(configuration):
    return sum(configuration)


def quality(configuration):
    """A made-up score in which early layers matter more, with a peak below full length and plateaus."""
    kept = sum(min(count, 50) ** 0.5 / (layer + 1) for layer, count in enumerate(configuration))
    return round(kept - 0.004 * sum(configuration), 2)


def run(space=SPACE, budget=BUDGET, seed=0, score=quality, macs=tokens):
    """A search, and the configurations that it scored, in order."""
    seen = []

    def trial(configuration):
        seen.append(configuration)
        return Trial(score=score(configuration), macs=macs(configuration), dense_macs=macs(space.full))

    return search(space, budget, macs=macs, trial=trial, rng=random.Random(seed)), seen


def points(front):
    return np.array([(candidate.macs, candidate.score) for candidate in front], dtype=float)


def valid(configuration, space):
    return list(configuration) == sorted(configuration, reverse=True) and (
        len(configuration) == space.layers and configuration[0] <= space.length and configuration[-1] >= LEAST
    )


# Configurations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "length"), SMALLEST)
def test_smallest_configurations(layers, length):
    """[9]"""
    space = Space(length=length, layers=layers, drop=0.2)
    assert space.smallest == SMALLEST[layers, length] and space.full == (length,) * layers


def test_float_error_drops_no_token_less():
    """ceil(30 * (1 - 0.7)) is 9, though 30 * (1 - 0.7) is 9.000000000000002."""
    assert length_drop(Space(length=30, layers=1, drop=0.7), 0.7) == (9,)
    assert length_drop(Space(length=3, layers=4, drop=0.9), 0.9) == (2, 2, 2, 2)


def test_seeds_are_those_of_the_public_code():
    """Section 4.1, for 12 layers and 384 tokens; rounded to the printed digits."""
    assert [round(ratio, 4) for ratio in seed_ratios(Space(length=384, layers=12, drop=0.2), 20)] == RATIOS


def test_seeds_are_evenly_spaced_for_any_model():
    """Pitfall 12: in tokens kept, as evenly as whole tokens allow."""
    totals = [sum(length_drop(SPACE, ratio)) for ratio in seed_ratios(SPACE, 7)]
    ends = [sum(SPACE.smallest), *totals, sum(SPACE.full)]
    assert max(np.diff(ends)) - min(np.diff(ends)) <= 2 * SPACE.layers


def test_parents_of_any_kind_have_valid_children():
    """[14] 10,000 random parents; a mutant without mutation is its parent."""
    rng = random.Random(3)
    for _ in range(10_000):
        space = Space(length=rng.randint(2, 40), layers=rng.randint(1, 8), drop=0.2)
        parents = [
            tuple(sorted((rng.randint(LEAST, space.length) for _ in range(space.layers)), reverse=True)) for _ in "ab"
        ]
        assert valid(mutate(parents[0], space.length, 0.5, rng), space)
        assert valid(mutate(parents[0], space.length, 1.0, rng), space)
        child = cross(*parents)
        assert valid(child, space) and child == cross(*reversed(parents))
        assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(*parents, child, strict=True))
        assert mutate(parents[0], space.length, 0.0, rng) == parents[0]


def test_mutants_reach_both_ends():
    """Section 4.1: uniform from the parent's next layer to the child's last, both included."""
    rng = random.Random(0)
    children = {mutate((4, 3), 6, 1.0, rng) for _ in range(500)}
    assert children == {(a, b) for a in (3, 4, 5, 6) for b in range(2, a + 1)}


# Fronts --------------------------------------------------------------------------------------------------------------


def test_the_two_defects_of_the_public_code():
    """[17] The most expensive one has no seat of its own; of two at the same cost the better one stays."""
    kept = pareto_front(candidates((30, 0.93), (10, 0.90), (20, 0.95)))
    assert [(c.macs, c.score) for c in kept] == [(10, 0.90), (20, 0.95)]
    kept = pareto_front(candidates((10, 0.8), (20, 0.85), (20, 0.9), (10, 0.7)))
    assert [(c.macs, c.score) for c in kept] == [(10, 0.8), (20, 0.9)]


@pytest.mark.parametrize("seed", range(20))
def test_fronts_are_moocores(seed):
    """The same cost-score points as moocore keeps, with many ties among 60 candidates."""
    rng = np.random.default_rng(seed)
    pairs = [(int(m), float(s)) for m, s in zip(rng.integers(1, 15, 60), rng.integers(0, 15, 60) / 15, strict=True)]
    data = np.array(pairs)
    kept = data[moocore.is_nondominated(data, maximise=[False, True], keep_weakly=False)]
    assert {tuple(point) for point in points(pareto_front(candidates(*pairs)))} == {tuple(point) for point in kept}
    assert len(pareto_front(candidates(*pairs))) == len(kept)


def test_area_by_hand():
    """Scores 0.5 from 10 on, 0.9 from 20 on, up to 40: (10 * 0.5 + 20 * 0.9) / 30."""
    front = pareto_front(candidates((10, 0.5), (20, 0.9), (40, 0.7)))
    assert front_area(front, 10, 40) == pytest.approx((10 * 0.5 + 20 * 0.9) / 30)
    assert front_area(front[:1], 10, 10) == 0.5


# Search --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_member_is_dominated_or_out_of_bounds(seed):
    """[15] moocore agrees; macs and scores rise strictly; costs lie between the smallest and the full."""
    found, seen = run(seed=seed)
    assert moocore.is_nondominated(points(found.front), maximise=[False, True], keep_weakly=False).all()
    assert (np.diff(points(found.front), axis=0) > 0).all()
    assert len({candidate.configuration for candidate in found.front}) == len(found.front)
    assert all(valid(configuration, SPACE) for configuration in seen)
    assert all(tokens(SPACE.smallest) <= tokens(configuration) <= tokens(SPACE.full) for configuration in seen)
    everything = np.array([(tokens(configuration), quality(configuration)) for configuration in seen])
    best = everything[moocore.is_nondominated(everything, maximise=[False, True], keep_weakly=False)]
    assert {tuple(point) for point in best} == {tuple(point) for point in points(found.front)}


def test_areas_never_fall_and_each_configuration_is_scored_once():
    """[16] One area after the seeds and one per iteration."""
    found, seen = run()
    assert list(found.areas) == sorted(found.areas) and found.areas[-1] > found.areas[0]
    assert len(found.areas) == BUDGET.iterations + 1
    assert len(seen) == len(set(seen)) == found.tried
    assert found.tried <= 2 + BUDGET.seeds + BUDGET.iterations * (BUDGET.mutants + BUDGET.crossovers)
    assert seen[:2] == [SPACE.smallest, SPACE.full] and found.full.configuration == SPACE.full


def test_a_seed_reproduces_the_search():
    """[16]"""
    assert run(seed=4) == run(seed=4)
    assert run(seed=4)[1] != run(seed=5)[1]


@pytest.mark.parametrize(("length", "drop"), [(4, 0.2), (4, 0.5), (2, 0.5)])
def test_the_search_ends_in_a_tiny_space(length, drop):
    """[16] N = 4, L = 2: fewer configurations than the budget asks for; also where only one exists."""
    found, seen = run(Space(length=length, layers=2, drop=drop))
    assert found.tried == len(seen) <= 6 and found.front


def test_without_iterations_only_the_seeds_are_scored():
    found, seen = run(budget=Budget(iterations=0, seeds=3, mutants=9, crossovers=9, mutation=0.5))
    assert found.tried == len(seen) == 5 and len(found.areas) == 1


def test_the_best_known_point_may_be_cheaper_than_full_length():
    """Section 4.2: full length is returned apart, and is on the front only where nothing cheaper is as good."""
    found, _ = run()
    assert found.full not in found.front and found.full.score <= found.front[-1].score
    found, _ = run(score=tokens)
    assert found.full == found.front[-1]


def uniform(space, count, seed):
    """Random configurations, uniform among sorted draws, within the bounds of the search."""
    rng, drawn = random.Random(seed), []
    while len(drawn) < count:
        made = tuple(sorted((rng.randint(LEAST, space.length) for _ in range(space.layers)), reverse=True))
        if tokens(space.smallest) <= tokens(made) <= tokens(space.full):
            drawn.append(made)
    return drawn


@pytest.mark.parametrize("seed", range(5))
def test_the_search_beats_as_many_random_configurations(seed):
    """Hypervolume (moocore) towards (full cost, 0) on the made-up score."""
    found, _ = run(seed=seed)
    blind = np.array([(tokens(c), quality(c)) for c in uniform(SPACE, found.tried, seed)])
    volumes = [
        moocore.hypervolume(data, ref=[tokens(SPACE.full), 0.0], maximise=[False, True])
        for data in (points(found.front), blind)
    ]
    assert volumes[0] > volumes[1]


# Operating points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "tolerance", "speedup", "macs"),
    [
        ("best", 0.0, 1.0, 80),
        ("cheapest", 0.0, 1.0, 60),
        ("cheapest", 0.05, 1.0, 40),
        ("cheapest", 1.0, 1.0, 20),
        ("speedup", 0.0, 1.25, 80),
        ("speedup", 0.0, 1.5, 60),
        ("speedup", 0.0, 3.0, 20),
        ("speedup", 0.0, 99.0, 20),
    ],
)
def test_operating_points(rule, tolerance, speedup, macs):
    """Scores 0.7, 0.85, 0.9, 0.95 at costs 20, 40, 60, 80; full length scores 0.9 at 100."""
    pairs = ((20, 0.7), (40, 0.85), (60, 0.9), (80, 0.95), (100, 0.9))
    everything = candidates(*pairs)
    found = Found(front=pareto_front(everything), full=everything[-1], areas=(), tried=5)
    assert found.choose(rule, tolerance=tolerance, speedup=speedup).macs == macs
