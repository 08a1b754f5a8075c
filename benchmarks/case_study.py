"""Table 5: one text, its tokens coloured by the layer that dropped them, for several methods side by side.

Needs trained reducers: folders that `save_pretrained` wrote (--reducer), or, without any, the newest ones that a
command of the embedded profile left. A pair is read in the order given; for question answering, the second text is the
question.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import open_console
from benchmarks.errors import Parser, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from benchmarks.models import ModelRef
    from benchmarks.token_view import Colour, MethodView, Piece

PAGE = OWN_RESULTS / "case_study.html"
ACROSS = 3  # methods beside each other on a terminal
BARS = " ▁▂▃▄▅▆▇█"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
JOINT = "\N{MIDDLE DOT}"  # between the sub-words of a word
_CHECKPOINT = re.compile(r"(?P<task>.+)-(?P<method>[a-z0-9_+]+)-[0-9a-f]{12}")  # as running.checkpoint_folder


@dataclass(frozen=True)
class Checkpoint:
    """A trained reducer left by a command: its task and method, from the folder's name, and when it was written."""

    folder: Path
    task: str
    method: str
    written: float


def checkpoints(home: Path, model: ModelRef, *, pair: bool, task: str | None = None) -> list[Checkpoint]:
    """The newest reducer of each method on one task, of those that fit.

    Args:
        home: see `benchmarks.embedded.skimbench_home`. model: the encoder that they were trained from.
        pair: whether two texts are given, or one.
        task: default: the task with the newest reducer.
    Returns:
        In alphabetical order of methods, without the dense model and random dropping; empty if there is none.
    """
    from benchmarks.tasks import TASKS

    found = []
    for folder in (home / "checkpoints").glob("*"):
        match = _CHECKPOINT.fullmatch(folder.name)
        if match is None or match["task"] not in TASKS or match["method"] in ("dense", "random"):
            continue
        fits = (len(TASKS[match["task"]].text_columns) == 2) == pair and task in (None, match["task"])
        if fits and _is_from(folder, model):
            found.append(Checkpoint(folder, match["task"], match["method"], folder.stat().st_mtime))
    if not found:
        return []
    chosen = max(found, key=lambda checkpoint: checkpoint.written).task
    own = sorted((checkpoint for checkpoint in found if checkpoint.task == chosen), key=lambda c: c.written)
    newest = {checkpoint.method: checkpoint for checkpoint in own}
    return [newest[method] for method in sorted(newest)]


def _is_from(folder: Path, model: ModelRef) -> bool:
    """Whether a reducer's backbone has the sizes of `model`, a folder."""
    sizes = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
    try:
        own = json.loads((folder / "config.json").read_text(encoding="utf-8"))["backbone_config"]
        other = json.loads((Path(model.source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(own.get(name) == other.get(name) for name in sizes)


# Drawing on the terminal ----------------------------------------------------------------------------------------------


def _style(background: Colour) -> Style:
    from rich.color import Color

    from benchmarks.token_view import ink

    return Style(color=Color.from_rgb(*ink(background)), bgcolor=Color.from_rgb(*background))


def _piece(piece: Piece, layers: int) -> tuple[str, Style]:
    from benchmarks.token_view import colour

    number = "" if piece.left is None else str(piece.left).translate(SUBSCRIPTS)
    return f"{piece.text}{number}", _style(colour(piece.left, layers))


def drawn(view: MethodView) -> Text:
    """The text of a view: each token in its colour and with the number of the layer that dropped it."""
    text = Text()
    for word in view.words:
        for place, piece in enumerate(word.pieces):
            if place:
                text.append(JOINT)
            text.append(*_piece(piece, view.layers))
        text.append(" ")
    return text


def facts(view: MethodView) -> Text:
    """What stands under the text: tokens, cost, the share of tokens that each layer computed."""
    bars = "".join(BARS[round(share * (len(BARS) - 1))] for share in view.shares)
    lines = [f"{view.answer}, {view.tokens} tokens, {view.speedup:.2f}x fewer FLOPs"]
    lines += [f"left after layer {view.exit_layer}"] if view.exit_layer is not None else []
    lines += ["the text was cut to the model's length"] if view.truncated else []
    lines.append(f"computed per layer {bars} {' '.join(f'{100 * share:.0f}' for share in view.shares)} %")
    return Text("\n".join(lines))


def show(views: Sequence[MethodView], console: Console) -> None:
    """All views, some beside each other, and what the colours mean."""
    from benchmarks.token_view import colour

    for start in range(0, len(views), ACROSS):
        row = views[start : start + ACROSS]
        table = Table(box=box.ROUNDED, expand=True)
        for view in row:
            table.add_column(view.title, ratio=1)
        table.add_row(*(Text(view.source, style="dim", overflow="fold") for view in row))
        table.add_row(*(drawn(view) for view in row))
        table.add_row(*(facts(view) for view in row))
        console.print(table)
    layers = max(view.layers for view in views)
    legend = Text("dropped by layer ")
    for layer in range(1, layers + 1):
        legend.append(f" {layer} ", _style(colour(layer, layers)))
    legend.append(" stayed ", _style(colour(None, layers)))
    console.print(legend + Text(f"  {JOINT} between sub-words of a word"))


# The command ----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.case_study",
        description=__doc__,
        epilog='example:\n  python -m benchmarks.case_study "a charming film" --reducer skimming power',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("text", help="in quotes")
    add("second", nargs="?", metavar="question", help="the question asked of the text, or the second text of a pair")
    add("--reducer", nargs="+", metavar="DIR", type=Path, help="trained reducers; default: the newest of each method")
    add("--model", metavar="NAME_OR_PATH", help="whose tokenizer they were trained with; default: the embedded model")
    add("--task", metavar="TASK", help="without --reducer: take those of this task")
    add("--output", type=Path, metavar="FILE", default=PAGE, help="default: results/local/case_study.html")
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.model is None or Path(arguments.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing below needs the network
    if not arguments.text.strip() or (arguments.second is not None and not arguments.second.strip()):
        raise UserError("the text is empty; give some words, in quotes")
    if any("\ud800" <= character <= "\udfff" for character in f"{arguments.text}{arguments.second}"):
        raise UserError("the text is not Unicode (it has a lone surrogate); give it as UTF-8")
    views = _views(arguments)
    console = open_console()
    show(views, console)
    from benchmarks.token_html import page

    command = shlex.join(["python", "-m", "benchmarks.case_study", *(sys.argv[1:] if argv is None else argv)])
    _write(arguments.output, page(views, heading="What each method did with each token", command=command))
    console.print(f"page: {arguments.output}", highlight=False, soft_wrap=True)
    return 0


def _views(arguments: argparse.Namespace) -> list[MethodView]:
    from benchmarks.embedded import embedded_model_path, skimbench_home
    from benchmarks.models import find_model, folder_model, load_tokenizer
    from benchmarks.tasks import TASKS

    folders: list[tuple[Path, str, Sequence[str]]]
    model = find_model(arguments.model) if arguments.model else folder_model(embedded_model_path(), "MiniLM-L6")
    if arguments.reducer is not None:
        if arguments.task is not None:
            raise UserError("--task chooses among the reducers of earlier commands; leave it out with --reducer")
        folders = [(folder, str(folder), ()) for folder in arguments.reducer]
    else:
        if not model.is_folder:
            raise UserError("without --reducer, --model has to be a folder; name the reducers with --reducer")
        home = skimbench_home()
        own = checkpoints(home, model, pair=arguments.second is not None, task=arguments.task)
        if not own:
            raise UserError(_none_there(arguments, home))
        task = TASKS[own[0].task]
        folders = [(one.folder, f"trained on {task.title}", task.label_names) for one in own]
    tokenizer = load_tokenizer(model)
    return [_view(folder, tokenizer, arguments, source, labels) for folder, source, labels in folders]


def _none_there(arguments: argparse.Namespace, home: Path) -> str:
    """What to say where there is no checkpoint: the commands that make one."""
    from benchmarks.tasks import EMBEDDED_LONG, LONG, get_task

    texts = "one text" if arguments.second is None else "two texts"
    on = f" of {arguments.task}" if arguments.task else ""
    tasks = ("vader_sentiment",) if arguments.second is None else ("synthetic_pair", "synthetic_squad_v2")
    commands = [
        f"`python -m benchmarks.{'long' if name in (*LONG, *EMBEDDED_LONG) else 'glue'} --tasks {name}`"
        for name in ((get_task(arguments.task).name,) if arguments.task else tasks)
    ]
    return (
        f"no trained reducer{on} for {texts} in {home / 'checkpoints'}; make some with {' or '.join(commands)}, or "
        "name folders with --reducer"
    )


def _view(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    source: str,
    labels: Sequence[str],
) -> MethodView:
    """The view of the reducer in `folder`; a UserError if none can be loaded from there."""
    import safetensors

    import methods
    from benchmarks.token_view import look

    if not (folder / "config.json").is_file():
        raise UserError(f"no reducer at {folder}: give a folder that `save_pretrained` wrote")
    try:
        reducer = methods.load(str(folder))
    except (ValueError, KeyError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot load the reducer {folder}: {error}") from error
    return look(reducer, tokenizer, arguments.text, arguments.second, source=source, labels=labels)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
