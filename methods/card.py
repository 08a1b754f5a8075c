"""The model card beside a saved reducer: Markdown with YAML metadata that says what was measured, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.families import ARCHITECTURES

if TYPE_CHECKING:
    from methods.base import TokenReducer

MARK = "<!-- Written by skimbench at each save of the model. Delete this line to keep edits. -->"
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
}
ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a trained reducer. None is unknown: it is left out, never estimated.

    Attributes:
        task, metric, score: name of the task, of its metric, and the value reached on `split`.
        dense_score: what the dense model reaches on the same rows.
        keep_ratio: real tokens computed, averaged over layers, in [0, 1].
        gflops, dense_gflops: per text, 1 multiply-add = 2 FLOPs, under the padding setting `padding`.
        latency_ms, dense_latency_ms: per batch of `batch_size` texts, timed on `device`, medians.
        record: id of the run record that holds these numbers. command: what made it.
        base_model: hub name of the pre-trained encoder.
    """

    task: str | None = None
    split: str | None = None
    metric: str | None = None
    score: float | None = None
    dense_score: float | None = None
    keep_ratio: float | None = None
    gflops: float | None = None
    dense_gflops: float | None = None
    padding: str | None = None
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    batch_size: int | None = None
    device: str | None = None
    record: str | None = None
    command: str | None = None
    base_model: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Facts by name.

        Raises:
            ValueError: a name that is none of them, or a value that is no plain text or number.
        """
        for name, value in values.items():
            if name not in cls.__dataclass_fields__:
                raise ValueError(
                    f"'{name}' is no fact that a model card has; it has: {', '.join(cls.__dataclass_fields__)}"
                )
            if not isinstance(value, (str, int, float)) and value is not None:
                raise ValueError(f"{name} must be a text or a number, got {type(value).__name__}")
        return cls(**values)

    def known(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def model_card(reducer: TokenReducer) -> str:
    """The whole card of `reducer`: metadata, what it is, how to load it, what was measured, its options."""
    facts, traits = Facts.of(reducer.config.facts), reducer.traits
    auto_class = f"AutoModel{ARCHITECTURES[reducer.backbone.head]}"
    lines = [
        "---",
        _metadata(reducer, facts),
        "---",
        "",
        MARK,
        "",
        f"# {traits.title} on {reducer.config.backbone_class}",
        "",
        f"A `{reducer.method_name}` token reducer of Skimbench around a stock `{reducer.config.backbone_class}` with "
        f"{reducer.backbone.num_layers} layers. In `eval()` it computes the tokens that it keeps and no others; what "
        f"happens to the others: {traits.dropped}.",
        "",
        "```python",
        "import methods",
        f"from transformers import {auto_class}",
        "",
        f'reducer = {auto_class}.from_pretrained("path or name of this model").eval()',
        "```",
        "",
        "## Measured",
        "",
        *(_measured(facts) or ["Nothing is known of this model: it was saved without measurements."]),
        "",
        "## Options",
        "",
        *_table(("Option", "Value"), [(f"`{name}`", f"`{value}`") for name, value in vars(reducer.options).items()]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_card(reducer: TokenReducer, folder: str | os.PathLike[str]) -> None:
    """Write the card as README.md in `folder`, unless a README of someone's own is there."""
    path = Path(folder) / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    path.write_text(model_card(reducer), encoding="utf-8")


def _metadata(reducer: TokenReducer, facts: Facts) -> str:
    """The YAML block that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = PIPELINES[ARCHITECTURES[reducer.backbone.head]]
    result: dict[str, Any] = {}
    if facts.task is not None and facts.metric is not None and facts.score is not None:
        evaluation = EvalResult(
            task_type=pipeline,
            dataset_type=facts.task,
            dataset_name=facts.task,
            dataset_split=facts.split,
            metric_type=facts.metric,
            metric_value=facts.score,
        )
        result = {"model_name": f"{reducer.traits.title} on {facts.task}", "eval_results": [evaluation]}
    source = str(reducer.backbone.config._name_or_path)
    found = source if ON_THE_HUB.fullmatch(source) and not Path(source).exists() else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=facts.base_model or found,
        metrics=None if facts.metric is None else [facts.metric],
        tags=["skimbench", "token-reduction", *reducer.method_name.split("+")],
        **result,
    )
    return data.to_yaml()


def _measured(facts: Facts) -> list[str]:
    rows: list[tuple[str, str]] = []
    if facts.task is not None:
        rows.append(("Task", facts.task + (f", {facts.split}" if facts.split else "")))
    if facts.score is not None:
        dense = "" if facts.dense_score is None else f" (dense: {facts.dense_score:.4g})"
        rows.append((facts.metric or "Score", f"{facts.score:.4g}{dense}"))
    if facts.keep_ratio is not None:
        rows.append(("Tokens computed, mean over layers", f"{100 * facts.keep_ratio:.1f} %"))
    padding = f", padding: {facts.padding}" if facts.padding else ""
    rows += _pair("FLOPs per text", facts.gflops, facts.dense_gflops, "GFLOPs", padding)
    timed = [f"batch of {facts.batch_size}"] if facts.batch_size is not None else []
    timed += [facts.device] if facts.device is not None else []
    rows += _pair("Time", facts.latency_ms, facts.dense_latency_ms, "ms", f", {', '.join(timed)}" if timed else "")
    rows += [("Record", f"`{facts.record}`")] if facts.record is not None else []
    rows += [("Command", f"`{facts.command}`")] if facts.command is not None else []
    return _table(("What", "Value"), rows) if rows else []


def _pair(what: str, own: float | None, dense: float | None, unit: str, setting: str) -> list[tuple[str, str]]:
    """A row with the reducer's value, the dense model's and the ratio, as far as they are known."""
    if own is None:
        return []
    text = f"{own:.4g} {unit}"
    if dense is not None:
        text += f" (dense: {dense:.4g} {unit}, {dense / own:.2f}x)" if own else f" (dense: {dense:.4g} {unit})"
    return [(what + setting, text)]


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    cells = [tuple(cell.replace("|", r"\|").replace("\n", " ") for cell in row) for row in rows]
    return [f"| {left} | {right} |" for left, right in (header, ("---", "---"), *cells)] if rows else ["None."]
