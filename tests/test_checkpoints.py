"""A killed training goes on from its checkpoint bit for bit, for every method; a checkpoint gone bad is put aside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import methods
from benchmarks import checkpoints
from benchmarks.checkpoints import EPOCH, SEARCH, STAGE, Partial, partial_folder, read_snapshot, remove_partial
from benchmarks.train import Compute, train_stage
from methods.recipes import Stage, short_stage
from tests.cases import EVERY
from tests.test_training import features
from tests.tiny import tiny_model

TASK = SimpleNamespace(name="sst2", kind="classification", skim_weight=0.3, sequence_length=16)
RUN = "0123456789ab"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own code catches it."""


@pytest.fixture(autouse=True)
def every_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)


def fresh(name: str) -> methods.TokenReducer:
    options = {"keep_schedule": (0.9, 0.7, 0.5)} if name == "random" else {}
    model = tiny_model("bert").float()
    torch.manual_seed(0)
    return methods.create(name, model, **(methods.lookup(name).task_options(TASK, "short") | options))


def trial(reducer: methods.TokenReducer) -> methods.Trial:
    """A score that any change of the weights changes."""
    weights = sum(float(weight.double().sum()) for weight in reducer.state_dict().values())
    return methods.Trial(score=weights % 1.0, macs=1.0, dense_macs=1.0)


def train(name: str, partial: Partial, *, killed_after: int = 10**9, select: str = "last"):
    """All stages of the short recipe, two epochs each; `killed_after` that many updates of this process."""
    seen = 0

    def on_update(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen > killed_after * 8:
            raise Killed

    reducer = fresh(name)
    finished, history = partial.resume(reducer)
    for number, stage in list(enumerate(reducer.stages(TASK, "short")))[finished:]:
        if stage.teacher is not None:
            reducer.set_teacher(tiny_model("bert", seed=5).float())
        changed = stage.but(epochs=2, batch_size=8, select=select, search=False)
        outcome = train_stage(
            reducer,
            changed,
            features(),
            0,
            seed=3,
            compute=Compute(),
            on_update=on_update,
            trial=trial,
            partial=partial,
        )
        history.append({key: value for key, value in outcome.items() if key != "seconds"})
        partial.finish_stage(number, reducer, history)
    return reducer, history


def same(one, other) -> bool:
    (first, before), (second, after) = one, other
    weights, others = first.state_dict(), second.state_dict()
    assert weights.keys() == others.keys() and before == after
    assert first.options == second.options
    return all(torch.equal(weights[key], others[key]) for key in weights)


def moments() -> list[tuple[str, int]]:
    """Stages have 2 epochs of 2 updates: in the second epoch of the first stage, and of the second, if there is one."""
    stages = {name: len(methods.lookup(name).recipe_stages(TASK, "short")) for name in EVERY}
    return [(name, after) for name, count in stages.items() for after in (2, 6)[:count]]


@pytest.mark.parametrize(("name", "killed_after"), moments())
def test_a_killed_training_goes_on_bit_for_bit(name, killed_after):
    """Weights, options and what the record says; dropout and sampling are on."""
    undisturbed = train(name, Partial(None))
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        train(name, partial, killed_after=killed_after)
    assert (partial_folder(RUN) / f"{EPOCH}.safetensors").is_file()
    with Partial.open(RUN) as partial:
        assert same(undisturbed, train(name, partial))


def test_the_best_weights_so_far_are_remembered():
    undisturbed = train("transkimmer", Partial(None), select="best")
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        train("transkimmer", partial, killed_after=3, select="best")
    assert any(name.startswith("best/") for name in read_snapshot(partial_folder(RUN) / f"{EPOCH}.safetensors").tensors)
    with Partial.open(RUN) as partial:
        assert same(undisturbed, train("transkimmer", partial, select="best"))


def test_parameters_and_options_of_a_search_come_back():
    """PoWER-BERT: killed in the search (its retention parameters) and after it (the counts that it found)."""
    undisturbed = train("power_bert", Partial(None))
    assert undisturbed[0].options.retention_configuration is not None
    for killed_after in (6, 5):
        with Partial.open(RUN) as partial, pytest.raises(Killed):
            train("power_bert", partial, killed_after=killed_after)
    state = read_snapshot(partial_folder(RUN) / f"{STAGE}.safetensors").state
    assert state["stages"] == 2 and state["options"]["retention_configuration"]
    with Partial.open(RUN) as partial:
        assert same(undisturbed, train("power_bert", partial))


def searching(partial: Partial, *, killed_after: int = 10**9):
    """LAT's search over 16 token counts per layer; returns the reducer, what it found, and the trials computed."""
    reducer, tried = fresh("lat"), []

    def counted(candidate: methods.TokenReducer) -> methods.Trial:
        if len(tried) == killed_after:
            raise Killed
        tried.append(candidate.options.length_configuration)
        kept = sum(tried[-1])
        return methods.Trial(score=(kept * 0.37) % 1.0 + kept / 50, macs=float(kept), dense_macs=48.0)

    stage = Stage(name="search", epochs=0, search=True)
    outcome = train_stage(reducer, stage, features(), 0, seed=3, compute=Compute(), trial=counted, partial=partial)
    return reducer, outcome["search"], tried


@pytest.mark.parametrize("killed_after", [1, 7, 23])
def test_a_killed_search_goes_on_with_the_next_trial(killed_after):
    undisturbed, found, tried = searching(Partial(None))
    assert len(tried) == len(set(tried)) > 23
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        searching(partial, killed_after=killed_after)
    with Partial.open(RUN) as partial:
        reducer, again, rest = searching(partial)
    assert again == found and reducer.options == undisturbed.options
    assert rest == tried[killed_after:]


def test_a_search_of_another_stage_does_not_count():
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        searching(partial, killed_after=7)
    snapshot = read_snapshot(partial_folder(RUN) / f"{SEARCH}.safetensors")
    snapshot.state["stage"] = "another"
    with Partial.open(RUN) as partial:
        partial.save(SEARCH, snapshot)
        assert searching(partial)[2] == searching(Partial(None))[2]


def test_at_most_one_epoch_is_repeated():
    rows: list[int] = []
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        train("dense", partial, killed_after=3)
    stage = short_stage("fine_tune", start="pretrained", epochs=2).but(batch_size=8)
    with Partial.open(RUN) as partial:
        train_stage(
            fresh("dense"), stage, features(), 0, seed=3, compute=Compute(), on_update=rows.append, partial=partial
        )
    assert rows == [16, 8, 8]  # what was done already, then the second epoch


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def another_file(path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)


def not_json(path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"state": "{"})


@pytest.mark.parametrize("damage", [cut_off, one_bit, emptied, another_file, not_json])
@pytest.mark.parametrize("name", [STAGE, EPOCH])
def test_a_damaged_checkpoint_is_put_aside_and_the_run_starts_anew(name, damage, caplog):
    undisturbed = train("power_bert", Partial(None))
    with Partial.open(RUN) as partial, pytest.raises(Killed):
        train("power_bert", partial, killed_after=7)
    path = partial_folder(RUN) / f"{name}.safetensors"
    damage(path)
    with Partial.open(RUN) as partial:
        assert same(undisturbed, train("power_bert", partial))
    (said,) = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
    assert "trained anew" in said and "\n" not in said and path.with_name(f"{path.name}.corrupt").exists()


def test_other_code_does_not_go_on_from_a_checkpoint(monkeypatch, caplog):
    with Partial.open(RUN) as partial:
        train("dense", partial)
        monkeypatch.setattr(checkpoints, "made_by", lambda: "another")
        assert partial.resume(fresh("dense")) == (0, [])
    assert "another version of the code" in caplog.text


def test_a_forced_run_does_not_go_on_from_an_earlier_command():
    with Partial.open(RUN) as partial:
        train("dense", partial)
        assert dataclasses.replace(partial, since="9999").resume(fresh("dense")) == (0, [])
        assert dataclasses.replace(partial, since="2000").resume(fresh("dense"))[0] == 1


def test_nothing_is_pickled_and_the_file_is_whole_or_absent(monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    with Partial.open(RUN) as partial:
        train("dense", partial)
        kept = sorted(path.name for path in partial_folder(RUN).iterdir())
        assert kept == [f"{STAGE}.safetensors"]  # the epochs of a finished stage are gone
        before = (partial_folder(RUN) / f"{STAGE}.safetensors").read_bytes()
        monkeypatch.setattr(safetensors.torch, "save_file", refuse)
        partial.save(STAGE, checkpoints.of_reducer(fresh("dense")))
    assert (partial_folder(RUN) / f"{STAGE}.safetensors").read_bytes() == before
    assert sorted(path.name for path in partial_folder(RUN).iterdir()) == kept


def test_a_full_disk_costs_the_checkpoint_not_the_run(monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    undisturbed = train("dense", Partial(None))
    with Partial.open(RUN) as partial:
        assert same(undisturbed, train("dense", partial))
    assert "No space left on device; the run goes on without it" in caplog.text


def test_two_processes_never_share_a_checkpoint(caplog):
    with Partial.open(RUN) as partial, Partial.open(RUN) as second:
        assert partial.folder is not None and second.folder is None and second.resume(fresh("dense")) == (0, [])
    assert "no checkpoints are kept" in caplog.text
    remove_partial(RUN)
    assert not partial_folder(RUN).exists() and list(partial_folder(RUN).parent.iterdir()) == []
