"""Rows, then tokenised rows, then batches.

`load_rows` gives the checked rows of one split, `tokenize` one feature per row, `batches` the features of each batch in
an order that a seed decides, `collate` the tensors under one of the three padding settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.embedded import skimbench_home
from benchmarks.errors import UserError
from benchmarks.row_checks import check_answers, check_numbers, check_tags, check_texts, with_class_ids
from benchmarks.row_files import read_rows, split_files
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from benchmarks.squad import Window
    from benchmarks.tags import Words

logger = logging.getLogger(__name__)

Padding = Literal["none", "batch", "sequence"]
LABELS = ("labels", "start_positions", "end_positions")  # entries of a batch that inference does without
TEST_SHARE, DIVISION_SEED = 0.25, 42  # of a divided task: the same for every run
_CHUNK = 1_000  # rows tokenised at a time, which bounds the memory for offsets
_POOL = 50  # batches in a pool of length-grouped shuffling


@dataclass(frozen=True)
class DataSource:
    """Where rows come from."""

    kind: Literal["data_dir", "hub", "embedded"]
    path: Path | None = None  # data_dir: the folder; embedded: a home other than skimbench_home(); hub: unused

    def __post_init__(self) -> None:
        if self.kind == "data_dir" and self.path is None:
            raise ValueError("rows of kind 'data_dir' need the path of the folder")


class Feature(TypedDict):
    """One tokenised example of n tokens: a text or pair, or one window of a long context with its question."""

    index: int  # position in the rows it was made from; windows of one context share it
    input_ids: list[int]  # n token ids, special tokens included
    token_type_ids: NotRequired[list[int]]  # n, only if the tokenizer gives them
    label: NotRequired[int | float]  # of a text or pair
    truncated: bool  # True if tokens were cut off to fit
    relevant: NotRequired[list[bool]]  # n, True where the token overlaps a span that decides the label
    window: NotRequired[Window]  # of a context: see `benchmarks.squad`
    words: NotRequired[Words]  # of a text whose words have labels: see `benchmarks.tags`


def load_rows(
    task: Task, split: str, source: DataSource, *, max_samples: int | None = None, seed: int = 42
) -> datasets.Dataset:
    """The rows of one split, checked, with class ids in the task's order.

    A data folder holds `<task>/<split>.*` or `glue/<task>/<split>.*` (see `row_files`). Both splits of a divided task
    are made from the one that there is. With `max_samples`, a random subset in random order: where a set is sorted by
    class, all classes come up. A smaller subset of the same seed is contained in a larger one.

    Raises:
        UserError: rows cannot be had, or a column, text or label is not usable; it names file, row (from 1) and value.
    """
    if max_samples is not None and max_samples < 1:
        raise UserError(f"the number of samples must be 1 or more, got {max_samples}")
    rows, origin = _read(task, task.divided or split, source)
    needed = (*task.text_columns, task.label_column, *((task.group_column,) if task.divided else ()))
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise UserError(f"{origin} lacks the column {missing[0]!r}; it has: {', '.join(rows.column_names)}")
    if task.kind == "token_classification":
        check_tags(rows, task, origin)
    else:
        check_texts(rows, task, origin, official=source.kind == "hub")
    if task.kind == "classification":
        rows = with_class_ids(rows, task, origin)
    elif task.kind == "regression":
        check_numbers(rows, task, origin)
    elif task.kind == "span_qa":
        check_answers(rows, task, origin, official=source.kind == "hub")
    if task.divided:
        rows = split_rows(rows, TEST_SHARE, DIVISION_SEED, task.group_column)[split != task.train_split]
    return rows if max_samples is None else random_rows(rows, max_samples, seed)


def random_rows(rows: datasets.Dataset, count: int, seed: int = 42) -> datasets.Dataset:
    """`count` random rows in random order, contained in any larger number of them; all, in order, if not that many."""
    if count >= len(rows):
        return rows
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:count])


def _read(task: Task, split: str, source: DataSource) -> tuple[datasets.Dataset, str]:
    """Unchecked rows and what to call their origin in a message."""
    if source.kind == "hub":
        return _read_hub(task, split)
    home = source.path or skimbench_home()
    embedded = source.kind == "embedded"
    folders = [home / "data" / task.name] if embedded else [home / task.name, home / "glue" / task.name]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        hint = "`./reproduce.sh setup` prepares the embedded data" if embedded else "check --data-dir"
        raise UserError(f"no rows of {task.name}: there is no folder {' or '.join(map(str, folders))}; {hint}")
    files = split_files(folder, split)
    return read_rows(files), str(files[0] if len(files) == 1 else folder / f"{split}-*{files[0].suffix}")


def _read_hub(task: Task, split: str) -> tuple[datasets.Dataset, str]:
    import datasets

    if task.hub_id is None:
        raise UserError(f"{task.name} is not on the hub; use --data-dir or the embedded profile")
    origin = f"{task.hub_id} ({task.hub_config or 'default'}, {split})"
    try:
        rows = datasets.load_dataset(task.hub_id, task.hub_config, split=split, revision=task.revision)
    except (OSError, ValueError) as error:  # no network, no such split, offline mode: all are among these
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{origin} cannot be had from the hub: {reason}; use --data-dir or another profile") from error
    return rows, origin


def split_rows(
    rows: datasets.Dataset, fraction: float, seed: int, group_column: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split rows at random into (the rest, a held-out `fraction`), for choosing hyper-parameters or for a test.

    Both parts keep the order of the rows and hold at least one. With `group_column`, rows that share a value of it stay
    together (questions on one article), and groups are held out until their rows make up the fraction.

    Raises:
        UserError: the fraction is not in (0, 1), or there are fewer than two rows or groups.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the held-out fraction must be between 0 and 1, got {fraction}")
    groups = np.arange(len(rows)) if group_column is None else _numbered(rows[group_column])
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        unit = "row(s)" if group_column is None else f"value(s) of {group_column!r}"
        raise UserError(f"cannot hold out {fraction} of {len(sizes)} {unit}; two are needed")
    order = np.random.default_rng(seed).permutation(len(sizes))
    reached = np.cumsum(sizes[order]) >= round(fraction * len(rows))
    count = min(int(reached.argmax()) + 1, len(sizes) - 1)
    held_out = np.isin(groups, order[:count])
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _numbered(values: Iterable[Any]) -> NDArray[np.int64]:
    """(n,) the place of each value among the sorted ones; in numpy every text would take the room of the longest."""
    values = list(values)
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return np.array([places[value] for value in values])


def tokenize(
    rows: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> list[Feature]:
    """Tokenise texts or pairs, the longer text of a pair cut first; unpadded, in the order of the rows.

    The contexts of a span task are not cut but give as many windows as they need: see `benchmarks.squad`.

    Args:
        max_length: tokens kept of each example, special tokens included.
    Returns:
        One feature per row, or per window; `relevant` only if the task and the rows have spans. How many were cut is
        logged.
    Raises:
        UserError: `max_length` is beyond the model or leaves no room for text; the tokenizer gives no offsets.
    """
    _check_tokenizer(tokenizer, task, max_length)
    spans = task.relevant_columns if set(task.relevant_columns) <= set(rows.column_names) else ()
    if task.kind == "span_qa":
        from benchmarks.squad import windows

        return windows(rows, task, tokenizer, max_length=max_length, spans=spans)
    if task.kind == "token_classification":
        from benchmarks.tags import tag_features

        return tag_features(rows, task, tokenizer, max_length=max_length)
    features: list[Feature] = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        texts = [chunk[column] for column in task.text_columns]
        encoded = tokenizer(
            *texts,
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_token_type_ids=len(texts) == 2 or None,  # DistilBERT reads none, but they tell the texts apart
        )
        for i, label in enumerate(chunk[task.label_column]):
            feature = _feature(encoded, i, [chunk[column][i] for column in spans])
            feature["index"] = start + i
            feature["label"] = int(label) if task.kind == "classification" else float(label)
            features.append(feature)
    cut = sum(feature["truncated"] for feature in features)
    logger.info("%s: %d of %d texts cut to %d tokens", task.name, cut, len(features), max_length)
    return features


def count_texts(features: Sequence[Feature]) -> int:
    """How many texts or pairs are among features; windows of one context are one."""
    return len({feature["index"] for feature in features})


def _feature(encoded: BatchEncoding, i: int, spans: list[Sequence[Sequence[int]]]) -> Feature:
    """The i-th feature of a tokenised chunk, its row and label still to be set; `spans` is empty or one per text."""
    encoding = encoded[i]
    feature = Feature(index=0, input_ids=encoded["input_ids"][i], label=0, truncated=bool(encoding.overflowing))
    if "token_type_ids" in encoded:
        feature["token_type_ids"] = encoded["token_type_ids"][i]
    if spans:
        feature["relevant"] = relevant_tokens(encoding, spans)
    return feature


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> None:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {name} gives no character offsets; use a fast one (with a tokenizer.json)")
    if max_length > (limit := tokenizer.model_max_length):
        raise UserError(
            f"input length {max_length} is beyond the {limit} tokens that {name} reads; use --max-length {limit}"
        )
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if max_length <= special:
        raise UserError(f"input length {max_length} leaves no room for text beside {special} special tokens")


def relevant_tokens(encoding: Any, spans: Sequence[Sequence[Sequence[int]]]) -> list[bool]:
    """Per token, whether it overlaps one of the [start, end) character spans of its own text; special tokens never."""
    return [
        text is not None and any(start < stop and end > first for first, stop in spans[text])
        for (start, end), text in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padded positions.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no pad token; set one, e.g. "
            "tokenizer.pad_token = tokenizer.eos_token, and save the tokenizer beside the model"
        )
    return int(tokenizer.pad_token_id)


def collate(
    features: Sequence[Feature],
    pad_id: int,
    *,
    padding: Padding = "batch",
    length: int | None = None,
    with_relevant: bool = False,
) -> dict[str, Tensor]:
    """Tensors of one batch of B features, padded on the right to N tokens.

    Args:
        pad_id: fills padded `input_ids`.
        padding: "none" (no pads, so all features must have one length), "batch" (N is the longest feature) or
            "sequence" (N is `length`).
        with_relevant: also give `relevant`; left out by default, as no model takes it.
    Returns:
        input_ids (B, N) long; attention_mask (B, N) bool, True = real token; token_type_ids (B, N) long if the features
        have them; labels (B,) long, or float32 for a regression, or (B, N) long for words; for windows start_positions
        and end_positions (B,) long instead; relevant (B, N) bool.
    Raises:
        UserError: lengths differ under "none"; `length` is missing or too small under "sequence"; unknown padding.
    """
    lengths = [len(feature["input_ids"]) for feature in features]
    width = _width(lengths, padding, length)

    def padded(rows: Sequence[Sequence[int]], fill: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)

    batch = {
        "input_ids": padded([feature["input_ids"] for feature in features], pad_id, torch.long),
        "attention_mask": torch.arange(width) < torch.tensor(lengths)[:, None],
        **_labels(features, width),
    }
    if "token_type_ids" in features[0]:
        batch["token_type_ids"] = padded([feature["token_type_ids"] for feature in features], 0, torch.long)
    if with_relevant:
        batch["relevant"] = padded([feature["relevant"] for feature in features], False, torch.bool)
    return batch


def _labels(features: Sequence[Feature], width: int) -> dict[str, Tensor]:
    """What the model is to say, under the names of its arguments (`LABELS`)."""
    if "window" in features[0]:
        positions = torch.tensor([feature["window"].answer for feature in features])
        return dict(zip(LABELS[1:], positions.unbind(dim=1), strict=True))
    if "words" in features[0]:
        return {LABELS[0]: torch.tensor([feature["words"].labels(width) for feature in features])}
    labels = [feature["label"] for feature in features]
    return {LABELS[0]: torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)}


def _width(lengths: Sequence[int], padding: str, length: int | None) -> int:
    """Padded length of a batch whose features have `lengths`."""
    if not lengths:
        raise ValueError("a batch needs at least one feature")
    longest = max(lengths)
    if padding == "batch":
        return longest
    if padding == "none":
        if min(lengths) < longest:
            raise UserError(f"padding 'none' needs equal lengths, got {min(lengths)} to {longest}; use batches of one")
        return longest
    if padding == "sequence":
        if length is None or length < longest:
            raise UserError(f"padding 'sequence' needs a length that holds the longest text of {longest}, got {length}")
        return length
    raise UserError(f"unknown padding {padding!r}; choose none, batch or sequence")


def batch_indices(
    lengths: Sequence[int], batch_size: int, *, shuffle_seed: int | None = None, epoch: int = 0, by_length: bool = False
) -> list[list[int]]:
    """Which examples form each batch; the last batch may be smaller.

    The order depends on (`shuffle_seed`, `epoch`) only. `by_length` puts examples of similar length together: all of
    them, shortest first, or, shuffled, within random pools of 50 batches, the batches then in random order.

    Raises:
        UserError: the batch size is below 1.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be 1 or more, got {batch_size}")
    order = list(range(len(lengths)))
    rng = None if shuffle_seed is None else np.random.default_rng((shuffle_seed, epoch))
    if rng is not None:
        order = rng.permutation(len(order)).tolist()
    if by_length:
        pool = len(order) if rng is None else _POOL * batch_size
        by: Callable[[int], int] = lengths.__getitem__
        order = [i for start in range(0, len(order), pool) for i in sorted(order[start : start + pool], key=by)]
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if by_length and rng is not None:
        chunks = [chunks[i] for i in rng.permutation(len(chunks))]
    return chunks


def batches(
    features: Sequence[Feature],
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    by_length: bool = False,
) -> Iterator[list[Feature]]:
    """The features of one epoch, batch by batch, in the order of `batch_indices`; `index` tells each one's row."""
    lengths = [len(feature["input_ids"]) for feature in features]
    for chunk in batch_indices(lengths, batch_size, shuffle_seed=shuffle_seed, epoch=epoch, by_length=by_length):
        yield [features[i] for i in chunk]
