"""What a package offers by its own name, imported when it is asked for.

``from d1ray.diffusion import sample`` is for people; it must not cost everybody who only reads a setting of
the package an import of torch. Inside d1ray names come from where they are defined.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(names: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562).

    Args:
        names: of each module below ``d1ray``, what it gives: ``{"diffusion.sampler": "Samples sample"}``.
    """
    places = {name: module for module, some in names.items() for name in some.split()}

    def given(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"there is no {name!r} here; there are {', '.join(sorted(places))}")
        return getattr(importlib.import_module(f"d1ray.{places[name]}"), name)

    return given
