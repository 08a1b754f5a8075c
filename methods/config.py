"""What a reducer is made from and what it gives back: options, traits, saved configuration, output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import transformers
from torch import Tensor
from transformers.utils import ModelOutput

from methods.families import MULTI_LABEL
from methods.trace import Trace

PADDINGS = ("none", "batch", "sequence")
LABELS = ("id2label", "label2id", "problem_type")
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A method's knobs: frozen, plain values, checked when built. Subclasses add fields.

    Attributes:
        later: names of fields that came when there were records already.
        fixed: names of fields that the method's own modules are built by; they cannot change afterwards.
    """

    later: ClassVar[frozenset[str]] = frozenset()
    fixed: ClassVar[frozenset[str]] = frozenset()

    def recorded(self) -> dict[str, Any]:
        """As records have them: without a later field at its default, so that older records name the same run."""
        old = {
            item.name for item in fields(self) if item.name in self.later and getattr(self, item.name) == item.default
        }
        return {name: value for name, value in vars(self).items() if name not in old}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The option that trades accuracy for speed, turned where a speed-up is wished for rather than a setting.

    Attributes:
        option: its name.
        least, most: the values between which it is worth trying; the speed-up grows from the first to the second.
        log: values are spaced evenly in their logarithm.
        after_training: `TokenReducer.press` turns it on the trained model; else it has to be trained with.
    """

    option: str
    least: float = 0.0
    most: float = 1.0
    log: bool = False
    after_training: bool = False

    def at(self, pressure: float) -> float:
        """The value at a pressure in [0, 1], of three digits: 0 is `least`, 1 is `most`."""
        checked_pressure(pressure)
        if self.log:
            return float(f"{self.least ** (1 - pressure) * self.most**pressure:.3g}")
        return float(f"{self.least + (self.most - self.least) * pressure:.3g}")

    def pressure(self, value: float) -> float:
        """The pressure at which a value stands, in [0, 1]; the inverse of `at`."""
        if self.log:
            place = math.log(value / self.least) / math.log(self.most / self.least) if value > 0 else 0.0
        else:
            place = (value - self.least) / (self.most - self.least)
        return min(1.0, max(0.0, place))


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is and can do; tests, tables and figures read abilities here and nowhere else.

    Attributes:
        title: as the papers print it.
        optimization, decision_input, dropped, strategy: the columns of Transkimmer's Table 1.
        unsupported: head -> the reason from the method's definition; also "multi_label", labels that may hold together,
            and "single_text", for methods of text pairs.
        as_released: options with which the method computes what its published code computes where that is not real
            removal text by text; empty where the code does the same, or none was published.
        released_removes: the published code removes tokens, if not the same, so that it is charged for those it keeps.
        pads: what happens to padding in a padded setting: "removed" (never computed) or "computed" (like real tokens).
        published_cost: the name among `TokenReducer.extra_costs` that the paper's own speed-ups count; "" where they
            count all that is executed.
        knob: what to turn for another speed-up; None where nothing does.
    """

    title: str
    optimization: str = "none"
    decision_input: str = "none"
    dropped: str = "none"
    strategy: str = "none"
    unsupported: Mapping[str, str] = field(default_factory=dict)
    as_released: Mapping[str, Any] = field(default_factory=dict)
    released_removes: bool = False
    pads: str = "removed"
    published_cost: str = ""
    knob: Knob | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings of a method's own trade of score for speed that a figure shows beside the recipe's own.

    Attributes:
        option: what is turned: an option's name, or of what is scaled.
        values: from light to strong pressure; empty where only the trained model knows them.
        relative: they are factors of the recipe's own value.
        retrains: each needs a training of its own; else the trained model is only scored again.
    """

    option: str
    values: tuple[float, ...] = ()
    relative: bool = False
    retrains: bool = True


class ReducerConfig(transformers.PreTrainedConfig):
    """Configuration of a reducer: the stock model's class and configuration, the method's name and its options."""

    model_type = "skimbench"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses", "trace"]

    def __init__(
        self,
        method: str = "dense",
        options: dict[str, Any] | None = None,
        backbone_class: str = "BertForSequenceClassification",
        backbone_config: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.method = method
        self.options = dict(options or {})
        self.backbone_class = backbone_class
        self.backbone_config = dict(backbone_config or {"model_type": "bert"})
        self.facts = dict(facts or {})  # for the model card, see `methods.card.Facts`
        super().__init__(**kwargs)

    @classmethod
    def of(cls, method: str, options: Options, model: transformers.PreTrainedModel) -> ReducerConfig:
        """The configuration of `method` with `options` around `model`."""
        config = model.config
        return cls(
            method=method,
            options=asdict(options),
            backbone_class=type(model).__name__,
            backbone_config=config.to_dict(),
            **{name: getattr(config, name, None) for name in (*LABELS, *SPECIAL_TOKENS)},
        )

    def refresh(self, stock: transformers.PreTrainedConfig, vocab_size: int) -> None:
        """Take over what became of the `stock` model's configuration, whose embeddings have `vocab_size` rows."""
        stock.vocab_size = vocab_size
        self.backbone_config = stock.to_dict()

    def check_problem(self, stock: transformers.PreTrainedConfig) -> None:
        """Refuse a `problem_type` that was set here after the head was made from the `stock` model's configuration."""
        if self.problem_type not in (None, stock.problem_type):
            raise ValueError(
                f"problem_type of a reducer cannot become '{self.problem_type}' later; set it in the stock model's "
                "configuration before create, or give it to from_pretrained"
            )

    def note_multi_label(self, stock: transformers.PreTrainedConfig) -> None:
        """Note that labels may hold together, as stock models do at the first such labels."""
        self.problem_type = stock.problem_type = self.backbone_config["problem_type"] = MULTI_LABEL

    def stock_config(self) -> transformers.PreTrainedConfig:
        """The stock model's own configuration object, with the labels and the kind of problem that this one says."""
        values = dict(self.backbone_config)
        values |= {name: value for name in LABELS if (value := getattr(self, name)) is not None}
        return transformers.AutoConfig.for_model(values.pop("model_type"), **values)


@dataclass
class ReducerOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        loss: scalar, the sum of `losses`; None without labels.
        logits: (batch, num_labels); None for span heads; (batch, seq_len, num_labels) for token classification, the
            lowest value of the dtype on padding.
        start_logits, end_logits: (batch, seq_len); span heads only; the lowest value of the dtype on padding.
        losses: the terms of `loss` by name.
        trace: what was computed.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    trace: Trace | None = None


def build_options(options_class: type[Options], method: str, values: Mapping[str, Any]) -> Options:
    """Options from plain values; lists, arrays and tensors become tuples, their single values numbers.

    Raises:
        ValueError: an unknown name, with the known ones; text or a value that is no number where a number belongs.
    """
    values = {name: _plain(value) for name, value in values.items()}
    defaults = {f.name: f.default for f in fields(options_class)}
    for name, value in values.items():
        if name not in defaults:
            listed = ", ".join(defaults) or "none"
            raise ValueError(f"{method} has no option '{name}'; its options: {listed}")
        is_number = isinstance(defaults[name], int | float) and not isinstance(defaults[name], bool)
        if is_number and (value is None or isinstance(value, str)):
            raise ValueError(f"{name} of {method} takes a number, got {value!r}")
    options = options_class(**values)
    for name, value in vars(options).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} of {method} takes a number, got nan")
    return options


def checked_pressure(pressure: float) -> float:
    """The same number; a ValueError if it is not in [0, 1]."""
    if not 0 <= pressure <= 1:
        raise ValueError(f"pressure lies in [0, 1], got {pressure}")
    return pressure


def check_fixed(method: str, old: Options, new: Options) -> None:
    """Refuse `new` options that differ from the `old` ones in what the method's modules were built by."""
    for name in sorted(new.fixed):
        built, wished = getattr(old, name), getattr(new, name)
        if wished != built:
            raise ValueError(
                f"{name} of {method} is built into the reducer and stays {built}; create another one for {wished}"
            )


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value
