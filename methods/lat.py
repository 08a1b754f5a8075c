"""LAT: one model, trained under random lengths per layer, serves every budget; a search chooses the lengths afterwards.

Paper: Kim and Cho, "Length-Adaptive Transformer: Train Once with Length Drop, Use Anytime with Search", ACL 2021,
https://arxiv.org/abs/2010.07003
Departures by default: a configuration is read as *shares* of a text's own length. The published counts are absolute and
refer to inputs padded to a fixed length: with 25 real tokens of 128, not even the smallest configuration of 12 layers
touches a real token before layer 8, so that what is gained is padding. Shares drop real tokens, in training and after,
and are what a column without padding can show; `counts="absolute"` is the published reading. Distillation is towards
the full model's distribution, as the paper words it; the public code exchanges the two sides of the divergence
(`kl_direction="reverse"`). Padding casts no votes (`count_pad_queries`); ranking in training is free of dropout
(`noisy_scores`); [CLS] stays for spans too (`protect_cls`). Regression learns from the full model by squared error,
several labels at once by their own divergences: ours, the paper has neither. Batches are not padded to a fixed length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import TokenReducer
from methods.config import Knob, Options, ReducerOutput, Sweep, Traits, checked_pressure
from methods.counts import check_counts, check_layers, counted_tokens, most_attended
from methods.encoder import encode
from methods.lat_search import LEAST, Budget, Configuration, Space, length_drop, search
from methods.packing import unpad
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, Trial, Work, fine_tuning_stage, short_stage
from methods.registry import register
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.trace import Trace

CHOICES = {
    "counts": ("shares", "absolute"),
    "kl_direction": ("forward", "reverse"),
    "operating_point": ("cheapest", "best", "speedup"),
}
FINE = 1_000_000  # a length that tells apart the shares of any schedule
SHORT_OPTIONS = {"random_passes": 1, "search_iterations": 4, "search_seeds": 8, "mutants": 5, "crossovers": 5}


@dataclass(frozen=True, kw_only=True)
class LatOptions(Options):
    """Options; the paper's symbol in brackets.

    Attributes:
        length_configuration: lengths at which the feed-forward of each layer runs, non-increasing [l_1 .. l_L]; None
            keeps all. The search sets it; any other may be set at any time, with no further training.
        max_length: the length that configurations refer to [N].
        counts: a text of n tokens keeps max(2, ceil(n * l_i / N)) of them at layer i ("shares"), or min(n, l_i)
            ("absolute").
        length_drop: greatest share of its tokens that a layer drops in training, and in the smallest configuration [p].
        layer_drop: probability that a pass of training leaves a layer out [p_layer].
        random_passes: per update, beside the full and the smallest one [n_s].
        kl_direction: of distillation from a full pass q to a smaller one p: "forward" KL(q || p), "reverse" KL(p || q).
        count_pad_queries: padding is computed and its rows vote, as in the public code; only with absolute counts.
        noisy_scores: in training, tokens are ranked by the attention left after dropout, as in the public code.
        protect_cls: False lets [CLS] go like any token, as the public code does for spans; only for span heads.
        operating_point: of the front: "cheapest" that scores no less than full length less `tolerance` (the paper's
            dagger), "best" score (its star), or best score at a `speedup` of at least so much.
        tolerance, speedup: see `operating_point`.
        search_iterations, search_seeds, mutants, crossovers: budget of the search [G, 20, n_m, n_c].
        mutation_probability: that a mutant's layer is drawn anew [p_m].
    """

    length_configuration: tuple[int, ...] | None = None
    max_length: int = 128
    counts: str = "shares"
    length_drop: float = 0.2
    layer_drop: float = 0.2
    random_passes: int = 2
    kl_direction: str = "forward"
    count_pad_queries: bool = False
    noisy_scores: bool = False
    protect_cls: bool = True
    operating_point: str = "cheapest"
    tolerance: float = 0.0
    speedup: float = 1.5
    search_iterations: int = 30
    search_seeds: int = 20
    mutants: int = 30
    crossovers: int = 30
    mutation_probability: float = 0.5

    def __post_init__(self) -> None:
        check_counts("length_configuration", self.length_configuration, least=LEAST)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{getattr(self, name)}'")
        for name in ("length_drop", "layer_drop", "mutation_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("random_passes", "search_iterations", "search_seeds", "mutants", "crossovers", "tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        longest = max(self.length_configuration or (LEAST,))
        if self.max_length < longest:
            raise ValueError(f"max_length must be at least {longest}, the longest length, got {self.max_length}")
        if self.count_pad_queries and self.counts == "shares":
            raise ValueError("count_pad_queries goes with counts='absolute'; shares are of a text's real tokens")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass over a batch leaves out: `skipped` layers, and tokens by a configuration (None: none)."""

    configuration: Configuration | None = None
    skipped: frozenset[int] = frozenset()


@register("lat")
class Lat(TokenReducer):
    """Ranks by attention received, own included; drops between attention and feed-forward; restores at the top."""

    options_class = LatOptions
    traits = Traits(
        title="LAT",
        optimization="random lengths, distillation",  # tokens are really dropped; Table 1 says soft-masking
        decision_input="attention",
        dropped="forwarded",
        strategy="searched",
        knob=Knob(option="length_configuration", after_training=True),
    )
    sweep = Sweep(option="length_configuration", retrains=False)

    def build(self) -> None:
        self._pass: Pass | None = None  # of training, while it runs

    def check_options(self, options: LatOptions) -> None:
        super().check_options(options)
        check_layers("length_configuration", options.length_configuration, self.backbone.num_layers)
        if not options.protect_cls and not self.backbone.reads_tokens:
            raise ValueError(f"protect_cls=False is for heads over tokens; a {self.backbone.head} head reads [CLS]")

    @property
    def configuration(self) -> Configuration | None:
        """In force now: of the pass under way, or as the options say."""
        return self.options.length_configuration if self._pass is None else self._pass.configuration

    def needs_scores(self, layer: int) -> bool:
        """Where tokens are dropped; at the first layer also for texts longer than `max_length`."""
        lengths = self.configuration
        return lengths is not None and (layer == 0 or lengths[layer] < lengths[layer - 1])

    def after_attention(self, state: TokenState) -> Decision | None:
        """Keep the tokens that received most attention, as many as the configuration says."""
        if self.configuration is None or state.scores is None:
            return None
        length, protected = self.configuration[state.layer], self.options.protect_cls
        count: int | Tensor = length
        if self.options.counts == "shares":
            whole = self.options.max_length
            count = state.expand(((state.lengths * length + whole - 1) // whole).clamp(min=LEAST))
        keep = most_attended(state, state.scores.received.detach(), count, protect_first=protected)
        return Decision(keep=keep, drop_first=not protected)

    def follow_schedule(self, shares: Sequence[float]) -> None:
        lengths = tuple(accumulate((max(LEAST, round(share * FINE)) for share in shares), min))
        self.set_options(length_configuration=lengths, max_length=FINE, counts="shares")

    def state_options(self) -> StateOptions:
        return StateOptions(
            training=self.training,
            forwards=True,
            run_padding=self.options.count_pad_queries,
            noisy_scores=self.training and self.options.noisy_scores,
            skipped_layers=frozenset() if self._pass is None else self._pass.skipped,
        )

    # Training

    def run(self, inputs: Inputs) -> ReducerOutput:
        """In training, one full pass, the smallest one and random ones, which learn from the full one.

        The trace is that of the full pass.
        """
        if not self.training or inputs.labels is None or self.stage == FINE_TUNE:
            return super().run(inputs)
        passes = self.draw_passes()
        state, logits = self._encode(inputs, passes[0])
        losses = {name: term / len(passes) for name, term in self.losses(state, logits, inputs).items()}
        lessons = [self.lesson(self._encode(inputs, part)[1], logits.detach(), inputs) for part in passes[1:]]
        losses["distillation"] = torch.stack(lessons).sum() / len(passes)
        return self.output(logits, losses, state.trace)

    def draw_passes(self) -> list[Pass]:
        """The passes of one update, drawn from torch's generator: full, smallest, then `random_passes` random ones.

        LayerDrop applies to each of them.
        """
        space, ratio = self.space, self.options.length_drop
        skips = [self._draw_skipped() for _ in range(self.options.random_passes + 2)]
        smallest = Pass(configuration=length_drop(space, ratio, skipped=skips[1]), skipped=skips[1])
        others = [Pass(configuration=length_drop(space, ratio, draw=_draw, skipped=s), skipped=s) for s in skips[2:]]
        return [Pass(skipped=skips[0]), smallest, *others]

    def _draw_skipped(self) -> frozenset[int]:
        drawn = torch.rand(self.backbone.num_layers) < self.options.layer_drop
        return frozenset(drawn.nonzero().flatten().tolist())

    def lesson(self, logits: Tensor, full: Tensor, inputs: Inputs) -> Tensor:
        """What a smaller pass has to learn from the full one's logits; scalar, at least 0."""
        lowest = torch.finfo(torch.float32).min  # what pads of spans have, unless their float64 lowest became -inf
        logits, full = logits.float().clamp(min=lowest), full.float().clamp(min=lowest)
        if self.backbone.head == "regression":
            return F.mse_loss(logits, full)
        if self.backbone.head == "span_qa":  # one distribution over positions each for start and end
            logits, full = logits.transpose(1, 2), full.transpose(1, 2)
        elif self.backbone.head == "token_classification":
            logits, full = unpad(logits, inputs.attention_mask), unpad(full, inputs.attention_mask)
        elif inputs.labels is not None and inputs.labels.is_floating_point():  # one of two outcomes for each label
            logits, full = (torch.stack((x, torch.zeros_like(x)), dim=-1) for x in (logits, full))
        learnt, taught = logits.log_softmax(dim=-1), full.log_softmax(dim=-1)
        if self.options.kl_direction == "reverse":
            learnt, taught = taught, learnt
        return F.kl_div(learnt, taught, reduction="none", log_target=True).sum(dim=-1).mean()

    def _encode(self, inputs: Inputs, part: Pass) -> tuple[TokenState, Tensor]:
        with self._only(part):
            state = encode(self, inputs, self.run_mode, self.state_options())
        return state, state.outputs(self.backbone)

    @contextmanager
    def _only(self, part: Pass) -> Iterator[None]:
        self._pass = part
        try:
            yield
        finally:
            self._pass = None

    # Search and cost

    def press(self, pressure: float) -> None:
        """Every layer keeps the same share of the tokens before it, 1 - pressure."""
        self.set_options(length_configuration=length_drop(self.space, checked_pressure(pressure)))

    def operating_points(self, found: Mapping[str, Any]) -> list[tuple[dict[str, Any], float, float]]:
        """The front of a search; speed-ups are those of its trials."""
        return [
            ({"length_configuration": one["configuration"]}, one["score"], one["speedup"]) for one in found["front"]
        ]

    @property
    def space(self) -> Space:
        """The configurations of this model."""
        return Space(length=self.options.max_length, layers=self.backbone.num_layers, drop=self.options.length_drop)

    def search(self, stage: Stage, trial: Callable[[], Trial]) -> dict[str, Any]:
        """Search configurations on held-out training rows, and set the one at the operating point."""
        options, space, seed = self.options, self.space, int(torch.randint(2**31, ()))
        full = self.configuration_macs(space.full)

        def tried(configuration: Configuration) -> Trial:
            self.set_options(length_configuration=configuration)
            result = trial()
            if options.counts == "shares":
                return result
            return replace(result, macs=self.configuration_macs(configuration), dense_macs=full)  # padded to N

        budget = Budget(
            iterations=options.search_iterations,
            seeds=options.search_seeds,
            mutants=options.mutants,
            crossovers=options.crossovers,
            mutation=options.mutation_probability,
        )
        found = search(space, budget, macs=self.configuration_macs, trial=tried, rng=random.Random(seed))
        chosen = found.choose(options.operating_point, tolerance=options.tolerance, speedup=options.speedup)
        self.set_options(length_configuration=chosen.configuration)
        return found.record(chosen) | {"seed": seed}

    @classmethod
    def sweep_values(cls, task: Any, metrics: Mapping[str, Any]) -> tuple[Configuration, ...]:
        """The configurations on the front that the search found, the dearest first."""
        found = [member for stage in metrics["training"] for member in stage.get("search", {}).get("front", ())]
        front = sorted(found, key=lambda member: -member["macs"])
        return tuple(tuple(member["configuration"]) for member in front)

    def configuration_macs(self, configuration: Configuration) -> int:
        """MACs of a text of `max_length` tokens, embeddings and head included."""
        length = torch.tensor([self.options.max_length])
        layers = self.backbone.layer_macs(*counted_tokens(configuration, length)).sum()
        return int(layers + self.backbone.embedding_macs() * length + self.backbone.head_macs(length))

    @property
    def computes_pads(self) -> bool:
        """Absolute counts refer to padded texts."""
        return self.options.counts == "absolute"

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With absolute counts, pads are among the tokens counted; with shares, they are never computed."""
        if not self.computes_pads or self.options.length_configuration is None:
            return super().executed_tokens(trace, length)
        return counted_tokens(self.options.length_configuration, length)

    # Recipe

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Padded length of the task; the short recipe searches less."""
        return {"max_length": task.sequence_length} | (SHORT_OPTIONS if recipe == "short" else {})

    @classmethod
    def stage_work(cls, stage: Stage, options: Mapping[str, Any]) -> Work:
        """Every update runs a full pass, the smallest one and some random ones."""
        chosen = LatOptions(**options)
        if stage.search:
            grown = chosen.search_iterations * (chosen.mutants + chosen.crossovers)
            return Work(passes=0.0, trials=2 + chosen.search_seeds + grown)
        return Work(passes=(2 + chosen.random_passes) * stage.work.passes)

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """Fine-tune; train on with LengthDrop; search (public commands)."""
        find = Stage(name="search", epochs=0, search=True)
        if recipe == "short":
            return [fine_tuning_stage(recipe), short_stage("length_drop", start="previous", epochs=1), find]
        rate = 5e-5 if task.name == "squad_v2" else 2e-5
        train = Stage(name="length_drop", epochs=5, groups=_group(rate), max_grad_norm=1.0, select="best")
        return [train.but(name=FINE_TUNE, start="pretrained", epochs=3), train, find]


def _draw(least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, ()))


def _group(learning_rate: float) -> tuple[ParameterGroup, ...]:
    return (ParameterGroup(learning_rate=learning_rate),)
