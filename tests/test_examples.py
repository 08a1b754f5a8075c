"""The examples and the notebook run, on a tiny model."""

from __future__ import annotations

import re
import runpy
import sys

import matplotlib.pyplot as plt
import pytest

from benchmarks import accelerate, cli, embedded, experiment_data
from benchmarks.environment import PROJECT_ROOT
from tests.small_world import write_model

EXAMPLES = PROJECT_ROOT / "examples"
# name -> (arguments, what it has to say)
RUNS = {
    "own_data": (["--rows", "80", "--method", "pabee"], [r"\d\.\d\dx fewer FLOPs, accuracy", r"after layer [123]"]),
    "with_trainer": (
        ["--rows", "40", "--epochs", "1"],
        ["'eval_loss'", "'label': '(good|bad)'", r"each layer computed: \[\["],
    ),
    "case_study": ([], ["each layer drops 30%", "computed per layer", "charming"]),
    "serve": (
        ["--requests", "12", "--max-batch", "4", "--per-second", "500"],
        [r"stock, padded +\d+\.\d", r"dense, unpadded +\d", r"reduced +\d"],
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("examples") / "model")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No network, no records of others, little training."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(accelerate, "MIN_UPDATES", 10)
    monkeypatch.setattr(cli, "OWN_RESULTS", tmp_path / "own")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.chdir(tmp_path)
    for cache in ("_rows", "_features", "_split_identity", "padding_id"):
        getattr(experiment_data, cache).cache_clear()


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_says_what_it_did(name, model, alone, monkeypatch, capsys):
    arguments, expected = RUNS[name]
    monkeypatch.setattr(sys, "argv", [name, "--model", str(model), *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for pattern in expected:
        assert re.search(pattern, said), (pattern, said)


def test_every_example_is_run_here_or_in_the_test_of_templates():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*RUNS, "reviews", "template_method"}


def test_a_server_answers_everyone_in_batches_of_what_waits(alone):
    server_of = runpy.run_path(str(EXAMPLES / "serve.py"))["Server"]

    def lengths(texts):
        return [len(text) for text in texts]

    with server_of(lengths, max_batch=3, max_wait_ms=50.0) as server:
        requests = [server.submit("x" * i) for i in range(8)]
        for request in requests:
            assert request.done.wait(10)
    assert [request.answer for request in requests] == list(range(8))
    assert sum(server.batches) == 8 and max(server.batches) <= 3 and len(server.batches) < 8


def test_the_notebook_is_valid_and_runs(model, alone, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setattr(embedded, "embedded_model_path", lambda: model)
    plt.switch_backend("agg")
    names = {"__name__": "notebook"}
    for number, cell in enumerate(notebook.cells):
        assert not cell.get("outputs"), "clear the outputs before you commit the notebook"
        if cell.cell_type == "code":
            exec(compile(cell.source, f"cell {number}", "exec", dont_inherit=True), names)
    assert names["speedups"][0] == pytest.approx(1.0, abs=0.01) and names["speedups"][-1] > 1.2
    plt.close("all")
