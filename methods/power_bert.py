"""PoWER-BERT: every layer keeps its most attended tokens; how many is learned once per task, which ones per input.

Paper: Goyal et al., "PoWER-BERT: Accelerating BERT Inference via Progressive Word-vector Elimination", ICML 2020,
https://proceedings.mlr.press/v119/goyal20a.html
Departures by default: padding casts no votes (`count_pad_queries=True` lets it, as the public code does); a text
shorter than a layer's count keeps all its tokens, so no padding to a fixed length is needed; counts are rounded up as
in the paper (`rounding="floor"` as in the public code); the model that it starts from is fine-tuned like any other,
with dropout in its attention and before its head, where the public code has none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits
from methods.counts import check_counts, check_layers, counted_tokens, most_attended
from methods.families import TOKEN_HEADS
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, fine_tuning_stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.trace import Trace

SEARCH = "configuration_search"
WARMUP = 0.1
ADAM_EPSILON = 1e-7

# Per task (public README): learning rate of BERT, of the retention parameters, search weight [lambda], batch size.
HYPERPARAMETERS = {
    "cola": (2e-5, 1.5e-3, 7e-3, 32),
    "rte": (3e-5, 3e-3, 1e-3, 16),
    "qqp": (3e-5, 1e-4, 3e-4, 64),
    "mrpc": (6e-5, 3e-3, 3e-3, 64),
    "sst2": (3e-5, 5e-4, 2e-4, 64),
    "mnli": (3e-5, 2e-4, 1e-4, 64),
    "qnli": (3e-5, 2e-4, 1.5e-4, 16),
    "stsb": (3e-5, 3e-3, 1e-3, 64),
    "imdb": (3e-5, 2e-4, 7e-4, 32),
}
DEFAULT_HYPERPARAMETERS = (3e-5, 3e-3, 1e-3, 32)  # tasks that the README does not list: within its stated ranges
SHORT_TRAVEL, SHORT_WEIGHT = 2.0, 1e-3  # of the search; see `reachability`


@dataclass(frozen=True, kw_only=True)
class PowerBertOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        retention_configuration: tokens kept at each layer, non-increasing [l_1 .. l_L]; None keeps all (before the
            search).
        search_weight: pressure on the retention parameters in the search [lambda].
        max_length: padded length that the counts refer to [N]; length of the retention vectors.
        rounding: of learned mass to counts, "ceil" (paper) or "floor" (public code).
        exclude_diagonal: attention to oneself does not count; False is the plain column sum.
        count_pad_queries: padding is computed and its rows vote, as in the public code; results then depend on padding.
        protect_cls_soft: exempt [CLS] from scaling in the search; the public code does not.
        attention_dropout: in training; the public code has none.
    """

    retention_configuration: tuple[int, ...] | None = None
    search_weight: float = 1e-3
    max_length: int = 128
    rounding: str = "ceil"
    exclude_diagonal: bool = True
    count_pad_queries: bool = False
    protect_cls_soft: bool = False
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_counts("retention_configuration", self.retention_configuration)
        if self.rounding not in ("ceil", "floor"):
            raise ValueError(f"rounding must be 'ceil' or 'floor', got '{self.rounding}'")
        if self.search_weight < 0:
            raise ValueError(f"search_weight must be >= 0, got {self.search_weight}")


def retention_counts(retention: Tensor, rounding: str) -> tuple[int, ...]:
    """Counts per layer from retention parameters (layers, max_length): rounded mass, at least 1, never rising."""
    counts: list[int] = []
    for mass in retention.detach().double().sum(dim=1).tolist():
        # A mass that is whole up to float error must not be rounded up or down by that error.
        count = math.ceil(mass - 1e-4) if rounding == "ceil" else math.floor(mass + 1e-4)
        counts.append(min([max(1, count), *counts[-1:]]))
    return tuple(counts)


def reachability(group: ParameterGroup, updates: int) -> float:
    """Furthest that Adam can move a retention parameter in `updates` updates of the search [S]; below 1, counts cannot
    fall under max_length * (1 - S) however large the weight."""
    if group.travel is not None:
        return group.travel
    learning_rate = group.learning_rate
    rising = learning_rate * WARMUP * updates / 2
    falling = learning_rate * (1 - WARMUP) * (1 - WARMUP) * updates / 2
    return rising + falling


@register("power_bert")
class PowerBert(TokenReducer):
    """Extracts between attention and feed-forward of every layer; survivors keep their order, [CLS] always stays."""

    options_class = PowerBertOptions
    traits = Traits(
        title="PoWER-BERT",
        optimization="soft-masking",
        decision_input="attention",
        dropped="discarded",
        strategy="searched",
        pads="computed",
        unsupported=dict.fromkeys(
            TOKEN_HEADS, "removed tokens are discarded, only [CLS] reaches the head (paper, section 3)"
        ),
        knob=Knob(option="search_weight", least=1e-5, most=0.3, log=True),
    )
    sweep = Sweep(option="search_weight", values=(0.03, 0.1, 0.3, 3.0), relative=True)

    def build(self) -> None:
        self.retention: nn.Parameter | None = None  # (layers, max_length), only during the search

    def check_options(self, options: PowerBertOptions) -> None:
        super().check_options(options)
        check_layers("retention_configuration", options.retention_configuration, self.backbone.num_layers)

    def needs_scores(self, layer: int) -> bool:
        return self.retention is not None or self.options.retention_configuration is not None

    def after_attention(self, state: TokenState) -> Decision | None:
        """Rank tokens by the attention they receive from the others; scale (search) or keep the best (afterwards)."""
        if state.scores is None:
            return None
        scores = state.scores.received
        if self.options.exclude_diagonal:
            scores = scores - state.scores.diagonal
        scores = scores.detach()
        if self.retention is not None:
            ranks = state.rank(scores).clamp(max=self.retention.shape[1] - 1)
            scale = self.retention[state.layer][ranks]
            return Decision(scale=scale.masked_fill(state.first, 1.0) if self.options.protect_cls_soft else scale)
        return Decision(keep=most_attended(state, scores, self.options.retention_configuration[state.layer]))

    def follow_schedule(self, shares: Sequence[float]) -> None:
        counts = [math.ceil(share * self.options.max_length) for share in shares]
        self.set_options(retention_configuration=tuple(accumulate(counts, min)))

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """In the search, the task loss plus lambda * sum over layers j = 1 .. L of j * mass_j (section 3.3)."""
        losses = super().losses(state, logits, inputs)
        if self.retention is not None:
            losses["retention"] = self.options.search_weight * self.weighted_mass(self.retention)
        return losses

    @staticmethod
    def weighted_mass(retention: Tensor) -> Tensor:
        """Sum over layers j (1-based) of j times the mass of the layer; scalar."""
        depth = torch.arange(1, len(retention) + 1, device=retention.device, dtype=retention.dtype)
        return (depth * retention.sum(dim=1)).sum()

    def state_options(self) -> StateOptions:
        return StateOptions(
            training=self.training,
            run_padding=self.options.count_pad_queries,
            attention_dropout=None if self.stage == FINE_TUNE else self.options.attention_dropout,
        )

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With padded inputs counts are absolute, and pads are among the tokens counted."""
        counts = self.options.retention_configuration or (int(length.max()),) * self.backbone.num_layers
        return counted_tokens(counts, length)

    def begin_stage(self, stage: Stage, updates: int) -> None:
        super().begin_stage(stage, updates)
        if stage.name != SEARCH:
            return
        shape = (self.backbone.num_layers, self.options.max_length)
        self.retention = nn.Parameter(torch.ones(shape, device=self.model.device))
        bound = reachability(stage.groups[0], updates)
        if bound < 1:
            warnings.warn(
                f"PoWER-BERT search: {updates} updates can lower a retention parameter by {bound:.2f} at most, so no "
                f"layer keeps fewer than {(1 - bound):.0%} of {self.options.max_length} tokens; raise its learning "
                "rate or epochs",
                stacklevel=2,
            )

    def after_update(self) -> None:
        if self.retention is not None:
            with torch.no_grad():
                self.retention.clamp_(0.0, 1.0)

    def end_stage(self, stage: Stage) -> None:
        super().end_stage(stage)
        if self.retention is not None:
            self.set_options(retention_configuration=retention_counts(self.retention, self.options.rounding))
            self.retention = None

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Lambda (public README) and padded length of the task."""
        weight = HYPERPARAMETERS.get(task.name, DEFAULT_HYPERPARAMETERS)[2]
        return {"search_weight": SHORT_WEIGHT if recipe == "short" else weight, "max_length": task.sequence_length}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune; search the configuration with soft extraction; re-train with real extraction (section 3.5)."""
        if recipe == "short":
            retention = ParameterGroup(patterns=("retention",), travel=SHORT_TRAVEL, clipped=False)
            return [
                fine_tuning_stage(recipe),
                short_stage(SEARCH, start="previous", epochs=1, added=(retention,)),
                short_stage("retrain", start="previous", epochs=1),
            ]
        rate, soft_rate, _, batch_size = HYPERPARAMETERS.get(task.name, DEFAULT_HYPERPARAMETERS)
        shared: dict[str, Any] = {
            "warmup": WARMUP,
            "decay": "linear_unshifted",
            "adam_epsilon": ADAM_EPSILON,
            "batch_size": batch_size,
        }
        soft = (ParameterGroup(patterns=("retention",), learning_rate=soft_rate, clipped=False), *_group(rate))
        return [
            Stage(name=FINE_TUNE, start="pretrained", groups=_group(rate), select="best", **shared),
            Stage(name=SEARCH, groups=soft, **shared),
            Stage(name="retrain", groups=_group(rate), select="best", **shared),
        ]


def _group(learning_rate: float) -> tuple[ParameterGroup, ...]:
    return (ParameterGroup(learning_rate=learning_rate),)
