"""Training: one loop for every method. What differs between methods is in their stages and hooks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.checkpoints import EPOCH, SEARCH, Partial, Snapshot, into_reducer, of_reducer, restore_options
from benchmarks.data import Feature, batches, collate
from benchmarks.plain import content_hash
from benchmarks.quick_dropout import quick_dropout
from benchmarks.team import Team
from methods import Stage, TokenReducer, Trial
from methods.recipes import ParameterGroup, assign_parameters, peak_rate, rate_factor

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how precisely to compute.

    Attributes:
        device: "cpu" or "cuda". dtype: "float32" or "bfloat16" (autocast: matrix products in bfloat16, the rest in
            float32). processes: that share each training; see `benchmarks.team`.
    """

    device: str = "cpu"
    dtype: str = "float32"
    processes: int = 1

    def autocast(self) -> torch.autocast:
        """Context manager to run the model in."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def place(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


def updates_of(stage: Stage, rows: int) -> int:
    """Optimizer updates that a stage takes on `rows` training rows; 0 where it does not train."""
    if not stage.epochs:
        return 0
    return max(math.ceil(stage.epochs * math.ceil(rows / stage.batch_size)), stage.min_updates, 1)


@dataclass
class Position:
    """How far the training of a stage is.

    Attributes:
        epoch, done: finished epochs and updates. seconds: spent so far. tail: loss terms of the last tenth's updates.
    """

    epoch: int = 0
    done: int = 0
    seconds: float = 0.0
    tail: list[dict[str, float]] = field(default_factory=list)


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
    partial: Partial | None = None,
    team: Team | None = None,
    order: Any = None,
) -> dict[str, Any]:
    """Train one stage in place.

    Args:
        features: tokenised training rows. seed: of the order of rows and of dropout and sampling.
        on_update: told the rows of each update, for progress.
        trial: scores a reducer on held-out training rows; needed where the stage selects the best epoch or searches.
        partial: where checkpoints are kept, after epochs and between trials of a search, and gone on from.
        team: of which this process is the leader. order: by which its helpers know what to `follow`; they get it
            together with a snapshot.
    Returns:
        Plain data for the record: updates, seconds, mean loss terms of the last tenth, means of what the method
        observed, the held-out score of each epoch where the best is kept, what a search found.
    Raises:
        ArithmeticError: the loss is not finite. ValueError: the stage needs a `trial`.
    """
    if stage.holds_out and trial is None:
        raise ValueError(f"stage {stage.name} chooses on held-out training rows, and none were given")
    torch.manual_seed(seed)
    updates = updates_of(stage, len(features))
    reducer.begin_stage(stage, updates)
    started, position = time.perf_counter(), Position()
    best = _Best(reducer, trial if stage.select == "best" else None)
    if updates:
        training = _Training(reducer, stage, updates, compute, best, team or Team())
        position = training.resume(partial)
        if position.done:
            on_update(min(position.done * stage.batch_size, position.epoch * len(features)))
            started -= position.seconds
        with training.together(order, position):
            while position.done < updates:
                training.epoch(features, pad_id, seed, position, on_update)
                best.consider()
                position.seconds = time.perf_counter() - started
                training.keep(position, partial)
        best.restore()
    reducer.end_stage(stage)
    reducer.requires_grad_(True)
    reducer.eval()
    found = None
    if stage.search and trial is not None:
        trials = _Trials(reducer, stage, trial, partial or Partial(None), started)
        found = reducer.search(stage, trials)
        started = trials.started
    seconds, tail = time.perf_counter() - started, position.tail
    means = {name: sum(terms[name] for terms in tail) / len(tail) for name in tail[0]} if tail else {}
    outcome = {"stage": stage.name, "updates": updates, "seconds": round(seconds, 3), "loss_terms": means}
    if reducer.observed:
        outcome["observed"] = {name: sum(values) / len(values) for name, values in reducer.observed.items()}
    if best.scores:
        outcome["held_out_scores"] = best.scores
    return outcome | ({} if found is None else {"search": found})


def follow(
    reducer: TokenReducer,
    stage: Stage,
    features: Sequence[Feature],
    pad_id: int,
    *,
    seed: int,
    compute: Compute,
    team: Team,
    snapshot: Snapshot,
) -> None:
    """Do a helper's part of the leader's `train_stage`, in a block of `team.engaged`: its rows of every batch.

    Args:
        reducer: as made for the run, its teacher set; it gets the leader's weights and options. snapshot: from the
            leader; the others as in `train_stage`.
    Raises:
        PeerFailed: the leader, or another helper, met an error.
    """
    updates = updates_of(stage, len(features))
    restore_options(snapshot, reducer)
    reducer.begin_stage(stage, updates)
    training = _Training(reducer, stage, updates, compute, _Best(reducer, None), team)
    position = training.restore(snapshot)
    while position.done < updates:
        torch.manual_seed(seed + team.rank * 1_000_003 + position.epoch)  # dropout and draws of its own
        training.epoch(features, pad_id, seed, position, lambda rows: None)


class _Training:
    """The updates of one stage, and its state between two epochs."""

    def __init__(
        self, reducer: TokenReducer, stage: Stage, updates: int, compute: Compute, best: _Best, team: Team
    ) -> None:
        self._reducer, self._stage, self._updates, self._compute = reducer, stage, updates, compute
        self._best, self._team = best, team
        self._groups = assign_parameters(reducer, stage.groups)
        self._parameters = [parameter for _, members in self._groups for parameter in members]
        self._peaks = [peak_rate(stage, updates, group) for group in stage.groups]
        self._optimizer = _optimizer(self._groups, stage)
        reducer.train()

    def together(self, order: Any, position: Position) -> AbstractContextManager[None]:
        """The block in which the helpers of the team take part; they get the teacher, too."""
        if self._team.size == 1:
            return nullcontext()
        snapshot = self._snapshot(position)
        if self._stage.teacher is not None:
            weights = self._reducer.teacher.model.state_dict()
            snapshot.tensors |= {f"teacher/{name}": weight for name, weight in weights.items()}
        on_cpu = {name: tensor.detach().cpu() for name, tensor in snapshot.tensors.items()}
        return self._team.engaged((order, Snapshot(on_cpu, snapshot.state)))

    def epoch(
        self,
        features: Sequence[Feature],
        pad_id: int,
        seed: int,
        position: Position,
        on_update: Callable[[int], None],
    ) -> None:
        """Train until the rows or the stage's updates end."""
        size, by_length = self._stage.batch_size, self._stage.group_by_length
        for rows in batches(features, size, shuffle_seed=seed, epoch=position.epoch, by_length=by_length):
            self._set_rates(position.done)
            self._reducer.progress = position.done / self._updates
            terms = self._update(rows, pad_id)
            position.done += 1
            on_update(len(rows))
            if position.done > self._updates * 0.9:
                position.tail.append(terms)
            if position.done == self._updates:
                self._team.finish()
                break
        position.epoch += 1

    def _set_rates(self, update: int) -> None:
        for group, peak, settings in zip(self._stage.groups, self._peaks, self._optimizer.param_groups, strict=True):
            settings["lr"] = peak * rate_factor(self._stage, update, self._updates, group)

    def _update(self, rows: Sequence[Feature], pad_id: int) -> dict[str, float]:
        """One optimizer update; returns the loss terms of this process's rows."""
        own = self._team.share(rows)
        terms: dict[str, float] = {}
        with self._team.averaging(self._parameters, len(own) / len(rows)):
            if own:
                terms = _gradients(self._reducer, self._stage, collate(own, pad_id), self._compute)
        if self._stage.max_grad_norm is not None:
            clipped = [parameter for group, members in self._groups if group.clipped for parameter in members]
            nn.utils.clip_grad_norm_(clipped, self._stage.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._reducer.after_update()
        return terms

    def _snapshot(self, position: Position) -> Snapshot:
        snapshot = of_reducer(self._reducer)
        for number, values in self._optimizer.state_dict()["state"].items():
            snapshot.tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
        snapshot.tensors |= {f"best/{name}": weight for name, weight in (self._best.weights or {}).items()}
        snapshot.state |= {
            "stage": self._stage.name,
            "position": asdict(position),
            "observed": self._reducer.observed,
            "held_out_scores": self._best.scores,
        }
        return snapshot

    def keep(self, position: Position, partial: Partial | None) -> None:
        """Write a checkpoint, if enough was done since the last one."""
        if partial is not None and partial.is_due():
            partial.save(EPOCH, self._snapshot(position))

    def resume(self, partial: Partial | None) -> Position:
        """Go on from a checkpoint of this stage, or start."""
        snapshot = None if partial is None else partial.load(EPOCH)
        return self.restore(snapshot) if snapshot and snapshot.state["stage"] == self._stage.name else Position()

    def restore(self, snapshot: Snapshot) -> Position:
        """Go on from where the snapshot was made."""
        into_reducer(snapshot, self._reducer)
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in snapshot.part("optimizer").items():
            number, _, key = name.partition("/")
            states.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        self._best.scores, self._best.weights = snapshot.state["held_out_scores"], snapshot.part("best") or None
        self._reducer.observed.clear()
        self._reducer.observed.update(snapshot.state["observed"])
        return Position(**snapshot.state["position"])


def _gradients(reducer: TokenReducer, stage: Stage, batch: Batch, compute: Compute) -> dict[str, float]:
    """Backward over a batch; returns its loss terms."""
    with quick_dropout():
        with compute.autocast():
            output = reducer(**compute.place(batch))
        terms = {name: float(term.detach()) for name, term in output.losses.items()}
        if not bool(output.loss.isfinite()):
            values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
            raise ArithmeticError(f"the loss is not finite in stage {stage.name} ({values}); lower the learning rate")
        output.loss.backward()
    return terms


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


class _Best:
    """Remembers the weights of the epoch with the best held-out score, where a stage asks for it.

    Attributes:
        scores: of every epoch so far, None where it could not be selected.
    """

    def __init__(self, reducer: TokenReducer, trial: Callable[[TokenReducer], Trial] | None) -> None:
        self._reducer, self._trial = reducer, trial
        self.scores: list[float | None] = []
        self.weights: dict[str, torch.Tensor] | None = None

    def consider(self) -> None:
        if self._trial is None:
            return
        if not self._reducer.selectable():
            self.scores.append(None)
            return
        best = max((score for score in self.scores if score is not None), default=-math.inf)
        score = self._trial(self._reducer).score
        self.scores.append(score)
        self._reducer.train()
        if score > best:
            self.weights = copy.deepcopy(self._reducer.state_dict())

    def restore(self) -> None:
        if self.weights is not None:
            self._reducer.load_state_dict(self.weights)


class _Trials:
    """The trials of a stage's search, each setting of the options once: a killed search goes through those that it has
    had without computing them, so that it comes to the same end.

    Attributes:
        started: when the stage would have been started, had it not been interrupted; see `time.perf_counter`.
    """

    def __init__(
        self,
        reducer: TokenReducer,
        stage: Stage,
        trial: Callable[[TokenReducer], Trial],
        partial: Partial,
        started: float,
    ) -> None:
        self._reducer, self._stage, self._trial, self._partial = reducer, stage, trial, partial
        self._known: dict[str, dict[str, float]] = {}
        self.started = started
        snapshot = partial.load(SEARCH)
        if snapshot is not None and snapshot.state["stage"] == stage.name:
            self._known = snapshot.state["trials"]
            self.started = min(started, time.perf_counter() - snapshot.state["seconds"])

    def __call__(self) -> Trial:
        """How the reducer does with its present options."""
        key = content_hash(vars(self._reducer.options))
        if key not in self._known:
            self._known[key] = asdict(self._trial(self._reducer))
            if self._partial.is_due():
                seconds = time.perf_counter() - self.started
                state = {"stage": self._stage.name, "trials": self._known, "seconds": seconds}
                self._partial.save(SEARCH, Snapshot({}, state))
        return Trial(**self._known[key])
