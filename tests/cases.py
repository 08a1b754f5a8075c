"""The only list that a new method touches: how each method is built for the tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import methods
from methods import TokenReducer
from methods.testing import Case


def _undecided(part: str) -> Callable[[Any], None]:
    """Networks whose last layer says drop or keep, and now either."""

    def bring(reducer: Any) -> None:
        for network in getattr(reducer, part):
            torch.nn.init.normal_(network[-1].weight, std=1.0)
            network[-1].bias.data.copy_(torch.tensor([0.0, 0.7]))

    return bring


def _undecided_policies(reducer: TokenReducer) -> None:
    for policy in reducer.policies:  # type: ignore[union-attr]
        for linear in (policy[0], policy[-1]):
            torch.nn.init.normal_(linear.weight, std=1.0)


def _sure_ramps(reducer: TokenReducer) -> None:
    torch.manual_seed(6)  # of ten draws tried, one with which texts leave on every backbone, and others stay
    for ramp in reducer.off_ramps:  # type: ignore[union-attr]
        torch.nn.init.normal_(ramp.classifier.weight, std=0.5)


def _unsure_exits(reducer: TokenReducer) -> None:
    torch.manual_seed(3)  # of ten draws tried, the one with which texts leave and stay on every backbone and head
    for classifier in reducer.classifiers:  # type: ignore[union-attr]
        torch.nn.init.normal_(classifier.weight, std=0.5)
        classifier.load_state_dict(reducer.classifiers[0].state_dict())  # type: ignore[union-attr,index]


def _decided_pattern(reducer: TokenReducer) -> None:
    torch.nn.init.normal_(reducer.rank_loga, std=3.0)  # type: ignore[arg-type]
    torch.nn.init.constant_(reducer.gate_loga, 3.0)  # type: ignore[arg-type]


def pairs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The later half of each text becomes its second text; a text of one token stands alone."""
    mask = batch["attention_mask"]
    second = torch.arange(mask.shape[1]) >= (mask.sum(dim=1, keepdim=True) + 1) // 2
    return batch | {"token_type_ids": mask * second}


CASES: dict[str, Case] = {
    "dense": Case(),
    "transkimmer": Case(undecided=_undecided("predictors")),
    "power_bert": Case(
        options={"retention_configuration": (6, 4, 2)}, neutral={"retention_configuration": (99, 99, 99)}
    ),
    "top": Case(options={"bins": 5, "first_location": 1}, undecided=_decided_pattern),
    "deebert": Case(options={"threshold": 0.6}, neutral={"threshold": 0.0}, undecided=_sure_ramps),
    "ltp": Case(options={"final_threshold": 0.08, "reference_length": 12}, neutral={"final_threshold": 0.0}),
    "pabee": Case(
        options={"patience": 1, "regression_tolerance": 1.0}, neutral={"patience": 0}, undecided=_unsure_exits
    ),
    "lot": Case(neutral={"summary": False}, rotary={"summary": False}, undecided=_undecided("routers"), unnested=True),
    "deformer": Case(
        options={"single_texts": True},
        neutral={"split": 0, "restart_positions": False, "single_texts": True},
        completes=pairs,
        computes_all="the saving is a cache of passages, and none is set; attention between the texts is spared",
    ),
    "tr_bert": Case(options={"policy_layers": (1, 2)}, neutral={"threshold": 0.0}, undecided=_undecided_policies),
    "lat": Case(
        options={"length_configuration": (8, 5, 3), "max_length": 12},
        neutral={"length_configuration": (12, 12, 12), "max_length": 12},
    ),
    "random": Case(options={"keep_schedule": (0.8, 0.5, 0.3)}, neutral={"keep_schedule": (1.0, 1.0, 1.0)}),
}


def composed(reducer: str, early_exit: str) -> Case:
    """The case of a composition, from those of its parts."""
    parts = {name: CASES[name] for name in (reducer, early_exit)}

    def undecided(composition: TokenReducer) -> None:
        for name, case in parts.items():
            case.undecided(composition.parts[name])  # type: ignore[index]

    def options(which: str) -> dict[str, Any]:
        names = methods.lookup(f"{reducer}+{early_exit}").option_names  # type: ignore[attr-defined]
        return {names[part, key]: value for part, case in parts.items() for key, value in getattr(case, which).items()}

    return Case(
        options=options("options"),
        neutral=options("neutral"),
        undecided=undecided,
        unnested=any(case.unnested for case in parts.values()),
    )


# A reducer and an exit on one model: the pairs that the whole contract runs over.
COMPOSITIONS: dict[str, Case] = {
    f"{reducer}+{early_exit}": composed(reducer, early_exit)
    for reducer, early_exit in (("transkimmer", "deebert"), ("power_bert", "deebert"))
}
EVERY: dict[str, Case] = CASES | COMPOSITIONS
