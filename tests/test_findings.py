"""Findings: differences with intervals, their correction, and verdicts that follow from them alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import methods
from benchmarks import answers, claims, findings
from benchmarks.answers import ABSENT, FAILS, HOLDS, OPEN, UNTESTED
from benchmarks.comparable import read_comparisons
from benchmarks.compared import Measured, holm, measured, paired
from benchmarks.equal_speed import SPEEDS, AtSpeeds, Operating, Run, at_speeds, difference
from benchmarks.errors import UserError
from benchmarks.experiments import DenseTraining
from tests.written_records import write_record

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws does not depend on those before it."""
    RNG.bit_generator.state = START


def one(method, score, speedup, *, wide=0.5, task="MRPC", **more):
    """A method on a task; its drawn scores are `wide` around its score."""
    drawn = score + wide * RNG.standard_normal(1_000)
    given = {"table": "glue-local", "task": task, "split": "mrpc/validation", "metric": "f1", "model": "tiny"}
    given |= {"title": method, "shares": (1.0, 0.5), "records": ("abc",), "drawn": drawn, "texts": 400}
    given |= {"scores": (score,)}
    return Measured(**given, method=method, score=score, speedup=speedup, **more)


def test_holm_by_hand():
    """0.01 <= 0.05 / 4, 0.013 <= 0.05 / 3, 0.03 > 0.05 / 2: two are rejected, though 0.04 alone would be at 0.05."""
    assert holm([0.03, 0.01, 0.04, 0.013]) == 0.013
    assert holm([0.02, 0.03, 0.04]) == -1


def test_a_difference_and_its_interval():
    drawn = RNG.normal(2.0, 1.0, 20_000)
    found = paired([2.0], [0.0], drawn)
    assert (found.low, found.high) == pytest.approx((0.04, 3.96), abs=0.1)
    assert found.p == pytest.approx(0.0455, abs=0.003)  # two sigma
    assert paired([80.0], [80.0], np.zeros(10)).p == 1


def test_what_one_seed_contradicts_is_not_decided():
    """A mean loss of 2 points that the texts are sure of."""
    drawn = RNG.normal(-2.0, 0.2, 2_000)
    agreeing, torn = (paired(mine, [84.0, 84.0], drawn) for mine in ([82.5, 81.5], [79.0, 85.0]))
    assert agreeing.points == torn.points == -2.0 and agreeing.p == torn.p < 1e-9
    assert agreeing.judged(0.01).decided_sign == -1 and torn.judged(0.01).decided_sign == 0
    assert not agreeing.judged(0.0).decided
    assert torn.text.endswith("(seeds -5.0, +1.0)") and "seeds" not in paired([82.0], [84.0], drawn).text


@pytest.mark.parametrize(("loss", "verdict"), [(0.0, HOLDS), (-1.0, OPEN), (-4.0, FAILS)])
def test_a_loss_is_judged_by_its_interval(loss, verdict):
    difference = paired([loss], [0.0], RNG.normal(loss, 0.4, 2_000))
    own = one("transkimmer", 85.0 + loss, 1.7, against_dense=difference)
    assert claims.small_loss([own]).verdict == verdict
    assert claims.free_on_mrpc()([own]).verdict == verdict


def test_a_loss_at_a_much_larger_speedup_does_not_decide_about_the_smaller_one():
    loss = paired([-7.0], [0.0], RNG.normal(-7, 0.4, 2_000))
    some = [one("transkimmer", 78.0, speed, against_dense=loss) for speed in (1.7, 2.5)]
    assert [claims.free_on_mrpc()([own]).verdict for own in some] == [FAILS, OPEN]


def test_what_is_too_slow_is_not_free():
    own = one("transkimmer", 85.0, 1.2, against_dense=paired([0.0], [0.0], RNG.normal(0, 0.1, 2_000)))
    assert claims.free_on_mrpc()([own]).verdict == FAILS


@pytest.mark.parametrize(
    ("score", "speedup", "verdict"),
    [
        (80.0, 1.8, HOLDS),
        (80.0, 3.0, OPEN),  # worse, but much faster
        (84.9, 1.8, OPEN),
        (90.0, 1.8, FAILS),
    ],
)
def test_methods_are_compared_where_one_costs_no_more(score, speedup, verdict):
    found = [one("transkimmer", 85.0, 1.7), one("ltp", score, speedup), one("ltp", 0.0, 9.0, task="another task")]
    assert claims.better_than("ltp")(found).verdict == verdict


def near(method, score, speedup, *, task="MRPC", wide=0.5, constant=False):
    """A method at about 1.5x; see `one`."""
    drawn = score + wide * RNG.standard_normal(1_000)
    loss = paired([score], [85.0], drawn - 85.0)
    setting = Operating("weight 3", (Run(42, score, drawn, constant),), speedup, loss, None, None)
    return AtSpeeds(task, method, method, (setting, None), (setting,))


@pytest.mark.parametrize(("score", "verdict"), [(80.0, HOLDS), (84.9, OPEN), (90.0, FAILS)])
def test_methods_are_compared_at_the_same_speed_too(score, verdict):
    there = [near("transkimmer", 85.0, 1.45), near("ltp", score, 1.55), near("ltp", 0.0, 1.5, task="another task")]
    found = claims.better_than("ltp", near=there)([])
    header, (where, own, cell) = found.table
    assert found.verdict == verdict and header == ("Task", "Transkimmer at", "ltp")
    assert (where, own) == ("MRPC, about 1.5x", "1.45x") and cell.endswith("at 1.55x")
    assert cell.startswith(f"{85 - score:+.1f} [") and ("*" in cell) == (verdict != OPEN)


def test_two_own_settings_are_compared_once():
    measured_at = (near("transkimmer", 85.0, 1.5), near("ltp", 80.0, 1.5))
    own, rival = (replace(it.settings[0], setting="recipe") for it in measured_at)
    there = [AtSpeeds("MRPC", name, name, (it, None)) for name, it in (("transkimmer", own), ("ltp", rival))]
    found = [one("transkimmer", 85.0, 1.5), one("ltp", 80.0, 1.5)]
    assert len(claims.better_than("ltp", near=there)(found).table) == 2  # the header, and one pair


def test_one_of_many_comparisons_is_not_certain_by_itself():
    """Five points at a standard error of two: certain alone, not among thirty."""
    own, rival = one("transkimmer", 80.0, 1.7, wide=1.4), one("ltp", 85.0, 1.7, wide=1.4)
    equal = [one("ltp", 80.0, 1.7, wide=1.4) for _ in range(30)]
    assert claims.better_than("ltp")([own, rival]).verdict == FAILS
    assert claims.better_than("ltp")([own, rival, *equal]).verdict == OPEN


def test_free_is_judged_at_the_setting_nearest_to_that_speed():
    lost = paired([-7.0], [0.0], RNG.normal(-7, 0.4, 2_000))
    own = one("transkimmer", 78.0, 2.5, against_dense=lost)
    for score, verdict in ((85.0, HOLDS), (84.0, OPEN), (80.0, FAILS)):
        found = claims.free_on_mrpc([near("transkimmer", score, 1.45, wide=0.4)])([own])
        assert found.verdict == verdict and found.table[1][:3] == ("MRPC, weight 3", f"{score:.1f}", "1.45x")
        assert found.summary.startswith("on either side of 1.5x: ") and found.summary.endswith(" at 2.50x")
        assert " at 1.45x; " in found.summary


def test_all_settings_and_seeds_of_what_fell_below_random_are_shown():
    up, down = (paired([points], [0.0], RNG.normal(points, 0.2, 2_000)) for points in (3.0, -3.0))
    fell = one("lat", 80, 1.5, against_random=type(down)(down.points, down.low, down.high, down.p, True))
    rose = one("top", 85, 1.5, against_random=type(up)(up.points, up.low, up.high, up.p, True))
    two, low = (Run(42, 80.0), Run(43, 81.0)), (Run(42, 70.0),)
    every = (Operating("recipe", two, 1.5, None, None, None), Operating("a", low, 2.0, None, None, None))
    there = [AtSpeeds("MRPC", name, name, (None, None), every) for name in ("lat", "top")]
    page = findings.report([fell, rose], there, [], "command")
    assert "- MRPC, lat: recipe: 80.0 and 81.0 at 1.50x; a: 70.0 at 2.00x" in page and "MRPC, top: recipe" not in page
    assert "Nothing did." in findings.report([rose], there, [], "command")


def test_random_is_beaten_by_all_or_not():
    up, down = (paired([points], [0.0], RNG.normal(points, 0.2, 2_000)) for points in (3.0, -3.0))
    sure = [one("lat", 85, 2, against_random=type(d)(d.points, d.low, d.high, d.p, True)) for d in (up, down)]
    unsure = one("top", 85, 2, against_random=up)
    verdicts = [claims.beats_random(some).verdict for some in ([sure[0]], [sure[0], unsure], [unsure, sure[1]], [])]
    assert verdicts == [HOLDS, OPEN, FAILS, ABSENT]
    apart = [replace(sure[1], method=name) for name in ("deebert", "deformer")]
    assert claims.beats_random([sure[0], *apart]).verdict == HOLDS, "they choose no tokens"
    several = replace(sure[0], scores=(84.0, 86.0), task="RTE")
    summary = claims.beats_random([sure[0], unsure, several]).summary
    assert "certainly above in 2" in summary and "have to agree, above in 1 of 1, with one seed in 1 of 2" in summary


def test_encoders_are_compared_apart():
    """LTP is better than Transkimmer on each of two encoders, of which one scores lower."""
    up = replace(paired([3.0], [0.0], RNG.normal(3.0, 0.2, 2_000)), decided=True)
    found = [
        replace(one(method, score - less, 2.0, against_random=up), model=model)
        for model, less in (("small", 10.0), ("large", 0.0))
        for method, score in (("transkimmer", 80.0), ("ltp", 85.0))
    ]
    against = claims.better_than("ltp")(found)
    assert [row[0] for row in against.table[1:]] == ["MRPC, small", "MRPC, large"]
    assert all(row[2].startswith("-5.") or row[2].startswith("-4.9") for row in against.table[1:])
    assert claims.beats_random(found).table[1:] == (
        ("MRPC, small", "above", "above"),
        ("MRPC, large", "above", "above"),
    )


@pytest.mark.parametrize(
    ("speedups", "verdict"),
    [
        ((5, 4, 3, 2, 1), HOLDS),
        ((1, 2, 3, 4, 5), FAILS),
        ((5, 4, 3, 1, 2), OPEN),  # one swap: p = 0.083
        ((2, 1), OPEN),  # two tasks decide nothing
    ],
)
def test_whether_easier_tasks_skim_more_is_a_matter_of_ranks(speedups, verdict):
    tasks = [f"task {number}" for number in range(len(speedups))]
    found = [one("dense", 90 - 10 * place, 1.0, task=task) for place, task in enumerate(tasks)]
    found += [one("transkimmer", 50, speedup, task=task) for speedup, task in zip(speedups, tasks, strict=True)]
    assert claims.easier_skims_more(found).verdict == verdict
    assert claims.easier_skims_more(found[:1]).verdict == ABSENT


def test_a_headline_needs_its_factor_without_a_loss():
    good, bad = (paired([points], [0.0], RNG.normal(points, 0.1, 2_000)) for points in (0.0, -3.0))
    slow, fast, lost = (
        one("lot", 85, speedup, against_dense=loss) for speedup, loss in ((1.5, good), (26.0, good), (26.0, bad))
    )
    verdicts = [claims.headline("lot", 25.0)(some).verdict for some in ([slow], [fast], [lost], [slow, lost, fast])]
    assert verdicts == [UNTESTED, HOLDS, FAILS, HOLDS]


def test_a_headline_is_judged_by_every_setting():
    own = one("lot", 85, 1.5, against_dense=paired([0.0], [0.0], RNG.normal(0, 0.1, 2_000)))
    found = claims.headline("lot", 25.0, [near("lot", 80.0, 3.1)])([own])
    assert found.verdict == UNTESTED and "the fastest of 2 measured ones: 3.10x on MRPC, score 80.0" in found.summary
    assert claims.headline("lot", 25.0, [near("lot", 80.0, 30.0)])([own]).verdict == FAILS


def test_almost_everywhere_is_a_share_of_the_tasks_and_every_seed_counts():
    def losing(points, task, *seeds):
        loss = replace(paired([points], [0.0], RNG.normal(points, 0.1, 2_000)), by_seed=seeds)
        return one("transkimmer", 85.0 + points, 1.5, task=task, against_dense=loss)

    fine = [losing(0.0, f"task {number}") for number in range(3)]
    assert claims.small_loss([*fine, losing(-4.0, "hard")]).verdict == HOLDS
    assert claims.small_loss([*fine[:2], losing(-4.0, "hard")]).verdict == FAILS
    torn = losing(-2.0, "torn", -0.5, -0.6, -4.9)  # two of three seeds lose less than a point
    assert claims.small_loss([*fine[:2], torn]).verdict == OPEN


def test_layers_have_to_differ_more_between_tasks_than_between_seeds():
    def runs(task, *shares):
        seeds = tuple((1.0, share) for share in shares)
        mean = (1.0, float(np.mean(shares)))
        return replace(one("transkimmer", 85, 1.5, task=task), shares=mean, seed_shares=seeds)

    apart = [runs(f"task {number}", share, share + 0.01, share + 0.02) for number, share in enumerate((0.2, 0.5, 0.8))]
    alike = [runs(f"task {number}", 0.2 + number / 10, 0.9, 0.3) for number in range(3)]
    assert claims.layers_differ(apart).verdict == HOLDS and claims.layers_differ(alike).verdict == OPEN
    found = claims.layers_differ([runs("one seed", 0.1), runs("another", 0.9)])
    assert found.verdict == OPEN and "80 points" in found.summary and "no task has several seeds" in found.summary


def test_seeds_that_both_have_are_compared():
    drawn = RNG.normal(0, 0.2, 1_000)
    mine = [Run(42, 20.0, 20.0 + drawn)]
    others = [Run(seed, score, score + drawn) for seed, score in ((42, 10.0), (43, 19.0), (44, 16.0))]
    assert difference(mine, others).points == 10.0 and difference(others, mine).points == -10.0
    assert difference(others, others).by_seed == (0.0, 0.0, 0.0)
    assert difference(mine, others[1:]) is None and difference(mine, [Run(42, 10.0)]) is None


def test_a_setting_of_one_answer_is_no_rival_at_a_speed():
    there = [near("transkimmer", 85.0, 1.45), near("pabee", 50.0, 1.55, constant=True)]
    assert claims.better_than("pabee", near=there)([]) == answers.NOTHING


@pytest.mark.parametrize(("speed", "setting"), [(1.5, "recipe"), (2.0, "threshold 0.6")])
def test_of_each_method_the_setting_nearest_to_a_speed_is_shown(tmp_path, speed, setting):
    """Speed-ups 1.45 and 1.8 are within 15 % of 1.5 and 2; 1.2 is of neither, and random dropping at 3x near none."""
    texts = {"labels": "0101" * 10, "predicted": "0101" * 9 + "1010"}
    write_record(tmp_path, "dense", speedup=1.0, score=1.0, texts={"labels": "01" * 20, "predicted": "01" * 20})
    trained = write_record(tmp_path, "deebert", speedup=1.45, score=0.9, texts=texts)
    extra = trained["config"]["extra"] | {"trained": trained["config_hash"], "swept": "threshold"}
    for value, speedup in ((0.6, 1.8), (0.1, 1.2)):
        turned = {"kind": "evaluate", "extra": extra | {"setting": value}}
        write_record(tmp_path, "deebert", speedup=speedup, score=0.9, texts=texts, **turned)
    write_record(tmp_path, "random", speedup=1.9, score=0.7, options={"keep_schedule": (0.9, 0.6, 0.3)})
    _, found = at_speeds(read_comparisons(tmp_path))
    one = dict(zip(SPEEDS, found.settings, strict=True))[speed]
    assert one is not None and one.loss is not None
    assert (found.task, found.method, found.title, one.setting) == ("mood", "deebert", "DeeBERT", setting)
    assert one.random_score == (70.0 if speed == 2.0 else None)
    assert one.loss.points == pytest.approx(-10.0) and one.loss.low < -10.0 < one.loss.high < 0.0
    assert at_speeds([]) == []


def test_speeds_are_those_that_the_method_s_paper_counts_and_the_title_says_so(tmp_path):
    account = methods.lookup("deformer").traits.published_cost
    cost = {"texts": 40, "padding": {"none": {"speedup": 1.01, "extra": {account: {"speedup": 1.9}}}}}
    splits = {"validation": {"scores": {"accuracy": 0.8}, "cost": cost, "retention": None}}
    write_record(tmp_path, "dense", speedup=1.0)
    write_record(tmp_path, "deformer", metrics={"splits": splits})
    _, found = at_speeds(read_comparisons(tmp_path))
    slow, fast = found.settings
    assert found.title == f"DeFormer, {account}" and slow is None
    assert fast.speedup == 1.9 and fast.scores == (80.0,)


def test_a_loss_is_against_the_dense_model_of_the_same_seeds(tmp_path):
    labels = "01" * 20
    for seed, predicted in ((42, labels), (43, labels[:24] + labels[24:][::-1])):
        score = sum(map(str.__eq__, labels, predicted)) / 40
        texts = {"labels": labels, "predicted": predicted}
        write_record(tmp_path, "dense", speedup=1.0, score=score, texts=texts, seed=seed)
    texts = {"labels": labels, "predicted": labels[:36] + "1010"}
    write_record(tmp_path, "transkimmer", speedup=1.5, score=0.9, texts=texts, seed=42)
    dense, found = at_speeds(read_comparisons(tmp_path))
    assert found.settings[0].loss.points == pytest.approx(-10.0)
    assert findings.report([], [dense, found], [], "command").count("mood 100.0, 60.0.") == 1


def test_each_split_is_judged_by_its_own_texts(tmp_path):
    """As MNLI's two: on one the method loses half of what it had, on the other nothing."""
    labels, half = "01" * 40, "01" * 20 + "10" * 20
    rows = []
    for method, said in (("dense", (labels, labels)), ("ltp", (half, labels))):
        splits = {
            name: {
                "scores": {"accuracy": sum(map(str.__eq__, labels, predicted)) / 80},
                "cost": {"texts": 80, "ffn_share": [1.0], "padding": {"none": {"speedup": 1.0}}},
                "texts": {"labels": labels, "predicted": predicted},
            }
            for name, predicted in zip(("validation_matched", "validation_mismatched"), said, strict=True)
        }
        record = write_record(tmp_path, method, metrics={"splits": splits})
        for name, result in splits.items():
            given = {"model": "tiny", "method": method, "title": method, "of": "", "account": "", "metric": "accuracy"}
            given |= {"padding": "baseline" if method == "dense" else "none", "speedup": 1.0, "seeds": 1}
            given |= {"task": f"mood {name.split('_')[1]}", "split": f"mood/{name}"}
            rows.append(given | {"measured": 100 * result["scores"]["accuracy"], "records": record["config_hash"]})
    (tmp_path / "tables").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "tables" / "glue-local.csv", index=False)
    found = {one.task: one for one in measured(tmp_path) if one.method == "ltp"}
    lost, kept = found["mood matched"].against_dense, found["mood mismatched"].against_dense
    assert lost.points == -50.0 and lost.high < -30 and lost.decided
    assert (kept.points, kept.low, kept.high) == (0.0, 0.0, 0.0) and found["mood mismatched"].scores == (100.0,)
    assert [one.title for one in findings.comparisons(list(found.values()), tmp_path)] == ["mood"]


def test_where_two_tables_have_a_task_its_rows_tell_them_apart(tmp_path):
    """The table's name puts the one without a suffix first; a task of one table alone keeps its name."""
    labels = "01" * 20
    texts = {"labels": labels, "predicted": labels[:36] + "1010"}
    (tmp_path / "tables").mkdir()
    for name, limit in (("glue-local-32", 32), ("glue-local", None)):
        rows = []
        for method, score in (("dense", 1.0), ("ltp", 0.9)):
            own = {"labels": labels, "predicted": labels} if method == "dense" else texts
            record = write_record(tmp_path, method, score=score, texts=own, max_train_samples=limit)
            given = {"model": "tiny", "method": method, "title": method, "of": "", "account": "", "metric": "accuracy"}
            given |= {"padding": "baseline" if method == "dense" else "none", "speedup": 1.5, "seeds": 1}
            given |= {"task": "mood", "split": "mood/validation", "measured": 100 * score}
            rows.append(given | {"records": record["config_hash"]})
        pd.DataFrame(rows).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    found = measured(tmp_path)
    every = found[0].rows
    assert [one.label for one in found] == [f"mood ({every:,} rows)"] * 2 + ["mood (32 rows)"] * 2 and every > 32
    like = findings.comparisons(found, tmp_path)
    assert [one.title for one in like] == [f"mood ({every:,} rows)", "mood (32 rows)"]
    assert [one.records[0]["config"]["max_train_samples"] for one in like] == [None, 32]
    page = findings.report(found, at_speeds(like), [], "command")
    assert f"| tiny | ltp | mood | 32, 1.50x | -10.0 | {every:,}, 1.50x | -10.0 |" in page
    (tmp_path / "tables" / "glue-local-32.csv").unlink()
    alone = measured(tmp_path)
    assert [one.label for one in alone] == ["mood"] * 2
    assert "more training rows" not in findings.report(alone, [], [], "command")


def test_of_tables_with_as_many_rows_one_says_that_its_dense_model_has_all(tmp_path):
    (tmp_path / "tables").mkdir()
    given = {"model": "tiny", "of": "", "account": "", "metric": "accuracy", "seeds": 1, "speedup": 1.5, "task": "mood"}
    for name, kept in (("glue-local-32", {}), ("glue-local-all", {"dense_keep": "last"})):
        rows = []
        extra = {"max_eval_samples": None, "held_out": not kept, "dense_train_samples": 90, "dense_epochs": 5, **kept}
        for method in ("dense", "ltp"):
            stages = dense_stages(method, kept.get("dense_keep", "best"))
            record = write_record(tmp_path, method, score=0.8, max_train_samples=32, extra=extra, stages=stages)
            own = {"method": method, "title": method, "padding": "baseline" if method == "dense" else "none"}
            rows.append({**given, **own, "split": "mood/validation", "measured": 80, "records": record["config_hash"]})
        pd.DataFrame(rows).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    found = measured(tmp_path)
    assert [one.label for one in found] == ["mood (32 rows)"] * 2 + ["mood (32 rows, dense on all)"] * 2
    assert [one.whole for one in found] == [False, False, True, True]
    like = findings.comparisons(found, tmp_path)
    assert [(one.title, len(one.records)) for one in like] == [(found[0].label, 2), (found[2].label, 2)]
    assert "more training rows" not in findings.report(found, at_speeds(like), [], "command")


def dense_stages(method, keep):
    described = SimpleNamespace(name="mood", kind="classification", sequence_length=64, skim_weight=0.5)
    return DenseTraining(epochs=5, keep=keep).stages(methods.lookup(method).recipe_stages(described, "short"))


def test_no_table_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no table of scores in .* run ./reproduce.sh glue"):
        measured(tmp_path)
