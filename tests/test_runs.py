"""Run configurations, their hash, and the record store: atomic, resumable, safe for several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import runs
from benchmarks.errors import UserError
from benchmarks.plain import canonical_json, content_hash, plain
from benchmarks.runs import CorruptRecord, RunConfig, RunStore, load_runs, make_record, read_record, utc_now

GOLDEN = Path(__file__).parent / "golden" / "record_schema1.json"
SPAWN = multiprocessing.get_context("spawn")


def config(**changes) -> RunConfig:
    fields = {
        "kind": "train",
        "task": "rte",
        "method": "ltp",
        "backbone": "bert-base-uncased",
        "data": {"source": "embedded", "rows": {"train": 10}, "sha256": "ab"},
        "seed": 1,
        "options": {"temperature": 0.5},
    }
    return RunConfig(**(fields | changes))


def described() -> dict:
    """A stand-in for `environment()` that need not import torch."""
    return {"python": "3", "git": {"revision": None, "dirty": None}}


@pytest.fixture(autouse=True)
def quick_environment(monkeypatch) -> None:
    monkeypatch.setattr(runs, "environment", described)


def record_of(item: RunConfig, **fields) -> runs.Record:
    return make_record(item, **({"started_at": utc_now(), "wall_s": 1.0, "metrics": {"f1": 0.5}} | fields))


# ---- configurations and their hash


def test_hash_is_pinned_and_ignores_order_and_number_type() -> None:
    one, other = config(options={"b": 1.0, "a": (1, 2)}), config(options={"a": [1, 2], "b": 1})
    assert one.hash == other.hash and one == other and len({one, other}) == 1
    assert content_hash({"b": 1, "a": None}) == "c0bf82ad036c"  # sha256 of {"a":null,"b":1}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2}, {"task": "cola"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"max_length": 64},
        {"recipe": "fast"}, {"max_train_samples": 5}, {"stages": [{"epochs": 1}]}, {"extra": {"batch_size": 1}},
        {"options": {}}, {"data": {"source": "hub"}}, {"backbone": "roberta-base"}, {"method": "lat"},
        {"kind": "evaluate"},
    ],
)  # fmt: skip
def test_every_field_changes_the_hash(change) -> None:
    assert config(**change).hash != config().hash


def test_stages_may_be_dataclasses() -> None:
    @dataclass
    class Stage:
        epochs: int
        groups: dict

    staged = config(stages=(Stage(2, {"backbone": 2e-5}),))
    assert staged.as_dict()["stages"] == [{"epochs": 2, "groups": {"backbone": 2e-5}}]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"options": {"t": float("nan")}}, ValueError, "options.t is nan"),
        ({"options": {"t": {1, 2}}}, TypeError, "options.t is a set"),
        ({"options": {1: 2}}, TypeError, "options has the key 1"),
        ({"task": "../rte"}, ValueError, "task is '../rte'"),
        ({"device": "cuda:0"}, ValueError, "use 'cpu' or 'cuda'"),
        ({"backbone": "/models/bert"}, ValueError, "names /models/bert"),
        ({"data": {"folder": "~/data"}}, ValueError, "names ~/data"),
    ],
)
def test_bad_values_are_named(change, error, message) -> None:
    with pytest.raises(error, match=message):
        config(**change)


json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(json_data)
def test_hash_survives_writing_and_reading(data) -> None:
    assert canonical_json(json.loads(json.dumps(plain(data, "data")))) == canonical_json(data)


def test_numpy_numbers_are_plain() -> None:
    numbers = plain([np.float32(0.5), np.int64(3), np.float64(0.25)], "metrics")
    assert numbers == [0.5, 3, 0.25] and [type(number) for number in numbers] == [float, int, float]


# ---- one store, one process


def test_a_run_is_computed_once_and_read_afterwards(tmp_path) -> None:
    store, calls = RunStore(tmp_path), []
    first = store.run(config(), lambda: calls.append(1) or {"f1": np.float32(0.5), "missing": None})
    again = RunStore(tmp_path).run(config(), lambda: calls.append(2) or {})
    assert calls == [1] and again == first == store.load(config())
    assert store.path(config()) == tmp_path / "runs" / "train" / "rte" / f"ltp-{config().hash}.json"
    assert tuple(first) == runs.RECORD_KEYS and first["metrics"] == {"f1": 0.5, "missing": None}
    assert [path.name for path in store.path(config()).parent.iterdir()] == [store.path(config()).name]


def test_force_recomputes_once_for_each_command(tmp_path) -> None:
    calls: list[int] = []
    RunStore(tmp_path).run(config(), lambda: calls.append(1) or {})
    forced = pickle.loads(pickle.dumps(RunStore(tmp_path, force=True)))  # as a worker gets it
    for _ in range(2):
        forced.run(config(), lambda: calls.append(2) or {})
    assert calls == [1, 2]


def test_a_failed_run_is_a_record_and_is_tried_again_by_the_next_command(tmp_path) -> None:
    def fail() -> dict:
        raise RuntimeError(f"no such file {Path.home()}/x\udcff")

    store = RunStore(tmp_path)
    failed = store.run(config(), fail)
    assert failed["status"] == "failed" and failed["error"] == "RuntimeError: no such file ~/x\udcff"
    assert failed["metrics"] == {} and store.load(config()) is None
    assert store.run(config(), dict) == failed  # not twice by one command
    assert RunStore(tmp_path, retry_failed=False).run(config(), dict) == failed
    assert RunStore(tmp_path).run(config(), dict)["status"] == "ok"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_a_failed_run(tmp_path, value) -> None:
    record = RunStore(tmp_path).run(config(), lambda: {"f1": value})
    assert record["status"] == "failed" and "metrics.f1 is" in record["error"]
    with pytest.raises(ValueError, match=r"metrics\.f1"):
        record_of(config(), metrics={"f1": value})


@pytest.mark.parametrize("error", [UserError("no rows"), KeyboardInterrupt()])
def test_bad_usage_and_interrupts_write_nothing(tmp_path, error) -> None:
    def stop() -> dict:
        raise error

    with pytest.raises(type(error)):
        RunStore(tmp_path).run(config(), stop)
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize(
    "text",
    [
        "", '{"schema": 1, "config_ha', "[]", "\x00\x01", '{"schema": 2}', '{"schema": 1}',
        GOLDEN.read_text(encoding="utf-8"),  # a good record, but of another run
    ],
    ids=["empty", "truncated", "list", "binary", "newer", "keys_missing", "other_run"],
)  # fmt: skip
def test_an_unreadable_record_is_reported_kept_and_computed_anew(tmp_path, caplog, text) -> None:
    store = RunStore(tmp_path)
    path = store.path(config())
    for kept in ("corrupt", "corrupt1"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        caplog.clear()
        assert store.load(config()) is None
        assert str(path) in caplog.text and "rerun" in caplog.text
        assert store.run(config(), lambda: {"f1": 1})["status"] == "ok"
        assert path.with_name(f"{path.name}.{kept}").read_text(encoding="utf-8") == text
    assert store.load(config())["metrics"] == {"f1": 1}


def test_an_edited_record_is_not_believed(tmp_path) -> None:
    store = RunStore(tmp_path)
    path = store.write(config(), record_of(config()))
    path.write_text(path.read_text(encoding="utf-8").replace('"seed": 1', '"seed": 7'), encoding="utf-8")
    with pytest.raises(CorruptRecord, match="edited"):
        read_record(path)


def test_write_refuses_the_record_of_another_run(tmp_path) -> None:
    with pytest.raises(ValueError, match="config_hash"):
        RunStore(tmp_path).write(config(), record_of(config(seed=2)))


@pytest.mark.parametrize("blocked", ["", "runs", "runs/train"])
def test_a_folder_that_cannot_be_written_is_one_sentence_before_anything_is_computed(tmp_path, blocked) -> None:
    root = tmp_path / "results"
    (root / blocked).parent.mkdir(parents=True, exist_ok=True)
    (root / blocked).write_text("a file in the folder's place", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*make its folder writable") as caught:
        RunStore(root).run(config(), lambda: pytest.fail("computed in vain"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dirty", "scratch"), [(False, False), (True, True), (None, False)])
def test_scratch_for_dirty_trees(tmp_path, monkeypatch, dirty, scratch) -> None:
    monkeypatch.setattr(runs, "git_state", lambda: {"revision": "abc", "dirty": dirty})
    store = RunStore.open(tmp_path)
    assert store.is_scratch == scratch and store.root == (tmp_path / "scratch" if scratch else tmp_path)


# ---- several processes


def _killed_before_rename(root: Path) -> None:
    runs.environment = described
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    RunStore(root).write(config(), record_of(config(), metrics={"f1": 2}))


def _killed_with_the_lock(root: Path) -> None:
    with RunStore(root).lock(config()):
        os.kill(os.getpid(), signal.SIGKILL)


def _compute(root: Path, barrier, seen) -> None:
    runs.environment = described

    def slow() -> dict:
        with open(root / "computed", "a", encoding="utf-8") as stream:
            stream.write("x")
        time.sleep(0.5)
        return {"f1": 1}

    barrier.wait(timeout=30)
    seen.put(RunStore(root).run(config(), slow)["started_at"])


def test_a_killed_writer_leaves_the_old_record(tmp_path) -> None:
    store = RunStore(tmp_path)
    path = store.write(config(), record_of(config()))
    process = SPAWN.Process(target=_killed_before_rename, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert store.load(config())["metrics"] == {"f1": 0.5}
    assert [left.suffix for left in path.parent.iterdir() if left != path] == [".tmp"]
    assert len(load_runs(tmp_path)) == 1


def test_the_lock_of_a_killed_process_is_free(tmp_path) -> None:
    process = SPAWN.Process(target=_killed_with_the_lock, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert RunStore(tmp_path).run(config(), dict)["status"] == "ok"


def test_two_processes_compute_one_run_once(tmp_path) -> None:
    barrier, seen = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [SPAWN.Process(target=_compute, args=(tmp_path, barrier, seen)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = {seen.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    assert (tmp_path / "computed").read_text(encoding="utf-8") == "x" and len(answers) == 1


# ---- reading many


def test_load_runs_flattens_and_lists_what_it_cannot_read(tmp_path) -> None:
    store = RunStore(tmp_path)
    store.run(config(), lambda: {"f1": 0.5, "padding": {"none": {"macs": 3}}})
    store.run(config(seed=2), lambda: 1 / 0)
    (tmp_path / "runs" / "train" / "rte" / "broken.json").write_text("{", encoding="utf-8")
    frame = load_runs(tmp_path)
    assert sorted(frame["status"]) == ["failed", "ok"]
    row = frame[frame["status"] == "ok"].iloc[0]
    assert row["metrics.padding.none.macs"] == 3 and row["config.options.temperature"] == 0.5
    assert row["path"] == f"runs/train/rte/ltp-{config().hash}.json"
    assert [path for path, _ in frame.attrs["unreadable"]] == ["runs/train/rte/broken.json"]


def test_load_runs_of_nothing_has_the_columns(tmp_path) -> None:
    frame = load_runs(tmp_path)
    assert len(frame) == 0 and {"path", "status", "config_hash"} <= set(frame.columns)


def test_the_golden_record_stays_readable(tmp_path) -> None:
    record = read_record(GOLDEN)
    assert RunConfig(**record["config"]).hash == record["config_hash"] == "43a248fc49c3"
    assert "made up" in record["config"]["extra"]["note"]
    place = RunStore(tmp_path).write(RunConfig(**record["config"]), record)
    assert read_record(place) == record and place.read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")
