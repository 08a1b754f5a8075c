"""`python -m benchmarks.pareto`: sweeps train what is missing, score again where that is enough, and reuse records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import methods
from benchmarks import glue, pareto, pareto_forecast
from benchmarks.cli import open_session, parser, run_command
from benchmarks.comparable import Comparison, read_comparisons
from benchmarks.experiments import Experiment
from benchmarks.pareto_rows import UNPADDED, hypervolumes, pareto_rows, reported_rows
from benchmarks.pareto_runs import planned, setting_text, spread
from benchmarks.pareto_search import SpeedSearch
from benchmarks.speed_search import NEAR
from benchmarks.tasks import TASKS
from benchmarks.train import Compute
from tests.small_world import write_model, write_sentences
from tests.written_records import write_record

SWEPT = ("transkimmer", "deebert", "ltp", "random")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished sweep after a finished `glue`; folder, arguments, and what `glue` had written."""
    root = tmp_path_factory.mktemp("pareto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data", rows=48)
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
        arguments += ["--results", str(root / "results"), "--device", "cpu", "--quiet", "--jobs", "1"]
        assert run_command(glue.main, [*arguments, "--methods", "transkimmer"]) == 0
        before = {path: path.stat().st_mtime_ns for path in records(root)}
        arguments += ["--points", "3", "--methods", *SWEPT]
        assert run_command(pareto.main, arguments) == 0
        yield root, arguments, before


def records(root: Path) -> dict[Path, dict]:
    return {path: json.loads(path.read_text()) for path in sorted((root / "results").rglob("runs/**/*.json"))}


def table(root: Path, name: str = "pareto-mood.csv") -> pd.DataFrame:
    return pd.read_csv(next((root / "results").rglob(name)), keep_default_na=False)


def test_trained_settings_have_a_training_each_and_others_one_for_all(world):
    found = [(record["kind"], record["config"]["method"]) for record in records(world[0]).values()]
    assert found.count(("finetune", "transkimmer")) == 3 and found.count(("evaluate", "transkimmer")) == 0
    assert found.count(("finetune", "random")) == 3
    for name in ("deebert", "ltp"):
        assert found.count(("finetune", name)) == 1 and found.count(("evaluate", name)) == 5


def test_what_another_command_trained_is_reused(world):
    after = {path: path.stat().st_mtime_ns for path in records(world[0])}
    assert world[2] and all(after[path] == time for path, time in world[2].items())


def test_a_model_scored_again_names_its_training_and_setting(world):
    by_hash = {record["config_hash"]: record for record in records(world[0]).values()}
    again = [record for record in by_hash.values() if record["kind"] == "evaluate"]
    for record in again:
        extra, own = record["config"]["extra"], by_hash[record["config"]["extra"]["trained"]]
        assert own["kind"] == "finetune" and own["config"]["method"] == record["config"]["method"]
        assert extra["swept"] == methods.lookup(own["config"]["method"]).sweep.option
        assert "training" not in record["metrics"]
    deebert = [record for record in again if record["config"]["method"] == "deebert"]
    assert {r["metrics"]["options"]["threshold"] for r in deebert} == {r["config"]["extra"]["setting"] for r in deebert}


def test_more_pressure_on_the_same_model_computes_less(world):
    frame = table(world[0])
    for name in ("deebert", "ltp"):
        mine = frame[(frame["method"] == name) & (frame["padding"] == "none") & (frame["setting"] != "recipe")]
        speeds = mine.assign(value=mine["setting"].str.split().str[-1].astype(float)).sort_values("value")["speedup"]
        assert len(speeds) == 5 and (np.diff(speeds) >= -1e-9).all()
        assert name == "deebert" or speeds.iloc[-1] > speeds.iloc[0]  # hardly trained off-ramps are never sure


def test_the_table_has_the_records_scores_and_speeds_in_every_padding(world):
    by_hash = {record["config_hash"]: record for record in records(world[0]).values()}
    frame = table(world[0])
    assert set(frame["padding"]) == {"none", "batch", "sequence"} and set(frame["method"]) == {"dense", *SWEPT}
    for row in frame[~frame["method"].isin(["dense"])].to_dict("records"):
        metrics = by_hash[row["records"]]["metrics"]
        speed = metrics["splits"]["validation"]["cost"]["padding"][row["padding"]]["speedup"]
        assert row["score"] == pytest.approx(100 * metrics["score"]) and row["speedup"] == pytest.approx(
            speed, rel=1e-4
        )
        assert float(row["score_low"]) <= row["score"] <= float(row["score_high"]) and row["interval_from"] == "texts"


def test_a_second_call_trains_nothing_and_writes_the_same(world, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    before, text = {path: path.stat().st_mtime_ns for path in records(world[0])}, table(world[0]).to_csv()
    assert run_command(pareto.main, world[1]) == 0
    assert {path: path.stat().st_mtime_ns for path in records(world[0])} == before
    assert table(world[0]).to_csv() == text


def test_drawing_from_records_gives_the_same_table(world, tmp_path):
    kept = next((world[0] / "results").rglob("pareto-mood.csv"))
    results = kept.parent.parent
    text = kept.read_bytes()
    assert run_command(pareto.main, ["--from-records", "--results", str(results), "--quiet"]) == 0
    assert kept.read_bytes() == text
    assert {path.suffix for path in (results / "figures").glob("pareto-mood.*")} == {".svg", ".png", ".pdf"}


def test_a_dry_run_says_how_many_runs_and_how_long(world, capsys, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    before = set(records(world[0]))
    assert run_command(pareto.main, [*world[1], "--dry-run", "--seeds", "7"]) == 0
    said = capsys.readouterr().out
    assert "runs to train (0 are there already)" in said and "about" in said and "Transkimmer, skim_weight" in said
    assert set(records(world[0])) == before


def test_a_budget_leaves_whole_rounds_out_and_says_so(world, capsys, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    arguments = [*world[1][: -len(SWEPT)], "transkimmer", "--seeds", "8", "--budget", "0.0001"]
    assert run_command(pareto.main, arguments) == 0
    assert "runs left out" in capsys.readouterr().out
    made = [
        r for r in records(world[0]).values() if r["config"]["seed"] == 8 and r["config"]["method"] == "transkimmer"
    ]
    assert len(made) == 1


def test_a_budget_ends_a_search(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    arguments = [*bare(world[1])[: -len(SWEPT)], "transkimmer", "--results", str(tmp_path / "results")]
    arguments += ["--speedups", "1.5", "--points", "1", "--budget", "0.0001"]
    assert run_command(pareto.main, arguments) == 0
    assert "1 runs left out" in capsys.readouterr().out
    assert [r["config"]["method"] for r in records(tmp_path).values()].count("transkimmer") == 1


@pytest.mark.parametrize("name", ["transkimmer", "power_bert", "lot", "top", "tr_bert"])
def test_a_search_comes_near_its_speedups_by_few_trainings(world, monkeypatch, name):
    """Made-up speed-ups, from 1 without pressure to 5 at the end of the knob, steeper and steeper."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    flags = [*world[1][: -len(SWEPT)], name]
    session = open_session(parser(pareto.SUITE).parse_args(bare(flags)), pareto.SUITE)
    own = planned(session, 1)[-1]
    knob, search, asked, found = methods.lookup(name).traits.knob, SpeedSearch(own, (1.5, 3.0), 4), [own], []
    while asked:
        (experiment,) = asked
        found.append(5 ** knob.pressure(experiment.config().options[knob.option]))
        asked = told(search, experiment, found[-1])
        assert not asked or asked[0].config().hash != experiment.config().hash
    assert all(min(abs(speedup / target - 1) for speedup in found) <= NEAR for target in (1.5, 3.0))
    assert len(found) <= 6
    assert search.after(own, {"status": "failed"}) == []


def told(search: SpeedSearch, experiment: Experiment, speedup: float, **more: object) -> list[Experiment]:
    """What the search asks for when the experiment has that speed-up."""
    splits = {"validation": {"cost": {"padding": {"none": {"speedup": speedup}}}}}
    return search.after(experiment, {"status": "ok", "metrics": {"score": 0.5, "splits": splits, **more}})


@pytest.mark.parametrize(
    ("jump", "trials"), [((0.65, 0.68), 2), ((0.6928, 0.6929), 3)], ids=["know little", "know nothing"]
)
def test_a_knob_that_needs_no_training_is_turned_where_the_usual_settings_jump(world, monkeypatch, jump, trials):
    """Off-ramps that know little or nothing: no text leaves below a threshold, and all a little above it."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    session = open_session(parser(pareto.SUITE).parse_args(bare([*world[1][: -len(SWEPT)], "deebert"])), pareto.SUITE)
    own = planned(session, 1)[-1]
    others = [replace(own, turned=value) for value in (0.2, 0.693)]
    search = SpeedSearch(own, (1.5, 2.0), trials, others)
    assert told(search, own, 1.1, options_after_training={"threshold": 0.55}) == []
    assert told(search, others[0], 1.1) == []
    asked, found = told(search, others[1], 5.0), []
    while asked:
        (experiment,) = asked
        assert experiment.config().extra["swept"] == "threshold"
        found.append(float(np.interp(experiment.turned, jump, [1.1, 5.0])))
        asked = told(search, experiment, found[-1])
    assert all(min(abs(speedup / target - 1) for speedup in found) <= NEAR for target in (1.5, 2.0))
    assert len(found) <= 10 * trials


def test_a_sweep_without_a_knob_of_its_own_is_searched_between_its_ends(world, monkeypatch):
    """LTP is trained with a weight, but swept by its thresholds; from a factor of 2 to 3 the speed-up jumps."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    session = open_session(parser(pareto.SUITE).parse_args(bare([*world[1][: -len(SWEPT)], "ltp"])), pareto.SUITE)
    own = planned(session, 1)[-1]
    others = [replace(own, turned=value) for value in (2.0, 3.0)]
    search = SpeedSearch(own, (2.0,), 2, others)
    assert told(search, own, 1.2, options_after_training={}) == told(search, others[0], 1.5) == []
    asked, found = told(search, others[1], 5.0), []
    while asked:
        found.append(float(np.interp(asked[0].turned, [2.0, 2.5, 3.0], [1.5, 1.8, 5.0])))
        asked = told(search, asked[0], found[-1])
    assert min(abs(speedup / 2.0 - 1) for speedup in found) <= NEAR and len(found) <= 10


def test_no_search_where_a_usual_setting_is_near_or_nothing_lies_between(world, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    session = open_session(parser(pareto.SUITE).parse_args(bare([*world[1][: -len(SWEPT)], "pabee"])), pareto.SUITE)
    own = planned(session, 1)[-1]
    speeds = {3: 1.0, 2: 1.1, 1: 3.0}  # of every patience with three layers
    others = [replace(own, turned=value) for value in (2, 1)]
    search = SpeedSearch(own, (1.15,), 2, others)
    assert told(search, own, 1.0, options_after_training={"patience": 3}) == []
    assert told(search, others[0], 1.1) == told(search, others[1], 3.0) == []
    stepped = SpeedSearch(own, (2.0,), 2, others)
    assert told(stepped, own, 1.0, options_after_training={"patience": 3}) == []
    assert told(stepped, others[0], 1.1) == []
    asked, turned = told(stepped, others[1], 3.0), []
    while asked:
        turned.append(asked[0].turned)
        asked = told(stepped, asked[0], speeds[asked[0].turned])
    assert len(turned) <= 1 and not {1, 2} & set(turned)  # a setting that is known is not scored again


def bare(arguments: list[str]) -> list[str]:
    """Without the flags of a sweep alone."""
    place = arguments.index("--points")
    return arguments[:place] + arguments[place + 2 :]


def test_speedups_are_trained_for_and_found_again(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[0] / "home"))
    arguments = [*bare(world[1])[: -len(SWEPT)], "transkimmer", "ltp", "--results", str(tmp_path / "results")]
    arguments += ["--speedups", "1.5", "--points", "1"]
    assert run_command(pareto.main, arguments) == 0
    assert "then up to 1 trainings of each method towards each of 1.5x" in capsys.readouterr().out
    made = records(tmp_path)
    kinds = sorted((record["kind"], record["config"]["method"]) for record in made.values())
    assert kinds.count(("finetune", "transkimmer")) == 2 and kinds.count(("finetune", "ltp")) == 1
    assert {"pareto-mood.csv"} <= {path.name for path in (tmp_path / "results").rglob("*.csv")}
    assert run_command(pareto.main, arguments) == 0
    assert records(tmp_path) == made


def test_the_embedded_profile_names_its_stand_in(capsys):
    assert run_command(pareto.main, ["--profile", "embedded", "--dataset", "imdb", "--dry-run"]) == 2
    assert "neither IMDB nor a stand-in" in capsys.readouterr().err


@pytest.mark.parametrize("name", methods.available())
@pytest.mark.parametrize("recipe", ["paper", "short"])
def test_every_method_can_be_swept_or_has_one_point(name, recipe):
    cls, task = methods.lookup(name), TASKS["mrpc"]
    if cls.sweep is None:
        assert name == "dense"
        return
    own = vars(cls.options_class(**cls.task_options(task, recipe)))
    assert not cls.sweep.retrains or len(cls.sweep.values) >= 3
    for value in cls.sweep.values if cls.sweep.retrains else ():
        changed = cls.sweep_options(value, own, 12)
        assert cls.sweep.option in changed and cls.options_class(**(own | changed)) is not None


def test_settings_of_trained_models_go_from_light_to_strong_pressure():
    search = {"front": [{"configuration": [9, 3], "macs": 5}, {"configuration": [12, 8], "macs": 9}]}
    metrics = {"training": [{"stage": "search", "search": search}], "splits": {"v": {"cost": {"exits": [0] * 6}}}}
    found = {name: methods.lookup(name).sweep_values(TASKS["mrpc"], metrics) for name in ("lat", "pabee", "deebert")}
    assert found["lat"] == ((12, 8), (9, 3)) and found["pabee"] == (4, 3, 2, 1)
    assert 0 < found["deebert"][0] < found["deebert"][-1] < np.log(2)


# Points, from made-up records


@pytest.fixture
def comparison(tmp_path) -> Comparison:
    write_record(tmp_path, "dense", score=0.90, speedup=1.0, task="sst2")
    write_record(tmp_path, "lat", score=0.88, speedup=2.0, task="sst2")
    write_record(tmp_path, "transkimmer", score=0.86, speedup=1.8, task="sst2")
    write_record(tmp_path, "transkimmer", score=0.84, speedup=3.0, task="sst2", options={"skim_weight": 2.0})
    write_record(tmp_path, "transkimmer", score=0.1, speedup=9.0, task="sst2", options={"predictor_norm": False})
    return read_comparisons(tmp_path)[0]


def test_fronts_hold_what_nothing_beats(comparison):
    rows = {(r["title"], r["setting"]): r for r in pareto_rows(comparison, ["none"])}
    assert {key for key, row in rows.items() if row["on_front"]} == {
        ("Dense", "recipe"),
        ("LAT", "recipe"),
        ("Transkimmer", "skim_weight 2"),
    }
    assert rows["Transkimmer", "recipe"]["on_own_front"] and not rows["Transkimmer", "recipe"]["on_front"]


def test_a_run_with_another_option_than_the_swept_one_is_no_point(comparison):
    assert all(row["score"] > 50 for row in pareto_rows(comparison, ["none"]))


def test_random_runs_that_follow_others_are_points_by_their_schedules(tmp_path):
    for share in (0.9, 0.5):
        write_record(tmp_path, "random", speedup=1 / share, options={"keep_schedule": (share, share, share)})
    rows = pareto_rows(read_comparisons(tmp_path)[0], ["none"])
    assert [row["setting"] for row in rows] == ["keep_schedule 0.9-0.9-0.9", "keep_schedule 0.5-0.5-0.5"]


def test_padded_settings_have_what_unpadding_alone_gives(comparison):
    rows = pareto_rows(comparison, ["none", "sequence"])
    dense = {(row["padding"], row["title"]): row["speedup"] for row in rows if row["method"] == "dense"}
    assert dense == {("none", "Dense"): 1.0, ("sequence", "Dense"): 1.0, ("sequence", UNPADDED): 3.0}


def test_hypervolume_is_the_area_above_ten_points_lost(comparison):
    found = {row["method"]: row for row in hypervolumes(comparison, ["none"])}
    assert found["lat"]["hypervolume"] == pytest.approx((88 - 80) * (2 - 1))
    assert found["transkimmer"]["hypervolume"] == pytest.approx((86 - 80) * 0.8 + (84 - 80) * 1.2)
    assert found["lat"]["hypervolume_low"] < 8 < found["lat"]["hypervolume_high"] and "dense" not in found


def test_seeds_are_one_point_whose_interval_holds_their_spread(tmp_path):
    for seed, score in ((1, 0.7), (2, 0.9)):
        write_record(tmp_path, "lat", score=score, speedup=2.0 + seed, seed=seed)
    (row,) = pareto_rows(read_comparisons(tmp_path)[0], ["none"])
    assert row["seeds"] == 2 and row["score"] == pytest.approx(80) and row["interval_from"].endswith("seeds")
    assert row["score_low"] < 70 and row["score_high"] > 88
    assert (row["speedup_low"], row["speedup"], row["speedup_high"]) == (3.0, 3.5, 4.0)


def test_printed_points_are_those_of_the_paper_s_own_convention(tmp_path):
    write_record(tmp_path, "lat", task="mrpc", metric="f1")
    rows = reported_rows(read_comparisons(tmp_path)[0], ["none", "sequence"])
    assert {"method": "transkimmer", "speedup": 3.13, "score": 88.5, "padding": "none"} in rows
    assert {row["method"] for row in rows} == {"transkimmer"}  # the others' speed-ups are of time


class Lazy:
    """A reducer on a device that works on after its call: only who reads the loss waits for it."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __call__(self, **batch: object) -> SimpleNamespace:
        self.events.append("begun")
        return SimpleNamespace(loss=self)

    def __float__(self) -> float:
        self.events.append("done")
        return 0.5

    def eval(self) -> Lazy:
        return self

    def to(self, device: str) -> None:
        pass


def test_the_clock_of_a_forecast_starts_when_the_first_pass_is_over(monkeypatch):
    events: list[str] = []
    feature = {"index": 0, "input_ids": [2, 3], "label": 0}
    monkeypatch.setattr(pareto_forecast, "time", SimpleNamespace(perf_counter=lambda: len(events)))
    monkeypatch.setattr("methods.create", lambda *_: Lazy(events))
    monkeypatch.setattr("benchmarks.models.load_model", lambda *_: None)
    monkeypatch.setattr("benchmarks.experiment_data.evaluation_features", lambda *_: [feature] * 2)
    monkeypatch.setattr("benchmarks.experiment_data.padding_id", lambda *_: 0)
    task, setting = SimpleNamespace(eval_splits=("validation",)), SimpleNamespace(compute=Compute())
    seconds = pareto_forecast.row_seconds(SimpleNamespace(task=task, setting=setting, model=None), 1)
    assert events == ["begun", "done"] * 2 and seconds == 2


@pytest.mark.parametrize(
    ("items", "count", "kept"),
    [("abc", 5, "abc"), ("abcde", 3, "ace"), ("abcde", 2, "ae"), ("abcde", 1, "c"), ("abcde", 0, ""), ("", 3, "")],
)
def test_spread_keeps_the_ends(items, count, kept):
    assert spread(list(items), count) == list(kept)


def test_settings_are_said_in_words():
    assert setting_text("threshold", 0.3) == "threshold 0.3"
    assert setting_text("length_configuration", (64, 32, 16)) == "length_configuration 64-32-16"
