"""`python -m benchmarks.audit` as a user calls it; Tables 1 and 2."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

import methods
from benchmarks.audit import all_findings, column_texts, long_table, main, number_table
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.formulas import encoder_macs
from benchmarks.models import folder_model, load_tokenizer
from benchmarks.properties import PRINTED, TRAITS, Lengths, design_table, measure_folder, remarks, task_table
from benchmarks.tasks import GLUE, LONG, TASKS
from tests.shared_data import shared_data
from tests.small_world import write_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the tables of one finished command with a tiny SST-2, and what it printed."""
    root = tmp_path_factory.mktemp("audit")
    (root / "data" / "sst2").mkdir(parents=True)
    rows = ["sentence,label", "a good film,1", "the plot was awful and the story was poor,0"]
    (root / "data" / "sst2" / "validation.csv").write_text("\n".join(rows) + "\n")
    model = write_model(root / "model")
    command = [sys.executable, "-m", "benchmarks.audit", "--results", str(root / "results")]
    command += ["--data-dir", str(root / "data"), "--model", str(model)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=True)
    return next((root / "results").rglob("audit.md")).parent, done.stdout


def test_every_finding_is_printed_and_written(written) -> None:
    folder, output = written
    markdown = (folder / "audit.md").read_text(encoding="utf-8")
    for finding in all_findings():
        assert f"{finding.id}: {finding.verdict}" in output
        assert f"### {finding.id}: {finding.verdict}" in markdown and finding.sentence in markdown
    assert "Command: `python -m benchmarks.audit" in markdown


def test_the_csv_holds_every_figure(written) -> None:
    frame = pd.read_csv(written[0] / "audit.csv", keep_default_na=False, dtype=str)
    found = all_findings()
    assert len(frame) == sum(len(finding.numbers) * len(finding.columns) for finding in found)
    cell = frame[(frame["finding"] == "transkimmer-averages") & (frame["row"] == "1")].set_index("column")["value"]
    assert (cell["Printed"], cell["Mean of cells"]) == ("10.97", "11.3989")


def test_markdown_tables_have_every_row(written) -> None:
    markdown = (written[0] / "audit.md").read_text(encoding="utf-8")
    for finding in all_findings():
        section = markdown.split(f"### {finding.id}: ")[1].split("###")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == len(finding.numbers) + 2, finding.id


def test_table_2_shows_the_data_at_hand(written) -> None:
    folder, output = written
    frame = pd.read_csv(folder / "table2.csv").set_index("Dataset")
    assert list(frame.index) == [TASKS[name].title for name in (*GLUE, *LONG)]
    assert frame.loc["SST-2", "Measured average"] == (5 + 11) / 2 and frame.loc["SST-2", "Texts"] == 2
    assert frame["Measured average"].notna().sum() == 1 and frame.loc["SST-2", "Printed average"] == 25
    assert "measured SST-2: 2 texts (validation)" in output
    assert "They differ for: SST-2 (25 printed, 8.0 measured)" in (folder / "table2.md").read_text(encoding="utf-8")


def test_table_1_is_the_traits(written) -> None:
    frame = pd.read_csv(written[0] / "table1.csv", keep_default_na=False)
    assert list(frame["Method"]) == [methods.lookup(name).traits.title for name in methods.available()]
    own = frame.set_index("Method").loc["Transkimmer"]
    assert list(own[list(TRAITS)]) == list(PRINTED["transkimmer"]) and own["The paper prints"] == "the same"


def test_table_1_says_what_the_paper_prints_otherwise(monkeypatch) -> None:
    monkeypatch.setitem(PRINTED, "transkimmer", ("magic", *PRINTED["transkimmer"][1:]))
    frame = design_table().set_index("Method")
    assert frame.loc["Transkimmer", "The paper prints"] == "optimization: magic"
    assert frame.loc["Dense", "The paper prints"] == "\N{EN DASH}"


def test_the_published_audit_is_the_present_one() -> None:
    """results/tables/audit.csv was written by this code from these reported numbers."""
    published = (PROJECT_ROOT / "results" / "tables" / "audit.csv").read_text(encoding="utf-8")
    assert published == long_table(all_findings()).to_csv(index=False)


def test_it_starts_without_torch() -> None:
    code = "import sys, benchmarks.audit as a; a.main(['--list']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "transkimmer-averages" in done.stdout


def test_chosen_findings_write_nothing(tmp_path, capsys) -> None:
    arguments = ["--findings", "lat-floor", "top", "--results", str(tmp_path / "r")]
    assert run_command(main, arguments) == 0
    output = capsys.readouterr().out
    assert "lat-floor: does not hold" in output and "top-mean: does not hold" in output
    assert "lat-checkpoints" not in output and not (tmp_path / "r").exists()


BAD = {
    "unknown finding": (["--findings", "lat-flor"], ["no finding 'lat-flor'", "did you mean 'lat-floor'"]),
    "no data folder": (["--data-dir", "/no/such"], ["--data-dir /no/such is not a folder"]),
    "a model and no data": (["--model", "x"], ["--model and --tasks say how to measure --data-dir"]),
    "a task of no paper": (["--data-dir", "{data}", "--tasks", "mood"], ["'mood' is no task of the paper"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_end_in_one_sentence(case, tmp_path, capsys) -> None:
    arguments, parts = BAD[case]
    (tmp_path / "cola").mkdir()
    arguments = [argument.format(data=tmp_path) for argument in arguments]
    assert run_command(main, [*arguments, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(part in error for part in parts)


def test_a_data_folder_without_tasks(tmp_path, capsys) -> None:
    assert run_command(main, ["--data-dir", str(tmp_path), "--results", str(tmp_path / "r")]) == 2
    assert "has no folder of a task of the paper: cola" in capsys.readouterr().err


def test_results_that_cannot_be_written(tmp_path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run_command(main, ["--results", str(blocked)]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_lengths_by_hand() -> None:
    lengths = Lengths((10, 20, 30, 140))
    assert (lengths.mean(), lengths.mean(128)) == (50, 47) and lengths.longer_than(128) == 0.25
    assert [lengths.quantile(share) for share in (0.25, 0.5, 0.51, 0.99, 1.0)] == [10, 20, 30, 140, 140]
    own = sum(encoder_macs(n) for n in (10, 20, 30, 128))
    assert lengths.unpadding(128) == pytest.approx(4 * encoder_macs(128) / own)


def test_remarks_sort_the_printed_averages() -> None:
    measured = {
        "cola": Lengths((11, 12, 12)),  # 11.67, cut to whole tokens 11
        "rte": Lengths((40, 66, 300)),  # 135, but 78 cut to 128
        "sst2": Lengths((90,)),
    }
    lines = remarks(measured, "a model")
    assert lines[0].endswith("the tokenizer of a model.") and lines[1].endswith("for: CoLA.")
    assert lines[2].endswith("for: none.") and "SST-2 (25 printed, 90.0 measured)" in lines[3]
    assert "RTE (300 tokens)" in lines[4] and "SST-2 (90 tokens)" in lines[4] and "CoLA" not in lines[4]
    assert "RTE (64.0; 132.0 whole)" in remarks({"rte": Lengths((32, 32, 400, 64))}, "a model")[2]
    assert remarks({}, "a model") == []


def test_figures_have_the_decimals_that_they_need() -> None:
    assert column_texts([57.8, 2.0, None, "x"]) == ["57.8", "2.0", "\N{EN DASH}", "x"]
    assert column_texts([10.97, 11.3989]) == ["10.97", "11.40"]
    assert column_texts([0.34786, 0.5]) == ["0.348", "0.500"]
    assert column_texts([0.000833, 0.0092]) == ["0.00083", "0.00920"]
    assert column_texts([11173625856, 3]) == ["11,173,625,856", "3"]
    for finding in all_findings():
        assert number_table(finding).shape == (len(finding.numbers), len(finding.columns))


def test_table_2_on_real_rows() -> None:
    """MRPC's development rows by BERT's word pieces: the printed 53, rounded; no text is cut at 128."""
    from benchmarks.embedded import embedded_model_path

    folder = shared_data("glue", "mrpc").parent
    tokenizer = load_tokenizer(folder_model(embedded_model_path()))
    measured = measure_folder(folder.parent, tokenizer, ("mrpc",))
    row = task_table(measured).set_index("Dataset").loc["MRPC"]
    assert row["Texts"] == 408 and round(row["Measured average"]) == 53 and row["Longer %"] == 0
    assert row["By the data"] == pytest.approx(row["Unpadding alone"], abs=0.05)
