"""What `benchmarks.latency` times: stock dense models, our engine keeping everything, and the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import methods
from benchmarks.data import LABELS, Feature, Padding, batch_indices, collate
from benchmarks.errors import UserError
from benchmarks.forced import Forced, geometric
from methods import TokenReducer
from methods.families import SPECS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Tensor]
STOCK, UNPADDED = "stock", "dense"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Real texts, tokenised, and how they are laid out.

    Attributes:
        sequence_length: of the `sequence` padding.
    """

    features: Sequence[Feature]
    pad_id: int
    batch_size: int
    sequence_length: int
    device: str

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text; (texts,) long."""
        return torch.tensor([len(feature["input_ids"]) for feature in self.features])

    def batches(self, padding: Padding = "batch", *, by_length: bool = False) -> list[tuple[list[int], Batch]]:
        """Indices of texts and their batch, padded to its longest text or to `sequence_length`."""
        indices = batch_indices(self.lengths.tolist(), self.batch_size, by_length=by_length)
        return [(chunk, self._batch([self.features[i] for i in chunk], padding)) for chunk in indices]

    def _batch(self, features: list[Feature], padding: Padding) -> Batch:
        length = self.sequence_length if padding == "sequence" else None
        whole = collate(features, self.pad_id, padding=padding, length=length)
        return {name: tensor.to(self.device) for name, tensor in whole.items() if name not in LABELS}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that is timed: one pass over all texts.

    Attributes:
        key: unique in its cell. method: its registered name, "dense" for all dense ones. title: as tables print it.
        schedule: as asked for ("4x", "1,0.8,0.5"), "trained", or "" where there is none.
        padding: that it computes: "none", "batch", "sorted" (batches of similar length) or "sequence".
        run: the pass. macs: multiply-adds of one, counted as `benchmarks.flops` says.
        shares: of tokens that the schedule computes per layer; empty for none.
        opaque: it runs outside of torch, so that neither its products nor its memory can be seen.
    """

    key: str
    method: str
    title: str
    run: Callable[[], object]
    macs: int
    schedule: str = ""
    padding: str = "none"
    shares: tuple[float, ...] = field(default=())
    opaque: bool = False


def stock_subjects(model: PreTrainedModel, texts: Texts, paddings: Sequence[str]) -> Iterator[Subject]:
    """The stock model on padded batches, in the order of the texts and sorted by length."""
    layouts = [("batch", texts.batches())]
    if len(texts.features) > texts.batch_size > 1:
        layouts.append(("sorted", texts.batches(by_length=True)))
    if "sequence" in paddings:
        layouts.append(("sequence", texts.batches("sequence")))
    backbone = methods.create("dense", model).backbone
    for padding, batches in layouts:
        lengths = torch.cat([torch.full((len(rows),), batch["input_ids"].shape[1]) for rows, batch in batches])
        yield Subject(
            key=f"{STOCK}-{padding}",
            method="dense",
            title="Dense, stock" + (", sorted by length" if padding == "sorted" else ""),
            run=passes(lambda batch: model(**batch), [read_by(model, batch) for _, batch in batches]),
            macs=int(backbone.dense_macs(lengths).sum()),
            padding=padding,
        )


def unpadded_subject(model: PreTrainedModel, texts: Texts) -> Subject:
    """Our engine, keeping everything."""
    reducer = methods.create("dense", model).eval()
    macs = int(reducer.backbone.dense_macs(texts.lengths).sum())
    run = passes(lambda batch: reducer(**batch), [batch for _, batch in texts.batches()])
    return Subject(key=UNPADDED, method="dense", title="Dense, unpadded", run=run, macs=macs)


def forced_subject(name: str, model: PreTrainedModel, texts: Texts, schedule: str) -> Subject:
    """A method on `model`, forced to a schedule; see `benchmarks.forced`.

    Args:
        schedule: a FLOPs speed-up ("4x"), or shares of tokens, one per layer, joined by commas.
    """
    torch.manual_seed(0)
    reducer = methods.create(name, model).eval()
    forced = Forced(reducer, geometric(0.9, reducer.backbone.num_layers))
    batches = texts.batches()
    first = batches[0][1]
    length = int(first["attention_mask"][0].sum())
    forced.watch({key: value[:1, :length] for key, value in first.items()})
    speedup = speedup_of(schedule)
    shares = forced.schedule_for(speedup, texts.lengths) if speedup else tuple(map(float, schedule.split(",")))
    forced.follow(shares)
    count = len(texts.features)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    tables = [
        forced.tables(batch["attention_mask"], [(order[i] + 0.5) / count for i in chunk]) for chunk, batch in batches
    ]
    work = list(zip([batch for _, batch in batches], tables, strict=True))
    run = passes(lambda one: forced.run(*one), work)
    return _reduced(reducer, run, schedule=schedule, shares=shares)


def trained_subject(key: str, reducer: TokenReducer, texts: Texts) -> Subject:
    """A trained reducer as it is."""
    run = passes(lambda batch: reducer(**batch), [batch for _, batch in texts.batches()])
    return replace(_reduced(reducer, run, schedule="trained"), key=key)


def _reduced(
    reducer: TokenReducer,
    run: Callable[[], list[Any]],
    *,
    schedule: str,
    shares: tuple[float, ...] = (),
) -> Subject:
    with torch.inference_mode():
        macs = sum(int(reducer.macs(output.trace).sum()) for output in run())
    return Subject(
        key=f"{reducer.method_name}@{schedule}",
        method=reducer.method_name,
        title=reducer.traits.title,
        run=run,
        macs=macs,
        schedule=schedule,
        shares=tuple(round(share, 4) for share in shares),
    )


def speedup_of(schedule: str) -> float | None:
    """The speed-up that a schedule asks for, None where it lists shares.

    Raises:
        UserError: it is neither.
    """
    try:
        if schedule.endswith("x"):
            value = float(schedule[:-1])
            if value > 1:
                return value
        elif "," in schedule and all(0 < float(share) <= 1 for share in schedule.split(",")):
            return None
    except ValueError:
        pass
    raise UserError(
        f"--schedule takes speed-ups such as 4x, or one share in (0, 1] per layer such as 1,0.8,0.5; got '{schedule}'"
    )


def read_by(model: PreTrainedModel, batch: Batch) -> Batch:
    """What of a batch the stock `model` takes."""
    unread = () if SPECS[model.config.model_type].token_types else ("token_type_ids",)
    return {name: tensor for name, tensor in batch.items() if name not in unread}


def passes(run: Callable[[Any], Any], batches: Sequence[Any]) -> Callable[[], list[Any]]:
    """One pass over all batches."""
    return lambda: [run(batch) for batch in batches]
