"""DeeBERT: an off-ramp after every layer; a text leaves as soon as one is sure enough.

Paper: Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020,
https://aclanthology.org/2020.acl-main.204
Departures by default: texts leave a batch one by one (the public code takes single texts); no untrained off-ramp after
the last layer (`last_ramp=True` adds it, as released); the frozen backbone takes no part in gradient clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits, checked_pressure
from methods.exits import TOKEN_REASONS, exit_classifier, exit_macs
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, fine_tuning_stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, TokenState

RAMP_STAGE = "off_ramps"


@dataclass(frozen=True, kw_only=True)
class DeeBertOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        threshold: entropy in nats below which a text leaves [S]; 0 never exits, above ln(num_labels) always does. One
            value, or one per layer but the last. It may be changed after training (`set_options`).
        last_ramp: also consult an off-ramp after the last layer, which no stage trains: the released behaviour.
    """

    fixed = frozenset({"last_ramp"})

    threshold: float | tuple[float, ...] = 0.1
    last_ramp: bool = False

    def __post_init__(self) -> None:
        values = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"threshold must be >= 0 nats, got {self.threshold}")


class OffRamp(nn.Module):
    """Pooler and classifier of one layer: (sequences, hidden_size), as a head reads it, -> (sequences, num_labels)."""

    def __init__(self, first_dense: nn.Linear, num_labels: int, dropout: float) -> None:
        super().__init__()
        hidden_size = first_dense.in_features
        self.dense = nn.Linear(hidden_size, hidden_size, bias=first_dense.bias is not None)
        self.dense.load_state_dict(first_dense.state_dict())
        self.dropout = nn.Dropout(dropout)
        self.classifier = exit_classifier(hidden_size, num_labels)
        self.macs = exit_macs(hidden_size, num_labels)

    def forward(self, texts: Tensor) -> Tensor:
        return self.classifier(self.dropout(torch.tanh(self.dense(texts))))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits); (..., classes) -> (...). Exactly 0, not NaN, for certain predictions."""
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).clamp(max=0.0)


@register("deebert")
class DeeBert(TokenReducer):
    """Exits whole texts; every token of a text that stays is computed."""

    options_class = DeeBertOptions
    traits = Traits(
        title="DeeBERT",
        optimization="supervised off-ramps",
        decision_input="off-ramp logits",
        dropped="exits",
        strategy="searched",
        pads="computed",
        unsupported={
            "regression": "the entropy of a single output is always 0, so the exit rule is undefined",
            "multi_label": "the entropy of the exit rule is that of classes of which exactly one holds",
            **TOKEN_REASONS,
        },
        knob=Knob(option="threshold", after_training=True),
    )
    sweep = Sweep(option="threshold", values=(0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 0.99), retrains=False)

    def check_options(self, options: DeeBertOptions) -> None:
        super().check_options(options)
        count = self.backbone.num_layers - (not options.last_ramp)
        if isinstance(options.threshold, tuple) and len(options.threshold) != count:
            raise ValueError(f"threshold has {len(options.threshold)} values for {count} off-ramps")

    def build(self) -> None:
        backbone = self.backbone
        count = backbone.num_layers - (not self.options.last_ramp)
        dropout = getattr(backbone.config, "hidden_dropout_prob", getattr(backbone.config, "dropout", 0.1))
        self.off_ramps = nn.ModuleList(
            OffRamp(backbone.first_dense(), backbone.num_labels, dropout) for _ in range(count)
        )

    def after_layer(self, state: TokenState) -> Decision | None:
        """Leave with the off-ramp's logits where their entropy is below the threshold, strictly."""
        if state.layer >= len(self.off_ramps):
            return None
        ramp = cast(OffRamp, self.off_ramps[state.layer])
        logits = ramp(state.read(self.backbone))
        overhead = torch.full(logits.shape[:1], ramp.macs, device=logits.device)
        if self.training:
            state.notes["ramp_logits"].append(logits)
            return Decision(overhead_macs=overhead)
        return Decision(exit=entropy(logits) < self._threshold(state.layer), logits=logits, overhead_macs=overhead)

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """The sum of the off-ramps' cross-entropies (section 3.1), alone in its own stage, else beside the head's."""
        if self.stage == FINE_TUNE:
            return super().losses(state, logits, inputs)
        assert inputs.labels is not None
        trained = state.notes["ramp_logits"][: self.backbone.num_layers - 1]
        ramps = torch.stack([self.task_loss(z, inputs.labels).mean() for z in trained]).sum()
        if self.stage == RAMP_STAGE:
            return {"off_ramps": ramps}
        return super().losses(state, logits, inputs) | {"off_ramps": ramps}

    def press(self, pressure: float) -> None:
        """From no exit to all of them, finest near the greatest entropy, where little trained off-ramps all are."""
        share = 1 - (1 - checked_pressure(pressure)) ** 4
        self.set_options(threshold=share * math.log(self.backbone.num_labels) * (1 + 1e-6))

    def _threshold(self, layer: int) -> float:
        threshold = self.options.threshold
        return threshold[layer] if isinstance(threshold, tuple) else threshold

    @classmethod
    def sweep_values(cls, task: Any, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """The shares of the greatest entropy that `num_labels` classes can have, in nats."""
        return tuple(round(share * math.log(task.num_labels), 4) for share in cls.sweep.values)

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """The paper chooses the threshold per task on held-out data; the short recipe takes one for all."""
        return {"threshold": 0.55} if recipe == "short" else {}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune the backbone; freeze it and train the off-ramps (section 3.1)."""
        if recipe == "short":
            ramps = short_stage(RAMP_STAGE, start="previous", epochs=2, added=_ramps(1e-3), frozen=True)
            return [fine_tuning_stage(recipe), ramps]
        shared: dict[str, Any] = {"epochs": 10 if family == "roberta" else 3, "batch_size": 8, "max_grad_norm": 1.0}
        return [
            Stage(name=FINE_TUNE, start="pretrained", groups=(ParameterGroup(learning_rate=2e-5),), **shared),
            Stage(name=RAMP_STAGE, groups=_ramps(2e-5), **shared),
        ]


def _ramps(learning_rate: float) -> tuple[ParameterGroup, ...]:
    return (ParameterGroup(patterns=("off_ramps.*",), learning_rate=learning_rate),)
