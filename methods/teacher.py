"""A frozen dense model beside a student in training: its logits, its states and the attention its tokens receive."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from methods.attention import AttentionScores
from methods.backbone import Backbone
from methods.encoder import encode
from methods.state import Decision, Inputs, StateOptions, TokenState


@dataclass(kw_only=True)
class Lesson:
    """What a teacher says of a batch.

    Attributes:
        logits: (batch, num_labels), or (batch, seq_len, 2) for spans, the lowest value of the dtype on padding.
        text: (batch, hidden_size), what its head read; None where that was every token.
        states: of (batch, seq_len, hidden_size), layers + 1 of them: the input of each layer, then the last output.
        scores: attention received in the layers asked for, by 0-based layer.
    """

    logits: Tensor
    text: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)
    scores: dict[int, AttentionScores] = field(default_factory=dict)


class Teacher:
    """A frozen copy of `model`, always in eval mode; every token is computed and nothing it does is remembered.

    It is no module, so that it is neither trained nor saved with its student.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.backbone = Backbone(self.model)
        self._scored: frozenset[int] = frozenset()
        self._gradients = False

    def teach(
        self,
        inputs: Inputs,
        *,
        score_layers: tuple[int, ...] = (),
        gradients: bool = False,
        options: StateOptions | None = None,
    ) -> Lesson:
        """Run a batch.

        Args:
            score_layers: layers whose attention scores are wanted.
            gradients: record the graph from the embeddings' output on, for derivatives with respect to the states.
            options: how scores are counted; by default as in real removal.
        """
        self._scored, self._gradients = frozenset(score_layers), gradients
        if self.model.device != inputs.input_ids.device:  # the student has moved since
            self.model.to(inputs.input_ids.device)
        # Weights are frozen, but what checkpointing asks of embeddings would still record a graph.
        with nullcontext() if gradients else torch.no_grad():
            state = encode(self, inputs, "masked", options or StateOptions())
            logits = state.outputs(self.backbone)
            text = None if self.backbone.reads_tokens else state.read(self.backbone)
        return Lesson(
            logits=logits if gradients else logits.detach(),
            text=text,
            states=[*state.notes["states"], state.hidden],
            scores=dict(state.notes["scores"]),
        )

    def before_layer(self, state: TokenState) -> Decision | None:
        """Note the state; the first one becomes the leaf of the graph."""
        if state.layer == 0 and self._gradients:
            leaf = state.hidden.detach().requires_grad_()
            state.notes["states"].append(leaf)
            return Decision(states=leaf)
        state.notes["states"].append(state.hidden)
        return None

    def after_attention(self, state: TokenState) -> None:
        """Note the scores."""
        if state.scores is not None:
            state.notes["scores"].append((state.layer, state.scores))

    def after_layer(self, state: TokenState) -> None:
        """Nothing to note: the next layer does."""

    def needs_scores(self, layer: int) -> bool:
        return layer in self._scored


class Taught:
    """Mixin of a reducer: the teacher that was set, or a copy of the reducer's own model."""

    model: Any  # the stock one
    _teacher: Teacher | None = None
    _copied = False  # the teacher is a copy of the own model, as none was set

    @property
    def teacher(self) -> Teacher:
        """The frozen model that the method learns from; a copy of the model as it stands where none was set."""
        if self._teacher is None:
            self.set_teacher(self.model)
            self._copied = True
        assert self._teacher is not None
        return self._teacher

    def set_teacher(self, model: transformers.PreTrainedModel | None) -> None:
        """Learn from a frozen copy of `model`, usually the fine-tuned dense one; None forgets the teacher."""
        self._teacher, self._copied = None if model is None else Teacher(model), False

    def renew_teacher(self) -> None:
        """Where a stage begins that has a teacher: a copy of the model as it stands, unless a teacher was set."""
        if self._copied:
            self.set_teacher(None)
        self._teacher = self.teacher
