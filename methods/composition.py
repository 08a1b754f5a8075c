"""Compositions: a token reducer and an early exit on one model, such as "transkimmer+deebert".

Idea: He et al., "Magic Pyramid: Accelerating Inference with Early Exiting and Token Pruning", 2021,
https://arxiv.org/abs/2111.00230. That paper joins two particular methods; here any reducer and any exit can be joined.
Departure: the reducer is trained first, by its own recipe, then the exit on the reduced model, by its own: there tokens
are dropped as in use, by decisions that no longer change, and the loss is the exit's alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field, fields, make_dataclass, replace
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn

from methods.base import TokenReducer
from methods.config import Options, ReducerConfig, ReducerOutput, Traits
from methods.recipes import FINE_TUNE, ParameterGroup, Stage, Trial
from methods.registry import lookup
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.trace import Trace

EXITS = "exits"  # how a method's `Traits.dropped` says that it ends whole texts


class Composition(TokenReducer):
    """Asks a token reducer and an early exit in turn. Options are those of both; equal names get the method's in front.

    In a training loop of your own, train the reducer alone first if it learns in several passes (LAT, TR-BERT): here
    both learn from one pass, by the sum of their losses.
    """

    part_classes: ClassVar[tuple[type[TokenReducer], ...]]  # the reducer, the exit
    option_names: ClassVar[Mapping[tuple[str, str], str]]  # (method, its option) -> option of the composition

    def build(self) -> None:
        self.parts = nn.ModuleDict({cls.method_name: self._part(cls) for cls in self.part_classes})
        exact = [part._keep_in_fp32_modules_strict or set() for part in self._both]
        self._keep_in_fp32_modules_strict = set().union(*exact)

    def _part(self, cls: type[TokenReducer]) -> TokenReducer:
        """A method of its own on the shared model, which is registered, trained and saved once, by the composition."""
        options = part_options(cls, self.option_names, asdict(self.options))
        part = cls(ReducerConfig.of(cls.method_name, cls.options_class(**options), self.model), self.model)
        del part._modules["model"]
        part.__dict__["model"] = self.model
        return part

    @property
    def _both(self) -> list[TokenReducer]:
        return [self.parts[cls.method_name] for cls in self.part_classes]  # type: ignore[misc]

    @property
    def _asked(self) -> list[TokenReducer]:
        """The exit stays silent while the reducer trains."""
        return self._both if self.stage is None or self._trains_exit else self._both[:1]

    @property
    def _learning(self) -> list[TokenReducer]:
        """The parts whose losses count: in a stage, the one that it belongs to."""
        return self._both[1:] if self._trains_exit else self._asked

    @property
    def _trains_exit(self) -> bool:
        return self.stage is not None and self._of_exit(self.stage)

    @classmethod
    def _of_exit(cls, stage_name: str) -> bool:
        return stage_name.startswith(f"{cls.part_classes[1].method_name}:")

    def _owner(self, stage: Stage) -> tuple[TokenReducer, Stage]:
        """The part that a stage belongs to, and the stage as that part knows it."""
        if not self._of_exit(stage.name):
            return self._both[0], stage
        return self._both[1], stage.but(name=stage.name.partition(":")[2])

    # Hooks

    def before_layer(self, state: TokenState) -> Decision | None:
        return merged([part.before_layer(state) for part in self._asked])

    def after_attention(self, state: TokenState) -> Decision | None:
        return merged([part.after_attention(state) for part in self._asked])

    def after_layer(self, state: TokenState) -> Decision | None:
        return merged([part.after_layer(state) for part in self._asked])

    def needs_scores(self, layer: int) -> bool:
        return any(part.needs_scores(layer) for part in self._asked)

    def follow_schedule(self, shares: Sequence[float]) -> None:
        for part in self._both:
            part.follow_schedule(shares)

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """The terms of both, the task's own loss once; in a stage, of the part that it belongs to."""
        terms: dict[str, Tensor] = {}
        for part in self._learning:
            terms |= part.losses(state, logits, inputs)
        return terms

    def state_options(self) -> StateOptions:
        options = self._both[0].state_options()
        return replace(options, training=self.training, noisy_scores=False) if self._trains_exit else options

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the reducer says, and nothing in the layers after an exit."""
        ran = trace.attention_tokens > 0
        attention, pairs, ffn = self._both[0].executed_tokens(trace, length)
        return attention * ran, pairs * ran, ffn * ran

    @property
    def computes_pads(self) -> bool:
        return self._both[0].computes_pads

    def run(self, inputs: Inputs) -> ReducerOutput:
        for part in self._both:
            part.progress, part._forced_mode = self.progress, self._forced_mode
        if self.training and self.stage is not None and not self._trains_exit:
            return self._both[0].run(inputs)
        return super().run(inputs)

    # Recipe

    def train(self, mode: bool = True) -> Composition:
        """In the exit's stage the reducer stays as in `eval()`: what it decides is hard and the same every time."""
        super().train(mode)
        if self._trains_exit:
            self._both[0].train(False)
        return self

    def check_options(self, options: Any) -> None:
        """Asks the parts, which have checked their own once they are built."""
        for part in self._both if "parts" in self._modules else ():
            own = part_options(type(part), self.option_names, vars(options))
            part.check_options(part.options_class(**own))

    def set_options(self, **changes: Any) -> None:
        super().set_options(**changes)
        for part in self._both:
            part.set_options(**part_options(type(part), self.option_names, asdict(self.options)))

    def _gather_options(self) -> None:
        """Take over what a part changed in its own options."""
        own = {
            name: getattr(self.parts[method].options, option) for (method, option), name in self.option_names.items()
        }
        super().set_options(**own)

    def set_teacher(self, model: transformers.PreTrainedModel | None) -> None:
        super().set_teacher(model)
        for part in self._both:
            part._teacher, part._copied = self._teacher, False

    def begin_stage(self, stage: Stage, updates: int) -> None:
        super().begin_stage(stage, updates)
        owner, own = self._owner(stage)
        owner.begin_stage(own, updates)
        self.observed = owner.observed
        self.train(self.training)

    def end_stage(self, stage: Stage) -> None:
        owner, own = self._owner(stage)
        owner.end_stage(own)
        super().end_stage(stage)
        self._gather_options()
        self.train(self.training)

    def after_update(self) -> None:
        for part in self._learning:
            part.after_update()

    def selectable(self) -> bool:
        return all(part.selectable() for part in self._learning)

    def search(self, stage: Stage, trial: Callable[[], Trial]) -> dict[str, Any]:
        owner, own = self._owner(stage)
        found = owner.search(own, trial)
        self._gather_options()
        return found

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        return {
            cls.option_names[part.method_name, option]: value
            for part in cls.part_classes
            for option, value in part.task_options(task, recipe).items()
        }

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """The reducer's stages, then the exit's without the fine-tuning that the reducer's replace."""
        reducer, early_exit = cls.part_classes
        first = [_within(stage, reducer) for stage in reducer.recipe_stages(task, recipe, family)]
        second = [
            _within(stage, early_exit).but(name=f"{early_exit.method_name}:{stage.name}", start="previous")
            for stage in early_exit.recipe_stages(task, recipe, family)
            if stage.name != FINE_TUNE
        ]
        return first + second


def part_options(
    cls: type[TokenReducer], names: Mapping[tuple[str, str], str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of one part among the `values` of a composition's."""
    return {option: values[name] for (method, option), name in names.items() if method == cls.method_name}


def merged(decisions: list[Decision | None]) -> Decision | None:
    """One decision that says what all of them say; tokens stay that all keep.

    Raises:
        ValueError: two of them decide the same otherwise.
    """
    given = [decision for decision in decisions if decision is not None]
    if len(given) < 2:
        return given[0] if given else None
    together = Decision()
    for decision in given:
        for item in fields(Decision):
            value, present = getattr(decision, item.name), getattr(together, item.name)
            if value is item.default:
                continue
            if item.name == "overhead_macs" and present is not None:
                value = present + value
            elif item.name == "keep" and present is not None:
                value = present & value
            elif present is not item.default:
                raise ValueError(f"both parts of the composition decide '{item.name}' at once")
            together = replace(together, **{item.name: value})
    return together


def _within(stage: Stage, part: type[TokenReducer]) -> Stage:
    """A part's stage, with the names that its own parameters have inside the composition."""

    def renamed(patterns: tuple[str, ...]) -> tuple[str, ...]:
        shared = ("*", "model.")
        return tuple(p if p.startswith(shared) else f"parts.{part.method_name}.{p}" for p in patterns)

    def moved(group: ParameterGroup) -> ParameterGroup:
        return replace(group, patterns=renamed(group.patterns), but_not=renamed(group.but_not))

    return stage.but(groups=tuple(moved(group) for group in stage.groups))


@functools.cache
def compose(name: str) -> type[Composition]:
    """The class of a composition such as "transkimmer+deebert"; the order of the two names does not matter.

    Raises:
        KeyError: an unknown method, or not exactly one token reducer and one early exit.
    """
    classes = sorted((lookup(part) for part in name.split("+")), key=lambda cls: cls.traits.dropped == EXITS)
    if [cls.traits.dropped == EXITS for cls in classes] != [False, True] or classes[0].traits.dropped == "none":
        raise KeyError(f"'{name}' is no composition; join one token reducer and one early exit: 'transkimmer+deebert'")
    reducer, early_exit = classes
    canonical = f"{reducer.method_name}+{early_exit.method_name}"
    if name != canonical:
        return compose(canonical)
    names = _option_names(classes)
    members = {
        "method_name": canonical,
        "part_classes": (reducer, early_exit),
        "option_names": names,
        "options_class": _merged_options(canonical, classes, names),
        "traits": _merged_traits(reducer.traits, early_exit.traits),
    }
    return type(f"{reducer.__name__}With{early_exit.__name__}", (Composition,), members)


def _option_names(classes: list[type[TokenReducer]]) -> dict[tuple[str, str], str]:
    owned = [(cls.method_name, item.name) for cls in classes for item in fields(cls.options_class)]
    plain = [option for _, option in owned]
    return {(method, option): option if plain.count(option) == 1 else f"{method}_{option}" for method, option in owned}


def _merged_options(
    name: str, classes: list[type[TokenReducer]], names: Mapping[tuple[str, str], str]
) -> type[Options]:
    def check(self: Options) -> None:
        for cls in classes:
            cls.options_class(**part_options(cls, names, vars(self)))

    def by_name(self: Options) -> tuple[Any, ...]:
        return _options_of, (name, vars(self))

    members = [
        (names[cls.method_name, item.name], item.type, field(default=item.default))
        for cls in classes
        for item in fields(cls.options_class)
    ]
    later = frozenset(names[cls.method_name, name] for cls in classes for name in cls.options_class.later)
    namespace = {"__post_init__": check, "later": later, "__reduce__": by_name}
    return make_dataclass(
        "CompositionOptions", members, bases=(Options,), namespace=namespace, frozen=True, kw_only=True
    )


def _options_of(name: str, values: Mapping[str, Any]) -> Options:
    """Options of a composition, in another process or for a copy."""
    return compose(name).options_class(**values)


def _merged_traits(reducer: Traits, early_exit: Traits) -> Traits:
    return replace(
        reducer,
        title=f"{reducer.title} + {early_exit.title}",
        optimization=f"{reducer.optimization}; {early_exit.optimization}",
        decision_input=f"{reducer.decision_input}; {early_exit.decision_input}",
        strategy=f"{reducer.strategy}; {early_exit.strategy}",
        unsupported={**early_exit.unsupported, **reducer.unsupported},
        as_released={},
        knob=None,  # that of the reducer and that of the exit would have to be turned together
    )
