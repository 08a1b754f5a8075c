"""Findings on DeFormer (cached pairs) and on early exit: DeeBERT and PABEE."""

from __future__ import annotations

from benchmarks.audit_findings import Finding, Reader, agrees, title, yes
from benchmarks.formulas import (
    BERT_BASE,
    BERT_LARGE,
    Sizes,
    bert_parameters,
    classifier_macs,
    encoder_macs,
    layer_macs,
)
from benchmarks.reported import load_reported

PAIR_TASKS = ("squad_v1", "race", "boolq", "mnli", "qqp")
RERUN_TASKS = ("rte", "mrpc", "qqp", "sst2", "qnli", "mnli")
REUSES = (1, 2, 5, 10, 100)
REAL_TOKENS = (14, 150)  # of a SQuAD question and passage, without padding


def decomposed_macs(
    online: float, cached: float, lower: int, *, reuse: float | None = None, sizes: Sizes = BERT_BASE
) -> float:
    """MACs of a pair whose texts meet only above `lower` layers.

    Args:
        online, cached: tokens of the text computed at question time, and of the other one.
        reuse: questions asked of one cached text, over which its lower layers are spread; None counts them nowhere.
    """
    below = lower * layer_macs(online, sizes)
    above = (sizes.layers - lower) * layer_macs(online + cached, sizes)
    return below + above + (0 if reuse is None else lower * layer_macs(cached, sizes) / reuse)


def _slots(read: Reader, task: str) -> tuple[int, int]:
    """Tokens of the text computed at question time and of the cached one."""
    sizes = {}
    for name in ("first_slot", "second_slot"):
        cell = read.cell("recipe", "bert-base", "deformer", "sequence", task, name, paper="deformer")
        assert cell.value is not None
        sizes["cached" if cell.note.endswith("; cached") else "online"] = int(cell.value)
    return sizes["online"], sizes["cached"]


def _speedup(online: float, cached: float, lower: int, reuse: float | None = None, sizes: Sizes = BERT_BASE) -> float:
    dense = encoder_macs(online + cached, sizes)
    return dense / decomposed_macs(online, cached, lower, reuse=reuse, sizes=sizes)


def recount() -> Finding:
    """DeFormer's main table from its slot lengths."""
    read = Reader("deformer")
    lower = int(read.value("recipe", "bert-base", "deformer", "sequence", "any", "lower_layers"))
    rows = []
    for task in PAIR_TASKS:
        metric = "f1" if task == "squad_v1" else "accuracy"
        printed = read.speedup("main", "bert-base", "deformer", "sequence", task, metric)
        online, cached = _slots(read, task)
        ours, other = (_speedup(online, cached, k) for k in (lower, lower + 1))
        rows.append((title(task), online, cached, printed, ours, other, yes(agrees(printed, ours, 1))))
    wrong = [f"{row[0]} ({row[3]} printed, {row[4]:.2f} computed)" for row in rows if row[6] == "no"]
    return Finding(
        id="deformer-recount",
        paper="deformer",
        claim="DeFormer's speed-ups follow from its slots with 9 lower layers",
        computation="12 c(q + p) / (k c(u) + (12 - k) c(q + p)), c(m) = 12 m d^2 + 2 m^2 d, u = slot computed online",
        columns=("Task", "Online", "Cached", "Printed", f"k = {lower}", f"k = {lower + 1}", "Agrees"),
        numbers=tuple(rows),
        holds=not wrong,
        summary=f"{len(rows) - len(wrong)} of {len(rows)} agree to one decimal; not explained: "
        f"{', '.join(wrong) or 'none'}.",
        flags=frozenset(read.flags),
    )


def reuse() -> Finding:
    """The saving is the cache: the speed-up by how often a passage is asked."""
    read = Reader("deformer")
    lower = int(read.value("recipe", "bert-base", "deformer", "sequence", "any", "lower_layers"))
    online, cached = _slots(read, "squad_v1")
    rows = [(str(count), _speedup(online, cached, lower, count)) for count in REUSES]
    rows.append(("not counted", _speedup(online, cached, lower)))
    return Finding(
        id="deformer-reuse",
        paper="deformer",
        claim="Keeping two texts apart in the lower layers saves computation",
        computation=f"SQuAD, {online} + {cached} tokens, {lower} lower layers; those of the passage spread over the "
        "questions asked of it; below 1.05x counts as none",
        columns=("Questions per passage", "Speed-up"),
        numbers=tuple(rows),
        holds=not agrees(1.0, rows[0][1], 1),
        summary=f"Without a cache it is {rows[0][1]:.3f}x; {rows[-1][1]:.2f}x is reached only where the passage's "
        "lower "
        "layers count nowhere.",
        flags=frozenset(read.flags),
    )


def large() -> Finding:
    """What "over 4.3x" belongs to, and BERT-large decomposed beside BERT-base."""
    read = Reader("deformer")
    claimed = read.speedup("text", "", "deformer", "", "any", "headline")
    small = int(read.value("recipe", "bert-base", "deformer", "sequence", "any", "lower_layers"))
    split = int(read.value("recipe", "bert-large", "deformer", "sequence", "any", "lower_layers"))
    online, cached = _slots(read, "squad_v1")
    rows = []
    for name, sizes, lowers in (("bert-base", BERT_BASE, range(1, 12)), ("bert-large", BERT_LARGE, (split, split + 1))):
        for lower in lowers:
            macs = decomposed_macs(online, cached, lower, sizes=sizes)
            rows.append((name, lower, encoder_macs(online + cached, sizes) / macs, 2e-9 * macs))
    base = 2e-9 * encoder_macs(online + cached)
    fits = [f"{row[0]} with {row[1]}" for row in rows if agrees(claimed, row[2], 1)]
    default = next(row[2] for row in rows if row[:2] == ("bert-base", small))
    lean = next(row[3] for row in rows if row[0] == "bert-large")
    return Finding(
        id="deformer-headline",
        paper="deformer",
        claim=f"Over {claimed}x faster",
        computation="SQuAD slots, passage cached, by encoder and lower layers",
        columns=("Encoder", "Lower layers", "Speed-up", "GFLOPs"),
        numbers=tuple(rows),
        holds=bool(fits),
        summary=f"To one decimal it fits {', '.join(fits) or 'no split'}; the default of {small} lower layers gives "
        f"{default:.2f}x. Decomposed BERT-large needs {lean:.1f} GFLOPs, plain BERT-base {base:.1f}.",
        flags=frozenset(read.flags),
    )


def pair_padding() -> Finding:
    """A padded baseline gives DeFormer no bonus."""
    read = Reader("deformer")
    lower = int(read.value("recipe", "bert-base", "deformer", "sequence", "any", "lower_layers"))
    slots = _slots(read, "squad_v1")
    rows = [(name, *sizes, _speedup(*sizes, lower)) for name, sizes in (("slots", slots), ("real", REAL_TOKENS))]
    return Finding(
        id="deformer-padding",
        paper="deformer",
        claim="DeFormer's speed-up does not come from padding",
        computation=f"SQuAD at slot lengths and at about {REAL_TOKENS[0]} + {REAL_TOKENS[1]} real tokens",
        columns=("Lengths", "Question", "Passage", "Speed-up"),
        numbers=tuple(rows),
        holds=agrees(round(rows[0][3], 1), rows[1][3], 1),
        summary=f"{rows[0][3]:.2f}x padded, {rows[1][3]:.2f}x without padding.",
        flags=frozenset(read.flags),
    )


def pair_latency() -> Finding:
    """Latency ratios of DeFormer beside its FLOPs ratio."""
    read = Reader("deformer")
    printed = read.speedup("main", "bert-base", "deformer", "sequence", "squad_v1", "f1")
    rows = []
    for device in ("v100", "i9", "oneplus6"):
        dense, own = (
            read.value("latency", "bert-base", method, "sequence", "squad_v1", f"{device}_latency_s")
            for method in ("dense", "deformer")
        )
        rows.append((device, dense, own, dense / own, dense / own / printed))
    return Finding(
        id="deformer-latency",
        paper="deformer",
        claim=f"Measured time falls as FLOPs do ({printed}x on SQuAD)",
        computation="seconds before / after, and that over the FLOPs ratio; near = within a fifth",
        columns=("Device", "Before", "After", "Ratio", "Ratio / FLOPs ratio"),
        numbers=tuple(rows),
        holds=all(abs(row[4] - 1) <= 0.2 for row in rows),
        summary=f"Ratios of {', '.join(f'{row[3]:.1f}x' for row in rows)}.",
        flags=frozenset(read.flags),
    )


def pair_cache() -> Finding:
    """What a cached text takes on disk."""
    read = Reader("deformer")
    rows = []
    for task in PAIR_TASKS:
        _, cached = _slots(read, task)
        rows.append((title(task), cached, 4e-6 * cached * BERT_BASE.width, 2e-6 * cached * BERT_BASE.width))
    return Finding(
        id="deformer-cache",
        paper="deformer",
        claim="What a text takes whose lower layers are stored",
        computation="tokens of the cached slot x 768 x 4 or 2 bytes, per text or window",
        columns=("Task", "Cached tokens", "MB in float32", "MB in float16"),
        numbers=tuple(rows),
        holds=None,
        summary=f"{rows[0][2]:.2f} MB per SQuAD window and {rows[1][2]:.2f} MB per RACE article in float32.",
        flags=frozenset(read.flags),
    )


def exit_headline() -> Finding:
    """About 40 % of the time saved with minimal loss."""
    frame = load_reported("deebert")
    points = frame[frame["table"].isin(["main_a", "main_b", "main_c"]) & (frame["method"] == "deebert")]
    read = Reader("deebert")
    rows = []
    for point in points.itertuples(index=False):
        base = read.value("main", point.backbone, "dense", "sequence", point.task, point.metric)
        read.flags.add(point.flag)
        saved = 100 * (1 - 1 / point.speedup)
        rows.append((point.backbone, title(point.task), point.table[-1], point.value - base, saved))
    small = [row for row in rows if row[3] > -1 + 1e-9]
    most = max(small, key=lambda row: row[4])
    return Finding(
        id="deebert-headline",
        paper="deebert",
        claim="Up to about 40 % of the time is saved with minimal loss",
        computation="100 (1 - 1 / time ratio) of every operating point; minimal = less than 1 point, about = within 5 "
        "%",
        columns=("Encoder", "Task", "Point", "Change", "Time saved %"),
        numbers=tuple(rows),
        holds=abs(most[4] - 40) <= 5,
        summary=f"The most at less than 1 point is {most[4]:.0f} % ({most[0]}, {most[1]}, {most[3]:+.1f}).",
        flags=frozenset(read.flags),
    )


def exit_overhead() -> Finding:
    """What DeeBERT's off-ramps cost a text that never leaves."""
    ramps, ramp = BERT_BASE.layers - 1, classifier_macs()
    rows = []
    for n in (16, 64, 128, 512):
        dense = encoder_macs(n) + ramp
        rows.append((n, dense / (dense + ramps * ramp), 100 * ramp / layer_macs(n)))
    d = BERT_BASE.width
    parameters = ramps * (d * d + d + 2 * d + 2)
    return Finding(
        id="deebert-overhead",
        paper="deebert",
        claim="What off-ramps cost a text that never leaves",
        computation="dense / (dense + eleven off-ramps) for a text that never exits; one off-ramp over one layer",
        columns=("Tokens", "Speed-up without exits", "Off-ramp / layer %"),
        numbers=tuple(rows),
        holds=None,
        summary=f"A text that never exits runs at {rows[2][1]:.4f}x at {rows[2][0]} tokens; eleven off-ramps add "
        f"{parameters / 1e6:.1f} M parameters, {100 * parameters / bert_parameters():.1f} %.",
    )


def exit_histogram() -> Finding:
    """A user's exit counts against the fraction of layers that the code printed."""
    frame = load_reported("deebert")
    rows = []
    for table in ("issue4_s0.05", "issue4_s0.1"):
        part = frame[(frame["table"] == table) & frame["metric"].str.startswith("exits_layer_")]
        layers = part["metric"].str.removeprefix("exits_layer_").astype(int)
        texts = part["value"].sum()
        fraction = float((layers * part["value"]).sum() / texts / BERT_BASE.layers)
        printed = Reader("deebert").value(table, "bert-base", "deebert", "sequence", "mrpc", "fraction_of_layers")
        rows.append((table.removeprefix("issue4_s"), int(texts), printed, fraction, yes(agrees(printed, fraction, 3))))
    return Finding(
        id="deebert-exits",
        paper="deebert",
        claim="The printed fraction of layers is that of the exit counts",
        computation="sum of layer x texts that left there / (texts x 12), a user's runs on MRPC",
        columns=("Threshold", "Texts", "Printed", "From counts", "Agrees"),
        numbers=tuple(rows),
        holds=all(row[4] == "yes" for row in rows),
        summary=f"{sum(row[4] == 'yes' for row in rows)} of {len(rows)} agree to three decimals.",
        flags=frozenset(frame[frame["table"].isin(["issue4_s0.05", "issue4_s0.1"])]["flag"]),
    )


def _reruns(method: str) -> Finding:
    read = Reader("deebert")
    rows = []
    for task in RERUN_TASKS:
        metric = "f1" if task in ("mrpc", "qqp") else "accuracy"
        own = read.cell("reruns", "bert-base", method, "", task, metric)
        half = read.value("reruns", "bert-base", "dense_6_layers", "", task, metric)
        assert own.value is not None
        rows.append((title(task), metric, own.value, own.speedup, half, own.value - half))
    below = [str(row[0]) for row in rows if row[5] < 0]
    return Finding(
        id=f"{method}-half-depth",
        paper=method,
        claim=f"At about 2x, {'DeeBERT' if method == 'deebert' else 'PABEE'} is better than BERT cut to six layers",
        computation="re-runs by later papers, GLUE test set, speed-up by layers; score - score of six layers (2.00x)",
        columns=("Task", "Metric", "Score", "Speed-up", "Six layers", "Difference"),
        numbers=tuple(rows),
        holds=not below,
        summary=f"Below six plain layers on {len(below)} of {len(rows)} tasks: {', '.join(below) or 'none'}.",
        flags=frozenset(read.flags),
    )


def deebert_half_depth() -> Finding:
    """DeeBERT against the first half of BERT."""
    return _reruns("deebert")


def pabee_half_depth() -> Finding:
    """PABEE against the first half of BERT."""
    return _reruns("pabee")


# From the official README (GLUE development sets): encoder, its layers, ratio. The patience of 6 is from memory.
PABEE_RATIOS = (("albert-base", 12, 1.57), ("bert-base", 12, 1.62), ("albert-large", 24, 2.42))
PABEE_PATIENCE = 6


def pabee_speed_up() -> Finding:
    """PABEE's log prints a saving under the name of a speed-up."""
    rows = []
    for name, layers, ratio in PABEE_RATIOS:
        run = layers / ratio
        rows.append((name, layers, ratio, run, 1 - run / layers, layers / (PABEE_PATIENCE + 1)))
    return Finding(
        id="pabee-speed-up",
        paper="pabee",
        claim='The log\'s "Speed Up" is the speed-up of the table',
        computation='the official code prints 1 - layers run / layers as "Speed Up"; ratio = layers / layers run; '
        f"patience t runs at least t + 1 layers, here t = {PABEE_PATIENCE} (from memory)",
        columns=("Encoder", "Layers", "Table's ratio", "Layers run", "Log's figure", "Highest at this patience"),
        numbers=tuple(rows),
        holds=all(agrees(row[2], row[4], 2) for row in rows),
        summary=f"It is a saving: {', '.join(f'{row[2]:.2f}x is logged as {row[4]:.2f}' for row in rows)}.",
    )


FINDINGS = (
    recount,
    reuse,
    large,
    pair_padding,
    pair_latency,
    pair_cache,
    exit_headline,
    exit_overhead,
    exit_histogram,
    deebert_half_depth,
    pabee_half_depth,
    pabee_speed_up,
)
