"""Seeds and threads for the whole suite."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from tests.told import build  # noqa: F401  (a fixture of the engine's tests)

torch.set_num_threads(1)  # tiny tensors: threads only cost


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed of bytes that are no text: processes that run tests cannot tell each other such a string."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
