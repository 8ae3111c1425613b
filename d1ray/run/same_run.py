"""Whether a folder may hold a run: it does already, or it is empty."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from d1ray.config.errors import UserError

# What may change without becoming another run.
CHANGEABLE = ("rl.steps", "rl.keep_rollouts", "run_dir", "checkpoint_path", "about", "cluster", "tracking")


def check_folder(path: Path, resolved: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if a folder holds another run than that of ``resolved``, or other files."""
    if (path / "config.yaml").exists():
        _check_same_run(path / "config.yaml", resolved)
    elif path.is_dir() and (found := _visible_entries(path)):
        raise UserError(
            f"run_dir={path} holds files but no run (no config.yaml; found {found[0]!r}): "
            f"choose an empty or new folder with run_dir=DIR"
        )


def _check_same_run(config_path: Path, resolved: Mapping[str, Any]) -> None:
    """Raises ``UserError`` unless ``config_path`` describes the run of ``resolved``."""
    try:
        stored = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{config_path} cannot be read as YAML; choose another folder with run_dir=DIR"
        ) from error
    difference = _first_difference(stored, resolved, "")
    if difference is not None:
        key, there, here = difference
        raise UserError(
            f"{config_path.parent} holds another run: {key or 'config'} is {there} there and {here} here; "
            f"choose another folder with run_dir=DIR, or repeat that run's settings to continue it"
        )


def _first_difference(stored: Any, resolved: Any, key: str) -> tuple[str, str, str] | None:
    """The first dotted key that differs, with both values as text; None if the run is the same."""
    if key in CHANGEABLE or stored == resolved:
        return None
    if isinstance(stored, list) and isinstance(resolved, list):
        stored, resolved = dict(enumerate(stored)), dict(enumerate(resolved))
    if not (isinstance(stored, dict) and isinstance(resolved, dict)):
        return key, _brief(stored), _brief(resolved)
    for name in [*resolved, *(name for name in stored if name not in resolved)]:
        inner = f"{key}.{name}" if key else str(name)
        difference = _first_difference(stored.get(name), resolved.get(name), inner)
        if difference is not None:
            return difference
    return None


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _visible_entries(path: Path) -> list[str]:
    """Names in ``path`` that matter: not hidden ones, nor the empty folders of a start that was killed."""
    return sorted(
        entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(".")
        and entry.name != "lost+found"
        and not (entry.is_dir() and not any(entry.iterdir()))
    )
