"""Table 3: every method on GLUE, or on the embedded tasks: score and FLOPs speed-up under each padding setting."""

from __future__ import annotations

import sys

from benchmarks.cli import run_command
from benchmarks.suite import Suite
from benchmarks.tasks import EMBEDDED, GLUE

# What the paper has beside BERT: each encoder alone and with Transkimmer.
COMPRESSED = ("dense", "transkimmer", "random")
SUITE = Suite(
    name="glue",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --tasks sst2 mrpc --max-train-samples 3000",
    table="3",
    tasks={"embedded": EMBEDDED, "local": GLUE, "paper": GLUE},
    encoders={"BERT-base": None, "RoBERTa-base": COMPRESSED, "DistilBERT": COMPRESSED, "ALBERT": COMPRESSED},
    embedded_rows=(400, 400),
    rows_of={"synthetic_pair": (800, 400), "vader_valence": (200, 400)},  # the former is learnt late, then at once
)
main = SUITE.main

if __name__ == "__main__":
    sys.exit(run_command(main))
