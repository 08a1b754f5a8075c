"""The generated parts of `docs/`: what code and records say of each method, between markers in hand-written pages.

`<!-- method: NAME PART -->` up to `<!-- end -->`, PART one of facts, departures, options, recipe, results. Nothing is
typed by hand there, so nothing can fall behind the code; `python -m benchmarks.readme` writes them anew.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import PROJECT_ROOT

if TYPE_CHECKING:
    from methods import Stage, TokenReducer

_BLOCK = re.compile(r"<!-- method: (\S+) (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_ENTRY = re.compile(r"        (\w+(?:, \w+)*): (.*)")
EXAMPLE_TASK = "sst2"  # whose recipe and options are shown, where they differ by task


def updated(text: str, root: Path = PROJECT_ROOT) -> str:
    """`text` with every generated block written anew; `root` holds results/."""

    def renewed(match: re.Match[str]) -> str:
        name, part = match[1], match[2]
        return f"<!-- method: {name} {part} -->\n{_PARTS[part](name, root)}\n<!-- end -->"

    return _BLOCK.sub(renewed, text)


def pages(root: Path = PROJECT_ROOT) -> list[Path]:
    """All Markdown pages of docs/."""
    return sorted((root / "docs").rglob("*.md"))


# Parts ----------------------------------------------------------------------------------------------------------------


def _facts(name: str, root: Path) -> str:
    from methods.families import HEADS

    traits = _class(name).traits
    heads = [head for head in HEADS if head not in traits.unsupported]
    reasons = [f"{head.replace('_', ' ')}: {reason}" for head, reason in traits.unsupported.items()]
    knob = "none"
    if traits.knob is not None:
        how = "turned on the trained model" if traits.knob.after_training else "trained with"
        knob = f"`{traits.knob.option}`, {how}"
    rows = [
        ("Name", f"`{name}`, in `methods/{name}.py`"),
        ("Decides by", traits.decision_input),
        ("What is dropped is", traits.dropped),
        ("Trained by", traits.optimization),
        ("Schedule", traits.strategy),
        ("Heads", ", ".join(heads).replace("_", " ")),
        *(("Does not do", reason) for reason in reasons),
        ("Knob of `benchmarks.accelerate`", knob),
    ]
    return _table(("", ""), rows)


def _departures(name: str, root: Path) -> str:
    """The module's docstring from its second line on, which names the paper and says where the code departs from it."""
    module = sys.modules[_class(name).__module__]
    body = (inspect.getdoc(module) or "").partition("\n\n")[2]
    joined = re.sub(r"\n(?=Departures|Ours|Not covered)|(?<=\d)\n(?=[A-Z])", "\n\n", body)
    paragraphs = [" ".join(paragraph.split()) for paragraph in joined.split("\n\n")]
    linked = [re.sub(r"(?<![(<])https?://[^\s,]+?(?=[.,]?(?:\s|$))", r"<\g<0>>", one) for one in paragraphs]
    return "\n\n".join(linked)


def _options(name: str, root: Path) -> str:
    cls = _class(name)
    said, short = _attributes(cls.options_class), _task_options(cls, "short")
    rows = [
        (
            f"`{item.name}`",
            f"`{item.default!r}`",
            f"`{short[item.name]!r}`" if item.name in short else "",
            said[item.name],
        )
        for item in fields(cls.options_class)
    ]
    return _table(("Option", "Default", "Short recipe", "Meaning"), rows) if rows else "It has none."


def _recipe(name: str, root: Path) -> str:
    from benchmarks.tasks import TASKS

    cls = _class(name)
    rows = [
        (recipe, stage.name.replace("_", " "), stage.start, _length(stage), str(stage.batch_size), _rates(stage))
        for recipe in ("paper", "short")
        for stage in cls.recipe_stages(TASKS[EXAMPLE_TASK], recipe, "bert")
    ]
    header = ("Recipe", "Stage", "Starts from", "Epochs", "Batch", "Learning rates")
    return _table(header, rows)


def _results(name: str, root: Path) -> str:
    """Rows of the published tables of this method, without padding, beside dense and random dropping at its cost."""
    paths = sorted((root / "results" / "tables").glob("*-*.csv"), key=lambda path: path.stem)
    parts = [part for path in paths if (part := _measured(path, name))]
    if not parts and any(_is_twin(path, name) for path in paths):
        return "Its runs are the twins of other methods: they stand beside these, on their pages and in the tables."
    return "\n\n".join(parts) or "No record of this method is published yet."


def _is_twin(path: Path, name: str) -> bool:
    """Whether a table has runs of this method beside those of others."""
    import pandas as pd

    frame = pd.read_csv(path)
    return {"method", "of"} <= set(frame.columns) and bool((frame["of"].notna() & (frame["method"] == name)).any())


def _measured(path: Path, name: str) -> str:
    import pandas as pd

    frame = pd.read_csv(path)
    if not {"method", "of", "measured", "padding"} <= set(frame.columns):
        return ""
    unpadded = frame[frame["padding"].isin(["none", "baseline"]) & frame["account"].isna()]
    rows = []
    for row in unpadded[(unpadded["method"] == name) & unpadded["of"].isna()].to_dict("records"):
        beside = unpadded[(unpadded["model"] == row["model"]) & (unpadded["split"] == row["split"])]
        dense = beside[beside["method"] == "dense"]["measured"]
        random = beside[(beside["method"] == "random") & (beside["of"] == name)]
        rows.append(
            (
                row["model"],
                row["task"],
                f"{row['measured']:.1f}",
                "" if dense.empty else f"{dense.iloc[0]:.1f}",
                f"{row['speedup']:.2f}x",
                "" if random.empty else f"{random['measured'].iloc[0]:.1f} at {random['speedup'].iloc[0]:.2f}x",
                str(row["records"]),
            )
        )
    if not rows:
        return ""
    header = ("Model", "Task", "Score", "Dense", "FLOPs", "Random at its cost", "Record")
    lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    command = next((line for line in lines if line.startswith("Command: ")), "")
    return f"{_table(header, rows)}\n\n{command}"


_PARTS = {
    "facts": _facts,
    "departures": _departures,
    "options": _options,
    "recipe": _recipe,
    "results": _results,
}


# Pieces ---------------------------------------------------------------------------------------------------------------


def _class(name: str) -> type[TokenReducer]:
    import methods

    return methods.lookup(name)


def _task_options(cls: type[TokenReducer], recipe: str) -> dict[str, Any]:
    from benchmarks.tasks import TASKS

    return cls.task_options(TASKS[EXAMPLE_TASK], recipe)


def _attributes(options_class: type) -> dict[str, str]:
    """What the docstring of the options says of each."""
    said: dict[str, str] = {}
    names: list[str] = []
    for line in _attribute_lines(options_class.__doc__ or ""):
        if match := _ENTRY.fullmatch(line):
            names = match[1].split(", ")
            said |= dict.fromkeys(names, match[2])
        else:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return said


def _attribute_lines(docstring: str) -> Iterator[str]:
    lines = iter(docstring.splitlines())
    for line in lines:
        if line.strip() == "Attributes:":
            break
    yield from (line for line in lines if line.strip())


def _length(stage: Stage) -> str:
    chosen = ", the best epoch" if stage.select == "best" else ""
    return "searches" if stage.search and not stage.epochs else f"{stage.epochs:.3g}{chosen}"


def _rates(stage: Stage) -> str:
    if not stage.epochs:
        return ""
    rates = (f"travels {g.travel:g}" if g.travel is not None else f"{g.learning_rate:g}" for g in stage.groups)
    return ", ".join(f"`{' '.join(g.patterns)}` {rate}" for g, rate in zip(stage.groups, rates, strict=True))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
