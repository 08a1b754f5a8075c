"""Every method and primitive under pytest-benchmark; what each computes is as stored, to the last multiply-add.

Times are judged by `./reproduce.sh bench` alone, as a test-suite shares its machine.
"""

from __future__ import annotations

import pytest
import torch

import methods
from benchmarks.regression import COUNTS, FOLDER, read
from benchmarks.regression_cases import cases

CASES = {case.name: case for case in cases()}
STORED = read(FOLDER / COUNTS)


def test_every_method_and_every_stored_case_is_timed():
    sparse = {name for name in methods.available() if "single_text" not in methods.lookup(name).traits.unsupported}
    assert sparse < set(CASES) == set(STORED), "run `python -m benchmarks.regression --update`"


@pytest.mark.parametrize("name", CASES)
def test_speed(name, benchmark):
    with torch.inference_mode():
        benchmark.pedantic(CASES[name].run, rounds=5, warmup_rounds=1)
    assert dict(CASES[name].counts) == STORED.get(name)
