"""Where a run's examples come from: the task's generator, files, or the hub. ``open_data`` is the way in.

Both kinds are pure functions of an index, so the index is the whole data position: a resumed run goes on with
the next one. The splits never share a problem. ``stream`` separates two uses of the training split, such as
SFT and RL: generated streams are drawn independently, streams over a file hold its rows in different orders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from d1ray.config.errors import DataError
from d1ray.config.rng import generator
from d1ray.config.settings import HUB_ID
from d1ray.tasks.hub_data import hub_rows
from d1ray.tasks.rows import SUFFIXES, Row, examples_of, load_rows
from d1ray.tasks.task import Example, Split, Task

MAX_REDRAWS = 1000
FIXED_SEED = 0  # of evaluation sets: runs with different seeds are judged on the same examples


class Data(Protocol):
    """The examples of a run."""

    @property
    def dropped(self) -> Mapping[Split, int]:
        """How many rows of a file's splits were left out as too long."""
        ...

    def train(self, index: int, stream: str = "rl") -> Example:
        """The training example at ``index``, for any ``index >= 0``."""
        ...

    def rows(self, split: Split) -> list[Example]:
        """What a file holds of ``split``; [] where examples are generated."""
        ...

    def examples(self, split: Split, n: int) -> list[Example]:
        """``n`` distinct examples, the same for every seed; all there are where a file has fewer."""
        ...


def open_data(
    task: Task,
    path: Path | None,
    seed: int,
    *,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    keeps: Callable[[Example], bool] | None = None,
) -> Data:
    """The examples of ``task``.

    Splits that the data does not have are what ``task.split_of`` carves from its train split, or from its
    only one; problems of the test split are dropped from the others.

    Args:
        path: a file; a folder with ``train.*`` and ``test.*``, or laid out as a hub data set; a hub id.
            ``None``: examples are generated, or the task's own data set on the hub is read.
        subset: which configuration of a hub data set.
        columns: the data's name of each column that the task knows by another.
        keeps: rows for which it is false are left out of every split, and counted; generated examples are
            drawn anew.

    Raises:
        DataError: data that is missing or malformed, or a split that comes out empty.
    """
    if path is None and type(task).draw is not Task.draw:
        return GeneratedData(task, seed, keeps or _everything)
    if path is None:
        if task.hub is None:
            raise DataError(
                f"task {task.name} generates no examples: give data.path=FILE, a folder or a hub id"
            )
        path, subset = Path(task.hub[0]), subset or task.hub[1]
    named = {name: examples_of(task, rows, columns or {}) for name, rows in _named_rows(path, subset).items()}
    splits = _divide(task, named, path)
    kept = {split: [e for e in examples if not keeps or keeps(e)] for split, examples in splits.items()}
    dropped = {split: len(splits[split]) - len(kept[split]) for split in splits}
    for split, examples in kept.items():
        if not examples:
            raise DataError(
                f"{path}: the {split} split is empty: {sum(map(len, splits.values()))} distinct problems"
                + (
                    f", {sum(dropped.values())} of them left out as too long,"
                    if any(dropped.values())
                    else ""
                )
                + " are too few to divide; add rows, or leave data.path out to generate examples"
            )
    return FileData(kept, seed, dropped)


def examples_to_evaluate(
    task: Task, path: Path, subset: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Example]:
    """What data that is not trained on holds to evaluate: its whole test split, or all of its only one.

    Raises:
        DataError: it is missing or malformed, or has several splits of which none is called test.
    """
    named = _named_rows(path, subset)
    if "test" not in named and len(named) != 1:
        raise DataError(f"{path} has the splits {', '.join(named) or 'none'}; one must be called test")
    return examples_of(task, named.get("test") or next(iter(named.values())), columns or {})


@dataclass(frozen=True)
class GeneratedData:
    """Examples drawn by the task, each from its own counter-based generator; drawn anew where not kept."""

    task: Task
    seed: int
    keeps: Callable[[Example], bool]
    dropped: Mapping[Split, int] = field(default_factory=dict)

    def train(self, index: int, stream: str = "rl") -> Example:
        for redraws in range(MAX_REDRAWS):
            counters = (index, redraws) if redraws else (index,)
            example = self.task.draw("train", generator(self.seed, f"examples/train/{stream}", *counters))
            if self.keeps(example):
                return example
        raise DataError(
            f"none of {MAX_REDRAWS} examples of {self.task.name} has a prompt that fits; "
            f"raise data.max_prompt_length"
        )

    def rows(self, split: Split) -> list[Example]:
        return []

    def examples(self, split: Split, n: int) -> list[Example]:
        return fixed_set(self.task, split, n, self.keeps)


@dataclass(frozen=True)
class FileData:
    """Examples of files. Training visits each row once an epoch, in an order of its own for every epoch.

    ``dropped`` counts the rows of each split that were left out.
    """

    splits: dict[Split, list[Example]]
    seed: int
    dropped: Mapping[Split, int] = field(default_factory=dict)

    def train(self, index: int, stream: str = "rl") -> Example:
        rows = self.splits["train"]
        epoch, position = divmod(index, len(rows))
        return rows[_order(self.seed, f"shuffle/{stream}", epoch, len(rows))[position]]

    def rows(self, split: Split) -> list[Example]:
        return self.splits[split]

    def examples(self, split: Split, n: int) -> list[Example]:
        rows = self.splits[split]
        # A file may be sorted, e.g. by difficulty: its first n rows would be no fair sample.
        return [rows[i] for i in _order(FIXED_SEED, f"examples/{split}", 0, len(rows))[:n]]


def _everything(example: Example) -> bool:
    return True


def fixed_set(
    task: Task, split: Split, n: int, keeps: Callable[[Example], bool] = _everything
) -> list[Example]:
    """``n`` distinct generated examples, whatever the run's seed; a smaller set begins a larger one.

    Raises ``DataError`` where the task does not yield that many distinct problems in 20 draws for each.
    """
    found: dict[str, Example] = {}
    tries = 20 * n + 1000
    for index in range(tries):
        if len(found) == n:
            break
        example = task.draw(split, generator(FIXED_SEED, f"examples/{split}", index))
        if keeps(example):
            found.setdefault(example.key, example)
    if len(found) < n:
        raise DataError(
            f"asked for {n} distinct {split} examples of {task.name}, found {len(found)} in {tries} draws; "
            f"ask for fewer (evaluation.examples, evaluation.validation_examples), or choose task options "
            f"that allow more problems, or a longer data.max_prompt_length"
        )
    return list(found.values())


@lru_cache(maxsize=8)
def _order(seed: int, stream: str, epoch: int, size: int) -> np.ndarray:
    return generator(seed, stream, epoch).permutation(size)


def _named_rows(path: Path, subset: str | None) -> dict[str, list[Row]]:
    """The rows of each split that the data itself tells apart."""
    if any(path.glob("train.*")) or any(path.glob("test.*")):
        return {stem: load_rows(_find(path, stem)) for stem in ("train", "test")}
    if path.is_dir() or (not path.exists() and HUB_ID.fullmatch(str(path))):
        return hub_rows(path, subset)
    return {"train": load_rows(path)}


def _divide(task: Task, named: Mapping[str, list[Example]], path: Path) -> dict[Split, list[Example]]:
    """Disjoint splits: the test problems are in no other, the validation problems not in train."""
    if len(named) == 1:
        named = {"train": next(iter(named.values()))}
    if "train" not in named:
        raise DataError(f"{path} has the splits {', '.join(named) or 'none'}; one must be called train")
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    held_out: tuple[Split, ...] = ("test", "validation")
    for split in held_out:
        splits[split] = [example for example in named.get(split, ()) if example.key not in seen]
        seen |= {example.key for example in splits[split]}
    for example in named["train"]:
        if example.key not in seen:
            split = task.split_of(example.key)
            splits["train" if split in named else split].append(example)
    return splits


def _find(folder: Path, stem: str) -> Path:
    names = [f"{stem}{suffix}" for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        present = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: expected exactly one of {', '.join(names[:-1])} and {names[-1]}, found {present}; "
            f"a folder holds a train and a test file, and data.path=FILE divides a single file into splits"
        )
    return found[0]
