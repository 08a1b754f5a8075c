"""What is read from elsewhere is pinned, checked, plain data: nothing is unpickled, no code of a model is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import transformers

import methods
from benchmarks import newsgroups, vader
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError
from benchmarks.models import PAPER_MODELS, folder_model, hub_model, load_model, load_tokenizer
from benchmarks.tasks import TASKS
from tests.small_world import write_model
from tests.tiny import tiny_reducer

SOURCES = sorted(
    path for package in ("methods", "benchmarks", "plots") for path in (PROJECT_ROOT / package).rglob("*.py")
)
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "torch.load", "torch.save", "np.load", "yaml.load", "os.system"}
FORBIDDEN_CALLS |= {"pandas.read_pickle", "pd.read_pickle"}
FORBIDDEN_METHODS = {"extractall", "extract"}  # of archives: members are read, never placed by their own names


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_code_comes_with_data(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not FORBIDDEN_IMPORTS & {name.split(".")[0] for name in names}
    for call in calls(path):
        assert ast.unparse(call.func) not in FORBIDDEN_CALLS
        assert not (isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code", "False") == "False" and given.get("shell", "False") == "False"


def test_the_check_above_finds_what_it_looks_for(tmp_path):
    for line in (
        "import pickle",
        "eval('1')",
        "torch.load('x')",
        "load(trust_remote_code=True)",
        "archive.extractall()",
    ):
        (tmp_path / "bad.py").write_text(line)
        with pytest.raises(AssertionError):
            test_no_code_comes_with_data(tmp_path / "bad.py")


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.hub_id])
def test_rows_of_the_hub_are_pinned_to_a_commit(name):
    assert re.fullmatch(r"[0-9a-f]{40}", TASKS[name].revision or "")


@pytest.mark.parametrize("title", PAPER_MODELS)
def test_models_of_the_paper_are_pinned_to_a_commit(title, monkeypatch):
    """And every file of theirs is asked for at that commit, which is part of a run's identity."""
    model, asked = hub_model(title, PAPER_MODELS[title]), []

    def refuse(name, *, revision, **settings):
        asked.append((name, revision))
        raise OSError("not now")

    assert re.fullmatch(r"[0-9a-f]{40}", model.revision or "") and model.identity.endswith("@" + model.revision[:12])
    monkeypatch.setattr("benchmarks.models.check_reachable", lambda ref: None)
    for loader in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", refuse)
    for load in (lambda: load_model(model, TASKS["mrpc"]), lambda: load_tokenizer(model)):
        with pytest.raises(UserError, match="not now"):
            load()
    assert asked == [(model.source, model.revision)] * 2


@pytest.mark.parametrize("package", [vader.VADER, newsgroups.ORANGE], ids=lambda package: package.requirement)
def test_package_files_are_pinned_to_their_bytes(package):
    assert re.fullmatch(r"[0-9a-f]{64}", package.sha256) and "==" in package.requirement


def test_pickled_weights_are_refused(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        folder_model(model)
    tiny_reducer("transkimmer").save_pretrained(tmp_path / "reducer")
    (tmp_path / "reducer" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "reducer" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        methods.load(str(tmp_path / "reducer"))
