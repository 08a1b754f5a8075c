"""List, show and check the records of runs, and clear away what killed commands left.

Records of finished runs are never removed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import writing
from benchmarks.runs import CorruptRecord, Record, RunConfig, RunStore, load_runs, read_record

if TYPE_CHECKING:
    import pandas as pd

_HOUR_S, _DAY_S = 3_600.0, 86_400.0
FORGOTTEN_DAYS = 30  # half-done trainings that no command went on with for so long
COLUMNS = {
    "config_hash": "Run",
    "kind": "Kind",
    "config.task": "Task",
    "config.method": "Method",
    "config.seed": "Seed",
    "status": "Status",
    "metrics.score": "Score",
    "wall_s": "Seconds",
    "started_at": "Started (UTC)",
    "error": "Error",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    root: Path = arguments.results
    _check_folder(root)
    actions = {"list": _list, "show": _show, "verify": _verify, "gc": _clear}
    return actions[arguments.action](root, arguments)


def _parser() -> argparse.ArgumentParser:
    from benchmarks.cli import OWN_RESULTS

    parser = Parser(
        prog="python -m benchmarks.runs",
        description=__doc__,
        epilog="examples:\n  python -m benchmarks.runs list --status failed\n  python -m benchmarks.runs show 9f2c41",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = Parser(add_help=False)
    shared.add_argument("--results", type=Path, metavar="DIR", default=OWN_RESULTS, help="default: results/local")
    shared.add_argument("--debug", action="store_true", help="show where an error came from")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|verify|gc")
    listing = actions.add_parser("list", parents=[shared], help="one line per record")
    listing.add_argument("--task", metavar="TASK", help="only of this task")
    listing.add_argument("--method", metavar="METHOD", help="only of this method")
    add_json_flag(listing)
    listing.add_argument("--status", choices=("ok", "failed"), help="only with this outcome")
    showing = actions.add_parser("show", parents=[shared], help="one record, whole")
    showing.add_argument("run", metavar="RUN", help="its hash, or the beginning of it")
    checking = actions.add_parser("verify", parents=[shared], help="check every file; status 1 if one is wrong")
    add_json_flag(checking)
    clearing = actions.add_parser("gc", parents=[shared], help="remove what killed commands left")
    add_json_flag(clearing)
    clearing.add_argument("--dry-run", action="store_true", help="only say what would go")
    clearing.add_argument("--failed", action="store_true", help="also the records of failed runs")
    clearing.add_argument(
        "--weights", action="store_true", help="also trained weights of runs that have no record here"
    )
    return parser


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"--results {root} is not a folder")
    if (root / "runs").is_dir():
        return
    below = [folder for folder in sorted(root.iterdir()) if (folder / "runs").is_dir()]
    hint = f"; there are some in {', '.join(map(str, below))}" if below else ""
    raise UserError(f"no records in {root}: it has no folder 'runs'{hint}; choose with --results")


# list, show -----------------------------------------------------------------------------------------------------------


def _list(root: Path, arguments: argparse.Namespace) -> int:
    frame = load_runs(root)
    unreadable = frame.attrs["unreadable"]
    for column, wanted in (
        ("config.task", arguments.task),
        ("config.method", arguments.method),
        ("status", arguments.status),
    ):
        if wanted is None or frame.empty:
            continue
        known = sorted(frame[column].unique())
        frame = frame[frame[column] == wanted]
        if frame.empty:
            raise UserError(f"no record has {column.removeprefix('config.')} '{wanted}'; there is {', '.join(known)}")
    answer(
        arguments,
        records=rows_of(frame),
        unreadable=[{"path": place, "reason": why} for place, why in unreadable],
    )
    console = open_console(quiet=arguments.json)
    print_table(listed(frame), f"{len(frame)} records in {root}", console)
    for place, reason in unreadable:
        console.print(f"{root / place}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return 0


def listed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that `list` prints, newest record last."""
    if frame.empty:
        return frame
    shown = frame.sort_values("started_at").reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    shown["Score"] = shown["Score"].map(lambda score: "" if score != score else f"{score:.4f}")
    shown["Started (UTC)"] = shown["Started (UTC)"].str.slice(0, 19)
    shown["Error"] = shown["Error"].fillna("").str.slice(0, 60)
    return shown


def _show(root: Path, arguments: argparse.Namespace) -> int:
    wanted = arguments.run
    paths = [path for path in sorted((root / "runs").rglob("*.json")) if _hash_of(path).startswith(wanted)]
    if not wanted or len(paths) != 1:
        found = (
            f"{len(paths)} runs begin so: {', '.join(map(_hash_of, paths[:5]))}" if paths else "no run has this hash"
        )
        raise UserError(f"'{wanted}': {found}; `python -m benchmarks.runs list --results {root}` lists them")
    try:
        print(json.dumps(read_record(paths[0]), indent=2))
    except CorruptRecord as error:
        raise UserError(str(error)) from error
    return 0


def _hash_of(path: Path) -> str:
    return path.stem.rpartition("-")[2]


# verify ---------------------------------------------------------------------------------------------------------------


def _verify(root: Path, arguments: argparse.Namespace) -> int:
    found = list(problems(root))
    frame = load_runs(root)
    failed = int((frame["status"] == "failed").sum())
    answer(arguments, problems=found, readable=len(frame), failed=failed)
    for line in (*found, f"{len(frame)} readable records, {failed} of failed runs; {len(found)} problems"):
        _say(line, arguments)
    return 1 if found else 0


def problems(root: Path) -> Iterator[str]:
    """One sentence for each file that is not as it should be, and what to do."""
    store = RunStore(root)
    for path in sorted((root / "runs").rglob("*")):
        if path.suffix == ".json":
            yield from _record_problems(store, path)
        elif ".corrupt" in path.suffix or (path.suffix == ".tmp" and _age_s(path) > _HOUR_S):
            yield f"{path}: left by a killed or corrupted run; `python -m benchmarks.runs gc` removes it"
    from benchmarks.checkpoints import UnusableCheckpoint, partial_root, read_snapshot

    for path in sorted(partial_root().glob("*/*.safetensors")):
        try:
            read_snapshot(path)
        except UnusableCheckpoint as error:
            yield f"{path}: {error}; its run will start anew, nothing need be done"


def _record_problems(store: RunStore, path: Path) -> Iterator[str]:
    try:
        record = read_record(path)
        place = store.path(RunConfig(**record["config"]))
    except CorruptRecord as error:
        yield str(error)
    except (TypeError, ValueError) as error:
        yield f"{path}: its config is not one of this version ({error}); rerun its command"
    else:
        if place != path:
            yield f"{path}: no command finds it here; move it to {place}"
        yield from _other_starts(store, path, record)


def _other_starts(store: RunStore, path: Path, record: Record) -> Iterator[str]:
    """Where a run that this one started from has been trained again since, and came to another model."""
    for name, score in ((record["metrics"] or {}).get("starts") or {}).items():
        for start in store.root.glob(f"runs/*/{record['config']['task']}/*-{name}.json"):
            try:
                now = read_record(start)["metrics"]["score"]
            except (CorruptRecord, TypeError):
                continue  # named by itself, or of a failed run
            if now != score:
                yield (
                    f"{path}: it started from a training of {start.name} that scored {score:.6g}; the record of that "
                    f"has {now:.6g} now; run this one again with --force"
                )


# gc -------------------------------------------------------------------------------------------------------------------


def _clear(root: Path, arguments: argparse.Namespace) -> int:
    gone: list[dict[str, Any]] = []
    for path, reason in leftovers(root, failed=arguments.failed, weights=arguments.weights):
        size = _size(path)
        gone.append({"path": path, "bytes": size, "reason": reason})
        _say(f"{'would remove' if arguments.dry_run else 'removed'} {path} ({_megabytes(size)}): {reason}", arguments)
        if not arguments.dry_run:
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    total = _megabytes(sum(one["bytes"] for one in gone))
    _say(f"{len(gone)} files and folders, {total}{' would go' if arguments.dry_run else ''}", arguments)
    answer(arguments, removed=[] if arguments.dry_run else gone, would_go=gone if arguments.dry_run else [])
    return 0


def _say(line: str, arguments: argparse.Namespace) -> None:
    """A line for people, none where the answer is for a program."""
    if not arguments.json:
        print(line)


def leftovers(root: Path, *, failed: bool, weights: bool) -> Iterator[tuple[Path, str]]:
    """What can go and why; nothing that a running command works on."""
    records = _records(root)
    done = {key for key, record in records.items() if record["status"] == "ok"}
    for path in sorted((root / "runs").rglob("*")):
        if ".corrupt" in path.suffix:
            yield path, "a corrupted record, computed anew since or by the next command"
        elif path.suffix == ".tmp" and _age_s(path) > _HOUR_S:
            yield path, "left by a killed process"
        elif failed and path.suffix == ".json" and records.get(_hash_of(path), {}).get("status") == "failed":
            yield path, "the record of a failed run"
    yield from _leftover_checkpoints(done, set(records), weights=weights)


def _leftover_checkpoints(done: set[str], recorded: set[str], *, weights: bool) -> Iterator[tuple[Path, str]]:
    from benchmarks.checkpoints import is_in_use, partial_root

    partial = partial_root()
    for folder in sorted(path for path in partial.glob("*") if path.is_dir()):
        old = _age_s(folder) > FORGOTTEN_DAYS * _DAY_S
        if (folder.name in done or old) and not is_in_use(folder.name):
            yield folder, "the run is finished" if folder.name in done else f"untouched for {FORGOTTEN_DAYS} days"
    if weights:
        for folder in sorted(path for path in partial.parent.glob("*-*") if path.is_dir()):
            if _age_s(folder) < _HOUR_S:
                continue  # weights are written before their record
            if folder.name.startswith("."):
                yield folder, "left by a killed process"
            elif _hash_of(folder) not in recorded:
                yield folder, "weights without a record here; made again when needed"


def _records(root: Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for path in (root / "runs").rglob("*.json"):
        try:
            found[_hash_of(path)] = read_record(path)
        except CorruptRecord:
            continue
    return found


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _size(path: Path) -> int:
    files: list[Any] = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
