"""JSON Lines: a row a line, appended, and read one after the other."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from d1ray.config.errors import DataError

BLOCK = 65536


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, as ``each_line`` gives them."""
    return [row for row, _ in each_line(path)]


def each_line(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON objects of a file with one a line, and the lines; a last one that is not ended is left out.

    Raises:
        DataError: names the line that is not a JSON object.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: {error}; remove the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object; remove the line")
            yield row, line


def end_with_whole_line(path: Path) -> None:
    """Cuts what follows the last newline: a line is written with its newline, so the rest is torn."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        for start in range((end - 1) // BLOCK * BLOCK, -1, -BLOCK):
            file.seek(start)
            if (newline := file.read(BLOCK).rfind(b"\n")) >= 0:
                file.truncate(start + newline + 1)
                return
        file.truncate(0)


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """``value`` with NumPy scalars as Python's, paths as text, and null for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            return int(value)
        return float(value) if math.isfinite(value) else None
    return value
