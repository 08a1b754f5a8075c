"""Skimbench: token reduction for transformer encoders, every method behind one interface.

import methods
reducer = methods.create("transkimmer", model, skim_weight=0.3)
"""

from importlib import import_module
from pkgutil import iter_modules

from methods.base import TokenReducer
from methods.card import Facts
from methods.config import PADDINGS, Knob, Options, ReducerConfig, ReducerOutput, Sweep, Traits
from methods.entry import create, load
from methods.recipes import ParameterGroup, Stage, Trial
from methods.registry import available, lookup, register
from methods.stage_callback import StageCallback
from methods.state import Decision, Inputs, TokenState
from methods.trace import Trace

for _module in iter_modules(__path__):
    import_module(f"methods.{_module.name}")

__all__ = [
    "PADDINGS",
    "Decision",
    "Facts",
    "Inputs",
    "Knob",
    "Options",
    "ParameterGroup",
    "ReducerConfig",
    "ReducerOutput",
    "Stage",
    "StageCallback",
    "Sweep",
    "TokenReducer",
    "TokenState",
    "Trace",
    "Traits",
    "Trial",
    "available",
    "create",
    "load",
    "lookup",
    "register",
]
