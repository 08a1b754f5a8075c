"""Other ways to run a dense model, for `benchmarks.latency --peers`: what to try before dropping tokens.

- `onnxruntime`: the model's graph in ONNX Runtime, float32, with the runtime's own fusions.
- `onnxruntime_int8`: the same, quantised dynamically: weights in 8 bits, activations as they come.
- `compile`: the stock model under `torch.compile`, for texts of any length.
- `distilbert`: a model of DistilBERT's shape, half as many layers of the same width, at random weights: what a smaller
  model takes.

All run padded to the batch, like the stock model.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import methods
from benchmarks.errors import UserError
from benchmarks.latency_subjects import Batch, Subject, Texts, passes, read_by
from methods.export import export_onnx
from methods.families import ARCHITECTURES, build_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TITLES = {
    "onnxruntime": "Dense, ONNX Runtime",
    "onnxruntime_int8": "Dense, ONNX Runtime, int8",
    "compile": "Dense, torch.compile",
    "distilbert": "DistilBERT's shape, random weights",
}
PEERS = tuple(TITLES)
PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # the extra `peers`


def check_peers(names: Sequence[str]) -> None:
    """Refuse names that are no peers.

    Raises:
        UserError: one of them is not.
    """
    for name in names:
        if name not in PEERS:
            raise UserError(f"--peers takes {', '.join(PEERS)}, or nothing for all; got '{name}'")


def absences(names: Sequence[str], device: str) -> dict[str, str]:
    """Those that cannot run here, each with the reason."""
    reasons = {name: _absence(name, device) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _absence(name: str, device: str) -> str:
    if name == "compile" and device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "no C++ compiler (g++, or the one that CXX names)"
    if name.startswith("onnxruntime"):
        if device != "cpu":
            return f"timed on the CPU only, and this run is on {device}"
        missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            return f"{', '.join(missing)} not installed (pip install -e '.[peers]')"
    return ""


def peer_subjects(names: Sequence[str], model: PreTrainedModel, texts: Texts) -> Iterator[Subject]:
    """The peers `names` of a stock model in eval(), ready to run: exported, quantised, compiled."""
    batches = [batch for _, batch in texts.batches()]
    lengths = torch.cat([torch.full((len(batch["input_ids"]),), batch["input_ids"].shape[1]) for batch in batches])

    def subject(name: str, run: Callable[[Any], object], given: Sequence[Any], of: PreTrainedModel) -> Subject:
        return Subject(
            key=f"peer-{name}",
            method="dense",
            title=TITLES[name],
            run=passes(run, given),
            macs=int(methods.create("dense", of).backbone.dense_macs(lengths).sum()),
            padding="batch",
            opaque=name != "distilbert",
        )

    sessions = _sessions([name for name in names if name.startswith("onnxruntime")], model)
    for name in names:
        if name in sessions:
            yield subject(name, *_in_session(sessions[name], batches), of=model)
        elif name == "compile":
            compiled = torch.compile(model, dynamic=True)
            given = [read_by(model, batch) for batch in batches]
            for batch in given:  # compiles, again where batches of one text are another case
                compiled(**batch)
            yield subject(name, _keywords(compiled), given, of=model)
        else:
            small = half_model(model)
            yield subject(name, _keywords(small), [read_by(small, batch) for batch in batches], of=small)


def half_model(model: PreTrainedModel) -> PreTrainedModel:
    """A DistilBERT with random weights, as wide as `model` and half as deep, with the same head."""
    import transformers

    backbone = methods.create("dense", model).backbone
    config = transformers.AutoConfig.for_model(
        "distilbert",
        vocab_size=backbone.config.vocab_size,
        max_position_embeddings=backbone.config.max_position_embeddings,
        dim=backbone.hidden_size,
        hidden_dim=backbone.intermediate_size,
        n_heads=backbone.num_heads,
        n_layers=max(1, backbone.num_layers // 2),
        num_labels=backbone.num_labels,
    )
    small = build_model(f"DistilBert{ARCHITECTURES[backbone.head]}", config).eval()
    return small.to(device=model.device, dtype=model.dtype)


def _keywords(model: Callable[..., object]) -> Callable[[Batch], object]:
    return lambda batch: model(**batch)


def _sessions(names: Sequence[str], model: PreTrainedModel) -> dict[str, Any]:
    """Sessions of ONNX Runtime on as many threads as torch uses."""
    if not names:
        return {}
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    single = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # its threads must not slow the next subject
    settings.log_severity_level = 3
    sessions = {}
    with tempfile.TemporaryDirectory() as folder, _silence(), torch.inference_mode(False):
        written, quantised = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        export_onnx(methods.create("dense", single).eval(), written)
        for name in names:
            path = quantised if name.endswith("int8") else written
            if path == quantised:
                quantize_dynamic(written, quantised, weight_type=QuantType.QInt8)
            sessions[name] = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return sessions


def _in_session(session: Any, batches: Sequence[Batch]) -> tuple[Callable[[Any], object], list[Any]]:
    """How a session runs a batch, and the batches as it takes them."""
    given = []
    for batch in batches:
        whole = {"token_type_ids": torch.zeros_like(batch["input_ids"])} | batch
        given.append({place.name: whole[place.name].long().numpy() for place in session.get_inputs()})
    return lambda batch: session.run(None, batch), given


@contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporter and the quantiser say of packages and steps that nothing here needs."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
