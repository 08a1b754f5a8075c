"""Random: drops tokens at random to a given schedule. The sanity baseline that every method must beat.

No paper. The draw depends on the text, the seed and the position alone, so padding, batch mates and the run mode
change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from methods.base import TokenReducer
from methods.config import Options, Sweep, Traits
from methods.recipes import ParameterGroup, Stage, short_stage
from methods.registry import register
from methods.state import Decision, TokenState

MASK = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class RandomOptions(Options):
    """Options.

    Attributes:
        keep_schedule: share of a text's tokens that each layer keeps, one per layer, each in (0, 1]; None halves the
            number of tokens over the depth of the model. Where it rises, tokens leap over layers instead of being
            dropped, as in the method whose schedule that is.
        draw: seed of the draw.
    """

    keep_schedule: tuple[float, ...] | None = None
    draw: int = 0

    def __post_init__(self) -> None:
        if self.keep_schedule is not None and not all(0 < share <= 1 for share in self.keep_schedule):
            raise ValueError(f"keep_schedule must hold shares in (0, 1], got {self.keep_schedule}")


def mix(values: Tensor) -> Tensor:
    """A fixed scrambling of non-negative int64 values into [0, 2^31), the same on every device."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        values = ((values ^ (values >> 16)) * factor) & MASK
    return values ^ (values >> 16)


@register("random")
class Random(TokenReducer):
    """Keeps the first tokens of one random order per text, fewer at each layer; dropped tokens are forwarded."""

    options_class = RandomOptions
    traits = Traits(
        title="Random",
        decision_input="none",
        dropped="forwarded",
        strategy="given",
    )
    sweep = Sweep(option="keep_schedule", values=(0.8, 0.5, 0.2, 0.05, 0.01))

    @classmethod
    def sweep_options(cls, value: float, own: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """A schedule that falls geometrically to the share `value` at the last layer."""
        return {"keep_schedule": tuple(round(value ** ((layer + 1) / layers), 4) for layer in range(layers))}

    def build(self) -> None:
        self._followed: tuple[float, ...] | None = None  # a schedule for timing, which may hold no tokens at all

    def check_options(self, options: RandomOptions) -> None:
        super().check_options(options)
        layers, schedule = self.backbone.num_layers, options.keep_schedule
        if schedule is not None and len(schedule) != layers:
            raise ValueError(f"keep_schedule has {len(schedule)} shares for {layers} layers")

    def set_options(self, **changes: Any) -> None:
        super().set_options(**changes)
        self._followed = None

    @property
    def schedule(self) -> tuple[float, ...]:
        """Share of a text's tokens that each layer keeps."""
        layers = self.backbone.num_layers
        halving = tuple(1 - 0.5 * (layer + 1) / layers for layer in range(layers))
        return self._followed or self.options.keep_schedule or halving

    @property
    def leaps(self) -> bool:
        """Whether tokens come back; never while a schedule is followed for timing."""
        given = self.options.keep_schedule
        return self._followed is None and given is not None and any(b > a for a, b in pairwise(given))

    def before_layer(self, state: TokenState) -> Decision:
        """Keep ceil(share * length) tokens, [CLS] first among them."""
        if state.layer == 0:
            state.notes["text"].append(self._text_hash(state))
        order = mix(state.expand(state.notes["text"][0][state.sequences]) + state.positions * 7919).masked_fill(
            state.first, MASK + 1
        )
        # Shares are rounded so that 0.3 * 10 keeps 3 tokens, whatever the float says.
        wanted = (state.lengths * self.schedule[state.layer] - 1e-4).ceil().long()
        keep = state.rank(order.double()) < state.expand(wanted)
        return Decision(leap=~keep & state.live) if self.leaps else Decision(keep=keep)

    def follow_schedule(self, shares: Sequence[float]) -> None:
        self._followed = tuple(shares)

    def _text_hash(self, state: TokenState) -> Tensor:
        """One number per text, (sequences,) long."""
        tokens = mix(state.input_ids * 31 + state.positions + self.options.draw * 1_000_003)
        return state.sum(tokens) & MASK

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune the dense model further while tokens are dropped, so that the baseline is a trained one."""
        if recipe == "short":
            return [short_stage("drop", start="dense", epochs=0.5)]
        return [
            Stage(name="drop", start="dense", epochs=3, groups=(ParameterGroup(learning_rate=2e-5),), batch_size=32)
        ]
