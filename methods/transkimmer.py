"""Transkimmer: a small predictor before each layer learns which tokens skip all the rest.

Paper: Guan et al., "Transkimmer: Transformer Learns to Layer-wise Skim", ACL 2022,
https://aclanthology.org/2022.acl-long.502
Departures by default: attention weights of kept tokens are renormalised, so that masking equals removal (equation 4
does not: `skim_attention="unnormalised"`); the skim loss counts real tokens (`skim_loss_over="padded"` counts pads, as
published); evaluation takes the likelier choice instead of sampling (`sample_in_eval`). Not covered: skimming in
pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.attention import NORMALISATIONS
from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits
from methods.recipes import ParameterGroup, Stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState

INITIALIZER_STD = 0.02
KEEP_BIAS = 5.0  # mu_0 of the paper: at first a token is kept with probability sigmoid(10)


@dataclass(frozen=True, kw_only=True)
class TranskimmerOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        skim_weight: weight of the skim loss [lambda]; 0 trains without pressure to skim.
        temperature: of the Gumbel-softmax [tau]; 1.0 in the public code, 0.1 in the paper. Only the gradient depends
            on it.
        skim_warmup: share of the training over which the skim weight rises from 0; the paper has none.
        predictor_norm: LayerNorm in front of the predictor; in the public code, not in the paper's text.
        skim_attention: "renormalised", "unnormalised" (equation 4) or "epsilon" (evaluation branch); masked mode only.
        skim_loss_over: "real" tokens, or "padded" as the public code counts.
        sample_in_eval: draw decisions at evaluation too, as the public code does.
        skimmed: what a head over tokens reads of a skimmed token: its last state, "forwarded", or nothing, "discarded"
            (zeros; what Table 1 sets the first apart from). A head over texts reads neither.
    """

    later = frozenset({"skimmed"})
    fixed = frozenset({"predictor_norm"})

    skim_weight: float = 0.5
    temperature: float = 1.0
    skim_warmup: float = 0.0
    predictor_norm: bool = True
    skim_attention: str = "renormalised"
    skim_loss_over: str = "real"
    sample_in_eval: bool = False
    skimmed: str = "forwarded"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be > 0, got {self.temperature}; use a small one (0.1) for nearly hard choices"
            )
        if self.skim_weight < 0:
            raise ValueError(f"skim_weight must be >= 0, got {self.skim_weight}")
        if self.skim_attention not in NORMALISATIONS:
            raise ValueError(f"skim_attention must be one of {', '.join(NORMALISATIONS)}, got '{self.skim_attention}'")
        if self.skim_loss_over not in ("real", "padded"):
            raise ValueError(f"skim_loss_over must be 'real' or 'padded', got '{self.skim_loss_over}'")
        if self.skimmed not in ("forwarded", "discarded"):
            raise ValueError(f"skimmed must be 'forwarded' or 'discarded', got '{self.skimmed}'")


class SkimPredictor(nn.Sequential):
    """(LayerNorm) - Linear - LayerNorm - GELU - Linear; (*tokens, hidden_size) -> (*tokens, 2): skim, keep."""

    def __init__(self, hidden_size: int, *, leading_norm: bool) -> None:
        first, last = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 2)
        norms = [nn.LayerNorm(hidden_size)] if leading_norm else []
        super().__init__(*norms, first, nn.LayerNorm(hidden_size), nn.GELU(), last)
        nn.init.normal_(first.weight, std=INITIALIZER_STD)
        nn.init.zeros_(first.bias)
        nn.init.normal_(last.weight, std=INITIALIZER_STD)
        with torch.no_grad():
            last.bias.copy_(torch.normal(torch.tensor([-KEEP_BIAS, KEEP_BIAS]), INITIALIZER_STD))
        self.macs_per_token = hidden_size * hidden_size + 2 * hidden_size


@register("transkimmer")
class Transkimmer(TokenReducer):
    """Skims before every layer; a skimmed token is carried, unchanged, to the output (section 3)."""

    options_class = TranskimmerOptions
    traits = Traits(
        title="Transkimmer",
        optimization="reparameterization",
        decision_input="embedding",
        dropped="forwarded",
        strategy="learned",
        as_released={"skim_attention": "unnormalised", "sample_in_eval": True},
        knob=Knob(option="skim_weight", least=0.02, most=10.0, log=True),
    )
    sweep = Sweep(option="skim_weight", values=(0.25, 0.5, 2.0, 4.0), relative=True)

    def build(self) -> None:
        self.predictors = nn.ModuleList(
            SkimPredictor(self.backbone.hidden_size, leading_norm=self.options.predictor_norm)
            for _ in range(self.backbone.num_layers)
        )

    def before_layer(self, state: TokenState) -> Decision:
        """Choose which live tokens this layer still computes (section 3.2, equations 1 to 3)."""
        predictor = cast(SkimPredictor, self.predictors[state.layer])
        logits = predictor(state.hidden).float()  # (*tokens, 2): skim, keep
        overhead = state.counts() * predictor.macs_per_token
        if not self.training and not self.options.sample_in_eval:
            return Decision(keep=logits[..., 1] >= logits[..., 0], overhead_macs=overhead)
        soft = F.gumbel_softmax(logits, tau=self.options.temperature, dim=-1)
        keep = soft[..., 1] >= soft[..., 0]
        if not self.training:
            return Decision(keep=keep, overhead_macs=overhead)
        gate = keep + (soft[..., 1] - soft[..., 1].detach())  # exactly 0 or 1, with the gradient of the soft sample
        cascade = gate if state.gate is None else gate * state.gate
        state.notes["gates"].append(cascade.masked_fill(state.first, 1.0))
        return Decision(keep=keep, gate=gate, overhead_macs=overhead)

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Task loss plus lambda times the mean share of tokens kept (equations 5 and 6)."""
        return super().losses(state, logits, inputs) | {"skim": self._skim_weight() * self.skim_loss(state, inputs)}

    def skim_loss(self, state: TokenState, inputs: Inputs) -> Tensor:
        """Mean over layers and sequences of the share of tokens kept; scalar in (0, 1]."""
        gates = torch.stack(state.notes["gates"])  # (layers, batch, seq_len)
        if self.options.skim_loss_over == "padded":
            return gates.mean()
        return ((gates * inputs.attention_mask).sum(dim=-1) / state.lengths).mean()

    def state_options(self) -> StateOptions:
        forwards = self.options.skimmed == "forwarded"
        return StateOptions(training=self.training, forwards=forwards, normalisation=self.options.skim_attention)

    def _skim_weight(self) -> float:
        warmup = self.options.skim_warmup
        return self.options.skim_weight * (min(1.0, self.progress / warmup) if warmup else 1.0)

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Lambda per task (Table 2); the short recipe raises it from 0, as its few updates need fast predictors."""
        return {"skim_weight": task.skim_weight} | ({"skim_warmup": 0.3} if recipe == "short" else {})

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """One stage: backbone and predictors together, from the pre-trained weights (public training scripts)."""
        if recipe == "short":
            predictors = ParameterGroup(patterns=("predictors.*",), learning_rate=2e-3)
            return [short_stage("skim", start="dense", epochs=2, added=(predictors,))]
        if task.name == "squad_v2":
            return [
                Stage(name="skim", start="pretrained", epochs=5, groups=_group(3e-5), batch_size=64, adam_epsilon=1e-6)
            ]
        if task.name in ("20news", "yelp"):
            epochs = 5 if task.name == "20news" else 2
            return [
                Stage(
                    name="skim", start="pretrained", epochs=epochs, groups=_group(3e-5), warmup=0.1, max_grad_norm=1.0
                )
            ]
        epochs = 5 if task.name in ("wnli", "mrpc") else 3
        return [
            Stage(name="skim", start="pretrained", epochs=epochs, groups=_group(2e-5), batch_size=64, adam_epsilon=1e-6)
        ]


def _group(learning_rate: float) -> tuple[ParameterGroup, ...]:
    return (ParameterGroup(learning_rate=learning_rate),)
