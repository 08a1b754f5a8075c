"""Row files: finding `<folder>/<split>.*` and reading Parquet, JSON Lines, CSV and TSV into a `datasets.Dataset`.

Never through `load_dataset(folder)`: its cache is keyed by the folder's last name, and an offline
`load_dataset("glue", ...)` would later return these rows as if they were GLUE.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_BROKEN = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_ODD = ("nan", "inf", "infinity")
_SHARD = re.compile(r"^(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")  # the hub's own file names


def suffix_of(path: Path) -> str:
    """The format of a file, whatever the case of its letters."""
    return path.suffix.lower()


def _split_of(path: Path) -> str:
    """The split a file belongs to: "train" for train.parquet and for train-00000-of-00002.parquet."""
    shard = _SHARD.match(path.stem)
    return shard["split"] if shard else path.stem


def _row_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if suffix_of(path) in SUFFIXES and path.is_file())


def split_names(folder: Path) -> list[str]:
    """The splits that `folder` has files of, sorted."""
    return sorted({_split_of(path) for path in _row_files(folder)})


def split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split in `folder`, or all of its shards in order.

    Raises:
        UserError: no such file (it lists what is there), two formats of one split, or a shard is missing.
    """
    files = [path for path in _row_files(folder) if _split_of(path) == split]
    if not files:
        raise UserError(
            f"no rows of split {split!r} in {folder}; expected {split}{', '.join(SUFFIXES)}; "
            f"the splits there: {', '.join(split_names(folder)) or 'none'}"
        )
    shards = [match for path in files if (match := _SHARD.match(path.stem))]
    if len(files) > 1 and (len(shards) < len(files) or len({suffix_of(path) for path in files}) > 1):
        raise UserError(f"{folder} has split {split!r} more than once: {', '.join(p.name for p in files)}; keep one")
    if shards and len(files) != int(shards[0]["count"]):
        raise UserError(f"{folder} has {len(files)} of the {int(shards[0]['count'])} shards of split {split!r}")
    return files


def read_rows(files: Sequence[Path]) -> datasets.Dataset:
    """Read the files of one split, in order; class names stored in Parquet travel along.

    Texts are taken literally: "NA" and "null" stay texts, a TSV field may hold quotation marks (no quoting, as in the
    GLUE archives), a CSV field is quoted where needed. Of a CSV or TSV file, only the column `label` becomes numbers,
    and only if every field of it is one; an empty label becomes null.

    Raises:
        UserError: a file cannot be read or has no rows; it names the file, and the line where one is at fault.
    """
    import datasets

    parts = [_read_file(path) for path in files]
    for path, part in zip(files, parts, strict=True):
        if len(part) == 0:
            raise UserError(f"{path} has no rows")
        if part.column_names != parts[0].column_names:
            raise UserError(f"{path} has the columns {part.column_names}, {files[0].name} has {parts[0].column_names}")
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def count_rows(files: Sequence[Path]) -> int:
    """Rows of a split; Parquet files tell without being read.

    Raises:
        UserError: as for `read_rows`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if any(suffix_of(path) != ".parquet" for path in files):
        return len(read_rows(files))
    try:
        return sum(pq.read_metadata(path).num_rows for path in files)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{files[0]} cannot be read: {str(error).splitlines()[0]}") from error


def _read_file(path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if suffix_of(path) == ".parquet":
            return datasets.Dataset(pq.read_table(path))
        columns = _json_columns(path) if suffix_of(path) == ".jsonl" else _delimited_columns(path)
        return datasets.Dataset(pa.table({name: _arrow_column(path, name, values) for name, values in columns.items()}))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, NotImplementedError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _arrow_column(path: Path, name: str, values: list[Any]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        row = values.index(error.object)
        raise UserError(
            f"{path}, row {row + 1}: column {name!r} holds text that is not Unicode ({error.reason}); correct it"
        ) from error
    except OverflowError as error:
        row = next(row for row, value in enumerate(values) if isinstance(value, int) and abs(value) >= 2**63)
        raise UserError(
            f"{path}, row {row + 1}: column {name!r} holds {values[row]}, which is beyond 64 bits; put it in quotation "
            "marks to make it a name"
        ) from error
    except pa.ArrowException as error:
        kinds = [type(value) for value in values]
        row = next((row for row, kind in enumerate(kinds) if kind not in (kinds[0], type(None))), 0)
        raise UserError(
            f"{path}, row {row + 1}: column {name!r} holds {values[row]!r}, row 1 {values[0]!r}; use one type"
        ) from error


def _json_columns(path: Path) -> dict[str, list[Any]]:
    """Columns of a JSON Lines file; a key that a line lacks is null there."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected an object keyed by column, got {line[:40]!r}")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _delimited_columns(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV or TSV file with a header line."""
    rows = _csv_rows(path) if suffix_of(path) == ".csv" else _tsv_rows(path)
    _, header = next(rows, (0, []))
    comma = suffix_of(path) == ".csv"
    if len(header) == 1 and (other := next((mark for mark in (";\t" if comma else ";,") if mark in header[0]), None)):
        raise UserError(
            f"{path}: its header has {other!r} and no {'comma' if comma else 'tab'}; save it with "
            f"{'commas' if comma else 'tabs'}"
        )
    if len(set(header)) < len(header):
        raise UserError(f"{path}: the header names a column twice: {', '.join(header)}")
    fields: list[list[str]] = []
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} fields, the header has {len(header)}")
        fields.append(row)
    columns: dict[str, list[Any]] = {name: [row[i] for row in fields] for i, name in enumerate(header)}
    if "label" in columns:
        read = numbers(columns["label"])
        if not any(
            isinstance(value, int) and abs(value) >= 2**63 for value in read
        ):  # else names: no column holds them
            columns["label"] = read
    return columns


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long document
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank; a tab always separates, nothing quotes."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\n").split("\t")


def numbers(fields: Sequence[str]) -> list[Any]:
    """Whole numbers if every field is one, else numbers if every field is one, else the fields; "" becomes None.

    A field is a number where it is written as one usually is: 007 and 1_000 are names. So are nan and inf, unless all
    others are numbers: then a check will refuse them.
    """
    given = [field.strip() for field in fields if field]
    if all(map(_WHOLE.fullmatch, given)):
        return [int(field) if field else None for field in fields]
    rest = [field for field in given if not _WHOLE.fullmatch(field)]
    odd = [field for field in rest if not _BROKEN.fullmatch(field)]
    if len(odd) < len(given) and all(field.lower().lstrip("+-") in _ODD for field in odd):
        return [float(field) if field else None for field in fields]
    return [field or None for field in fields]
