"""One training stage of a method inside `transformers.Trainer`, which knows of optimizers but not of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from methods.base import TokenReducer
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, assign_parameters, rate_factor

Factor = Callable[[int], float]  # of the learning rate, at an update


class StageCallback(transformers.TrainerCallback):
    """Tells a reducer how far training is, and when: `Trainer(model=reducer, callbacks=[StageCallback()])`.

    Schedules inside losses (a weight that rises) then follow the training, and parameters are projected after each
    update. With a `stage`, the Trainer's optimizer trains what the stage trains: parameters of none of its groups are
    frozen until the end, those that the stage makes as it begins (PoWER-BERT's retention) join, multipliers of a
    constraint (ToP) climb. Each group has the recipe's learning rate and weight decay, since they differ a
    thousandfold; `learning_rate` and `weight_decay` of the `TrainingArguments` are not used. Change them by
    `stage.but(groups=...)`. Schedule, epochs, batch size, clipping (of all gradients together) and the kind of
    optimizer remain those of the `TrainingArguments`; a group with a `decay` of its own keeps it.

    Training may go on from a checkpoint of the Trainer, given the teacher by `set_teacher` if the stage has one, unless
    the stage makes parameters as it begins. Parameters that were frozen before stay so.

    Args:
        stage: of `reducer.stages(task)`; its begin and end are told too. None: the losses are the ones outside any
            stage, and everything is trained at the Trainer's rate.
    Raises:
        ValueError: in training, a schedule that cannot do what the stage needs; a checkpoint that cannot be gone on
            from; label smoothing, for which the Trainer takes the labels away.
    """

    def __init__(self, stage: Stage | None = None) -> None:
        self.stage = stage
        self._regrouped: _Regrouped | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stage begins; where training goes on from a checkpoint, it begins again, with the weights of that."""
        model = _reducer(kwargs["model"])
        if args.label_smoothing_factor and _has_own_losses(model, self.stage):
            raise ValueError(
                f"label smoothing takes the labels away from the reducer, and the own losses of {model.method_name} "
                "need them; set label_smoothing_factor=0"
            )
        if self.stage is None:
            return
        if self._regrouped is not None:  # an attempt before was broken off
            self._regrouped.undo()
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ValueError(
                f"stage {self.stage.name} chooses what its optimizer trains, which DeepSpeed and FSDP do not allow; "
                "train it on one device or on several copies of the model (torchrun without them)"
            )
        before = {p: p.requires_grad for p in model.parameters()}
        _begin(model, self.stage, state)
        optimizer, scheduler = _bare(kwargs["optimizer"], "optimizer"), _bare(kwargs["lr_scheduler"], "scheduler")
        made = [name for name, parameter in model.named_parameters() if parameter not in before]
        if made and args.world_size > 1:
            raise ValueError(f"stage {self.stage.name} makes {made[0]} as it begins, which trains on one device only")
        self._regrouped = _Regrouped(
            model, self.stage, before, optimizer, scheduler, updates=state.max_steps, freezes=args.world_size == 1
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Share of the updates done."""
        _reducer(kwargs["model"]).progress = state.global_step / state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update is done."""
        _reducer(kwargs["model"]).after_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stage ends."""
        model = _reducer(kwargs["model"])
        model.progress = 1.0
        if self.stage is not None:
            model.end_stage(self.stage)
        if self._regrouped is not None:
            self._regrouped.undo()
            self._regrouped = None


def _reducer(model: Any) -> TokenReducer:
    """The reducer inside what PEFT, several processes or `torch.compile` wrap around it.

    Raises:
        ValueError: there is none.
    """
    inner = model
    while not isinstance(inner, TokenReducer):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(found := getattr(inner, "module", getattr(inner, "_orig_mod", None)), nn.Module):
            inner = found
        else:
            raise ValueError(
                f"StageCallback is for a reducer, as `methods.create` makes it, got {type(model).__name__}"
            )
    return inner


def _has_own_losses(model: TokenReducer, stage: Stage | None) -> bool:
    """Whether the method, where it is not the dense model, learns from more than the task's loss."""
    own = type(model).losses is not TokenReducer.losses or type(model).run is not TokenReducer.run
    return own and (stage is None or stage.name != FINE_TUNE)


def _bare(wrapped: Any, inside: str) -> Any:
    """The optimizer or scheduler that accelerate may have wrapped."""
    return getattr(wrapped, inside) if type(wrapped).__module__.startswith("accelerate.") else wrapped


def _begin(model: TokenReducer, stage: Stage, state: Any) -> None:
    """Begin `stage`; after a checkpoint, without losing its weights.

    Raises:
        ValueError: the checkpoint lacks what the stage needs.
    """
    if not state.global_step:
        model.begin_stage(stage, state.max_steps)
        return
    if stage.teacher is not None and model._teacher is None:
        raise ValueError(
            f"the checkpoint does not hold the teacher that stage {stage.name} learns from; give it by "
            "`reducer.set_teacher(model)` before training goes on"
        )
    known = {name for name, _ in model.named_parameters()}
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.begin_stage(stage.but(teacher=None), state.max_steps)  # the model as it stands is not what it began with
    made = [name for name, _ in model.named_parameters() if name not in known]
    if made:
        raise ValueError(
            f"stage {stage.name} makes {made[0]} as it begins, so it cannot go on from a checkpoint of Trainer; train "
            "it anew, without `resume_from_checkpoint`"
        )
    model.load_state_dict(weights, strict=False)


class _Regrouped:
    """Makes the Trainer's optimizer and schedule those of a stage, until `undo`."""

    def __init__(
        self,
        model: TokenReducer,
        stage: Stage,
        before: dict[nn.Parameter, bool],
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        *,
        updates: int,
        freezes: bool,
    ) -> None:
        """`before` says which parameters there were and which of them trained; without `freezes`, the optimizer leaves
        out what the stage does not train, but gradients are computed, on which several processes have to agree."""
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"stage {stage.name} needs a schedule that follows the updates alone, got {type(scheduler).__name__}; "
                'set lr_scheduler_type="linear", "cosine" or "constant"'
            )
        climbs = any(group.maximize for group in stage.groups)
        if climbs and "maximize" not in optimizer.defaults:
            raise ValueError(
                f"stage {stage.name} has multipliers that climb, which {type(optimizer).__name__} cannot do; set "
                'optim="adamw_torch"'
            )
        self._before, self._optimizer, self._scheduler = before, optimizer, scheduler
        self._made: list[dict[str, Any]] = optimizer.param_groups  # as the Trainer made them
        self._rates = scheduler.base_lrs, scheduler.lr_lambdas
        assigned = [
            (group, [member for member in members if before.get(member, True)])
            for group, members in assign_parameters(model, stage.groups)
        ]
        for parameter, trained in before.items():
            if not freezes or not trained:
                parameter.requires_grad_(trained)
        self._regroup([(group, members) for group, members in assigned if members], stage, updates)
        self._hook = optimizer.register_state_dict_post_hook(self._as_made)

    def _regroup(self, assigned: list[tuple[ParameterGroup, list[nn.Parameter]]], stage: Stage, updates: int) -> None:
        optimizer, scheduler = self._optimizer, self._scheduler
        factors = [_factor(group, stage, updates, self._rates[1][0]) for group, _ in assigned]
        peaks = [_peak(group, factor, updates) for (group, _), factor in zip(assigned, factors, strict=True)]
        rates = [peak * factor(scheduler.last_epoch) for peak, factor in zip(peaks, factors, strict=True)]
        optimizer.param_groups = []
        for (group, members), peak, rate in zip(assigned, peaks, rates, strict=True):
            settings = {"params": members, "lr": rate, "initial_lr": peak, "weight_decay": group.weight_decay}
            climbing = {"maximize": group.maximize} if "maximize" in optimizer.defaults else {}
            optimizer.param_groups.append({**optimizer.defaults, **settings, **climbing})
        scheduler.base_lrs, scheduler.lr_lambdas, scheduler._last_lr = list(peaks), factors, list(rates)

    def _as_made(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state as a new Trainer can load it: in the groups that it makes. They are regrouped then."""
        numbers = {p: number for number, p in enumerate(p for group in self._made for p in group["params"])}
        present = [p for group in optimizer.param_groups for p in group["params"]]
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self._made]
        own = {
            numbers[p]: state["state"][place]
            for place, p in enumerate(present)
            if p in numbers and place in state["state"]
        }
        return {**state, "state": own, "param_groups": groups}

    def undo(self) -> None:
        """What trained before trains again, in the Trainer's groups."""
        self._hook.remove()
        self._optimizer.param_groups = self._made
        known = {p for group in self._made for p in group["params"]}
        for parameter in [p for p in self._optimizer.state if p not in known]:
            del self._optimizer.state[parameter]
        self._scheduler.base_lrs, self._scheduler.lr_lambdas = self._rates
        for parameter, trained in self._before.items():
            parameter.requires_grad_(trained)


def _factor(group: ParameterGroup, stage: Stage, updates: int, schedule: Factor) -> Factor:
    """The Trainer's schedule, or the group's own decay; a plain function, of which a scheduler saves nothing."""
    if group.decay is None:
        return lambda update: schedule(update)
    return lambda update: rate_factor(stage, update, updates, group)


def _peak(group: ParameterGroup, factor: Factor, updates: int) -> float:
    """Learning rate of a group that its factor scales, as `methods.recipes.peak_rate`."""
    if group.travel is None:
        return group.learning_rate
    total = sum(factor(update) for update in range(updates))
    return group.travel / total if total else 0.0
