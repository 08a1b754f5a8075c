"""The only list that a new method touches: how each method is built for the tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from methods import TokenReducer


@dataclass(frozen=True)
class Case:
    """How to build a method on a tiny three-layer model.

    Attributes:
        options: with which it really reduces on the tests' batches.
        neutral: with which it keeps everything; the logits must then be the dense model's.
        undecided: brings trained parts into a state that decides differently from token to token.
        unnested: tokens may come back, so kept tokens need not shrink.
    """

    options: dict[str, Any] = field(default_factory=dict)
    neutral: dict[str, Any] = field(default_factory=dict)
    undecided: Callable[[Any], None] = lambda reducer: None
    unnested: bool = False


def _undecided_predictors(reducer: TokenReducer) -> None:
    for predictor in reducer.predictors:  # type: ignore[union-attr]
        torch.nn.init.normal_(predictor[-1].weight, std=1.0)
        predictor[-1].bias.data.copy_(torch.tensor([0.0, 0.7]))


def _undecided_policies(reducer: TokenReducer) -> None:
    for policy in reducer.policies:  # type: ignore[union-attr]
        for linear in (policy[0], policy[-1]):
            torch.nn.init.normal_(linear.weight, std=1.0)


def _sure_ramps(reducer: TokenReducer) -> None:
    for ramp in reducer.off_ramps:  # type: ignore[union-attr]
        torch.nn.init.normal_(ramp.classifier.weight, std=0.5)


CASES: dict[str, Case] = {
    "dense": Case(),
    "transkimmer": Case(undecided=_undecided_predictors),
    "power_bert": Case(
        options={"retention_configuration": (6, 4, 2)}, neutral={"retention_configuration": (99, 99, 99)}
    ),
    "deebert": Case(options={"threshold": 0.6}, neutral={"threshold": 0.0}, undecided=_sure_ramps),
    "tr_bert": Case(options={"policy_layers": (1, 2)}, neutral={"threshold": 0.0}, undecided=_undecided_policies),
    "random": Case(options={"keep_schedule": (0.8, 0.5, 0.3)}, neutral={"keep_schedule": (1.0, 1.0, 1.0)}),
}
