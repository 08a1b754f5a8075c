"""The cases for which a speed is asked: how each is measured, which record is its own, and what that record decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import attention_time, latency, training_time
from benchmarks.runs import CorruptRecord, Record, read_record

TEXTS = "orange_20news"  # the longest that are embedded
LIGHT = ("transkimmer", "tr_bert", "lot", "deebert", "pabee")  # decide by hidden states
RANKING = ("power_bert", "lat", "ltp", "top")  # decide by attention received
SCHEDULES, DTYPES = ("2x", "4x", "6x"), ("float32", "bfloat16")
ON = {"task": TEXTS, "source": "embedded", "backbone": latency.RANDOM_SHAPE}  # what every cell of texts is timed on
ATTENTION, TRAINING = "attention", "training"
GPU_SHAPES, GPU_ROUNDS = ((32, 128), (128, 128), (32, 512), (128, 512)), 5  # texts, tokens of the longest
GPU_LEAST = 0.80  # realisation of every method


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that targets are read from.

    Attributes:
        name: as `--measure` takes it. title: as tables print it. arguments: of the command that measures it.
        device: that it is measured on. finds: fields of a record's configuration, "data" and "extra" among them, that
            make it the cell's.
    """

    name: str
    title: str
    arguments: tuple[str, ...] = ()
    kind: str = latency.KIND
    device: str = "cpu"
    finds: Mapping[str, Any]

    def has(self, record: Record) -> bool:
        """Whether a record is one of this cell."""
        config = record["config"]
        fields = config | config["data"] | config["extra"]
        known = (config["kind"], config["device"]) == (self.kind, self.device)
        return known and all(fields.get(name) == value for name, value in self.finds.items())


@dataclass(frozen=True, kw_only=True)
class Row:
    """A target and what was measured; `least` or `most` is the bound, the other is None."""

    cell: str
    title: str
    method: str
    name: str
    at: str
    quantity: str
    value: float
    cpu: float | None
    bound: float | None = None
    least: float | None = None
    most: float | None = None
    record: str = ""

    @property
    def met(self) -> bool:
        """Whether the wall clock is within the bound."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def target(self) -> str:
        """The bound as printed."""
        return f">= {self.least:.2f}" if self.least is not None else f"<= {self.most:.2f}"


def cells() -> dict[str, Cell]:
    """All cells, by name, in the order in which they are measured."""
    found = []
    shared: tuple[str, ...] = ("--tasks", TEXTS, "--threads", "1", "--device", "cpu", "--padding", "batch", "none")
    shared += ("--methods", *LIGHT, *RANKING, "--rounds", "3")
    single: dict[str, Any] = ON | {
        "texts": 8,
        "batch_size": 1,
        "max_length": 128,
        "threads": 1,
        "schedules": list(SCHEDULES),
        "dtype": "float32",
    }
    single["times_only"] = None  # overheads need the replays
    found.append(
        Cell(
            name="batch1",
            title="batch 1, 128 tokens, float32",
            arguments=(*shared, "--batch-sizes", "1", "--max-length", "128", "--texts", "8", "--schedule", *SCHEDULES),
            finds=single,
        )
    )
    for dtype in DTYPES:
        for size, length in ((32, 128), (8, 384)):
            for schedule in SCHEDULES:
                own = ("--batch-sizes", str(size), "--texts", str(size), "--max-length", str(length))
                found.append(
                    Cell(
                        name=f"batch{size}-{dtype}-{schedule}",
                        title=f"batch {size} x {length}, {dtype}",
                        arguments=(*shared, *own, "--dtype", dtype, "--schedule", schedule, "--times-only"),
                        finds=ON
                        | {
                            "texts": size,
                            "batch_size": size,
                            "max_length": length,
                            "threads": 1,
                            "schedules": [schedule],
                            "dtype": dtype,
                            "times_only": True,
                        },
                    )
                )
    found.append(
        Cell(
            name=TRAINING,
            title="training step, masked",
            arguments=("--threads", "1", "--device", "cpu"),
            kind=training_time.KIND,
            finds={"threads": 1, "dtype": "float32", "lengths": list(training_time.LENGTHS)},
        )
    )
    attention = f"attention with column means, {attention_time.TOKENS} tokens"
    found.append(
        Cell(name=ATTENTION, title=attention, kind=attention_time.KIND, finds={"tokens": attention_time.TOKENS})
    )
    found += map(_gpu_cell, GPU_SHAPES)
    return {cell.name: cell for cell in found}


def _gpu_cell(shape: tuple[int, int]) -> Cell:
    """Batches of one size on a GPU, every schedule in one run."""
    size, length = shape
    texts = ("--tasks", TEXTS, "--batch-sizes", str(size), "--texts", str(size), "--max-length", str(length))
    how = ("--device", "cuda", "--dtype", "bfloat16", "--padding", "batch", "none", "--rounds", str(GPU_ROUNDS))
    what = ("--methods", *LIGHT, *RANKING, "--schedule", *SCHEDULES, "--times-only")
    return Cell(
        name=f"gpu-batch{size}x{length}",
        title=f"batch {size} x {length}, bfloat16, GPU",
        arguments=(*texts, *how, *what),
        device="cuda",
        finds=ON | {"texts": size, "batch_size": size, "max_length": length, "dtype": "bfloat16"},
    )


def newest(root: Path, cell: Cell) -> Record | None:
    """The cell's last finished record below a results folder."""
    records = []
    for path in (root / "runs" / cell.kind).rglob("*.json"):
        try:
            record = read_record(path)
        except CorruptRecord:
            continue
        if record["status"] == "ok" and cell.has(record):
            records.append(record)
    return max(records, key=lambda record: record["started_at"], default=None)


def judged(cell: Cell, record: Record) -> Iterator[Row]:
    """The targets that a record of the cell decides."""
    shared: dict[str, Any] = {"cell": cell.name, "title": cell.title, "record": record["config_hash"]}
    if cell.name == ATTENTION:
        (wall, *_), (cpu, *_) = record["metrics"]["wall"], record["metrics"]["cpu"]
        yield Row(**shared, method="", name="", at="", quantity="time / plain", value=wall, cpu=cpu, most=1.25)
        return
    for subject in record["metrics"]["subjects"]:
        own = shared | {"method": subject["method"], "name": subject["title"]}
        if cell.name == TRAINING:
            if subject["key"] != training_time.STOCK:
                passes = subject["passes"]
                value, cpu = subject["wall"][0] / passes, subject["cpu"][0] / passes
                quantity = "time / passes of stock"
                yield Row(**own, at=subject["stage"], quantity=quantity, value=value, cpu=cpu, most=1.20)
        elif subject["key"] == "dense":
            against = subject["against"]["batch"]
            flops = 1.0 if cell.device == "cuda" else against["flops"]
            value, cpu = against["wall"][0] / flops, against["cpu"][0] / flops
            least, quantity = (0.98, "stock / time") if flops == 1 else (0.97, "gain / that of tokens")
            if cell.device == "cuda":
                least = 1.0
            yield Row(**own, at="unpadded", quantity=quantity, value=value, cpu=cpu, least=least)
        elif subject["method"] != "dense":
            yield _of_method(own, subject, cell)


def _of_method(own: Mapping[str, Any], subject: Mapping[str, Any], cell: Cell) -> Row:
    against = subject["against"]["none"]
    bound = against["bare_cpu"][0] / against["flops"] if "bare_cpu" in against else None
    if cell.name == "batch1":
        wall, cpu = (subject["overhead"][clock][0] for clock in ("wall", "cpu"))
        return Row(**own, at=subject["schedule"], quantity="overhead", value=wall, cpu=cpu, bound=bound, most=1.15)
    value, cpu = (against[clock][0] / against["flops"] for clock in ("wall", "cpu"))
    least = GPU_LEAST if cell.device == "cuda" else 0.90 if subject["method"] in RANKING else 0.95
    return Row(**own, at=subject["schedule"], quantity="realisation", value=value, cpu=cpu, bound=bound, least=least)
