"""Checkpoints: folders that are complete once every rank's manifest is there, so that a half-written one is
never loaded. ``d1ray.run.checkpoint_writer`` writes them; they lie on any file system that fsspec knows.

``step-00012/`` holds ``model/`` (a Hugging Face folder, or a PEFT adapter), further groups of tensors
(optimiser, moved reference), ``state.json`` and a manifest a rank with the SHA-256 and size of each file
that the rank wrote. Tensors are whole, whoever wrote them: any number of ranks can go on from a checkpoint.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from upath import UPath

from d1ray.config.errors import DataError

Place: TypeAlias = Path | UPath  # a UPath of local storage is a Path, too
MANIFEST = re.compile(r"manifest-\d{5}-of-(\d{5})\.json")
MODEL, ADAPTER = "model/model", "model/adapter_model"  # how the files of a group begin


def latest(root: Place) -> UPath | None:
    """The newest checkpoint that is complete; a damaged one falls back to the one before."""
    return next((c for c in reversed(by_step(root)) if is_complete(c)), None)


def best(root: Place) -> UPath | None:
    """The checkpoint of the step that validates best, as the newest one tells; that one if it has none."""
    newest = latest(root)
    if newest is None:
        return None
    chosen = folder_of(root, load_state(newest).get("driver", {}).get("best_step", -1))
    return chosen if is_complete(chosen) else newest


def folder_of(root: Place, step: int) -> UPath:
    """Where the checkpoint of a step lies."""
    return UPath(root) / f"step-{step:05d}"


def by_step(root: Place) -> list[UPath]:
    """Checkpoint folders by step, whole or not."""
    root = UPath(root)
    root.fs.invalidate_cache()  # what other processes have written since
    return sorted(root.glob("step-*"), key=step_of) if root.exists() else []


def step_of(folder: Place) -> int:
    """The step a checkpoint folder is named after."""
    return int(folder.name.removeprefix("step-"))


def is_finished(folder: Place) -> bool:
    """Whether every rank has written its manifest."""
    return manifest_of(folder) is not None


def is_complete(folder: Place) -> bool:
    """Whether every file of the manifests is there: with its SHA-256, or on remote storage with its size."""
    try:
        files = manifest_of(folder)
        if files is None:
            return False
        if isinstance(folder, Path):
            return not _damaged(folder, files)
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of manifests that are not ours, too
        return False


def newest_step(root: Place) -> int:
    """The step of the newest checkpoint that is all written, whole or not; 0 if there is none."""
    return max((step_of(folder) for folder in by_step(root) if is_finished(folder)), default=0)


def manifest_of(folder: Place) -> dict[str, dict[str, Any]] | None:
    """``{"sha256": ..., "bytes": ...}`` of each file, by its path within the checkpoint; None before all is
    written."""
    parts = [f for f in folder.glob("manifest-*.json") if MANIFEST.fullmatch(f.name)]
    if not parts or len(parts) != int(MANIFEST.fullmatch(parts[0].name)[1]):  # type: ignore[index]
        return None
    return {name: entry for part in parts for name, entry in json.loads(part.read_text()).items()}


@contextmanager
def fetched(folder: Place | None) -> Iterator[Path | None]:
    """A checkpoint in a local folder; one on remote storage is copied there while the block runs.

    Raises:
        DataError: what came over is not what was written.
    """
    if folder is None or isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="d1ray-") as place:
        target = Path(place) / folder.name
        folder.fs.get(folder.path, str(target), recursive=True)
        damaged = _damaged(target, manifest_of(target) or {})
        if damaged:
            raise DataError(f"{folder / damaged[0]} is not what its manifest says; remove the checkpoint")
        yield target


def load_state(folder: Place) -> dict[str, Any]:
    """The JSON state of a complete checkpoint."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def prune(root: Place, newest: int, keep: int, best: int | None = None) -> None:
    """Removes all checkpoints but the last ``keep`` finished ones up to step ``newest``, and that of step
    ``best``. Those of later steps go too: they are damaged, or of a future that was rolled back."""
    folders = by_step(root)
    kept = [folder for folder in folders if step_of(folder) <= newest and is_finished(folder)][-keep:]
    for folder in folders:
        if folder not in kept and step_of(folder) != best:
            remove(folder)


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


def _damaged(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The files that are not as their manifest says."""
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to others
        found = pool.map(digest, [folder / name for name in files])
        return [name for name, now in zip(files, found, strict=True) if now != files[name]]
