"""A method of your own, to begin with: copy this file, rename it, and change what `before_layer` decides.

    python examples/template_method.py

checks it against the contract in seconds. From a package of your own, it is found by name in every command if its
pyproject.toml says so:

    [project.entry-points."skimbench.methods"]
    unusual = "my_package.unusual:Unusual"
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods import Decision, Options, TokenReducer, TokenState, Traits, register
from methods.testing import check_reducer


@dataclass(frozen=True, kw_only=True)
class UnusualOptions(Options):
    """Options.

    Attributes:
        share: of a text's tokens that the last layer computes, in (0, 1]; layers before keep more, in equal steps.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")


@register("unusual")
class Unusual(TokenReducer):
    """Keeps the tokens that are least like the mean of their text. Not a paper's method: it shows the interface.

    Hooks see tokens as `*tokens`: (batch, seq_len) in training, (total_tokens,) in evaluation, when removed tokens are
    gone. What `TokenState` offers (`rank`, `sum`, `expand`, `counts`) works on either, so decide with these, per text:
    then padding and batch mates change nothing.
    """

    options_class = UnusualOptions
    traits = Traits(title="Unusual", decision_input="hidden state", dropped="forwarded", strategy="given")

    def build(self) -> None:
        """Modules to be trained would be made here. `self.backbone` knows the model's sizes."""

    def before_layer(self, state: TokenState) -> Decision:
        """Keep the tokens farthest from the mean, [CLS] first among them."""
        mean = state.sum(state.hidden) / state.counts().unsqueeze(1)  # (sequences, hidden_size)
        distance = (state.hidden - state.expand(mean)).norm(dim=-1).masked_fill(state.first, torch.inf)
        depth = (state.layer + 1) / self.backbone.num_layers
        share = 1 - (1 - self.options.share) * depth  # read here, so that `set_options` takes effect
        wanted = (state.lengths * share).ceil()  # of the input's tokens, one number per text
        return Decision(keep=state.rank(distance) < state.expand(wanted))


if __name__ == "__main__":
    print(check_reducer("unusual", options={"share": 0.4}, neutral={"share": 1.0}))
