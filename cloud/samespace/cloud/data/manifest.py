"""A table of pictures: CSV or Parquet with the columns ``path`` and ``label``, and optionally ``split`` and ``source``.

Other columns are left alone. ``split`` is empty in every row, or in none; it holds ``train``, ``validation`` or ``test``, or
says which side a picture is on: ``validation_query``, ``validation_gallery``, ``test_query``, ``test_gallery``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from samespace.cloud.data.config import ManifestConfig
from samespace.cloud.data.files import FileImages, open_files
from samespace.cloud.data.images import Item
from samespace.cloud.data.splits import PARTS, check_parts
from samespace.cloud.parquet import load_pyarrow
from samespace.sdk.errors import DataError

__all__ = ["open_manifest"]


def open_manifest(
    config: ManifestConfig, *, cache: Path | None = None, workers: int | None = None, show: bool = True
) -> FileImages:
    """Read the table, check and open its pictures; see :func:`samespace.cloud.data.files.open_files`.

    Raises:
        DataError: no such table, a column is missing, a cell is empty or holds an unknown split, a class is both trained and
            tested, or what ``open_files`` refuses. Rows are counted as a spreadsheet does: the header is row 1.
        ConfigError: Parquet without pyarrow, or with one that does not fit the installed NumPy.
    """
    path = config.path.expanduser()
    if not path.is_file():
        raise DataError(f"{path} is no file; data.path must name a .csv or .parquet table with the columns path and label")
    rows = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    items = [_item(path, number, row) for number, row in enumerate(rows, start=2)]
    check_parts(str(path), items)
    # Sorted: the order of the rows has no say in which pictures are queries.
    items.sort(key=lambda item: item.key)
    paths = [path.parent / item.key for item in items]
    return open_files(str(path), items, paths, on_broken=config.on_broken, cache=cache, workers=workers, show=show)


def _read_csv(path: Path) -> Sequence[Mapping[str, str]]:
    try:
        # Spreadsheets write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            return [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); save it as UTF-8, comma separated, with a header") from error


def _read_parquet(path: Path) -> Sequence[Mapping[str, str]]:
    pyarrow = load_pyarrow(path)
    try:
        schema = pyarrow.parquet.read_schema(path)
        _check_columns(path, schema.names)
        wanted = [name for name in ("path", "label", "split", "source") if name in schema.names]
        table = pyarrow.parquet.read_table(path, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in table.to_pylist()]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(
            f"{path}: the column {' and the column '.join(missing)} is missing; there are: {', '.join(columns) or 'none'}"
        )


def _item(path: Path, number: int, row: Mapping[str, str]) -> Item:
    for column in ("path", "label"):
        if not row[column].strip():
            raise DataError(f"{path}, row {number}: {column} is empty; fill it in or remove the row")
    part = row.get("split", "").strip()
    if part and part not in PARTS:
        raise DataError(f"{path}, row {number}: split is {part!r}; it must be empty or one of: {', '.join(PARTS)}")
    return Item(row["path"].strip(), row["label"].strip(), row.get("source", "").strip(), part)
