"""Settings that name one of several kinds, e.g. ``task: sudoku`` or ``task: {name: sudoku, blanks: 6}``.

A kind is imported when it is named: a scorer that checks Sudokus never loads what checks mathematics.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)
Place: TypeAlias = str  # "package.module:name"


class Kinds(MutableMapping[str, type[T]]):
    """The kinds that a setting can name, by name; a program may add its own.

    Args:
        what: is named, for messages: "task".
        places: where each kind is defined, as ``module:class``.
        families: the same of names that match a pattern, e.g. ``*.py``, as ``module:function``; the function
            takes the name and gives the class.
        default: the name meant by options without one; "" when it has to be given.

    Example:
        >>> KINDS = Kinds("estimator", {"one_step": "d1ray.diffusion.estimators.one_step:OneStep"})
        >>> KINDS.load({"name": "one_step", "prompt_mask_prob": 0.3}).prompt_mask_prob
        0.3
    """

    def __init__(
        self,
        what: str,
        places: Mapping[str, Place],
        families: Mapping[str, Place] = {},
        default: str = "",
    ):
        self.what, self.families, self.default = what, families, default
        self._places: dict[str, Place | type[T]] = dict(places)

    def __getitem__(self, name: str) -> type[T]:
        if name in self._places:
            place = self._places[name]
            return cast(type[T], _imported(place)) if isinstance(place, str) else place
        family = next((place for pattern, place in self.families.items() if fnmatchcase(name, pattern)), None)
        if family is None:
            raise KeyError(name)
        return cast(Callable[[str], type[T]], _imported(family))(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __setitem__(self, name: str, kind: type[T]) -> None:
        self._places[name] = kind

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._places or any(fnmatchcase(name, pattern) for pattern in self.families)
        )

    def load(self, value: Any) -> T:
        """Makes the kind that ``value`` names; returns a made one as it is.

        Args:
            value: a name, or ``{"name": NAME, option: value, ...}``.

        Raises:
            ValueError: one line that begins with the wrong key, e.g. ``task.blanks: ...``.
        """
        if isinstance(value, BaseModel):
            return cast(T, value)  # made already; the field that takes it checks its class
        what, options = self.what, {"name": value} if isinstance(value, str) else value
        if not isinstance(options, Mapping):
            raise ValueError(f"{what}: expected a name or a mapping with a name, found {value!r}")
        known = f"known {what}s: {', '.join(sorted(self))}"
        if "name" not in options and not self.default:
            raise ValueError(f"{what}.name: missing; {known}")
        name = options.get("name", self.default)
        if name not in self:
            raise ValueError(f"{what}.name: unknown {what} {name!r}{did_you_mean(name, self)}; {known}")
        if name.endswith(".py"):
            name = str(Path(name).absolute())  # it is also read where other folders are current
        kind = self[name]
        try:
            return kind.model_validate({**options, "name": name})
        except ValidationError as error:
            raise ValueError("; ".join(_line(fault, what, kind) for fault in error.errors())) from None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` of the known name that is most like ``name``; "" if none is."""
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _imported(place: Place) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _line(fault: Mapping[str, Any], what: str, kind: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        options = ", ".join(sorted(kind.model_fields))
        return f"{what}.{key}: unknown option{did_you_mean(key, kind.model_fields)}; options: {options}"
    if fault["type"] == "value_error" and message.startswith(f"{key}."):
        return f"{what}.{message}"  # a named kind within a named kind has written its own line
    found = "" if fault["type"] == "value_error" else f", found {fault['input']!r}"
    return f"{what}.{key}: {message}{found}"
