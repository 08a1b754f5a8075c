"""Findings on the Transkimmer paper's own rows: averages, padding, ceilings, overhead, losses, labels."""

from __future__ import annotations

from functools import partial
from statistics import mean

from benchmarks.audit_findings import (
    Finding,
    Reader,
    agrees,
    average_length,
    close,
    input_length,
    title,
    titles,
    yes,
)
from benchmarks.formulas import (
    ALBERT_BASE,
    BERT_BASE,
    DISTILBERT,
    Sizes,
    bert_parameters,
    classifier_macs,
    encoder_macs,
    layer_macs,
    layer_parameters,
    padding_factor,
    solve,
)
from benchmarks.properties import ONE_LENGTH
from benchmarks.reported import load_reported
from benchmarks.tasks import GLUE, LONG, OFFICIAL_ROWS

PAPER = "transkimmer"
TOLERANCE = 0.05  # what whole-number average lengths can explain
LONGEST = 1024


def predictor_macs(sizes: Sizes = BERT_BASE) -> int:
    """MACs of one predictor on one token: width to width to the two choices."""
    return sizes.width**2 + 2 * sizes.width


def predictor_parameters(sizes: Sizes = BERT_BASE, *, leading_norm: bool = True) -> int:
    """Parameters of one predictor; the released code has a layer norm in front, the paper's text has not."""
    d = sizes.width
    return d * d + d + 2 * d + 2 * d + 2 + (2 * d if leading_norm else 0)


def sequence_speedup(length: float, average: float, unpadded_speedup: float) -> float:
    """Speed-up against dense at `length` if the pads are scored once and all fall before the first layer."""
    own = encoder_macs(average) / unpadded_speedup
    return encoder_macs(length) / (own + predictor_macs() * (length - average))


def averages() -> Finding:
    """10.97, 2.81 and 3.24 against the mean of their cells."""
    read = Reader(PAPER)
    rows = []
    for backbone, padding in (("bert-base", "sequence"), ("bert-base", "none"), ("roberta-base", "none")):
        cells = {task: read.speedup("3", backbone, PAPER, padding, task) for task in GLUE}
        printed = read.speedup("text", backbone, PAPER, padding, "glue_mean")
        without = mean(value for task, value in cells.items() if task != "wnli")
        excess = sum(cells.values()) - len(cells) * printed
        average = mean(cells.values())
        rows.append((f"{backbone}, {padding}", printed, average, yes(agrees(printed, average, 2)), excess, without))
    wrong = [row for row in rows if row[3] == "no"]
    told = "".join(f" {row[0]}: {row[1]:.2f} printed, {row[2]:.2f} by the cells." for row in wrong)
    return Finding(
        id="transkimmer-averages",
        paper=PAPER,
        claim="GLUE averages of 10.97x (Sequence), 2.81x (No) and 3.24x (RoBERTa, No)",
        computation="arithmetic mean of the nine cells of each row of Table 3; excess = sum of the cells - 9 x printed",
        columns=("Row", "Printed", "Mean of cells", "Agrees", "Excess of the sum", "Mean without WNLI"),
        numbers=tuple(rows),
        holds=not wrong,
        summary=f"{len(rows) - len(wrong)} of {len(rows)} averages are those of their cells.{told}",
        flags=frozenset(read.flags),
    )


def sequence_row() -> Finding:
    """The Sequence row predicted from the No row and the lengths."""
    read = Reader(PAPER)
    rows = []
    for task in GLUE:
        printed = read.speedup("3", "bert-base", PAPER, "sequence", task)
        unpadded = read.speedup("3", "bert-base", PAPER, "none", task)
        average, length = average_length(task), input_length(task)
        own, fixed = (sequence_speedup(n, average, unpadded) for n in (length, ONE_LENGTH))
        fits = [name for name, value in (("Table 2", own), ("128", fixed)) if close(printed, value, TOLERANCE)]
        rows.append((title(task), average, length, unpadded, printed, own, fixed, " and ".join(fits) or "neither"))
    table, one = ([row[0] for row in rows if name in row[7]] for name in ("Table 2", "128"))
    neither = [str(row[0]) for row in rows if row[7] == "neither"]
    return Finding(
        id="transkimmer-sequence",
        paper=PAPER,
        claim="The Sequence row of Table 3 is the No row at the input lengths of Table 2",
        computation="dense(length) / (dense(average) / No + predictor x (length - average)): pads are scored once and "
        f"fall before layer 1; a cell fits within {100 * TOLERANCE:.0f} %",
        columns=("Task", "Average", "Length", "No", "Sequence", "By Table 2", "By 128", "Fits"),
        numbers=tuple(rows),
        holds=len(table) == len(rows),
        summary=f"{len(table)} of {len(rows)} cells fit Table 2's lengths, {len(one)} fit 128 tokens for every task; "
        f"{', '.join(neither) or 'none'} fit neither.",
        flags=frozenset(read.flags),
    )


def sequence_bound() -> Finding:
    """Sequence cells above padding factor x No, and the length that each would need."""
    read = Reader(PAPER)
    rows, over = [], []
    for task in GLUE:
        printed = read.speedup("3", "bert-base", PAPER, "sequence", task)
        unpadded = read.speedup("3", "bert-base", PAPER, "none", task)
        average, length = average_length(task), input_length(task)
        bound = padding_factor(length, average) * unpadded
        needed = solve(partial(sequence_speedup, average=average, unpadded_speedup=unpadded), printed, average, LONGEST)
        over += [task] if printed > bound * (1 + TOLERANCE) else []
        rows.append((title(task), length, padding_factor(length, average), bound, printed, printed / bound, needed))
    return Finding(
        id="transkimmer-sequence-bound",
        paper=PAPER,
        claim="The Sequence speed-ups are possible at the input lengths of Table 2",
        computation="upper bound = padding factor x No speed-up, padding factor = dense(length) / dense(average); the "
        "needed length is the one at which the prediction of transkimmer-sequence gives the printed figure",
        columns=("Task", "Length", "Padding factor", "Bound", "Printed", "Printed / bound", "Length needed"),
        numbers=tuple(rows),
        holds=not over,
        summary=f"{len(over)} of {len(rows)} cells exceed their bound by more than {100 * TOLERANCE:.0f} %: "
        f"{titles(over)}.",
        flags=frozenset(read.flags),
    )


def ceiling() -> Finding:
    """Keep everything, keep [CLS] alone: what the unpadded speed-up lies between."""
    read = Reader(PAPER)
    rows = []
    for task in (*GLUE, *LONG):
        n = min(average_length(task), input_length(task))
        dense = encoder_macs(n)
        predictors = BERT_BASE.layers * predictor_macs() * (n - 1)
        low = dense / (dense + predictors)
        high = dense / (predictor_macs() * (n - 1) + BERT_BASE.layers * layer_macs(1))
        printed = read.speedup("3" if task in GLUE else "4", "bert-base", PAPER, "none", task)
        rows.append((title(task), n, low, high, printed, printed / high))
    outside = [str(row[0]) for row in rows if not row[2] <= row[4] <= row[3]]
    return Finding(
        id="transkimmer-ceiling",
        paper=PAPER,
        claim="The No-padding speed-ups are possible at the average lengths of Table 2",
        computation="lowest: every token kept, twelve predictors charged; highest: all but [CLS] gone before layer 1",
        columns=("Task", "Tokens", "Nothing skimmed", "Only [CLS]", "Printed", "Share of the highest"),
        numbers=tuple(rows),
        holds=not outside,
        summary=f"{len(rows) - len(outside)} of {len(rows)} cells lie between the two; outside: "
        f"{', '.join(outside) or 'none'}. Short texts leave little room: {rows[0][0]} cannot exceed {rows[0][3]:.1f}x.",
        flags=frozenset(read.flags),
    )


def overhead() -> Finding:
    """7.9 % parameters and 6.5 % computation, or the other way round."""
    read = Reader(PAPER)
    parameters = read.value("text", "bert-base", PAPER, "", "overhead", "parameters_percent")
    macs = read.value("text", "bert-base", PAPER, "", "overhead", "macs_percent")
    whole, layers = bert_parameters(), BERT_BASE.layers * layer_parameters()
    rows = []
    for name, norm in (("as released", True), ("by the paper's text", False)):
        added = BERT_BASE.layers * predictor_parameters(leading_norm=norm)
        rows.append((f"parameters {name}, of the whole model", parameters, 100 * added / whole))
        rows.append((f"parameters {name}, of the layers alone", parameters, 100 * added / layers))
    rows += [
        (f"MACs at {n} tokens", macs, 100 * BERT_BASE.layers * predictor_macs() * n / encoder_macs(n))
        for n in (64, 128, 256, 384, 512)
    ]

    def fits(printed: float, kind: str) -> bool:
        return any(agrees(printed, row[2], 1) for row in rows if row[0].startswith(kind))

    swapped = fits(macs, "parameters") and fits(parameters, "MACs")
    return Finding(
        id="transkimmer-overhead",
        paper=PAPER,
        claim="The predictors add 7.9 % parameters and 6.5 % computation",
        computation="per layer: 768 -> 768 -> 2 with layer norms, against BERT-base; MACs of twelve predictors over "
        "those of twelve layers",
        columns=("Share", "Printed %", "Computed %"),
        numbers=tuple(rows),
        holds=fits(parameters, "parameters") and fits(macs, "MACs"),
        summary="The two figures fit only when exchanged: 6.5 % parameters, 7.9 % computation."
        if swapped and not fits(macs, "MACs")
        else f"The parameters come to {rows[0][2]:.1f} %, the MACs to {rows[-1][2]:.1f} to {rows[4][2]:.1f} %.",
        flags=frozenset(read.flags),
    )


def losses() -> Finding:
    """Score lost by skimming, cell by cell."""
    read = Reader(PAPER)
    allowed = read.value("text", "", PAPER, "", "any", "score_drop_points")
    rows = []
    for backbone in ("bert-base", "roberta-base", "distilbert-base", "albert-base"):
        for task in (*GLUE, *LONG) if backbone == "bert-base" else GLUE:
            table = "3" if task in GLUE else "4"
            dense = read.cell(table, backbone, "dense", "", task)
            skimmed = read.cell(table, backbone, PAPER, "none", task)
            if dense.value is None or skimmed.value is None or "filled" in (dense.flag, skimmed.flag):
                continue
            rows.append((backbone, title(task), dense.value, skimmed.value, skimmed.value - dense.value))
    over = [row for row in rows if -row[4] > allowed + 1e-9]
    return Finding(
        id="transkimmer-losses",
        paper=PAPER,
        claim="Less than 1 point is lost in nearly all cases",
        computation='No-padding score - score of the same encoder, cells that are legible; "nearly all" read as nine '
        "cells in ten",
        columns=("Encoder", "Task", "Dense", "Transkimmer", "Change"),
        numbers=tuple(rows),
        holds=len(over) <= 0.1 * len(rows),
        summary=f"{len(over)} of {len(rows)} cells lose more than {allowed:.0f} point: "
        + ", ".join(f"{row[0]} {row[1]} {row[4]:.1f}" for row in over)
        + ".",
        flags=frozenset(read.flags),
    )


def wnli() -> Finding:
    """WNLI scores are multiples of 1/71, and most of them the majority class."""
    frame = load_reported(PAPER)
    cells = frame[(frame["table"] == "3") & (frame["task"] == "wnli") & frame["value"].notna()]
    of = OFFICIAL_ROWS["wnli"][1]
    rows = []
    for cell in cells.itertuples(index=False):
        right = round(cell.value / 100 * of)
        exact = 100 * right / of
        name = f"{cell.backbone}, {cell.method}" + (f", {cell.padding}" if cell.padding else "")
        rows.append((name, cell.value, right, exact, yes(agrees(cell.value, exact, 1)), cell.speedup))
    impossible = [row for row in rows if row[4] == "no"]
    usual = max({row[2] for row in rows}, key=[row[2] for row in rows].count)
    same = [row for row in rows if row[2] == usual and row[4] == "yes"]
    told = "; ".join(f"{row[0]}: {row[1]:.1f} is no multiple of 1/{of}" for row in impossible)
    return Finding(
        id="transkimmer-wnli",
        paper=PAPER,
        claim="WNLI scores are accuracies on its 71 development rows",
        computation=f"nearest whole number of right answers of {of}, back in percent",
        columns=("Row", "Printed", "Right answers", "Exact", "Agrees", "Speed-up"),
        numbers=tuple(rows),
        holds=not impossible,
        summary=f"{told or 'All are possible'}. {len(same)} of {len(rows)} cells are {usual} of {of}, the majority "
        f"class, at up to {max(row[5] for row in same):.1f}x: such a speed-up says nothing.",
        flags=frozenset(cells["flag"]),
    )


def input_lengths() -> Finding:
    """A mean above the 99th percentile needs a very long tail."""
    read = Reader(PAPER)
    rows = []
    for task in (*GLUE, *LONG):
        average = read.value("2", "", "", "", task, "average_length")
        length = read.value("2", "", "", "", task, "input_length")
        tail = (average - 0.99 * length) / 0.01
        rows.append((title(task), average, length, average / length, tail if average > length else None))
    over = [f"{row[0]} ({row[4]:,.0f} tokens)" for row in rows if row[4] is not None]
    return Finding(
        id="transkimmer-input-lengths",
        paper=PAPER,
        claim="The input length of Table 2 holds 99 % of a data set's texts",
        computation="where the average is above the input length: the least mean length of the longest 1 % that would "
        "allow it, (average - 0.99 x input length) / 0.01",
        columns=("Task", "Average", "Input length", "Average / input", "Mean of the longest 1 %"),
        numbers=tuple(rows),
        holds=None,
        summary=f"The rule needs an extreme tail for {', '.join(over) or 'no task'}; Table 2 measures it on the data.",
        flags=frozenset(read.flags),
    )


def skim_weights() -> Finding:
    """Harmony coefficients of Table 2 and of the released scripts."""
    read = Reader(PAPER)
    rows = []
    for task in (*GLUE, *LONG):
        printed, released = (read.value(table, "", PAPER, "", task, "skim_weight") for table in ("2", "code"))
        rows.append((title(task), printed, released, yes(printed == released)))
    same = [str(row[0]) for row in rows if row[3] == "yes"]
    return Finding(
        id="transkimmer-skim-weights",
        paper=PAPER,
        claim="The released scripts train with the coefficients of Table 2",
        computation="skim weight [lambda] of Table 2 against the default of the script that trains the task",
        columns=("Task", "Table 2", "Script", "Equal"),
        numbers=tuple(rows),
        holds=len(same) == len(rows),
        summary=f"Equal on {len(same)} of {len(rows)} tasks: {', '.join(same) or 'none'}.",
        flags=frozenset(read.flags),
    )


def padding_labels() -> Finding:
    """A competitor's padding label should be the same in both tables."""
    frame = load_reported(PAPER)
    printed = frame[frame["table"].isin(["3", "4"]) & (frame["padding"] != "") & (frame["method"] != PAPER)]
    rows = []
    for method, cells in printed.groupby("method"):
        labels = {number: ", ".join(sorted(set(part["padding"]))) for number, part in cells.groupby("table")}
        rows.append((str(method), labels.get("3"), labels.get("4"), yes(len(set(labels.values())) == 1)))
    two = [str(row[0]) for row in rows if row[3] == "no"]
    return Finding(
        id="transkimmer-padding-labels",
        paper=PAPER,
        claim="Each competitor is shown under one padding setting",
        computation="padding labels of the same method in Tables 3 and 4",
        columns=("Method", "Table 3", "Table 4", "One label"),
        numbers=tuple(rows),
        holds=not two,
        summary=f"{', '.join(two) or 'No method'} {'has' if len(two) < 2 else 'have'} two labels.",
    )


def student() -> Finding:
    """DistilBERT beside its teacher."""
    read = Reader(PAPER)
    rows = []
    for task in GLUE:
        teacher, own = (read.value("3", name, "dense", "", task) for name in ("bert-base", "distilbert-base"))
        rows.append((title(task), teacher, own, own - teacher))
    above = [f"{row[0]} (+{row[3]:.1f})" for row in rows if row[3] > 0]
    return Finding(
        id="transkimmer-student",
        paper=PAPER,
        claim="DistilBERT's scores in Table 3",
        computation="DistilBERT - BERT-base, its teacher, in points",
        columns=("Task", "BERT-base", "DistilBERT", "Difference"),
        numbers=tuple(rows),
        holds=None,
        summary=f"The student is above its teacher on {', '.join(above) or 'no task'}.",
        flags=frozenset(read.flags),
    )


def compressed() -> Finding:
    """1.98x for half the layers, 0.99x for a projection of the embeddings."""
    read = Reader(PAPER)
    rows = []
    for name, sizes in (("distilbert-base", DISTILBERT), ("albert-base", ALBERT_BASE)):
        for task in GLUE:
            n = average_length(task)
            dense, own = (encoder_macs(n, encoder) + classifier_macs(encoder) for encoder in (BERT_BASE, sizes))
            printed = read.speedup("3", name, "dense", "", task)
            rows.append((name, title(task), printed, dense / own, yes(agrees(printed, dense / own, 2))))
    right = sum(row[4] == "yes" for row in rows)
    worst = max(abs(row[2] / row[3] - 1) for row in rows)
    return Finding(
        id="transkimmer-compressed",
        paper=PAPER,
        claim="DistilBERT needs 1.98x and ALBERT 0.99x fewer FLOPs than BERT-base",
        computation="dense(BERT-base) / dense(encoder) with classifier, at the average length",
        columns=("Encoder", "Task", "Printed", "By formula", "Agrees"),
        numbers=tuple(rows),
        holds=right == len(rows),
        summary=f"{right} of {len(rows)} cells agree to two decimals; the largest difference is {100 * worst:.1f} %.",
        flags=frozenset(read.flags),
    )


FINDINGS = (
    averages,
    sequence_row,
    sequence_bound,
    ceiling,
    overhead,
    losses,
    wnli,
    input_lengths,
    skim_weights,
    padding_labels,
    student,
    compressed,
)
