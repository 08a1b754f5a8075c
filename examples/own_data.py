"""From a file of texts and labels to a faster model, in Python: `python examples/own_data.py`.

The same as `python -m benchmarks.accelerate --task-data reviews.csv --method deebert --target-speedup 1.5`, with the
result at hand. Replace the made-up reviews by your own file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from reviews import reviews, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import methods  # noqa: F401  (makes reducers known to transformers)
from benchmarks import accelerate


def main() -> None:
    """Train, choose, save, load, classify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="pre-trained encoder; default: the embedded one")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--method", default="deebert")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_csv(folder / "reviews.csv", reviews(arguments.rows))
        command = ["--task-data", rows, "--method", arguments.method, "--target-speedup", 1.5, "--seed", 1]
        command += ["--output", folder / "faster", "--results", folder / "results"]
        command += ["--model", arguments.model] if arguments.model else []
        status = accelerate.main([str(word) for word in command])
        print("target reached" if status == 0 else "target not reached; what follows is the nearest")

        said = json.loads((folder / "faster" / "accelerate.json").read_text(encoding="utf-8"))
        print(f"{said['reduced']['speedup']:.2f}x fewer FLOPs, {said['metric']} {said['reduced']['score']:.3f}")

        model = AutoModelForSequenceClassification.from_pretrained(folder / "faster").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "faster")
        for text in ("on the whole the plot is charming", "once again this story is tedious"):
            output = model(**tokenizer(text, return_tensors="pt"))
            answer = model.config.id2label[int(output.logits.argmax())]
            print(f"{text!r}: {answer}, after layer {int(output.trace.exit_layers[0]) + 1}")


if __name__ == "__main__":
    main()
