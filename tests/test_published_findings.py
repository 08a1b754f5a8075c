"""The committed page of findings is what the committed records give."""

from __future__ import annotations

import itertools
import re

from benchmarks import findings
from benchmarks.beside import beside
from benchmarks.comparable import finished_runs, read_comparisons
from benchmarks.compared import measured
from benchmarks.environment import PROJECT_ROOT
from benchmarks.equal_speed import at_speeds
from benchmarks.forwarding import both_ways
from benchmarks.twins import both_twins


def test_the_published_findings_are_what_the_records_give():
    results = PROJECT_ROOT / "results"
    page, found = (results / "FINDINGS.md").read_text(encoding="utf-8"), measured(results)
    like = findings.comparisons(found, results)
    near, trials, ways = at_speeds(like), beside(results, like), both_ways(read_comparisons(results))
    twins = both_twins(record for records in finished_runs(results).values() for record in records)
    assert page == findings.report(found, near, trials, f"{findings.PROGRAM} --results results", ways, twins)
    named = {name for one in itertools.chain(found, trials, ways, twins) for name in one.records}
    assert set(re.findall(r"\b[0-9a-f]{12}\b", page)) == named
