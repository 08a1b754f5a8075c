"""TR-BERT as its tests take it."""

from __future__ import annotations

import torch

import methods
from tests.tiny import tiny_model


def undecided_tr_bert(head: str = "classification", **options: object) -> methods.TokenReducer:
    """On a tiny model of four layers (steps before layers 1 and 2), with policies that differ from token to token."""
    torch.manual_seed(1)
    reducer = methods.create("tr_bert", tiny_model("bert", head, num_hidden_layers=4), **options).double().eval()
    for policy in reducer.policies:
        for linear in (policy[0], policy[-1]):
            torch.nn.init.normal_(linear.weight, std=0.7)
    return reducer
