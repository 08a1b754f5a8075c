"""TR-BERT: at two depths a small policy selects the tokens that go on; it learns by trial and reward.

Paper: Ye et al., "TR-BERT: Dynamic Token Reduction for Accelerating BERT Inference", NAACL 2021,
https://aclanthology.org/2021.naacl-main.463
Departures by default: every text of a batch keeps its own tokens (the public code gives all of them as many as the
text that wants most: `batched_eval="equal_k"`); stopped tokens of a span model are restored once (the public code
restores some twice in training: `restore_filler="as_released"`); heuristic scores and teacher logits are computed with
each batch instead of stored; the loss of the heuristic initialisation is divided by a text's tokens once (public code:
twice, which Adam hardly feels); replicas share the layers before the first selection, dropout included. Ours:
regression, where minus the squared error is the reward. Not covered: texts of several segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import TokenReducer
from methods.config import Knob, Options, ReducerOutput, Sweep, Traits
from methods.packing import masked_rank
from methods.policy_gradient import Rollout, length_price, policy_loss, replicate
from methods.recipes import BACKWARD, FINE_TUNE, FORWARD, ParameterGroup, Stage, Work, fine_tuning_stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, TokenState

INITIALISE, POLICY, JOINT = "heuristic_initialisation", "policy", "joint"
INITIALIZER_STD = 0.02
POLICY_WIDTH = 32
CHOICES = {
    "length_norm": ("padded", "valid", "count"),
    "logprob_reduce": ("token_mean", "sum"),
    "baseline": ("mean", "leave_one_out"),
    "kd_reward": ("soft", "gold"),
    "span_loss": ("mixed", "mean", "sum"),
    "batched_eval": ("masked", "equal_k"),
    "restore_filler": ("exclude", "as_released"),
}
RANGES = {"length_weight": math.inf, "policy_length_weight": math.inf, "guide_rate": 1.0, "threshold": 1.0}

# Per task (public README and script defaults): alpha of the policy stage and of the joint one, guide rate, learning
# rate, batch size, epochs of fine-tuning. Only IMDB's command is published whole; GLUE, on which nothing is, takes it.
HYPERPARAMETERS = {
    "squad_v2": (5.0, 5.0, 0.2, 5e-5, 8, 3),
    "yelp": (2.0, 0.5, 0.5, 3e-5, 8, 3),
    "20news": (1.0, 1.0, 0.5, 3e-5, 8, 3),
    "imdb": (1.0, 1.0, 0.5, 3e-5, 32, 5),
}
SHORT_RATE = 2e-3  # of the policies, which have few updates
SHORT_WEIGHT = 0.1  # alpha for shares of the valid tokens


@dataclass(frozen=True, kw_only=True)
class TrBertOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        length_weight: price of the selected tokens in the reward [lambda; alpha in the public code].
        policy_length_weight: the same in the policy stage; None: no other.
        length_norm: share of the "padded" length (public code) or of the "valid" one, or "count" (the paper's figure).
        max_length: padded length that the public code's alpha refers to [N]; None: that of each batch.
        replicas: action sequences drawn per text [K], at least 2.
        guide_rate: share of the policy stage in which one replica follows the heuristic.
        logprob_reduce: log probabilities of a step are averaged over tokens ("token_mean", public code) or summed
            ("sum", the gradient of the expected reward).
        baseline: mean reward of all replicas ("mean") or of the others ("leave_one_out").
        distill: the joint stage learns the teacher's output instead of labels; elsewhere only if a teacher was set.
        kd_reward: with distillation, the reward is by the "soft" targets (public code) or the "gold" ones.
        span_loss: start and end losses are averaged against labels and summed against a teacher ("mixed", public
            code), or always "mean" or "sum".
        threshold: probability from which a token is selected at inference; 0 keeps every token.
        batched_eval: "masked" (each text its own tokens) or "equal_k" (public code; depends on batch mates).
        restore_filler: in training of span models, "exclude" or "as_released" (runs masked).
        policy_layers: 0-based layers before which tokens are selected; None: layer 1 and half the depth.
    """

    fixed = frozenset({"policy_layers"})

    length_weight: float = 1.0
    policy_length_weight: float | None = None
    length_norm: str = "padded"
    max_length: int | None = None
    replicas: int = 8
    guide_rate: float = 0.5
    logprob_reduce: str = "token_mean"
    baseline: str = "mean"
    distill: bool = True
    kd_reward: str = "soft"
    span_loss: str = "mixed"
    threshold: float = 0.5
    batched_eval: str = "masked"
    restore_filler: str = "exclude"
    policy_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{getattr(self, name)}'")
        if self.replicas < 2:
            raise ValueError(f"replicas must be 2 or more, got {self.replicas}: a text's replicas are compared")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        for name, most in RANGES.items():
            if not 0 <= (getattr(self, name) or 0.0) <= most:
                raise ValueError(f"{name} must be from 0 to {most:g}, got {getattr(self, name)}")
        layers = self.policy_layers
        if layers is not None and (not layers or layers[0] < 1 or any(a >= b for a, b in pairwise(layers))):
            raise ValueError(f"policy_layers must be ascending layers from 1 on, got {layers}")


class SelectionPolicy(nn.Sequential):
    """Linear - GELU - Linear; (*tokens, hidden_size) -> (*tokens, 1), logit of being selected. Starts at about 0."""

    def __init__(self, hidden_size: int) -> None:
        first, last = nn.Linear(hidden_size, POLICY_WIDTH), nn.Linear(POLICY_WIDTH, 1)
        super().__init__(first, nn.GELU(), last)
        for linear in (first, last):
            nn.init.normal_(linear.weight, std=INITIALIZER_STD)
            nn.init.zeros_(linear.bias)
        self.macs_per_token = POLICY_WIDTH * hidden_size + POLICY_WIDTH


@register("tr_bert")
class TrBert(TokenReducer):
    """Selects before two layers; a token that is not selected stops there, and its state is its last one.

    With labels, `train()` runs `replicas` copies of the batch: the output's logits are those of the last copy, its
    trace holds all of them, one after the other.
    """

    options_class = TrBertOptions
    traits = Traits(
        title="TR-BERT",
        optimization="reinforcement learning",
        decision_input="embedding",
        dropped="forwarded",
        strategy="searched",
        as_released={"batched_eval": "equal_k", "restore_filler": "as_released"},
        released_removes=True,
        knob=Knob(option="length_weight", least=0.02, most=20.0, log=True),
    )
    sweep = Sweep(option="length_weight", values=(0.25, 0.5, 2.0, 4.0), relative=True)

    def check_options(self, options: TrBertOptions) -> None:
        super().check_options(options)
        depth, chosen = self.backbone.num_layers, options.policy_layers
        if depth < 2:
            raise ValueError("tr_bert selects tokens after the first layer, and the model has no other")
        if chosen is not None and chosen[-1] >= depth:
            raise ValueError(f"policy_layers {chosen} reach beyond the last of {depth} layers")

    def build(self) -> None:
        chosen: tuple[int, ...] | None = self.options.policy_layers
        self.policy_layers = chosen or tuple(sorted({1, self.backbone.num_layers // 2}))
        self.policies = nn.ModuleList(SelectionPolicy(self.backbone.hidden_size) for _ in self.policy_layers)

    def before_layer(self, state: TokenState) -> Decision | None:
        """Keep the tokens whose probability reaches the threshold; a text of which only [CLS] is left is not asked."""
        if state.layer not in self.policy_layers or self.stage == FINE_TUNE:
            return None
        step = self.policy_layers.index(state.layer)
        asked = state.expand(state.counts() > 1) & state.live
        probability = self.probability(step, state.hidden, asked)
        overhead = state.sum(asked.long()) * self._policy(step).macs_per_token
        if self.stage == INITIALISE:
            state.notes["probabilities"].append(probability)
            return Decision(overhead_macs=overhead)
        keep = (probability >= self.options.threshold) | state.first
        if self.options.batched_eval == "equal_k":
            longest = state.sum((keep & state.live).long()).max()
            keep = state.rank(probability.masked_fill(state.first, torch.inf)) < longest
        return Decision(keep=keep, overhead_macs=overhead)

    def probability(self, step: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Probability of each token to be selected [pi]; (*tokens, hidden_size) -> (*tokens), 0 where not `tokens`."""
        logits = self._policy(step)(hidden[tokens]).squeeze(-1)
        chosen = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return chosen.new_zeros(tokens.shape).masked_scatter(tokens, chosen)

    def run(self, inputs: Inputs) -> ReducerOutput:
        """Evaluation, and training of other stages, take one pass; learning by reward runs replicas."""
        if not self.training or inputs.labels is None or self.stage in (FINE_TUNE, INITIALISE):
            return super().run(inputs)
        return self._reinforce(inputs, inputs.labels)

    def _reinforce(self, inputs: Inputs, labels: Tensor) -> ReducerOutput:
        """Policy gradient, and, where the backbone trains too, the mean task loss of all replicas."""
        options, replicas = self.options, self.options.replicas
        guided = self.stage == POLICY and self.progress < options.guide_rate
        rollout = Rollout(
            backbone=self.backbone,
            layers=self.policy_layers,
            probability=self.probability,
            replicas=replicas,
            macs_per_token=self._policy(0).macs_per_token,
            guide=self.residual_scores(inputs, labels) if guided else None,
            logprob_reduce=options.logprob_reduce,
            double_fillers=options.restore_filler == "as_released" and self.backbone.reads_tokens,
        )
        mode = "masked" if rollout.double_fillers else self._forced_mode or "packed"
        state = rollout.run(inputs, mode, self.state_options())
        logits = state.outputs(self.backbone)
        task = gold = self.gold_loss(logits, replicate(labels, replicas))
        taught_here = self.stage == JOINT or (self.stage != POLICY and self._teacher is not None)
        if options.distill and taught_here:
            taught = replicate(self.teacher.teach(inputs).logits, replicas)
            task = self.soft_loss(
                logits, taught, multi_label=labels.is_floating_point(), real=replicate(inputs.attention_mask, replicas)
            )
        judged = gold if options.kd_reward == "gold" else task
        rewards = self.rewards(judged, rollout.counts, state.trace.input_lengths, inputs.input_ids.shape[1])
        losses = {} if self.stage == POLICY else {"task": task.mean()}
        losses["policy"] = policy_loss(rewards, rollout.surprise, replicas, options.baseline)
        return self.output(logits[-len(labels) :], losses, state.trace)

    def rewards(self, losses: Tensor, counts: list[Tensor], lengths: Tensor, padded_length: int) -> Tensor:
        """Minus the loss, minus alpha times the length price; all (rows,), see `length_price`."""
        options, weight = self.options, self.options.length_weight
        if self.stage == POLICY and options.policy_length_weight is not None:
            weight = options.policy_length_weight
        padded_length = options.max_length or padded_length
        return -losses - weight * length_price(counts, lengths, padded_length, options.length_norm)

    def gold_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Task loss of each row against its label; (rows,)."""
        losses = self.task_loss(logits, labels)
        return 2 * losses if self.backbone.head == "span_qa" and self.options.span_loss == "sum" else losses

    def soft_loss(
        self, logits: Tensor, taught: Tensor, *, multi_label: bool = False, real: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of each row against the teacher's distribution (regression: squared error); (rows,).

        For token classification it is the mean over the `real` tokens of the row (rows, seq_len) bool.
        """
        student, teacher = logits.float(), taught.float()
        if self.backbone.head == "regression":
            return (student - teacher).square().mean(dim=1)
        if multi_label:
            return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").mean(dim=1)
        if self.backbone.head == "token_classification":
            assert real is not None
            student, teacher = (values.masked_fill(~real.unsqueeze(2), 0.0) for values in (student, teacher))
            each = -(teacher.softmax(dim=2) * student.log_softmax(dim=2)).sum(dim=2)
            return each.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)
        taught = teacher.softmax(dim=1)  # 0 on pads, where the student's logarithm may be infinite
        losses = -(taught * student.log_softmax(dim=1).masked_fill(taught == 0, 0.0)).sum(dim=1)
        if self.backbone.head == "span_qa":
            return losses.mean(dim=1) if self.options.span_loss == "mean" else losses.sum(dim=1)
        return losses

    def residual_scores(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """First-order change of the teacher's loss had a token stopped at a step; (steps, batch, seq_len), >= 0.

        |g . (h_m - h_t)| with g the loss's gradient at the output of layer m, three quarters up, and h_t what step t
        sees (the residual strategy).
        """
        depth = max(math.ceil(3 * self.backbone.num_layers / 4), self.policy_layers[-1] + 1)
        with torch.enable_grad():
            lesson = self.teacher.teach(inputs, gradients=True)
            loss = self.task_loss(lesson.logits, labels).sum()
        (slope,) = torch.autograd.grad(loss, lesson.states[depth])
        later = lesson.states[depth].detach()
        scores = [(slope * (later - lesson.states[layer].detach())).sum(dim=-1).abs() for layer in self.policy_layers]
        return torch.stack(scores)

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """In the heuristic initialisation, distance of the policies to the ranks of the residual scores."""
        if self.stage != INITIALISE:
            return super().losses(state, logits, inputs)
        assert inputs.labels is not None
        real, lengths = inputs.attention_mask, inputs.attention_mask.sum(dim=1)
        distance = state.hidden.new_zeros(())
        for scores, probability in zip(
            self.residual_scores(inputs, inputs.labels), state.notes["probabilities"], strict=True
        ):
            target = 1 - masked_rank(scores, real) / lengths.unsqueeze(1)
            distance = distance + ((probability - target).abs() * real).sum(dim=1).div(lengths).mean()
        return {"initialisation": distance}

    def _policy(self, step: int) -> SelectionPolicy:
        return cast(SelectionPolicy, self.policies[step])

    @classmethod
    def sweep_options(cls, value: float, own: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """Both stages' price of a token, where they have one each."""
        early = own["policy_length_weight"]
        scaled = super().sweep_options(value, own, layers)
        return scaled | {"policy_length_weight": None if early is None else early * value}

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Alphas, guide rate and the padded length that they refer to."""
        if recipe == "short":
            return {"length_weight": SHORT_WEIGHT, "length_norm": "valid", "replicas": 4}
        policy, joint, guide_rate, *_ = HYPERPARAMETERS.get(task.name, HYPERPARAMETERS["imdb"])
        alphas = {"policy_length_weight": policy, "length_weight": joint}
        return alphas | {"guide_rate": guide_rate, "max_length": task.sequence_length}

    @classmethod
    def stage_work(cls, stage: Stage, options: Mapping[str, Any]) -> Work:
        """Replicas share the layers before the first selection, and each selection is taken to keep half the tokens.

        The residual strategy takes a pass of the teacher in both directions.
        """
        if stage.name not in (INITIALISE, POLICY, JOINT):
            return stage.work
        chosen = TrBertOptions(**options)
        replicas = chosen.replicas * (5 / 2 + 6 / 4) / 12  # of 12 layers, with selections before the second and seventh
        if stage.name == JOINT:
            return Work(passes=(FORWARD + BACKWARD) * replicas + FORWARD)
        guided, ran = (1.0, FORWARD) if stage.name == INITIALISE else (chosen.guide_rate, replicas)
        return Work(passes=ran + guided * (FORWARD + BACKWARD))

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune; train the policies on the frozen model (IMDB: after the heuristic initialisation); train all."""
        if recipe == "short":
            own = [
                short_stage(name, start="previous", epochs=1 / 3, added=_policies(SHORT_RATE), frozen=name != JOINT)
                for name in (INITIALISE, POLICY, JOINT)
            ]
            return [fine_tuning_stage(recipe), *(stage.but(teacher="previous") for stage in own)]
        *_, rate, batch_size, epochs = HYPERPARAMETERS.get(task.name, HYPERPARAMETERS["imdb"])
        shared: dict[str, Any] = {"batch_size": batch_size, "warmup": 0.1, "max_grad_norm": 1.0}
        policies = _policies(rate)
        everything = (ParameterGroup(learning_rate=rate),)
        initialise = Stage(name=INITIALISE, teacher="previous", epochs=3, groups=policies, **shared)
        return [
            Stage(name=FINE_TUNE, start="pretrained", epochs=epochs, groups=everything, select="best", **shared),
            *([initialise] if task.name == "imdb" else []),
            Stage(name=POLICY, teacher="previous", epochs=3, groups=policies, **shared),
            Stage(name=JOINT, teacher="previous", epochs=3, groups=everything, **shared),
        ]


def _policies(learning_rate: float) -> tuple[ParameterGroup, ...]:
    return (ParameterGroup(patterns=("policies.*",), learning_rate=learning_rate),)
