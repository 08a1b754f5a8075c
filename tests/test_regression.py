"""The gate: a slow-down fails it and noise does not, counts are exact, baselines belong to a device class."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import regression
from benchmarks.cli import run_command
from benchmarks.regression import Case, judge, measure
from benchmarks.regression_cases import cases
from benchmarks.timing import interleave

COUNTS = {"macs": 7}


def case(**changes) -> Case:
    return Case(**({"name": "a", "run": int, "reference": int, "counts": COUNTS} | changes))


def slowed(run, factor: float):
    """The same work, but longer by a factor of its own time."""

    def longer() -> None:
        start = time.process_time()
        run()
        end = start + factor * (time.process_time() - start)
        while time.process_time() < end:
            pass

    return longer


def ratios(*values: float):
    """A measurement that gives these values, one after the other."""
    left = list(values)
    return lambda case: left.pop(0)


def test_a_slowdown_of_a_fifth_fails_the_gate():
    """Of a real case: all measured side by side, so that what else the machine does hits all."""
    torch.set_num_threads(1)
    real = next(one for one in cases() if one.name == "transkimmer")
    with torch.inference_mode():
        runs = {"plain": real.run, "slow": slowed(real.run, 1.2), "again": real.run, "reference": real.reference}
        samples = interleave(runs, rounds=60, warm_up=3)
    best = {name: min(samples[name].cpu_s) / min(samples["reference"].cpu_s) for name in ("plain", "slow", "again")}
    baseline = best["plain"]
    assert judge(real, baseline, real.counts, ratio=lambda _: best["again"]).problem == ""
    assert "slower by" in judge(real, baseline, real.counts, ratio=lambda _: best["slow"]).problem


@pytest.mark.parametrize(("measured", "problem"), [(1.0, ""), (0.5, ""), (1.099, ""), (1.2, "slower by 20 %")])
def test_more_than_a_tenth_is_a_loss(measured, problem):
    assert judge(case(), 1.0, COUNTS, ratio=lambda _: measured).problem == problem


def test_a_loss_is_measured_again_before_it_fails():
    verdict = judge(case(), 1.0, COUNTS, ratio=ratios(1.5, 1.3, 1.05))
    assert (verdict.problem, verdict.ratio) == ("", 1.05)
    verdict = judge(case(), 1.0, COUNTS, ratio=ratios(1.5, 1.3, 1.4))
    assert verdict.problem == "slower by 30 %"


def test_counts_are_exact():
    verdict = judge(case(), 1.0, {"macs": 8}, ratio=lambda _: 1.0)
    assert verdict.problem == "counts changed: macs"
    assert judge(case(), None, None, ratio=lambda _: 9.0).problem == ""


def test_ratios_are_of_processor_time():
    """The reference takes a third of the time of the case."""

    def spin(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    ratio = measure(case(run=lambda: spin(0.03), reference=lambda: spin(0.01)), rounds=5)
    assert ratio == pytest.approx(3.0, rel=0.1)


def test_the_command_stores_a_baseline_and_holds_to_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(regression, "measure", lambda case: 1.0)
    monkeypatch.setattr(judge, "__kwdefaults__", judge.__kwdefaults__ | {"ratio": lambda case: 1.0})
    folder = ["--folder", str(tmp_path), "--cases", "segment_rank", "transkimmer"]
    assert run_command(regression.main, folder) == 0
    assert "no baseline" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert run_command(regression.main, [*folder, "--update"]) == 0
    stored = json.loads((tmp_path / f"{regression.device_class()}.json").read_text())
    assert stored["ratios"] == {"segment_rank": 1.0, "transkimmer": 1.0} and len(stored["history"]) == 1
    assert run_command(regression.main, folder) == 0
    monkeypatch.setattr(judge, "__kwdefaults__", judge.__kwdefaults__ | {"ratio": lambda case: 1.2})
    assert run_command(regression.main, folder) == 1
    said = capsys.readouterr()
    assert "transkimmer: slower by 20 %" in said.err and stored["history"][0]["at"] in said.out


@pytest.mark.parametrize("spoilt", ["counts.json", "device"])
def test_an_unreadable_baseline_is_one_sentence(tmp_path, capsys, spoilt):
    name = spoilt if spoilt != "device" else f"{regression.device_class()}.json"
    (tmp_path / name).write_text("{")
    assert run_command(regression.main, ["--folder", str(tmp_path), "--cases", "cumulative"]) == 2
    assert name in capsys.readouterr().err


def test_an_unknown_case_is_named(capsys):
    assert run_command(regression.main, ["--cases", "transkimer"]) == 2
    assert "transkimer" in capsys.readouterr().err
