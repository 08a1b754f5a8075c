"""Sweeps to wished-for speed-ups: what a method's training turns is searched for, one training after another.

Chosen is by speed-up alone; no score is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import methods
from benchmarks.experiments import Experiment
from benchmarks.pareto_runs import layers_of, setting_text
from benchmarks.runs import Record
from benchmarks.speed_search import NEAR, Point, next_pressure
from methods.config import Knob, Sweep


@dataclass
class SpeedSearch:
    """The trainings of one method on one task from one seed that are to reach some speed-ups without padding.

    Attributes:
        own: the run at the method's own setting, the first of them. targets: the speed-ups. trials: trainings that may
            follow for each of them.
    """

    own: Experiment
    targets: Sequence[float]
    trials: int
    _pressures: dict[str, float] = field(default_factory=dict)
    _points: dict[float, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cls = methods.lookup(self.own.method)
        assert cls.traits.knob is not None and cls.sweep is not None
        self._knob: Knob = cls.traits.knob
        self._sweep: Sweep = cls.sweep
        self._options = vars(cls.options_class(**self.own.options))
        self._pressures[self.own.config().hash] = self._knob.pressure(self._options[self._knob.option])

    @staticmethod
    def can(experiment: Experiment) -> bool:
        """Whether a training turns what the method's sweep turns, between known ends."""
        cls = methods.lookup(experiment.method)
        knob, sweep = cls.traits.knob, cls.sweep
        return bool(knob and sweep and sweep.retrains and sweep.option == knob.option)

    def after(self, experiment: Experiment, record: Record) -> list[Experiment]:
        """The training to go on with when that of `experiment`, one of these, has ended; none at the end."""
        if record["status"] != "ok":
            return []
        metrics = record["metrics"]
        cost = next(iter(metrics["splits"].values()))["cost"]["padding"]["none"]
        place = self._pressures[experiment.config().hash]
        self._points[place] = Point(speedup=cost["speedup"], score=metrics["score"])
        for number, target in enumerate(self.targets, 1):
            pressure = next_pressure(self._points, target, start=place, stop=NEAR)
            if pressure is not None and len(self._points) <= number * self.trials:
                return [self._at(pressure)]
        return []

    def _at(self, pressure: float) -> Experiment:
        value = self._knob.at(pressure)
        turned = value / self._options[self._knob.option] if self._sweep.relative else value
        changed = self._sweep_options(turned)
        found = replace(self.own, options=dict(self.own.options) | changed, note=setting_text(self._knob.option, value))
        self._pressures[found.config().hash] = pressure
        return found

    def _sweep_options(self, value: float) -> dict[str, object]:
        return methods.lookup(self.own.method).sweep_options(value, self._options, layers_of(self.own.model))
