"""What the gate of `benchmarks.regression` times: each method at one schedule, and the primitives of ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import transformers
from torch import Tensor

import methods
from benchmarks.forced import Forced, geometric
from benchmarks.regression import Case
from methods.attention import packed_attention
from methods.families import build_model
from methods.packing import cumulative, pad, segment_rank, segment_sum, sequence_index, unpad

LENGTHS = (96, 17, 64, 40, 64, 8, 51, 8)
LAYERS, WIDTH, RATE = 4, 192, 0.7


def cases() -> list[Case]:
    """All cases, in the order of the table."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return [*_method_cases(), *_primitive_cases()]


def _model() -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(
        "bert",
        vocab_size=100,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_labels=2,
    )
    return build_model("BertForSequenceClassification", config).eval()


def _method_cases() -> Iterator[Case]:
    """Against the dense model in the same engine."""
    model = _model()
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    batch = {"input_ids": torch.randint(5, 100, mask.shape) * mask, "attention_mask": mask}
    places = [(i + 0.5) / len(LENGTHS) for i in range(len(LENGTHS))]
    dense = methods.create("dense", model).eval()
    yield Case(
        name="dense",
        run=lambda: dense(**batch),
        reference=lambda: model(**batch),
        counts=_counts(dense, dense(**batch).trace),
    )
    for name in methods.available():
        if name == "dense" or "single_text" in methods.lookup(name).traits.unsupported:
            continue
        torch.manual_seed(0)
        driver = Forced(methods.create(name, model).eval(), geometric(RATE, LAYERS))
        tables = driver.tables(mask, places)
        yield Case(
            name=name,
            run=_bound(driver, batch, tables),
            reference=lambda: dense(**batch),
            counts=_counts(driver.reducer, driver.run(batch, tables).trace),
        )


def _bound(driver: Forced, batch: dict[str, Tensor], tables: tuple[Tensor, Tensor]) -> Callable[[], object]:
    return lambda: driver.run(batch, tables)


def _counts(reducer: methods.TokenReducer, trace: methods.Trace | None) -> dict[str, object]:
    assert trace is not None
    return {
        "macs": int(reducer.macs(trace).sum()),
        "attention_tokens": trace.attention_tokens.sum(dim=0).tolist(),
        "ffn_tokens": trace.ffn_tokens.sum(dim=0).tolist(),
    }


def _primitive_cases() -> Iterator[Case]:
    """Against a matrix product."""
    lengths, total = torch.tensor(LENGTHS), sum(LENGTHS)
    index, hidden, left = sequence_index(lengths), torch.randn(total, WIDTH), torch.randn(WIDTH, WIDTH)
    values = torch.randn(total)
    query, key, value = torch.randn(3, total, 6, WIDTH // 6).unbind()
    mask = torch.arange(max(LENGTHS)) < lengths.unsqueeze(1)
    padded, listed = pad(hidden, mask), list(LENGTHS)
    runs: dict[str, Callable[[], object]] = {
        "packed_attention": lambda: packed_attention(query, key, value, listed, listed),
        "packed_attention_with_scores": lambda: packed_attention(query, key, value, listed, listed, scores=True),
        "segment_rank": lambda: segment_rank(values, lengths),
        "segment_sum": lambda: segment_sum(hidden, index, len(LENGTHS)),
        "sequence_index": lambda: sequence_index(lengths, total),
        "cumulative": lambda: cumulative(lengths),
        "pad": lambda: pad(hidden, mask),
        "unpad": lambda: unpad(padded, mask),
    }
    for name, run in runs.items():
        yield Case(name=name, run=run, reference=lambda: hidden @ left, counts={"tokens": total})
