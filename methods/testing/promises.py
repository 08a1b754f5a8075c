"""The promises of the interface, one function each: it returns where a method keeps the promise, else raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from methods.base import TokenReducer
from methods.entry import create, load
from methods.testing.models import LENGTHS, TOKEN_HEADS, labels_for, logits_of, make_batch, tiny_model

TRACED = ("attention_tokens", "attention_pairs", "ffn_tokens", "exit_layers", "exited", "overhead_macs", "keep_masks")
TOLERANCE = 1e-9  # of float64


class BrokenPromise(AssertionError):
    """A method does not do what every method does; the message begins with the promise."""

    def __init__(self, promise: str, what: str) -> None:
        self.promise = promise
        super().__init__(f"broken promise '{promise}': {what}")


@dataclass(frozen=True)
class Case:
    """How to build a method on a tiny three-layer model.

    Attributes:
        options: with which it really reduces on the tests' batches.
        neutral: with which it keeps everything; the logits must then be the dense model's.
        rotary: options that it needs beside either of these where positions turn queries and keys (ModernBERT).
        undecided: brings trained parts into a state that decides differently from token to token.
        unnested: tokens may come back, so kept tokens need not shrink.
        completes: adds to a batch of input_ids and attention_mask what the method reads beside them.
        computes_all: why every token is computed whatever the options; something else must then be spared. Empty for
            methods that remove tokens.
    """

    options: dict[str, Any] = field(default_factory=dict)
    neutral: dict[str, Any] = field(default_factory=dict)
    rotary: dict[str, Any] = field(default_factory=dict)
    undecided: Callable[[Any], None] = lambda reducer: None
    unnested: bool = False
    completes: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda batch: batch
    computes_all: str = ""


@dataclass(frozen=True)
class Subject:
    """A method on one backbone family with one head."""

    name: str
    family: str
    head: str
    case: Case

    def options(self, *, neutral: bool = False) -> dict[str, Any]:
        """The case's reducing or neutral options, as the backbone needs them."""
        chosen = self.case.neutral if neutral else self.case.options
        return chosen | (self.case.rotary if self.family.startswith("modernbert") else {})

    def reducer(self, *, neutral: bool = False, model: Any = None) -> TokenReducer:
        """The method on a tiny model, with its case's reducing or neutral options, in eval mode, float64."""
        model = tiny_model(self.family, self.head) if model is None else model
        torch.manual_seed(1)
        reducer: Any = create(self.name, model, **self.options(neutral=neutral))
        reducer = reducer.double().eval()
        if not neutral:
            self.case.undecided(reducer)
        return reducer

    def batch(self, lengths: tuple[int, ...] = LENGTHS, *, padded_to: int | None = None) -> dict[str, Tensor]:
        """The standard batch, with the model's own padding token and what the method reads beside it."""
        pad = tiny_model(self.family, self.head).config.pad_token_id or 0
        return self.case.completes(make_batch(lengths, padded_to=padded_to, pad_id=pad))

    @property
    def reads_tokens(self) -> bool:
        """Whether the head reads every token."""
        return self.head in TOKEN_HEADS


def run(reducer: TokenReducer, batch: dict[str, Tensor], mode: str | None = None) -> Any:
    """One pass without gradients; in the reducer's own mode, or in `mode`."""
    with torch.no_grad():
        if mode is None:
            return reducer(**batch)
        with reducer.mode(mode):
            return reducer(**batch)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _apart(a: Tensor, b: Tensor) -> str:
    return f"logits differ by up to {float((a - b).abs().max()):.3g}" if a.shape == b.shape else "shapes differ"


def weights_are_the_models(subject: Subject) -> None:
    """`create` wraps the model that it was given and changes none of its weights."""
    model = tiny_model(subject.family, subject.head)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reducer = create(subject.name, model, **subject.options())
    if reducer.model is not model or any(not torch.equal(before[n], w) for n, w in model.state_dict().items()):
        raise BrokenPromise("weights are the model's", "create() has replaced or changed the model's own weights")


def padding_changes_nothing(subject: Subject) -> None:
    """More padding changes neither logits nor kept tokens, in either mode, and pads are never kept."""
    reducer = subject.reducer()
    narrow, wide = subject.batch(), subject.batch(padded_to=20)
    mask = narrow["attention_mask"]
    for mode in ("packed", "masked"):
        a, b = run(reducer, narrow, mode), run(reducer, wide, mode)
        if b.trace.keep_masks[..., mask.shape[1] :].any() or (a.trace.keep_masks & ~mask.bool().unsqueeze(1)).any():
            raise BrokenPromise("padding changes nothing", f"in {mode} mode padding is computed as if it were tokens")
        logits = logits_of(b, wide["attention_mask"])
        logits = logits[:, : mask.shape[1]] if subject.reads_tokens else logits
        if not _same(logits_of(a, mask), logits):
            gap = _apart(logits_of(a, mask), logits)
            raise BrokenPromise("padding changes nothing", f"in {mode} mode more padding changes the result: {gap}")
        if not torch.equal(a.trace.keep_masks, b.trace.keep_masks[..., : mask.shape[1]]):
            raise BrokenPromise("padding changes nothing", f"in {mode} mode more padding changes which tokens stay")


def batch_mates_change_nothing(subject: Subject) -> None:
    """A text gives alone what it gives in a batch: logits, kept tokens and cost."""
    reducer, batch = subject.reducer(), subject.batch()
    together = run(reducer, batch)
    for row, length in enumerate(LENGTHS):
        single = subject.batch((length,))
        alone = run(reducer, single)
        joint = logits_of(together, batch["attention_mask"])[row]
        joint = joint[:length] if subject.reads_tokens else joint
        own, who = logits_of(alone, single["attention_mask"])[0], f"a text of {length} tokens"
        if not _same(own, joint):
            raise BrokenPromise("batch mates change nothing", f"{who}, alone and in a batch: {_apart(own, joint)}")
        if not torch.equal(alone.trace.keep_masks[0], together.trace.keep_masks[row][:, :length]):
            raise BrokenPromise("batch mates change nothing", f"{who} keeps other tokens in a batch than alone")
        if not torch.equal(reducer.macs(alone.trace)[0], reducer.macs(together.trace)[row]):
            raise BrokenPromise("batch mates change nothing", f"{who} costs other MACs in a batch than alone")


def first_token_stays(subject: Subject) -> None:
    """[CLS], which the head may read, is computed by every layer that runs; kept tokens only shrink."""
    trace = run(subject.reducer(), subject.batch()).trace
    lost = (trace.ffn_tokens > 0) != trace.keep_masks[..., 0]
    if lost.any():
        row, layer = lost.nonzero()[0].tolist()
        raise BrokenPromise(
            "[CLS] stays", f"layer {layer} of a text with {LENGTHS[row]} tokens no longer computes its first token"
        )
    if not torch.equal(trace.keep_masks.sum(dim=-1), trace.ffn_tokens):
        raise BrokenPromise("the trace is consistent", "keep_masks and ffn_tokens count other tokens")
    if not subject.case.unnested and (trace.keep_masks[:, 1:] & ~trace.keep_masks[:, :-1]).any():
        raise BrokenPromise("kept tokens only shrink", "a token that a layer dropped is computed by a later one")


def tokens_keep_their_order(subject: Subject) -> None:
    """Heads over tokens read each token at its own place.

    Where every layer adds nothing to a token, its logits tell which token it was.
    """
    if subject.family != "bert" or not subject.reads_tokens:
        return
    model = tiny_model("bert", subject.head)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for linear in (layer.attention.output.dense, layer.output.dense):
                linear.weight.zero_()
                linear.bias.zero_()
    batch = subject.batch()
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = logits_of(model(**batch), mask)
    reducer = subject.reducer(model=model)
    for mode in ("packed", "masked"):
        found = logits_of(run(reducer, batch, mode), mask)
        near = partial(torch.allclose, rtol=1e-3, atol=1e-3)
        ordered = (logits.flatten(1).sort(dim=1).values for logits in (found, expected))
        if not near(found, expected) and near(*ordered):
            raise BrokenPromise("tokens keep their order", f"in {mode} mode the head reads tokens at other places")


def neutral_equals_dense(subject: Subject) -> None:
    """A method told to keep everything gives the dense model's logits."""
    reducer, batch = subject.reducer(neutral=True), subject.batch()
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = logits_of(tiny_model(subject.family, subject.head)(**batch), mask)
    for mode in ("masked", "packed"):
        output = run(reducer, batch, mode)
        found = logits_of(output, mask)
        if not _same(found, expected):
            raise BrokenPromise(
                "neutral = dense", f"in {mode} mode, told to keep everything: {_apart(found, expected)}"
            )
        if not torch.equal(output.trace.ffn_tokens, mask.sum(dim=1, keepdim=True).expand_as(output.trace.ffn_tokens)):
            raise BrokenPromise("neutral = dense", f"in {mode} mode, told to keep everything, tokens are dropped")


def packed_equals_masked(subject: Subject) -> None:
    """Tokens really removed give what masks give: the same logits, tokens and costs."""
    reducer, batch = subject.reducer(), subject.batch()
    mask = batch["attention_mask"]
    packed, masked = (run(reducer, batch, mode) for mode in ("packed", "masked"))
    for name in TRACED:
        if not torch.equal(getattr(packed.trace, name), getattr(masked.trace, name)):
            raise BrokenPromise("packed = masked", f"the two modes' traces differ in {name}")
    a, b = logits_of(packed, mask), logits_of(masked, mask)
    if not _same(a, b):
        raise BrokenPromise("packed = masked", f"the two modes' {_apart(a, b)}")


def tokens_are_removed(subject: Subject) -> None:
    """In eval(), each layer's feed-forward sees the surviving tokens and nothing else."""
    reducer = subject.reducer()
    if reducer.run_mode != "packed":
        raise BrokenPromise(
            "tokens are removed", f"in eval() the method runs {reducer.run_mode}, so nothing is removed"
        )
    rows: list[int] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: rows.append(args[0].numel() // args[0].shape[-1]))
        for module in _entries(reducer)
    ]
    trace = run(reducer, subject.batch(tuple(1 + 5 * i % 13 for i in range(32)))).trace
    for hook in hooks:
        hook.remove()
    survivors = [count for count in trace.ffn_tokens.sum(dim=0).tolist() if count]
    if rows != survivors:
        raise BrokenPromise(
            "tokens are removed", f"feed-forward layers computed {rows} rows where {survivors} tokens had survived"
        )


def _entries(reducer: TokenReducer) -> list[nn.Module]:
    """The linear layers that feed-forward blocks begin with, each once."""
    wide = reducer.backbone.intermediate_size
    layers = {id(layer): layer for layer in reducer.backbone.layers}.values()
    return [m for x in layers for m in x.modules() if isinstance(m, nn.Linear) and m.out_features in (wide, 2 * wide)]


def it_reduces(subject: Subject) -> None:
    """The case's options reach a reduction that changes cost and logits; else the other promises say nothing."""
    if subject.name == "dense":
        return
    reducer, batch = subject.reducer(), subject.batch()
    output, mask = run(reducer, batch), batch["attention_mask"]
    everything = mask.sum() * reducer.backbone.num_layers
    computed = output.trace.ffn_tokens.sum()
    if not (0 < computed == everything if subject.case.computes_all else 0 < computed < everything):
        raise BrokenPromise("it reduces", f"{int(computed)} of {int(everything)} tokens were computed")
    own = (reducer.macs(output.trace) - output.trace.overhead_macs).sum()
    if own >= reducer.backbone.dense_macs(mask.sum(dim=1)).sum():
        raise BrokenPromise("it reduces", "it costs no fewer MACs than the dense model")
    dense = Subject("dense", subject.family, subject.head, Case()).reducer()
    if torch.allclose(logits_of(output, mask), logits_of(run(dense, batch), mask), rtol=1e-3, atol=1e-3):
        raise BrokenPromise("it reduces", "its logits are the dense model's, although tokens were dropped")


def executed_macs(reducer: TokenReducer, batch: dict[str, Tensor]) -> tuple[int, Any]:
    """MACs that torch counts in a packed pass, and the pass's trace."""

    def sdpa(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        output = run(reducer, batch)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2, output.trace


def macs_are_those_executed(subject: Subject) -> None:
    """The cost by formula is what torch counts in the matrix products executed."""
    reducer = subject.reducer()
    executed, trace = executed_macs(reducer, subject.batch())
    counted = int(reducer.macs(trace).sum())
    if counted != executed:
        raise BrokenPromise("MACs are those executed", f"macs() says {counted:,}, torch counts {executed:,}")


def gradients_reach_every_part(subject: Subject) -> None:
    """In train(), every parameter gets a finite gradient, and the loss is the sum of its terms."""
    reducer = subject.reducer().train()
    batch = subject.batch((9, 8, 7, 10, 12))
    torch.manual_seed(3)
    output = reducer(**batch, **labels_for(reducer, batch))
    terms = torch.stack([term.float() for term in output.losses.values()]).sum()
    if not output.loss.isfinite() or not torch.allclose(output.loss, terms, rtol=1e-5):
        raise BrokenPromise("the loss is the sum of its terms", f"{output.loss} is not {terms}")
    output.loss.backward()
    unread = ("pooler",) if subject.reads_tokens else ()
    without = [
        name
        for name, parameter in reducer.named_parameters()
        if (parameter.grad is None or not parameter.grad.isfinite().all()) and not any(part in name for part in unread)
    ]
    if without:
        raise BrokenPromise("gradients reach every part", f"none, or none that is finite, reaches {', '.join(without)}")


def saving_loses_nothing(subject: Subject) -> None:
    """A saved reducer comes back as the same class with the same options, weights and logits."""
    reducer, batch = subject.reducer(), subject.batch()
    with TemporaryDirectory() as folder:
        reducer.save_pretrained(folder)
        loaded = load(folder).eval()
        weights, read = reducer.state_dict(), loaded.state_dict()
        if type(loaded) is not type(reducer) or loaded.options != reducer.options:
            raise BrokenPromise("saving loses nothing", "it comes back as another class or with other options")
        if weights.keys() != read.keys() or not all(torch.equal(weights[name], read[name]) for name in weights):
            raise BrokenPromise("saving loses nothing", "it comes back with other weights")
        a, b = (logits_of(run(x, batch), batch["attention_mask"]) for x in (reducer, loaded))
    if not torch.equal(a, b):
        raise BrokenPromise("saving loses nothing", f"it comes back and {_apart(a, b)}")


def evaluation_is_deterministic(subject: Subject) -> None:
    """The same batch gives the same logits twice."""
    reducer, batch = subject.reducer(), subject.batch()
    a, b = (logits_of(run(reducer, batch), batch["attention_mask"]) for _ in range(2))
    if not torch.equal(a, b):
        raise BrokenPromise("evaluation is deterministic", f"two passes over one batch: {_apart(a, b)}")


# In the order in which a fault is named best: what a later promise would also notice is found by the one that names it.
PROMISES: dict[str, Callable[[Subject], None]] = {
    "weights are the model's": weights_are_the_models,
    "evaluation is deterministic": evaluation_is_deterministic,
    "padding changes nothing": padding_changes_nothing,
    "batch mates change nothing": batch_mates_change_nothing,
    "[CLS] stays": first_token_stays,
    "tokens are removed": tokens_are_removed,
    "tokens keep their order": tokens_keep_their_order,
    "neutral = dense": neutral_equals_dense,
    "packed = masked": packed_equals_masked,
    "it reduces": it_reduces,
    "MACs are those executed": macs_are_those_executed,
    "gradients reach every part": gradients_reach_every_part,
    "saving loses nothing": saving_loses_nothing,
}
