"""ToP: which ranks of attention survive is learned per task, under a limit on computation and with ranks distilled.

Paper: Li et al., "Constraint-aware and Ranking-distilled Token Pruning for Efficient Transformer Inference", KDD 2023,
https://arxiv.org/abs/2306.14393
Pruning "at location i" means: of the tokens that enter layer i, by the attention they received in layer i - 1.
Departures by default: tokens are removed and padding casts no votes (`masks_only=True` hides tokens as the released
code does, and saves nothing); a rank's bin is counted in integers (`binning="float32"` as released); scores are read
before attention dropout (`noisy_scores`); pads do not fill up the ranking loss. Pruning starts with the first update,
not the third. With a head over tokens, they leave after the feed-forward of layer i - 1, which their last state needs,
and the constraint charges it; elsewhere they leave before it. Either way the same tokens survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.attention import AttentionScores
from methods.base import TokenReducer
from methods.config import Knob, Options, Sweep, Traits
from methods.distillation import softened_divergence
from methods.hard_concrete import BOUND, open_bits, open_probability, sample
from methods.mac_constraint import sparsity
from methods.precision import ScalarsInFloat32
from methods.ranking import arp2, bins_of
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState

PRUNE = "prune"
INITIAL_LOGA, INITIAL_STD = 10.0, 0.01  # every rank open, every gate closed
LEAST_RANKING = 0.01  # of its weight, after the warm-up
# Of pattern, lambda_1 and lambda_2. At equal rates, as published, few updates swing far past the target and back.
SHORT_RATES = (0.2, 0.05, 2.0)

# Per task (released scripts): bins [K], ranked tokens [TOPK], warm-up epochs, epochs, target sparsity.
SETTINGS = {
    "cola": (20, 10, 50, 100, 0.43),
    "rte": (100, 20, 50, 80, 0.59),
    "qqp": (50, 20, 10, 40, 0.65),
    "mrpc": (50, 20, 150, 200, 0.67),
    "sst2": (25, 20, 10, 40, 0.40),
    "mnli": (50, 20, 10, 40, 0.50),
    "qnli": (50, 20, 10, 40, 0.58),
    "stsb": (30, 20, 50, 150, 0.70),
    "squad_v2": (150, 20, 3, 10, 0.45),  # bins and target of the released mask file; epochs are ours
}
DEFAULT_SETTINGS = (50, 20, 3, 10, 0.50)  # tasks without a script: ours


@dataclass(frozen=True, kw_only=True)
class TopOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        target_sparsity: share of the layers' MACs, without padding, that training has to save; in [0, 1].
        bins: equal parts of the ranking that are kept or pruned together [K].
        first_location: first layer whose input is pruned, 0-based; all later ones may be.
        constraint_warmup: share of the training over which the target rises from 0 and rank distillation fades to 1 %.
        ranking_weight: weight of the rank distillation [alpha].
        ranked_tokens: tokens of each text whose order is distilled [TOPK].
        temperature: of the logit distillation.
        tolerance: weights may be selected as a stage's best from this far below the target on.
        binning: "integer", floor(rank * K / survivors), or "float32", which may fall one bin short.
        masks_only: hide pruned tokens as keys only; they, and pads, go on voting. Charged as dense.
        noisy_scores: read scores after attention dropout.
    """

    fixed = frozenset({"bins", "first_location"})

    target_sparsity: float = 0.5
    bins: int = 50
    first_location: int = 2
    constraint_warmup: float = 0.25
    ranking_weight: float = 0.01
    ranked_tokens: int = 20
    temperature: float = 2.0
    tolerance: float = 0.01
    binning: str = "integer"
    masks_only: bool = False
    noisy_scores: bool = False

    def __post_init__(self) -> None:
        if self.binning not in ("integer", "float32"):
            raise ValueError(f"binning must be 'integer' or 'float32', got '{self.binning}'")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        for name, least in (("bins", 1), ("first_location", 1), ("ranked_tokens", 1), ("ranking_weight", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("target_sparsity", "constraint_warmup", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@register("top")
class Top(ScalarsInFloat32, TokenReducer):
    """Prunes by relative rank with a pattern that training fixes; [CLS] is not ranked and always stays."""

    options_class = TopOptions
    traits = Traits(
        title="ToP",
        optimization="reparameterization",
        decision_input="attention",
        dropped="forwarded",
        strategy="learned",
        as_released={"masks_only": True, "binning": "float32", "noisy_scores": True},
        knob=Knob(option="target_sparsity", most=0.95),
    )
    sweep = Sweep(option="target_sparsity", values=(0.2, 0.4, 0.6, 0.8))

    _keep_in_fp32_modules_strict = {"rank_loga", "gate_loga", "lambda_1", "lambda_2"}  # noqa: RUF012

    def build(self) -> None:
        layers, first = self.backbone.num_layers, self.options.first_location
        if first >= layers:
            raise ValueError(f"first_location {first} is beyond the last of {layers} layers, {layers - 1}")
        self.locations = range(first, layers)
        self.ranked_layers = range(1, max(2, layers // 3))  # the early layers, whose attention ranks badly
        self.drops_early = not self.backbone.reads_tokens  # before the feed-forward
        shape = (len(self.locations), self.options.bins)
        self.rank_loga = nn.Parameter(torch.empty(shape).normal_(INITIAL_LOGA, INITIAL_STD))
        self.gate_loga = nn.Parameter(torch.empty(shape[0]).normal_(-INITIAL_LOGA, INITIAL_STD))
        self.lambda_1, self.lambda_2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        # Training texts of each length; saved, so that a killed stage goes on as if it had not been.
        self.register_buffer("texts", torch.zeros(self.backbone.max_length + 1, dtype=torch.long))
        self.texts: Tensor
        self._pattern: tuple[Tensor, list[bool]] | None = None  # decided once for a pass

    # Pruning

    def needs_scores(self, layer: int) -> bool:
        if self.stage == FINE_TUNE:
            return False
        if self.training:
            return layer + 1 in self.locations or layer in self.ranked_layers
        if layer + 1 not in self.locations:
            return False
        _, prunes = self._pattern or self._decide()
        return prunes[layer + 1 - self.locations[0]]

    def before_layer(self, state: TokenState) -> Decision | None:
        """Training scales the input of each location; heads over tokens prune here. The dense stage does nothing."""
        if self.stage == FINE_TUNE:
            return None
        if state.layer == 0 and not self.training:
            self._pattern = self._decide()
        if state.layer not in self.locations:
            return None
        if self.training:
            return self._soften(state)
        if self.options.masks_only and not self.drops_early:
            self._carry(state, state.live)
        return None if self.drops_early else self._prune(state, state.layer)

    def after_attention(self, state: TokenState) -> Decision | None:
        """Prune the input of the next layer, whose ranks are known now; training notes what is to be distilled."""
        if not self.training:
            return self._prune(state, state.layer + 1) if self.drops_early else None
        if state.layer in self.ranked_layers and state.scores is not None:
            state.notes["scores"].append(state.scores.received)
        return None

    def after_layer(self, state: TokenState) -> Decision | None:
        """At the end, give masked tokens that a head reads the state they had when they were pruned."""
        if state.layer == self.backbone.num_layers - 1:
            self._pattern = None  # weights may change now
        if state.layer != self.locations[-1] or not state.notes["carried"]:
            return None
        alive = state.notes["alive"][-1] if self.training else state.live
        return Decision(states=torch.where(alive.unsqueeze(-1), state.hidden, state.notes["carried"][-1]))

    def follow_schedule(self, shares: Sequence[float]) -> None:
        """Open the first ranks of each location, never all of them."""
        bins = self.options.bins
        with torch.no_grad():
            self.gate_loga.fill_(INITIAL_LOGA)
            self.rank_loga.fill_(-INITIAL_LOGA)
            for row, location in zip(self.rank_loga, self.locations, strict=True):
                kept = round(bins * shares[location] / shares[location - 1])
                row[: min(max(kept, 1), bins - 1)] = INITIAL_LOGA

    def _prune(self, state: TokenState, location: int) -> Decision | None:
        if location not in self.locations or state.scores is None:
            return None
        pattern, _ = self._pattern or self._decide()
        return Decision(keep=pattern[location - self.locations[0]][self._bins(state, state.live)])

    def _soften(self, state: TokenState) -> Decision:
        """Scale by 1 - (1 - z_rank) * gate; what gets 0 stays at 0, yet nothing is hidden from attention."""
        if state.layer == self.locations[0]:
            state.notes["drawn"].append((sample(self.rank_loga), sample(self.gate_loga)))
            state.notes["alive"].append(state.live)
        (ranks, gates), alive = state.notes["drawn"][0], state.notes["alive"][-1]
        index = state.layer - self.locations[0]
        gate = (gates[index] > 0) + (gates[index] - gates[index].detach())  # 0 or 1, with the gradient of the sample
        scale = 1 - (1 - ranks[index][self._bins(state, alive)]) * gate
        scale = (scale * alive).masked_fill(state.first, 1.0)
        if not self.drops_early:
            self._carry(state, alive)
        state.notes["alive"].append(scale > 0)
        return Decision(scale=scale)

    def _carry(self, state: TokenState, alive: Tensor) -> None:
        """Note the last state of every token, which is the present one of those alive."""
        carried = state.notes["carried"]
        carried.append(torch.where(alive.unsqueeze(-1), state.hidden, carried[-1]) if carried else state.hidden)

    def _bins(self, state: TokenState, alive: Tensor) -> Tensor:
        """Bin of each token's rank among those `alive`, [CLS] apart; (*tokens) long, meaningless for the others."""
        assert state.scores is not None
        scores = state.scores.received.detach().masked_fill(~alive, -1.0).masked_fill(state.first, torch.inf)
        survivors = state.expand(state.sum((alive & ~state.first).long()))
        bins = bins_of(state.rank(scores) - 1, survivors, self.options.bins, self.options.binning)
        return bins.clamp(0, self.options.bins - 1)

    def _decide(self) -> tuple[Tensor, list[bool]]:
        """(locations, bins) bool, the ranks that survive, all where a gate is closed; and which locations prune."""
        pattern = open_bits(self.rank_loga) | ~open_bits(self.gate_loga.unsqueeze(1))
        if torch.compiler.is_exporting():  # a graph does not know its weights
            return pattern, [True] * len(pattern)
        return pattern, (~pattern).any(dim=1).tolist()

    # Constraint

    def kept_shares(self, *, decided: bool = False) -> Tensor:
        """Share of a text's tokens, [CLS] apart, that enter each layer; (layers,), expected or as `decided`."""
        if decided:
            at_location = self._decide()[0].double().mean(dim=1)
        else:
            ranks, gates = open_probability(self.rank_loga).mean(dim=1), open_probability(self.gate_loga)
            at_location = 1 - (1 - ranks) * gates
        return torch.cat((at_location.new_ones(self.locations[0]), at_location.cumprod(dim=0)))

    def sparsity(self, shares: Tensor, lengths: Tensor) -> Tensor:
        """Share of the layers' MACs that is saved on each text of `lengths` (texts,); (texts,)."""
        return sparsity(self.backbone, shares, lengths, drops_early=self.drops_early)

    def selectable(self) -> bool:
        """Whether the pattern as decided reaches the target on the texts that the stage has trained on."""
        lengths = self.texts.nonzero().squeeze(1)
        with torch.no_grad():
            saved = self.sparsity(self.kept_shares(decided=True), lengths)
        reached = float((saved * self.texts[lengths]).sum() / self.texts.sum())  # not a number before any training
        return reached >= self.options.target_sparsity - self.options.tolerance

    # Training

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Logit distillation (no labels; values are learned from gold), the constraint and rank distillation; in the
        stage that trains the dense model, the task loss."""
        if self.stage == FINE_TUNE:
            return super().losses(state, logits, inputs)
        assert inputs.labels is not None
        if state.mode != "masked":
            raise ValueError("packed mode does not compare ranks with a teacher's; train in masked mode")
        self.texts += torch.bincount(state.lengths, minlength=len(self.texts))
        last, votes = self.backbone.num_layers - 1, StateOptions(all_vote=self.options.masks_only)
        lesson = self.teacher.teach(inputs, score_layers=(last,), options=votes)
        warmup = self.options.constraint_warmup
        risen = min(1.0, self.progress / warmup) if warmup else 1.0
        weight = self.options.ranking_weight * max(LEAST_RANKING, 1 - risen)
        excess = self.sparsity(self.kept_shares(), state.lengths).mean() - risen * self.options.target_sparsity
        head, temperature = self.backbone.head, self.options.temperature
        if head == "regression" or inputs.labels.is_floating_point():
            terms = {"task": self.task_loss(logits, inputs.labels).mean()}
        else:
            terms = {
                "distillation": softened_divergence(logits, lesson.logits, temperature, head, inputs.attention_mask)
            }
        return terms | {
            "constraint": self._price(self.lambda_1) * excess + self._price(self.lambda_2) * excess**2,
            "ranking": weight * self._ranking(state, lesson.scores[last]),
        }

    def _price(self, multiplier: Tensor) -> Tensor:
        """A stage's optimizer climbs a multiplier; outside, where one may only descend, its gradient turns round."""
        return multiplier if self.stage else 2 * multiplier.detach() - multiplier

    def _ranking(self, state: TokenState, target: AttentionScores) -> Tensor:
        """ARP2 of each early layer's scores against the last layer's of the teacher, summed over layers."""
        ranked = state.live & ~state.first
        voters = state.lengths.unsqueeze(1) if not self.options.masks_only else state.live.shape[1]
        pads = ~state.real if self.options.masks_only else None
        scores, order, top = state.notes["scores"], target.received, self.options.ranked_tokens
        return torch.stack([arp2(received / voters, order, ranked, top, pads=pads) for received in scores]).sum()

    def state_options(self) -> StateOptions:
        masks_only, noisy = self.options.masks_only, self.options.noisy_scores
        shared: dict[str, Any] = {"refine_removed": masks_only, "all_vote": masks_only, "noisy_scores": noisy}
        return StateOptions(training=self.training, forwards=True, **shared)

    def begin_stage(self, stage: Stage, updates: int) -> None:
        super().begin_stage(stage, updates)
        self.texts.zero_()

    def after_update(self) -> None:
        with torch.no_grad():
            self.rank_loga.clamp_(-BOUND, BOUND)
            self.gate_loga.clamp_(-BOUND, BOUND)

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Bins, ranked tokens, warm-up and target of the task; few updates reach a mild target with few bins."""
        if recipe == "short":
            return {"bins": 10, "target_sparsity": 0.4, "constraint_warmup": 0.6}
        bins, ranked, warmup, epochs, target = SETTINGS.get(task.name, DEFAULT_SETTINGS)
        return {"bins": bins, "ranked_tokens": ranked, "constraint_warmup": warmup / epochs, "target_sparsity": target}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune; prune that model, its embeddings frozen, with its unpruned self as the teacher."""
        if recipe == "short":
            stage = short_stage(PRUNE, start="dense", epochs=1)
            return [stage.but(teacher="dense", batch_size=16, groups=_groups(5e-5, *SHORT_RATES))]
        teacher_epochs = 10 if task.name in ("mrpc", "rte", "stsb", "cola", "wnli") else 3
        epochs = SETTINGS.get(task.name, DEFAULT_SETTINGS)[3]
        teach = Stage(name=FINE_TUNE, start="pretrained", epochs=teacher_epochs)
        prune = Stage(name=PRUNE, teacher="previous", epochs=epochs, groups=_groups(1e-5, 0.02, 0.02, 0.02))
        return [teach, prune.but(max_grad_norm=1.0, select="best")]


def _groups(backbone: float, pattern: float, lambda_1: float, lambda_2: float) -> tuple[ParameterGroup, ...]:
    """Learning rates of pattern, multipliers (which climb) and backbone, whose embeddings are frozen."""
    shared: dict[str, Any] = {"decay": "constant", "clipped": False}
    return (
        ParameterGroup(patterns=("*_loga",), learning_rate=pattern, **shared),
        ParameterGroup(patterns=("lambda_1",), learning_rate=lambda_1, maximize=True, **shared),
        ParameterGroup(patterns=("lambda_2",), learning_rate=lambda_2, maximize=True, **shared),
        ParameterGroup(but_not=("*.embeddings.*",), learning_rate=backbone),
    )
