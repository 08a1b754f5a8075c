"""Look at what a reducer does with one text: `python examples/case_study.py`.

LAT is set by hand to three budgets, on an encoder whose head is new: what is shown is which tokens attention ranks
high, not a trained decision. For trained reducers see `python -m benchmarks.case_study`.
"""

from __future__ import annotations

import argparse

import torch
from reviews import quiet
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import methods
from benchmarks.console import open_console
from benchmarks.embedded import embedded_model_path
from benchmarks.token_terminal import show
from benchmarks.token_view import look


def main() -> None:
    """Draw the text once per budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="on the whole the plot is charming from start to end")
    parser.add_argument("--model", help="pre-trained encoder; default: the embedded one")
    arguments = parser.parse_args()
    name = arguments.model or str(embedded_model_path())
    torch.manual_seed(0)
    quiet()

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    views = []
    for pressure in (0.05, 0.15, 0.3):
        reducer = methods.create("lat", model).eval()
        reducer.press(pressure)
        views.append(look(reducer, tokenizer, arguments.text, source=f"each layer drops {pressure:.0%}"))
    show(views, open_console())


if __name__ == "__main__":
    main()
