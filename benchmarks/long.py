"""Table 4: every method on long texts (SQuAD v2, 20News, Yelp, IMDB), or on embedded ones: score and speed-up.

The embedded profile asks questions made by rule; real documents take a CPU far longer: `--tasks orange_20news`.
"""

from __future__ import annotations

import sys

from benchmarks.cli import run_command
from benchmarks.suite import Suite
from benchmarks.tasks import LONG

SUITE = Suite(
    name="long",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --tasks imdb squad_v2 --max-train-samples 2000 --max-length 256",
    table="4",
    tasks={"embedded": ("synthetic_squad_v2",), "local": LONG, "paper": LONG},
    encoders={"BERT-base": None},
    embedded_rows=(1_200, 200),
    rows_of={"orange_20news": (600, 200)},
)
main = SUITE.main

if __name__ == "__main__":
    sys.exit(run_command(main))
