"""The README says what the records say, and its Python runs."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

from benchmarks import readme
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.readme import updated
from tests.tiny import make_batch, tiny_model

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_their_files():
    assert "<!-- table: " in README and updated(README) == README
    assert "| Transkimmer" in README and "Command: `" in README


def test_help_writes_nothing_and_check_names_old_pages(monkeypatch, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("<!-- table: t.md -->\nold\n<!-- end -->\n", encoding="utf-8")
    (tmp_path / "t.md").write_text("Command: `c`\n| A |\n|:--|\n", encoding="utf-8")
    monkeypatch.setattr(readme, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(readme, "updated", lambda text: updated(text, tmp_path))
    monkeypatch.setattr("benchmarks.docs.pages", list)
    with pytest.raises(SystemExit):
        readme.main(["--help"])
    assert "example:" in capsys.readouterr().out and "old" in page.read_text()
    assert run_command(readme.main, ["--chek"]) == 2 and "--help" in capsys.readouterr().err
    assert readme.main(["--check"]) == 1 and capsys.readouterr().out == "old: README.md\n" and "old" in page.read_text()
    assert readme.main([]) == 0 and capsys.readouterr().out == "written: README.md\n" and "| A |" in page.read_text()
    assert readme.main(["--check"]) == 0 and capsys.readouterr().out == ""


def test_a_table_may_show_some_paddings_alone(tmp_path):
    rows = ["| Method | Padding |", "|:--|:--|", "| Dense | a |", "| Random | No |", "| Random | Batch |"]
    (tmp_path / "t.md").write_text("\n".join(["# T", "", "Command: `c`", "", *rows]), encoding="utf-8")
    page = "<!-- table: t.md padding: a No -->\nold\n<!-- end -->"
    wanted = "\n".join(["<!-- table: t.md padding: a No -->", *rows[:4], "", "Command: `c`", "<!-- end -->"])
    assert updated(page, tmp_path) == wanted and updated(wanted, tmp_path) == wanted


def test_a_table_may_be_named_by_its_heading(tmp_path):
    tables = ["# T", "Command: `c`", "| A |", "|:--|", "## In short, all", "text", "| B |", "|:--|", "| 1 |", "## More"]
    (tmp_path / "t.md").write_text("\n".join(tables), encoding="utf-8")
    page = "<!-- table: t.md#in-short-all -->\n<!-- end -->"
    assert updated(page, tmp_path).splitlines()[1:-1] == ["| B |", "|:--|", "| 1 |", "", "Command: `c`"]
    with pytest.raises(ValueError, match=r"t\.md has no heading #in-long"):
        updated(page.replace("short-all", "long"), tmp_path)


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
