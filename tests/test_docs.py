"""The documentation: every block of code runs, generated parts say what the code says, it builds without warnings."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers

import benchmarks
import methods
import plots
from benchmarks import cli, docs, readme
from benchmarks.environment import PROJECT_ROOT
from methods.registry import unregister
from plots import mechanisms
from tests.cases import CASES
from tests.small_world import write_model, write_sentences
from tests.tiny import make_batch

PAGES = {path.relative_to(PROJECT_ROOT).as_posix(): path for path in (PROJECT_ROOT / "README.md", *docs.pages())}
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
# Commands that are run as they are, with what keeps one that measures short; of others, --help is.
RUN = dict.fromkeys(("audit", "case_study", "runs", "report", "strategy", "completion"), ())
SMALL = "--model model --data-dir data --tasks mood --texts 8 --rounds 1 --batch-sizes 1 --methods ltp --schedule 2x"
RUN |= {"latency": tuple(SMALL.split())}
COMMANDS = {
    f"{package.__name__}.{found.name}": importlib.import_module(f"{package.__name__}.{found.name}")
    for package in (benchmarks, plots)
    for found in pkgutil.iter_modules(package.__path__)
}
# What a reader's folder holds that follows the pages; hub names stand for the tiny model.
HUB_NAMES = ("google-bert/bert-base-uncased",)
REPRODUCE = re.compile(r"^  (\w+) +\w", re.MULTILINE)  # its targets, as its help lists them
ELSEWHERE = ("setup", "test", "help", "all")  # targets of reproduce.sh that tests/test_project.py runs
MADE_BEFORE = "no trained reducer"  # a command that shows what another one trained


def blocks(language):
    """(page, number, code) of every block that is run."""
    for page, path in PAGES.items():
        for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")), 1):
            if match["language"] == language and not match["reason"]:
                yield pytest.param(page, match["code"], id=f"{page}-{number}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader works: a model, data, a file of reviews, saved reducers, and records."""
    root = tmp_path_factory.mktemp("reader")
    write_model(root / "model")
    write_sentences(root / "data", rows=64)
    lines = (root / "data" / "mood" / "train.csv").read_text().splitlines()
    (root / "reviews.csv").write_text("\n".join(["review,sentiment", *lines[1:]]) + "\n")
    write_sentences(root / "DIR", task="glue/sst2", rows=64)
    (root / "results").symlink_to(PROJECT_ROOT / "results")
    for part in ("runs", "tables"):
        shutil.copytree(PROJECT_ROOT / "results" / part, root / "own" / part)
    torch.manual_seed(0)
    stock = transformers.BertForSequenceClassification.from_pretrained(root / "model", num_labels=2)
    for name in ("skimming", "faster"):
        methods.create("transkimmer", stock).save_pretrained(root / name)
        transformers.AutoTokenizer.from_pretrained(root / "model").save_pretrained(root / name)
    (root / "faster" / "accelerate.json").write_text("{}")  # as an earlier call leaves it
    return root


@pytest.fixture
def reader(folder, monkeypatch):
    """Work in that folder, without a network; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SKIMBENCH_HOME", str(folder / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in (cli, *COMMANDS.values()):
        if hasattr(module, "OWN_RESULTS"):
            monkeypatch.setattr(module, "OWN_RESULTS", folder / "own")
    monkeypatch.setattr(COMMANDS["benchmarks.case_study"], "PAGE", folder / "own" / "case_study.html")
    for loader in (transformers.AutoTokenizer, transformers.AutoModelForSequenceClassification):
        original = loader.from_pretrained

        def load(name, *args, original=original, **kwargs):
            return original(folder / "model" if name in HUB_NAMES else name, *args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", load)
    known = set(methods.available())
    yield folder
    for name in set(methods.available()) - known:
        unregister(name)


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if "```python" in path.read_text("utf-8")])
def test_python_of_a_page_runs_from_top_to_bottom(reader, page):
    batch = make_batch(padded_to=12)
    names = {"__name__": "page", **batch, "labels": torch.arange(len(batch["input_ids"])) % 2}
    names["input_ids"] = names["input_ids"] % 16  # of the tiny vocabulary
    for match in BLOCK.finditer(PAGES[page].read_text(encoding="utf-8")):
        if match["language"] == "python" and not match["reason"]:
            exec(compile(match["code"], page, "exec", dont_inherit=True), names)


@pytest.mark.parametrize(("page", "code"), list(blocks("bash")))
def test_commands_run(reader, capsys, page, code):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if words:
            run(words)


def run(words):
    """Run one command line in this process; what would train is only planned."""
    if words[0] == "./reproduce.sh":
        script = (PROJECT_ROOT / "reproduce.sh").read_text(encoding="utf-8")
        assert words[1] in REPRODUCE.findall(script)
        if words[1] in ELSEWHERE:
            return
        words = ["python", "-m", f"benchmarks.{words[1]}", *words[2:]]
    if words[0] == "python" and words[1].startswith("examples/"):
        assert (PROJECT_ROOT / words[1]).is_file()  # run by tests/test_examples.py
        return
    if words[:2] in (["pip", "install"], ["mkdocs", "build"], ["mkdocs", "serve"]):
        return installs(words)
    assert words[:2] == ["python", "-m"], f"say in tests/test_docs.py how to run: {shlex.join(words)}"
    main, arguments = main_of(words[2]), words[3:]
    if "--dry-run" in help_of(main) and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    elif words[2].startswith("benchmarks."):
        name = words[2].removeprefix("benchmarks.")
        arguments = [*arguments, *RUN[name]] if name in RUN else ["--help"]
    status, said = outcome(main, arguments)
    assert status == 0 or MADE_BEFORE in said, said


def installs(words):
    """Extras that a page names exist."""
    known = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if extras := re.search(r"\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(known)


def main_of(module):
    """The function behind `python -m MODULE`."""
    source = COMMANDS[module]
    return source.main if hasattr(source, "main") else COMMANDS["benchmarks.runs_command"].main


def help_of(main):
    return outcome(main, ["--help"])[1]


def outcome(main, arguments):
    """(status, all that was said); commands without arguments of their own are just called."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = cli.run_command(main, arguments)
        except SystemExit as done:
            status = done.code or 0
    return status, said.getvalue()


def test_blocks_that_are_not_run_say_why():
    skipped = [match for path in PAGES.values() for match in BLOCK.finditer(path.read_text("utf-8")) if match["reason"]]
    assert len(skipped) <= 4 and all(len(match["reason"].split()) > 2 for match in skipped)
    languages = {match["language"] for path in PAGES.values() for match in BLOCK.finditer(path.read_text("utf-8"))}
    assert languages <= {"python", "bash", "text", "json", "yaml"}


def test_generated_parts_are_what_code_and_records_say():
    for page, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        assert docs.updated(readme.updated(text)) == text, f"{page}: run `python -m benchmarks.readme`"


@pytest.mark.parametrize("name", CASES)
def test_every_method_has_a_page_with_every_part_and_a_place_in_the_navigation(name):
    page = PAGES[f"docs/methods/{name}.md"].read_text(encoding="utf-8")
    for part in ("facts", "departures", "options", "recipe", "results"):
        assert f"<!-- method: {name} {part} -->" in page
    assert f"methods/{name}.md" in (PROJECT_ROOT / "mkdocs.yml").read_text() and f"({name}.md)" in (
        PAGES["docs/methods/index.md"].read_text()
    )
    for option in fields(methods.lookup(name).options_class):
        assert f"| `{option.name}` |" in page


def test_pictures_are_those_that_the_command_draws(tmp_path):
    assert cli.run_command(mechanisms.main, ["--output", str(tmp_path)]) == 0
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in mechanisms.FOLDER.glob("*.svg")}
    used = "".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    assert all(f"pictures/{name}" in used for name in drawn)


def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed, reason="needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    built = (tmp_path / "site" / "api" / "methods" / "index.html").read_text(encoding="utf-8")
    assert "skim_weight" in (tmp_path / "site" / "methods" / "transkimmer" / "index.html").read_text(encoding="utf-8")
    assert "Put the method" in built and "tokens that entered the feed-forward of each layer" in built


def test_pages_link_to_files_that_exist():
    for page, path in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{page} links to {target}"


def test_examples_named_in_pages_exist():
    named = {name for path in PAGES.values() for name in re.findall(r"`(examples/[\w.]+)`", path.read_text("utf-8"))}
    assert all(Path(PROJECT_ROOT / name).is_file() for name in named)
