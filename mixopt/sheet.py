"""A sheet: the named columns of a CSV or parquet file, before anything is known of their meaning.

Whole files only; a number that is written is read back to the last bit. What columns
mean is up to `runs.py` and `layouts.py`. Rows count from 1 after the header.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from .errors import ConfigError
from .mixture import Array
from .storage import atomic_path

Cell = str | int | float | None
_Value = TypeVar("_Value")

SUFFIXES = (".csv", ".parquet")
_MISSING = ("", "nan", "na", "n/a", "null", "none", "<na>")  # what pandas, R and spreadsheets write for it
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Sheet:
    """Columns of equal length, cells as the file has them.

    Attributes:
        columns: {header: one cell per row}.
    """

    columns: Mapping[str, Sequence[Cell]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def texts(self, column: str) -> tuple[str, ...]:
        """Return a column as text without spaces around it; missing cells are empty."""
        return tuple("" if cell is None or _is_nan(cell) else str(cell).strip() for cell in self.columns[column])

    def numbers(self, column: str) -> Array:
        """Return a column as float64, NaN where a cell is missing.

        Raises:
            ConfigError: If a cell is no number.
        """
        return np.array(self._parsed(column, _number, "numbers"), dtype=np.float64)

    def integers(self, column: str) -> tuple[int | None, ...]:
        """Return a column as whole numbers, None where a cell is missing.

        Raises:
            ConfigError: If a cell is no whole number.
        """
        return tuple(self._parsed(column, _integer, "whole numbers"))

    def _parsed(self, column: str, parse: Callable[[Cell], _Value], what: str) -> list[_Value]:
        values, wrong = [], []
        for row, cell in enumerate(self.columns[column]):
            try:
                values.append(parse(cell))
            except (TypeError, ValueError, OverflowError):
                wrong.append(row)
        if wrong:
            raise ConfigError(
                f"column {column!r} must hold {what}, got {str(self.columns[column][wrong[0]])!r} in "
                f"{listed(f'row {row + 1}' for row in wrong)}; correct them, or leave a cell empty where nothing is known"
            )
        return values


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Name the file in front of every ConfigError of a block that works on what was read from it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def listed(items: Iterable[str]) -> str:
    """Return the first few items in words: `a, b and 7 more`."""
    names = list(items)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def kind_of(path: Path | str) -> str:
    """Return `.csv` or `.parquet`.

    Raises:
        ConfigError: If the name ends in something else.
    """
    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}; rename or convert the file")
    return kind


def read_sheet(path: Path | str) -> Sheet:
    """Read a CSV or parquet file; a column without header is called `Unnamed: <number>`.

    Raises:
        ConfigError: If the file is missing, empty, damaged, of another kind, or two columns share a name.
    """
    path = Path(path)
    kind = kind_of(path)
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected a file, there is {'a folder' if path.is_dir() else 'none'}; correct the path"
        )
    headers, columns = _read_csv(path) if kind == ".csv" else _read_parquet(path)
    names = [str(header).strip() or f"Unnamed: {i}" for i, header in enumerate(headers)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: every column needs its own name, twice is {listed(twice)}; rename or drop one")
    if not columns or not len(columns[0]):
        raise ConfigError(f"{path}: expected a header and at least one row, got no row; check what wrote the file")
    return Sheet(dict(zip(names, columns, strict=True)))


def write_sheet(path: Path | str, columns: Mapping[str, Sequence[Cell] | Array]) -> None:
    """Write columns as CSV or parquet, whole or not at all; NaN and None become missing cells.

    Args:
        path: The file; its suffix says the kind.
        columns: {header: float64 array, or text or whole numbers with None}, of equal length.

    Raises:
        ConfigError: If the suffix is neither .csv nor .parquet.
    """
    write = {".csv": _write_csv, ".parquet": _write_parquet}[kind_of(path)]
    with atomic_path(Path(path)) as temporary:
        write(temporary, columns)


def _number(cell: Cell) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().casefold() in _MISSING):
        return math.nan
    return float(cell)


def _integer(cell: Cell) -> int | None:
    number = _number(cell)
    if math.isnan(number):
        return None
    try:
        return int(str(cell))  # a float64 does not hold every integer of 64 bits
    except ValueError:
        if not number.is_integer():  # pandas writes 3.0 beside a missing cell
            raise
        return int(number)


def _is_nan(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _read_csv(path: Path) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a CSV file in UTF-8, it cannot be read: {error}; save it anew") from error
    if not rows:
        raise ConfigError(f"{path}: expected a header and at least one row, the file is empty; check what wrote it")
    ragged = [f"row {i}" for i, row in enumerate(rows) if len(row) != len(rows[0])]
    if ragged:
        raise ConfigError(
            f"{path}: every row must have the {len(rows[0])} cells of the header, not so in {listed(ragged)}; "
            "check commas and quotes"
        )
    return rows[0], list(zip(*rows[1:], strict=True))


def _read_parquet(path: Path) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: expected a parquet file, it cannot be read: {error}; write it anew") from error
    return table.column_names, [column.to_pylist() for column in table.columns]


def _write_csv(path: Path, columns: Mapping[str, Sequence[Cell] | Array]) -> None:
    cells = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        # The writer takes floats by repr: the shortest text that is read back as the same number.
        writer.writerows(["" if _is_nan(cell) else cell for cell in row] for row in zip(*cells, strict=True))


def _write_parquet(path: Path, columns: Mapping[str, Sequence[Cell] | Array]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def array(values: Sequence[Cell] | Array) -> pa.Array:
        if isinstance(values, np.ndarray):
            return pa.array(values, type=pa.float64())
        whole = any(isinstance(value, int) for value in values)
        return pa.array(values, type=pa.int64() if whole else pa.string())

    parquet.write_table(pa.table({name: array(values) for name, values in columns.items()}), path)
