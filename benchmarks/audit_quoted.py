"""Findings on padding, and on rows that the Transkimmer paper quotes from others under other conventions."""

from __future__ import annotations

from benchmarks.audit_findings import (
    GLUE_WITHOUT_WNLI,
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
from benchmarks.audit_pairs import decomposed_macs
from benchmarks.audit_power_bert import METRICS as POWER_METRICS
from benchmarks.formulas import encoder_macs, padding_factor, solve
from benchmarks.reported import load_reported
from benchmarks.tasks import GLUE, LONG

PAPER = "transkimmer"
NEAR = 3  # tokens that a separator more and the quadratic term can explain


def unpadding() -> Finding:
    """What removing padding alone gives, beside padded speed-ups that were published."""
    read = Reader(PAPER)
    rows, compared, behind = [], 0, []
    for task in (*GLUE, *LONG):
        average, length = average_length(task), input_length(task)
        factor = padding_factor(length, min(average, length))
        power = None
        if task in GLUE_WITHOUT_WNLI:
            metric = POWER_METRICS.get(task, "accuracy")
            power = read.speedup("glue_test", "bert-base", "power_bert", "sequence", task, metric, paper="power_bert")
            compared += 1
            behind += [task] if power < factor else []
        rows.append((title(task), length, average, factor, power))
    return Finding(
        id="unpadding-alone",
        paper="several",
        claim="A method measured with Sequence padding is faster than BERT without padding",
        computation="dense(input length) / dense(average length), lengths of Table 2, beside PoWER-BERT's own ratios",
        columns=("Task", "Input length", "Average", "Unpadding alone", "PoWER-BERT, padded"),
        numbers=tuple(rows),
        holds=not behind,
        summary=f"Removing padding from plain BERT gives {min(row[3] for row in rows):.1f}x to "
        f"{max(row[3] for row in rows):.1f}x; it alone beats PoWER-BERT's figure on {len(behind)} of {compared} tasks: "
        f"{titles(behind)}.",
        flags=frozenset(read.flags),
    )


def padding_votes() -> Finding:
    """Padding rows take part in attention scores that average over all query positions."""
    fixed = int(Reader("top").value("recipe", "bert-base", "top", "", "any", "padded_length"))
    rows = []
    for task in GLUE:
        average, length = average_length(task), input_length(task)
        rows.append((title(task), average, length, 100 * (1 - average / length), 100 * (1 - average / fixed)))
    return Finding(
        id="padding-votes",
        paper="several",
        claim="Whose attention the scores count that rank tokens",
        computation="in the released code of PoWER-BERT, LAT and ToP scores average over all query rows; share of "
        "them "
        f"that are [PAD]: 1 - average / input length, and at the {fixed} tokens to which ToP's evaluation pads",
        columns=("Task", "Average", "Input length", "[PAD] rows %", f"[PAD] rows % at {fixed}"),
        numbers=tuple(rows),
        holds=None,
        summary=f"Padding rows cast {min(row[3] for row in rows):.0f} % to {max(row[3] for row in rows):.0f} % of the "
        "votes at the input "
        f"lengths, {min(row[4] for row in rows):.0f} % to {max(row[4] for row in rows):.0f} % at {fixed}.",
    )


def power_bert_row() -> Finding:
    """The PoWER-BERT row of Table 3 is GLUE test scores and wall-clock ratios."""
    read = Reader(PAPER)
    rows = []
    for task in GLUE_WITHOUT_WNLI:
        quoted = read.cell("3", "bert-base", "power_bert", "sequence", task)
        if quoted.flag == "filled":
            continue  # filled in from the very paper that it would be compared with
        place = ("glue_test", "bert-base", "power_bert", "sequence", task, POWER_METRICS.get(task, "accuracy"))
        own = read.cell(*place, paper="power_bert")
        here = read.value("3", "bert-base", "dense", "", task)
        there = read.value("glue_test", "bert-base", "dense", *place[3:], paper="power_bert")
        assert quoted.value and own.value and quoted.speedup and own.speedup
        lost = (quoted.value - here, own.value - there)
        rows.append((title(task), quoted.value, own.value, quoted.speedup, own.speedup, *lost))
    scores, speeds = (sum(row[i] == row[i + 1] for row in rows) for i in (1, 3))
    worst = min(rows, key=lambda row: row[5] - row[6] if row[1] == row[2] else 0)
    return Finding(
        id="quoted-power_bert",
        paper=PAPER,
        claim="The PoWER-BERT row of Table 3 is development scores and FLOPs ratios, as in its neighbours",
        computation="legible cells against PoWER-BERT's own GLUE test scores and K80 wall-clock ratios; loss against "
        "either paper's baseline",
        columns=("Task", "Score", "Own test score", "Speed-up", "Own time ratio", "Loss here", "Own loss"),
        numbers=tuple(rows),
        holds=speeds < len(rows),
        summary=f"{speeds} of {len(rows)} speed-ups are its wall-clock ratios and {scores} of {len(rows)} scores its "
        f"test scores; against this table's baseline {worst[0]} seems to lose {-worst[5]:.1f} points instead of "
        f"{-worst[6]:.1f}. Not equal: "
        + (", ".join(f"{row[0]} ({row[1]} here, {row[2]} there)" for row in rows if row[1] != row[2]) or "none")
        + ".",
        flags=frozenset(read.flags),
    )


def deebert_row() -> Finding:
    """The DeeBERT row of Table 3 is 1 / (1 - time saved) on the test set."""
    read = Reader(PAPER)
    rows = []
    for task in GLUE:
        quoted = read.cell("3", "bert-base", "deebert", "", task)
        if quoted.value is None or quoted.flag == "filled":
            continue
        own = read.cell("main_c", "bert-base", "deebert", "sequence", task, paper="deebert")
        base = read.value("main", "bert-base", "dense", "sequence", task, "accuracy", paper="deebert")
        here = read.value("3", "bert-base", "dense", "", task)
        assert quoted.speedup and own.speedup and own.value
        saved = 100 * (1 - 1 / own.speedup)
        rows.append((title(task), quoted.value, own.value, quoted.speedup, own.speedup, saved, here, base))
    same = [row for row in rows if row[1] == row[2] and close(row[3], row[4], 0.01)]
    better = [str(row[0]) for row in rows if row[1] > row[6] and row[2] < row[7]]
    return Finding(
        id="quoted-deebert",
        paper=PAPER,
        claim="The DeeBERT row of Table 3 is development scores and FLOPs ratios, as in its neighbours",
        computation="legible cells against DeeBERT's own test scores (its third operating point) and 1 / (1 - share of "
        "P100 time saved), within 1 %",
        columns=("Task", "Score", "Own test score", "Speed-up", "Own time ratio", "Time saved %", "Dense", "Own dense"),
        numbers=tuple(rows),
        holds=len(same) < len(rows),
        summary=f"{len(same)} of {len(rows)} cells are test scores and time ratios. Above this table's baseline, "
        "though "
        f"below its own: {', '.join(better) or 'none'}.",
        flags=frozenset(read.flags),
    )


def lat_row() -> Finding:
    """2.90x and 2.80x are both 1 / 0.35."""
    read = Reader(PAPER)
    rows = []
    for task in ("sst2", "mnli"):
        quoted = read.cell("3", "bert-base", "lat", "sequence", task)
        relative = read.value("main_dagger", "bert-base", "lat", "sequence", task, "relative_macs", paper="lat")
        score = read.value("main_dagger", "bert-base", "lat", "sequence", task, "accuracy", paper="lat")
        low, high = 1 / (relative + 0.005), 1 / (relative - 0.005)
        assert quoted.speedup and quoted.value
        fits = low - 0.05 <= quoted.speedup <= high + 0.05
        rows.append((title(task), quoted.value, score, quoted.speedup, relative, low, high, yes(fits)))
    return Finding(
        id="quoted-lat",
        paper=PAPER,
        claim="The LAT row of Table 3 carries LAT's own figures",
        computation="1 / relative MACs, which are printed to two decimals, against the speed-up to one decimal",
        columns=("Task", "Score", "Own score", "Speed-up", "Relative MACs", "At least", "At most", "Fits"),
        numbers=tuple(rows),
        holds=all(row[7] == "yes" and row[1] == row[2] for row in rows),
        summary=f"{sum(row[7] == 'yes' for row in rows)} of {len(rows)} cells fit; different speed-ups "
        f"({', '.join(f'{row[3]:.2f}' for row in rows)}) stand for relative MACs of "
        f"{', '.join(f'{row[4]:.2f}' for row in rows)}.",
        flags=frozenset(read.flags),
    )


def imdb_cells() -> Finding:
    """The LAT cell on IMDB equals PoWER-BERT's own figure, and the PoWER-BERT cell does not."""
    read = Reader(PAPER)
    own = read.cell("long", "bert-base", "power_bert", "sequence", "imdb", "accuracy", paper="power_bert")
    rows = []
    for method, padding in (("lat", "batch"), ("power_bert", "sequence")):
        cell = read.cell("4", "bert-base", method, padding, "imdb")
        same = (cell.value, cell.speedup) == (own.value, own.speedup)
        rows.append((method, cell.value, cell.speedup, own.value, own.speedup, yes(same)))
    return Finding(
        id="quoted-imdb",
        paper=PAPER,
        claim="The IMDB cells of LAT and PoWER-BERT in Table 4 are those methods' own results",
        computation="both cells against the IMDB result of the PoWER-BERT paper; the LAT paper has none",
        columns=("Row", "Score", "Speed-up", "PoWER-BERT's score", "PoWER-BERT's speed-up", "Equal"),
        numbers=tuple(rows),
        holds=[row[5] for row in rows] == ["no", "yes"],
        summary="Equal to PoWER-BERT's own published pair: "
        + (", ".join(str(row[0]) for row in rows if row[5] == "yes") or "neither")
        + ".",
        flags=frozenset(read.flags),
    )


def ltp_label() -> Finding:
    """LTP's GFLOPs are those of unpadded texts."""
    read = Reader("ltp")
    padded = read.value("recipe", "roberta-base", "ltp", "", "any", "padded_length")
    rows = []
    for task in ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "squad_v2"):
        gflops = read.value("main", "roberta-base", "dense", "none", task, "gflops")
        tokens = solve(lambda n: 2e-9 * encoder_macs(n), gflops, 1, 2048)
        assert tokens
        rows.append((title(task), gflops, tokens, average_length(task), tokens - average_length(task)))
    near = [row for row in rows if abs(row[4]) <= NEAR]
    return Finding(
        id="quoted-ltp-padding",
        paper=PAPER,
        claim='LTP is measured with padding ("Batch" in Table 3)',
        computation="length n at which 24 (7,077,888 n + 1536 n^2) gives the dense GFLOPs, against Table 2's average",
        columns=("Task", "Dense GFLOPs", "Equivalent length", "Average", "Difference"),
        numbers=tuple(rows),
        holds=len(near) < len(rows) / 2,
        summary=f"{len(near)} of {len(rows)} equivalent lengths lie within {NEAR} tokens of the unpadded average, "
        "where LTP "
        f"pads GLUE to {padded:.0f}. Not near: "
        + (", ".join(f"{row[0]} ({row[2]:.0f} for {row[3]})" for row in rows if row not in near) or "none")
        + ".",
        flags=frozenset(read.flags),
    )


def roberta_baseline() -> Finding:
    """The RoBERTa rows carry LTP's averaged metrics under one column heading."""
    read = Reader(PAPER)
    frame = load_reported("ltp")
    rows, mixed = [], []
    for task in GLUE:
        metrics = frame[(frame["table"] == "main") & (frame["task"] == task) & (frame["metric"] != "gflops")]["metric"]
        for method, padding in (("dense", ""), ("ltp", "batch")):
            quoted = read.cell("3", "roberta-base", method, padding, task)
            if quoted.value is None or quoted.flag == "filled" or metrics.empty:
                continue
            metric = metrics.iloc[0]
            own = read.value("main", "roberta-base", method, "none", task, metric, paper="ltp")
            same = agrees(quoted.value, own, 1)
            mixed += [title(task)] if same and metric != quoted.metric and title(task) not in mixed else []
            rows.append((title(task), method, quoted.metric, quoted.value, metric, own, yes(same)))
    equal = sum(row[6] == "yes" for row in rows)
    return Finding(
        id="quoted-ltp-metrics",
        paper=PAPER,
        claim="All scores of a column of Table 3 are of one metric",
        computation="legible RoBERTa and LTP cells against LTP's published scores, rounded to one decimal",
        columns=("Task", "Row", "Metric here", "Score", "LTP's metric", "LTP's score", "Equal"),
        numbers=tuple(rows),
        holds=not mixed,
        summary=f"{equal} of {len(rows)} cells are LTP's; of another metric than the column: "
        f"{', '.join(mixed) or 'none'}.",
        flags=frozenset(read.flags),
    )


def deformer_cell() -> Finding:
    """2.19x on SQuAD v2 is possible only with lower layers that nobody counts."""
    read = Reader(PAPER)
    quoted = read.cell("4", "bert-base", "deformer", "sequence", "squad_v2")
    dense = read.value("4", "bert-base", "dense", "", "squad_v2")
    question = int(
        read.value("recipe", "bert-base", "deformer", "sequence", "squad_v1", "first_slot", paper="deformer")
    )
    passage = input_length("squad_v2") - question
    own = [
        read.value("readme", "bert-base", name, "sequence", "squad_v1", "f1", paper="deformer")
        for name in ("dense", "deformer")
    ]
    full = encoder_macs(question + passage)
    rows = []
    for lower in range(1, 12):
        cached, whole = (full / decomposed_macs(question, passage, lower, reuse=r) for r in (None, 1))
        rows.append((lower, cached, whole))
    assert quoted.speedup and quoted.value
    printed = quoted.speedup
    near = min(rows, key=lambda row: abs(row[1] - printed))
    published = "squad_v2" in set(load_reported("deformer")["task"])
    return Finding(
        id="quoted-deformer",
        paper=PAPER,
        claim=f"DeFormer needs {printed}x fewer FLOPs on SQuAD v2",
        computation=f"{question} + {passage} tokens, lower layers 1 to 11: with the passage's lower layers computed "
        "offline and not counted, and with everything counted",
        columns=("Lower layers", "Passage cached", "Everything counted"),
        numbers=tuple(rows),
        holds=max(row[2] for row in rows) >= printed,
        summary=f"It fits {near[0]} lower layers with a cached passage ({near[1]:.2f}x); with everything counted no "
        f"split exceeds {max(row[2] for row in rows):.2f}x. The DeFormer paper {'has' if published else 'has no'} "
        f"SQuAD v2; the loss of {dense - quoted.value:.1f} F1 here is {(dense - quoted.value) / (own[0] - own[1]):.1f} "
        f"times the {own[0] - own[1]:.1f} of its README on SQuAD 1.1.",
        flags=frozenset(read.flags),
    )


FINDINGS = (
    unpadding,
    padding_votes,
    power_bert_row,
    deebert_row,
    lat_row,
    imdb_cells,
    ltp_label,
    roberta_baseline,
    deformer_cell,
)
