"""Data files as examples: one row, one example, and an error that names the file and the row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d1ray.errors import DataError
from d1ray.tasks.task import Example, Task

SUFFIXES = (".parquet", ".jsonl")


def load_examples(task: Task, path: Path) -> list[Example]:
    """All examples of a file, in its order; a problem that occurs again is kept once."""
    examples: dict[str, Example] = {}
    for place, row in load_rows(path):
        try:
            example = task.example(row)
        except KeyError as error:
            column = error.args[0]
            if column in row:
                raise
            raise DataError(
                f"{place}: column {column!r} is missing; found {', '.join(row) or 'none'}"
            ) from None
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        examples.setdefault(example.key, example)
    return list(examples.values())


def load_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet or JSONL file, each with the place it stands at, e.g. ``train.jsonl, line 3``."""
    if not path.is_file():
        raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    try:
        return list(_parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(pq.read_table(path).to_pylist(), start=1):
        yield f"{path}, row {number}", row


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
