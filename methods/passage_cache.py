"""States of passages after the lower layers, computed before anyone asks: an offline cache for `methods.deformer`.

An entry belongs to one passage window under one set of weights: its key is a digest of the weights that made it, the
number of layers, and the window's token ids, token types and positions. Other weights, layers or windows never find it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from methods.backbone import Backbone
from methods.encoder import encode
from methods.pairs import only
from methods.state import Decision, Inputs, StateOptions, TokenState
from methods.trace import Trace

FORMAT = "skimbench passage cache 1"


class PassageCache:
    """Passage states (tokens, hidden_size) by key, on the CPU.

    Args:
        dtype: what states are stored as (torch.float16 halves the size of float32, at its precision); None keeps them
            as they were computed.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self._states: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __repr__(self) -> str:
        return f"PassageCache({len(self)} passages, {self.tokens} tokens, {self.nbytes / 1e6:.2f} MB)"

    @property
    def tokens(self) -> int:
        """Tokens of all passages."""
        return sum(len(states) for states in self._states.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the states take."""
        return sum(states.nbytes for states in self._states.values())

    def get(self, key: str) -> Tensor | None:
        """The states of a passage, or None."""
        return self._states.get(key)

    def put(self, key: str, states: Tensor) -> None:
        """Store the states (tokens, hidden_size) of a passage."""
        self._states[key] = states.detach().to("cpu", self.dtype, copy=True)

    def find(self, tokens: Tensor, keys: list[str | None]) -> list[tuple[Tensor, Tensor]]:
        """What is known of a batch: nothing, or one pair of the known `tokens` and their states.

        Args:
            tokens: (batch, seq_len) bool, the passage of each row. keys: of the rows, see `passage_keys`.
        Returns:
            [] or [(those of the tokens whose row's key is here, their states (total_tokens, hidden_size) row by row)].
        """
        found = [None if key is None else self.get(key) for key in keys]
        states = [one for one in found if one is not None]
        if not states:
            return []
        hits = torch.tensor([one is not None for one in found], device=tokens.device)
        return [(tokens & hits.unsqueeze(1), torch.cat(states))]

    def save(self, path: str | Path) -> None:
        """Write all entries to one safetensors file."""
        save_file(self._states, path, metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> PassageCache:
        """Read what `save` wrote, in the precision in which it was stored.

        Raises:
            ValueError: the file is not a passage cache.
        """
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError(f"{path} is not a passage cache; write one with PassageCache.save")
            cache = cls()
            cache._states = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cache


def passage_keys(weights: str, layers: int, inputs: Inputs, tokens: Tensor) -> list[str | None]:
    """Key of the passage that the chosen `tokens` (batch, seq_len) bool of each row make up; None where there are none.

    Args:
        weights: `Fingerprint` of what computes the states. layers: how many layers that is.
    """
    types = inputs.token_type_ids
    tables = (inputs.input_ids, inputs.position_ids, torch.zeros_like(inputs.input_ids) if types is None else types)
    ids = torch.stack(tables, dim=2).to("cpu", torch.int64)
    keys: list[str | None] = []
    for row, chosen in zip(ids, tokens.cpu(), strict=True):
        content = row[chosen].numpy().tobytes()
        keys.append(hashlib.sha256(f"{weights} {layers} ".encode() + content).hexdigest() if content else None)
    return keys


def lower_parts(backbone: Backbone, layers: int) -> list[nn.Module]:
    """Embeddings and the first `layers` layers, each module once."""
    project = backbone.spec.project_embeddings(backbone.encoder)
    parts = (backbone.encoder.embeddings, project, *backbone.layers[:layers])
    return list(dict.fromkeys(part for part in parts if part is not None))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; torch does not count it for one that was made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def adapters_of(parts: list[nn.Module]) -> list[str]:
    """Which of their adapters the modules inside use, as PEFT's tell; one line each."""
    modules = (module for part in parts for module in part.modules() if hasattr(module, "active_adapters"))
    return [f"{module.active_adapters} {getattr(module, 'disable_adapters', False)}" for module in modules]


class Fingerprint:
    """Digest of weights and adapters in use, computed again only when one is replaced, changed in place or switched.

    Changes that torch does not count (by fused optimizers, through `.data`, of weights made in inference mode) are not
    seen: take a new one after them.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, int]] = []  # weights, kept so that no other takes their place, and versions
        self._adapters: list[str] = []
        self._value = ""

    def of(self, backbone: Backbone, layers: int) -> str:
        """Digest of the weights, and the adapters in use, of the embeddings and the first `layers` layers."""
        parts = lower_parts(backbone, layers)
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        adapters = adapters_of(parts)
        same = len(tensors) == len(self._seen) and adapters == self._adapters
        if not same or not all(map(self._same, tensors, self._seen)):
            self._seen, self._adapters = [(tensor.detach(), version_of(tensor)) for tensor in tensors], adapters
            digest = hashlib.sha256("\n".join(adapters).encode())
            for tensor, _ in self._seen:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._value = digest.hexdigest()
        return self._value

    @staticmethod
    def _same(tensor: Tensor, seen: tuple[Tensor, int]) -> bool:
        known, version = seen
        return tensor.data_ptr() == known.data_ptr() and tensor.dtype == known.dtype and version_of(tensor) == version


def fill(
    cache: PassageCache, backbone: Backbone, layers: int, inputs: Inputs, tokens: Tensor, keys: list[str | None]
) -> Trace | None:
    """Compute, each once, and store the passages (`tokens` of each row, its key) that the cache lacks.

    Returns:
        What the first `layers` layers computed; None if there was nothing to do.
    """
    rows = {key: row for row, key in enumerate(keys) if key is not None and key not in cache}
    if not rows:
        return None
    hooks = _LowerLayers(backbone, layers)
    passages = only(inputs, torch.tensor(list(rows.values()), device=tokens.device), tokens)
    trace = encode(hooks, passages, "packed", StateOptions()).trace
    assert hooks.output is not None
    for key, states in zip(rows, hooks.output.split(trace.input_lengths.tolist()), strict=True):
        cache.put(key, states)
    return trace


def speedup_at_reuse(full: float, online: float, offline: float, reuse: float) -> float:
    """Speed-up where each cached text serves `reuse` [r] > 0 inputs: full / (online + offline / r)."""
    return full / (online + offline / reuse)


class _LowerLayers:
    """Hooks for the encoder that stop after the first `layers` layers and note what they gave."""

    def __init__(self, backbone: Backbone, layers: int) -> None:
        self.backbone, self.layers = backbone, layers
        self.output: Tensor | None = None  # (total_tokens, hidden_size), texts end to end

    def before_layer(self, state: TokenState) -> Decision | None:
        return None

    def after_attention(self, state: TokenState) -> Decision | None:
        return None

    def after_layer(self, state: TokenState) -> Decision | None:
        """After the last of the layers, every text leaves, with no logits worth the name."""
        if state.layer < self.layers - 1:
            return None
        self.output = state.hidden
        everyone = torch.ones_like(state.sequences, dtype=torch.bool)
        return Decision(exit=everyone, logits=state.hidden.new_zeros(len(everyone), 1))

    def needs_scores(self, layer: int) -> bool:
        return False
