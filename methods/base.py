"""TokenReducer: a stock transformers encoder that need not compute every token.

1 MAC is one multiply-accumulate of a matrix product; FLOPs = 2 x MACs. Everything else (norms, softmax, activations,
index work) is not counted, for the dense model and for every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from methods.backbone import Backbone
from methods.config import PADDINGS, Options, ReducerConfig, ReducerOutput, Sweep, Traits, build_options, check_fixed
from methods.encoder import MODES, encode
from methods.families import build_model, check_stock, head_of
from methods.inputs import checked_ids, checked_inputs
from methods.native import with_head
from methods.recipes import Stage, Trial, Work, fine_tuning_stage
from methods.saving import SavedModel
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.task_loss import task_loss
from methods.teacher import Taught
from methods.trace import Trace
from methods.unlabelled import watch


class TokenReducer(Taught, SavedModel):
    """Base class of all methods: one stock model, one set of options, hooks that decide what is still computed.

    A method overrides the hooks it needs (`before_layer`, `after_attention`, `after_layer`), `losses` for its loss
    terms, and `stages` for its recipe. In `train()` it runs masked, in `eval()` packed; `mode` forces either.
    """

    method_name: ClassVar[str]
    options_class: ClassVar[type[Options]] = Options
    traits: ClassVar[Traits]
    sweep: ClassVar[Sweep | None] = None  # None: the method has one operating point

    def __init__(self, config: ReducerConfig, model: transformers.PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = model if model is not None else build_model(config.backbone_class, config.stock_config())
        self.backbone = Backbone(self.model)
        self.options: Any = build_options(self.options_class, self.method_name, config.options)
        self.stage: str | None = None  # name of the training stage under way
        self.progress = 1.0  # share of that stage's updates done
        self.observed: dict[str, list[float]] = {}  # what `observe` noted in that stage
        self._forced_mode: str | None = None
        self._refuse(self.backbone.head, *(["multi_label"] if self.backbone.multi_label else []))
        self.check_options(self.options)
        self.build()
        self.post_init()

    def _refuse(self, *kinds: str) -> None:
        for kind in kinds:
            reason = self.traits.unsupported.get(kind)
            if reason is not None:
                raise ValueError(f"{self.method_name} does not support {kind}: {reason}")

    def build(self) -> None:
        """Create the method's own modules (predictors, off-ramps), initialised as the paper says."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the stock model's weights are its own, and `build` initialises what it adds."""

    @classmethod
    def around(cls, model: transformers.PreTrainedModel, **options: Any) -> TokenReducer:
        """Wrap `model`, whose weights are shared, neither copied nor cast."""
        headed = with_head(cls, head_of(model))
        check_stock(model)
        checked = build_options(cls.options_class, cls.method_name, options)
        reducer = headed(ReducerConfig.of(cls.method_name, checked, model), model)
        reducer.train(model.training)
        stock, (device, dtype) = set(model.modules()), (model.device, model.dtype)
        for module in reducer.modules():
            if module not in stock:  # what `build` added follows the model's first weight
                module._apply(lambda x: x.to(device, dtype if x.is_floating_point() else None), recurse=False)
        return reducer

    def check_options(self, options: Any) -> None:
        """Refuse `options` that do not fit the model, by a ValueError; they are checked in themselves already.

        Called before `build` and at every change. An override asks `super()`, which refuses changes of what is fixed.
        """
        check_fixed(self.method_name, self.options, options)

    def set_options(self, **changes: Any) -> None:
        """Replace some options (a searched configuration, a threshold); they are saved with the model.

        Raises ValueError where a value does not fit the model, or the method's modules were built by that option.
        """
        options = build_options(self.options_class, self.method_name, vars(self.options) | changes)
        self.check_options(options)
        self.options = options
        self.config.options, self.config.facts = asdict(options), {}

    def press(self, pressure: float) -> None:
        """Turn the knob of a trained model: at 0 it saves nothing or little, at 1 as much as the method can."""
        knob = self.traits.knob
        if knob is None or not knob.after_training:
            raise ValueError(f"{self.method_name} has no option that changes its speed after training")
        self.set_options(**{knob.option: knob.at(pressure)})

    def operating_points(self, found: Mapping[str, Any]) -> list[tuple[dict[str, Any], float, float]]:
        """Of what a `search` found: (options, score, speed-up) of each setting that was scored and may be chosen."""
        return []

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

    def follow_schedule(self, shares: Sequence[float]) -> None:
        """Set options or weights such that about `shares` of the tokens, one per layer, are computed.

        For timing without training. Only methods that decide nothing until trained or told have to do something.
        """

    # Recipe

    def stages(self, task: Any, recipe: str = "paper") -> list[Stage]:
        """The training recipe for `task` on this reducer's backbone; see `recipe_stages`."""
        return self.recipe_stages(task, recipe, self.backbone.config.model_type)

    @classmethod
    def recipe_stages(cls, task: Any, recipe: str = "paper", family: str = "bert") -> list[Stage]:
        """The published recipe ("paper") or the short one ("short") as ordered stages.

        Args:
            task: an object with `name`, `kind`, `skim_weight` and `sequence_length`.
            family: the backbone's model type, where a paper trains families differently.
        """
        return [fine_tuning_stage(recipe)]

    @classmethod
    def stage_work(cls, stage: Stage, options: Mapping[str, Any]) -> Work:
        """About how much a stage of this method computes under `options`."""
        return stage.work

    @classmethod
    def task_options(cls, task: Any, recipe: str = "paper") -> dict[str, Any]:
        """Options that the recipe sets for `task`, where they differ from the defaults."""
        return {}

    @classmethod
    def sweep_values(cls, task: Any, metrics: Mapping[str, Any]) -> tuple[Any, ...]:
        """Settings that a sweep tries on a trained model, from light to strong pressure.

        Args:
            task: as in `recipe_stages`, with `num_labels`. metrics: of the record of the training.
        """
        return cls.sweep.values if cls.sweep else ()

    @classmethod
    def sweep_options(cls, value: Any, own: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """Options that turn the method to `value`.

        Args:
            own: all options, as the recipe or the trained model has them. layers: of the encoder.
        """
        assert cls.sweep is not None
        return {cls.sweep.option: own[cls.sweep.option] * value if cls.sweep.relative else value}

    def sweep_to(self, value: Any) -> None:
        """Turn a trained reducer to a setting, where that needs no training."""
        self.set_options(**self.sweep_options(value, vars(self.options), self.backbone.num_layers))

    def begin_stage(self, stage: Stage, updates: int) -> None:
        """Called before a stage of `updates` optimizer updates trains; one with a teacher has it from here on.

        A killed stage is begun again in this way, then its weights and options are restored: what a method carries from
        one update or stage to the next lies in these (parameters, buffers, options) or follows from `progress`.
        """
        self.stage, self.progress, self.observed = stage.name, 0.0, {}
        if stage.teacher is not None:
            self.renew_teacher()

    def end_stage(self, stage: Stage) -> None:
        """Called when a stage has trained."""
        self.stage, self.progress = None, 1.0

    def observe(self, **values: float) -> None:
        """Note figures of one update that are no loss; the record of the stage has their means."""
        if self.stage is not None:
            for name, value in values.items():
                self.observed.setdefault(name, []).append(value)

    def after_update(self) -> None:
        """Called after every optimizer update (projections)."""

    def selectable(self) -> bool:
        """Whether the present weights may be kept as the best of a stage (a constraint may have to hold first)."""
        return True

    def search(self, stage: Stage, trial: Callable[[], Trial]) -> dict[str, Any]:
        """Choose options after a stage that says so, by `set_options`.

        Args:
            trial: scores the reducer as it stands on held-out training rows.
        Returns:
            Plain data for the record: what was tried and what it gave.
        """
        raise NotImplementedError(f"{self.method_name} has nothing to search after stage {stage.name}")

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
        """The mode that the next forward pass runs in; options that remove nothing run masked."""
        return self._forced_mode or ("masked" if self.training or self.state_options().masked_only else "packed")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **others: Any,
    ) -> ReducerOutput:
        """Run a batch.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, seq_len), padded on the right.
            position_ids: (batch, seq_len) or (1, seq_len); as the stock model counts where left out.
            labels: (batch,) class ids (-100: none) or values; (batch, num_labels) float where several may hold at once;
                (batch, seq_len) class ids of tokens, negative where there is none (-100), for token classification.
            start_positions, end_positions: (batch,) for span heads; behind the text: none.
        Returns:
            Logits, trace and, with labels, the loss and its terms; with return_dict=False as a tuple, loss first.
        Raises:
            ValueError: an empty batch or sequence, padding on the left, a text longer than the model, shapes that
                differ, or another keyword of the stock model's that would change the result.
        """
        input_ids = checked_ids(input_ids, others)
        if start_positions is not None and end_positions is not None:
            labels = torch.stack((start_positions.flatten(), end_positions.flatten()), dim=1)
        inputs = self.check_inputs(input_ids, attention_mask, token_type_ids, labels, position_ids)
        return self.run(inputs)

    def run(self, inputs: Inputs) -> ReducerOutput:
        """One pass over a checked batch; methods that train on several passes override this."""
        state = encode(self, inputs, self.run_mode, self.state_options())
        logits = state.outputs(self.backbone)
        losses = None
        if inputs.labels is not None:
            losses = self.losses(state, logits, inputs) if self.training else self._task_only(logits, inputs.labels)
        elif self.training:
            watch(self, logits)
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
        """Loss of each sequence (batch,), see `methods.task_loss`."""
        return task_loss(self.backbone.head, logits, labels)

    def check_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """Check a batch and complete it; see `methods.inputs`."""
        self.config.check_problem(self.backbone.config)
        inputs = checked_inputs(self.backbone, input_ids, attention_mask, token_type_ids, labels, position_ids)
        if inputs.labels is not None and inputs.labels.is_floating_point() and self.backbone.head == "classification":
            self._refuse("multi_label")
            self.config.note_multi_label(self.backbone.config)
        return inputs

    # Cost

    @property
    def computes_pads(self) -> bool:
        """Whether a padded setting makes the method compute pads like real tokens."""
        return self.traits.pads == "computed"

    def executed_tokens(self, trace: Trace, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens computed when texts are padded to `length` (batch,) and the method meets the pads.

        Returns:
            attention tokens, attention pairs and feed-forward tokens, each (batch, layers) long.
        """
        attention, pairs, ffn = trace.attention_tokens, trace.attention_pairs, trace.ffn_tokens
        if not self.computes_pads:
            return attention, pairs, ffn
        ran = attention > 0
        pads = (length - trace.input_lengths).unsqueeze(1) * ran
        return attention + pads, (attention + pads) ** 2, ffn + pads

    def macs(self, trace: Trace, padding: str = "none", length: int | Tensor | None = None) -> Tensor:
        """MACs of each sequence of a forward pass, head included.

        Args:
            trace: of a pass of this reducer.
            padding: "none" (each text at its own length; variants that compute padding: as the batch was), "batch" or
                "sequence".
            length: the padded length, for "batch" and "sequence".
        Returns:
            (batch,) long; the layers' as in `Backbone.layer_macs`.
        Raises:
            ValueError: unknown padding, or a padded setting without its length.
        """
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got '{padding}'")
        backbone, entered = self.backbone, trace.entered
        if padding == "none":
            attention, pairs, ffn = trace.attention_tokens, trace.attention_pairs, trace.ffn_tokens
        else:
            if length is None:
                raise ValueError(f"padding '{padding}' needs the padded length")
            lengths = trace.input_lengths
            padded = torch.as_tensor(length, device=lengths.device).expand_as(lengths)
            if bool((padded < lengths).any()):
                raise ValueError(f"padded length {length} is shorter than a text of {int(lengths.max())} tokens")
            attention, pairs, ffn = self.executed_tokens(trace, padded)
            entered = padded if self.computes_pads else entered
        head = backbone.head_macs(entered) * ~trace.exited
        layers = backbone.layer_macs(attention, pairs, ffn).sum(dim=1)
        return layers + trace.overhead_macs + backbone.embedding_macs() * entered + head

    def extra_costs(self, trace: Trace, length: Tensor) -> dict[str, Tensor]:
        """MACs of each sequence under other accounts that a reader needs beside what was executed, by name.

        A name stands behind the method's title in tables, so it says what is left out or assumed.

        Args:
            trace: of a pass of this reducer.
            length: (batch,) long, the padded length; the text's own without padding.
        Returns:
            name -> (batch,) long; nothing for most methods.
        """
        return {}
