"""Training recipes as data: an ordered list of stages, each saying what trains, how fast and how long."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

RECIPES = ("paper", "short")
FINE_TUNE = "fine_tune"  # a stage of this name trains the dense model, so that methods share its result
# Learning rate after the warm-up: down to 0 from the full rate, down to 0 from rate * (1 - warmup), or constant.
DECAYS = ("linear", "linear_unshifted", "constant")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters whose name in the reducer matches one of `patterns` (shell-style), and how they are updated."""

    patterns: tuple[str, ...] = ("*",)
    learning_rate: float
    weight_decay: float = 0.0
    clipped: bool = True  # counts in, and is scaled by, the gradient-norm clip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a published recipe.

    Attributes:
        name: what the reducer is told by `begin_stage`; part of the run's identity.
        start: weights to begin with: "pretrained", "dense" (the shared fine-tuned model) or "previous" (stage).
        epochs: passes over the training set; 0 runs only `begin_stage` and `end_stage`.
        groups: first match wins; parameters that match none are frozen.
        batch_size: sequences per update.
        warmup: share of the updates with rising learning rate.
        decay: one of `DECAYS`.
        max_grad_norm: global norm that gradients are clipped to, or None.
        adam_betas, adam_epsilon: of AdamW.
        select: weights kept at the end: "last", or "best" by the task's metric on held-out training rows.
        group_by_length: batches of texts of similar length, which pads less; the papers draw them at random.
        min_updates: the stage lasts at least this many updates, however few the rows.
    """

    name: str
    start: str = "previous"
    epochs: float = 3.0
    groups: tuple[ParameterGroup, ...] = (ParameterGroup(learning_rate=2e-5),)
    batch_size: int = 32
    warmup: float = 0.0
    decay: str = "linear"
    max_grad_norm: float | None = None
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    select: str = "last"
    group_by_length: bool = False
    min_updates: int = 0

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
        owner = next(
            (members for group, members in assigned if any(fnmatch.fnmatch(name, p) for p in group.patterns)), None
        )
        parameter.requires_grad_(owner is not None)
        if owner is not None:
            owner.append(parameter)
    for group, members in assigned:
        if not members:
            raise ValueError(f"no parameter of {type(module).__name__} matches {', '.join(group.patterns)}")
    return assigned


def rate_factor(stage: Stage, update: int, updates: int) -> float:
    """Learning rate of the 0-based `update` of `updates`, as a factor of the group's own."""
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
        name=name, start=start, epochs=epochs, groups=groups, warmup=0.1, max_grad_norm=1.0, group_by_length=True
    )
