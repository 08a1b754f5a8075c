"""LTP: each layer drops the tokens whose received attention is below its threshold; the thresholds are learned.

Paper: Kim et al., "Learned Token Pruning for Transformers", KDD 2022, https://doi.org/10.1145/3534678.3539260
Departures by default: scores are divided by a pinned length, as in the public code, where the paper writes the text's
own (`score_divisor="live"`); thresholds rise from layer 1 on as documented (`schedule="code"`: the public code's, one
layer later, so that the first never prunes); padding is no part of the regulariser (`regularise_over="padded"`) and the
first token always stays. A threshold has no floor (public code: 1e-5). Thresholds are saved as they are, not as
offsets to a schedule. Scores are read before attention dropout (`noisy_scores`), and the gradient clip leaves the
thresholds out (public code: clipped together with the weights). For span heads a pruned token keeps its last state; the
public code goes on computing it, as it computes every token (`mask_only=True`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits
from methods.precision import ScalarsInFloat32
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, fine_tuning_stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState

SOFT, HARD = "soft", "hard"  # stages
SMALL_TASKS = ("cola", "rte", "mrpc", "stsb", "wnli")  # ten epochs of soft pruning instead of one
SQUAD_LENGTH = 384  # of its published training, probably; thresholds start from the same multiple of the mean score
SHORT_THRESHOLD, SHORT_TRAVEL = 5e-3, 2e-3  # of the last layer, and how far it is learned; a mean score is 1/128


@dataclass(frozen=True, kw_only=True)
class LtpOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        final_threshold: threshold that the last layer starts from [theta]; the others rise linearly towards it.
        schedule: "paper" (layer l of L starts at l / L of it, l from 1) or "code" (l from 0: the first never prunes).
        temperature: of the soft mask [T].
        pruning_weight: weight of the regulariser, a sum over layers [lambda].
        score_divisor: what the attention received is divided by, beside the heads: "reference", a fixed
            `reference_length`, or "live", the tokens present.
        reference_length: padded length of the published training (GLUE: 128; the recipe sets 384 for SQuAD, and a third
            of the threshold); the mean score is its inverse, whatever the text.
        regularise_over: "real" tokens, or "padded" as the public code counts.
        noisy_scores: in training, scores are read after attention dropout, as in the public code.
        mask_only: pruned tokens are hidden as keys and still computed, as in the public code: saves nothing.
    """

    fixed = frozenset({"final_threshold"})

    final_threshold: float = 0.01
    schedule: str = "paper"
    temperature: float = 1e-3
    pruning_weight: float = 0.1
    score_divisor: str = "reference"
    reference_length: int = 128
    regularise_over: str = "real"
    noisy_scores: bool = False
    mask_only: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}; 1e-3 to 1e-5 were published")
        if self.pruning_weight < 0:
            raise ValueError(f"pruning_weight must be >= 0, got {self.pruning_weight}")
        if self.reference_length < 1:
            raise ValueError(f"reference_length must be at least 1, got {self.reference_length}")
        for name, allowed in (
            ("schedule", ("paper", "code")),
            ("score_divisor", ("reference", "live")),
            ("regularise_over", ("real", "padded")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be '{allowed[0]}' or '{allowed[1]}', got '{getattr(self, name)}'")


def starting_thresholds(options: LtpOptions, layers: int) -> Tensor:
    """Thresholds before training, (layers,) float32, rising linearly."""
    first = 1 if options.schedule == "paper" else 0
    return options.final_threshold * torch.arange(first, layers + first, dtype=torch.float32) / layers


@register("ltp")
class Ltp(ScalarsInFloat32, TokenReducer):
    """Prunes between attention and feed-forward; how many tokens go depends on the text."""

    options_class = LtpOptions
    traits = Traits(
        title="LTP",
        optimization="soft-masking",
        decision_input="attention",
        dropped="discarded",
        strategy="learned",
        as_released={"mask_only": True},
        knob=Knob(option="pruning_weight", least=1e-4, most=10.0, log=True),
    )
    sweep = Sweep(option="thresholds", values=(0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0), relative=True, retrains=False)

    _keep_in_fp32_modules_strict = {"thresholds"}  # noqa: RUF012

    def build(self) -> None:
        self.thresholds = nn.Parameter(starting_thresholds(self.options, self.backbone.num_layers))

    def prunes(self, layer: int) -> bool:
        """Whether `layer` has a threshold at all; none has in the stage that trains the dense model."""
        return self.stage != FINE_TUNE and (layer > 0 or self.options.schedule == "paper")

    def needs_scores(self, layer: int) -> bool:
        return self.prunes(layer)

    def sweep_to(self, value: float) -> None:
        """Scale the learned thresholds by `value`; 0 prunes nothing."""
        with torch.no_grad():
            self.thresholds.mul_(value)

    @property
    def _soft(self) -> bool:
        return self.training and self.stage != HARD

    def after_attention(self, state: TokenState) -> Decision | None:
        """Soft stage: note the soft mask of each token; else keep what reaches the threshold (section 3.2)."""
        if not self.prunes(state.layer):
            return None
        scores = self.scores(state)
        threshold = self.thresholds[state.layer].to(scores.dtype)
        if self._soft:
            state.notes["soft_masks"].append(torch.sigmoid((scores - threshold) / self.options.temperature))
            return None
        return Decision(keep=scores >= threshold)

    def after_layer(self, state: TokenState) -> Decision | None:
        """Soft stage: scale the layer's output by the soft mask (section 3.3)."""
        if not self._soft or not self.prunes(state.layer):
            return None
        return Decision(scale=state.notes["soft_masks"][-1])

    def scores(self, state: TokenState) -> Tensor:
        """Importance (*tokens): mean over heads and queries of the attention received (equation 2); 0 for the dead."""
        assert state.scores is not None
        if self.options.score_divisor == "live":
            return state.scores.received / state.expand(state.counts())
        return state.scores.received / self.options.reference_length

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Task loss; in the soft stage plus lambda times the regulariser."""
        losses = super().losses(state, logits, inputs)
        if self._soft and self.stage in (None, SOFT):
            losses["pruning"] = self.options.pruning_weight * self.regulariser(state, inputs)
        return losses

    def regulariser(self, state: TokenState, inputs: Inputs) -> Tensor:
        """Sum over layers of the mean soft mask; scalar in [0, layers]."""
        masks = torch.stack(state.notes["soft_masks"])  # (layers, batch, seq_len)
        if self.options.regularise_over == "padded":
            return masks.mean(dim=(1, 2)).sum()
        return (masks * inputs.attention_mask).sum() / inputs.attention_mask.sum()

    def state_options(self) -> StateOptions:
        return StateOptions(
            training=self.training,
            forwards=self.backbone.reads_tokens,
            noisy_scores=self.options.noisy_scores,
            refine_removed=self.options.mask_only,
        )

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """SQuAD's divisor; the short recipe starts from milder thresholds, as it cannot win back what these lose."""
        if recipe == "short":
            return {"final_threshold": SHORT_THRESHOLD}
        if task.name != "squad_v2":
            return {}
        threshold = LtpOptions.final_threshold * LtpOptions.reference_length / SQUAD_LENGTH
        return {"reference_length": SQUAD_LENGTH, "final_threshold": threshold}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune; learn thresholds with soft masks; freeze them and fine-tune with real pruning (section 3.3)."""
        if recipe == "short":
            thresholds = _thresholds(travel=SHORT_TRAVEL)
            return [
                short_stage(SOFT, start="dense", epochs=1, added=(thresholds,)),
                _hard(short_stage(HARD, start="previous", epochs=1), 5e-5),
            ]
        shared: dict[str, Any] = {"batch_size": 64, "max_grad_norm": 1.0}
        soft = Stage(
            name=SOFT,
            epochs=10 if task.name in SMALL_TASKS else 1,
            groups=(_thresholds(2e-5), ParameterGroup(learning_rate=2e-5)),
            **shared,
        )
        return [
            fine_tuning_stage(recipe),
            soft,
            _hard(Stage(name=HARD, epochs=5, select="best", **shared), 1e-5),
        ]


def _thresholds(learning_rate: float = 0.0, travel: float | None = None) -> ParameterGroup:
    """Clipped apart from the weights: 1 / T makes these gradients large."""
    return ParameterGroup(patterns=("thresholds",), learning_rate=learning_rate, travel=travel, clipped=False)


def _hard(stage: Stage, learning_rate: float) -> Stage:
    """The stage with every parameter but the thresholds in training."""
    return stage.but(groups=(ParameterGroup(but_not=("thresholds",), learning_rate=learning_rate),))
