"""Compositions of a token reducer and an early exit: one model, two methods, the promises of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import methods
from benchmarks.tasks import get_task
from benchmarks.train import Compute, train_stage
from methods import Decision
from methods.composition import EXITS, merged
from methods.recipes import FINE_TUNE
from tests.cases import CASES, EVERY, composed
from tests.test_training import features
from tests.tiny import make_batch, tiny_model
from tests.told import agree

REDUCERS = [name for name in CASES if methods.lookup(name).traits.dropped not in (EXITS, "none")]
LEAVING = [name for name in CASES if methods.lookup(name).traits.dropped == EXITS]
JOINED = "transkimmer+deebert"


def build(reducer: str, early_exit: str) -> methods.TokenReducer:
    case = composed(reducer, early_exit)
    torch.manual_seed(1)
    together = methods.create(f"{reducer}+{early_exit}", tiny_model("bert"), **case.options).double().eval()
    case.undecided(together)
    return together


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("early_exit", LEAVING)
def test_any_reducer_joins_any_exit_and_both_modes_agree(reducer, early_exit):
    agree(build(reducer, early_exit), make_batch())


def test_the_order_of_the_names_does_not_matter():
    assert methods.lookup("deebert+transkimmer") is methods.lookup(JOINED)
    assert methods.create("deebert+transkimmer", tiny_model("bert")).config.method == JOINED


@pytest.mark.parametrize(
    "name", ["transkimmer+power_bert", "deebert+deebert", "dense+deebert", "a+b+c", "transkimmer+"]
)
def test_what_is_no_composition_is_refused(name):
    with pytest.raises(KeyError, match=r"join one token reducer and one early exit|no method"):
        methods.lookup(name)


def test_tokens_fall_as_in_the_reducer_and_texts_leave_as_in_the_exit():
    together, batch = build("transkimmer", "deebert"), make_batch()
    with torch.no_grad():
        joined = together(**batch).trace
        together.set_options(threshold=0.0)
        reduced = together(**batch).trace
    assert joined.exited.any() and not reduced.exited.any()
    ran = torch.arange(3) <= joined.exit_layers.unsqueeze(1)
    assert torch.equal(joined.ffn_tokens, reduced.ffn_tokens * ran)
    assert (together.macs(joined) < together.macs(reduced))[joined.exited].all()


def test_padded_settings_charge_nothing_after_an_exit():
    together, batch = build("power_bert", "deebert"), make_batch()
    with torch.no_grad():
        trace = together(**batch).trace
    attention, pairs, ffn = together.executed_tokens(trace, torch.full((5,), 12))
    after = torch.arange(3) > trace.exit_layers.unsqueeze(1)
    assert after.any() and not (attention * after).any() and not (pairs * after).any() and not (ffn * after).any()


def test_options_of_both_are_checked_and_saved(tmp_path):
    together = methods.create(JOINED, tiny_model("bert"), skim_weight=0.7, threshold=0.2)
    assert together.parts["transkimmer"].options.skim_weight == 0.7
    assert together.parts["deebert"].options.threshold == 0.2
    with pytest.raises(ValueError, match="temperature must be > 0"):
        methods.create(JOINED, tiny_model("bert"), temperature=0.0)
    with pytest.raises(ValueError, match="no option 'alpha'"):
        methods.create(JOINED, tiny_model("bert"), alpha=1)
    together.set_options(threshold=0.3)
    together.save_pretrained(tmp_path)
    loaded = methods.load(tmp_path)
    assert loaded.parts["deebert"].options.threshold == 0.3 and loaded.options == together.options


def test_options_that_do_not_fit_a_part_are_refused_and_nothing_changes():
    composition = methods.create(
        "lat+deebert", tiny_model("bert"), length_configuration=(8, 5, 3), max_length=12, counts="absolute"
    )
    assert composition.computes_pads
    with pytest.raises(ValueError, match="length_configuration has 2 counts for 3 layers"):
        composition.set_options(length_configuration=(4, 3))
    parts = (composition, composition.parts["lat"])
    assert all(part.options.length_configuration == (8, 5, 3) for part in parts)


def test_the_model_is_registered_once():
    together = methods.create(JOINED, tiny_model("bert"))
    assert together.parts["deebert"].model is together.model
    assert not any("parts.transkimmer.model" in name or "parts.deebert.model" in name for name in together.state_dict())


def test_the_recipe_is_the_reducers_then_the_exits():
    stages = methods.lookup(JOINED).recipe_stages(get_task("mrpc"), "paper")
    assert [stage.name for stage in stages] == ["skim", "deebert:off_ramps"]
    assert stages[1].start == "previous" and stages[1].groups[0].patterns == ("parts.deebert.off_ramps.*",)
    assert FINE_TUNE in [stage.name for stage in methods.lookup("power_bert+deebert").recipe_stages(get_task("mrpc"))]


def test_each_stage_trains_its_own_part():
    torch.manual_seed(0)
    together = methods.create(JOINED, tiny_model("bert").float(), skim_weight=0.5)
    first, second = methods.lookup(JOINED).recipe_stages(get_task("synthetic_pair"), "short")
    moved = {}
    for stage in (first, second):
        before = {name: value.clone() for name, value in together.state_dict().items()}
        result = train_stage(together, stage.but(epochs=1, batch_size=8), features(), 0, seed=1, compute=Compute())
        moved[stage.name] = {
            name for name, value in together.state_dict().items() if not torch.equal(before[name], value)
        }
        assert ("off_ramps" in result["loss_terms"]) == (stage is second)
    assert not any("off_ramps" in name for name in moved["skim"])
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in moved["deebert:off_ramps"]} == {"parts.deebert"}


@pytest.mark.parametrize("early_exit", LEAVING)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_the_exit_learns_on_the_model_as_reduced_in_use(reducer, early_exit):
    """In its stage tokens are dropped as in eval(), the loss is the exit's alone, and no part of the reducer moves."""
    together = build(reducer, early_exit).float()
    stage = together.stages(get_task("synthetic_pair"), "short")[-1]
    groups = tuple(replace(group, weight_decay=0.1) for group in stage.groups)
    batch = make_batch() | {"labels": torch.tensor([0, 1, 2, 1, 0])}
    together.begin_stage(stage, 3)
    together.eval()
    for module in together.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad(), together.parts[reducer].mode("masked"):
        used = together.parts[reducer](**batch)
    output = together.train()(**batch)
    assert torch.equal(output.trace.ffn_tokens, used.trace.ffn_tokens) and not together.parts[reducer].training
    assert set(output.losses) == set(together.parts[early_exit](**batch).losses) and together.model.training
    before = {name: value.clone() for name, value in together.named_parameters() if name.startswith(f"parts.{reducer}")}
    train_stage(together, stage.but(batch_size=8, groups=groups), features()[:24], 0, seed=1, compute=Compute())
    assert all(torch.equal(value, before[name]) for name, value in together.named_parameters() if name in before)
    assert together.train().parts[reducer].training


def test_what_a_part_finds_reaches_the_saved_options():
    """PoWER-BERT's searched counts end up in the composition's own options."""
    torch.manual_seed(0)
    together = methods.create("power_bert+deebert", tiny_model("bert").float(), max_length=16, search_weight=1.0)
    stages = methods.lookup("power_bert+deebert").recipe_stages(get_task("synthetic_pair"), "short")
    search = next(stage for stage in stages if stage.name == "configuration_search")
    train_stage(together, search.but(batch_size=8), features(), 0, seed=1, compute=Compute())
    assert len(together.config.options["retention_configuration"]) == 3


def test_decisions_merge_and_contradictions_are_refused():
    keep = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
    both = merged(
        [
            Decision(keep=keep[0], overhead_macs=torch.tensor([3])),
            None,
            Decision(keep=keep[1], overhead_macs=torch.tensor([4])),
        ]
    )
    assert both.keep.tolist() == [True, False, False] and int(both.overhead_macs) == 7
    with pytest.raises(ValueError, match="decide 'scale' at once"):
        merged([Decision(scale=torch.ones(3)), Decision(scale=torch.ones(3))])
    assert merged([None, None]) is None


def test_every_composition_of_the_contract_is_among_the_pairs():
    assert set(EVERY) - set(CASES) <= {f"{reducer}+{early_exit}" for reducer in REDUCERS for early_exit in LEAVING}
