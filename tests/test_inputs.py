"""Bad input is refused with a sentence that names the value; small and odd input works."""

from __future__ import annotations

import pytest
import torch
import transformers

import methods
from methods.config import ReducerConfig
from methods.native import class_of
from tests.cases import CASES
from tests.tiny import FAMILIES, HEADS, batch_for, logits_of, make_batch, tiny_config, tiny_model, tiny_reducer

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture
def reducer():
    return tiny_reducer("dense")


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0), (5,), (2, 3, 4)])
@pytest.mark.parametrize("name", CASES)
def test_batches_without_tokens_are_refused(name, shape):
    ids = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"input_ids must be \(batch, seq_len\) with at least one token, got \("):
        tiny_reducer(name)(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]], ids=["left", "no_token"])
def test_padding_on_the_left_is_refused(reducer, mask):
    with pytest.raises(ValueError, match="first token of every sequence must be real; pad on the right"):
        reducer(input_ids=torch.ones(2, 3, dtype=torch.long), attention_mask=torch.tensor(mask))


@pytest.mark.parametrize("argument", ["attention_mask", "token_type_ids", "position_ids"])
def test_shapes_that_differ_are_refused(reducer, argument):
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), argument: torch.ones(2, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=rf"{argument} is \(2, 4\) but input_ids is \(2, 3\)"):
        reducer(**batch)


@pytest.mark.parametrize(("family", "longest"), [("bert", 40), ("roberta", 38), ("distilbert", 40), ("albert", 40)])
def test_texts_longer_than_the_model_are_refused(family, longest):
    """RoBERTa's positions start behind its padding id, so its table of 40 serves 38 tokens."""
    model = tiny_reducer("dense", family)
    with torch.no_grad():
        assert model(**batch_for(model, (longest,))).logits.isfinite().all()
    with pytest.raises(ValueError, match=f"{longest + 1} tokens are longer than the model's {longest}; truncate"):
        model(**batch_for(model, (longest + 1,)))


def test_labels_of_another_batch_are_refused(reducer):
    with pytest.raises(ValueError, match="3 labels for 5 sequences"):
        reducer(**make_batch(), labels=torch.zeros(3, dtype=torch.long))
    spans, positions = tiny_reducer("dense", head="span_qa"), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="4 labels for 5 sequences"):
        spans(**make_batch(), start_positions=positions, end_positions=positions)


@pytest.mark.parametrize(
    ("name", "head"), [(n, h) for n in CASES for h in HEADS if h not in methods.lookup(n).traits.unsupported]
)
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_texts_of_one_token_work(name, head, mode):
    """Nothing can be dropped, so every method gives the dense logits, unless it leaves early."""
    reducer = tiny_reducer(name, head=head)
    for batch in (make_batch((1,)), make_batch((1, 1, 1)), make_batch((1, 1), padded_to=4)):
        with torch.no_grad(), reducer.mode(mode):
            output, dense = reducer(**batch), tiny_reducer("dense", head=head)(**batch)
        stay = ~output.trace.exited
        a, b = (logits_of(o, batch["attention_mask"]) for o in (output, dense))
        torch.testing.assert_close(a[stay], b[stay], rtol=1e-9, atol=1e-9)
        assert a.isfinite().all() and (output.trace.ffn_tokens[stay] == 1).all()


@pytest.mark.parametrize("name", CASES)
def test_a_mask_is_optional_and_may_be_of_any_type(name):
    reducer, ids = tiny_reducer(name), make_batch((7, 7))["input_ids"]
    with torch.no_grad():
        expected = reducer(input_ids=ids).logits
        for dtype in (torch.bool, torch.long, torch.float32):
            assert torch.equal(reducer(input_ids=ids, attention_mask=torch.ones(2, 7, dtype=dtype)).logits, expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_positions_may_be_given(family, head, mode):
    """As the stock model takes them: one row for all texts, or one for each."""
    reducer, model = tiny_reducer("dense", family, head), tiny_model(family, head)
    batch = batch_for(reducer)
    mask, generator = batch["attention_mask"], torch.Generator().manual_seed(0)
    for shape in (mask.shape, (1, mask.shape[1])):
        positions = torch.randint(2, 30, shape, generator=generator)
        with torch.no_grad(), reducer.mode(mode):
            expected = logits_of(model(**batch, position_ids=positions), mask)
            torch.testing.assert_close(logits_of(reducer(**batch, position_ids=positions), mask), expected)
            assert not torch.allclose(logits_of(reducer(**batch), mask), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["transkimmer", "deformer", "tr_bert"])
def test_positions_may_be_given_to_every_method(name):
    """Those that are counted anyway change nothing; others do."""
    reducer = tiny_reducer(name)
    batch = batch_for(reducer)
    counted = torch.arange(batch["input_ids"].shape[1]).unsqueeze(0)
    with torch.no_grad():
        expected = reducer(**batch).logits
        assert torch.equal(reducer(**batch, position_ids=counted).logits, expected)
        assert not torch.allclose(reducer(**batch, position_ids=counted.flip(1)).logits, expected)


@pytest.mark.parametrize(
    "keyword",
    [{name: torch.ones(5, 12, 32)} for name in ("inputs_embeds", "encoder_hidden_states", "head_mask", "cu_seq_lens_q")]
    + [{"output_hidden_states": True}, {"output_attentions": True}],
    ids=lambda keyword: next(iter(keyword)),
)
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_keywords_that_would_change_the_result_are_refused(head, keyword):
    with pytest.raises(
        ValueError, match=f"reducers do not take {next(iter(keyword))}; leave it out, or call the stock"
    ):
        tiny_reducer("dense", head=head)(**make_batch(), **keyword)


def test_keywords_that_change_nothing_are_let_through(reducer):
    harmless = {"return_dict": True, "output_attentions": False, "inputs_embeds": None, "num_items_in_batch": 5}
    with torch.no_grad():
        assert torch.equal(reducer(**make_batch(), **harmless).logits, reducer(**make_batch()).logits)


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_a_tuple_is_given_where_asked(head):
    reducer, batch = tiny_reducer("dense", head=head), make_batch()
    output, given = reducer(**batch), reducer(**batch, return_dict=False)
    assert isinstance(given, tuple) and len(given) == len(output.to_tuple())
    assert torch.equal(given[0], output[0])


def test_what_is_no_tensor_of_ids_is_refused(reducer):
    with pytest.raises(ValueError, match="reducers do not take inputs_embeds"):
        reducer(inputs_embeds=torch.zeros(1, 3, 32))
    for ids, kind in ((None, "NoneType"), ([[1, 2]], "list")):
        with pytest.raises(ValueError, match=rf"input_ids must be a tensor \(batch, seq_len\), got {kind}"):
            reducer(input_ids=ids)


@pytest.mark.parametrize("head", ["classification", "span_qa", "token_classification"])
def test_positions_stand_fourth_as_in_bert(head):
    reducer, batch = tiny_reducer("dense", head=head), make_batch((7, 7))
    model, places = reducer.model, torch.arange(7).flip(0).expand(2, 7)
    mask, types = batch["attention_mask"], torch.zeros_like(batch["input_ids"])
    with torch.no_grad():
        a, b = (logits_of(run(batch["input_ids"], mask, types, places), mask) for run in (reducer, model))
    torch.testing.assert_close(a, b)


def test_a_label_of_one_text_needs_no_dimension(reducer):
    batch = make_batch((7,))
    with torch.no_grad():
        losses = [reducer(**batch, labels=labels).loss for labels in (torch.tensor(1), torch.tensor([1]))]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="1 labels for 5 sequences"):
        reducer(**make_batch(), labels=torch.tensor(1))


def test_another_kind_of_problem_is_refused_once_the_head_is_made(reducer):
    reducer.config.problem_type = "regression"
    with pytest.raises(ValueError, match="problem_type of a reducer cannot become 'regression' later; set it in"):
        reducer(**make_batch(), labels=torch.zeros(5, 3))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_runs_in_its_own_precision(name, dtype):
    """What a method adds takes the model's type, so that no cast is needed around `create`; but for learned scalars."""
    reducer = methods.create(name, tiny_model("bert").to(dtype), **CASES[name].options)
    exact = reducer._keep_in_fp32_modules_strict or () if dtype == torch.bfloat16 else ()
    for key, weight in reducer.named_parameters():
        assert weight.dtype == (torch.float32 if key.rpartition(".")[2] in exact else dtype), key
    for mode in ("masked", "packed"):
        with torch.no_grad(), reducer.mode(mode):
            assert reducer(**make_batch()).logits.isfinite().all()


@pytest.mark.parametrize("name", ["dense", "transkimmer", "top", "deebert", "transkimmer+deebert"])
def test_a_model_of_several_precisions_keeps_them(name):
    """What the method adds takes that of the first weight; a model's own are its owner's."""
    model = tiny_model("bert").bfloat16()
    model.classifier.float()
    before = {key: (weight.dtype, weight.data_ptr()) for key, weight in model.state_dict().items()}
    reducer = methods.create(name, model)
    assert {key: (weight.dtype, weight.data_ptr()) for key, weight in model.state_dict().items()} == before
    own = [weight for key, weight in reducer.named_parameters() if not key.startswith("model.")]
    wanted = torch.float32 if name == "top" else torch.bfloat16  # its learned scalars stay exact
    assert {weight.dtype for weight in own} <= {wanted} and bool(own) == (name != "dense")
    assert all(isinstance(weight, torch.nn.Parameter) for weight in own)


def test_subclasses_of_stock_models_are_refused():
    """Whatever they are called: what they override would be passed by, and what is saved could not be loaded."""
    members = {"__module__": "mine", "forward": lambda self, **inputs: 100 * super().forward(**inputs).logits}
    for name in ("MyBertForSequenceClassification", "BertForSequenceClassification"):
        own = type(name, (transformers.BertForSequenceClassification,), members)
        with pytest.raises(ValueError, match=f"mine.{name} is no class of transformers: its own forward would not be"):
            methods.create("dense", own(tiny_config("bert")))


@pytest.mark.parametrize("change", ["is_decoder", "add_cross_attention"])
def test_models_that_are_no_encoders_are_refused(change):
    """With the configuration alone, too, as a saved one has it."""
    config = tiny_config("bert", **({"is_decoder": True} | {change: True}))
    message = "is_decoder=True is not supported: reducers run encoders"
    with pytest.raises(ValueError, match=message):
        methods.create("dense", transformers.BertForSequenceClassification(config))
    model = tiny_model("roberta")
    setattr(model.config, change, True)
    with pytest.raises(ValueError, match=f"{change}=True is not supported"):
        methods.create("transkimmer", model)
    with pytest.raises(ValueError, match=f"{change}=True is not supported"):
        class_of(ReducerConfig.of("dense", methods.lookup("dense").options_class(), model))


# Modes and cost ------------------------------------------------------------------------------------------------------


def test_another_mode_is_refused(reducer):
    with pytest.raises(ValueError, match="must be one of masked, packed, got 'gathered'"), reducer.mode("gathered"):
        pass
    with pytest.raises(RuntimeError), reducer.mode("masked"):
        raise RuntimeError
    assert reducer.run_mode == "packed"  # an error inside does not leave the mode behind


def test_padded_costs_need_a_known_padding_and_a_length(reducer):
    with torch.no_grad():
        trace = reducer(**make_batch()).trace
    with pytest.raises(ValueError, match="padding must be one of none, batch, sequence, got 'max_length'"):
        reducer.macs(trace, "max_length", 12)
    for padding in ("batch", "sequence"):
        with pytest.raises(ValueError, match=f"padding '{padding}' needs the padded length"):
            reducer.macs(trace, padding)
    with pytest.raises(ValueError, match="12"):
        reducer.macs(trace, "sequence", 8)  # shorter than the longest text


# Methods, options, models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "meant"), [("transkimer", "transkimmer"), ("power-bert", "power_bert")])
def test_an_unknown_method_suggests_the_nearest(asked, meant):
    with pytest.raises(KeyError) as caught:
        methods.create(asked, tiny_model("bert"))
    assert f"no method '{asked}'; did you mean '{meant}'? available: dense, deebert" in str(caught.value)


def test_a_method_unlike_any_lists_all():
    with pytest.raises(KeyError) as caught:
        methods.lookup("quantize")
    assert "did you mean" not in str(caught.value) and ", ".join(methods.available()) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "known"),
    [("dense", "none"), ("deebert", "threshold, last_ramp"), ("random", "keep_schedule, draw")],
)
def test_an_unknown_option_lists_the_known(name, known):
    with pytest.raises(ValueError, match=f"{name} has no option 'lambda_'; its options: {known}"):
        methods.create(name, tiny_model("bert"), lambda_=0.5)


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_another_family_is_refused(family):
    config = transformers.AutoConfig.for_model(family, **SMALL)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    message = f"backbone '{family}' is not supported; use one of: bert, roberta, electra, distilbert, albert"
    with pytest.raises(ValueError, match=message):
        methods.create("dense", model)


@pytest.mark.parametrize("kind", ["Model", "ForMultipleChoice", "ForMaskedLM"])
def test_another_head_is_refused(kind):
    model = getattr(transformers, f"Bert{kind}")(tiny_config("bert"))
    with pytest.raises(ValueError, match=f"Bert{kind} has no supported head; use a model of these kinds: .ForSequ"):
        methods.create("transkimmer", model)


def test_what_is_no_transformer_is_refused():
    with pytest.raises(ValueError, match="backbone 'Linear' is not supported"):
        methods.create("dense", torch.nn.Linear(2, 2))


# Saved reducers ------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_plain_model_is_refused(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"'{tmp_path}' holds a 'bert' model, not a saved reducer"):
        methods.load(tmp_path)


@pytest.mark.parametrize("folder", ["", "missing", "missing/deeper"])
def test_a_folder_without_a_reducer_is_refused(tmp_path, folder):
    """Empty or not there: the message says so of the folder, and never speaks of repositories on the hub."""
    path = tmp_path / folder
    with pytest.raises((OSError, ValueError)) as caught:
        methods.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "folder" in message or "directory" in message
    assert "Repo id" not in message and "huggingface.co" not in message


def test_a_reducer_of_a_method_that_is_not_here_is_refused(tmp_path):
    tiny_reducer("random").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"random"', '"rendom"'), encoding="utf-8")
    with pytest.raises(KeyError, match="no method 'rendom'; did you mean 'random'"):
        methods.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), "x", None])
def test_an_option_that_is_a_number_takes_no_other_thing(value):
    with pytest.raises(ValueError, match=f"skim_weight of transkimmer takes a number, got {value!r}"):
        methods.create("transkimmer", tiny_model("bert"), skim_weight=value)
    reducer = methods.create("transkimmer", tiny_model("bert"))
    with pytest.raises(ValueError, match="takes a number"):
        reducer.set_options(skim_weight=value)


@pytest.mark.parametrize("name", [n for n in CASES if (knob := methods.lookup(n).traits.knob) and knob.after_training])
@pytest.mark.parametrize("pressure", [-0.1, 2, float("nan")])
def test_pressure_lies_between_none_and_all(name, pressure):
    with pytest.raises(ValueError, match=r"pressure lies in \[0, 1\], got"):
        methods.create(name, tiny_model("bert")).press(pressure)


def test_a_name_instead_of_a_model_and_a_folder_that_is_not_there_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"give create a loaded model, not its name: .*from_pretrained\('some/bert'\)"):
        methods.create("dense", "some/bert")
    with pytest.raises(ValueError, match="there is no folder '"):
        methods.load(str(tmp_path / "nowhere"))


def test_hooks_run_on_the_modules_that_the_questions_page_names():
    """Neither on layers nor on attention, whose parts the loop over layers calls."""
    reducer, called = methods.create("dense", tiny_model("bert")).eval(), set()
    layer = "bert.encoder.layer.1"
    for name, module in reducer.model.named_modules():
        module.register_forward_hook(lambda module, given, output, name=name: called.add(name))
    reducer(**make_batch())
    inside = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output", "intermediate")
    assert {f"{layer}.{name}" for name in (*inside, "output", "output.LayerNorm")} < called
    assert {"bert.embeddings", "bert.pooler", "classifier"} < called
    assert called.isdisjoint({"", "bert", "bert.encoder", layer, f"{layer}.attention", f"{layer}.attention.self"})
