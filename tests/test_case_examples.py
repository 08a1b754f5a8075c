"""Table 5's examples: which reducers show them, what is written, and that the report draws it back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import case_examples
from benchmarks.case_examples import EXAMPLES, PREFERRED, SHOWN, chosen, paper_row, read, row_hash
from benchmarks.case_study import main
from benchmarks.cli import run_command
from benchmarks.errors import UserError
from benchmarks.report import build, read_all
from benchmarks.runs import RunConfig, RunStore, make_record
from tests.report_page import Page
from tests.small_world import write_model
from tests.test_case_study import COUNTS, write_reducer

OPTIONS = {
    "power_bert": {"retention_configuration": COUNTS},
    "lat": {"length_configuration": COUNTS},
    "deebert": {"threshold": 0.7},
}
TRAINED = {
    "sst2": ("transkimmer", "deebert", "power_bert", "lat"),
    "squad_v2": ("transkimmer", "lat", "tr_bert"),
    "mrpc": ("transkimmer", "power_bert"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A SKIMBENCH_HOME with tiny reducers of three tasks and the model that they are from."""
    root = tmp_path_factory.mktemp("home")
    model = write_model(root / "model")
    for task, methods in TRAINED.items():
        for number, method in enumerate(methods):
            folder = root / "checkpoints" / f"{task}-{method}-{number:012x}"
            write_reducer(folder, model, method, task, **OPTIONS.get(method, {}))
    return root


@pytest.fixture
def show(home, tmp_path, monkeypatch):
    """Runs the command and returns what it wrote, below a folder that no work tree makes scratch."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(home))
    monkeypatch.setattr("benchmarks.runs.git_state", lambda: {"revision": "abc", "dirty": False})

    def run(*arguments: str) -> list[case_examples.Shown]:
        command = ["--examples", "--model", str(home / "model"), "--results", str(tmp_path), *arguments]
        assert run_command(main, command) == 0
        return read(tmp_path / "tables" / "case_study.json")[1]

    return run


def test_both_examples_of_the_paper_are_shown_for_three_methods(show) -> None:
    shown = {one.name: one for one in show()}
    assert [view.title for view in shown["sentence"].views] == ["Transkimmer", "PoWER-BERT", "LAT"]
    assert [view.title for view in shown["passage"].views] == ["Transkimmer", "TR-BERT", "LAT"]
    assert (shown["sentence"].task, shown["passage"].task) == ("SST-2", "SQuAD v2.0")
    words = [word.pieces[0].text for word in shown["passage"].views[0].words]
    assert words[:3] == ["[CLS]", "Who", "led"] and "Francia" in words  # the question is read first
    assert len(shown["pair"].views) == 2


def test_the_texts_have_what_the_paper_s_have() -> None:
    """Articles and apostrophes; a name of two word pieces, and an answer that stands in the passage."""
    sentence, passage = EXAMPLES[0].texts[0], EXAMPLES[1].texts[0]
    assert sentence.count("'") == 3 and " the " in sentence and " a " in sentence
    assert "Francia" in passage and "Rollo" in passage


def test_methods_can_be_chosen(show) -> None:
    shown = show("--methods", "deebert")
    assert [(one.name, [view.title for view in one.views]) for one in shown] == [("sentence", ["DeeBERT"])]


def test_a_missing_example_says_what_makes_it(show, capsys) -> None:
    show("--methods", "deebert")
    said = capsys.readouterr().out
    assert "A question on a passage: left out" in said and "python -m benchmarks.long --tasks squad_v2" in said


def test_three_by_preference() -> None:
    assert chosen(["top", "lot", "ltp", "transkimmer"], None) == ["transkimmer", "ltp", "top"] and SHOWN == 3
    assert chosen(["top", "zz"], None) == ["top", "zz"] and chosen(["top"], ["ltp", "top"]) == ["top"]
    assert len(set(PREFERRED)) == len(PREFERRED)


def test_what_is_written_can_be_read(show, tmp_path) -> None:
    shown = show()
    command, again = read(tmp_path / "tables" / "case_study.json")
    assert again == shown and command.startswith("python -m benchmarks.case_study --examples --model ")
    assert shown[0].records == ("000000000000", "000000000002", "000000000003")
    page = (tmp_path / "tables" / "case_study.html").read_text(encoding="utf-8")
    assert page.count("<section") == sum(len(one.views) for one in shown) and page.count("<h2>") == 3


def test_runs_with_records_come_before_newer_ones(home, show, tmp_path) -> None:
    """Two reducers of a method: the newer one, unless the folder has the record of the older."""
    newer = home / "checkpoints" / "sst2-power_bert-ffffffffffff"
    write_reducer(newer, home / "model", "power_bert", "sst2", **OPTIONS["power_bert"])
    os.utime(newer, (2e9, 2e9))
    try:
        assert show("--methods", "power_bert")[0].records == ("ffffffffffff",)
        record = tmp_path / "runs" / "finetune" / "sst2" / f"power_bert-{2:012x}.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        assert show("--methods", "power_bert")[0].records == (f"{2:012x}",)
    finally:
        for path in newer.iterdir():
            path.unlink()
        newer.rmdir()


def test_the_paper_s_rows_come_from_a_folder(show, tmp_path, monkeypatch) -> None:
    """A row is known by the hash of its texts, whichever file it stands in."""
    sentence = "the film was good"
    for split, first in (("train", "the plot"), ("validation", sentence + " ")):
        path = tmp_path / "data" / "sst2" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"sentence,label\n{first},1\na poor story,0\n")
    example = EXAMPLES[0]
    monkeypatch.setattr(
        case_examples, "EXAMPLES", (example.__class__(**vars(example) | {"row": row_hash([sentence])}),)
    )
    (shown,) = show("--data-dir", str(tmp_path / "data"), "--methods", "lat")
    assert shown.texts == (sentence,) and "a row of the data set" in shown.about
    with pytest.raises(UserError, match="lacks the paper's row; leave --data-dir out"):
        paper_row(example, tmp_path / "data")


def test_the_report_draws_table_5_and_links_its_records(show, tmp_path) -> None:
    config = RunConfig(kind="finetune", task="sst2", method="lat", backbone="b", data={}, seed=1)
    RunStore(tmp_path).write(config, make_record(config, started_at="2026", wall_s=1.0, metrics={"score": 0.5}))
    path = tmp_path / "tables" / "case_study.json"
    show("--methods", "lat")
    content = json.loads(path.read_text())
    content["examples"][0]["records"] = [config.hash]
    content["examples"][0]["views"][0]["words"][1]["pieces"][0]["text"] = "<script>x</script>"
    path.write_text(json.dumps(content))
    page = Page(build(read_all(tmp_path, published=False)))
    assert page.sections == ["table5", "environment", "records"]
    assert f"#run-own-{config.hash}" in page.links and "<script>x</script>" in page.text
    assert len([part for part in page.root.iter("section") if part.get("class") == "view"]) == 2


def test_own_texts_are_no_row_of_a_data_set() -> None:
    """What is committed is this project's own."""
    for example in EXAMPLES[:2]:
        assert row_hash(example.texts) != example.row and len(example.row) == 16
