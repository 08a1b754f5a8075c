"""Tables from fabricated records: averages, differences to the paper, and what is said of random dropping."""

from __future__ import annotations

import pytest

from benchmarks.models import hub_model
from benchmarks.reported import Reported
from benchmarks.tables import Entry, against_random, cell_table, comparison_table, keep_table, long_table
from benchmarks.tasks import get_task
from methods.deformer import ONCE, WARM

BERT = hub_model("BERT-base", "google-bert/bert-base-uncased")


def entry(method: str, score: float, speedup: float, *, of: str = "", name: str = "a", task: str = "sst2") -> Entry:
    """A run of that score in [0, 1] and speed-up without padding; the padded speed-ups are 2 and 4 times that."""
    padding = {
        setting: {"speedup": speedup * factor, "speedup_mean_of_ratios": 1.0, "speedup_of_unpadding_alone": factor}
        for setting, factor in (("none", 1.0), ("batch", 2.0), ("sequence", 4.0))
    }
    chosen = get_task(task)
    splits = {
        split: {
            "scores": {chosen.metric: score},
            "cost": {"padding": padding, "keep_ratio": 1 / speedup, "ffn_share": [1.0]},
            "retention": None,
        }
        for split in chosen.eval_splits
    }
    metrics = {"metric": chosen.metric, "splits": splits, "keep_ratio": 1 / speedup, "train_seconds": 100 * speedup}
    record = {"config_hash": name, "metrics": metrics}
    return Entry(model=BERT, task=chosen, method=method, record=record, of=of)


def test_seeds_are_averaged_and_set_beside_the_paper():
    """Table 3: Transkimmer on SST-2 without padding, 92.3 at 1.58x; dense 93.0."""
    runs = [entry("transkimmer", 0.92, 1.5, name="a"), entry("transkimmer", 0.93, 1.7, name="b")]
    frame = long_table([entry("dense", 0.93, 1.0, name="d"), *runs], ("none", "sequence"), table="3")
    row = frame[(frame["method"] == "transkimmer") & (frame["padding"] == "none")].iloc[0]
    assert row["measured"] == pytest.approx(92.5) and row["seeds"] == 2 and row["records"] == "a b"
    assert row["spread"] == pytest.approx(0.5**0.5) and row["speedup"] == pytest.approx(1.6)
    assert row["reported"] == 92.3 and row["reported_speedup"] == 1.58
    assert row["difference"] == pytest.approx(0.2) and row["speedup_difference"] == pytest.approx(0.02)
    dense = frame[frame["padding"] == "baseline"].iloc[0]
    assert dense["reported"] == 93.0 and dense["difference"] == pytest.approx(0.0)
    shown = comparison_table(frame)
    assert list(shown["Padding"]) == ["\N{EN DASH}", "No", "Sequence"]


def test_cells_rows_and_the_unpadded_dense_model():
    entries = [entry("dense", 0.93, 1.0), entry("transkimmer", 0.92, 1.5)]
    cells = cell_table(long_table(entries, ("none", "batch", "sequence"), table="3"))
    rows = {(row["Method"], row["Padding"]): row["SST-2"] for row in cells.to_dict("records")}
    assert rows["Dense", "\N{EN DASH}"] == "93.0 1.00x"
    assert rows["Dense, unpadded", "Sequence"] == "93.0 4.00x"
    assert rows["Transkimmer", "Batch"] == "92.0 3.00x"


def test_tokens_kept_and_seconds_of_training_are_averaged_over_seeds():
    runs = [entry("transkimmer", 0.9, 2.0, name="a"), entry("transkimmer", 0.9, 4.0, name="b")]
    table = keep_table([entry("dense", 0.9, 1.0), *runs, entry("dense", 0.8, 1.0, task="mrpc")])
    rows = {row["Method"]: row for row in table.to_dict("records")}
    assert rows["Transkimmer"]["SST-2: keep ratio"] == "0.38" and rows["Transkimmer"]["SST-2: s"] == "300"
    assert rows["Dense"]["MRPC: keep ratio"] == "1.00" and rows["Transkimmer"]["MRPC: s"] == "\N{EN DASH}"


def test_matched_and_mismatched_have_columns_of_their_own():
    cells = cell_table(long_table([entry("dense", 0.84, 1.0, task="mnli")], ("none",), table="3"))
    assert {"MNLI matched", "MNLI mismatched"} <= set(cells.columns)


def test_other_accounts_have_rows_of_their_own(monkeypatch):
    """They say what they leave out, and the published speed-up stands beside the one that counts like the paper."""
    run = entry("deformer", 0.8, 1.01, task="mrpc")
    for cost in run.record["metrics"]["splits"]["validation"]["cost"]["padding"].values():
        cost["extra"] = {
            name: {"speedup": speedup, "speedup_mean_of_ratios": 1.0} for name, speedup in ((WARM, 2.5), (ONCE, 1.01))
        }
    printed = Reported("f1", 79.0, 2.2, "flops", "printed", "")
    monkeypatch.setattr("benchmarks.tables.lookup", lambda table, backbone, *of: printed)
    frame = long_table([run], ("none", "sequence"), table="3")
    shown = cell_table(frame)
    rows = {(row["Method"], row["Padding"]): row["MRPC"] for row in shown.to_dict("records")}
    assert rows["DeFormer", "No"] == rows[f"DeFormer, {ONCE}", "No"] == "80.0 1.01x"
    assert rows["DeFormer, warm cache, offline passes not counted", "Sequence"] == "80.0 2.50x"
    assert frame["reported"].notna().tolist() == (frame["account"] == WARM).tolist() and len(frame) == 6
    assert comparison_table(frame)["Speed-up difference"].tolist() == [0.3, 0.3]


@pytest.mark.parametrize(("random", "words"), [(0.90, " beats "), (0.92, "does NOT beat"), (0.95, "does NOT beat")])
def test_a_method_that_does_not_beat_random_is_named(random, words):
    entries = [entry("transkimmer", 0.92, 1.5), entry("random", random, 1.5, of="transkimmer")]
    (line,) = against_random(long_table(entries, ("none",), table="3"))
    assert words in line and "Transkimmer (92.0 at 1.50x)" in line
