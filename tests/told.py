"""A private method that does what a test tells it, and ways to run and compare it."""

from __future__ import annotations

import pytest
import torch

import methods
from methods import TokenReducer, Traits
from methods.encoder import encode
from methods.registry import register, unregister
from tests.tiny import logits_of, tiny_model

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
TRACED = ("attention_tokens", "attention_pairs", "ffn_tokens", "exit_layers", "exited", "overhead_macs", "keep_masks")
HOOKS = ("before_layer", "after_attention", "after_layer")


class Told(TokenReducer):
    """Answers a hook as the test says: `plan[hook, layer]` is called with the state."""

    traits = Traits(title="Told", dropped="forwarded")

    def build(self):
        self.plan, self.scored = {}, ()

    def needs_scores(self, layer):
        return layer in self.scored

    def _ask(self, hook, state):
        answer = self.plan.get((hook, state.layer))
        return answer(state) if answer else None

    def before_layer(self, state):
        return self._ask("before_layer", state)

    def after_attention(self, state):
        return self._ask("after_attention", state)

    def after_layer(self, state):
        return self._ask("after_layer", state)


class Discarding(Told):
    """The same, but what is dropped is lost."""

    traits = Traits(title="Discarding", dropped="discarded", unsupported={"span_qa": "tokens are lost"})


@pytest.fixture
def build():
    """Registers a private method and puts it on a tiny model; its name is free again afterwards."""
    names = []

    def on_tiny_model(cls=Told, family="bert", head="classification", **options):
        names.append(cls.__name__.lower())
        register(names[-1])(cls)
        return methods.create(names[-1], tiny_model(family, head), **options).double().eval()

    yield on_tiny_model
    for name in names:
        unregister(name)


def at(state, table):
    """Entries of a (batch, seq_len, ...) table that belong to the state's tokens, in either mode's layout."""
    return state.at(table)


def table(*shape, share=0.5, seed=0):
    """Seeded random True and False."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def run(reducer, batch, mode):
    with torch.no_grad(), reducer.mode(mode):
        return reducer(**batch)


def agree(reducer, batch):
    """Check that both modes give the same logits and trace; returns the packed result."""
    packed, masked = (run(reducer, batch, mode) for mode in ("packed", "masked"))
    mask = batch["attention_mask"]
    torch.testing.assert_close(logits_of(packed, mask), logits_of(masked, mask), **TIGHT)
    for name in TRACED:
        assert torch.equal(getattr(packed.trace, name), getattr(masked.trace, name)), name
    return packed


def final_states(reducer, batch, mode):
    """Last state of every token of a span model, (batch, seq_len, hidden_size), 0 on pads."""
    reducer.model.qa_outputs = torch.nn.Identity()
    with torch.no_grad():
        state = encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
        return state.outputs(reducer.backbone) * batch["attention_mask"].unsqueeze(-1)


def stock_layers(model, hidden, masks):
    """Run the stock model's own layers with one attention mask each, then its classifier."""
    for layer, mask in zip(model.bert.encoder.layer, masks, strict=True):
        hidden = layer(hidden, attention_mask=mask)
    return model.classifier(model.bert.pooler(hidden))
