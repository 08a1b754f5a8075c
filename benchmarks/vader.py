"""Rated sentences from the package of VADER (Hutto and Gilbert 2014, MIT), as two embedded tasks.

- `vader_sentiment`: the 10,043 film-review sentences whose mean rating is beyond +-0.5, as positive or negative.
- `vader_valence`: the mean rating, in [-4, 4], of all 13,098 tweets, product-review and editorial sentences; the film
  reviews are left out, so the two tasks share no sentence.

A fifth is for validation. Near-duplicates, and sentences of one review or article, stay on one side.
"""

from __future__ import annotations

import hashlib
import html
import io
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.near_duplicates import duplicate_groups
from benchmarks.packages import UNREADABLE, DataUnavailable, PackageFile
from benchmarks.tasks import TASKS

if TYPE_CHECKING:
    import datasets

VADER = PackageFile(
    requirement="vaderSentiment==0.5",
    file="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    source=True,
)
SOURCES = ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets")
_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/{source}_GroundTruth.txt"
_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Snippet:
    """One rated sentence of the archive."""

    text: str
    valence: float  # mean of the ratings, in [-4, 4]
    document: str | None  # the review or article it stands in; None for a sentence of its own


def read_vader(path: Path) -> dict[str, list[Snippet]]:
    """The rated sentences in the package file, by source.

    Members are read by their exact names, in memory: nothing is extracted, so no path in the archive can matter.

    Raises:
        DataUnavailable: the file, a member or a line is not as expected.
    """
    try:
        with zipfile.ZipFile(path) as package:
            content = io.BytesIO(package.read(_ARCHIVE))
        with tarfile.open(fileobj=content) as archive:
            return {source: list(snippets(archive, source)) for source in SOURCES}
    except UNREADABLE as error:
        raise DataUnavailable(f"{path} does not hold the expected data: {error}") from error


def snippets(archive: tarfile.TarFile, source: str) -> Iterator[Snippet]:
    """Lines of `id, mean valence, text`; an id such as 12_3 is sentence 3 of document 12."""
    member = archive.getmember(_MEMBER.format(source=source))
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise ValueError(f"{member.name} is not a plain file")
    for line in file.read().decode("utf-8-sig").splitlines():
        number, valence, text = line.split("\t")
        document, separator, _ = number.partition("_")
        yield Snippet(html.unescape(text).strip(), float(valence), f"{source} {document}" if separator else None)


def build_sentiment(path: Path) -> dict[str, datasets.Dataset]:
    """Binary sentiment of film-review sentences; nearly neutral ones (mean within +-0.5) are left out."""
    import datasets

    clear = [snippet for snippet in read_vader(path)["movieReviewSnippets"] if abs(snippet.valence) > 0.5]
    labels = [int(snippet.valence > 0) for snippet in clear]
    return _split_rows(clear, labels, datasets.ClassLabel(names=list(TASKS["vader_sentiment"].label_names)))


def build_valence(path: Path) -> dict[str, datasets.Dataset]:
    """Mean valence of the sentences of all sources but the film reviews."""
    import datasets

    by_source = read_vader(path)
    rated = [snippet for source in SOURCES if source != "movieReviewSnippets" for snippet in by_source[source]]
    return _split_rows(rated, [snippet.valence for snippet in rated], datasets.Value("float32"))


def _split_rows(rated: Sequence[Snippet], labels: Sequence[float], label: Any) -> dict[str, datasets.Dataset]:
    """Rows of both splits; a group of near-duplicates goes where the hash of its first text says."""
    import datasets

    features = datasets.Features(sentence=datasets.Value("string"), label=label, idx=datasets.Value("int32"))
    groups = duplicate_groups([snippet.text for snippet in rated], [snippet.document for snippet in rated])
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
    for idx, (snippet, value, group) in enumerate(zip(rated, labels, groups, strict=True)):
        digest = hashlib.sha256(rated[group].text.encode()).digest()
        split = "validation" if digest[0] < 0.2 * 256 else "train"
        rows[split].append({"sentence": snippet.text, "label": value, "idx": idx})
    return {split: datasets.Dataset.from_list(rows[split], features=features) for split in _SPLITS}
