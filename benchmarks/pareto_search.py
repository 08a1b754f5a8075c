"""Sweeps to wished-for speed-ups: the setting of a method's knob is searched for, one trial after another.

A trial is a training where the knob has to be trained with, else the trained model scored again. Chosen is by speed-up
alone; no score is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import methods
from benchmarks.experiments import Experiment
from benchmarks.models import load_model
from benchmarks.pareto_runs import layers_of, setting_text
from benchmarks.runs import Record
from benchmarks.speed_search import NEAR, Point, next_pressure
from methods import TokenReducer
from methods.config import Knob, Sweep

SCORED_PER_TRAINED = 5  # trials of a knob that needs no training, for each of one that does
MIDDLE = 0.5  # pressure that a search without a setting of its own begins with


@dataclass
class SpeedSearch:
    """The trials of one method on one task from one seed that are to reach some speed-ups without padding.

    Attributes:
        own: the run at the method's own setting. targets: the speed-ups. trials: trainings that may follow for each.
        others: runs at other settings that are scored in any case; the search waits for them, and where one of them
            is near a speed-up, looks no further for it.
    """

    own: Experiment
    targets: Sequence[float]
    trials: int
    others: Sequence[Experiment] = ()
    _pressures: dict[str, float] = field(default_factory=dict)  # by hash, of trials
    _points: dict[float, Point] = field(default_factory=dict)  # by pressure
    _known: dict[str, Point] = field(default_factory=dict)  # by hash, of all runs

    def __post_init__(self) -> None:
        cls = methods.lookup(self.own.method)
        assert cls.traits.knob is not None and cls.sweep is not None
        self._knob: Knob = cls.traits.knob
        self._sweep: Sweep = cls.sweep
        self._options: dict[str, Any] = vars(cls.options_class(**self.own.options))
        self._waiting = {other.config().hash for other in self.others}
        self._start = MIDDLE
        if self._sweep.retrains:
            self._start = self._knob.pressure(self._options[self._knob.option])
            self._pressures[self.own.config().hash] = self._start
        else:
            self.trials *= SCORED_PER_TRAINED

    @staticmethod
    def can(experiment: Experiment) -> bool:
        """Whether there is something to turn between known ends."""
        cls = methods.lookup(experiment.method)
        knob, sweep = cls.traits.knob, cls.sweep
        if knob is None or sweep is None:
            return False
        if sweep.retrains:
            return sweep.option == knob.option and not knob.after_training
        return knob.after_training or bool(sweep.values)

    def after(self, experiment: Experiment, record: Record) -> list[Experiment]:
        """The trial to go on with when `experiment`, one of these or of the others, has ended; none at the end."""
        key = experiment.config().hash
        self._waiting.discard(key)
        if record["status"] != "ok":
            return []  # an unfinished search is better than one round a hole
        metrics = record["metrics"]
        cost = next(iter(metrics["splits"].values()))["cost"]["padding"]["none"]
        self._known[key] = Point(speedup=cost["speedup"], score=metrics["score"])
        if key in self._pressures:
            self._points[self._pressures[key]] = self._known[key]
        if not self._sweep.retrains and experiment.turned is None:
            self._options = metrics["options_after_training"]
        return [] if self._waiting else self._next()

    def _next(self) -> list[Experiment]:
        for number, target in enumerate(self.targets, 1):
            while not any(point.distance(target) <= NEAR for point in self._known.values()):
                pressure = next_pressure(self._points, target, start=self._start, stop=NEAR)
                if pressure is None or len(self._points) > number * self.trials:
                    break
                trial = self._at(pressure)
                key = trial.config().hash
                if key not in self._known:
                    self._pressures[key] = pressure
                    return [trial]
                self._points[pressure] = self._known[key]  # two pressures are one setting of a knob with steps
        return []

    def _at(self, pressure: float) -> Experiment:
        if not self._sweep.retrains:
            turned = _of_six_digits(self._pressed(pressure))
            return replace(self.own, turned=turned, note=setting_text(self._sweep.option, turned))
        value = self._knob.at(pressure)
        changed = self._sweep_options(value / self._options[self._knob.option] if self._sweep.relative else value)
        return replace(self.own, options=dict(self.own.options) | changed, note=setting_text(self._knob.option, value))

    def _pressed(self, pressure: float) -> Any:
        """The setting of the sweep at a pressure: as the method presses its knob, else between the sweep's ends."""
        if self._knob.after_training:
            self._reducer.press(pressure)
            return getattr(self._reducer.options, self._sweep.option)
        least, most = self._sweep.values[0], self._sweep.values[-1]
        return float(least + (most - least) * pressure)

    def _sweep_options(self, value: float) -> dict[str, object]:
        return methods.lookup(self.own.method).sweep_options(value, self._options, layers_of(self.own.model))

    @functools.cached_property
    def _reducer(self) -> TokenReducer:
        """One that can be pressed; its weights do not matter."""
        return methods.create(self.own.method, load_model(self.own.model, self.own.task), **self._options)


def _of_six_digits(value: Any) -> Any:
    """As `setting_text` prints it; of entropies near the greatest one, four tell too little apart."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
