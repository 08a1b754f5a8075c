"""Seeds and threads for the whole suite."""

from __future__ import annotations

import pytest
import torch

from tests.told import build  # noqa: F401  (a fixture of the engine's tests)

torch.set_num_threads(1)  # tiny tensors: threads only cost


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
