"""PABEE: an exit after every layer; a text leaves as soon as several exits in a row have answered alike.

Paper: Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020,
https://arxiv.org/abs/2006.04152
All exits share the pooler of the model's own head, and that head is the last exit.
Departures by default: each text of a batch has its own counter and leaves on its own (the public code takes single
texts; `leave_together` is what its rule does to a batch); the regression tolerance is 0.1, which the public README
suggests, not the public default of 0, which never exits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits, checked_pressure
from methods.exits import TOKEN_REASONS, exit_classifier, exit_macs
from methods.recipes import ParameterGroup, Stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, TokenState

JOINT_STAGE = "exits"


@dataclass(frozen=True, kw_only=True)
class PabeeOptions(Options):
    """Options; the paper's symbol in brackets. All may be changed after training (`set_options`).

    Attributes:
        patience: how often in a row an exit must agree with the one before for a text to leave [t], so that the first
            way out is after layer t + 1; 0 always runs all layers. None: half the layers, which is the 6 of 12 behind
            the published speed-up.
        regression_tolerance: values closer than this agree [tau], in the label's unit; 0 never exits.
        leave_together: exits agree only where they do for every text of the batch, which then leaves as one: the
            released rule. Predictions and costs then depend on batch mates.
    """

    patience: int | None = None
    regression_tolerance: float = 0.1
    leave_together: bool = False

    def __post_init__(self) -> None:
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 0):
            raise ValueError(f"patience must be a whole number >= 0 (or None), got {self.patience}")
        if not self.regression_tolerance >= 0:
            raise ValueError(f"regression_tolerance must be >= 0, got {self.regression_tolerance}")


def depth_weights(count: int) -> Tensor:
    """Weights of the losses of `count` exits, first layer first: proportional to 1 .. count, 1 in all; (count,)."""
    depth = torch.arange(1, count + 1)
    return depth / depth.sum()


@register("pabee")
class Pabee(TokenReducer):
    """Exits whole texts; every token of a text that stays is computed."""

    options_class = PabeeOptions
    traits = Traits(
        title="PABEE",
        optimization="supervised exits",
        decision_input="agreement of exits",
        dropped="exits",
        strategy="searched",
        pads="computed",
        unsupported=TOKEN_REASONS,
        knob=Knob(option="patience", after_training=True),
    )
    sweep = Sweep(option="patience", retrains=False)

    def build(self) -> None:
        backbone = self.backbone
        self.classifiers = nn.ModuleList(
            exit_classifier(backbone.hidden_size, backbone.num_labels) for _ in range(backbone.num_layers - 1)
        )

    @property
    def patience(self) -> int:
        """Agreements in a row that an exit needs; 0: none is asked."""
        return self.backbone.num_layers // 2 if self.options.patience is None else self.options.patience

    def after_layer(self, state: TokenState) -> Decision | None:
        """Leave with the exit's logits where it is the t-th in a row to agree with the one before."""
        if state.layer >= len(self.classifiers) or not (self.training or self.patience):
            return None
        logits = self.classifiers[state.layer](self.backbone.pool(state.read(self.backbone)))
        macs = exit_macs(self.backbone.hidden_size, self.backbone.num_labels)
        overhead = torch.full(logits.shape[:1], macs, device=logits.device)
        if self.training:
            state.notes["exit_logits"].append(logits)
            return Decision(overhead_macs=overhead)
        agreements = self._agreements(state, logits.detach())
        return Decision(exit=agreements == self.patience, logits=logits, overhead_macs=overhead)

    def press(self, pressure: float) -> None:
        """As many agreements as there are exits at pressure 0, which never exits, down to one."""
        most = len(self.classifiers)
        self.set_options(patience=most - round(checked_pressure(pressure) * (most - 1)))

    def _agreements(self, state: TokenState, logits: Tensor) -> Tensor:
        """How many exits in a row, up to this layer's, agreed with the one before; (sequences,) long.

        `state.notes` has the latest answers (batch, ...) and agreements (batch,) of every text of the batch, those
        that have left included.
        """
        answers, present, notes = self._answers(logits), state.sequences, state.notes
        if state.layer == 0:  # no text has left yet
            notes["answers"], notes["agreements"] = [answers], [torch.zeros_like(present)]
            return notes["agreements"][0]
        same = self._same(answers, notes["answers"][0][present])
        if self.options.leave_together:
            same = same.all().expand_as(same)
        agreements = (notes["agreements"][0][present] + 1) * same
        notes["answers"] = [notes["answers"][0].index_copy(0, present, answers)]
        notes["agreements"] = [notes["agreements"][0].index_copy(0, present, agreements)]
        return agreements

    def _answers(self, logits: Tensor) -> Tensor:
        """What an exit says: values, the class, or which of several labels hold; logits' shape, or (sequences, 1)."""
        if self.backbone.head == "regression":
            return logits
        if self.backbone.multi_label:
            return logits > 0
        return logits.argmax(dim=-1, keepdim=True)

    def _same(self, answers: Tensor, previous: Tensor) -> Tensor:
        """Whether two exits agree on each text; (sequences,) bool."""
        if self.backbone.head == "regression":
            return ((answers - previous).abs() < self.options.regression_tolerance).all(dim=-1)
        return (answers == previous).all(dim=-1)

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """The mean of the task loss over all exits, the model's own head last, weighted by depth."""
        assert inputs.labels is not None
        exits = [*state.notes["exit_logits"], logits]
        each = torch.stack([self.task_loss(z, inputs.labels).mean() for z in exits])
        weighted = depth_weights(len(exits)).to(each) * each
        return {"task": weighted[-1], "exits": weighted[:-1].sum()}

    @classmethod
    def sweep_values(cls, task: Any, metrics: Mapping[str, Any]) -> tuple[int, ...]:
        """Every patience with which a text may leave before the last layer, the greatest first."""
        layers = len(next(iter(metrics["splits"].values()))["cost"]["exits"])
        return tuple(range(layers - 2, 0, -1))

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """The paper searches the patience per task; the short recipe takes one for all.

        Chosen on held-out training rows with 6 layers. After so little training, [CLS] of the first four layers hardly
        differs from text to text, so their exits agree whatever the text, and less patience stops there. Values of the
        fifth exit vary less than the last one's: a larger tolerance mixes the two scales.
        """
        if recipe != "short":
            return {}
        return {"patience": 4} | ({"regression_tolerance": 0.05} if task.kind == "regression" else {})

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """One stage: backbone and all exits together, from the pre-trained weights (public script)."""
        if recipe == "short":
            classifiers = ParameterGroup(patterns=("classifiers.*",), learning_rate=1e-3)
            return [short_stage(JOINT_STAGE, start="dense", epochs=2, added=(classifiers,))]
        groups = (ParameterGroup(learning_rate=2e-5),)
        return [Stage(name=JOINT_STAGE, start="pretrained", epochs=5, groups=groups, batch_size=32, max_grad_norm=1.0)]
