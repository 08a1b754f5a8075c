"""The report's part on measured time: every number is the file's and leads to its record."""

from __future__ import annotations

import csv

import pytest

from benchmarks import latency_table, runs
from benchmarks.errors import UserError
from benchmarks.report import build, read_all
from benchmarks.report_latency import NUMBERS
from benchmarks.runs import RunConfig, RunStore, make_record
from tests.report_page import Page, exact


def subject(title, speed):
    against = {"flops": 2.0, "wall": [speed, speed - 0.1, speed + 0.1], "cpu": [speed] * 3, "bare_cpu": [1.8] * 3}
    return {
        "key": title.lower(),
        "method": "ltp",
        "title": title,
        "schedule": "4x",
        "wall_s": [0.1, 0.3, 0.2],
        "against": {"batch": against},
        "overhead": {"wall": [1.25], "cpu": [1.2]},
        "peak_memory_bytes": 3_456_000,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Records of two batch sizes, and the table that the command makes of them."""
    monkeypatch.setattr(runs, "environment", lambda: {"python": "3", "git": {"revision": "abc", "dirty": False}})
    records = []
    for size in (1, 32):
        extra = {"batch_size": size, "paddings": ["batch"], "machine": "A <fast> one", "threads": 2}
        config = RunConfig(
            kind="latency", task="sst2", method="interleaved", backbone="b", data={}, seed=None, extra=extra
        )
        metrics = {"subjects": [subject("LTP", 1.5 + size), subject("ToP", 1.25)], "texts": 8, "tokens": 100}
        records.append(make_record(config, started_at="2026-01-01", wall_s=1.0, metrics=metrics))
        RunStore(tmp_path).write(config, records[-1])
    (tmp_path / "tables").mkdir()
    latency_table.frame_of(records).to_csv(tmp_path / "tables" / "latency.csv", index=False, float_format="%.6g")
    return tmp_path


def test_a_table_per_batch_size_has_the_numbers_of_the_file_and_their_records(folder) -> None:
    page = Page(build(read_all(folder, published=False)))
    (section,) = [part for part in page.root.iter("section") if part.get("id") == "latency"]
    shown = [table for table in section.iter("table") if table.get("data-file") is None]
    lines = [[exact(cell) for cell in row] for table in shown for row in table.find("tbody")]
    rows = list(csv.DictReader((folder / "tables" / "latency.csv").open(newline="")))
    assert len(shown) == 2 and len(lines) == len(rows) == 4
    for line, row in zip(lines, rows, strict=True):
        values = [row[name] for name in NUMBERS]
        values[1] += f" {row['time_ratio_low']} {row['time_ratio_high']}"
        assert line == [row["title"], row["schedule"], latency_table.TITLES[row["baseline"]], *values]
    links = [link.get("href") for table in shown for link in table.iter("a")]
    assert links == [f"#run-own-{row['records']}" for row in rows for _ in NUMBERS]
    assert page.table("own/tables/latency.csv")[1:] == [list(row.values()) for row in rows]
    assert "A <fast> one, 2 threads, float32" in page.text and "alone" not in page.sections


def test_a_time_that_is_no_number_is_named(folder) -> None:
    path = folder / "tables" / "latency.csv"
    head, first, *rest = path.read_text().splitlines()
    place = head.split(",").index("overhead")
    spoilt = [*first.split(",")[:place], "slow", *first.split(",")[place + 1 :]]
    path.write_text("\n".join([head, ",".join(spoilt), *rest]) + "\n")
    with pytest.raises(UserError, match=r"latency.csv, row 2: overhead is 'slow', not a number; rerun"):
        build(read_all(folder, published=False))
