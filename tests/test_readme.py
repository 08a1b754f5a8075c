"""The README says what the records say, and its Python runs."""

from __future__ import annotations

import re

import torch
import transformers

from benchmarks.environment import PROJECT_ROOT
from tests.tiny import make_batch, tiny_model

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")


def tables() -> list[tuple[str, str]]:
    """(path, what stands in the README) of every table that the README takes from a file."""
    return re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)


def test_tables_are_those_of_their_files():
    assert tables()
    for path, shown in tables():
        rows = [line for line in shown.splitlines() if line.startswith("|")]
        lines = (PROJECT_ROOT / path).read_text(encoding="utf-8").splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("|"))
        assert rows == lines[first : first + len(rows)] and len(rows) > 3
        command = next(line for line in lines if line.startswith("Command: "))
        assert command in shown


def test_the_python_example_runs(monkeypatch, tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "methods.create" in block)
    loader = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(loader, "from_pretrained", lambda name, num_labels: tiny_model("bert").float())
    monkeypatch.chdir(tmp_path)
    batch = make_batch()
    names = {**batch, "labels": torch.arange(len(batch["input_ids"])) % 3}
    exec(compile(code, "README.md", "exec"), names)
    assert names["reducer"].run_mode == "packed"
    assert (tmp_path / "skimming" / "model.safetensors").is_file()
