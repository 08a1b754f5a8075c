"""What may answer a claim: one split of each task, and no task that the dense model has not learned."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import answers, findings
from tests.test_findings import near, one


def test_claims_are_judged_by_one_split_of_each_task_that_was_learned():
    splits = [
        replace(one("dense", 67.0, 1.0, task=f"MNLI {name}"), split=f"mnli/{name}", trivial=35.0)
        for name in ("matched", "mismatched")
    ]
    unlearned = [
        replace(one(name, 47.0, 1.0, task="WNLI"), split="wnli/dev", trivial=56.3) for name in ("dense", "lat")
    ]
    assert answers.admitted([*splits, *unlearned]) == splits[:1]
    kept = answers.admitted_at_speeds([near("lat", 50.0, 1.5, task="WNLI"), near("lat", 50.0, 1.5)], unlearned)
    assert [it.task for it in kept] == ["MRPC"]
    page = findings.report([*splits, *unlearned], [], [], "command")
    assert "has not learned WNLI (dense 47.0, one answer for all texts 56.3)" in page


def test_a_task_of_two_splits_that_was_not_learned_judges_at_no_speed():
    """Settings bear the title that both splits begin with."""
    splits = [
        replace(one("dense", 34.0, 1.0, task=f"MNLI (sample) {name}"), split=f"mnli/{name}", trivial=35.0)
        for name in ("matched", "mismatched")
    ]
    there = [near("lat", 50.0, 1.5, task=task) for task in ("MNLI (sample)", "MRPC")]
    assert [it.task for it in answers.admitted_at_speeds(there, splits)] == ["MRPC"]
