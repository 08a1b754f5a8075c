"""Training recipes as data: an ordered list of stages, each saying what trains, how fast and how long."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

RECIPES = ("paper", "short")
FINE_TUNE = "fine_tune"  # a stage of this name trains the dense model, so that methods share its result
FORWARD, BACKWARD = 1.0, 2.0  # work of passes
# Learning rate after the warm-up: down to 0 from the full rate, down to 0 from rate * (1 - warmup), or constant.
DECAYS = ("linear", "linear_unshifted", "constant")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters whose name in the reducer matches one of `patterns` (shell-style), and how they are updated.

    Attributes:
        but_not: names among them that the group leaves out.
        travel: instead of a learning rate, the sum of the rates of all updates: as far as Adam moves a parameter whose
            gradient keeps its sign. For parameters that are a knob and must get somewhere, however few the updates.
        decay: replaces the stage's, its warm-up included.
        clipped: counts in, and is scaled by, the gradient-norm clip.
        maximize: gradient ascent (multipliers of a constraint).
    """

    patterns: tuple[str, ...] = ("*",)
    but_not: tuple[str, ...] = ()
    learning_rate: float = 0.0
    travel: float | None = None
    weight_decay: float = 0.0
    decay: str | None = None
    clipped: bool = True
    maximize: bool = False

    def holds(self, name: str) -> bool:
        """Whether the parameter called `name` belongs here."""
        inside, outside = (any(fnmatch.fnmatch(name, p) for p in some) for some in (self.patterns, self.but_not))
        return inside and not outside


@dataclass(frozen=True, kw_only=True)
class Work:
    """About how much a stage computes: an estimate for progress and plans, which decides nothing.

    Attributes:
        passes: per text and update, in forward passes of the dense encoder; a backward pass counts as two.
        trials: settings that a search scores at most.
    """

    passes: float
    trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a published recipe.

    Attributes:
        name: what the reducer is told by `begin_stage`; part of the run's identity.
        start: weights to begin with: "pretrained", "dense" (the shared fine-tuned model) or "previous" (stage).
        teacher: the frozen model that the stage learns from: "dense", "previous" (as the stage before left it, even
            where this one starts anew) or None.
        epochs: passes over the training set; 0 runs only `begin_stage` and `end_stage`.
        groups: first match wins; parameters that match none are frozen.
        batch_size: sequences per update.
        warmup: share of the updates with rising learning rate.
        decay: one of `DECAYS`.
        max_grad_norm: global norm that gradients are clipped to, or None.
        adam_betas, adam_epsilon: of AdamW.
        select: weights kept at the end: "last", or "best" by the task's metric on held-out training rows.
        search: after its training, `TokenReducer.search` chooses options on held-out training rows.
        group_by_length: batches of texts of similar length, which pads less; the papers draw them at random.
        min_updates: the stage lasts at least this many updates, however few the rows.
    """

    name: str
    start: str = "previous"
    teacher: str | None = None
    epochs: float = 3.0
    groups: tuple[ParameterGroup, ...] = (ParameterGroup(learning_rate=2e-5),)
    batch_size: int = 32
    warmup: float = 0.0
    decay: str = "linear"
    max_grad_norm: float | None = None
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    select: str = "last"
    search: bool = False
    group_by_length: bool = False
    min_updates: int = 0

    @property
    def holds_out(self) -> bool:
        """Whether the stage needs training rows that it does not train on."""
        return self.select == "best" or self.search

    @property
    def work(self) -> Work:
        """Of a method that runs the encoder once per update and asks its teacher once."""
        whole = any(pattern == "*" for group in self.groups for pattern in group.patterns)
        return Work(passes=(FORWARD + BACKWARD if whole else FORWARD) + (FORWARD if self.teacher else 0.0))

    def but(self, **changes: object) -> Stage:
        """The same stage with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def assign_parameters(
    module: nn.Module, groups: Iterable[ParameterGroup]
) -> list[tuple[ParameterGroup, list[nn.Parameter]]]:
    """Sort the parameters of `module` into `groups` (first match wins) and freeze the rest.

    Raises:
        ValueError: a group that matches nothing.
    """
    assigned: list[tuple[ParameterGroup, list[nn.Parameter]]] = [(group, []) for group in groups]
    for name, parameter in module.named_parameters():
        owner = next((members for group, members in assigned if group.holds(name)), None)
        parameter.requires_grad_(owner is not None)
        if owner is not None:
            owner.append(parameter)
    for group, members in assigned:
        if not members:
            raise ValueError(f"no parameter of {type(module).__name__} matches {', '.join(group.patterns)}")
    return assigned


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a reducer does, as it stands, on held-out training rows.

    Attributes:
        score: the task's metric, larger is better.
        macs: mean MACs of a text without padding; dense_macs: the same of the dense model.
    """

    score: float
    macs: float
    dense_macs: float

    @property
    def speedup(self) -> float:
        """Dense over reduced."""
        return self.dense_macs / self.macs


def peak_rate(stage: Stage, updates: int, group: ParameterGroup) -> float:
    """Learning rate of a group that `rate_factor` scales."""
    if group.travel is None:
        return group.learning_rate
    return group.travel / sum(rate_factor(stage, update, updates, group) for update in range(updates))


def rate_factor(stage: Stage, update: int, updates: int, group: ParameterGroup | None = None) -> float:
    """Learning rate of the 0-based `update` of `updates`, as a factor of the group's own."""
    if group is not None and group.decay is not None:
        stage = stage.but(decay=group.decay, warmup=0.0)
    rising = int(stage.warmup * updates)
    if update < rising:
        return (update + 1) / rising
    if stage.decay == "constant":
        return 1.0
    if stage.decay == "linear_unshifted":
        return 1 - (update + 1) / updates
    return (updates - update) / max(1, updates - rising)


def fine_tuning_stage(recipe: str) -> Stage:
    """Ordinary fine-tuning of every parameter: the common first stage, and all there is to the dense model."""
    if recipe == "short":
        return short_stage(FINE_TUNE, start="pretrained", epochs=3)
    return Stage(name=FINE_TUNE, start="pretrained", epochs=3, groups=(ParameterGroup(learning_rate=2e-5),))


def short_stage(
    name: str, *, start: str, epochs: float, added: tuple[ParameterGroup, ...] = (), frozen: bool = False
) -> Stage:
    """A stage of the short recipe: what a small model learns from a few thousand rows in a minute or two.

    Args:
        added: groups beside (and before) the backbone's. frozen: the backbone does not train.
    """
    backbone = () if frozen else (ParameterGroup(learning_rate=5e-5),)
    groups = (*added, *backbone)
    return Stage(
        name=name,
        start=start,
        epochs=epochs,
        groups=groups,
        batch_size=16,
        warmup=0.1,
        max_grad_norm=1.0,
        group_by_length=True,
    )
