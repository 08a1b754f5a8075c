"""TokenReducer: a stock transformers encoder that need not compute every token.

1 MAC is one multiply-accumulate of a matrix product; FLOPs = 2 x MACs. Everything else (norms, softmax, activations,
index work) is not counted, for the dense model and for every method alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from methods.backbone import HEADS, Backbone, build_model, head_of
from methods.encoder import MODES, encode
from methods.recipes import FINE_TUNE, ParameterGroup, Stage
from methods.registry import lookup
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.trace import Trace

PADDINGS = ("none", "batch", "sequence")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A method's knobs: frozen, plain values, checked when built. Subclasses add fields."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is and can do; tests, tables and figures read abilities here and nowhere else.

    Attributes:
        title: as the papers print it.
        optimization, decision_input, dropped, strategy: the columns of Transkimmer's Table 1.
        decides: "token", "sequence" or "nothing".
        learns: it has something to train beyond the backbone, or trains the backbone in a way of its own.
        unsupported: head -> the reason from the method's definition.
        pads: what happens to padding in a padded setting: "removed" (never computed) or "computed" (like real tokens).
    """

    title: str
    optimization: str = "none"
    decision_input: str = "none"
    dropped: str = "none"
    strategy: str = "none"
    decides: str = "token"
    learns: bool = True
    unsupported: Mapping[str, str] = field(default_factory=dict)
    pads: str = "removed"


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
        **kwargs: Any,
    ) -> None:
        self.method = method
        self.options = dict(options or {})
        self.backbone_class = backbone_class
        self.backbone_config = dict(backbone_config or {"model_type": "bert"})
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
            id2label=config.id2label,
            label2id=config.label2id,
            problem_type=config.problem_type,
        )

    def stock_config(self) -> transformers.PreTrainedConfig:
        """The stock model's own configuration object."""
        values = dict(self.backbone_config)
        return transformers.AutoConfig.for_model(values.pop("model_type"), **values)


@dataclass
class ReducerOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        loss: scalar, the sum of `losses`; None without labels.
        logits: (batch, num_labels); None for span heads.
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


class TokenReducer(transformers.PreTrainedModel):
    """Base class of all methods: one stock model, one set of options, hooks that decide what is still computed.

    A method overrides the hooks it needs (`before_layer`, `after_attention`, `after_layer`), `losses` for its loss
    terms, and `stages` for its recipe. In `train()` it runs masked, in `eval()` packed; `mode` forces either.
    """

    config_class = ReducerConfig
    base_model_prefix = "model"
    method_name: ClassVar[str]
    options_class: ClassVar[type[Options]] = Options
    traits: ClassVar[Traits]

    def __init__(self, config: ReducerConfig, model: transformers.PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = model if model is not None else build_model(config.backbone_class, config.stock_config())
        self.backbone = Backbone(self.model)
        self.options: Any = _build_options(self.options_class, self.method_name, config.options)
        self.stage: str | None = None  # name of the training stage under way
        self.progress = 1.0  # share of that stage's updates done
        self._forced_mode: str | None = None
        reason = self.traits.unsupported.get(self.backbone.head)
        if reason is not None:
            raise ValueError(f"{self.method_name} does not support {self.backbone.head}: {reason}")
        self.build()
        self.post_init()

    def build(self) -> None:
        """Create the method's own modules (predictors, off-ramps), initialised as the paper says."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the stock model's weights are its own, and `build` initialises what it adds."""

    @classmethod
    def around(cls, model: transformers.PreTrainedModel, **options: Any) -> TokenReducer:
        """Wrap `model`, whose weights are shared, not copied."""
        head_of(model)
        checked = _build_options(cls.options_class, cls.method_name, options)
        reducer = cls(ReducerConfig.of(cls.method_name, checked, model), model)
        reducer.train(model.training)
        # transformers wraps `to` such that type checkers take it for a plain function, without its `self`.
        return reducer.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]

    def set_options(self, **changes: Any) -> None:
        """Replace some options (a searched configuration, a threshold); they are saved with the model."""
        self.options = replace(self.options, **changes)
        self.config.options = asdict(self.options)

    # Hooks

    def before_layer(self, state: TokenState) -> Decision | None:
        """Decide on the input of layer `state.layer`; `state.scores` still holds the previous layer's."""
        return None

    def after_attention(self, state: TokenState) -> Decision | None:
        """Decide between attention and feed-forward of layer `state.layer`."""
        return None

    def after_layer(self, state: TokenState) -> Decision | None:
        """Decide on the output of layer `state.layer`."""
        return None

    def needs_scores(self, layer: int) -> bool:
        """Whether the attention of `layer` must report the attention received."""
        return False

    def losses(self, state: TokenState, logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Terms of the training loss by name, weights included; scalars. Methods add theirs to the task loss."""
        assert inputs.labels is not None
        return self._task_only(logits, inputs.labels)

    def state_options(self) -> StateOptions:
        """How the encoder treats a batch for this method."""
        return StateOptions(training=self.training, forwards=self.traits.dropped != "discarded")

    # Recipe

    def stages(self, task: Any, recipe: str = "paper") -> list[Stage]:
        """The training recipe for `task` on this reducer's backbone; see `recipe_stages`."""
        return self.recipe_stages(task, recipe, self.backbone.config.model_type)

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """The published recipe ("paper") or the short one ("short") as ordered stages.

        Args:
            task: an object with `name`, `skim_weight` and `sequence_length`.
            family: the backbone's model type, where a paper trains families differently.
        """
        return [fine_tuning_stage(recipe)]

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Options that the recipe sets for `task`, where they differ from the defaults."""
        return {}

    def begin_stage(self, stage: Stage, updates: int) -> None:
        """Called before a stage of `updates` optimizer updates trains."""
        self.stage, self.progress = stage.name, 0.0

    def end_stage(self, stage: Stage) -> None:
        """Called when a stage has trained."""
        self.stage, self.progress = None, 1.0

    def after_update(self) -> None:
        """Called after every optimizer update (projections)."""

    # Running

    @contextmanager
    def mode(self, mode: str) -> Iterator[None]:
        """Force "masked" or "packed" inside a with-block.

        Raises:
            ValueError: another name.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got '{mode}'")
        previous, self._forced_mode = self._forced_mode, mode
        try:
            yield
        finally:
            self._forced_mode = previous

    @property
    def run_mode(self) -> str:
        """The mode that the next forward pass runs in."""
        return self._forced_mode or ("masked" if self.training else "packed")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **ignored: Any,
    ) -> ReducerOutput:
        """Run a batch.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, seq_len), padded on the right.
            labels: (batch,) class ids or values; start_positions, end_positions: (batch,) for span heads.
        Returns:
            Logits, trace and, with labels, the loss and its terms.
        Raises:
            ValueError: an empty batch or sequence, padding on the left, a text longer than the model, shapes that
                differ.
        """
        if start_positions is not None and end_positions is not None:
            labels = torch.stack((start_positions, end_positions), dim=1)
        inputs = self.check_inputs(input_ids, attention_mask, token_type_ids, labels)
        return self.run(inputs)

    def run(self, inputs: Inputs) -> ReducerOutput:
        """One pass over a checked batch; methods that train on several passes override this."""
        state = encode(self, inputs, self.run_mode, self.state_options())
        logits = state.outputs(self.backbone)
        losses = None
        if inputs.labels is not None:
            losses = self.losses(state, logits, inputs) if self.training else self._task_only(logits, inputs.labels)
        return self.output(logits, losses, state.trace)

    def _task_only(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"task": self.task_loss(logits, labels).mean()}

    def output(self, logits: Tensor, losses: dict[str, Tensor] | None, trace: Trace) -> ReducerOutput:
        """Assemble the result; the loss is the sum of its terms."""
        loss = None if losses is None else torch.stack([term.float() for term in losses.values()]).sum()
        if self.backbone.head != "span_qa":
            return ReducerOutput(loss=loss, logits=logits, losses=losses, trace=trace)
        start, end = logits.unbind(dim=-1)
        return ReducerOutput(loss=loss, start_logits=start, end_logits=end, losses=losses, trace=trace)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sequence (batch,): cross-entropy, squared error, or the mean over start and end."""
        if self.backbone.head == "span_qa":
            length = logits.shape[1]
            losses = [
                F.cross_entropy(
                    logits[..., i].float(), labels[:, i].clamp(0, length), ignore_index=length, reduction="none"
                )
                for i in (0, 1)
            ]
            return (losses[0] + losses[1]) / 2
        if self.backbone.head == "regression":
            return (logits.float().view(len(labels), -1) - labels.float().view(len(labels), -1)).square().mean(dim=1)
        if labels.is_floating_point():  # several labels at once
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def check_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Inputs:
        """Check a batch and complete it.

        Raises:
            ValueError: as in `forward`.
        """
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ValueError(
                f"input_ids must be (batch, seq_len) with at least one token, got {tuple(input_ids.shape)}"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for name, tensor in (("attention_mask", mask), ("token_type_ids", token_type_ids)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)} but input_ids is {tuple(input_ids.shape)}")
        mask = mask.bool()
        if not bool(mask[:, 0].all()):
            raise ValueError("the first token of every sequence must be real; pad on the right (padding_side='right')")
        if input_ids.shape[1] > self.backbone.max_length:
            raise ValueError(
                f"texts of {input_ids.shape[1]} tokens are longer than the model's {self.backbone.max_length}; "
                "truncate them"
            )
        if labels is not None and len(labels) != len(input_ids):
            raise ValueError(f"{len(labels)} labels for {len(input_ids)} sequences")
        return Inputs(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=self.backbone.position_ids(input_ids),
            token_type_ids=token_type_ids,
            labels=labels,
        )

    # Cost

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens computed when texts are padded to `length` (batch,) and the method meets the pads.

        Returns:
            attention tokens, attention pairs and feed-forward tokens, each (batch, layers) long.
        """
        attention, pairs, ffn = trace.attention_tokens, trace.attention_pairs, trace.ffn_tokens
        if self.traits.pads == "removed":
            return attention, pairs, ffn
        ran = attention > 0
        pads = (length - trace.input_lengths).unsqueeze(1) * ran
        return attention + pads, (attention + pads) ** 2, ffn + pads

    def macs(self, trace: Trace, padding: str = "none", length: int | Tensor | None = None) -> Tensor:
        """MACs of each sequence of a forward pass, head included.

        Args:
            trace: of a pass of this reducer.
            padding: "none" (each text at its own length), "batch" or "sequence".
            length: the padded length, for "batch" and "sequence".
        Returns:
            (batch,) long. One layer with n tokens costs 4 n d^2 (projections) + 2 pairs d (scores, context) + 2 n d f.
        Raises:
            ValueError: unknown padding, or a padded setting without its length.
        """
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got '{padding}'")
        backbone, entered = self.backbone, trace.input_lengths
        if padding == "none":
            attention, pairs, ffn = trace.attention_tokens, trace.attention_pairs, trace.ffn_tokens
        else:
            if length is None:
                raise ValueError(f"padding '{padding}' needs the padded length")
            padded = torch.as_tensor(length, device=entered.device).expand_as(entered)
            if bool((padded < entered).any()):
                raise ValueError(f"padded length {length} is shorter than a text of {int(entered.max())} tokens")
            attention, pairs, ffn = self.executed_tokens(trace, padded)
            entered = entered if self.traits.pads == "removed" else padded
        d, f = backbone.hidden_size, backbone.intermediate_size
        layers = (4 * d * d * attention + 2 * d * pairs + 2 * d * f * ffn).sum(dim=1)
        head = backbone.head_macs(entered) * ~trace.exited
        return layers + trace.overhead_macs + backbone.embedding_macs() * entered + head


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


def _build_options(options_class: type[Options], method: str, values: Mapping[str, Any]) -> Options:
    """Options from plain values (lists become tuples); an unknown name is a ValueError that lists the known ones."""
    known = [f.name for f in fields(options_class)]
    unknown = [name for name in values if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise ValueError(f"{method} has no option '{unknown[0]}'; its options: {listed}")
    return options_class(**{key: _tuples(value) for key, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def create(name: str, model: transformers.PreTrainedModel, **options: Any) -> TokenReducer:
    """Put the method `name` on `model`, a supported `*ForSequenceClassification` or `*ForQuestionAnswering`.

    Raises:
        KeyError: unknown method. ValueError: unsupported model, head or option.
    """
    return lookup(name).around(model, **options)


def load(path: str, **kwargs: Any) -> TokenReducer:
    """Load what `save_pretrained` wrote: JSON and safetensors only.

    Raises:
        ValueError: `path` holds no reducer.
    """
    try:
        config = ReducerConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is neither a folder that holds a saved reducer nor one on the hub") from error
    if not isinstance(config, ReducerConfig) or config.model_type != ReducerConfig.model_type:
        raise ValueError(f"'{path}' holds a '{config.model_type}' model, not a saved reducer")
    return lookup(config.method).from_pretrained(path, config=config, use_safetensors=True, **kwargs)


__all__ = [
    "HEADS",
    "PADDINGS",
    "Options",
    "ReducerConfig",
    "ReducerOutput",
    "TokenReducer",
    "Trace",
    "Traits",
    "create",
    "load",
]
