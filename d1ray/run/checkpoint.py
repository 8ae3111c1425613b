"""Checkpoints: folders that are complete once every rank's manifest is there, so that a half-written one is
never loaded. ``d1ray.run.checkpoint_writer`` writes them; they lie on any file system that fsspec knows.

Which one counts is decided in one place, for resuming, pruning, following and exporting: a pure choice
(``resumable``, ``superfluous``) among what ``survey`` has found. What cannot be read is an error, never an
absence, and nothing newer than what was just written is removed.

``step-00012/`` holds ``model/`` (a Hugging Face folder, or a PEFT adapter), further groups of tensors
(optimiser, moved reference), ``state.json`` and a manifest a rank with the SHA-256 and size of each file
that the rank wrote. Tensors are whole, whoever wrote them: any number of ranks can go on from a checkpoint.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from upath import UPath

from d1ray.config.errors import DataError, RunFailed

Place: TypeAlias = Path | UPath  # a UPath of local storage is a Path, too
MANIFEST = re.compile(r"manifest-\d{5}-of-(\d{5})\.json")
STEP = re.compile(r"step-\d{5,}")
MODEL, ADAPTER = "model/model", "model/adapter_model"  # how the files of a group begin
TRIES, PAUSE_S = 3, 1.0  # of reading

Seen = TypeVar("Seen")


class Standing(Enum):
    """What a look at a checkpoint's manifests and at its files' sizes tells."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"  # not every rank has written its manifest
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Found:
    """A checkpoint folder; other names are not ours."""

    step: int
    folder: UPath
    standing: Standing


class Unreachable(RunFailed):
    """Checkpoints cannot be read just now. That says nothing about whether they are there."""


def resumable(found: Sequence[Found]) -> list[Found]:
    """What a run can go on from, the newest first."""
    return sorted((f for f in found if f.standing is Standing.WHOLE), key=lambda f: f.step, reverse=True)


def superfluous(found: Sequence[Found], newest: int, keep: int, best: int | None = None) -> list[Found]:
    """What need not be kept once the checkpoint of step ``newest`` is written: all before it but the last
    ``keep`` whole ones and that of step ``best``. Of later steps nothing goes: an error of reading may be why
    the run went on from an earlier one."""
    past = [f for f in found if f.step <= newest]
    kept = [f.step for f in resumable(past)[:keep]]
    return [f for f in past if f.step not in (*kept, newest, best)]


def survey(root: Place) -> list[Found]:
    """The checkpoints in a folder, by step; none if there is no such folder."""
    return _reading(root, lambda: _found(root))


def latest(root: Place) -> UPath | None:
    """The newest checkpoint that is as it was written; a damaged one falls back to the one before."""

    def look() -> UPath | None:
        return next((f.folder for f in resumable(_found(root)) if _unchanged(f.folder)), None)

    return _reading(root, look)


def best(root: Place) -> UPath | None:
    """The checkpoint of the step that validates best, as the newest one tells; that one if it has none."""
    newest = latest(root)
    return newest and of_step(root, load_state(newest).get("driver", {}).get("best_step", -1))


def of_step(root: Place, step: int) -> UPath | None:
    """The checkpoint of a step, or the newest one if there is none or it is damaged."""
    folder = folder_of(root, step)
    return folder if is_complete(folder) else latest(root)


def newest_step(root: Place) -> int:
    """The step of the newest checkpoint that is whole by the sizes of its files; 0 if there is none."""
    return max((f.step for f in resumable(survey(root))), default=0)


def folder_of(root: Place, step: int) -> UPath:
    """Where the checkpoint of a step lies."""
    return UPath(root) / f"step-{step:05d}"


def by_step(root: Place) -> list[UPath]:
    """Checkpoint folders by step, whole or not. Raises whatever the storage raises, unless ``root`` is no
    folder."""
    try:
        there = listed(UPath(root))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((folder for folder in there if STEP.fullmatch(folder.name)), key=step_of)


def step_of(folder: Place) -> int:
    """The step a checkpoint folder is named after."""
    return int(folder.name.removeprefix("step-"))


def standing_of(folder: Place) -> Standing:
    """How a checkpoint is, as far as its manifests and its files' sizes tell. Raises whatever the storage
    raises, unless a file is not there."""
    try:
        files = manifest_of(folder)
        if files is None:
            return Standing.UNFINISHED
        sizes = {name: (folder / name).stat().st_size for name in files}
        same = all(sizes[name] == entry["bytes"] for name, entry in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return Standing.DAMAGED  # or its manifest is not one of ours
    return Standing.WHOLE if same else Standing.DAMAGED


def is_checkpoint(folder: Place) -> bool:
    """Whether a folder holds a manifest."""
    return folder.is_dir() and any(MANIFEST.fullmatch(file.name) for file in listed(folder))


def is_complete(folder: Place, within: str = "") -> bool:
    """Whether every file of the manifests is there: with its SHA-256, or on remote storage with its size.
    Hashes are of files whose names begin ``within``."""
    return _reading(folder, lambda: standing_of(folder) is Standing.WHOLE and _unchanged(folder, within))


def manifest_of(folder: Place) -> dict[str, dict[str, Any]] | None:
    """``{"sha256": ..., "bytes": ...}`` of each file, by its path within the checkpoint; None before all is
    written."""
    parts = [file for file in listed(folder) if MANIFEST.fullmatch(file.name)]
    if not parts or len(parts) != int(MANIFEST.fullmatch(parts[0].name)[1]):  # type: ignore[index]
        return None
    return {name: entry for part in parts for name, entry in json.loads(part.read_text()).items()}


@contextmanager
def fetched(folder: Place | None, verify: bool = True) -> Iterator[Path | None]:
    """A checkpoint in a local folder; one on remote storage is copied there while the block runs.

    Args:
        verify: False where another rank does: a copy is always verified.

    Raises:
        DataError: it is not what was written.
    """
    if folder is None:
        yield None
        return
    if isinstance(folder, Path):
        if verify:
            _check(folder, folder)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="d1ray-") as place:
        target = Path(place) / folder.name
        _reading(folder, lambda: folder.fs.get(folder.path, str(target), recursive=True))
        _check(target, folder)
        yield target


def load_state(folder: Place) -> dict[str, Any]:
    """The JSON state of a complete checkpoint."""
    state: dict[str, Any] = json.loads(_reading(folder, (folder / "state.json").read_text))
    return state


def prune(root: Place, newest: int, keep: int, best: int | None = None) -> None:
    """Removes what is ``superfluous``."""
    for found in superfluous(survey(root), newest, keep, best):
        remove(found.folder)


def remove(folder: Place) -> None:
    """Removes a folder and all in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmdir(recursive=True)


def digest(file: Path) -> dict[str, Any]:
    """SHA-256 and size, as a manifest has them."""
    with open(file, "rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": file.stat().st_size}


def listed(folder: Place) -> list[Any]:
    """What a folder holds. Unlike a glob it passes over no error, and over no cached list."""
    if isinstance(folder, Path):
        return list(folder.iterdir())
    folder.fs.invalidate_cache()  # what other processes have written since
    return [folder / PurePosixPath(name).name for name in folder.fs.ls(folder.path, detail=False)]


def _check(folder: Path, whose: Place, within: str = "") -> None:
    """Raises ``DataError`` unless all that begins ``within`` is as the manifests say."""
    try:
        files = manifest_of(folder)
        named = {name: entry for name, entry in (files or {}).items() if name.startswith(within)}
        damaged = ["its manifest"] if files is None else _damaged(folder, named)
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise DataError(f"{whose} is damaged: {error}; remove the checkpoint") from error
    if damaged:
        raise DataError(f"{whose}: {damaged[0]} is not what its manifest says; remove the checkpoint")


def _found(root: Place) -> list[Found]:
    return [Found(step_of(folder), folder, standing_of(folder)) for folder in by_step(root)]


def _reading(place: Place, look: Callable[[], Seen]) -> Seen:
    """What ``look`` returns.

    Raises:
        Unreachable: it cannot read, several times in a row.
    """
    for left in reversed(range(TRIES)):
        try:
            return look()
        except Exception as error:  # each kind of storage has its own
            if not left:
                raise Unreachable(
                    f"the checkpoints in {place} cannot be read: {type(error).__name__}: {error}; nothing "
                    "was changed, and once they can be the same command goes on from the newest"
                ) from error
            time.sleep(PAUSE_S)
    raise AssertionError


def _unchanged(folder: Place, within: str = "") -> bool:
    """Whether the files have their SHA-256; of remote storage ``fetched`` looks at that."""
    if isinstance(folder, Path):
        try:
            _check(folder, folder, within)
        except DataError:
            return False
    return True


def _damaged(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The files that are not as their manifest says."""
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to others
        found = pool.map(digest, [folder / name for name in files])
        return [name for name, now in zip(files, found, strict=True) if now != files[name]]
