"""Findings on TR-BERT and LoT: ceilings, yardsticks, training rows."""

from __future__ import annotations

from benchmarks.audit_findings import Finding, Reader, average_length, title
from benchmarks.formulas import (
    BERT_BASE,
    bert_parameters,
    classifier_macs,
    encoder_macs,
    layer_macs,
)
from benchmarks.tasks import LONG, OFFICIAL_ROWS

LOT_TASKS = ("sst2", "mrpc", "imdb", "mnli", "qnli")  # those that its released code can run


# TR-BERT ------------------------------------------------------------------------------------------------------------


def tr_bert_macs(tokens: float, first: float, second: float, policy_inner: float) -> float:
    """MACs of layer 1 on all tokens, layers 2 to 6 on `first`, 7 to 12 on `second`, and of both policies."""
    policy = policy_inner * (BERT_BASE.width + 1)
    half = BERT_BASE.layers // 2
    layers = layer_macs(tokens) + (half - 1) * layer_macs(first) + half * layer_macs(second)
    return layers + policy * (tokens + first)


def tr_bert_ceiling() -> Finding:
    """Layer 1 is always whole, which bounds the speed-up just below 12x."""
    read = Reader("tr_bert")
    inner = read.value("recipe", "bert-base", "tr_bert", "none", "any", "policy_inner")
    rows = []
    for task in LONG:
        n = average_length(task)
        printed = read.speedup("4", "bert-base", "tr_bert", "none", task, paper="transkimmer")
        whole, least = (encoder_macs(n) / tr_bert_macs(n, left, left, inner) for left in (n, 1))
        equivalents = BERT_BASE.layers / printed
        rows.append((title(task), n, whole, least, printed, equivalents, equivalents - 1))
    inside = [row for row in rows if row[2] <= row[4] <= row[3]]
    return Finding(
        id="tr_bert-ceiling",
        paper="tr_bert",
        claim="The TR-BERT cells of Table 4 are possible with a whole first layer",
        computation="dense / (layer 1 on n tokens + 11 layers on [CLS] alone + policies); layer equivalents = 12 / "
        "printed, "
        "of which 5 r1 + 6 r2 are left for the other layers (r: share of tokens after each step)",
        columns=("Task", "Tokens", "Keeping all", "Only [CLS]", "Printed", "Layer equivalents", "5 r1 + 6 r2"),
        numbers=tuple(rows),
        holds=len(inside) == len(rows),
        summary=f"{len(inside)} of {len(rows)} lie below the ceiling of {min(row[3] for row in rows):.1f}x to "
        f"{max(row[3] for row in rows):.1f}x; keeping everything costs {100 * (1 / rows[0][2] - 1):.2f} % more than "
        "BERT.",
        flags=frozenset(read.flags),
    )


def tr_bert_range() -> Finding:
    """2x to 5x."""
    read = Reader("tr_bert")
    low, high = (
        read.speedup("text", "bert-base", "tr_bert", "none", "any", f"flops_headline_{end}") for end in ("low", "high")
    )
    rows = [
        (title(task), read.speedup("4", "bert-base", "tr_bert", "none", task, paper="transkimmer")) for task in LONG
    ]
    inside = [row for row in rows if low <= row[1] <= high]
    return Finding(
        id="tr_bert-range",
        paper="tr_bert",
        claim=f"{low:.0f}x to {high:.0f}x fewer FLOPs",
        computation="the cells of Table 4 of the Transkimmer paper against the range of TR-BERT's abstract",
        columns=("Task", "Speed-up"),
        numbers=tuple(rows),
        holds=len(inside) == len(rows),
        summary=f"{len(inside)} of {len(rows)} cells lie in the range: {min(row[1] for row in rows):.2f}x to "
        f"{max(row[1] for row in rows):.2f}x.",
        flags=frozenset(read.flags),
    )


def tr_bert_policy() -> Finding:
    """The released counter charges each policy after its own selection."""
    read = Reader("tr_bert")
    inner = read.value("recipe", "bert-base", "tr_bert", "none", "any", "policy_inner")
    per_token = inner * (BERT_BASE.width + 1)
    rows = []
    for task in LONG:
        n = average_length(task)
        printed = read.speedup("4", "bert-base", "tr_bert", "none", task, paper="transkimmer")
        left = n * max(BERT_BASE.layers / printed - 1, 0) / (BERT_BASE.layers - 1)  # the same share after either step
        missing = per_token * ((n + left) - (left + left))
        rows.append((title(task), n, left, 100 * missing / (encoder_macs(n) / printed)))
    worst = max(row[3] for row in rows)
    return Finding(
        id="tr_bert-policy",
        paper="tr_bert",
        claim="Charging the policy for the tokens that it selected changes nothing that matters",
        computation="policy MACs on tokens before a step - on tokens after it, over the method's MACs, with one share "
        "kept "
        "at both steps; negligible = below 0.1 %",
        columns=("Task", "Tokens", "Tokens after a step", "Missing %"),
        numbers=tuple(rows),
        holds=worst < 0.1,
        summary=f"At most {worst:.2f} % is missing.",
        flags=frozenset(read.flags),
    )


# LoT ----------------------------------------------------------------------------------------------------------------


def router_macs(inner: float) -> float:
    """MACs of one router on one token."""
    return inner * (BERT_BASE.width + 2)


def lot_speedup(tokens: float, processed: float, inner: float) -> float:
    """Speed-up with `processed` tokens ([CLS] among them) and a summary token in every layer, all others routed."""
    own = BERT_BASE.layers * (layer_macs(processed + 1) + router_macs(inner) * (tokens - 1))
    return encoder_macs(tokens) / own


def lot_ceiling() -> Finding:
    """Routers see every token in every block, which bounds the speed-up."""
    read = Reader("lot")
    claimed = read.speedup("text", "bert-base", "lot", "", "any", "headline")
    inner = read.value("recipe", "bert-base", "lot", "", "any", "router_inner")
    cases = [(str(n), n) for n in (64, 128, 256, 512)] + [(title(task), average_length(task)) for task in LOT_TASKS]
    rows = []
    for name, n in cases:
        most = max((k for k in range(1, n) if lot_speedup(n, k, inner) >= claimed), default=None)
        rows.append((name, n, lot_speedup(n, n, inner), lot_speedup(n, 1, inner), most))
    shortest = next(n for n in range(2, 1024) if lot_speedup(n, 1, inner) >= claimed)
    able = [str(row[0]) for row in rows[4:] if row[4] is not None]
    return Finding(
        id="lot-ceiling",
        paper="lot",
        claim=f"Up to {claimed:.0f}x faster",
        computation="dense(n) / (12 layers on k processed tokens and a summary + 12 routers on n - 1 tokens); only "
        "[CLS]: "
        f"k = 1; the last column is the largest k that still gives {claimed:.0f}x",
        columns=("Case", "Tokens", "Keeping all", "Only [CLS]", f"Most tokens at {claimed:.0f}x"),
        numbers=tuple(rows),
        holds=None,
        summary=f"In FLOPs with routers counted, {claimed:.0f}x needs {shortest} tokens or more even if only [CLS] is "
        f"processed; at the average length of its tasks: {', '.join(able) or 'none'}. The conditions are not stated.",
        flags=frozenset(read.flags),
    )


def lot_yardstick() -> Finding:
    """AdapLeR's cost polynomial is the same yardstick as 2 x MACs."""
    read = Reader("lot")

    def coefficient(name: str) -> float:
        return read.value("cost_polynomial", "bert-base", "dense", "none", "any", name)

    rows = []
    for n in (32, 64, 128, 256, 512):
        polynomial = coefficient("dense_quadratic") * n**2 + coefficient("dense_linear") * n
        polynomial += coefficient("dense_constant") + 2 * coefficient("dense_per_class")
        macs = encoder_macs(n) + classifier_macs()
        rows.append((n, 1e-9 * polynomial, 2e-9 * macs, 100 * (polynomial / (2 * macs) - 1)))
    worst = max(abs(row[3]) for row in rows)
    return Finding(
        id="lot-yardstick",
        paper="lot",
        claim="AdapLeR's cost polynomial for BERT counts what 2 x MACs counts",
        computation="the polynomial in the released code against 2 x MACs, two classes; the same = within 1 %",
        columns=("Tokens", "Polynomial, GFLOPs", "2 x MACs, GFLOPs", "Difference %"),
        numbers=tuple(rows),
        holds=worst <= 1,
        summary=f"They differ by {worst:.1f} % at most, {abs(rows[2][3]):.1f} % at 128 tokens.",
        flags=frozenset(read.flags),
    )


def lot_router() -> Finding:
    """Size and cost of the routers."""
    read = Reader("lot")
    inner = int(read.value("recipe", "bert-base", "lot", "", "any", "router_inner"))
    d = BERT_BASE.width
    parameters = 2 * d + d * inner + inner + 2 * inner + 2
    linear = layer_macs(1) - 2 * d  # without the term that is quadratic in length
    rows = (
        ("parameters of a router", float(parameters)),
        ("parameters of twelve, % of BERT-base", 100 * BERT_BASE.layers * parameters / bert_parameters()),
        ("MACs of a router, % of a token's linear cost in a layer", 100 * router_macs(inner) / linear),
    )
    return Finding(
        id="lot-router",
        paper="lot",
        claim="What the routers add",
        computation="layer norm, 768 -> 256 -> 2 before every layer",
        columns=("What", "Value"),
        numbers=rows,
        holds=None,
        summary=f"Twelve routers add {rows[1][1]:.1f} % parameters; on a token that leaps they still cost "
        f"{rows[2][1]:.2f} % of what processing it would.",
        flags=frozenset(read.flags),
    )


def lot_rows() -> Finding:
    """The example index starts again every 1,000 rows."""
    read = Reader("lot")
    batch = int(read.value("recipe", "bert-base", "lot", "", "any", "map_batch"))
    rows = []
    for task in ("sst2", "imdb"):
        count = OFFICIAL_ROWS[task][0]
        rows.append((title(task), count, max(count - batch, 0), 100 * max(count - batch, 0) / count))
    return Finding(
        id="lot-rows",
        paper="lot",
        claim="Each training text is routed by its own importance labels",
        computation=f"(rows - {batch:,}) / rows: the released code numbers rows within chunks of {batch:,}, so later "
        "rows get "
        "the labels of the first chunk (single-sentence tasks)",
        columns=("Task", "Training rows", "With labels of another row", "%"),
        numbers=tuple(rows),
        holds=all(row[2] == 0 for row in rows),
        summary="With another text's labels: " + ", ".join(f"{row[3]:.1f} % of {row[0]}" for row in rows) + ".",
        flags=frozenset(read.flags),
    )


FINDINGS = (
    tr_bert_ceiling,
    tr_bert_range,
    tr_bert_policy,
    lot_ceiling,
    lot_yardstick,
    lot_router,
    lot_rows,
)
