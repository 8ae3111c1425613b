"""Reinforcement learning for masked diffusion language models, on Ray."""

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder

    class Finder(MetaPathFinder, Loader): ...

else:  # every process that checks an answer imports this file
    Finder = object

__version__ = "0.1.0"

# Modules that programs and users' own files may still name by an earlier place, by folder below d1ray.
MOVED = {
    f"d1ray.{old or new}": f"d1ray.{folder}.{new}"
    for folder, names in {
        "config": "errors recipe registry rng settings diffusion.sampler_config=sampling",
        "evaluation": "evaluation_config=config evaluation_folder=folder evaluation_samples=samples "
        "evaluation_table=table harness score",
        "models": "recipe_model=make",
        "programs": "doctor estimates evaluate evaluate_model export serve stages train",
        "rl": "schema tasks.scoring=scoring",
        "run": "checkpoint checkpoint_writer curves interrupt memory metrics progress run_folder=folder "
        "summary trackers",
        "sft": "demonstrations masked_training sft_model=model",
    }.items()
    for old, _, new in (name.rpartition("=") for name in names.split())
}


class _Moved(Finder):
    """Finds a module by its earlier name, and says where it is now."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {MOVED[spec.name]}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has been executed by its own name; it keeps that."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_Moved())  # last: only what nobody else finds
