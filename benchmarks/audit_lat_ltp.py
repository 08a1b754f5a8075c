"""Findings on LAT and LTP: bounds of the search, padding, checkpoints; thresholds against scores."""

from __future__ import annotations

from math import ceil

from benchmarks.audit_findings import (
    GLUE_WITHOUT_WNLI,
    UNCHECKED,
    Finding,
    Reader,
    agrees,
    average_length,
    title,
    yes,
)
from benchmarks.audit_power_bert import rate_sum
from benchmarks.formulas import (
    BERT_BASE,
    DISTILBERT,
    attention_macs,
    dropping_macs,
    encoder_macs,
    feed_forward_macs,
    smallest_lengths,
)
from benchmarks.reported import load_reported
from benchmarks.tasks import GLUE, OFFICIAL_ROWS

LAT_LENGTHS = ((12, 64), (12, 128), (12, 256), (12, 384), (12, 512), (6, 128), (6, 384))


def lat_floor() -> Finding:
    """The cheapest published points are the cheapest that the search may visit."""
    read = Reader("lat")
    ratio = read.value("recipe", "bert-base", "lat", "sequence", "any", "drop_ratio")
    published = {12: "bert-base", 6: "distilbert-base"}
    rows, decided, flags = [], [], set(read.flags)
    for layers, length in LAT_LENGTHS:
        sizes = BERT_BASE if layers == BERT_BASE.layers else DISTILBERT
        lengths = smallest_lengths(length, ratio, layers)
        dense, least = encoder_macs(length, sizes), dropping_macs(length, lengths, sizes)
        printed = ""
        for task in ("mnli", "sst2") if length == 128 else ():
            cell = read.cell("main_dagger", published[layers], "lat", "sequence", task, "relative_macs")
            assert cell.value is not None
            printed += f"{title(task)} {cell.value:.2f} "
            if cell.flag not in UNCHECKED:
                decided.append(agrees(cell.value, least / dense, 2))
                flags.add(cell.flag)
        rows.append((layers, length, lengths[-1], dense, least, least / dense, dense / least, printed.strip()))
    return Finding(
        id="lat-floor",
        paper="lat",
        claim="LAT's cheapest published points show where accuracy starts to suffer",
        computation=f"smallest configuration: each layer keeps ceil({1 - ratio:.1f} x what it got); the search stays "
        "above its "
        "MACs; a point that rounds to this floor shows the bound of the search",
        columns=("Layers", "Length", "Last length", "Dense MACs", "Smallest MACs", "Relative", "Speed-up", "Published"),
        numbers=tuple(rows),
        holds=not all(decided),
        summary=f"{sum(decided)} of {len(decided)} checked points sit on the floor of {rows[1][5]:.3f} (12 layers, 128 "
        f"tokens); with 6 layers it is {rows[5][5]:.3f}, against {rows[5][7]} as remembered.",
        flags=frozenset(flags),
    )


def lat_real_tokens() -> Finding:
    """At fixed length the smallest configuration drops padding first, and unpadded BERT is cheaper."""
    read = Reader("lat")
    ratio = read.value("recipe", "bert-base", "lat", "sequence", "any", "drop_ratio")
    length = int(read.value("recipe", "bert-base", "lat", "sequence", "glue", "input_length"))
    lengths = smallest_lengths(length, ratio, BERT_BASE.layers)
    rows = []
    for task in ("mnli", "sst2"):
        own = read.value("main_dagger", "bert-base", "lat", "sequence", task, "relative_macs")
        average = average_length(task)
        first = next(layer for layer, kept in enumerate(lengths, 1) if kept < average)
        rows.append(
            (title(task), average, own, encoder_macs(average) / encoder_macs(length), first, lengths[first - 1])
        )
    cheaper = [row for row in rows if row[2] < row[3]]
    return Finding(
        id="lat-real-tokens",
        paper="lat",
        claim="LAT's cheapest points need fewer MACs than BERT without padding",
        computation=f"dense(average) / dense({length}), both against BERT padded to {length}; first layer of the "
        "smallest "
        "configuration that keeps fewer tokens than the average text has",
        columns=("Task", "Average", "LAT", "BERT unpadded", "First layer that drops text", "Tokens it keeps"),
        numbers=tuple(rows),
        holds=len(cheaper) == len(rows),
        summary="; ".join(
            f"{row[0]}: {row[2]:.2f} by LAT, {row[3]:.2f} by unpadding alone, no text dropped before layer {row[4]}"
            for row in rows
        )
        + ".",
        flags=frozenset(read.flags),
    )


def lat_checkpoints() -> Finding:
    """Small tasks end before the official script's first checkpoint."""
    read = Reader("lat")

    def setting(name: str) -> int:
        return int(read.value("recipe", "bert-base", "lat", "sequence", "any", name))

    rows = []
    for task in GLUE:
        updates = ceil(OFFICIAL_ROWS[task][0] / setting("batch_size")) * setting("epochs")
        rows.append((title(task), OFFICIAL_ROWS[task][0], updates, updates // setting("save_interval")))
    never = [str(row[0]) for row in rows if row[3] == 0]
    return Finding(
        id="lat-checkpoints",
        paper="lat",
        claim="The official command trains and saves a model for every GLUE task",
        computation=f"ceil(rows / {setting('batch_size')}) x {setting('epochs')} epochs, a checkpoint every "
        f"{setting('save_interval')} updates",
        columns=("Task", "Training rows", "Updates", "Checkpoints"),
        numbers=tuple(rows),
        holds=not never,
        summary=f"Nothing is ever saved for {', '.join(never) or 'no task'}.",
        flags=frozenset(read.flags),
    )


def random_lengths(length: int, ratio: float, layers: int) -> tuple[float, float]:
    """Exact means over LengthDrop's random configurations: share of tokens kept, and MACs (12 or 6 layers)."""
    sizes = BERT_BASE if layers == BERT_BASE.layers else DISTILBERT
    chances = {length: 1.0}
    kept = macs = 0.0
    for _ in range(layers):
        after: dict[int, float] = {}
        for entering, chance in chances.items():
            least = max(smallest_lengths(entering, ratio, 1)[0], 2)
            macs += chance * attention_macs(entering, sizes)
            for left in range(least, entering + 1):
                after[left] = after.get(left, 0.0) + chance / (entering - least + 1)
        mean = sum(left * chance for left, chance in after.items())
        kept += mean
        macs += feed_forward_macs(mean, sizes)
        chances = after
    return kept / (layers * length), macs


def lat_training() -> Finding:
    """What one step of the sandwich rule costs, and how often the search looks at the development set."""
    read = Reader("lat")

    def setting(task: str, name: str) -> float:
        return read.value("recipe", "bert-base", "lat", "sequence", task, name)

    ratio, passes = setting("any", "drop_ratio"), int(setting("any", "random_passes"))
    rows = []
    for task in ("glue", "squad_v1"):
        length = int(setting(task, "input_length"))
        share, macs = random_lengths(length, ratio, BERT_BASE.layers)
        least = dropping_macs(length, smallest_lengths(length, ratio, BERT_BASE.layers)) / encoder_macs(length)
        one = macs / encoder_macs(length)
        rows.append((length, share, least, one, 1 + least + passes * one))
    looks = 2 + setting("any", "population")
    looks += setting("any", "iterations") * (setting("any", "mutants") + setting("any", "crossovers"))
    return Finding(
        id="lat-training",
        paper="lat",
        claim="What LAT's training and search cost",
        computation=f"a step is one full, one smallest and {passes} random passes (exact means over random lengths, no "
        "layer skipped); the search evaluates first configurations, mutants and crossovers",
        columns=("Length", "Tokens kept at random", "Smallest pass", "Random pass", "Step / plain step"),
        numbers=tuple(rows),
        holds=None,
        summary=f"A step costs {rows[0][4]:.1f} plain ones; the search may look {looks:,.0f} times at the development "
        "set "
        "on which its result is then reported.",
        flags=frozenset(read.flags),
    )


def _ltp_rows(read: Reader) -> list[tuple[str, float, float, float, str]]:
    """Task, dense score, LTP's score, speed-up and flag of every task."""
    frame = load_reported("ltp")
    main = frame[(frame["table"] == "main") & (frame["method"] == "ltp") & (frame["metric"] != "gflops")]
    rows = []
    for task, metric in zip(main["task"], main["metric"], strict=True):
        dense, own = (read.cell("main", "roberta-base", name, "none", task, metric) for name in ("dense", "ltp"))
        assert dense.value is not None and own.value is not None and own.speedup is not None
        rows.append((str(task), dense.value, own.value, own.speedup, own.flag))
    return rows


def ltp_quotients() -> Finding:
    """LTP's speed-ups are the quotients of its GFLOPs."""
    read = Reader("ltp")
    rows = []
    for task, _, _, printed, _ in _ltp_rows(read):
        dense, own = (read.value("main", "roberta-base", name, "none", task, "gflops") for name in ("dense", "ltp"))
        rows.append((title(task), dense, own, printed, dense / own, yes(agrees(printed, dense / own, 2))))
    right = sum(row[5] == "yes" for row in rows)
    return Finding(
        id="ltp-quotients",
        paper="ltp",
        claim="The speed-ups are quotients of the printed GFLOPs",
        computation="GFLOPs of RoBERTa / GFLOPs of LTP, to two decimals",
        columns=("Task", "RoBERTa", "LTP", "Printed", "Quotient", "Agrees"),
        numbers=tuple(rows),
        holds=right == len(rows),
        summary=f"{right} of {len(rows)} agree.",
        flags=frozenset(read.flags),
    )


def ltp_headline() -> Finding:
    """Up to 2.1x with less than a point lost."""
    read = Reader("ltp")
    claimed = read.speedup("text", "roberta-base", "ltp", "", "any", "flops_headline")
    allowed = read.value("text", "roberta-base", "ltp", "", "any", "score_drop_points")
    flags = set(read.flags)
    rows, best = [], 0.0
    for task, dense, own, speedup, flag in _ltp_rows(read):
        inside = dense - own < allowed - 1e-9
        rows.append((title(task), dense, own, dense - own, speedup, yes(inside), flag))
        if inside and flag not in UNCHECKED:
            best = max(best, speedup)
            flags.add(flag)
    over = [f"{row[0]} ({row[3]:.2f})" for row in rows if row[5] == "no"]
    return Finding(
        id="ltp-headline",
        paper="ltp",
        claim=f"Up to {claimed}x fewer FLOPs at less than {allowed:.0f} point lost",
        computation="largest speed-up among the checked rows that lose less",
        columns=("Task", "RoBERTa", "LTP", "Loss", "Speed-up", "Loses less", "Source"),
        numbers=tuple(rows),
        holds=agrees(claimed, best, 1),
        summary=f"The largest is {best:.2f}x; not below {allowed:.0f} point: {', '.join(over) or 'none'}.",
        flags=frozenset(flags),
    )


def ltp_thresholds() -> Finding:
    """Initial thresholds as multiples of the mean score, which the padded length fixes."""
    read = Reader("ltp")
    final = read.value("recipe", "roberta-base", "ltp", "", "any", "final_threshold")
    padded = read.value("recipe", "roberta-base", "ltp", "", "any", "padded_length")
    layers = BERT_BASE.layers
    rows = []
    for layer in range(1, layers + 1):
        code, documented = final * (layer - 1) / layers, final * layer / layers
        rows.append((layer, code, documented, code * padded, documented * padded))
    above = [row[0] for row in rows if row[3] > 1]
    return Finding(
        id="ltp-thresholds",
        paper="ltp",
        claim="Initial thresholds beside the mean score",
        computation=f"scores are column sums / (heads x {padded:.0f}), so the live tokens' mean is 1/{padded:.0f} for "
        "any text; "
        "thresholds over that mean. With the text's own length n as divisor the mean is 1/n",
        columns=("Layer", "Threshold, code", "Threshold, README", "Code / mean", "README / mean"),
        numbers=tuple(rows),
        holds=None,
        summary=f"Above the mean from the start in layers {', '.join(map(str, above)) or 'none'} of the code: there at "
        f"least one token falls, whatever the text. By the paper's divisor {final} is {final * 20:.1f} times the mean "
        "at 20 "
        f"tokens and {final * 128:.2f} times at 128; padded to 384 it is {final * 384:.2f} times.",
        flags=frozenset(read.flags),
    )


def ltp_reach() -> Finding:
    """How far a threshold can travel in the soft stage."""
    read = Reader("ltp")

    def setting(name: str) -> float:
        return read.value("recipe", "roberta-base", "ltp", "", "any", name)

    rows = []
    for task in GLUE_WITHOUT_WNLI:
        updates = ceil(OFFICIAL_ROWS[task][0] / setting("batch_size")) * int(
            setting("epochs") if task in ("rte", "mrpc") else 1
        )
        moved = rate_sum(setting("learning_rate"), updates, 0.0)
        rows.append((title(task), updates, moved, moved * setting("padded_length")))
    short = [str(row[0]) for row in rows if row[3] < 1]
    return Finding(
        id="ltp-threshold-reach",
        paper="ltp",
        claim="How far thresholds can move in the soft stage",
        computation="Adam moves a threshold by about the learning rate per update: sum of the linearly decaying rates "
        "(10 epochs on RTE and MRPC, 1 elsewhere), also over the mean score",
        columns=("Task", "Updates", "Highest move", "Move / mean score"),
        numbers=tuple(rows),
        holds=None,
        summary=f"Less than one mean score in the whole soft stage on {', '.join(short) or 'no task'}: there the "
        "initial "
        "schedule decides.",
        flags=frozenset(read.flags),
    )


FINDINGS = (
    lat_floor,
    lat_real_tokens,
    lat_checkpoints,
    lat_training,
    ltp_quotients,
    ltp_headline,
    ltp_thresholds,
    ltp_reach,
)
