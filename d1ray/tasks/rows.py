"""Data files as examples: one row, one example, and an error that names the file and the row."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d1ray.config.errors import DataError
from d1ray.tasks.task import Example, Task
from d1ray.tasks.verl import from_verl, is_verl

SUFFIXES = (".parquet", ".jsonl", ".csv")


Row = tuple[str, dict[str, Any]]  # its place, e.g. ``train.jsonl, line 3``, and its columns


def load_examples(task: Task, path: Path, columns: Mapping[str, str] | None = None) -> list[Example]:
    """All examples of a file, in its order; a row that says the same again is kept once."""
    return examples_of(task, load_rows(path), columns or {})


def examples_of(task: Task, rows: Iterable[Row], columns: Mapping[str, str]) -> list[Example]:
    """Rows as examples; a row that says the same again is kept once.

    Args:
        columns: the data's name of each column that the task knows by another.

    Raises:
        DataError: a row lacks a column or holds a wrong value; names the row.
    """
    examples: dict[tuple[str, str], Example] = {}
    for place, row in rows:
        try:
            example = _example(task, row | {name: row[found] for name, found in columns.items()})
        except KeyError as error:
            column = error.args[0]
            if column in row:
                raise
            raise DataError(
                f"{place}: column {column!r} is missing; found {', '.join(row) or 'none'} "
                f"(data.columns.NAME=FOUND renames one)"
            ) from None
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        said = json.dumps(dict(example.fields), sort_keys=True, default=str)
        examples.setdefault((example.key, said), example)
    return list(examples.values())


def _example(task: Task, row: dict[str, Any]) -> Example:
    if not is_verl(row):
        return task.example(row)
    fields, prompt = from_verl(row)
    example = task.example(fields)
    return example if prompt is None else replace(example, prompt=prompt)


def load_rows(path: Path) -> list[Row]:
    """The rows of a Parquet, JSONL or CSV file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        return list(READERS[path.suffix](path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    for number, row in enumerate(pq.read_table(path).to_pylist(), start=1):
        yield f"{path}, row {number}", row


def _csv_rows(path: Path) -> Iterator[Row]:
    """Cells are text, as digits may be a puzzle; a list is written as JSON."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place}: expected {len(reader.fieldnames or [])} cells")
                yield place, {name: _cell(place, text) for name, text in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not CSV: {error}") from None


def _cell(place: str, text: str) -> Any:
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: {text:.60} is not a JSON list: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        place = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig").strip()
            row = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        if not text:
            continue
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected an object with a key per column, found {text:.60}")
        yield place, row


READERS = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
