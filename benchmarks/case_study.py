"""Table 5: one text, its tokens coloured by the layer that dropped them, for several methods side by side.

Needs trained reducers: folders that `save_pretrained` wrote (--reducer), or, without any, the newest ones that an
earlier command left. A pair is read in the order given; for question answering, the second text is the question. With
--examples, Table 5's two and a pair are shown, and written as a page and as the data that the report draws them from.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.errors import Parser, UserError
from benchmarks.trained import checkpoints

if TYPE_CHECKING:
    from benchmarks.case_examples import Example, Shown
    from benchmarks.models import ModelRef
    from benchmarks.token_view import MethodView

PAGE = OWN_RESULTS / "case_study.html"
HEADING = "What each method did with each token"


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.case_study",
        description=__doc__,
        epilog='examples:\n  python -m benchmarks.case_study "a charming film" --reducer skimming power\n'
        "  python -m benchmarks.case_study --examples --methods transkimmer ltp",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("text", nargs="?", help="in quotes")
    add("second", nargs="?", metavar="question", help="the question asked of the text, or the second text of a pair")
    add("--reducer", nargs="+", metavar="DIR", type=Path, help="trained reducers; default: the newest of each method")
    add(
        "--model",
        metavar="NAME_OR_PATH",
        help="whose tokenizer reads for those without one beside them; default: the embedded model",
    )
    add("--task", metavar="TASK", help="without --reducer: take those of this task")
    add("--methods", nargs="+", metavar="METHOD", help="without --reducer: only these; --examples: default: three")
    add("--output", type=Path, metavar="FILE", help="the page of a text; default: results/local/case_study.html")
    add("--examples", action="store_true", help="the examples in place of a text; writes tables/case_study.html, .json")
    add("--data-dir", type=Path, metavar="DIR", help="with --examples: take SST-2's and SQuAD v2's own rows from here")
    add("--results", type=Path, metavar="DIR", help="with --examples: the results folder; default: results/local")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    _check(arguments)
    if arguments.model is None or Path(arguments.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing below needs the network
    command = shlex.join(["python", "-m", "benchmarks.case_study", *(sys.argv[1:] if argv is None else argv)])
    if arguments.examples:
        return _examples(arguments, command)
    views = _views(arguments)
    console = open_console(quiet=arguments.json)
    from benchmarks.token_html import page
    from benchmarks.token_terminal import show

    show(views, console)
    output = arguments.output or PAGE
    _write(output, page(views, heading=HEADING, command=command))
    console.print(f"page: {output}", highlight=False, soft_wrap=True)
    answer(arguments, views=list(map(asdict, views)), page=output, command=command)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Flags that go together, and texts that can be read."""
    import methods

    if arguments.examples:
        for name in ("text", "reducer", "task", "output"):
            if getattr(arguments, name) is not None:
                given = "the text" if name == "text" else f"--{name}"
                raise UserError(f"--examples has its own texts, tasks and files; leave {given} out")
    elif arguments.text is None:
        raise UserError("give a text, in quotes, or --examples; `python -m benchmarks.case_study --help` explains both")
    elif flag := next((flag for flag in ("data_dir", "results") if getattr(arguments, flag) is not None), None):
        raise UserError(f"--{flag.replace('_', '-')} is for --examples; leave it out with a text")
    elif not arguments.text.strip() or (arguments.second is not None and not arguments.second.strip()):
        raise UserError("the text is empty; give some words, in quotes")
    elif any("\ud800" <= character <= "\udfff" for character in f"{arguments.text}{arguments.second}"):
        raise UserError("the text is not Unicode (it has a lone surrogate); give it as UTF-8")
    if arguments.methods and arguments.reducer:
        raise UserError("--methods chooses among the reducers of earlier commands; leave it out with --reducer")
    for name in arguments.methods or ():
        try:
            methods.lookup(name)
        except KeyError as error:
            raise UserError(str(error.args[0])) from error


def _model(arguments: argparse.Namespace) -> ModelRef:
    from benchmarks.models import embedded_model, find_model

    return find_model(arguments.model) if arguments.model else embedded_model()


def _examples(arguments: argparse.Namespace, command: str) -> int:
    """Show the examples that have trained reducers, and write them."""
    from benchmarks import case_examples
    from benchmarks.environment import git_state
    from benchmarks.runs import RunStore
    from benchmarks.token_html import examples_page
    from benchmarks.token_terminal import show

    store, console = RunStore.open(arguments.results or OWN_RESULTS), open_console(quiet=arguments.json)
    if arguments.data_dir is not None and not arguments.data_dir.is_dir():
        raise UserError(f"--data-dir {arguments.data_dir} is not a folder")
    shown = []
    for example in case_examples.EXAMPLES:
        one = _shown(example, arguments, store.root)
        if one is None:
            commands = " or ".join(map(_makes, example.tasks))
            console.print(f"{example.title}: left out, no trained reducer; make some with {commands}", highlight=False)
            continue
        console.rule(one.title)
        show(one.views, console)
        shown.append(one)
    if not shown:
        raise UserError("no trained reducer for any example (see above)")
    page, data = (store.root / "tables" / f"case_study{suffix}" for suffix in (".html", ".json"))
    _write(page, examples_page(shown, heading=HEADING, command=command))
    case_examples.write(data, shown, command=command, git=git_state())
    console.print(f"page: {page}, data: {data}", highlight=False, soft_wrap=True)
    if store.is_scratch:
        console.print("the work tree has changes, so these are scratch: commit, then run again")
    answer(arguments, examples=list(map(asdict, shown)), page=page, data=data, command=command)
    return 0


def _shown(example: Example, arguments: argparse.Namespace, results: Path) -> Shown | None:
    """An example under the reducers of the first of its tasks that has any."""
    from benchmarks import case_examples
    from benchmarks.embedded import skimbench_home
    from benchmarks.tasks import TASKS

    model, pair = _model(arguments), len(example.texts) == 2
    recorded = {path.stem.rpartition("-")[2] for path in (results / "runs").rglob("*.json")}
    for name in example.tasks:
        found = checkpoints(skimbench_home(), model, pair=pair, task=TASKS[name], recorded=recorded)
        by_method = {one.method: one for one in found}
        own = [by_method[method] for method in case_examples.chosen(list(by_method), arguments.methods)]
        if own:
            break
    else:
        return None
    texts = case_examples.paper_row(example, arguments.data_dir) if arguments.data_dir else example.texts
    task = TASKS[own[0].task]
    source = f"trained on {task.title}"
    views = tuple(_view(one.folder, model, texts, source, task.label_names) for one in own)
    return case_examples.Shown(
        name=example.name,
        title=example.title,
        about=f"{example.about} {case_examples.where_from(example, arguments.data_dir)}",
        task=task.title,
        texts=texts,
        views=views,
        records=tuple(one.run for one in own),
    )


def _views(arguments: argparse.Namespace) -> list[MethodView]:
    """What each reducer does with the text of the command line."""
    from benchmarks.embedded import skimbench_home
    from benchmarks.tasks import TASKS, get_task

    folders: list[tuple[Path, str, Sequence[str]]]
    model = _model(arguments)
    if arguments.reducer is not None:
        if arguments.task is not None:
            raise UserError("--task chooses among the reducers of earlier commands; leave it out with --reducer")
        folders = [(folder, str(folder), ()) for folder in arguments.reducer]
    else:
        home = skimbench_home()
        wanted = get_task(arguments.task) if arguments.task is not None else None
        own = checkpoints(home, model, pair=arguments.second is not None, task=wanted)
        own = [one for one in own if one.method in (arguments.methods or (one.method,))]
        if not own:
            raise UserError(_none_there(arguments, home))
        task = wanted or TASKS[own[0].task]
        folders = [(one.folder, f"trained on {task.title}", task.label_names) for one in own]
    texts = (arguments.text,) if arguments.second is None else (arguments.text, arguments.second)
    named = arguments.model is not None
    return [_view(folder, model, texts, source, labels, named=named) for folder, source, labels in folders]


def _makes(task: str) -> str:
    """The command that trains reducers on a task."""
    from benchmarks.tasks import EMBEDDED_LONG, LONG

    return f"`python -m benchmarks.{'long' if task in (*LONG, *EMBEDDED_LONG) else 'glue'} --tasks {task}`"


def _none_there(arguments: argparse.Namespace, home: Path) -> str:
    """What to say where there is no checkpoint: the commands that make one."""
    from benchmarks.tasks import get_task

    texts = "one text" if arguments.second is None else "two texts"
    on = f" of {arguments.task}" if arguments.task else ""
    tasks = ("vader_sentiment",) if arguments.second is None else ("synthetic_pair", "synthetic_squad_v2")
    commands = map(_makes, (get_task(arguments.task).name,) if arguments.task else tasks)
    return (
        f"no trained reducer{on} for {texts} in {home / 'checkpoints'}; make some with {' or '.join(commands)}, or "
        "name folders with --reducer"
    )


def _view(
    folder: Path,
    model: ModelRef,
    texts: Sequence[str],
    source: str,
    labels: Sequence[str],
    *,
    named: bool = True,
) -> MethodView:
    """The view of the reducer in `folder`; a UserError if none can be loaded from there.

    Args:
        model: whose tokenizer reads the texts, where the folder has none. named: whether the user chose it.
    """
    import safetensors

    import methods
    from benchmarks.models import beside_reducer, load_tokenizer
    from benchmarks.token_view import look

    if not (folder / "config.json").is_file():
        raise UserError(f"no reducer at {folder}: give a folder that `save_pretrained` wrote")
    try:
        reducer = methods.load(str(folder))
    except (ValueError, KeyError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot load the reducer {folder}: {error}") from error
    tokenizer = load_tokenizer(beside_reducer(folder, reducer, model, named=named))
    return look(reducer, tokenizer, *texts, source=source, labels=labels)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
