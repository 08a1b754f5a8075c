"""Completion of commands and their flags for bash and zsh, as a script for your shell's start-up file.

It completes what stands behind `python -m` and `./reproduce.sh`; where it knows nothing it completes file names.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.cli import run_command
from benchmarks.errors import Parser

_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)(?:[ =]\{([\w,]+)\})?")
_TARGET = re.compile(r"^  (\w+) +\w", re.MULTILINE)
_ENTRY = 'if __name__ == "__main__":'

_SCRIPT = """# Completion for Skimbench; written by `python -m benchmarks.completion`.
_skimbench() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command="" words=""
  COMPREPLY=()
  if [[ ${COMP_WORDS[0]} == *reproduce.sh ]]; then
    if ((COMP_CWORD == 1)); then COMPREPLY=($(compgen -W "TARGETS" -- "$current")); return; fi
    command=benchmarks.${COMP_WORDS[1]}
  elif [[ ${COMP_WORDS[1]} == -m ]]; then
    if ((COMP_CWORD == 2)); then COMPREPLY=($(compgen -W "MODULES" -- "$current")); return; fi
    command=${COMP_WORDS[2]}
  fi
  case "$command $previous" in
CHOICES
  esac
  if [[ -z $words && $current == -* ]]; then
    case $command in
FLAGS
    esac
  fi
  if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); fi
}
complete -o default -F _skimbench python python3 reproduce.sh ./reproduce.sh
"""


def commands() -> dict[str, Mapping[str, tuple[str, ...]]]:
    """Of each module that can be run: its flags, each with the values that it takes where these are few and known."""
    import benchmarks
    import plots

    found: dict[str, Mapping[str, tuple[str, ...]]] = {}
    for package in (benchmarks, plots):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            source = Path(str(module.module_finder.path), f"{module.name.rpartition('.')[2]}.py")  # type: ignore[union-attr]
            text = source.read_text(encoding="utf-8") if source.is_file() else ""
            if _ENTRY in text:
                found[module.name] = _flags(_main(module.name, text))
    return found


def _main(name: str, source: str) -> Callable[..., int]:
    """What the module runs as a command: its own main, or the one that it imports there."""
    imported = re.search(r"from ([\w.]+) import main$", source, re.MULTILINE)
    return importlib.import_module(imported[1] if imported else name).main


def _flags(main: Callable[..., int]) -> dict[str, tuple[str, ...]]:
    """Flags by what `--help` says; none for a command without arguments."""
    if main.__code__.co_argcount == 0 and not hasattr(main, "__self__"):
        return {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(["--help"])
    usage = " ".join(said.getvalue().partition("\n\n")[0].split())
    return {flag: tuple(values.split(",")) if values else () for flag, values in _FLAG.findall(usage)}


def script(found: Mapping[str, Mapping[str, tuple[str, ...]]], targets: Sequence[str]) -> str:
    """The script for `commands()` and the targets of reproduce.sh."""
    import methods

    names = {"--methods": methods.available(), "--method": methods.available()}
    choices, flags = [], []
    for command, own in found.items():
        flags.append(f"      {command}) words={shlex.quote(' '.join(['--help', *own]))} ;;")
        for flag in own:
            if values := own[flag] or names.get(flag, ()):
                choices.append(f'    "{command} {flag}") words={shlex.quote(" ".join(values))} ;;')
    parts = {
        "TARGETS": " ".join(targets),
        "MODULES": " ".join(found),
        "CHOICES": "\n".join(choices),
        "FLAGS": "\n".join(flags),
    }
    text = _SCRIPT
    for place, part in parts.items():
        text = text.replace(place, part, 1)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script; returns the exit status."""
    from benchmarks.environment import PROJECT_ROOT

    parser = Parser(
        prog="python -m benchmarks.completion",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.completion bash > ~/.skimbench-completion\n"
        "  echo 'source ~/.skimbench-completion' >> ~/.bashrc",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    shell = parser.parse_args(argv).shell
    reproduce = PROJECT_ROOT / "reproduce.sh"  # not there where the package was installed
    text = reproduce.read_text(encoding="utf-8") if reproduce.is_file() else ""
    targets = _TARGET.findall(text.partition("Usage:")[2].partition("Every target")[0])
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(script(commands(), targets), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
