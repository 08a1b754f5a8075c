"""The report's Table 5, from the data that `case_study --examples` wrote."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from benchmarks.case_examples import Shown, read
from benchmarks.report_blocks import (
    Block,
    CommandBlock,
    HeadingBlock,
    MarkupBlock,
    Row,
    Section,
    TableBlock,
    TextBlock,
    plain,
)
from benchmarks.report_data import Results
from benchmarks.token_html import cards, legend

LEAD = (
    "What trained methods do with each token of one text: its colour and number are the layer that dropped it, the "
    "darkest tokens stayed to the end. Read whether the words that carry the answer outlast the others."
)


def case_section(all_results: Sequence[Results]) -> Section | None:
    """Every example of every folder that has them."""
    blocks: list[Block] = []
    for results in all_results:
        if not results.case_study.is_file():
            continue
        command, examples = read(results.case_study)
        for example in examples:
            blocks += _example(results, example)
        blocks.append(CommandBlock(command))
    return Section("table5", "Table 5: token by token", LEAD, tuple(blocks)) if blocks else None


def _example(results: Results, example: Shown) -> list[Block]:
    layers = max((view.layers for view in example.views), default=0)
    if not layers:
        return []
    drawn = Markup("{}{}").format(legend(layers), cards(example.views))
    rows = tuple(
        Row(
            (
                plain(view.title),
                plain(view.answer, links),
                plain(f"{view.speedup:.2f}x", links),
                plain(run, links),
            )
        )
        for view, run in zip(example.views, example.records, strict=True)
        for links in [results.anchors(run)]
    )
    return [
        HeadingBlock(f"{example.title} (reducers trained on {example.task})", results.title),
        TextBlock(example.about),
        MarkupBlock(drawn),
        TableBlock(
            caption="What each says of the text, its FLOPs speed-up on this text, and the run that trained it.",
            columns=("Method", "Answer", "Speed-up", "Record"),
            rows=rows,
            numeric=frozenset({2}),
        ),
    ]
