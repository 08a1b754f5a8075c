"""What each finding of the audit must compute: verdict, then (row, column, value, tolerance).

A row is named by its first cell, or by its number from 0 (-1: the last). The values were worked out by hand, apart from
the code under test.
"""

from __future__ import annotations

from typing import Any

HOLDS, FAILS, OPEN, INFO = "holds", "does not hold", "unconfirmed", "information"

Check = tuple[Any, str, Any, float]
NUMBERS: dict[str, tuple[str, list[Check]]] = {
    # Transkimmer's own rows
    "transkimmer-averages": (
        FAILS,
        [
            ("bert-base, sequence", "Printed", 10.97, 0),
            ("bert-base, sequence", "Mean of cells", 11.40, 0.005),
            ("bert-base, none", "Mean of cells", 2.83, 0.005),
            ("roberta-base, none", "Mean of cells", 3.24, 0.005),
            ("roberta-base, none", "Agrees", "yes", 0),
            ("bert-base, sequence", "Excess of the sum", 3.86, 0.005),
        ],
    ),
    "transkimmer-sequence": (
        FAILS,
        [
            ("CoLA", "By Table 2", 9.7, 0.05),
            ("CoLA", "By 128", 18.5, 0.05),
            ("CoLA", "Fits", "128", 0),
            ("RTE", "By Table 2", 11.2, 0.05),
            ("RTE", "By 128", 5.67, 0.005),
            ("RTE", "Fits", "neither", 0),
            ("QQP", "By Table 2", 11.4, 0.05),
            ("MRPC", "By Table 2", 7.45, 0.005),
            ("SST-2", "By Table 2", 4.0, 0.05),
            ("SST-2", "By 128", 7.9, 0.05),
            ("MNLI", "By Table 2", 6.55, 0.005),
            ("WNLI", "By Table 2", 17.9, 0.05),
            ("QNLI", "By Table 2", 5.8, 0.05),
            ("STS-B", "By Table 2", 7.0, 0.05),
            ("STS-B", "By 128", 13.5, 0.05),
        ],
    ),
    "transkimmer-sequence-bound": (
        FAILS,
        [
            ("CoLA", "Bound", 5.885 * 1.75, 0.01),
            ("SST-2", "Bound", 2.58 * 1.58, 0.01),
            ("STS-B", "Printed / bound", 18.2 / (2.079 * 3.45), 0.01),
            ("CoLA", "Length needed", 131, 1),
            ("SST-2", "Length needed", 178, 1),
        ],
    ),
    "transkimmer-ceiling": (
        HOLDS,
        [
            ("CoLA", "Only [CLS]", 10.3, 0.05),
            ("SST-2", "Only [CLS]", 21.5, 0.05),
            ("WNLI", "Only [CLS]", 29.8, 0.05),
            ("CoLA", "Nothing skimmed", 0.93, 0.005),
            ("RTE", "Nothing skimmed", 0.92, 0.006),
        ],
    ),
    "transkimmer-overhead": (
        FAILS,
        [
            ("parameters as released, of the whole model", "Computed %", 6.52, 0.005),
            ("parameters by the paper's text, of the whole model", "Computed %", 6.51, 0.005),
            ("parameters as released, of the layers alone", "Computed %", 8.40, 0.005),
            ("MACs at 64 tokens", "Computed %", 8.24, 0.005),
            ("MACs at 256 tokens", "Computed %", 7.92, 0.005),
            ("MACs at 512 tokens", "Computed %", 7.52, 0.005),
        ],
    ),
    "transkimmer-losses": (FAILS, [(0, "Change", 58.9 - 57.8, 1e-9)]),
    "transkimmer-wnli": (
        FAILS,
        [
            ("bert-base, dense", "Right answers", 40, 0),
            ("roberta-base, dense", "Agrees", "no", 0),
            ("distilbert-base, dense", "Right answers", 38, 0),
            ("albert-base, transkimmer, none", "Right answers", 41, 0),
        ],
    ),
    "transkimmer-input-lengths": (
        INFO,
        [("20News", "Mean of the longest 1 %", (551 - 0.99 * 512) / 0.01, 1e-6), ("IMDB", "Average", 264, 0)],
    ),
    "transkimmer-skim-weights": (FAILS, [("SQuAD v2.0", "Script", 0.3, 0), ("MRPC", "Equal", "yes", 0)]),
    "transkimmer-padding-labels": (FAILS, [("lat", "Table 3", "sequence", 0), ("lat", "Table 4", "batch", 0)]),
    "transkimmer-student": (INFO, [("MNLI", "Difference", 2.6, 1e-9), ("CoLA", "Difference", -2.1, 1e-9)]),
    "transkimmer-compressed": (FAILS, [(0, "By formula", 2.0, 0.002), (9, "By formula", 0.999, 0.0005)]),
    # padding, quoted rows
    "unpadding-alone": (
        FAILS,
        [
            ("CoLA", "Unpadding alone", 5.89, 0.01),
            ("RTE", "Unpadding alone", 4.17, 0.01),
            ("QQP", "Unpadding alone", 4.36, 0.01),
            ("MRPC", "Unpadding alone", 2.45, 0.01),
            ("SST-2", "Unpadding alone", 2.58, 0.01),
            ("MNLI", "Unpadding alone", 3.35, 0.01),
            ("QNLI", "Unpadding alone", 2.55, 0.01),
            ("STS-B", "Unpadding alone", 2.08, 0.01),
            ("IMDB", "Unpadding alone", 2.0, 0.05),
            ("MRPC", "PoWER-BERT, padded", 2.7, 0),
        ],
    ),
    "padding-votes": (INFO, [("CoLA", "[PAD] rows % at 256", 95.7, 0.05), ("QQP", "[PAD] rows %", 98 / 1.28, 0.05)]),
    "quoted-power_bert": (
        FAILS,
        [("CoLA", "Loss here", -5.5, 1e-9), ("CoLA", "Own loss", -0.2, 1e-9), ("QQP", "Own test score", 70.2, 0)],
    ),
    "quoted-deebert": (
        OPEN,
        [
            ("SST-2", "Own time ratio", 1.89, 0),
            ("RTE", "Own dense", 69.9, 0),
            ("QNLI", "Time saved %", 44, 0.5),
        ],
    ),
    "quoted-lat": (HOLDS, [("SST-2", "Speed-up", 2.9, 0), ("MNLI", "At least", 1 / 0.355, 1e-9)]),
    "quoted-imdb": (OPEN, [("lat", "Equal", "yes", 0), ("power_bert", "Equal", "no", 0)]),
    "quoted-ltp-padding": (
        OPEN,
        [
            ("MNLI", "Equivalent length", 39.9, 0.05),
            ("QQP", "Equivalent length", 31.1, 0.06),
            ("QNLI", "Equivalent length", 52.0, 0.05),
            ("SST-2", "Equivalent length", 26.0, 0.05),
            ("STS-B", "Equivalent length", 32.3, 0.05),
            ("MRPC", "Equivalent length", 54.3, 0.05),
            ("RTE", "Equivalent length", 66.0, 0.05),
            ("SQuAD v2.0", "Equivalent length", 181.9, 0.05),
        ],
    ),
    "quoted-ltp-metrics": (FAILS, [(0, "Equal", "yes", 0), (2, "LTP's metric", "accuracy_f1_mean", 0)]),
    "quoted-deformer": (
        FAILS,
        [(7, "Passage cached", 2.20, 0.005), (11, "Everything counted", 1.01, 0.005)],
    ),
    # PoWER-BERT
    "power_bert-ratios": (HOLDS, [(0, "Quotient", 898 / 201, 1e-9), (1, "Quotient", 3.36, 0.005)]),
    "power_bert-other-ratios": (OPEN, [(0, "Quotient", 9110 / 3419, 1e-9), (4, "Quotient", 6.8, 0.05)]),
    "power_bert-throughput": (HOLDS, [("RTE", "TFLOP/s", 1.47, 0.005), ("STS-B", "TFLOP/s", 1.60, 0.005)]),
    "power_bert-counting": (
        OPEN,
        [
            (0, "Speed-up", 3.29, 0.005),
            (1, "Speed-up", 3.66, 0.005),
            (2, "Speed-up", 2.82, 0.005),
            (3, "Speed-up", 3.54, 0.005),
            (4, "Speed-up", 3.36, 0.005),
        ],
    ),
    "power_bert-ceiling": (INFO, [(128, "Highest speed-up", 27.3, 0.05)]),
    "power_bert-reach": (
        FAILS,
        [
            ("CoLA", "S, 3 epochs", 0.55, 0.005),
            ("RTE", "S, 3 epochs", 0.64, 0.005),
            ("QQP", "S, 3 epochs", 0.78, 0.005),
            ("MRPC", "S, 3 epochs", 0.24, 0.005),
            ("MNLI", "S, 3 epochs", 1.68, 0.005),
            ("QNLI", "S, 5 epochs", 2.98, 0.005),
            ("STS-B", "S, 5 epochs", 0.61, 0.005),
            ("MRPC", "S, 5 epochs", 0.40, 0.005),
            ("MRPC", "Highest", 1.3, 0.05),
            ("MRPC", "Highest there", 1.65, 0.01),
            ("QQP", "Highest", 4.2, 0.05),
            ("STS-B", "Highest there", 2.6, 0.05),
            ("SST-2", "Highest there", None, 0),
        ],
    ),
    # LAT, LTP
    "lat-floor": (
        FAILS,
        [
            (0, "Relative", 0.364, 0.0005),
            (1, "Relative", 0.348, 0.0005),
            (2, "Relative", 0.335, 0.0005),
            (3, "Relative", 0.333, 0.0005),
            (4, "Relative", 0.328, 0.0005),
            (5, "Relative", 0.541, 0.0005),
            (-1, "Relative", 0.529, 0.0005),
            (1, "Dense MACs", 11_173_625_856, 0),
            (1, "Smallest MACs", 3_886_806_528, 0),
            (3, "Dense MACs", 35_332_816_896, 0),
            (3, "Smallest MACs", 11_776_298_496, 0),
        ],
    ),
    "lat-real-tokens": (
        FAILS,
        [
            ("MNLI", "BERT unpadded", 0.30, 0.005),
            ("SST-2", "BERT unpadded", 0.19, 0.005),
            ("MNLI", "First layer that drops text", 6, 0),
            ("SST-2", "First layer that drops text", 8, 0),
            ("SST-2", "Tokens it keeps", 24, 0),
        ],
    ),
    "lat-checkpoints": (
        FAILS,
        [("RTE", "Updates", 390, 0), ("MRPC", "Checkpoints", 1, 0), ("STS-B", "Checkpoints", 1, 0)],
    ),
    "lat-training": (
        INFO,
        [
            (128, "Tokens kept at random", 0.545, 0.002),
            (384, "Tokens kept at random", 0.540, 0.002),
            (128, "Step / plain step", 2.5, 0.05),
        ],
    ),
    "ltp-quotients": (OPEN, [("MNLI", "Quotient", 1.88, 0.005), ("SQuAD v2.0", "Quotient", 1.89, 0.005)]),
    "ltp-headline": (HOLDS, [("MNLI", "Loses less", "no", 0), ("QQP", "Loss", 0.70, 1e-9)]),
    "ltp-thresholds": (
        INFO,
        [
            (2, "Code / mean", 0.107, 0.0005),
            (12, "Code / mean", 1.17, 0.005),
            (3, "Threshold, README", 0.0025, 1e-9),
            (12, "README / mean", 1.28, 0.005),
        ],
    ),
    "ltp-threshold-reach": (INFO, [("RTE", "Updates", 390, 0), ("RTE", "Highest move", 0.0039, 0.0001)]),
    # TR-BERT, LoT
    "tr_bert-ceiling": (
        HOLDS,
        [
            ("SQuAD v2.0", "Only [CLS]", 11.2, 0.05),
            ("20News", "Only [CLS]", 11.8, 0.05),
            ("20News", "Layer equivalents", 2.84, 0.005),
            ("20News", "5 r1 + 6 r2", 1.84, 0.005),
            ("20News", "Keeping all", 0.9995, 0.0001),
        ],
    ),
    "tr_bert-range": (HOLDS, [("20News", "Speed-up", 4.22, 0)]),
    "tr_bert-policy": (HOLDS, [("20News", "Missing %", 0.09, 0.005)]),
    "lot-ceiling": (
        INFO,
        [
            ("64", "Keeping all", 0.96, 0.005),
            ("512", "Keeping all", 0.97, 0.005),
            ("64", "Only [CLS]", 17.3, 0.05),
            ("128", "Only [CLS]", 23.8, 0.05),
            ("256", "Only [CLS]", 29.7, 0.05),
            ("512", "Only [CLS]", 48_318_382_080 / (12 * (14_161_920 + 511 * 197_120)), 1e-9),
            ("128", "Most tokens at 25x", None, 0),
            ("256", "Most tokens at 25x", 2, 0),
            ("512", "Most tokens at 25x", 7, 0),
        ],
    ),
    "lot-yardstick": (HOLDS, [(128, "Polynomial, GFLOPs", 22.41, 0.005), (128, "2 x MACs, GFLOPs", 22.35, 0.005)]),
    "lot-router": (INFO, [(0, "Value", 198_914, 0), (1, "Value", 2.2, 0.05), (2, "Value", 2.785, 0.0005)]),
    "lot-rows": (FAILS, [("SST-2", "%", 98.5, 0.05), ("IMDB", "%", 96.0, 1e-9)]),
    # ToP
    "top-readme": (
        FAILS,
        [
            ("CoLA", "Product", 10.3, 0.05),
            ("RTE", "Product", 10.2, 0.05),
            ("RTE", "Product fits", "no", 0),
            ("QQP", "Product", 12.5, 0.06),
            ("MRPC", "Product", 7.4, 0.05),
            ("SST-2", "Product", 4.3, 0.05),
            ("MNLI", "Product", 6.7, 0.05),
            ("QNLI", "Product", 6.1, 0.05),
            ("STS-B", "Product", 6.9, 0.05),
            ("CoLA", "README / factor", 1.77, 0.005),
            ("STS-B", "README / factor", 3.46, 0.005),
        ],
    ),
    "top-mean": (
        FAILS,
        [(1, "Speed-up", 7.87, 0.006), (3, "Speed-up", 9.59, 0.005), (4, "Speed-up", 2.4, 0.05)],
    ),
    "top-targets": (FAILS, [("CoLA", "Transkimmer", 0.43, 0.005), ("RTE", "Transkimmer", 0.65, 0.005)]),
    "top-latency": (INFO, [("STS-B", "Without padding", 3.5, 0.05)]),
    "top-squad": (
        FAILS,
        [
            (152, "Against unpadded", 1.83, 0.005),
            (180, "Against unpadded", 1.84, 0.005),
            (180, "Against 384", 4.1, 0.05),
        ],
    ),
    "top-bins": (FAILS, [("CoLA", "Bins hit at most", 10, 0), ("MRPC", "Enough tokens", "yes", 0)]),
    # DeFormer, early exit
    "deformer-recount": (
        OPEN,
        [
            ("SQuAD 1.1", "k = 9", 3.23, 0.005),
            ("RACE", "k = 9", 3.42, 0.005),
            ("BoolQ", "k = 9", 3.48, 0.005),
            ("MNLI", "k = 9", 2.21, 0.005),
            ("QQP", "k = 9", 1.78, 0.005),
            ("QQP", "k = 10", 1.95, 0.005),
            ("QQP", "Agrees", "no", 0),
        ],
    ),
    "deformer-reuse": (
        FAILS,
        [
            ("1", "Speed-up", 1.008, 0.0005),
            ("2", "Speed-up", 1.54, 0.005),
            ("5", "Speed-up", 2.24, 0.005),
            ("10", "Speed-up", 2.65, 0.005),
            ("100", "Speed-up", 3.16, 0.005),
        ],
    ),
    "deformer-headline": (
        HOLDS,
        [
            (0, "Speed-up", 1.08, 0.005),
            (5, "Speed-up", 1.85, 0.005),
            (9, "Speed-up", 4.30, 0.005),
            (10, "Speed-up", 6.41, 0.005),
            (11, "Speed-up", 4.28, 0.005),
            (12, "Speed-up", 5.12, 0.005),
            (11, "GFLOPs", 47.5, 0.05),
        ],
    ),
    "deformer-padding": (HOLDS, [("slots", "Speed-up", 3.2, 0.05), ("real", "Speed-up", 3.2, 0.05)]),
    "deformer-latency": (OPEN, [("v100", "Ratio", 3.1, 0.05), ("i9", "Ratio", 3.6, 0.05)]),
    "deformer-cache": (INFO, [("SQuAD 1.1", "MB in float32", 0.90, 0.005), ("RACE", "MB in float32", 1.47, 0.005)]),
    "deebert-headline": (OPEN, [(0, "Time saved %", 21, 0.5), (0, "Change", -0.2, 1e-9)]),
    "deebert-overhead": (
        INFO,
        [(128, "Speed-up without exits", 0.9994, 5e-5), (128, "Off-ramp / layer %", 0.064, 6e-4)],
    ),
    "deebert-exits": (HOLDS, [("0.05", "From counts", 0.967, 0.0005), ("0.1", "From counts", 0.931, 0.0005)]),
    "deebert-half-depth": (FAILS, [("RTE", "Difference", 0.4, 1e-9), ("MNLI", "Difference", -6.4, 1e-9)]),
    "pabee-half-depth": (FAILS, [("QNLI", "Difference", 1.3, 1e-9), ("SST-2", "Difference", -1.7, 1e-9)]),
    "pabee-speed-up": (FAILS, [("albert-base", "Log's figure", 1 - 1 / 1.57, 1e-9), (2, "Layers run", 9.92, 0.005)]),
}
