"""The contract as outsiders use it: a good method passes, and a broken one is told which promise it breaks."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

import pytest
import torch

import methods
from benchmarks.environment import PROJECT_ROOT
from methods import Decision, TokenReducer, Traits
from methods.registry import register, unregister
from methods.testing import PROMISES, BrokenPromise, check_reducer

TEMPLATE = PROJECT_ROOT / "examples" / "template_method.py"
SMALL = {"families": ("bert",), "heads": ("classification", "token_classification")}


@pytest.fixture
def check():
    """Registers a class for the while of a check on one small backbone."""

    def of(cls, **settings):
        register("broken")(cls)
        return check_reducer("broken", **(SMALL | settings))

    yield of
    unregister("broken")


def largest(state):
    """A sound choice: the half of a text's tokens with the largest first component, [CLS] among them."""
    return state.rank(state.hidden[..., 0].masked_fill(state.first, torch.inf)) < state.expand(
        (state.lengths / 2).ceil()
    )


class SeparatorOnly(TokenReducer):
    """Keeps the last token of a text, which the head does not read."""

    traits = Traits(title="Separator only", dropped="forwarded")

    def before_layer(self, state):
        last = state.positions == state.expand(state.lengths) - 1
        return Decision(keep=last, drop_first=True)


class Reordering(TokenReducer):
    """Moves the kept tokens about, which attention does not notice: only a head over tokens does."""

    traits = Traits(title="Reordering", dropped="forwarded")

    def before_layer(self, state):
        return Decision(keep=largest(state))

    def after_layer(self, state):
        hidden = state.hidden.clone()
        for text in range(len(state.sequences)):
            mine = state.expand(state.sequences).expand_as(state.positions) == state.sequences[text]
            rows = (mine & state.live & ~state.first).nonzero(as_tuple=True)
            hidden[rows] = state.hidden[rows].flip(0)
        return Decision(states=hidden)


class Leaking(TokenReducer):
    """Compares tokens with the mean over all positions of the batch, pads among them."""

    traits = Traits(title="Leaking", dropped="forwarded")

    def before_layer(self, state):
        if state.layer == 0:
            embedded = self.backbone.embed(state.inputs.input_ids, None, state.inputs.position_ids)
            state.notes["level"].append(embedded[..., 0].mean())
        return Decision(keep=state.hidden[..., 0] > state.notes["level"][0])


class Masking(TokenReducer):
    """Says that tokens are dropped, and computes all of them."""

    traits = Traits(title="Masking", dropped="forwarded")

    def before_layer(self, state):
        return Decision(keep=largest(state))

    def run(self, inputs):
        with self.mode("masked"):
            return super().run(inputs)


@pytest.mark.parametrize(
    ("cls", "promise", "what"),
    [
        (SeparatorOnly, "[CLS] stays", "layer 0 of a text with 9 tokens no longer computes its first token"),
        (Reordering, "tokens keep their order", "in packed mode the head reads tokens at other places"),
        (Leaking, "padding changes nothing", "more padding changes"),
        (Masking, "tokens are removed", "rows where"),
    ],
)
def test_a_broken_method_is_told_which_promise_it_breaks(check, cls, promise, what):
    with pytest.raises(BrokenPromise) as caught:
        check(cls)
    message = str(caught.value)
    assert message.startswith(f"broken promise '{promise}': ") and what in message
    assert re.search(r" \(broken on bert, (token_)?classification\)$", message)
    assert caught.value.promise == promise and isinstance(caught.value, AssertionError)


class Refusing(TokenReducer):
    """Refuses a head, though not for the reason that it gives."""

    traits = Traits(title="Refusing", dropped="forwarded", unsupported={"span_qa": "it has no tokens"})

    def __init__(self, config, model=None):
        if type(self).__name__.endswith("QuestionAnswering"):
            raise ValueError("no")
        super().__init__(config, model)


def test_a_refusal_gives_its_reason(check):
    with pytest.raises(BrokenPromise, match=r"refused with the reason.*on a span_qa head"):
        check(Refusing, heads=("span_qa",))


def test_a_method_that_drops_nothing_is_no_reducer(check):
    class Nothing(TokenReducer):
        traits = Traits(title="Nothing")

    with pytest.raises(BrokenPromise, match="'it reduces': 99 of 99 tokens were computed"):
        check(Nothing)


def test_an_unknown_method_is_named():
    with pytest.raises(KeyError, match="no method 'unussual'"):
        check_reducer("unussual")


def test_the_template_passes_on_every_backbone_and_head():
    namespace = runpy.run_path(str(TEMPLATE), run_name="template")
    try:
        report = check_reducer(namespace["Unusual"], options={"share": 0.4}, neutral={"share": 1.0})
    finally:
        unregister("unusual")
    assert len(report.checked) == 6 * 4 and not report.refused and report.promises == tuple(PROMISES)
    assert str(report) == f"unusual: {len(PROMISES)} promises kept on 24 backbones and heads"


def test_the_contract_needs_no_test_runner():
    code = "import sys, methods.testing; sys.exit('pytest' in sys.modules or 'tests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
    assert methods.testing is not None
