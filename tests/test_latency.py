"""Timing: subjects take turns, forced schedules are followed to the token, replays are the products that ran."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import methods
from benchmarks import latency, latency_profile
from benchmarks.bare import record
from benchmarks.cli import run_command
from benchmarks.data import DataSource, load_rows, tokenize
from benchmarks.forced import Forced, geometric
from benchmarks.models import find_model, load_tokenizer, saved_identity
from benchmarks.runs import RunStore
from benchmarks.tasks import get_task
from benchmarks.timing import Ratio, interleave, peak_memory_bytes
from tests.small_world import write_model, write_questions, write_sentences
from tests.tiny import batch_for, make_batch, tiny_model, tiny_reducer

SPARSE = [name for name in methods.available() if name not in ("dense", "deformer")]
SHARES = (0.9, 0.6, 0.3)
LONG = (40, 33, 21, 40, 38, 27)


def forced(name: str, shares: tuple[float, ...] = SHARES, **sizes: int) -> Forced:
    torch.manual_seed(0)
    return Forced(methods.create(name, tiny_model("bert", **sizes)).double().eval(), shares)


def run_forced(driver: Forced, lengths: tuple[int, ...]) -> methods.Trace:
    batch = make_batch(lengths)
    places = [(i + 0.5) / len(lengths) for i in range(len(lengths))]
    with torch.inference_mode():
        return driver.run(batch, driver.tables(batch["attention_mask"].bool(), places)).trace


def test_subjects_take_turns_and_warm_up_rounds_do_not_count():
    calls: list[str] = []
    subjects = {name: lambda name=name: calls.append(name) for name in "ABC"}
    samples = interleave(subjects, rounds=3, warm_up=1)
    assert "".join(calls) == "CBAABCCBAABC"
    assert all(len(samples[name].wall_s) == len(samples[name].cpu_s) == 3 for name in "ABC")


def test_ratios_are_of_the_same_round():
    """A round that is slow for both changes nothing."""
    ratio = Ratio.of([2.0, 20.0, 4.0, 6.0], [1.0, 10.0, 1.0, 3.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.5)
    assert Ratio.of([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="at least one"):
        Ratio.of([], [])


def test_peak_memory_is_what_is_held_at_a_time():
    def run() -> None:
        one = torch.empty(1000)
        two = torch.empty(1000)
        del one, two
        torch.empty(1500)

    assert peak_memory_bytes(run) == 8000


@pytest.mark.parametrize("name", SPARSE)
def test_a_forced_method_computes_the_schedule(name):
    """Where it decides; a method with exits lets that share of the texts on."""
    driver = forced(name)
    trace = run_forced(driver, LONG)
    lengths = torch.tensor(LONG)
    if driver.reducer.traits.dropped == "exits":
        left = [(trace.exit_layers >= layer).sum().item() for layer in range(3)]
        assert left == [6, 5, 4]  # 0.9 and 0.6 of six texts; the last layer is for all that are left
        return
    wanted = [(lengths * share - 1e-4).ceil().long() for share in SHARES]
    decided = [layer for layer in range(3) if not torch.equal(trace.ffn_tokens[:, layer], lengths)]
    assert decided and all(
        torch.equal(trace.ffn_tokens[:, layer], wanted[layer])
        or torch.equal(trace.ffn_tokens[:, layer], trace.ffn_tokens[:, layer - 1])
        for layer in decided
    )


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("speedup", [1.2, 1.4])
def test_the_schedule_for_a_speedup_gives_it(name, speedup):
    driver = forced(name, geometric(0.9, 3), hidden_size=96, intermediate_size=384)  # routers must not outweigh layers
    batch = make_batch((40,))
    with torch.inference_mode():
        driver.watch(batch)
    lengths = torch.tensor(LONG * 10)
    driver.follow(driver.schedule_for(speedup, lengths))
    trace = run_forced(driver, LONG * 10)
    dense = driver.reducer.backbone.dense_macs(lengths).sum()
    assert float(dense / driver.reducer.macs(trace).sum()) == pytest.approx(speedup, rel=0.04)


def test_a_schedule_needs_a_share_for_every_layer():
    with pytest.raises(ValueError, match="for each of 3 layers"):
        forced("transkimmer", (0.5, 0.5))
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        forced("transkimmer", (0.5, 0.5, 0.0))


def sdpa_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of attention on a CPU, which torch's counter does not know."""
    return sdpa_flop_count(query, key, value)


@pytest.mark.parametrize("name", methods.available())
def test_a_replay_runs_the_products_of_the_pass_and_nothing_else(name):
    """FLOPs of the replay are those of the pass, for attention with scores too."""
    reducer = tiny_reducer(name)
    batch = batch_for(reducer)
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops}
    with torch.inference_mode():
        recorder = record(lambda: reducer(**batch))
        counts = []
        for run in (lambda: reducer(**batch), recorder.replay):
            with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
                run()
            counts.append(counter.get_total_flops())
        with torch.profiler.profile() as profiler:
            recorder.replay()
    assert counts[0] == counts[1] > 0
    assert not {"aten::layer_norm", "aten::gelu", "aten::index_select"} & {
        event.key for event in profiler.key_averages()
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    write_sentences(tmp_path / "data", rows=32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = [
    "--model",
    "model",
    "--data-dir",
    "data",
    "--tasks",
    "mood",
    "--device",
    "cpu",
    "--quiet",
    "--results",
    "r",
]


def test_the_command_writes_records_a_table_and_a_figure_and_measures_once(world, capsys):
    arguments = [*ARGUMENTS, "--batch-sizes", "1", "4", "--rounds", "2", "--methods", "transkimmer", "deebert"]
    arguments += ["--schedule", "1.2x", "--padding", "batch", "none", "sequence", "--max-length", "16"]
    assert run_command(latency.main, arguments) == 0
    (root,) = {path.parent.parent.parent.parent for path in (world / "r").rglob("interleaved-*.json")}
    records = {path: json.loads(path.read_text()) for path in root.rglob("*.json")}
    assert sorted(record["config"]["extra"]["batch_size"] for record in records.values()) == [1, 4]
    large = next(r for r in records.values() if r["config"]["extra"]["batch_size"] == 4)
    subjects = {subject["key"]: subject for subject in large["metrics"]["subjects"]}
    expected = ["stock-batch", "stock-sorted", "stock-sequence", "dense", "transkimmer@1.2x", "deebert@1.2x"]
    assert list(subjects) == expected
    assert subjects["stock-sequence"]["macs"] > subjects["stock-batch"]["macs"] > subjects["stock-sorted"]["macs"]
    assert subjects["stock-sorted"]["macs"] > subjects["dense"]["macs"] > subjects["transkimmer@1.2x"]["macs"]
    skim = subjects["transkimmer@1.2x"]
    assert len(skim["wall_s"]) == len(skim["bare_cpu_s"]) == 2 and skim["peak_memory_bytes"] > 0
    assert skim["against"]["sequence"]["flops"] > skim["against"]["batch"]["flops"] > skim["against"]["none"]["flops"]
    frame = pd.read_csv(root / "tables" / "latency.csv")
    assert len(frame) == 3 * (5 + 6)  # no sorted batches of one
    own = frame[(frame["key"] == "dense") & (frame["baseline"] == "none")]
    assert (own["time_ratio"] == 1).all() and (own["flops_ratio"] == 1).all()
    assert frame["realisation"].to_numpy() == pytest.approx(frame["time_ratio"] / frame["flops_ratio"], rel=1e-4)
    assert (root / "figures" / "latency.svg").stat().st_size > 1000
    text = (root / "tables" / "latency.md").read_text()
    assert "--batch-sizes 1 4" in text and "Transkimmer" in text
    before = {path: path.read_bytes() for path in records}
    assert run_command(latency.main, arguments) == 0
    assert before == {path: path.read_bytes() for path in records}


def taken(*arguments: str) -> dict:
    """The record of one batch size, measured if there is none; --times-only."""
    parsed = latency.parser().parse_args([*ARGUMENTS, "--texts", "4", "--rounds", "1", "--times-only", *arguments])
    (record,), failures = latency.taken(parsed, RunStore(Path("r")), quiet=True)
    assert not failures
    return record


def test_trained_reducers_are_timed_as_they_are(world):
    torch.manual_seed(0)
    tiny_reducer("ltp").float().save_pretrained(world / "pruner")
    record = taken("--reducer", "pruner", "--batch-sizes", "2")
    own = record["metrics"]["subjects"][-1]
    assert own["key"] == f"ltp@{saved_identity(world / 'pruner')}/pruner" and own["schedule"] == "trained"
    assert record["config"]["extra"]["reducers"] == [own["key"]]


def test_reducers_of_one_name_are_subjects_of_their_own_and_another_one_in_the_folder_is_timed_anew(world):
    """One whose weights are the same, too: an option of it may have been turned."""
    reducer = tiny_reducer("deebert").float()
    for folder, threshold in (("a", 0.2), ("b", 0.4)):
        reducer.set_options(threshold=threshold)
        reducer.save_pretrained(world / folder / "faster")
    both = taken("--batch-sizes", "2", "--reducer", "a/faster", "b/faster")
    keys = [subject["key"] for subject in both["metrics"]["subjects"] if subject["method"] == "deebert"]
    assert len(set(keys)) == 2 and all(key.endswith("/faster") for key in keys)
    first = taken("--batch-sizes", "2", "--reducer", "a/faster")
    assert taken("--batch-sizes", "2", "--reducer", "a/faster") == first
    torch.nn.init.zeros_(next(reducer.parameters()))
    reducer.set_options(threshold=0.2)
    reducer.save_pretrained(world / "a" / "faster")
    assert taken("--batch-sizes", "2", "--reducer", "a/faster")["config_hash"] != first["config_hash"]


def test_shares_of_several_schedules_are_subjects_of_their_own(world):
    record = taken("--batch-sizes", "2", "--methods", "ltp", "--schedule", "1,0.9,0.8", "1,0.4,0.2")
    light, strong = record["metrics"]["subjects"][-2:]
    assert light["macs"] > strong["macs"] and light["wall_s"] != strong["wall_s"]
    assert [one["schedule"] for one in (light, strong)] == ["1,0.9,0.8", "1,0.4,0.2"]


def test_a_text_of_several_windows_is_one_text(world):
    data = write_questions(world / "asked", rows=40)
    asked = ("--data-dir", str(data), "--tasks", "squad_v2", "--max-length", "24", "--texts", "6")
    record = taken(*asked, "--batch-sizes", "4", "--methods", "ltp", "--schedule", "1.2x")
    task = get_task("squad_v2", data)
    rows = load_rows(task, "validation", DataSource("data_dir", data), max_samples=6)
    features = tokenize(rows, task, load_tokenizer(find_model("model")), max_length=24)
    assert len(features) > 6 == record["metrics"]["texts"] == record["config"]["data"]["texts"]
    assert record["metrics"]["tokens"] == sum(len(feature["input_ids"]) for feature in features)


def test_trained_reducers_of_a_users_own_task_are_found(world, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(world / "home"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(world / "model")
    for name in ("mood-ltp", "other-lat"):
        methods.create(name.split("-")[1], model).save_pretrained(world / f"home/checkpoints/{name}-aaaaaaaaaaaa")
    assert run_command(latency.main, [*ARGUMENTS, "--trained", "--batch-sizes", "2", "--rounds", "1"]) == 0
    (path,) = (world / "r").rglob("interleaved-*.json")
    (name,) = json.loads(path.read_text())["config"]["extra"]["reducers"]
    assert re.fullmatch(r"ltp@[0-9a-f]{12}/mood-ltp-aaaaaaaaaaaa", name)


def test_texts_are_read_by_the_tokenizer_beside_a_reducer(world, capsys, monkeypatch):
    """Of another vocabulary than --model's, whose words have no embedding in it; two vocabularies are refused."""
    timed = ["--reducer", "pruner", "--batch-sizes", "2", "--rounds", "1", "--texts", "4", "--times-only"]
    bare = [word for word in ARGUMENTS if word not in ("--model", "model")]
    monkeypatch.setattr("benchmarks.embedded.embedded_model_path", lambda: world / "model")
    methods.create("ltp", tiny_model("bert", vocab_size=9)).float().save_pretrained(world / "pruner")
    for given in ([*ARGUMENTS, *timed], [*bare, *timed]):
        assert run_command(latency.main, given) == 2
        assert "the reducer pruner has no tokenizer beside it" in capsys.readouterr().err
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film"))}
    transformers.BertTokenizerFast(vocab=words, model_max_length=80).save_pretrained(world / "pruner")
    for given in ([*ARGUMENTS, *timed], [*bare, *timed]):
        assert run_command(latency.main, given) == 0
    made = [json.loads(path.read_text()) for path in (world / "r").rglob("interleaved-*.json")]
    assert len({record["config"]["backbone"] for record in made}) == 2  # --model's, and the reducer's own
    assert len({record["config"]["data"]["sha256"] for record in made}) == 1
    tiny_reducer("ltp").float().save_pretrained(world / "other")
    capsys.readouterr()
    assert run_command(latency.main, [*ARGUMENTS, *timed, "--reducer", "pruner", "other"]) == 2
    assert "the tokenizers of pruner and model differ; time their reducers apart" in capsys.readouterr().err


def test_a_profile_finds_every_kind_of_call():
    """Products, activations, norms and residuals are all there; the kinds are parts of the pass."""
    model = tiny_model("bert", hidden_size=128, intermediate_size=512).float()
    frame = latency_profile.profile(
        model, latency_profile.texts_of([40, 30, 20], 60), ["power_bert"], ["1.2x"], rounds=3
    )
    assert list(frame["Method"]) == ["Dense, stock", "Dense, unpadded", "PoWER-BERT"]
    numbers = frame[["Pass, ms", "Products", "Activations", "Norms"]].astype(float)
    assert (numbers.to_numpy() > 0).all() and (numbers["Pass, ms"] > numbers["Products"]).all()
    assert frame["Realisation"].iloc[1] == frame["Bound"].iloc[1] == "1.00"


@pytest.mark.parametrize(("kind", "calls"), [("Activations", 3), ("Norms", 7), ("Residuals", 8)])
def test_a_profile_records_the_calls_of_a_stock_layer(kind, calls):
    """Three layers: a GELU each, two norms and two residuals; embeddings have one norm and two sums."""
    model, batch = tiny_model("bert"), make_batch((9, 4))
    with torch.inference_mode():
        recorded = record(lambda: methods.create("dense", model).eval()(**batch), latency_profile.kinds()[kind])
    pooler = kind == "Activations"
    assert len(recorded.calls) == calls + pooler
