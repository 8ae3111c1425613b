"""Scenarios in a process of their own: a process joins one cluster."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

Found: TypeAlias = dict[str, Any]


def found_apart(
    scenarios: Callable[..., None],
    *arguments: Any,
    folder: Path,
    within_s: float,
    environment: dict[str, str] | None = None,
) -> Found:
    """What ``scenarios(*arguments, folder, found)``, a module's function, has put into ``found``.

    It leaves it as ``folder``/found.pt, whatever ends it.

    Args:
        environment: of the process and of what it starts, beyond this process's.
    """
    target, added = (scenarios, arguments, folder), environment or {}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    process = multiprocessing.get_context("spawn").Process(target=_noted, args=target)
    process.start()
    process.join(timeout=within_s)
    alive = process.is_alive()
    process.kill()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    left = folder / "found.pt"
    found: Found = torch.load(left, weights_only=False) if left.exists() else {}
    assert not alive and process.exitcode == 0, f"ended with {process.exitcode}, having {list(found)}"
    return found


def _noted(scenarios: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
    found: Found = {}
    try:
        scenarios(*arguments, folder, found)
    finally:
        torch.save(found, folder / "found.pt")
