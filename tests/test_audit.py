"""The audit: every finding's numbers and verdict, and that verdicts follow the numbers."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import audit_findings
from benchmarks.audit import PAPERS, all_findings
from benchmarks.audit_findings import UNCHECKED, VERDICTS, Finding, agrees, close
from benchmarks.audit_lat_ltp import lat_floor, random_lengths
from benchmarks.audit_power_bert import rate_sum
from benchmarks.audit_quoted import power_bert_row, unpadding
from benchmarks.audit_top import top_mean
from benchmarks.audit_transkimmer import averages, overhead, sequence_row
from benchmarks.errors import UserError
from benchmarks.reported import FLAGS, REPORTED, lookup
from tests.audit_numbers import NUMBERS


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {finding.id: finding for finding in all_findings()}


def test_every_finding_has_numbers_here(found) -> None:
    assert set(found) == set(NUMBERS) and len(found) == len(all_findings())


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(found, name) -> None:
    finding = found[name]
    verdict, checks = NUMBERS[name]
    assert finding.verdict == verdict
    for row, column, value, tolerance in checks:
        named = [i for i, cells in enumerate(finding.numbers) if cells[0] == row]
        own = finding.column(column)[named[0] if named else row]
        expected = value if value is None or isinstance(value, str) else pytest.approx(value, abs=tolerance)
        assert own == expected, (row, column)


def test_every_finding_is_complete(found) -> None:
    for finding in found.values():
        assert finding.paper in PAPERS and finding.verdict in VERDICTS and finding.flags <= set(FLAGS)
        assert finding.claim and finding.computation and finding.summary.endswith(".") and finding.numbers


def test_numbers_from_memory_give_no_verdict(found) -> None:
    for finding in found.values():
        if finding.flags & UNCHECKED:
            assert finding.verdict in ("unconfirmed", "information"), finding.id
            assert finding.verdict == "information" or "without the paper at hand" in finding.sentence
        else:
            assert finding.verdict != "unconfirmed"


def test_every_paper_has_a_finding(found) -> None:
    papers = {path.stem for path in REPORTED.glob("*.csv")} | {"pabee", "several"}
    assert {finding.paper for finding in found.values()} == papers == set(PAPERS)


# Verdicts follow the numbers: the same finding on other printed numbers ----------------------------------------------


@pytest.fixture
def printed(monkeypatch):
    """Replaces printed numbers: `printed({(table, method, task, metric or None): {field: value}})`."""

    def replace(changes: dict) -> None:
        def other(table, backbone, method, padding, task, *, metric=None, paper="transkimmer"):
            cell = lookup(table, backbone, method, padding, task, metric=metric, paper=paper)
            change = changes.get((table, method, task, padding)) or changes.get((table, method, task, metric))
            return dataclasses.replace(cell, **change) if change else cell

        monkeypatch.setattr(audit_findings, "lookup", other)

    return replace


def test_averages_hold_once_they_are_those_of_the_cells(printed) -> None:
    assert averages().holds is False
    printed({("text", "transkimmer", "glue_mean", "none"): {"speedup": 2.83}})
    assert averages().holds is False  # RoBERTa's average is now wrong, BERT's is right
    printed({("text", "transkimmer", "glue_mean", "sequence"): {"speedup": 11.4}})
    assert "bert-base, sequence" not in averages().summary


def test_overhead_holds_once_exchanged(printed) -> None:
    assert "only when exchanged" in overhead().summary
    place = ("text", "transkimmer", "overhead")
    printed({(*place, "parameters_percent"): {"value": 6.5}, (*place, "macs_percent"): {"value": 7.9}})
    assert overhead().holds is True and "exchanged" not in overhead().summary


def test_sequence_row_holds_with_the_predicted_figures(printed) -> None:
    predicted = {"cola": 9.73, "rte": 11.21, "sst2": 4.01, "stsb": 7.0}
    printed({("3", "transkimmer", task, "sequence"): {"speedup": value} for task, value in predicted.items()})
    assert sequence_row().holds is True and "none fit neither" in sequence_row().summary


def test_unpadding_loses_against_faster_methods(printed) -> None:
    tasks = ("cola", "rte", "qqp", "mrpc", "sst2", "mnli", "qnli", "stsb")
    printed({("glue_test", "power_bert", task, "sequence"): {"speedup": 6.0} for task in tasks})
    assert unpadding().holds is True and "0 of 8" in unpadding().summary


def test_lat_off_the_floor(printed) -> None:
    changes = {("main_dagger", "lat", task, "relative_macs"): {"value": 0.45} for task in ("mnli", "sst2")}
    printed(changes)
    assert lat_floor().holds is True and "0 of 2" in lat_floor().summary


def test_power_bert_row_with_speedups_of_its_own(printed) -> None:
    printed({("3", "power_bert", task, "sequence"): {"speedup": 1.5} for task in ("cola", "sst2")})
    assert power_bert_row().holds is True


def test_top_mean_with_the_missing_rte_figure(printed) -> None:
    printed({("readme", "top", "rte", "sequence"): {"speedup": 9.59}})
    assert top_mean().holds is True and "equals no other task" in top_mean().summary


def test_a_number_that_lost_its_source_has_no_verdict(printed) -> None:
    printed({("text", "transkimmer", "glue_mean", "none"): {"flag": "from_memory"}})
    assert averages().verdict == "unconfirmed"


def test_a_missing_cell_is_named(monkeypatch) -> None:
    monkeypatch.setattr(audit_findings, "lookup", lambda *place, **options: None)
    with pytest.raises(UserError, match=r"transkimmer\.csv has no row for 3, bert-base, transkimmer, sequence, cola"):
        averages()


# Pieces ---------------------------------------------------------------------------------------------------------------


def test_agreement_is_rounding() -> None:
    assert agrees(2.83, 2.8289, 2) and not agrees(2.81, 2.8289, 2)
    assert agrees(4.5, 4.4677, 1) and agrees(2.7, 2.65, 1) and not agrees(2.7, 2.64, 1)
    assert close(10.0, 10.5, 0.05) and not close(10.0, 10.6, 0.05)


def test_rate_sum_by_hand() -> None:
    """Ten updates, two of warm-up: 1/2 + 1, then 7/10 + 6/10 + ... + 0."""
    assert rate_sum(1.0, 10, 0.2) == pytest.approx(1.5 + 2.8)
    assert rate_sum(2.0, 4, 0.0) == pytest.approx(2 * (0.75 + 0.5 + 0.25))


def test_random_lengths_of_a_small_case() -> None:
    """Length 5, half dropped at most: layer 1 keeps 3, 4 or 5, layer 2 from half of that upwards, never below 2."""
    shares = [(first, second) for first in (3, 4, 5) for second in range(-(-first // 2), first + 1)]
    weights = [1 / 3 / len(range(-(-first // 2), first + 1)) for first, _ in shares]
    mean = sum(weight * (first + second) for weight, (first, second) in zip(weights, shares, strict=True))
    kept, _ = random_lengths(5, 0.5, 2)
    assert kept == pytest.approx(mean / 10)


def test_a_row_that_does_not_fit_its_columns() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        Finding(
            id="x",
            paper="lat",
            claim="c",
            computation="c",
            columns=("a", "b"),
            numbers=((1,),),
            holds=None,
            summary=".",
        )
