"""Reducers as graphs: ONNX, and programs of torch.export.

A graph is exported in masked mode: every token is computed and dropped ones are hidden, so its predictions are those of
the packed model while it saves nothing. How many tokens survive depends on the text, and graphs of fixed operators do
not lay ragged batches out; really removing tokens needs the library. `torch.compile` takes a packed reducer and gives
its logits, but in pieces: the graph breaks at every removal, whose lengths the host has to know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import TokenReducer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class MaskedModel(nn.Module):
    """A reducer in masked mode as a graph sees it: tensors in, logits out."""

    def __init__(self, reducer: TokenReducer) -> None:
        super().__init__()
        self.reducer = reducer

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """The logits, or start and end logits; every text begins with a real token and is padded on the right."""
        with self.reducer.mode("masked"):
            output = self.reducer(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        if output.logits is not None:
            return (output.logits,)
        return output.start_logits, output.end_logits

    @property
    def names(self) -> list[str]:
        """Of what comes out."""
        return ["start_logits", "end_logits"] if self.reducer.backbone.head == "span_qa" else ["logits"]


def export_program(reducer: TokenReducer, *, mode: str = "masked") -> torch.export.ExportedProgram:
    """The reducer as a program of torch.export, for any number and length of texts that the model takes.

    Call its `module()` with input_ids, attention_mask and token_type_ids, (batch, seq_len) long each.

    Raises:
        ValueError: packed mode, a reducer in train(), or decisions that cannot be written down as a graph.
    """
    if mode != "masked":
        raise ValueError(
            f"{mode} mode cannot be exported: how many tokens survive depends on the text, and the host has to read it "
            "before it starts the next layer; export in masked mode, or serve the reducer from Python"
        )
    if reducer.training:
        raise ValueError("call eval() before exporting: a graph has no dropout and draws nothing")
    longest = reducer.backbone.max_length
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=longest)
    width = min(longest, 7)
    ids = torch.ones(3, width, dtype=torch.long, device=reducer.device)
    mask = (
        torch.arange(width, device=ids.device) < torch.tensor([[width], [width - 2], [2]], device=ids.device)
    ).long()
    example: Mapping[str, Tensor] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    try:
        with torch.no_grad():
            return torch.export.export(
                MaskedModel(reducer),
                tuple(example[name] for name in INPUTS),
                dynamic_shapes={name: {0: batch, 1: length} for name in INPUTS},
                strict=False,
            )
    except Exception as error:  # torch.export raises many kinds, some of its own private ones
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{reducer.method_name} cannot be exported as a graph: {reason}") from error


def export_onnx(reducer: TokenReducer, path: str | os.PathLike[str], *, mode: str = "masked") -> None:
    """Write the reducer, in masked mode, as an ONNX file for any number and length of texts.

    Inputs are input_ids, attention_mask and token_type_ids, int64 (batch, seq_len); outputs `logits`, or `start_logits`
    and `end_logits`.

    Raises:
        ImportError: the extra `export` is not installed. ValueError: as `export_program`, or no ONNX operator fits.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install the extra: pip install -e '.[export]'") from error
    program = export_program(reducer, mode=mode)
    names: dict[str, Any] = {"input_names": list(INPUTS), "output_names": MaskedModel(reducer).names}
    try:
        written = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True, **names)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{reducer.method_name} cannot be written as ONNX: {reason}") from error
    assert written is not None
    written.save(path)
