"""Data sets of the Hugging Face hub, read with ``datasets``; also folders that are laid out like one."""

from pathlib import Path
from typing import Any

from d1ray.config.errors import DataError


def hub_rows(source: Path | str, subset: str | None = None) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The rows of every split, each with its place, e.g. ``openai/gsm8k, train row 3``.

    Args:
        source: a hub id, downloaded into Hugging Face's cache unless it is there already, or a folder.
        subset: which configuration of the data set, where it has several.

    Raises:
        DataError: it cannot be had.

    Example:
        >>> sorted(hub_rows("openai/gsm8k", "main"))  # doctest: +SKIP
        ['test', 'train']
    """
    import datasets  # takes a second, and most runs need none of it

    try:
        splits = datasets.load_dataset(str(source), subset)
    except Exception as error:  # the library's own, its HTTP client's and pyarrow's have no common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if Path(source).exists():
            raise DataError(f"{source} cannot be read as a data set: {reason}") from error
        raise DataError(
            f"{source} is no file or folder here, and fetching it from the Hugging Face hub failed: "
            f"{reason}. Check the name, data.subset and the network (HF_HUB_OFFLINE), or give data.path=FILE"
        ) from error
    return {
        str(name): [(f"{source}, {name} row {number}", row) for number, row in enumerate(rows, start=1)]
        for name, rows in splits.items()
    }
