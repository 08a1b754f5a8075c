"""Real benchmark rows for tests, from `../shared/data` beside the project; tests skip where the folder is absent."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(*parts: str) -> Path:
    """The folder `../shared/data`, or the path `parts` below it; skips the test if it is not there."""
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the benchmark rows at ../shared/data/{'/'.join(parts)}")
    return path
