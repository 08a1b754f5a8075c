"""Cases of bad input: models, rows and records whose files are broken."""

from __future__ import annotations

from tests.report_page import write_suite
from tests.spoiling import LOCAL, Case, edit_json, parquet, remove, rows, write
from tests.test_runs import config

CONFIG = "model/config.json"
REPORT = ["--results", "results", "--own-only"]
FILES: dict[str, Case] = {
    "model without weights": ("glue", LOCAL, remove("model/model.safetensors"), ["model.safetensors is missing"]),
    "model without configuration": ("glue", LOCAL, remove(CONFIG), ["config.json is missing"]),
    "model whose configuration is no JSON": ("glue", LOCAL, write(CONFIG, "{"), ["not a model configuration"]),
    "model whose configuration is a list": ("glue", LOCAL, write(CONFIG, "[]"), ["not a model configuration"]),
    "model without a type": ("glue", LOCAL, write(CONFIG, "{}"), ["not a model configuration"]),
    "model of another family": ("glue", LOCAL, edit_json(CONFIG, model_type="mpnet"), ["'mpnet' model; supported"]),
    "model with cut weights": ("glue", LOCAL, write("model/model.safetensors", b"\x10"), ["cannot load the model"]),
    "model whose weights have other shapes": (
        "glue",
        LOCAL,
        edit_json(CONFIG, hidden_size=64),
        ["cannot load the model"],
    ),
    "model without tokenizer": ("glue", LOCAL, remove("model/tokenizer.json"), ["tokenizer"]),
    "tokenizer that is no JSON": ("glue", LOCAL, write("model/tokenizer.json", "{"), ["cannot load the tokenizer"]),
    "tokenizer without pad token": (
        "glue",
        LOCAL,
        edit_json("model/tokenizer_config.json", pad_token=None),
        ["no pad token"],
    ),
    "no training rows": ("glue", LOCAL, rows("sentence,label\n"), ["train.csv", "no rows"]),
    "empty file": ("glue", LOCAL, rows(""), ["train.csv"]),
    "no such split": ("glue", LOCAL, remove("data/mood/train.csv"), ["needs a train file", "found: validation"]),
    "a split twice": ("glue", LOCAL, write("data/mood/train.tsv", "sentence\tlabel\na\t0\n"), ["more than once"]),
    "one class only": ("glue", LOCAL, rows("sentence,label\na,0\nb,0\n"), ["one class only"]),
    "no text column": ("glue", LOCAL, rows("words,label\na,0\nb,1\n"), ["needs a column 'label' and one of"]),
    "no label column": ("glue", LOCAL, rows("sentence,mark\na,0\nb,1\n"), ["needs a column 'label'", "mark"]),
    "a column twice": ("glue", LOCAL, rows("sentence,label,label\na,0,1\n"), ["names a column twice"]),
    "a field too many": ("glue", LOCAL, rows("sentence,label\na,0\nb,c,1\n"), ["line 3", "3 fields"]),
    "unclosed quotation": ("glue", LOCAL, rows('sentence,label\na,0\n"b,1\n'), ["not CSV"]),
    "empty text": ("glue", LOCAL, rows("sentence,label\na,0\n,1\n"), ["row 2", "empty"]),
    "empty label": ("glue", LOCAL, rows("sentence,label\na,0\nb,1\nc,\n"), ["row 3: the label in 'label' is empty"]),
    "empty value": ("glue", LOCAL, rows("sentence,label\na,0.5\nb,\n"), ["row 2: the label in 'label' is empty"]),
    "tabs that are commas": ("glue", LOCAL, rows("sentence,label\na,0\n", suffix="tsv"), ["has ',' and no tab"]),
    "label out of range": ("glue", LOCAL, rows("sentence,label\na,7\n", "validation"), ["row 1", "label 7"]),
    "label that is no number": ("glue", LOCAL, rows("sentence,label\na,0.5\nb,nan\n"), ["row 2", "finite"]),
    "text that is not UTF-8": ("glue", LOCAL, rows(b"sentence,label\na,0\n\xff\xfe,1\n"), ["not UTF-8"]),
    "JSON lines that are cut off": ("glue", LOCAL, rows('{"sentence": "a"', suffix="jsonl"), ["line 1: not JSON"]),
    "JSON lines of numbers": ("glue", LOCAL, rows("1\n2\n", suffix="jsonl"), ["line 1: expected an object"]),
    "JSON text that is a number": (
        "glue",
        LOCAL,
        rows('{"sentence": 3, "label": 0}\n{"sentence": 4, "label": 1}\n', suffix="jsonl"),
        ["row 1", "must be text, got 3"],
    ),
    "JSON label beyond 64 bits": (
        "glue",
        LOCAL,
        rows('{"sentence": "a", "label": 0}\n{"sentence": "b", "label": 100000000000000000000}\n', suffix="jsonl"),
        ["row 2: column 'label' holds 100000000000000000000, which is beyond 64 bits"],
    ),
    "mixed labels": (
        "glue",
        LOCAL,
        rows('{"sentence": "a", "label": 0}\n{"sentence": "b", "label": "x"}\n', suffix="jsonl"),
        ["column 'label' holds 'x'"],
    ),
    "no Parquet": ("glue", LOCAL, parquet, ["train.parquet cannot be read"]),
    "shards that are missing": (
        "glue",
        LOCAL,
        lambda root: (root / "data/mood/train.csv").rename(root / "data/mood/train-00000-of-00002.csv"),
        ["1 of the 2 shards"],
    ),
    "a file in the place of the results": ("glue", LOCAL, write("r", ""), ["cannot write", "make its folder writable"]),
    "tables that cannot be written": ("audit", ["--results", "r"], write("r", ""), ["cannot write"]),
    "a page that cannot be written": (
        "case_study",
        ["the film was good", "--model", "model", "--reducer", "reducer", "--output", "r/page.html"],
        write("r", ""),
        ["cannot write r/page.html", "another --output"],
    ),
    "a reducer with cut weights": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "reducer"],
        write("reducer/model.safetensors", b"\x10"),
        ["cannot load the reducer reducer"],
    ),
    "a reducer whose configuration is no JSON": (
        "case_study",
        ["a film", "--model", "model", "--reducer", "reducer"],
        write("reducer/config.json", "{"),
        ["cannot load the reducer reducer"],
    ),
    "a report that cannot be written": (
        "report",
        [*REPORT, "--output", "r/x.html"],
        write("r", ""),
        ["cannot write r"],
    ),
    "a table of the report with a field too many": (
        "report",
        REPORT,
        write("results/tables/glue-x.csv", "a,b\n1,2,3\n"),
        ["glue-x.csv, row 2: 3 fields under 2 columns", "rerun"],
    ),
    "a table of the report without its columns": (
        "report",
        REPORT,
        write("results/tables/glue-x.csv", "model,method\nx,ltp\n"),
        ["glue-x.csv lacks the columns of, title", "rerun"],
    ),
    "a table of the report with a score that is no number": (
        "report",
        REPORT,
        lambda root: write_suite(root / "results", measured="high"),
        ["glue-local.csv, row 2: measured is 'high', not a number", "rerun"],
    ),
    "a case study of the report that is no JSON": (
        "report",
        REPORT,
        write("results/tables/case_study.json", "{"),
        ["case_study.json is not what", "--examples"],
    ),
    "a case study of the report that is something else": (
        "report",
        REPORT,
        write("results/tables/case_study.json", '{"schema": 1, "command": "", "examples": [{"views": 3}]}'),
        ["case_study.json is not what", "KeyError"],
    ),
    "a figure of the report that is cut off": (
        "report",
        REPORT,
        write("results/figures/strategy-rte.svg", "<svg"),
        ["strategy-rte.svg is not readable as SVG", "rerun"],
    ),
    "an empty table of the report": ("report", REPORT, write("results/tables/x.csv", ""), ["x.csv is empty"]),
    "a table of the report that is not UTF-8": (
        "report",
        REPORT,
        write("results/tables/x.csv", b"a\n\xff\n"),
        ["x.csv is not a readable CSV file", "rerun"],
    ),
    "a table of the audit without its columns": (
        "report",
        REPORT,
        write("results/tables/audit.csv", "finding\nx\n"),
        ["audit.csv lacks the columns paper"],
    ),
    "a record that is cut off": (
        "runs",
        ["show", config().hash, "--results", "results"],
        write(f"results/runs/train/rte/ltp-{config().hash}.json", "{"),
        ["not readable as JSON", "rerun its command"],
    ),
}
