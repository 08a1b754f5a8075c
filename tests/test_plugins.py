"""Methods and tasks of other packages: found by their entry points, refused without harm."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint

import pytest
import torch

import methods
from benchmarks.errors import UserError
from benchmarks.tasks import TASKS, get_task
from methods import plugins
from methods.registry import unregister
from tests.tiny import make_batch, tiny_model

GOOD = """
from dataclasses import replace
from benchmarks.tasks import TASKS
from methods import Decision, TokenReducer, Traits

class Half(TokenReducer):
    traits = Traits(title="Half", dropped="forwarded")

    def before_layer(self, state):
        order = -state.positions.double()
        return Decision(keep=state.rank(order) < state.expand((state.lengths / 2).ceil()))

class Taken(TokenReducer):
    traits = Traits(title="Taken")

MOODS = replace(TASKS["sst2"], name="moods", title="Moods")
TAGS = replace(MOODS, name="tags", kind="token_classification")
NOTHING = 7
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Declares entry points of a package that is made here, until the test ends."""
    (tmp_path / "good_package.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad_package.py").write_text("raise RuntimeError('it needs a licence')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def declare(group, **values):
        points = [EntryPoint(name=name, value=value, group=group) for name, value in values.items()]
        monkeypatch.setattr(plugins, "entry_points", lambda *, group: [p for p in points if p.group == group])
        plugins.found.cache_clear()

    yield declare
    plugins.found.cache_clear()
    unregister("half")


def test_a_method_of_another_package_is_like_any(installed, tmp_path):
    installed(plugins.METHODS, half="good_package:Half")
    assert "half" in methods.available()
    reducer = methods.create("half", tiny_model("bert")).eval()
    with torch.no_grad():
        assert reducer(**make_batch((8, 5))).trace.ffn_tokens.tolist() == [[4, 4, 4], [3, 3, 3]]
    reducer.save_pretrained(tmp_path / "saved")
    unregister("half")
    plugins.found.cache_clear()
    assert methods.load(tmp_path / "saved").method_name == "half"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("broken", "bad_package:Method", "RuntimeError: it needs a licence"),
        ("absent", "good_package:Quarter", "AttributeError"),
        ("number", "good_package:NOTHING", "TypeError: it has to be a class of TokenReducer, not 7"),
        ("ltp", "good_package:Taken", "ValueError: method 'ltp' is registered already, by Ltp"),
    ],
)
def test_a_method_that_cannot_be_used_is_left_out_and_named(installed, name, value, reason):
    before = methods.available()
    installed(plugins.METHODS, **{name: value})
    with pytest.warns(UserWarning, match=rf"plug-in '{name}' of an unknown package is left out \({reason}"):
        assert methods.available() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert methods.available() == before and methods.lookup("ltp").__name__ == "Ltp"


def test_a_task_of_another_package_is_like_any(installed, tmp_path):
    installed(plugins.TASKS, moods="good_package:MOODS")
    assert get_task("moods").title == "Moods"
    with pytest.raises(UserError, match="no task 'mood'; did you mean 'moods'"):
        get_task("mood")
    assert "moods" not in TASKS


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("number", "good_package:NOTHING", "it has to be a benchmarks.tasks.Task, not 7"),
        ("sst2", "good_package:MOODS", "the task calls itself 'moods'; give the entry point that name"),
        ("tags", "good_package:TAGS", "no command scores tasks of kind 'token_classification'; there are: classifica"),
    ],
)
def test_a_task_that_cannot_be_used_is_left_out_and_named(installed, name, value, reason):
    installed(plugins.TASKS, **{name: value})
    with pytest.warns(UserWarning, match=f"plug-in '{name}' of an unknown package is left out .*{reason}"):
        assert get_task("rte") is not None and get_task("sst2") is TASKS["sst2"]
        with pytest.raises(UserError, match="no task"):
            get_task("tags")
