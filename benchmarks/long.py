"""Table 4: every method on long texts (SQuAD v2, 20News, Yelp, IMDB), or on the embedded ones: score and speed-up."""

from __future__ import annotations

import sys

from benchmarks.cli import run_command
from benchmarks.suite import Suite
from benchmarks.tasks import EMBEDDED_LONG, LONG

SUITE = Suite(
    name="long",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --tasks imdb squad_v2 --max-train-samples 2000 --max-length 256",
    table="4",
    tasks={"embedded": EMBEDDED_LONG, "local": LONG, "paper": LONG},
    encoders={"BERT-base": None},
    embedded_rows=(1_200, 200),
    rows_of={"orange_20news": (128, 100)},
)
main = SUITE.main

if __name__ == "__main__":
    sys.exit(run_command(main))
