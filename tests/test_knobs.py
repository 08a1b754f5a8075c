"""The option that a method is made faster with: its range, where a search starts, what turning it does."""

from __future__ import annotations

import pytest
import torch

import methods
from benchmarks import acceleration
from benchmarks.experiments import Setting
from benchmarks.models import ModelRef
from benchmarks.own_rows import own_task
from benchmarks.progress import RunProgress
from benchmarks.speed_search import Point
from benchmarks.train import Compute
from tests.cases import CASES
from tests.tiny import tiny_reducer


@pytest.mark.parametrize("name", [name for name in CASES if methods.lookup(name).traits.knob])
def test_knobs_name_options_and_go_there_and_back(name):
    cls = methods.lookup(name)
    knob = cls.traits.knob
    assert knob.option in cls.options_class.__dataclass_fields__
    if knob.after_training:
        return
    for pressure in (0.0, 0.3, 1.0):
        cls.options_class(**{knob.option: knob.at(pressure)})
        assert knob.pressure(knob.at(pressure)) == pytest.approx(pressure, abs=0.01)


@pytest.mark.parametrize("recipe", ["paper", "short"])
@pytest.mark.parametrize("name", [n for n in CASES if (k := methods.lookup(n).traits.knob) and not k.after_training])
def test_trainings_start_at_the_recipes_own_setting(name, recipe, tmp_path, monkeypatch):
    """Whether the recipe sets the option for the task or leaves its default."""
    monkeypatch.setattr(acceleration, "trained", lambda *_: None)
    monkeypatch.setattr(acceleration, "_point", lambda *_: Point(speedup=1.5, score=1.0))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(60)))
    own = own_task(tmp_path / "rows.csv", home=tmp_path)
    setting, model = Setting(recipe=recipe, source=own.source, compute=Compute()), ModelRef("tiny", "", "", "bert")
    goal = acceleration.Goal(own=own, model=model, setting=setting, method=name, target=1.5, seed=0, trials=1)
    experiment, _, points = acceleration._train_anew(goal, None, RunProgress(1.0, quiet=True))
    own_options = methods.lookup(name).options_class(**goal.experiment(name).options)
    assert len(points) == 1 and experiment.options[goal.knob.option] == getattr(own_options, goal.knob.option)


def test_what_works_after_training_saves_nothing_at_first_and_most_at_last():
    able = [name for name in CASES if (knob := methods.lookup(name).traits.knob) and knob.after_training]
    assert set(able) == {"lat", "deebert", "pabee"}
    for name in able:
        reducer = tiny_reducer(name)
        ids = torch.randint(5, 60, (16, 12))
        costs = []
        for pressure in (0.0, 1.0):
            reducer.press(pressure)
            costs.append(int(reducer.macs(reducer(input_ids=ids).trace).sum()))
        dense = int(reducer.backbone.dense_macs(torch.full((16,), 12)).sum())
        assert costs[0] >= dense > costs[1]


def test_other_methods_say_that_they_cannot():
    with pytest.raises(ValueError, match="transkimmer has no option that changes its speed after training"):
        tiny_reducer("transkimmer").press(0.5)
