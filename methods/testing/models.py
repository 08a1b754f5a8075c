"""Tiny stock models and batches, built from configurations: no download, no GPU, seconds for a whole contract."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from methods.base import TokenReducer
from methods.families import ARCHITECTURES, TOKEN_HEADS

VOCABULARY = 60
LENGTHS = (9, 4, 1, 7, 12)  # of the standard batch
FAMILIES = {  # model type -> how its class names begin
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "albert": "Albert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # more backbones of the families: model type, configuration
    "modernbert_mean": ("modernbert", {"classifier_pooling": "mean"}),
}
HEADS = tuple(ARCHITECTURES)


def tiny_config(family: str, head: str = "classification", **changes: object) -> transformers.PreTrainedConfig:
    """Three layers, 32 wide, 4 heads; weights large enough for attention to differ from token to token.

    Args:
        family: of `FAMILIES`, or one of `VARIANTS`.
    """
    family, own = VARIANTS.get(family, (family, {}))
    changes = own | changes
    sizes: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
        "num_labels": 1 if head == "regression" else 2 if head == "span_qa" else 3,
    }
    if family == "distilbert":
        sizes |= {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    if family in ("albert", "electra"):
        sizes |= {"embedding_size": 16}
    if family == "modernbert":  # one layer that sees all, two that see four tokens to either side
        sizes |= {"local_attention": 8, "intermediate_size": 40, "pad_token_id": 0, "bos_token_id": 1}
        sizes |= {"cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    return transformers.AutoConfig.for_model(family, **(sizes | changes))


def tiny_model(family: str, head: str = "classification", seed: int = 0, **changes: object) -> Any:
    """A stock model in eval mode, float64 so that comparisons are tight."""
    torch.manual_seed(seed)
    config = tiny_config(family, head, **changes)
    return getattr(transformers, f"{FAMILIES[config.model_type]}{ARCHITECTURES[head]}")(config).double().eval()


def make_batch(
    lengths: tuple[int, ...] = LENGTHS, *, padded_to: int | None = None, pad_id: int = 0
) -> dict[str, Tensor]:
    """input_ids and attention_mask (batch, seq_len); sequence i always holds the same tokens, whatever the padding."""
    width = padded_to or max(lengths)
    ids = torch.full((len(lengths), width), pad_id)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 + length)
        ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids, "attention_mask": mask}


def labels_for(reducer: TokenReducer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels that fit the reducer's head."""
    rows = len(batch["input_ids"])
    if reducer.backbone.head == "span_qa":
        start = torch.zeros(rows, dtype=torch.long)
        return {"start_positions": start, "end_positions": batch["attention_mask"].sum(dim=1) - 1}
    if reducer.backbone.head == "token_classification":
        mask = batch["attention_mask"].bool()
        every_third = torch.arange(mask.shape[1]) % 3 == 0  # as where words have several pieces
        return {"labels": (batch["input_ids"] % 3).masked_fill(~mask | every_third, -100)}
    if reducer.backbone.head == "regression":
        return {"labels": torch.linspace(-1, 1, rows, dtype=torch.float64)}
    return {"labels": torch.arange(rows) % 3}


def logits_of(output: transformers.utils.ModelOutput, mask: Tensor | None = None) -> Tensor:
    """The logits, those of tokens (batch, seq_len, labels; start and end for spans) with 0 where `mask` has padding."""
    logits = output.get("logits")
    if logits is not None and logits.dim() == 2:
        return logits
    assert mask is not None
    if logits is None:
        logits = torch.stack((output["start_logits"], output["end_logits"]), dim=-1)
    return logits * mask.unsqueeze(-1)


__all__ = [
    "FAMILIES",
    "HEADS",
    "LENGTHS",
    "TOKEN_HEADS",
    "VARIANTS",
    "VOCABULARY",
    "labels_for",
    "logits_of",
    "make_batch",
    "tiny_config",
    "tiny_model",
]
