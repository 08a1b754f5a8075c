"""Findings on PoWER-BERT: its times, its counts, and what its search can reach."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from benchmarks.audit_findings import Finding, Reader, agrees, title, titles, yes
from benchmarks.formulas import BERT_BASE, dropping_macs, encoder_macs, reduced_macs
from benchmarks.tasks import OFFICIAL_ROWS

TASKS = ("cola", "rte", "qqp", "mrpc", "sst2", "mnli", "mnli_mm", "qnli", "stsb")
METRICS = {"cola": "matthews_correlation", "qqp": "f1", "mrpc": "f1", "stsb": "spearmanr"}  # else accuracy
BATCH = 128  # texts to which the printed milliseconds belong


def _times(read: Reader, task: str, table: str = "glue_test") -> tuple[float, float, float]:
    """Milliseconds per batch of the dense model and of PoWER-BERT, and the printed ratio."""
    backbone = "albert-base" if table == "albert" else "bert-base"
    dense, own = (
        read.value(table, backbone, method, "sequence", task, "batch_latency_ms") for method in ("dense", "power_bert")
    )
    return dense, own, read.speedup(table, backbone, "power_bert", "sequence", task, METRICS.get(task, "accuracy"))


def _ratios(name: str, cells: Sequence[tuple[str, str]]) -> Finding:
    """Printed speed-ups of (table, task) against quotients of the printed times."""
    read = Reader("power_bert")
    rows = []
    for table, task in cells:
        dense, own, printed = _times(read, task, table)
        row = ("ALBERT" if table == "albert" else "BERT", title(task), dense, own, printed, dense / own)
        rows.append((*row, yes(agrees(printed, dense / own, 1))))
    right = sum(row[6] == "yes" for row in rows)
    return Finding(
        id=name,
        paper="power_bert",
        claim="The speed-ups are quotients of the printed times",
        computation=f"milliseconds of the encoder / milliseconds of PoWER-BERT, batch of {BATCH}, to one decimal",
        columns=("Encoder", "Task", "Dense ms", "PoWER-BERT ms", "Printed", "Quotient", "Agrees"),
        numbers=tuple(rows),
        holds=right == len(rows),
        summary=f"{right} of {len(rows)} agree; the largest is {max(row[5] for row in rows):.2f}x.",
        flags=frozenset(read.flags),
    )


def power_ratios() -> Finding:
    """The GLUE table of the README."""
    return _ratios("power_bert-ratios", [("glue_test", task) for task in TASKS])


def power_other_ratios() -> Finding:
    """Long texts, and ALBERT."""
    cells = [("long", "imdb"), ("long", "race"), *(("albert", task) for task in TASKS)]
    return _ratios("power_bert-other-ratios", cells)


def power_throughput() -> Finding:
    """The K80 is compute-bound at every length, so time ratios and MAC ratios nearly coincide there."""
    read = Reader("power_bert")
    rows = []
    for task in TASKS:
        length = read.value("recipe", "bert-base", "power_bert", "sequence", task, "input_length")
        dense, _, _ = _times(read, task)
        rows.append((title(task), length, dense, 2e-9 * BATCH * encoder_macs(length) / dense))
    speeds = [row[3] for row in rows]
    return Finding(
        id="power_bert-throughput",
        paper="power_bert",
        claim="The wall-clock ratios may be read as FLOPs ratios",
        computation="128 x 2 x dense MACs / milliseconds; steady within a tenth means that arithmetic sets the time",
        columns=("Task", "Length", "BERT ms", "TFLOP/s"),
        numbers=tuple(rows),
        holds=max(speeds) <= 1.1 * min(speeds),
        summary=f"{min(speeds):.2f} to {max(speeds):.2f} TFLOP/s at every length on that GPU at that batch size; on "
        "another one this must be measured.",
        flags=frozenset(read.flags),
    )


def power_counting() -> Finding:
    """One configuration, four ways to count: the convention decides the speed-up."""
    read = Reader("power_bert")
    length = int(read.value("recipe", "bert-base", "power_bert", "sequence", "rte", "input_length"))
    kept = [
        int(read.value("configuration", "bert-base", "power_bert", "sequence", "rte", f"kept_layer_{layer}"))
        for layer in range(1, BERT_BASE.layers + 1)
    ]
    entering = [length, *kept[:-1]]
    dense = encoder_macs(length)
    dense_ms, own_ms, _ = _times(read, "rte")
    rows = (
        ("attention before, feed-forward after the drop (as executed)", dense / dropping_macs(length, kept)),
        ("everything after the drop", dense / reduced_macs(kept, kept)),
        ("everything before the drop", dense / reduced_macs(entering, entering)),
        ("word vectors kept", BERT_BASE.layers * length / sum(kept)),
        ("time on a K80", dense_ms / own_ms),
    )
    near = abs(rows[0][1] / rows[4][1] - 1)
    return Finding(
        id="power_bert-counting",
        paper="power_bert",
        claim="PoWER-BERT's time ratio on RTE is what its configuration saves",
        computation=f"the published configuration {tuple(kept)} of {length} tokens, counted four ways; near = within "
        "5 %",
        columns=("Counted", "Speed-up"),
        numbers=rows,
        holds=near <= 0.05,
        summary=f"{rows[0][1]:.2f}x as executed, {rows[4][1]:.2f}x in time; other ways to count give "
        f"{min(row[1] for row in rows[1:4]):.2f}x to {max(row[1] for row in rows[1:4]):.2f}x.",
        flags=frozenset(read.flags),
    )


def power_ceiling() -> Finding:
    """One vector kept everywhere: layer 1's attention is still whole."""
    rows = []
    for length in (64, 128, 256, 384, 512):
        rows.append((length, encoder_macs(length) / dropping_macs(length, [1] * BERT_BASE.layers)))
    return Finding(
        id="power_bert-ceiling",
        paper="power_bert",
        claim="The upper bound of dropping after the first attention",
        computation="dense / the cost with one token kept by every layer, attention of layer 1 whole",
        columns=("Length", "Highest speed-up"),
        numbers=tuple(rows),
        holds=None,
        summary=f"At {rows[1][0]} tokens no configuration exceeds {rows[1][1]:.1f}x.",
    )


def rate_sum(rate: float, updates: int, warmup: float) -> float:
    """Sum of learning rates: linear warm-up, then linear decay from the start to 0, as PoWER-BERT's code has it."""
    rise = floor(warmup * updates)
    return sum(rate * (t / rise if t <= rise else 1 - t / updates) for t in range(1, updates + 1))


def power_reach() -> Finding:
    """With Adam a retention parameter moves by about the learning rate per update, whatever the penalty."""
    read = Reader("power_bert")

    def setting(task: str, name: str) -> float:
        return read.value("recipe", "bert-base", "power_bert", "sequence", task, name)

    epochs = [int(setting("any", name)) for name in ("epochs_low", "epochs_high")]
    rows, unreachable = [], []
    for task in TASKS:
        length = setting(task, "input_length")
        per_epoch = ceil(OFFICIAL_ROWS[task.removesuffix("_mm")][0] / setting(task, "batch_size"))
        printed = _times(read, task)[2]
        row: list[str | float | None] = [title(task), printed]
        for count in epochs:
            moved = rate_sum(setting(task, "retention_learning_rate"), per_epoch * count, setting("any", "warmup"))
            left = [max(floor(length * (1 - moved)), 1)] * BERT_BASE.layers
            best = encoder_macs(length) / dropping_macs(length, left) if moved < 1 else None
            row += [moved, best]
        unreachable += [task] if best is not None and best < printed else []
        rows.append(tuple(row))
    few = [row[0] for row in rows if row[3] is not None and row[3] < row[1]]  # type: ignore[operator]
    return Finding(
        id="power_bert-reach",
        paper="power_bert",
        claim="The published settings reach the published speed-ups",
        computation="S = sum of learning rates of the search; a retention parameter starts at 1 and falls by at most "
        "about S, so a layer keeps floor(N (1 - S)) tokens or more; no bound once S >= 1",
        columns=("Task", "Published", f"S, {epochs[0]} epochs", "Highest", f"S, {epochs[1]} epochs", "Highest there"),
        numbers=tuple(rows),
        holds=not unreachable,
        summary=f"Out of reach with {epochs[0]} epochs: {', '.join(map(str, few)) or 'none'}; even with {epochs[1]}: "
        f"{titles(unreachable)}.",
        flags=frozenset(read.flags),
    )


FINDINGS = (power_ratios, power_other_ratios, power_throughput, power_counting, power_ceiling, power_reach)
