"""Findings on ToP: where its figures come from, and what is padding in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

from benchmarks.audit_findings import Finding, Reader, agrees, average_length, close, input_length, title, yes
from benchmarks.formulas import BERT_BASE, attention_macs, feed_forward_macs, padding_factor, solve

TASKS = ("cola", "rte", "qqp", "mrpc", "sst2", "mnli", "qnli", "stsb")
TOLERANCE = 0.1  # a target is a lower bound of the sparsity reached
SQUAD_AVERAGE = 180  # tokens of a SQuAD window, special ones included


def _target(read: Reader, task: str) -> float:
    return read.value("recipe", "bert-base", "top", "none", task, "target_sparsity")


def top_readme() -> Finding:
    """ToP's README figures are the padding factor times its target."""
    read = Reader("top")
    rows = []
    for task in TASKS:
        printed = read.speedup("readme", "bert-base", "top", "sequence", task)
        factor = padding_factor(input_length(task), average_length(task))
        own = 1 / (1 - _target(read, task))
        fits = close(printed, factor * own, TOLERANCE)
        rows.append((title(task), printed, own, factor, factor * own, printed / factor, yes(fits)))
    unpadded = [row for row in rows if close(row[1], row[2], TOLERANCE)]
    padded = [row for row in rows if row[6] == "yes"]
    return Finding(
        id="top-readme",
        paper="top",
        claim="The README's FLOPs reductions are what pruning alone saves",
        computation="1 / (1 - target sparsity), alone and times dense(input length) / dense(average); within "
        f"{100 * TOLERANCE:.0f} %",
        columns=("Task", "README", "1 / (1 - target)", "Padding factor", "Product", "README / factor", "Product fits"),
        numbers=tuple(rows),
        holds=len(unpadded) == len(rows),
        summary=f"{len(unpadded)} of {len(rows)} figures fit the target alone, {len(padded)} fit target x padding. "
        "Not explained: "
        + (", ".join(f"{row[0]} ({row[1]}, product {row[4]:.1f})" for row in rows if row[6] == "no") or "none")
        + ".",
        flags=frozenset(read.flags),
    )


def top_mean() -> Finding:
    """8.1x in the abstract, 7.87x by the README."""
    read = Reader("top")
    claimed = read.speedup("text", "bert-base", "top", "sequence", "glue_mean")
    cells = {task: read.speedup("readme", "bert-base", "top", "sequence", task) for task in TASKS}
    own = [value / padding_factor(input_length(task), average_length(task)) for task, value in cells.items()]
    needed = claimed * len(cells) - (sum(cells.values()) - cells["rte"])
    same = [title(task) for task in cells if task != "rte" and cells[task] == cells["rte"]]
    rows = (
        ("abstract", claimed),
        ("mean of the README's cells", mean(cells.values())),
        ("RTE in the README", cells["rte"]),
        ("RTE that gives the abstract's mean", needed),
        ("mean without padding (README / padding factor)", mean(own)),
    )
    return Finding(
        id="top-mean",
        paper="top",
        claim=f"{claimed}x fewer FLOPs on average over GLUE",
        computation="mean of the README's eight figures; the RTE figure that the abstract's mean would need; each "
        "figure over "
        "its padding factor",
        columns=("What", "Speed-up"),
        numbers=rows,
        holds=agrees(claimed, rows[1][1], 1),
        summary=f"The README averages {rows[1][1]:.2f}x; RTE there equals {', '.join(same) or 'no other task'} and "
        "would have "
        f"to be {needed:.2f}x. Against BERT without padding the mean is {rows[4][1]:.1f}x.",
        flags=frozenset(read.flags),
    )


def top_targets() -> Finding:
    """ToP's targets mirror Transkimmer's speed-ups without padding."""
    read = Reader("top")
    rows = []
    for task in TASKS:
        printed = read.speedup("3", "bert-base", "transkimmer", "none", task, paper="transkimmer")
        rows.append((title(task), _target(read, task), 1 - 1 / printed, _target(read, task) - (1 - 1 / printed)))
    near = [row for row in rows if abs(row[3]) <= 0.05]
    return Finding(
        id="top-targets",
        paper="top",
        claim="ToP and Transkimmer are compared at equal computation",
        computation="target sparsity against 1 - 1 / (Transkimmer's No-padding speed-up); equal = within 0.05",
        columns=("Task", "Target", "Transkimmer", "Difference"),
        numbers=tuple(rows),
        holds=len(near) == len(rows),
        summary=f"{len(near)} of {len(rows)} are equal; not so: "
        + (", ".join(f"{row[0]} ({row[3]:+.2f})" for row in rows if row not in near) or "none")
        + ".",
        flags=frozenset(read.flags),
    )


def top_latency() -> Finding:
    """7.4x in time against the largest speed-up without padding."""
    read = Reader("top")
    claimed = read.speedup("text", "bert-base", "top", "", "any", "cpu_latency")
    rows = []
    for task in TASKS:
        printed = read.speedup("readme", "bert-base", "top", "sequence", task)
        rows.append((title(task), printed, printed / padding_factor(input_length(task), average_length(task))))
    most = max(row[2] for row in rows)
    return Finding(
        id="top-latency",
        paper="top",
        claim=f"Up to {claimed}x less time on an Intel CPU (task, threads and padding are not stated)",
        computation="README figure / padding factor: the largest reduction of FLOPs that is not padding",
        columns=("Task", "README", "Without padding"),
        numbers=tuple(rows),
        holds=None,
        summary=f"Without padding no GLUE task exceeds {most:.1f}x in FLOPs"
        + (": the baseline is padded, or the task is another." if most < claimed else "."),
        flags=frozenset(read.flags),
    )


def top_macs(tokens: float, shares: Sequence[float]) -> float:
    """ToP's own count: layer i on 1 + (n - 1) x shares[i] tokens, softmax counted, feed-forward at the next length."""
    lengths = [(tokens - 1) * share + 1 for share in shares]
    after = [*lengths[1:], lengths[-1]]
    return sum(
        attention_macs(n) + BERT_BASE.heads * n * n + feed_forward_macs(m) for n, m in zip(lengths, after, strict=True)
    )


def top_squad() -> Finding:
    """The SQuAD mask file named for 4.12x."""
    read = Reader("top")
    printed = read.speedup("tools", "bert-base", "top", "", "squad_v2", "squad_speedup")
    shares, left = [1.0, 1.0], 1.0
    for layer in range(3, BERT_BASE.layers + 1):
        left *= read.value("tools", "bert-base", "top", "none", "squad_v2", f"kept_ratio_layer_{layer}")
        shares.append(left)
    length, whole = input_length("squad_v2"), [1.0] * BERT_BASE.layers
    rows = []
    for n in (average_length("squad_v2"), SQUAD_AVERAGE, length):
        own = top_macs(n, shares)
        rows.append((n, top_macs(n, whole) / own, top_macs(length, whole) / own))
    needed = solve(lambda n: -top_macs(length, whole) / top_macs(n, shares), -printed, 20, length)
    pruning = sum(after < before for before, after in pairwise(shares))
    return Finding(
        id="top-squad",
        paper="top",
        claim=f"The SQuAD masks prune by {printed}x",
        computation="ToP's own formula with the kept ratios of the mask file, against BERT at the text's own length "
        "and at "
        f"{length} tokens",
        columns=("Tokens", "Against unpadded", f"Against {length}"),
        numbers=tuple(rows),
        holds=any(agrees(printed, row[1], 1) for row in rows),
        summary=f"{min(row[1] for row in rows):.2f}x to {max(row[1] for row in rows):.2f}x without padding; "
        f"{printed}x is "
        f"reached against {length} tokens at {needed:.0f} real ones. {pruning} of {len(shares) - 2} locations prune.",
        flags=frozenset(read.flags),
    )


def top_bins() -> Finding:
    """With fewer tokens than bins, the mean of a rank mask is not the share kept."""
    read = Reader("top")
    rows = []
    for task in TASKS:
        bins, ranked = int(read.value("recipe", "bert-base", "top", "none", task, "bins")), average_length(task) - 1
        rows.append((title(task), bins, ranked, min(ranked, bins), yes(ranked >= bins)))
    short = [str(row[0]) for row in rows if row[4] == "no"]
    return Finding(
        id="top-bins",
        paper="top",
        claim="A rank mask that keeps a share of its bins keeps that share of the tokens",
        computation="tokens that are ranked (average - 1) against bins: of fewer tokens each falls in a bin of its own",
        columns=("Task", "Bins", "Ranked tokens", "Bins hit at most", "Enough tokens"),
        numbers=tuple(rows),
        holds=not short,
        summary=f"Not on an average text of {', '.join(short) or 'none'}; true token counts have to be reported.",
        flags=frozenset(read.flags),
    )


FINDINGS = (top_readme, top_mean, top_targets, top_latency, top_squad, top_bins)
