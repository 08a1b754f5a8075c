"""A reducer is a model of transformers: Auto classes, Trainer, pipelines, the hub and its card."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import accelerate
import huggingface_hub
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import methods
from methods import StageCallback
from methods.families import ARCHITECTURES
from methods.registry import register, unregister
from tests.cases import CASES, EVERY
from tests.small_world import write_model
from tests.tiny import HEADS, batch_for, labels_for, logits_of, tiny_model, tiny_reducer

TEXTS = ("the film was good", "the plot was bad", "it was a great story and the plot was good", "awful")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved reducer for sentences with its tokenizer."""
    folder = tmp_path_factory.mktemp("native")
    model = write_model(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    stock = transformers.BertForSequenceClassification.from_pretrained(model, num_labels=2)
    reducer = methods.create("transkimmer", stock, skim_weight=0.3)
    CASES["transkimmer"].undecided(reducer)
    reducer.save_pretrained(folder / "reducer")
    tokenizer.save_pretrained(folder / "reducer")
    return folder


def rows(tokenizer):
    return [{**tokenizer(text), "label": i % 2} for i, text in enumerate(TEXTS * 3)]


def trainer(world, reducer, data, **settings):
    """A Trainer that writes nothing and shows nothing."""
    arguments = {"use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "max_steps": 3}
    args = transformers.TrainingArguments(str(world / "out"), **(arguments | settings.pop("args", {})))
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    return transformers.Trainer(reducer, args, train_dataset=data, processing_class=tokenizer, **settings)


# Auto classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("head", HEADS)
def test_auto_classes_give_the_reducer_with_identical_logits(name, head, tmp_path):
    if head in methods.lookup(name).traits.unsupported:
        pytest.skip(methods.lookup(name).traits.unsupported[head])
    reducer = tiny_reducer(name, head=head)
    reducer.save_pretrained(tmp_path)
    auto_class = getattr(transformers, f"AutoModel{ARCHITECTURES[head]}")
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(reducer) and type(loaded).__name__.endswith(ARCHITECTURES[head])
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), methods.ReducerConfig)
    batch = batch_for(reducer)
    with torch.no_grad():
        a, b = (model(**batch) for model in (reducer, loaded))
    assert torch.equal(logits_of(a, batch["attention_mask"]), logits_of(b, batch["attention_mask"]))


def test_the_auto_class_of_another_head_names_the_right_one(world):
    with pytest.raises(ValueError, match="is a BertForSequenceClassification; load it with AutoModelForSequenceClass"):
        transformers.AutoModelForQuestionAnswering.from_pretrained(world / "reducer")


def test_a_configuration_alone_gives_a_fresh_reducer(world):
    config = transformers.AutoConfig.from_pretrained(world / "reducer")
    fresh = transformers.AutoModelForSequenceClassification.from_config(config)
    assert fresh.method_name == "transkimmer" and fresh.options.skim_weight == 0.3


def test_weights_that_are_no_safetensors_are_not_read(world, tmp_path):
    (tmp_path / "config.json").write_bytes((world / "reducer" / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_code_beside_a_model_is_never_run(world, tmp_path):
    """A configuration that names a class in a file of its folder: it is loaded as the method that it says."""
    reducer = methods.load(world / "reducer")
    reducer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "trap.Trap", "AutoConfig": "trap.TrapConfig"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was run')\n", encoding="utf-8")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(reducer) is type(methods.load(tmp_path))


def test_loading_and_saving_print_nothing(world, tmp_path, capfd):
    reducer = methods.load(world / "reducer")
    reducer.save_pretrained(tmp_path)
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


# Pipelines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_text_pipeline_gives_the_reducer_s_probabilities(world, batch_size, capfd):
    classify = transformers.pipeline("text-classification", model=str(world / "reducer"), top_k=None)
    found = classify(list(TEXTS), batch_size=batch_size)
    assert classify.model.method_name == "transkimmer" and "not supported" not in capfd.readouterr().err
    reducer = methods.load(world / "reducer").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    for text, answer in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = reducer(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(
            {"LABEL_0": float(expected[0]), "LABEL_1": float(expected[1])}, abs=1e-6
        )


def test_a_trace_is_taken_apart_by_sequence():
    reducer = tiny_reducer("transkimmer")
    batch = batch_for(reducer)
    with torch.no_grad():
        packed = reducer(**batch).trace
        with reducer.mode("masked"):
            masked = reducer(**batch).trace
    for trace in (packed, masked):
        assert len(list(trace)) == len(trace) == 5
        for row, one in enumerate(trace):
            assert torch.equal(one.keep_masks[0], trace.keep_masks[row]) and len(one) == 1
            assert torch.equal(reducer.macs(one)[0], reducer.macs(trace)[row])
        assert torch.equal(trace[-1].input_lengths, trace.input_lengths[-1:])


# Trainer and accelerate ----------------------------------------------------------------------------------------------


def test_trainer_sees_loss_and_logits_alone(world):
    """Trace and loss terms, which are no tensors, stay out of predictions and metrics."""
    reducer = methods.load(world / "reducer")
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions.shape, prediction.label_ids.tolist()))
        return {"right": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}

    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    training = trainer(world, reducer, rows(tokenizer), compute_metrics=compute_metrics)
    before = reducer.predictors[0][-1].weight.detach().clone()
    training.train()
    assert not torch.equal(before, reducer.predictors[0][-1].weight)
    result = training.evaluate(rows(tokenizer)[:5])
    assert seen == [((5, 2), [0, 1, 0, 1, 0])] and reducer.run_mode == "packed"
    assert result["eval_loss"] > 0 and 0 <= result["eval_right"] <= 1


def test_trainer_evaluates_spans_without_being_told_their_labels(world):
    reducer = tiny_reducer("transkimmer", head="span_qa").float()
    batch = batch_for(reducer)
    data = [
        {name: tensor[row] for name, tensor in (batch | labels_for(reducer, batch)).items()}
        for row in range(len(batch["input_ids"]))
    ]
    training = trainer(world, reducer, data)
    training.train()
    output = training.predict(data)
    assert output.metrics["test_loss"] > 0
    assert [part.shape for part in output.predictions] == [(5, 12), (5, 12)]


def test_accumulated_gradients_are_those_of_the_whole_batch(world):
    """`Trainer` divides the loss itself, as it has to for a model whose loss is a mean."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    data = [{**tokenizer("the film was good"), "label": i % 2} for i in range(8)]
    shared = {"max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0, "warmup_steps": 0}
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        model = transformers.BertForSequenceClassification.from_pretrained(world / "model", num_labels=2)
        torch.manual_seed(0)
        torch.nn.init.normal_(model.classifier.weight)
        reducer = methods.create("dense", model)
        for module in reducer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = shared | {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        trainer(world, reducer, data, args=args).train()
        weights.append(reducer.model.classifier.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


class Counting(methods.TokenReducer):
    """Notes what it is told of its training."""

    traits = methods.Traits(title="Counting")

    def build(self):
        self.told = []

    def begin_stage(self, stage, updates):
        super().begin_stage(stage, updates)
        self.told.append((stage.name, updates))

    def after_update(self):
        self.told.append(self.progress)

    def end_stage(self, stage):
        super().end_stage(stage)
        self.told.append("end")


def test_a_stage_runs_inside_trainer(world):
    register("counting")(Counting)
    try:
        reducer = methods.create("counting", tiny_model("bert").float())
    finally:
        unregister("counting")
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    training = trainer(world, reducer, rows(tokenizer), callbacks=[StageCallback(methods.Stage(name="only"))])
    training.train()
    assert reducer.told == [("only", 3), 0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), "end"]
    assert reducer.stage is None and reducer.progress == 1.0


def test_accelerate_trains_and_gathers(world):
    reducer = methods.load(world / "reducer").train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "reducer")
    collate = transformers.DataCollatorWithPadding(tokenizer)
    machine = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(reducer.parameters(), lr=1e-3)
    model, optimizer, loader = machine.prepare(
        reducer, optimizer, DataLoader(rows(tokenizer), batch_size=4, collate_fn=collate)
    )
    for batch in loader:
        machine.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        gathered = machine.gather_for_metrics(model(**batch).logits)
    assert gathered.shape == (4, 2) and machine.unwrap_model(model) is reducer


# The card and the hub ------------------------------------------------------------------------------------------------


def card_of(folder):
    return huggingface_hub.ModelCard((folder / "README.md").read_text(encoding="utf-8"))


def test_the_card_says_what_is_known(tmp_path):
    reducer = tiny_reducer("transkimmer")
    reducer.note(task="sst2", split="validation", metric="accuracy", score=0.905, keep_ratio=0.4)
    reducer.note(gflops=1.5, dense_gflops=3.0, padding="none", latency_ms=8.0, dense_latency_ms=10.0, batch_size=32)
    reducer.note(record="246a157b690c", device="cpu")
    reducer.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("sst2", "accuracy", 0.905)
    assert card.data.pipeline_tag == "text-classification" and "transkimmer" in card.data.tags
    for line in (
        "| accuracy | 0.905 |",
        "| Tokens computed, mean over layers | 40.0 % |",
        "| FLOPs per text, padding: none | 1.5 GFLOPs (dense: 3 GFLOPs, 2.00x) |",
        "| Time, batch of 32, cpu | 8 ms (dense: 10 ms, 1.25x) |",
        "| Record | `246a157b690c` |",
        "| `skim_weight` | `0.5` |",
    ):
        assert line in card.text
    loaded = methods.load(tmp_path)
    assert loaded.config.facts == reducer.config.facts
    loaded.note(score=None)
    loaded.save_pretrained(tmp_path)
    assert card_of(tmp_path).data.eval_results is None


def test_a_card_without_measurements_claims_none(tmp_path):
    tiny_reducer("dense", head="span_qa").save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert card.data.eval_results is None and card.data.pipeline_tag == "question-answering"
    assert "saved without measurements" in card.text and "FLOPs per text" not in card.text


def test_unknown_facts_are_refused():
    reducer = tiny_reducer("dense")
    with pytest.raises(ValueError, match="'speedup' is no fact that a model card has; it has: task, split, metric"):
        reducer.note(speedup=2.0)
    with pytest.raises(ValueError, match="score must be a text or a number, got list"):
        reducer.note(score=[0.5])


@pytest.mark.parametrize(
    "change", [lambda r: r.train(), lambda r: r.set_options(skim_weight=0.1)], ids=["train", "set"]
)
def test_what_was_measured_of_another_model_is_forgotten(change):
    reducer = tiny_reducer("transkimmer")
    reducer.note(task="sst2", score=0.9)
    reducer.eval()
    assert reducer.config.facts == {"task": "sst2", "score": 0.9}
    change(reducer)
    assert reducer.config.facts == {}


def test_a_card_of_one_s_own_is_left_alone(tmp_path):
    reducer = tiny_reducer("dense")
    (tmp_path / "README.md").write_text("mine\n", encoding="utf-8")
    reducer.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("on_save", [False, True], ids=["push_to_hub", "save_pretrained"])
def test_the_hub_gets_weights_and_the_card(monkeypatch, tmp_path, on_save):
    sent = {}

    def upload(self, *, repo_id, folder_path, **commit):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        sent.update(commit, repo=repo_id, files=files)
        return "https://example.org/commit"

    def create(self, name, **settings):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    reducer = tiny_reducer("transkimmer")
    reducer.note(task="sst2")
    if on_save:
        reducer.save_pretrained(tmp_path / "fast", push_to_hub=True)
    else:
        assert reducer.push_to_hub("fast", commit_message="second") == "https://example.org/commit"
        assert sent["commit_message"] == "second"
    assert sent["repo"] == "me/fast" and sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
    assert b"| Task | sst2 |" in sent["files"]["README.md"]


# Copies and other processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EVERY, "transkimmer+deebert"])
@pytest.mark.parametrize("head", HEADS)
def test_copies_and_pickles_answer_alike_and_share_nothing(name, head, tmp_path):
    if head in methods.lookup(name).traits.unsupported:
        pytest.skip(methods.lookup(name).traits.unsupported[head])
    reducer = tiny_reducer(name, head=head).eval()
    batch = batch_for(reducer)
    expected = logits_of(reducer(**batch), batch["attention_mask"])
    torch.save(reducer, tmp_path / "whole.pt")
    for copied in (copy.deepcopy(reducer), torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert type(copied) is type(reducer) and copied.options == reducer.options
        found = logits_of(copied(**batch), batch["attention_mask"])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in reducer.parameters()}


def test_another_process_reads_a_pickled_reducer(tmp_path):
    """Whatever that process has imported: what is pickled names the module that knows all methods."""
    reducer = tiny_reducer("ltp").eval()
    torch.save((reducer, batch_for(reducer)), tmp_path / "whole.pt")
    code = "import sys, torch; model, batch = torch.load(sys.argv[1], weights_only=False); print(model(**batch).logits)"
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "whole.pt")], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(reducer(**batch_for(reducer)).logits)
