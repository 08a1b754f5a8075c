"""Leap-of-Thought (LoT): before each layer a router lets tokens leap over it; they are back at the next one.

Paper: Kim et al., "Leap-of-Thought: Accelerating Transformers via Dynamic Token Routing", EMNLP 2023,
https://aclanthology.org/2023.emnlp-main.976
Departures by default: leaping tokens really leap (`forward="as_released"` still refines them as queries in every
layer); evaluation takes the likelier choice instead of sampling (`sample_in_eval`); neither the router's context nor
the labels' softmax sees padding, and [CLS] takes no part in the latter (`router_context="padded_mean"`,
`label_softmax="all_positions"`); the summary token has no bonus in attention (`summary_bias=1.0`); labels are made
from the batch itself, where the public code reads them from a file, often from another text's row.
Of the summary token only key and value are computed and charged: its own output is never used.
Our extension: saliency beyond one gold class, see `Lot.gold`.
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
from methods.config import Knob, Options, Sweep, Traits
from methods.recipes import BACKWARD, FINE_TUNE, ParameterGroup, Stage, Work, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.task_loss import IGNORED

ROUTER_SIZE = 256
INITIALIZER_STD = 0.02
PROCESS_BIAS = 5.0  # at first a token is processed with probability sigmoid(10)
SHORT_TOP_P = 0.4
LONG_TASKS = ("squad_v2", "20news", "yelp", "imdb")  # not trained by the public GLUE script, whose rate is lower
CHOICES = {
    "forward": ("leap", "as_released"),
    "router_context": ("valid_mean", "padded_mean"),
    "label_softmax": ("valid_non_cls", "all_positions"),
}


@dataclass(frozen=True, kw_only=True)
class LotOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        top_p: share of a text's saliency whose tokens are labelled "process" [p]; smaller labels fewer. The token that
            crosses it is left out, the most salient one always in.
        reg_weight: weight of the routers' cross-entropy towards these labels [lambda]; 0 leaves the task alone.
        temperature: of the Gumbel-softmax [tau]. Only the gradient depends on it.
        summary: processed tokens also attend to the mean of the leaping tokens and [CLS].
        summary_bias: added to the attention logits of that summary token; 1.0 in the public code.
        forward: "leap", or "as_released": leaping tokens are hidden as keys but refined as queries, nothing is saved.
        router_context: what is added to a token's state for its router: the mean state of the "valid_mean" tokens, or,
            "padded_mean", of padding too, which is then computed and routed like any token; every cost is
            that of the batch as it was padded.
        label_softmax: saliencies are normalised over the "valid_non_cls" tokens or over "all_positions".
        sample_in_eval: draw decisions at evaluation too, as the public code does.
    """

    top_p: float = 0.3
    reg_weight: float = 0.05
    temperature: float = 1.0
    summary: bool = True
    summary_bias: float = 0.0
    forward: str = "leap"
    router_context: str = "valid_mean"
    label_softmax: str = "valid_non_cls"
    sample_in_eval: bool = False

    def __post_init__(self) -> None:
        for name in ("top_p", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not self.reg_weight >= 0:
            raise ValueError(f"reg_weight must be >= 0, got {self.reg_weight}")
        if not math.isfinite(self.summary_bias):
            raise ValueError(f"summary_bias must be finite, got {self.summary_bias}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{getattr(self, name)}'")


class Router(nn.Sequential):
    """LayerNorm - Linear - GELU - Linear; (*tokens, hidden_size) -> (*tokens, 2): leap, process."""

    def __init__(self, hidden_size: int) -> None:
        last = nn.Linear(ROUTER_SIZE, 2)
        super().__init__(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, ROUTER_SIZE), nn.GELU(), last)
        nn.init.normal_(last.weight, std=INITIALIZER_STD)
        with torch.no_grad():
            last.bias.copy_(torch.normal(torch.tensor([-PROCESS_BIAS, PROCESS_BIAS]), INITIALIZER_STD))
        self.macs_per_token = hidden_size * ROUTER_SIZE + 2 * ROUTER_SIZE


def mean_state(state: TokenState, members: Tensor) -> Tensor:
    """Mean hidden state of each sequence's live `members` (*tokens) bool, at least one; (sequences, hidden_size)."""
    exact = torch.promote_types(state.hidden.dtype, torch.float32)
    weights = members.to(exact).unsqueeze(-1)
    return (state.sum(state.hidden.to(exact) * weights) / state.sum(weights)).to(state.hidden.dtype)


def saliency(gold: Tensor, states: list[Tensor], real: Tensor) -> Tensor:
    """Gradient times activation: the norm over the hidden axis of (d gold / d h) * h, summed over layers.

    Args:
        gold: (batch,), with the graph from `states`. states: each layer's input (batch, seq_len, hidden_size).
        real: (batch, seq_len) bool.
    Returns:
        (batch, seq_len) float, 0 on padding.
    """
    slopes = torch.autograd.grad(gold.sum(), states)
    layers = [(slope * state.detach()).norm(dim=-1) for slope, state in zip(slopes, states, strict=True)]
    return torch.stack(layers).sum(dim=0) * real


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The likeliest entries of each row while their sum stays strictly below `top_p`, and always the first one.

    Args:
        probabilities: (batch, seq_len).
    Returns:
        (batch, seq_len) bool.
    """
    order = probabilities.argsort(dim=1, descending=True, stable=True)
    inside = probabilities.gather(1, order).cumsum(dim=1) < top_p
    inside[:, 0] = True
    return torch.zeros_like(inside).scatter(1, order, inside)


def router_labels(scores: Tensor, real: Tensor, top_p: float, label_softmax: str) -> Tensor:
    """Tokens that the routers should process, the same for every layer; (batch, seq_len) bool, never [CLS] or a pad.

    Args:
        scores: saliency (batch, seq_len). real: (batch, seq_len) bool. label_softmax: see `LotOptions`.
    """
    routed = routed_tokens(real)
    if label_softmax == "valid_non_cls":
        scores = scores.masked_fill(~routed, torch.finfo(scores.dtype).min)
    return nucleus(scores.softmax(dim=1), top_p) & routed


def router_loss(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """Cross-entropy of the routers, mean over a text's tokens but [CLS], then over layers and texts; scalar.

    Args:
        logits: (layers, batch, seq_len, 2): leap, process. labels, real: (batch, seq_len) bool.
    """
    routed = routed_tokens(real)
    leap, process = logits.log_softmax(dim=-1).unbind(dim=-1)
    entropies = -torch.where(labels, process, leap) * routed
    return (entropies.sum(dim=-1) / routed.sum(dim=-1).clamp(min=1)).mean()


def routed_tokens(real: Tensor) -> Tensor:
    """Real tokens but [CLS]; (batch, seq_len) bool."""
    return torch.cat((torch.zeros_like(real[:, :1]), real[:, 1:]), dim=1)


@register("lot")
class Lot(TokenReducer):
    """Routes before every layer; [CLS] is always processed, every other token decides afresh each time (section 3)."""

    options_class = LotOptions
    traits = Traits(
        title="LoT",
        optimization="reparameterization, supervised routers",
        decision_input="embedding",
        dropped="leaping",
        strategy="learned",
        as_released={
            "forward": "as_released",
            "summary_bias": 1.0,
            "router_context": "padded_mean",
            "label_softmax": "all_positions",
            "sample_in_eval": True,
        },
        knob=Knob(option="reg_weight", least=0.005, most=5.0, log=True),
    )
    sweep = Sweep(option="reg_weight", values=(0.2, 4.0, 16.0, 64.0), relative=True)

    def check_options(self, options: LotOptions) -> None:
        super().check_options(options)
        if options.summary and self.backbone.is_rotary:
            raise ValueError(
                f"the summary token has no position, which the attention of {self.backbone.config.model_type} needs; "
                "set summary=False"
            )

    def build(self) -> None:
        self.routers = nn.ModuleList(Router(self.backbone.hidden_size) for _ in range(self.backbone.num_layers))

    def state_options(self) -> StateOptions:
        return StateOptions(
            training=self.training,
            forwards=True,
            run_padding=self.options.router_context == "padded_mean",
            refine_removed=self.options.forward == "as_released",
        )

    def before_layer(self, state: TokenState) -> Decision | None:
        """Choose which tokens this layer processes; average the others into the summary token."""
        if self.stage == FINE_TUNE:
            return None
        logits, routed = self._route(state)
        overhead = (state.counts() - 1) * cast(Router, self.routers[state.layer]).macs_per_token
        gate = None
        if self.training or self.options.sample_in_eval:
            soft = F.gumbel_softmax(logits, tau=self.options.temperature, dim=-1)
            process = soft[..., 1] > soft[..., 0]
            if self.training:
                gate = process + (soft[..., 1] - soft[..., 1].detach())  # 0 or 1, with the gradient of the soft sample
                state.notes["router_logits"].append(logits)
        else:
            process = logits[..., 1] > logits[..., 0]
        leap = routed & ~process
        summary = mean_state(state, (leap & state.real) | state.first) if self.options.summary else None
        return Decision(
            leap=leap, gate=gate, summary=summary, summary_bias=self.options.summary_bias, overhead_macs=overhead
        )

    def _route(self, state: TokenState) -> tuple[Tensor, Tensor]:
        """Logits (*tokens, 2) of leap and process, and the (*tokens) bool that were routed: all live ones but [CLS]."""
        routed = state.live & ~state.first
        context = mean_state(state, state.live).detach()
        places = routed.flatten().nonzero().squeeze(1)
        asked = (state.hidden + state.expand(context)).flatten(0, -2).index_select(0, places)
        rows = self.routers[state.layer](asked).float()
        logits = rows.new_zeros(routed.numel(), 2).index_copy(0, places, rows).view(*routed.shape, 2)
        return logits, routed

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Task loss plus the routers' cross-entropy towards the labels that saliency gives."""
        losses = super().losses(state, logits, inputs)
        if self.stage == FINE_TUNE or not self.options.reg_weight:
            return losses
        labels, real = self.labels(inputs), inputs.attention_mask
        self.observe(positive_rate=float(labels.sum() / routed_tokens(real).sum().clamp(min=1)))
        routers = router_loss(torch.stack(state.notes["router_logits"]), labels, real)
        return losses | {"routers": self.options.reg_weight * routers}

    def labels(self, inputs: Inputs) -> Tensor:
        """Labels of the routers for a batch with gold labels, from the teacher; (batch, seq_len) bool."""
        assert inputs.labels is not None
        with torch.enable_grad():
            lesson = self.teacher.teach(inputs, gradients=True)
            gold = self.gold(lesson.logits, inputs.labels)
            scores = saliency(gold, lesson.states[:-1], inputs.attention_mask)
        return router_labels(scores.float(), inputs.attention_mask, self.options.top_p, self.options.label_softmax)

    def gold(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What saliency is taken of: the logit of the gold class, not its loss; (batch,).

        Our extension: the sum of the gold logits of a span's start and end (none where the answer lies outside the
        text), of all labelled tokens or of several labels at once; in regression, the output; 0 without a class.
        """
        if self.backbone.head == "regression":
            return logits.sum(dim=1)
        if self.backbone.head == "span_qa":
            length = logits.shape[1]
            places = labels.clamp(0, length)
            chosen = logits.gather(1, places.clamp(max=length - 1).unsqueeze(1)).squeeze(1)
            return chosen.masked_fill(places == length, 0.0).sum(dim=1)
        if self.backbone.head == "token_classification":
            labelled = labels >= 0
            chosen = logits.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
            return chosen.masked_fill(~labelled, 0.0).sum(dim=1)
        if labels.is_floating_point():
            return (logits * labels).sum(dim=1)
        chosen = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        return chosen.masked_fill(labels == IGNORED, 0.0)

    @classmethod
    def stage_work(cls, stage: Stage, options: Mapping[str, Any]) -> Work:
        """Saliency takes a backward pass through the teacher, too."""
        return Work(passes=stage.work.passes + (BACKWARD if stage.teacher else 0.0))

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """The short recipe asks its routers to process more tokens."""
        return {"top_p": SHORT_TOP_P} if recipe == "short" else {}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune a scorer; then train routers and backbone together, from the pre-trained weights (public scripts).

        The short recipe goes on from the fine-tuned weights, with faster routers.
        """
        if recipe == "short":
            routers = ParameterGroup(patterns=("routers.*",), learning_rate=2e-3)
            return [short_stage("route", start="dense", epochs=2, added=(routers,)).but(teacher="dense")]
        rate = 5e-5 if task.name in LONG_TASKS else 2e-5
        return [
            Stage(
                name=FINE_TUNE,
                start="pretrained",
                epochs=10,
                groups=(ParameterGroup(learning_rate=rate, weight_decay=0.01),),
                warmup=0.06,
            ),
            Stage(
                name="route",
                start="pretrained",
                teacher="previous",
                epochs=5,
                groups=(ParameterGroup(learning_rate=2e-5),),
                max_grad_norm=1.0,
                select="best",
            ),
        ]
