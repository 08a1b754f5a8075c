"""Training: one loop for every method. What differs between methods is in their stages and hooks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.data import Feature, batches, collate
from methods import Stage, TokenReducer, Trial
from methods.recipes import ParameterGroup, assign_parameters, rate_factor


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how precisely to compute.

    Attributes:
        device: "cpu" or "cuda". dtype: "float32" or "bfloat16" (autocast: matrix products in bfloat16, the rest in
            float32).
    """

    device: str = "cpu"
    dtype: str = "float32"

    def autocast(self) -> torch.autocast:
        """Context manager to run the model in."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on the device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


def updates_of(stage: Stage, rows: int) -> int:
    """Optimizer updates that a stage takes on `rows` training rows; 0 where it does not train."""
    if not stage.epochs:
        return 0
    return max(math.ceil(stage.epochs * math.ceil(rows / stage.batch_size)), stage.min_updates, 1)


def train_stage(
    reducer: TokenReducer,
    stage: Stage,
    features: Sequence[Feature],
    pad_id: int,
    *,
    seed: int,
    compute: Compute,
    on_update: Callable[[int], None] = lambda rows: None,
    trial: Callable[[TokenReducer], Trial] | None = None,
) -> dict[str, Any]:
    """Train one stage in place.

    Args:
        features: tokenised training rows. seed: of the order of rows and of dropout and sampling.
        on_update: told the rows of each update, for progress.
        trial: scores a reducer on held-out training rows; needed where the stage selects the best epoch or searches.
    Returns:
        Plain data for the record: updates, seconds, mean loss terms of the last tenth, means of what the method
        observed, what a search found.
    Raises:
        ArithmeticError: the loss is not finite. ValueError: the stage needs a `trial`.
    """
    if stage.holds_out and trial is None:
        raise ValueError(f"stage {stage.name} chooses on held-out training rows, and none were given")
    torch.manual_seed(seed)
    updates = updates_of(stage, len(features))
    reducer.begin_stage(stage, updates)
    started = time.perf_counter()
    tail: list[dict[str, float]] = []
    best = _Best(reducer, trial if stage.select == "best" else None)
    if updates:
        groups = assign_parameters(reducer, stage.groups)
        optimizer = _optimizer(groups, stage)
        reducer.train()
        done = epoch = 0
        while done < updates:
            order = batches(features, stage.batch_size, shuffle_seed=seed, epoch=epoch, by_length=stage.group_by_length)
            for chunk in order:
                _set_rates(optimizer, stage, done, updates)
                reducer.progress = done / updates
                terms = _update(reducer, optimizer, groups, stage, compute.place(collate(chunk, pad_id)), compute)
                done += 1
                on_update(len(chunk))
                if done > updates * 0.9:
                    tail.append(terms)
                if done == updates:
                    break
            epoch += 1
            best.consider()
        best.restore()
    reducer.end_stage(stage)
    reducer.requires_grad_(True)
    reducer.eval()
    found = reducer.search(stage, lambda: trial(reducer)) if stage.search and trial is not None else None
    seconds = time.perf_counter() - started
    means = {name: sum(terms[name] for terms in tail) / len(tail) for name in tail[0]} if tail else {}
    outcome = {"stage": stage.name, "updates": updates, "seconds": round(seconds, 3), "loss_terms": means}
    if reducer.observed:
        outcome["observed"] = {name: sum(values) / len(values) for name, values in reducer.observed.items()}
    return outcome | ({} if found is None else {"search": found})


def _update(
    reducer: TokenReducer,
    optimizer: torch.optim.Optimizer,
    groups: list[tuple[ParameterGroup, list[nn.Parameter]]],
    stage: Stage,
    batch: dict[str, torch.Tensor],
    compute: Compute,
) -> dict[str, float]:
    with compute.autocast():
        output = reducer(**batch)
    if not bool(output.loss.isfinite()):
        values = ", ".join(f"{name} {float(term.detach()):g}" for name, term in output.losses.items())
        raise ArithmeticError(f"the loss is not finite in stage {stage.name} ({values}); lower the learning rate")
    output.loss.backward()
    if stage.max_grad_norm is not None:
        clipped = [parameter for group, members in groups if group.clipped for parameter in members]
        nn.utils.clip_grad_norm_(clipped, stage.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    reducer.after_update()
    return {name: float(term.detach()) for name, term in output.losses.items()}


def _optimizer(groups: list[tuple[ParameterGroup, list[nn.Parameter]]], stage: Stage) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
                "maximize": group.maximize,
            }
            for group, members in groups
        ],
        betas=stage.adam_betas,
        eps=stage.adam_epsilon,
        fused=True,  # one pass over the weights; several times faster than the default, on a CPU too
    )


def _set_rates(optimizer: torch.optim.Optimizer, stage: Stage, update: int, updates: int) -> None:
    for group, settings in zip(stage.groups, optimizer.param_groups, strict=True):
        settings["lr"] = group.learning_rate * rate_factor(stage, update, updates, group)


class _Best:
    """Remembers the weights of the epoch with the best held-out score, where a stage asks for it."""

    def __init__(self, reducer: TokenReducer, trial: Callable[[TokenReducer], Trial] | None) -> None:
        self._reducer, self._trial = reducer, trial
        self._value = -math.inf
        self._weights: dict[str, Any] | None = None

    def consider(self) -> None:
        if self._trial is None or not self._reducer.selectable():
            return
        value = self._trial(self._reducer).score
        self._reducer.train()
        if value > self._value:
            self._value, self._weights = value, copy.deepcopy(self._reducer.state_dict())

    def restore(self) -> None:
        if self._weights is not None:
            self._reducer.load_state_dict(self._weights)
