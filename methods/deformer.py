"""DeFormer: in the lower layers the two texts of a pair do not see each other, so one can be computed beforehand.

Paper: Cao et al., "DeFormer: Decomposing Pre-trained Transformers for Faster Question Answering", ACL 2020,
https://aclanthology.org/2020.acl-main.411
The saving is the cache (`precompute`): without one only attention between the texts is spared, a per cent or so. Costs
are therefore those of a run with nothing cached; the published account, which leaves the offline passes out, stands
beside (`extra_costs`).
Departures by default: no padding between the texts (the released fixed slots serve static shapes; it changes no logit);
representations are compared on real tokens (`lrs_over="padded"`: on padding too, as released); span losses leave
padding out; AdamW corrects its bias; a regression, which the paper lacks, is distilled by squared differences. Not
covered: the search for the three loss weights (52 trainings per task; the defaults are a setting that it left behind),
several choices per question (RACE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import TokenReducer
from methods.config import Options, Sweep, Traits
from methods.distillation import softened_divergence, state_distance
from methods.initial_weights import InitialWeights
from methods.pairs import as_pairs, check_pairs, second_starts, separator_of
from methods.passage_cache import Fingerprint, PassageCache, fill, lower_parts, passage_keys
from methods.recipes import ParameterGroup, Stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, TokenState
from methods.teacher import Lesson
from methods.trace import Trace

JOINT, DECOMPOSED = "joint_teacher", "decomposed"
WARM, ONCE = "warm cache, offline passes not counted", "each cached text used once"
# In inference pairs the premise is what is known beforehand, as the paper has it for MNLI.
PREMISE_CACHED = ("mnli", "rte", "wnli", "synthetic_pair")
LEARNING_RATE, NO_DECAY = 5e-5, ("*bias", "*LayerNorm*", "*layer_norm*")
CHOICES = {
    "cached_side": ("first", "second"),
    "lrs_over": ("real", "padded"),
    "lrs_layers": ("mean", "sum"),
    "student": ("teacher", "upper", "initial"),
}


@dataclass(frozen=True, kw_only=True)
class DeFormerOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        split: layers in which the texts stay apart [k]; None is three quarters of the model's (9 of 12). 0 is a joint
            model in the same layout.
        cached_side: the text known beforehand, "second" (a passage) or "first" (a premise; it holds [CLS]).
        kd_weight, lrs_weight, task_weight: of the distillation of logits [alpha], of the layerwise representation
            similarity [beta], of the task's own loss [gamma].
        temperature: of the distillation [tau].
        lrs_over: "real" tokens, or "padded" as the released code counts.
        lrs_layers: "mean" over the upper layers as released, or "sum" as the paper writes.
        student: what the decomposed model starts from: the joint "teacher"'s weights; those in the "upper" layers and
            the head alone, and below what the joint model began with; or the latter, the "initial" ones, everywhere.
            Both stages are for one reducer: `methods.load` of one saved between them has the teacher's weights alone.
        restart_positions: the second text's positions begin anew; without, its states depend on the first's length.
        single_texts: a text without a second one runs whole instead of being refused.
        separator_id: token that closes a text, where token types do not tell the texts apart; None takes it from the
            model's configuration.
    """

    split: int | None = None
    cached_side: str = "second"
    kd_weight: float = 1.1
    lrs_weight: float = 0.5
    task_weight: float = 0.7
    temperature: float = 2.0
    lrs_over: str = "real"
    lrs_layers: str = "mean"
    student: str = "teacher"
    restart_positions: bool = True
    single_texts: bool = False
    separator_id: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        for name in ("kd_weight", "lrs_weight", "task_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.split is not None and self.split < 0:
            raise ValueError(f"split must be >= 0 layers, got {self.split}")


@register("deformer")
class DeFormer(TokenReducer):
    """Every token reaches the top; in the lower layers each text attends to itself, or comes from the `cache`.

    `precompute` fills the cache and evaluation reads it; None computes everything, and so does training.
    """

    options_class = DeFormerOptions
    traits = Traits(
        title="DeFormer",
        optimization="distillation",
        strategy="searched",
        pads="computed",
        unsupported={"single_text": "it decomposes the two texts of a pair, one of which is known beforehand"},
        published_cost=WARM,
    )
    sweep = Sweep(option="split", values=(0.0, 0.25, 0.5, 1.0))  # 0: the joint model, its second text's positions anew

    def build(self) -> None:
        self.cache: PassageCache | None = None
        self._fingerprint = Fingerprint()
        self.initial = InitialWeights()  # that the joint teacher's stage began with; kept until the student starts

    def check_options(self, options: DeFormerOptions) -> None:
        super().check_options(options)
        if options.split is not None and options.split > self.backbone.num_layers:
            raise ValueError(f"split is {options.split} for {self.backbone.num_layers} layers")

    @property
    def split(self) -> int:
        """Layers in which the texts stay apart [k]; none while the joint teacher trains."""
        chosen: int | None = 0 if self.stage == JOINT else self.options.split
        return 3 * self.backbone.num_layers // 4 if chosen is None else chosen

    def train(self, mode: bool = True) -> DeFormer:
        """As for any module; afterwards the weights are looked at anew before the cache is."""
        self._fingerprint = Fingerprint()
        return super().train(mode)

    # The two texts

    def check_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """As for any method; then the texts are told apart and the second one's positions begin anew.

        Raises:
            ValueError: a text without a second one, unless `single_texts` allows it.
        """
        inputs = super().check_inputs(input_ids, attention_mask, token_type_ids, labels, position_ids)
        starts = second_starts(inputs, separator_of(self.backbone.config, self.options.separator_id))
        if not self.options.single_texts and not torch.compiler.is_exporting():
            check_pairs(starts, input_ids.shape[1], "set single_texts=True to run such texts whole")
        return as_pairs(inputs, starts, restart=self.options.restart_positions)

    def before_layer(self, state: TokenState) -> Decision | None:
        """In lower layers, attention stays inside each text; texts that the cache holds leap, [CLS] among them."""
        inputs = state.inputs
        assert inputs.segments is not None
        if state.layer == 0:
            state.trace.first_lengths = (inputs.attention_mask & (inputs.segments == 0)).sum(dim=1)
            if self.cache is not None and not self.training and not torch.compiler.is_exporting():
                state.notes["cached"] = self.cache.find(*self._passages(inputs))
        if state.layer >= self.split:
            return None
        segments = state.at(inputs.segments)
        if not state.notes["cached"]:
            return Decision(segments=segments)
        ((tokens, _),) = state.notes["cached"]
        return Decision(segments=segments, leap=state.at(tokens), leap_first=True)

    def after_layer(self, state: TokenState) -> Decision | None:
        """Where the texts meet, put the cached states in their place; in training, note the layers above."""
        if self.training and state.layer >= self.split:
            state.notes["upper"].append(state.hidden)
        if state.layer != self.split - 1 or not state.notes["cached"]:
            return None
        ((tokens, cached),) = state.notes["cached"]
        states = state.hidden.clone()
        states[state.at(tokens)] = cached.to(states)
        return Decision(states=states)

    # The cache

    def _passages(self, inputs: Inputs) -> tuple[Tensor, list[str | None]]:
        """(batch, seq_len) bool, tokens known beforehand, and their keys; none where a text stands alone."""
        assert inputs.segments is not None
        second = inputs.attention_mask & (inputs.segments == 1)
        side = second if self.options.cached_side == "second" else inputs.attention_mask & ~second
        tokens = side & second.any(dim=1, keepdim=True) & (self.split > 0)
        return tokens, passage_keys(self._fingerprint.of(self.backbone, self.split), self.split, inputs, tokens)

    @torch.no_grad()
    def precompute(self, batch: Mapping[str, Tensor]) -> int:
        """Run the lower layers over texts of the cached side that the cache lacks, each once, and store the states.

        Args:
            batch: as for `forward`; the other texts and labels play no part.
        Returns:
            MACs that this took. Raises ValueError in train(), where dropout is on, or as `check_inputs` does.
        """
        if self.training:
            raise ValueError("call eval() before precompute: states with dropout are of no use")
        read = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        inputs = self.check_inputs(**{name: batch[name] for name in read if name in batch})
        self.cache = PassageCache() if self.cache is None else self.cache
        tokens, keys = self._passages(inputs)
        trace = fill(self.cache, self.backbone, self.split, inputs, tokens, keys)
        return 0 if trace is None else int(self.macs(trace).sum())

    # Losses

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """gamma * task + alpha * distillation + beta * representation similarity; the teacher learns the task alone."""
        losses, options = super().losses(state, logits, inputs), self.options
        if self.stage == JOINT:
            return losses
        losses["task"] = options.task_weight * losses["task"]
        if options.kd_weight or options.lrs_weight:
            lesson = self.teacher.teach(inputs)
            head, several = self.backbone.head, self.backbone.multi_label
            divergence = softened_divergence(
                logits, lesson.logits, options.temperature, head, inputs.attention_mask, multi_label=several
            )
            losses["distillation"] = options.kd_weight * divergence
            losses["similarity"] = options.lrs_weight * self.similarity(state, lesson)
        return losses

    def similarity(self, state: TokenState, lesson: Lesson) -> Tensor:
        """Mean squared distance of upper states to the teacher's, layer by layer, and of the pooled vector if any."""
        tokens = state.real if self.options.lrs_over == "real" else torch.ones_like(state.real)
        pairs = zip(state.notes["upper"], lesson.states[self.split + 1 :], strict=True)
        distances = [state_distance(own, taught, tokens) for own, taught in pairs]
        if not self.backbone.reads_tokens:
            assert lesson.text is not None
            taught, own = self.teacher.backbone.pooled(lesson.text), self.backbone.pooled(state.read(self.backbone))
            distances.append(F.mse_loss(own.float(), taught.float()))
        if not distances:  # texts that never meet, and a head without a pooled vector
            return state.hidden.new_zeros((), dtype=torch.float32)
        total = torch.stack(distances)
        return total.mean() if self.options.lrs_layers == "mean" else total.sum()

    # Cost

    def _sides(self, trace: Trace, length: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the cached side, of the other and of both, (batch,) long; padding is the second text's."""
        assert trace.first_lengths is not None
        length = trace.input_lengths if length is None else length
        first = torch.where(trace.first_lengths == trace.input_lengths, length, trace.first_lengths)
        cached = first if self.options.cached_side == "first" else length - first
        cached = cached.masked_fill(first == length, 0)  # a text that stands alone
        return cached, length - cached, length

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lower layers pay for the squares of both lengths, or of one where the cache had the other."""
        cached, other, _ = self._sides(trace, length)
        cached = cached * (trace.attention_tokens[:, 0] == trace.input_lengths)
        lower = torch.arange(trace.num_layers, device=length.device) < self.split
        tokens = torch.where(lower, (cached + other).unsqueeze(1), length.unsqueeze(1))
        pairs = torch.where(lower, (cached**2 + other**2).unsqueeze(1), (length**2).unsqueeze(1))
        return tokens, pairs, tokens

    def online_macs(self, trace: Trace, length: Tensor | None = None) -> Tensor:
        """MACs (batch,) of each text with its cached side at hand; `length` (batch,) is the padded one, if any."""
        _, other, both = self._sides(trace, length)
        lower, upper = (self.backbone.layer_macs(tokens) for tokens in (other, both))
        layers = self.split * lower + (self.backbone.num_layers - self.split) * upper
        return layers + self.backbone.embedding_macs() * both + self.backbone.head_macs(both)

    def offline_macs(self, trace: Trace, length: Tensor | None = None) -> Tensor:
        """MACs (batch,) of computing the cached side of each text, as `precompute` does."""
        cached, _, _ = self._sides(trace, length)
        return self.split * self.backbone.layer_macs(cached) + self.backbone.embedding_macs() * cached

    def extra_costs(self, trace: Trace, length: Tensor) -> dict[str, Tensor]:
        """The published account, which leaves the offline passes out, and the one that pays them for every text."""
        online = self.online_macs(trace, length)
        return {WARM: online, ONCE: online + self.offline_macs(trace, length)}

    # Recipe

    def begin_stage(self, stage: Stage, updates: int) -> None:
        super().begin_stage(stage, updates)
        if stage.name == JOINT and self.options.student != "teacher":
            self.initial.note(self.model)
        elif self.initial:
            upper = {weight for layer in self.backbone.layers[self.split :] for weight in layer.parameters()}
            lower = {weight for part in lower_parts(self.backbone, self.split) for weight in part.parameters()}
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    if self.options.student == "initial" or weight in lower - upper:  # ALBERT's layers are one
                        weight.copy_(self.initial[name])
            self.initial.forget()

    @classmethod
    def sweep_options(cls, value: float, own: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """The texts stay apart in the share `value` of the layers."""
        return {"split": round(value * layers)}

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """The side that is known beforehand."""
        return {"cached_side": "first"} if task.name in PREMISE_CACHED else {}

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune the joint model in the same layout; then the decomposed one, with the joint one as its teacher."""
        if recipe == "short":
            joint = short_stage(JOINT, start="dense", epochs=1)
            return [joint, short_stage(DECOMPOSED, start="previous", epochs=2).but(teacher="previous")]
        groups = (
            ParameterGroup(patterns=NO_DECAY, learning_rate=LEARNING_RATE),
            ParameterGroup(learning_rate=LEARNING_RATE, weight_decay=0.01),
        )
        shared: dict[str, Any] = {"groups": groups, "warmup": 0.15, "max_grad_norm": 1.0, "adam_epsilon": 1e-6}
        return [Stage(name=JOINT, start="pretrained", **shared), Stage(name=DECOMPOSED, teacher="previous", **shared)]
