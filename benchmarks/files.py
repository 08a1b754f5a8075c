"""Files that are whole or not there: written under a temporary name, brought to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block it becomes `path`, at once and durably.

    After an error in the block, `path` is as it was. A killed process leaves at most a hidden `.NAME.PID.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a file that is not what it should be to NAME.corrupt, NAME.corrupt1, ...; returns the new path."""
    names = (path.with_name(f"{path.name}.corrupt{number or ''}") for number in range(1000))
    kept = next(name for name in names if not name.exists())
    os.replace(path, kept)
    return kept


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence that names the path.

    Raises:
        UserError: the block met an OSError.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise UserError(f"cannot write {path}: it is a folder; name a file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; make its folder writable, or free some space") from error


def write_table(
    folder: Path, name: str, frame: pd.DataFrame, parts: Iterable[str], *, float_format: str | None = "%.6g"
) -> list[Path]:
    """Write a table into `folder`, which is made if need be.

    Args:
        parts: of the page, such as a heading, the command and the table as people read it.
        float_format: of numbers in the CSV file; None: all digits.
    Returns:
        `name`.csv and `name`.md.
    Raises:
        UserError: the file system refuses.
    """
    paths = [folder / f"{name}.csv", folder / f"{name}.md"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(paths[0], index=False, float_format=float_format)
        paths[1].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return paths


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
